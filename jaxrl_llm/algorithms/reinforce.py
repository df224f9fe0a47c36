"""REINFORCE: the policy gradient of whole responses, with a baseline.

Williams, 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement
learning"; for language models as in Ahmadian, Cremer, Gallé, Fadaee, Kreutzer, Pietquin, Üstün and
Hooker, 2024, "Back to basics: revisiting REINFORCE-style optimization for learning from human
feedback in LLMs", arXiv 2402.14740.

A response is one action, its prompt the state. For r(x, y) = s(x, y) − c ln π_θ(y|x)/π_ref(y|x),

  ∇ E_{x, y∼π_θ} r = E (r(x, y) − b) ∇ ln π_θ(y|x)    for any b independent of y,
  L(θ) = −mean (r − b) ln π_θ(y|x),

where log π is the sum over the tokens of the response, stop token included; r − b is a constant.
(The derivative of the penalty itself would add a term of mean 0.) Each batch gives one step: a
second one would be off-policy, and nothing here corrects for it (rloo.py and ppo.py use a ratio).

Baselines b:
  'none'        0;
  'batch_mean'  the mean reward of the batch. It contains r itself, which scales the mean of the
                gradient by 1 − 1/n for n responses, and changes it in no other way;
  'running'     Σ_s d^(t−s) r_s / Σ_s d^(t−s) over the batches s < t before this one: stored in
                `state.aux`, 0 for the first batch. d = 1 is the mean of all rewards so far
                (Ahmadian et al., equation 8).

The penalty is in the reward, at the sequence level, so that the baseline includes it. Samples of
one prompt are treated as separate prompts. There is no reward clipping, no whitening and no
critic.

Tables: a baseline of experiments/arena/, addition and summaries.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_llm import checks
from jaxrl_llm.rl import batches, masking, policy_losses, scoring
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Batch, ModelFns, TrainState, WeightedMean


@dataclasses.dataclass
class Config:
  """REINFORCE config.

  Attributes:
    baseline: 'none', 'batch_mean' or 'running'.
    baseline_decay: d in (0, 1] of 'running'; 1 as published.
    kl_coefficient: c ≥ 0, weight of the penalty in the reward (REBEL's TL;DR script: 0.05).
    samples_per_prompt: any number, at least 1.
    temperature: used for sampling and for all log-probs.
    num_micro_batches: micro-batches per batch.
    head_chunk: positions per chunk of the head; 0 takes all at once.
  """

  baseline: str = 'batch_mean'
  baseline_decay: float = 1.0
  kl_coefficient: float = 0.05
  samples_per_prompt: int = 1
  temperature: float = 1.0
  num_micro_batches: int = 1
  head_chunk: int = 128

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.positive(self, '', 'temperature')
    checks.at_least(self, '', samples_per_prompt=1, num_micro_batches=1, head_chunk=0)
    checks.one_of(self, '', baseline=('none', 'batch_mean', 'running'))
    checks.interval(self, '', '(0, 1]', 'baseline_decay')
    checks.non_negative(self, '', 'kl_coefficient')


def make(config: Config, policy: ModelFns, optimizer: optax.GradientTransformation) -> Algorithm:
  """REINFORCE as two pure functions; a train step is one optimizer step on one batch.

  Args:
    config: REINFORCE config.
    policy: the network of params['policy'].
    optimizer: an optax transformation.

  Returns:
    Algorithm(init, train_step). `train_step` takes a `types.Batch` that π_θ sampled, with
    `reference_log_probs` under π_ref, which may be None if `kl_coefficient` is 0. `state.aux`
    holds {'rewards': WeightedMean}, two scalars, for the running baseline, and {} for the others.

  Raises:
    ValueError: if a config field is out of range.
  """
  config.validate()
  running = config.baseline == 'running'
  score = functools.partial(
      scoring.score, policy, temperature=config.temperature, chunk_size=config.head_chunk)

  def init(key, params) -> TrainState:
    aux = {'rewards': WeightedMean(jnp.float32(0.0), jnp.float32(0.0))} if running else {}
    return TrainState.create(params, optimizer, key, aux)

  def loss_fn(params, batch: Batch):
    mask, weight = batch.rollouts.mask, batch.weight
    log_probs, entropy = score(params['policy'], batch.rollouts)
    total = lambda values: masking.masked_sum(values, mask, axis=-1)
    losses = policy_losses.reinforce_loss(total(log_probs), batch.aux['advantages'])

    log_ratio = total(log_probs - batch.aux['old_log_probs'])
    mean = lambda x: masking.masked_mean(x, jnp.broadcast_to(weight[:, None], x.shape))
    return mean(losses), {
        'train/initial_log_ratio': mean(jnp.abs(log_ratio)),
        'train/advantage_size': mean(jnp.abs(batch.aux['advantages'])),
        'train/entropy': masking.masked_mean(entropy, mask * weight[:, None, None]),
    }

  def train_step(state, batch: Batch):
    chex.assert_rank(batch.rewards, 2)
    batches.check_samples(batch, config.samples_per_prompt)
    batches.check_reference(batch, config.kl_coefficient)

    batch, dropped = batches.drop_invalid(batch)

    old = step_lib.map_micro_batches(
        lambda rollouts: score(state.params['policy'], rollouts)[0], batch.rollouts,
        num_micro_batches=config.num_micro_batches,
    )
    gap = batches.sampler_gap(old, batch.rollouts, batch.weight)

    # r = s − c ln π_θ/π_ref, [P, K].
    rewards = batches.kl_shaped_rewards(batch, old, config.kl_coefficient)
    here = masking.masked_mean(
        rewards, jnp.broadcast_to(batch.weight[:, None], rewards.shape))
    past = state.aux['rewards'] if running else here
    baseline = jnp.float32(0.0) if config.baseline == 'none' else past.value()
    batch = dataclasses.replace(
        batch, aux={'old_log_probs': old, 'advantages': rewards - baseline})

    before = state
    state, metrics = step_lib.take_step(
        loss_fn, optimizer, state, batch, num_micro_batches=config.num_micro_batches)

    if running:
      decay = config.baseline_decay
      rewards = WeightedMean(decay * past.total, decay * past.weight) + here
      # A rejected step, or a sum that overflows, leaves the running mean unchanged.
      sound = (state.step > before.step) & jnp.isfinite(rewards.total)
      keep = lambda new, old: jnp.where(sound, new, old)
      state = dataclasses.replace(state, aux={'rewards': jax.tree.map(keep, rewards, past)})

    return state, {
        **metrics, 'train/sampler_gap': gap, 'train/dropped': dropped,
        'train/baseline': WeightedMean(baseline, jnp.float32(1.0)),
    }

  return Algorithm(init, train_step)
