"""Confidence intervals of means: over seeds, over episodes, and paired over random splits."""

from typing import NamedTuple

import numpy as np

from jaxrl_llm.evaluation import statistics


class Interval(NamedTuple):
  """A mean with the ends of its confidence interval."""

  mean: float
  low: float
  high: float


def mean_interval(values: np.ndarray, *, confidence: float = 0.95) -> Interval:
  """Student's t-interval of a mean.

    x̄ ± t_{S−1} s / √S

  Args:
    values: float [S]; independent draws.
    confidence: in (0, 1).

  Returns:
    An `Interval`; its width is 0 for a single value, which has no spread to estimate.

  Raises:
    ValueError: if there is no value, or `confidence` is out of range.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or not len(values):
    raise ValueError(f'values must have one axis, and at least one entry, got {values.shape}')
  if not 0 < confidence < 1:
    raise ValueError(f'confidence must be in (0, 1), got {confidence}')

  mean, error = statistics.mean_and_standard_error(values)
  mean = float(mean)
  if len(values) == 1:
    return Interval(mean, mean, mean)

  from scipy import stats  # Slow to import.

  reach = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * error)
  return Interval(mean, mean - reach, mean + reach)


def paired_interval(
    ours: np.ndarray, theirs: np.ndarray, *, confidence: float = 0.95
) -> Interval:
  """Student's t-interval of the mean difference over splits: `mean_interval` of ours − theirs.

  With one label per class, splits differ by many points, and methods on the same split by few:
  unpaired intervals would hide nearly every difference. Splits of one graph share its nodes, so
  that the interval covers another draw of labels, not another graph.

  Args:
    ours: float [S]; one number per split.
    theirs: float [S]; the same splits in the same order.
    confidence: in (0, 1).

  Returns:
    An `Interval`; its width is 0 for a single split.

  Raises:
    ValueError: if the shapes differ, or `confidence` is out of range.
  """
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  if ours.shape != theirs.shape or ours.ndim != 1 or not len(ours):
    raise ValueError(f'splits must be paired, got {ours.shape} and {theirs.shape}')
  return mean_interval(ours - theirs, confidence=confidence)
