"""Digests of the logs of a complete run or stage, so that a change after its end is noticed.

A run that is not complete checks its logs against its checkpoint (`training.metrics.JsonlFile`).
"""

import hashlib
import pathlib

from jaxrl_llm.tables.digests import with_digest
from jaxrl_llm.training import metrics

NAME = 'logs.json'


def write(workdir: pathlib.Path) -> None:
  """Writes WORKDIR/logs.json atomically: the SHA-256 of each *.jsonl below, by relative path."""
  metrics.write_json_atomic(workdir / NAME, with_digest(digests(workdir)))


def check(workdir: pathlib.Path) -> None:
  """Raises a one-line ValueError if a log was changed since `write`; runs before it have no file.

  Args:
    workdir: directory of a complete run.
  """
  path = workdir / NAME
  if not path.exists():
    return
  expected = metrics.read_json(path)
  if not isinstance(expected, dict) or with_digest(expected) != expected:
    raise ValueError(
        f'{path} was changed since the run ended: restore it, or give another --workdir')

  compare(workdir, {name: value for name, value in expected.items() if name != 'sha256'}, path)


def digests(folder: pathlib.Path) -> dict[str, str]:
  """Returns the SHA-256 of each *.jsonl below a directory, by relative path."""
  found = {}
  for path in sorted(folder.rglob('*.jsonl')):
    with open(path, 'rb') as file:
      found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, 'sha256').hexdigest()
  return found


def compare(folder: pathlib.Path, expected: dict[str, str], source: pathlib.Path) -> None:
  """Raises a one-line ValueError if a log is missing or was changed.

  Args:
    folder: directory of the logs.
    expected: `digests` of that directory at the end of the run or stage.
    source: the file that has them.
  """
  actual = digests(folder)
  for name in sorted(expected):
    if actual.get(name) != expected[name]:
      raise ValueError(
          f'{folder / name} does not have the digest in {source}: it was changed after it was '
          'complete; restore it, or give another --workdir')
