"""REINFORCE: the equation, its baselines, and that it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.algorithms import reinforce
from tests.algorithms import bandit, groups, policy_gradients, tiny

KL = 0.3


def _make(config, optimizer):
  return reinforce.make(config, tiny.MODEL, optimizer)


run = groups.runner(reinforce, kl_coefficient=KL, samples_per_prompt=2)


def _shaped(data, temperature=1.0):
  """r [P, K] = s − c ln π/π_ref, by NumPy."""
  log_probs = groups.log_probs(tiny.params(), data.rollouts, temperature)
  return np.asarray(data.rewards) - KL * np.sum(log_probs - data.reference_log_probs, axis=-1)


def _written_out(advantage, **options):
  return policy_gradients.written_out(
      lambda log_probs: -jnp.mean(advantage * jnp.sum(log_probs, axis=-1)), **options)


# --- The loss and its gradient.


@pytest.mark.parametrize('baseline, temperature', [
    ('none', 1.0), ('batch_mean', 1.0), ('batch_mean', 0.6)])
def test_R19_loss_and_gradient_are_the_equation_written_out(baseline, temperature):
  # Responses of 1 to 3 tokens: a mean over tokens instead of their sum would be noticed.
  data = groups.batch()
  assert len(np.unique(data.rollouts.lengths)) > 1
  rewards = _shaped(data, temperature)
  advantage = rewards - (np.mean(rewards) if baseline == 'batch_mean' else 0.0)
  got = run(data, baseline=baseline, temperature=temperature)
  policy_gradients.check_equal(got, _written_out(advantage, temperature=temperature))
  np.testing.assert_allclose(
      got[2]['train/advantage_size'], np.mean(np.abs(advantage)), rtol=1e-4)


def test_R17_at_the_reference_the_penalty_is_zero():
  data = groups.batch()
  own = dataclasses.replace(data, reference_log_probs=data.rollouts.log_probs)
  advantage = np.asarray(data.rewards) - np.mean(data.rewards)
  policy_gradients.check_equal(run(own), _written_out(advantage))


def test_a_baseline_removes_a_constant():
  data = groups.batch()
  shifted = dataclasses.replace(data, rewards=data.rewards + 3.0)
  expected, plain = run(data), run(data, baseline='none')
  tiny.assert_trees_close(run(shifted)[1], expected[1], tolerance=1e-5)
  assert tiny.differ(run(shifted, baseline='none')[1], plain[1])


def test_the_mean_of_the_batch_counts_the_prompts_that_count():
  weight = jnp.asarray([1.0, 1, 0, 1])
  data = dataclasses.replace(groups.batch(), weight=weight)
  rewards, alive = _shaped(data), np.array([0, 1, 3])
  advantage = rewards - np.mean(rewards[alive])
  got = run(data)
  expected = policy_gradients.written_out(lambda log_probs: -jnp.mean(
      (advantage * jnp.sum(log_probs, axis=-1))[alive]))
  policy_gradients.check_equal(got, expected)
  np.testing.assert_allclose(got[2]['train/baseline'], np.mean(rewards[alive]), rtol=1e-5)


# --- The running baseline.


DECAY = 0.5


@functools.cache
def _running():
  config = reinforce.Config(
      baseline='running', baseline_decay=DECAY, kl_coefficient=0.0, samples_per_prompt=2)
  algorithm = _make(config, tiny.recorder())
  return algorithm.init, jax.jit(algorithm.train_step)


def test_the_running_baseline_is_a_mean_of_earlier_batches_only():
  init, train_step = _running()
  state, data = init(jax.random.key(0), tiny.params()), groups.batch()
  total = weight = 0.0

  for shift in (0.0, 2.0, -1.0):
    batch = dataclasses.replace(
        data, rewards=data.rewards + shift, weight=jnp.asarray([1.0, 1, abs(shift) / 2, 1]))
    state, metrics = train_step(state, batch)
    baseline = total / weight if weight else 0.0
    np.testing.assert_allclose(metrics['train/baseline'].value(), baseline, rtol=1e-5, atol=1e-6)
    rewards, counts = np.asarray(batch.rewards), np.asarray(batch.weight)[:, None]
    _, expected = policy_gradients.written_out(
        lambda log_probs, r=rewards, b=baseline, w=counts: -jnp.sum(
            w * (r - b) * jnp.sum(log_probs, axis=-1)) / (2 * np.sum(w)))
    tiny.assert_trees_close(state.opt_state, expected, tolerance=1e-5)
    total = DECAY * total + np.sum(counts * rewards)
    weight = DECAY * weight + 2 * np.sum(counts)

  np.testing.assert_allclose(state.aux['rewards'].value(), total / weight, rtol=1e-5)


def test_an_excluded_batch_does_not_change_the_running_baseline():
  init, train_step = _running()
  state, _ = train_step(init(jax.random.key(0), tiny.params()), groups.batch())
  before = state.aux['rewards'].value()
  bad = dataclasses.replace(groups.batch(), rewards=jnp.full((4, 2), jnp.nan))
  state, metrics = train_step(state, bad)
  assert metrics['train/dropped'].value() == 1
  np.testing.assert_allclose(state.aux['rewards'].value(), before, rtol=1e-6)


def test_only_the_running_baseline_keeps_state():
  for baseline, leaves in (('none', 0), ('batch_mean', 0), ('running', 2)):
    algorithm = _make(reinforce.Config(baseline=baseline), tiny.recorder())
    state = algorithm.init(jax.random.key(0), tiny.params())
    assert len(jax.tree.leaves(state.aux)) == leaves


# --- What is ignored.


def test_R18_only_tokens_that_count_have_a_gradient():
  # The stop token alone is a response, and has one; without any token there is none.
  one = dataclasses.replace(groups.batch(), weight=jnp.asarray([1.0, 0, 0, 0]))
  assert int(one.rollouts.lengths[0, 0]) == 1
  alone = dataclasses.replace(one, rewards=one.rewards.at[0, 1].set(0.0))
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(run(alone)[1])) > 1e-3
  empty = groups.replace_rollouts(alone, mask=jnp.zeros_like(alone.rollouts.mask))
  assert not any(leaf.any() for leaf in jax.tree.leaves(run(empty)[1]))


def test_equal_rewards_leave_nothing_without_a_penalty():
  data = dataclasses.replace(
      groups.batch(), rewards=jnp.full((4, 2), 0.7), reference_log_probs=None)
  got = run(data, kl_coefficient=0.0)
  assert abs(got[0]) < 1e-6
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(got[1])) < 1e-6


def test_without_a_penalty_no_reference_is_needed():
  data = dataclasses.replace(groups.batch(), reference_log_probs=None)
  advantage = np.asarray(data.rewards) - np.mean(data.rewards)
  policy_gradients.check_equal(run(data, kl_coefficient=0.0), _written_out(advantage))
  with pytest.raises(ValueError, match='needs reference_log_probs, got None'):
    run(data)


# --- Learning.


def test_learns_a_bandit_to_its_closed_form():
  coefficient = 0.2
  config = reinforce.Config(kl_coefficient=coefficient, baseline='running', baseline_decay=0.9)
  learned = bandit.play(
      lambda optimizer: reinforce.make(config, bandit.MODEL, optimizer), 1)
  bandit.check_optimum(learned, coefficient)
  assert int(learned.state.step) == 150
