"""Temperature, top-k and top-p on logits [..., V]."""

import math

import chex
import jax
import jax.numpy as jnp

# Finite: an excluded token must never be chosen, and must never produce a NaN.
EXCLUDED = -1e30


def check_truncation(*, k: int = 0, p: float = 1.0) -> None:
  """Raises ValueError unless k is at least 0 (off) and p in (0, 1]."""
  if k < 0:
    raise ValueError(f'top_k must be at least 0, got {k}')
  if not 0 < p <= 1:
    raise ValueError(f'top_p must be in (0, 1], got {p}')


def temper(logits: jax.Array, *, temperature: float) -> jax.Array:
  """Divides logits by the temperature, in float32.

  Args:
    logits: [..., V].
    temperature: > 0. Greedy decoding is an argmax, not a small temperature.

  Returns:
    float32 [..., V].

  Raises:
    ValueError: if the temperature is not positive and finite.
  """
  if not 0 < temperature < math.inf:
    raise ValueError(f'temperature must be positive and finite, got {temperature}')
  return logits.astype(jnp.float32) / temperature


def top_k(logits: jax.Array, *, k: int) -> jax.Array:
  """Keeps the k largest logits; k = 0 keeps all.

  Ties for the k-th largest are broken by the lower token id, so that exactly k stay.

  Args:
    logits: [..., V].
    k: number of logits to keep; 0, or V and above, keeps all.

  Returns:
    [..., V], the others at `EXCLUDED`.

  Raises:
    ValueError: if k is negative.
  """
  check_truncation(k=k)
  if k == 0 or k >= logits.shape[-1]:
    return logits
  _, indices = jax.lax.top_k(logits, k)
  keep = jnp.put_along_axis(
      jnp.zeros(logits.shape, bool), indices, True, axis=-1, inplace=False
  )
  return jnp.where(keep, logits, EXCLUDED)


def top_p(logits: jax.Array, *, p: float) -> jax.Array:
  """Keeps the nucleus: the fewest most probable tokens whose probabilities reach p.

  The token that crosses p is kept, so at least one always is.

  Args:
    logits: [..., V], after the temperature.
    p: in (0, 1]; 1 keeps all.

  Returns:
    [..., V], the others at `EXCLUDED`.

  Raises:
    ValueError: if p is outside (0, 1].

  References:
    Holtzman et al., 2020, section 3.1, arXiv 1904.09751.
  """
  check_truncation(p=p)
  if p == 1:
    return logits
  order = jnp.argsort(-logits, axis=-1, stable=True)
  probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
  before = jnp.cumsum(probabilities, axis=-1) - probabilities
  keep = jnp.put_along_axis(
      jnp.zeros(logits.shape, bool), order, before < p, axis=-1, inplace=False
  )
  return jnp.where(keep, logits, EXCLUDED)


def choose(logits: jax.Array, keys: jax.Array) -> jax.Array:
  """Draws one token per row by the Gumbel-max trick: argmax(logits + noise).

  Args:
    logits: float32 [B, V].
    keys: PRNG keys [B], one per row, so that a row's noise does not depend on the others.

  Returns:
    int32 [B].
  """
  chex.assert_rank(logits, 2)
  noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(keys)
  return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)
