"""Digests of what a complete run or stage keeps, so that a change after its end is noticed.

A run that is not complete checks its logs against its checkpoint (`training.metrics.JsonlFile`).
"""

import hashlib
import pathlib

from jaxrl_llm.tables.digests import with_digest
from jaxrl_llm.training import files, metrics

NAME = 'manifest.json'


def write(workdir: pathlib.Path, results: str) -> None:
  """Writes WORKDIR/manifest.json atomically: the SHA-256 of each file of `digests`, by path.

  Args:
    workdir: directory of a run that is complete but for its results.json.
    results: the digest of that results.json, which says whose files they are.
  """
  metrics.write_json_atomic(
      workdir / NAME, with_digest({'results': results, 'files': digests(workdir)}))


def check(workdir: pathlib.Path, results: str) -> None:
  """Raises a one-line ValueError if a file was changed since `write`.

  Args:
    workdir: directory of a complete run.
    results: the digest of its results.json.
  """
  path = workdir / NAME
  how_to_go_on = (
      f'restore it, give another --workdir, or delete {workdir / "results.json"} and run the '
      'command again')
  if not path.exists():
    raise ValueError(
        f'{path} is missing: the run is of an earlier version, or it was deleted: {how_to_go_on}')
  stored = metrics.read_json(path)
  if not isinstance(stored, dict) or with_digest(stored) != stored:
    raise ValueError(f'{path} was changed since the run ended: {how_to_go_on}')
  if stored.get('results') != results:
    raise ValueError(f'{path} is of another run: {how_to_go_on}')
  compare(workdir, stored['files'], path)


def digests(folder: pathlib.Path) -> dict[str, str]:
  """Returns the SHA-256 of each file that a run or stage keeps, by relative path.

  These are logs (*.jsonl), the table, and of saved parameters the file of their checksums.
  """
  paths = [*folder.rglob('*.jsonl'), *folder.glob('table.md'), *(
      path for path in folder.rglob(files.CHECKSUMS)
      if path.relative_to(folder).parts[0] != 'checkpoints')]
  sha256 = {}
  for path in sorted(paths):
    with open(path, 'rb') as file:
      sha256[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, 'sha256').hexdigest()
  return sha256


def compare(folder: pathlib.Path, expected: dict[str, str], source: pathlib.Path) -> None:
  """Raises a one-line ValueError if a file is missing or was changed.

  Args:
    folder: directory of the files.
    expected: `digests` of that directory at the end of the run or stage.
    source: the file that has them.
  """
  actual = digests(folder)
  for name in sorted(expected):
    if actual.get(name) != expected[name]:
      raise ValueError(
          f'{folder / name} does not have the digest in {source}: it was changed after it was '
          'complete; restore it, or give another --workdir')
