"""Losses on preference pairs: DPO, its relatives, and reward models.

Each returns one unreduced value per pair: the caller owns the weights. Log-ratios are
ln π_θ − ln π_ref of whole responses, sums over tokens, never means. Throughout

  D = log_ratio_chosen − log_ratio_rejected,    σ the logistic function.

At θ = ref, where D = 0, all of them pull along ∇ln π(chosen) − ∇ln π(rejected).
"""

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.rl import masking
from jaxrl_llm.types import Array


def split_by_preference(values: Array, rewards: Array) -> tuple[Array, Array, Array]:
  """Orders the values of each pair by its rewards.

  Only the order of the rewards is read. Equal rewards prefer neither response: such a pair must
  be given weight 0, and is returned in its original order.

  Args:
    values: float [P, 2].
    rewards: float [P, 2].

  Returns:
    (value of the preferred response [P], value of the other one [P], float32 [P]: 1, or 0 for a
    tie).
  """
  chex.assert_shape([values, rewards], (values.shape[0], 2))
  first, second = rewards[:, 0], rewards[:, 1]
  swap = second > first
  chosen = jnp.where(swap, values[:, 1], values[:, 0])
  rejected = jnp.where(swap, values[:, 0], values[:, 1])
  return chosen, rejected, (first != second).astype(jnp.float32)


def bradley_terry_loss(chosen: Array, rejected: Array) -> Array:
  """Negative log-likelihood of the preference, with scores as Bradley-Terry strengths.

    ℓ = −ln P(chosen ≻ rejected) = −ln σ(chosen − rejected)

  ln 2 at equal scores. Only the difference of the scores matters: their common offset is fixed
  afterwards (`algorithms.reward_model.centred`).

  Args:
    chosen: float [P].
    rejected: float [P].

  Returns:
    float [P], nats.

  References:
    Bradley and Terry (1952), Rank analysis of incomplete block designs I, Biometrika 39.
  """
  # softplus(−z) = −ln σ(z), with neither overflow nor cancellation.
  return jax.nn.softplus(-_difference(chosen, rejected))


def dpo_loss(log_ratio_chosen: Array, log_ratio_rejected: Array, *, beta: float) -> Array:
  """Direct preference optimisation: Bradley-Terry on the policy's implicit rewards.

    ℓ = −ln σ(β D)

  At D = 0 it is ln 2, and its gradient is −(β/2) (∇ln π(chosen) − ∇ln π(rejected)).

  Args:
    log_ratio_chosen: float [P], nats.
    log_ratio_rejected: float [P], nats.
    beta: β, positive and finite; larger stays closer to the reference.

  Returns:
    float [P], nats.

  Raises:
    ValueError: if `beta` is a number that is not positive and finite.

  References:
    Rafailov et al. (2023), DPO, arXiv 2305.18290.
  """
  masking.check_positive('beta', beta)
  return bradley_terry_loss(beta * log_ratio_chosen, beta * log_ratio_rejected)


def ipo_loss(log_ratio_chosen: Array, log_ratio_rejected: Array, *, tau: float) -> Array:
  """Identity preference optimisation: a finite gap, however sure the preference is.

    ℓ = (D − 1/(2τ))²

  This is REBEL's loss with a constant in place of the difference of rewards.

  D is a difference of sums over tokens, as in equation 17 of the paper, without division by a
  length. TRL's DPOTrainer with loss_type='ipo' averages the log-probs over the tokens of each
  response first, so that its 1/(2τ) is a gap per token. For responses of n tokens the two have
  the same minimiser at τ = τ_TRL / n, where this loss is n² times TRL's; to reproduce TRL's, pass
  log-ratios divided by their lengths.

  Args:
    log_ratio_chosen: float [P], nats.
    log_ratio_rejected: float [P], nats.
    tau: τ, positive and finite; larger stays closer to the reference.

  Returns:
    float [P], nats².

  Raises:
    ValueError: if `tau` is a number that is not positive and finite.

  References:
    Azar et al. (2023), A general theoretical paradigm to understand learning from human
    preferences, arXiv 2310.12036.
  """
  masking.check_positive('tau', tau)
  return jnp.square(_difference(log_ratio_chosen, log_ratio_rejected) - 1 / (2 * tau))


