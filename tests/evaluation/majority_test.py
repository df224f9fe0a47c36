"""maj@k against a vote in every subset, and which answers are the same."""

import collections
import itertools

import numpy as np
import pytest

from jaxrl_llm.evaluation import majority, pass_at_k
from jaxrl_llm.rewards import math_answer


def vote(samples):
  """The plain definition: [(group, reward)] -> the mean reward over the tied winners."""
  counts = collections.Counter(group for group, _ in samples if group != majority.ABSTAINS)
  if not counts:
    return 0.0
  winners = [group for group, count in counts.items() if count == max(counts.values())]
  of = lambda winner: np.mean([reward for group, reward in samples if group == winner])
  return float(np.mean([of(winner) for winner in winners]))


@pytest.mark.parametrize('n', [1, 2, 5, 8])
def test_equals_the_mean_vote_over_all_subsets(n):
  generator = np.random.default_rng(n)
  for _ in range(25):
    groups = generator.integers(-1, 4, n)
    values = generator.integers(0, 2, 5)  # Of each group; an answer is right or wrong.
    rewards = np.where(groups == majority.ABSTAINS, 0, values[groups])
    for k in range(1, n + 1):
      votes = [vote(subset) for subset in itertools.combinations(list(zip(groups, rewards)), k)]
      result = majority.majority_at_k(groups[None], rewards[None], k=k)
      assert result[0] == pytest.approx(np.mean(votes), abs=1e-12), (groups, rewards, k)


def test_hand_worked():
  # Answers A A B, A right. k = 2: AA wins; AB and AB are tied: (1 + 1/2 + 1/2) / 3.
  groups, rewards = np.array([[0, 0, 1]]), np.array([[1, 1, 0]])
  assert majority.majority_at_k(groups, rewards, k=2)[0] == pytest.approx(2 / 3)
  assert majority.majority_at_k(groups, rewards, k=3)[0] == 1
  # Right but outvoted; then tied by the one that abstains.
  assert majority.majority_at_k(np.array([[0, 1, 1]]), np.array([[1, 0, 0]]), k=3)[0] == 0
  assert majority.majority_at_k(np.array([[0, 1, -1]]), np.array([[1, 0, 0]]), k=3)[0] == 0.5
  assert majority.majority_at_k(np.array([[-1, -1]]), np.array([[0, 0]]), k=2)[0] == 0


def test_one_vote_is_pass_at_1_also_where_a_group_is_graded_unevenly():
  groups = np.array([[0, 0, 0, 1], [0, 1, 2, -1]])
  rewards = np.array([[1, 0, 1, 0], [0, 1, 1, 0]])
  np.testing.assert_allclose(
      majority.majority_at_k(groups, rewards, k=1),
      pass_at_k.pass_at_k(4, rewards.sum(axis=1), k=1))


def test_is_unbiased_over_draws():
  """From n = 7 samples the mean over problems is that of votes of k = 3 fresh samples."""
  generator = np.random.default_rng(0)
  draw = lambda n: generator.choice(4, size=(10_000, n), p=[0.4, 0.3, 0.2, 0.1])
  many, fresh = draw(7), draw(3)
  estimate = majority.majority_at_k(many, many == 0, k=3).mean()
  plain = majority.majority_at_k(fresh, fresh == 0, k=3).mean()
  assert estimate == pytest.approx(plain, abs=0.02)
  assert majority.majority_at_k(many, many == 0, k=7).mean() > estimate + 0.03


def test_many_samples_stay_exact():
  # Every subset of 512 out of 1000 has more of the 900; and a fair draw is a tie on average.
  groups = np.repeat([[0, 1]], [900, 100], axis=1)
  assert majority.majority_at_k(groups, groups == 0, k=512)[0] == pytest.approx(1, abs=1e-12)
  groups = np.repeat([[0, 1]], 500, axis=1)
  assert majority.majority_at_k(groups, groups == 0, k=512)[0] == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(('shape', 'k', 'line'), [
    ((1, 4), 0, r'k must be in \[1, 4\] .* got 0'), ((1, 4), 5, 'got 5'),
    ((4,), 1, r'one shape \[P, n\]'), ((1, 1001), 1, 'at most 1000 samples, got 1001'),
])
def test_out_of_range_is_an_error(shape, k, line):
  with pytest.raises(ValueError, match=line):
    majority.majority_at_k(np.zeros(shape, int), np.zeros(shape), k=k)


def test_answers_are_grouped_by_text_or_by_what_they_say():
  answers = ['0.5', r'\frac{1}{2}', None, '1/2', '2', '', '0.5', '2.0']
  assert majority.group_answers(answers) == [0, 1, -1, 2, 3, -1, 0, 4]
  assert majority.group_answers(answers, math_answer.equal) == [0, 0, -1, 0, 1, -1, 0, 1]


def test_an_answer_joins_the_first_group_that_it_agrees_with():
  near = lambda a, b: abs(int(a) - int(b)) <= 1  # Not transitive.
  assert majority.group_answers(['1', '2', '3'], near) == [0, 0, 1]
  assert majority.group_answers(['2', '1', '3'], near) == [0, 0, 0]
