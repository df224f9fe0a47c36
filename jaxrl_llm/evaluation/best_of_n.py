"""Best of n: draws n samples and keeps the one with the highest score.

An inference-time baseline for trained policies: what a scorer alone achieves, at n times the cost.
"""

import numpy as np


def choose(scores: np.ndarray) -> np.ndarray:
  """Index of the sample with the largest score; ties go to the first.

  A score of NaN (a scorer that failed) never wins; if all scores are NaN the index is 0.

  Args:
    scores: float [P, n].

  Returns:
    int [P].

  Raises:
    ValueError: if the shape is wrong, or there are no samples.
  """
  scores = _matrix('scores', scores)
  return np.argmax(np.where(np.isnan(scores), -np.inf, scores), axis=1)


def expected_best(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Unbiased estimate of the expected value of the best of k samples, for every k up to n.

    E_k = E_S [ v(argmax_{i ∈ S} s_i) ],  S a uniform k-subset of the n samples
        = Σ_i v_(i) C(i − 1, k − 1) / C(n, k),  v_(i) the value of the i-th smallest score

  The expectation over subsets is exact: the number of subsets in which a sample is the best is the
  number of ways to draw the rest from those below it. Its expectation is that of k new samples, so
  that one set of n samples gives the whole curve: the mean over samples at k = 1, the value of the
  best one at k = n. Equal scores are chosen with equal probability. If `values` come from a
  different scorer (gold) than `scores` (proxy), a curve that falls again shows over-optimisation.

  Args:
    scores: float [P, n]; scores for the choice. No NaN.
    values: float [P, n]; values to average; `scores` again for the expected largest score.

  Returns:
    float64 [P, n]; column k − 1 is the best of k.

  Raises:
    ValueError: if the shapes differ, there are no samples, or a score is NaN.

  References:
    The weights are those of pass@k (Chen et al., 2021, arXiv 2107.03374, eq. 1), for general
    values instead of 0 and 1.
  """
  scores, values = _matrix('scores', scores), _matrix('values', values)
  if scores.shape != values.shape:
    raise ValueError(
        f'scores and values must have one shape [P, n], got {scores.shape} and {values.shape}')
  if np.isnan(scores).any():
    raise ValueError(f'scores must not be NaN, got {np.isnan(scores).sum()} of {scores.size}')

  weights = _weights(scores.shape[1])
  out = np.empty(scores.shape)
  for row, (score, value) in enumerate(zip(scores, values)):
    _, ranks, counts = np.unique(score, return_inverse=True, return_counts=True)
    means = np.bincount(ranks, weights=value) / counts  # Means over samples with equal scores.
    out[row] = weights @ np.repeat(means, counts)
  return out


def kl_bound(n: int | np.ndarray) -> np.ndarray:
  """Upper bound of the KL divergence of the best of n samples from a single sample.

    KL(best of n ‖ one) ≤ ln n − (n − 1) / n

  For a continuous score the quantile u ∈ (0, 1) of the best sample has density n u^{n−1}, and that
  of one sample is uniform: KL = ∫ n u^{n−1} ln(n u^{n−1}) du is the bound. A discrete distribution
  merges quantiles, which cannot increase the KL. The bound is often quoted as the KL itself, but it
  is far above it where one response is likely: with a single possible response the KL is 0.

  Args:
    n: at least 1; an integer or an array of integers.

  Returns:
    float64, nats, with the shape of `n`.

  Raises:
    ValueError: if n is below 1.

  References:
    Beirami et al. (2024), Theoretical guarantees on the best-of-n alignment policy,
    arXiv 2401.01879 (that it is a bound, and not the KL).
  """
  n = np.asarray(n, np.float64)
  if np.any(n < 1):
    raise ValueError(f'n must be at least 1, got {n.min():g}')
  return np.log(n) - (n - 1) / n


def _weights(n: int) -> np.ndarray:
  """C(i − 1, k − 1) / C(n, k), float64 [k, i], computed by ratios without large binomials."""
  k, i = np.arange(1, n + 1)[:, None], np.arange(1, n + 1)
  # From the largest score down: k/n, then times (i − k)/(i − 1) from i to i − 1.
  ratios = np.clip(i[1:] - k, 0, None) / (i[1:] - 1) if n > 1 else np.empty((1, 0))
  factors = np.concatenate([ratios, k / n], axis=1)
  return np.cumprod(factors[:, ::-1], axis=1)[:, ::-1]


def _matrix(name: str, values: np.ndarray) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if values.ndim != 2 or not values.shape[1]:
    raise ValueError(f'{name} must be [P, n] with n of at least 1, got {values.shape}')
  return values
