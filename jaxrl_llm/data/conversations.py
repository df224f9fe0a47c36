"""Reads conversations and preferences from JSON or JSON lines files, in common formats.

A row has one of these forms:

  {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
  {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}
  {"instruction": ..., "input": ..., "output": ..., "history": [[user, assistant], ...]}
  {"prompt": ..., "response": ...}     (or "question"; or "completion", "answer")

A preference has "chosen" and "rejected" instead of the reply, or as two lists of messages
that differ in the last. A text may also be given as a message or a list of messages.

Every other column is used, ignored because it is known to be harmless, or rejected in one line:

  system, system_prompt, system_message  system message at the start of any form
  input, context   appended to the user's turn, each on its own line (as LLaMA-Factory
                   joins Alpaca's `input`; Dolly has `context`)
  history          earlier turns, whose replies are learned like the last one (as in LLaMA-Factory)
  reasoning_content, reasoning, thinking  the assistant's reasoning before its reply, in a
                   message or in the row of the reply; see `chat_templates.encode_conversations`
  train, weight    of a message: marks it as learned or as context (`data.chat_messages`)

`data.columns` lists the columns that are ignored (identifiers, sources, scores ...), and those that
are rejected: verdicts such as `label: false`, weights, tools, images, and all unknown ones. A
column of a form other than the one that is read must repeat text of the messages.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from jaxrl_llm.data import chat_messages, columns, jsonl

Message = chat_messages.Message
ROLES = chat_messages.ROLES
Outcome = TypeVar('Outcome')

_WHOLE = ('messages', 'conversations')
_CONTEXTS = (*_WHOLE, 'instruction', 'prompt', 'question')
# Next to 'chosen', 'messages' commonly repeats the chosen conversation.
_PREFERENCE_CONTEXTS = ('conversations', 'instruction', 'prompt', 'question', 'messages')
_REPLIES = ('output', 'response', 'completion', 'answer')
_PREFERENCE_FIELDS = chat_messages.Supported(marks=True)  # Only the last replies are learned.


class Preference(NamedTuple):
  """Two replies to one conversation.

  Attributes:
    id: row number in the file, from 0.
    messages: the conversation up to a message of the user.
    chosen: the assistant's better reply.
    rejected: the assistant's worse reply.
  """

  id: int
  messages: list[Message]
  chosen: str
  rejected: str


def read_conversations(path: str | pathlib.Path) -> list[dict[str, Any]]:
  """Reads conversations in which every reply is learned; uses the chosen reply of preferences.

  Args:
    path: a file with a JSON array of objects, or with one object per line.

  Returns:
    {'id': row number from 0, 'messages': [{'role', 'content'}, ...]} for each
    row: at most one system message, then user and assistant in turn, ending with the
    assistant. Assistant messages may have 'reasoning_content'.

  Raises:
    ValueError: the file is missing or damaged, or a row has none of the forms, is
      malformed, marks a reply as not learned, or has a column that would be lost;
      one line with file, line, field and rule.
  """
  return _read_conversations(path, chat_messages.Supported(reasoning=True))


def read_demonstrations(path: str | pathlib.Path) -> list[dict[str, Any]]:
  """Reads conversations in which some replies may be context: these have 'train' False.

  Arguments, result and errors are otherwise those of `read_conversations`; every row must have
  at least one reply to learn.
  """
  return _read_conversations(path, chat_messages.Supported(reasoning=True, marks=True))


def _read_conversations(path, supported: chat_messages.Supported) -> list[dict[str, Any]]:
  parse = functools.partial(_conversation, supported=supported)
  return [{'id': index, 'messages': messages} for index, messages in _read(path, parse)]


def read_preferences(path: str | pathlib.Path) -> list[Preference]:
  """Reads rows with a chosen and a rejected reply.

  Marks on earlier messages have no effect, because only the two replies are learned.

  Args:
    path: a file with a JSON array of objects, or with one object per line.

  Returns:
    The preferences.

  Raises:
    ValueError: see `read_conversations`; also if a message has reasoning.
  """
  return [Preference(index, *parts) for index, parts in _read(path, _preference_texts)]


def _read(
    path: str | pathlib.Path, parse: Callable[[dict[str, Any]], Outcome]
) -> list[tuple[int, Outcome]]:
  """Parses each row of a file and numbers it; errors name the file and the line."""
  outcomes = []
  for index, row in enumerate(jsonl.read_rows(path)):
    try:
      outcomes.append((index, parse(row.value)))
    except ValueError as error:
      raise ValueError(f'{path}, line {row.line}: {error}') from None
  return outcomes


def is_preference(row: dict[str, Any]) -> bool:
  """True if 'chosen' or 'rejected' of a row is a reply: neither empty nor a verdict."""
  return not all(
      columns.is_empty(row.get(key)) or isinstance(row[key], (bool, int, float))
      for key in ('chosen', 'rejected')
  )


def _conversation(row: dict[str, Any], supported: chat_messages.Supported) -> list[Message]:
  if is_preference(row):
    messages, chosen, _ = _preference(row, supported)
    messages = [*messages, chosen]
  else:
    messages = _whole(row, supported)
  if all(m.get('train') is False for m in messages if m['role'] == 'assistant'):
    raise ValueError('no message of the assistant is learned: remove the row from the file')
  return messages


def _whole(row: dict[str, Any], supported: chat_messages.Supported) -> list[Message]:
  """Reads the conversation of a row without 'chosen' and 'rejected'."""
  used: set[str] = set()
  key, messages = _context(row, _CONTEXTS, supported, used)
  if key is None:
    raise ValueError(
        "a row must have 'messages', 'conversations', 'instruction' and 'output', or 'prompt' "
        "or 'question' with 'response', 'completion' or 'answer', got the keys "
        f'{columns.names(row) or "(none)"}'
    )

  has_reply = key in _WHOLE and messages[-1]['role'] == 'assistant'
  if not has_reply:
    messages = messages + _reply(row, key, supported, used)

  chat_messages.check_turns(messages, last='assistant')
  _add_reasoning(row, messages[-1], used, has_reply=has_reply)
  _check_rest(row, used, messages)
  return messages


def _preference_texts(row: dict[str, Any]) -> tuple[list[Message], str, str]:
  """Reads (conversation, chosen reply, rejected reply), where only the replies are learned."""
  context, *replies = _preference(row, _PREFERENCE_FIELDS)
  for field, reply in zip(('chosen', 'rejected'), replies):
    if reply.get('train') is False:
      raise ValueError(f'{field!r} must be a learned reply, got one that is marked as context')
  return chat_messages.plain(context), replies[0]['content'], replies[1]['content']


def _preference(
    row: dict[str, Any], supported: chat_messages.Supported
) -> tuple[list[Message], Message, Message]:
  """Reads (conversation, chosen reply, rejected reply)."""
  replies, used = {}, {'chosen', 'rejected'}
  for field in ('chosen', 'rejected'):
    if field not in row:
      raise ValueError(f"a preference needs 'chosen' and 'rejected', {field!r} is missing")
    replies[field] = chat_messages.read(row[field], field, role='assistant', supported=supported)

  key, context = _context(row, _PREFERENCE_CONTEXTS, supported, used)
  if key is None:
    context = replies['chosen'][:-1]
    if not context or replies['rejected'][:-1] != context:
      raise ValueError(
          "without a 'prompt', 'chosen' and 'rejected' must be conversations that differ in their "
          'last message only'
      )
    context = _with_system(row, context, used)

  chat_messages.check_turns(context, last='user')

  without_system = context[1:] if context[0]['role'] == 'system' else context
  for field, reply in replies.items():
    for repeated in (context, without_system):
      if reply[: len(repeated)] == repeated:  # The reply repeats the conversation.
        reply = replies[field] = reply[len(repeated) :]
    if [message['role'] for message in reply] != ['assistant']:
      roles = ', '.join(message['role'] for message in reply) or 'none'
      raise ValueError(
          f"{field!r} must be one message of the assistant to the conversation, got {roles}"
      )

  _check_rest(row, used, [*context, *replies['chosen']])
  return context, replies['chosen'][0], replies['rejected'][0]


def _context(
    row: dict[str, Any], keys: tuple[str, ...], supported: chat_messages.Supported, used: set[str]
) -> tuple[str | None, list[Message]]:
  """Reads (first of `keys` in the row, its messages after any system message and history).

  Adds the columns that it reads to `used`.
  """
  present = [key for key in keys if key in row]
  if not present:
    return None, []

  key = next((key for key in present if not columns.is_empty(row[key])), present[0])
  used.add(key)
  if key == 'instruction' or isinstance(row[key], str):
    text = chat_messages.text(row[key], key)
    question = {'role': 'user', 'content': _with_extra(row, text, used)}
    messages = [*_history(row, used), question]
  else:
    messages = chat_messages.read(row[key], key, role='user', supported=supported)
  return key, _with_system(row, messages, used)


def _with_system(
    row: dict[str, Any], messages: list[Message], used: set[str]
) -> list[Message]:
  """Prepends the row's system text, if it has one."""
  system = {key: row[key] for key in columns.SYSTEM if not columns.is_empty(row.get(key))}
  used.update(system)
  for key, value in system.items():
    if not isinstance(value, str):
      raise ValueError(f'{key!r} must be a text, got {type(value).__name__}')

  texts = list(dict.fromkeys(system.values()))
  names = ' and '.join(map(repr, system))
  if messages[0]['role'] == 'system' and texts != [messages[0]['content']][: len(texts)]:
    raise ValueError(
        f'{names} must equal the first message, which is also of the system, got '
        f'{columns.shown(texts[0])}'
    )
  if len(texts) > 1:
    raise ValueError(f'{names} must be equal: a row has one system text')
  if not texts or messages[0]['role'] == 'system':
    return messages

  return [{'role': 'system', 'content': texts[0]}, *messages]


