"""Relatives of Q# on enumerated trees: process rewards, DPO's credit, DQO, ShiQ, CD-Q, ILQL ..."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.rl import process_rewards, q_learning, q_probe, soft_q_losses
from tests.rl import token_tree

ETA = 0.3
TREE = token_tree.draw(3, binary=False)
RESPONSES = np.array(list(itertools.product(range(3), repeat=TREE.depth)))


def _along(levels, *, after):
  """Values of the nodes of every response, [A^H, H]: after each token, or before it."""
  codes = np.zeros((len(RESPONSES), TREE.depth + 1), int)
  for h in range(TREE.depth):
    codes[:, h + 1] = 3 * codes[:, h] + RESPONSES[:, h]
  return np.stack([levels[h][codes[:, h]] for h in range(TREE.depth + 1)], axis=1)[
      :, slice(1, None) if after else slice(None, -1)]


def _log_ratios(policy, other=TREE.policy):
  levels = [np.zeros(1)] + [np.log(p / q).reshape(-1) for p, q in zip(policy, other)]
  return _along(levels, after=True)


OPTIMAL = TREE.optimal(1 / ETA)
MASK = np.ones(RESPONSES.shape)
VALUES = TREE.soft_values(1 / ETA)


def test_C44_prefix_sums_of_log_ratios_are_soft_values_of_the_implied_reward():
  policy = token_tree.draw(8).policy  # Any other policy.
  ratios = _log_ratios(policy)
  reward = ETA * ratios.sum(axis=1)
  with jax.enable_x64(True):
    values = process_rewards.implicit_values(
        jnp.asarray(ratios), jnp.asarray(MASK), beta=ETA)
  exact = [ETA * np.log(level) for level in TREE.expectations(np.exp(reward / ETA))]
  np.testing.assert_allclose(values, _along(exact, after=True), atol=1e-12)
  assert exact[0][0] == pytest.approx(0, abs=1e-12)  # E exp(r / β) = 1.
  np.testing.assert_allclose(np.diff(values, axis=1), ETA * ratios[:, 1:], atol=1e-12)


def test_C45_log_ratios_of_the_optimal_policy_telescope_to_the_reward():
  ratios = ETA * _log_ratios(OPTIMAL)
  np.testing.assert_allclose(ratios.sum(axis=1), TREE.returns - VALUES[0], atol=1e-12)
  # Each one is an advantage: Q* = V* of the next node, less V*.
  advantages = _along(VALUES, after=True) - _along(VALUES, after=False)
  np.testing.assert_allclose(ratios, advantages, atol=1e-12)


@pytest.mark.parametrize('residuals', [
    soft_q_losses.one_step_residuals, soft_q_losses.multi_step_residuals])
def test_C46_residuals_vanish_at_the_optimum_on_every_trajectory(residuals):
  rewards = np.zeros(RESPONSES.shape)
  rewards[:, -1] = TREE.returns
  values = _along(VALUES, after=False)
  with jax.enable_x64(True):
    at = lambda policy: np.asarray(residuals(
        jnp.asarray(_log_ratios(policy)), jnp.asarray(rewards), jnp.asarray(values),
        jnp.asarray(MASK), beta=ETA))
    assert np.abs(at(OPTIMAL)).max() < 1e-12
    assert np.abs(at(TREE.policy)).max() > 0.05


def test_C46_several_steps_are_the_sum_of_single_ones_and_padding_does_not_count():
  random = np.random.default_rng(0)
  arrays = random.normal(size=(3, 5, 6)).astype(np.float32)
  mask = (np.arange(6) < random.integers(1, 7, size=(5, 1))).astype(np.float32)
  junk = np.where(mask > 0, arrays, 1e3)
  one, many = (np.asarray(f(*junk, mask, beta=0.5)) for f in (
      soft_q_losses.one_step_residuals, soft_q_losses.multi_step_residuals))
  for row, length in zip(range(5), mask.sum(axis=1).astype(int)):
    for t in range(6):
      assert many[row, t] == pytest.approx(one[row, t:length].sum() if t < length else 0, abs=1e-4)
    ratio, reward, value = arrays[:, row, :length]
    assert many[row, 0] == pytest.approx(
        0.5 * ratio.sum() - (reward.sum() - value[0]), abs=1e-4)


def test_C47_the_target_of_cd_q_and_the_mean_of_cd_fudge_are_the_same_value():
  means = TREE.expectations(TREE.returns)
  for h, (table, after) in enumerate(zip(TREE.policy, TREE.per_action(means))):
    targets = q_learning.bellman_means(
        jnp.log(jnp.asarray(table, jnp.float32)), jnp.asarray(after, jnp.float32))
    np.testing.assert_allclose(targets, means[h], atol=1e-6)
  # The minimiser of the squared error of samples is their mean given the prefix.
  probs = TREE.response_probs()
  prefix = RESPONSES[:, 0]
  for action in range(3):
    mine = prefix == action
    grid = np.linspace(0, 1, 10_001)
    weights, returns = probs[mine] / probs[mine].sum(), TREE.returns[mine]
    errors = (weights[:, None] * (grid - returns[:, None]) ** 2).sum(axis=0)
    assert grid[errors.argmin()] == pytest.approx(means[1][action], abs=1e-4)


def test_C48_resampling_tends_to_the_tilt_with_an_error_of_one_over_k():
  """Exact expectations over k independent draws from three outcomes."""
  base, scores, beta = np.array([0.5, 0.3, 0.2]), np.array([0.0, 0.4, 1.0]), 0.5
  tilt = base * np.exp(scores / beta)
  tilt /= tilt.sum()

  def chosen_probs(k):
    chosen = np.zeros(3)
    for draws in itertools.product(range(3), repeat=k):
      probs = q_probe.choice_probs(jnp.asarray(scores[list(draws)], jnp.float32), beta=beta)
      np.add.at(chosen, list(draws), np.prod(base[list(draws)]) * np.asarray(probs))
    return chosen

  np.testing.assert_allclose(chosen_probs(1), base, atol=1e-6)
  errors = {k: np.abs(chosen_probs(k) - tilt).max() for k in (3, 6)}
  assert errors[6] < 0.6 * errors[3] and 3 * errors[3] < 2.5 * 6 * errors[6]


def test_the_loss_of_a_probe_is_minus_the_reward_of_its_choice():
  scores, rewards = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
  loss = q_probe.policy_gradient_loss(scores, rewards, beta=0.7)
  weights = np.exp(scores / 0.7)
  written = -(rewards * weights / weights.mean(axis=1, keepdims=True)).mean(axis=1)
  np.testing.assert_allclose(loss, written, rtol=1e-5)
  # A baseline shifts the loss, and not its gradient.
  gradients = [jax.grad(lambda q, c=c: q_probe.policy_gradient_loss(
      q, rewards, beta=0.7, centred=c).sum())(scores) for c in (False, True)]
  np.testing.assert_allclose(*gradients, atol=1e-6)


def test_C49_soft_labels_estimate_the_success_rate_and_hard_ones_any_success():
  rate, count = 0.3, 4
  soft = hard = 0.0
  for outcome in itertools.product([0.0, 1.0], repeat=count):
    probability = np.prod([rate if x else 1 - rate for x in outcome])
    soft += probability * float(process_rewards.rollout_labels(jnp.asarray(outcome)))
    hard += probability * float(process_rewards.rollout_labels(jnp.asarray(outcome), kind='hard'))
  assert soft == pytest.approx(rate) and hard == pytest.approx(1 - (1 - rate) ** count)
  with pytest.raises(ValueError, match="kind must be 'soft' or 'hard', got 'any'"):
    process_rewards.rollout_labels(jnp.ones(2), kind='any')


def test_scores_of_responses_by_hand():
  scores = jnp.asarray([[0.5, 0.9, 0.2, 0.8], [0.25, 0.5, 7.0, 7.0]])
  mask = jnp.asarray([[1.0, 0, 1, 1], [1, 1, 0, 0]])
  score = lambda by: process_rewards.response_score(scores, mask, by=by)
  np.testing.assert_allclose(score('last'), [0.8, 0.5])
  np.testing.assert_allclose(score('min'), [0.2, 0.25])
  np.testing.assert_allclose(score('product'), [0.08, 0.125])
  with pytest.raises(ValueError, match="by must be 'last', 'min' or 'product', got 'mean'"):
    score('mean')


@pytest.mark.parametrize('tau, expected', [(0.5, 0.7), (0.999, 2.0)])
def test_C50_the_expectile_is_the_mean_or_tends_to_the_maximum(tau, expected):
  targets = jnp.asarray([0.0, 0.0, 0.1, 1.4, 2.0])
  grid = jnp.linspace(-1, 3, 4_001)
  losses = q_learning.expectile_loss(
      *jnp.broadcast_arrays(grid[:, None], targets), tau=tau).sum(axis=1)
  assert float(grid[losses.argmin()]) == pytest.approx(expected, abs=0.01)
  with pytest.raises(ValueError, match=r'tau must be in \(0, 1\), got 1'):
    q_learning.expectile_loss(targets, targets, tau=1)


def test_q_learning_by_hand():
  loss = q_learning.temporal_difference_loss(
      jnp.asarray([0.5]), jnp.asarray([0.25]), jnp.asarray([1.0]), gamma=0.5)
  assert float(loss[0]) == pytest.approx(0.0625)
  gradient = jax.grad(lambda v: q_learning.temporal_difference_loss(
      jnp.ones(1), jnp.ones(1), v).sum())(jnp.ones(1))
  assert not gradient.any()
  penalty = q_learning.conservative_penalty(jnp.asarray([[1.0, 2.0, 3.0]]), jnp.asarray([1]))
  assert float(penalty[0]) == pytest.approx(np.log(np.exp([-1, 0, 1]).sum()))
