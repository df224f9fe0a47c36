"""Verdicts of the comparison by kind of answer: right ones rewarded, wrong ones not."""

import csv
import pathlib

import pytest

from jaxrl_llm.rewards import math_answer
from jaxrl_llm.rewards.math import equivalence


def _rows():
  path = pathlib.Path(__file__).with_name('answer_kinds.csv')
  with path.open(encoding='utf-8', newline='') as file:
    return list(csv.DictReader(file))


ROWS = _rows()
KINDS = list(dict.fromkeys(row['kind'] for row in ROWS))


def test_each_kind_has_both_verdicts():
  assert len({(row['answer'], row['truth']) for row in ROWS}) == len(ROWS) > 1000
  assert all({row['equal'] for row in ROWS if row['kind'] == kind} == {'0', '1'} for kind in KINDS)


@pytest.mark.parametrize('kind', KINDS)
def test_verdicts(kind):
  rows = [row for row in ROWS if row['kind'] == kind]
  verdicts = math_answer.grade_batch(
      [f"\\boxed{{{row['answer']}}}" for row in rows], [row['truth'] for row in rows])
  wrong = [row for row, verdict in zip(rows, verdicts) if verdict != (row['equal'] == '1')]
  assert not wrong, wrong


def _fast(candidate, answer):
  try:
    return equivalence.compare(candidate, answer)
  except equivalence.Undecided:
    return None


def test_verdicts_are_symmetric():
  # Of what no worker has to decide; the comparison of expressions is symmetric by construction.
  for row in ROWS:
    forth, back = _fast(row['answer'], row['truth']), _fast(row['truth'], row['answer'])
    assert None in (forth, back) or forth == back, row
