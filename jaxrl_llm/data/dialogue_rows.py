"""What a chat template writes between two replies, and pairs of dialogues that are left out."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxrl_llm.data import chat_templates, dialogues
from jaxrl_llm.types import Tokenizer


class Frame(NamedTuple):
  """What a chat template writes between two replies.

  Attributes:
    before: the text between a reply's stop token and what the user says.
    after: the text from there to where the next reply begins.
    close_ids: the stop token that ends a reply: what a reply that was cut lacks.
    encode: text -> ids, as the continuation of another text.
  """

  before: str
  after: str
  close_ids: tuple[int, ...]
  encode: Callable[[str], list[int]]

  def write(self, text: str, max_tokens: int | None = None) -> list[int]:
    """The ids that a user appends who says `text`, which is cut where they would be too many.

    A user's text is nobody's action: to cut it does not change what is learnt.
    """
    text = text.strip()
    ids = self.encode(self.before + text + self.after)
    while max_tokens is not None and len(ids) > max_tokens and text:
      text = text[: min(len(text) * max_tokens // len(ids), len(text) - 1)].rstrip()
      ids = self.encode(self.before + text + self.after)
    return ids


def make_frame(template: chat_templates.ChatTemplate, tokenizer: Tokenizer) -> Frame:
  """Finds out what `template` writes around a later message of the user.

  Raises:
    ValueError: as of `chat_templates.encode_conversations`, or if the template changes what the
      user says, or ends a reply in no stop token.
  """
  user, reply, probe = 'Who are you?', 'A model.', 'And who am I?'
  messages = [{'role': role, 'content': text} for role, text in (
      ('user', user), ('assistant', reply), ('user', probe))]
  text = template.render(messages, add_generation_prompt=True)
  _, marks = chat_templates.encode_conversation(template, tokenizer, messages)
  ids, offsets = tokenizer.encode_with_offsets(text)
  last = max((index for index, mark in enumerate(marks) if mark), default=-1)
  if last < 0 or ids[last] not in tokenizer.stop_ids:
    raise ValueError('the chat template must end replies in a stop token of the tokenizer')
  rest = text[offsets[last][1]:]
  if rest.count(probe) != 1:
    raise ValueError(f'the chat template must write what the user says as it is, got {rest!r}')
  return Frame(*rest.split(probe), (ids[last],), tokenizer.encode_continuation)


class Kept(NamedTuple):
  """Which pairs of dialogues a loss is made of.

  Attributes:
    keep: bool [...].
    dropped: how many were left out by each rule, in this order: 'equal_reply', 'too_long'.
  """

  keep: np.ndarray
  dropped: dict[str, int]


def keep_pairs(
    first: dialogues.Dialogues,
    second: dialogues.Dialogues,
    turn: np.ndarray,
    *,
    max_tokens: int,
) -> Kept:
  """The filters of the released pipeline with a simulated user.

  Left out are pairs whose two replies at turn h are the same ids, and those in which the whole
  first dialogue, or the second one up to turn h, has more than `max_tokens` tokens. Rewards have no
  part in it: pairs with a failed one are dropped by the train step (`rl.batches.drop_invalid`), and
  to leave out those with equal ones would change the objective.

  Args:
    first: the dialogues of the first roll-out.
    second: those that started again at turn h.
    turn: int [...]; h.
    max_tokens: 2048 in the released code.

  Returns:
    A `Kept`.

  References:
    Gao et al., 2024, REFUEL, arXiv 2410.04612; released code `setting_one/tokenize_mask.py`.
  """
  at = lambda array: np.take_along_axis(
      array, np.reshape(turn, np.shape(turn) + (1,) * (array.ndim - np.ndim(turn))),
      axis=np.ndim(turn))
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
  return Kept(keep, dropped)
