"""Text of a chat template between two replies, and filters for pairs of dialogues."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxrl_llm.data import chat_templates, dialogues
from jaxrl_llm.types import Tokenizer


class Frame(NamedTuple):
  """Text of a chat template between two replies.

  Attributes:
    before: text between a reply's stop token and the user's text.
    after: text between the user's text and the start of the next reply.
    close_ids: the stop token that ends a reply, which a truncated reply lacks.
    encode: text -> ids, as the continuation of another text.
  """

  before: str
  after: str
  close_ids: tuple[int, ...]
  encode: Callable[[str], list[int]]

  def write(self, text: str, max_tokens: int | None = None) -> list[int]:
    """Returns the ids of a user message with `text`, which is truncated to fit `max_tokens`.

    A user's text is not an action, so truncating it does not change what is learned.
    """
    text = text.strip()
    ids = self.encode(self.before + text + self.after)
    while max_tokens is not None and len(ids) > max_tokens and text:
      text = text[: min(len(text) * max_tokens // len(ids), len(text) - 1)].rstrip()
      ids = self.encode(self.before + text + self.after)
    return ids


def make_frame(template: chat_templates.ChatTemplate, tokenizer: Tokenizer) -> Frame:
  """Determines the text that `template` writes around a later message of the user.

  Raises:
    ValueError: see `chat_templates.encode_conversations`; or the template changes the user's
      text, or does not end a reply with a stop token.
  """
  user, reply, probe = 'Who are you?', 'A model.', 'And who am I?'
  messages = [{'role': role, 'content': text} for role, text in (
      ('user', user), ('assistant', reply), ('user', probe))]
  text = template.render(messages, add_generation_prompt=True)
  _, marks = chat_templates.encode_conversation(template, tokenizer, messages)
  ids, offsets = tokenizer.encode_with_offsets(text)
  last = max((index for index, mark in enumerate(marks) if mark), default=-1)
  if last < 0 or ids[last] not in tokenizer.stop_ids:
    raise ValueError('the chat template must end replies with a stop token of the tokenizer')
  rest = text[offsets[last][1]:]
  if rest.count(probe) != 1:
    raise ValueError(f"the chat template must write the user's text unchanged, got {rest!r}")
  return Frame(*rest.split(probe), (ids[last],), tokenizer.encode_continuation)


class PairFilter(NamedTuple):
  """Pairs of dialogues that enter the loss.

  Attributes:
    keep: bool [...].
    dropped: number of pairs removed by each rule, in this order: 'equal_reply', 'too_long'.
  """

  keep: np.ndarray
  dropped: dict[str, int]


def keep_pairs(
    first: dialogues.Dialogues,
    second: dialogues.Dialogues,
    turn: np.ndarray,
    *,
    max_tokens: int,
) -> PairFilter:
  """Applies the filters of the released pipeline with a simulated user.

  Removes pairs whose two replies at turn h have equal ids, and pairs in which the whole
  first dialogue, or the second one up to turn h, has more than `max_tokens` tokens. Rewards are
  ignored: the train step drops pairs with a failed reward (`rl.batches.drop_invalid`), and
  removing pairs with equal rewards would change the objective.

  Args:
    first: dialogues of the first roll-out.
    second: dialogues that were restarted at turn h.
    turn: int [...]; h.
    max_tokens: limit per dialogue; 2048 in the released code.

  Returns:
    The pairs to keep.

  References:
    Gao et al., 2024, REFUEL, arXiv 2410.04612; released code `setting_one/tokenize_mask.py`.
  """
  def at(array):
    """The entries of each dialogue at its turn."""
    index = np.reshape(turn, np.shape(turn) + (1,) * (array.ndim - np.ndim(turn)))
    return np.take_along_axis(array, index, axis=np.ndim(turn))

  equal = (at(first.reply_lengths) == at(second.reply_lengths))[..., 0] & np.all(
      at(first.replies) == at(second.replies), axis=(-1, -2))

  until = second.cut(np.asarray(turn) + 1)
  answered = np.arange(until.message_lengths.shape[-1]) < np.asarray(turn)[..., None]
  long = [
      prompt + np.sum(replies, axis=-1) + np.sum(messages, axis=-1) > max_tokens
      for prompt, replies, messages in (
          (first.prompt_lengths, first.reply_lengths, first.message_lengths),
          (until.prompt_lengths, until.reply_lengths, until.message_lengths * answered),
      )
  ]

  keep, dropped = np.ones(np.shape(turn), bool), {}
  for name, bad in (('equal_reply', equal), ('too_long', long[0] | long[1])):
    dropped[name] = int(np.sum(keep & bad))
    keep &= ~bad

  return PairFilter(keep, dropped)
