"""pass@k against enumeration of all subsets."""

import itertools

import numpy as np
import pytest

from jaxrl_llm.evaluation import pass_at_k


@pytest.mark.parametrize('n', [1, 2, 5, 7])
def test_equals_the_fraction_of_subsets_with_a_right_sample(n):
  for c in range(n + 1):
    samples = [1] * c + [0] * (n - c)
    for k in range(1, n + 1):
      subsets = list(itertools.combinations(samples, k))
      expected = sum(map(any, subsets)) / len(subsets)
      assert pass_at_k.pass_at_k(n, np.array([c]), k=k)[0] == pytest.approx(expected, abs=1e-12)


def test_hand_worked():
  # n = 4, c = 1, k = 2: 1 - C(3, 2) / C(4, 2) = 1 - 3/6.
  np.testing.assert_allclose(pass_at_k.pass_at_k(4, np.array([0, 1, 4]), k=2), [0, 0.5, 1])


def test_is_unbiased_over_draws():
  """Mean over binomial c of pass@k from n samples is 1 - (1 - p)^k."""
  generator = np.random.default_rng(0)
  counts = generator.binomial(10, 0.2, 200_000)
  estimate = pass_at_k.pass_at_k(10, counts, k=4).mean()
  assert estimate == pytest.approx(1 - 0.8**4, abs=4e-3)


def test_large_counts_stay_exact():
  assert pass_at_k.pass_at_k(10_000, np.array([1]), k=5_000)[0] == pytest.approx(0.5)


@pytest.mark.parametrize(('n', 'c', 'k'), [(4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1)])
def test_out_of_range_is_an_error(n, c, k):
  with pytest.raises(ValueError, match='must be in'):
    pass_at_k.pass_at_k(n, np.array([c]), k=k)
