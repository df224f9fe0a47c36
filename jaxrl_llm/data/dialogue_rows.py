"""Dialogues of data: out of conversations through a chat template, and pairs that are left out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.data import batching, chat_templates, dialogues
from jaxrl_llm.types import STOPPED, TRUNCATED, Tokenizer

# Most tokens of a user's turn and of a reply, by the number of turns, in the authors' data sets
# for pre-sampled questions (ZhaolinGao/REFUEL, setting two; read from the released scripts).
HH_LIMITS = {turns: (128, 512) for turns in range(1, 6)}
ULTRAINTERACT_LIMITS = {
    1: (1024, 1024), 2: (768, 768), 3: (512, 512), 4: (256, 512), 5: (128, 512)}
SENTINEL = -99_999.0  # What released code writes where a reward model failed.


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


class Encoded(NamedTuple):
  """Conversations that fit, as dialogues.

  Attributes:
    dialogues: N of them; their log-probs are NaN.
    num_turns: int32 [N]; replies of each.
    dropped: how many were left out, by reason: 'too_many_turns', 'too_long'.
  """

  dialogues: dialogues.Dialogues
  num_turns: np.ndarray
  dropped: dict[str, int]


def from_conversations(
    examples: Sequence[Mapping[str, Any]],
    template: chat_templates.ChatTemplate,
    tokenizer: Tokenizer,
    *,
    limits: Mapping[int, tuple[int, int]],
) -> Encoded:
  """Conversations that somebody else had, as dialogues: where offline prefixes come from.

  Args:
    examples: each with 'id' and 'messages', of which the last is the assistant's.
    template: of the conversation.
    tokenizer: of the ids.
    limits: number of turns -> (most tokens of a turn of the user, with what the template puts
      around it; most tokens of a reply). Conversations of another number, or with a longer turn,
      are left out and counted.

  Returns:
    An `Encoded`.

  Raises:
    ValueError: as of `chat_templates.encode_conversations`; a reply that the template rewrites
      later, so that a dialogue does not go on as it was said; or nothing is left.
  """
  encoded = chat_templates.encode_conversations(
      template, tokenizer, [example['messages'] for example in examples])
  kept, dropped = [], {'too_many_turns': 0, 'too_long': 0}
  for example, (ids, marks) in zip(examples, encoded):
    spans = turn_spans(marks)
    asked = sum(message['role'] == 'assistant' for message in example['messages'])
    if len(spans) != asked:
      raise ValueError(
          f'conversation {example["id"]} has {asked} replies, of which the chat template writes '
          f'{len(spans)} as they were said'
      )
    starts = [0, *(end for _, end in spans[:-1])]
    users = [np.asarray(ids[a:b], np.int32) for a, (b, _) in zip(starts, spans)]
    replies = [np.asarray(ids[a:b], np.int32) for a, b in spans]
    if asked not in limits:
      dropped['too_many_turns'] += 1
    elif max(map(len, users)) > limits[asked][0] or max(map(len, replies)) > limits[asked][1]:
      dropped['too_long'] += 1
    else:
      kept.append((example['id'], users, replies))
  if not kept:
    raise ValueError(f'none of {len(examples)} conversations is left: {dropped}')
  slots = [max(limit[part] for limit in limits.values()) for part in (0, 1)]
  return _stack(kept, max(limits), *slots, tokenizer, dropped)


def turn_spans(marks: Sequence[int]) -> list[tuple[int, int]]:
  """[first, last) of each run of ones: the assistant's turns, in order."""
  edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(marks, np.int8), [0]])))
  return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


def _stack(kept, num_turns, message_slots, reply_slots, tokenizer, dropped) -> Encoded:
  """The dialogues of (id, turns of the user, replies)."""
  prompts, lengths = batching.left_pad(
      [users[0] for _, users, _ in kept], message_slots, tokenizer.pad_id)
  joined = dialogues.empty(
      prompts, lengths, np.array([index for index, *_ in kept]), num_turns=num_turns,
      reply_slots=reply_slots, message_slots=message_slots, pad_id=tokenizer.pad_id)
  for turn in range(num_turns):
    replies = [said[turn] if turn < len(said) else [] for *_, said in kept]
    tokens, lengths = batching.left_pad(
        [list(reply)[::-1] for reply in replies], reply_slots, tokenizer.pad_id)
    stops = [len(reply) > 0 and reply[-1] in tokenizer.stop_ids for reply in replies]
    joined = joined.with_replies(
        turn, lengths > 0, tokens=tokens[:, ::-1], lengths=lengths,
        log_probs=np.full(tokens.shape, np.nan), stop_reason=np.where(stops, STOPPED, TRUNCATED))
    answered = np.array([turn + 1 < len(users) for _, users, _ in kept])
    if answered.any():
      joined = joined.with_messages(
          turn, answered, [users[turn + 1] for _, users, _ in kept if turn + 1 < len(users)])
  return Encoded(joined, joined.num_replies.astype(np.int32), dropped)


class Kept(NamedTuple):
  """Which pairs of dialogues a loss is made of.

  Attributes:
    keep: bool [...].
    dropped: how many were left out by each rule, in this order: 'sentinel', 'equal_reply',
      'too_long'.
  """

  keep: np.ndarray
  dropped: dict[str, int]


def keep_pairs(
    first: dialogues.Dialogues,
    second: dialogues.Dialogues,
    rewards: tuple[np.ndarray, np.ndarray],
    turn: np.ndarray,
    *,
    max_tokens: int,
) -> Kept:
  """The filters of the released pipeline with a simulated user.

  Left out are pairs with a failed reward (the sentinel, or no number) of any prefix of either
  dialogue; those whose two replies at turn h are the same ids; and those in which the whole first
  dialogue, or the second one up to turn h, has more than `max_tokens` tokens. Pairs with equal
  rewards stay: to leave them out would change the objective.

  Args:
    first: the dialogues of the first roll-out.
    second: those that started again at turn h.
    rewards: of every prefix of either, [..., H] or any other number of them.
    turn: int [...]; h.
    max_tokens: 2048 in the released code.

  Returns:
    A `Kept`.

  References:
    Gao et al., 2024, REFUEL, arXiv 2410.04612; released code `setting_one/tokenize_mask.py`.
  """
  failed = [np.any(~(np.isfinite(r) & (np.asarray(r) > SENTINEL)), axis=-1) for r in rewards]
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
  for name, bad in (
      ('sentinel', failed[0] | failed[1]), ('equal_reply', equal), ('too_long', long[0] | long[1])
  ):
    dropped[name] = int(np.sum(keep & bad))
    keep &= ~bad
  return Kept(keep, dropped)


def chosen_first(rewards: np.ndarray) -> np.ndarray:
  """The order (chosen, rejected) of each pair, as the released files keep it.

  The one with the larger reward comes first; of equal ones the second roll-out does.

  Args:
    rewards: [..., 2].

  Returns:
    int [..., 2]; for `np.take_along_axis`.
  """
  first = np.where(rewards[..., 0] > rewards[..., 1], 0, 1)
  return np.stack([first, 1 - first], axis=-1)
