"""Masks, post-processing of responses, and reductions that masked slots cannot reach."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import types
from jaxrl_llm.rl import masking

PAD = 0
STOP = 2

# The four responses of R16, T = 5: stops early, never, at the last slot, at the first.
RESPONSES = jnp.array([[7, 2, 9, 9, 9], [7, 8, 9, 7, 8], [7, 8, 9, 7, 2], [2, 7, 7, 2, 7]])


def _rollouts(**changes):
  """P = 2 prompts of 3 slots, K = 2 samples of T = 2 slots."""
  fields = dict(
      prompts=jnp.array([[0, 5, 6], [7, 8, 9]], jnp.int32),
      prompt_lengths=jnp.array([2, 3], jnp.int32),
      tokens=jnp.array([[[11, 12], [13, 0]], [[14, 15], [16, 17]]], jnp.int32),
      lengths=jnp.array([[2, 1], [2, 2]], jnp.int32),
      mask=jnp.array([[[1, 1], [1, 0]], [[0, 1], [1, 1]]], jnp.float32),
      log_probs=jnp.zeros((2, 2, 2)),
      stop_reason=jnp.ones((2, 2), jnp.int8),
  )
  return types.Rollouts(**(fields | changes))


def test_R16_mask_ends_with_the_first_stop_id():
  result = masking.response_mask(RESPONSES, (STOP,))
  np.testing.assert_array_equal(
      result.mask, [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
  np.testing.assert_array_equal(result.lengths, [2, 5, 5, 1])
  np.testing.assert_array_equal(
      result.stop_reason, [types.STOPPED, types.TRUNCATED, types.STOPPED, types.STOPPED])
  assert (result.mask.dtype, result.lengths.dtype, result.stop_reason.dtype) == (
      jnp.float32, jnp.int32, jnp.int8)


def test_R16_truncation_keeps_the_stop_token():
  tokens = masking.truncate_after_stop(RESPONSES, stop_ids=(STOP,), pad_id=PAD)
  np.testing.assert_array_equal(
      tokens, [[7, 2, 0, 0, 0], [7, 8, 9, 7, 8], [7, 8, 9, 7, 2], [2, 0, 0, 0, 0]])


@pytest.mark.parametrize(
    'eos_check, expected', [('eos', [.5, -1., .5, .5]), ('pad', [.5, -1., -1., .5])])
def test_R16_missing_stop_replaces_the_score(eos_check, expected):
  # The rules differ on the third response, whose stop token fills the last slot.
  result = masking.response_mask(RESPONSES, (STOP,))
  scores = masking.replace_scores_without_stop(
      jnp.full(4, .5), result.lengths, result.stop_reason,
      penalty=-1.0, slots=5, eos_check=eos_check)
  np.testing.assert_array_equal(scores, expected)


def test_R16_padding_with_the_stop_id_changes_nothing():
  padded = masking.truncate_after_stop(RESPONSES, stop_ids=(STOP,), pad_id=STOP)
  before, after = (masking.response_mask(x, (STOP,)) for x in (RESPONSES, padded))
  jax.tree.map(np.testing.assert_array_equal, before, after)


def test_unknown_eos_check_is_one_line():
  with pytest.raises(ValueError, match="eos_check must be 'eos' or 'pad', got 'bos'"):
    masking.replace_scores_without_stop(
        jnp.ones(1), jnp.ones(1, int), jnp.ones(1, int), penalty=0.0, slots=2, eos_check='bos')


def test_R17_shaping():
  # 2.0 - 0.05 * (-12 - -10) = 2.1; and no shaping where the two policies agree.
  old, reference = jnp.array([-12.0, -10.0]), jnp.array([-10.0, -10.0])
  rewards = masking.shape_rewards(jnp.full(2, 2.0), old, reference, kl_coefficient=.05)
  np.testing.assert_allclose(rewards, [2.1, 2.0], rtol=1e-6)
  gradient = jax.grad(lambda x: masking.shape_rewards(
      jnp.ones(2), x, reference, kl_coefficient=.05).sum())(old)
  np.testing.assert_array_equal(gradient, [0, 0])


@pytest.mark.parametrize('stop_ids', [(), (3,), (3, 5), (5, 3, 1)])
def test_response_mask_against_a_loop(stop_ids):
  tokens = np.random.default_rng(0).integers(0, 9, (4, 6, 7))
  result = jax.jit(masking.response_mask, static_argnums=1)(tokens, stop_ids)
  for index in np.ndindex(4, 6):
    length = 7
    for slot in range(7):
      if tokens[index][slot] in stop_ids:
        length = slot + 1
        break
    stopped = tokens[index][length - 1] in stop_ids
    assert result.lengths[index] == length
    assert result.stop_reason[index] == (types.STOPPED if stopped else types.TRUNCATED)
    np.testing.assert_array_equal(result.mask[index], [1.0] * length + [0.0] * (7 - length))


@pytest.mark.parametrize('poison', [np.nan, np.inf, -np.inf])
def test_masked_values_reach_neither_sum_nor_gradient(poison):
  values = jnp.array([[1.0, 2.0, poison], [3.0, poison, poison]])
  mask = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
  np.testing.assert_allclose(masking.masked_sum(values, mask, axis=-1), [3.0, 3.0])
  value, gradient = jax.value_and_grad(lambda x: masking.masked_mean(x, mask).value()**2)(values)
  # The mean m is 6 / 3, and dm^2/dx = 2 m / 3.
  assert value == 4.0
  np.testing.assert_allclose(gradient, mask * 4 / 3, rtol=1e-6)


def test_sums_and_means_take_weights_and_bool():
  values = jnp.array([1.0, 2.0, 4.0])
  weights, flags = jnp.array([.5, 0.0, 2.0]), jnp.array([True, False, True])
  assert masking.masked_sum(values, weights) == 8.5
  assert masking.masked_sum(values, flags) == 5.0
  # A weight of 1/2 counts half, in the divisor too: 8.5 / 2.5.
  mean = masking.masked_mean(values, weights)
  assert mean.weight == 2.5 and mean.value() == pytest.approx(3.4)
  assert masking.masked_mean(values, flags).value() == 2.5


def test_masked_sum_of_bfloat16_is_float32():
  # 1024 times 1 + 1/128 is 1032; a sum in bfloat16 would stop growing at 256.
  values = jnp.full(1024, 1 + 1 / 128, jnp.bfloat16)
  total = masking.masked_sum(values, jnp.ones(1024))
  assert total.dtype == jnp.float32 and total == 1032.0


def test_masked_mean_of_parts_is_the_mean_of_the_whole():
  # Parts of unequal weight: the mean of their means, 2.75, would be wrong.
  values = jnp.array([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]])
  mask = jnp.array([[1, 1, 0], [1, 0, 0]])
  whole = masking.masked_mean(values, mask)
  parts = masking.masked_mean(values[:1], mask[:1]) + masking.masked_mean(values[1:], mask[1:])
  assert whole.value() == pytest.approx(7 / 3) and parts.value() == pytest.approx(7 / 3)
  np.testing.assert_allclose(masking.masked_mean(values, mask, axis=-1).value(), [1.5, 4.0])
  assert masking.masked_mean(values, jnp.zeros_like(values)).value() == 0.0


def test_left_pad_positions():
  positions, valid = masking.left_pad_positions(jnp.array([2, 4, 0]), 4)
  np.testing.assert_array_equal(positions, [[0, 0, 0, 1], [0, 1, 2, 3], [0, 0, 0, 0]])
  np.testing.assert_array_equal(valid, np.array([[0, 0, 1, 1], [1, 1, 1, 1], [0] * 4], bool))
  assert positions.dtype == jnp.int32


def test_concatenate_prompt_response():
  tokens, positions, valid = masking.concatenate_prompt_response(_rollouts())
  np.testing.assert_array_equal(
      tokens, [[0, 5, 6, 11, 12], [0, 5, 6, 13, 0], [7, 8, 9, 14, 15], [7, 8, 9, 16, 17]])
  np.testing.assert_array_equal(
      positions, [[0, 0, 1, 2, 3], [0, 0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]])
  # Row 2 has a slot that is not the policy's choice (mask 0), and is read all the same.
  np.testing.assert_array_equal(
      valid, np.array([[0, 1, 1, 1, 1], [0, 1, 1, 1, 0], [1] * 5, [1] * 5], bool))
  assert tokens.dtype == positions.dtype == jnp.int32


def test_positions_and_validity_do_not_depend_on_the_padding_id():
  rollouts = _rollouts()
  other = dataclasses.replace(
      rollouts, prompts=rollouts.prompts.at[0, 0].set(5), tokens=rollouts.tokens.at[0, 1, 1].set(9))
  first, second = (masking.concatenate_prompt_response(x) for x in (rollouts, other))
  np.testing.assert_array_equal(first.positions, second.positions)
  np.testing.assert_array_equal(first.valid, second.valid)


@pytest.mark.parametrize('value', [0, -1.0, float('nan'), float('inf')])
def test_check_positive(value):
  with pytest.raises(ValueError, match='beta must be positive and finite, got'):
    masking.check_positive('beta', value)
