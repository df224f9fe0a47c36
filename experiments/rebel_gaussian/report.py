"""Report of the study of the Gaussian sampler: tuned rates, numbers, a table and a figure."""

import contextlib

import numpy as np

from experiments.rebel_gaussian import arms as gaussian_arms
from experiments.rebel_gaussian.config import RebelGaussian
from jaxrl_llm.evaluation import statistics
from jaxrl_llm.runs import arms as arms_lib
from jaxrl_llm.runs import figures, launch
from jaxrl_llm.training import metrics

GOAL = 0.9  # Fraction of the way from the first policy to the best one.


def queries_to_goal(config: RebelGaussian, fractions: np.ndarray) -> np.ndarray:
  """Reward queries before the first evaluation at the goal; NaN if it is never reached.

  Args:
    config: the config of the study.
    fractions: [..., T + 1].

  Returns:
    [...].
  """
  reached = fractions >= GOAL
  first = np.argmax(reached, axis=-1) * 2.0 * config.batch_size
  return np.where(reached.any(axis=-1), first, np.nan)


def tune(config: RebelGaussian, fractions: np.ndarray) -> tuple[int, np.ndarray]:
  """Picks the learning rate with the fewest queries on the tuning seeds; ties go to the best end.

  Args:
    config: the config of the study.
    fractions: [R, S, T + 1], as `train` returns them.

  Returns:
    (its index, mean queries of each rate [R]; a run that never reaches the goal counts as twice
    the budget).
  """
  tuning = fractions[:, config.num_seeds:]
  budget = 2 * config.batch_size * config.steps
  means = np.nan_to_num(queries_to_goal(config, tuning), nan=2 * budget).mean(axis=1)
  endings = tuning[..., -1].mean(axis=1)
  return min(range(len(means)), key=lambda rate: (means[rate], -endings[rate])), means


def summarise(config: RebelGaussian, arms: dict[str, np.ndarray]) -> dict[str, float]:
  """The headline numbers of fractions [R, S, T + 1] by arm.

  A run that never reaches the goal counts as the whole budget, and lowers `reached`.
  """
  numbers, queries = {}, {}
  budget = 2 * config.batch_size * config.steps
  for name, fractions in arms.items():
    best, tuning = tune(config, fractions)
    chosen = fractions[best, : config.num_seeds]
    queries[name] = queries_to_goal(config, chosen)

    numbers |= arms_lib.summary(
        f'eval/{name}/queries_to_goal', np.nan_to_num(queries[name], nan=budget))
    numbers[f'eval/{name}/reached'] = float(np.isfinite(queries[name]).mean())
    numbers |= arms_lib.summary(f'eval/{name}/final_fraction', chosen[:, -1])

    numbers[f'setting/{name}/learning_rate'] = config.learning_rates[best]
    for rate, value in zip(config.learning_rates, tuning):
      numbers[f'tuning/{name}/queries_at_{rate:g}'] = float(value)

  for name, arm in gaussian_arms.ARMS.items():
    if arm.loss == 'ppo':
      mine, theirs = (f'eval/{x}/queries_to_goal' for x in ('rebel', name))
      numbers[f'criterion/rebel_within_{name}'] = int(
          numbers['eval/rebel/reached'] == 1 and numbers[mine] <= numbers[theirs])
  return numbers


def write_figure(run: launch.Run, arms: dict[str, np.ndarray]) -> None:
  """Plots learning curves and the sweep of learning rates; writes the curves as CSV."""
  config, rows = run.config, []
  queries = 2 * config.batch_size * np.arange(config.steps + 1)
  path = run.workdir / 'figures' / 'learning_curve.png'
  title = f'Points by denoising in {len(config.alpha_bar)} steps: distance to a target'

  with figures.figure(path, 2, title=title) as (curves, rates):
    for name, fractions in arms.items():
      arm, (best, tuning) = gaussian_arms.ARMS[name], tune(config, fractions)
      colour, marker, line = arm.style
      mean, error = statistics.mean_and_standard_error(fractions[best, : config.num_seeds])

      label = f'{arm.label}, rate {config.learning_rates[best]:g}'
      curves.plot(queries, mean, color=colour, ls=line, label=label)
      curves.fill_between(queries, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
      rates.plot(config.learning_rates, tuning, color=colour, marker=marker, ls=line,
                 label=arm.label)
      rows += [(name, *row) for row in zip(queries, mean, error)]

    curves.axhline(GOAL, color='0.35', ls=':')
    curves.set(xlabel='reward queries', ylabel='fraction of the way to the best score',
               ylim=(-0.05, 1.05), title='at the best learning rate of each')
    curves.legend(frameon=False, loc='lower right', fontsize=8)

    rates.axhline(queries[-1], color='0.35', ls=':', label='budget (not reached: twice it)')
    rates.set(xscale='log', yscale='log', xlabel='learning rate',
              ylabel=f'reward queries to {GOAL:.0%} of the way', title='on the tuning seeds')
    rates.legend(frameon=False, fontsize=8)

  metrics.write_csv_atomic(path.with_suffix('.csv'), [
      'arm', 'reward_queries', 'fraction', 'standard_error'], rows)


def write_metrics(run: launch.Run, arms: dict[str, np.ndarray]) -> None:
  """Writes the mean fraction of each arm's best learning rate by iteration to metrics.jsonl."""
  config = run.config
  curves = {f'eval/{name}/fraction': fractions[tune(config, fractions)[0], : config.num_seeds]
            for name, fractions in arms.items()}
  with contextlib.closing(metrics.MetricsWriter(run.workdir)) as writer:
    writer.truncate([])
    for step in range(config.steps + 1):
      writer.write(step, {name: curve[:, step].mean() for name, curve in curves.items()})


def table(config: RebelGaussian, numbers: dict[str, float]) -> str:
  """Table of clip, learning rate, queries to the goal and final fraction of every arm."""
  rows = []
  for name, arm in gaussian_arms.ARMS.items():
    at_least = '' if numbers[f'eval/{name}/reached'] == 1 else '≥ '
    rows.append([
        arm.label, getattr(config, arm.clip) if arm.clip else '-',
        f'{numbers[f"setting/{name}/learning_rate"]:g}',
        at_least + figures.decimal(numbers, f'eval/{name}/queries_to_goal', 0),
        figures.decimal(numbers, f'eval/{name}/final_fraction', 3)])
  return figures.markdown_table(
      ['arm', 'clip', 'learning rate', f'queries to {GOAL:.0%}', 'at the end (best is 1)'], rows)
