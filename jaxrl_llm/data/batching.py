"""Batches as pure functions of (seed, step), and padded arrays of tokens.

Nothing here has a cursor: which examples a step sees follows from the seed and the
step's number, so a resumed run sees what an uninterrupted one would have seen.
Sequences that are too long are an error or are filtered and counted, never cut.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.types import Example, Tokenizer


@functools.lru_cache(maxsize=64)
def epoch_permutation(num_examples: int, *, seed: int, epoch: int, source: int = 0) -> np.ndarray:
  """The order of epoch number `epoch`: a permutation of 0..num_examples-1, read-only.

  The sources of a mixture, numbered from 0, go through orders of their own.
  """
  entropy = [seed, epoch, source] if source else [seed, epoch]
  order = np.random.default_rng(entropy).permutation(num_examples)
  order.setflags(write=False)
  return order


def batch_indices(num_examples: int, batch_size: int, *, seed: int, step: int) -> np.ndarray:
  """The examples of one step.

  The epochs' permutations follow each other as one endless sequence, of which step s
  takes places s·B to (s + 1)·B - 1. Batches therefore cross the edges of epochs, and
  each epoch holds each example exactly once, whether or not B divides N.

  Args:
    num_examples: N, at least 1.
    batch_size: B, at least 1; it may exceed N.
    seed: decides the permutations; non-negative.
    step: the step's number, from 0.

  Returns:
    int64 [B].

  Raises:
    ValueError: an argument is out of its range.
  """
  for name, value, least in (
      ('num_examples', num_examples, 1),
      ('batch_size', batch_size, 1),
      ('seed', seed, 0),
      ('step', step, 0),
  ):
    if value < least:
      raise ValueError(f'{name} must be at least {least}, got {value}')
  first = int(step) * batch_size
  pieces, place = [], first
  while place < first + batch_size:
    epoch, offset = divmod(place, num_examples)
    count = min(num_examples - offset, first + batch_size - place)
    order = epoch_permutation(num_examples, seed=int(seed), epoch=epoch)
    pieces.append(order[offset : offset + count])
    place += count
  return np.concatenate(pieces)


class Chunk(NamedTuple):
  """A part of a pass in order, filled up to a fixed size.

  Attributes:
    indices: int64 [B]; the rows that fill up repeat the chunk's first index.
    weight: float32 [B]; 0 for the rows that fill up.
  """

  indices: np.ndarray
  weight: np.ndarray


def sequential_chunks(num_examples: int, batch_size: int) -> Iterator[Chunk]:
  """Goes once over 0..num_examples-1 in order, in chunks of one size."""
  if batch_size < 1:
    raise ValueError(f'batch_size must be at least 1, got {batch_size}')
  for start in range(0, num_examples, batch_size):
    indices = np.arange(start, start + batch_size)
    inside = indices < num_examples
    yield Chunk(np.where(inside, indices, start), inside.astype(np.float32))


def left_pad(
    sequences: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Puts sequences at the right edge of a matrix.

  Args:
    sequences: P sequences of ids.
    length: L; ValueError for a longer sequence.
    pad_id: fills the left.

  Returns:
    (int32 [P, L], their lengths as int32 [P]).
  """
  lengths = np.array([len(sequence) for sequence in sequences], np.int32)
  if lengths.size and lengths.max() > length:
    row = int(lengths.argmax())
    raise ValueError(f'sequence {row} has {lengths[row]} tokens, the limit is {length}')
  padded = np.full((len(sequences), length), pad_id, np.int32)
  if lengths.sum():  # The places that hold ids, in row order, are filled at once.
    holds = np.arange(length) >= length - lengths[:, None]
    padded[holds] = np.concatenate([np.asarray(s, np.int32) for s in sequences if len(s)])
  return padded, lengths


@dataclasses.dataclass(frozen=True)
class EncodedExamples:
  """Examples with the tokens of their prompts, encoded once.

  Attributes:
    examples: the N examples that fit.
    ids: int32 [N]; their 'id'.
    prompts: int32 [N, L], left-padded.
    prompt_lengths: int32 [N].
    num_filtered: how many examples were left out for their length.
  """

  examples: list[Example]
  ids: np.ndarray
  prompts: np.ndarray
  prompt_lengths: np.ndarray
  num_filtered: int

  def __len__(self) -> int:
    return len(self.examples)


def prompt_ids(example: Example, tokenizer: Tokenizer) -> list[int]:
  """The ids of an example's prompt.

  They are example['prompt_ids'] where a chat template has decided them, and otherwise
  the tokenizer's `start_ids` and the ids of the text example['prompt'].

  Raises:
    ValueError: there are none.
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
    examples: with 'id' and a prompt; see `prompt_ids`.
    tokenizer: of the prompts.
    max_prompt_tokens: L.
    overlong: what happens to an example that does not fit: 'error' raises, 'filter'
      leaves it out and counts it.

  Returns:
    The examples with their arrays.

  Raises:
    ValueError: a prompt is too long and `overlong` is 'error', no example is left of
      some, an id is repeated or outside an int32, or a prompt is empty.
  """

  def encode(example: Example) -> tuple[list[int], str]:
    prompt = prompt_ids(example, tokenizer)
    name = f'the prompt of example {example["id"]}'
    return prompt, too_long(name, len(prompt), max_prompt_tokens)

  kept, prompts = keep_fitting(examples, encode, overlong=overlong)
  padded, lengths = left_pad(prompts, max_prompt_tokens, tokenizer.pad_id)
  return EncodedExamples(kept, _example_ids(kept), padded, lengths, len(examples) - len(kept))


def too_long(name: str, num_tokens: int, limit: int) -> str:
  """One line about what has more tokens than it may have, or ''."""
  return f'{name} has {num_tokens} tokens, the limit is {limit}' if num_tokens > limit else ''


def keep_fitting(
    examples: list[Example], encode: Callable[[Example], tuple[Any, str]], *, overlong: str
) -> tuple[list[Example], list[Any]]:
  """Encodes examples and keeps those that are not too long.

  Args:
    examples: N examples.
    encode: example -> (what is kept of it, one line about what is too long, or '').
    overlong: 'error' or 'filter'; see `encode_examples`.

  Returns:
    (the examples that fit, what they were encoded as).

  Raises:
    ValueError: one is too long and `overlong` is 'error', or none of some is left.
  """
  if overlong not in ('error', 'filter'):
    raise ValueError(f"overlong must be 'error' or 'filter', got {overlong!r}")
  kept, encoded = [], []
  for example in examples:
    outcome, problem = encode(example)
    if problem and overlong == 'error':
      raise ValueError(problem)
    if not problem:
      kept.append(example)
      encoded.append(outcome)
  if examples and not kept:
    raise ValueError(f'all {len(examples)} examples are too long; the last: {problem}')
  return kept, encoded


def _example_ids(examples: list[Example]) -> np.ndarray:
  """The ids of `examples` as int32, checked to be distinct and non-negative."""
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
  """The prompts at `indices` (int [P]) of `encoded`."""
  return PromptBatch(
      encoded.prompts[indices],
      encoded.prompt_lengths[indices],
      encoded.ids[indices],
      [encoded.examples[index] for index in indices],
  )
