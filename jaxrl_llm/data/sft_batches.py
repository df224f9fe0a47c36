"""Batches for supervised fine-tuning, from demonstrations as text or as ids.

A demonstration is one sequence of ids; those of the assistant are learned. A row contains
one sequence, or several packed sequences. A slot of a row is a pair of a token and the next
token in the same sequence, so that no sequence is predicted from another. Slots without a
pair are padding, even if the padding id is also an ordinary token.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrl_llm.data import batching, mixtures, packing
from jaxrl_llm.types import Example, Task, Tokenizer

LOSS_ON = ('assistant', 'all')


class SftBatch(NamedTuple):
  """Sequences for supervised fine-tuning; padding is at the end of a row.

  Attributes:
    tokens: int32 [B, T]; each sequence without its last token.
    positions: int32 [B, T]; 0, 1, 2, ... in each sequence, 0 on padding.
    valid: bool [B, T]; False for padding.
    targets: int32 [B, T]; the token after each of `tokens` in its sequence.
    loss_mask: float32 [B, T]; 1 where the target is in the loss.
    weight: float32 [B]; 0 for the padding rows of a last partial batch.
    segments: int32 [B, T]; 1, 2, ... for the sequences of a packed row, 0 on padding;
      None if each row has one sequence.
  """

  tokens: np.ndarray
  positions: np.ndarray
  valid: np.ndarray
  targets: np.ndarray
  loss_mask: np.ndarray
  weight: np.ndarray
  segments: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Sequences:
  """Concatenated demonstrations as ids.

  Attributes:
    examples: the N demonstrations that fit.
    tokens: int32 [S]; demonstration n is tokens[starts[n] : starts[n + 1]].
    assistant: bool [S]; True for the assistant's tokens, including stop tokens.
    starts: int64 [N + 1].
    max_tokens: maximum length of a sequence; unpacked rows have one slot less.
    pad_id: padding id.
    loss_on: 'assistant': the loss is on the assistant's tokens; 'all': on every token except
      the first of a sequence, which nothing predicts.
    num_filtered: number of demonstrations removed because of their length.
  """

  examples: list[Example]
  tokens: np.ndarray
  assistant: np.ndarray
  starts: np.ndarray
  max_tokens: int
  pad_id: int
  loss_on: str
  num_filtered: int

  def __len__(self) -> int:
    return len(self.examples)

  @property
  def lengths(self) -> np.ndarray:
    """int64 [N]; number of tokens of each sequence."""
    return np.diff(self.starts)

  @property
  def response_lengths(self) -> np.ndarray:
    """int64 [N]; number of the assistant's tokens in each sequence."""
    return np.diff(np.concatenate([[0], np.cumsum(self.assistant)])[self.starts])


def encode_sequences(
    examples: list[Example],
    tokenizer: Tokenizer,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
    overlong: str = 'error',
    loss_on: str = 'assistant',
) -> Sequences:
  """Encodes demonstrations.

  Args:
    examples: either with 'prompt' (or 'prompt_ids') and 'response', where the assistant's part
      is the response and the tokenizer's first stop token (prompt ids are from
      `batching.prompt_ids`; response ids are those that follow when both are encoded as one
      text); or with 'ids' and 'loss_mask', which is 1 on the assistant's ids.
    tokenizer: tokenizer of the texts; also gives the padding id.
    max_prompt_tokens: L.
    max_response_tokens: T, including the stop token. Examples with 'ids' may have L + T tokens.
    overlong: 'error' raises for a demonstration that is too long, 'filter' removes and
      counts it. Demonstrations are never truncated.
    loss_on: 'assistant' or 'all'; see `Sequences`.

  Returns:
    The sequences.

  Raises:
    ValueError: a demonstration is too long and `overlong` is 'error', or all are too long;
      ids and mask do not match each other or the vocabulary, or nothing in a
      demonstration is learned; `loss_on` is 'all' and a message is marked as context; or
      `overlong` or `loss_on` is unknown.
  """
  if loss_on not in LOSS_ON:
    raise ValueError(f"loss_on must be 'assistant' or 'all', got {loss_on!r}")

  def encode(example: Example) -> tuple[tuple[np.ndarray, np.ndarray], str]:
    name = f'example {example["id"]}'
    if 'ids' in example:
      ids, assistant = _given(name, example, tokenizer.vocab_size)
      if loss_on == 'all' and any(m.get('train') is False for m in example.get('messages', ())):
        raise ValueError(
            f"loss_on must be 'assistant' for data that marks messages as context ('train' or "
            f"'weight'), got 'all' ({name})"
        )
      limit = max_prompt_tokens + max_response_tokens
      return (ids, assistant), batching.too_long(name, len(ids), limit)

    prompt = batching.prompt_ids(example, tokenizer)
    response = [*_reply_ids(example, prompt, tokenizer), tokenizer.stop_ids[0]]
    problem = batching.too_long(f'the prompt of {name}', len(prompt), max_prompt_tokens)
    problem = problem or batching.too_long(
        f'the response of {name}, with its stop token,', len(response), max_response_tokens
    )
    ids = np.array(prompt + response, np.int32)

    return (ids, np.arange(len(ids)) >= len(prompt)), problem

  fitting, encoded = batching.keep_fitting(examples, encode, overlong=overlong)
  return Sequences(
      examples=fitting,
      tokens=np.concatenate([np.zeros(0, np.int32), *(ids for ids, _ in encoded)]),
      assistant=np.concatenate([np.zeros(0, bool), *(assistant for _, assistant in encoded)]),
      starts=np.cumsum([0, *(len(ids) for ids, _ in encoded)]),
      max_tokens=max_prompt_tokens + max_response_tokens,
      pad_id=tokenizer.pad_id,
      loss_on=loss_on,
      num_filtered=len(examples) - len(fitting),
  )


