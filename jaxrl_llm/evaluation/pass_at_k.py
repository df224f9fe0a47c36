"""Unbiased pass@k from n samples per problem."""

import numpy as np


def pass_at_k(num_samples: int, num_correct: np.ndarray, *, k: int) -> np.ndarray:
  """Probability that at least one of k samples is right.

    pass@k = 1 - C(n - c, k) / C(n, k) = 1 - Π_{i=n-c+1}^{n} (1 - k / i)

  1 - (1 - c/n)^k would be biased low. The product avoids large binomials.

  Args:
    num_samples: n, samples per problem.
    num_correct: integer [P]; c, the number of correct samples.
    k: 1 ≤ k ≤ n.

  Returns:
    float64 [P].

  Raises:
    ValueError: if k or a count is out of range.

  References:
    Chen et al., 2021, eq. 1, arXiv 2107.03374.
  """
  num_correct = np.asarray(num_correct)
  if not 1 <= k <= num_samples:
    raise ValueError(f'k must be in [1, {num_samples}] (samples per problem), got {k}')
  if np.any(num_correct < 0) or np.any(num_correct > num_samples):
    raise ValueError(f'num_correct must be in [0, {num_samples}], got {num_correct}')

  i = np.arange(1, num_samples + 1)
  # Factors are 0 exactly where c > n - k: then no k samples are all wrong.
  factors = np.where(i > num_samples - num_correct[..., None], 1.0 - k / i, 1.0)
  return 1.0 - np.clip(factors, 0.0, None).prod(axis=-1)
