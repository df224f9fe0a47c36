"""Conversations and preferences from the files that people have, JSON or JSON lines.

A row is read in whichever of these forms it has; other keys are ignored:

  {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
  {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}
  {"instruction": ..., "input": ..., "output": ..., "history": [[user, assistant], ...]}
  {"prompt": ..., "response": ...}     (or "question"; or "completion", "answer")

and a preference with "chosen" and "rejected" beside any of them instead of the reply, or
as two lists of messages that differ in the last. A "system" text may stand in every row.
Where a text is expected, a message or a list of messages may stand too. What would
change the meaning if it were ignored (tools, weights of messages) is an error.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from jaxrl_llm.data import jsonl

Message = dict[str, str]  # {'role': 'system', 'user' or 'assistant', 'content': text}
Outcome = TypeVar('Outcome')

ROLES = {
    'system': 'system', 'user': 'user', 'human': 'user', 'assistant': 'assistant',
    'gpt': 'assistant',
}
_CONTEXTS = ('messages', 'conversations', 'instruction', 'prompt', 'question')
# Beside 'chosen', 'messages' is commonly the chosen conversation once more.
_PREFERENCE_CONTEXTS = ('conversations', 'instruction', 'prompt', 'question', 'messages')
_REPLIES = ('output', 'response', 'completion', 'answer')


class Preference(NamedTuple):
  """Two replies to one conversation.

  Attributes:
    id: the row's number in the file, from 0.
    messages: the conversation up to a message of the user.
    chosen: the assistant's better reply.
    rejected: the other.
  """

  id: int
  messages: list[Message]
  chosen: str
  rejected: str


def read_conversations(path: str | pathlib.Path) -> list[dict[str, Any]]:
  """Reads conversations that end with the assistant; of preferences, the chosen ones.

  Args:
    path: a file with a JSON array of objects, or one object a line.

  Returns:
    {'id': the row's number from 0, 'messages': [{'role', 'content'}, ...]} for each
    row: at most one message of the system, then user and assistant in turn, the
    assistant last.

  Raises:
    ValueError: the file is missing or damaged, or a row has none of the forms or is
      malformed; one line with file, line, field and what is allowed.
  """
  return [{'id': index, 'messages': messages} for index, messages in _read(path, _conversation)]


def read_preferences(path: str | pathlib.Path) -> list[Preference]:
  """Reads rows with a chosen and a rejected reply.

  Args:
    path: a file with a JSON array of objects, or one object a line.

  Returns:
    The preferences.

  Raises:
    ValueError: as of `read_conversations`.
  """
  return [Preference(index, *parts) for index, parts in _read(path, _preference)]


def _read(
    path: str | pathlib.Path, parse: Callable[[dict[str, Any]], Outcome]
) -> list[tuple[int, Outcome]]:
  """Each row of a file, numbered and parsed; errors name the file and the line."""
  outcomes = []
  for index, row in enumerate(jsonl.read_rows(path)):
    try:
      outcomes.append((index, parse(row.value)))
    except ValueError as error:
      raise ValueError(f'{path}, line {row.line}: {error}') from None
  return outcomes


def _conversation(row: dict[str, Any]) -> list[Message]:
  if 'chosen' in row or 'rejected' in row:
    messages, chosen, _ = _preference(row)
    return [*messages, {'role': 'assistant', 'content': chosen}]
  key, messages = _context(row, _CONTEXTS)
  if key is None:
    raise ValueError(
        "a row must have 'messages', 'conversations', 'instruction' and 'output', or 'prompt' "
        "or 'question' with 'response', 'completion' or 'answer', got the keys "
        f'{", ".join(row) or "(none)"}'
    )
  if key not in ('messages', 'conversations') or messages[-1]['role'] != 'assistant':
    messages = messages + _reply(row, key)
  _check_turns(messages, last='assistant')
  return messages


def _preference(row: dict[str, Any]) -> tuple[list[Message], str, str]:
  """(conversation, chosen reply, rejected reply)."""
  replies = {}
  for field in ('chosen', 'rejected'):
    if field not in row:
      raise ValueError(f"a preference needs 'chosen' and 'rejected', {field!r} is missing")
    replies[field] = _messages(row[field], field, role='assistant')
  key, context = _context(row, _PREFERENCE_CONTEXTS)
  if key is None:
    context = replies['chosen'][:-1]
    if not context or replies['rejected'][:-1] != context:
      raise ValueError(
          "without a 'prompt', 'chosen' and 'rejected' must be conversations that differ in their "
          'last message only'
      )
  _check_turns(context, last='user')
  for field, reply in replies.items():
    if reply[: len(context)] == context:  # The reply repeats the conversation.
      reply = replies[field] = reply[len(context) :]
    if [message['role'] for message in reply] != ['assistant']:
      roles = ', '.join(message['role'] for message in reply) or 'none'
      raise ValueError(
          f"{field!r} must be one message of the assistant to the conversation, got {roles}"
      )
  return context, replies['chosen'][0]['content'], replies['rejected'][0]['content']


def _context(
    row: dict[str, Any], keys: tuple[str, ...]
) -> tuple[str | None, list[Message]]:
  """(the first of `keys` in the row, the messages there) with system text and history."""
  if row.get('tools'):
    raise ValueError("'tools' are not supported")
  key = next((key for key in keys if key in row), None)
  if key is None:
    return None, []
  if key == 'instruction':
    messages = _history(row) + [{'role': 'user', 'content': _instruction(row)}]
  else:
    messages = _messages(row[key], key, role='user')
  system = row.get('system')
  if system is not None and not isinstance(system, str):
    raise ValueError(f"'system' must be a text, got {type(system).__name__}")
  if system and system.strip():
    messages = [{'role': 'system', 'content': system}, *messages]
  return key, messages


def _instruction(row: dict[str, Any]) -> str:
  """The instruction, and its input on a line of its own."""
  instruction = _text(row['instruction'], 'instruction')
  extra = row.get('input')
  if extra is not None and not isinstance(extra, str):
    raise ValueError(f"'input' must be a text, got {type(extra).__name__}")
  return f'{instruction}\n{extra}' if extra and extra.strip() else instruction


def _history(row: dict[str, Any]) -> list[Message]:
  """The turns before an instruction: pairs of what the user and the assistant said."""
  messages = []
  history = row.get('history') or []
  if not isinstance(history, list):
    raise ValueError(f"'history' must be a list of pairs, got {type(history).__name__}")
  for index, pair in enumerate(history):
    field = f'history[{index}]'
    if not isinstance(pair, list) or len(pair) != 2:
      raise ValueError(f'{field!r} must be a pair of what user and assistant said')
    for role, text in zip(('user', 'assistant'), pair):
      messages.append({'role': role, 'content': _text(text, field)})
  return messages


def _reply(row: dict[str, Any], key: str) -> list[Message]:
  """The assistant's messages after a context that was found at `key`."""
  found = [reply for reply in _REPLIES if reply in row]
  if len(found) != 1:
    allowed = ', '.join(map(repr, _REPLIES))
    raise ValueError(
        f'{key!r} ends with no message of the assistant, so that the reply must stand in one of '
        f'{allowed}; the row has {", ".join(map(repr, found)) or "none of them"}'
    )
  return _messages(row[found[0]], found[0], role='assistant')


def _messages(value: Any, field: str, *, role: str) -> list[Message]:
  """Messages of a text (said by `role`), a message or a list of messages."""
  if isinstance(value, str):
    return [{'role': role, 'content': _text(value, field)}]
  if isinstance(value, dict):
    return [_message(value, field)]
  if not isinstance(value, list) or not value:
    got = 'an empty list' if value == [] else type(value).__name__
    raise ValueError(f'{field!r} must be a text or a list of messages, got {got}')
  return [_message(message, f'{field}[{index}]') for index, message in enumerate(value)]


def _message(value: Any, field: str) -> Message:
  """One message in either spelling."""
  if not isinstance(value, dict):
    raise ValueError(f'{field!r} must be a message, got {type(value).__name__}')
  spelling = ('from', 'value') if 'from' in value else ('role', 'content')
  for key in spelling:
    if key not in value:
      raise ValueError(f"{field!r} must have 'role' and 'content' (or 'from' and 'value')")
  for key in ('tool_calls', 'function_call'):
    if value.get(key):
      raise ValueError(f"{f'{field}.{key}'!r} is not supported")
  if value.get('weight') not in (None, 1):
    raise ValueError(f"{f'{field}.weight'!r} must be 1 (others are not supported)")
  name, content = (value[key] for key in spelling)
  if not isinstance(name, str) or name not in ROLES:
    raise ValueError(
        f'{f"{field}.{spelling[0]}"!r} must be one of {", ".join(ROLES)}, got {name!r}'
    )
  return {'role': ROLES[name], 'content': _text(content, f'{field}.{spelling[1]}')}


def _text(value: Any, field: str) -> str:
  """`value`, if it is a text that says something."""
  if not isinstance(value, str):
    raise ValueError(f'{field!r} must be a text, got {type(value).__name__}')
  if not value.strip():
    raise ValueError(f'{field!r} must not be empty')
  return value


def _check_turns(messages: list[Message], *, last: str) -> None:
  """Raises one line unless user and assistant take turns and `last` has the last word."""
  roles = [message['role'] for message in messages]
  turns = roles[1:] if roles[0] == 'system' else roles
  expected = ['user', 'assistant'] * (len(turns) // 2 + 1)
  if not turns or turns != expected[: len(turns)] or turns[-1] != last:
    shown = ', '.join(roles[:8]) + (', ...' if len(roles) > 8 else '')
    raise ValueError(
        'the messages must be of user and assistant in turn, at most one of the system before '
        f'them, and the last of the {last}; got {shown}'
    )
