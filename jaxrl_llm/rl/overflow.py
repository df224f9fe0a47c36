"""Keeps exponentials and squares finite, and leaves every ordinary value as it is, bit for bit."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.types import Array


def largest_exponent(dtype: np.dtype) -> float:
  """The largest whole x for which exp(x) is finite: 88 in float32 and bfloat16, 709 in float64.

  Args:
    dtype: a floating-point type.

  Returns:
    x.
  """
  return float(math.floor(math.log(float(jnp.finfo(dtype).max))))


@jax.custom_jvp
def saturate(values: Array, low: Array | float | None, high: Array | float | None) -> Array:
  """Clips values, and passes the gradient on as if it had not.

    f(x) = min(max(x, low), high),    f'(x) := 1

  A function of a saturated value is exact in between, value and gradient. Beyond the bounds its
  value is that at the bound, and its gradient is the slope at the bound: a term that has gone too
  far is still pulled back, whereas `jnp.clip` would let it go. NaN stays NaN.

  Args:
    values: float [...].
    low: a number, or an array that broadcasts against `values`; a constant. None is no bound.
    high: likewise.

  Returns:
    float [...].
  """
  chex.assert_type(values, float)
  return jnp.clip(values, low, high)


@saturate.defjvp
def _saturate_jvp(primals, tangents):
  return saturate(*primals), tangents[0]


def scale_for_squares(largest: Array) -> Array:
  """A factor for numbers up to `largest` under which sums of their squares stay finite.

  1 for all but numbers near the root of the largest float (2^60 in float32); for those a power of
  two after which their squares are far from overflow and from 0.

  Args:
    largest: float [...]; the largest absolute value, at least 0.

  Returns:
    float [...].
  """
  chex.assert_type(largest, float)
  bits = jnp.finfo(largest.dtype).maxexp
  factor = jnp.where(largest > 2.0 ** (bits // 2 - 4), 2.0 ** (28 - bits), 1.0)
  return factor.astype(largest.dtype)
