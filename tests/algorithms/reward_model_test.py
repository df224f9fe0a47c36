"""Reward models: their identities through the real train step, and that they learn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm.algorithms import reward_model
from jaxrl_llm.rl import masking, sequence_scores
from jaxrl_llm.training import optim
from jaxrl_llm.types import Batch, Head, ModelFns, ModelOutput, Rollouts
from tests.algorithms import groups, tiny

MODEL = groups.NETWORKS['reward']
PARAMS = groups.parameters(('reward',))
run = groups.runner(reward_model, (MODEL,), PARAMS)


# --- A score that reads the last token alone: it compiles fast, and is written out in NumPy.


def _apply(params, tokens, **unused):
  head = params['value_head']
  return ModelOutput(jax.nn.one_hot(tokens, 7), Head(head['kernel'], head['bias']), None)


BY_TOKEN = ModelFns(init=None, apply=_apply, init_cache=None)
KERNEL = np.random.default_rng(2).normal(size=(1, 7)).astype(np.float32)


def _token_params(bias=0.3):
  return {'reward': {'value_head': {'kernel': jnp.asarray(KERNEL), 'bias': jnp.array([bias])}}}


def _run_by_token(parameters):
  return groups.runner(reward_model, (BY_TOKEN,), parameters)


run_by_token = _run_by_token(_token_params())


def _batch():
  """Pairs of both orders, of responses that end with their stop token or without one."""
  tokens = [[[1, 0, 0], [5, 1, 6]], [[2, 3, 4], [5, 0, 0]], [[6, 6, 1], [2, 2, 3]],
            [[4, 5, 6], [1, 1, 5]]]
  rollouts = groups.make_rollouts(tokens, np.full((4, 2), 3), [2, 1, 2, 1])
  rewards = jnp.array([[1.0, 0.0], [0.0, 1.0], [-2.0, 4.0], [0.3, 0.1]])
  return Batch(rollouts, rewards, None, {}, jnp.ones(4))


def test_loss_and_gradient_of_a_transformer_are_the_equation_written_out():
  # Each row moved to the left, so that its padding comes last.
  data = groups.batch()
  sign = np.where(data.rewards[:, 0] > data.rewards[:, 1], 1.0, -1.0)
  rollouts = jax.tree.map(np.asarray, data.rollouts)
  rows = [[*prompt[4 - n:], *tokens[:m]]
          for prompt, n, group, lengths in zip(
              rollouts.prompts, rollouts.prompt_lengths, rollouts.tokens, rollouts.lengths)
          for tokens, m in zip(group, lengths)]
  ends = np.array([len(row) for row in rows])
  tokens = np.array([row + [5] * (7 - len(row)) for row in rows])
  index = np.broadcast_to(np.arange(7), tokens.shape)

  @jax.jit
  @jax.value_and_grad
  def expected(params):
    output = MODEL.apply(params['reward'], tokens, positions=index, valid=index < ends[:, None])
    every = output.hidden @ output.head.kernel[0] + output.head.bias
    scores = every[np.arange(8), ends - 1].reshape(4, 2)
    return -jnp.mean(jax.nn.log_sigmoid(sign * (scores[:, 0] - scores[:, 1])))

  loss, gradients = expected(PARAMS)
  got = run(data)
  np.testing.assert_allclose(got[0], loss, rtol=1e-5)
  tiny.assert_trees_close(got[1], gradients, tolerance=1e-5)


# --- The loss, its labels, and the constant.


def test_hand_worked():
  # Last tokens (0, 6), (4, 0), (1, 3) and (6, 5); the second is preferred in the two in the middle.
  s = KERNEL[0].astype(np.float64)
  margin = np.array([s[0] - s[6], s[0] - s[4], s[3] - s[1], s[6] - s[5]])
  loss, gradients, metrics = run_by_token(_batch())
  np.testing.assert_allclose(loss, np.mean(np.log1p(np.exp(-margin))), rtol=1e-5)
  slope = -1 / (1 + np.exp(margin)) / 4
  direction = np.eye(7)[[0, 0, 3, 6]] - np.eye(7)[[6, 4, 1, 5]]
  np.testing.assert_allclose(
      gradients['reward']['value_head']['kernel'][0], slope @ direction, atol=1e-6)
  assert metrics == pytest.approx({
      'train/loss': loss, 'train/accuracy': np.mean(margin > 0), 'train/margin': margin.mean(),
      'train/ties': 0, 'train/dropped': 0,
      'train/grad_norm': np.linalg.norm(slope @ direction)}, rel=1e-5, abs=1e-6)
  assert 0 < np.mean(margin > 0) < 1


def test_B8_the_loss_at_equal_scores_is_ln_2():
  loss, _, metrics = _run_by_token(jax.tree.map(jnp.zeros_like, _token_params()))(_batch())
  np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
  assert metrics['train/margin'] == 0 == metrics['train/accuracy']


def test_B8_a_constant_cancels_in_the_loss():
  expected, got = run_by_token(_batch()), _run_by_token(_token_params(bias=5.3))(_batch())
  np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
  tiny.assert_trees_close(got[1], expected[1], tolerance=1e-5)
  assert abs(float(expected[1]['reward']['value_head']['bias'][0])) < 1e-6


def test_R22_centring_makes_the_mean_reference_score_zero():
  references = groups.batch(num_samples=1).rollouts
  scores = jax.jit(functools.partial(sequence_scores.sequence_scores, MODEL))
  before = scores(PARAMS['reward'], references)
  mean = jnp.mean(before)
  assert abs(float(mean)) > 0.1
  params = {'policy': {'value_head': {'bias': jnp.ones(1)}}, **PARAMS}
  centred = reward_model.centred(params, mean)
  after = scores(centred['reward'], references)

  assert abs(float(jnp.mean(after))) < 1e-6
  np.testing.assert_allclose(after, before - mean, atol=1e-6)
  # Nothing else has moved: neither the head of another network, nor what was handed in.
  np.testing.assert_array_equal(centred['policy']['value_head']['bias'], 1)
  np.testing.assert_allclose(scores(params['reward'], references), before)

  # Once centred, always so.
  again = reward_model.centred(centred, jnp.mean(after))
  tiny.assert_trees_close(again, centred, tolerance=1e-6)


def test_centring_finds_the_head_under_adapters_and_says_where_there_is_none():
  params = {'reward': {'base': _token_params(bias=0.5)['reward'], 'adapters': {'bias': KERNEL}}}
  centred = reward_model.centred(params, jnp.float32(0.75))
  assert float(centred['reward']['base']['value_head']['bias'][0]) == -0.25
  np.testing.assert_array_equal(centred['reward']['adapters']['bias'], KERNEL)
  with pytest.raises(ValueError, match=r'centring needs a head with a bias \(value_head/bias\)'):
    reward_model.centred({'reward': {'value_head': {'kernel': KERNEL}}}, 1.0)


def test_nothing_but_the_order_of_the_rewards_is_read():
  data = _batch()
  expected = run_by_token(data)
  got = run_by_token(dataclasses.replace(data, rewards=100 * jnp.exp(data.rewards)))
  assert got[0] == expected[0]
  other = run_by_token(dataclasses.replace(data, rewards=-data.rewards))
  assert abs(other[0] - expected[0]) > 1e-2


def test_ties_are_excluded_and_counted():
  data = _batch()
  expected = run_by_token(dataclasses.replace(data, weight=jnp.array([1.0, 0, 1, 1])))
  got = run_by_token(dataclasses.replace(data, rewards=data.rewards.at[1].set(0.5)))
  np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
  tiny.assert_trees_close(got[1], expected[1], tolerance=1e-6)
  for name in ('train/accuracy', 'train/margin'):
    assert got[2][name] == pytest.approx(expected[2][name], rel=1e-5)
  assert got[2]['train/ties'] == 0.25 and expected[2]['train/ties'] == 0
  nothing = run_by_token(dataclasses.replace(data, rewards=jnp.zeros((4, 2))))
  assert nothing[0] == 0 and nothing[2]['train/ties'] == 1
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(nothing[1]))


@pytest.mark.parametrize('samples', [1, 3])
def test_samples_that_are_not_pairs_are_an_error(samples):
  with pytest.raises(ValueError, match=f'samples_per_prompt = 2 samples a prompt, got {samples}'):
    run_by_token(dataclasses.replace(_batch(), rewards=jnp.zeros((4, samples))))


# --- Learning.


def _train(model, params, batch, optimizer, steps):
  algorithm = reward_model.make(reward_model.Config(), model, optimizer)
  advance = lambda _, state: algorithm.train_step(state, batch)[0]
  state = algorithm.init(jax.random.key(0), params)
  return jax.jit(lambda state: jax.lax.fori_loop(0, steps, advance, state))(state).params


def test_recovers_the_reward_that_made_bradley_terry_labels():
  # All pairs of last tokens, each way round as often as Bradley-Terry says: the minimiser is the
  # reward up to a constant, which centring sets.
  rewards = np.array([0.0, 1.0, -0.5, 0.3, 2.0, -1.0, 0.7])
  first, second = (i.reshape(-1) for i in np.indices((7, 7)))
  distinct = first != second
  tokens = np.stack([first[distinct], second[distinct]], axis=1)[..., None]
  weight = 1 / (1 + np.exp(rewards[second[distinct]] - rewards[first[distinct]]))
  rollouts = groups.make_rollouts(tokens, np.ones((42, 1)), np.ones(42))
  labels = jnp.tile(jnp.array([1.0, 0.0]), (42, 1))
  batch = Batch(rollouts, labels, None, {}, jnp.asarray(weight, jnp.float32))
  params = _train(BY_TOKEN, _token_params(), batch, optax.sgd(10.0), steps=500)
  scores = sequence_scores.sequence_scores(BY_TOKEN, params['reward'], rollouts)
  params = reward_model.centred(params, jnp.mean(scores))
  head = params['reward']['value_head']
  np.testing.assert_allclose(
      head['kernel'][0] + head['bias'], rewards - rewards.mean(), atol=1e-3)


def test_a_transformer_learns_what_is_liked():
  # Of two responses the one with more threes is preferred; measured on pairs never seen.
  rng = np.random.default_rng(0)
  tokens = jnp.asarray(rng.integers(1, 7, (512, 2, 4)))
  mask, lengths, reasons = masking.response_mask(tokens, (groups.STOP,))
  rollouts = Rollouts(
      jnp.asarray(rng.integers(1, 7, (512, 2))), jnp.full(512, 2), tokens, lengths, mask,
      jnp.zeros(mask.shape), reasons)

  batch = Batch(rollouts, jnp.sum(tokens == 3, axis=-1).astype(jnp.float32), None, {},
                jnp.ones(512))
  train, test = (jax.tree.map(lambda leaf, s=s: leaf[s], batch)
                 for s in (slice(256), slice(256, None)))
  optimizer = optim.make_optimizer(optim.OptimizerConfig(name='adam', learning_rate=1e-2))
  fresh = {'reward': jax.jit(MODEL.init)(jax.random.key(0))}
  params = _train(MODEL, fresh, train, optimizer, steps=100)
  _, _, metrics = groups.runner(reward_model, (MODEL,), params)(test)

  assert metrics['train/ties'] < 0.6
  assert metrics['train/accuracy'] > 0.95
  assert metrics['train/margin'] > 1
