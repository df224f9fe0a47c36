"""tokenizer.json and byte-level files: roles, contradictory files, fingerprints."""

import json
import pathlib

import pytest

from jaxrl_llm.data import tokenizers
from tests.golden import chat_cases


@pytest.fixture
def make(tmp_path):
  """Writes a tokenizer's directory with some documents changed, and loads it."""

  def write(name, documents=None, **arguments):
    directory = chat_cases.write(name, tmp_path / name, None)
    for file, fields in (documents or {}).items():
      path = directory / file
      old = json.loads(path.read_text()) if path.exists() else {}
      path.write_text(json.dumps({**old, **fields}))
    return tokenizers.load_tokenizer(directory, **arguments)

  return write


def _config(**fields):
  return {'tokenizer_config.json': fields}


def test_stop_ids_have_a_fixed_order(make):
  # The eos_token, then generation_config.json's in its order, each once.
  assert make('llama3').stop_ids == (404, 401, 405)
  assert make('llama3', {'generation_config.json': {'eos_token_id': 7}}).stop_ids == (404, 7)
  # Without it, those of config.json, or of its text_config for multimodal models.
  fields = {'generation_config.json': {'eos_token_id': None}, 'config.json': {'eos_token_id': [5]}}
  assert make('llama3', fields).stop_ids == (404, 5)
  fields['config.json'] = {'eos_token_id': None, 'text_config': {'eos_token_id': 6}}
  assert make('llama3', fields).stop_ids == (404, 6)
  fields['config.json'] = {'eos_token_id': 9, 'text_config': {'eos_token_id': 6}}
  assert make('llama3', {**fields, **_config(eos_token=None)}).stop_ids == (9,)
  assert make('llama3', stop_tokens=['!', '"']).stop_ids == (0, 1)


def test_an_encoder_ends_with_its_separator(make):
  tokenizer = make('bert')
  # Truncation and padding in its file are ignored.
  ids = tokenizer.encode('The user asks a question and the assistant answers it briefly.')
  assert len(ids) > 12 and tokenizer.encode('') == []
  assert (tokenizer.start_ids, tokenizer.stop_ids, tokenizer.pad_id) == ((2,), (3,), 0)


def test_padding_may_be_any_token(make):
  assert make('llama3').pad_id == 404  # No pad_token: the first stop id.
  assert make('llama3', _config(pad_token='<|eom_id|>')).pad_id == 405
  assert make('llama3', pad_token='!').pad_id == 0
  same = make('llama3', _config(pad_token='<|eot_id|>', unk_token='<|eot_id|>'))
  assert same.pad_id == same.stop_ids[0] == 404
  assert same.decode([404, *same.encode('the'), 404]) == 'the'


def test_the_post_processor_decides_how_a_text_starts(make):
  for decides in (True, False):
    assert make('llama3', _config(add_bos_token=decides)).start_ids == (400,)
    tokenizer = make('llama3', {**_config(add_bos_token=decides),
                                'tokenizer.json': {'post_processor': None}})
    assert tokenizer.start_ids == ()


@pytest.mark.parametrize(
    'documents, message',
    [
        ({'generation_config.json': {'eos_token_id': 406}},
         r'generation_config.json: eos_token_id must be in \[0, 406\), the ids of the tokenizer, '
         r'got 406$'),
        ({'generation_config.json': {'eos_token_id': ['x']}}, "eos_token_id must be ids, got"),
        ({'generation_config.json': {'eos_token_id': None}, **_config(eos_token=None)},
         "defines no token that ends a response: tokenizer_config.json must have an 'eos_token'"),
        (_config(added_tokens_decoder=chat_cases.decoder(8, '<|eot_id|>')),
         r"added token '<\|eot_id\|>' must have id 8, but the vocabulary gives it 404"),
        (_config(added_tokens_decoder=chat_cases.decoder(500, '<new>')),
         "added token '<new>' must have id 500, but the vocabulary gives it 406"),
        (_config(added_tokens_decoder={'x': '<new>'}), 'ids of added tokens must be integers'),
        (_config(eos_token={'text': 'x'}), 'a token must be a text'),
        ({'tokenizer.json': {'model': {}}}, 'is not a complete tokenizer.json'),
    ],
)
def test_contradictory_files_are_one_line_errors(documents, message, make):
  with pytest.raises(ValueError, match=message) as error:
    make('llama3', documents)
  assert '\n' not in str(error.value)


