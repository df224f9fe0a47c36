"""Files exported with parameters: the same tokenizer and stop tokens."""

import json
import shutil

import pytest

from jaxrl_llm.data import tokenizers
from jaxrl_llm.runs import export as export_lib
from tests.golden import chat_cases

TEXTS = (*chat_cases.TEXTS, 'x<|im_start|>user\nHi<|im_end|>\n<|endoftext|> 12', "don't 東京 345")


def export(folder, tmp_path, fields=None, *, model_type='llama', stop_tokens=None):
  """(the export, the tokenizer loaded from it)."""
  loaded = tokenizers.load_tokenizer(folder)
  if stop_tokens:
    stops = tokenizers.load_tokenizer(folder, stop_tokens=stop_tokens).stop_ids
    loaded = tokenizers.with_stop_ids(loaded, stops)
  exported = export_lib.of_tokenizer(loaded, folder, fields or {}, model_type=model_type)
  target = tmp_path / 'out'
  target.mkdir()
  for name, content in exported.files.items():
    (target / name).write_bytes(content)
  (target / 'config.json').write_text(json.dumps({'model_type': model_type, **exported.fields}))
  again = tokenizers.load_tokenizer(target)
  for text in TEXTS:
    assert again.encode(text) == loaded.encode(text), text
    assert again.decode(again.encode(text)) == loaded.decode(loaded.encode(text))
  assert again.start_ids == loaded.start_ids and again.pad_id == loaded.pad_id
  assert again.vocab_size == loaded.vocab_size

  return exported, again


def read(exported, name):
  return json.loads(exported.files[name])


def folder_of(name, tmp_path, data_dir, **documents):
  """Writes a tokenizer of the goldens with changed documents; returns its directory."""
  folder = chat_cases.write(name, tmp_path / 'in', data_dir / 'tokenizers')
  for file, fields in documents.items():
    path = folder / f'{file}.json'
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **fields}))
  return folder


@pytest.mark.parametrize(('name', 'stops'), [('qwen2', [151643, 151645]), ('gpt2', 50256)])
def test_vocabulary_and_merges_become_a_tokenizer_json(name, stops, data_dir, tmp_path):
  exported, _ = export(data_dir / 'tokenizers' / name, tmp_path, model_type=name)
  assert set(exported.files) == {
      'tokenizer.json', 'tokenizer_config.json', 'generation_config.json'}
  config = read(exported, 'tokenizer_config.json')
  assert config['tokenizer_class'] == 'PreTrainedTokenizerFast'
  assert config['eos_token'] == config['pad_token'] == '<|endoftext|>'
  pad = stops[0] if isinstance(stops, list) else stops
  assert exported.fields == {'bos_token_id': None, 'eos_token_id': stops, 'pad_token_id': pad}
  assert read(exported, 'generation_config.json') == {'eos_token_id': stops, 'pad_token_id': pad}
  assert exported.notes == []


def test_existing_entries_are_unchanged(data_dir, tmp_path):
  folder = folder_of('qwen25', tmp_path, data_dir, tokenizer_config={'chat_template': 'T'},
                     generation_config={'top_p': 0.8})
  fields = {'eos_token_id': 151645, 'x': 1}
  exported, again = export(folder, tmp_path, fields, model_type='qwen2')
  config = read(exported, 'tokenizer_config.json')
  assert config['chat_template'] == 'T' and config['eos_token'] == '<|im_end|>'
  assert again.stop_ids == (151645, 151643)
  assert exported.fields == {'eos_token_id': 151645, 'x': 1}
  assert read(exported, 'generation_config.json') == {
      'eos_token_id': [151645, 151643], 'pad_token_id': 151643, 'top_p': 0.8}


def test_a_tokenizer_json_is_copied_byte_for_byte(tmp_path):
  folder = chat_cases.write('llama3', tmp_path / 'in', None)
  (folder / 'other.model').write_bytes(b'any bytes')
  exported, again = export(folder, tmp_path, {'eos_token_id': 404})
  assert {name: (folder / name).read_bytes() for name in exported.files} == exported.files
  assert again.start_ids == (400,)
  # Without ids in config.json the model class would use its defaults.
  assert export_lib.of_tokenizer(again, folder, {}, model_type='llama').fields == {
      'bos_token_id': 400, 'eos_token_id': [404, 401, 405], 'pad_token_id': 404}


def test_start_tokens_are_written_to_the_tokenizer_json(data_dir, tmp_path):
  folder = folder_of('gpt2', tmp_path, data_dir, tokenizer_config={'add_bos_token': True})
  exported, again = export(folder, tmp_path)
  assert again.start_ids == (50256,) and exported.fields['bos_token_id'] == 50256


def test_other_stop_ids_are_written_everywhere(tmp_path):
  folder = chat_cases.write('llama3', tmp_path / 'in', None)
  (folder / 'special_tokens_map.json').write_text('{"eos_token": "<|eot_id|>"}')
  exported, again = export(folder, tmp_path, {'eos_token_id': 404}, stop_tokens=['<|eom_id|>'])
  assert again.stop_ids == (405,) and exported.fields['eos_token_id'] == 405
  assert read(exported, 'generation_config.json')['eos_token_id'] == 405
  for name in ('tokenizer_config.json', 'special_tokens_map.json'):
    assert read(exported, name)['eos_token'] == '<|eom_id|>'
  assert exported.files['tokenizer.json'] == (folder / 'tokenizer.json').read_bytes()
  # transformers does not stop at an eos_token that generation_config.json does not have.
  (folder / 'generation_config.json').write_text('{"eos_token_id": 404}')
  tokenizer = tokenizers.with_stop_ids(tokenizers.load_tokenizer(folder), (405, 404))
  exported = export_lib.of_tokenizer(tokenizer, folder, {}, model_type='llama')
  assert read(exported, 'generation_config.json')['eos_token_id'] == [405, 404]


