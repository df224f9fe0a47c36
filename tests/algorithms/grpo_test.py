"""GRPO: the equation in its three published forms, its identities, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.algorithms import grpo
from tests.algorithms import bandit, groups, policy_gradients, tiny

KL = 0.3
SAMPLES = 3
FORMS = {
    'GRPO': dict(advantage_scale='std', normalisation='response'),
    'DAPO': dict(advantage_scale='population_std', normalisation='token', clip_high=0.28),
    'Dr. GRPO': dict(advantage_scale='none', normalisation='constant'),
}


def _make(config, optimizer):
  return grpo.make(config, tiny.MODEL, optimizer)


run = groups.runner(grpo, kl_coefficient=KL, samples_per_prompt=SAMPLES)


def _data(num_samples=SAMPLES):
  return groups.batch(num_samples)


def _without_reference(data):
  return dataclasses.replace(data, reference_log_probs=None)


def _advantage(rewards, scale):
  rewards = np.asarray(rewards)
  centred = rewards - rewards.mean(axis=1, keepdims=True)
  if scale == 'none':
    return centred
  ddof = {'std': 1, 'population_std': 0}[scale]
  return centred / (rewards.std(axis=1, keepdims=True, ddof=ddof) + 1e-6)


def _mean(losses, mask, normalisation):
  totals, lengths = jnp.sum(losses * mask, axis=-1), jnp.sum(mask, axis=-1)
  if normalisation == 'response':
    return jnp.mean(totals / lengths)
  return jnp.sum(totals) / (jnp.sum(lengths) if normalisation == 'token' else mask.size)


def _loss(data, *, advantage_scale='std', normalisation='response', clip_low=0.2, clip_high=0.2):
  """(log-probs [P, K, T], rows) -> the loss of these prompts, written out."""
  advantage = jnp.asarray(_advantage(data.rewards, advantage_scale))[..., None]
  old = groups.log_probs(tiny.params(), data.rollouts)

  def loss(log_probs, rows=slice(None)):
    ratio, a = jnp.exp(log_probs - old)[rows], advantage[rows]
    surrogate = jnp.minimum(ratio * a, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * a)
    difference = (data.reference_log_probs - log_probs)[rows]
    penalty = KL * (jnp.exp(difference) - difference - 1)
    return _mean(penalty - surrogate, data.rollouts.mask[rows], normalisation)

  return loss


# --- The loss and its gradient.


@pytest.mark.parametrize('form', FORMS)
def test_loss_and_gradient_are_the_equation_written_out(form):
  got = run(_data(), **FORMS[form])
  expected = policy_gradients.written_out(_loss(_data(), **FORMS[form]), num_samples=SAMPLES)
  policy_gradients.check_equal(got, expected)
  assert got[2]['train/clip_fraction'] == 0 and got[2]['train/ties'] == 0
  mask = np.asarray(_data().rollouts.mask)
  difference = np.asarray(_data().reference_log_probs - _data().rollouts.log_probs)
  divergence = np.sum(mask * (np.exp(difference) - difference - 1)) / mask.sum()
  assert got[2]['train/token_kl'] == pytest.approx(divergence, rel=1e-4)


def test_B4_without_a_penalty_the_gradient_is_the_policy_gradient_of_the_advantages():
  data = _without_reference(_data())
  advantage = _advantage(data.rewards, 'std')[..., None]
  got = run(data, kl_coefficient=0.0)
  _, expected = policy_gradients.written_out(
      lambda log_probs: _mean(-advantage * log_probs, data.rollouts.mask, 'response'),
      num_samples=SAMPLES)
  tiny.assert_trees_close(got[1], expected, tolerance=1e-5)
  with pytest.raises(ValueError, match='needs reference_log_probs, got None'):
    run(data)


def test_B2_groups_of_equal_rewards_have_no_advantage():
  data = dataclasses.replace(_data(), rewards=jnp.full((4, SAMPLES), 0.1))
  loss, gradients, metrics = run(_without_reference(data), kl_coefficient=0.0)
  assert loss == 0 and not any(leaf.any() for leaf in jax.tree.leaves(gradients))
  assert metrics['train/ties'] == 1
  # With a penalty they count: nothing is dropped.
  one = dataclasses.replace(_data(), rewards=_data().rewards.at[1].set(0.7))
  _, gradients, metrics = run(one)
  assert metrics['train/ties'] == 0.25 and metrics['train/dropped'] == 0
  without = dataclasses.replace(one, weight=jnp.asarray([1.0, 0, 1, 1]))
  assert tiny.differ(run(without)[1], gradients)


def test_B2_a_group_of_one_keeps_its_reward():
  data = _without_reference(_data(1))
  for row, reward in enumerate(data.rewards[:, 0]):  # At ratio 1 the loss is −A.
    alone = dataclasses.replace(data, weight=jax.nn.one_hot(row, 4))
    loss, _, _ = run(alone, samples_per_prompt=1, kl_coefficient=0.0)
    np.testing.assert_allclose(loss, -reward, rtol=1e-5)


def test_rewards_count_in_units_of_their_spread():
  data = _data()
  other = dataclasses.replace(data, rewards=5.0 * data.rewards + 2.0)
  tiny.assert_trees_close(run(other)[1], run(data)[1], tolerance=1e-5)
  plain = FORMS['Dr. GRPO']
  assert tiny.differ(run(other, **plain)[1], run(data, **plain)[1], by=0.1)


def test_the_penalty_has_a_gradient_of_its_own_and_none_at_the_reference():
  data = dataclasses.replace(_data(), rewards=jnp.zeros((4, SAMPLES)))
  own = dataclasses.replace(data, reference_log_probs=data.rollouts.log_probs)
  loss, gradients, metrics = run(own)
  assert abs(loss) < 1e-6 and abs(metrics['train/token_kl']) < 1e-6
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) < 1e-5
  assert run(data)[0] > 0.01
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(run(data)[1])) > 0.01


# --- Steps after the first.


def test_later_steps_are_weighed_by_the_ratio_of_tokens_and_clipped_on_either_side():
  data = _data()
  options = dict(FORMS['DAPO'], clip_low=0.05, clip_high=0.15)
  # Each minibatch is divided by its own tokens.
  assert data.rollouts.mask[:2].sum() != data.rollouts.mask[2:].sum()
  config = grpo.Config(kl_coefficient=KL, samples_per_prompt=SAMPLES, num_epochs=2,
                       num_minibatches=2, **options)
  loss = _loss(data, **options)
  metrics = policy_gradients.check_steps(
      lambda optimizer: _make(config, optimizer),
      lambda parameters, rows: loss(groups.log_probs(parameters, data.rollouts), rows),
      data, tiny.params(), [[0, 1], [2, 3], [0, 1], [2, 3]], learning_rate=0.1)
  assert 0 < metrics['train/clip_fraction'] < 1
  assert metrics['train/initial_log_ratio'] < 1e-5 < metrics['train/log_ratio']


# --- Learning.


def test_learns_a_bandit():
  config = grpo.Config(samples_per_prompt=8, num_epochs=2)
  learned = bandit.play(
      lambda optimizer: grpo.make(config, bandit.MODEL, optimizer), 8)
  assert learned.before.mean() < 0.3 and learned.success.mean() > 0.9
  # No further away than the answer that is always right.
  assert (learned.kl < -np.log(learned.before) + 0.01).all()
  assert learned.metrics['train/initial_log_ratio'].max() < 1e-5
