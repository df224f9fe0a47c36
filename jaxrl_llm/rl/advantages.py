"""Advantages from the rewards of a group of samples, and whitening.

The group is the last axis. Advantages are constants in the loss: no gradient passes.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.rl import masking, overflow
from jaxrl_llm.types import Array


def _constants(values: Array) -> Array:
  return jax.lax.stop_gradient(values.astype(jnp.promote_types(values.dtype, jnp.float32)))


def leave_one_out_mean(rewards: Array) -> Array:
  """Mean reward of the other samples of the group.

    b_i = 1/(K−1) · Σ_{j≠i} r_j

  Args:
    rewards: float [..., K], K ≥ 2.

  Returns:
    At least float32 [..., K].

  Raises:
    ValueError: if the group has fewer than 2 samples.

  References:
    Kool et al. (2019), Buy 4 REINFORCE samples, get a baseline for free.
  """
  chex.assert_type(rewards, float)
  group = rewards.shape[-1]
  if group < 2:
    raise ValueError(f'a leave-one-out mean needs at least 2 samples per prompt, got {group}')
  rewards = _constants(rewards)
  return (jnp.sum(rewards, axis=-1, keepdims=True) - rewards) / (group - 1)


def rloo(rewards: Array) -> Array:
  """Leave-one-out advantages.

    A_i = r_i − 1/(K−1) · Σ_{j≠i} r_j,    so that Σ_i A_i = 0

  Args:
    rewards: float [..., K], K ≥ 2.

  Returns:
    At least float32 [..., K].

  Raises:
    ValueError: if the group has fewer than 2 samples.

  References:
    Ahmadian et al. (2024), Back to basics, arXiv 2402.14740.
  """
  chex.assert_type(rewards, float)
  return _constants(rewards) - leave_one_out_mean(rewards)


def grpo(
    rewards: Array,
    *,
    scale: Literal['std', 'population_std', 'none'] = 'std',
    epsilon: float = 1e-6,
) -> Array:
  """Group-relative advantages.

    A_i = (r_i − mean) / (std + ε)

  A group whose rewards are all equal gets exactly 0: otherwise the rounding error of its
  mean, divided by ε, would be noise. A group of one has no spread; it uses mean 0 and
  std 1, as in verl. Rewards whose squares would overflow are scaled down first.

  Args:
    rewards: float [..., K].
    scale: `'std'` is the unbiased std (divided by K − 1), `'population_std'` divides by
      K, `'none'` only removes the mean (as in Dr. GRPO).
    epsilon: ε, in units of reward.

  Returns:
    At least float32 [..., K].

  Raises:
    ValueError: on an unknown scale, or an empty group.

  References:
    Shao et al. (2024), DeepSeekMath, arXiv 2402.03300; Liu et al. (2025),
    Understanding R1-Zero-like training, arXiv 2503.20783; released code of verl.
  """
  chex.assert_type(rewards, float)
  group = rewards.shape[-1]
  if scale not in ('std', 'population_std', 'none'):
    raise ValueError(f"scale must be 'std', 'population_std' or 'none', got {scale!r}")
  if group < 1:
    raise ValueError(f'a group needs at least 1 sample per prompt, got {group}')

  rewards = _constants(rewards)
  if group == 1:
    return rewards if scale == 'none' else rewards / (1.0 + epsilon)

  factor = overflow.scale_for_squares(jnp.max(jnp.abs(rewards), axis=-1, keepdims=True))
  scaled = _standardise(rewards * factor, scale, epsilon * factor)
  scaled = scaled / factor if scale == 'none' else scaled
  # Selected last, so that ordinary rewards keep exactly the same rounding.
  return jnp.where(factor < 1, scaled, _standardise(rewards, scale, epsilon))


def _standardise(rewards: Array, scale: str, epsilon: float | Array) -> Array:
  """Advantages of `grpo` for groups of at least 2."""
  group = rewards.shape[-1]
  centred = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
  tied = jnp.all(rewards == rewards[..., :1], axis=-1, keepdims=True)
  centred = jnp.where(tied, 0.0, centred)
  if scale == 'none':
    return centred
  degrees = group - 1 if scale == 'std' else group
  std = jnp.sqrt(jnp.sum(jnp.square(centred), axis=-1, keepdims=True) / degrees)
  return centred / (std + epsilon)


def whiten(
    values: Array,
    mask: Array,
    *,
    mean: Literal['remove', 'keep'] = 'remove',
    epsilon: float = 1e-8,
) -> Array:
  """Scales the unmasked values to unit variance.

    'remove':  (x − μ) / √(σ² + ε)          'keep':  the same, + μ

  μ and σ² are the mean and the population variance over all unmasked values. PPO uses
  `'keep'` for rewards: it normalises their spread and preserves their level. Values
  whose squares would overflow are scaled down first.

  Args:
    values: float [...].
    mask: [...] of the same shape; 1 where a value counts.
    mean: 'remove' drops the mean, 'keep' adds it back.
    epsilon: ε, added to the variance.

  Returns:
    At least float32 [...]; 0 where the mask is 0.

  Raises:
    ValueError: on an unknown `mean`.

  References:
    Ziegler et al. (2019), released code of lm-human-preferences; Gao et al. (2024),
    REBEL, released code.
  """
  chex.assert_equal_shape([values, mask])
  chex.assert_type(values, float)
  if mean not in ('remove', 'keep'):
    raise ValueError(f"mean must be 'remove' or 'keep', got {mean!r}")

  values = _constants(values)
  factor = overflow.scale_for_squares(
      jnp.max(jnp.where(mask > 0, jnp.abs(values), 0.0), initial=0.0))
  # ε in the units of what is scaled, and never 0: values that are all equal become 0.
  scaled_epsilon = jnp.maximum(epsilon * factor * factor, jnp.finfo(values.dtype).tiny)

  scaled, scaled_average = _unit_variance(values * factor, mask, scaled_epsilon)
  whitened, average = _unit_variance(values, mask, epsilon)
  if mean == 'keep':
    scaled, whitened = scaled + scaled_average / factor, whitened + average

  # Selected last, so that ordinary values keep exactly the same rounding.
  whitened = jnp.where(factor < 1, scaled, whitened)
  return jnp.where(mask > 0, whitened, 0.0)


def _unit_variance(values: Array, mask: Array, epsilon: float | Array) -> tuple[Array, Array]:
  """Returns the unmasked values with mean 0 and unit variance, and their mean."""
  average = masking.masked_mean(values, mask).value()
  centred = jnp.where(mask > 0, values - average, 0.0)
  variance = masking.masked_mean(jnp.square(centred), mask).value()
  return centred * jax.lax.rsqrt(variance + epsilon), average
