"""Policy-gradient losses: REINFORCE, and the clipped surrogate of PPO and its descendants.

Each returns one unreduced value per action: [P, K] where the action is a whole response,
[P, K, T] where it is a token. `mean_over_tokens` implements the published ways to reduce the
latter to one number.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.rl import masking, overflow
from jaxrl_llm.types import Array, WeightedMean


def reinforce_loss(log_probs: Array, advantages: Array) -> Array:
  """REINFORCE loss: its gradient on on-policy samples is the policy gradient.

    ℓ = −A · ln π_θ(y|x),    E_{y∼π_θ} ∇ℓ = −∇ E_{y∼π_θ} r    for A = r − b, b independent of y

  The advantage is a constant. Off-policy the gradient is biased: use the ratio of
  `clipped_surrogate` instead of the log-prob there.

  Args:
    log_probs: float [...], nats; log-probs of whole responses: summed over tokens, never averaged.
    advantages: float [...].

  Returns:
    [...].

  References:
    Williams (1992), Simple statistical gradient-following algorithms for connectionist
    reinforcement learning.
  """
  chex.assert_equal_shape([log_probs, advantages])
  chex.assert_type([log_probs, advantages], float)
  return -jax.lax.stop_gradient(advantages) * log_probs


def is_clipped(
    log_ratio: Array, advantages: Array, *, clip_low: float, clip_high: float
) -> Array:
  """Marks the actions where the clipped surrogate has no gradient.

    ρ > 1 + ε_high where A > 0,    ρ < 1 − ε_low where A < 0

  An action is clipped once it has moved far enough in the direction of its advantage, never on
  its way back.

  Args:
    log_ratio: float [...], nats; ln ρ = ln π_θ − ln π_t.
    advantages: float [...].
    clip_low: ε_low in [0, 1]; 1 never clips.
    clip_high: ε_high ≥ 0; infinity never clips.

  Returns:
    bool [...].

  Raises:
    ValueError: if a bound is out of range.
  """
  chex.assert_equal_shape([log_ratio, advantages])
  chex.assert_type([log_ratio, advantages], float)
  if not 0 <= clip_low <= 1:
    raise ValueError(f'clip_low must be in [0, 1], got {clip_low}')
  if not clip_high >= 0:
    raise ValueError(f'clip_high must be non-negative, got {clip_high}')

  above = (advantages > 0) & (log_ratio > jnp.log1p(clip_high))
  below = (advantages < 0) & (log_ratio < jnp.log1p(-clip_low))
  return above | below


def clipped_surrogate(
    log_ratio: Array, advantages: Array, *, clip_low: float, clip_high: float
) -> Array:
  """PPO's surrogate, negated so that it is minimised.

    ℓ = −min( ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A ),    ρ = π_θ / π_t = exp(log_ratio)

  π_t is the policy that sampled. At ρ = 1 the gradient is that of `reinforce_loss` and nothing
  is clipped. The ratio defines the action: a token, or a whole response where `log_ratio` is a
  sum over its tokens. Masked slots need a finite `log_ratio`.

  Where nothing is clipped, above all for A < 0, ρ is unbounded. Value and gradient are exact up
  to ρ max(|A|, 1) = e⁸⁸ in float32, beyond which the product would overflow; from there on both
  keep their value at that ratio. An advantage of 0 gives 0 and no gradient at any ratio.

  Args:
    log_ratio: float [...], nats.
    advantages: float [...]; constants.
    clip_low: ε_low in [0, 1].
    clip_high: ε_high ≥ 0; ε_high > ε_low is DAPO's clip-higher.

  Returns:
    [...].

  Raises:
    ValueError: if a bound is out of range.

  References:
    Schulman et al. (2017), Proximal policy optimization algorithms, equation 7,
    arXiv 1707.06347; Yu et al. (2025), DAPO, arXiv 2503.14476.
  """
  advantages = jax.lax.stop_gradient(advantages)
  clipped = is_clipped(log_ratio, advantages, clip_low=clip_low, clip_high=clip_high)
  bound = jnp.where(advantages > 0, 1.0 + clip_high, 1.0 - clip_low).astype(log_ratio.dtype)

  size = jnp.log(jnp.maximum(jnp.abs(advantages), 1.0)).astype(log_ratio.dtype)
  highest = overflow.largest_exponent(log_ratio.dtype) - size
  # Zeroed before exp: otherwise 0 · inf of a clipped ratio would reach the gradient.
  ratio = jnp.exp(overflow.saturate(jnp.where(clipped, 0.0, log_ratio), None, highest))
  return -jnp.where(clipped, bound, ratio) * advantages


def mean_over_tokens(
    losses: Array,
    mask: Array,
    weight: Array,
    *,
    normalisation: Literal['response', 'token', 'constant'],
) -> WeightedMean:
  """Mean of token-wise losses, not yet divided.

    'response':  1/(PK) Σ_pk 1/|y_pk| Σ_t ℓ_pkt    a short response's tokens weigh more
    'token':     Σ_pkt ℓ_pkt / Σ_pk |y_pk|         all tokens weigh the same
    'constant':  1/(PKT) Σ_pkt ℓ_pkt               the same, with a divisor independent of
                                                   lengths: T slots per response, used or not

  The divisors cover everything that is merged into this mean, so that splitting into
  micro-batches or across devices does not change it.

  Args:
    losses: float [P, K, T].
    mask: [P, K, T]; 1 where a token counts.
    weight: [P]; 0 where a prompt does not count.
    normalisation: one of the three above.

  Returns:
    A `WeightedMean`.

  Raises:
    ValueError: on an unknown normalisation.

  References:
    Shao et al. (2024), DeepSeekMath (GRPO), equation 3, arXiv 2402.03300 ('response'); Yu et al.
    (2025), DAPO, arXiv 2503.14476 ('token'); Liu et al. (2025), Understanding R1-Zero-like
    training (Dr. GRPO), arXiv 2503.20783 ('constant').
  """
  chex.assert_rank([losses, mask, weight], [3, 3, 1])
  chex.assert_equal_shape([losses, mask])
  chex.assert_equal_shape_prefix([losses, weight], 1)

  counts = mask * weight[:, None, None]
  if normalisation == 'token':
    return masking.masked_mean(losses, counts)

  responses = losses.shape[1] * jnp.sum(weight)
  if normalisation == 'response':
    lengths = jnp.sum(mask, axis=-1, keepdims=True)
    return WeightedMean(masking.masked_sum(losses, counts / jnp.maximum(lengths, 1.0)), responses)
  if normalisation == 'constant':
    return WeightedMean(masking.masked_sum(losses, counts), losses.shape[2] * responses)
  raise ValueError(
      f"normalisation must be 'response', 'token' or 'constant', got {normalisation!r}")
