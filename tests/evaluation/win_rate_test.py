"""Win rates by hand."""

import numpy as np
import pytest

from jaxrl_llm.evaluation import win_rate


def test_hand_worked():
  # Won, lost, tied, won: outcomes 1, 0, 1/2, 1. Mean 5/8; squared deviations 9, 25, 1, 9 (in
  # 64ths) sum to 44/64, variance 44/192, error sqrt(44 / 192 / 4).
  scores, opponents = np.array([2.0, 1.0, 3.0, -1.0]), np.array([1.0, 1.5, 3.0, -2.0])
  np.testing.assert_array_equal(win_rate.outcomes(scores, opponents), [1, 0, 0.5, 1])
  mean, error = win_rate.win_rate(scores, opponents)
  assert mean == 0.625
  assert error == pytest.approx((44 / 192 / 4)**0.5)


def test_the_other_side_wins_the_rest():
  generator = np.random.default_rng(0)
  scores, opponents = generator.integers(0, 4, (2, 50, 3))
  mine, theirs = win_rate.outcomes(scores, opponents), win_rate.outcomes(opponents, scores)
  np.testing.assert_allclose(mine + theirs, 1)
  assert win_rate.win_rate(scores, scores)[0] == pytest.approx(0.5)


def test_only_the_order_of_scores_matters():
  scores, opponents = np.random.default_rng(1).normal(size=(2, 30))
  np.testing.assert_array_equal(
      win_rate.outcomes(scores, opponents), win_rate.outcomes(np.exp(scores), np.exp(opponents)))


def test_several_samples_are_compared_all_with_all():
  # 1 and 4 against 2: one of two. 1 and 4 against 0, 4, 9: won, lost, lost; won, tied, lost.
  assert win_rate.outcomes([[1, 4]], [2])[0] == 0.5
  assert win_rate.outcomes([[1, 4]], [[0, 4, 9]])[0] == pytest.approx(2.5 / 6)


def test_the_error_is_over_prompts_not_over_samples():
  scores, opponents = np.random.default_rng(2).normal(size=(2, 20))
  repeated = np.repeat(scores[:, None], 8, axis=1)
  assert win_rate.win_rate(repeated, opponents) == pytest.approx(
      win_rate.win_rate(scores, opponents))


def test_the_error_covers_the_spread_of_repetitions():
  generator = np.random.default_rng(3)
  draws = [win_rate.win_rate(generator.normal(0.5, 1, 200), generator.normal(0, 1, 200))
           for _ in range(400)]
  means, errors = np.array(draws).T
  assert means.std() == pytest.approx(errors.mean(), rel=0.1)
  assert means.mean() == pytest.approx(0.638, abs=0.01)  # Φ(0.5 / √2).


def test_paired_difference_hand_worked():
  # Differences 1, 0, -1/2, 1/2: mean 1/4; squared deviations 9, 1, 9, 1 (in 16ths): 20/16 / 3.
  mean, error = win_rate.paired_difference([1, 0, 0, 1], [0, 0, 0.5, 0.5])
  assert mean == 0.25
  assert error == pytest.approx((20 / 16 / 3 / 4)**0.5)
  assert win_rate.paired_difference([0, 0, 0.5, 0.5], [1, 0, 0, 1]) == pytest.approx((-mean, error))
  assert win_rate.paired_difference([0.5], [0.25]) == (0.25, 0.0)


def test_what_both_arms_share_cancels_in_the_error():
  generator = np.random.default_rng(4)
  prompts = generator.normal(0, 5, 500)  # Some prompts are easy for both.
  first, second = prompts + generator.normal(0.3, 1, 500), prompts + generator.normal(0, 1, 500)
  mean, error = win_rate.paired_difference(first, second)
  assert error == pytest.approx((2 / 500)**0.5, rel=0.1)
  assert abs(mean - 0.3) < 4 * error
  assert first.std() / 500**0.5 > 3 * error


@pytest.mark.parametrize(('call', 'line'), [
    (lambda: win_rate.win_rate([1.0], [1.0, 2.0]), 'equally many prompts, got 1 and 2'),
    (lambda: win_rate.win_rate([], []), 'scores must be .* not empty'),
    (lambda: win_rate.win_rate([1.0], np.zeros((1, 1, 1))), r'opponents .* got \(1, 1, 1\)'),
    (lambda: win_rate.win_rate([np.nan], [1.0]), 'scores must not be NaN, got 1 of 1'),
    (lambda: win_rate.paired_difference([[1.0]], [[1.0]]), r'one shape \[P\]'),
    (lambda: win_rate.paired_difference([1.0, 2.0], [1.0]), r'one shape \[P\], got \(2,\)'),
    (lambda: win_rate.paired_difference([np.nan], [1.0]), 'first must not be NaN'),
])
def test_bad_input_is_one_line(call, line):
  with pytest.raises(ValueError, match=line) as error:
    call()
  assert '\n' not in str(error.value)
