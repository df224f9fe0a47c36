"""Batches as pure functions of (seed, step), and padded arrays of tokens.

Nothing here has a cursor: which examples a step sees follows from the seed and the
step's number, so a resumed run sees what an uninterrupted one would have seen.
Sequences that are too long are an error or are filtered and counted, never cut.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxrl_llm.types import Example, Task, Tokenizer


@functools.lru_cache(maxsize=64)
def epoch_permutation(num_examples: int, *, seed: int, epoch: int) -> np.ndarray:
  """The order of epoch number `epoch`: a permutation of 0..num_examples-1, read-only."""
  order = np.random.default_rng([seed, epoch]).permutation(num_examples)
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
  return _pad(sequences, length, pad_id, left=True)


def right_pad(
    sequences: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Puts sequences at the left edge of a matrix; otherwise as `left_pad`."""
  return _pad(sequences, length, pad_id, left=False)


def _pad(
    sequences: Sequence[Sequence[int]], length: int, pad_id: int, *, left: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Both paddings: the places that hold ids, in row order, are filled at once."""
  lengths = np.array([len(sequence) for sequence in sequences], np.int32)
  if lengths.size and lengths.max() > length:
    row = int(lengths.argmax())
    raise ValueError(f'sequence {row} has {lengths[row]} tokens, the limit is {length}')
  columns = np.arange(length)
  if left:
    holds = columns >= length - lengths[:, None]
  else:
    holds = columns < lengths[:, None]
  padded = np.full((len(sequences), length), pad_id, np.int32)
  if lengths.sum():
    padded[holds] = np.concatenate([np.asarray(s, np.int32) for s in sequences if len(s)])
  return padded, lengths


@dataclasses.dataclass(frozen=True)
class EncodedExamples:
  """Examples with their tokens, encoded once.

  Attributes:
    examples: the N examples that fit.
    ids: int32 [N]; their 'id'.
    prompts: int32 [N, L], left-padded.
    prompt_lengths: int32 [N].
    responses: int32 [N, T], right-padded, each with its stop token; T = 0 where the
      examples carry none.
    response_lengths: int32 [N], stop token included.
    pad_id: the id that fills.
    num_filtered: how many examples were left out for their length.
  """

  examples: list[Example]
  ids: np.ndarray
  prompts: np.ndarray
  prompt_lengths: np.ndarray
  responses: np.ndarray
  response_lengths: np.ndarray
  pad_id: int
  num_filtered: int

  def __len__(self) -> int:
    return len(self.examples)


def encode_examples(
    examples: list[Example],
    tokenizer: Tokenizer,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int | None = None,
    overlong: str = 'error',
) -> EncodedExamples:
  """Encodes prompts, and responses where asked for, into padded arrays.

  Args:
    examples: with 'id' and 'prompt', and 'response' where `max_response_tokens` is
      given.
    tokenizer: its first stop id ends each response.
    max_prompt_tokens: L.
    max_response_tokens: T, stop token included; None leaves responses out.
    overlong: what happens to an example that does not fit: 'error' raises, 'filter'
      leaves it out and counts it.

  Returns:
    The examples with their arrays.

  Raises:
    ValueError: an example is too long and `overlong` is 'error', no example is left
      of some, an id is repeated or outside an int32, or a prompt is empty.
  """
  if overlong not in ('error', 'filter'):
    raise ValueError(f"overlong must be 'error' or 'filter', got {overlong!r}")
  kept, prompts, responses = [], [], []
  for example in examples:
    prompt = tokenizer.encode(example['prompt'])
    if not prompt:
      raise ValueError(f'the prompt of example {example["id"]} has no tokens')
    response: list[int] = []
    if max_response_tokens is not None:
      response = [*tokenizer.encode(example['response']), tokenizer.stop_ids[0]]
    problem = _too_long(example, prompt, response, max_prompt_tokens, max_response_tokens)
    if problem and overlong == 'error':
      raise ValueError(problem)
    if not problem:
      kept.append(example)
      prompts.append(prompt)
      responses.append(response)
  if examples and not kept:
    raise ValueError(f'all {len(examples)} examples are too long; the last: {problem}')
  padded_prompts, prompt_lengths = left_pad(prompts, max_prompt_tokens, tokenizer.pad_id)
  padded_responses, response_lengths = right_pad(
      responses, max_response_tokens or 0, tokenizer.pad_id
  )
  return EncodedExamples(
      kept,
      _example_ids(kept),
      padded_prompts,
      prompt_lengths,
      padded_responses,
      response_lengths,
      tokenizer.pad_id,
      len(examples) - len(kept),
  )


def _too_long(
    example: Example,
    prompt: list[int],
    response: list[int],
    max_prompt_tokens: int,
    max_response_tokens: int | None,
) -> str:
  """One line about what is too long in an example, or ''."""
  name = f'example {example["id"]}'
  if len(prompt) > max_prompt_tokens:
    return f'the prompt of {name} has {len(prompt)} tokens, the limit is {max_prompt_tokens}'
  if max_response_tokens is not None and len(response) > max_response_tokens:
    return (
        f'the response of {name} has {len(response)} tokens with its stop token, the limit is '
        f'{max_response_tokens}'
    )
  return ''


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


class SftBatch(NamedTuple):
  """Sequences for supervised fine-tuning, right-padded; T = L + T_response - 1.

  Attributes:
    tokens: int32 [B, T]; prompt and response without the last token.
    positions: int32 [B, T]; 0, 1, 2, ...
    valid: bool [B, T]; False for padding.
    targets: int32 [B, T]; the token after each of `tokens`.
    loss_mask: float32 [B, T]; 1 where the target is of the response, its stop token
      included.
    weight: float32 [B]; 1 for each sequence.
  """

  tokens: np.ndarray
  positions: np.ndarray
  valid: np.ndarray
  targets: np.ndarray
  loss_mask: np.ndarray
  weight: np.ndarray


def encode_demonstrations(task: Task, *, overlong: str = 'error') -> EncodedExamples:
  """The task's demonstrations within the task's limits; see `encode_examples`."""
  return encode_examples(
      task.demonstrations,
      task.tokenizer,
      max_prompt_tokens=task.max_prompt_tokens,
      max_response_tokens=task.max_response_tokens,
      overlong=overlong,
  )


def sft_batch(encoded: EncodedExamples, indices: np.ndarray) -> SftBatch:
  """Puts prompt and response of the examples at `indices` into one row each.

  Args:
    encoded: demonstrations with their responses.
    indices: int [B].

  Returns:
    The batch; its width depends on `encoded`'s limits only, so that every step
    compiles to the same program.
  """
  prompt_lengths = encoded.prompt_lengths[indices][:, None]
  response_lengths = encoded.response_lengths[indices][:, None]
  if np.any(response_lengths == 0):
    raise ValueError('the examples were encoded without responses (max_response_tokens=None)')
  prompts, responses = encoded.prompts[indices], encoded.responses[indices]
  width, total = prompts.shape[1], prompts.shape[1] + responses.shape[1]
  columns = np.arange(total)[None, :]
  # Column t of a row holds token t of its prompt, then of its response, then padding.
  both = np.concatenate([prompts, responses], axis=1)
  source = np.minimum(columns + width - prompt_lengths, total - 1)
  holds = columns < prompt_lengths + response_lengths
  rows = np.where(holds, np.take_along_axis(both, source, axis=1), encoded.pad_id)
  is_response = holds & (columns >= prompt_lengths)
  positions = np.broadcast_to(columns[:, :-1], (len(indices), total - 1))
  return SftBatch(
      tokens=rows[:, :-1].astype(np.int32),
      positions=positions.astype(np.int32),
      # A row's last token is a target only; its place in `tokens` may be kept or not. It
      # is left out, so that `valid` marks exactly the tokens that something is read from.
      valid=(holds[:, :-1] & holds[:, 1:]),
      targets=rows[:, 1:].astype(np.int32),
      loss_mask=is_response[:, 1:].astype(np.float32),
      weight=np.ones(len(indices), np.float32),
  )