def hinge_loss(log_ratio_chosen: Array, log_ratio_rejected: Array, *, beta: float) -> Array:
  """Hinge relative of DPO: no gradient once the gap reaches 1/β.

    ℓ = max(0, 1 − β D)

  SLiC-HF uses log-probs instead of log-ratios, with the margin δ = 1/β.

  Args:
    log_ratio_chosen: float [P], nats.
    log_ratio_rejected: float [P], nats.
    beta: β, positive and finite.

  Returns:
    float [P].

  Raises:
    ValueError: if `beta` is a number that is not positive and finite.

  References:
    Zhao et al. (2023), SLiC-HF, arXiv 2305.10425; with log-ratios: Liu et al. (2023), RSO,
    arXiv 2309.06657.
  """
  masking.check_positive('beta', beta)
  return jax.nn.relu(1 - beta * _difference(log_ratio_chosen, log_ratio_rejected))


def conservative_dpo_loss(
    log_ratio_chosen: Array, log_ratio_rejected: Array, *, beta: float, label_smoothing: float
) -> Array:
  """cDPO: DPO that assumes that a fraction ε of the labels is flipped.

    ℓ = −(1 − ε) ln σ(β D) − ε ln σ(−β D),    minimal at σ(β D) = 1 − ε

  Args:
    log_ratio_chosen: float [P], nats.
    log_ratio_rejected: float [P], nats.
    beta: β, positive and finite.
    label_smoothing: ε in [0, 1/2); 0 is DPO.

  Returns:
    float [P], nats.

  Raises:
    ValueError: if `beta` or `label_smoothing` is out of range.

  References:
    Mitchell (2023), A note on DPO with noisy preferences and relationship to IPO,
    ericmitchell.ai/cdpo.pdf.
  """
  _check_label_smoothing(label_smoothing)
  labelled = dpo_loss(log_ratio_chosen, log_ratio_rejected, beta=beta)
  flipped = dpo_loss(log_ratio_rejected, log_ratio_chosen, beta=beta)
  return (1 - label_smoothing) * labelled + label_smoothing * flipped


def robust_dpo_loss(
    log_ratio_chosen: Array, log_ratio_rejected: Array, *, beta: float, label_smoothing: float
) -> Array:
  """rDPO: unbiased estimate of DPO's loss on the true labels, when a fraction ε was flipped.

    ℓ = ((1 − ε) L(D) − ε L(−D)) / (1 − 2ε),    L(D) = −ln σ(β D)

  Averaged over label flips of probability ε it is L of the true label. It is unbounded below:
  as D grows it falls like −ε β D / (1 − 2ε).

  Args:
    log_ratio_chosen: float [P], nats.
    log_ratio_rejected: float [P], nats.
    beta: β, positive and finite.
    label_smoothing: ε in [0, 1/2); 0 is DPO.

  Returns:
    float [P], nats; it may be negative.

  Raises:
    ValueError: if `beta` or `label_smoothing` is out of range.

  References:
    Chowdhury, Kini and Natarajan (2024), Provably robust DPO, arXiv 2403.00409.
  """
  _check_label_smoothing(label_smoothing)
  labelled = dpo_loss(log_ratio_chosen, log_ratio_rejected, beta=beta)
  flipped = dpo_loss(log_ratio_rejected, log_ratio_chosen, beta=beta)
  return ((1 - label_smoothing) * labelled - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def _difference(chosen: Array, rejected: Array) -> Array:
  chex.assert_rank([chosen, rejected], 1)
  chex.assert_equal_shape([chosen, rejected])
  chex.assert_type([chosen, rejected], float)
  return chosen - rejected


def _check_label_smoothing(value: float) -> None:
  if not 0 <= value < 0.5:
    raise ValueError(f'label_smoothing must be in [0, 0.5), got {value}')
