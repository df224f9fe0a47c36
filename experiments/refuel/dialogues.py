"""Dialogue data for REFUEL: selects rows, and turns sampled dialogues back into text."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrl_llm import checks
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
from jaxrl_llm.tasks import config as task_config
from jaxrl_llm.tasks import preferences, splits, users
from jaxrl_llm.types import Example, Task

Message = conversations.Message
_SUPPORTED = chat_messages.Supported()
_NO_LIMIT = 2**30


@dataclasses.dataclass
class Config(preferences.Config):
  """Config of conversations whose user turns a policy replies to.

  Rows that are too long, or ask the same as an earlier row, are left out and counted. Fields of
  `preferences.Config` keep their meaning, except for the limits:

  Attributes:
    max_prompt_tokens: L, limit of the user's first turn, template tokens included.
    max_response_tokens: R, slots of each reply, stop token included.
    max_message_tokens: limit of each later message of the user, template tokens included. A row
      with a longer one is left out; a longer message of a simulated user is cut.
    num_turns: H, maximum number of replies in a dialogue.
    min_turns: rows with fewer turns of the user are left out.
    limits: tighter limits by the number of turns, as 'TURNS=USER:REPLY,...': tokens of each turn
      of the user, and of each reply. Rows with any other number of turns are left out.
    filter_replies: whether rows whose own replies are too long are left out too. These replies
      are used only as demonstrations.
    first_only: whether only a row's first question is used, for a simulated user.
    key: field of a row that holds its conversation: a list of messages, which may end with the
      user's if 'chosen' is the reply to it. Rows in which user and assistant do not take turns are
      left out. Or a list of texts, the user's turns only, like MT-bench's 'turns': these rows are
      not demonstrations. '' uses the schema's.
  """

  max_message_tokens: int = 128
  num_turns: int = 5
  min_turns: int = 1
  limits: str = ''
  filter_replies: bool = False
  first_only: bool = False
  key: str = ''

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate(prefix)
    checks.at_least(self, prefix, max_message_tokens=1, num_turns=1, min_turns=1)
    if self.min_turns > self.num_turns:
      raise ValueError(
          f'{prefix}.min_turns must be at most num_turns ({self.num_turns}), got {self.min_turns}')
    if self.template == 'none':
      raise ValueError(f"{prefix}.template must not be 'none': dialogues need a chat template")
    with checks.within(f'{prefix}.limits'):
      parse_limits(self.limits)

    for name, default in (('min_turns', 1), ('limits', ''), ('filter_replies', False)):
      if self.first_only and getattr(self, name) != default:
        raise ValueError(
            f'{prefix}.{name} has no effect with first_only, got {getattr(self, name)!r}')
    for name, default in (('schema', 'conversations'), ('fields', ''), ('tfds_dir', '')):
      if self.key and getattr(self, name) != default:
        raise ValueError(f'{prefix}.{name} has no effect with key, got {getattr(self, name)!r}')

  def make(
      self,
      seed: int,
      data_dir: str | pathlib.Path = '',
      policy: task_config.PolicyTokenizer = task_config.FROM_SCRATCH,
  ) -> 'DialogueTask':
    """See `TaskConfig.make`."""
    # Read all rows, of any length: `_make_task` filters them turn by turn.
    every = dataclasses.replace(
        self, num_train=0, num_evaluation=0 if self.evaluation_files else 1,
        max_prompt_tokens=_NO_LIMIT, max_response_tokens=_NO_LIMIT)
    rows = preferences.Config.make(every, seed, data_dir, policy)
    return _make_task(self, rows, seed)

  def read_rows(self, file: pathlib.Path) -> list[preference_rows.Row]:
    """See `preferences.Config.read_rows`."""
    return read(file, key=self.key) if self.key else super().read_rows(file)


def parse_limits(text: str) -> dict[int, tuple[int, int]]:
  """Parses 'TURNS=USER:REPLY, ...' to {turns: (tokens of a user turn, tokens of a reply)}.

  Raises:
    ValueError: if the text has another format, or a number is not positive.
  """
  limits = {}
  for entry in filter(None, map(str.strip, text.split(','))):
    turns, _, pair = entry.partition('=')
    numbers = [turns, *pair.split(':')]
    if len(numbers) != 3 or not all(n.strip().isdigit() and int(n) > 0 for n in numbers):
      raise ValueError(f"limits must be written as 'TURNS=USER:REPLY, ...', got {entry!r}")
    limits[int(turns)] = (int(numbers[1]), int(numbers[2]))
  return limits


@dataclasses.dataclass(frozen=True, kw_only=True)
class DialogueTask(Task):
  """A task of dialogues; its `reward_fn` is None.

  Examples have 'prompt' and 'prompt_ids' (the user's first turn), 'messages' (the same as a
  conversation), 'questions' (texts of all user turns in use) and 'source'. `max_response_tokens` is
  T, the maximum number of tokens after a prompt: all replies and messages.

  Attributes:
    template: chat template that encodes dialogues.
    frame: the template's text between replies.
    questions: the user that asks the questions of the data.
    num_turns: H, maximum number of replies in a dialogue.
    max_reply_tokens: R, slots of a reply.
    max_message_tokens: M, slots of a message, including template tokens and those that close a
      truncated reply.
    max_transcript_tokens: maximum number of tokens that a policy reads before a reply.
    reply_limits: tokens of each reply by the number of turns, if tighter limits are set.
    dropped: number of rows left out, by reason: 'repeated', 'turns' (wrong number of turns),
      'too_long', 'held_out' (same beginning as a held-out row).
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
    """One phrase for the terminal about rows left out."""
    return f'rows left out: {_listed(self.dropped)}'

  @functools.cached_property
  def examples(self) -> dict[int, Example]:
    """All examples by id."""
    return {example['id']: example for example in [*self.train, *self.evaluation]}

  @functools.cached_property
  def _surroundings(self) -> tuple[str, str]:
    """Decoded template text before and after a message."""
    texts = self.frame.before, self.frame.after
    return tuple(self.tokenizer.decode(self.frame.encode(text)) for text in texts)

  @functools.cached_property
  def _first(self) -> dict[tuple[int, ...], str]:
    """The user's first turn as text, by the ids of the prompt."""
    return {tuple(e['prompt_ids']): e['questions'][0] for e in self.examples.values()}

  def text(self, ids: Sequence[int]) -> str:
    """Text of one turn, without the template around it."""
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
  and their number is printed: Anthropic's HH has such rows.

  Args:
    path: JSON lines, or a JSON array of objects.
    key: field with a list of messages; if the last one is the user's, 'chosen' is the reply to it.
      Or with a list of texts: the user's turns, regardless of the replies, as in MT-bench.

  Returns:
    The rows, numbered as in the file.

  Raises:
    ValueError: if the file is missing or damaged, a row has no messages at `key`, or another column
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


