"""Supervised fine-tuning: maximum likelihood of the demonstrated responses.

  L(θ) = - Σ_i Σ_t mask_it log π_θ(y_it | x_i, y_i,<t) / Σ_i Σ_t mask_it

The mask covers the response and its stop token; prompts and padding are context.
The mean is over all tokens of the batch, for any micro-batching and sharding: long
responses weigh more, as they should in maximum likelihood.
"""

import dataclasses
from typing import Protocol

import optax

from jaxrl_llm import checks
from jaxrl_llm.rl import log_probs
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Array, ModelFns, TrainState


@dataclasses.dataclass
class Config:
  """Supervised fine-tuning config.

  Attributes:
    num_micro_batches: micro-batches per batch; divides the batch size.
    head_chunk: positions per chunk of the head; 0 takes all at once.
  """

  num_micro_batches: int = 1
  head_chunk: int = 128

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(self, '', num_micro_batches=1, head_chunk=0)


class Batch(Protocol):
  """Inputs of a train step: arrays [B, T], with targets[b, t] the token after tokens[b, t].

  `weight` [B] is 0 for the rows that pad a batch. `segments` separates the sequences of
  packed rows; None where each row holds one.
  """

  tokens: Array
  positions: Array
  valid: Array
  targets: Array
  loss_mask: Array
  weight: Array
  segments: Array | None


def make(
    config: Config, policy: ModelFns, optimizer: optax.GradientTransformation
) -> Algorithm:
  """Supervised fine-tuning of params['policy'] as two pure functions.

  Args:
    config: supervised fine-tuning config.
    policy: the network.
    optimizer: an optax transformation.

  Returns:
    Algorithm(init, train_step); `train_step` takes a pytree like `Batch`.

  Raises:
    ValueError: if a config field is out of range.
  """
  config.validate()

  def init(key, params) -> TrainState:
    return TrainState.create(params, optimizer, key)

  def loss_fn(params, batch):
    output = policy.apply(
        params['policy'], batch.tokens, positions=batch.positions, valid=batch.valid,
        segments=batch.segments,
    )
    mask = batch.loss_mask * batch.weight[:, None]
    loss = log_probs.cross_entropy(
        output.hidden, output.head, batch.targets, mask, chunk_size=config.head_chunk
    )
    return loss, {}

  def train_step(state, batch):
    return step_lib.take_step(
        loss_fn, optimizer, state, batch, num_micro_batches=config.num_micro_batches
    )

  return Algorithm(init, train_step)
