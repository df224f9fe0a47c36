"""Rewards of a reward model: batches of one shape, cut rows, and preferences from scores."""

import numpy as np
import pytest

from jaxrl_llm.rewards import model_reward


class _Model:
  """Scores a row by its last id, and records its arguments."""

  def __init__(self):
    self.given = []

  def __call__(self, tokens, lengths):
    self.given.append((tokens.copy(), lengths.copy()))
    return tokens[np.arange(len(tokens)), lengths - 1]


def _encode(prompts, responses, truncated, examples):
  assert len(prompts) == len(responses) == len(truncated) == len(examples)
  return [[*map(ord, prompt + response)] for prompt, response in zip(prompts, responses)]


def _score(responses, model=None, **options):
  options = {'batch_size': 2, 'max_tokens': 4, **options}
  reward = model_reward.make(model or _Model(), _encode, **options)
  count = len(responses)
  return reward(['p'] * count, responses, np.zeros(count, bool), [{}] * count)


def test_every_batch_has_one_shape_and_padding_is_not_read():
  model = _Model()
  scores = _score(['a', 'bc', 'def'], model, pad_id=7)
  np.testing.assert_array_equal(scores, [ord('a'), ord('c'), ord('f')])
  assert scores.dtype == np.float32
  assert [tokens.shape for tokens, _ in model.given] == [(2, 4), (2, 4)]
  np.testing.assert_array_equal(model.given[0][0], [[112, 97, 7, 7], [112, 98, 99, 7]])
  np.testing.assert_array_equal(model.given[1][1], [4, 1])
  assert _score([]).shape == (0,)


def test_long_rows_are_cut_on_the_given_side():
  for overlong, read in (('left', 'bcde'), ('right', 'pabc')):
    model = _Model()
    _score(['abcde'], model, overlong=overlong)
    assert ''.join(map(chr, model.given[0][0][0])) == read
  with pytest.raises(ValueError, match='at most 4 tokens for the reward model, got 6'):
    _score(['abcde'], overlong='error')


def test_a_nan_score_is_returned_and_a_wrong_shape_is_an_error():
  nan = lambda tokens, lengths: np.array([np.nan, 1.0])
  np.testing.assert_array_equal(_score(['a', 'b'], nan), np.array([np.nan, 1.0], np.float32))
  with pytest.raises(ValueError, match=r'must return 2 scores, got shape \(3,\)'):
    _score(['a'], lambda tokens, lengths: np.zeros(3))
  empty = model_reward.make(_Model(), lambda *arguments: [[]], batch_size=1, max_tokens=4)
  with pytest.raises(ValueError, match='at least one id per response, got none'):
    empty(['p'], ['r'], np.zeros(1, bool), [{}])


@pytest.mark.parametrize('options, message', [
    ({'batch_size': 0}, 'batch_size must be at least 1, got 0'),
    ({'max_tokens': 0}, 'max_tokens must be at least 1, got 0'),
    ({'overlong': 'drop'}, "overlong must be one of left, right, error, got 'drop'"),
])
def test_bad_arguments(options, message):
  with pytest.raises(ValueError, match=message):
    _score(['a'], **options)


def test_preferences_by_hand():
  # 2 σ(ln 3) − 1 = 1/2.
  result = model_reward.preferences(np.array([[np.log(3), 0.0]]), np.array([[0.0, np.log(3)]]))
  np.testing.assert_allclose(result, [[[0.5, 0.0], [0.0, -0.5]]], atol=1e-7)


def test_preferences_are_antisymmetric_and_bounded():
  scores = np.random.default_rng(0).normal(scale=20, size=(5, 4)).astype(np.float32)
  result = model_reward.preferences(scores, scores)
  np.testing.assert_array_equal(result, -np.swapaxes(result, 1, 2))
  assert np.abs(result).max() <= 1
  assert np.isnan(model_reward.preferences(np.array([[np.nan]]), np.zeros((1, 2)))).all()
  with pytest.raises(ValueError, match=r'got \(5, 4\) and \(4, 4\)'):
    model_reward.preferences(scores, scores[1:])


@pytest.mark.parametrize('failed', [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_gives_nan(failed):
  result = model_reward.preferences(np.array([[failed, 1.0]]), np.array([[0.0, 1.0]]))
  assert np.isnan(result[0, 0]).all()
  np.testing.assert_allclose(result[0, 1], [np.tanh(0.5), 0.0], rtol=1e-6)
  result = model_reward.preferences(np.array([[0.0, failed]]), np.array([[failed, 1.0]]))
  np.testing.assert_array_equal(np.isnan(result[0]), [[True, False], [True, True]])
