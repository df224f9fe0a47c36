"""Quality of predicted probabilities: calibration error and ranking."""

import numpy as np


def expected_calibration_error(
    probabilities: np.ndarray, outcomes: np.ndarray, *, num_bins: int = 10
) -> float:
  """Mean distance between predicted probability and observed frequency, over bins of equal width.

    ECE = Σ_b (n_b / n) |mean p in b − mean y in b|

  Args:
    probabilities: float [n], in [0, 1].
    outcomes: [n]; 0 or 1.
    num_bins: number of bins of [0, 1].

  Returns:
    A number in [0, 1]; NaN if n = 0.

  Raises:
    ValueError: the shapes differ, or a probability is out of range.
  """
  probabilities, outcomes = _checked(probabilities, outcomes)
  if not ((probabilities >= 0) & (probabilities <= 1)).all():
    raise ValueError('probabilities must be in [0, 1]')
  if not len(probabilities):
    return float('nan')
  bins = np.minimum((probabilities * num_bins).astype(int), num_bins - 1)
  differences = np.bincount(bins, weights=probabilities - outcomes, minlength=num_bins)
  return float(np.abs(differences).sum() / len(probabilities))


def area_under_curve(scores: np.ndarray, outcomes: np.ndarray) -> float:
  """P(a positive has a higher score than a negative), ties counted half: the area under the ROC.

  Args:
    scores: float [n].
    outcomes: [n]; 0 or 1.

  Returns:
    A number in [0, 1]; NaN without a positive or without a negative.

  Raises:
    ValueError: the shapes differ.
  """
  from scipy import stats  # Slow to import.

  scores, outcomes = _checked(scores, outcomes)
  positives = int(outcomes.sum())
  negatives = len(outcomes) - positives
  if not positives or not negatives:
    return float('nan')
  ranks = stats.rankdata(scores)[outcomes == 1].sum()
  return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def _checked(values: np.ndarray, outcomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  values, outcomes = np.asarray(values, np.float64), np.asarray(outcomes, np.float64)
  if values.ndim != 1 or values.shape != outcomes.shape:
    raise ValueError(
        f'predictions and outcomes must have one shape [n], got {values.shape} and '
        f'{outcomes.shape}')
  if not np.isin(outcomes, (0, 1)).all():
    raise ValueError('outcomes must be 0 or 1')
  return values, outcomes
