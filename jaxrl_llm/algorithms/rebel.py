"""REBEL: reinforcement learning as regression onto differences of rewards.

Gao, Chang, Zhan, Oertell, Swamy, Brantley, Joachims, Bagnell, Lee and Sun, 2024, "REBEL:
Reinforcement learning via regressing relative rewards", arXiv 2404.16767; code:
ZhaolinGao/REBEL.

A mirror-descent step π_{t+1} ∝ π_t exp(η r) satisfies, for any two responses to x,
  ln π_{t+1}(y|x)/π_t(y|x) − ln π_{t+1}(y'|x)/π_t(y'|x) = η (r(x, y) − r(x, y')),
in which the normaliser cancels. REBEL fits that equation by least squares:

  1. draw y ∼ π_t and y' ∼ μ for each prompt (μ = π_t, or a data set: `mix_offline`);
  2. freeze π_t(y|x), π_t(y'|x) and the rewards, which include a penalty c · ln π_t/π_ref;
  3. take a few optimizer steps from θ_t on
       L(θ) = mean (D_θ − η (r − r'))²,     D_θ = the difference of log-ratios to π_t,
     where log π is the sum over the tokens of the response, stop token included.

There is no critic, no clipping and no whitening. π_t is refreshed every iteration, and is not
π_ref. With general preferences ℓ(x, y, y'') = −ℓ(x, y'', y) in place of rewards the target is
ℓ(x, y, y'') − ℓ(x, y', y'') for comparators y'' ∼ π_t (`signal='preferences'`).

Departures from the released code, and why:
- A response counts as finished if it chose a stop token; there, if padding is left, which also
  penalises one that stops at the last slot (`masking.replace_scores_without_stop`).
- Padding after a response is excluded from all sums; there, the evaluation's KL includes it.
- The paper divides the log-ratios by η, the code multiplies the rewards (`loss_form`): the two
  differ by η², which affects clipping, weight decay and Adam's ε.

Tables: experiments/configs/{arena,rebel_tldr,rebel_chat,rebel_largebatch}.py; general
preferences: rebel_games.py; a policy that is a chain of Gaussian steps: experiments/rebel_gaussian.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_llm import checks
from jaxrl_llm.rl import batches, masking, regression_losses, scoring
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Array, Batch, ModelFns, Rollouts, TrainState


@dataclasses.dataclass
class Config:
  """REBEL config; the defaults are those of the TL;DR script where it sets them.

  Attributes:
    eta: η > 0; larger is more aggressive.
    loss_form: 'code', or 'paper' (divided by η²).
    kl_coefficient: c ≥ 0, weight of the penalty in the reward.
    samples_per_prompt: 2; more with `pairs='best_worst'`.
    pairs: 'all' (the two samples), or 'best_worst' by reward out of more samples.
    signal: 'rewards' [P, K], or 'preferences' [P, 2, M] of the pair against M comparators.
    offline_fraction: fraction of prompts whose y' comes from a data set (`mix_offline`).
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
  pairs: str = 'all'
  signal: str = 'rewards'
  offline_fraction: float = 0.0
  whiten_rewards: bool = False
  temperature: float = 0.7
  num_epochs: int = 4
  num_minibatches: int = 1
  num_micro_batches: int = 1
  head_chunk: int = 128

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.positive(self, '', 'eta', 'temperature')
    checks.at_least(self, '', num_epochs=1, num_minibatches=1, num_micro_batches=1, head_chunk=0)
    checks.one_of(self, '', loss_form=('code', 'paper'), pairs=('all', 'best_worst'))
    checks.one_of(self, '', signal=('rewards', 'preferences'))
    checks.at_least(self, '', samples_per_prompt=2)
    checks.fraction(self, '', 'offline_fraction')
    checks.non_negative(self, '', 'kl_coefficient')

    if self.pairs == 'all':
      checks.fixed(self, '', "with pairs='all'", samples_per_prompt=2)
    else:
      checks.fixed(self, '', "with pairs='best_worst'", signal='rewards', offline_fraction=0)


def mix_offline(config: Config, rollouts: Rollouts, offline: Rollouts, key: Array) -> Rollouts:
  """Replaces the second sample of some prompts by a response from a data set, so that μ is mixed.

  Args:
    config: `offline_fraction` is used.
    rollouts: two samples per prompt, before they are scored.
    offline: one response per prompt, with the same slots; its log-probs are not read.
    key: PRNG key for the choice of prompts.

  Returns:
    Rollouts with K = 2; the log-probs of responses that were not sampled are NaN.
  """
  chex.assert_equal_shape([rollouts.tokens[:, :1], offline.tokens])
  replace = jax.random.bernoulli(key, config.offline_fraction, rollouts.prompt_lengths.shape)
  unknown = dataclasses.replace(offline, log_probs=jnp.full_like(offline.log_probs, jnp.nan))

  def mix(ours, theirs):
    chosen = replace.reshape((-1,) + (1,) * (ours.ndim - 1))
    return jnp.concatenate([ours[:, :1], jnp.where(chosen, theirs, ours[:, 1:])], axis=1)

  return rollouts.map_samples(mix, unknown)


def make(config: Config, policy: ModelFns, optimizer: optax.GradientTransformation) -> Algorithm:
  """REBEL as two pure functions; a train step is one iteration.

  Args:
    config: REBEL config.
    policy: the network of params['policy'].
    optimizer: an optax transformation.

  Returns:
    Algorithm(init, train_step). `train_step` takes a `types.Batch` that π_t sampled, with
    `reference_log_probs` under π_ref, which may be None if `kl_coefficient` is 0.

  Raises:
    ValueError: if a config field is out of range.
  """
  config.validate()
  score = functools.partial(
      scoring.score, policy, temperature=config.temperature, chunk_size=config.head_chunk)

  def init(key, params) -> TrainState:
    return TrainState.create(params, optimizer, key)

  def shape_rewards(batch: Batch, old: Array) -> Array:
    """r − c ln π_t/π_ref of the pair, [P, 2]."""
    if config.signal == 'preferences':
      batch = dataclasses.replace(
          batch, rewards=regression_losses.preference_rewards(batch.rewards))
    return batches.regression_rewards(
        batch, old, kl_coefficient=config.kl_coefficient, whiten=config.whiten_rewards)

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

    if config.pairs == 'best_worst':
      batch = batches.best_and_worst(batch)
    batch, dropped = batches.drop_invalid(batch)

    old = step_lib.map_micro_batches(
        lambda rollouts: score(state.params['policy'], rollouts)[0], batch.rollouts,
        num_micro_batches=config.num_minibatches * config.num_micro_batches,
    )
    gap = batches.sampler_gap(old, batch.rollouts, batch.weight)
    batch = dataclasses.replace(
        batch, rewards=shape_rewards(batch, old), aux={'old_log_probs': old})

    state, first, metrics = step_lib.take_steps(
        loss_fn, optimizer, state, batch, num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches, num_micro_batches=config.num_micro_batches,
    )

    return state, batches.iteration_metrics(first, metrics, sampler_gap=gap, dropped=dropped)

  return Algorithm(init, train_step)
