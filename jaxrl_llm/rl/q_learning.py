"""Targets and losses of Q-learning on fixed data: CD-Q and ILQL."""

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.types import Array


def bellman_means(log_probs: Array, next_values: Array) -> Array:
  """Targets of CD-Q: the expected value after the reference's next token, Σ_z p(z | x) V(x z).

  At the end of a response the target is its reward instead.

  Args:
    log_probs: float [..., V]; of the reference.
    next_values: float [..., V]; V after each token, such as those of an older copy.

  Returns:
    float [...]; a constant.

  References:
    Mudgal et al. (2023), Controlled Decoding from Language Models, arXiv 2310.17022.
  """
  chex.assert_equal_shape([log_probs, next_values])
  return jax.lax.stop_gradient(jnp.sum(jnp.exp(log_probs) * next_values, axis=-1))


def expectile_loss(values: Array, targets: Array, *, tau: float) -> Array:
  """Asymmetric squared error, minimal at the τ-expectile of the targets.

    ℓ = |τ − 1[target < V]| (target − V)²

  τ = 1/2 gives half the squared error, whose minimiser is the mean; τ → 1 the maximum.

  Args:
    values: float [...]; V.
    targets: float [...]; constants.
    tau: τ in (0, 1); ILQL: 0.7 to 0.9.

  Returns:
    float [...].

  Raises:
    ValueError: if τ is out of range.

  References:
    Snell et al. (2022), ILQL, arXiv 2206.11871; Kostrikov et al. (2021), IQL, arXiv 2110.06169.
  """
  chex.assert_equal_shape([values, targets])
  if not 0 < tau < 1:
    raise ValueError(f'tau must be in (0, 1), got {tau}')
  errors = jax.lax.stop_gradient(targets) - values
  return jnp.where(errors < 0, 1 - tau, tau) * jnp.square(errors)


def temporal_difference_loss(
    q_values: Array, rewards: Array, next_values: Array, *, gamma: float = 1.0
) -> Array:
  """Squared error of Q(s, a) from r + γ V(s'), where V is 0 after the end.

  Args:
    q_values: float [...]; of the chosen actions; one of ILQL's two Q-functions.
    rewards: float [...]; r.
    next_values: float [...]; V(s'), constants.
    gamma: γ in (0, 1].

  Returns:
    float [...].

  Raises:
    ValueError: if γ is out of range.
  """
  chex.assert_equal_shape([q_values, rewards, next_values])
  if not 0 < gamma <= 1:
    raise ValueError(f'gamma must be in (0, 1], got {gamma}')
  return jnp.square(q_values - jax.lax.stop_gradient(rewards + gamma * next_values))


def conservative_penalty(q_values: Array, actions: Array) -> Array:
  """−ln softmax(Q(s, ·))[a]: keeps the Q-values of actions that are not in the data low.

  Args:
    q_values: float [..., A].
    actions: int [...].

  Returns:
    float [...].

  References:
    Kumar et al. (2020), CQL, arXiv 2006.04779; as used by ILQL.
  """
  log_probs = jax.nn.log_softmax(q_values, axis=-1)
  return -jnp.take_along_axis(log_probs, actions[..., None], axis=-1)[..., 0]
