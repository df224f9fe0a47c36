"""Chains of Gaussian steps: their log-prob, REBEL's identities on it, standardised rewards."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.rebel_gaussian import gaussian_chain
from jaxrl_llm.rl import regression_losses

ETA = .7


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _draw(batch=5, steps=4, shape=(3,), seed=0):
  rng = np.random.default_rng(seed)
  mean, actions = rng.normal(size=(2, batch, steps, *shape))
  return mean, rng.uniform(.3, 2, steps), actions


# --- The log-prob of a chain.


@pytest.mark.parametrize('shape', [(3,), (2, 2), ()])
def test_log_prob_is_that_of_the_normal_distribution(shape):
  mean, std, actions = _draw(shape=shape)
  got = gaussian_chain.step_log_probs(mean, std, actions)
  expected = np.zeros((5, 4))
  for row in range(5):
    for t in range(4):
      expected[row, t] = stats.norm.logpdf(actions[row, t], mean[row, t], std[t]).sum()
  np.testing.assert_allclose(got, expected, rtol=1e-12)
  np.testing.assert_allclose(
      gaussian_chain.chain_log_prob(mean, std, actions), expected.sum(axis=1), rtol=1e-12)
  dimensions = int(np.prod(shape))
  np.testing.assert_allclose(
      gaussian_chain.chain_log_prob(mean, std, actions, reduction='mean'),
      expected.sum(axis=1) / dimensions, rtol=1e-12)


def test_a_value_by_hand():
  # Two steps of one dimension: (1 - 0) / 1 and (3 - 2) / 2 standard deviations off:
  # -1/2 - ln 1 - ln(2 pi) / 2 and -1/8 - ln 2 - ln(2 pi) / 2.
  got = gaussian_chain.chain_log_prob(
      np.array([[[0.0], [2.0]]]), np.array([1.0, 2.0]), np.array([[[1.0], [3.0]]]))
  np.testing.assert_allclose(got, [-.625 - np.log(2) - np.log(2 * np.pi)], rtol=1e-12)


def test_the_sum_is_over_steps_and_never_over_the_batch():
  mean, std, actions = _draw()
  got = gaussian_chain.chain_log_prob(mean, std, actions)
  assert got.shape == (5,)
  for row in range(5):  # What a chain gets does not depend on the others.
    alone = gaussian_chain.chain_log_prob(mean[row: row + 1], std, actions[row: row + 1])
    np.testing.assert_allclose(alone, got[row: row + 1], rtol=1e-12)
  jacobian = jax.jit(jax.jacobian(
      lambda mean: gaussian_chain.chain_log_prob(mean, std, actions)))(mean)
  reached = np.abs(jacobian).max(axis=(2, 3)) > 0
  np.testing.assert_array_equal(reached, np.eye(5, dtype=bool))
  # The released sum over everything is that of a batch of one alone.
  everything = gaussian_chain.step_log_probs(mean, std, actions).sum()
  assert np.abs(everything - got).min() > 1


def test_a_deviation_of_each_chain():
  mean, std, actions = _draw()
  scale = np.array([1.0, 2, .5, 1, 3])
  got = gaussian_chain.chain_log_prob(mean, scale[:, None] * std, actions)
  for row in range(5):
    expected = gaussian_chain.chain_log_prob(mean, scale[row] * std, actions)[row]
    np.testing.assert_allclose(got[row], expected, rtol=1e-12)


def test_a_step_without_noise_chooses_nothing():
  mean, std, actions = _draw()
  quiet = std * np.array([1, 1, 1, 0])
  loss = lambda mean, actions: gaussian_chain.chain_log_prob(mean, quiet, actions).sum()
  expected = gaussian_chain.chain_log_prob(mean[:, :3], std[:3], actions[:, :3]).sum()
  for last in (actions[:, 3:], mean[:, 3:], np.full((5, 1, 3), np.nan)):
    value, gradient = jax.value_and_grad(loss)(
        mean, np.concatenate([actions[:, :3], last], axis=1))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert np.isfinite(gradient).all() and not np.any(gradient[:, 3])


def test_sums_run_in_float32_at_least():
  mean, std, actions = (x.astype(jnp.bfloat16) for x in _draw())
  assert gaussian_chain.chain_log_prob(mean, std, actions).dtype == jnp.float32


# --- REBEL on chains.


def _linear_mean(parameters, states):
  """mean_t(x) = a_t x + b_t in one dimension."""
  return parameters['a'][:, None] * states + parameters['b'][:, None]


STD = np.array([.8, .5, .3])
PARAMETERS = {'a': np.array([.9, .7, 1.1]), 'b': np.array([.1, -.4, .2])}


@functools.lru_cache
def _pairs(shared):
  """Chains of the linear policy in pairs from one start, or from two: (chain, rewards [P, 2])."""
  pairs, key = 6, jax.random.key(0)
  start = jax.random.normal(key, (pairs, 1 if shared else 2, 1))
  start = jnp.broadcast_to(start, (pairs, 2, 1)).reshape(-1, 1)
  a, b = jnp.asarray(PARAMETERS['a']), jnp.asarray(PARAMETERS['b'])
  chain = gaussian_chain.sample_chain(
      lambda x, index: a[index] * x + b[index], start, jnp.asarray(STD),
      jax.random.fold_in(key, 1))
  return chain, 1.3 * chain.actions[:, -1, 0].reshape(pairs, 2)


def _log_ratio(parameters, chain):
  log_prob = lambda p: gaussian_chain.chain_log_prob(
      _linear_mean(p, chain.states), STD, chain.actions)
  return (log_prob(parameters) - log_prob(PARAMETERS)).reshape(-1, 2)


def _optimum():
  """The policy of the mirror-descent step for r = 1.3 x_0.

  By induction from the last step: ln E exp(eta r) given x_t is c_t x_t plus a constant, with
  c = 1.3 eta at the end and c_t = a_t c_{t-1} before, and a normal density times e^{c x} is one
  with its mean moved by c std^2.
  """
  slope, shift = 1.3 * ETA, np.zeros(3)
  for t in (2, 1, 0):
    shift[t] = slope * STD[t]**2
    slope *= PARAMETERS['a'][t]
  return {'a': PARAMETERS['a'], 'b': PARAMETERS['b'] + shift}


def test_R5_the_ratio_is_one_at_the_policy_that_sampled():
  chain, rewards = _pairs(True)
  np.testing.assert_array_equal(_log_ratio(PARAMETERS, chain), np.zeros((6, 2)))
  losses = regression_losses.rebel_loss(_log_ratio(PARAMETERS, chain), rewards, eta=ETA)
  np.testing.assert_allclose(losses, (ETA * (rewards[:, 0] - rewards[:, 1]))**2, rtol=1e-12)


def test_R3_rewards_of_a_pair_may_move_together():
  chain, rewards = _pairs(True)
  log_ratio = _log_ratio(_optimum() | {'a': np.array([1.0, .7, 1])}, chain)
  loss = functools.partial(regression_losses.rebel_loss, log_ratio, eta=ETA)
  np.testing.assert_allclose(loss(rewards + np.arange(6.0)[:, None]), loss(rewards), rtol=1e-9)


def test_R7_closed_form_of_a_linear_chain():
  chain, rewards = _pairs(True)
  losses = regression_losses.rebel_loss(_log_ratio(_optimum(), chain), rewards, eta=ETA)
  np.testing.assert_allclose(losses, 0, atol=1e-24)  # R1: no loss anywhere.
  gradient = jax.jit(jax.grad(lambda p: regression_losses.rebel_loss(
      _log_ratio(p, chain), rewards, eta=ETA).sum()))(_optimum())
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) < 1e-10
  # It is the minimum for every shift of the means.
  for t in range(3):
    other = {**_optimum(), 'b': _optimum()['b'] + .1 * np.eye(3)[t]}
    assert regression_losses.rebel_loss(_log_ratio(other, chain), rewards, eta=ETA).max() > 1e-3


def test_pairs_of_two_starts_keep_the_difference_of_their_normalisers():
  chain, rewards = _pairs(False)
  log_ratio = _log_ratio(_optimum(), chain)
  left = (log_ratio[:, 0] - log_ratio[:, 1]) - ETA * (rewards[:, 0] - rewards[:, 1])
  # ln Z(x_S) is linear in the start, with the slope that is left after all steps.
  slope = 1.3 * ETA * np.prod(PARAMETERS['a'])
  start = chain.states[:, 0, 0].reshape(6, 2)
  np.testing.assert_allclose(left, -slope * (start[:, 0] - start[:, 1]), atol=1e-12)
  assert np.abs(left).max() > .1


def test_R9_gradient_is_that_of_rloo():
  chain, rewards = _pairs(True)
  log_probs = lambda p: _log_ratio(p, chain)
  gradient = jax.jit(jax.grad(lambda p: regression_losses.rebel_loss(
      log_probs(p), rewards, eta=ETA).sum()))(PARAMETERS)
  weights = ETA * np.stack([rewards[:, 1] - rewards[:, 0], rewards[:, 0] - rewards[:, 1]], axis=1)
  expected = jax.jit(jax.grad(lambda p: 2 * jnp.sum(weights * log_probs(p))))(PARAMETERS)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9), gradient, expected)


# --- Sampling.


def test_chains_have_the_distribution_of_their_log_prob():
  steps = jnp.asarray([.8, .5])
  chain = gaussian_chain.sample_chain(
      lambda x, index: .5 * x + index, jnp.ones((4_000, 2)), steps, jax.random.key(2))
  np.testing.assert_array_equal(chain.states[:, 0], np.ones((4_000, 2)))
  np.testing.assert_array_equal(chain.states[:, 1], chain.actions[:, 0])
  for t in range(2):
    noise = np.asarray(chain.actions[:, t] - .5 * chain.states[:, t] - t) / steps[t]
    assert stats.kstest(noise.ravel(), 'norm').pvalue > 1e-4
    assert abs(np.corrcoef(noise.T)[0, 1]) < .08  # Five standard errors.
  alone = gaussian_chain.sample_chain(
      lambda x, index: .5 * x + index, jnp.ones((3, 2)), steps, jax.random.key(2))
  np.testing.assert_allclose(alone.actions, chain.actions[:3], rtol=1e-12)  # Noise is by row.


def test_consistency_step():
  prediction, alpha_bar = np.arange(12.0).reshape(2, 3, 2), np.array([.25, .64, 1.0])
  mean, std = gaussian_chain.consistency_step(prediction, alpha_bar)
  np.testing.assert_allclose(std, [np.sqrt(.75), .6, 0], atol=1e-15)
  np.testing.assert_allclose(mean[:, 1], .8 * prediction[:, 1], rtol=1e-12)


# --- Rewards standardised by prompt.


class _Tracker:
  """The same as a loop over a batch, with a deque for each prompt."""

  def __init__(self, size, min_count):
    self.buffers = collections.defaultdict(lambda: collections.deque(maxlen=size))
    self.seen, self.min_count = collections.Counter(), min_count

  def __call__(self, ids, rewards):
    known = np.isfinite(rewards)
    for i, reward in zip(ids[known], rewards[known]):
      self.buffers[i].append(reward)
      self.seen[i] += 1
    advantages = np.full(len(ids), np.nan)
    for row in np.flatnonzero(known):
      own = self.seen[ids[row]] >= self.min_count
      values = np.array(self.buffers[ids[row]]) if own else rewards[known]
      advantages[row] = (rewards[row] - values.mean()) / (values.std() + 1e-6)
    return advantages


def test_standardisation_against_a_loop():
  rng = np.random.default_rng(6)
  tracker, statistics = _Tracker(8, 5), gaussian_chain.init_statistics(4, size=8)
  standardise = jax.jit(functools.partial(gaussian_chain.standardise_by_prompt, min_count=5))
  for step in range(12):
    # The third prompt is seldom met; the first sometimes more often than its ring is long.
    ids = rng.choice(4, 14, p=[.7, .2, .02, .08])
    rewards = rng.normal(ids, 1 + ids).astype(np.float32)
    rewards[rng.random(14) < .1] = np.nan
    rewards[0] = np.inf if step == 3 else rewards[0]
    statistics, advantages = standardise(statistics, ids, rewards)
    np.testing.assert_allclose(advantages, tracker(ids, rewards), rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(statistics.counts, [tracker.seen[i] for i in range(4)])
  assert statistics.counts[0] > 60 and statistics.counts.min() < 8


def test_no_two_rewards_of_a_batch_share_a_slot():
  # Six rewards of prompt 1, one of them NaN, for a ring of three that has seen two.
  statistics = gaussian_chain.PromptStatistics(jnp.zeros((2, 3)), jnp.array([0, 2]))
  ids = np.array([1, 0, 1, 1, 1, 1, 1])
  known = np.array([1, 1, 1, 0, 1, 1, 1], bool)
  rows, slots = map(np.asarray, gaussian_chain._ring_places(statistics, ids, known))
  # Of the known ones, numbers 2 to 6 of their prompt, the last three stay.
  assert rows.tolist() == [2, 0, 2, 2, 1, 1, 1]
  assert slots[rows < 2].tolist() == [0, 4 % 3, 5 % 3, 6 % 3]


def test_standardisation_defaults_and_equal_rewards():
  statistics = gaussian_chain.init_statistics(2)
  assert statistics.rewards.shape == (2, 32)
  ids = np.repeat([0, 1], [15, 5])
  rewards = np.where(ids == 0, 1.0, np.arange(20.0)).astype(np.float32)
  _, batch_wise = gaussian_chain.standardise_by_prompt(statistics, ids, rewards)
  np.testing.assert_allclose(
      batch_wise, (rewards - rewards.mean()) / rewards.std(), rtol=1e-5)  # 15 are too few.
  ids = np.repeat([0, 1], [16, 4])
  rewards = np.where(ids == 0, 1.0, rewards).astype(np.float32)
  _, own = gaussian_chain.standardise_by_prompt(statistics, ids, rewards)
  np.testing.assert_array_equal(own[:16], np.zeros(16))  # No spread: 0, not NaN.
  gradient = jax.grad(lambda r: gaussian_chain.standardise_by_prompt(
      statistics, ids, r)[1].sum())(jnp.asarray(rewards))
  np.testing.assert_array_equal(gradient, np.zeros(20))


def test_bad_options_are_one_line_errors():
  mean, std, actions = _draw()
  with pytest.raises(ValueError, match="reduction must be 'sum' or 'mean', got 'max'"):
    gaussian_chain.chain_log_prob(mean, std, actions, reduction='max')
  with pytest.raises(ValueError, match='size must be at least 1, got 0'):
    gaussian_chain.init_statistics(3, size=0)
  with pytest.raises(ValueError, match='num_prompts must be at least 1, got 0'):
    gaussian_chain.init_statistics(0)
  with pytest.raises(AssertionError):
    gaussian_chain.chain_log_prob(mean, std, actions[:, :2])


def test_huge_rewards_are_standardised_as_small_ones_are():
  rewards = np.float32([3, 1, -2, 5])
  standardise = lambda scale: gaussian_chain.standardise_by_prompt(
      gaussian_chain.init_statistics(1, size=4), jnp.zeros(4, jnp.int32),
      jnp.asarray(rewards * np.float32(scale)), min_count=1, epsilon=1e-6)[1]
  np.testing.assert_allclose(
      standardise(1e30), (rewards - rewards.mean()) / rewards.std(), rtol=1e-5)
  np.testing.assert_allclose(standardise(1e30), standardise(1.0), rtol=1e-5)
