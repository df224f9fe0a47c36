"""Intervals of means, and of pairs over splits."""

import numpy as np
import pytest
from scipy import stats

from jaxrl_llm.evaluation import intervals


def test_the_interval_is_that_of_the_paired_t_test():
  rng = np.random.default_rng(0)
  ours, theirs = rng.normal(size=(2, 12))
  result = intervals.paired_interval(ours, theirs, confidence=.9)
  expected = stats.ttest_rel(ours, theirs).confidence_interval(.9)
  assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
  assert result.mean == pytest.approx((ours - theirs).mean())


def test_by_hand():
  # Differences 1, 2, 3: mean 2, deviation 1, t_2(.975) = 4.3027, so 2 ± 4.3027 / √3.
  result = intervals.paired_interval(np.array([2.0, 3, 4]), np.ones(3))
  assert result == pytest.approx((2, 2 - 2.48414, 2 + 2.48414), abs=1e-4)


def test_what_splits_share_cancels():
  rng = np.random.default_rng(0)
  shared, noise = 10 * rng.normal(size=20), .1 * rng.normal(size=20)
  result = intervals.paired_interval(shared + noise + 1, shared)
  assert result.low > .8 and result.high < 1.2


def test_coverage_is_the_confidence():
  rng = np.random.default_rng(1)
  results = [intervals.paired_interval(row, np.zeros(8)) for row in rng.normal(size=(400, 8))]
  covered = np.mean([interval.low <= 0 <= interval.high for interval in results])
  assert .91 < covered < .985


def test_one_split_and_bad_input():
  assert intervals.paired_interval([3.0], [1.0]) == (2, 2, 2)
  with pytest.raises(ValueError, match='splits must be paired'):
    intervals.paired_interval(np.ones(3), np.ones(2))
  with pytest.raises(ValueError, match='splits must be paired'):
    intervals.paired_interval([], [])
  with pytest.raises(ValueError, match='confidence must be in'):
    intervals.paired_interval([1.0, 2.0], [0.0, 0.0], confidence=95)


def test_the_interval_of_a_mean():
  # 1, 2, 3 as above, without a partner.
  result = intervals.mean_interval(np.array([1.0, 2, 3]))
  assert result == pytest.approx((2, 2 - 2.48414, 2 + 2.48414), abs=1e-4)
  assert intervals.mean_interval([.25]) == (.25, .25, .25)
  for bad in ([], np.ones((2, 2))):
    with pytest.raises(ValueError, match='values must have one axis'):
      intervals.mean_interval(bad)
