"""Value functions: shapes, a zero start, and gradients that reach the trunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.models import configs, value
from tests.models import witness

CONFIG = configs.TransformerConfig(
    vocab_size=11, num_layers=1, width=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_width=12,
    max_length=8,
)


def _apply(model, params, seed=0):
  tokens = np.random.default_rng(seed).integers(0, 11, (3, 5)).astype(np.int32)
  positions = np.broadcast_to(np.arange(5, dtype=np.int32), (3, 5))
  return jax.jit(model.apply)(params, tokens, positions=positions, valid=np.ones((3, 5), bool))


def test_shapes_and_a_start_at_zero():
  model = value.make(CONFIG, num_outputs=4)
  output = _apply(model, jax.jit(model.init)(jax.random.key(0)))
  assert value.outputs(output).shape == (3, 5, 4)
  assert value.values(output).shape == (3, 5)
  np.testing.assert_array_equal(value.outputs(output), 0)
  assert np.abs(output.hidden).max() > 0.1  # The trunk itself does not start at zero.


def test_outputs_are_the_head_of_the_hidden_states_in_float32():
  model = value.make(CONFIG, num_outputs=3)
  params = witness.draw_params(model)
  output = _apply(model, params)
  expected = np.asarray(output.hidden) @ params['value_head']['kernel'].T
  expected += params['value_head']['bias']
  np.testing.assert_allclose(value.outputs(output), expected, atol=1e-5)
  np.testing.assert_allclose(value.values(output), expected[..., 0], atol=1e-5)
  assert value.outputs(output).dtype == jnp.float32


def test_training_moves_the_values_away_from_zero():
  # With a zero kernel the first step moves the head alone; the second reaches the trunk.
  model = value.make(CONFIG)
  params = jax.jit(model.init)(jax.random.key(0))
  loss = lambda p: jnp.mean(jnp.square(value.values(_apply(model, p)) - 1.0))
  gradient = jax.jit(jax.grad(loss))
  for _ in range(2):
    gradients = gradient(params)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)
  assert loss(params) < 0.9
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients['layers']))


def test_num_outputs_below_one_is_an_error():
  with pytest.raises(ValueError, match='num_outputs must be at least 1, got 0'):
    value.make(CONFIG, num_outputs=0)
