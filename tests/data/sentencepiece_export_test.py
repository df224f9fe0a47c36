"""SentencePiece models in the `tokenizers` library: the same ids, or no conversion."""

import io
import random

import pytest
import sentencepiece

from jaxrl_llm.data import sentencepiece_export, sentencepiece_tokenizer
from tests.golden import chat_cases

_PARTS = (
    'the', ' answer', 'Größe', ' ', '  ', '\n', '\t', "'s", '12', ' 345.', '?!', '東京', '😀',
    'e\u0301', '\u00a0', '\u2581', 'A user', '<s>', '</s>', '<unk>', '<eos>', '<start_of_turn>',
)


def _path(name, data_dir):
  if name == 'unigram':
    return data_dir / 'tokenizers' / 'sentencepiece' / 'test_model.model'
  return chat_cases.FOLDER / f'{name}.model'


@pytest.mark.parametrize('name', ['unigram', 'llama', 'gemma'])
def test_the_ids_are_the_same(name, data_dir):
  tokenizer = sentencepiece_tokenizer.SentencePieceTokenizer(_path(name, data_dir))
  backend = sentencepiece_export.to_backend(tokenizer)
  generator, seen = random.Random(0), set()
  for _ in range(400):
    # The library differs for texts that begin with a space.
    text = 'x' + ''.join(generator.choice(_PARTS) for _ in range(generator.randrange(10)))
    ids = tokenizer.encode(text)
    assert backend.encode(text, add_special_tokens=False).ids == ids, text
    seen.update(ids)
  assert len(seen) > 30
  for text in ('the answer', 'The user 12.'):
    assert backend.decode(tokenizer.encode(text)) == text


def _train(path, **options):
  content = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(['the user asks and the assistant answers'] * 3),
      model_writer=content, minloglevel=2, **options)
  path.write_bytes(content.getvalue())
  return sentencepiece_tokenizer.SentencePieceTokenizer(path)


def test_unsupported_models_are_not_converted(tmp_path):
  train = lambda **options: sentencepiece_export.to_backend(
      _train(tmp_path / 'x.model', **options))
  assert train(model_type='word', vocab_size=9) is None
  assert train(model_type='bpe', vocab_size=40, treat_whitespace_as_suffix=True) is None
  assert train(model_type='bpe', vocab_size=40) is not None
