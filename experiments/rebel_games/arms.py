"""Arms of the study of rock, paper, scissors: their labels, exact steps and fitted rewards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.rebel_games import games
from experiments.rebel_games.config import RebelGames

MOVES = ('rock', 'paper', 'scissors')
PREFERENCE = np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
ARMS = {
    'preferences': 'REBEL, preferences',
    'reward_before': 'REBEL, reward model of the policy before training',
    'reward_same': 'REBEL, reward model of the same comparisons',
}
EXACT = {
    'exact_preferences': 'exact steps, preferences',
    'exact_reward': 'exact steps, reward model of the policy before training',
    'exact_refit': 'exact steps, reward model fitted again at every step',
}


def play_exactly(config: RebelGames) -> dict[str, np.ndarray]:
  """The exact steps that the regression approximates: policies [T + 1, 3] by arm of `EXACT`."""
  start, table = jnp.asarray(config.initial_policy), jnp.asarray(PREFERENCE)

  def fitted_table(policy, **options):
    """Preferences of a reward model fitted to comparisons of pairs from a policy."""
    won = policy[:, None] * policy * (1 + table) / 2
    rewards = games.bradley_terry(won, **options)
    return rewards[:, None] - rewards

  def policies(table_of):
    def step(policy, _):
      return games.mirror_descent_step(
          table_of(policy), policy, eta=config.algorithm.eta), policy

    return jax.jit(lambda: jax.lax.scan(step, start, length=config.steps + 1)[1])()

  # A prior keeps the model finite when a move has almost vanished.
  fixed = fitted_table(start)
  refitted = functools.partial(fitted_table, prior=1e-3, steps=20)
  return dict(zip(EXACT, (
      policies(lambda policy: table), policies(lambda policy: fixed), policies(refitted))))


def draw_comparisons(config: RebelGames, count: int) -> np.ndarray:
  """Comparisons [S, 3, 3] of pairs from the policy before training."""
  initial = np.asarray(config.initial_policy)
  won = []
  for seed in range(config.seed, config.seed + config.num_seeds):
    generator = np.random.default_rng([seed, count])
    met = generator.multinomial(count, np.outer(initial, initial).ravel()).reshape(3, 3)
    won.append(met * (1 + PREFERENCE) / 2 + (met * (1 - PREFERENCE) / 2).T)
  return np.stack(won)


def fit_rewards(won: np.ndarray) -> np.ndarray:
  """Rewards [S, 3] of a Bradley-Terry model fitted to the comparisons won [S, 3, 3]."""
  return np.asarray(jax.vmap(games.bradley_terry)(jnp.asarray(won, jnp.float32)))
