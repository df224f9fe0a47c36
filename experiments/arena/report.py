"""Reports the arena: a table, figures, and results.json for each seed and for all seeds."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.arena import criteria as arena_criteria
from jaxrl_llm.evaluation import statistics
from jaxrl_llm.runs import criteria, figures, launch
from jaxrl_llm.tables import render
from jaxrl_llm.training import metrics

Outcomes = Mapping[str, Mapping[int, dict]]

# Column -> (name in an outcome, digits after the decimal point, factor).
_COLUMNS = {
    'score': ('score', 3, 1), 'greedy': ('greedy_score', 3, 1),
    **{f'turn {turn}': (f'turn_{turn}', 3, 1) for turn in range(1, 5)},
    'asks (%)': ('ask_rate', 1, 100), 'win rate (%)': ('win_rate', 1, 100),
    'reward model': ('reward', 2, 1),
    'KL (nats)': ('kl_to_reference', 2, 1),
    'completions': ('completions', 0, 1), 'tokens': ('sampled_tokens', 0, 1),
    'reward calls': ('reward_calls', 0, 1), 's / iteration': ('time/iteration', 3, 1),
    's / step': ('time/train', 3, 1), 'state (MB)': ('state_bytes', 2, 1e-6),
    'peak (MB)': ('peak_bytes', 1, 1e-6),
}


def write(run: launch.Run, outcomes: Outcomes) -> None:
  """Writes table.md, figures and results.json, and prints the table."""
  seeds = sorted(next(iter(outcomes.values())))
  variant = '' if run.setting == 'default' else f'_{run.setting}'
  run = dataclasses.replace(run, setting=run.config.task + variant)

  for seed in seeds:
    config = dataclasses.replace(run.config, seed=seed, num_seeds=1)
    if len(seeds) > 1:
      seed_run = dataclasses.replace(
          run, config=config, workdir=run.workdir / f'seed{seed}',
          commit=_commit(outcomes, [seed]))
      seed_run.processors = run.processors
      launch.write_results(seed_run, _numbers(outcomes, [seed]))

  _figures(run, outcomes)
  table = figures.markdown_table(*_table(outcomes))

  caption = (
      f'{run.config.task}; {len(seeds)} seed(s) from {seeds[0]}, mean ± standard error over seeds; '
      f'{run.config.chosen_task.completions:,} completions per arm at most, '
      f'{run.config.chosen_task.batch_completions} per iteration'
      + (f'. {run.config.note}' if run.config.note else '') + '.'
  )
  findings = arena_criteria.findings(run.config.study, outcomes)
  text = '\n\n'.join(filter(None, [table, caption, criteria.markdown(findings)]))

  metrics.write_text_atomic(run.table_path, text + '\n')
  launch.write_results(
      dataclasses.replace(run, commit=_commit(outcomes, seeds)), _numbers(outcomes, seeds))
  print(f'\n{text}\n\nwritten to {run.workdir}: results.json, table.md, figures/, '
        'seed<N>/', flush=True)


def _commit(outcomes: Outcomes, seeds: Sequence[int]) -> str:
  """Returns the commit that ran the arms (perhaps not the current one); '-mixed' for several."""
  commits = dict.fromkeys(
      by_seed[seed]['commit'] for by_seed in outcomes.values() for seed in seeds)
  return next(iter(commits)) + ('-mixed' if len(commits) > 1 else '')


def _numbers(outcomes: Outcomes, seeds: Sequence[int]) -> dict[str, float | int]:
  """Flat results of some seeds: one seed's numbers, or means and standard errors of several."""
  numbers: dict[str, float | int] = {'num_seeds': len(seeds)}
  for name, by_seed in outcomes.items():
    finals = [by_seed[seed]['final'] for seed in seeds]
    for key, value in finals[0].items():
      if value is None:
        continue
      flat = key.replace('/', f'/{name}/', 1) if '/' in key else f'eval/{name}/{key}'

      if len(seeds) == 1:
        numbers[flat] = value
      elif not key.endswith('_se'):
        numbers[flat], numbers[f'{flat}_se'] = map(
            float, statistics.mean_and_standard_error([f[key] for f in finals]))

  def total(key):
    return sum(by_seed[seed]['final'][key] for by_seed in outcomes.values() for seed in seeds)

  return numbers | {
      'sampled_tokens': total('sampled_tokens'), 'wall_seconds': round(total('time/seconds'), 3)}


