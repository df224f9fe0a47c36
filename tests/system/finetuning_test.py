"""Adapters and split layers under the optimizer: meshes, memory, checkpoints, and that they learn."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.algorithms import a_star_po, sft
from jaxrl_llm.models import lora, partial
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.sharding import rules
from jaxrl_llm.training import checkpoints, optim, rng, step
from tests.models import witness
from tests.system import train_steps

ADAPTERS = lora.LoraConfig(rank=3, alpha=6.0, targets='(attention|mlp)/.*|head')
KINDS = {'lora': lora.TRAINABLE, 'partial': partial.TRAINABLE}
ADAM = optim.OptimizerConfig(name='adamw', learning_rate=1e-2, weight_decay=0.1)


def _model(kind, **changes):
  policy = policy_lib.make(train_steps.model(**changes))
  return lora.make(policy, ADAPTERS) if kind == 'lora' else partial.make(policy, 1)


@functools.cache
def _params(kind, **changes):
  """Every leaf large enough that no gradient vanishes, an adapter's B included."""
  return witness.draw_params(_model(kind, **changes))


def _algorithm(name, kind, optimizer, **options):
  if name == 'sft':
    return sft.make(sft.Config(head_chunk=4, **options), _model(kind), optimizer)
  return a_star_po.make(
      a_star_po.Config(beta2=1e-2, head_chunk=4, **options), _model(kind), optimizer)


def _batch(name='sft'):
  return train_steps.batch_for(name, train_steps.model(), 9)


def _leaves(tree):
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _is_trained(kind, name):
  parts = {'lora': ('adapters',), 'partial': ('last_layers', 'final_norm', 'head')}[kind]
  return any(f'/{part}/' in f'/{name}' for part in parts)


def _placed(algorithm, kind, mesh):
  """(the state on a mesh, the compiled step)."""
  params = jax.device_get(_params(kind))  # A step donates what it is given.
  state = algorithm.init(rng.base_key(0), {'policy': params})
  shardings = rules.shardings(mesh, state)
  train_step = step.jit_train_step(
      algorithm.train_step, state_shardings=shardings,
      batch_shardings=mesh_lib.batch_sharding(mesh))
  return jax.device_put(state, shardings), train_step


# --- One step.


@functools.cache
def _gradients(name, kind, mesh_shape, num_micro_batches=1):
  """Gradients of one step as float64, metrics by value."""
  mesh = mesh_lib.make_mesh(*mesh_shape, devices=jax.devices()[: int(np.prod(mesh_shape))])
  optimizer = optim.PartialOptimizer(train_steps.recording(), KINDS[kind])
  algorithm = _algorithm(name, kind, optimizer, num_micro_batches=num_micro_batches)
  with jax.set_mesh(mesh):
    state, train_step = _placed(algorithm, kind, mesh)
    state, metrics = train_step(state, jax.device_put(_batch(name), mesh_lib.batch_sharding(mesh)))
  metrics = {name: float(metric.value()) for name, metric in jax.device_get(metrics).items()}
  return {name: np.asarray(leaf, np.float64) for name, leaf in _leaves(state.opt_state).items()}, metrics


@pytest.mark.parametrize('name', ['sft', 'a_star_po'])
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('shape, parts', [((8, 1, 1), 1), ((2, 2, 2), 2), ((1, 8, 1), 1)])
def test_meshes_and_micro_batches_agree_with_one_device(name, kind, shape, parts):
  expected, expected_metrics = _gradients(name, kind, (1, 1, 1))
  gradients, metrics = _gradients(name, kind, shape, parts)
  assert gradients.keys() == expected.keys()
  assert all(_is_trained(kind, leaf) for leaf in gradients) and len(gradients) > 5
  largest = max(np.abs(leaf).max() for leaf in expected.values())
  for leaf, gradient in gradients.items():
    assert np.abs(expected[leaf]).max() > 1e-5 * largest, leaf
    np.testing.assert_allclose(gradient, expected[leaf], rtol=0, atol=1e-5 * largest, err_msg=leaf)
  for metric, value in expected_metrics.items():
    assert metrics[metric] == pytest.approx(value, rel=1e-5, abs=1e-6), metric


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_frozen_comes_out_bit_for_bit_and_has_no_optimizer_state(kind):
  mesh = mesh_lib.make_mesh(2, 2, 2)
  algorithm = _algorithm('sft', kind, optim.make_optimizer(ADAM, trainable=KINDS[kind]))
  with jax.set_mesh(mesh):
    state, train_step = _placed(algorithm, kind, mesh)
    moments = {name for name in _leaves(state.opt_state) if '/mu/' in name or '/nu/' in name}
    trained = {name for name in _leaves(state.params) if _is_trained(kind, name)}
    assert len(moments) == 2 * len(trained)
    assert all(_is_trained(kind, name) for name in moments)
    batch = jax.device_put(_batch(), mesh_lib.batch_sharding(mesh))
    given = state
    for _ in range(2):
      state, _ = train_step(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params))  # Donated, all of it.
    with step.count_compilations() as compilations:
      train_step(state, batch)
    assert not compilations and train_step.num_traces == 1
  state, _ = _placed(algorithm, kind, mesh)
  with jax.set_mesh(mesh):
    state, _ = train_step(state, batch)
  before = _leaves({'policy': _params(kind)})
  for name, leaf in _leaves(state.params).items():
    same = np.array_equal(leaf, before[name])
    assert same != _is_trained(kind, name), name


