"""Q-functions: outputs for every next token."""

import jax
import numpy as np
import pytest

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
  np.testing.assert_array_equal(q_function.all_outputs(output), np.zeros((3, 5, 11, 1)))


@pytest.mark.parametrize('num_outputs', [1, 3])
def test_the_rows_of_a_token_are_together(num_outputs):
  model = q_function.make(CONFIG, num_outputs=num_outputs)
  params = witness.draw_params(model)
  output = _output(params, model)
  flat = np.asarray(output.hidden) @ params['q_head']['kernel'].T + params['q_head']['bias']
  actual = q_function.all_outputs(output, num_outputs=num_outputs)
  for token in range(11):
    rows = slice(token * num_outputs, (token + 1) * num_outputs)
    np.testing.assert_allclose(actual[:, :, token], flat[..., rows], atol=1e-5)


def test_a_head_without_outputs_is_refused():
  with pytest.raises(ValueError, match='num_outputs must be at least 1, got 0'):
    q_function.make(CONFIG, num_outputs=0)
