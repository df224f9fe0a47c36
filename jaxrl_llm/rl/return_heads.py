"""Heads of a value function that model the distribution of the future return, not only its mean.

The outputs [..., num_outputs] of a value model at a token describe Z, the return after this token
if the reference policy chooses all later ones. Each head computes from them

  loss(outputs, targets)           the loss of predicting an observed return,
  expectation(outputs)             E[Z],
  soft_offset(outputs, inv_eta)    ln E[exp(Z / η)] = Q*/η, which guided decoding adds to the
                                   reference's log-prob of the token.

η is the weight of the KL penalty, as in the paper of Q# (the released code for mathematics calls
its inverse eta). Z does not depend on it: one head, trained once, serves all η. With 1/η = 0 the
offset is exactly 0, and the guided policy is the reference.
"""

import dataclasses
from typing import Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import checks
from jaxrl_llm.rl import batches, masking
from jaxrl_llm.types import Array, Batch, Metrics, WeightedMean

# Classes of `Outcome`.
WRONG, CORRECT, UNFINISHED = range(3)


class ReturnHead(Protocol):
  """A model of the distribution of the return; see the module."""

  @property
  def num_outputs(self) -> int:
    """Number of outputs of the value model for each token."""

  def loss(self, outputs: Array, targets: Array) -> Array:
    """Returns the loss [...] of observed returns [...] under outputs [..., num_outputs]."""

  def expectation(self, outputs: Array) -> Array:
    """Returns E[Z], float32 [...]."""

  def soft_offset(self, outputs: Array, inv_eta: float | Array) -> Array:
    """Returns ln E[exp(Z / η)], float32 [...]; exactly 0 where `inv_eta` is 0."""


@dataclasses.dataclass(frozen=True)
class Bernoulli:
  """Z is 0 or 1: one logit, trained by binary cross-entropy (the default of Q#).

  The loss also takes returns between 0 and 1, whose mean is then learned.

  References:
    Zhou et al. (2025), Q#, arXiv 2502.20548, section 3.
  """

  num_outputs = 1

  def loss(self, outputs: Array, targets: Array) -> Array:
    """Binary cross-entropy, nats."""
    logits = self._logits(outputs, targets)
    return jax.nn.softplus(logits) - targets * logits

  def expectation(self, outputs: Array) -> Array:
    """P(Z = 1)."""
    return jax.nn.sigmoid(_float32(outputs[..., 0]))

  def soft_offset(self, outputs: Array, inv_eta: float | Array) -> Array:
    """ln(1 − p + p e^{1/η}); in [0, 1/η], increasing in the logit.

    Finite with its gradient for logits up to ±80 and 1/η up to 500: e^{1/η} is never computed.
    """
    return _bernoulli_offset(_float32(outputs[..., 0]), inv_eta)

  def _logits(self, outputs: Array, targets: Array) -> Array:
    logits = _float32(outputs[..., 0])
    chex.assert_equal_shape([logits, targets])
    return logits


@dataclasses.dataclass(frozen=True)
class SquaredError(Bernoulli):
  """`Bernoulli` trained by (p − Z)² instead (an ablation of Q#)."""

  def loss(self, outputs: Array, targets: Array) -> Array:
    """Squared error of the probability."""
    return jnp.square(jax.nn.sigmoid(self._logits(outputs, targets)) - targets)


