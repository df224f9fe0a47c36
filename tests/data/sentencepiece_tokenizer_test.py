"""SentencePiece models: special tokens, leading spaces, roles, one-line errors."""

import json
import shutil

import pytest
import sentencepiece

from jaxrl_llm.data import sentencepiece_tokenizer
from tests.golden import chat_cases

_MODEL = chat_cases.FOLDER / 'llama.model'


def _load(folder, config=None, **options):
  """Loads the tiny Llama model with a tokenizer_config.json."""
  folder.mkdir(exist_ok=True)
  shutil.copyfile(_MODEL, folder / 'tokenizer.model')
  if config is not None:
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return sentencepiece_tokenizer.SentencePieceTokenizer(folder / 'tokenizer.model', **options)


def test_a_model_alone(data_dir):
  path = data_dir / 'tokenizers' / 'sentencepiece' / 'test_model.model'
  tokenizer = sentencepiece_tokenizer.SentencePieceTokenizer(path)
  text = 'Hello, world: 12 apples.'
  ids = tokenizer.encode(text)
  assert ids == sentencepiece.SentencePieceProcessor(model_file=str(path)).encode(text)
  assert tokenizer.decode(ids) == text
  assert tokenizer.decode([*ids, tokenizer.stop_ids[0], tokenizer.pad_id]) == text
  assert tokenizer.vocab_size == 1000 and tokenizer.stop_ids == (2,) and tokenizer.pad_id == 2
  assert tokenizer.start_ids == ()
  assert tokenizer.decode([ids[0], 5000]).endswith('\ufffd')
  assert tokenizer.decode([ids[0], 0, ids[1]]).count('\u2047') == 1


def test_special_tokens_are_one_id_each(tmp_path):
  tokenizer = _load(tmp_path)
  library = sentencepiece.SentencePieceProcessor(model_file=str(_MODEL))
  the, also = library.encode('the answer'), tokenizer.encode('<s>the')[1:]
  assert tokenizer.encode('the answer</s>') == [*the, 2]
  # No space is added after a special token.
  assert library.decode([the[0], *also]) == 'thethe' and also != library.encode('the')
  assert tokenizer.decode([*the, 1, *also]) == 'the answerthe'


def test_leading_spaces(tmp_path):
  plain = _load(tmp_path / 'plain')
  space = plain.encode(' ')[:1]
  llama = _load(tmp_path / 'llama', {'tokenizer_class': 'LlamaTokenizer'})
  legacy = _load(tmp_path / 'legacy', {'legacy': True})
  without = _load(tmp_path / 'without', {'add_prefix_space': False})
  # The model always adds a space; a LlamaTokenizer only if the text does not begin with one.
  assert plain.encode(' the') == space + llama.encode(' the')
  assert plain.encode('the') == llama.encode('the') == llama.encode(' the')
  assert legacy.encode('<s>the')[1:] == plain.encode('the') == legacy.encode('the')
  assert without.encode('the') == plain.encode('<s>the')[1:]
  assert plain.decode(plain.encode(' the')) == ' the' == without.decode(without.encode(' the'))
  tokenizers = (plain, llama, legacy, without)
  assert len({tokenizer.fingerprint for tokenizer in tokenizers}) == 4


def test_added_tokens(tmp_path):
  tokens = chat_cases.decoder(
      382, '<far>', chat_cases.added('<tool>', False, rstrip=True),
      chat_cases.added('<far>er', lstrip=True))
  config = {'added_tokens_decoder': tokens, 'additional_special_tokens': ['<last>', '<s>']}
  tokenizer = _load(tmp_path, config)
  assert tokenizer.vocab_size == 386  # Given ids, followed by tokens without an id.
  assert tokenizer.encode('<far><far>er<last><s>') == [382, 384, 385, 1]
  # Tokens with lstrip or rstrip absorb white space; their text remains if they are not special.
  assert tokenizer.encode_with_offsets('<tool> \n<far>  <far>er') == (
      [383, 382, 384], [(0, 8), (8, 13), (13, 22)])
  assert tokenizer.decode([383, *tokenizer.encode('<s> the'), 382, 381]) == '<tool> the\ufffd'
  config['added_tokens_decoder']['385'] = chat_cases.added('<word>', single_word=True)
  with pytest.raises(ValueError, match="single_word of '<word>' is not supported"):
    _load(tmp_path, config)


def test_roles(tmp_path):
  config = {'bos_token': '<s>', 'eos_token': '<end>', 'pad_token': '<unk>', 'add_bos_token': True}
  tokenizer = _load(tmp_path, config)
  assert tokenizer.start_ids == (1,) and tokenizer.stop_ids == (380,) and tokenizer.pad_id == 0
  (tmp_path / 'generation_config.json').write_text('{"eos_token_id": [2, 380, 7]}')
  assert _load(tmp_path).stop_ids == (380, 2, 7)
  other = _load(tmp_path, stop_tokens=['</s>'], pad_token='<s>')
  assert other.stop_ids == (2,) and other.pad_id == 1
  with pytest.raises(ValueError, match="token 'none' is not in the vocabulary of"):
    _load(tmp_path, stop_tokens=['none'])

  # A padding id that is an ordinary piece remains in texts.
  for ordinary in (_load(tmp_path, pad_token='e'), _load(tmp_path, {**config, 'pad_token': 'e'})):
    assert ordinary.decode(ordinary.encode('e the')) == 'e the'
    assert ordinary.token(ordinary.pad_id) == 'e' and ordinary.token(380) == '<end>'

  _load(tmp_path, config)
  assert _load(tmp_path, {**config, 'add_bos_token': False}).start_ids == ()
  (tmp_path / 'generation_config.json').unlink()
  assert _load(tmp_path, {'add_bos_token': True}).start_ids == (1,)


def test_damage_is_one_line(tmp_path):
  content = _MODEL.read_bytes()
  for damaged in (b'', b'text', content[:2000]):
    (tmp_path / 'x.model').write_bytes(damaged)
    with pytest.raises(ValueError, match='x.model is not a complete SentencePiece model') as error:
      sentencepiece_tokenizer.SentencePieceTokenizer(tmp_path / 'x.model')
    assert '\n' not in str(error.value)
