"""Tokenizers in GGUF metadata give the ids of the tokenizers that they were made from."""

import json
import pathlib
import shutil

import pytest

from jaxrl_llm.data import chat_templates, tokenizers
from jaxrl_llm.models.pretrained import gguf_tokenizer
from tests.golden import chat_cases
from tests.models.pretrained import gguf_files

_PATH = pathlib.Path('x.gguf')
_TEXTS = (
    "Hello, world: 12345 apples, don't 3.14 I'LL", '  two  spaces\n\n\n and\ttabs \n', 'ab',
    'Größe 東京 😀 e\u0301 \u00a0x', '<|im_start|>user\nHi<|im_end|>', 'the answer is 12.', '',
)


def _load(folder, metadata, *, model_type='llama', **changes):
  """Writes the files of metadata and loads them; a change to None removes a field."""
  metadata = metadata | {f'tokenizer.ggml.{name}': value for name, value in changes.items()}
  built = gguf_tokenizer.read(
      {key: value for key, value in metadata.items() if value is not None}, _PATH,
      model_type=model_type)
  folder.mkdir(exist_ok=True)
  for name, content in built.files.items():
    (folder / name).write_bytes(content)
  return tokenizers.load_tokenizer(folder)


def _config(folder):
  return json.loads((folder / 'tokenizer_config.json').read_text())


@pytest.mark.parametrize(('name', 'names', 'pre'), [
    ('gpt2', ('encoder.json', 'vocab.bpe'), 'gpt-2'),
    ('qwen2', ('vocab.json', 'merges.txt'), 'qwen2'),
])
def test_byte_level_tokenizers(data_dir, tmp_path, name, names, pre):
  folder = data_dir / 'tokenizers' / name
  original = tokenizers.load_tokenizer(folder)
  vocabulary = original.backend.get_vocab(with_added_tokens=True)
  size = len(vocabulary) + 5  # Rows that only fill the embedding.
  tokens = [original.token(number) or f'[PAD{number}]' for number in range(size)]
  special = {token.content for token in original.backend.get_added_tokens_decoder().values()}
  types = [3 if token in special else 5 if token not in vocabulary else 1 for token in tokens]
  lines = (folder / names[1]).read_text().splitlines()

  loaded = _load(tmp_path / 'out', {
      'tokenizer.ggml.model': 'gpt2', 'tokenizer.ggml.pre': pre, 'tokenizer.ggml.tokens': tokens,
      'tokenizer.ggml.token_type': types, 'tokenizer.ggml.eos_token_id': original.stop_ids[0],
      'tokenizer.ggml.merges': [line for line in lines if line and not line.startswith('#version')],
  })
  assert loaded.vocab_size == original.vocab_size == len(vocabulary)
  for text in _TEXTS:
    assert loaded.encode(text) == original.encode(text), text
    assert loaded.decode(loaded.encode(text)) == original.decode(original.encode(text))


def test_words_of_smollm_and_llama3(tmp_path):
  merges = ('1 2', '12 3', '123 4', 'a b', 'Ġ Ġ')
  load = lambda name, **changes: _load(
      tmp_path / name, gguf_files.byte_tokenizer(merges=merges, pre=name), **changes)
  pieces = lambda tokenizer, text: [tokenizer.token(number) for number in tokenizer.encode(text)]
  smollm, llama3, gpt2 = (load(name) for name in ('smollm', 'llama-bpe', 'gpt-2'))
  # SmolLM has single digits, Llama 3 at most three, GPT-2 all of them in one word.
  assert pieces(smollm, '1234ab') == ['1', '2', '3', '4', 'ab']
  assert pieces(llama3, '1234ab') == ['123', '4', 'ab']
  assert pieces(gpt2, '1234ab') == ['1234', 'ab']
  assert (smollm.start_ids, llama3.start_ids) == ((), (1,))
  assert load('llama-bpe', add_bos_token=False).start_ids == ()
  assert load('smollm', add_bos_token=True).start_ids == (1,)

  # In Llama 3 a word that is a token needs no merges.
  metadata = gguf_files.byte_tokenizer(merges=merges, pre='llama3')
  metadata['tokenizer.ggml.tokens'] = [*metadata['tokenizer.ggml.tokens'], 'xyz']
  metadata['tokenizer.ggml.token_type'] = [*metadata['tokenizer.ggml.token_type'], 1]
  assert pieces(_load(tmp_path / 'whole', metadata), 'xyz') == ['xyz']
  assert pieces(_load(tmp_path / 'parts', metadata, pre='gpt-2'), 'xyz') == ['x', 'y', 'z']


