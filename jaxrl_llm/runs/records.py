"""Records sampled batch by batch into a file, so that a killed process can resume.

Each line is a JSON object that ends with a digest of itself and of everything before it: a record
that was changed, removed, repeated or moved since it was written is refused, not used.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from jaxrl_llm.runs import artefacts
from jaxrl_llm.runs.command_line import UsageError
from jaxrl_llm.training import metrics

_DIGEST = 'sha256'


class RecordFile:
  """A file of records; made by `open_records`.

  Attributes:
    records: all records so far, without their digests.
  """

  def __init__(self, file: metrics.JsonlFile, records: list[dict[str, Any]], digest: str):
    self._file, self.records, self._digest = file, records, digest

  def append(self, record: Mapping[str, Any]) -> None:
    """Writes a record and adds it to `records`, in the form in which it would be read back."""
    record = metrics.plain(record)
    self.records.append(record)
    self._write(record)

  def _write(self, record: dict[str, Any]) -> None:
    self._digest = _digest(self._digest, record)
    self._file.write({**record, _DIGEST: self._digest})


@contextlib.contextmanager
def open_records(
    path: pathlib.Path, provenance: Mapping[str, Any], *, batch: int, total: int
) -> Iterator[RecordFile]:
  """Opens a file of records; reads those of an earlier process and truncates the file to them.

  Args:
    path: the file; its first line is `provenance`, each further line a record.
    provenance: everything the records depend on; data that `metrics.plain` accepts.
    batch: records per batch; a batch left incomplete by a kill is sampled again.
    total: number of records in the complete file, whose last batch may be smaller.

  Yields:
    The file with the records of complete batches.

  Raises:
    UsageError: the file was damaged, is of an earlier version, or holds records of something else,
      in which case the message names the differences.
  """
  provenance = metrics.plain(provenance)
  lines, digest, size = _read(path, provenance, batch, total)
  if path.exists():
    os.truncate(path, size)

  with contextlib.closing(metrics.JsonlFile(path)) as jsonl:
    file = RecordFile(jsonl, lines[1:], digest)
    if not lines:
      file._write(provenance)
    yield file


def _read(
    path: pathlib.Path, provenance: dict[str, Any], batch: int, total: int
) -> tuple[list[dict[str, Any]], str, int]:
  """Returns the verified lines that remain, the digest of the last one, and their bytes."""
  content = path.read_bytes() if path.exists() else b''
  raw = content[: content.rfind(b'\n') + 1].splitlines(keepends=True)
  chain, lines = [''], []
  for number, text in enumerate(raw, 1):
    line = _parse(path, number, text)
    digest = line.pop(_DIGEST, None)
    if number == 1 and digest is None:
      raise UsageError(
          f'{path} was written by an earlier version, without digests: remove it, and the command '
          'makes it again')
    chain.append(_digest(chain[-1], line))
    if digest != chain[-1]:
      raise _changed(path, number)
    lines.append(line)

  if lines and lines[0] != provenance:
    differing = '; '.join(artefacts.differences(lines[0], provenance)[:3])
    raise UsageError(f'{path} holds samples of something else ({differing}): remove it')

  count = len(lines) - bool(lines)
  if count < total:
    lines = lines[: len(lines) - count % batch]
  return lines, chain[len(lines)], sum(map(len, raw[: len(lines)]))


def _parse(path: pathlib.Path, number: int, text: bytes) -> dict[str, Any]:
  try:
    line = json.loads(text)
  except (ValueError, RecursionError):
    line = None
  if not isinstance(line, dict):
    raise _changed(path, number)
  return line


def _changed(path: pathlib.Path, number: int) -> UsageError:
  return UsageError(
      f'{path}, line {number}, was changed since it was written: remove the file, and the command '
      'makes it again')


def _digest(previous: str, record: Mapping[str, Any]) -> str:
  text = previous + json.dumps(record)
  return hashlib.sha256(text.encode()).hexdigest()[:32]