def _asked(turns: list[Any], key: str) -> list[Message]:
  """A conversation from a list of user texts; [] if `turns` holds anything else."""
  if not turns or not all(isinstance(text, str) for text in turns):
    return []
  if not all(map(str.strip, turns)):
    raise ValueError(f'{key!r} must hold texts that are not empty, got {str(turns)[:60]}')
  messages = []
  for text in turns:  # Templates require a reply to every turn except the last.
    messages += [{'role': 'user', 'content': text}, {'role': 'assistant', 'content': ''}]
  return messages[:-1]


def _messages(row: Mapping[str, Any], key: str) -> list[Message]:
  """The whole conversation of a row; raises ValueError if there is none."""
  conversation = row[key]
  if not conversation:
    raise ValueError(f'{key!r} must be a list of messages, got an empty list')
  messages = []
  for index, message in enumerate(conversation):
    spelling = chat_messages.spelling_of(message)
    role, content = (
        message.get(name) if isinstance(message, dict) else None for name in spelling)
    if role not in tuple(conversations.ROLES) or not isinstance(content, str):
      raise ValueError(
          f"'{key}[{index}]' must have a role ({', '.join(conversations.ROLES)}) and a text, got "
          f'{columns.shown(message)}'
      )

    role = conversations.ROLES[role]
    chat_messages.read_extra(message, f'{key}[{index}]', role=role, supported=_SUPPORTED)
    messages.append({'role': role, 'content': content})

  if messages[-1]['role'] == 'user' and isinstance(row.get('chosen'), str):
    messages.append({'role': 'assistant', 'content': row['chosen']})
  return messages


