"""Supervised fine-tuning: maximum likelihood of the demonstrated responses.

  L(θ) = - Σ_i Σ_t mask_it log π_θ(y_it | x_i, y_i,<t) / Σ_i Σ_t mask_it

The mask covers the response and its stop token; prompts and padding are context.
The mean is over all tokens of the batch, for any micro-batching and sharding: long
responses weigh more, as they should in maximum likelihood.
"""

import dataclasses

import optax

from jaxrl_llm import checks
from jaxrl_llm.rl import scoring
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, ModelFns, TrainState


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


def make(
    config: Config, policy: ModelFns, optimizer: optax.GradientTransformation
) -> Algorithm:
  """Supervised fine-tuning of params['policy'] as two pure functions.

  Args:
    config: supervised fine-tuning config.
    policy: the network.
    optimizer: an optax transformation.

  Returns:
    Algorithm(init, train_step); `train_step` takes a pytree like `scoring.Sequences`.

  Raises:
    ValueError: if a config field is out of range.
  """
  config.validate()

  def init(key, params) -> TrainState:
    return TrainState.create(params, optimizer, key)

  def loss_fn(params, batch):
    loss = scoring.sequence_loss(
        policy, params['policy'], batch, chunk_size=config.head_chunk)
    return loss, {}

  def train_step(state, batch):
    return step_lib.take_step(
        loss_fn, optimizer, state, batch, num_micro_batches=config.num_micro_batches
    )

  return Algorithm(init, train_step)
