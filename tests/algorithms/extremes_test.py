"""Extreme batches: every train step is finite, or leaves its state as it was and says why."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.algorithms import (
  a_star_po,
  dpo,
  grpo,
  icl_hmm,
  ppo,
  rebel,
  refuel,
  reinforce,
  reward_model,
  rloo,
  sft,
  shoestring,
)
from jaxrl_llm.data import sft_batches
from jaxrl_llm.training import loop, metrics, optim
from jaxrl_llm.types import Batch, Head, ModelFns, ModelOutput
from tests.algorithms import groups, tabular

PROMPTS, SLOTS, VOCABULARY = 4, 3, 5
LOGITS = np.float32([0.3, -0.2, 0.5, 0.0, -0.4])


def _apply_scalar(params, tokens, **_):
  """A network with a head of one row, whose scalar depends on the token read."""
  return ModelOutput(
      jax.nn.one_hot(tokens, VOCABULARY), Head(params[None], jnp.zeros(1)), None)


SCALAR = ModelFns(None, _apply_scalar, None)


def _policy_step(module, **changes):
  """A step of an algorithm on a policy whose parameters are its logits."""
  def make():
    networks = (tabular.LOGITS, SCALAR) if module is ppo else (tabular.LOGITS,)
    config = module.Config(**{'temperature': 1.0, **changes})
    algorithm = module.make(config, *networks, _optimizer())
    params = {'policy': jnp.asarray(LOGITS)}
    if module is ppo:
      params['value'] = jnp.zeros(VOCABULARY)
    return algorithm, params
  return make


def _optimizer():
  return optim.make_optimizer(optim.OptimizerConfig(learning_rate=1e-2))


_GROUP = dict(samples_per_prompt=2)
STEPS = {
    'A*-PO': _policy_step(a_star_po, entropy_coefficient=1e-3),
    'REBEL': _policy_step(rebel, kl_coefficient=0.1, num_epochs=2),
    'REBEL, whitened': _policy_step(rebel, whiten_rewards=True, loss_form='paper'),
    'REFUEL': _policy_step(refuel, kl_coefficient=0.1),
    'PPO': _policy_step(ppo, kl_coefficient=0.1, num_epochs=2, num_minibatches=2, **_GROUP),
    'PPO, whitened': _policy_step(
        ppo, kl_coefficient=0.1, whiten_rewards=True, whiten_advantages=True, **_GROUP),
    'GRPO': _policy_step(grpo, kl_coefficient=0.1, num_epochs=2, **_GROUP),
    'Dr. GRPO': _policy_step(
        grpo, kl_coefficient=0.0, advantage_scale='none', normalisation='constant', **_GROUP),
    'DAPO': _policy_step(
        grpo, kl_coefficient=0.1, advantage_scale='population_std', normalisation='token',
        clip_high=0.28, num_micro_batches=2, **_GROUP),
    'RLOO': _policy_step(rloo, kl_coefficient=0.1, num_epochs=2),
    'REINFORCE': _policy_step(reinforce, kl_coefficient=0.1, baseline='batch_mean', **_GROUP),
    'REINFORCE, running': _policy_step(
        reinforce, kl_coefficient=0.1, baseline='running', **_GROUP),
    **{f'DPO, {loss}': _policy_step(dpo, loss=loss, rpo_weight=0.1)
       for loss in ('sigmoid', 'ipo')},
}


def _batch(num_samples) -> Batch:
  tokens = np.random.default_rng(3).integers(1, VOCABULARY, (PROMPTS, num_samples, SLOTS))
  tokens[0, 0, 1] = tokens[1, -1, 2] = 0
  data = tabular.batch_of(tokens, np.zeros((PROMPTS, num_samples)))
  log_probs = np.asarray(jax.nn.log_softmax(LOGITS))[tokens] * np.asarray(data.rollouts.mask)
  rewards = np.random.default_rng(4).normal(size=(PROMPTS, num_samples))
  aux = {
      'values': np.float32([0.1, -0.2, 0.3, 0.0]), 'turn': np.zeros(PROMPTS, np.int32),
      'turns': np.zeros(tokens.shape, np.int32)}
  return dataclasses.replace(
      data, rewards=np.float32(rewards), reference_log_probs=np.float32(log_probs - 0.1), aux=aux,
      rollouts=dataclasses.replace(data.rollouts, log_probs=np.float32(log_probs)))


def _extremes(data: Batch):
  """Name -> a batch that something is wrong with."""
  rewards, reference = data.rewards, data.reference_log_probs
  first = np.zeros(rewards.shape, bool)
  first[0, 0] = True
  for value in (1e19, 1e30, -1e30, 1e38, 3e38, np.inf, -np.inf, np.nan):
    every = np.full(rewards.shape, value, np.float32)
    yield f'rewards of {value}', dataclasses.replace(data, rewards=every)
    yield f'one reward of {value}', dataclasses.replace(
        data, rewards=np.where(first, every, rewards))

  signs = np.where(np.arange(rewards.size).reshape(rewards.shape) % 2, 3e38, -9e4)
  yield 'rewards of both signs', dataclasses.replace(data, rewards=np.float32(signs))
  alternating = np.where(np.arange(SLOTS) % 2, 1, -1)

  for nats in (50, -50, 95, -95, 1e3, -1e3, 1e6, -1e6, 50 * alternating, -95 * alternating):
    for rows in (slice(None), slice(1)):
      moved = np.array(reference)
      moved[rows] += np.float32(nats)
      yield f'reference {nats} nats away in {rows}', dataclasses.replace(
          data, reference_log_probs=moved)

  for value in (np.nan, -np.inf):
    broken = np.array(reference)
    broken[1, 0, 0] = value
    yield f'reference of {value}', dataclasses.replace(data, reference_log_probs=broken)
  yield 'weight of nan', dataclasses.replace(
      data, weight=np.where(np.arange(PROMPTS) == 1, np.nan, data.weight).astype(np.float32))


def _take(step, state, batch):
  """(the state, the message of the stop or None), after the promise was checked."""
  after, update = step(state, batch)
  values = metrics.to_floats(update)
  try:
    loop.check_finite(0, values)
  except loop.NonFiniteLossError as error:
    stop = str(error)
  else:
    stop = None

  before = jax.tree.leaves(_saved(state))
  for old, new in zip(before, jax.tree.leaves(_saved(after)), strict=True):
    assert np.isfinite(new).all() or not np.isfinite(old).all()

  # Of several steps on one batch those before the one that is refused have been taken.
  if stop and after.step < state.step + 2:
    for old, new in zip(before, jax.tree.leaves(_saved(after)), strict=True):
      assert np.asarray(old).tobytes() == np.asarray(new).tobytes()
  return after, stop


def _saved(state):
  return state.step, state.params, state.opt_state, state.aux


@functools.cache
def _started(name):
  algorithm, params = STEPS[name]()
  data = _batch(1 if name == 'A*-PO' else 2)
  step = jax.jit(algorithm.train_step)
  state, stop = _take(step, algorithm.init(jax.random.key(0), params), data)
  assert stop is None and int(state.step) > 0  # A sound step, so that no moment is 0.
  assert np.abs(state.params['policy'] - params['policy']).max() > 0
  return step, state, data


@pytest.mark.parametrize('name', STEPS)
def test_a_step_is_finite_or_changes_nothing(name):
  step, state, data = _started(name)
  stops = {what: _take(step, state, bad)[1] for what, bad in _extremes(data)}
  # A reward that is not a number drops its prompt; the others are used.
  for value in (np.inf, np.nan):
    assert stops[f'one reward of {value}'] is None
  assert stops['weight of nan'] is None or 'must be finite, got nan' in stops['weight of nan']
  if name in ('A*-PO', 'REBEL', 'REFUEL', 'PPO'):  # Their losses square the rewards.
    assert 'lower config.optimizer.learning_rate' in stops['one reward of 1e+30']
  # What was refused left no trace: the next sound step is the one that would have been taken.
  expected, _ = step(state, data)
  again, stop = _take(step, state, data)
  assert stop is None
  jax.tree.map(np.testing.assert_array_equal, _saved(again), _saved(expected))


@pytest.mark.parametrize('name', ['A*-PO', 'REBEL', 'REFUEL', 'RLOO', 'REINFORCE', 'GRPO'])
def test_a_reference_thousands_of_nats_away_is_still_learnt_from(name):
  step, state, data = _started(name)
  far = dataclasses.replace(data, reference_log_probs=data.reference_log_probs - np.float32(1e3))
  after, stop = _take(step, state, far)
  assert stop is None and np.abs(after.params['policy'] - state.params['policy']).max() > 1e-5


def test_unknown_log_probs_of_the_sampler_are_left_out_of_its_gap():
  for name in STEPS:
    step, state, data = _started(name)
    log_probs = np.array(data.rollouts.log_probs)
    log_probs[0], log_probs[1, 0, 0] = np.nan, -np.inf
    after, update = step(state, groups.replace_rollouts(data, log_probs=log_probs))
    expected, _ = step(state, data)
    jax.tree.map(np.testing.assert_array_equal, _saved(after), _saved(expected))

    # By hand: the mean over the tokens that are known, under the parameters before the step.
    now = np.asarray(jax.nn.log_softmax(state.params['policy']))[data.rollouts.tokens]
    known = (np.asarray(data.rollouts.mask) > 0) & np.isfinite(log_probs)
    gap = np.abs(now - log_probs)[known].mean()
    assert float(update['train/sampler_gap'].value()) == pytest.approx(gap, rel=1e-5), name

    unknown = np.full_like(log_probs, np.nan)
    _, update = step(state, groups.replace_rollouts(data, log_probs=unknown))
    assert float(update['train/sampler_gap'].weight) == 0, name


def test_a_running_baseline_does_not_remember_a_refused_batch():
  step, state, data = _started('REINFORCE, running')
  bad = dataclasses.replace(data, rewards=np.full_like(data.rewards, 3e38))
  after, stop = _take(step, state, bad)
  assert stop is not None
  np.testing.assert_array_equal(after.aux['rewards'].total, state.aux['rewards'].total)
  moved, _ = step(state, data)
  assert moved.aux['rewards'].total != state.aux['rewards'].total


def test_reward_models():
  algorithm = reward_model.make(reward_model.Config(), SCALAR, _optimizer())
  step, data = jax.jit(algorithm.train_step), _batch(2)
  for scale, sound in ((0, True), (1e30, True), (2e37, True), (np.nan, False)):
    scores = jnp.arange(VOCABULARY) * jnp.float32(scale)
    _, stop = _take(step, algorithm.init(jax.random.key(0), {'reward': scores}), data)
    assert (stop is None) == sound
  state = algorithm.init(jax.random.key(0), {'reward': jnp.zeros(VOCABULARY)})
  for _, bad in _extremes(data):
    _take(step, state, bad)


def test_fine_tuning():
  tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, 4)).astype(np.int32)
  batch = sft_batches.SftBatch(
      tokens=tokens, positions=np.tile(np.arange(4, dtype=np.int32), (2, 1)),
      valid=np.ones((2, 4), bool), targets=tokens, loss_mask=np.ones((2, 4), np.float32),
      weight=np.ones(2, np.float32))
  algorithm = sft.make(sft.Config(), tabular.LOGITS, _optimizer())
  step = jax.jit(algorithm.train_step)
  for logits, sound in ((LOGITS, True), (LOGITS * 1e30, True), (LOGITS + np.nan, False)):
    state = algorithm.init(jax.random.key(0), {'policy': jnp.asarray(logits)})
    assert (_take(step, state, batch)[1] is None) == sound
  unknown = batch._replace(weight=np.float32([np.nan, 1]))
  state = algorithm.init(jax.random.key(0), {'policy': jnp.asarray(LOGITS)})
  assert 'got nan' in _take(step, state, unknown)[1]


def test_hidden_markov_models_in_context():
  algorithm = icl_hmm.make(icl_hmm.Config(), tabular.LOGITS, _optimizer())
  step = jax.jit(algorithm.train_step)
  state = algorithm.init(jax.random.key(0), {'policy': jnp.asarray(LOGITS)})
  symbols, distributions = np.ones((2, 5), np.int32), np.full((2, 4, VOCABULARY), 0.2, np.float32)
  sound = icl_hmm.Trajectories(symbols=symbols, predictions=distributions)
  assert _take(step, state, sound)[1] is None
  distributions[0, 1] = np.nan
  stop = _take(step, state, icl_hmm.Trajectories(symbols=symbols, predictions=distributions))[1]
  assert 'must be finite, got nan at step 0' in stop


class _Linear:
  """The smallest network that Shoestring trains."""

  def init(self, key):
    return {'layer_0': jax.random.normal(key, (2, 2))}

  def apply(self, params, inputs, key=None):
    return inputs @ params['layer_0']


@pytest.mark.parametrize('metric', ['cos', 'l2'])
def test_shoestring(metric):
  network = _Linear()
  algorithm = shoestring.make(
      shoestring.Config(metric=metric, metric_coefficient=0.1), network, _optimizer())
  step = jax.jit(algorithm.train_step)
  state = algorithm.init(jax.random.key(0), {'network': network.init(jax.random.key(1))})
  batch = lambda scale: shoestring.Batch(
      np.float32([[1, 2], [2, 1], [-1, 0]]) * np.float32(scale), np.int32([0, 1, 1]), np.ones(3))
  moved, stop = _take(step, state, batch(1))
  assert stop is None and int(moved.step) == 1
  for scale in (1e10, 1e19, 1e30, 1e38, np.nan):
    _, stop = _take(step, moved, batch(scale))
  assert 'must be finite, got nan' in stop