def _with_extra(row: dict[str, Any], text: str, used: set[str]) -> str:
  """Joins `text`, `input` and `context` of the user's turn, each on its own line."""
  lines = [text]
  for key in columns.EXTRA:
    extra = row.get(key)
    if columns.is_empty(extra):
      continue
    if not isinstance(extra, str):
      raise ValueError(f'{key!r} must be a text, got {type(extra).__name__}')
    used.add(key)
    if extra not in lines:
      lines.append(extra)
  return '\n'.join(lines)


def _history(row: dict[str, Any], used: set[str]) -> list[Message]:
  """Reads the turns before a question: pairs of user and assistant texts."""
  messages = []
  history = row.get('history')
  history = [] if columns.is_empty(history) else history
  if not isinstance(history, list):
    raise ValueError(f"'history' must be a list of pairs, got {type(history).__name__}")
  used.add('history')
  for index, pair in enumerate(history):
    field = f'history[{index}]'
    if not isinstance(pair, list) or len(pair) != 2:
      raise ValueError(f'{field!r} must be a pair of texts of user and assistant')
    for role, text in zip(('user', 'assistant'), pair):
      messages.append({'role': role, 'content': chat_messages.text(text, field)})
  return messages


def _reply(
    row: dict[str, Any], key: str, supported: chat_messages.Supported, used: set[str]
) -> list[Message]:
  """Reads the assistant's messages that follow the context at `key`."""
  present = [reply for reply in _REPLIES if reply in row]
  replies = [reply for reply in present if not columns.is_empty(row[reply])] or present
  if len(replies) != 1:
    allowed = ', '.join(map(repr, _REPLIES))
    raise ValueError(
        f'{key!r} does not end with a message of the assistant, so the reply must be in one of '
        f'{allowed}, got {", ".join(map(repr, replies)) or "none of them"}'
    )
  used.add(replies[0])
  return chat_messages.read(row[replies[0]], replies[0], role='assistant', supported=supported)


