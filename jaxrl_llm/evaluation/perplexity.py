"""Held-out loss of a language model, for tasks without a verifier."""

import math
from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np

from jaxrl_llm.rl import log_probs
from jaxrl_llm.types import Array, ModelFns, Params, WeightedMean


class Batch(Protocol):
  """Arrays [B, T], with targets[b, t] the token after tokens[b, t].

  `weight` [B] is 0 for the rows that pad a batch; `segments` is None where no row
  holds more than one sequence.
  """

  tokens: Array
  positions: Array
  valid: Array
  targets: Array
  loss_mask: Array
  weight: Array
  segments: Array | None


def batch_loss(policy: ModelFns, params: Params, batch: Batch, *, chunk_size: int) -> WeightedMean:
  """Loss −Σ m ln π(target) / Σ m over the unmasked tokens, nats per token.

  Args:
    policy: the network.
    params: parameters of the network.
    batch: sequences; `loss_mask` and `weight` select the tokens.
    chunk_size: positions per chunk of the head; 0 takes all at once.

  Returns:
    The mean as total and weight.
  """
  output = policy.apply(
      params, batch.tokens, positions=batch.positions, valid=batch.valid, segments=batch.segments
  )
  mask = batch.loss_mask * batch.weight[:, None]
  return log_probs.cross_entropy(
      output.hidden, output.head, batch.targets, mask, chunk_size=chunk_size
  )


class HeldOutLoss:
  """Loss on fixed held-out sequences; compiled at the first call."""

  def __init__(
      self,
      policy: ModelFns,
      batches: Sequence[Batch],
      *,
      chunk_size: int = log_probs.DEFAULT_CHUNK_SIZE,
  ):
    """Stores the sequences.

    Args:
      policy: the network.
      batches: batches of one shape; each unmasked token is in exactly one of them.
      chunk_size: positions per chunk of the head; 0 takes all at once.
    """
    self._batches = list(batches)
    self._loss = jax.jit(
        lambda params, batch: batch_loss(policy, params, batch, chunk_size=chunk_size)
    )

  def __call__(self, params: Params) -> dict[str, float]:
    """Evaluates `params`.

    Returns:
      'loss': nats per token, with equal weight for all unmasked tokens; 'perplexity': its
      exponential; 'loss_tokens': the number of unmasked tokens.

    Raises:
      ValueError: if all tokens are masked.
    """
    # Batches are summed on the host in float64, which no total overflows.
    means = jax.device_get([self._loss(params, batch) for batch in self._batches])
    total, weight = (
        math.fsum(float(getattr(mean, part)) for mean in means) for part in ('total', 'weight')
    )
    if not weight:
      raise ValueError('all tokens of the held-out sequences are masked')
    loss = total / weight
    with np.errstate(over='ignore'):
      return {'loss': loss, 'perplexity': float(np.exp(loss)), 'loss_tokens': weight}
