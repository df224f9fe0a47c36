"""What goes with exported parameters: the same tokenizer, and what ends a response."""

import json
import shutil

import pytest

from jaxrl_llm.data import tokenizers
from jaxrl_llm.runs import export as export_lib
from tests.golden import chat_cases

TEXTS = (*chat_cases.TEXTS, 'x<|im_start|>user\nHi<|im_end|>\n<|endoftext|> 12', "don't 東京 345")


def export(folder, tmp_path, fields=None, *, model_type='llama', stop_tokens=None):
  """(the export, what is loaded of it)."""
  loaded = tokenizers.load_tokenizer(folder)
  if stop_tokens:
    stops = tokenizers.load_tokenizer(folder, stop_tokens=stop_tokens).stop_ids
    loaded = tokenizers.with_stop_ids(loaded, stops)
  found = export_lib.of_tokenizer(loaded, folder, fields or {}, model_type=model_type)
  target = tmp_path / 'out'
  target.mkdir()
  for name, content in found.files.items():
    (target / name).write_bytes(content)
  (target / 'config.json').write_text(json.dumps({'model_type': model_type, **found.fields}))
  again = tokenizers.load_tokenizer(target)
  for text in TEXTS:
    assert again.encode(text) == loaded.encode(text), text
    assert again.decode(again.encode(text)) == loaded.decode(loaded.encode(text))
  assert again.start_ids == loaded.start_ids and again.pad_id == loaded.pad_id
  assert again.vocab_size == loaded.vocab_size

  return found, again


def read(found, name):
  return json.loads(found.files[name])


def folder_of(name, tmp_path, data_dir, **documents):
  """A tokenizer of the goldens with changed documents, and without the class names' own files."""
  folder = chat_cases.write(name, tmp_path / 'in', data_dir / 'tokenizers')
  for file, fields in documents.items():
    path = folder / f'{file}.json'
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **fields}))
  return folder


@pytest.mark.parametrize(('name', 'stops'), [('qwen2', [151643, 151645]), ('gpt2', 50256)])
def test_two_files_of_bytes_become_one_whole_tokenizer(name, stops, data_dir, tmp_path):
  found, _ = export(data_dir / 'tokenizers' / name, tmp_path, model_type=name)
  assert set(found.files) == {'tokenizer.json', 'tokenizer_config.json', 'generation_config.json'}
  config = read(found, 'tokenizer_config.json')
  assert config['tokenizer_class'] == 'PreTrainedTokenizerFast'
  assert config['eos_token'] == config['pad_token'] == '<|endoftext|>'
  pad = stops[0] if isinstance(stops, list) else stops
  assert found.fields == {'bos_token_id': None, 'eos_token_id': stops, 'pad_token_id': pad}
  assert read(found, 'generation_config.json') == {'eos_token_id': stops, 'pad_token_id': pad}
  assert found.notes == []


def test_what_the_files_said_before_is_kept(data_dir, tmp_path):
  folder = folder_of('qwen25', tmp_path, data_dir, tokenizer_config={'chat_template': 'T'},
                     generation_config={'top_p': 0.8})
  fields = {'eos_token_id': 151645, 'x': 1}
  found, again = export(folder, tmp_path, fields, model_type='qwen2')
  config = read(found, 'tokenizer_config.json')
  assert config['chat_template'] == 'T' and config['eos_token'] == '<|im_end|>'
  assert again.stop_ids == (151645, 151643)
  assert found.fields == {'eos_token_id': 151645, 'x': 1}
  assert read(found, 'generation_config.json') == {
      'eos_token_id': [151645, 151643], 'pad_token_id': 151643, 'top_p': 0.8}


def test_a_whole_tokenizer_is_copied_byte_for_byte(tmp_path):
  folder = chat_cases.write('llama3', tmp_path / 'in', None)
  (folder / 'other.model').write_bytes(b'whatever it is')
  found, again = export(folder, tmp_path, {'eos_token_id': 404})
  assert {name: (folder / name).read_bytes() for name in found.files} == found.files
  assert again.start_ids == (400,)
  # Without anything in config.json the class would have ids of its own.
  assert export_lib.of_tokenizer(again, folder, {}, model_type='llama').fields == {
      'bos_token_id': 400, 'eos_token_id': [404, 401, 405], 'pad_token_id': 404}


def test_start_tokens_stand_in_the_file_that_is_written(data_dir, tmp_path):
  folder = folder_of('gpt2', tmp_path, data_dir, tokenizer_config={'add_bos_token': True})
  found, again = export(folder, tmp_path)
  assert again.start_ids == (50256,) and found.fields['bos_token_id'] == 50256


def test_other_stop_ids_are_written_everywhere(tmp_path):
  folder = chat_cases.write('llama3', tmp_path / 'in', None)
  (folder / 'special_tokens_map.json').write_text('{"eos_token": "<|eot_id|>"}')
  found, again = export(folder, tmp_path, {'eos_token_id': 404}, stop_tokens=['<|eom_id|>'])
  assert again.stop_ids == (405,) and found.fields['eos_token_id'] == 405
  assert read(found, 'generation_config.json')['eos_token_id'] == 405
  for name in ('tokenizer_config.json', 'special_tokens_map.json'):
    assert read(found, name)['eos_token'] == '<|eom_id|>'
  assert found.files['tokenizer.json'] == (folder / 'tokenizer.json').read_bytes()
  # transformers does not stop at an eos_token that generation_config.json does not have.
  (folder / 'generation_config.json').write_text('{"eos_token_id": 404}')
  tokenizer = tokenizers.with_stop_ids(tokenizers.load_tokenizer(folder), (405, 404))
  found = export_lib.of_tokenizer(tokenizer, folder, {}, model_type='llama')
  assert read(found, 'generation_config.json')['eos_token_id'] == [405, 404]


