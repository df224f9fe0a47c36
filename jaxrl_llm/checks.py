"""Checks that config dataclasses declare, one line each; every error states rule, value and field.

  def validate(self, prefix: str) -> None:
    checks.at_least(self, prefix, steps=0, batch_size=1)
    checks.positive(self, prefix, 'eta', 'temperature')
    checks.one_of(self, prefix, pairs=PAIRS)

`prefix` is where the dataclass is in the config ('config.sft'), or '' for a part that is checked
inside `within`, which adds the path to the message.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any


def at_least(holder: Any, prefix: str, /, **minimum: float) -> None:
  """Raises ValueError for the first named field below its minimum."""
  for name, least in minimum.items():
    value = getattr(holder, name)
    if not value >= least:
      raise ValueError(f'{_field(prefix, name)} must be at least {least}, got {value}')


def positive(holder: Any, prefix: str, *names: str) -> None:
  """Raises ValueError for the first named field that is not positive and finite."""
  for name in names:
    value = getattr(holder, name)
    if not 0 < value < math.inf:
      raise ValueError(f'{_field(prefix, name)} must be positive and finite, got {value}')


def non_negative(holder: Any, prefix: str, *names: str) -> None:
  """Raises ValueError for the first named field that is negative or not finite."""
  for name in names:
    value = getattr(holder, name)
    if not 0 <= value < math.inf:
      raise ValueError(f'{_field(prefix, name)} must be non-negative and finite, got {value}')


def at_most(holder: Any, prefix: str, /, **maximum: float) -> None:
  """Raises ValueError for the first named field above its maximum."""
  for name, most in maximum.items():
    value = getattr(holder, name)
    if not value <= most:
      raise ValueError(f'{_field(prefix, name)} must be at most {most}, got {value}')


def finite(holder: Any, prefix: str, *names: str) -> None:
  """Raises ValueError for the first named field that is not finite."""
  for name in names:
    value = getattr(holder, name)
    if not math.isfinite(value):
      raise ValueError(f'{_field(prefix, name)} must be finite, got {value}')


def fraction(holder: Any, prefix: str, *names: str) -> None:
  """Raises ValueError for the first named field outside [0, 1]."""
  for name in names:
    value = getattr(holder, name)
    if not 0 <= value <= 1:
      raise ValueError(f'{_field(prefix, name)} must be in [0, 1], got {value}')


def interval(holder: Any, prefix: str, bounds: str, *names: str) -> None:
  """Raises ValueError for the first named field outside an interval.

  Args:
    holder: the dataclass.
    prefix: where it is in the config.
    bounds: the interval as it is written, such as '[0, 1)' or '(0, inf]'.
    *names: the fields.
  """
  low, high = (float(bound) for bound in bounds[1:-1].split(','))
  for name in names:
    value = getattr(holder, name)
    above = value >= low if bounds[0] == '[' else value > low
    below = value <= high if bounds[-1] == ']' else value < high
    if not (above and below):
      raise ValueError(f'{_field(prefix, name)} must be in {bounds}, got {value}')


def fixed(holder: Any, prefix: str, because: str, /, **values: Any) -> None:
  """Raises ValueError for the first named field that differs from the only value in use.

  Args:
    holder: the dataclass.
    prefix: where it is in the config.
    because: the condition under which the field has no effect, such as "with template 'same'".
    **values: the only allowed value by field.
  """
  for name, only in values.items():
    value = getattr(holder, name)
    if value != only:
      raise ValueError(f'{_field(prefix, name)} must be {only!r} {because}, got {value!r}')


def one_of(holder: Any, prefix: str, /, **allowed: Sequence[str]) -> None:
  """Raises ValueError for the first named field that is none of its allowed values."""
  for name, values in allowed.items():
    value = getattr(holder, name)
    if value not in values:
      raise ValueError(
          f'{_field(prefix, name)} must be one of {", ".join(values)}, got {value!r}')


def names_of(holder: Any, prefix: str, /, **allowed: Sequence[str]) -> None:
  """Raises ValueError for the first named field that does not list allowed names, each once.

  The names are separated by commas, without spaces.
  """
  for name, values in allowed.items():
    listed = getattr(holder, name).split(',')
    if not set(listed) <= set(values) or len(set(listed)) < len(listed):
      raise ValueError(
          f'{_field(prefix, name)} must be some of {", ".join(values)}, each once, got '
          f'{getattr(holder, name)!r}')


def increasing(holder: Any, prefix: str, *names: str) -> None:
  """Raises ValueError for the first named tuple that is empty, or not positive and increasing."""
  for name in names:
    values = getattr(holder, name)
    if not values or min(values) <= 0 or list(values) != sorted(set(values)):
      raise ValueError(f'{_field(prefix, name)} must be positive and increasing, got {values}')


def required(holder: Any, prefix: str, *names: str) -> None:
  """Raises ValueError for the first named field that is empty."""
  for name in names:
    value = getattr(holder, name)
    if not value:
      raise ValueError(f'{_field(prefix, name)} must be set, got {value!r}')


def model_directory(holder: Any, prefix: str, *names: str) -> None:
  """Raises ValueError for the first named field that is a path, but not one of a directory."""
  for name in names:
    value = getattr(holder, name)
    if value and not os.path.isdir(value):
      hint = model_directory_hint(value)
      raise ValueError(f'{_field(prefix, name)}: not a directory: {value!r}{hint}')


def model_directory_hint(path: str | os.PathLike) -> str:
  """Returns what to do about a path that should be the directory of a model, or ''.

  It recognises GGUF files, names on the Hugging Face hub, and folders of the hub's cache.
  """
  path = os.fspath(path)
  convert = 'python -m experiments.convert --from={} --to=DIR'
  if os.path.isfile(path) and path.lower().endswith('.gguf'):
    return f'; convert a GGUF file first: {convert.format(path)}'
  if os.path.isdir(path):
    if snapshot := _hub_snapshot(path):
      return f"; it is a folder of the hub's cache: give {snapshot}"
    files = sorted(name for name in os.listdir(path) if name.lower().endswith('.gguf'))
    if not files:
      return ''
    return f'; convert its GGUF file: {convert.format(os.path.join(path, files[0]))}'

  if not re.fullmatch(r'\w[\w.-]*/[\w.-]+', path) or os.path.exists(path.split('/')[0]):
    return ''
  cache = os.environ.get('HF_HUB_CACHE') or os.path.join(
      os.environ.get('HF_HOME') or os.path.expanduser('~/.cache/huggingface'), 'hub')
  if snapshot := _hub_snapshot(os.path.join(cache, f'models--{path.replace("/", "--")}')):
    return f"; the hub's cache has it: give {snapshot}"
  return f'; download a model of the Hugging Face hub first: hf download {path} --local-dir DIR'


def _hub_snapshot(path: str) -> str:
  """Returns the newest snapshot in a folder of the hub's cache (models--ORG--NAME), or ''."""
  folder = path if os.path.basename(path.rstrip('/')) == 'snapshots' else os.path.join(
      path, 'snapshots')
  if not os.path.isdir(folder):
    return ''
  snapshots = [os.path.join(folder, name) for name in os.listdir(folder)]
  return max(filter(os.path.isdir, snapshots), key=os.path.getmtime, default='')


def divisible(holder: Any, prefix: str, name: str, parts: int, of: str) -> None:
  """Raises ValueError unless the named field is divisible by `parts`, which `of` describes."""
  value = getattr(holder, name)
  if value % parts:
    raise ValueError(f'{_field(prefix, name)} must be divisible by {of} ({parts}), got {value}')


@contextlib.contextmanager
def within(prefix: str) -> Iterator[None]:
  """Adds the path of a part to the errors of that part's own `validate`."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f'{error} ({prefix})') from error


def _field(prefix: str, name: str) -> str:
  return f'{prefix}.{name}' if prefix else name
