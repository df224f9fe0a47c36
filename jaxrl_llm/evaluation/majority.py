"""maj@k: unbiased accuracy of a majority vote among k samples, estimated from n samples."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

ABSTAINS = -1  # Group of samples without an answer, which do not vote.
MAX_SAMPLES = 1_000  # The number of subsets of more samples would exceed float64.


def group_answers(
    answers: Sequence[str | None], same: Callable[[str, str], bool] | None = None
) -> list[int]:
  """Numbers the distinct answers to one problem.

  Equivalence of answers need not be transitive: each answer joins the first group whose first
  member it matches, which depends only on the order of the samples.

  Args:
    answers: answers of n samples; None (or an empty text) for a sample without one.
    same: whether two texts are the same answer; by default only equal texts are.

  Returns:
    n group numbers, counted from 0 in order of first appearance; `ABSTAINS` for samples without
    an answer.
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
  """Expected reward of the majority answer among k samples.

    maj@k = E_S [ r(argmax_a |{i ∈ S : a_i = a}|) ],  S a uniform k-subset of the n samples

  The expectations over subsets and over ties are exact, not sampled: all answers with the most
  votes win with equal probability. Samples without an answer do not vote; if none of the k votes,
  the reward is 0. The reward of an answer is the mean reward of the samples that gave it, so that
  maj@1 = pass@1 if no sample without an answer is right. For k = n this is the plain majority
  vote over all samples.

  Like pass@k from n > k samples, it has the expectation of k independent samples, and less
  variance than a single vote.

  Args:
    groups: int [P, n]; the answer of each sample, see `group_answers`.
    rewards: float [P, n]; the reward of each sample.
    k: 1 ≤ k ≤ n.

  Returns:
    float64 [P].

  Raises:
    ValueError: if k is out of range, the shapes differ, or there are more than `MAX_SAMPLES`.

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
    raise ValueError(f'a problem must have at most {MAX_SAMPLES} samples, got {num_samples}')
  if not 1 <= k <= num_samples:
    raise ValueError(f'k must be in [1, {num_samples}] (samples per problem), got {k}')
  return np.array([_expected_reward(*row, k) for row in zip(groups, rewards)], np.float64)


def _expected_reward(groups: np.ndarray, rewards: np.ndarray, k: int) -> float:
  """maj@k of one problem."""
  names, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
  values = np.bincount(inverse, weights=rewards) / counts
  abstaining = int(counts[names == ABSTAINS].sum())
  votes, values = counts[names != ABSTAINS], values[names != ABSTAINS]

  total = 0.0
  for index in np.flatnonzero(values):  # Usually at most one answer is right.
    others = tuple(sorted(np.delete(votes, index).tolist()))
    total += values[index] * _win_probability(int(votes[index]), others, abstaining, k)
  return float(total)


@functools.lru_cache(maxsize=1 << 14)
def _win_probability(own: int, others: tuple[int, ...], abstaining: int, k: int) -> float:
  """Probability that the answer of `own` samples wins the vote among k of all samples.

  Σ_v C(own, v) Σ_t W_v(t, k - v) / (1 + t) / C(n, k), with W_v(t, u) the number of ways to draw u
  other samples so that t other answers also have v votes, and none has more. All numbers are
  positive, so that float64 loses no significant precision.
  """
  total = 0.0
  for own_votes in range(1, min(own, k) + 1):
    rest = k - own_votes
    ways = np.zeros((rest // own_votes + 1, rest + 1))  # [t, u]
    without_vote = _binomials(abstaining)[: rest + 1]
    ways[0, : len(without_vote)] = without_vote
    for size in others:
      ways = _with_another(ways, size, own_votes)

    num_winners = np.arange(1, len(ways) + 1)
    total += _binomials(own)[own_votes] * (ways[:, rest] / num_winners).sum()
  return float(total / _binomials(own + sum(others) + abstaining)[k])


def _with_another(ways: np.ndarray, size: int, own_votes: int) -> np.ndarray:
  """Updates W_v with another answer, given by `size` samples."""
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
