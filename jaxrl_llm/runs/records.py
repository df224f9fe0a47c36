"""Records sampled batch by batch into a file, so that a killed process can resume."""

from collections.abc import Mapping
from typing import Any

from jaxrl_llm.runs.command_line import UsageError
from jaxrl_llm.training import metrics


def read_records(
    file: metrics.JsonlFile, provenance: Mapping[str, Any], *, batch: int, total: int
) -> list[dict[str, Any]]:
  """Reads the records of an earlier process and truncates the file to them, or starts the file.

  Args:
    file: the file; its first line is `provenance`, each further line a record.
    provenance: everything the records depend on, in plain JSON types (`metrics.plain`).
    batch: records per batch; a batch left incomplete by a kill is sampled again.
    total: number of records in the complete file, whose last batch may be smaller.

  Returns:
    The records of complete batches.

  Raises:
    UsageError: if the file holds records of something else; the message names the differences.
  """
  lines = metrics.read_jsonl(file.path)
  if lines and lines[0] != provenance:
    theirs = lines[0] if isinstance(lines[0], dict) else {}
    differing = '; '.join(
        f'{name}: {theirs.get(name)!r} there, {value!r} now'
        for name, value in provenance.items() if theirs.get(name) != value)
    raise UsageError(f'{file.path} holds samples of something else ({differing}): remove it')

  records = lines[1:]
  if len(records) < total:
    records = records[: len(records) - len(records) % batch]

  whole = file.path.read_bytes().splitlines(keepends=True)[: len(records) + bool(lines)]
  file.truncate(sum(map(len, whole)))
  if not lines:
    file.write(provenance)
  return records
