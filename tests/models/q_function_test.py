"""Q-functions: the values of taken tokens are a gather of the values of all tokens."""

import jax
import numpy as np

from jaxrl_llm.models import configs, q_function
from tests.models import witness

CONFIG = configs.TransformerConfig(
    vocab_size=11, num_layers=1, width=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_width=12,
    max_length=8,
)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 5)).astype(np.int32)


def _output(params, model):
  positions = np.broadcast_to(np.arange(5, dtype=np.int32), (3, 5))
  return jax.jit(model.apply)(params, TOKENS, positions=positions, valid=np.ones((3, 5), bool))


def test_every_value_starts_at_zero():
  model = q_function.make(CONFIG)
  output = _output(jax.jit(model.init)(jax.random.key(0)), model)
  np.testing.assert_array_equal(q_function.all_q_values(output), np.zeros((3, 5, 11)))
  np.testing.assert_array_equal(q_function.q_values(output, TOKENS), np.zeros((3, 5)))


def test_taken_tokens_are_a_gather_of_all_tokens():
  model = q_function.make(CONFIG)
  params = witness.draw_params(model)
  output = _output(params, model)
  expected = np.asarray(output.hidden) @ params['q_head']['kernel'].T + params['q_head']['bias']
  np.testing.assert_allclose(q_function.all_q_values(output), expected, atol=1e-5)
  taken = np.random.default_rng(1).integers(0, 11, (3, 5)).astype(np.int32)
  gathered = np.take_along_axis(expected, taken[..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(q_function.q_values(output, taken), gathered, atol=1e-5)
