"""Report of Q#: the table, accuracy against η and against the KL divergence, results.json."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from jaxrl_llm.runs import figures, launch
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.tasks import noisy_sum, star_graph
from jaxrl_llm.training import metrics

_NAMES = {'q_sharp': 'Q#', 'cd': 'controlled decoding', 'fudge': 'FUDGE'}


def success_rate(config: Any) -> float | None:
  """Returns p₀ = P(a response of the reference is right), the same for all problems, if known."""
  task = config.task
  if isinstance(task, noisy_sum.Config) and not config.policy_init_from:
    return noisy_sum.success_rate(task.num_sums, task.error_rate)
  if isinstance(task, star_graph.Config):
    return 1 / task.degree
  return None


def optimal(success: float, inv_eta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Accuracy and KL divergence (nats) of the optimal policy for rewards of 0 or 1.

    q = σ(logit p₀ + 1/η),    KL = q ln(q / p₀) + (1 − q) ln((1 − q) / (1 − p₀))

  Args:
    success: p₀ in (0, 1), of every problem.
    inv_eta: 1/η [...].

  Returns:
    (accuracy [...], KL [...]).
  """
  accuracy = special.expit(special.logit(success) + inv_eta)
  return accuracy, (
      special.rel_entr(accuracy, success) + special.rel_entr(1 - accuracy, 1 - success))


def write(
    setup: setup_lib.Setup, arms: Mapping[str, Mapping[str, float]],
    calibration: Mapping[str, float], *, tokens: int,
) -> None:
  """Writes table.md, the figure with its CSV, and results.json.

  Args:
    setup: the run's setup.
    arms: numbers by arm; those of guided policies are named RULE/eta_ETA.
    calibration: numbers of the value model on held-out problems.
    tokens: number of tokens sampled for training.
  """
  run, config = setup.run, setup.config
  numbers = {f'eval/{arm}/{name}': value for arm, values in arms.items()
             for name, value in values.items()}
  for rule in config.rules.split(','):
    headline = arms[f'{rule}/eta_{config.guidance.eta:g}']
    numbers |= {f'eval/{rule}/{name}': value for name, value in headline.items()}
  numbers |= {f'value/{name}': value for name, value in calibration.items()}

  known = success_rate(config)
  if known is not None:
    for eta in config.swept():
      accuracy, divergence = optimal(known, 1 / eta)
      numbers |= {f'expected/eta_{eta:g}/accuracy': float(accuracy),
                  f'expected/eta_{eta:g}/kl': float(divergence)}

  table = _table(config, arms, known)
  caption = (
      f'{setup.describe()}; seed {run.seed}; {config.evaluation.num_samples} samples per problem; '
      f'{config.samples_per_prompt} responses per problem and round, {config.rounds} rounds.')
  metrics.write_text_atomic(run.table_path, f'{table}\n\n{caption}\n')
  _figure(run, arms, known)
  launch.write_results(run, {**numbers, 'sampled_tokens': tokens})
  print(f'\n{table}\n\n{caption}\n\nwritten to {run.workdir}: results.json, table.md, '
        f'metrics.jsonl, value_{config.rounds}/, figures/', flush=True)


def _table(
    config: Any, arms: Mapping[str, Mapping[str, float]], known: float | None
) -> str:
  votes = f'maj@{config.evaluation.num_samples}'

  def row(name: str, arm: str, expected: str = '') -> list[str]:
    values = arms[arm]
    vote = figures.percent(values, votes) if votes in values else '-'
    kl = figures.decimal(values, 'kl', 3) if 'kl' in values else '-'
    paper = figures.decimal(values, 'kl_of_paper', 3) if 'kl' in values else '-'
    cells = [name, figures.percent(values, 'accuracy'), vote, kl, paper]
    return cells if known is None else [*cells, expected]

  rows = [
      row('reference', 'reference', '' if known is None else f'{100 * known:.1f} / 0'),
      row(f'reference at temperature {config.evaluation.control_temperature:g}', 'control', '-')]
  rows += [row(name, name, '-') for name in filter(None, config.baselines.names.split(','))]
  for rule in config.rules.split(','):
    for eta in config.swept():
      expected = '-'
      if known is not None and rule == 'q_sharp':
        accuracy, divergence = optimal(known, 1 / eta)
        expected = f'{100 * accuracy:.1f} / {divergence:.3f}'
      rows.append(row(f'{_NAMES[rule]}, η = {eta:g}', f'{rule}/eta_{eta:g}', expected))

  header = ['policy', 'accuracy (%)', f'{votes} (%)', 'KL to reference (nats)',
            'KL, reference untruncated']
  return figures.markdown_table(
      header if known is None else [*header, 'exact values: accuracy / KL'], rows)


def _figure(run: launch.Run, arms: Mapping[str, Mapping[str, float]], known: float | None) -> None:
  """Plots accuracy against 1/η and against KL; writes a PNG and a CSV."""
  config = run.config
  path = run.workdir / 'figures' / 'accuracy.png'
  columns: dict[str, Sequence[Any]] = {
      name: [] for name in ('rule', 'eta', 'accuracy', 'accuracy_se', 'kl', 'kl_se')}
  title = f'{run.setting}, seed {run.seed}'
  with figures.figure(path, 2, title=title, size=(9.6, 4.0), share_y=True) as (left, right):
    left.set(xlabel='1/η', ylabel='accuracy', xscale='log')
    right.set(xlabel='KL to the reference (nats per response)')
    for rule, marker in zip(config.rules.split(','), 'os^'):
      values = [arms[f'{rule}/eta_{eta:g}'] for eta in config.swept()]
      accuracy, error, kl, kl_error = (
          [each[name] for each in values] for name in ('accuracy', 'accuracy_se', 'kl', 'kl_se'))
      inverse = [1 / eta for eta in config.swept()]
      left.errorbar(inverse, accuracy, error, marker=marker, ms=5, label=_NAMES[rule])
      right.errorbar(kl, accuracy, error, kl_error, marker=marker, ms=5, label=_NAMES[rule])
      for column, content in zip(columns.values(), (
          [rule] * len(values), config.swept(), accuracy, error, kl, kl_error)):
        column.extend(content)

    reference = arms['reference']['accuracy']
    left.axhline(reference, color='0.6', ls=':', label='reference')
    right.plot([0], [reference], 'k*', ms=9, label='reference')
    if known is not None and len(config.swept()) > 1:
      inverse = np.geomspace(min(1 / eta for eta in config.swept()), 1 / config.swept()[-1], 100)
      accuracy, divergence = optimal(known, inverse)
      left.plot(inverse, accuracy, color='0.3', ls='--', label='exact values')
      right.plot(divergence, accuracy, color='0.3', ls='--', label='best possible')
    right.legend(frameon=False, loc='lower right')
    left.legend(frameon=False, loc='upper left')
  metrics.write_csv_atomic(path.with_suffix('.csv'), list(columns), zip(*columns.values()))
