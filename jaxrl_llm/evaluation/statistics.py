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
