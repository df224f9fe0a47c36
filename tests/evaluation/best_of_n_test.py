"""Best of n against enumeration of all subsets, and the exact distribution of a discrete policy."""

import itertools

import numpy as np
import pytest

from jaxrl_llm.evaluation import best_of_n, pass_at_k


def best(subset):
  """The plain definition: [(score, value)] -> the mean value over the tied best."""
  top = max(score for score, _ in subset)
  return np.mean([value for score, value in subset if score == top])


@pytest.mark.parametrize('n', [1, 2, 5, 8])
def test_equals_the_mean_over_all_subsets(n):
  generator = np.random.default_rng(n)
  for ties in (False, True):
    scores = generator.integers(0, 3, (6, n)) if ties else generator.normal(size=(6, n))
    values = generator.normal(size=(6, n))
    result = best_of_n.expected_best(scores, values)
    for row, k in itertools.product(range(6), range(1, n + 1)):
      subsets = itertools.combinations(list(zip(scores[row], values[row])), k)
      assert result[row, k - 1] == pytest.approx(np.mean([best(s) for s in subsets]), abs=1e-12)


def test_hand_worked():
  # Values 5, 1, 3 in the order of their scores. Of the pairs two have the best score (3), one the
  # middle one (1): (3 + 3 + 1) / 3. Over-optimisation: the value falls from 3 to 7/3, then rises.
  result = best_of_n.expected_best([[0.1, 0.2, 0.3]], [[5.0, 1.0, 3.0]])
  np.testing.assert_allclose(result, [[3, 7 / 3, 3]])


def test_the_ends_of_the_curve():
  generator = np.random.default_rng(0)
  scores, values = generator.normal(size=(2, 5, 9))
  result = best_of_n.expected_best(scores, values)
  np.testing.assert_allclose(result[:, 0], values.mean(axis=1))
  np.testing.assert_allclose(
      result[:, -1], np.take_along_axis(values, best_of_n.choose(scores)[:, None], 1)[:, 0])
  assert np.all(np.diff(best_of_n.expected_best(scores, scores)) > 0)  # By its own score it rises.


def test_an_oracle_on_binary_rewards_is_pass_at_k():
  rewards = (np.arange(8) < np.arange(9)[:, None]).astype(float)
  result = best_of_n.expected_best(rewards, rewards)
  for k in range(1, 9):
    expected = pass_at_k.pass_at_k(8, rewards.sum(axis=1).astype(int), k=k)
    np.testing.assert_allclose(result[:, k - 1], expected, atol=1e-12)


def test_is_unbiased_over_draws():
  """Scores are noisy values; the mean over prompts from n = 6 is that of 3 fresh samples."""
  generator = np.random.default_rng(0)
  values = generator.normal(size=(2, 40_000, 6))
  scores = values + generator.normal(size=values.shape)
  curve = best_of_n.expected_best(scores[0], values[0]).mean(axis=0)
  fresh = best_of_n.choose(scores[1, :, :3])
  plain = np.take_along_axis(values[1, :, :3], fresh[:, None], 1).mean()
  assert curve[2] == pytest.approx(plain, abs=0.02)
  assert curve[5] > curve[2] + 0.1 > curve[0] + 0.3


def test_large_counts_stay_exact():
  # Scores 1 to 2000 as their own values: the largest of k is expected at k (n + 1) / (k + 1).
  n = 2000
  result = best_of_n.expected_best(*2 * [np.arange(1.0, n + 1)[None]])[0]
  k = np.arange(1, n + 1)
  np.testing.assert_allclose(result, k * (n + 1) / (k + 1), rtol=1e-11)


def test_choose():
  scores = [[1.0, 3.0, 2.0], [2.0, 2.0, 1.0], [np.nan, -np.inf, -5.0], [np.nan] * 3]
  np.testing.assert_array_equal(best_of_n.choose(scores), [1, 0, 2, 0])


@pytest.mark.parametrize('n', [1, 2, 4, 16])
def test_C36_the_kl_of_the_exact_distribution_is_below_the_bound(n):
  # P(y) = F(y)^n − F(y−)^n over outcomes in the order of their scores.
  probabilities = np.random.default_rng(0).dirichlet(np.ones(200))
  above = np.cumsum(probabilities)
  distribution = above**n - (above - probabilities)**n
  kl = np.sum(distribution * np.log(distribution / probabilities))
  bound = best_of_n.kl_bound(n)
  assert bound - 0.01 < kl <= bound + 1e-12
  # Reached by many equally likely outcomes; far off where one is likely.
  distribution = np.diff(np.linspace(0, 1, 100_001)**n)
  assert np.sum(distribution * np.log(distribution * 100_000)) == pytest.approx(bound, abs=1e-3)
  sure = np.diff(np.array([0.0, 0.1, 1.0])**n)
  if n > 1:
    assert np.sum(sure * np.log(sure / [0.1, 0.9])) < 0.6 * bound


def test_kl_bound_hand_worked():
  # ln 1 − 0, ln 2 − 1/2, ln 4 − 3/4, ln 16 − 15/16.
  np.testing.assert_allclose(
      best_of_n.kl_bound(np.array([1, 2, 4, 16])), [0, 0.193147, 0.636294, 1.835089], atol=5e-7)


@pytest.mark.parametrize(('call', 'line'), [
    (lambda: best_of_n.kl_bound(0), 'n must be at least 1, got 0'),
    (lambda: best_of_n.choose(np.zeros(3)), r'scores must be \[P, n\] .* got \(3,\)'),
    (lambda: best_of_n.choose(np.zeros((3, 0))), r'n of at least 1, got \(3, 0\)'),
    (lambda: best_of_n.expected_best(np.zeros((2, 3)), np.zeros((2, 4))), 'one shape'),
    (lambda: best_of_n.expected_best([[np.nan, 1]], [[1, 1]]), 'must not be NaN, got 1 of 2'),
])
def test_bad_input_is_one_line(call, line):
  with pytest.raises(ValueError, match=line) as error:
    call()
  assert '\n' not in str(error.value)
