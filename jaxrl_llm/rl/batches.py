"""Groups of samples: what an algorithm requires of a batch, and what it derives from one."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.rl import advantages, masking
from jaxrl_llm.types import Array, Batch, Metrics, Rollouts, WeightedMean

SENTINEL = -99_999.0  # Written by released code where a reward model failed.


def check_samples(batch: Batch, samples_per_prompt: int) -> None:
  """Raises ValueError unless the rewards [P, K, ...] are those of K samples per prompt."""
  if batch.rewards.shape[1] != samples_per_prompt:
    raise ValueError(
        f'the batch must have samples_per_prompt = {samples_per_prompt} samples a prompt, got '
        f'{batch.rewards.shape[1]}'
    )


def check_reference(batch: Batch, kl_coefficient: float) -> None:
  """Raises ValueError if a penalty needs the reference's log-probs and the batch has none."""
  if kl_coefficient and batch.reference_log_probs is None:
    raise ValueError('kl_coefficient above 0 needs reference_log_probs, got None')


def drop_invalid(batch: Batch) -> tuple[Batch, WeightedMean]:
  """Drops the prompts that have an invalid reward.

  A prompt counts if its weight is positive and all of its rewards are finite and above the
  sentinel −99,999. For all others the mask, the rewards, the reference log-probs and `aux` become
  0 before anything is computed with them: 0 · NaN would reach the gradient. A group is dropped
  as a whole: a baseline over the rest of it would be a different baseline.

  Args:
    batch: rewards [P, K] (or [P, K, ...]).

  Returns:
    The batch with the dropped rows at weight 0, and the fraction of real prompts dropped.
  """
  chex.assert_equal_shape_prefix([batch.rewards, batch.weight], 1)
  real = batch.weight > 0
  sound = jnp.isfinite(batch.rewards) & (batch.rewards > SENTINEL)
  counts = real & jnp.all(sound.reshape(len(real), -1), axis=1)

  def keep(leaf):
    return jnp.where(counts.reshape((-1,) + (1,) * (leaf.ndim - 1)), leaf, jnp.zeros_like(leaf))

  rollouts = dataclasses.replace(
      batch.rollouts, mask=keep(batch.rollouts.mask), log_probs=keep(batch.rollouts.log_probs)
  )

  dropped = WeightedMean(
      jnp.sum(jnp.where(real & ~counts, batch.weight, 0.0)),
      jnp.sum(jnp.where(real, batch.weight, 0.0)),
  )

  return dataclasses.replace(
      batch, rollouts=rollouts, rewards=keep(batch.rewards), weight=keep(batch.weight),
      reference_log_probs=jax.tree.map(keep, batch.reference_log_probs),
      aux=jax.tree.map(keep, batch.aux),
  ), dropped


def best_and_worst(batch: Batch) -> Batch:
  """Selects the samples with the largest and the smallest reward of each prompt, in this order.

  Ties go to the first sample for the best and to the last one for the worst, so that the two
  samples always differ.

  Args:
    batch: K ≥ 2 samples per prompt, rewards [P, K].

  Returns:
    The batch with K = 2; `aux` is unchanged.

  Raises:
    ValueError: if a prompt has fewer than 2 samples.
  """
  chex.assert_rank(batch.rewards, 2)
  group = batch.rewards.shape[1]
  if group < 2:
    raise ValueError(f'a pair needs at least 2 samples per prompt, got {group}')

  best = jnp.argmax(batch.rewards, axis=1)
  worst = group - 1 - jnp.argmin(batch.rewards[:, ::-1], axis=1)
  chosen = jnp.stack([best, worst], axis=1)
  return batch.samples(chosen)


def sampler_gap(log_probs: Array, rollouts: Rollouts, weight: Array) -> WeightedMean:
  """Mean |ln π_trainer − ln π_sampler| of a sampled token, nats.

  The two should agree; where they do not, the ratio to the policy that sampled is wrong.
  Tokens that were not sampled here (log-prob NaN: offline data) are excluded.

  Args:
    log_probs: float [P, K, T]; computed by the training forward pass under the parameters that
      sampled.
    rollouts: the samples with the sampler's log-probs.
    weight: float [P].

  Returns:
    A `WeightedMean` over tokens; its weight is 0 if none of the sampler's log-probs is known.
  """
  chex.assert_equal_shape([log_probs, rollouts.log_probs, rollouts.mask])
  known = jnp.isfinite(rollouts.log_probs)
  mask = jnp.where(known, rollouts.mask, 0.0) * weight[:, None, None]
  gap = jnp.abs(jax.lax.stop_gradient(log_probs) - jnp.where(known, rollouts.log_probs, 0.0))
  return masking.masked_mean(gap, mask)


