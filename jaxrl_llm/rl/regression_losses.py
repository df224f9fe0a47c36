"""Losses that regress log-ratios onto rewards: A*-PO and REBEL.

Each returns one unreduced value per prompt or pair: the caller owns the weights.
Log-ratios are those of whole responses: sums over tokens, never means.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.rl import masking
from jaxrl_llm.types import Array


def a_star_po_loss(log_ratio: Array, rewards: Array, values: Array, *, beta: float) -> Array:
  """Regresses the scaled log-ratio onto the estimated optimal advantage.

    ℓ(x, y) = ( β₂ · ln(π_θ(y|x) / π_ref(y|x)) − (r(x, y) − V̂*(x)) )²

  The ratio is to the frozen reference, not to the policy that sampled. If β₁ differs
  from β₂, the residual V_{β₁} − V_{β₂} remains at the optimum, so that a loss above 0
  is expected. Rewards and values are constants.

  Args:
    log_ratio: float [P], nats; ln π_θ − ln π_ref, summed over the response.
    rewards: float [P].
    values: float [P]; V̂*(x).
    beta: β₂, positive and finite.

  Returns:
    float [P].

  Raises:
    ValueError: if `beta` is a number that is not positive and finite.

  References:
    Brantley et al. (2025), A*-PO, stage 2, arXiv 2505.20686.
  """
  chex.assert_rank([log_ratio, rewards, values], 1)
  chex.assert_equal_shape([log_ratio, rewards, values])
  chex.assert_type([log_ratio, rewards, values], float)
  masking.check_positive('beta', beta)
  advantages = jax.lax.stop_gradient(rewards - values)
  return jnp.square(beta * log_ratio - advantages)


def rebel_loss(
    log_ratio: Array,
    rewards: Array,
    *,
    eta: float,
    form: Literal['code', 'paper'] = 'code',
) -> Array:
  """Regresses the difference of two log-ratios onto the difference of rewards.

    D = ln(π_θ(y|x) / π_t(y|x)) − ln(π_θ(y'|x) / π_t(y'|x))
    'code':   ℓ = (D − η (r − r'))²
    'paper':  ℓ = (D / η − (r − r'))² = 'code' / η²

  The ratio is to the policy that sampled, refreshed each iteration. η multiplies the
  rewards: larger is more aggressive. Rewards are constants.

  Args:
    log_ratio: float [P, 2], nats; ln π_θ − ln π_t, summed over the response.
    rewards: float [P, 2].
    eta: positive and finite.
    form: one of the two scalings above.

  Returns:
    float [P].

  Raises:
    ValueError: on an unknown form, or if `eta` is a number that is not positive and finite.

  References:
    Gao et al. (2024), REBEL, arXiv 2404.16767; released code `src/tldr/rebel.py`.
  """
  chex.assert_rank([log_ratio, rewards], 2)
  chex.assert_equal_shape([log_ratio, rewards])
  chex.assert_axis_dimension(log_ratio, 1, 2)
  chex.assert_type([log_ratio, rewards], float)
  masking.check_positive('eta', eta)

  difference = log_ratio[:, 0] - log_ratio[:, 1]
  target = jax.lax.stop_gradient(rewards[:, 0] - rewards[:, 1])
  if form == 'code':
    return jnp.square(difference - eta * target)
  if form == 'paper':
    return jnp.square(difference / eta - target)
  raise ValueError(f"form must be 'code' or 'paper', got {form!r}")


def preference_rewards(preferences: Array) -> Array:
  """Rewards of the two responses of a pair under a general preference.

    r(x, y) := 1/M Σ_m ℓ(x, y, y''_m),     ℓ(x, y, y'') = −ℓ(x, y'', y) ∈ [−1, 1]

  Their difference is the target ℓ(x, y, y'') − ℓ(x, y', y'') of REBEL with general preferences,
  averaged over the comparators y'' ∼ π_t. ℓ may be intransitive. Where ℓ is a difference of
  rewards, the target is that difference for any comparator.

  Args:
    preferences: float [P, 2, M]; ℓ of each response against the same M comparators.

  Returns:
    float [P, 2].

  References:
    Gao et al. (2024), REBEL, section on general preferences, arXiv 2404.16767.
  """
  chex.assert_rank(preferences, 3)
  chex.assert_axis_dimension(preferences, 1, 2)
  chex.assert_type(preferences, float)
  return jnp.mean(preferences, axis=-1)
