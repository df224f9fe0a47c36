"""Win rates: how often one response to a prompt is scored above another."""

import numpy as np

from jaxrl_llm.evaluation import statistics


def outcomes(scores: np.ndarray, opponents: np.ndarray) -> np.ndarray:
  """Outcome on each prompt: 1 if the first wins, 0 if the second wins, 1/2 for a tie.

    w_p = mean over (i, j) of 1[s_pi > o_pj] + ½ 1[s_pi = o_pj]

  With several samples per side, all pairs are compared and averaged: samples of one prompt are
  not independent, so the standard error of a win rate is over prompts. With the sides swapped the
  outcome is 1 − w.

  Args:
    scores: float [P] or [P, K].
    opponents: float [P] or [P, J]; scores of the other responses, by the same scorer.

  Returns:
    float64 [P].

  Raises:
    ValueError: if the numbers of prompts differ or are 0, or a score is NaN.
  """
  scores, opponents = _matrix('scores', scores), _matrix('opponents', opponents)
  if len(scores) != len(opponents):
    raise ValueError(
        f'scores and opponents must have equally many prompts, got {len(scores)} and '
        f'{len(opponents)}'
    )
  first, second = scores[:, :, None], opponents[:, None, :]
  return np.mean((first > second) + 0.5 * (first == second), axis=(1, 2))


def win_rate(scores: np.ndarray, opponents: np.ndarray) -> tuple[float, float]:
  """Fraction of prompts won, with ties counted as half, and its standard error over prompts.

  Args:
    scores: as for `outcomes`.
    opponents: as for `outcomes`.

  Returns:
    (win rate in [0, 1], standard error; 0 for a single prompt).

  Raises:
    ValueError: as for `outcomes`.
  """
  return statistics.mean_and_standard_error(outcomes(scores, opponents))


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
  """Mean difference of two arms on the same prompts, and its standard error.

  The error is that of the differences: a prompt's difficulty for both arms cancels, so that the
  error is smaller than two separate errors suggest, √(e₁² + e₂²).

  Args:
    first: float [P]; outcomes (or scores) of one arm, one per prompt.
    second: float [P]; the same for the other arm, with prompts in the same order.

  Returns:
    (mean of first − second, standard error; 0 for a single prompt).

  Raises:
    ValueError: if the shapes are not the same [P], or a value is NaN.
  """
  first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
  if first.ndim != 1 or first.shape != second.shape:
    raise ValueError(f'both arms must have one shape [P], got {first.shape} and {second.shape}')
  return statistics.mean_and_standard_error(
      _matrix('first', first)[:, 0] - _matrix('second', second)[:, 0])


def _matrix(name: str, values: np.ndarray) -> np.ndarray:
  """Converts the values to float64 [P, K]."""
  values = np.asarray(values, np.float64)
  values = values[:, None] if values.ndim == 1 else values
  if values.ndim != 2 or not values.size:
    raise ValueError(f'{name} must be [P] or [P, K] and not empty, got {values.shape}')
  if np.isnan(values).any():
    raise ValueError(f'{name} must not be NaN, got {np.isnan(values).sum()} of {values.size}')
  return values
