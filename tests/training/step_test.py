"""Gradient accumulation, the update, and how often it compiles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.sharding import rules
from jaxrl_llm.training import optim, rng, step
from jaxrl_llm.training.metrics import to_floats
from jaxrl_llm.types import TrainState, WeightedMean

ROWS, WIDTH = 16, 5


def _loss(params, batch):
  """Weighted squared error, with a None leaf and an integer array on the way."""
  hidden = jnp.tanh(batch['x'] @ params['a']) + params['b'][batch['kind']]
  error = jnp.sum(jnp.square(hidden - batch['y']), axis=1)
  weight = batch['weight']
  loss = WeightedMean(jnp.sum(weight * error), jnp.sum(weight))
  return loss, {'train/error': loss, 'train/rows': WeightedMean(jnp.sum(weight), jnp.float32(1.0))}


def _problem(seed=0, dtype=jnp.float32):
  random = np.random.default_rng(seed)
  params = {
      'a': jnp.asarray(random.normal(size=(WIDTH, WIDTH)), dtype),
      'b': jnp.asarray(random.normal(size=(3, WIDTH)), dtype),
      'frozen': None,
  }
  batch = {
      'x': jnp.asarray(random.normal(size=(ROWS, WIDTH)), dtype),
      'y': jnp.asarray(random.normal(size=(ROWS, WIDTH)), dtype),
      'kind': jnp.asarray(random.integers(0, 3, ROWS), jnp.int32),
      # Uneven, with whole micro-batches of weight 0.
      'weight': jnp.asarray(random.uniform(0, 5, ROWS) * (np.arange(ROWS) % 4 > 0), dtype),
      'reference': None,
  }
  return params, batch


@pytest.fixture
def float64():
  """In float64 the order of a sum's terms does not matter to the tolerances here."""
  with jax.enable_x64(True):
    yield


def _assert_close(actual, expected, tolerance=1e-9):
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(np.max(np.abs(b))))


@pytest.mark.parametrize('num_micro_batches', [2, 4, 8, 16])
@pytest.mark.usefixtures('float64')
def test_micro_batches_agree_with_one_batch(num_micro_batches):
  params, batch = _problem(dtype=jnp.float64)
  whole = step.accumulate_gradients(_loss, params, batch)
  parts = step.accumulate_gradients(_loss, params, batch, num_micro_batches=num_micro_batches)
  assert parts[1]['frozen'] is None
  _assert_close(parts[:2], whole[:2])
  for name in whole[2]:
    _assert_close(parts[2][name].total, whole[2][name].total)


@pytest.mark.usefixtures('float64')
def test_gradient_is_that_of_the_weighted_mean():
  params, batch = _problem(1, jnp.float64)
  loss, gradients, metrics = step.accumulate_gradients(_loss, params, batch, num_micro_batches=4)
  expected, by_hand = jax.value_and_grad(lambda p: _loss(p, batch)[0].value())(params)
  _assert_close((loss, gradients), (expected, by_hand))
  assert float(metrics['train/error'].value()) == pytest.approx(float(loss), rel=1e-9)


@pytest.mark.parametrize('parts', [2, 3])
def test_row_i_goes_to_micro_batch_i_mod_m(parts):
  # The square of a sum tells which rows were added up together.
  def loss(params, batch):
    total = WeightedMean(params * jnp.square(jnp.sum(batch['x'])), jnp.float32(1.0))
    return total, {}

  x = 10.0 ** np.arange(6)
  value, gradient, _ = step.accumulate_gradients(
      loss, jnp.float32(1.0), {'x': jnp.asarray(x, jnp.float32)}, num_micro_batches=parts)
  expected = np.mean([x[part::parts].sum()**2 for part in range(parts)])
  assert [float(value), float(gradient)] == pytest.approx([expected] * 2, rel=1e-5)


def test_a_mean_of_micro_batch_means_would_be_caught():
  params, batch = _problem()
  halves = [jax.tree.map(lambda leaf, start=start: leaf[start::2], batch) for start in (0, 1)]
  wrong = np.mean([float(_loss(params, half)[0].value()) for half in halves])
  right = float(step.accumulate_gradients(_loss, params, batch, num_micro_batches=2)[0])
  assert abs(wrong - right) > 1e-3 * abs(right)