def _make_task(
    config: Config, rows: preferences.PreferenceTask, seed: int
) -> DialogueTask:
  """Makes the task from all rows of its files.

  Args:
    config: limits, and the number of held-out dialogues.
    rows: task whose training and held-out examples together are all rows, unfiltered.
    seed: decides which dialogues are held out.

  Returns:
    The task. Rows that do not begin like a held-out dialogue are demonstrations.

  Raises:
    ValueError: if the data holds no conversations, nothing is left, a number is out of range, or
      `dialogue_rows.make_frame` raises it.
  """
  tokenizer, template = rows.tokenizer, rows.template
  frame = dialogue_rows.make_frame(template, tokenizer)
  shape = _Shape(config, frame)

  every = sorted(rows.train + rows.evaluation, key=lambda example: example['id'])
  candidates = [_candidate(example) for example in every]
  selected, dropped = _filter(candidates, config, shape, frame)
  if config.first_only:
    selected = [{**example, 'questions': example['questions'][:1]} for example in selected]
  examples, questions = [], None
  if selected:
    examples, questions = users.encode_questions(selected, template, tokenizer)

  fitting = [e for e in examples if len(e['prompt_ids']) <= shape.of(e)[0]]
  dropped['too_long'] += len(examples) - len(fitting)
  if not fitting:
    raise ValueError(f'none of {len(every)} dialogues is left: {_listed(dropped)} (config.task)')

  names = {pathlib.Path(name.strip()).name for name in config.evaluation_files.split(',')}
  given = [example for example in fitting if example['source'] in names]
  train, evaluation = splits.hold_out(
      fitting, config.num_evaluation, seed, question=_beginning, name='dialogues', given=given)
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
  """Token limits of dialogues.

  Attributes:
    limits: {turns: (tokens of a user turn, tokens of a reply)}; {} if all rows share limits.
    message_slots: M.
    continuation: T.
    transcript: maximum number of tokens before a reply.
  """

  def __init__(self, config: Config, frame: dialogue_rows.Frame):
    self.limits = parse_limits(config.limits)
    self._config = config
    for turns, (user, reply) in self.limits.items():
      if (turns > config.num_turns or user > config.max_prompt_tokens
          or turns > 1 and user > config.max_message_tokens or reply > config.max_response_tokens):
        raise ValueError(
            f'config.task.limits must be within num_turns ({config.num_turns}), max_prompt_tokens '
            f'({config.max_prompt_tokens}), max_message_tokens ({config.max_message_tokens}) and '
            f'max_response_tokens ({config.max_response_tokens}), got {turns}={user}:{reply}'
        )

    least = len(frame.write(''))
    if config.max_message_tokens <= least:
      raise ValueError(
          f'config.task.max_message_tokens must be more than the {least} that the template puts '
          f'around a message, got {config.max_message_tokens}'
      )

    close = len(frame.close_ids)  # Before a message if the reply before it was truncated.
    self.message_slots = config.max_message_tokens + close
    shared = {config.num_turns: (config.max_message_tokens, config.max_response_tokens)}
    pairs = (self.limits or shared).items()
    self.continuation = max(h * reply + (h - 1) * (user + close) for h, (user, reply) in pairs)
    self.transcript = config.max_prompt_tokens + max(
        (h - 1) * (reply + user + close) for h, (user, reply) in pairs)

  def of(self, example: Mapping[str, Any]) -> tuple[int, int, int]:
    """Token limits of an example's first turn, later messages and replies."""
    config, turns = self._config, len(example['questions'])
    if turns in self.limits:
      user, reply = self.limits[turns]
      return user, user, reply
    return config.max_prompt_tokens, config.max_message_tokens, config.max_response_tokens


def _candidate(example: Example) -> Example:
  """Splits a row by speaker: 'system' (or ''), 'questions', 'replies'."""
  if 'messages' not in example:
    raise ValueError(
        f'{example["source"]}, row {example["row"]}: dialogues need conversations, and the data '
        'holds token ids (config.task.schema)'
    )

  def texts_of(role):
    return [m['content'] for m in example['messages'] if m['role'] == role]

  first = [message for message in example['messages'] if message['role'] != 'assistant']
  until = 1 + (first[0]['role'] == 'system')
  return {
      'id': example['id'], 'source': example['source'], 'messages': first[:until],
      'system': ''.join(texts_of('system')), 'questions': texts_of('user'),
      # Empty if there are only questions.
      'replies': [*filter(None, [*texts_of('assistant'), example.get('chosen')])],
  }


def _filter(
    candidates: list[Example], config: Config, shape: _Shape,
    frame: dialogue_rows.Frame,
) -> tuple[list[Example], dict[str, int]]:
  """(dialogues to keep, number left out by reason); the lengths of first turns are not checked."""
  seen, selected, dropped = set(), [], {'repeated': 0, 'turns': 0, 'too_long': 0}
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
      selected.append(candidate)

    seen.add(asks)
  return selected, dropped


def _fits(candidate, config, shape, frame) -> bool:
  """Checks the limits of all messages except the first, and of replies if `filter_replies`."""
  _, message, reply = shape.of(candidate)

  def length(text):
    return len(frame.encode(text)) + len(frame.close_ids)

  return all(len(frame.write(text)) <= message for text in candidate['questions'][1:]) and not (
      config.filter_replies and any(length(text) > reply for text in candidate['replies']))


def _beginning(example: Mapping[str, Any]) -> tuple[str, str]:
  return example['system'], example['questions'][0]


def _listed(dropped: Mapping[str, int]) -> str:
  return ', '.join(f'{count} {name}' for name, count in dropped.items())
