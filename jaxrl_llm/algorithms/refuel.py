"""REFUEL: REBEL for dialogues, by regression onto differences of future rewards.

Gao, Zhan, Chang, Swamy, Brantley, Lee and Sun, 2024, "Regressing the relative future: efficient
policy optimization for multi-turn RLHF", arXiv 2410.04612; code: ZhaolinGao/REFUEL.

In a dialogue x_1, y_1, x_2, ..., y_H the state s_h ends with the user's last message, the action
is the whole reply y_h, and one reward r(s_H, y_H) scores the dialogue. With
Q_h(s, y) = E[r | s_h = s, y_h = y, π_t afterwards] the step π_{t+1} ∝ π_t exp(η Q_h) satisfies
  ln π_{t+1}(y|s)/π_t(y|s) − ln π_{t+1}(y'|s)/π_t(y'|s) = η (Q_h(s, y) − Q_h(s, y')).

  1. draw a turn h, and roll π_t out with the user: on-policy prefix s_h, reply y_h, reward R;
  2. from the same s_h draw another reply y'_h and roll it out to the end, with new replies of the
     user: reward R'. R − R' is an unbiased estimate of the difference of the two Q;
  3. freeze π_t(y_h|s_h), π_t(y'_h|s_h) and the rewards, which include a penalty c · ln π_t/π_ref
     of the two replies;
  4. take a few optimizer steps from θ_t on
       L(θ) = mean (D_θ − η (R − R'))²,     D_θ = the difference of log-ratios to π_t,
     where log π is the sum over the tokens of reply h only, stop token included.

Everything after turn h enters only through the rewards. The noise of the regression target does
not move the minimiser: it adds η² E[Var(R|s_h, y_h) + Var(R'|s_h, y'_h)] to the loss. With H = 1
this is REBEL. There is no critic. `sampling.dialogue` draws h and implements the roll-outs and the
reset.

Departures from the released code, and why:
- A reply without a stop token keeps all of its tokens in the mask; there, its last token is
  overwritten by a stop token that the policy did not choose, and is dropped from the mask.
- Whether a reply stopped is read from the reply (`masking.replace_scores_without_stop` on the
  rollouts' `stop_reason`, that of reply h); there, for Anthropic HH, from the mask's length, which
  also penalises a reply that needs all but one of its slots.
- π_t's log-probs are computed by the train step; there, setting one reads them from a file written
  by another machine, and D_θ need not be 0 before the first step.

Settings: one (a simulated user): η = 1000, temperature 0.8, no penalty, one pass of minibatches
of 128 (experiments/configs/refuel_one.py); two (questions of a data set): the defaults
(refuel_two.py). The toy dialogue: experiments/arena/.
"""

import dataclasses
import functools

import chex
import jax.numpy as jnp
import optax

from jaxrl_llm import checks
from jaxrl_llm.rl import batches, masking, regression_losses, scoring
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Batch, ModelFns, TrainState


@dataclasses.dataclass
class Config:
  """REFUEL config; the defaults are those documented for setting two on Anthropic HH.

  Attributes:
    eta: η > 0; larger is more aggressive.
    loss_form: 'code', or 'paper' (divided by η²).
    kl_coefficient: c ≥ 0, weight of the penalty in the reward, over the tokens of reply h.
    samples_per_prompt: 2, the two roll-outs.
    whiten_rewards: scale rewards to unit variance over the batch.
    temperature: used for sampling and for all log-probs.
    num_epochs: passes over a batch; each is `num_minibatches` optimizer steps.
    num_minibatches: optimizer steps per pass (the released code: 1).
    num_micro_batches: micro-batches per minibatch.
    head_chunk: positions per chunk of the head; 0 takes all at once.
  """

  eta: float = 1.0
  loss_form: str = 'code'
  kl_coefficient: float = 0.05
  samples_per_prompt: int = 2
  whiten_rewards: bool = False
  temperature: float = 1.0
  num_epochs: int = 4
  num_minibatches: int = 1
  num_micro_batches: int = 1
  head_chunk: int = 128

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.positive(self, '', 'eta', 'temperature')
    checks.at_least(self, '', num_epochs=1, num_minibatches=1, num_micro_batches=1, head_chunk=0)
    checks.one_of(self, '', loss_form=('code', 'paper'))
    checks.fixed(self, '', 'for REFUEL', samples_per_prompt=2)
    checks.non_negative(self, '', 'kl_coefficient')


