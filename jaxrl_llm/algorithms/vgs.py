"""VGS: a value model that classifies the outcome of a response after each of its tokens.

Wang et al. (2025), Value-Guided Search for Efficient Chain-of-Thought Reasoning, arXiv 2505.17373.

A prefix of any policy is rolled out by the reference; the whole response is wrong, correct or cut
off (`rl.return_heads.Outcome`). In a batch, a rollout is the whole response with its class as the
reward; its mask is 0 on the prefix. The loss of a response is the mean over the tokens
of the roll-out, that of a batch the mean over responses:

  L(θ) = (1/B) Σ_i (1/|z_i|) Σ_h CE(f_θ(x_i, y_i, z_i,≤h), κ_i)

The value of a prefix, which ranks blocks (`evaluation.search`) and weights votes
(`evaluation.voting`), is P(correct) under f. It is E[R] under the reference, without a KL penalty:
an offset of logits is algorithms/q_sharp.py.

Departures from the released code (kaiwenw/value-guided-search), and why:
- The Bradley-Terry baseline is read at the last valid token, not at the last slot, which is padding
  in all but the longest row.

The paper's numbers are known here only at second hand, and are not quoted.
"""

import dataclasses
import functools

import chex
import jax.numpy as jnp
import optax

from jaxrl_llm import checks
from jaxrl_llm.rl import batches, preference_losses, return_heads, sequence_scores
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Batch, ModelFns, TrainState

LOSSES = ('outcome', 'bernoulli', 'bradley_terry')
# The score of 'bradley_terry' has no scale; its sigmoid ranks as it does.
HEADS = {'outcome': return_heads.Outcome(), 'bernoulli': return_heads.Bernoulli(),
         'bradley_terry': return_heads.Bernoulli()}


@dataclasses.dataclass
class Config:
  """VGS config.

  Attributes:
    loss: 'outcome' for three classes; 'bernoulli' for two, with rewards of 0 or 1; 'bradley_terry'
      for pairs of responses, ordered by their rewards, at their last token (the baselines).
    num_micro_batches: micro-batches per batch; divides the batch size.
  """

  loss: str = 'outcome'
  num_micro_batches: int = 1

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.one_of(self, '', loss=LOSSES)
    checks.at_least(self, '', num_micro_batches=1)


def make(config: Config, value: ModelFns, optimizer: optax.GradientTransformation) -> Algorithm:
  """Training of params['value'] as two pure functions; a train step is one optimizer step.

  Args:
    config: VGS config.
    value: a network whose head has as many rows as the head of the loss has outputs; one for
      'bradley_terry'.
    optimizer: an optax transformation.

  Returns:
    Algorithm(init, train_step). `train_step` takes a `types.Batch` whose rewards [P, K] are the
    classes of `return_heads` or rewards, see `Config.loss`.

  Raises:
    ValueError: if a config field is out of range; from `train_step`, if a batch for 'bradley_terry'
      has no pairs.
  """
  config.validate()

  def init(key, params) -> TrainState:
    return TrainState.create(params, optimizer, key)

  def pair_loss(params, batch: Batch):
    scores = sequence_scores.sequence_scores(value, params['value'], batch.rollouts)
    chosen, rejected, decided = preference_losses.split_by_preference(scores, batch.rewards)
    mean = functools.partial(batches.mean_over_prompts, weight=batch.weight * decided)
    return mean(preference_losses.bradley_terry_loss(chosen, rejected)), {
        'train/accuracy': mean((chosen > rejected).astype(jnp.float32))}

  def token_loss(params, batch: Batch):
    outputs = sequence_scores.outputs_after(value, params['value'], batch.rollouts)
    return return_heads.prediction_loss(HEADS[config.loss], outputs, batch, batch.rollouts.mask)

  def train_step(state, batch: Batch):
    chex.assert_rank(batch.rewards, 2)
    is_pairs = config.loss == 'bradley_terry'
    if is_pairs:
      batches.check_samples(batch, 2)
    batch, dropped = batches.drop_invalid(batch)
    state, metrics = step_lib.take_step(
        pair_loss if is_pairs else token_loss, optimizer, state, batch,
        num_micro_batches=config.num_micro_batches)
    return state, {**metrics, 'train/dropped': dropped}

  return Algorithm(init, train_step)