def kl_shaped_rewards(batch: Batch, log_probs: Array, kl_coefficient: float) -> Array:
  """Subtracts the sequence-level KL term from the rewards.

    r = s − c ln π_t/π_ref (y|x),    log π the sum over the tokens that the policy chose

  Args:
    batch: scores s in `rewards` [P, K]; `reference_log_probs` may be None if c is 0.
    log_probs: float [P, K, T] under π_t.
    kl_coefficient: c; 0 returns the scores unchanged.

  Returns:
    [P, K]; constants.
  """
  if not kl_coefficient:
    return batch.rewards
  mask = batch.rollouts.mask
  return masking.shape_rewards(
      batch.rewards, masking.masked_sum(log_probs, mask, axis=-1),
      masking.masked_sum(batch.reference_log_probs, mask, axis=-1), kl_coefficient=kl_coefficient)


def regression_rewards(
    batch: Batch, log_probs: Array, *, kl_coefficient: float, whiten: bool
) -> Array:
  """Rewards that REBEL and REFUEL regress on: KL-shaped, then whitened if asked.

  Args:
    batch: scores in `rewards` [P, K]; invalid prompts have `weight` 0 and do not count.
    log_probs: float [P, K, T] under π_t.
    kl_coefficient: c of `kl_shaped_rewards`.
    whiten: whether rewards are scaled to unit variance, with their mean kept.

  Returns:
    [P, K]; constants.
  """
  rewards = kl_shaped_rewards(batch, log_probs, kl_coefficient)
  if whiten:
    counts = jnp.broadcast_to(batch.weight[:, None], rewards.shape)
    rewards = advantages.whiten(rewards, counts, mean='keep')
  return rewards


def regression_metrics(
    log_ratio: Array, rewards: Array, *, eta: float, weight: Array
) -> dict[str, WeightedMean]:
  """Metrics of a regression of log-prob differences on reward differences.

  Args:
    log_ratio: float [P, 2]; ln π/π_t of the samples.
    rewards: float [P, 2].
    eta: η, the factor on the difference of the rewards.
    weight: float [P].

  Returns:
    Sizes of log-ratio, difference and target; how often the two have one sign; share of ties.
  """
  difference = log_ratio[:, 0] - log_ratio[:, 1]
  target = eta * (rewards[:, 0] - rewards[:, 1])
  mean = functools.partial(mean_over_prompts, weight=weight)
  return {
      'train/log_ratio': mean(jnp.mean(jnp.abs(log_ratio), axis=1)),
      'train/difference': mean(jnp.abs(difference)),
      'train/target': mean(jnp.abs(target)),
      'train/sign_agreement': mean((difference * target > 0).astype(jnp.float32)),
      'train/ties': mean((target == 0).astype(jnp.float32)),
  }


def mean_over_prompts(values: Array, weight: Array) -> WeightedMean:
  """Mean of values [P] weighted by prompt [P], not yet divided."""
  return WeightedMean(jnp.sum(weight * values), jnp.sum(weight))


def iteration_metrics(
    first: Metrics, metrics: Metrics, *, sampler_gap: WeightedMean, dropped: WeightedMean
) -> Metrics:
  """Metrics of a train step that takes several optimizer steps on one batch.

  Args:
    first: metrics of the first optimizer step, before any parameter has moved.
    metrics: metrics of all optimizer steps, with 'train/log_ratio' to the frozen policy.
    sampler_gap: from `sampler_gap`.
    dropped: from `drop_invalid`.

  Returns:
    `metrics` with 'train/sampler_gap', 'train/dropped' and 'train/initial_log_ratio', which is 0
    up to rounding if the frozen policy is that of the first step.
  """
  return {
      **metrics, 'train/sampler_gap': sampler_gap, 'train/dropped': dropped,
      'train/initial_log_ratio': first['train/log_ratio'],
  }