def _reply_ids(example: Example, prompt: list[int], tokenizer: Tokenizer) -> list[int]:
  """Returns the ids of a response after its prompt.

  These are the ids that follow the prompt's ids when both texts are encoded as one. If that
  encoding does not begin with the prompt's ids, because a token would span both texts, the
  response is encoded separately as a continuation, so that the prompt's ids are those that a
  sampler receives. In neither case does the response get SentencePiece's leading space.
  """
  if 'prompt_ids' not in example:
    both = [*tokenizer.start_ids, *tokenizer.encode(example['prompt'] + example['response'])]
    if both[: len(prompt)] == prompt:
      return both[len(prompt) :]
  return tokenizer.encode_continuation(example['response'])


def _given(name: str, example: Example, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the ids and loss mask given in an example, checked."""
  ids, assistant = np.asarray(example['ids'], np.int32), np.asarray(example['loss_mask'], bool)
  if ids.shape != assistant.shape:
    raise ValueError(f'{name} has {len(ids)} ids, but {len(assistant)} entries in its loss_mask')
  if not np.any(assistant[1:]):
    raise ValueError(f'{name} has no tokens of the assistant: nothing would be learned')
  if not 0 <= ids.min() <= ids.max() < vocab_size:
    raise ValueError(
        f'the ids of {name} must be in [0, {vocab_size}), got {ids.min()} to {ids.max()}'
    )
  return ids, assistant


def encode_demonstrations(
    task: Task, *, overlong: str = 'error', loss_on: str = 'assistant'
) -> Sequences:
  """Encodes a task's demonstrations within the task's limits; see `encode_sequences`."""
  return encode_sequences(
      task.demonstrations,
      task.tokenizer,
      max_prompt_tokens=task.max_prompt_tokens,
      max_response_tokens=task.max_response_tokens,
      overlong=overlong,
      loss_on=loss_on,
  )


def sft_batch(sequences: Sequences, indices: Sequence[int]) -> SftBatch:
  """Returns the sequences at `indices` (int [B]), one per row.

  The width depends on the limits only, so that all steps share one compiled program.
  """
  batch = packed_batch(sequences, [[index] for index in indices], sequences.max_tokens - 1)
  return batch._replace(segments=None)


def packed_batch(
    sequences: Sequences, rows: Sequence[Sequence[int]], row_length: int
) -> SftBatch:
  """Returns a batch of rows, each with its sequences one after the other.

  Args:
    sequences: all sequences.
    rows: indices of the sequences in each of B rows; sequence n takes
      sequences.lengths[n] - 1 slots.
    row_length: T.

  Returns:
    The batch, including `segments`.
  """
  chosen = np.array([index for row in rows for index in row], np.int64)
  starts, slots = sequences.starts[chosen], sequences.lengths[chosen] - 1
  per_row = np.array([len(row) for row in rows])
  row = np.repeat(np.arange(len(rows)), per_row)
  first = _counts_before(per_row)  # Index in `chosen` of each row's first sequence.
  before = _counts_before(slots)
  column = before - before[first][row]  # The slot in which each sequence begins.

  # From here on per slot. `position` is the offset from the sequence's first token.
  position = np.arange(slots.sum()) - np.repeat(before, slots)
  source = np.repeat(starts, slots) + position
  target = np.repeat(row, slots), np.repeat(column, slots) + position
  counts = sequences.assistant[source + 1] if sequences.loss_on == 'assistant' else 1.0

  def scatter(values, fill, dtype):
    array = np.full((len(rows), row_length), fill, dtype)
    array[target] = values
    return array

  return SftBatch(
      tokens=scatter(sequences.tokens[source], sequences.pad_id, np.int32),
      positions=scatter(position, 0, np.int32),
      valid=scatter(True, False, bool),
      targets=scatter(sequences.tokens[source + 1], sequences.pad_id, np.int32),
      loss_mask=scatter(counts, 0.0, np.float32),
      weight=np.ones(len(rows), np.float32),
      segments=scatter(np.repeat(np.arange(len(chosen)) - first[row] + 1, slots), 0, np.int32),
  )


def _counts_before(counts: np.ndarray) -> np.ndarray:
  """Returns the sum of all previous entries, for each entry."""
  return np.cumsum(counts) - counts


class Batches:
  """Batches of demonstrations, as a pure function of (seed, step) or in one sequential pass.

  Attributes:
    num_rows: number of rows in an epoch (of all sources together).
    utilisation: fraction of slots with a token.
  """

  def __init__(
      self,
      sequences: Sequences,
      *,
      batch_size: int,
      seed: int,
      packed_length: int = 0,
      weights: Mapping[str, float] | None = None,
  ):
    """Assigns the demonstrations to rows.

    Args:
      sequences: the demonstrations.
      batch_size: B, rows per batch.
      seed: seed for packing and for the order of each epoch.
      packed_length: T of packed rows; 0 gives each sequence its own row.
      weights: {'source' of the examples: share of the rows}; each source then
        goes through its own epochs and is packed separately. None: one epoch over all.

    Raises:
      ValueError: there are no demonstrations, one is too long for a row, or weights and
        sources do not match.
    """
    if not len(sequences):
      raise ValueError('there are no demonstrations')
    if packed_length < 0:
      raise ValueError(f'packed_length must be at least 0, got {packed_length}')

    self._sequences, self._batch_size, self._seed = sequences, batch_size, seed
    self._packed_length = packed_length
    self._names, self._weights, groups = _sources(sequences.examples, weights)

    slots = sequences.lengths - 1
    self._rows: list[list[list[int]]] = [  # By source.
        [[int(group[i]) for i in row]
         for row in packing.best_fit(slots[group], packed_length, seed=seed)]
        if packed_length else [[int(index)] for index in group]
        for group in groups
    ]

    self._all_rows = [row for rows in self._rows for row in rows]
    self.num_rows = len(self._all_rows)
    self.utilisation = packing.utilisation(
        slots, self._all_rows, packed_length or sequences.max_tokens - 1
    )

  def batch(self, step: int) -> SftBatch:
    """Returns the batch of step `step`, from 0."""
    sources, indices = mixtures.mixture_indices(
        [len(rows) for rows in self._rows], self._weights, self._batch_size,
        seed=self._seed, step=step, names=self._names,
    )
    return self._assemble([self._rows[k][i] for k, i in zip(sources, indices)])

  def in_order(self) -> Iterator[SftBatch]:
    """Yields each row once; the last batch is padded with rows of weight 0."""
    for chunk in batching.sequential_chunks(self.num_rows, self._batch_size):
      batch = self._assemble([self._all_rows[index] for index in chunk.indices])
      yield batch._replace(weight=chunk.weight)

  def _assemble(self, rows: list[list[int]]) -> SftBatch:
    if self._packed_length:
      return packed_batch(self._sequences, rows, self._packed_length)
    return sft_batch(self._sequences, [row[0] for row in rows])


def _sources(
    examples: list[Example], weights: Mapping[str, float] | None
) -> tuple[list[str], list[float], list[np.ndarray]]:
  """Returns (names, weights, indices of the examples) of the sources."""
  if weights is None:
    return ['the data'], [1.0], [np.arange(len(examples))]
  of_example = np.array([example.get('source', '') for example in examples])
  known = sorted(set(of_example.tolist()))
  if set(known) != set(weights):
    raise ValueError(
        f'weights must be given for each source of the demonstrations ({", ".join(known)}), got '
        f'weights for {", ".join(weights)}'
    )
  return (
      list(weights), list(weights.values()), [np.flatnonzero(of_example == n) for n in weights]
  )
