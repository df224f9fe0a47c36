"""JSON lines files: read with errors that name file and line, written atomically."""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any


def read_jsonl(
    path: str | pathlib.Path, *, required: dict[str, type | tuple[type, ...]] | None = None
) -> list[dict[str, Any]]:
  """Reads a file with one JSON object a line.

  Args:
    path: the file; blank lines are allowed at its end only.
    required: for each key that every object must have, the type of its value.

  Returns:
    The objects, in order.

  Raises:
    ValueError: the file is missing, empty or not UTF-8, or a line is no complete
      object with the required keys; one line that names the file and the line.
  """
  path = pathlib.Path(path)
  try:
    text = path.read_bytes().decode()
  except OSError as error:
    raise ValueError(f'cannot read {path}: {error.strerror}') from None
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is not UTF-8 at byte {error.start}: damaged or truncated') from None
  lines = text.rstrip().split('\n')  # Not splitlines: U+2028 may stand inside a string.
  if lines == ['']:
    raise ValueError(f'{path} is empty')
  return [
      _parse(line, f'{path}, line {number}', required or {})
      for number, line in enumerate(lines, 1)
  ]


def _parse(
    line: str, place: str, required: dict[str, type | tuple[type, ...]]
) -> dict[str, Any]:
  """The object in `line`; `place` names it in errors."""
  try:
    value = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f'{place}: not a complete JSON object ({error.msg})') from None
  except RecursionError:
    raise ValueError(f'{place}: nested too deeply') from None
  except ValueError as error:  # Such as an integer of thousands of digits.
    raise ValueError(f'{place}: {error}') from None
  if not isinstance(value, dict):
    raise ValueError(f'{place}: expected a JSON object, got {type(value).__name__}')
  for key, kind in required.items():
    if key not in value:
      raise ValueError(f'{place}: the key {key!r} is missing')
    if not isinstance(value[key], kind):
      got = type(value[key]).__name__
      names = [each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,))]
      raise ValueError(f'{place}: {key!r} must be {" or ".join(names)}, got {got}')
  return value


def write_jsonl(path: str | pathlib.Path, rows: Iterable[dict[str, Any]]) -> None:
  """Writes one object a line to a temporary name, then renames."""
  path = pathlib.Path(path)
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  try:
    with temporary.open('w', encoding='utf-8') as file:
      for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + '\n')
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
