"""Dialogues as ids, turn by turn, to which a policy and a user append.

A dialogue is the user's first turn (the prompt), then replies of the policy and messages of the
user in turn. A message is everything between two replies, including the chat template's text
around the user's text. Ids are appended unchanged, never decoded and encoded again, so that the
sampled ids are those in the loss.

Arrays are on the host, with any leading axes [...] (prompts, or seeds and prompts), H turns, R
slots for a reply and M for a message.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.data import batching
from jaxrl_llm.types import TRUNCATED


class Continuation(NamedTuple):
  """Everything after the prompts, without gaps; [..., T], T = H·R + (H − 1)·M.

  Attributes:
    tokens: int32 [..., T], right-padded.
    lengths: int32 [...].
    mask: float32 [..., T]; 1 on the tokens of replies, including their stop tokens.
    turns: int32 [..., T]; index of the reply that a token belongs to, from 0; −1 elsewhere.
    log_probs: float32 [..., T]; 0 where `mask` is 0.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  mask: np.ndarray
  turns: np.ndarray
  log_probs: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dialogues:
  """Dialogues up to the current turn. Message j answers reply j; x_h is message h − 1.

  Attributes:
    prompts: int32 [..., L], left-padded: the user's first turn.
    prompt_lengths: int32 [...].
    example_ids: int32 [...].
    replies: int32 [..., H, R].
    reply_lengths: int32 [..., H]; 0 for a reply that does not exist yet.
    log_probs: float32 [..., H, R], nats, under the sampling policy; NaN if unknown.
    stop_reason: int8 [..., H]; `types.STOPPED` or `types.TRUNCATED`.
    messages: int32 [..., H − 1, M].
    message_lengths: int32 [..., H − 1]; a message may be empty.
    seeds: uint32 [...]; seeds for the user's next message: a user that draws at random uses
      only these.
    pad_id: id of empty slots.
  """

  prompts: np.ndarray
  prompt_lengths: np.ndarray
  example_ids: np.ndarray
  replies: np.ndarray
  reply_lengths: np.ndarray
  log_probs: np.ndarray
  stop_reason: np.ndarray
  messages: np.ndarray
  message_lengths: np.ndarray
  seeds: np.ndarray
  pad_id: int

  @property
  def num_replies(self) -> np.ndarray:
    """int [...]; number of replies so far."""
    return np.sum(self.reply_lengths > 0, axis=-1)

  def __len__(self) -> int:
    return len(self.prompts)

  def __getitem__(self, rows: Any) -> 'Dialogues':
    """Selects dialogues; a boolean array over all leading axes gives one leading axis."""
    arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    pad_id = arrays.pop('pad_id')
    return Dialogues(**{name: array[rows] for name, array in arrays.items()}, pad_id=pad_id)

  def turns(self, row: int) -> list[np.ndarray]:
    """Returns the ids of [prompt, reply 0, message 0, reply 1, ...] of one of N dialogues."""
    first = self.prompts.shape[-1] - self.prompt_lengths[row]
    turns = [self.prompts[row, first:]]
    for turn in range(int(self.num_replies[row])):
      turns.append(self.replies[row, turn, : self.reply_lengths[row, turn]])
      if turn < self.messages.shape[-2]:
        turns.append(self.messages[row, turn, : self.message_lengths[row, turn]])
    # A message that does not exist yet is empty.
    return turns if len(turns[-1]) or len(turns) % 2 == 0 else turns[:-1]

  def transcript(self, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns everything before reply `turn`, in the form that a sampler takes.

    Args:
      turn: index of the reply, from 0 to H.

    Returns:
      (int32 [..., L + turn·(R + M)], left-padded; lengths int32 [...]).
    """
    slots = self.prompts.shape[-1]
    prompt_valid = np.arange(slots) >= slots - self.prompt_lengths[..., None]
    tokens, valid, *_ = self._in_order(turn)
    tokens = np.concatenate([self.prompts, tokens], axis=-1)
    valid = np.concatenate([prompt_valid, valid], axis=-1)
    order = np.argsort(valid, axis=-1, kind='stable')
    valid = np.take_along_axis(valid, order, axis=-1)
    tokens = np.where(valid, np.take_along_axis(tokens, order, axis=-1), self.pad_id)
    return tokens.astype(np.int32), valid.sum(axis=-1, dtype=np.int32)

  def continuation(self) -> Continuation:
    """Returns everything after the prompts."""
    tokens, valid, turns, log_probs = self._in_order(self.replies.shape[-2])
    last = self.messages.shape[-1]  # There is no message after the last reply.
    tokens, valid, turns, log_probs = (
        array[..., : array.shape[-1] - last] for array in (tokens, valid, turns, log_probs))

    order = np.argsort(~valid, axis=-1, kind='stable')
    tokens, valid, turns, log_probs = (
        np.take_along_axis(array, order, axis=-1) for array in (tokens, valid, turns, log_probs))
    turns = np.where(valid, turns, -1).astype(np.int32)

    return Continuation(
        tokens=np.where(valid, tokens, self.pad_id).astype(np.int32),
        lengths=valid.sum(axis=-1, dtype=np.int32),
        mask=(turns >= 0).astype(np.float32),
        turns=turns,
        log_probs=np.where(turns >= 0, log_probs, 0).astype(np.float32),
    )

  def _in_order(self, turns: int) -> tuple[np.ndarray, ...]:
    """Returns (tokens, valid, turns, log-probs) of the first `turns` turns, with gaps."""
    lead = self.prompt_lengths.shape
    slots = (self.replies.shape[-1], self.messages.shape[-1])

    parts = []
    for turn in range(turns):
      parts.append((self.replies[..., turn, :], self.reply_lengths[..., turn], turn,
                    self.log_probs[..., turn, :]))
      answered = turn < self.messages.shape[-2]
      nothing = np.zeros((*lead, slots[1]), np.int32)
      parts.append((self.messages[..., turn, :] if answered else nothing,
                    self.message_lengths[..., turn] if answered else np.zeros(lead, np.int32), -1,
                    nothing.astype(np.float32)))

    def join(arrays, dtype):
      return np.concatenate([np.zeros((*lead, 0), dtype), *arrays], axis=-1)

    return (
        join([part[0] for part in parts], np.int32),
        join([np.arange(p[0].shape[-1]) < p[1][..., None] for p in parts], bool),
        join([np.full(part[0].shape, part[2]) for part in parts], np.int32),
        join([part[3] for part in parts], np.float32),
    )

  def reply_tokens(self, start: int | np.ndarray = 0) -> np.ndarray:
    """Returns the number of reply tokens from turn `start` (an int or [...]) on, int [...]."""
    counts = np.arange(self.replies.shape[-2]) >= np.asarray(start)[..., None]
    return np.sum(self.reply_lengths * counts, axis=-1)

  def cut(self, turn: int | np.ndarray) -> 'Dialogues':
    """Returns the dialogues without reply `turn` (an int or [...]) and everything after it."""
    turn = np.broadcast_to(turn, self.prompt_lengths.shape)[..., None]
    keep = np.arange(self.replies.shape[-2]) < turn
    answered = keep[..., : self.messages.shape[-2]]
    return dataclasses.replace(
        self,
        replies=np.where(keep[..., None], self.replies, self.pad_id),
        reply_lengths=np.where(keep, self.reply_lengths, 0),
        log_probs=np.where(keep[..., None], self.log_probs, 0),
        stop_reason=np.where(keep, self.stop_reason, TRUNCATED),
        messages=np.where(answered[..., None], self.messages, self.pad_id),
        message_lengths=np.where(answered, self.message_lengths, 0),
    )

  def with_replies(
      self, turn: int, rows: np.ndarray, *, tokens: np.ndarray, lengths: np.ndarray,
      log_probs: np.ndarray, stop_reason: np.ndarray,
  ) -> 'Dialogues':
    """Returns dialogues with reply `turn` added.

    Args:
      turn: index of the reply.
      rows: bool [...]; dialogues to change; the others are unchanged.
      tokens: int32 [..., R] for all dialogues.
      lengths: int32 [...], at least 1 where `rows`.
      log_probs: float32 [..., R].
      stop_reason: int8 [...].
    """
    if np.any(np.asarray(lengths)[rows] < 1):
      raise ValueError(f'a reply must have at least one token, reply {turn} has none')
    valid = np.arange(self.replies.shape[-1]) < np.asarray(lengths)[..., None]
    reply = {
        'replies': np.where(valid, tokens, self.pad_id), 'reply_lengths': lengths,
        'log_probs': np.where(valid, log_probs, 0), 'stop_reason': stop_reason,
    }
    return dataclasses.replace(self, **{
        name: _assign(getattr(self, name), turn, rows, values, rank=self.prompt_lengths.ndim)
        for name, values in reply.items()
    })

  def with_messages(
      self, turn: int, rows: np.ndarray, messages: Sequence[Sequence[int]]
  ) -> 'Dialogues':
    """Returns dialogues with the answer to reply `turn` added.

    Args:
      turn: index of the reply.
      rows: bool [...]; the n dialogues to change.
      messages: n sequences of ids, in the order of the rows.

    Raises:
      ValueError: the number of messages is not n, or one has more tokens than there are slots.
    """
    slots, count = self.messages.shape[-1], int(np.sum(rows))
    lengths = np.array([len(message) for message in messages], np.int32)
    if len(lengths) != count:
      raise ValueError(f'a user must answer {count} dialogues, got {len(lengths)} messages')
    if lengths.max(initial=0) > slots:
      raise ValueError(
          f"a user's message must have at most {slots} tokens (message_slots), got {lengths.max()}"
      )

    padded = np.full((count, slots), self.pad_id, np.int32)
    if lengths.sum():
      padded[np.arange(slots) < lengths[:, None]] = np.concatenate(
          [np.asarray(message, np.int32) for message in messages])

    new_messages, new_lengths = self.messages.copy(), self.message_lengths.copy()
    new_messages[rows, turn], new_lengths[rows, turn] = padded, lengths
    return dataclasses.replace(self, messages=new_messages, message_lengths=new_lengths)


def _assign(array: np.ndarray, turn: int, rows: np.ndarray, values: Any, *, rank: int):
  """Returns a copy of `array` with `values` [..., ...] at [..., turn] of the rows."""
  array = array.copy()
  index = (slice(None),) * rank + (turn,)
  values = np.asarray(values, array.dtype)
  array[index] = np.where(rows.reshape(rows.shape + (1,) * (values.ndim - rank)), values,
                          array[index])
  return array


def empty(
    prompts: np.ndarray,
    prompt_lengths: np.ndarray,
    example_ids: np.ndarray,
    *,
    num_turns: int,
    reply_slots: int,
    message_slots: int,
    pad_id: int = 0,
) -> Dialogues:
  """Returns dialogues that contain only the prompts.

  Args:
    prompts: int32 [..., L], left-padded.
    prompt_lengths: int32 [...].
    example_ids: int32 [...].
    num_turns: H, maximum number of replies in a dialogue.
    reply_slots: R, maximum number of tokens in a reply.
    message_slots: M, maximum number of tokens in a message of the user.
    pad_id: padding id.

  Raises:
    ValueError: a number is too small.
  """
  batching.check_at_least(
      num_turns=(num_turns, 1), reply_slots=(reply_slots, 1), message_slots=(message_slots, 0))

  lead = np.shape(prompt_lengths)
  return Dialogues(
      prompts=np.asarray(prompts, np.int32),
      prompt_lengths=np.asarray(prompt_lengths, np.int32),
      example_ids=np.asarray(example_ids, np.int32),
      replies=np.full((*lead, num_turns, reply_slots), pad_id, np.int32),
      reply_lengths=np.zeros((*lead, num_turns), np.int32),
      log_probs=np.zeros((*lead, num_turns, reply_slots), np.float32),
      stop_reason=np.full((*lead, num_turns), TRUNCATED, np.int8),
      messages=np.full((*lead, num_turns - 1, message_slots), pad_id, np.int32),
      message_lengths=np.zeros((*lead, num_turns - 1), np.int32),
      seeds=np.zeros(lead, np.uint32),
      pad_id=pad_id,
  )
