"""Reward models read the last real token, on either side of the padding."""

import jax
import numpy as np
import pytest

from jaxrl_llm.models import configs, reward, value
from tests.models import witness

CONFIG = configs.TransformerConfig(
    vocab_size=11, num_layers=1, width=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_width=12,
    max_length=8,
)
ROWS = [[3, 1, 4, 1, 5], [9, 2], [6]]
MODEL = reward.make(CONFIG)
APPLY = jax.jit(MODEL.apply)
PARAMS = witness.draw_params(MODEL)


def _rewards(params, rows, *, width, side, filler=0):
  tokens = np.full((len(rows), width), filler, np.int32)
  valid = np.zeros(tokens.shape, bool)
  for i, row in enumerate(rows):
    where = slice(0, len(row)) if side == 'right' else slice(width - len(row), width)
    tokens[i, where], valid[i, where] = row, True
  positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0).astype(np.int32)
  output = APPLY(params, tokens, positions=positions, valid=valid)
  return reward.rewards(output, valid)


@pytest.mark.parametrize('side', ['left', 'right'])
def test_the_reward_is_that_of_the_row_alone(side):
  head = jax.tree.map(np.asarray, PARAMS['value_head'])
  last = [witness.forward(CONFIG, PARAMS, np.array(row))[0][-1] for row in ROWS]
  alone = [hidden @ head['kernel'][0] + head['bias'][0] for hidden in last]
  # Three rows with three different rewards: reading a neighbour would be seen.
  assert np.abs(np.diff(alone)).min() > 1e-3
  for filler in (0, 10):
    rewards = _rewards(PARAMS, ROWS, width=7, side=side, filler=filler)
    np.testing.assert_allclose(rewards, alone, atol=1e-5)


def test_the_last_valid_position_is_read_even_after_a_hole():
  valid = np.array([[1, 0, 1, 0, 0, 0, 0], [0] * 6 + [1], [0] * 7], bool)
  tokens = np.arange(21, dtype=np.int32).reshape(3, 7) % 11
  positions = np.broadcast_to(np.arange(7, dtype=np.int32), (3, 7))
  output = APPLY(PARAMS, tokens, positions=positions, valid=valid)
  expected = np.asarray(value.values(output))[[0, 1, 2], [2, 6, 6]]
  np.testing.assert_allclose(reward.rewards(output, valid), expected, rtol=1e-6)
