"""The contract of every algorithm, applied to the rows of `contract_rows`.

Checks that depend on positions run on the transformer of `tiny`, all others on `groups.BIGRAM`.
"""


import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.models import policy, reward, value
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import TrainState
from tests import named_tests
from tests.algorithms import groups, tiny
from tests.algorithms.contract_rows import ROWS, VARIANTS


def test_every_algorithm_has_a_row():
  files = (named_tests.TESTS.parent / 'jaxrl_llm' / 'algorithms').glob('*.py')
  # Shoestring classifies the nodes of a graph: its batches have neither rows nor rollouts.
  assert {path.stem for path in files} - {'__init__'} == {*ROWS, 'shoestring'}


@pytest.mark.parametrize('name', ROWS)
def test_tests_elsewhere_exist(name):
  assert not named_tests.missing(ROWS[name].elsewhere.values())


@pytest.mark.parametrize('name', ['algorithms/sft_test.py::test_x', 'nothing_test.py::test_x'])
def test_a_test_that_does_not_exist_is_missing(name):
  assert named_tests.missing([name]) == [name]


# --- The checks.


def check_initial_ratio(row):
  """R20: before the first step the policy is the one that sampled, at any temperature."""
  metrics = row.run(**row.on_policy)[2]
  assert abs(metrics['train/initial_log_ratio']) < 1e-5
  assert abs(metrics['train/sampler_gap']) < 1e-5

  for temperature in (0.6, 1.3):
    sampled = groups.bigram_log_probs(row.data().rollouts, temperature)
    data = groups.replace_rollouts(row.data(), log_probs=np.float32(sampled))
    metrics = row.exactly(data, temperature=temperature, **row.on_policy)[2]
    assert abs(metrics['train/initial_log_ratio']) < groups.EXACT
    assert abs(metrics['train/sampler_gap']) < 1e-6
  # A gap is measured where there is one.
  assert row.exactly(data, temperature=0.6, **row.on_policy)[2]['train/sampler_gap'] > 1e-2


def check_padding(row):
  """Slots after a stop token or before a prompt are ignored, NaN included."""
  data = row.data()
  mask = data.rollouts.mask
  assert (mask == 0).sum() > 3
  slots = np.arange(data.rollouts.prompts.shape[1])
  front = slots < slots.size - np.asarray(data.rollouts.prompt_lengths)[:, None]

  other = groups.replace_rollouts(
      data, tokens=jnp.where(mask > 0, data.rollouts.tokens, 5),
      log_probs=jnp.where(mask > 0, data.rollouts.log_probs, jnp.nan),
      prompts=jnp.where(front, 6 - data.rollouts.prompts, data.rollouts.prompts))
  other = dataclasses.replace(
      other, reference_log_probs=jnp.where(mask > 0, data.reference_log_probs, jnp.nan))
  got, expected = row.run(other), row.run()
  groups.assert_same(got, expected)
  assert got[2] == pytest.approx(expected[2], rel=1e-4, abs=1e-5)


def check_orders(row):
  """The order of prompts does not matter, nor that of the samples of a prompt."""
  data, expected = row.data(), row.exactly()
  turned = jax.tree.map(lambda leaf: leaf[np.array([2, 0, 3, 1])], data)
  groups.assert_exactly_same(row.exactly(turned), expected)
  if hasattr(data, 'rollouts'):
    groups.assert_exactly_same(row.exactly(data.samples(slice(None, None, -1))), expected)


def check_excluded_rows(row):
  """Rows of weight 0, and prompts with a reward that is not finite: dropped, and counted."""
  data, excluded = row.data(), np.arange(4) == 2

  def fill(leaf, value):
    return jnp.where(excluded.reshape((-1,) + (1,) * (leaf.ndim - 1)), value, leaf)

  filler = dataclasses.replace(data, weight=fill(data.weight, 0.0))
  expected = row.exactly(filler)
  assert np.isfinite(list(expected[2].values())).all()
  assert expected[2]['train/dropped'] == 0
  assert tiny.differ(row.exactly()[1], expected[1])

  poisoned = dataclasses.replace(
      filler, rewards=fill(data.rewards, jnp.nan),
      reference_log_probs=fill(data.reference_log_probs, jnp.inf))
  poisoned = groups.replace_rollouts(poisoned, log_probs=fill(data.rollouts.log_probs, jnp.nan))
  groups.assert_exactly_same(row.exactly(poisoned), expected)

  for bad in (jnp.nan, jnp.inf, -99_999.0):  # One reward of the group is enough.
    got = row.exactly(dataclasses.replace(data, rewards=data.rewards.at[2, -1].set(bad)))
    groups.assert_same(got, expected, tolerance=groups.EXACT)
    assert got[2]['train/dropped'] == pytest.approx(1 / 4)

  nothing = row.exactly(dataclasses.replace(data, weight=jnp.zeros(4)))
  assert nothing[0] == 0 and np.isfinite(list(nothing[2].values())).all()
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(nothing[1]))


