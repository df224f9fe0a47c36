"""Digests of a complete run's logs, so that a change after its end is noticed.

A run that is not complete checks its logs against its checkpoint (`training.metrics.JsonlFile`).
"""

import hashlib
import pathlib

from jaxrl_llm.tables.digests import with_digest
from jaxrl_llm.training import metrics

NAME = 'logs.json'


def write(workdir: pathlib.Path) -> None:
  """Writes WORKDIR/logs.json atomically: the SHA-256 of each *.jsonl below, by relative path."""
  metrics.write_json_atomic(workdir / NAME, with_digest(_digests(workdir)))


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

  actual = _digests(workdir)
  changed = [name for name in sorted(expected.keys() - {'sha256'})
             if actual.get(name) != expected[name]]
  if changed:
    raise ValueError(
        f'{workdir / changed[0]} does not have the digest in {path}: it was changed since the run '
        'ended; restore it, or give another --workdir')


def _digests(workdir: pathlib.Path) -> dict[str, str]:
  digests = {}
  for path in sorted(workdir.rglob('*.jsonl')):
    with open(path, 'rb') as file:
      digests[path.relative_to(workdir).as_posix()] = hashlib.file_digest(
          file, 'sha256').hexdigest()
  return digests
