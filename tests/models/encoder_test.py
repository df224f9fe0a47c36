"""Encoders: bidirectional attention, poolings, padding, gradients, meshes and every field.

tests/models/pretrained/bert_test.py compares the hidden states with those of transformers.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.models import encoder
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.sharding import rules

CONFIG = encoder.EncoderConfig(
    vocab_size=32, num_layers=2, width=16, num_heads=4, mlp_width=24, max_length=12,
    scan_unroll=1)
LENGTHS = (7, 3, 5)
# Many small functions are compiled here, and run once or twice.
_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@functools.cache
def _hidden(**changes):
  """`hidden` of the config with these fields."""
  return _jit(encoder.make(dataclasses.replace(CONFIG, **changes)).hidden)


@functools.cache
def _params():
  """Parameters that are all random: a fresh norm would hide its bias."""
  params = _jit(encoder.make(CONFIG).init)(jax.random.key(0))
  random = np.random.default_rng(0)
  return jax.tree.map(lambda p: (p + 0.3 * random.normal(size=p.shape)).astype(p.dtype), params)


def _batch(*, width=12, left=False, seed=1):
  """Three texts; the tokens in the padding depend on the seed, the texts do not."""
  texts = [np.random.default_rng(i).integers(0, 32, n) for i, n in enumerate(LENGTHS)]
  tokens = np.random.default_rng(seed).integers(0, 32, (3, width)).astype(np.int32)
  valid = np.zeros((3, width), bool)
  for i, text in enumerate(texts):
    columns = slice(width - len(text), None) if left else slice(0, len(text))
    tokens[i, columns], valid[i, columns] = text, True
  return tokens, valid


def _embed(batch, *, pooling='cls', **changes):
  hidden = _hidden(**changes)(_params(), *batch)
  return np.asarray(encoder.pool(dataclasses.replace(CONFIG, pooling=pooling), hidden, batch[1]))


def test_shapes_and_dtypes():
  fns = encoder.make(CONFIG)
  assert jax.eval_shape(fns.hidden, _params(), *_batch()).shape == (3, 12, 16)
  assert jax.eval_shape(fns.embed, _params(), *_batch()).shape == (3, 16)
  vectors = _embed(_batch(), compute_dtype='bfloat16')
  assert vectors.dtype == np.float32
  exact = _embed(_batch())
  error = np.max(np.abs(vectors - exact))
  assert 1e-5 < error < 0.1 * np.std(exact)


def test_pooling_by_hand():
  hidden = jnp.array(
      [[[1.0, 2.0], [3.0, 6.0], [50.0, 50.0]], [[50.0, 50.0], [3.0, 4.0], [5.0, 0.0]]])
  valid = jnp.array([[True, True, False], [False, True, True]])
  pool = lambda **changes: encoder.pool(
      dataclasses.replace(CONFIG, **changes), hidden, valid).tolist()
  assert pool(pooling='cls') == [[1.0, 2.0], [3.0, 4.0]]
  assert pool(pooling='mean') == [[2.0, 4.0], [4.0, 2.0]]
  np.testing.assert_allclose(
      pool(pooling='cls', normalize=True), [[5**-0.5, 2 * 5**-0.5], [0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize('pooling', encoder.POOLINGS)
def test_padding_does_not_matter(pooling):
  expected = _embed(_batch(), pooling=pooling)
  for other in (_batch(seed=2), _batch(left=True), _batch(width=7)):
    np.testing.assert_allclose(_embed(other, pooling=pooling), expected, atol=1e-5)
  tokens, valid = _batch()
  attended = _embed((tokens, np.ones_like(valid)), pooling=pooling)
  assert np.min(np.max(np.abs(attended - expected), axis=1)) > 1e-2


def test_attention_is_bidirectional():
  tokens, valid = _batch()
  before = _hidden()(_params(), tokens, valid)
  for changed, seen_at in ((6, 0), (0, 6)):
    other = tokens.copy()
    other[0, changed] = (other[0, changed] + 1) % 32
    after = _hidden()(_params(), other, valid)
    assert np.max(np.abs(after[0, seen_at] - before[0, seen_at])) > 1e-3


@functools.cache
def _value_and_gradient(**changes):
  """Value and gradient of a loss over texts, the last of which is empty."""
  tokens, valid = _batch()
  valid[2] = False
  embed = encoder.make(
      dataclasses.replace(CONFIG, pooling='mean', normalize=True, **changes)).embed
  loss = lambda p: jnp.sum(jnp.sin(embed(p, tokens, valid)))
  return _jit(jax.value_and_grad(loss))(_params())


def test_gradients_reach_every_parameter_and_are_finite_for_an_empty_text():
  value, gradients = _value_and_gradient()
  assert np.isfinite(value)
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.all(np.isfinite(gradient)), path
    if path[-2].key != 'key' or path[-1].key != 'bias':  # Shifts all scores of a query equally.
      assert np.max(np.abs(gradient)) > 0, path


@pytest.mark.parametrize('changes', [{'remat': True}, {'scan_unroll': 0}, {'attention_block': 5}])
def test_compute_fields_do_not_change_the_result(changes):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
               _value_and_gradient(), _value_and_gradient(**changes))


def test_a_mesh_gives_the_same_vectors():
  mesh = mesh_lib.make_mesh(2, 2, 2)
  tokens, valid = (np.concatenate([x, x[:1]]) for x in _batch())
  expected = _embed((tokens, valid))
  sharded = jax.device_put(_params(), rules.shardings(mesh, _params()))
  with jax.set_mesh(mesh):
    vectors = _jit(encoder.make(CONFIG).embed)(sharded, *jax.device_put(
        (tokens, valid), mesh_lib.batch_sharding(mesh)))
  np.testing.assert_allclose(vectors, expected, atol=1e-5)


# Another value of each field, which changes parameters, vectors or the program, or is an error.
CHANGES = {
    'vocab_size': 33, 'num_layers': 1, 'width': 20, 'num_heads': 2, 'mlp_width': 25,
    'max_length': 13, 'type_vocab_size': 3, 'norm_epsilon': 0.1, 'activation': 'relu',
    'pooling': 'mean', 'normalize': True, 'compute_dtype': 'bfloat16', 'remat': True,
    'scan_unroll': 0, 'attention_block': 5,
}


def _parameters_and_program(config):
  fns = encoder.make(config)
  params = jax.eval_shape(fns.init, jax.random.key(0))
  gradient = jax.grad(lambda p: jnp.sum(fns.embed(p, *_batch())))
  return str(params), str(jax.make_jaxpr(gradient)(params))


@functools.cache
def _of_config():
  return _parameters_and_program(CONFIG)


def test_equal_configs_are_the_same_program():
  assert _parameters_and_program(dataclasses.replace(CONFIG)) == _of_config()


@pytest.mark.parametrize('field', [field.name for field in dataclasses.fields(CONFIG)])
def test_every_field_has_an_effect(field):
  assert getattr(CONFIG, field) != CHANGES[field]
  changed = dataclasses.replace(CONFIG, **{field: CHANGES[field]})
  assert _parameters_and_program(changed) != _of_config()


@pytest.mark.parametrize('changes, message', [
    ({'num_heads': 3}, r'width must be divisible by num_heads \(3\), got 16'),
    ({'num_heads': 0}, 'num_heads must be at least 1, got 0'),
    ({'activation': 'swiglu'}, "activation must be one of .*, got 'swiglu'"),
    ({'pooling': 'max'}, "pooling must be one of cls, mean, got 'max'"),
    ({'type_vocab_size': 0}, 'type_vocab_size must be at least 1, got 0'),
    ({'num_layers': 0}, 'num_layers must be at least 1, got 0'),
    ({'norm_epsilon': 0.0}, 'norm_epsilon must be positive'),
    ({'scan_unroll': 3}, 'num_layers must be divisible by scan_unroll'),
])
def test_a_field_out_of_range_is_an_error(changes, message):
  with pytest.raises(ValueError, match=message):
    encoder.make(dataclasses.replace(CONFIG, **changes))


def test_a_text_longer_than_the_position_table_is_an_error():
  with pytest.raises(ValueError, match=r'max_length must be at least .*\(13\), got 12'):
    encoder.make(CONFIG).embed(_params(), *_batch(width=13))


def test_the_published_size():
  params = jax.eval_shape(encoder.make(encoder.mxbai_embed_large()).init, jax.random.key(0))
  # BERT-large has 335.1M parameters, including its pooler of 1024 x 1025.
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 335_141_888 - 1024 * 1025
