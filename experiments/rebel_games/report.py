"""Report of the study of rock, paper, scissors: numbers, a table, curves and a figure."""

import contextlib

import jax.numpy as jnp
import numpy as np

from experiments.rebel_games import games
from experiments.rebel_games.arms import ARMS, EXACT, MOVES, PREFERENCE
from experiments.rebel_games.config import RebelGames
from jaxrl_llm.evaluation import statistics
from jaxrl_llm.runs import arms as arms_lib
from jaxrl_llm.runs import figures, launch
from jaxrl_llm.training import metrics


def exploitabilities(policies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Exploitability of the averages of the first 1, ..., T policies, and after 1, ..., T steps.

  Args:
    policies: [..., T + 1, 3].

  Returns:
    Two arrays [..., T].
  """
  steps = np.arange(1, policies.shape[-2])
  averages = np.cumsum(policies[..., :-1, :], axis=-2) / steps[:, None]

  def exploitability(policies):
    return np.asarray(games.exploitability(
        jnp.asarray(PREFERENCE), jnp.asarray(policies)), np.float64)

  return exploitability(averages), exploitability(policies[..., 1:, :])


def summarise(config: RebelGames, arms: dict[str, dict[str, np.ndarray]]) -> dict[str, float]:
  """The headline numbers.

  Args:
    config: the config of the study.
    arms: 'policies' by arm; sampled arms have a leading seed dimension.

  Returns:
    Numbers by flat name.
  """
  start, eta = jnp.asarray(config.initial_policy), config.algorithm.eta
  bounds = np.asarray(games.average_iterate_bound(
      start, eta=eta, steps=np.arange(1, config.steps + 1)))
  numbers = {'eval/bound': float(bounds[-1])}

  for name, arm in arms.items():
    average, last = (
        np.reshape(x, (-1, config.steps)) for x in exploitabilities(arm['policies']))
    numbers |= arms_lib.summary(f'eval/{name}/average_exploitability', average[:, -1])
    numbers |= arms_lib.summary(f'eval/{name}/last_exploitability', last[:, -1])
    numbers[f'eval/{name}/iterations_above_bound'] = float(np.mean(average > bounds))
    if 'rewards' in arm:
      for move, reward in zip(MOVES, arm['rewards'].T):
        numbers |= arms_lib.summary(f'reward/{name}/{move}', reward)
  return numbers


def write_figure(run: launch.Run, arms: dict[str, dict[str, np.ndarray]]) -> None:
  """Plots exploitability against iterations; writes the data as CSV."""
  config = run.config
  steps = np.unique(np.round(np.geomspace(1, config.steps, 200)).astype(int))
  bounds = np.asarray(games.average_iterate_bound(
      jnp.asarray(config.initial_policy), eta=config.algorithm.eta, steps=steps))
  rows = [('bound', 'average', step, value, 0.0) for step, value in zip(steps, bounds)]
  path = run.workdir / 'figures' / 'exploitability.png'

  def draw(axes, name, label, which, **style):
    policies = np.reshape(arms[name]['policies'], (-1, config.steps + 1, 3))
    values = exploitabilities(policies)[which == 'last'][:, steps - 1]
    mean, error = statistics.mean_and_standard_error(values)
    axes.plot(steps, mean, label=label, **style)
    axes.fill_between(steps, np.maximum(mean - error, 1e-9), mean + error, alpha=0.2, lw=0,
                      color=style['color'])
    rows.extend((name, which, *row) for row in zip(steps, mean, error))

  with figures.figure(
      path, 2, title='Rock, paper, scissors: exploitability') as panels:
    for axes in panels:
      axes.plot(steps, bounds, color='0.35', ls=':', label='bound on the average')
      axes.set(xscale='log', yscale='log', xlabel='iteration',
               ylabel='gain of the best response',
               ylim=(3e-3, 1.6))

    left, right = panels
    left.set_title('preferences')
    draw(left, 'preferences', 'average policy', 'average', color='#1b6ca8')
    draw(left, 'exact_preferences', 'average, exact steps', 'average', color='#1b6ca8', ls='--')
    draw(left, 'preferences', 'last policy', 'last', color='#d1495b')
    draw(left, 'exact_preferences', 'last, exact steps', 'last', color='#d1495b', ls='--')

    right.set_title('a reward model instead (averages)')
    draw(right, 'reward_before', 'fitted before training', 'average', color='#2e8b57')
    draw(right, 'exact_reward', 'the same, exact steps', 'average', color='#2e8b57', ls='--')
    draw(right, 'reward_same', 'the same comparisons', 'average', color='#8d6a9f')
    draw(right, 'exact_refit', 'fitted at every step, exact', 'average', color='#c98a1b', ls='-.')

    for axes in panels:
      axes.legend(frameon=False, loc='lower left', fontsize=8)
  metrics.write_csv_atomic(path.with_suffix('.csv'), [
      'arm', 'iterate', 'iteration', 'exploitability', 'standard_error'], rows)


def write_metrics(run: launch.Run, arms: dict[str, dict[str, np.ndarray]]) -> None:
  """Writes means over seeds of about 50 iterations per arm to metrics.jsonl."""
  curves = {}
  for name, arm in arms.items():
    average, last = (np.reshape(values, (-1, run.config.steps)).mean(axis=0)
                     for values in exploitabilities(arm['policies']))
    curves[f'eval/{name}/average_exploitability'] = average
    curves[f'eval/{name}/last_exploitability'] = last
  with contextlib.closing(metrics.MetricsWriter(run.workdir)) as writer:
    writer.truncate([])
    for step in range(0, run.config.steps, max(1, run.config.steps // 50)):
      writer.write(step, {name: curve[step] for name, curve in curves.items()})


def table(numbers: dict[str, float]) -> str:
  """Table of the exploitability of every arm."""
  rows = [[label, *(figures.decimal(numbers, f'eval/{name}/{which}_exploitability', 4)
                    for which in ('average', 'last'))]
          for name, label in {**ARMS, **EXACT}.items()]
  rows.append(['bound of the average', f'{numbers["eval/bound"]:.4f}', '-'])
  return figures.markdown_table(
      ['exploitability (0 is best, 1 worst)', 'average policy', 'last policy'], rows)
