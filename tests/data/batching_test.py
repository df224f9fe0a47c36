"""Batching: complete epochs, padding without truncation, masks by hand."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from jaxrl_llm.data import batching, tokenizers

_SIZES = strategies.integers(1, 40)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(_SIZES, _SIZES, strategies.integers(0, 5), strategies.integers(1, 4))
def test_each_epoch_visits_each_example_once(num_examples, batch_size, seed, epochs):
  num_steps = -(-epochs * num_examples // batch_size)
  stream = np.concatenate([
      batching.batch_indices(num_examples, batch_size, seed=seed, step=step)
      for step in range(num_steps)
  ])
  assert len(stream) == num_steps * batch_size
  for epoch in range(epochs):
    visited = stream[epoch * num_examples : (epoch + 1) * num_examples]
    np.testing.assert_array_equal(np.sort(visited), np.arange(num_examples))
    np.testing.assert_array_equal(
        visited, batching.epoch_permutation(num_examples, seed=seed, epoch=epoch))


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(_SIZES, _SIZES, strategies.integers(0, 10**12))
def test_a_step_does_not_depend_on_previous_steps(num_examples, batch_size, step):
  first = batching.batch_indices(num_examples, batch_size, seed=1, step=step)
  batching.epoch_permutation.cache_clear()
  again = batching.batch_indices(num_examples, batch_size, seed=1, step=step)
  np.testing.assert_array_equal(first, again)
  assert first.shape == (batch_size,) and first.min() >= 0 and first.max() < num_examples


def test_the_batch_size_does_not_change_the_order():
  by_three = [batching.batch_indices(10, 3, seed=0, step=step) for step in range(10)]
  by_five = [batching.batch_indices(10, 5, seed=0, step=step) for step in range(6)]
  np.testing.assert_array_equal(np.concatenate(by_three), np.concatenate(by_five))


def test_epochs_and_seeds_are_shuffled_differently():
  orders = [
      tuple(batching.epoch_permutation(50, seed=seed, epoch=epoch))
      for seed in range(3) for epoch in range(3)
  ]
  assert len(set(orders)) == 9
  assert tuple(range(50)) not in orders


def test_shuffles_are_uniform():
  # Each of the 6 orders of 3 examples in 1,200 epochs: mean 200, deviation sqrt(1200 * 5/36) = 13.
  orders = [tuple(batching.epoch_permutation(3, seed=7, epoch=epoch)) for epoch in range(1200)]
  counts = np.unique(orders, axis=0, return_counts=True)[1]
  assert len(counts) == 6 and np.all(np.abs(counts - 200) < 65)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((0, 1, 0, 0), 'num_examples must be at least 1, got 0'),
        ((1, 0, 0, 0), 'batch_size must be at least 1, got 0'),
        ((1, 1, -1, 0), 'seed must be at least 0, got -1'),
        ((1, 1, 0, -1), 'step must be at least 0, got -1'),
    ],
)
def test_bad_arguments(arguments, message):
  num_examples, batch_size, seed, step = arguments
  with pytest.raises(ValueError, match=message):
    batching.batch_indices(num_examples, batch_size, seed=seed, step=step)


def test_sequential_chunks_cover_each_example_once_and_mark_padding():
  chunks = list(batching.sequential_chunks(5, 2))
  np.testing.assert_array_equal([chunk.indices for chunk in chunks], [[0, 1], [2, 3], [4, 4]])
  np.testing.assert_array_equal([chunk.weight for chunk in chunks], [[1, 1], [1, 1], [1, 0]])
  assert not list(batching.sequential_chunks(0, 2))


@pytest.mark.parametrize(('num_examples', 'batch_size', 'multiple', 'rows'), [
    (8, 256, 1, [8]), (9, 256, 4, [12]), (255, 256, 8, [256]), (256, 256, 1, [256]),
    (1000, 256, 1, [256, 256, 256, 256]),  # 232 of the last 256 rows are used.
    (300, 256, 1, [256, 64]), (257, 256, 1, [256, 1]), (257, 256, 8, [256, 8]),
    (7, 6, 1, [6, 1]), (11, 6, 1, [6, 6]),  # A power of two above 5 would exceed the batch.
])
def test_the_last_chunk_has_one_of_a_few_sizes(num_examples, batch_size, multiple, rows):
  chunks = list(batching.sequential_chunks(num_examples, batch_size, multiple=multiple))
  assert [len(chunk.indices) for chunk in chunks] == rows
  real = [chunk.indices[chunk.weight > 0] for chunk in chunks]
  np.testing.assert_array_equal(np.concatenate(real), np.arange(num_examples))


def test_columns_that_are_padding_in_every_row_are_dropped():
  tokenizer = tokenizers.CharacterTokenizer('ab')
  examples = [{'id': i, 'prompt': 'a' * length} for i, length in enumerate((3, 17))]
  for limit, multiple, width in ((40, 16, 32), (40, 20, 20), (20, 16, 20), (17, 1, 17)):
    encoded = batching.encode_examples(examples, tokenizer, max_prompt_tokens=limit)
    trimmed = encoded.trimmed(multiple)
    np.testing.assert_array_equal(trimmed.prompts, encoded.prompts[:, limit - width :])
    assert trimmed.prompts.shape == (2, width) and (encoded.prompts != tokenizer.pad_id).sum() == (
        trimmed.prompts != tokenizer.pad_id).sum() == 20


def test_padding_by_hand():
  left, lengths = batching.left_pad([[5, 6], [], [7, 8, 9]], 3, 0)
  np.testing.assert_array_equal(left, [[0, 5, 6], [0, 0, 0], [7, 8, 9]])
  np.testing.assert_array_equal(lengths, [2, 0, 3])
  wider, _ = batching.left_pad([[5, 6], [], [7, 8, 9]], 4, 1)
  np.testing.assert_array_equal(wider, [[1, 1, 5, 6], [1, 1, 1, 1], [1, 7, 8, 9]])
  assert left.dtype == lengths.dtype == np.int32
  assert batching.left_pad([], 3, 0)[0].shape == (0, 3)
  with pytest.raises(ValueError, match='sequence 1 has 3 tokens, the limit is 2'):
    batching.left_pad([[1], [1, 2, 3]], 2, 0)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(
    strategies.lists(strategies.lists(strategies.integers(0, 9), max_size=6), max_size=5),
    strategies.integers(6, 9),
)
def test_padding_against_a_loop(sequences, length):
  left, lengths = batching.left_pad(sequences, length, 77)
  for row, sequence in enumerate(sequences):
    fill = [77] * (length - len(sequence))
    assert list(left[row]) == fill + sequence
    assert lengths[row] == len(sequence)


def test_sources_have_different_orders():
  orders = [
      tuple(batching.epoch_permutation(50, seed=0, epoch=epoch, source=source))
      for source in range(3) for epoch in range(3)
  ]
  assert len(set(orders)) == 9
  assert orders[0] == tuple(batching.epoch_permutation(50, seed=0, epoch=0))


# --- Prompts. Ids: a=2, b=3, c=4; 0 is padding, 1 is stop.

TOKENIZER = tokenizers.CharacterTokenizer('abc')
EXAMPLES = [{'id': 4, 'prompt': 'ab'}, {'id': 9, 'prompt': 'c'}]


def _encoded(**overrides):
  return batching.encode_examples(EXAMPLES, TOKENIZER, **({'max_prompt_tokens': 3} | overrides))


def test_prompt_batch_by_hand():
  batch = batching.prompt_batch(_encoded(), np.array([1, 0, 1]))
  np.testing.assert_array_equal(batch.prompts, [[0, 0, 4], [0, 2, 3], [0, 0, 4]])
  np.testing.assert_array_equal(batch.prompt_lengths, [1, 2, 1])
  np.testing.assert_array_equal(batch.example_ids, [9, 4, 9])
  assert [example['id'] for example in batch.examples] == [9, 4, 9]


class Starting(tokenizers.CharacterTokenizer):
  """Adds tokens before a plain prompt, like Llama's tokenizers."""

  start_ids = (4, 3)


