"""Preference games over a few responses: symmetric, zero-sum, given as tables.

A general preference ℓ(y, y'') = −ℓ(y'', y) ∈ [−1, 1] need not come from rewards: rock beats
scissors, scissors beat paper, paper beats rock. The goal is a policy to which no response is
preferred, max_y ℓ(y, π) ≤ 0: a minimax winner (von Neumann). One always exists, and its value is 0
by symmetry.
"""

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.rl import masking
from jaxrl_llm.types import Array


def expected_preference(preference: Array, policy: Array) -> Array:
  """Expected preference of each response over a policy.

    ℓ(y, π) = Σ_{y''} ℓ(y, y'') π(y'')

  For ℓ = 2 P(y ≻ y'') − 1 it is twice the win rate, minus 1.

  Args:
    preference: float [A, A]; ℓ, antisymmetric.
    policy: float [..., A]; probabilities.

  Returns:
    float [..., A].

  References:
    Gao et al. (2024), REBEL, section on general preferences, arXiv 2404.16767.
  """
  _check(preference, policy)
  return jnp.einsum('yz,...z->...y', preference, policy)


def exploitability(preference: Array, policy: Array) -> Array:
  """Gain of the best response against a policy.

    max_y ℓ(y, π) ≥ 0, with equality exactly at a minimax winner

  Args:
    preference: float [A, A]; ℓ, antisymmetric.
    policy: float [..., A]; probabilities.

  Returns:
    float [...], in [0, 1] for ℓ in [−1, 1].
  """
  return jnp.max(expected_preference(preference, policy), axis=-1)


def mirror_descent_step(preference: Array, policy: Array, *, eta: float) -> Array:
  """One exact step of REBEL with general preferences.

    π_{t+1}(y) = π_t(y) exp(η ℓ(y, π_t)) / Z_t

  This is the minimiser of the regression on all pairs. In self-play it is Hedge.

  Args:
    preference: float [A, A]; ℓ, antisymmetric.
    policy: float [..., A]; π_t, positive.
    eta: η, positive and finite.

  Returns:
    float [..., A]; probabilities.

  Raises:
    ValueError: if `eta` is a number that is not positive and finite.

  References:
    Gao et al. (2024), REBEL, arXiv 2404.16767; Freund and Schapire (1999), Adaptive game playing
    using multiplicative weights.
  """
  masking.check_positive('eta', eta)
  return jax.nn.softmax(jnp.log(policy) + eta * expected_preference(preference, policy), axis=-1)


def average_iterate_bound(policy: Array, *, eta: float, steps: int | Array) -> Array:
  """Upper bound on the exploitability of the average of T exact steps.

    max_y ℓ(y, 1/T Σ_{t<T} π_t) ≤ ln(1 / min_y π_0(y)) / (η T) + η / 2

  This is the regret of Hedge with gains in [−1, 1]; a policy gains 0 against itself. It holds for
  the average, or for an iterate drawn at random, but not for the last iterate.

  Args:
    policy: float [..., A]; π_0, positive.
    eta: η, positive and finite.
    steps: T ≥ 1, a number or an array that broadcasts against [...].

  Returns:
    float [...].

  Raises:
    ValueError: if `eta` or `steps` is a number that is not positive and finite.

  References:
    Freund and Schapire (1999), Adaptive game playing using multiplicative weights.
  """
  masking.check_positive('eta', eta)
  if isinstance(steps, (int, float)):
    masking.check_positive('steps', steps)
  return -jnp.log(jnp.min(policy, axis=-1)) / (eta * steps) + eta / 2


def bradley_terry(wins: Array, *, prior: float = 0.0, steps: int = 100) -> Array:
  """Maximum-likelihood rewards of comparisons, as a reward model would fit them.

    maximise Σ_{y, z} w(y, z) ln σ(r(y) − r(z))

  by Newton's method. Rewards always order the responses, even for cyclic comparisons: of a cycle
  they retain only which response met the weaker ones more often.

  Args:
    wins: float [A, A], non-negative; number of times y was preferred to z; a tie counts one half
      for each.
    prior: wins added to every ordered pair of different responses. With 0 the maximum must exist:
      no group of responses may have won all of its comparisons with the others.
    steps: Newton steps, each clipped to length 1.

  Returns:
    float [A]; rewards with mean 0.

  References:
    Bradley and Terry (1952), Rank analysis of incomplete block designs.
  """
  chex.assert_rank(wins, 2)
  chex.assert_equal(*wins.shape)
  size = len(wins)
  wins = jnp.where(jnp.eye(size, dtype=bool), 0.0, wins + prior)
  games = wins + wins.T
  games = games / jnp.sum(games)
  rate = wins / jnp.sum(wins + wins.T)

  def newton(_, rewards):
    chance = jax.nn.sigmoid(rewards[:, None] - rewards)
    gradient = jnp.sum(rate - games * chance, axis=1)
    pull = games * chance * (1 - chance)
    # The likelihood ignores a common shift of rewards: a constant makes the system regular.
    system = jnp.diag(jnp.sum(pull, axis=1)) - pull + jnp.mean(pull)
    step = jnp.linalg.solve(system, gradient)
    rewards = rewards + step / jnp.maximum(1.0, jnp.max(jnp.abs(step)))
    return rewards - jnp.mean(rewards)

  return jax.lax.fori_loop(0, steps, newton, jnp.zeros(size, wins.dtype))


def _check(preference: Array, policy: Array) -> None:
  chex.assert_rank(preference, 2)
  chex.assert_type([preference, policy], float)
  size = policy.shape[-1]
  chex.assert_shape(preference, (size, size))
