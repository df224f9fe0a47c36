"""Norms, rotary positions, feed-forward layers and the sharding constraint."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.models import configs, layers
from tests.models import witness

CONFIG = configs.TransformerConfig(vocab_size=11, width=12, mlp_width=20)


@pytest.mark.parametrize('norm', ['rms', 'rms_plus_one', 'layer'])
def test_norm_equals_the_witness_and_computes_in_float32(norm):
  config = dataclasses.replace(CONFIG, norm=norm, norm_epsilon=0.1)
  x = 3 * np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32) + 1
  module = layers.Norm(config)
  params = witness.randomise(module.init(jax.random.key(0), x)['params'])
  expected = witness.normalise(config, params, x.astype(np.float64))
  np.testing.assert_allclose(module.apply({'params': params}, x), expected, atol=1e-5)
  # In bfloat16 only the result is rounded, not the sum of squares.
  low = module.apply({'params': params}, jnp.asarray(x, jnp.bfloat16))
  exact = witness.normalise(
      config, params, np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64))
  assert low.dtype == jnp.bfloat16
  np.testing.assert_allclose(low.astype(np.float32), exact, rtol=2**-8, atol=1e-6)


def test_norm_of_a_zero_vector_is_zero_and_has_a_finite_gradient():
  module = layers.Norm(CONFIG)
  params = module.init(jax.random.key(0), jnp.zeros((1, 12)))
  value, gradient = jax.value_and_grad(lambda x: module.apply(params, x).sum())(jnp.zeros((1, 12)))
  assert value == 0
  assert np.isfinite(gradient).all()


def _rotated(x, positions, **changes):
  config = dataclasses.replace(CONFIG, head_dim=x.shape[-1], rope_theta=100.0, **changes)
  frequencies = layers.rotary_frequencies(config)
  tables = layers.rotary_tables(jnp.asarray(positions, jnp.int32), frequencies)
  return np.asarray(layers.rotate(x, tables))


def test_rotary_positions_equal_the_witness():
  x = np.random.default_rng(0).standard_normal((2, 4, 3, 6)).astype(np.float32)
  positions = np.array([[0, 0, 1, 2], [5, 9, 30, 4]])
  out = _rotated(x, positions)
  for index in np.ndindex(2, 4, 3):
    expected = witness.rotate(x[index].astype(np.float64), positions[index[:2]], 100.0)
    np.testing.assert_allclose(out[index], expected, atol=1e-5)
  np.testing.assert_allclose(out[0, :2], x[0, :2], atol=1e-6)  # Position 0 turns nothing.


def test_rotation_preserves_norms_and_products_depend_only_on_the_distance():
  rng = np.random.default_rng(0)
  query, key = rng.standard_normal((2, 1, 6, 1, 8)).astype(np.float32)
  near, far = np.arange(6)[None], np.arange(6)[None] + 57
  np.testing.assert_allclose(
      np.linalg.norm(_rotated(query, far), axis=-1), np.linalg.norm(query, axis=-1), rtol=1e-5)
  products = lambda p: np.einsum('btnh,bsnh->ts', _rotated(query, p), _rotated(key, p))
  np.testing.assert_allclose(products(near), products(far), atol=1e-4)
  # The distance matters: without rotation the products differ.
  assert np.abs(products(near) - np.einsum('btnh,bsnh->ts', query, key)).max() > 0.1


@pytest.mark.parametrize('activation', [*configs.GATED, *configs.NOT_GATED])
@pytest.mark.parametrize('bias', [False, True])
def test_feed_forward_equals_the_witness(activation, bias):
  config = dataclasses.replace(CONFIG, activation=activation, mlp_bias=bias)
  x = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)
  module = layers.Mlp(config)
  params = witness.randomise(module.init(jax.random.key(0), x)['params'])
  assert ('gate' in params) == (activation in configs.GATED)
  assert ('bias' in params['up']) == bias
  expected = witness.feed_forward(config, jax.tree.map(np.float64, params), x.astype(np.float64))
  np.testing.assert_allclose(module.apply({'params': params}, x), expected, atol=1e-4)


def test_constrain_does_nothing_without_a_mesh():
  x = np.ones((4, 3))
  assert layers.constrain(x, layers.ROWS, 'tensor') is x


def test_constrain_skips_dimensions_that_are_not_divisible():
  mesh = jax.make_mesh(
      (2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 3)
  with jax.set_mesh(mesh):
    pin = jax.jit(lambda x: layers.constrain(x, layers.ROWS, 'tensor'))
    assert pin(np.ones((8, 6))).sharding.spec == jax.P(('data', 'fsdp'), 'tensor')
    assert pin(np.ones((8, 5))).sharding.spec == jax.P(('data', 'fsdp'))
    assert pin(np.ones((3, 6))).sharding.spec == jax.P(None, 'tensor')
