"""Weighted votes: their invariances, their special cases, and samples without an answer."""

import collections

import numpy as np
import pytest

from jaxrl_llm.evaluation import best_of_n, majority, voting


def _draw(seed, n=7, answers=4):
  random = np.random.default_rng(seed)
  groups = random.integers(0, answers, (20, n))
  right = random.integers(0, 2, (20, answers))
  return groups, np.take_along_axis(right, groups, axis=1), random.random((20, n))


def test_C41_the_plain_definition():
  for seed in range(10):
    groups, rewards, weights = _draw(seed)
    for row, (group, reward, weight) in enumerate(zip(groups, rewards, weights)):
      totals = collections.defaultdict(float)
      for a, w in zip(group, weight):
        totals[a] += w
      winner = max(totals, key=totals.get)
      expected = reward[group == winner][0]
      assert voting.weighted_vote(groups, rewards, weights)[row] == expected


def test_C41_scale_order_and_special_cases():
  groups, rewards, weights = _draw(1)
  expected = voting.weighted_vote(groups, rewards, weights)
  np.testing.assert_array_equal(voting.weighted_vote(groups, rewards, 1e-6 * weights), expected)
  order = np.random.default_rng(0).permutation(7)
  np.testing.assert_array_equal(
      voting.weighted_vote(groups[:, order], rewards[:, order], weights[:, order]), expected)

  # Equal weights are a majority vote over all samples, ties included.
  np.testing.assert_allclose(
      voting.weighted_vote(groups, rewards, np.full(groups.shape, 0.3)),
      majority.majority_at_k(groups, rewards, k=7))
  np.testing.assert_allclose(
      voting.weighted_vote(groups, rewards), majority.majority_at_k(groups, rewards, k=7))
  one = slice(0, 1)
  np.testing.assert_array_equal(
      voting.weighted_vote(groups[:, one], rewards[:, one], weights[:, one]), rewards[:, 0])

  # One weight above the sum of all others is best-of-n.
  dominant = np.where(np.arange(7) == weights.argmax(axis=1)[:, None], 100, weights)
  best = best_of_n.choose(weights)
  np.testing.assert_array_equal(
      voting.weighted_vote(groups, rewards, dominant), rewards[np.arange(20), best])


def test_C41_ties_and_empty_answers():
  none = majority.ABSTAINS
  groups, rewards = np.array([[0, 0, 1, 1]]), np.array([[1, 1, 0, 0]])
  assert voting.weighted_vote(groups, rewards, np.array([[1, 2, 1.5, 1.5]]))[0] == 0.5
  assert voting.weighted_vote(groups, rewards, np.array([[1, 2, 1.5, 1.50001]]))[0] == 0.5
  assert voting.weighted_vote(groups, rewards, np.array([[1, 2, 1.5, 1.6]]))[0] == 0

  # Two empty answers are not one answer of weight 2.
  groups, rewards = np.array([[none, none, 0]]), np.array([[0, 0, 1]])
  assert voting.weighted_vote(groups, rewards, np.array([[1, 1, 1.5]]))[0] == 1
  heavy = np.array([[2, 1, 1.5]])
  assert voting.weighted_vote(groups, rewards, heavy)[0] == 0
  assert voting.weighted_vote(groups, rewards, heavy, empty='excluded')[0] == 1
  assert voting.weighted_vote(np.full((1, 3), none), rewards, empty='excluded')[0] == 0
  # All of them alone: each is as likely to win.
  assert voting.weighted_vote(np.array([[none, 0]]), np.array([[0, 1]]))[0] == 0.5


def test_C41_first_members_and_connected_answers_agree_if_equivalence_is_transitive():
  answers = ['1/2', '3', '0.5', '6/2', '', '0.50', '3.0']
  value = {'1/2': 0.5, '0.5': 0.5, '0.50': 0.5, '3': 3, '6/2': 3, '3.0': 3}
  groups = majority.group_answers(answers, lambda a, b: value[a] == value[b])
  assert groups == [0, 1, 0, 1, majority.ABSTAINS, 0, 1]


@pytest.mark.parametrize('weights, options, message', [
    ([[1.0, -1.0]], {}, 'weights must be non-negative and finite'),
    ([[1.0, np.nan]], {}, 'weights must be non-negative and finite'),
    ([[1.0]], {}, r'one shape \[P, n\], got \(1, 2\), \(1, 2\) and \(1, 1\)'),
    ([[1.0, 1.0]], {'empty': 'wrong'}, "empty must be one of own, excluded, got 'wrong'")])
def test_bad_arguments_are_one_line(weights, options, message):
  with pytest.raises(ValueError, match=message):
    voting.weighted_vote(np.array([[0, 1]]), np.array([[0, 1]]), np.array(weights), **options)
