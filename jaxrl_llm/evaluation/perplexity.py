"""Held-out loss of a language model, for tasks without a verifier."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from jaxrl_llm.rl import log_probs, scoring
from jaxrl_llm.types import ModelFns, Params


class HeldOutLoss:
  """Loss on fixed held-out sequences; compiled at the first call."""

  def __init__(
      self,
      policy: ModelFns,
      batches: Sequence[scoring.Sequences],
      *,
      chunk_size: int = log_probs.DEFAULT_CHUNK_SIZE,
  ):
    """Stores the sequences.

    Args:
      policy: the network.
      batches: batches of one shape, iterated over at each call; each unmasked token is in exactly
        one of them.
      chunk_size: positions per chunk of the head; 0 takes all at once.
    """
    self._batches = batches
    self._loss = jax.jit(
        lambda params, batch: scoring.sequence_loss(policy, params, batch, chunk_size=chunk_size)
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
    means = [jax.device_get(self._loss(params, batch)) for batch in self._batches]
    total, weight = (
        math.fsum(float(getattr(mean, part)) for mean in means) for part in ('total', 'weight')
    )
    if not weight:
      raise ValueError('all tokens of the held-out sequences are masked')
    loss = total / weight
    with np.errstate(over='ignore'):
      return {'loss': loss, 'perplexity': float(np.exp(loss)), 'loss_tokens': weight}
