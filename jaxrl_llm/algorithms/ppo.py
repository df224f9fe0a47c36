"""PPO with a critic and a penalty on every token: the baseline of REBEL's paper.

Schulman, Wolski, Dhariwal, Radford and Klimov, 2017, "Proximal policy optimization algorithms",
arXiv 1707.06347; for language models as in Ziegler et al., 2019, arXiv 1909.08593. Hyperparameters
and order of operations are those of the TL;DR baseline of Gao et al., 2024, REBEL, arXiv
2404.16767 (code: ZhaolinGao/REBEL, src/tldr/ppo.py).

A token is an action; everything before it is the state. One iteration on responses y ∼ π_t:

  1. freeze ln π_t and V_t; V_t of a token is read where the token is chosen, before it is seen;
  2. r_t = −c ln π_t/π_ref (y_t|x, y_<t), plus the score s(x, y) at the last token;
     over the batch r ← (r − μ)/σ + μ;                                         (`whiten_rewards`)
  3. δ_t = r_t + γ V_{t+1} − V_t,  A_t = δ_t + γλ A_{t+1},  R_t = A_t + V_t, V = 0 after the end;
     over the batch A ← (A − μ)/σ;                                          (`whiten_advantages`)
  4. take a few optimizer steps for both networks at once on
       L = mean [ −min( ρ A, clip(ρ, 1 − ε, 1 + ε) A ) ]
         + v mean [ ½ max( (V − R)², (V_t + clip(V − V_t, −ε_v, ε_v) − R)² ) ].

At the first step ρ = 1, nothing is clipped, and the policy's gradient is the policy gradient. The
caller initialises params['value'] from the reward model, whose scalar head it shares.

Departures from the released code, and why:
- It samples past the stop token, always to T tokens, and trains on that text too: penalty,
  whitening, GAE and both losses run over all T positions. Here a response ends with its stop
  token. `compat='released'` reproduces the rest: means and whitening divide by all T slots of a
  response, where padding has reward, advantage and loss 0.
- It whitens per process, over a part of the batch; here over the whole batch.
- It shuffles the rows before every epoch, which has no effect at its one step per epoch.

Tables: a baseline of experiments/arena/, addition and summaries.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_llm import checks
from jaxrl_llm.rl import (
  advantages,
  batches,
  masking,
  policy_losses,
  returns,
  scoring,
  sequence_scores,
  value_losses,
)
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Array, Batch, ModelFns, TrainState


@dataclasses.dataclass
class Config:
  """PPO config; the defaults are those of the TL;DR script.

  Attributes:
    kl_coefficient: c ≥ 0, weight of the penalty in the token rewards.
    clip: ε > 0, clip range of the ratio; infinity never clips.
    value_clip: ε_v > 0, in units of reward; infinity never clips.
    value_coefficient: v ≥ 0, weight of the value loss.
    discount: γ in [0, 1].
    trace: λ in [0, 1].
    whiten_rewards: scale token rewards to unit variance over the batch, preserving their mean.
    whiten_advantages: scale advantages to mean 0 and unit variance over the batch.
    compat: 'correct', or 'released' (padding counts in means and whitening).
    samples_per_prompt: any number; each sample is its own trajectory.
    temperature: used for sampling and for all log-probs.
    num_epochs: passes over a batch; each is `num_minibatches` optimizer steps.
    num_minibatches: optimizer steps per pass (the released code: 1).
    num_micro_batches: micro-batches per minibatch.
    head_chunk: positions per chunk of the head; 0 takes all at once.
  """

  kl_coefficient: float = 0.05
  clip: float = 0.2
  value_clip: float = 0.2
  value_coefficient: float = 0.1
  discount: float = 1.0
  trace: float = 0.95
  whiten_rewards: bool = True
  whiten_advantages: bool = True
  compat: str = 'correct'
  samples_per_prompt: int = 1
  temperature: float = 0.7
  num_epochs: int = 4
  num_minibatches: int = 1
  num_micro_batches: int = 1
  head_chunk: int = 128

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.positive(self, '', 'temperature')
    checks.interval(self, '', '(0, inf]', 'clip', 'value_clip')
    checks.fraction(self, '', 'discount', 'trace')
    checks.one_of(self, '', compat=('correct', 'released'))
    checks.at_least(self, '', samples_per_prompt=1, num_epochs=1, num_minibatches=1)
    checks.at_least(self, '', num_micro_batches=1, head_chunk=0)
    checks.non_negative(self, '', 'kl_coefficient', 'value_coefficient')


def token_rewards(config: Config, batch: Batch, old_log_probs: Array) -> Array:
  """r_t = −c ln π_t/π_ref (y_t), plus the score at the last token that the policy chose.

  Args:
    config: `kl_coefficient` is used.
    batch: scores in `rewards` [P, K]; `reference_log_probs` may be None if the coefficient is 0.
    old_log_probs: float [P, K, T] under π_t.

  Returns:
    float32 [P, K, T]; 0 where the mask is 0. Its sum over a response is its shaped reward.
  """
  mask = batch.rollouts.mask > 0
  slots = mask.shape[-1]
  last = slots - 1 - jnp.argmax(mask[..., ::-1], axis=-1)
  rewards = jax.nn.one_hot(last, slots) * batch.rewards[..., None]
  if config.kl_coefficient:
    reference = jnp.where(mask, batch.reference_log_probs, 0.0)
    rewards = rewards - config.kl_coefficient * (old_log_probs - reference)
  return jnp.where(mask, rewards, 0.0)


def make(
    config: Config, policy: ModelFns, value: ModelFns, optimizer: optax.GradientTransformation
) -> Algorithm:
  """PPO as two pure functions; a train step is one iteration.

  Args:
    config: PPO config.
    policy: the network of params['policy'].
    value: the critic of params['value'], with a one-row head.
    optimizer: an optax transformation for both networks.

  Returns:
    Algorithm(init, train_step). `train_step` takes a `types.Batch` that π_t sampled, with
    `reference_log_probs` under π_ref, which may be None if `kl_coefficient` is 0.

  Raises:
    ValueError: if a config field is out of range.
  """
  config.validate()
  bounds = dict(clip_low=min(config.clip, 1.0), clip_high=config.clip)
  normalisation = 'constant' if config.compat == 'released' else 'token'
  score = functools.partial(
      scoring.score, policy, temperature=config.temperature, chunk_size=config.head_chunk)
  read_values = functools.partial(sequence_scores.token_values, value)

  def init(key, params) -> TrainState:
    return TrainState.create(params, optimizer, key)

  def estimate(batch: Batch, old: Array, values: Array) -> dict[str, Array]:
    """Steps 2 and 3: fixed targets for the losses, each [P, K, T]."""
    mask = batch.rollouts.mask
    slots = jnp.ones_like(mask) if config.compat == 'released' else mask
    counts = slots * batch.weight[:, None, None]
    rewards = token_rewards(config, batch, old)
    if config.whiten_rewards:
      rewards = advantages.whiten(rewards, counts, mean='keep')

    advantage, target = returns.generalized_advantages(
        rewards, values, mask, discount=config.discount, trace=config.trace)
    if config.whiten_advantages:
      advantage = advantages.whiten(advantage, counts)
    return {
        'old_log_probs': old, 'old_values': values, 'advantages': advantage, 'returns': target}

  def loss_fn(params, batch: Batch):
    mask, weight, frozen = batch.rollouts.mask, batch.weight, batch.aux
    log_probs, entropy = score(params['policy'], batch.rollouts)
    values = read_values(params['value'], batch.rollouts)
    log_ratio = log_probs - frozen['old_log_probs']

    surrogate = policy_losses.clipped_surrogate(log_ratio, frozen['advantages'], **bounds)
    clipped = policy_losses.is_clipped(log_ratio, frozen['advantages'], **bounds)

    error = value_losses.clipped_value_loss(
        values, frozen['old_values'], frozen['returns'], clip=config.value_clip)
    loss = policy_losses.mean_over_tokens(
        surrogate + config.value_coefficient * error, mask, weight, normalisation=normalisation)

    mean = lambda x: masking.masked_mean(x, mask * weight[:, None, None])

    return loss, {
        'train/policy_loss': mean(surrogate),
        'train/value_loss': mean(error),
        'train/log_ratio': mean(jnp.abs(log_ratio)),
        'train/clip_fraction': mean(clipped.astype(jnp.float32)),
        'train/entropy': mean(entropy),
        'train/value': mean(values),
        'train/return': mean(frozen['returns']),
    }

  def train_step(state, batch: Batch):
    chex.assert_rank(batch.rewards, 2)
    batches.check_samples(batch, config.samples_per_prompt)
    batches.check_reference(batch, config.kl_coefficient)

    batch, dropped = batches.drop_invalid(batch)

    def score_and_value(rollouts):
      log_probs, _ = score(state.params['policy'], rollouts)
      return log_probs, read_values(state.params['value'], rollouts)

    old, values = step_lib.map_micro_batches(
        score_and_value, batch.rollouts,
        num_micro_batches=config.num_minibatches * config.num_micro_batches,
    )
    gap = batches.sampler_gap(old, batch.rollouts, batch.weight)
    batch = dataclasses.replace(batch, aux=estimate(batch, old, values))

    state, first, metrics = step_lib.take_steps(
        loss_fn, optimizer, state, batch, num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches, num_micro_batches=config.num_micro_batches,
    )

    return state, batches.iteration_metrics(first, metrics, sampler_gap=gap, dropped=dropped)

  return Algorithm(init, train_step)