def test_empty_batch_has_zero_loss_and_gradient():
  params, batch = _problem()
  batch['weight'] = jnp.zeros(ROWS)
  loss, gradients, _ = step.accumulate_gradients(_loss, params, batch, num_micro_batches=2)
  assert float(loss) == 0
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_gradients_have_the_dtype_of_their_parameter():
  params, batch = _problem()
  params['a'] = params['a'].astype(jnp.bfloat16)
  for parts in (1, 4):
    _, gradients, _ = step.accumulate_gradients(_loss, params, batch, num_micro_batches=parts)
    assert gradients['a'].dtype == jnp.bfloat16 and gradients['b'].dtype == jnp.float32


@pytest.mark.parametrize('num_micro_batches', [0, -1, 3, 32])
def test_number_of_micro_batches_must_divide(num_micro_batches):
  params, batch = _problem()
  with pytest.raises(ValueError, match=f'must divide the batch of 16, got {num_micro_batches}'):
    step.accumulate_gradients(_loss, params, batch, num_micro_batches=num_micro_batches)


def test_leaves_must_share_the_leading_axis():
  params, batch = _problem()
  with pytest.raises(ValueError, match=r'share their leading axis, got 16 and 3 \(z\)'):
    step.accumulate_gradients(_loss, params, batch | {'z': jnp.zeros(3)})
  with pytest.raises(ValueError, match=r'got a scalar \(z\)'):
    step.accumulate_gradients(_loss, params, batch | {'z': jnp.zeros(())})


def test_one_micro_batch_has_no_scan():
  params, batch = _problem()
  jaxpr = jax.make_jaxpr(lambda p: step.accumulate_gradients(_loss, p, batch)[1])(params)
  assert 'scan' not in str(jaxpr)


def _state(params, optimizer):
  return TrainState.create(params, optimizer, rng.base_key(0))


def test_apply_gradients_by_hand():
  # SGD with η = 0.1: θ = (3, 4) - 0.1 (6, 8) = (2.4, 3.2); the norm of (6, 8) is 10.
  optimizer = optax.sgd(0.1)
  state = _state({'policy': {'w': jnp.array([3.0, 4.0])}}, optimizer)
  state, metrics = step.apply_gradients(optimizer, state, {'policy': {'w': jnp.array([6.0, 8.0])}})
  np.testing.assert_allclose(state.params['policy']['w'], [2.4, 3.2], rtol=1e-6)
  assert int(state.step) == 1
  assert float(metrics['train/grad_norm'].value()) == pytest.approx(10.0)


def _bits(state):
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(
      (state.step, state.params, state.opt_state))]


_OPTIMIZERS = {
    'adam': optax.adam(1e-2), 'momentum': optax.sgd(0.1, momentum=0.9),
    'clipped': optim.make_optimizer(optim.OptimizerConfig(weight_decay=0.1)),
}


@pytest.mark.parametrize('name', _OPTIMIZERS)
@pytest.mark.parametrize('num_micro_batches', [1, 4])
def test_a_step_that_is_not_finite_changes_nothing(name, num_micro_batches):
  optimizer = _OPTIMIZERS[name]
  params, batch = _problem()
  train_step = jax.jit(_train_step(optimizer, num_micro_batches))
  state, _ = train_step(_state(params, optimizer), batch)  # So that no moment is 0.
  put = lambda key, value: batch | {key: batch[key].at[5].set(value)}
  for bad in (put('y', jnp.nan), put('y', jnp.inf), put('x', jnp.nan), put('y', 1e30),
              put('weight', jnp.nan), put('weight', jnp.inf)):
    after, metrics = train_step(state, bad)
    assert _bits(after) == _bits(state)
    assert not np.isfinite(list(to_floats(metrics).values())).all()
  after, metrics = train_step(state, batch)
  assert int(after.step) == 2 and np.isfinite(list(to_floats(metrics).values())).all()


def test_a_norm_that_overflows_stops_though_no_gradient_does():
  # Both entries are finite, and their squares are not.
  optimizer = optax.sgd(0.1)
  state = _state({'w': jnp.ones(2)}, optimizer)
  after, metrics = step.apply_gradients(optimizer, state, {'w': jnp.array([1e20, 1e20])})
  assert _bits(after) == _bits(state)
  assert np.isinf(metrics['train/grad_norm'].value())