def _weighted(data, weight):
  weight = jnp.asarray(weight, jnp.float32)
  if dataclasses.is_dataclass(data):
    return dataclasses.replace(data, weight=weight)
  return data._replace(weight=weight)


def check_micro_batches(row):
  """Four micro-batches are one, with unequal lengths and weights; a weight is a repetition."""
  data = row.data()
  weighted = _weighted(data, [2, 1, 0, 1]) if hasattr(data, 'weight') else data
  chunk = {'head_chunk': 2} if hasattr(row.module.Config, 'head_chunk') else {}
  expected = row.exactly(weighted)
  groups.assert_exactly_same(row.exactly(weighted, num_micro_batches=4, **chunk), expected)
  if weighted is not data:
    repeated = jax.tree.map(lambda leaf: leaf[np.array([0, 0, 1, 3])], data)
    groups.assert_exactly_same(row.exactly(repeated), expected)


def check_one_prompt(row):
  """A batch of a single prompt works, and is that prompt's part of a larger one."""
  data = row.data()
  alone = row.exactly(jax.tree.map(lambda leaf: leaf[1:2], data))
  groups.assert_exactly_same(alone, row.exactly(_weighted(data, [0, 1, 0, 0])))


def check_seeds(row):
  """Under vmap over seeds each state takes the step that it takes alone."""
  train_step = groups.train_step(row.module, row.networks(), **row.options)
  starts = [groups.tables(row.roles, scale) for scale in (1.0, -0.5)]
  states = [TrainState.create(start, tiny.recorder(), jax.random.key(0)) for start in starts]
  stacked, _ = jax.jit(jax.vmap(train_step, (0, None)))(
      jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), row.data())

  for index, start in enumerate(starts):
    got = jax.tree.map(lambda leaf, i=index: leaf[i], stacked.opt_state)
    tiny.assert_trees_close(got, row.exactly(start=start)[1], tolerance=1e-5)


def check_donation(row):
  """A jitted step reuses the buffers of its state, and is traced once for all steps."""
  algorithm = row.module.make(
      row.module.Config(**row.options), *row.networks(), tiny.recorder(learning_rate=0.1))
  start = jax.tree.map(jnp.array, groups.tables(row.roles))
  state = algorithm.init(jax.random.key(0), start)
  again = jax.tree.map(jnp.copy, state)

  jitted = step_lib.jit_train_step(algorithm.train_step)
  plain = groups.train_step(row.module, row.networks(), learning_rate=0.1, **row.options)
  for _ in range(2):
    state, metrics = jitted(state, row.data())
    again, expected = plain(again, row.data())
  assert jitted.num_traces == 1 and int(state.step) == 2
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start))
  tiny.assert_trees_close(state.params, again.params, tolerance=1e-6)
  assert metrics.keys() == expected.keys()


def check_rematerialisation(row):
  """A model that recomputes its activations has the same loss and gradients."""
  config = dataclasses.replace(tiny.CONFIG, remat='full')
  makers = {'policy': policy.make, 'value': value.make, 'reward': reward.make}
  networks = tuple(makers[role](config) for role in row.roles)
  run = groups.runner(row.module, networks, groups.parameters(row.roles), **row.options)
  groups.assert_same(run(row.data()), row.run())


def check_other_batches(row):
  """Batches that do not match the config are refused with one line."""
  data = row.data()
  for field in _fields_of(row) & {'num_minibatches', 'num_micro_batches', 'samples_per_prompt'}:
    _refuses_other_sizes(row, field)

  if 'kl_coefficient' in _fields_of(row):
    without = dataclasses.replace(data, reference_log_probs=None)
    message = 'kl_coefficient above 0 needs reference_log_probs, got None'
    assert _refusal(row, without) == message
    assert np.isfinite(row.exactly(without, kl_coefficient=0.0)[0])


