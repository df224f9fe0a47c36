"""Mean and standard error: over seeds, or over problems."""

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
