"""Dialogues of data for REFUEL: which rows are talked about, and what was said as text again."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import settings, settings_refuel
from jaxrl_llm.data import (
    chat_messages,
    chat_templates,
    columns,
    conversations,
    dialogue_rows,
    jsonl,
    preference_rows,
)
from jaxrl_llm.data.dialogues import Dialogues
from jaxrl_llm.tasks import preferences, users
from jaxrl_llm.types import Example, Task

Message = conversations.Message
_KEEPS = chat_messages.Keeps()


@dataclasses.dataclass(frozen=True)
class DialogueTask(Task):
  """A task of dialogues; its `reward_fn` is None.

  Examples have 'prompt' and 'prompt_ids' (the user's first turn), 'messages' (the same as a
  conversation), 'questions' (texts of all turns of the user that count) and 'source'.
  `max_response_tokens` is T, the most that can follow a prompt: all replies and messages.

  Attributes:
    template: what makes the ids.
    frame: what it writes between replies.
    questions: the user that asks what stands in the data.
    num_turns: H, the most replies of a dialogue.
    max_reply_tokens: R, slots of a reply.
    max_message_tokens: M, slots of a message: what the template puts around it, and what closes a
      reply that was cut, included.
    max_transcript_tokens: the most that a policy reads before a reply.
    reply_limits: tokens of each reply by the number of turns, where that is less than R.
    dropped: how many rows were left out, by reason: 'repeated', 'turns' (another number of them),
      'too_long', 'held_out' (they begin as a held-out one does).
  """

  template: chat_templates.ChatTemplate
  frame: dialogue_rows.Frame
  questions: users.FixedQuestions
  num_turns: int
  max_reply_tokens: int
  max_message_tokens: int
  max_transcript_tokens: int
  reply_limits: dict[int, int]
  dropped: dict[str, int]

  def left_out(self) -> str:
    """One phrase for the terminal about the rows that were left out."""
    return f'rows left out: {_listed(self.dropped)}'

  @functools.cached_property
  def examples(self) -> dict[int, Example]:
    """All examples by id."""
    return {example['id']: example for example in [*self.train, *self.evaluation]}

  @functools.cached_property
  def _surroundings(self) -> tuple[str, str]:
    """What the template writes around a message, as it is decoded."""
    texts = self.frame.before, self.frame.after
    return tuple(self.tokenizer.decode(self.frame.encode(text)) for text in texts)

  @functools.cached_property
  def _first(self) -> dict[tuple[int, ...], str]:
    """The user's first words by the ids of the prompt."""
    return {tuple(e['prompt_ids']): e['questions'][0] for e in self.examples.values()}

  def text(self, ids: Sequence[int]) -> str:
    """What somebody said in one turn, without what the template puts around it."""
    known = self._first.get(tuple(ids))
    if known is not None:
      return known
    text, (before, after) = self.tokenizer.decode(list(ids)), self._surroundings
    if text.startswith(before) and text[len(before):].endswith(after):
      text = text[len(before) : len(text) - len(after)]
    return text

  def messages(self, dialogues: Dialogues, row: int) -> list[Message]:
    """One dialogue as a conversation."""
    turns = [self.text(ids.tolist()) for ids in dialogues.turns(row)[1:]]
    return [
        *self.examples[int(dialogues.example_ids[row])]['messages'],
        *({'role': role, 'content': text}
          for role, text in zip(('assistant', 'user') * len(turns), turns)),
    ]


