"""Losses of a critic: one value a state, not reduced."""

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.types import Array


def clipped_value_loss(values: Array, old_values: Array, returns: Array, *, clip: float) -> Array:
  """PPO's squared error of a critic that may not move far at once.

    ℓ = ½ max( (V − R)², (V_old + clip(V − V_old, −c, c) − R)² )

  The larger of the two: a value that has left its bounds towards the return has no gradient any
  more, one that left them the other way has all of it. A slot that does not count needs finite
  numbers.

  Args:
    values: float [...]; V of the states in which the tokens are chosen.
    old_values: float [...]; the same as the iteration began; constants.
    returns: float [...]; R, the targets; constants.
    clip: c > 0, in units of reward; infinity is the plain ½ (V − R)².

  Returns:
    [...].

  Raises:
    ValueError: if `clip` is not positive.

  References:
    Gao et al. (2024), REBEL, released code `src/tldr/ppo.py`, arXiv 2404.16767.
  """
  chex.assert_equal_shape([values, old_values, returns])
  chex.assert_type([values, old_values, returns], float)
  if not clip > 0:
    raise ValueError(f'clip must be positive, got {clip}')
  old_values, returns = jax.lax.stop_gradient((old_values, returns))
  held = old_values + jnp.clip(values - old_values, -clip, clip)
  return 0.5 * jnp.maximum(jnp.square(values - returns), jnp.square(held - returns))
