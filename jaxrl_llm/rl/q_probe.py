"""Q-Probe: resamples whole responses by a linear score of their embeddings.

Of k samples of the reference, sample i is chosen with probability softmax(q / β)_i, q = θᵀφ. For
k → ∞ this is the reference tilted by exp(q / β); for k samples it differs by O(1 / k).

References:
  Li et al. (2024), Q-Probe, arXiv 2402.14688.
"""

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.rl import masking
from jaxrl_llm.types import Array


def choice_probs(scores: Array, *, beta: float) -> Array:
  """Returns the probability of each of k samples: softmax(scores / β), float [..., k]."""
  masking.check_positive('beta', beta)
  return jax.nn.softmax(scores / beta, axis=-1)


def policy_gradient_loss(
    scores: Array, rewards: Array, *, beta: float, centred: bool = False
) -> Array:
  """Importance-weighted loss of the resampled policy.

    L = −(1/k) Σ_i r_i e^{q_i / β} / mean_j e^{q_j / β} = −Σ_i softmax(q / β)_i r_i

  Args:
    scores: float [..., k]; q of k samples of the reference.
    rewards: float [..., k]; constants.
    beta: β, positive and finite.
    centred: whether the mean reward of the k samples is subtracted.

  Returns:
    float [...].
  """
  chex.assert_equal_shape([scores, rewards])
  if centred:
    rewards = rewards - rewards.mean(axis=-1, keepdims=True)
  return -jnp.sum(
      choice_probs(scores, beta=beta) * jax.lax.stop_gradient(rewards), axis=-1)