def read(path: str | pathlib.Path, *, key: str) -> list[preference_rows.Row]:
  """Reads rows that hold a conversation at `key`.

  Rows in which user and assistant do not take turns, or the user has the last word, are left out,
  and their number is printed: Anthropic's HH has such.

  Args:
    path: JSON lines, or a JSON array of objects.
    key: of a list of messages; where the last one is the user's, 'chosen' is the reply to it. Or of
      a list of texts: what the user says in turn, whatever is replied, as in MT-bench.

  Returns:
    The rows; their numbers are those in the file.

  Raises:
    ValueError: the file is missing or damaged, a row has no messages there, or another column
      would change the meaning.
  """
  rows, left_out = [], 0
  for index, row in enumerate(jsonl.read_rows(path, required={key: list})):
    try:
      asked = _asked(row.value[key], key)
      messages = [] if asked else _messages(row.value, key)
      columns.check_named(row.value, {key, 'chosen', 'rejected'})
    except ValueError as error:
      raise ValueError(f'{path}, line {row.line}: {error}') from None
    if asked:
      rows.append(preference_rows.Row(index, asked))
      continue
    roles = [message['role'] for message in messages]
    roles = roles[1:] if roles[0] == 'system' else roles
    if len(roles) % 2 or roles != ['user', 'assistant'] * (len(roles) // 2) or not roles:
      left_out += 1
    else:
      rows.append(preference_rows.Row(index, messages[:-1], messages[-1]['content']))
  if left_out:
    print(f'{left_out} of {left_out + len(rows)} rows of {path} were left out: user and assistant '
          'do not take turns', flush=True)
  if not rows:
    raise ValueError(f'{path}: user and assistant take turns in none of {left_out} rows')
  return rows


def _asked(found: list[Any], key: str) -> list[Message]:
  """A conversation of texts, which are the user's turns; [] where `found` holds something else."""
  if not found or not all(isinstance(text, str) for text in found):
    return []
  if not all(map(str.strip, found)):
    raise ValueError(f'{key!r} must hold texts that are not empty, got {str(found)[:60]}')
  messages = []
  for text in found:  # A template wants a reply to each but the last.
    messages += [{'role': 'user', 'content': text}, {'role': 'assistant', 'content': ''}]
  return messages[:-1]


def _messages(row: Mapping[str, Any], key: str) -> list[Message]:
  """The whole conversation of a row; ValueError where there is none."""
  found = row[key]
  if not found:
    raise ValueError(f'{key!r} must be a list of messages, got an empty list')
  messages = []
  for index, message in enumerate(found):
    spelling = chat_messages.spelling_of(message)
    role, content = (
        message.get(name) if isinstance(message, dict) else None for name in spelling)
    if role not in tuple(conversations.ROLES) or not isinstance(content, str):
      raise ValueError(
          f"'{key}[{index}]' must have a role ({', '.join(conversations.ROLES)}) and a text, got "
          f'{columns.shown(message)}'
      )
    role = conversations.ROLES[role]
    chat_messages.read_extra(message, f'{key}[{index}]', role=role, keeps=_KEEPS)
    messages.append({'role': role, 'content': content})
  if messages[-1]['role'] == 'user' and isinstance(row.get('chosen'), str):
    messages.append({'role': 'assistant', 'content': row['chosen']})
  return messages


def make_task(
    config: settings_refuel.DialoguesTask, rows: preferences.PreferenceTask, seed: int
) -> DialogueTask:
  """Makes the task out of all rows of its files.

  Args:
    config: limits, and how many are held out.
    rows: its training and held-out examples together are the rows, nothing left out.
    seed: decides which dialogues are held out.

  Returns:
    The task. Those rows that begin otherwise than the held-out dialogues are demonstrations.

  Raises:
    ValueError: the data holds no conversations, nothing is left, or a number is out of range; as
      of `dialogue_rows.make_frame`.
  """
  tokenizer, template = rows.tokenizer, rows.template
  frame = dialogue_rows.make_frame(template, tokenizer)
  shape = _Shape(config, frame)
  every = sorted(rows.train + rows.evaluation, key=lambda example: example['id'])
  candidates = [_candidate(example) for example in every]
  kept, dropped = _filter(candidates, config, shape, frame)
  if config.first_only:
    kept = [{**example, 'questions': example['questions'][:1]} for example in kept]
  examples, questions = users.encode_questions(kept, template, tokenizer) if kept else ([], None)
  fitting = [e for e in examples if len(e['prompt_ids']) <= shape.of(e)[0]]
  dropped['too_long'] += len(examples) - len(fitting)
  if not fitting:
    raise ValueError(f'none of {len(every)} dialogues is left: {_listed(dropped)} (config.task)')
  names = {pathlib.Path(name.strip()).name for name in config.evaluation_files.split(',')}
  given = [example for example in fitting if example['source'] in names]
  with settings.named('config.task'):
    train, evaluation = preferences.hold_out(
        fitting, given, config.num_evaluation, seed, asks=_beginning, name='dialogues')
  dropped['held_out'] = len(fitting) - len(given or evaluation) - len(train)
  task = DialogueTask(
      name='dialogues', tokenizer=tokenizer, demonstrations=[],
      train=train[: config.num_train or None], evaluation=evaluation, reward_fn=None,
      lenient_reward_fn=None, max_prompt_tokens=config.max_prompt_tokens,
      max_response_tokens=shape.continuation, template=template, frame=frame, questions=questions,
      num_turns=config.num_turns, max_reply_tokens=config.max_response_tokens,
      max_message_tokens=shape.message_slots, max_transcript_tokens=shape.transcript,
      reply_limits={turns: reply for turns, (_, reply) in shape.limits.items()}, dropped=dropped,
  )
  begins = {_beginning(example) for example in [*given, *evaluation]}
  window = task.max_prompt_tokens + task.max_response_tokens
  return dataclasses.replace(task, demonstrations=[
      example for example, candidate in zip(every, candidates)
      if _beginning(candidate) not in begins and 0 < len(example.get('ids', ())) <= window
  ])


class _Shape:
  """How many tokens there can be.

  Attributes:
    limits: {turns: (of a turn of the user, of a reply)}, where not all are alike.
    message_slots: M.
    continuation: T.
    transcript: the most before a reply.
  """

  def __init__(self, config: settings_refuel.DialoguesTask, frame: dialogue_rows.Frame):
    self.limits = settings_refuel.parse_limits(config.limits)
    self._config = config
    for turns, (user, reply) in self.limits.items():
      if (turns > config.num_turns or user > config.max_prompt_tokens
          or turns > 1 and user > config.max_message_tokens or reply > config.max_response_tokens):
        raise ValueError(
            f'config.task.limits must lie within num_turns ({config.num_turns}), max_prompt_tokens '
            f'({config.max_prompt_tokens}), max_message_tokens ({config.max_message_tokens}) and '
            f'max_response_tokens ({config.max_response_tokens}), got {turns}={user}:{reply}'
        )
    least = len(frame.write(''))
    if config.max_message_tokens <= least:
      raise ValueError(
          f'config.task.max_message_tokens must be more than the {least} that the template puts '
          f'around a message, got {config.max_message_tokens}'
      )
    close = len(frame.close_ids)  # In front of a message where the reply before it was cut.
    self.message_slots = config.max_message_tokens + close
    alike = {config.num_turns: (config.max_message_tokens, config.max_response_tokens)}
    pairs = (self.limits or alike).items()
    self.continuation = max(h * reply + (h - 1) * (user + close) for h, (user, reply) in pairs)
    self.transcript = config.max_prompt_tokens + max(
        (h - 1) * (reply + user + close) for h, (user, reply) in pairs)

  def of(self, example: Mapping[str, Any]) -> tuple[int, int, int]:
    """Most tokens of the first turn, of a later message and of a reply of an example."""
    config, turns = self._config, len(example['questions'])
    if turns in self.limits:
      user, reply = self.limits[turns]
      return user, user, reply
    return config.max_prompt_tokens, config.max_message_tokens, config.max_response_tokens


def _candidate(example: Example) -> Example:
  """What the two sides of a row say: 'system' (or ''), 'questions', 'replies'."""
  if 'messages' not in example:
    raise ValueError(
        f'{example["source"]}, row {example["row"]}: dialogues need conversations, and the data '
        'holds token ids (config.task.schema)'
    )
  said = lambda role: [m['content'] for m in example['messages'] if m['role'] == role]
  first = [message for message in example['messages'] if message['role'] != 'assistant']
  until = 1 + (first[0]['role'] == 'system')
  return {
      'id': example['id'], 'source': example['source'], 'messages': first[:until],
      'system': ''.join(said('system')), 'questions': said('user'),
      # Empty where there are questions alone.
      'replies': [*filter(None, [*said('assistant'), example.get('chosen')])],
  }


def _filter(
    candidates: list[Example], config: settings_refuel.DialoguesTask, shape: _Shape,
    frame: dialogue_rows.Frame,
) -> tuple[list[Example], dict[str, int]]:
  """(the dialogues that count, how many were left out by reason); first turns are not measured."""
  seen, kept, dropped = set(), [], {'repeated': 0, 'turns': 0, 'too_long': 0}
  for candidate in candidates:
    asks = (candidate['system'], *candidate['questions'])
    turns = len(candidate['questions'])
    if asks in seen:
      dropped['repeated'] += 1
    elif not config.first_only and (
        not config.min_turns <= turns <= config.num_turns
        or shape.limits and turns not in shape.limits):
      dropped['turns'] += 1
    elif not config.first_only and not _fits(candidate, config, shape, frame):
      dropped['too_long'] += 1
    else:
      kept.append(candidate)
    seen.add(asks)
  return kept, dropped


def _fits(candidate, config, shape, frame) -> bool:
  """Whether all messages but the first, and if asked for the replies, are within the limits."""
  _, message, reply = shape.of(candidate)
  length = lambda text: len(frame.encode(text)) + len(frame.close_ids)
  return all(len(frame.write(text)) <= message for text in candidate['questions'][1:]) and not (
      config.filter_replies and any(length(text) > reply for text in candidate['replies']))


def _beginning(example: Mapping[str, Any]) -> tuple[str, str]:
  return example['system'], example['questions'][0]


def _listed(dropped: Mapping[str, int]) -> str:
  return ', '.join(f'{count} {name}' for name, count in dropped.items())
