"""A single vote over all samples of a problem, each with a weight: majority, weighted majority.

`majority.majority_at_k` is the unbiased estimate for unweighted votes of fewer samples.
"""

import numpy as np

from jaxrl_llm.evaluation import majority

EMPTY = ('own', 'excluded')
_TIE = 1e-5  # Of the largest total weight.


def weighted_vote(
    groups: np.ndarray, rewards: np.ndarray, weights: np.ndarray | None = None, *,
    empty: str = 'own',
) -> np.ndarray:
  """Expected reward of the answer with the largest total weight.

    argmax_a Σ_{i : a_i = a} w_i

  Tied answers, to 1e-5 of the largest total, win with equal probability. The reward of an answer is
  the mean reward of the samples that gave it.

  Args:
    groups: int [P, n]; the answer of each sample, see `majority.group_answers`.
    rewards: float [P, n]; the reward of each sample.
    weights: float [P, n], non-negative, such as values of the samples; None for a majority vote.
    empty: samples without an answer are each an answer of its 'own', which wins only with the
      largest weight (as in value-guided search), or 'excluded' (as in Q#); the reward is 0 if no
      sample is left.

  Returns:
    float64 [P].

  Raises:
    ValueError: if shapes differ, a weight is negative or not finite, or `empty` is unknown.

  References:
    Wang et al. (2025), Value-Guided Search, arXiv 2505.17373; Zhou et al. (2025), Q#,
    arXiv 2502.20548 (released code of both, for ties and empty answers).
  """
  groups, rewards = np.asarray(groups), np.asarray(rewards, np.float64)
  weights = np.ones(groups.shape) if weights is None else np.asarray(weights, np.float64)
  if groups.ndim != 2 or not groups.shape == rewards.shape == weights.shape:
    raise ValueError(
        f'groups, rewards and weights must have one shape [P, n], got {groups.shape}, '
        f'{rewards.shape} and {weights.shape}')
  if not (np.isfinite(weights) & (weights >= 0)).all():
    raise ValueError('weights must be non-negative and finite')
  if empty not in EMPTY:
    raise ValueError(f'empty must be one of {", ".join(EMPTY)}, got {empty!r}')
  return np.array([_vote(*row, empty) for row in zip(groups, rewards, weights)])


def _vote(groups: np.ndarray, rewards: np.ndarray, weights: np.ndarray, empty: str) -> float:
  """Result of one problem."""
  abstains = groups == majority.ABSTAINS
  if empty == 'own':
    own = groups.max(initial=majority.ABSTAINS) + 1 + np.arange(len(groups))
    groups = np.where(abstains, own, groups)
  else:
    groups, rewards, weights = (x[~abstains] for x in (groups, rewards, weights))
  if not len(groups):
    return 0.0

  _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
  totals = np.bincount(inverse, weights=weights)
  means = np.bincount(inverse, weights=rewards) / counts
  return float(means[totals >= totals.max() * (1 - _TIE)].mean())
