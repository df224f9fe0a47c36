"""maj@k: the accuracy of a majority vote among k samples, without bias, from n samples."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

ABSTAINS = -1  # The group of a sample that has no answer: it does not vote.
MAX_SAMPLES = 1_000  # The subsets of more samples would be too many for float64.


def group_answers(
    answers: Sequence[str | None], same: Callable[[str, str], bool] | None = None
) -> list[int]:
  """Numbers the distinct answers to one problem.

  Equivalence of answers need not be transitive; each answer joins the first group with whose
  first member it agrees, which depends on the order of the samples alone.

  Args:
    answers: of n samples; None (or no text at all) where a sample has none.
    same: whether two texts are the same answer; by default equal texts alone are.

  Returns:
    n group numbers, counted from 0 in the order in which answers first stand; `ABSTAINS` for
    samples without one.
  """
  groups: list[int] = []
  known: dict[str, int] = {}
  first: list[str] = []
  for answer in answers:
    if not answer:
      groups.append(ABSTAINS)
      continue
    if answer not in known:
      matches = (i for i, other in enumerate(first) if same is not None and same(answer, other))
      known[answer] = next(matches, len(first))
      if known[answer] == len(first):
        first.append(answer)
    groups.append(known[answer])
  return groups


def majority_at_k(groups: np.ndarray, rewards: np.ndarray, *, k: int) -> np.ndarray:
  """The expected reward of the answer for which most of k samples vote.

    maj@k = E_S [ r(argmax_a |{i ∈ S : a_i = a}|) ],  S a uniform k-subset of the n samples

  The expectation over subsets is exact, not sampled, and so is the one over ties: of the answers
  with the most votes each wins with the same probability. Samples without an answer do not
  vote; where none of the k votes, the reward is 0. The reward of an answer is the mean reward of
  the samples that gave it, so that maj@1 = pass@1 if no sample without an answer is right. For
  k = n this is the plain majority vote over all samples.

  Like pass@k from n > k samples it has the expectation of k independent samples, and less
  variance than a single vote.

  Args:
    groups: int [P, n]; which answer a sample gave, see `group_answers`.
    rewards: float [P, n]; of each sample.
    k: 1 ≤ k ≤ n.

  Returns:
    float64 [P].

  Raises:
    ValueError: k is out of range, the shapes differ, or there are more than `MAX_SAMPLES`.

  References:
    Wang et al., 2022, Self-Consistency Improves Chain of Thought Reasoning in Language Models,
    arXiv 2203.11171 (the vote).
  """
  groups, rewards = np.asarray(groups), np.asarray(rewards, np.float64)
  if groups.ndim != 2 or groups.shape != rewards.shape:
    raise ValueError(
        f'groups and rewards must have one shape [P, n], got {groups.shape} and {rewards.shape}'
    )
  num_samples = groups.shape[1]
  if num_samples > MAX_SAMPLES:
    raise ValueError(f'a problem may have at most {MAX_SAMPLES} samples, got {num_samples}')
  if not 1 <= k <= num_samples:
    raise ValueError(f'k must lie in 1 to {num_samples} (the samples a problem), got {k}')
  return np.array([_expected_reward(*row, k) for row in zip(groups, rewards)], np.float64)


def _expected_reward(groups: np.ndarray, rewards: np.ndarray, k: int) -> float:
  """maj@k of one problem."""
  names, places, counts = np.unique(groups, return_inverse=True, return_counts=True)
  values = np.bincount(places, weights=rewards) / counts
  abstaining = int(counts[names == ABSTAINS].sum())
  votes, values = counts[names != ABSTAINS], values[names != ABSTAINS]
  total = 0.0
  for index in np.flatnonzero(values):  # Usually one answer at most is right.
    others = tuple(sorted(np.delete(votes, index).tolist()))
    total += values[index] * _win_probability(int(votes[index]), others, abstaining, k)
  return float(total)


@functools.lru_cache(maxsize=1 << 14)
def _win_probability(own: int, others: tuple[int, ...], abstaining: int, k: int) -> float:
  """How likely the answer that `own` of all samples gave wins the vote of k of them.

  Σ_v C(own, v) Σ_t W_v(t, k - v) / (1 + t) / C(n, k), with W_v(t, u) in how many ways u other
  samples can be taken so that t other answers have v votes as well, and none has more. All
  numbers are positive, so that float64 loses nothing that matters.
  """
  total, ways_of_all = 0.0, _binomials(own + sum(others) + abstaining)[k]
  for own_votes in range(1, min(own, k) + 1):
    left = k - own_votes
    ways = np.zeros((left // own_votes + 1, left + 1))  # [t, u]
    free = _binomials(abstaining)[: left + 1]
    ways[0, : len(free)] = free
    for size in others:
      ways = _with_another(ways, size, own_votes)
    ties = np.arange(1, len(ways) + 1)
    total += _binomials(own)[own_votes] * (ways[:, left] / ties).sum()
  return float(total / ways_of_all)


def _with_another(ways: np.ndarray, size: int, own_votes: int) -> np.ndarray:
  """W_v once an answer that `size` samples gave is among the others."""
  after = np.zeros_like(ways)
  length = ways.shape[1]
  for votes, count in enumerate(_binomials(size)[: min(own_votes, length - 1) + 1]):
    tied = int(votes == own_votes)
    after[tied:, votes:] += count * ways[: len(ways) - tied, : length - votes]
  return after


@functools.lru_cache(maxsize=1 << 12)
def _binomials(n: int) -> np.ndarray:
  """C(n, 0) to C(n, n) as float64 [n + 1], each rounded once."""
  row = [1]
  for i in range(n):
    row.append(row[-1] * (n - i) // (i + 1))
  return np.array(row, np.float64)
