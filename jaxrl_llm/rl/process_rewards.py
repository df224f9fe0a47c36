"""Rewards of the steps of a response: from roll-outs, or implicit in an outcome reward model."""

from typing import Literal

import chex
import jax.numpy as jnp

from jaxrl_llm.rl import masking
from jaxrl_llm.types import Array


def rollout_labels(successes: Array, *, kind: Literal['soft', 'hard'] = 'soft') -> Array:
  """Labels of steps from N roll-outs after each.

    'soft'  the fraction that succeed, whose expectation is the success rate p of the prefix
    'hard'  1 if any succeeds, with expectation 1 − (1 − p)^N

  Args:
    successes: float [..., N]; 0 or 1.
    kind: one of the two above.

  Returns:
    float [...].

  Raises:
    ValueError: on an unknown kind.

  References:
    Wang et al. (2024), Math-Shepherd, arXiv 2312.08935.
  """
  chex.assert_type(successes, float)
  if kind == 'soft':
    return successes.mean(axis=-1)
  if kind == 'hard':
    return successes.max(axis=-1)
  raise ValueError(f"kind must be 'soft' or 'hard', got {kind!r}")


def implicit_values(log_ratios: Array, mask: Array, *, beta: float) -> Array:
  """Soft values of the prefixes of a response, under an outcome reward β ln π_φ/π_ref (y|x).

    q_t = β Σ_{i ≤ t} ln π_φ/π_ref (y_i | x, y_<i) = β ln E_{π_ref}[ e^{r(y)/β} | y_≤t ]

  The reward of step t is q_t − q_{t−1} = β ln π_φ/π_ref (y_t | x, y_<t).

  Args:
    log_ratios: float [..., T], nats; ln π_φ − ln π_ref of the tokens.
    mask: float [..., T].
    beta: β, positive and finite.

  Returns:
    float [..., T].

  References:
    Yuan et al. (2024), Free process rewards without process labels, arXiv 2412.01981.
  """
  chex.assert_equal_shape([log_ratios, mask])
  masking.check_positive('beta', beta)
  return beta * jnp.cumsum(jnp.where(mask > 0, log_ratios, 0.0), axis=-1)


def response_score(
    scores: Array, mask: Array, *, by: Literal['last', 'min', 'product'] = 'last'
) -> Array:
  """Score of a response from the scores of its steps.

  Args:
    scores: float [..., T]; at the ends of steps.
    mask: float [..., T]; 1 at the ends of steps, at least one.
    by: 'last' step; 'min' or 'product' of all.

  Returns:
    float [...].

  Raises:
    ValueError: on an unknown rule.
  """
  chex.assert_equal_shape([scores, mask])
  inside = mask > 0
  if by == 'min':
    return jnp.min(jnp.where(inside, scores, jnp.inf), axis=-1)
  if by == 'product':
    return jnp.prod(jnp.where(inside, scores, 1.0), axis=-1)
  if by == 'last':
    last = scores.shape[-1] - 1 - jnp.argmax(inside[..., ::-1], axis=-1)
    return jnp.take_along_axis(scores, last[..., None], axis=-1)[..., 0]
  raise ValueError(f"by must be 'last', 'min' or 'product', got {by!r}")
