"""PPO: the iteration written out, its identities, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.algorithms import ppo
from jaxrl_llm.models import value
from jaxrl_llm.training import optim
from tests.algorithms import bandit, groups, policy_gradients, tabular, tiny

KL = 0.3
CRITIC = groups.NETWORKS['value']


def _params():
  return groups.parameters(('policy', 'value'))


def _make(config, optimizer):
  return ppo.make(config, tiny.MODEL, CRITIC, optimizer)


DEFAULTS = dict(
    kl_coefficient=KL, samples_per_prompt=2, num_epochs=1, temperature=1.0, value_coefficient=0.5)


# Whitening of rewards alone is not whitening of advantages: the two forms differ in it.
OPTIONS = {
    'correct': {},
    'released': dict(discount=0.9, trace=0.5, whiten_advantages=False),
}
PLAIN = dict(whiten_rewards=False, whiten_advantages=False, trace=1.0)
run = groups.runner(ppo, (tiny.MODEL, CRITIC), _params(), **DEFAULTS)


# --- The iteration, response after response.


@jax.jit
def _values(parameters, rollouts):
  """V [P, K, T] where each token is chosen, rows moved to the left as in `groups.log_probs`."""
  tokens, positions, valid, read = groups.left_aligned(rollouts)
  output = CRITIC.apply(parameters['value'], tokens, positions=positions, valid=valid)
  scalars = output.hidden @ output.head.kernel[0] + output.head.bias[0]
  return jnp.take_along_axis(scalars, read, axis=1).reshape(rollouts.mask.shape)


def _whiten(x, counts, shift_mean):
  mean, deviation = np.mean(x[counts]), np.std(x[counts])
  return (x - mean) / np.sqrt(deviation**2 + 1e-8) + (0.0 if shift_mean else mean)


def _estimates(
    data, *, whiten_rewards=True, whiten_advantages=True, trace=0.95, discount=1.0, released=False):
  """(old log-probs, old values, advantages, returns), each [P, K, T], by NumPy."""
  mask = np.asarray(data.rollouts.mask) > 0
  counts = np.ones_like(mask) if released else mask
  old = np.asarray(groups.log_probs(tiny.params(), data.rollouts))
  values = np.where(mask, _values(_params(), data.rollouts), 0.0)
  rewards = np.where(mask, -KL * (old - np.asarray(data.reference_log_probs)), 0.0)
  for p, k in np.ndindex(mask.shape[:2]):
    rewards[p, k, int(data.rollouts.lengths[p, k]) - 1] += data.rewards[p, k]

  if whiten_rewards:
    rewards = _whiten(rewards, counts, shift_mean=False)
  advantages = np.zeros(mask.shape)

  for p, k in np.ndindex(mask.shape[:2]):
    after, advantage = 0.0, 0.0
    for t in reversed(range(int(data.rollouts.lengths[p, k]))):
      delta = rewards[p, k, t] + discount * after - values[p, k, t]
      advantage = delta + discount * trace * advantage
      advantages[p, k, t], after = advantage, values[p, k, t]
  returns = advantages + values

  if whiten_advantages:
    advantages = _whiten(advantages, counts, shift_mean=True)
  return old, values, np.where(mask, advantages, 0.0), returns


def _loss(data, *, clip=0.2, value_clip=0.2, released=False, **options):
  """(parameters, rows) -> the loss of these prompts, written out."""
  old, old_values, advantages, returns = map(
      jnp.asarray, _estimates(data, released=released, **options))
  mask = data.rollouts.mask

  def loss(parameters, rows):
    ratio = jnp.exp(groups.log_probs(parameters, data.rollouts) - old)
    surrogate = jnp.minimum(
        ratio * advantages, jnp.clip(ratio, 1 - clip, 1 + clip) * advantages)
    values = _values(parameters, data.rollouts)
    held = jnp.clip(values, old_values - value_clip, old_values + value_clip)
    error = jnp.maximum((values - returns)**2, (held - returns)**2) / 2
    total = jnp.where(mask > 0, DEFAULTS['value_coefficient'] * error - surrogate, 0.0)[rows]
    return jnp.sum(total) / (total.size if released else jnp.sum(mask[rows]))

  return loss


@pytest.mark.parametrize('compat', OPTIONS)
def test_loss_and_gradient_are_the_iteration_written_out(compat):
  data, options = groups.batch(), OPTIONS[compat]
  got = run(data, compat=compat, **options)
  loss = _loss(data, released=compat == 'released', **options)
  expected = jax.jit(jax.value_and_grad(loss))(_params(), np.arange(4))
  policy_gradients.check_equal(got, expected)
  assert got[2]['train/clip_fraction'] == 0
  for role in ('policy', 'value'):
    tiny.assert_trees_close(got[1][role], expected[1][role], tolerance=1e-5)


def test_B3_with_lambda_and_gamma_1_the_advantage_is_return_minus_value():
  data = groups.batch()
  _, gradients, metrics = run(data, **PLAIN)
  mask = np.asarray(data.rollouts.mask) > 0
  old = np.asarray(groups.log_probs(tiny.params(), data.rollouts))
  values = np.where(mask, _values(_params(), data.rollouts), 0.0)
  penalty = np.where(mask, KL * (old - np.asarray(data.reference_log_probs)), 0.0)
  later = np.cumsum(penalty[..., ::-1], axis=-1)[..., ::-1]
  returns = np.where(mask, np.asarray(data.rewards)[..., None] - later, 0.0)
  np.testing.assert_allclose(metrics['train/return'], returns.sum() / mask.sum(), rtol=1e-5)
  np.testing.assert_allclose(metrics['train/value'], values.sum() / mask.sum(), rtol=1e-5)
  np.testing.assert_allclose(
      metrics['train/value_loss'], np.sum((values - returns)**2) / 2 / mask.sum(), rtol=1e-4)
  _, expected = policy_gradients.written_out(
      lambda log_probs: -jnp.sum((returns - values) * log_probs) / mask.sum())
  tiny.assert_trees_close(gradients['policy'], expected['policy'], tolerance=1e-5)


def test_B4_at_the_old_policy_the_gradient_is_the_policy_gradient():
  # Neither a ratio nor a clip is in the equation; the critic's half has no gradient for the policy.
  data = groups.batch()
  _, _, advantages, _ = _estimates(data)
  _, gradients, metrics = run(data)
  _, expected = policy_gradients.written_out(
      lambda log_probs: -jnp.sum(advantages * log_probs) / jnp.sum(data.rollouts.mask))
  tiny.assert_trees_close(gradients['policy'], expected['policy'], tolerance=1e-5)
  assert metrics['train/clip_fraction'] == 0


def test_later_steps_are_clipped_against_the_frozen_policy_and_critic():
  data, bounds = groups.batch(), dict(clip=0.1, value_clip=0.05)
  config = ppo.Config(**DEFAULTS | dict(num_epochs=2, num_minibatches=2), **bounds)
  metrics = policy_gradients.check_steps(
      lambda optimizer: _make(config, optimizer), _loss(data, **bounds), data, _params(),
      [[0, 1], [2, 3], [0, 1], [2, 3]], learning_rate=0.1)
  assert 0 < metrics['train/clip_fraction'] < 1
  assert metrics['train/initial_log_ratio'] < 1e-5 < metrics['train/log_ratio']


def test_a_clip_of_one_or_more_sets_no_lower_bound():
  # A critic that says 0: with λ = γ = 1 the advantage of one token is its reward.
  config = {**DEFAULTS, **PLAIN, 'kl_coefficient': 0.0, 'value_coefficient': 0.0, 'num_epochs': 2}
  policy_gradients.check_clip(
      lambda clip, optimizer: ppo.make(
          ppo.Config(clip=clip, **config), tabular.LOGITS, groups.BIGRAM, optimizer),
      rewards=[1.0, -1], others={'value': {'table': np.zeros((3, 1), np.float32)}})


# --- Token rewards.


def test_token_rewards_by_hand():
  # c = 0.5; ln π/π_ref = (1, −2, 4): −0.5, 1, −2, and the score 3 at the last token.
  tokens = [[[1, 2, 0]], [[0, 5, 5]]]
  rollouts = groups.make_rollouts(tokens, np.ones((2, 1)), [1, 1])
  data = dataclasses.replace(
      groups.batch(), rollouts=rollouts, rewards=jnp.asarray([[3.0], [-1.0]]),
      reference_log_probs=jnp.asarray([[[-2.0, 1.0, -5.0]], [[-2.0, jnp.nan, jnp.nan]]]))
  old = jnp.asarray([[[-1.0, -1.0, -1.0]], [[-1.0, 0.0, 0.0]]])
  got = ppo.token_rewards(ppo.Config(kl_coefficient=0.5), data, old)
  np.testing.assert_allclose(got, [[[-0.5, 1, 1]], [[-1.5, 0, 0]]])
  # Over a response they add up to the shaped reward of a sequence (R17).
  np.testing.assert_allclose(got.sum(axis=-1)[0, 0], 3 - 0.5 * (-3 - (-6)))
  without = dataclasses.replace(data, reference_log_probs=None)
  got = ppo.token_rewards(ppo.Config(kl_coefficient=0.0), without, old)
  np.testing.assert_allclose(got, [[[0, 0, 3]], [[-1, 0, 0]]])


def test_the_score_goes_to_the_last_token_that_the_policy_chose():
  # A user's words at the end and in between; and a response without any token of the policy.
  data = groups.batch(1)
  mask = jnp.asarray([[[1, 0, 1]], [[1, 1, 0]], [[0, 1, 0]], [[0, 0, 0]]], jnp.float32)
  data = groups.replace_rollouts(data, mask=mask)
  got = ppo.token_rewards(ppo.Config(kl_coefficient=0.0), data, jnp.zeros((4, 1, 3)))
  last = [[0, 0, 1], [0, 1, 0], [0, 1, 0], [0, 0, 0]]
  np.testing.assert_allclose(got[:, 0], last * np.asarray(data.rewards))


# --- What is ignored.


def test_a_critic_with_several_outputs_is_an_error():
  wide = value.make(tiny.CONFIG, num_outputs=2)
  params = tiny.params() | {'value': jax.jit(wide.init)(jax.random.key(0))}
  algorithm = ppo.make(ppo.Config(**DEFAULTS), tiny.MODEL, wide, tiny.recorder())
  with pytest.raises(AssertionError):
    jax.eval_shape(
        algorithm.train_step, algorithm.init(jax.random.key(0), params), groups.batch())


# --- Learning.


def test_the_critic_learns_a_constant_reward():
  # Equal rewards in every group, no penalty and no reference.
  config = ppo.Config(**DEFAULTS | dict(kl_coefficient=0.0), whiten_rewards=False)
  data = dataclasses.replace(
      groups.batch(), rewards=jnp.full((4, 2), 0.7), reference_log_probs=None)
  algorithm = _make(config, optim.make_optimizer(
      optim.OptimizerConfig(name='adam', learning_rate=1e-2)))
  state = algorithm.init(jax.random.key(0), _params())
  before = np.asarray(_values(state.params, data.rollouts))

  state, metrics = jax.jit(lambda s: jax.lax.scan(
      lambda s, _: algorithm.train_step(s, data), s, None, length=200))(state)
  mask = np.asarray(data.rollouts.mask) > 0
  assert np.abs(before - 0.7)[mask].max() > 0.5
  np.testing.assert_allclose(np.asarray(_values(state.params, data.rollouts))[mask], 0.7, atol=0.05)
  losses = np.asarray(metrics['train/value_loss'].total / metrics['train/value_loss'].weight)

  assert losses[-1] < 1e-3 < 0.05 < losses[0]
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, metrics)))
  assert int(state.step) == 200


def test_learns_a_bandit_to_its_closed_form():
  coefficient = 0.2
  critic = value.make(bandit.CONFIG)
  config = ppo.Config(kl_coefficient=coefficient, temperature=1.0)
  learned = bandit.play(
      lambda optimizer: ppo.make(config, bandit.MODEL, critic, optimizer), 1,
      others={'value': jax.jit(critic.init)(jax.random.key(3))}, num_iterations=60,
      learning_rate=5e-3)
  bandit.check_optimum(learned, coefficient, success=0.08)
  assert learned.metrics['train/initial_log_ratio'].max() < 1e-5
