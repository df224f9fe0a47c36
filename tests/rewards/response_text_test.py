"""Stop strings against a search through every beginning of a response."""

import hypothesis
import pytest
from hypothesis import strategies

from jaxrl_llm.data import tokenizers
from jaxrl_llm.rewards import response_text

CHARACTERS = tokenizers.CharacterTokenizer('abc\n. ')
STOPS = strategies.lists(strategies.text('abc', min_size=1, max_size=3), min_size=1, max_size=3)


def _pairs(ids):
  """A tokenizer whose ids are up to two characters: 3 x + y, for '', 'a', 'b' and so on."""
  return ''.join(('', 'a', 'b', 'c')[part] for i in ids for part in divmod(i, 4))


@hypothesis.given(strategies.lists(strategies.integers(0, 15), max_size=12), STOPS)
def test_the_ending_is_the_first_of_all_beginnings(ids, stops):
  text = _pairs(ids)
  ending = response_text.find(_pairs, ids, stops)
  hits = [n for n in range(len(ids) + 1) if any(stop in _pairs(ids[:n]) for stop in stops)]
  if not hits:
    assert ending is None
    return
  assert ending.num_tokens == hits[0]
  starts = [i for i in range(len(text)) if any(text.startswith(stop, i) for stop in stops)]
  assert ending.text == text[: starts[0]]


@hypothesis.given(strategies.lists(strategies.text('abc', max_size=4), max_size=8), STOPS)
def test_pieces_are_cut_as_the_whole(pieces, stops):
  cutter = response_text.Cutter(stops)
  shown = []
  for piece in pieces:
    shown.append(cutter.push(piece))
    # What is shown never has to be taken back.
    assert not any(stop in ''.join(shown) for stop in stops)
  text = ''.join(pieces)
  first = min((text.find(stop) for stop in stops if stop in text), default=None)
  assert ''.join(shown) + cutter.flush() == text[:first]
  assert cutter.stopped == (first is not None)


def test_no_stop_strings():
  assert response_text.find(_pairs, [5, 6], ()) is None
  assert response_text.stop_sequences(CHARACTERS, ()) == ()


def test_sequences_have_the_string_and_no_token_too_many():
  (ids,) = response_text.stop_sequences(CHARACTERS, ['ab'])  # The same in every context.
  assert CHARACTERS.decode(ids) == 'ab'
  with pytest.raises(ValueError, match='a stop string must not be empty'):
    response_text.stop_sequences(CHARACTERS, ['a', ''])
  with pytest.raises(ValueError, match="character 'd' is not in the alphabet"):
    response_text.stop_sequences(CHARACTERS, ['d'])


def test_sequences_of_a_byte_level_tokenizer(data_dir):
  tokenizer = tokenizers.load_tokenizer(data_dir / 'tokenizers' / 'gpt2')
  sequences = response_text.stop_sequences(tokenizer, ['Question:'])
  texts = [tokenizer.decode(ids) for ids in sequences]
  assert {'Question:', ' Question:'} <= set(texts) and len(texts) == len(set(texts))
  for ids, text in zip(sequences, texts):
    assert 'Question:' in text and 'Question:' not in tokenizer.decode(ids[1:])
  # Each is at the end of some text.
  for before in ('so it is 4.', '\n\n', 'a '):
    ids = tokenizer.encode(f'{before}Question:')
    assert any(tuple(ids[-len(sequence) :]) == sequence for sequence in sequences), before