def test_stop_ids_and_the_chat_template(tmp_path):
  template = '{% for message in messages %}<user>{{ message.content }}<end>{% endfor %}'
  metadata = gguf_files.byte_tokenizer(more=('<eot>', '<pad>', '<user>'))
  loaded = _load(
      tmp_path, metadata | {'tokenizer.chat_template': template}, eot_token_id=2, eom_token_id=0,
      padding_token_id=3)
  assert (loaded.stop_ids, loaded.pad_id, loaded.vocab_size) == ((0, 2), 3, 262)
  assert loaded.decode(loaded.encode('a<eot>b<end>')) == 'ab'
  assert _config(tmp_path).items() >= {
      'eos_token': '<end>', 'bos_token': '<start>', 'pad_token': '<pad>',
      'chat_template': template}.items()

  # Named templates: one of them is the default.
  names = {'tokenizer.chat_template': template, 'tokenizer.chat_templates': ['tool'],
           'tokenizer.chat_template.tool': 'other'}
  _load(tmp_path / 'named', metadata | names)
  assert _config(tmp_path / 'named')['chat_template'] == [
      {'name': 'default', 'template': template}, {'name': 'tool', 'template': 'other'}]
  for folder in (tmp_path, tmp_path / 'named'):
    read = chat_templates.load(folder)
    assert read.render([{'role': 'user', 'content': 'x'}]) == '<user>x<end>'


@pytest.mark.parametrize(('name', 'model_type'), [('llama', 'llama'), ('gemma', 'gemma2')])
def test_sentencepiece_models(tmp_path, name, model_type):
  adds_space = name == 'llama'
  shutil.copyfile(chat_cases.FOLDER / f'{name}.model', tmp_path / 'tokenizer.model')
  names = {'tokenizer_class': f'{name.title()}Tokenizer', 'add_bos_token': True}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(names))
  original = tokenizers.load_tokenizer(tmp_path)

  metadata = gguf_files.sentencepiece_tokenizer(tmp_path / 'tokenizer.model')
  types = metadata['tokenizer.ggml.token_type']
  tokens = list(metadata['tokenizer.ggml.tokens'])
  if name == 'gemma':  # The library does not tell these from ordinary pieces.
    for number in (6, 7, 8):
      types[number] = 4
  loaded = _load(
      tmp_path / 'out', metadata, model_type=model_type, add_space_prefix=adds_space, tokens=tokens)

  assert loaded.vocab_size == original.vocab_size == 380
  assert (loaded.stop_ids, loaded.start_ids) == (original.stop_ids, original.start_ids)
  for text in (*_TEXTS, 'the answer</s>', '<start_of_turn>user\n\n\n12'):
    assert loaded.encode(text) == original.encode(text), text
    assert loaded.decode(original.encode(text)) == original.decode(original.encode(text))
  assert _config(tmp_path / 'out')['tokenizer_class'] == f'{name.title()}Tokenizer'
  assert _load(tmp_path / 'none', metadata, add_bos_token=False).start_ids == ()


def test_spaces_of_user_defined_pieces(tmp_path):
  metadata = gguf_files.sentencepiece_tokenizer(chat_cases.FOLDER / 'gemma.model')
  changes = {'tokens': [*metadata['tokenizer.ggml.tokens'], '   '],
             'token_type': [*metadata['tokenizer.ggml.token_type'], 4],
             'scores': [*metadata['tokenizer.ggml.scores'], 0.0]}
  loaded = _load(tmp_path, metadata, model_type='gemma', add_space_prefix=False, **changes)
  assert loaded.encode('a   b')[1] == 380 and loaded.decode(loaded.encode('a   b')) == 'a   b'


