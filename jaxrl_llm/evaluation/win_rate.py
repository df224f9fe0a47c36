"""Win rates: how often one response is scored above another to the same prompt."""

import numpy as np

from jaxrl_llm.evaluation import statistics


def outcomes(scores: np.ndarray, opponents: np.ndarray) -> np.ndarray:
  """Who wins on each prompt: 1 for the first, 0 for the second, 1/2 for a tie.

    w_p = mean over (i, j) of 1[s_pi > o_pj] + ½ 1[s_pi = o_pj]

  Several samples of either side are compared all with all, and averaged: samples of one prompt
  are not independent, and the error of a win rate is that of prompts. Seen from the other side
  the outcome is 1 − w.

  Args:
    scores: float [P] or [P, K].
    opponents: float [P] or [P, J]; of the other responses, by the same scorer.

  Returns:
    float64 [P].

  Raises:
    ValueError: the prompts are not the same number, or not at least 1; or a score is NaN.
  """
  scores, opponents = _matrix('scores', scores), _matrix('opponents', opponents)
  if len(scores) != len(opponents):
    raise ValueError(
        'scores and opponents must be of the same prompts, got '
        f'{len(scores)} and {len(opponents)}'
    )
  first, second = scores[:, :, None], opponents[:, None, :]
  return np.mean((first > second) + 0.5 * (first == second), axis=(1, 2))


def win_rate(scores: np.ndarray, opponents: np.ndarray) -> tuple[float, float]:
  """The fraction of prompts won, ties counted half, and its standard error over prompts.

  Args:
    scores: as for `outcomes`.
    opponents: as for `outcomes`.

  Returns:
    (win rate in [0, 1], standard error; 0 for a single prompt).

  Raises:
    ValueError: as `outcomes`.
  """
  return statistics.mean_and_standard_error(outcomes(scores, opponents))


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
  """The mean difference of two arms on the same prompts, and its standard error.

  The error is that of the differences: what makes a prompt easy for both arms drops out, so that
  it is smaller than two separate errors suggest, √(e₁² + e₂²).

  Args:
    first: float [P]; outcomes (or scores) of one arm, one a prompt.
    second: float [P]; of the other, the prompts in the same order.

  Returns:
    (mean of first − second, standard error; 0 for a single prompt).

  Raises:
    ValueError: the shapes are not one [P], or a value is NaN.
  """
  first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
  if first.ndim != 1 or first.shape != second.shape:
    raise ValueError(f'both arms must have one shape [P], got {first.shape} and {second.shape}')
  return statistics.mean_and_standard_error(
      _matrix('first', first)[:, 0] - _matrix('second', second)[:, 0])


def _matrix(name: str, values: np.ndarray) -> np.ndarray:
  """The values as float64 [P, K]."""
  values = np.asarray(values, np.float64)
  values = values[:, None] if values.ndim == 1 else values
  if values.ndim != 2 or not values.size:
    raise ValueError(f'{name} must be [P] or [P, K] and not empty, got {values.shape}')
  if np.isnan(values).any():
    raise ValueError(f'{name} must not be NaN, got {np.isnan(values).sum()} of {values.size}')
  return values