def only_turn(batch: Batch) -> Batch:
  """Restricts the mask and the sampler's log-probs to the tokens of reply h.

  All other tokens are context, like the user's. REBEL, RLOO and DPO train on turn h when given
  this batch: with h = H − 1 these are the paper's last-turn baselines.

  Args:
    batch: aux holds 'turns' int32 [P, K, T], the reply that a token belongs to (−1 elsewhere), and
      'turn' int32 [P], h.

  Raises:
    ValueError: if aux lacks one of them.
  """
  for name in ('turns', 'turn'):
    if name not in batch.aux:
      raise ValueError(f'aux must hold {name!r} (see sampling.dialogue.as_rollouts), got '
                       f'{sorted(batch.aux)}')

  rollouts = batch.rollouts
  chex.assert_equal_shape([batch.aux['turns'], rollouts.mask])
  here = batch.aux['turns'] == batch.aux['turn'][:, None, None]
  mask = jnp.where(here, rollouts.mask, 0.0)
  log_probs = jnp.where(mask > 0, rollouts.log_probs, 0.0)
  return dataclasses.replace(
      batch, rollouts=dataclasses.replace(rollouts, mask=mask, log_probs=log_probs))


def make(config: Config, policy: ModelFns, optimizer: optax.GradientTransformation) -> Algorithm:
  """REFUEL as two pure functions; a train step is one iteration.

  Args:
    config: REFUEL config.
    policy: the network of params['policy'].
    optimizer: an optax transformation.

  Returns:
    Algorithm(init, train_step). `train_step` takes a `types.Batch` of the two roll-outs with
    'turns' and 'turn' in aux (`only_turn`), rewards [P, 2] of the whole dialogues, and
    `reference_log_probs` under π_ref, which may be None if `kl_coefficient` is 0.

  Raises:
    ValueError: if a config field is out of range.
  """
  config.validate()
  score = functools.partial(
      scoring.score, policy, temperature=config.temperature, chunk_size=config.head_chunk)

  def init(key, params) -> TrainState:
    return TrainState.create(params, optimizer, key)

  def loss_fn(params, batch: Batch):
    mask, weight = batch.rollouts.mask, batch.weight
    log_probs, _ = score(params['policy'], batch.rollouts)
    log_ratio = masking.masked_sum(log_probs - batch.aux['old_log_probs'], mask, axis=-1)
    losses = regression_losses.rebel_loss(
        log_ratio, batch.rewards, eta=config.eta, form=config.loss_form)

    metrics = batches.regression_metrics(log_ratio, batch.rewards, eta=config.eta, weight=weight)
    return batches.mean_over_prompts(losses, weight), metrics

  def train_step(state, batch: Batch):
    batches.check_samples(batch, config.samples_per_prompt)
    batches.check_reference(batch, config.kl_coefficient)

    batch, dropped = batches.drop_invalid(only_turn(batch))

    old = step_lib.map_micro_batches(
        lambda rollouts: score(state.params['policy'], rollouts)[0], batch.rollouts,
        num_micro_batches=config.num_minibatches * config.num_micro_batches,
    )
    gap = batches.sampler_gap(old, batch.rollouts, batch.weight)
    rewards = batches.regression_rewards(  # R − c ln π_t/π_ref of the two replies, [P, 2].
        batch, old, kl_coefficient=config.kl_coefficient, whiten=config.whiten_rewards)
    batch = dataclasses.replace(batch, rewards=rewards, aux={'old_log_probs': old})

    state, first, metrics = step_lib.take_steps(
        loss_fn, optimizer, state, batch, num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches, num_micro_batches=config.num_micro_batches,
    )

    return state, batches.iteration_metrics(first, metrics, sampler_gap=gap, dropped=dropped)

  return Algorithm(init, train_step)
