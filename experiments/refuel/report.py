"""Report of a REFUEL run: REBEL's report, and scores and win rates by turn."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrl_llm.runs import figures, policy_report
from jaxrl_llm.runs import setup as setup_lib


def write(setup: setup_lib.Setup, trained: Mapping[str, Any]) -> None:
  """Writes table.md, the figures with their CSV, and results.json.

  Args:
    setup: the run's setup.
    trained: {'tokens': number sampled, 'numbers': as from `evaluation.Evaluation`}.
  """
  run, numbers = setup.run, trained['numbers']
  turns = [
      turn for turn in range(1, setup.task.num_turns + 1)
      if f'eval/trained/turn_{turn}/win_rate' in numbers
  ]
  _figure(run.workdir / 'figures' / 'turns.png', turns, numbers,
          title=f'{run.setting}, seed {run.seed}')

  def score(policy: str, turn: int) -> str:
    return figures.decimal(numbers, f'eval/{policy}/turn_{turn}/score', 3)

  table = figures.markdown_table(
      ['up to turn', 'dialogues', 'reference: reward model score', 'trained',
       'wins over the reference (%)'],
      [[turn, numbers[f'eval/dialogues/turn_{turn}'], score('reference', turn),
        score('trained', turn), figures.percent(numbers, f'eval/trained/turn_{turn}/win_rate')]
       for turn in turns])

  left_out = {f'left_out/{name}': count for name, count in setup.task.dropped.items()}
  policy_report.write(setup, {**trained, 'numbers': numbers | left_out}, more=table)


def _figure(
    path: pathlib.Path, turns: list[int], numbers: Mapping[str, float], *, title: str
) -> None:
  """Plots scores of dialogues up to each turn; writes a CSV too."""
  def column(policy: str, name: str) -> np.ndarray:
    return np.array([numbers[f'eval/{policy}/turn_{turn}/{name}'] for turn in turns])

  figures.many_curves(
      path,
      {policy: (np.array(turns), column(policy, 'score'), column(policy, 'score_se'))
       for policy in ('reference', 'trained')},
      title=title, x='turns', y='reward model score of the dialogue')
