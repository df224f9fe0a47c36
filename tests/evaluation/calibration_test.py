"""Calibration error and ranking: by hand, by brute force, against junk."""

import itertools

import numpy as np
import pytest

from jaxrl_llm.evaluation import calibration


def test_calibration_error_by_hand():
  # Bins [0, 0.5) and [0.5, 1]: |0.3 - 0.5| * 2/5 + |0.8 - 2/3| * 3/5.
  error = calibration.expected_calibration_error(
      np.array([0.2, 0.4, 0.7, 0.7, 1.0]), np.array([0, 1, 1, 0, 1]), num_bins=2)
  assert error == pytest.approx(0.2 * 0.4 + (0.8 - 2 / 3) * 0.6)


def test_calibrated_predictions_have_a_small_error():
  random = np.random.default_rng(0)
  p = random.random(100_000)
  outcomes = (random.random(100_000) < p).astype(int)
  assert calibration.expected_calibration_error(p, outcomes) < 0.01
  assert calibration.expected_calibration_error(p**2, outcomes) > 0.1


def test_area_is_the_share_of_ordered_pairs():
  random = np.random.default_rng(1)
  scores, outcomes = random.integers(0, 5, size=40), random.integers(0, 2, size=40)
  pairs = itertools.product(scores[outcomes == 1], scores[outcomes == 0])
  wins = [1.0 if high > low else 0.5 if high == low else 0.0 for high, low in pairs]
  assert calibration.area_under_curve(scores, outcomes) == pytest.approx(np.mean(wins))
  assert calibration.area_under_curve(outcomes, outcomes) == 1
  assert calibration.area_under_curve(-outcomes, outcomes) == 0


def test_nothing_to_rank_or_to_calibrate():
  assert np.isnan(calibration.area_under_curve(np.arange(3), np.ones(3)))
  assert np.isnan(calibration.expected_calibration_error(np.zeros(0), np.zeros(0)))


@pytest.mark.parametrize('values, outcomes, message', [
    ([0.1], [0, 1], r'must have one shape \[n\]'), ([1.1], [1], r'must be in \[0, 1\]'),
    ([0.1], [2], 'outcomes must be 0 or 1')])
def test_bad_input_is_refused(values, outcomes, message):
  with pytest.raises(ValueError, match=message):
    calibration.expected_calibration_error(np.array(values), np.array(outcomes))
