"""The mean and its standard error, by hand."""

import math

import numpy as np
import pytest

from jaxrl_llm.evaluation import statistics


def test_by_hand():
  # Mean 3; squared deviations 4 + 0 + 4, over N - 1 = 2, so a deviation of 2 over sqrt(3).
  mean, error = statistics.mean_and_standard_error(np.array([1, 3, 5]))
  assert mean == 3
  np.testing.assert_allclose(error, 2 / np.sqrt(3), rtol=1e-15)


def test_over_the_first_axis_only():
  mean, error = statistics.mean_and_standard_error(np.array([[0., 1.], [2., 1.]]))
  np.testing.assert_array_equal(mean, [1, 1])
  np.testing.assert_allclose(error, [1, 0])  # sqrt(2) / sqrt(2), and no spread.


def test_one_value_has_no_error():
  assert statistics.mean_and_standard_error(np.array([0.25])) == (0.25, 0.0)


def test_the_error_of_a_mean_of_terms_with_errors():
  # sqrt(9 + 16) / 2 and sqrt(0 + 1) / 2.
  error = statistics.error_of_mean(np.array([[3., 0.], [4., 1.]]))
  np.testing.assert_allclose(error, [2.5, 0.5], rtol=1e-15)
  assert statistics.error_of_mean(np.array([0.25])) == 0.25


def test_the_pooled_error():
  # Variances 2 and 8 over N = 2.
  assert statistics.pooled_error(np.array([1., 3.]), np.array([0., 4.])) == math.sqrt(5)
  assert statistics.pooled_error(np.array([1., 3.])) == 1
  assert statistics.pooled_error(np.array([1.]), np.array([2.])) == 0


def test_first_crossing_is_interpolated():
  x, y = (100, 200, 300), (0.5, 0.7, 1.0)
  assert statistics.first_crossing(x, y, level=0.6) == pytest.approx(150)
  assert statistics.first_crossing(x, y, level=0.4) == 100
  assert statistics.first_crossing(x[:2], y[:2], level=0.9) == math.inf
