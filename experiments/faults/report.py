"""The table of a campaign and its numbers for results.json."""

import collections
from collections.abc import Sequence
from typing import Any

from experiments.faults import cases
from experiments.faults.config import KINDS
from jaxrl_llm.runs import figures

_COLUMNS = (cases.EQUAL, cases.REPAIRED, cases.ONE_LINE, *cases.FAILURES)


def numbers(records: Sequence[dict[str, Any]]) -> dict[str, int]:
  """Counts outcomes, in total and by kind, under flat names."""
  counts: collections.Counter[str] = collections.Counter()
  for record in records:
    outcome = record['outcome'].replace(', ', '_').replace(' ', '_')
    for name in (f'cases/{outcome}', f'cases/{record["kind"]}/{outcome}'):
      counts[name] += 1
  tried = {f'cases/{kind}/tried': 0 for kind in KINDS}
  for record in records:
    tried[f'cases/{record["kind"]}/tried'] += 1

  failures = {
      f'cases/{outcome}': 0 for outcome in cases.FAILURES}  # Named even if there are none.
  return {'cases/tried': len(records), **tried, **failures, **counts}


def table(records: Sequence[dict[str, Any]]) -> str:
  """Returns two Markdown tables, by kind and by target, and the failed cases."""
  by_kind = [_row(kind, [r for r in records if r['kind'] == kind]) for kind in KINDS]
  names = sorted({record['target'] for record in records})
  by_target = [_row(name, [r for r in records if r['target'] == name]) for name in names]

  sections = [
      figures.markdown_table(['kind', 'tried', *_COLUMNS], [*by_kind, _row('all', records)]),
      figures.markdown_table(['program', 'tried', *_COLUMNS], by_target),
  ]
  failed = [record for record in records if record['outcome'] in cases.FAILURES]
  if failed:
    sections.append('\n'.join(
        f'- case {r["case"]}, {r["target"]}, {r["detail"]}: {r["outcome"]} ({r["line"]})'
        for r in failed))
  return '\n\n'.join(sections)


def _row(name: str, records: Sequence[dict[str, Any]]) -> list[Any]:
  counts = collections.Counter(record['outcome'] for record in records)
  return [name, len(records), *(counts[column] for column in _COLUMNS)]
