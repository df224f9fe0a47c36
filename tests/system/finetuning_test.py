"""Adapters and split layers under the optimizer: meshes, memory, checkpoints, learning."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxrl_llm.algorithms import a_star_po, sft
from jaxrl_llm.models import lora, partial
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.sharding import rules
from jaxrl_llm.training import checkpoints, optim, rng, step
from tests.system import train_steps

ADAPTERS = lora.LoraConfig(rank=3, alpha=6.0, targets='attention/(query|output)|mlp/up|head')
KINDS = {'lora': lora.TRAINABLE, 'partial': partial.TRAINABLE}
ADAM = optim.OptimizerConfig(name='adamw', learning_rate=1e-2, weight_decay=0.1)
MESH = (2, 2, 2)


@functools.cache
def _model(kind):
  policy = policy_lib.make(train_steps.model(scan_unroll=1))
  return lora.make(policy, ADAPTERS) if kind == 'lora' else partial.make(policy, 1)


@functools.cache
def _params(kind):
  """Parameters of the usual scale on the host; no adapter's B is 0, so no gradient is."""
  generator = np.random.default_rng(0)

  def draw(path, leaf):
    name, width = path[-1].key, leaf.shape[-2] if leaf.ndim == 3 else leaf.shape[-1]
    spread = {'scale': 0.0, 'bias': 0.0, 'lora_b': 0.1}.get(name, width**-0.5)
    values = generator.normal(float(name == 'scale'), spread, leaf.shape)
    return values.astype(np.float32)

  return jax.tree_util.tree_map_with_path(
      draw, jax.eval_shape(_model(kind).init, rng.base_key(0)))


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
  groups = {'lora': ('adapters',), 'partial': ('last_layers', 'final_norm', 'head')}[kind]
  return any(f'/{group}/' in f'/{name}' for group in groups)


def _on_mesh(algorithm, kind, mesh):
  """(the state on a mesh, the compiled step)."""
  state = algorithm.init(rng.base_key(0), {'policy': _params(kind)})
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
    state, train_step = _on_mesh(algorithm, kind, mesh)
    state, metrics = train_step(state, jax.device_put(_batch(name), mesh_lib.batch_sharding(mesh)))
  gradients = {leaf: np.asarray(array) for leaf, array in _leaves(state.opt_state).items()}
  return gradients, {name: float(metric.value()) for name, metric in metrics.items()}


@pytest.mark.parametrize('kind, name, shape, micro_batches', [
    ('lora', 'sft', (8, 1, 1), 1), ('lora', 'sft', (1, 4, 2), 1),
    ('lora', 'a_star_po', (2, 2, 2), 2), ('partial', 'sft', (2, 2, 2), 2)])
def test_meshes_and_micro_batches_agree_with_one_device(kind, name, shape, micro_batches):
  expected, expected_metrics = _gradients(name, kind, (1, 1, 1))
  gradients, metrics = _gradients(name, kind, shape, micro_batches)
  assert gradients.keys() == expected.keys()
  assert all(_is_trained(kind, leaf) for leaf in gradients) and len(gradients) > 5
  largest = max(np.abs(leaf).max() for leaf in expected.values())
  for leaf, gradient in gradients.items():
    assert np.abs(expected[leaf]).max() > 1e-5 * largest, leaf
    np.testing.assert_allclose(gradient, expected[leaf], rtol=0, atol=1e-5 * largest, err_msg=leaf)
  for metric, value in expected_metrics.items():
    assert metrics[metric] == pytest.approx(value, rel=1e-5, abs=1e-6), metric


# --- Several steps.


@functools.cache
def _adam(kind):
  """(a maker of states on a mesh, the compiled step, a batch there)."""
  mesh = mesh_lib.make_mesh(*MESH)
  algorithm = _algorithm('sft', kind, optim.make_optimizer(ADAM, trainable=KINDS[kind]))
  _, train_step = _on_mesh(algorithm, kind, mesh)

  def run_step(state, batch):
    with jax.set_mesh(mesh):
      return train_step(state, batch)

  batch = jax.device_put(_batch(), mesh_lib.batch_sharding(mesh))
  return lambda: _on_mesh(algorithm, kind, mesh)[0], run_step, batch


@pytest.mark.parametrize('kind', KINDS)
def test_frozen_parameters_are_unchanged_and_have_no_optimizer_state(kind):
  make_state, run_step, batch = _adam(kind)
  initial = make_state()
  moments = {name for name in _leaves(initial.opt_state) if '/mu/' in name or '/nu/' in name}
  trained = {name for name in _leaves(initial.params) if _is_trained(kind, name)}
  assert len(moments) == 2 * len(trained)
  assert all(_is_trained(kind, name) for name in moments)
  state, _ = run_step(initial, batch)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(initial.params))  # All of it is donated.
  before = _leaves({'policy': _params(kind)})
  for name, leaf in _leaves(state.params).items():
    assert np.array_equal(leaf, before[name]) != _is_trained(kind, name), name
  with step.count_compilations() as compilations:
    run_step(state, batch)
  assert not compilations


