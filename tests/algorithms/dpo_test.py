"""DPO: its identities through the real train step, and that it learns its closed form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm.algorithms import dpo, rebel
from jaxrl_llm.models import configs, policy
from jaxrl_llm.rl import batches
from jaxrl_llm.training import optim
from jaxrl_llm.types import Batch, Rollouts, TrainState
from tests.algorithms import groups, tiny

BETA = 0.3


def _make(config, optimizer):
  return dpo.make(config, tiny.MODEL, optimizer)


run = groups.runner(_make, dpo.Config, beta=BETA)


# --- A policy that reads one token back: compiled in no time, and spelt out in NumPy.

TABLE, BIGRAM = groups.TABLE, groups.BIGRAM


def _bigram_runner(algorithm, **defaults):
  return groups.runner(
      lambda config, optimizer: algorithm.make(config, BIGRAM, optimizer), algorithm.Config,
      parameters={'policy': {'table': jnp.asarray(TABLE)}}, temperature=1.0, **defaults)


def _exactly(data, **changes):
  """(loss, gradients, metrics) in float64."""
  config = dpo.Config(**{'beta': BETA, 'temperature': 1.0, **changes})
  return groups.in_float64(dpo.make(config, BIGRAM, tiny.recorder()), data)


run_bigram = _bigram_runner(dpo, beta=BETA)
run_rebel = _bigram_runner(rebel, num_epochs=1, kl_coefficient=0.0)


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


def _spelt_out(data):
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


# --- What every algorithm is held to.


@pytest.mark.parametrize('temperature', [0.6, 1.0, 1.3])
def test_R20_the_ratio_is_one_before_the_first_step(temperature):
  metrics = run_bigram(
      _batch(temperature=temperature), temperature=temperature, reference='policy')[2]
  assert metrics['train/initial_log_ratio'] < 1e-5 and metrics['train/sampler_gap'] < 1e-5
  if temperature != 1.0:  # The gap can be seen where there is one.
    other = run_bigram(_batch(), temperature=temperature, reference='policy')[2]
    assert other['train/initial_log_ratio'] < 1e-5 and other['train/sampler_gap'] > 1e-2


def test_loss_and_gradient_of_a_transformer_are_the_equation_spelt_out():
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


def test_padding_has_no_part():
  groups.check_padding(run, groups.batch())


def test_orders_have_no_part():
  groups.check_orders(run, groups.batch())


def test_rows_that_do_not_count_have_no_part():
  groups.check_rows_that_do_not_count(run, groups.batch())


def test_micro_batches_agree():
  for options in (dict(beta=BETA), dict(reference='policy', rpo_weight=0.5)):
    groups.check_micro_batches(lambda options=options, **changes: dpo.make(
        dpo.Config(temperature=1.0, **options, **changes), BIGRAM, tiny.recorder()), _batch())


def test_one_prompt():
  groups.check_one_prompt(run_bigram, _batch())


def test_seeds_side_by_side():
  groups.check_seeds(_make, dpo.Config(), groups.batch())


# --- The loss and its gradient.

_sigmoid = lambda z: 1 / (1 + np.exp(-z))
_dpo = lambda z: -np.log(_sigmoid(z))
# Loss and its derivative with respect to D, written out for ε = 0.2; τ = β.
SPELT_OUT = {
    'sigmoid': (lambda d: _dpo(BETA * d), lambda d: -BETA * _sigmoid(-BETA * d)),
    'ipo': (lambda d: (d - 0.5 / BETA)**2, lambda d: 2 * (d - 0.5 / BETA)),
    'hinge': (lambda d: np.maximum(0, 1 - BETA * d), lambda d: -BETA * (BETA * d < 1)),
    'conservative': (lambda d: 0.8 * _dpo(BETA * d) + 0.2 * _dpo(-BETA * d),
                     lambda d: BETA * (0.2 - _sigmoid(-BETA * d))),
    'robust': (lambda d: (0.8 * _dpo(BETA * d) - 0.2 * _dpo(-BETA * d)) / 0.6,
               lambda d: -BETA * (_sigmoid(-BETA * d) + 1 / 3)),
}


@pytest.mark.parametrize('loss', SPELT_OUT)
def test_loss_gradient_and_metrics_are_the_equations_spelt_out(loss):
  assert len(set(np.asarray(_batch().rewards).argmax(axis=1))) == 2  # Pairs of both orders.
  difference, gradient, _, _, log_ratio = _spelt_out(_batch())
  value, slope = SPELT_OUT[loss]
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
  difference, gradient, log_probs, gradients, _ = _spelt_out(_batch())
  value, slope = SPELT_OUT['sigmoid']
  got = run_bigram(_batch(), rpo_weight=0.5)
  np.testing.assert_allclose(
      got[0], np.mean(value(difference)) - 0.5 * log_probs[:, 0].mean(), rtol=1e-5)
  _assert_gradient(
      got[1], _rows(slope(difference), gradient) - 0.5 * gradients[:, 0].mean(axis=0))


def test_B5_at_the_reference_the_loss_is_ln_2_and_parallel_to_rebel():
  loss, gradients, metrics = run_bigram(_own_reference())
  np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)
  assert metrics['train/margin'] == pytest.approx(0, abs=1e-5)
  expected = -BETA / 2 * _spelt_out(_batch())[1].mean(axis=0)
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


def test_ties_have_no_part_and_are_counted():
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
  start = TrainState(
      jnp.int32(0), parameters, optimizer.init(parameters), jax.random.key(0), {})
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
  groups.check_same_in_float64(choose(data), _exactly(batches.best_and_worst(data)))
  # One reward that is no number drops the prompt.
  middle = jnp.argsort(data.rewards, axis=1)[2, 1]
  metrics = choose(_with(data, rewards=data.rewards.at[2, middle].set(jnp.nan)))[2]
  assert metrics['train/dropped'] == 0.25


def test_responses_of_a_data_set_have_no_sampler_to_differ_from():
  unknown = jnp.full(_batch().rollouts.mask.shape, jnp.nan)
  got = run_bigram(groups.replace_rollouts(_batch(), log_probs=unknown))
  tiny.assert_trees_close(got[1], run_bigram(_batch())[1], tolerance=1e-6)
  assert got[2]['train/sampler_gap'] == 0


# --- Settings.


def test_every_field_has_an_effect():
  expected = run_bigram(_batch())[1]
  for changes in (
      dict(beta=0.9), dict(loss='ipo'), dict(rpo_weight=0.5), dict(temperature=0.6),
      dict(reference='policy'), dict(loss='conservative', label_smoothing=0.2),
  ):
    assert tiny.differ(run_bigram(_batch(), **changes)[1], expected), changes
  parameters = {'policy': {'table': jnp.asarray(TABLE)}}
  state = TrainState(jnp.int32(0), parameters, parameters, jax.random.key(0), {})

  def trace(**changes):
    train_step = dpo.make(dpo.Config(**changes), BIGRAM, tiny.recorder()).train_step
    return str(jax.make_jaxpr(train_step)(state, _batch()))

  plain = trace()
  for changes in (dict(num_epochs=2), dict(num_minibatches=2), dict(num_micro_batches=2),
                  dict(head_chunk=2)):
    assert trace(**changes) != plain, changes
  # `samples_per_prompt` and `pairs` stand in the tests of pairs.


@pytest.mark.parametrize('changes, message', [
    (dict(beta=0.0), 'beta must be positive and finite, got 0.0'),
    (dict(temperature=float('nan')), 'temperature must be positive and finite, got nan'),
    (dict(loss='kto'), "loss must be one of .*got 'kto'"),
    (dict(reference='none'), "reference must be one of .*got 'none'"),
    (dict(pairs='random'), "pairs must be one of .*got 'random'"),
    (dict(samples_per_prompt=4), "samples_per_prompt must be 2 with pairs='all', got 4"),
    (dict(samples_per_prompt=1, pairs='best_worst'), 'must be at least 2, got 1'),
    (dict(loss='robust', label_smoothing=0.5), r'label_smoothing must be in \[0, 0.5\), got 0.5'),
    (dict(label_smoothing=0.1), "label_smoothing must be 0 with loss='sigmoid', got 0.1"),
    (dict(rpo_weight=-1.0), 'rpo_weight must be non-negative and finite, got -1.0'),
    (dict(num_epochs=0), 'num_epochs must be at least 1, got 0'),
    (dict(num_minibatches=0), 'num_minibatches must be at least 1, got 0'),
    (dict(num_micro_batches=0), 'num_micro_batches must be at least 1, got 0'),
    (dict(head_chunk=-1), 'head_chunk must be at least 0, got -1'),
])
def test_bad_settings_are_named_in_one_line(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    _make(dpo.Config(**changes), tiny.recorder())
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('samples', [1, 3])
def test_a_group_that_does_not_fit_is_an_error(samples):
  with pytest.raises(ValueError, match=f'samples_per_prompt = 2 samples a prompt, got {samples}'):
    run_bigram(_batch(num_samples=samples))


# --- Learning.


def test_learns_a_bandit_from_preferences_to_its_closed_form():
  # Six prompts, each with one right answer out of eight nearly equally probable ones. All pairs,
  # weighted by how likely they are sampled and labelled so: r = 1 for the right answer, labels
  # from Bradley-Terry. The minimiser is π_ref e^{r/β} / Z; with p the reference's probability of
  # the right answer,
  #   π*(right) = p e^{1/β} / (1 − p + p e^{1/β}).
  beta, prompts = 0.2, 6
  model = policy.make(configs.TransformerConfig(
      vocab_size=8, num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8,
      mlp_width=32, max_length=8))
  parameters = {'policy': jax.jit(model.init)(jax.random.key(0))}
  x = np.arange(1, prompts + 1, dtype=np.int32)
  right = np.array([3, 1, 7, 7, 2, 5])

  @jax.jit
  def log_softmax(params):
    output = model.apply(params['policy'], x[:, None], positions=np.zeros((prompts, 1), np.int32),
                         valid=np.ones((prompts, 1), bool))
    return jax.nn.log_softmax(output.hidden[:, 0] @ output.head.kernel.T)

  before = np.asarray(log_softmax(parameters))
  row, first, second = (i.reshape(-1) for i in np.indices((prompts, 8, 8)))
  kept = first != second
  row, pair = row[kept], np.stack([first[kept], second[kept]], axis=1)
  log_probs = before[row[:, None], pair]
  rewards = (pair == right[row, None]).astype(np.float32)
  likely = np.exp(log_probs.sum(axis=1)) * _sigmoid(rewards[:, 0] - rewards[:, 1])
  shape = (*pair.shape, 1)
  rollouts = Rollouts(
      x[row][:, None], np.ones(len(row), np.int32), pair[..., None].astype(np.int32),
      np.ones(pair.shape, np.int32), np.ones(shape, np.float32), log_probs[..., None],
      np.zeros(pair.shape, np.int8))
  labels = np.tile(np.array([1.0, 0.0], np.float32), (len(row), 1))
  batch = Batch(rollouts, labels, log_probs[..., None], {}, likely.astype(np.float32))

  algorithm = dpo.make(
      dpo.Config(beta=beta, num_epochs=300), model,
      optim.make_optimizer(optim.OptimizerConfig(name='adam', learning_rate=1e-2)))
  state = algorithm.init(jax.random.key(1), parameters)
  state, metrics = jax.jit(algorithm.train_step)(state, jax.tree.map(jnp.asarray, batch))
  after = np.asarray(log_softmax(state.params))
  p = np.exp(before[np.arange(prompts), right])
  optimal = p * np.exp(1 / beta) / (1 - p + p * np.exp(1 / beta))
  success = np.exp(after[np.arange(prompts), right])
  kl = np.sum(np.exp(after) * (after - before), axis=-1)
  optimal_kl = (optimal - beta * np.log(1 - p + p * np.exp(1 / beta))) / beta
  assert p.mean() < 0.3 and optimal.mean() > 0.9
  np.testing.assert_allclose(success, optimal, atol=0.03)
  np.testing.assert_allclose(kl, optimal_kl, atol=0.1)
  assert metrics['train/sampler_gap'].value() < 1e-5