def test_an_eos_token_that_the_template_writes_stays(tmp_path):
  folder = chat_cases.write('llama3', tmp_path / 'in', None)
  (folder / 'chat_template.jinja').write_text('{{ messages[0].content }}{{ eos_token }}')
  found, again = export(folder, tmp_path, {'eos_token_id': 404}, stop_tokens=['<|eom_id|>'])
  assert read(found, 'tokenizer_config.json')['eos_token'] == '<|eot_id|>'
  assert set(again.stop_ids) == {404, 405} and found.fields['eos_token_id'] == 405


@pytest.mark.parametrize('name', ['llama2', 'gemma'])
def test_a_sentencepiece_model_of_a_known_class_is_copied(name, data_dir, tmp_path):
  folder = folder_of(name, tmp_path, data_dir)
  found, _ = export(folder, tmp_path)
  assert found.files['tokenizer.model'] == (folder / 'tokenizer.model').read_bytes()
  assert 'tokenizer.json' not in found.files and found.notes == []


def test_one_of_no_class_becomes_a_tokenizer_or_a_note(data_dir, tmp_path, monkeypatch):
  folder = data_dir / 'tokenizers' / 'sentencepiece'
  tokenizer = tokenizers.load_tokenizer(folder)
  make = lambda: export_lib.of_tokenizer(tokenizer, folder, {}, model_type='llama')
  found = make()
  assert 'tokenizer.json' in found.files and not any('.model' in name for name in found.files)
  assert read(found, 'tokenizer_config.json')['eos_token'] == '</s>'
  assert len(found.notes) == 1 and 'those that begin with a space' in found.notes[0]
  monkeypatch.setattr(export_lib.sentencepiece_export, 'to_backend', lambda _: None)
  found = make()
  assert 'tokenizer.model' in found.files and 'tokenizer.json' not in found.files
  assert len(found.notes) == 1 and 'AutoTokenizer gives other ids' in found.notes[0]
  assert found.fields['eos_token_id'] == 2


def test_a_file_that_was_named_is_the_one_that_goes_out(data_dir, tmp_path):
  folder = tmp_path / 'two'
  shutil.copytree(chat_cases.write('llama3', tmp_path / 'in', None), folder)
  for name in ('a.model', 'b.model'):
    shutil.copyfile(data_dir / 'tokenizers' / 'sentencepiece' / 'test_model.model', folder / name)
  (folder / 'tokenizer.json').rename(folder / 'other.json')
  found = export_lib.of_tokenizer(
      tokenizers.load_tokenizer(folder / 'other.json'), folder / 'other.json', {},
      model_type='llama')
  assert found.files['tokenizer.json'] == (folder / 'other.json').read_bytes()
  assert not any(name.endswith('.model') or name == 'other.json' for name in found.files)


def test_what_transformers_does_to_qwen2_is_said(data_dir, tmp_path):
  found, _ = export(data_dir / 'tokenizers' / 'gpt2', tmp_path, model_type='qwen2')
  assert len(found.notes) == 1 and 'PreTrainedTokenizerFast.from_pretrained' in found.notes[0]


@pytest.mark.parametrize(('fields', 'generation', 'expected'), [
    # Nothing is said: all is written.
    ({}, None, ({'bos_token_id': 1, 'pad_token_id': 9, 'eos_token_id': 5},
                {'bos_token_id': 1, 'pad_token_id': 9, 'eos_token_id': 5})),
    # What agrees stays as it is, and generation_config.json is not needed.
    ({'eos_token_id': 5}, None, ({'eos_token_id': 5}, None)),
    ({'eos_token_id': [5]}, {'eos_token_id': 5}, ({'eos_token_id': [5]}, {'eos_token_id': 5})),
    # What does not is replaced; what is said of the others is kept.
    ({'eos_token_id': 7, 'pad_token_id': None}, {'top_k': 2, 'eos_token_id': [7, 5]},
     ({'bos_token_id': 1, 'pad_token_id': None, 'eos_token_id': 5},
      {'bos_token_id': 1, 'pad_token_id': 9, 'top_k': 2, 'eos_token_id': 5})),
    # transformers does not look at config.json where there is the other file.
    ({'eos_token_id': 5}, {'top_k': 2},
     ({'bos_token_id': 1, 'pad_token_id': 9, 'eos_token_id': 5},
      {'bos_token_id': 1, 'pad_token_id': 9, 'top_k': 2, 'eos_token_id': 5})),
    ({}, {'eos_token_id': 5}, ({'bos_token_id': 1, 'pad_token_id': 9, 'eos_token_id': 5},
                               {'eos_token_id': 5})),
])
def test_special_ids_by_hand(fields, generation, expected):
  assert export_lib.special_ids(
      (5,), fields, generation, pad_id=9, start_ids=(1,)) == expected
