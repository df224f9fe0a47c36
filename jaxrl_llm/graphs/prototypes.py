"""Prototypes: the mean labelled output of each class, and similarity scores to it.

Arrays in, arrays out. Nodes excluded from a mean have weight 0, for any outputs and labels.
"""

import math

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.types import Array, WeightedMean

METRICS = ('cos', 'l1', 'l2')


def check_metric(metric: str) -> None:
  """Raises ValueError if `metric` is not in `METRICS`."""
  if metric not in METRICS:
    raise ValueError(f'metric must be one of {", ".join(METRICS)}, got {metric!r}')


def prototypes(
    outputs: Array, labels: Array, weight: Array, *, num_classes: int
) -> tuple[Array, Array]:
  """Mean output of each class.

    p_c = Σ_u w_u 1[y_u = c] z_u / n_c,   n_c = Σ_u w_u 1[y_u = c]

  Args:
    outputs: float [N, D]; z.
    labels: int [N]; y.
    weight: float [N]; 1 for labelled nodes, 0 for all others.
    num_classes: C.

  Returns:
    (p [C, D], n [C]); p is 0 for a class without nodes.

  References:
    Lin et al. (2020), Shoestring, arXiv 1910.12976; Snell et al. (2017), eq. 1, arXiv 1703.05175.
  """
  chex.assert_rank([outputs, labels, weight], [2, 1, 1])
  chex.assert_equal_shape_prefix([outputs, labels, weight], 1)
  counted = weight > 0
  member = jax.nn.one_hot(labels, num_classes) * weight[:, None]
  counts = jnp.sum(member, axis=0)
  total = member.T @ jnp.where(counted[:, None], outputs, 0.0)
  return total / jnp.where(counts > 0, counts, 1.0)[:, None], counts


def similarities(outputs: Array, centres: Array, *, metric: str) -> Array:
  """Similarity of each output to each prototype; larger is closer.

    cos: z·p / (|z| |p|)     l2: −|z − p|²     l1: −|z − p|₁

  Args:
    outputs: float [N, D].
    centres: float [C, D].
    metric: 'cos', 'l1' or 'l2'.

  Returns:
    float [N, C]; a cosine with a vector of length 0 is 0.

  Raises:
    ValueError: if `metric` is unknown.
  """
  check_metric(metric)
  chex.assert_rank([outputs, centres], 2)
  chex.assert_equal_shape_suffix([outputs, centres], 1)
  if metric == 'cos':
    return _unit(outputs) @ _unit(centres).T
  # Differences first: with |z|² − 2 z·p + |p|², a node's distance from itself has rounding error.
  differences = outputs[:, None] - centres
  if metric == 'l1':
    return -jnp.sum(jnp.abs(differences), axis=-1)
  return -jnp.sum(jnp.square(differences), axis=-1)


def _unit(vectors: Array) -> Array:
  """Scales vectors to length 1; one of length 0 is unchanged, with a finite gradient."""
  squared = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
  return vectors * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def refine(
    centres: Array, counts: Array, outputs: Array, unlabelled: Array, *, metric: str, ratio: float
) -> Array:
  """Moves prototypes towards the outputs of the closest unlabelled nodes.

    p_c ← p_c + Σ_u q_uc (z_u − p_c) / (n_c + Σ_u q_uc)

  This is the weighted mean of the labelled nodes of a class and the K = ⌊ratio · number of
  unlabelled nodes⌋ nodes with the largest q for it. q is the softmax over classes of the
  similarities for l1 and l2, and the cosine itself for cos.

  Args:
    centres: float [C, D]; p.
    counts: float [C]; n.
    outputs: float [N, D]; z.
    unlabelled: float [N]; 1 for usable nodes, 0 for the others.
    metric: 'cos', 'l1' or 'l2'.
    ratio: in [0, 1]; 0 changes nothing.

  Returns:
    float [C, D].

  Raises:
    ValueError: if `metric` or `ratio` is out of range.

  References:
    Lin et al. (2020), Shoestring, arXiv 1910.12976; Ren et al. (2018), arXiv 1803.00676.
  """
  if not 0 <= ratio <= 1:
    raise ValueError(f'ratio must be in [0, 1], got {ratio}')
  chex.assert_rank([centres, counts, outputs, unlabelled], [2, 1, 2, 1])

  scores = similarities(outputs, centres, metric=metric)
  shares = scores if metric == 'cos' else jax.nn.softmax(scores, axis=-1)
  usable = (unlabelled > 0)[:, None]
  order = jnp.argsort(jnp.where(usable, -shares, jnp.inf), axis=0)
  rank = jnp.argsort(order, axis=0)

  possible = jnp.array([_whole_part(ratio, count) for count in range(outputs.shape[0] + 1)])
  most = possible[jnp.sum(usable)]
  return blend(centres, counts, outputs, jnp.where(usable & (rank < most), shares, 0.0))


def _whole_part(ratio: float, count: int) -> int:
  """⌊ratio · count⌋, in float64 with a tolerance proportional to the product.

  0.29 · 100 falls short of 29 by rounding; in float32, products above 700,000 are off by one.
  """
  return math.floor(ratio * count * (1 + 1e-12))


def blend(centres: Array, counts: Array, outputs: Array, shares: Array) -> Array:
  """Computes (n_c p_c + Σ_u q_uc z_u) / (n_c + Σ_u q_uc), the refined prototypes of `refine`.

  Cosines can be negative, and so can the divisor; the formula still applies. Only where the divisor
  is 0 is the prototype unchanged.

  Args:
    centres: float [C, D]; p.
    counts: float [C]; n.
    outputs: float [N, D]; z.
    shares: float [N, C]; q.

  Returns:
    float [C, D].
  """
  mass = jnp.sum(shares, axis=0)
  pull = shares.T @ outputs - mass[:, None] * centres
  divisor = counts + mass
  usable = (divisor != 0)[:, None]
  moved = centres + pull / jnp.where(usable, divisor[:, None], 1.0)
  return jnp.where(usable, moved, centres)


def cross_entropy(scores: Array, labels: Array, weight: Array) -> WeightedMean:
  """Cross-entropy − log softmax(scores)[label], as a weighted mean over nodes.

    Σ_u w_u CE_u / Σ_u w_u

  The released code writes this as a mean over all nodes of CE times mask / mean(mask).

  Args:
    scores: float [N, C].
    labels: int [N].
    weight: float [N].

  Returns:
    The mean as total and weight, in nats.
  """
  chex.assert_rank([scores, labels, weight], [2, 1, 1])
  chex.assert_equal_shape_prefix([scores, labels, weight], 1)
  counted = weight > 0
  scores = jnp.where(counted[:, None], scores, 0.0)
  safe = jnp.where(counted, labels, 0)
  losses = -jnp.take_along_axis(jax.nn.log_softmax(scores), safe[:, None], axis=1)[:, 0]
  return WeightedMean(jnp.sum(weight * losses), jnp.sum(weight))
