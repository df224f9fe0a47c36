"""Optimizers by hand, schedules point by point, and no field without an effect."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm.training import optim


def _run(config, *, steps=6):
  """Parameters after a few steps on gradients that differ in size and sign."""
  optimizer = optim.make_optimizer(config)
  params = {'w': jnp.array([1.0, -2.0, 0.5])}
  state = optimizer.init(params)
  update = jax.jit(optimizer.update)
  for index in range(steps):
    gradients = {'w': jnp.array([3.0, -0.1, 1e-7]) * (1 + index) * (-1) ** (index == 2)}
    updates, state = update(gradients, state, params)
    params = optax.apply_updates(params, updates)
  return np.asarray(params['w'])


def test_adamw_first_step_by_hand():
  # After bias correction m̂ = g and v̂ = g², so the first step is η (g / (|g| + ε) + λθ):
  # 0.1 (2 / (2 + 0.5) + 0.01 · 3) = 0.083.
  config = optim.OptimizerConfig(
      learning_rate=0.1, eps=0.5, weight_decay=0.01, max_grad_norm=0.0)
  optimizer = optim.make_optimizer(config)
  params = {'w': jnp.array([3.0])}
  updates, _ = optimizer.update({'w': jnp.array([2.0])}, optimizer.init(params), params)
  np.testing.assert_allclose(updates['w'], [-0.083], rtol=1e-5)


def test_clipping_is_by_global_norm():
  # Gradients (3, 4) of norm 5, clipped to 1: (0.6, 0.8). Adam's first step is g / (|g| + ε); with
  # ε = 1 that is (0.6 / 1.6, 0.8 / 1.8).
  config = optim.OptimizerConfig(name='adam', learning_rate=1.0, eps=1.0, max_grad_norm=1.0)
  optimizer = optim.make_optimizer(config)
  params = {'a': jnp.array([0.0]), 'b': jnp.array([0.0])}
  gradients = {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  np.testing.assert_allclose(updates['a'], [-0.6 / 1.6], rtol=1e-5)
  np.testing.assert_allclose(updates['b'], [-0.8 / 1.8], rtol=1e-5)


@pytest.mark.parametrize('schedule,expected', [
    # Warm-up of 4: quarters of 0.2. Then 8 steps from 0.2 down to 0.1 x 0.2 = 0.02.
    ('constant', {0: 0.05, 1: 0.1, 3: 0.2, 4: 0.2, 8: 0.2, 12: 0.2, 50: 0.2}),
    ('linear', {0: 0.05, 3: 0.2, 4: 0.2, 6: 0.155, 8: 0.11, 12: 0.02, 50: 0.02}),
    ('cosine', {0: 0.05, 3: 0.2, 4: 0.2, 6: 0.02 + 0.18 * (1 + math.sqrt(0.5)) / 2, 8: 0.11,
                12: 0.02, 50: 0.02}),
])
def test_schedule_point_by_point(schedule, expected):
  decays = {} if schedule == 'constant' else {'total_steps': 12, 'final_fraction': 0.1}
  config = optim.OptimizerConfig(
      learning_rate=0.2, schedule=schedule, warmup_steps=4, **decays)
  config.validate()
  traced = jax.jit(lambda count: optim.learning_rate_at(config, count))
  for step, rate in expected.items():
    assert optim.learning_rate_at(config, step) == pytest.approx(rate, rel=1e-6)
    assert float(traced(step)) == pytest.approx(rate, rel=1e-5)
    assert isinstance(optim.learning_rate_at(config, step), float)


def test_the_optimizer_follows_the_schedule():
  # Adam's step on a constant gradient is η of that step (ε aside).
  config = optim.OptimizerConfig(
      name='adam', learning_rate=0.2, schedule='linear', warmup_steps=2, total_steps=6,
      max_grad_norm=0.0)
  optimizer = optim.make_optimizer(config)
  params = {'w': jnp.array([0.0])}
  state = optimizer.init(params)
  for step in range(7):
    updates, state = optimizer.update({'w': jnp.array([1.0])}, state, params)
    assert -float(updates['w'][0]) == pytest.approx(optim.learning_rate_at(config, step), rel=1e-4)


BASE = optim.OptimizerConfig(
    schedule='linear', learning_rate=0.01, warmup_steps=2, total_steps=10, final_fraction=0.1,
    weight_decay=0.1, max_grad_norm=1.0)

OTHER = {
    'name': 'adam', 'learning_rate': 0.02, 'schedule': 'cosine', 'warmup_steps': 3,
    'total_steps': 12, 'final_fraction': 0.5, 'b1': 0.8, 'b2': 0.99, 'eps': 1e-4,
    'weight_decay': 0.2, 'max_grad_norm': 0.5,
}


@pytest.mark.parametrize('field', [f.name for f in dataclasses.fields(optim.OptimizerConfig)])
def test_every_field_has_an_effect_or_is_rejected(field):
  changed = dataclasses.replace(BASE, **{field: OTHER[field]})
  if field == 'name':
    with pytest.raises(ValueError, match="weight_decay must be 0 with name='adam'"):
      optim.make_optimizer(changed)
    undecayed = dataclasses.replace(BASE, weight_decay=0.0)
    same = dataclasses.replace(undecayed, name='adam')  # Without decay the two are one method.
    np.testing.assert_allclose(_run(undecayed), _run(same), rtol=1e-6)
  else:
    assert np.any(_run(changed) != _run(BASE))


@pytest.mark.parametrize('field,value,rule', [
    ('name', 'sgd', 'one of adamw, adam'),
    ('learning_rate', 0.0, 'positive'),
    ('learning_rate', math.nan, 'positive'),
    ('learning_rate', math.inf, 'positive and finite'),
    ('schedule', 'step', 'one of constant, linear, cosine'),
    ('warmup_steps', -1, 'at least 0'),
    ('warmup_steps', 10, 'more than warmup_steps'),
    ('total_steps', -1, 'at least 0'),
    ('total_steps', 2, 'more than warmup_steps'),
    ('final_fraction', 1.5, r'in \[0, 1\]'),
    ('b1', 1.0, r'in \[0, 1\)'),
    ('b2', -0.1, r'in \[0, 1\)'),
    ('eps', 0.0, 'positive'),
    ('weight_decay', -0.1, 'non-negative and finite'),
    ('max_grad_norm', -1.0, 'non-negative and finite'),
    ('max_grad_norm', math.nan, 'non-negative and finite'),
])
def test_bad_values_give_one_line(field, value, rule):
  with pytest.raises(ValueError, match=rule) as error:
    dataclasses.replace(BASE, **{field: value}).validate()
  assert '\n' not in str(error.value) and 'config.optimizer.' in str(error.value)


@pytest.mark.parametrize('field,value', [('total_steps', 10), ('final_fraction', 0.5)])
def test_constant_schedule_rejects_what_it_would_ignore(field, value):
  with pytest.raises(ValueError, match="0 with schedule='constant'"):
    dataclasses.replace(optim.OptimizerConfig(), **{field: value}).validate()


def test_for_run_fills_in_the_length():
  open_ended = optim.OptimizerConfig(schedule='cosine')
  open_ended.validate()
  with pytest.raises(ValueError, match='total_steps must be more than warmup_steps'):
    optim.make_optimizer(open_ended)
  assert optim.for_run(open_ended, 40).total_steps == 40
  assert open_ended.total_steps == 0
  assert optim.for_run(dataclasses.replace(open_ended, total_steps=7), 40).total_steps == 7
  assert optim.for_run(optim.OptimizerConfig(), 40) == optim.OptimizerConfig()


def test_config_may_change_after_the_optimizer_was_made():
  config = dataclasses.replace(BASE)
  optimizer = optim.make_optimizer(config)
  config.learning_rate = 5.0
  params = {'w': jnp.array([1.0])}
  updates, _ = optimizer.update({'w': jnp.array([1.0])}, optimizer.init(params), params)
  assert abs(float(updates['w'][0])) < 0.1


# --- Some of the parameters.


TREE = {
    'policy': {'adapters': {'a': jnp.array([3.0])}, 'base': {'a': jnp.array([4.0])}},
    'value': {'head': jnp.array([1.0, 2.0]), 'value_head': jnp.array([7.0])},
}


def _trained_names(optimizer, tree=None):
  selected = optimizer.select(TREE if tree is None else tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/')
          for path, _ in jax.tree_util.tree_leaves_with_path(selected)}


@pytest.mark.parametrize('trainable,expected', [
    ('adapters/.*', {'policy/adapters/a'}),
    ('head', {'value/head'}),
    ('head|adapters/a', {'value/head', 'policy/adapters/a'}),
    ('value/.*', {'value/head', 'value/value_head'}),
    ('.*', {'policy/adapters/a', 'policy/base/a', 'value/head', 'value/value_head'}),
])
def test_trainable_is_whole_names_at_a_paths_end(trainable, expected):
  optimizer = optim.make_optimizer(optim.OptimizerConfig(), trainable=trainable)
  assert _trained_names(optimizer) == expected


@pytest.mark.parametrize('trainable', ['adapter', 'ead', 'policy', 'adapters/', ''])
def test_trainable_that_matches_nothing_is_an_error(trainable):
  optimizer = optim.make_optimizer(optim.OptimizerConfig(), trainable=trainable)
  with pytest.raises(ValueError, match=f"trainable matches no parameter, got '{trainable}'"):
    optimizer.init(TREE)


def test_trainable_must_be_a_regular_expression():
  with pytest.raises(ValueError, match=r"must be a regular expression, got '\(a'") as error:
    optim.make_optimizer(optim.OptimizerConfig(), trainable='(a')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('config', [
    BASE, optim.OptimizerConfig(name='adam'), dataclasses.replace(BASE, max_grad_norm=0.0)])
def test_frozen_parameters_have_no_state_no_update_and_no_effect_on_the_norm(config):
  # As if the others were not there at all.
  partial = optim.make_optimizer(config, trainable='adapters/.*|head')
  alone = optim.make_optimizer(config)
  small = {'a': TREE['policy']['adapters']['a'], 'h': TREE['value']['head']}
  gradients = jax.tree.map(lambda leaf: 10 * leaf, TREE)
  state, small_state = partial.init(TREE), alone.init(small)

  assert [leaf.shape for leaf in jax.tree.leaves(state)] == [
      leaf.shape for leaf in jax.tree.leaves(small_state)]
  params = TREE

  for _ in range(3):
    updates, state = jax.jit(partial.update)(gradients, state, params)
    wanted, small_state = jax.jit(alone.update)(
        {'a': gradients['policy']['adapters']['a'], 'h': gradients['value']['head']},
        small_state, small)
    assert updates['policy']['base']['a'] is None and updates['value']['value_head'] is None
    # Two programs of some ten roundings for each entry.
    np.testing.assert_allclose(updates['policy']['adapters']['a'], wanted['a'], rtol=1e-6)
    np.testing.assert_allclose(updates['value']['head'], wanted['h'], rtol=1e-6)
    # Whether the gradients of frozen leaves are there or not.
    again, _ = partial.update(partial.select(gradients), state, params)
    assert jax.tree.structure(again) == jax.tree.structure(updates)


def test_a_partial_optimizer_is_an_optax_transformation():
  partial = optim.make_optimizer(optim.OptimizerConfig(max_grad_norm=0.0), trainable='head')
  doubled = optax.chain(partial, optax.scale(2.0))
  updates, _ = doubled.update(TREE, doubled.init(TREE), TREE)
  once, _ = partial.update(TREE, partial.init(TREE), TREE)
  np.testing.assert_allclose(updates['value']['head'], 2 * once['value']['head'])
