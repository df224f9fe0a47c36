"""Reads files of JSON objects, with errors that name file and line, and writes them atomically."""

import contextlib
import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jaxrl_llm.training import files

Required = dict[str, type | tuple[type, ...]]  # Keys and the types of their values.

_SPACE = re.compile(r'[ \t\r\n]*')


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Builds an object; raises ValueError for a repeated key."""
  value = dict(pairs)
  if len(value) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f'duplicate key {twice!r}')
  return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


class Row(NamedTuple):
  """One object of a file.

  Attributes:
    line: number of its first line, from 1.
    value: the object.
  """

  line: int
  value: dict[str, Any]


def read_jsonl(
    path: str | pathlib.Path, *, required: Required | None = None
) -> list[dict[str, Any]]:
  """Reads a file with one JSON object per line.

  Args:
    path: the file; blank lines are allowed only at its end.
    required: {key that every object must have: type of its value}.

  Returns:
    The objects, in order.

  Raises:
    ValueError: the file is missing, empty or not UTF-8, a line is not a complete object with the
      required keys, or an object has a repeated key; one line that names the file and the line.
  """
  return [row.value for row in _lines(_text(path), path, required or {})]


def read_rows(
    path: str | pathlib.Path, *, required: Required | None = None
) -> list[Row]:
  """Reads a file with one JSON object per line, or with one JSON array of objects.

  Args:
    path: the file; it is an array if its first character is a bracket.
    required: {key that every object must have: type of its value}.

  Returns:
    The objects with their line numbers, in order; at least one.

  Raises:
    ValueError: see `read_jsonl`.
  """
  text = _text(path)
  if text.lstrip().startswith('['):
    return _array(text, path, required or {})
  return _lines(text, path, required or {})


def _text(path: str | pathlib.Path) -> str:
  """Reads the text of a file that must not be empty."""
  try:
    text = pathlib.Path(path).read_bytes().decode()
  except OSError as error:
    raise ValueError(f'cannot read {path}: {error.strerror}') from None
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is not UTF-8 at byte {error.start}: damaged or truncated') from None
  if not text.strip():
    raise ValueError(f'{path} is empty')
  return text


@contextlib.contextmanager
def _decoding(where: str, what: str) -> Iterator[None]:
  """Converts errors of the JSON decoder to a one-line ValueError that begins with `where`."""
  try:
    yield
  except json.JSONDecodeError as error:
    raise ValueError(f'{where}: not a complete {what} ({error.msg})') from None
  except RecursionError:
    raise ValueError(f'{where}: nested too deeply') from None
  except ValueError as error:  # Such as an integer of thousands of digits.
    raise ValueError(f'{where}: {error}') from None


def _lines(text: str, path: Any, required: Required) -> list[Row]:
  """Parses a text with one object per line."""
  rows = []
  # Not splitlines: a string may contain U+2028.
  for number, line in enumerate(text.rstrip().split('\n'), 1):
    where = f'{path}, line {number}'
    with _decoding(where, 'JSON object'):
      value = _DECODER.decode(line)
    rows.append(Row(number, _checked(value, where, required)))
  return rows


def _array(text: str, path: Any, required: Required) -> list[Row]:
  """Parses a text that is one array, object by object, to know the line of each."""
  rows: list[Row] = []
  line, counted = 1, 0  # The line of the character text[counted].
  separator = text.index('[')

  while True:
    start = _SPACE.match(text, separator + 1).end()
    line, counted = line + text.count('\n', counted, start), start
    where = f'{path}, line {line}'
    if not rows and text[start : start + 1] == ']':
      raise ValueError(f'{path} is empty')

    with _decoding(where, 'JSON array of objects'):
      value, end = _DECODER.raw_decode(text, start)
    rows.append(Row(line, _checked(value, where, required)))
    separator = _SPACE.match(text, end).end()
    if text[separator : separator + 1] != ',':
      break

  if text[separator:].rstrip() != ']':
    raise ValueError(f"{where}: expected ',' or the array's last ']' after this object")
  return rows


def _checked(value: Any, where: str, required: Required) -> dict[str, Any]:
  """Checks that `value` is an object with the required keys; `where` names it in errors."""
  if not isinstance(value, dict):
    raise ValueError(f'{where}: expected a JSON object, got {type(value).__name__}')
  for key, kind in required.items():
    if key not in value:
      raise ValueError(f'{where}: the key {key!r} is missing')
    if not isinstance(value[key], kind):
      got = type(value[key]).__name__
      names = [each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,))]
      raise ValueError(f'{where}: {key!r} must be {" or ".join(names)}, got {got}')
  return value


def write_jsonl(path: str | pathlib.Path, rows: Iterable[dict[str, Any]]) -> None:
  """Writes one object per line to a temporary file, then renames it."""
  with files.replacing(path) as temporary, temporary.open('w', encoding='utf-8') as file:
    for row in rows:
      file.write(json.dumps(row, ensure_ascii=False) + '\n')