def _add_reasoning(
    row: dict[str, Any], last: Message, used: set[str], *, has_reply: bool
) -> None:
  """Adds a row's reasoning to its reply; if the reply is a message, it must already have it."""
  thoughts = chat_messages.reasoning(row)
  used.update(columns.REASONING)
  if not thoughts or last.get('reasoning_content') == thoughts:
    return
  if has_reply or 'reasoning_content' in last:
    key = next(key for key in columns.REASONING if not columns.is_empty(row.get(key)))
    raise ValueError(
        f'{key!r} must equal the reasoning of the last message if the row has messages, got '
        f'{columns.shown(thoughts)}'
    )
  last['reasoning_content'] = thoughts


def _check_rest(row: dict[str, Any], used: set[str], messages: list[Message]) -> None:
  """Rejects unused columns, unless they repeat the messages or are known to be harmless."""
  repeated = {'title'} if used & set(_WHOLE) else set()  # The name of a conversation.
  for key in (*_CONTEXTS, *_REPLIES, *columns.EXTRA, 'text'):
    if key in used or columns.is_empty(row.get(key)):
      continue
    if not _repeats(key, row[key], messages):
      others = ', '.join(map(repr, sorted(used & set(row))))
      raise ValueError(
          f'{key!r} must repeat the messages, as it is not used next to {others}, got '
          f'{columns.shown(row[key])}: make it part of the messages, or remove it from the file'
      )
    repeated.add(key)
  texts = {message['content'].strip() for message in messages}
  columns.check(row, used | repeated, texts=texts)


def _repeats(key: str, value: Any, messages: list[Message]) -> bool:
  """True if a column only repeats the messages."""
  if isinstance(value, (list, dict)):
    try:
      others = chat_messages.read(
          value, key, role='user', supported=chat_messages.Supported(reasoning=True, marks=True))
    except ValueError:
      return False

    starts = [messages, messages[1:] if messages[0]['role'] == 'system' else messages]
    if key in _REPLIES:
      starts.append(messages[-1:])
    return any(others == start[: len(others)] for start in starts)
  if not isinstance(value, str):
    return False

  role = 'assistant' if key in _REPLIES else 'user'
  texts = [message['content'].strip() for message in messages if message['role'] == role]
  if key == 'text':  # The whole conversation as formatted text, as in Alpaca.
    lines = [line for message in messages for line in message['content'].split('\n')]
    return all(line.strip() in value for line in lines)
  if key in columns.EXTRA or key == 'answer':  # The result at the end of a worked solution.
    return any(value.strip() in text for text in texts)

  return value.strip() in texts
