"""Batches as pure functions of (seed, step), and padded arrays of tokens.

There is no cursor: the examples of a step depend only on the seed and the step number, so a
resumed run sees the same examples as an uninterrupted one.
Sequences that are too long raise an error, or are filtered and counted; they are never truncated.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.types import Example, Tokenizer


@functools.lru_cache(maxsize=64)
def epoch_permutation(num_examples: int, *, seed: int, epoch: int, source: int = 0) -> np.ndarray:
  """Returns the order of one epoch, a read-only permutation of 0..num_examples-1.

  Each source of a mixture, numbered from 0, has its own orders.
  """
  entropy = [seed, epoch, source] if source else [seed, epoch]
  order = np.random.default_rng(entropy).permutation(num_examples)
  order.setflags(write=False)
  return order


def batch_indices(num_examples: int, batch_size: int, *, seed: int, step: int) -> np.ndarray:
  """Returns the examples of one step.

  The permutations of the epochs form one endless sequence, of which step s takes positions
  s·B to (s + 1)·B - 1. Batches may therefore span two epochs, and each epoch contains each
  example exactly once, whether or not B divides N.

  Args:
    num_examples: N, at least 1.
    batch_size: B, at least 1; it may exceed N.
    seed: seed for the permutations; non-negative.
    step: step number, from 0.

  Returns:
    int64 [B].

  Raises:
    ValueError: an argument is out of range.
  """
  check_at_least(num_examples=(num_examples, 1), batch_size=(batch_size, 1), seed=(seed, 0),
                 step=(step, 0))

  first = int(step) * batch_size
  pieces, position = [], first
  while position < first + batch_size:
    epoch, offset = divmod(position, num_examples)
    count = min(num_examples - offset, first + batch_size - position)
    order = epoch_permutation(num_examples, seed=int(seed), epoch=epoch)
    pieces.append(order[offset : offset + count])
    position += count

  return np.concatenate(pieces)


def check_at_least(**bounds: tuple[int, int]) -> None:
  """Raises ValueError for the first name whose (value, minimum) is out of order."""
  for name, (value, least) in bounds.items():
    if value < least:
      raise ValueError(f'{name} must be at least {least}, got {value}')


class Chunk(NamedTuple):
  """A chunk of a sequential pass, padded to a fixed size.

  Attributes:
    indices: int64 [B]; padding rows repeat the chunk's first index.
    weight: float32 [B]; 0 for padding rows.
  """

  indices: np.ndarray
  weight: np.ndarray


def sequential_chunks(
    num_examples: int, batch_size: int, *, multiple: int | None = None
) -> Iterator[Chunk]:
  """Iterates once over 0..num_examples-1 in order, in chunks of `batch_size`.

  Args:
    num_examples: N.
    batch_size: B, at least 1.
    multiple: None pads the last chunk to B rows. Otherwise it gets `chunk_rows` rows, divisible by
      `multiple`, so that a few examples do not cost a whole batch.

  Yields:
    The chunks.

  Raises:
    ValueError: if B is below 1.
  """
  if batch_size < 1:
    raise ValueError(f'batch_size must be at least 1, got {batch_size}')
  for start in range(0, num_examples, batch_size):
    rows = batch_size
    if multiple is not None:
      rows = chunk_rows(num_examples - start, batch_size, multiple=multiple, exact=not start)
    indices = np.arange(start, start + rows)
    inside = indices < num_examples
    yield Chunk(np.where(inside, indices, start), inside.astype(np.float32))


def chunk_rows(num_left: int, batch_size: int, *, multiple: int, exact: bool) -> int:
  """Returns the number of rows of a chunk for the `num_left` examples that are left.

  Every size is one more program to compile, so there are few: a power of two, or, if there is only
  one chunk (`exact`), what is needed. Both are rounded up to a multiple and are at most the batch
  size.
  """
  if num_left >= batch_size:
    return batch_size
  rows = num_left if exact else 1 << (num_left - 1).bit_length()
  return min(-(-rows // multiple) * multiple, batch_size)


def left_pad(
    sequences: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Left-pads sequences to a matrix.

  Args:
    sequences: P sequences of ids.
    length: L; a longer sequence raises ValueError.
    pad_id: padding id.

  Returns:
    (int32 [P, L], their lengths as int32 [P]).
  """
  lengths = np.array([len(sequence) for sequence in sequences], np.int32)
  if lengths.size and lengths.max() > length:
    row = int(lengths.argmax())
    raise ValueError(f'sequence {row} has {lengths[row]} tokens, the limit is {length}')
  padded = np.full((len(sequences), length), pad_id, np.int32)
  if lengths.sum():  # Fill all positions of ids at once, in row order.
    is_token = np.arange(length) >= length - lengths[:, None]
    padded[is_token] = np.concatenate([np.asarray(s, np.int32) for s in sequences if len(s)])
  return padded, lengths


