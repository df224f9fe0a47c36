"""Soft values: log-mean-exp of rewards, the optimal value under a KL penalty."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.rl import masking
from jaxrl_llm.types import Array

VStarMode = Literal['softmax', 'mean', 'max', 'zero']


def _at_least_float32(values: Array) -> Array:
  return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def log_mean_exp(rewards: Array, *, beta: float | Array, axis: int = -1) -> Array:
  """The soft mean of rewards at temperature `beta`.

    V = β · ln( (1/N) Σ_i exp(r_i / β) )

  Between the mean (β → ∞) and the maximum (β → 0), and accurate to rounding at both
  ends: the maximum is subtracted first, so that nothing overflows at β = 1e-30, and
  log1p of a mean of expm1 is used where the exponents are small, so that a large β
  does not magnify the rounding of ln(1 + tiny).

  Args:
    rewards: float [..., N, ...].
    beta: positive and finite, in units of reward per nat.
    axis: the axis of the N samples.

  Returns:
    At least float32, `rewards` without `axis`. Its gradient is softmax(r / β).

  Raises:
    ValueError: if `beta` is a number that is not positive and finite.

  References:
    Brantley et al. (2025), A*-PO, stage 1, arXiv 2505.20686.
  """
  chex.assert_type(rewards, float)
  masking.check_positive('beta', beta)

  rewards = _at_least_float32(rewards)
  # A subnormal beta is flushed to 0 on most hardware, and 0 / 0 is not the maximum.
  beta = jnp.maximum(jnp.asarray(beta, rewards.dtype), jnp.finfo(rewards.dtype).tiny)

  largest = jax.lax.stop_gradient(jnp.max(rewards, axis=axis, keepdims=True))
  exponents = (rewards - largest) / beta

  excess = jnp.mean(jnp.expm1(exponents), axis=axis)
  small = excess > -0.5
  near_mean = jnp.log1p(jnp.where(small, excess, 0.0))
  near_max = jnp.log(jnp.mean(jnp.exp(exponents), axis=axis))
  return jnp.squeeze(largest, axis) + beta * jnp.where(small, near_mean, near_max)


def v_star(
    rewards: Array,
    *,
    beta: float | Array | None = None,
    mode: VStarMode = 'softmax',
    axis: int = -1,
) -> Array:
  """Estimates the optimal value of a prompt from the rewards of reference samples.

    'softmax':  V̂*(x) = β₁ · ln( (1/N) Σ_i exp(r(x, y_i) / β₁) ),  y_i ~ π_ref
    'mean':     its limit β₁ → ∞        'max': its limit β₁ → 0        'zero': 0

  The limits have their own modes: the released code treats β₁ = 0 as the mean, which
  is the opposite limit, and β₁ < 0 as no value at all.

  Args:
    rewards: float [..., N, ...]; rewards of samples from the reference policy.
    beta: β₁; required by `'softmax'` and ignored by the other modes.
    mode: one of the four above.
    axis: the axis of the N samples.

  Returns:
    At least float32, `rewards` without `axis`.

  Raises:
    ValueError: on an unknown mode, or on a `beta` that `'softmax'` cannot use.

  References:
    Brantley et al. (2025), A*-PO, stage 1, arXiv 2505.20686; released code
    `verl/utils/dataset/rl_dataset.py`.
  """
  chex.assert_type(rewards, float)
  if mode == 'softmax':
    if beta is None:
      raise ValueError("beta must be given for mode 'softmax', got None")
    return log_mean_exp(rewards, beta=beta, axis=axis)

  rewards = _at_least_float32(rewards)
  if mode == 'mean':
    return jnp.mean(rewards, axis=axis)
  if mode == 'max':
    return jnp.max(rewards, axis=axis)
  if mode == 'zero':
    return jnp.zeros_like(jnp.max(rewards, axis=axis))
  raise ValueError(f"mode must be 'softmax', 'mean', 'max' or 'zero', got {mode!r}")


def binary_v_star(success_rate: Array, *, beta: float | Array) -> Array:
  """Optimal value for rewards of 0 or 1, from the reference's success rate.

    V*(x) = β · ln(1 − p + p · exp(1/β))

  exp(1/β) overflows float32 below β = 0.0113, so small β goes through logaddexp.

  Args:
    success_rate: float [...]; p(x) in [0, 1].
    beta: positive and finite.

  Returns:
    At least float32 [...], in [0, 1].

  Raises:
    ValueError: if `beta` is a number that is not positive and finite.

  References:
    Brantley et al. (2025), A*-PO, arXiv 2505.20686.
  """
  chex.assert_type(success_rate, float)
  masking.check_positive('beta', beta)

  rate = _at_least_float32(success_rate)
  beta = jnp.maximum(jnp.asarray(beta, rate.dtype), jnp.finfo(rate.dtype).tiny)
  # For beta >= 1 nothing overflows, and log1p keeps the digits that beta multiplies.
  large = jnp.log1p(rate * jnp.expm1(1.0 / jnp.maximum(beta, 1.0)))
  # For beta < 1 the larger exponent is factored out: V = m + β ln(...) with m = 1[p > 0],
  # so that p = 0 and p = 1 give exactly 0 and 1.
  top = (rate > 0).astype(rate.dtype)
  small = jnp.logaddexp(jnp.log1p(-rate) - top / beta, jnp.log(rate) + (1.0 - top) / beta)
  return jnp.where(beta >= 1.0, beta * large, top + beta * small)


def any_success(rewards: Array, *, threshold: float = 0.0) -> Array:
  """Marks the prompts with at least one sample that the verifier rewarded.

  The optional filter of A*-PO drops the others. Prompts that always succeed stay.

  Args:
    rewards: [P, N], non-negative.
    threshold: a sample succeeds if its reward is above it.

  Returns:
    bool [P].
  """
  chex.assert_rank(rewards, 2)
  return jnp.any(rewards > threshold, axis=-1)
