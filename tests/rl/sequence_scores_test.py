"""Scalars of whole responses and of their tokens, against each row run alone, without padding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.models import configs, reward
from jaxrl_llm.rl import masking, sequence_scores
from jaxrl_llm.types import Rollouts
from tests.models import witness

CONFIG = configs.TransformerConfig(
    vocab_size=7, num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=24,
    max_length=16,
)
MODEL = reward.make(CONFIG)
STOP = PAD = 0
SCORES = jax.jit(functools.partial(sequence_scores.sequence_scores, MODEL))
VALUES = jax.jit(functools.partial(sequence_scores.token_values, MODEL))


@functools.cache
def _params():
  return witness.draw_params(MODEL)


@functools.cache
def _rollouts():
  """Three prompts of 4, 1 and 2 tokens; responses that stop first, in between, last, never."""
  tokens = jnp.array([
      [[STOP, PAD, PAD], [3, 5, STOP]], [[1, 2, 4], [6, STOP, PAD]], [[2, 2, STOP], [STOP, 5, 5]]])
  mask, lengths, reasons = masking.response_mask(tokens, (STOP,))
  prompts = np.random.default_rng(0).integers(1, 7, (3, 4))
  return Rollouts(jnp.asarray(prompts, jnp.int32), jnp.array([4, 1, 2]), tokens, lengths, mask,
                  jnp.zeros(mask.shape), reasons)


@functools.cache
def _alone():
  """The scalar after each token of a row: [P][K] arrays of prompt and response together."""
  head = jax.tree.map(np.asarray, _params()['value_head'])

  def scalars(row):
    hidden = witness.forward(CONFIG, _params(), np.array(row))[0]
    return np.asarray(hidden @ head['kernel'][0] + head['bias'][0])

  rollouts = jax.tree.map(np.asarray, _rollouts())
  return [[scalars([*prompt[4 - n:], *tokens[:m]]) for tokens, m in zip(group, lengths)]
          for prompt, n, group, lengths in zip(
              rollouts.prompts, rollouts.prompt_lengths, rollouts.tokens, rollouts.lengths)]


def test_the_score_is_read_at_the_last_token():
  expected = np.array([[row[-1] for row in group] for group in _alone()])
  scores = SCORES(_params(), _rollouts())
  assert scores.shape == (3, 2) and scores.dtype == jnp.float32
  np.testing.assert_allclose(scores, expected, atol=1e-5)
  # A slot to the left or to the right would be seen.
  before = np.array([[row[-2] for row in group] for group in _alone()])
  assert np.abs(expected - before).min() > 1e-3


def test_values_are_those_before_each_token():
  values = VALUES(_params(), _rollouts())
  assert values.dtype == jnp.float32
  for p, length in enumerate(_rollouts().prompt_lengths):
    for k, row in enumerate(_alone()[p]):
      expected = np.zeros(3)
      before = row[int(length) - 1 : -1]
      expected[: len(before)] = before
      np.testing.assert_allclose(values[p, k], expected, atol=1e-5)


def test_a_response_without_any_token_is_read_at_the_end_of_its_prompt():
  rollouts = dataclasses.replace(
      _rollouts(), lengths=jnp.zeros((3, 2), jnp.int32), mask=jnp.zeros((3, 2, 3)))
  expected = [[group[0][n - 1]] * 2 for group, n in zip(_alone(), (4, 1, 2))]
  np.testing.assert_allclose(SCORES(_params(), rollouts), expected, atol=1e-5)
  np.testing.assert_array_equal(VALUES(_params(), rollouts), 0)


def test_a_turn_that_the_policy_did_not_choose_is_read_but_has_no_value():
  # The first of three tokens is a user's: it counts as length, not in the mask.
  mask = jnp.where(jnp.arange(3) == 0, 0.0, _rollouts().mask)
  rollouts = dataclasses.replace(_rollouts(), mask=mask)
  np.testing.assert_array_equal(SCORES(_params(), rollouts), SCORES(_params(), _rollouts()))
  np.testing.assert_array_equal(
      VALUES(_params(), rollouts), VALUES(_params(), _rollouts()) * mask)


def test_padding_is_ignored_in_value_and_gradient():
  mask = _rollouts().mask
  front = jnp.arange(4) < 4 - _rollouts().prompt_lengths[:, None]
  other = dataclasses.replace(
      _rollouts(), tokens=jnp.where(mask > 0, _rollouts().tokens, 5),
      prompts=jnp.where(front, 6 - _rollouts().prompts, _rollouts().prompts))

  @jax.jit
  @jax.value_and_grad
  def total(params, rollouts):
    return (jnp.sin(sequence_scores.sequence_scores(MODEL, params, rollouts)).sum()
            + jnp.sin(sequence_scores.token_values(MODEL, params, rollouts)).sum())

  expected, got = total(_params(), _rollouts()), total(_params(), other)
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), got, expected)
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[1])) > .1


def test_the_head_is_read_in_float32():
  model = reward.make(dataclasses.replace(CONFIG, compute_dtype='bfloat16'))
  sequences = masking.concatenate_prompt_response(_rollouts())

  @jax.jit
  def both(params):
    output = model.apply(
        params, sequences.tokens, positions=sequences.positions, valid=sequences.valid)
    return output, sequence_scores.sequence_scores(model, params, _rollouts())

  output, scores = both(_params())
  assert output.hidden.dtype == jnp.bfloat16
  hidden = np.asarray(output.hidden, np.float64)[np.arange(6), 3 + _rollouts().lengths.reshape(-1)]
  expected = hidden @ np.asarray(output.head.kernel[0]) + output.head.bias
  np.testing.assert_allclose(scores.reshape(-1), expected, atol=1e-5)


def test_a_head_of_several_rows_is_an_error():
  model = reward.make(CONFIG, num_outputs=3)
  with pytest.raises(AssertionError):
    jax.eval_shape(functools.partial(sequence_scores.sequence_scores, model),
                   jax.eval_shape(model.init, jax.random.key(0)), _rollouts())
