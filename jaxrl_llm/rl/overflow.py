"""Keeps exponentials and squares finite; ordinary values are unchanged, bit for bit."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.types import Array


def largest_exponent(dtype: np.dtype) -> float:
  """Largest integer x for which exp(x) is finite: 88 in float32 and bfloat16, 709 in float64.

  Args:
    dtype: a floating-point type.

  Returns:
    x.
  """
  return float(math.floor(math.log(float(jnp.finfo(dtype).max))))


@jax.custom_jvp
def saturate(values: Array, low: Array | float | None, high: Array | float | None) -> Array:
  """Clips values, but passes the gradient through unclipped.

    f(x) = min(max(x, low), high),    f'(x) := 1

  A function of a saturated value has its exact value and gradient between the bounds. Beyond them
  it has its value and its slope at the bound: a term that has gone too far is still pulled back,
  whereas `jnp.clip` would give it no gradient. NaN stays NaN.

  Args:
    values: float [...].
    low: a number, or an array that broadcasts against `values`; a constant. None means no bound.
    high: the same for the upper bound.

  Returns:
    float [...].
  """
  chex.assert_type(values, float)
  return jnp.clip(values, low, high)


@saturate.defjvp
def _saturate_jvp(primals, tangents):
  return saturate(*primals), tangents[0]


def scale_for_squares(largest: Array) -> Array:
  """Factor that scales numbers up to `largest` so that sums of their squares stay finite.

  1 except for numbers near the square root of the largest float (2^60 in float32); for those it is
  a power of two that keeps their squares far from overflow and from 0.

  Args:
    largest: float [...]; the largest absolute value, at least 0.

  Returns:
    float [...].
  """
  chex.assert_type(largest, float)
  bits = jnp.finfo(largest.dtype).maxexp
  factor = jnp.where(largest > 2.0 ** (bits // 2 - 4), 2.0 ** (28 - bits), 1.0)
  return factor.astype(largest.dtype)
