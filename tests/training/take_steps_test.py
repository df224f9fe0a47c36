"""Several optimizer steps in one loop against a loop in Python, and what is frozen before them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm.training import optim, rng, step
from jaxrl_llm.types import TrainState, WeightedMean

ROWS, WIDTH = 12, 4
# With momentum and a schedule, so that order, number and state of the steps all show.
OPTIMIZER = optax.chain(
    optax.trace(0.5), optax.scale_by_schedule(lambda count: -0.05 / (1.0 + count)))


@pytest.fixture(autouse=True)
def _float64():
  # Two programs may add a sum up in different orders: in float64 that is below the tolerances.
  with jax.enable_x64(True):
    yield


def _loss(params, batch):
  error = jnp.sum(jnp.square(jnp.tanh(batch['x'] @ params['w']) - batch['y']), axis=1)
  loss = WeightedMean(jnp.sum(batch['weight'] * error), jnp.sum(batch['weight']))
  rows = WeightedMean(jnp.sum(batch['number'] * batch['weight']), jnp.sum(batch['weight']))
  return loss, {'train/error': loss, 'train/number': rows}


def _problem():
  random = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(random.normal(size=shape))
  params = {'w': draw(WIDTH, WIDTH)}
  batch = {
      'x': draw(ROWS, WIDTH), 'y': draw(ROWS, WIDTH),
      'weight': jnp.asarray(random.uniform(0.5, 3, ROWS)),
      'number': jnp.arange(ROWS, dtype=float), 'reference': None,
  }
  return TrainState.create(params, OPTIMIZER, rng.base_key(0)), batch


@functools.cache
def _run(**options):
  return jax.jit(lambda state, batch: step.take_steps(_loss, OPTIMIZER, state, batch, **options))


def _loop(state, batch, num_epochs=1, num_minibatches=1, num_micro_batches=1):
  """The same steps one after the other: the metrics of each."""
  take = jax.jit(functools.partial(
      step.take_step, _loss, OPTIMIZER, num_micro_batches=num_micro_batches))
  size, metrics = ROWS // num_minibatches, []
  for _ in range(num_epochs):
    for start in range(0, ROWS, size):
      state, now = take(state, jax.tree.map(lambda x, s=start: x[s:s + size], batch))
      metrics.append(now)
  return state, metrics


def _values(metrics):
  return {name: float(metric.value()) for name, metric in metrics.items()}


@pytest.mark.parametrize('options', [
    dict(), dict(num_epochs=3), dict(num_minibatches=3), dict(num_epochs=2, num_minibatches=4),
    dict(num_epochs=2, num_minibatches=2, num_micro_batches=3),
])
def test_steps_are_those_of_a_loop(options):
  state, batch = _problem()
  got, first, total = _run(**options)(state, batch)
  expected, metrics = _loop(state, batch, **options)
  for a, b in zip(jax.tree.leaves((got.params, got.opt_state)),
                  jax.tree.leaves((expected.params, expected.opt_state)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
  assert int(got.step) == len(metrics)
  assert int(got.step) == options.get('num_epochs', 1) * options.get('num_minibatches', 1)
  assert _values(first) == pytest.approx(_values(metrics[0]), rel=1e-9)
  # The mean over all rows of all steps; the loss and the norm count once a step.
  merged = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), metrics)
  assert _values(total) == pytest.approx(_values(merged), rel=1e-9)
  losses = [float(m['train/loss'].value()) for m in metrics]
  assert _values(total)['train/loss'] == pytest.approx(np.mean(losses), rel=1e-9)


def test_every_epoch_sees_every_row_once():
  state, batch = _problem()
  batch = batch | {'weight': jnp.ones(ROWS)}
  _, first, total = _run(num_epochs=2, num_minibatches=4)(state, batch)
  assert _values(first)['train/number'] == 1  # Rows 0, 1 and 2, in order.
  assert _values(total)['train/number'] == np.mean(np.arange(ROWS))
  assert float(total['train/number'].weight) == 2 * ROWS


def test_two_epochs_are_not_one_and_minibatches_are_not_the_batch():
  state, batch = _problem()
  runs = [_run(**options)(state, batch)[0].params['w'] for options in (
      dict(), dict(num_epochs=3), dict(num_minibatches=3))]
  assert min(np.abs(a - b).max() for a, b in zip(runs, runs[1:] + runs[:1])) > 1e-3


def test_all_steps_are_one_loop():
  # The program does not grow with the number of steps.
  state, batch = _problem()
  program = lambda epochs: str(jax.make_jaxpr(lambda s: step.take_steps(
      _loss, OPTIMIZER, s, batch, num_epochs=epochs)[0].params)(state))
  assert len(program(8)) < 1.05 * len(program(2))
  assert 'scan' not in program(1) and 'scan' in program(2)


def test_seeds_side_by_side():
  state, batch = _problem()
  other = jax.tree.map(lambda x: x + 1.0, state.params)
  fold = lambda params: step.take_steps(
      _loss, OPTIMIZER, TrainState.create(params, OPTIMIZER, state.key),
      batch, num_epochs=2, num_minibatches=2)[0].params['w']
  both = jax.jit(jax.vmap(fold))(
      jax.tree.map(lambda *x: jnp.stack(x), state.params, other))
  for got, params in zip(both, (state.params, other)):
    np.testing.assert_allclose(got, jax.jit(fold)(params), rtol=1e-9, atol=1e-9)


def test_frozen_parameters_stay_as_they_are_through_all_steps():
  params = {'w': _problem()[0].params['w'], 'rest': jnp.ones(3)}
  optimizer = optim.make_optimizer(
      optim.OptimizerConfig(name='adam', learning_rate=1e-2), trainable=r'w')
  assert isinstance(optimizer, optim.PartialOptimizer)
  state = TrainState.create(params, optimizer, rng.base_key(0))
  state, _, _ = jax.jit(lambda s, b: step.take_steps(
      _loss, optimizer, s, b, num_epochs=2, num_minibatches=2))(state, _problem()[1])
  np.testing.assert_array_equal(state.params['rest'], params['rest'])
  assert np.abs(state.params['w'] - params['w']).max() > 1e-2 and int(state.step) == 4


def test_after_a_step_that_is_not_finite_none_is_taken():
  state, batch = _problem()
  options = dict(num_epochs=2, num_minibatches=4)
  bad = batch | {'y': batch['y'].at[4, 0].set(jnp.nan)}  # Of the second minibatch.
  got, _, total = _run(**options)(state, bad)
  take = jax.jit(functools.partial(step.take_step, _loss, OPTIMIZER))
  expected, _ = take(state, jax.tree.map(lambda x: x[:3], batch))
  assert int(got.step) == 1 and np.isnan(_values(total)['train/loss'])
  for a, b in zip(jax.tree.leaves((got.params, got.opt_state)),
                  jax.tree.leaves((expected.params, expected.opt_state)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('options, message', [
    (dict(num_epochs=0), 'num_epochs must be at least 1, got 0'),
    (dict(num_minibatches=5), 'num_minibatches must divide the batch of 12, got 5'),
    (dict(num_minibatches=0), 'num_minibatches must divide the batch of 12, got 0'),
    (dict(num_minibatches=3, num_micro_batches=3),
     'num_micro_batches must divide the batch of 4, got 3'),
])
def test_what_does_not_fit_is_one_line(options, message):
  state, batch = _problem()
  with pytest.raises(ValueError, match=message):
    step.take_steps(_loss, OPTIMIZER, state, batch, **options)


# --- map_micro_batches.


def _rows(batch):
  return {'sum': jnp.sum(batch['x'], axis=1), 'both': batch['x'] * batch['weight'][:, None]}


@pytest.mark.parametrize('parts', [1, 2, 3, 12])
def test_parts_give_the_rows_of_the_whole_in_their_order(parts):
  _, batch = _problem()
  got = jax.jit(lambda b: step.map_micro_batches(_rows, b, num_micro_batches=parts))(batch)
  jax.tree.map(np.testing.assert_allclose, got, _rows(batch))


def test_each_part_is_computed_alone():
  _, batch = _problem()
  seen = []

  def note(part):
    seen.append(part['x'].shape)
    return part['x']

  step.map_micro_batches(note, batch, num_micro_batches=4)
  assert set(seen) == {(3, WIDTH)}
  program = lambda parts: str(jax.make_jaxpr(
      lambda b: step.map_micro_batches(_rows, b, num_micro_batches=parts))(batch))
  assert 'scan' in program(4) and 'scan' not in program(1)


@pytest.mark.parametrize('parts', [0, -1, 5, 24])
def test_parts_that_do_not_fit_are_one_line_errors(parts):
  with pytest.raises(ValueError, match=f'must divide the batch of 12, got {parts}'):
    step.map_micro_batches(_rows, _problem()[1], num_micro_batches=parts)
