"""Returns and generalised advantages along a response.

Masked slots are skipped: unmasked slots get the same result as if the masked ones were
removed from the response, wherever they are, and masked slots get 0. So the padding after
a response is ignored, and so are a user's turns inside one.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.types import Array


class Advantages(NamedTuple):
  """Result of `generalized_advantages`.

  Attributes:
    advantages: [..., T].
    returns: [..., T]; advantages + values, the targets of the value function.
  """

  advantages: Array
  returns: Array


def _check_fraction(name: str, value: float) -> None:
  if not 0.0 <= value <= 1.0:
    raise ValueError(f'{name} must be in [0, 1], got {value}')


def _prepare(array: Array, mask: Array) -> Array:
  """Casts to at least float32, zeroes masked slots, stops the gradient and moves T to the front."""
  array = array.astype(jnp.promote_types(array.dtype, jnp.float32))
  return jnp.moveaxis(jax.lax.stop_gradient(jnp.where(mask > 0, array, 0.0)), -1, 0)


def discounted_returns(rewards: Array, mask: Array, *, discount: float = 1.0) -> Array:
  """Discounted sum of the rewards from each slot on.

    G_t = r_t + γ G_{t'},    t' the next unmasked slot

  Args:
    rewards: float [..., T].
    mask: [..., T]; 1 where a slot counts. Rewards of masked slots are not read.
    discount: γ in [0, 1].

  Returns:
    At least float32 [..., T]; a constant.

  Raises:
    ValueError: if `discount` is not in [0, 1].
  """
  chex.assert_equal_shape([rewards, mask])
  chex.assert_type(rewards, float)
  _check_fraction('discount', discount)

  steps = (_prepare(rewards, mask), jnp.moveaxis(mask > 0, -1, 0))

  def step(later, inputs):
    reward, counts = inputs
    now = reward + discount * later
    return jnp.where(counts, now, later), jnp.where(counts, now, 0.0)

  _, outputs = jax.lax.scan(step, jnp.zeros_like(steps[0][0]), steps, reverse=True)
  return jnp.moveaxis(outputs, 0, -1)


def generalized_advantages(
    rewards: Array,
    values: Array,
    mask: Array,
    *,
    discount: float = 1.0,
    trace: float = 0.95,
    bootstrap: Array | None = None,
) -> Advantages:
  """Generalised advantage estimation.

    δ_t = r_t + γ V_{t'} − V_t        A_t = δ_t + γλ A_{t'}        return_t = A_t + V_t

  with t' the next unmasked slot. The value after the last one is `bootstrap`, 0 by
  default: a truncated response is treated as ended, as is usual in RL for language
  models. λ = 1 and γ = 1 give return − value.

  Args:
    rewards: float [..., T].
    values: float [..., T]; V at the state in which token t is chosen.
    mask: [..., T]; 1 where a slot counts. Nothing is read at masked slots.
    discount: γ in [0, 1].
    trace: λ in [0, 1].
    bootstrap: float [...]; the value after the last unmasked slot, or None.

  Returns:
    `Advantages`, each at least float32 [..., T], 0 where the mask is 0; constants.

  Raises:
    ValueError: if `discount` or `trace` is not in [0, 1].

  References:
    Schulman et al. (2016), High-dimensional continuous control using generalized
    advantage estimation, equations 11-16, arXiv 1506.02438.
  """
  chex.assert_equal_shape([rewards, values, mask])
  chex.assert_type([rewards, values], float)
  _check_fraction('discount', discount)
  _check_fraction('trace', trace)

  steps = (_prepare(rewards, mask), _prepare(values, mask), jnp.moveaxis(mask > 0, -1, 0))
  zeros = jnp.zeros_like(steps[1][0])

  if bootstrap is None:
    last_value = zeros
  else:
    chex.assert_shape(bootstrap, zeros.shape)
    last_value = jax.lax.stop_gradient(bootstrap).astype(zeros.dtype)

  def step(later, inputs):
    later_value, later_advantage = later
    reward, value, counts = inputs
    delta = reward + discount * later_value - value
    advantage = delta + discount * trace * later_advantage
    carry = (jnp.where(counts, value, later_value),
             jnp.where(counts, advantage, later_advantage))
    return carry, (jnp.where(counts, advantage, 0.0), jnp.where(counts, advantage + value, 0.0))

  _, outputs = jax.lax.scan(step, (last_value, zeros), steps, reverse=True)
  return Advantages(*(jnp.moveaxis(output, 0, -1) for output in outputs))
