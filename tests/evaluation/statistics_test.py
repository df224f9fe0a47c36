"""The mean and its standard error, by hand."""

import numpy as np

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
