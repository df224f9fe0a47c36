"""The table of a campaign and its numbers for results.json."""

import collections
from collections.abc import Sequence
from typing import Any

from experiments.faults import cases
from experiments.faults.config import KINDS
from jaxrl_llm.runs import figures

_COLUMNS = (cases.EQUAL, cases.REPAIRED, cases.ONE_LINE, *cases.FAILURES)


def numbers(records: Sequence[dict[str, Any]]) -> dict[str, int]:
  """Counts the outcomes of each kind of case, and of all, under flat names."""
  counts = {}
  for kind in (*KINDS, 'all'):
    outcomes = [record['outcome'] for record in records if kind in ('all', record['kind'])]
    counts[f'cases/{kind}/tried'] = len(outcomes)
    for outcome in _COLUMNS:
      counts[f'cases/{kind}/{outcome.replace(", ", " ").replace(" ", "_")}'] = outcomes.count(
          outcome)
  return counts


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
