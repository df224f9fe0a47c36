"""The table covers every parameter of every model; errors name a leaf that it does not cover."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxrl_llm.models import configs, encoder, lora, partial, policy, q_function, reward, value
from jaxrl_llm.models.pretrained import huggingface
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.sharding import rules
from jaxrl_llm.training import optim, rng, step
from jaxrl_llm.types import TrainState
from tests.models import witness
from tests.system import train_steps

OPTIMIZERS = {
    'adamw': optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lambda count: 1e-3 * count)),
    'adam': optax.adam(1e-3),
}
SMALL = configs.TransformerConfig(
    vocab_size=32, num_layers=2, width=16, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=24,
    max_length=16)
LLAMA = SMALL
QWEN = dataclasses.replace(SMALL, attention_bias=True)
GPT = dataclasses.replace(
    SMALL, norm='layer', positions='learned', activation='gelu', attention_bias=True,
    output_bias=True, mlp_bias=True)
UNTIED = dataclasses.replace(GPT, tie_embeddings=False, head_bias=True)
GEMMA = dataclasses.replace(
    SMALL, norm='rms_plus_one', activation='geglu', post_norms=True, qk_norm=True)
ADAPTERS = lora.LoraConfig(rank=3, targets='(attention|mlp)/.*|head')  # No mesh divides 3.


def _abstract_state(params_by_role, optimizer='adamw'):
  def init():
    params = params_by_role()
    return TrainState.create(params, OPTIMIZERS[optimizer], rng.base_key(0))
  return jax.eval_shape(init)


def _specs(tree):
  return {
      jax.tree_util.keystr(path, simple=True, separator='/'): sharding.spec
      for path, sharding in jax.tree_util.tree_leaves_with_path(tree)
  }


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize(
    'config', [LLAMA, QWEN, GPT, UNTIED, GEMMA], ids=['llama', 'qwen', 'gpt', 'untied', 'gemma'])
@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2), (1, 8, 1)])
def test_every_leaf_of_a_train_state_has_a_rule(config, optimizer, shape):
  makers = {'policy': policy.make, 'value': value.make, 'q': q_function.make, 'reward': reward.make}
  models = {role: make(config) for role, make in makers.items()}
  abstract = _abstract_state(
      lambda: {role: model.init(rng.base_key(1)) for role, model in models.items()}, optimizer)
  shardings = rules.shardings(mesh_lib.make_mesh(*shape), abstract)
  specs = _specs(shardings)
  assert len(specs) == len(jax.tree.leaves(abstract))
  # Adam's moments are sharded like their parameter.
  num_moments = 0
  for name, spec in specs.items():
    for moment in ('/mu/', '/nu/'):
      if moment in name:
        assert spec == specs['params/' + name.split(moment)[1]], name
        num_moments += 1
  assert num_moments == 2 * len([name for name in specs if name.startswith('params/')])


def test_rules_by_name():
  model = policy.make(UNTIED)
  abstract = _abstract_state(lambda: {
      'policy': model.init(rng.base_key(0)), 'value': value.make(UNTIED).init(rng.base_key(0))})
  specs = _specs(rules.shardings(mesh_lib.make_mesh(2, 2, 2), abstract))

  expected = {
      'step': P(),
      'key': P(),
      'params/policy/embedder/embedding': P('tensor', 'fsdp'),
      'params/policy/embedder/position_embedding': P(None, 'fsdp'),
      'params/policy/layers/attention/query/kernel': P(None, 'fsdp', 'tensor'),
      'params/policy/layers/attention/output/kernel': P(None, 'tensor', 'fsdp'),
      'params/policy/layers/attention/key/bias': P(None, 'tensor'),
      'params/policy/layers/attention/output/bias': P(None, None),
      'params/policy/layers/mlp/up/kernel': P(None, 'fsdp', 'tensor'),
      'params/policy/layers/mlp/down/kernel': P(None, 'tensor', 'fsdp'),
      'params/policy/layers/attention_norm/scale': P(None, None),
      'params/policy/final_norm/bias': P(None),
      'params/policy/head/kernel': P('tensor', 'fsdp'),
      'params/policy/head/bias': P('tensor'),
      'params/value/value_head/kernel': P(),
      'opt_state/1/0/mu/policy/head/kernel': P('tensor', 'fsdp'),
      'opt_state/1/0/count': P(),
  }
  assert {name: specs[name] for name in expected} == expected


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2), (1, 8, 1)])
def test_every_leaf_of_adapters_and_split_layers_has_a_rule(shape):
  gpt = dataclasses.replace(UNTIED, head_bias=False)
  models = {
      'policy': lora.make(policy.make(gpt), ADAPTERS),
      'tied': lora.make(policy.make(GEMMA), ADAPTERS),
      'split': partial.make(policy.make(dataclasses.replace(GEMMA, tie_embeddings=False)), 1),
      'value': partial.make(value.make(GPT), 1),
      'encoder': encoder.make(encoder.EncoderConfig(vocab_size=32, width=16, mlp_width=24)),
  }
  optimizer = optim.make_optimizer(
      optim.OptimizerConfig(), trainable=f'{lora.TRAINABLE}|{partial.TRAINABLE}')

  def init():
    params = {role: model.init(rng.base_key(1)) for role, model in models.items()}
    return TrainState.create(params, optimizer, rng.base_key(0))

  abstract = jax.eval_shape(init)
  specs = _specs(rules.shardings(mesh_lib.make_mesh(*shape), abstract))
  assert len(specs) == len(jax.tree.leaves(abstract))

  # Adapters are sharded like their kernels, except for the rank; last layers like the others.
  for name, spec in specs.items():
    if '/adapters/layers/' in name:
      layer, _, side = name.partition('params/')[2].rpartition('/')
      if layer:
        rows, columns = specs[f'params/{layer}/kernel'.replace('adapters', 'base')][1:]
        assert spec == (P(None, rows, None) if side == 'lora_a' else P(None, None, columns))
    if name.startswith('params/') and '/last_layers/' in name:
      assert spec == specs[name.replace('last_layers', 'layers')]

  expected = {
      'params/policy/adapters/layers/attention/query/lora_a': P(None, 'fsdp', None),
      'params/policy/adapters/layers/attention/query/lora_b': P(None, None, 'tensor'),
      'params/policy/adapters/layers/mlp/down/lora_a': P(None, 'tensor', None),
      'params/policy/adapters/layers/mlp/down/lora_b': P(None, None, 'fsdp'),
      'params/policy/adapters/head/lora_a': P(None, 'fsdp'),
      'params/tied/adapters/head/lora_b': P('tensor', None),
      'params/split/last_layers/attention/key_norm/scale': P(None, None),
      'params/split/last_layers/mlp_post_norm/scale': P(None, None),
      'params/policy/base/layers/mlp/down/kernel': P(None, 'tensor', 'fsdp'),
      'opt_state/1/0/mu/policy/adapters/layers/mlp/up/lora_b': P(None, None, 'tensor'),
  }
  assert {name: specs[name] for name in expected} == expected
  assert not [name for name in specs if name.startswith('opt_state') and '/base/layers/' in name]


# --- A vocabulary whose size is not divisible by the mesh.


@pytest.mark.parametrize('vocab_size, width, shape, table, rows', [
    (22, 16, (2, 2, 2), P('tensor', 'fsdp'), P('tensor')),
    (11, 16, (2, 2, 2), P(None, ('tensor', 'fsdp')), P(None)),
    (11, 16, (1, 1, 8), P(None, ('tensor', 'fsdp')), P(None)),
    (11, 18, (2, 2, 2), P(None, 'fsdp'), P(None)),
    (50257, 768, (1, 2, 4), P(None, ('tensor', 'fsdp')), P(None)),
    (50257, 768, (4, 2, 1), P('tensor', 'fsdp'), P('tensor')),  # Tensor splits nothing here.
])
def test_tables_of_a_vocabulary_fit_any_mesh(vocab_size, width, shape, table, rows):
  config = dataclasses.replace(
      UNTIED, vocab_size=vocab_size, width=width, num_heads=8, num_kv_heads=8)
  adapted = lora.make(policy.make(dataclasses.replace(config, head_bias=False)), ADAPTERS)
  models = {'policy': policy.make(config), 'q': q_function.make(config), 'lora': adapted}
  abstract = _abstract_state(
      lambda: {role: model.init(rng.base_key(1)) for role, model in models.items()})
  shardings = rules.shardings(mesh_lib.make_mesh(*shape), abstract)
  rules.abstract(abstract, shardings)

  specs = _specs(shardings)
  expected = {
      'policy/embedder/embedding': table, 'policy/head/kernel': table, 'q/q_head/kernel': table,
      'policy/head/bias': rows, 'q/q_head/bias': rows,
      'lora/adapters/head/lora_b': P(*rows, None), 'lora/adapters/head/lora_a': P(None, 'fsdp'),
      'policy/embedder/position_embedding': P(None, 'fsdp'),
  }
  for prefix in ('params', 'opt_state/1/0/mu', 'opt_state/1/0/nu'):
    assert {name: specs[f'{prefix}/{name}'] for name in expected} == expected


@pytest.mark.parametrize('leaf', ['embedder/embedding', 'head/kernel'])
def test_a_width_that_cannot_be_sharded_is_named(leaf):
  message = (
      rf'{leaf}, shape \[11, 9\], cannot be sharded: 9 must be divisible by mesh axis fsdp \(2\)')
  part, name = leaf.split('/')
  with pytest.raises(ValueError, match=message):
    rules.shardings(mesh_lib.make_mesh(2, 2, 2), {part: {name: jnp.zeros((11, 9))}})


@pytest.fixture(scope='module', params=['tied', 'untied'])
def odd_checkpoint(request, tmp_path_factory):
  """(directory of a GPT-2 with 11 tokens, its config)."""
  config = dataclasses.replace(
      GPT, vocab_size=11, num_layers=1, norm_epsilon=1e-5, num_heads=8, num_kv_heads=8, head_dim=2,
      tie_embeddings=request.param == 'tied')
  directory = tmp_path_factory.mktemp('odd') / 'gpt2'
  huggingface.save(
      directory, config, witness.draw_params(policy.make(config)), model_type='gpt2')
  return directory, config


def _loaded_and_stepped(directory, config, shape):
  """Runs one step from a loaded checkpoint; returns (loss, parameters, gradients)."""
  mesh = mesh_lib.make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
  model, algorithm = train_steps.make('sft', config, train_steps.recording(), head_chunk=4)
  shapes = jax.eval_shape(model.init, rng.base_key(0))
  params = huggingface.load_params(
      huggingface.read_config(directory), rules.abstract(shapes, rules.shardings(mesh, shapes)))
  copy = jax.tree.map(np.array, params)

  with jax.set_mesh(mesh):
    state = algorithm.init(rng.base_key(0), {'policy': params})
    shardings = rules.shardings(mesh, state)
    rows = mesh_lib.batch_sharding(mesh)
    train_step = step.jit_train_step(
        algorithm.train_step, state_shardings=shardings, batch_shardings=rows)
    batch = jax.device_put(train_steps.demonstration_batch(config.vocab_size, 9), rows)
    state, metrics = train_step(jax.device_put(state, shardings), batch)

  assert state.params['policy']['embedder']['embedding'].sharding == (
      shardings.params['policy']['embedder']['embedding'])
  return float(metrics['train/loss'].value()), copy, jax.device_get(state.opt_state)


def test_an_odd_vocabulary_is_loaded_and_trained(odd_checkpoint):
  loss, params, gradients = _loaded_and_stepped(*odd_checkpoint, (1, 1, 1))
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
  assert largest > 1e-4
  for shape in ((2, 2, 2), (1, 1, 8)):
    its_loss, its_params, its_gradients = _loaded_and_stepped(*odd_checkpoint, shape)
    jax.tree.map(np.testing.assert_array_equal, its_params, params)
    assert its_loss == pytest.approx(loss, rel=1e-5)
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max() / largest, its_gradients, gradients)
    assert max(jax.tree.leaves(gaps)) <= 1e-5, gaps


def test_each_device_holds_its_shard_only():
  mesh = mesh_lib.make_mesh(1, 4, 2)
  params = {'layers': {'mlp': {'up': {'kernel': jnp.zeros((2, 16, 24))}}}}
  placed = jax.device_put(params, rules.shardings(mesh, params))
  shapes = {s.data.shape for s in placed['layers']['mlp']['up']['kernel'].addressable_shards}
  assert shapes == {(2, 4, 12)}


@pytest.mark.parametrize('name', [
    'params/policy/adapter/kernel', 'aux/table', 'params/policy/xembedder/embedding',
    'params/policy/head/kernel/extra', 'params/step', 'params/policy/xlast_layers/mlp/up/kernel',
    'params/policy/layers/mlp/up/lora_c', 'params/value/value_head/lora_a',
])
def test_a_leaf_without_a_rule_is_named(name):
  tree = functools.reduce(lambda inner, part: {part: inner}, reversed(name.split('/')),
                          jnp.zeros((8, 8)))
  with pytest.raises(ValueError, match=rf'no sharding rule matches {name}, shape \[8, 8\]'):
    rules.shardings(mesh_lib.make_mesh(8, 1, 1), tree)


def test_a_dimension_that_cannot_be_sharded_is_named():
  tree = {'policy': {'layers': {'mlp': {'up': {'kernel': jnp.zeros((2, 16, 25))}}}}}
  message = (r'policy/layers/mlp/up/kernel, shape \[2, 16, 25\], cannot be sharded: 25 must '
             r'be divisible by mesh axis tensor \(2\)')
  with pytest.raises(ValueError, match=message):
    rules.shardings(mesh_lib.make_mesh(2, 2, 2), tree)
  rules.shardings(mesh_lib.make_mesh(8, 1, 1), tree)  # Nothing is split on this mesh.


def test_a_rule_with_too_many_axes_is_an_error():
  with pytest.raises(ValueError, match=r'head/kernel has shape \[8\], too few axes'):
    rules.shardings(mesh_lib.make_mesh(8, 1, 1), {'head': {'kernel': jnp.zeros(8)}})


def test_the_first_matching_rule_applies():
  table = (('policy/head/kernel', P()), *rules.DECODER_RULES)
  tree = {role: {'head': {'kernel': jnp.zeros((8, 8))}} for role in ('policy', 'value')}
  specs = _specs(rules.shardings(mesh_lib.make_mesh(2, 2, 2), tree, rules=table))
  assert specs == {'policy/head/kernel': P(), 'value/head/kernel': P('tensor', 'fsdp')}


def test_abstract_has_shapes_dtypes_and_shardings():
  mesh = mesh_lib.make_mesh(2, 2, 2)
  tree = {'head': {'kernel': jnp.zeros((8, 4), jnp.bfloat16)}}
  shardings = rules.shardings(mesh, tree)
  leaf = rules.abstract(tree, shardings)['head']['kernel']
  assert (leaf.shape, leaf.dtype) == ((8, 4), jnp.bfloat16)
  assert leaf.sharding == shardings['head']['kernel']
