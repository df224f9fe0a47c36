"""Losses for a policy whose logits are soft Q-values: DQO and ShiQ.

At the optimal policy π* of E[Σ r] − β KL(π ‖ π_ref) and its values V*, on every trajectory,

  β ln π*/π_ref (a_t | s_t) = r_t + V*(s_{t+1}) − V*(s_t),    V* = 0 after the end,

so that the residuals below are 0 whichever policy chose the actions. The papers' details were not
confirmed here: signs and shifts follow from this equation.
"""

import chex
import jax.numpy as jnp

from jaxrl_llm.rl import masking
from jaxrl_llm.types import Array


def one_step_residuals(
    log_ratios: Array, rewards: Array, values: Array, mask: Array, *, beta: float
) -> Array:
  """Differences of both sides of the equation above: β ln ratio_t − (r_t + V_{t+1} − V_t).

  Args:
    log_ratios: float [..., T], nats; ln π − ln π_ref of the tokens.
    rewards: float [..., T]; r_t.
    values: float [..., T]; V of the state in which each token is chosen.
    mask: float [..., T]; the tokens, from the left and without gaps.
    beta: β, positive and finite.

  Returns:
    float [..., T]; 0 where `mask` is 0. Their squares are the policy loss of DQO.

  References:
    Liu et al. (2024), DQO, arXiv 2410.09302.
  """
  chex.assert_equal_shape([log_ratios, rewards, values, mask])
  masking.check_positive('beta', beta)
  values = jnp.where(mask > 0, values, 0.0)
  following = jnp.concatenate([values[..., 1:], jnp.zeros_like(values[..., :1])], axis=-1)
  return jnp.where(mask > 0, beta * log_ratios - (rewards + following - values), 0.0)


def multi_step_residuals(
    log_ratios: Array, rewards: Array, values: Array, mask: Array, *, beta: float
) -> Array:
  """Sums of the one-step residuals from each token on: β Σ_{k ≥ t} ln ratio_k − (G_t − V_t).

  A reward at the end reaches all tokens. In ShiQ the values are those of the policy's own logits,
  β ln Σ_a exp(logits), less the same of the reference's.

  Args:
    log_ratios: see `one_step_residuals`.
    rewards: the same.
    values: the same.
    mask: the same.
    beta: the same.

  Returns:
    float [..., T]; 0 where `mask` is 0. Their squares are the loss of ShiQ.

  References:
    Clavier et al. (2025), ShiQ, arXiv 2505.11081.
  """
  residuals = one_step_residuals(log_ratios, rewards, values, mask, beta=beta)
  sums = jnp.cumsum(residuals[..., ::-1], axis=-1)[..., ::-1]
  return jnp.where(mask > 0, sums, 0.0)
