"""RLOO: the equation, its identities, the ratio of later steps, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.algorithms import rebel, rloo
from tests.algorithms import bandit, groups, policy_gradients, tabular, tiny

KL = 0.3


def _make(config, optimizer):
  return rloo.make(config, tiny.MODEL, optimizer)


run = groups.runner(rloo, kl_coefficient=KL)


def _advantage(data):
  """A [P, K], by NumPy, one sample after the other."""
  log_probs = groups.log_probs(tiny.params(), data.rollouts)
  rewards = np.asarray(data.rewards) - KL * np.sum(log_probs - data.reference_log_probs, axis=-1)
  others = [np.delete(rewards, i, axis=1).mean(axis=1) for i in range(rewards.shape[1])]
  return rewards - np.stack(others, axis=1)


# --- The loss and its gradient.


def test_B1_R19_the_gradient_is_the_equation_written_out():
  # Responses of 1 to 3 tokens: a mean over tokens instead of their sum would be noticed.
  data = groups.batch(3)
  assert len(np.unique(data.rollouts.lengths)) > 1
  advantage = _advantage(data)
  np.testing.assert_allclose(advantage.sum(axis=1), 0, atol=1e-6)
  _, gradients, metrics = run(data, samples_per_prompt=3)
  _, expected = policy_gradients.written_out(
      lambda log_probs: -jnp.mean(advantage * jnp.sum(log_probs, axis=-1)), num_samples=3)
  tiny.assert_trees_close(gradients, expected, tolerance=1e-5)
  # The ratio is 1, and advantages of a group add up to 0.
  assert abs(metrics['train/loss']) < 1e-5 and metrics['train/clip_fraction'] == 0
  np.testing.assert_allclose(
      metrics['train/advantage_size'], np.mean(np.abs(advantage)), rtol=1e-4)


def test_R9_rebel_takes_4_eta_times_the_same_step():
  eta = 0.7
  theirs = groups.runner(rebel, num_epochs=1, temperature=1.0, kl_coefficient=KL, eta=eta)
  _, gradients, _ = theirs(groups.batch())
  _, ours, _ = run(groups.batch())
  tiny.assert_trees_close(
      gradients, jax.tree.map(lambda g: 4 * eta * g, ours), tolerance=1e-5)


def test_constants_of_a_prompt_cancel():
  data = groups.batch()
  shifted = dataclasses.replace(
      data, rewards=data.rewards + jnp.asarray([[3.0], [-1], [0], [7]]))
  tiny.assert_trees_close(run(shifted)[1], run(data)[1], tolerance=1e-5)


def test_equal_rewards_leave_nothing_without_a_penalty():
  data = dataclasses.replace(
      groups.batch(), rewards=jnp.full((4, 2), 0.7), reference_log_probs=None)
  loss, gradients, _ = run(data, kl_coefficient=0.0)
  assert abs(loss) < 1e-6
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) < 1e-6
  with pytest.raises(ValueError, match='needs reference_log_probs, got None'):
    run(data)


# --- Steps after the first.


def test_later_steps_are_weighed_by_the_ratio_of_whole_responses():
  data, clip = groups.batch(), 0.1
  advantage = _advantage(data)
  old = np.sum(groups.log_probs(tiny.params(), data.rollouts), axis=-1)

  def loss(parameters, rows):
    log_probs = jnp.sum(groups.log_probs(parameters, data.rollouts), axis=-1)
    ratio, a = jnp.exp(log_probs - old)[rows], jnp.asarray(advantage)[rows]
    return -jnp.mean(jnp.minimum(ratio * a, jnp.clip(ratio, 1 - clip, 1 + clip) * a))

  config = rloo.Config(kl_coefficient=KL, clip=clip, num_epochs=2, num_minibatches=2)
  metrics = policy_gradients.check_steps(
      lambda optimizer: _make(config, optimizer), loss, data, tiny.params(),
      [[0, 1], [2, 3], [0, 1], [2, 3]], learning_rate=0.05)
  assert 0 < metrics['train/clip_fraction'] < 1
  assert metrics['train/initial_log_ratio'] < 1e-5 < metrics['train/log_ratio']


def test_a_clip_of_one_or_more_sets_no_lower_bound():
  config = dict(num_epochs=2, kl_coefficient=0.0, temperature=1.0)
  policy_gradients.check_clip(
      lambda clip, optimizer: rloo.make(
          rloo.Config(clip=clip, **config), tabular.LOGITS, optimizer),
      rewards=[.5, -.5])


# --- Learning.


def test_learns_a_bandit_to_its_closed_form():
  coefficient = 0.2
  config = rloo.Config(kl_coefficient=coefficient, samples_per_prompt=4)
  learned = bandit.play(
      lambda optimizer: rloo.make(config, bandit.MODEL, optimizer), 4)
  bandit.check_optimum(learned, coefficient)