def test_a_metric_that_is_not_finite_stops_as_the_loop_does():
  def loss_fn(params, batch):
    loss, metrics = _loss(params, batch)
    empty = WeightedMean(jnp.nan * loss.weight, jnp.float32(0.0))  # A mean of nothing is 0.
    bad = WeightedMean(jnp.log(batch['x'][0, 0]), jnp.float32(1.0))
    return loss, metrics | {'train/bad': bad, 'train/empty': empty}

  params, batch = _problem()
  optimizer = _OPTIMIZERS['adam']
  train_step = jax.jit(_train_step(optimizer, 1, loss_fn))
  state = _state(params, optimizer)
  for value, steps in ((1.0, 1), (0.0, 0), (-1.0, 0)):
    after, metrics = train_step(state, batch | {'x': batch['x'].at[0, 0].set(value)})
    assert int(after.step) == steps
    assert np.isfinite(to_floats(metrics)['train/bad']) == bool(steps)
    assert (_bits(after) == _bits(state)) == (not steps)


def test_seeds_side_by_side_stop_by_themselves():
  optimizer = _OPTIMIZERS['adam']
  params, batch = _problem()
  state = _state(params, optimizer)
  bad = batch | {'y': batch['y'].at[0, 0].set(jnp.nan)}
  stack = lambda a, b: jax.tree.map(lambda *x: jnp.stack(x), a, b)
  after, _ = jax.jit(jax.vmap(_train_step(optimizer, 1), (None, 0)))(state, stack(batch, bad))
  pick = lambda index: jax.tree.map(
      lambda leaf: leaf[index], dataclasses.replace(after, key=None, aux={}))
  assert after.step.tolist() == [1, 0]
  assert _bits(pick(1)) == _bits(state) and _bits(pick(0)) != _bits(state)


def _train_step(optimizer, num_micro_batches, loss_fn=_loss):
  def train_step(state, batch):
    return step.take_step(
        loss_fn, optimizer, state, batch, num_micro_batches=num_micro_batches)
  return train_step


@pytest.mark.parametrize('num_micro_batches', [1, 4])
def test_take_step_is_gradients_then_update(num_micro_batches):
  optimizer = optax.adam(1e-2)
  params, batch = _problem()
  state, metrics = _train_step(optimizer, num_micro_batches)(_state(params, optimizer), batch)
  loss, gradients, expected_metrics = step.accumulate_gradients(
      _loss, params, batch, num_micro_batches=num_micro_batches)
  expected, norm = step.apply_gradients(optimizer, _state(params, optimizer), gradients)
  for a, b in zip(jax.tree.leaves((state.params, state.opt_state)),
                  jax.tree.leaves((expected.params, expected.opt_state)), strict=True):
    np.testing.assert_array_equal(a, b)
  assert int(state.step) == 1
  assert metrics.keys() == {'train/loss', *expected_metrics, *norm}
  assert float(metrics['train/loss'].value()) == float(loss)


def _twisted(params, batch):
  """`_loss` of a·b instead of a, where the gradient of b cannot be computed at all."""

  @jax.custom_vjp
  def only_forwards(x):
    return x

  def backwards(residuals, gradient):
    raise AssertionError('the gradient of a frozen parameter was asked for')

  only_forwards.defvjp(lambda x: (x, None), backwards)
  return _loss({'a': params['a'] * only_forwards(params['scale']), 'b': params['b']}, batch)


@pytest.mark.parametrize('num_micro_batches', [1, 4])
@pytest.mark.usefixtures('float64')
def test_frozen_parameters_have_no_gradient_and_come_out_as_they_went_in(num_micro_batches):
  params, batch = _problem(dtype=jnp.float64)
  params = {'policy': {**params, 'scale': jnp.full((WIDTH, WIDTH), 0.3, jnp.bfloat16)}}
  loss_fn = lambda params, batch: _twisted(params['policy'], batch)
  with pytest.raises(AssertionError, match='was asked for'):
    _train_step(optax.sgd(0.1), num_micro_batches, loss_fn)(_state(params, optax.sgd(0.1)), batch)

  config = optim.OptimizerConfig(name='adam', max_grad_norm=0.0)
  partial = optim.make_optimizer(config, trainable='policy/a')
  state = _state(params, partial)
  after, metrics = jax.jit(_train_step(partial, num_micro_batches, loss_fn))(state, batch)
  for name in ('b', 'scale'):
    np.testing.assert_array_equal(after.params['policy'][name], params['policy'][name])
    assert after.params['policy'][name].dtype == params['policy'][name].dtype
  assert after.params['policy']['frozen'] is None
  assert np.all(after.params['policy']['a'] != params['policy']['a'])
  assert jax.tree.structure(after) == jax.tree.structure(state)

  # As a model of which `a` is the only parameter.
  alone = optim.make_optimizer(config)
  only = {'a': params['policy']['a']}
  expected, expected_metrics = jax.jit(_train_step(
      alone, num_micro_batches,
      lambda small, batch: loss_fn({'policy': {**params['policy'], **small}}, batch),
  ))(_state(only, alone), batch)
  # Two programs may add a sum up in another order.
  _assert_close(after.params['policy']['a'], expected.params['a'])
  for name, metric in expected_metrics.items():
    assert float(metrics[name].value()) == pytest.approx(float(metric.value()), rel=1e-9)


