"""Groups of samples: required shapes, dropped groups, pairs, shaped rewards and metrics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.rl import batches
from jaxrl_llm.types import Batch, Rollouts, WeightedMean

PROMPTS, SAMPLES, SLOTS = 4, 3, 2


def _batch(rewards=None, **changes):
  """Every array says where its numbers come from: 100 p + 10 k + t."""
  p, k, t = np.indices((PROMPTS, SAMPLES, SLOTS))
  address = jnp.asarray(100 * p + 10 * k + t, jnp.int32)
  each = address[..., 0]
  rollouts = Rollouts(
      prompts=jnp.ones((PROMPTS, 3), jnp.int32), prompt_lengths=jnp.full(PROMPTS, 3, jnp.int32),
      tokens=address, lengths=each, mask=jnp.ones(address.shape),
      log_probs=-1.0 - address, stop_reason=(each % 2).astype(jnp.int8))
  if rewards is None:
    rewards = [[1, 3, 2], [5, 5, 5], [-1, -2, -1], [0, 1, 1]]
  return dataclasses.replace(Batch(
      rollouts, jnp.asarray(rewards, jnp.float32), -2.0 - address,
      {'values': jnp.arange(1.0, PROMPTS + 1)}, jnp.ones(PROMPTS)), **changes)


def test_a_sound_batch_comes_back_as_it_was():
  data = _batch()
  valid, dropped = batches.drop_invalid(data)
  jax.tree.map(np.testing.assert_array_equal, valid, data)
  assert dropped.value() == 0


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, -99_999.0, -1e6])
def test_a_group_with_one_bad_reward_is_dropped_whole_and_counted(bad):
  data = _batch()
  data = dataclasses.replace(data, rewards=data.rewards.at[2, 1].set(bad))
  valid, dropped = batches.drop_invalid(data)
  np.testing.assert_array_equal(valid.weight, [1, 1, 0, 1])
  assert dropped.value() == 0.25
  # Everything that is computed with is 0 there, and untouched elsewhere.
  numbers = lambda b: (b.rewards, b.rollouts.mask, b.rollouts.log_probs, b.reference_log_probs,
                       b.aux['values'])
  rest = np.array([0, 1, 3])
  for before, after in zip(numbers(_batch()), numbers(valid)):
    assert not np.any(after[2]) and np.any(before[2])
    np.testing.assert_array_equal(after[rest], before[rest])
  np.testing.assert_array_equal(valid.rollouts.tokens, data.rollouts.tokens)


def test_rewards_just_above_the_sentinel_count():
  rewards = np.full((PROMPTS, SAMPLES), -99_998.0)
  assert batches.drop_invalid(_batch(rewards))[1].value() == 0


def test_filler_rows_are_neither_kept_nor_counted_as_dropped():
  data = _batch(weight=jnp.asarray([1.0, 0, 1, 0]))
  poisoned = dataclasses.replace(
      data, rewards=data.rewards.at[1].set(jnp.nan).at[0, 0].set(jnp.nan))
  valid, dropped = batches.drop_invalid(poisoned)
  np.testing.assert_array_equal(valid.weight, [0, 0, 1, 0])
  assert dropped.value() == 0.5  # One of the two real prompts.
  heavy = dataclasses.replace(poisoned, weight=jnp.asarray([3.0, 0, 1, 0]))
  assert batches.drop_invalid(heavy)[1].value() == 0.75
  assert not np.isnan(valid.rewards).any()
  assert batches.drop_invalid(_batch(weight=jnp.zeros(PROMPTS)))[1].value() == 0


def test_rewards_by_token_and_no_reference():
  rewards = np.zeros((PROMPTS, SAMPLES, SLOTS))
  rewards[3, 0, 1] = np.nan
  valid, _ = batches.drop_invalid(_batch(rewards, reference_log_probs=None))
  np.testing.assert_array_equal(valid.weight, [1, 1, 1, 0])
  assert valid.reference_log_probs is None


def test_best_and_worst_take_everything_along():
  # Of equal rewards the first is the best, the last the worst.
  chosen = np.array([[1, 0], [0, 2], [0, 1], [1, 0]])
  pair = batches.best_and_worst(_batch())
  np.testing.assert_array_equal(pair.rewards, [[3, 1], [5, 5], [-1, -2], [1, 0]])
  each = 100 * np.arange(PROMPTS)[:, None] + 10 * chosen
  address = each[..., None] + np.arange(SLOTS)
  np.testing.assert_array_equal(pair.rollouts.tokens, address)
  np.testing.assert_array_equal(pair.rollouts.lengths, each)
  np.testing.assert_array_equal(pair.rollouts.log_probs, -1.0 - address)
  np.testing.assert_array_equal(pair.reference_log_probs, -2.0 - address)
  np.testing.assert_array_equal(pair.rollouts.prompts, _batch().rollouts.prompts)
  np.testing.assert_array_equal(pair.aux['values'], _batch().aux['values'])


def test_best_and_worst_of_two_samples_keep_both_and_of_one_there_are_none():
  data = _batch(np.zeros((PROMPTS, SAMPLES)))
  two = dataclasses.replace(data, reference_log_probs=None).samples(slice(2))
  jax.tree.map(np.testing.assert_array_equal, batches.best_and_worst(two), two)
  with pytest.raises(ValueError, match='at least 2 samples per prompt, got 1'):
    batches.best_and_worst(dataclasses.replace(data, rewards=data.rewards[:, :1]))


def test_sampler_gap_is_the_mean_over_the_tokens_that_were_sampled():
  data = _batch()
  mask = data.rollouts.mask.at[0, 0, 1].set(0.0)
  # A token that was not sampled here, and a padded one whose number is none.
  log_probs = data.rollouts.log_probs.at[1, 2, 0].set(jnp.nan).at[0, 0, 1].set(jnp.inf)
  rollouts = dataclasses.replace(data.rollouts, mask=mask, log_probs=log_probs)
  trainer = data.rollouts.log_probs.at[2, 1, 1].add(-3.0).at[3].add(1e6)
  gap = batches.sampler_gap(trainer, rollouts, jnp.asarray([1.0, 1, 1, 0]))
  # 3 prompts of 6 tokens, less the two above; one of them is off by 3, prompt 3 has no weight.
  assert gap.weight == 16 and gap.total == 3
  gradient = jax.grad(lambda x: batches.sampler_gap(x, rollouts, jnp.ones(4)).total)(trainer)
  assert not gradient.any()


def test_a_batch_needs_the_samples_and_the_reference_of_its_config():
  batches.check_samples(_batch(), SAMPLES)
  message = '^the batch must have samples_per_prompt = 2 samples a prompt, got 3$'
  with pytest.raises(ValueError, match=message):
    batches.check_samples(_batch(), 2)
  batches.check_reference(_batch(), 0.1)
  without = _batch(reference_log_probs=None)
  batches.check_reference(without, 0.0)
  with pytest.raises(
      ValueError, match='^kl_coefficient above 0 needs reference_log_probs, got None$'):
    batches.check_reference(without, 0.1)


def test_kl_shaped_rewards_subtract_the_sum_over_the_tokens_that_count():
  data = _batch()
  data = dataclasses.replace(data, rollouts=dataclasses.replace(
      data.rollouts, mask=data.rollouts.mask.at[0, 0, 1].set(0.0)))
  log_probs = data.reference_log_probs + 0.5
  log_probs = log_probs.at[0, 0, 1].set(jnp.nan)
  shaped = batches.kl_shaped_rewards(data, log_probs, 0.1)
  penalty = np.full((PROMPTS, SAMPLES), 0.1 * 0.5 * SLOTS)
  penalty[0, 0] /= 2
  np.testing.assert_allclose(shaped, data.rewards - penalty, rtol=1e-5)
  gradient = jax.grad(lambda x: batches.kl_shaped_rewards(data, x, 0.1).sum())(log_probs)
  assert not np.any(gradient)
  without = dataclasses.replace(data, reference_log_probs=None)
  assert batches.kl_shaped_rewards(without, log_probs, 0.0) is without.rewards


def test_regression_rewards_keep_the_mean_of_the_valid_prompts_and_scale_their_spread_to_1():
  data = _batch(weight=jnp.asarray([1.0, 0, 1, 1]))
  log_probs = data.reference_log_probs + jnp.arange(SAMPLES)[:, None]
  options = dict(kl_coefficient=0.1)
  plain = batches.regression_rewards(data, log_probs, whiten=False, **options)
  np.testing.assert_array_equal(plain, batches.kl_shaped_rewards(data, log_probs, 0.1))

  whitened = batches.regression_rewards(data, log_probs, whiten=True, **options)
  valid = np.asarray(plain)[[0, 2, 3]]
  np.testing.assert_allclose(
      np.asarray(whitened)[[0, 2, 3]], (valid - valid.mean()) / valid.std() + valid.mean(),
      rtol=1e-5)


def test_mean_over_prompts_is_weighted():
  mean = batches.mean_over_prompts(jnp.asarray([1.0, 2, 3]), jnp.asarray([2.0, 0, 1]))
  assert (mean.total, mean.weight) == (5, 3)


def test_iteration_metrics_take_the_ratio_of_the_first_step():
  first, last, gap, dropped = (WeightedMean(jnp.float32(x), jnp.float32(1)) for x in range(4))
  got = batches.iteration_metrics(
      {'train/log_ratio': first}, {'train/log_ratio': last}, sampler_gap=gap, dropped=dropped)
  assert got == {
      'train/log_ratio': last, 'train/initial_log_ratio': first, 'train/sampler_gap': gap,
      'train/dropped': dropped}
