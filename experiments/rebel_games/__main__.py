"""REBEL on preferences that no reward explains: rock, paper, scissors.

The policy is a small decoder, a response is its first token, and paper is preferred to rock,
scissors to paper, rock to scissors. REBEL with these preferences plays against itself; the average
of its policies must become hard to exploit (Gao et al., 2024, section on general preferences, arXiv
2404.16767), within the regret bound of Hedge, while the last policy need not. Further arms: the
same steps computed exactly, and REBEL on the rewards that a Bradley-Terry model fits to as many
comparisons, either from the policy before training (`reward_before`) or the same ones that the
first arm made (`reward_same`). Finished arms are saved: the same command resumes with the next one.

Only the decoder's head is trained, by plain gradient descent: the regression is then linear, and a
few steps solve it, as the guarantee requires. In trials with all parameters the noise made the
curvature grow until descent broke down, in two to four of five seeds within 2,000 iterations. Adam,
whose step size does not depend on η, left the average above the bound in more than a quarter of the
iterations.
"""

import functools

import jax.numpy as jnp
import numpy as np

from experiments.rebel_games import arms as games_arms
from experiments.rebel_games import games, players
from experiments.rebel_games import report as games_report
from experiments.rebel_games.config import RebelGames
from jaxrl_llm.runs import arms as arms_lib
from jaxrl_llm.runs import launch
from jaxrl_llm.training import loop, metrics


def play(
    config: RebelGames, player: players.Player, scores: np.ndarray, *, title: str
) -> dict[str, np.ndarray]:
  """Runs all iterations of an arm.

  Args:
    config: the config of the study.
    player: a player with the arm's signal.
    scores: ℓ [S, 3, 3], or the reward of each move [S, 3], by seed.
    title: title of the progress bar.

  Returns:
    policies [S, T + 1, 3], starting with π_0; won [S, 3, 3], the comparisons made.
  """
  scores = jnp.asarray(scores, jnp.float32)
  states = player.starts(jnp.arange(config.num_seeds) + config.seed)
  chunk = max(size for size in range(1, 101) if config.steps % size == 0)
  updates = config.algorithm.num_epochs * config.algorithm.num_minibatches

  policies, won = [], 0
  with loop.progress(config.steps, title) as bar:
    for begin in range(0, config.steps, chunk):
      states, part, comparisons = player.advances(states, scores, begin + jnp.arange(chunk))
      loop.check_updates(
          states.step, (begin + chunk) * updates, learning_rate='config.learning_rate')

      policies.append(np.asarray(part, np.float64))
      won = won + np.asarray(comparisons, np.float64)
      average = jnp.asarray(np.concatenate(policies, axis=1).mean(axis=1))
      bar.update(chunk, exploitability=float(
          games.exploitability(jnp.asarray(games_arms.PREFERENCE), average).mean()))

  policies.append(np.asarray(player.policies(states), np.float64)[:, None])
  return {'policies': np.concatenate(policies, axis=1), 'won': won}


def play_all(run: launch.Run) -> dict[str, dict[str, np.ndarray]]:
  """Plays every arm: 'policies', and 'won' or 'rewards'; finished arms are read from disk."""
  config = run.config

  def finished(name, make):
    return arms_lib.finished(
        run.workdir / 'arms' / f'{name}.npz',
        arms_lib.identity_of('rebel_games', config, arm=name), make, commit=run.commit)

  exact = finished('exact', lambda: games_arms.play_exactly(config))
  arms = {name: {'policies': exact[name]} for name in games_arms.EXACT}

  by_seed = np.broadcast_to(games_arms.PREFERENCE, (config.num_seeds, 3, 3))
  arms['preferences'] = finished('preferences', lambda: play(
      config, players.Player(config, 'preferences'), by_seed, title=games_arms.ARMS['preferences']))

  won = arms['preferences']['won']
  drawn = games_arms.draw_comparisons(config, round(won[0].sum()))
  rewards = {'reward_before': games_arms.fit_rewards(drawn),
             'reward_same': games_arms.fit_rewards(won)}

  player = players.Player(config, 'rewards')
  for name, values in rewards.items():
    played = finished(
        name, functools.partial(play, config, player, values, title=games_arms.ARMS[name]))
    arms[name] = {'policies': played['policies'], 'rewards': values}
  return arms


def main(run: launch.Run) -> None:
  """Plays all arms and writes the table, the figure and results.json."""
  config = run.config
  arms = play_all(run)
  numbers = games_report.summarise(config, arms)

  games_report.write_metrics(run, arms)
  games_report.write_figure(run, arms)
  report = games_report.table(numbers)
  metrics.write_text_atomic(run.table_path, report + '\n')

  pairs = config.num_seeds * config.steps * config.batch_size
  tokens_per_pair = {
      'preferences': 2 + config.num_comparators, 'reward_before': 2, 'reward_same': 2}
  launch.write_results(run, {
      **numbers, 'num_seeds': config.num_seeds,
      'comparisons': round(arms['preferences']['won'][0].sum()),  # Per seed.
      **{f'sampled_tokens/{name}': pairs * tokens for name, tokens in tokens_per_pair.items()},
  })
  print(f'\n{report}\n\n{config.note}\nfigure: {run.workdir / "figures" / "exploitability.png"}\n'
        f'results: {run.results_path}')


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/rebel_games.py')
