"""DPO: its identities through the real train step, and that it learns its closed form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm.algorithms import dpo, rebel
from jaxrl_llm.rl import batches
from jaxrl_llm.training import optim
from jaxrl_llm.types import Batch, Rollouts, TrainState
from tests.algorithms import bandit, groups, tiny

BETA = 0.3


run = groups.runner(dpo, beta=BETA)


# --- A policy that reads one token back: it compiles fast, and is written out in NumPy.

TABLE, BIGRAM = groups.TABLE, groups.BIGRAM


def _exactly(data, **changes):
  """(loss, gradients, metrics) in float64."""
  return groups.exactly(dpo, data, **{'beta': BETA, **changes})


run_bigram = groups.runner(dpo, (BIGRAM,), groups.tables(), beta=BETA)
run_rebel = groups.runner(
    rebel, (BIGRAM,), groups.tables(), temperature=1.0, num_epochs=1, kl_coefficient=0.0)


@functools.cache
def _batch(num_samples=2, temperature=1.0):
  """The shared batch with the log-probs of the bigram."""
  data = groups.batch(num_samples)
  log_probs = jnp.asarray(_by_token(data.rollouts, temperature)[0], jnp.float32)
  return groups.replace_rollouts(data, log_probs=log_probs)


def _by_token(rollouts, temperature=1.0):
  """(ln π(y_t) [P, K, T], its gradient with respect to the table [P, K, T, 7, 7]); numpy."""
  tokens, mask = np.asarray(rollouts.tokens), np.asarray(rollouts.mask)
  prompts = np.broadcast_to(np.asarray(rollouts.prompts)[:, None, -1:], tokens.shape[:2] + (1,))
  before = np.concatenate([prompts, tokens[..., :-1]], axis=-1)
  logits = TABLE[before].astype(np.float64) / temperature
  probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  chosen = np.take_along_axis(probabilities, tokens[..., None], axis=-1)[..., 0]
  scores = (np.eye(7)[tokens] - probabilities) / temperature * mask[..., None]
  return np.log(chosen) * mask, np.eye(7)[before][..., None] * scores[..., None, :]


def _written_out(data):
  """(D [P], its gradient [P, 7, 7], ln π of the preferred response and of the other [P, 2], their
  gradients [P, 2, 7, 7], log-ratios [P, 2]); the preferred response first."""
  log_probs, gradients = (x.sum(axis=2) for x in _by_token(data.rollouts))
  reference = np.sum(np.asarray(data.reference_log_probs) * data.rollouts.mask, axis=-1)
  reference = np.asarray(reference, np.float64)
  order = np.argsort(-np.asarray(data.rewards), axis=1)
  rows = np.arange(len(order))[:, None]
  log_probs, gradients = log_probs[rows, order], gradients[rows, order]
  log_ratio = log_probs - reference[rows, order]
  return (log_ratio[:, 0] - log_ratio[:, 1], gradients[:, 0] - gradients[:, 1], log_probs,
          gradients, log_ratio)


def _assert_gradient(got, expected):
  assert np.abs(expected).max() > 1e-2
  np.testing.assert_allclose(got['policy']['table'], expected, atol=1e-5 * np.abs(expected).max())


def _with(data=None, **changes):
  return dataclasses.replace(_batch() if data is None else data, **changes)


def _own_reference():
  return _with(reference_log_probs=_batch().rollouts.log_probs)


def _rows(weights, values):
  """Mean over pairs of weights [P] times values [P, ...]."""
  return np.tensordot(weights, values, axes=1) / len(weights)


def test_loss_and_gradient_of_a_transformer_are_the_equation_written_out():
  data = groups.batch()
  rewards = np.asarray(data.rewards)
  sign = jnp.where(rewards[:, 0] > rewards[:, 1], 1.0, -1.0)
  reference = jnp.sum(data.reference_log_probs * data.rollouts.mask, axis=-1)

  @jax.jit
  @jax.value_and_grad
  def expected(parameters):
    log_ratio = jnp.sum(groups.log_probs(parameters, data.rollouts), axis=-1) - reference
    return -jnp.mean(jax.nn.log_sigmoid(BETA * sign * (log_ratio[:, 0] - log_ratio[:, 1])))

  loss, gradients = expected(tiny.params())
  got = run(data)
  np.testing.assert_allclose(got[0], loss, rtol=1e-5)
  tiny.assert_trees_close(got[1], gradients, tolerance=1e-5)
  assert got[2]['train/sampler_gap'] < 1e-5


# --- The loss and its gradient.

_sigmoid = lambda z: 1 / (1 + np.exp(-z))
_dpo = lambda z: -np.log(_sigmoid(z))
# Loss and its derivative with respect to D, written out for ε = 0.2; τ = β.
WRITTEN_OUT = {
    'sigmoid': (lambda d: _dpo(BETA * d), lambda d: -BETA * _sigmoid(-BETA * d)),
    'ipo': (lambda d: (d - 0.5 / BETA)**2, lambda d: 2 * (d - 0.5 / BETA)),
    'hinge': (lambda d: np.maximum(0, 1 - BETA * d), lambda d: -BETA * (BETA * d < 1)),
    'conservative': (lambda d: 0.8 * _dpo(BETA * d) + 0.2 * _dpo(-BETA * d),
                     lambda d: BETA * (0.2 - _sigmoid(-BETA * d))),
    'robust': (lambda d: (0.8 * _dpo(BETA * d) - 0.2 * _dpo(-BETA * d)) / 0.6,
               lambda d: -BETA * (_sigmoid(-BETA * d) + 1 / 3)),
}


@pytest.mark.parametrize('loss', WRITTEN_OUT)
def test_loss_gradient_and_metrics_are_the_equations_written_out(loss):
  assert len(set(np.asarray(_batch().rewards).argmax(axis=1))) == 2  # Pairs of both orders.
  difference, gradient, _, _, log_ratio = _written_out(_batch())
  value, slope = WRITTEN_OUT[loss]
  smoothing = {'label_smoothing': 0.2} if loss in ('conservative', 'robust') else {}
  got, gradients, metrics = run_bigram(_batch(), loss=loss, **smoothing)
  np.testing.assert_allclose(got, np.mean(value(difference)), rtol=1e-5)
  _assert_gradient(gradients, _rows(slope(difference), gradient))
  expected = {
      'accuracy': np.mean(difference > 0), 'margin': BETA * np.mean(difference),
      'chosen_log_ratio': log_ratio[:, 0].mean(), 'rejected_log_ratio': log_ratio[:, 1].mean(),
      'log_ratio': np.abs(log_ratio).mean(), 'initial_log_ratio': np.abs(log_ratio).mean(),
      'ties': 0, 'dropped': 0, 'sampler_gap': 0,
  }
  assert metrics == pytest.approx(
      {**metrics, **{f'train/{name}': x for name, x in expected.items()}}, rel=1e-4, abs=1e-5)


def test_rpo_adds_the_log_prob_of_the_preferred_response():
  difference, gradient, log_probs, gradients, _ = _written_out(_batch())
  value, slope = WRITTEN_OUT['sigmoid']
  got = run_bigram(_batch(), rpo_weight=0.5)
  np.testing.assert_allclose(
      got[0], np.mean(value(difference)) - 0.5 * log_probs[:, 0].mean(), rtol=1e-5)
  _assert_gradient(
      got[1], _rows(slope(difference), gradient) - 0.5 * gradients[:, 0].mean(axis=0))


def test_B5_at_the_reference_the_loss_is_ln_2_and_parallel_to_rebel():
  loss, gradients, metrics = run_bigram(_own_reference())
  np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)
  assert metrics['train/margin'] == pytest.approx(0, abs=1e-5)
  expected = -BETA / 2 * _written_out(_batch())[1].mean(axis=0)
  _assert_gradient(gradients, expected)
  # REBEL with rewards 1 apart: −2 η (∇ln π_w − ∇ln π_l).
  _assert_gradient(run_rebel(_one_apart(), eta=0.7)[1], 4 * 0.7 / BETA * expected)


def test_B7_ipo_is_rebel_with_a_constant_target():
  expected = run_rebel(_one_apart(), eta=0.5 / BETA)
  got = run_bigram(_batch(), loss='ipo', reference='policy')
  np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
  _assert_gradient(got[1], expected[1]['policy']['table'])


def _one_apart():
  """Rewards in the same order, all 1 apart."""
  rewards = _batch().rewards
  return _with(rewards=(rewards == rewards.max(axis=1, keepdims=True)).astype(jnp.float32))


def test_nothing_but_the_order_of_the_rewards_is_read():
  expected = run_bigram(_batch())
  rewards = _batch().rewards
  for other in (_one_apart().rewards, 100 * rewards - 7, jnp.exp(rewards)):
    got = run_bigram(_with(rewards=other))
    assert got[0] == expected[0]
    jax.tree.map(np.testing.assert_array_equal, got[1], expected[1])
  assert tiny.differ(run_bigram(_with(rewards=-rewards))[1], expected[1])


def test_ties_are_excluded_and_counted():
  expected = run_bigram(_with(weight=jnp.array([1.0, 0, 1, 1])), rpo_weight=0.5)
  got = run_bigram(_with(rewards=_batch().rewards.at[1].set(0.25)), rpo_weight=0.5)
  np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
  tiny.assert_trees_close(got[1], expected[1], tolerance=1e-6)
  assert got[2]['train/ties'] == 0.25 and expected[2]['train/ties'] == 0
  for name in ('accuracy', 'margin', 'chosen_log_ratio', 'rejected_log_ratio'):
    assert got[2][f'train/{name}'] == pytest.approx(expected[2][f'train/{name}'], rel=1e-5)
  # How far the policy is from the reference is a matter of all pairs.
  every = run_bigram(_batch(), rpo_weight=0.5)[2]['train/log_ratio']
  assert got[2]['train/log_ratio'] == pytest.approx(every, rel=1e-5)
  nothing = run_bigram(_with(rewards=jnp.ones((4, 2))), rpo_weight=0.5)
  assert nothing[0] == 0 and nothing[2]['train/ties'] == 1
  assert np.isfinite(list(nothing[2].values())).all()
  assert not np.any(nothing[1]['policy']['table'])


def test_a_pair_of_the_same_response_has_loss_ln_2_and_no_gradient():
  same = dataclasses.replace(_batch().samples([0, 0]), rewards=_batch().rewards)
  loss, gradients, _ = run_bigram(same)
  np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
  assert np.abs(gradients['policy']['table']).max() < 1e-6


# --- Which reference, which pairs, how many steps.


def test_B6_the_reference_is_a_choice():
  # What is left is that the reference was rounded to float32.
  expected = _exactly(_own_reference())
  got = _exactly(_with(reference_log_probs=None), reference='policy')
  np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
  tiny.assert_trees_close(got[1], expected[1], tolerance=1e-5)
  assert tiny.differ(_exactly(_batch())[1], expected[1])
  with pytest.raises(ValueError, match="reference='fixed' needs batch.reference_log_probs"):
    run_bigram(_with(reference_log_probs=None))


def test_B6_the_policy_of_the_start_stays_the_reference_through_all_steps():
  optimizer, parameters = optax.sgd(2.0), {'policy': {'table': jnp.asarray(TABLE)}}
  steps = lambda **changes: jax.jit(
      dpo.make(dpo.Config(beta=BETA, **changes), BIGRAM, optimizer).train_step)
  start = TrainState.create(parameters, optimizer, jax.random.key(0))
  moved = lambda state: jax.tree.map(jnp.subtract, state.params, parameters)
  once, data = steps(), _own_reference()
  expected = moved(once(once(start, data)[0], data)[0])
  got, metrics = steps(reference='policy', num_epochs=2)(start, data)

  assert int(got.step) == 2
  tiny.assert_trees_close(moved(got), expected, tolerance=1e-5)
  # Before the first step nothing had moved; over both, it had.
  assert metrics['train/initial_log_ratio'].value() < 1e-5
  assert metrics['train/sampler_gap'].value() < 1e-5
  assert metrics['train/log_ratio'].value() > 1e-2

  # A reference that moved along would have taken the first step twice.
  again = steps(reference='policy')
  assert tiny.differ(moved(again(again(start, data)[0], data)[0]), expected)


def test_the_best_and_the_worst_of_more_samples():
  data = _batch(num_samples=4)
  choose = functools.partial(_exactly, samples_per_prompt=4, pairs='best_worst')
  groups.assert_exactly_same(choose(data), _exactly(batches.best_and_worst(data)))
  # One reward that is not a number drops the prompt.
  middle = jnp.argsort(data.rewards, axis=1)[2, 1]
  metrics = choose(_with(data, rewards=data.rewards.at[2, middle].set(jnp.nan)))[2]
  assert metrics['train/dropped'] == 0.25


def test_responses_of_a_data_set_have_no_sampler_to_differ_from():
  unknown = jnp.full(_batch().rollouts.mask.shape, jnp.nan)
  got = run_bigram(groups.replace_rollouts(_batch(), log_probs=unknown))
  tiny.assert_trees_close(got[1], run_bigram(_batch())[1], tolerance=1e-6)
  assert got[2]['train/sampler_gap'] == 0


# --- Learning.


def test_learns_a_bandit_from_preferences_to_its_closed_form():
  # All pairs, weighted by how likely they are sampled and labelled so: r = 1 for the right answer,
  # labels from Bradley-Terry. The minimiser is π_ref e^{r/β} / Z.
  beta, before = 0.2, np.asarray(bandit.log_distributions(bandit.reference()))
  row, first, second = (i.reshape(-1) for i in np.indices((6, 8, 8)))
  distinct = first != second
  row, pair = row[distinct], np.stack([first[distinct], second[distinct]], axis=1)
  log_probs = before[row[:, None], pair]
  rewards = (pair == bandit.RIGHT[row, None]).astype(np.float32)
  likely = np.exp(log_probs.sum(axis=1)) * _sigmoid(rewards[:, 0] - rewards[:, 1])
  shape = (*pair.shape, 1)
  rollouts = Rollouts(
      bandit.PROMPTS[row][:, None], np.ones(len(row), np.int32), pair[..., None].astype(np.int32),
      np.ones(pair.shape, np.int32), np.ones(shape, np.float32), log_probs[..., None],
      np.zeros(pair.shape, np.int8))
  labels = np.tile(np.array([1.0, 0.0], np.float32), (len(row), 1))
  batch = Batch(rollouts, labels, log_probs[..., None], {}, likely.astype(np.float32))

  algorithm = dpo.make(
      dpo.Config(beta=beta, num_epochs=300), bandit.MODEL,
      optim.make_optimizer(optim.OptimizerConfig(name='adam', learning_rate=1e-2)))
  state = algorithm.init(jax.random.key(1), {'policy': bandit.reference()})
  result = bandit.learned(*jax.jit(algorithm.train_step)(state, jax.tree.map(jnp.asarray, batch)))
  bandit.check_optimum(result, beta, success=0.03, kl=0.1)
  assert result.metrics['train/sampler_gap'] < 1e-5
