"""Records that are sampled batch by batch into a file, so that a killed process goes on there."""

from collections.abc import Mapping
from typing import Any

from jaxrl_llm.runs.command_line import UsageError
from jaxrl_llm.training import metrics


def read_records(
    file: metrics.JsonlFile, provenance: Mapping[str, Any], *, batch: int, total: int
) -> list[dict[str, Any]]:
  """What an earlier process wrote; the file is cut back to it, or begun.

  Args:
    file: its first line is `provenance`, each further one a record.
    provenance: what the records depend on, in JSON's own types (`metrics.plain`).
    batch: records of a whole batch; what a kill left of one is sampled again.
    total: records of the complete file, whose last batch may be smaller.

  Returns:
    The records of whole batches.

  Raises:
    UsageError: the file holds records of something else; the line says what differs.
  """
  lines = metrics.read_jsonl(file.path)
  if lines and lines[0] != provenance:
    differing = '; '.join(
        f'{name}: {lines[0].get(name)!r} there, {value!r} now'
        for name, value in provenance.items() if lines[0].get(name) != value
    )
    raise UsageError(f'{file.path} holds samples of something else ({differing}): remove it')
  records = lines[1:]
  if len(records) < total:
    records = records[: len(records) - len(records) % batch]
  whole = file.path.read_bytes().splitlines(keepends=True)[: len(records) + bool(lines)]
  file.truncate(sum(map(len, whole)))
  if not lines:
    file.write(provenance)
  return records