def test_a_mask_inside_a_wrapper_still_freezes():
  # Inside optax.chain the gradient of everything is computed, and that of `b` dropped.
  params, batch = _problem()
  masked = optim.make_optimizer(optim.OptimizerConfig(max_grad_norm=0.0), trainable='a')
  chained = optax.chain(optax.scale(2.0), masked)
  state, _ = _train_step(chained, 1)(_state(params, chained), batch)
  np.testing.assert_array_equal(state.params['b'], params['b'])
  assert np.all(state.params['a'] != params['a'])


def test_one_compilation_over_five_steps_of_different_content():
  optimizer = optax.adam(1e-2)
  params, _ = _problem()
  state = _state(params, optimizer)
  train_step = step.jit_train_step(_train_step(optimizer, 4))
  batches = [_problem(seed)[1] for seed in range(5)]
  jax.block_until_ready((state, batches))
  with step.count_compilations() as compilations:
    for batch in batches:
      state, _ = train_step(state, batch)
  assert train_step.num_traces == 1
  assert compilations == {'jit(train_step)': 1}
  assert int(state.step) == 5


def test_counter_sees_a_second_compilation():
  square = step.CountedJit(lambda x: x * x)
  with step.count_compilations() as compilations:
    square(np.ones(3, np.float32))
    square(np.ones(4, np.float32))
  assert square.num_traces == 2
  assert sum(compilations.values()) == 2


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2), (1, 8, 1)])
def test_sharded_step_agrees_with_one_device(shape):
  optimizer = optax.sgd(1.0)  # So that the update is the gradient, unamplified.
  params, batch = _problem()
  # Eight columns, so that every axis can be cut.
  params = {'a': jnp.tile(params['a'], (1, 2))[:, :8], 'b': jnp.tile(params['b'], (1, 2))[:, :8]}
  batch['y'] = jnp.tile(batch['y'], (1, 2))[:, :8]
  expected, expected_metrics = jax.jit(_train_step(optimizer, 2))(_state(params, optimizer), batch)

  mesh = mesh_lib.make_mesh(*shape)
  table = (
      *rules.STATE_RULES,
      ('a', rules.P(None, ('fsdp', 'tensor'))),
      ('b', rules.P(None, 'tensor')),
  )
  state = _state(params, optimizer)
  shardings = rules.shardings(mesh, state, rules=table)
  train_step = step.jit_train_step(
      _train_step(optimizer, 2), state_shardings=shardings,
      batch_shardings=mesh_lib.batch_sharding(mesh))
  state = jax.device_put(state, shardings)
  state, metrics = train_step(state, batch)
  _assert_close(state.params, expected.params, 1e-5)
  _assert_close(
      metrics['train/loss'].total, expected_metrics['train/loss'].total, 1e-5)
  assert state.params['a'].sharding.is_equivalent_to(shardings.params['a'], 2)
  with step.count_compilations() as compilations:
    train_step(state, batch)
  assert not compilations


def test_state_is_donated():
  optimizer = optax.sgd(0.1)
  params, batch = _problem()
  state = _state(params, optimizer)
  train_step = step.jit_train_step(_train_step(optimizer, 1))
  train_step(state, batch)
  assert state.params['a'].is_deleted()


def test_frozen_networks_are_arguments_and_stay_as_they_are():
  mesh = mesh_lib.make_mesh(8, 1, 1)
  whole = mesh_lib.replicated(mesh)

  def train_step(state, batch, frozen):
    return {'a': state['a'] + frozen['w'] * jnp.sum(batch)}, {}

  compiled = step.jit_train_step(
      train_step, state_shardings={'a': whole}, batch_shardings=mesh_lib.batch_sharding(mesh),
      frozen_shardings=({'w': whole},))
  frozen = jax.device_put({'w': jnp.arange(3.0)}, whole)
  state, _ = compiled({'a': jnp.zeros(3)}, np.ones(8, np.float32), frozen)
  np.testing.assert_array_equal(state['a'], [0, 8, 16])
  np.testing.assert_array_equal(frozen['w'], [0, 1, 2])
