"""Mean and standard error over seeds or problems, and where a curve reaches a level."""

import math
from collections.abc import Sequence

import numpy as np


def mean_and_standard_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean over the first axis, and the standard error of that mean.

  Values along the first axis must be independent: average the samples of a problem first.

  Args:
    values: float [N, ...]; one entry per seed or problem.

  Returns:
    (mean, sample standard deviation / √N), each float64 [...]; the error of a single entry is 0.
  """
  values = np.asarray(values, np.float64)
  count = len(values)
  error = values.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else 0 * values[0]
  return values.mean(axis=0), error


def error_of_mean(errors: np.ndarray) -> np.ndarray:
  """Standard error of a mean over the first axis, from the independent errors of its N terms.

  Args:
    errors: float [N, ...]; standard errors of the terms.

  Returns:
    √(Σ e²) / N, float [...].
  """
  return np.sqrt(np.sum(errors**2, axis=0)) / len(errors)


def pooled_error(*samples: np.ndarray) -> float:
  """Standard error of a sum or difference of independent means, √(Σ s² / N).

  Args:
    *samples: float [N]; the values of each mean. The error of a single value is 0.
  """
  return float(np.sqrt(sum(x.var(ddof=1) / len(x) if len(x) > 1 else 0.0 for x in samples)))


def first_crossing(x: Sequence[float], y: Sequence[float], *, level: float) -> float:
  """Returns the x at which y first reaches `level`, interpolated linearly; inf if it never does."""
  previous = None
  for point in zip(x, y, strict=True):
    if point[1] >= level:
      if previous is None or point[1] == previous[1]:
        return point[0]
      share = (level - previous[1]) / (point[1] - previous[1])
      return previous[0] + share * (point[0] - previous[0])
    previous = point
  return math.inf