def _table(outcomes: Outcomes) -> tuple[list[str], list[list[str]]]:
  present = [
      column for column, (key, _, _) in _COLUMNS.items()
      if any(key in o['final'] for by_seed in outcomes.values() for o in by_seed.values())]

  def cell(finals, column):
    key, digits, factor = _COLUMNS[column]
    values = [f.get(key) for f in finals]
    if None in values:
      return '-'
    mean, error = statistics.mean_and_standard_error([factor * value for value in values])
    return render.with_error(mean, error if error and digits else None, f',.{digits}f')

  rows = []
  for name, by_seed in outcomes.items():
    finals = [outcome['final'] for outcome in by_seed.values()]
    rows.append([name, *(cell(finals, column) for column in present)])
  return ['algorithm', *present], rows


def _figures(run: launch.Run, outcomes: Outcomes) -> None:
  """Plots score by tokens and by divergence, gold and learned reward of few arms, the η sweep."""
  curves = {name: [o['curve'] for o in by_seed.values()] for name, by_seed in outcomes.items()}
  title = f'{run.config.task}, {len(next(iter(curves.values())))} seed(s)'
  draw = functools.partial(figures.many_curves, title=title, y='score')
  folder = run.workdir / 'figures'
  unit = 'dialogue' if run.config.task == 'dialogue' else 'response'
  divergence = f'KL to the reference (nats per {unit})'

  draw(folder / 'score_by_tokens.png', {
      name: (tokens / 1e3, *_over_seeds(seeds, 'score')) for name, seeds in curves.items()
      for tokens, _ in [_over_seeds(seeds, 'sampled_tokens')]
  }, x='sampled tokens (thousands)')

  kl = {name: _divergence(seeds) for name, seeds in curves.items()}
  draw(folder / 'score_by_kl.png', {
      name + kl[name][1]: (kl[name][0], *_over_seeds(seeds, 'score'))
      for name, seeds in curves.items()
  }, x=divergence)

  trained = {name: seeds for name, seeds in curves.items() if len(seeds[0]) > 1}
  if all('reward' in seeds[0][0] for seeds in trained.values()) and len(trained) <= 4:
    draw(folder / 'reward_by_kl.png', {
        f'{name}, {label}{kl[name][1]}': (kl[name][0], *_over_seeds(seeds, key))
        for name, seeds in trained.items()
        for key, label in (('score', 'gold'), ('reward', 'reward model'))
    }, x=divergence)

  steps = {name: getattr(run.config.chosen_task.arms, name).algorithm.eta
           for name in curves if name.startswith('eta_')}
  if steps:
    ends = [_over_seeds([seed[-1:] for seed in curves[name]], 'score') for name in steps]
    draw(folder / 'score_by_eta.png', {'REBEL': (
        np.log10(list(steps.values())), *(np.concatenate(x) for x in zip(*ends)))},
         x='log10 of the step size η')


def _divergence(curves: Sequence[list[dict]]) -> tuple[np.ndarray, str]:
  """KL of an arm along its curve, and a label suffix if it is only a bound (best of n)."""
  known = 'kl_to_reference' in curves[0][0]
  means, _ = _over_seeds(curves, 'kl_to_reference' if known else 'kl_bound')
  return means, '' if known else ' (bound on KL)'


def _over_seeds(curves: Sequence[list[dict]], key: str) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard error over seeds of one number at each point of the curves."""
  return statistics.mean_and_standard_error([[point[key] for point in curve] for curve in curves])
