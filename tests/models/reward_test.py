"""Reward models read the last real token, wherever the padding stands."""

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
  return reward.rewards(output, valid), value.values(output)


@pytest.mark.parametrize('side', ['left', 'right'])
def test_the_reward_is_that_of_the_row_alone(side):
  alone = [_rewards(PARAMS, [row], width=len(row), side='right')[0][0] for row in ROWS]
  # Three rows with three different rewards: reading a neighbour would be seen.
  assert np.abs(np.diff(alone)).min() > 1e-3
  for filler in (0, 10):
    rewards, _ = _rewards(PARAMS, ROWS, width=7, side=side, filler=filler)
    np.testing.assert_allclose(rewards, alone, atol=1e-5)


def test_the_place_is_the_last_valid_one_even_behind_a_hole():
  valid = np.array([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
  output = APPLY(PARAMS, np.array([[3, 1, 4, 1, 5], [9, 2, 0, 0, 0], [6, 0, 0, 0, 0]]),
                 positions=np.broadcast_to(np.arange(5), (3, 5)), valid=valid)
  expected = np.asarray(value.values(output))[[0, 1, 2], [2, 4, 4]]
  np.testing.assert_allclose(reward.rewards(output, valid), expected, rtol=1e-6)


def test_the_model_starts_at_zero():
  rewards, _ = _rewards(jax.jit(MODEL.init)(jax.random.key(0)), ROWS, width=7, side='right')
  np.testing.assert_array_equal(rewards, np.zeros(3))