def test_an_eos_token_in_the_template_is_unchanged(tmp_path):
  folder = chat_cases.write('llama3', tmp_path / 'in', None)
  (folder / 'chat_template.jinja').write_text('{{ messages[0].content }}{{ eos_token }}')
  exported, again = export(folder, tmp_path, {'eos_token_id': 404}, stop_tokens=['<|eom_id|>'])
  assert read(exported, 'tokenizer_config.json')['eos_token'] == '<|eot_id|>'
  assert set(again.stop_ids) == {404, 405} and exported.fields['eos_token_id'] == 405


@pytest.mark.parametrize('name', ['llama2', 'gemma'])
def test_a_sentencepiece_model_of_a_known_class_is_copied(name, data_dir, tmp_path):
  folder = folder_of(name, tmp_path, data_dir)
  exported, _ = export(folder, tmp_path)
  assert exported.files['tokenizer.model'] == (folder / 'tokenizer.model').read_bytes()
  assert 'tokenizer.json' not in exported.files and exported.notes == []


def test_a_sentencepiece_model_without_a_class_is_converted(data_dir, tmp_path, monkeypatch):
  folder = data_dir / 'tokenizers' / 'sentencepiece'
  tokenizer = tokenizers.load_tokenizer(folder)
  make = lambda: export_lib.of_tokenizer(tokenizer, folder, {}, model_type='llama')
  exported = make()
  assert 'tokenizer.json' in exported.files and not any('.model' in name for name in exported.files)
  assert read(exported, 'tokenizer_config.json')['eos_token'] == '</s>'
  assert len(exported.notes) == 1 and 'those that begin with a space' in exported.notes[0]
  monkeypatch.setattr(export_lib.sentencepiece_export, 'to_backend', lambda _: None)
  exported = make()
  assert 'tokenizer.model' in exported.files and 'tokenizer.json' not in exported.files
  assert len(exported.notes) == 1 and 'AutoTokenizer gives other ids' in exported.notes[0]
  assert exported.fields['eos_token_id'] == 2


def test_the_named_tokenizer_file_is_exported(data_dir, tmp_path):
  folder = tmp_path / 'two'
  shutil.copytree(chat_cases.write('llama3', tmp_path / 'in', None), folder)
  for name in ('a.model', 'b.model'):
    shutil.copyfile(data_dir / 'tokenizers' / 'sentencepiece' / 'test_model.model', folder / name)
  (folder / 'tokenizer.json').rename(folder / 'other.json')
  exported = export_lib.of_tokenizer(
      tokenizers.load_tokenizer(folder / 'other.json'), folder / 'other.json', {},
      model_type='llama')
  assert exported.files['tokenizer.json'] == (folder / 'other.json').read_bytes()
  assert not any(name.endswith('.model') or name == 'other.json' for name in exported.files)


def test_a_qwen2_model_with_another_tokenizer_has_a_note(data_dir, tmp_path):
  exported, _ = export(data_dir / 'tokenizers' / 'gpt2', tmp_path, model_type='qwen2')
  assert len(exported.notes) == 1 and 'PreTrainedTokenizerFast.from_pretrained' in exported.notes[0]


@pytest.mark.parametrize(('fields', 'generation', 'expected'), [
    # No ids yet: all are written.
    ({}, None, ({'bos_token_id': 1, 'pad_token_id': 9, 'eos_token_id': 5},
                {'bos_token_id': 1, 'pad_token_id': 9, 'eos_token_id': 5})),
    # Equal stop ids are unchanged, and generation_config.json is not needed.
    ({'eos_token_id': 5}, None, ({'eos_token_id': 5}, None)),
    ({'eos_token_id': [5]}, {'eos_token_id': 5}, ({'eos_token_id': [5]}, {'eos_token_id': 5})),
    # Other stop ids are replaced; other fields are unchanged.
    ({'eos_token_id': 7, 'pad_token_id': None}, {'top_k': 2, 'eos_token_id': [7, 5]},
     ({'bos_token_id': 1, 'pad_token_id': None, 'eos_token_id': 5},
      {'bos_token_id': 1, 'pad_token_id': 9, 'top_k': 2, 'eos_token_id': 5})),
    # transformers ignores config.json if generation_config.json exists.
    ({'eos_token_id': 5}, {'top_k': 2},
     ({'bos_token_id': 1, 'pad_token_id': 9, 'eos_token_id': 5},
      {'bos_token_id': 1, 'pad_token_id': 9, 'top_k': 2, 'eos_token_id': 5})),
    ({}, {'eos_token_id': 5}, ({'bos_token_id': 1, 'pad_token_id': 9, 'eos_token_id': 5},
                               {'eos_token_id': 5})),
])
def test_special_ids_by_hand(fields, generation, expected):
  assert export_lib.special_ids(
      (5,), fields, generation, pad_id=9, start_ids=(1,)) == expected
