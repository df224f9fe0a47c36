"""Critic losses: one unreduced value per state."""

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.types import Array


def clipped_value_loss(values: Array, old_values: Array, returns: Array, *, clip: float) -> Array:
  """PPO's clipped squared error of the critic.

    ℓ = ½ max( (V − R)², (V_old + clip(V − V_old, −c, c) − R)² )

  The larger of the two: a value that has left its bounds towards the return has no gradient, one
  that has left them the other way has its full gradient. Masked slots need finite numbers.

  Args:
    values: float [...]; V of the states in which the tokens are chosen.
    old_values: float [...]; V at the start of the iteration; constants.
    returns: float [...]; R, the targets; constants.
    clip: c > 0, in units of reward; infinity gives the plain ½ (V − R)².

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