@dataclasses.dataclass(frozen=True)
class EncodedExamples:
  """Examples with their encoded prompts.

  Attributes:
    examples: the N examples that fit.
    ids: int32 [N]; their 'id'.
    prompts: int32 [N, L], left-padded.
    prompt_lengths: int32 [N].
    num_filtered: number of examples removed because of their length.
  """

  examples: list[Example]
  ids: np.ndarray
  prompts: np.ndarray
  prompt_lengths: np.ndarray
  num_filtered: int

  def __len__(self) -> int:
    return len(self.examples)

  def trimmed(self, multiple: int = 16) -> 'EncodedExamples':
    """Drops columns that are padding in every row: limits are wide, and most prompts short.

    The number of columns that remain is a multiple of `multiple`, or as before if that is less.
    """
    width = -(-int(self.prompt_lengths.max(initial=1)) // multiple) * multiple
    return dataclasses.replace(self, prompts=self.prompts[:, -width:])


def prompt_ids(example: Example, tokenizer: Tokenizer) -> list[int]:
  """Returns the ids of an example's prompt.

  These are example['prompt_ids'] if a chat template produced them, and otherwise
  the tokenizer's `start_ids` followed by the ids of the text example['prompt'].

  Raises:
    ValueError: the prompt has no tokens.
  """
  if 'prompt_ids' in example:
    ids = list(example['prompt_ids'])
  else:
    ids = [*tokenizer.start_ids, *tokenizer.encode(example['prompt'])]
  if not ids:
    raise ValueError(f'the prompt of example {example["id"]} has no tokens')
  return ids


def encode_examples(
    examples: list[Example],
    tokenizer: Tokenizer,
    *,
    max_prompt_tokens: int,
    overlong: str = 'error',
) -> EncodedExamples:
  """Encodes prompts into padded arrays.

  Args:
    examples: examples with 'id' and a prompt; see `prompt_ids`.
    tokenizer: tokenizer of the prompts.
    max_prompt_tokens: L.
    overlong: treatment of an example that does not fit: 'error' raises, 'filter'
      removes and counts it.

  Returns:
    The examples with their arrays.

  Raises:
    ValueError: a prompt is too long and `overlong` is 'error', all examples were removed,
      an id is repeated or does not fit an int32, or a prompt is empty.
  """

  def encode(example: Example) -> tuple[list[int], str]:
    prompt = prompt_ids(example, tokenizer)
    name = f'the prompt of example {example["id"]}'
    return prompt, too_long(name, len(prompt), max_prompt_tokens)

  fitting, prompts = keep_fitting(examples, encode, overlong=overlong)
  padded, lengths = left_pad(prompts, max_prompt_tokens, tokenizer.pad_id)
  num_filtered = len(examples) - len(fitting)
  return EncodedExamples(fitting, _example_ids(fitting), padded, lengths, num_filtered)


def too_long(name: str, num_tokens: int, limit: int) -> str:
  """Returns one line about a sequence with more tokens than the limit, or ''."""
  return f'{name} has {num_tokens} tokens, the limit is {limit}' if num_tokens > limit else ''


def keep_fitting(
    examples: list[Example], encode: Callable[[Example], tuple[Any, str]], *, overlong: str
) -> tuple[list[Example], list[Any]]:
  """Encodes examples and keeps those that are not too long.

  Args:
    examples: N examples.
    encode: example -> (encoding, one line about a sequence that is too long, or '').
    overlong: 'error' or 'filter'; see `encode_examples`.

  Returns:
    (the examples that fit, their encodings).

  Raises:
    ValueError: an example is too long and `overlong` is 'error', or all examples are too long.
  """
  if overlong not in ('error', 'filter'):
    raise ValueError(f"overlong must be 'error' or 'filter', got {overlong!r}")

  fitting, encoded = [], []
  for example in examples:
    outcome, problem = encode(example)
    if problem and overlong == 'error':
      raise ValueError(problem)
    if not problem:
      fitting.append(example)
      encoded.append(outcome)

  if examples and not fitting:
    raise ValueError(f'all {len(examples)} examples are too long; the last: {problem}')
  return fitting, encoded


def _example_ids(examples: list[Example]) -> np.ndarray:
  """Returns the ids of `examples` as int32; checks that they are distinct and non-negative."""
  ids = np.array([example['id'] for example in examples], np.int64)
  if ids.size and (ids.min() < 0 or ids.max() > np.iinfo(np.int32).max):
    raise ValueError(f'example ids must fit a non-negative int32, got {ids.min()} to {ids.max()}')
  if len(np.unique(ids)) != len(ids):
    values, counts = np.unique(ids, return_counts=True)
    raise ValueError(f'example ids must be distinct, {values[counts > 1][0]} appears twice')
  return ids.astype(np.int32)


class PromptBatch(NamedTuple):
  """Prompts for a sampler.

  Attributes:
    prompts: int32 [P, L], left-padded.
    prompt_lengths: int32 [P].
    example_ids: int32 [P].
    examples: the P examples.
  """

  prompts: np.ndarray
  prompt_lengths: np.ndarray
  example_ids: np.ndarray
  examples: list[Example]


def prompt_batch(encoded: EncodedExamples, indices: np.ndarray) -> PromptBatch:
  """Returns the prompts of `encoded` at `indices` (int [P])."""
  return PromptBatch(
      encoded.prompts[indices],
      encoded.prompt_lengths[indices],
      encoded.ids[indices],
      [encoded.examples[index] for index in indices],
  )