def test_stop_and_pad_tokens_must_exist(make):
  with pytest.raises(ValueError, match="token '<none>' is not in the vocabulary of .*llama3"):
    make('llama3', stop_tokens=['<none>'])
  with pytest.raises(ValueError, match="token '<none>' is not in the vocabulary of .*llama3"):
    make('llama3', pad_token='<none>')
  with pytest.raises(ValueError, match='stop_tokens must have at least one token, got none'):
    make('llama3', stop_tokens=[])


def test_fingerprints_include_everything_that_determines_ids(make):
  token = chat_cases.decoder(406, chat_cases.added('<new>', False))
  stripping = chat_cases.decoder(406, chat_cases.added('<new>', False, lstrip=True))
  changes = [
      {},
      {'tokenizer.json': {'post_processor': None}},  # Start (and the file).
      {'generation_config.json': {'eos_token_id': [401]}},
      _config(eos_token='<|eom_id|>'),
      _config(pad_token='<|end_of_text|>'),
      _config(added_tokens_decoder=token),
      _config(added_tokens_decoder=stripping),
      _config(additional_special_tokens=['<more>']),
  ]
  made = [make('llama3', change) for change in changes]
  assert len({tokenizer.full_fingerprint for tokenizer in made}) == len(changes)

  # Ids do not depend on stop and padding tokens, nor on a second name of a special token.
  prints = [tokenizer.fingerprint for tokenizer in made]
  assert prints[0] == prints[2] == prints[3] == prints[4]
  assert len(set(prints)) == len(changes) - 3
  assert make('llama3').fingerprint == make('llama3', _config(chat_template='x')).fingerprint
  legacy = [make('llama2_json', _config(legacy=value)).fingerprint for value in (True, False)]
  assert len(set(legacy)) == 2


@pytest.fixture
def gpt2_folder(data_dir, tmp_path):
  """GPT-2's files under the names of Hugging Face."""
  for name, source in (('vocab.json', 'encoder.json'), ('merges.txt', 'vocab.bpe')):
    (tmp_path / name).symlink_to(data_dir / 'tokenizers' / 'gpt2' / source)
  return tmp_path


def test_byte_level_files_with_their_configuration(gpt2_folder: pathlib.Path):
  plain = tokenizers.load_tokenizer(gpt2_folder)
  path = gpt2_folder / 'tokenizer_config.json'

  def load(**fields):
    path.write_text(json.dumps(fields))
    return tokenizers.load_tokenizer(gpt2_folder)

  # As published: the class alone determines the special token.
  same = load(model_max_length=1024)
  assert (same.stop_ids, same.pad_id, same.start_ids) == ((50256,), 50256, ())
  assert same.fingerprint == plain.fingerprint
  tokenizer = load(
      bos_token='<|endoftext|>', eos_token='<|end|>', add_bos_token=True, add_prefix_space=True,
      added_tokens_decoder=chat_cases.decoder(50256, '<|endoftext|>', '<|end|>'), pad_token='!')
  assert tokenizer.vocab_size == 50258 and tokenizer.stop_ids == (50257,)
  assert tokenizer.start_ids == (50256,) and tokenizer.pad_id == 0
  assert tokenizer.encode('the<|end|>') == [*plain.encode(' the'), 50257]
  # A vocabulary is GPT-2's or Qwen2's; other classes split words differently.
  with pytest.raises(ValueError, match="GPT2Tokenizer or Qwen2Tokenizer, got 'RobertaTokenizer'"):
    load(tokenizer_class='RobertaTokenizer')
  qwen2 = load(tokenizer_class='Qwen2Tokenizer')
  assert qwen2.encode('12') == [*plain.encode('1'), *plain.encode('2')] != plain.encode('12')