# --- Memory.


@functools.cache
def _memory(kind):
  """(bytes of temporary buffers, of the optimizer's state, of the base) of a compiled step."""
  shape = train_steps.model(
      vocab_size=512, num_layers=12, width=64, mlp_width=256, num_heads=4, num_kv_heads=4,
      head_dim=16, scan_unroll=1)
  policy, adapters = policy_lib.make(shape), dataclasses.replace(
      ADAPTERS, targets='(attention|mlp)/.*')
  model = {'lora': lambda: lora.make(policy, adapters), 'partial': lambda: partial.make(policy, 1),
           'full': lambda: policy}[kind]()
  optimizer = optim.make_optimizer(ADAM, trainable=KINDS.get(kind))
  algorithm = sft.make(sft.Config(head_chunk=4), model, optimizer)
  state = jax.eval_shape(
      lambda key: algorithm.init(key, {'policy': model.init(key)}), jax.random.key(0))
  batch = train_steps.demonstration_batch(shape.vocab_size, 8, 2)
  compiled = step.jit_train_step(algorithm.train_step).lower(state, batch).compile()
  size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
  base = size(jax.eval_shape(policy.init, jax.random.key(0)))
  return compiled.memory_analysis().temp_size_in_bytes, size(state.opt_state), base


@pytest.mark.parametrize('kind', KINDS)
def test_a_step_holds_no_gradient_of_the_base(kind):
  temporary, optimizer, base = _memory(kind)
  assert temporary < 0.4 * base and optimizer < 0.4 * base
  # The witness: where everything is trained, gradients and moments are seen.
  temporary, optimizer, _ = _memory('full')
  assert temporary > base and optimizer > 1.9 * base


# --- Checkpoints.


@pytest.mark.parametrize('kind', KINDS)
def test_a_state_is_saved_and_restored_onto_another_mesh(tmp_path, kind):
  algorithm = _algorithm('sft', kind, optim.make_optimizer(ADAM, trainable=KINDS[kind]))
  there, here = mesh_lib.make_mesh(2, 2, 2), mesh_lib.make_mesh(1, 8, 1)
  with jax.set_mesh(there):
    state, train_step = _placed(algorithm, kind, there)
    batch = jax.device_put(_batch(), mesh_lib.batch_sharding(there))
    state, _ = train_step(state, batch)
  abstract = jax.eval_shape(lambda: state)
  abstract = rules.abstract(abstract, rules.shardings(here, abstract))
  with contextlib.closing(checkpoints.Checkpoints(tmp_path / 'c')) as folder:
    folder.save(1, state, {})
    folder.wait()
    restored = folder.restore_latest(abstract).state
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  data = lambda tree: jax.tree.leaves(dataclasses.replace(
      tree, key=jax.random.key_data(tree.key)))
  for a, b in zip(data(restored), data(state), strict=True):
    np.testing.assert_array_equal(a, b)
  for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True):
    assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
  # And it goes on as if nothing had happened.
  with jax.set_mesh(there):
    again = jax.device_put(restored, jax.tree.map(lambda leaf: leaf.sharding, state))
    expected, _ = train_step(state, batch)
    again, _ = train_step(again, batch)
  for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(expected.params), strict=True):
    np.testing.assert_array_equal(a, b)


# --- Learning.


@pytest.mark.parametrize('kind', KINDS)
def test_it_learns(kind):
  config = optim.OptimizerConfig(name='adam', learning_rate=2e-2)
  algorithm = _algorithm('sft', kind, optim.make_optimizer(config, trainable=KINDS[kind]))
  model = _model(kind)
  state = algorithm.init(rng.base_key(0), {'policy': jax.jit(model.init)(rng.base_key(1))})
  train_step, batch, losses = step.jit_train_step(algorithm.train_step), _batch(), []
  for _ in range(60):
    state, metrics = train_step(state, batch)
    losses.append(float(metrics['train/loss'].value()))
  assert losses[0] > 2.5 and losses[-1] < 0.5 * losses[0]
  assert np.all([np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)])