@dataclasses.dataclass(frozen=True)
class Histogram:
  """Z has one of M equally spaced values: M logits, trained by the cross-entropy of the nearest.

  The offset is that of all M values; the released code subtracts its smallest value over the
  candidates, which changes the policy if there are tokens that are not candidates.

  Attributes:
    num_atoms: M, at least 2.
    low: the smallest value.
    high: the largest value; returns outside the two are clipped.

  References:
    Zhou et al. (2025), Q#, arXiv 2502.20548; the released code has 11 values from 0 to 1.
  """

  num_atoms: int = 11
  low: float = 0.0
  high: float = 1.0

  def __post_init__(self):
    checks.at_least(self, 'Histogram', num_atoms=2)
    if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
      raise ValueError(
          f'Histogram.low must be below Histogram.high, both finite, got {self.low} and '
          f'{self.high}')

  @property
  def num_outputs(self) -> int:
    """One logit for each value."""
    return self.num_atoms

  @property
  def atoms(self) -> np.ndarray:
    """The values, float32 [M]."""
    return np.linspace(self.low, self.high, self.num_atoms, dtype=np.float32)

  def loss(self, outputs: Array, targets: Array) -> Array:
    """Cross-entropy of the value nearest to the return, nats."""
    steps = (targets - self.low) / (self.high - self.low) * (self.num_atoms - 1)
    nearest = jnp.clip(jnp.round(steps), 0, self.num_atoms - 1).astype(jnp.int32)
    return _cross_entropy(outputs, nearest)

  def expectation(self, outputs: Array) -> Array:
    """The mean value."""
    return jax.nn.softmax(_float32(outputs), axis=-1) @ self.atoms

  def soft_offset(self, outputs: Array, inv_eta: float | Array) -> Array:
    """ln Σ_m p_m exp(a_m / η)."""
    logits = _float32(outputs)
    tilted = logits + self.atoms * jnp.asarray(inv_eta, jnp.float32)[..., None]
    return _or_zero(jax.nn.logsumexp(tilted, axis=-1) - jax.nn.logsumexp(logits, axis=-1), inv_eta)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Three classes of a whole response: wrong, correct, or cut off before its end.

  Z is 1 if it is correct and 0 otherwise: the value is softmax[1], and not 1 − softmax[0].

  References:
    Wang et al. (2025), Value-Guided Search, arXiv 2505.17373.
  """

  num_outputs = 3

  def loss(self, outputs: Array, targets: Array) -> Array:
    """Cross-entropy of the class, nats; targets are `WRONG`, `CORRECT` or `UNFINISHED`."""
    return _cross_entropy(outputs, jnp.asarray(targets, jnp.int32))

  def expectation(self, outputs: Array) -> Array:
    """P(correct)."""
    return jax.nn.softmax(_float32(outputs), axis=-1)[..., CORRECT]

  def soft_offset(self, outputs: Array, inv_eta: float | Array) -> Array:
    """As of `Bernoulli` with P(correct)."""
    logits = _float32(outputs)
    others = jnp.logaddexp(logits[..., WRONG], logits[..., UNFINISHED])
    return _bernoulli_offset(logits[..., CORRECT] - others, inv_eta)


@dataclasses.dataclass(frozen=True)
class Exponential:
  """Learns E[exp((Z − shift) / η)] itself, for one η; there is no mean.

  The released code has it as an option, without the constant shift / η in the offset: without it,
  tokens that are not candidates gain shift / η on those that are.

  Attributes:
    inv_eta: 1/η, positive.
    shift: an upper bound of the return, which keeps the target in (0, 1].

  References:
    Zhou et al. (2025), Q#, released code (arXiv 2502.20548).
  """

  inv_eta: float
  shift: float = 1.0

  num_outputs = 1

  def __post_init__(self):
    checks.positive(self, 'Exponential', 'inv_eta')

  def loss(self, outputs: Array, targets: Array) -> Array:
    """Binary cross-entropy of exp((Z − shift) / η), nats."""
    return Bernoulli().loss(outputs, jnp.exp(self.inv_eta * (targets - self.shift)))

  def expectation(self, outputs: Array) -> Array:
    """Raises ValueError: the mean of Z does not follow from the outputs."""
    raise ValueError('Exponential has no expectation: only its soft offset is learned')

  def soft_offset(self, outputs: Array, inv_eta: float | Array) -> Array:
    """ln E[exp(Z / η)] for the η that it was trained for; another one is a ValueError."""
    if not isinstance(inv_eta, jax.core.Tracer) and float(inv_eta) not in (0.0, self.inv_eta):
      raise ValueError(
          f'inv_eta must be 0 or that of the training, {self.inv_eta}, got {inv_eta}')
    logits = _float32(outputs[..., 0])
    return _or_zero(jax.nn.log_sigmoid(logits) + self.inv_eta * self.shift, inv_eta)


def prediction_loss(
    head: ReturnHead, outputs: Array, batch: Batch, mask: Array
) -> tuple[WeightedMean, Metrics]:
  """Mean over responses of the mean loss over their tokens.

  Responses have the same weight, however long they are; one without a token in the loss counts as
  0.

  Args:
    head: the head.
    outputs: float32 [P, K, T, num_outputs]; finite where `mask` is 0.
    batch: its `rewards` [P, K] are the targets of all tokens of a response.
    mask: float32 [P, K, T]; the tokens in the loss.

  Returns:
    (the loss, nats; metrics with the mean of the expectation).
  """
  targets = jnp.broadcast_to(batch.rewards[..., None], mask.shape)

  def mean(values):
    by_response = masking.masked_mean(values, mask, axis=-1).value()
    return batches.mean_over_prompts(by_response.mean(axis=1), batch.weight)

  return mean(head.loss(outputs, targets)), {'train/value': mean(head.expectation(outputs))}


def _float32(values: Array) -> Array:
  return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _or_zero(offset: Array, inv_eta: float | Array) -> Array:
  """The offset, or exactly 0 where 1/η is 0: rounding must not move the policy."""
  return jnp.where(jnp.asarray(inv_eta) == 0, 0.0, offset)


def _bernoulli_offset(logits: Array, inv_eta: float | Array) -> Array:
  """ln(1 − p + p e^{x}) with p = σ(l), x = 1/η ≥ 0.

    x < 1:  log1p(p (e^x − 1)), which is accurate for small x
    x ≥ 1:  softplus(l + x) − softplus(l), for l > 0 without the cancellation of large terms
  """
  inv_eta = jnp.asarray(inv_eta, logits.dtype)
  small = jnp.log1p(jax.nn.sigmoid(logits) * jnp.expm1(jnp.minimum(inv_eta, 1.0)))
  above, below = jnp.maximum(logits, 0.0), jnp.where(logits > 0, 0.0, logits)
  positive = inv_eta - jax.nn.softplus(-above) + jax.nn.softplus(-above - inv_eta)
  negative = jax.nn.softplus(below + inv_eta) - jax.nn.softplus(below)
  large = jnp.where(logits > 0, positive, negative)
  return _or_zero(jnp.where(inv_eta < 1, small, large), inv_eta)


def _cross_entropy(outputs: Array, labels: Array) -> Array:
  """Returns −ln softmax(outputs)[label], [...]."""
  log_probs = jax.nn.log_softmax(_float32(outputs), axis=-1)
  return -jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