@pytest.mark.parametrize('kind', KINDS)
def test_the_loss_decreases(kind):
  make_state, run_step, batch = _adam(kind)
  state, losses = make_state(), []
  for _ in range(60):
    state, metrics = run_step(state, batch)
    losses.append(float(metrics['train/loss'].value()))
  assert losses[0] > 2.5 and losses[-1] < 0.5 * losses[0]


# --- Memory.


@functools.cache
def _memory(kind, remat='full', rows=2, **options):  # So that activations are small.
  """Bytes of a compiled step: temporary buffers, optimizer state, the base, and all at once."""
  shape = train_steps.model(
      vocab_size=512, num_layers=12, width=64, mlp_width=256, num_heads=4, num_kv_heads=4,
      head_dim=16, scan_unroll=1, remat=remat)
  policy, adapters = policy_lib.make(shape), dataclasses.replace(
      ADAPTERS, targets='(attention|mlp)/.*')
  model = {'lora': lambda: lora.make(policy, adapters), 'partial': lambda: partial.make(policy, 1),
           'full': lambda: policy}[kind]()
  optimizer = optim.make_optimizer(ADAM, trainable=KINDS.get(kind))
  algorithm = sft.make(sft.Config(head_chunk=4, **options), model, optimizer)
  state = jax.eval_shape(
      lambda key: algorithm.init(key, {'policy': model.init(key)}), jax.random.key(0))
  batch = train_steps.demonstration_batch(shape.vocab_size, 8, rows)
  compiled = step.jit_train_step(algorithm.train_step).lower(state, batch).compile()
  size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
  base = size(jax.eval_shape(policy.init, jax.random.key(0)))

  memory = compiled.memory_analysis()
  temporary = memory.temp_size_in_bytes
  total = (memory.argument_size_in_bytes + temporary
           + memory.output_size_in_bytes - memory.alias_size_in_bytes)
  return temporary, size(state.opt_state), base, total


@pytest.mark.parametrize('kind', KINDS)
def test_a_step_allocates_no_gradient_of_the_base(kind):
  temporary, optimizer, base, _ = _memory(kind)
  assert temporary < 0.4 * base and optimizer < 0.4 * base
  # If everything is trained, the same measurement shows gradients and moments.
  temporary, optimizer, _, _ = _memory('full')
  assert temporary > base and optimizer > 1.9 * base


@pytest.mark.parametrize('kind', KINDS)
def test_the_frozen_parameters_of_a_step_are_in_memory_once(kind):
  temporary, optimizer, base, total = _memory(kind)
  trained = optimizer / 2  # Adam has two moments.
  assert total - temporary < 1.05 * base + trained + optimizer


def test_micro_batches_divide_the_memory_of_activations():
  whole, parts = (
      _memory('lora', remat='none', rows=16, num_micro_batches=number)[0] for number in (1, 4))
  assert parts < 0.4 * whole


# --- Checkpoints.


@pytest.mark.parametrize('kind', KINDS)
def test_a_state_is_saved_and_restored_onto_another_mesh(tmp_path, kind):
  make_state, run_step, batch = _adam(kind)
  state, _ = run_step(make_state(), batch)
  other = mesh_lib.make_mesh(1, 8, 1)
  abstract = jax.eval_shape(lambda: state)
  abstract = rules.abstract(abstract, rules.shardings(other, abstract))
  with contextlib.closing(checkpoints.Checkpoints(tmp_path / 'c')) as folder:
    folder.save(1, state, {})
    folder.wait()
    restored = folder.restore_latest(abstract).state

  assert jax.tree.structure(restored) == jax.tree.structure(state)
  for leaf, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True):
    assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)
  plain = lambda tree: _leaves(dataclasses.replace(tree, key=jax.random.key_data(tree.key)))
  expected = plain(state)
  for name, leaf in plain(restored).items():
    np.testing.assert_array_equal(leaf, expected[name], err_msg=name)

  # Training continues as without the restore.
  again = jax.device_put(restored, jax.tree.map(lambda leaf: leaf.sharding, state))
  for a, b in zip(*(jax.tree.leaves(run_step(one, batch)[0].params) for one in (state, again)),
                  strict=True):
    np.testing.assert_array_equal(a, b)
