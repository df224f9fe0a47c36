"""Reads messages of conversations, in the common spellings.

A message is {'role': 'system', 'user' or 'assistant', 'content': text}. An assistant message may
have two more keys:

  'reasoning_content'  its reasoning before the answer (also spelled 'reasoning', 'thinking');
  'train'              False if the message is context, which is not learned.

`train: false` and `weight: 0` mean the same; `train: true` and `weight: 1` are the defaults.
Messages of the user and the system are never learned: their weight may be 0 or 1, and `train`
only false. `data.columns` lists the other keys that are allowed.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxrl_llm.data import columns

Message = dict[str, Any]

ROLES = {
    'system': 'system', 'user': 'user', 'human': 'user', 'assistant': 'assistant',
    'gpt': 'assistant',
}
_SWITCHES = columns.TRAIN
_WEIGHTS = ('weight', 'loss_weight')


class Supported(NamedTuple):
  """Message fields that a reader supports in addition to role and text.

  Attributes:
    reasoning: the reader passes an assistant's reasoning to the template.
    marks: the reader excludes messages that are marked as context from the loss.
  """

  reasoning: bool = False
  marks: bool = False


def read(value: Any, field: str, *, role: str, supported: Supported) -> list[Message]:
  """Converts a text (of `role`), a message or a list of messages to messages.

  Args:
    value: value in the file.
    field: its column, for errors.
    role: role of a text.
    supported: other keys of a message that the caller supports; all others are rejected.

  Returns:
    At least one message.

  Raises:
    ValueError: one line with the field.
  """
  if isinstance(value, str):
    return [{'role': role, 'content': text(value, field)}]
  if isinstance(value, dict):
    return [read_one(value, field, supported=supported)]
  if not isinstance(value, list) or not value:
    got = 'an empty list' if value == [] else type(value).__name__
    raise ValueError(f'{field!r} must be a text or a list of messages, got {got}')
  return [
      read_one(message, f'{field}[{index}]', supported=supported)
      for index, message in enumerate(value)
  ]


def read_one(value: Any, field: str, *, supported: Supported) -> Message:
  """Reads one message in either spelling; see `read`."""
  if not isinstance(value, dict):
    raise ValueError(f'{field!r} must be a message, got {type(value).__name__}')
  spelling = spelling_of(value)
  for key in spelling:
    if key not in value:
      raise ValueError(f"{field!r} must have 'role' and 'content' (or 'from' and 'value')")

  name, content = (value[key] for key in spelling)
  if not isinstance(name, str) or name not in ROLES:
    raise ValueError(
        f'{f"{field}.{spelling[0]}"!r} must be one of {", ".join(ROLES)}, got '
        f'{columns.shown(name)}'
    )
  extra = read_extra(value, field, role=ROLES[name], supported=supported)
  return {'role': ROLES[name], 'content': text(content, f'{field}.{spelling[1]}'), **extra}


def plain(messages: list[Message]) -> list[Message]:
  """Returns the messages with role and text only."""
  return [{'role': message['role'], 'content': message['content']} for message in messages]


def spelling_of(value: Any) -> tuple[str, str]:
  """Returns the keys of a message's role and text."""
  is_shared = isinstance(value, dict) and 'from' in value
  return ('from', 'value') if is_shared else ('role', 'content')


def read_extra(
    value: Mapping[str, Any], field: str, *, role: str, supported: Supported
) -> dict[str, Any]:
  """Reads keys of a message other than its role and text; see `read`.

  Returns:
    'reasoning_content' and 'train' (False), if the message has them.

  Raises:
    ValueError: a key is rejected; one line that names it.
  """
  spelling = spelling_of(value)
  if len(value) == len(spelling):  # There are no other keys.
    return {}

  known = (*columns.REASONING, *_SWITCHES, *_WEIGHTS)
  columns.check(value, (*spelling, *known), where=field)
  extra: dict[str, Any] = {}

  thoughts = reasoning(value, field)
  if thoughts:
    key = next(key for key in columns.REASONING if not columns.is_empty(value.get(key)))
    if role != 'assistant':
      raise ValueError(
          f'{f"{field}.{key}"!r} must be empty for the {role}: only the assistant has reasoning'
      )

    if not supported.reasoning:
      raise ValueError(
          f'{f"{field}.{key}"!r} is only supported in conversations for fine-tuning: remove it, or '
          f'make it part of {spelling[1]!r}'
      )
    extra['reasoning_content'] = thoughts

  mark = _unlearned(value, field, role)
  if mark and not supported.marks:
    raise ValueError(
        f'{f"{field}.{mark}"!r} must be true or 1, got {value[mark]!r}: this reader learns every '
        'message of the assistant'
    )

  if mark:
    extra['train'] = False
  return extra


def reasoning(row: Mapping[str, Any], where: str = '') -> str:
  """Returns the reasoning of a message, or of a row's reply; '' for none.

  Raises:
    ValueError: the reasoning is not a text, or two keys have different values.
  """
  fields = {
      f'{where}.{key}' if where else key: row[key]
      for key in columns.REASONING if not columns.is_empty(row.get(key))
  }
  texts = [text(value, field) for field, value in fields.items()]
  if len(set(texts)) > 1:
    raise ValueError(f'{" and ".join(map(repr, fields))} must be equal: they have the same meaning')
  return texts[0] if texts else ''


def _unlearned(value: Mapping[str, Any], field: str, role: str) -> str:
  """Returns the key that marks an assistant message as context; '' if the message is learned.

  Raises:
    ValueError: a mark has a value that the module docstring does not allow, or two disagree.
  """
  marks = {}
  for key in (*_SWITCHES, *_WEIGHTS):
    mark = value.get(key)
    if columns.is_empty(mark):
      continue
    if not isinstance(mark, (bool, int, float)) or mark not in (0, 1):
      allowed = 'true or false' if key in _SWITCHES else '0 or 1 (others are not supported)'
      raise ValueError(f'{f"{field}.{key}"!r} must be {allowed}, got {columns.shown(mark)}')

    if role != 'assistant' and key in _SWITCHES and mark:
      raise ValueError(
          f'{f"{field}.{key}"!r} must be false or absent: only messages of the assistant are '
          f'learned, got {mark!r} for the {role}'
      )
    marks[key] = bool(mark)

  if role != 'assistant':
    return ''
  if len(set(marks.values())) > 1:
    raise ValueError(f'{field!r} has marks that disagree: {", ".join(marks)}')

  return next((key for key, learned in marks.items() if not learned), '')


def text(value: Any, field: str) -> str:
  """Returns `value`; raises ValueError if it is not a text, is blank, or is not Unicode."""
  if not isinstance(value, str):
    raise ValueError(f'{field!r} must be a text, got {type(value).__name__}')
  if not value.strip():
    raise ValueError(f'{field!r} must not be empty')
  try:
    value.encode()
  except UnicodeEncodeError as error:
    half = value[error.start]
    raise ValueError(f'{field!r} must be Unicode, got half a surrogate pair, {half!r}') from None
  return value


def check_turns(messages: list[Message], *, last: str) -> None:
  """Raises a one-line ValueError unless user and assistant alternate and `last` is last."""
  roles = [message['role'] for message in messages]
  turns = roles[1:] if roles[0] == 'system' else roles
  expected = ['user', 'assistant'] * (len(turns) // 2 + 1)
  if not turns or turns != expected[: len(turns)] or turns[-1] != last:
    shown = ', '.join(roles[:8]) + (', ...' if len(roles) > 8 else '')
    raise ValueError(
        'messages must alternate between user and assistant, after at most one of the system, and '
        f'end with the {last}, got {shown}'
    )
