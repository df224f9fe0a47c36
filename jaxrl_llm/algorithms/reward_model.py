"""A reward model from preferences: Bradley-Terry on a scalar at the end of the response.

  P(y_w ≻ y_l | x) = σ(r(x, y_w) − r(x, y_l)),    L(φ) = −mean ln σ(r_φ(x, y_w) − r_φ(x, y_l)),

with r_φ read at the last token of the response, its stop token included, never at padding
(Gao et al., 2024, REBEL, arXiv 2404.16767; released code `src/tldr/rm.py` of ZhaolinGao/REBEL).

A constant added to r changes nothing above, but it matters to an algorithm that compares rewards
with a baseline, a threshold, or the penalty of a response without a stop token. `centred` fixes it
afterwards as the released code does: reference responses get mean score 0.

Departures from the released code, and why:
- The last token is found by its position, not as the last non-padding token: padding may share
  its id with the stop token.
- Labels are rewards, and a tie carries no preference: a tied pair has weight 0, and is counted in
  `train/ties`.

Tables: experiments/configs/reward_model_{tldr,demo}.py; the scorer of experiments/arena/.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_llm import checks
from jaxrl_llm.rl import batches, preference_losses, sequence_scores
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Array, Batch, ModelFns, Params, TrainState

_HEAD_BIAS = 'value_head/bias'  # As in models/value.py.


@dataclasses.dataclass
class Config:
  """Reward model config.

  Attributes:
    num_micro_batches: micro-batches per batch; divides the batch size.
  """

  num_micro_batches: int = 1

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(self, '', num_micro_batches=1)


def make(config: Config, reward: ModelFns, optimizer: optax.GradientTransformation) -> Algorithm:
  """Training of params['reward'] as two pure functions; a train step is one optimizer step.

  Args:
    config: reward model config.
    reward: a network whose head has one row.
    optimizer: an optax transformation.

  Returns:
    Algorithm(init, train_step). `train_step` takes a `types.Batch` of pairs whose rewards [P, 2]
    define which response is preferred: only their order is read.

  Raises:
    ValueError: if a config field is out of range; from `train_step`, if the batch has no pairs.
  """
  config.validate()

  def init(key, params) -> TrainState:
    return TrainState.create(params, optimizer, key)

  def loss_fn(params, batch: Batch):
    scores = sequence_scores.sequence_scores(reward, params['reward'], batch.rollouts)
    chosen, rejected, decided = preference_losses.split_by_preference(scores, batch.rewards)
    mean = functools.partial(batches.mean_over_prompts, weight=batch.weight * decided)
    return mean(preference_losses.bradley_terry_loss(chosen, rejected)), {
        'train/accuracy': mean((chosen > rejected).astype(jnp.float32)),
        'train/margin': mean(chosen - rejected),
        'train/ties': mean(1 - decided, weight=batch.weight),
    }

  def train_step(state, batch: Batch):
    chex.assert_rank(batch.rewards, 2)
    batches.check_samples(batch, 2)
    batch, dropped = batches.drop_invalid(batch)
    state, metrics = step_lib.take_step(
        loss_fn, optimizer, state, batch, num_micro_batches=config.num_micro_batches)
    return state, {**metrics, 'train/dropped': dropped}

  return Algorithm(init, train_step)


def centred(params: Params, mean_score: Array) -> Params:
  """Lowers every score by a constant, through the bias of the head.

  Given the mean score of reference responses (`rl.sequence_scores`), their mean becomes 0, up to
  rounding in the dtype of the bias.

  Args:
    params: {'reward': ...} with a head that has a bias.
    mean_score: float [], in units of the score.

  Returns:
    The parameters with the new bias.

  Raises:
    ValueError: if the head has no bias.
  """
  heads = 0

  def lower(path, leaf):
    nonlocal heads
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if not name.endswith(_HEAD_BIAS):
      return leaf
    heads += 1
    return leaf - jnp.asarray(mean_score, leaf.dtype)

  reward = jax.tree_util.tree_map_with_path(lower, params['reward'])
  if not heads:
    raise ValueError(f'centring needs a head with a bias ({_HEAD_BIAS}), and the reward has none')
  return {**params, 'reward': reward}