# --- One line for each field that is missing or wrong.


@pytest.mark.parametrize(('changes', 'words'), [
    ({'model': 'bert'}, "tokenizer.ggml.model must be one of gpt2, llama, got 'bert'"),
    ({'model': None}, 'tokenizer.ggml.model must be one of gpt2, llama, got None'),
    ({'pre': 'tekken'}, "tokenizer.ggml.pre, which .* must be one of gpt-2, .* got 'tekken'"),
    ({'pre': None}, 'tokenizer.ggml.pre, which .* got None'),
    ({'tokens': None}, "has no field 'tokenizer.ggml.tokens'"),
    ({'tokens': [1, 2]}, 'tokenizer.ggml.tokens must be a list of str'),
    ({'tokens': ['a', 'a'], 'token_type': [1, 1]}, "duplicate token 'a' in tokenizer.ggml.tokens"),
    ({'token_type': [1]}, r'token_type must have one entry per token \(259\), got 1'),
    ({'merges': None}, "has no field 'tokenizer.ggml.merges'"),
    ({'merges': ['ab']}, "merges must have two tokens and one space each, got 'ab'"),
    ({'merges': ['']}, "merges must have two tokens and one space each, got ''"),
    ({'merges': ['a b']}, 'the tokenizer is damaged: .*ab'),
    ({'eos_token_id': None}, "has no field 'tokenizer.ggml.eos_token_id'"),
    ({'eos_token_id': 10**12}, r'eos_token_id must be in \[0, 259\), got 10{12}'),
    ({'eot_token_id': 'x'}, r"eot_token_id must be in \[0, 259\), got 'x'"),
    ({'add_bos_token': 1}, 'tokenizer.ggml.add_bos_token must be of type bool, got 1'),
    ({'add_bos_token': True, 'bos_token_id': None}, "has no field 'tokenizer.ggml.bos_token_id'"),
    ({'add_eos_token': True}, 'tokenizer.ggml.add_eos_token must be false, got True'),
])
def test_an_unsupported_byte_level_tokenizer_is_one_line(tmp_path, changes, words):
  _fails(tmp_path, gguf_files.byte_tokenizer(), changes, words)


@pytest.mark.parametrize(('changes', 'words'), [
    ({'scores': None}, "has no field 'tokenizer.ggml.scores'"),
    ({'scores': [0.0]}, r'scores must have one entry per token \(380\), got 1'),
    ({'scores': [-1000.0] * 380}, 'scores gives all tokens the same score'),
    ({'scores': [float('nan')] * 380}, 'scores must be finite'),
    ({'tokens': ['', *map(str, range(379))]}, 'the tokenizer is damaged'),
    ({'token_type': [2] * 380}, 'the tokenizer is damaged'),
    ({'add_space_prefix': 'x'}, "add_space_prefix must be of type bool, got 'x'"),
])
def test_an_unsupported_sentencepiece_model_is_one_line(tmp_path, changes, words):
  metadata = gguf_files.sentencepiece_tokenizer(chat_cases.FOLDER / 'llama.model')
  _fails(tmp_path, metadata, changes, words)


def test_an_unsupported_template_is_one_line(tmp_path):
  for name, value in (('chat_template', 3), ('chat_templates', 'x'), ('chat_templates', [3])):
    metadata = gguf_files.byte_tokenizer() | {
        f'tokenizer.{name}': value, 'tokenizer.chat_template.3': 3}
    _fails(tmp_path, metadata, {}, f'tokenizer.{name.removesuffix("s")}')


def _fails(folder, metadata, changes, words):
  with pytest.raises(ValueError, match=words) as caught:
    _load(folder, metadata, **changes)
  assert str(caught.value).startswith('x.gguf') and '\n' not in str(caught.value)