def _fields_of(row):
  """Fields of the config that the train step reads."""
  return {field.name for field in dataclasses.fields(row.module.Config)} - set(row.elsewhere)


def _refuses_other_sizes(row, field):
  data = row.data()
  if field != 'samples_per_prompt':
    assert 'must divide the batch of 4, got 3' in _refusal(row, data, **{field: 3})
    return

  samples = data.rewards.shape[1]
  for other in (samples - 1, samples + 1):
    changed = dataclasses.replace(data.samples(np.zeros(other, int)), aux={})
    assert _refusal(row, changed) == (
        f'the batch must have samples_per_prompt = {samples} samples a prompt, got {other}')


def _refusal(row, data, **changes):
  """The message of the error, which is one line."""
  train_step = groups.train_step(row.module, row.networks(), **{**row.options, **changes})
  state = TrainState.create(groups.tables(row.roles), tiny.recorder(), jax.random.key(0))
  with pytest.raises(ValueError) as error:
    jax.eval_shape(train_step, state, data)
  assert '\n' not in str(error.value)
  return str(error.value)


CHECKS = (
    check_initial_ratio, check_padding, check_orders, check_excluded_rows, check_micro_batches,
    check_one_prompt, check_seeds, check_donation, check_rematerialisation, check_other_batches)


def _cases():
  for check in CHECKS:
    name = check.__name__.removeprefix('check_')
    for row_name, row in ROWS.items():
      if name not in row.without:
        yield pytest.param(check, row, id=f'{row_name}-{name}')
    for row_name, (row, changes, checks) in VARIANTS.items():
      if name in checks:
        row = row._replace(options={**row.options, **changes})
        yield pytest.param(check, row, id=f'{row_name}-{name}')


@pytest.mark.parametrize('check, row', _cases())
def test_contract(check, row):
  check(row)


# --- The config.


def _fields():
  for name, row in ROWS.items():
    for field in sorted(_fields_of(row)):
      yield pytest.param(row, field, id=f'{name}-{field}')


def _take_step(row, **changes):
  """(optimizer steps, last gradients, metrics) of a train step that moves the parameters."""
  train_step = groups.train_step(
      row.module, row.networks(), learning_rate=0.5, **{**row.options, **changes})
  state = TrainState.create(groups.tables(row.roles), tiny.recorder(), jax.random.key(0))
  state, metrics = train_step(state, row.data())
  values = {name: float(metric.value()) for name, metric in metrics.items()}
  return int(state.step), state.opt_state, values


@pytest.mark.parametrize('row, field', _fields())
def test_every_field_has_an_effect(row, field):
  if field in ('num_minibatches', 'num_micro_batches', 'samples_per_prompt'):
    _refuses_other_sizes(row, field)
    assert field != 'num_minibatches' or _take_step(row, num_minibatches=2)[0] == 2
    return

  if field == 'head_chunk':  # It changes the program, never its results (micro_batches).
    state = TrainState.create(groups.tables(row.roles), tiny.recorder(), jax.random.key(0))
    programs = [str(jax.make_jaxpr(groups.train_step(
        row.module, row.networks(), **{**row.options, 'head_chunk': chunk}))(state, row.data()))
                for chunk in (2, 128)]
    assert programs[0] != programs[1]
    return

  effect = row.effects[field]
  base, changed = effect if isinstance(effect, tuple) else ({}, effect)
  expected, got = _take_step(row, **base), _take_step(row, **base, **{field: changed})
  assert got[0] != expected[0] or tiny.differ(got[1], expected[1]) or got[2] != pytest.approx(
      expected[2], rel=1e-3)


@pytest.mark.parametrize('row, changes, message', [
    pytest.param(row, changes, message, id=f'{name}-{changes}')
    for name, row in ROWS.items() for changes, message in row.refused])
def test_values_out_of_range_are_refused(row, changes, message):
  with pytest.raises(ValueError) as error:
    row.module.make(row.module.Config(**changes), *row.networks(), tiny.recorder())
  assert str(error.value) == message


@pytest.mark.parametrize('name', ROWS)
def test_every_field_is_refused_somewhere(name):
  fields = {field.name for field in dataclasses.fields(ROWS[name].module.Config)
            if not isinstance(field.default, bool)}
  assert fields == {field for changes, _ in ROWS[name].refused for field in changes}
