"""Supervised fine-tuning: maximum likelihood of the demonstrated responses.

  L(θ) = - Σ_i Σ_t mask_it log π_θ(y_it | x_i, y_i,<t) / Σ_i Σ_t mask_it

The mask covers the response and its stop token; prompts and padding are context.
The mean runs over all tokens of the batch, whatever the micro-batching and
sharding: long responses weigh more, as in maximum likelihood they should.
"""

import dataclasses
from typing import Protocol

import jax.numpy as jnp
import optax

from jaxrl_llm.rl import log_probs
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Array, ModelFns, TrainState


@dataclasses.dataclass
class Config:
  """Settings of supervised fine-tuning.

  Attributes:
    num_micro_batches: parts that a batch is computed in; divides the batch size.
    head_chunk: positions per chunk of the head; 0 takes all at once.
  """

  num_micro_batches: int = 1
  head_chunk: int = 128

  def validate(self) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    if self.num_micro_batches < 1:
      raise ValueError(f'num_micro_batches must be at least 1, got {self.num_micro_batches}')
    if self.head_chunk < 0:
      raise ValueError(f'head_chunk must be 0 (off) or positive, got {self.head_chunk}')


class Batch(Protocol):
  """What a step needs: arrays [B, T], with targets[b, t] the token after tokens[b, t].

  `weight` [B] is 0 for the rows that fill up a batch. `segments` tells the sequences of
  packed rows apart; None where each row holds one.
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
    config: settings.
    policy: the network.
    optimizer: an optax transformation.

  Returns:
    Algorithm(init, train_step); `train_step` takes a pytree like `Batch`.

  Raises:
    ValueError: a setting is out of range.
  """
  config.validate()

  def init(key, params) -> TrainState:
    return TrainState(jnp.int32(0), params, optimizer.init(params), key, aux={})

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