def test_a_plain_prompt_gets_the_start_ids_and_given_ids_are_unchanged():
  tokenizer = Starting('abc')
  assert batching.prompt_ids({'id': 0, 'prompt': 'ab'}, tokenizer) == [4, 3, 2, 3]
  given = {'id': 0, 'prompt': 'ab', 'prompt_ids': [1, 2]}
  assert batching.prompt_ids(given, tokenizer) == [1, 2]
  encoded = batching.encode_examples([given], tokenizer, max_prompt_tokens=3)
  np.testing.assert_array_equal(encoded.prompts, [[0, 1, 2]])
  for empty in ({'id': 7, 'prompt': ''}, {'id': 7, 'prompt': 'a', 'prompt_ids': []}):
    with pytest.raises(ValueError, match='the prompt of example 7 has no tokens'):
      batching.prompt_ids(empty, TOKENIZER)


def test_long_prompts_are_errors_or_counted_but_never_truncated():
  with pytest.raises(ValueError, match='the prompt of example 4 has 2 tokens, the limit is 1'):
    _encoded(max_prompt_tokens=1)
  fitting = _encoded(max_prompt_tokens=1, overlong='filter')
  assert fitting.num_filtered == 1 and list(fitting.ids) == [9] and len(fitting) == 1
  with pytest.raises(ValueError, match='all 2 examples are too long'):
    _encoded(max_prompt_tokens=0, overlong='filter')
  with pytest.raises(ValueError, match="overlong must be 'error' or 'filter', got 'cut'"):
    _encoded(overlong='cut')


def test_ids_are_checked():
  for ids, message in (((1, 1), '1 appears twice'), ((0, 2**31), 'fit a non-negative int32')):
    examples = [{'id': i, 'prompt': 'a'} for i in ids]
    with pytest.raises(ValueError, match=message):
      batching.encode_examples(examples, TOKENIZER, max_prompt_tokens=1)
