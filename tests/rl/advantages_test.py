"""Group advantages and whitening."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.rl import advantages, regression_losses


def _rewards(shape=(4, 5), seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_B1_rloo_by_hand():
  # Rewards 1, 0, 5: the others' means are 2.5, 3 and .5.
  rewards = jnp.array([[1.0, 0.0, 5.0]])
  np.testing.assert_allclose(advantages.leave_one_out_mean(rewards), [[2.5, 3.0, .5]])
  np.testing.assert_allclose(advantages.rloo(rewards), [[-1.5, -3.0, 4.5]])


def test_B1_rloo_against_a_loop_sums_to_zero():
  rewards = _rewards()
  expected = [[row[i] - np.delete(row, i).mean() for i in range(5)] for row in rewards]
  actual = advantages.rloo(rewards)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(actual.sum(-1), 0, atol=1e-5)


def test_B1_two_samples_are_antisymmetric():
  rewards = _rewards((4, 2))
  difference = rewards[:, 0] - rewards[:, 1]
  np.testing.assert_allclose(
      advantages.rloo(rewards), np.stack([difference, -difference], -1), rtol=1e-5)


def test_B2_grpo_by_hand():
  # Rewards 1, 0, 0, 1: mean .5; unbiased variance 4 * .25 / 3, population variance .25.
  rewards = jnp.array([[1.0, 0.0, 0.0, 1.0]])
  signs = np.array([[1, -1, -1, 1]])
  expected = {'std': .5 / (np.sqrt(1 / 3) + 1e-6), 'population_std': .5 / (.5 + 1e-6), 'none': .5}
  for scale, size in expected.items():
    np.testing.assert_allclose(advantages.grpo(rewards, scale=scale), signs * size, rtol=1e-6)
  np.testing.assert_allclose(
      advantages.grpo(rewards, epsilon=.1), signs * .5 / (np.sqrt(1 / 3) + .1), rtol=1e-6)


@pytest.mark.parametrize('scale', ['std', 'population_std', 'none'])
def test_B2_equal_rewards_give_exactly_zero(scale):
  # The float32 mean of seven times 0.1 is not 0.1: without care, 7e-9 / 1e-6.
  rewards = jnp.array([[.1] * 7, [1 / 3] * 7, [1.0] * 7, [0.0] * 7])
  np.testing.assert_array_equal(advantages.grpo(rewards, scale=scale), np.zeros((4, 7)))


def test_B2_group_of_one_has_mean_0_and_std_1():
  rewards = jnp.array([[3.0], [-2.0]])
  np.testing.assert_allclose(advantages.grpo(rewards), rewards / (1 + 1e-6), rtol=1e-7)
  np.testing.assert_array_equal(advantages.grpo(rewards, scale='none'), rewards)


@pytest.mark.parametrize('function', [advantages.rloo, advantages.grpo])
def test_groups_permute_and_do_not_mix(function):
  rewards = _rewards()
  expected = function(rewards)
  order, members = np.array([2, 0, 3, 1]), np.array([4, 1, 0, 3, 2])
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
  close(function(rewards[order]), expected[order])
  close(function(rewards[:, members]), expected[:, members])
  close(function(rewards[:1]), expected[:1])
  close(function(rewards + 7), expected)


def test_whiten_by_hand():
  # 1, 3 and 8 count: mean 4, population variance (9 + 1 + 16) / 3.
  values = jnp.array([[1.0, 3.0, jnp.nan], [8.0, jnp.inf, 100.0]])
  mask = jnp.array([[1, 1, 0], [1, 0, 0]])
  expected = np.array([[-3, -1, 0], [4, 0, 0]]) / np.sqrt(26 / 3)
  np.testing.assert_allclose(advantages.whiten(values, mask), expected, rtol=1e-6)
  with_mean = advantages.whiten(values, mask, mean='keep')
  np.testing.assert_allclose(with_mean, np.where(mask, expected + 4, 0), rtol=1e-6)
  np.testing.assert_array_equal(advantages.whiten(values, jnp.zeros((2, 3))), np.zeros((2, 3)))
  # Epsilon is added to the variance, inside the root: 26/3 + 1/3 = 9.
  wide = advantages.whiten(values, mask, epsilon=1 / 3)
  np.testing.assert_allclose(wide, np.array([[-3, -1, 0], [4, 0, 0]]) / 3, rtol=1e-6)


def test_whiten_is_not_changed_by_padding():
  values = _rewards()
  expected = advantages.whiten(values, np.ones((4, 5)))
  padded = np.concatenate([np.full((4, 2), 9.0), values], 1)
  mask = np.concatenate([np.zeros((4, 2)), np.ones((4, 5))], 1)
  np.testing.assert_allclose(advantages.whiten(padded, mask)[:, 2:], expected, rtol=1e-5, atol=1e-6)


def test_R4_whitening_rescales_eta():
  rewards, log_ratio = _rewards((6, 2)), _rewards((6, 2), seed=1)
  ones = np.ones((6, 2))
  losses = [
      regression_losses.rebel_loss(log_ratio, advantages.whiten(rewards, ones, mean=mean), eta=.7)
      for mean in ('remove', 'keep')
  ]
  losses.append(regression_losses.rebel_loss(log_ratio, rewards, eta=.7 / float(rewards.std())))
  np.testing.assert_allclose(losses[0], losses[2], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(losses[1], losses[2], rtol=1e-4, atol=1e-6)


def test_advantages_are_constants():
  rewards = jnp.asarray(_rewards())
  for function in (advantages.rloo, advantages.grpo, advantages.leave_one_out_mean,
                   lambda x: advantages.whiten(x, jnp.ones(x.shape))):
    gradient = jax.grad(lambda x, f=function: jnp.sum(f(x)**2))(rewards)
    np.testing.assert_array_equal(gradient, np.zeros((4, 5)))


def test_bad_options_are_one_line_errors():
  with pytest.raises(ValueError, match='at least 2 samples per prompt, got 1'):
    advantages.rloo(jnp.ones((3, 1)))
  with pytest.raises(ValueError, match='at least 1 sample per prompt, got 0'):
    advantages.grpo(jnp.ones((3, 0)))
  with pytest.raises(ValueError, match="scale must be .* got 'mad'"):
    advantages.grpo(jnp.ones((3, 2)), scale='mad')
  with pytest.raises(ValueError, match="mean must be 'remove' or 'keep', got True"):
    advantages.whiten(jnp.ones(3), jnp.ones(3), mean=True)
