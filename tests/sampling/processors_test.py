"""Temperature, top-k and top-p against sorted lists; draws against probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl_llm.sampling import processors


def _allowed(logits):
  return np.asarray(logits) > processors.EXCLUDED


def _nucleus(logits, p):
  """Adds the most probable tokens until their total probability reaches p."""
  probabilities = np.exp(np.float64(logits) - np.max(logits))
  probabilities /= probabilities.sum()
  nucleus, total = np.zeros(len(logits), bool), 0.0
  for token in sorted(range(len(logits)), key=lambda v: (-logits[v], v)):
    nucleus[token] = True
    total += probabilities[token]
    if total >= p:
      return nucleus
  return nucleus


def test_temper_divides_in_float32():
  logits = jnp.array([[1.0, -3.0, 0.5]], jnp.bfloat16)
  out = processors.temper(logits, temperature=0.5)
  assert out.dtype == jnp.float32
  np.testing.assert_array_equal(out, [[2.0, -6.0, 1.0]])


@pytest.mark.parametrize('temperature', [0.0, -1.0, float('nan'), float('inf')])
def test_temper_rejects_invalid_temperatures(temperature):
  with pytest.raises(ValueError, match='temperature must be positive and finite, got'):
    processors.temper(jnp.zeros((1, 2)), temperature=temperature)


def test_top_k_keeps_the_k_largest_unchanged():
  logits = np.random.default_rng(0).standard_normal((3, 4, 9)).astype(np.float32)
  for k in range(1, 9):
    out = np.asarray(processors.top_k(logits, k=k))
    for index in np.ndindex(3, 4):
      largest = np.sort(logits[index])[-k:]
      np.testing.assert_array_equal(np.sort(out[index][_allowed(out[index])]), largest)
  for k in (0, 9, 100):
    np.testing.assert_array_equal(processors.top_k(logits, k=k), logits)


def test_top_k_ties_go_to_the_lower_id_so_that_exactly_k_are_allowed():
  logits = np.array([[1.0, 3.0, 3.0, 3.0, 0.0], [2.0] * 5], np.float32)
  np.testing.assert_array_equal(
      _allowed(processors.top_k(logits, k=2)), [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0]])


def test_top_p_equals_the_sorted_list():
  logits = 2 * np.random.default_rng(0).standard_normal((40, 9)).astype(np.float32)
  for p in (0.05, 0.3, 0.6, 0.9, 0.999):
    out = np.asarray(processors.top_p(logits, p=p))
    for row, result in zip(logits, out):
      expected = _nucleus(row, p)
      np.testing.assert_array_equal(_allowed(result), expected)
      np.testing.assert_array_equal(result[expected], row[expected])


def test_top_p_by_hand():
  # 1/2, 1/4, 1/8, 1/8: the token that reaches p is the last one allowed, and of two equal
  # ones the lower id comes first.
  logits = np.log(np.array([[0.125, 0.5, 0.125, 0.25]], np.float32))
  for p, expected in (
      (1e-6, [0, 1, 0, 0]), (0.5, [0, 1, 0, 0]), (0.6, [0, 1, 0, 1]), (0.75, [0, 1, 0, 1]),
      (0.8, [1, 1, 0, 1]), (0.999, [1, 1, 1, 1])):
    np.testing.assert_array_equal(_allowed(processors.top_p(logits, p=p)), [expected], str(p))
  np.testing.assert_array_equal(processors.top_p(logits, p=1.0), logits)


def test_extreme_logits_give_no_nan_and_the_same_argmax():
  logits = np.array([[1e30, -1e30, 0.0], [-1e30, -1e30, -1e30], [0.0, -np.inf, -np.inf]],
                    np.float32)
  for out in (processors.top_p(logits, p=0.9), processors.top_k(logits, k=1)):
    assert not np.isnan(out).any()
    np.testing.assert_array_equal(np.argmax(out, axis=-1), [0, 0, 0])
  keys = jax.random.split(jax.random.key(0), 3)
  chosen = processors.choose(processors.top_k(jnp.asarray(logits), k=1), keys)
  np.testing.assert_array_equal(chosen, [0, 0, 0])


@pytest.mark.parametrize('k', [-1, -10])
def test_top_k_rejects_negative_numbers(k):
  with pytest.raises(ValueError, match=f'top_k must be at least 0, got {k}'):
    processors.top_k(jnp.zeros((1, 2)), k=k)


@pytest.mark.parametrize('p', [0.0, -0.1, 1.1, float('nan')])
def test_top_p_rejects_invalid_probabilities(p):
  with pytest.raises(ValueError, match=r'top_p must be in \(0, 1\], got'):
    processors.top_p(jnp.zeros((1, 2)), p=p)


def test_draws_follow_the_softmax_without_excluded_tokens():
  logits = np.array([0.0, 1.0, 2.0, -1.0, 3.0], np.float32)
  truncated = processors.top_k(logits[None], k=4)
  draws = 4000
  keys = jax.random.split(jax.random.key(0), draws)
  chosen = np.asarray(jax.jit(processors.choose)(jnp.repeat(truncated, draws, axis=0), keys))
  assert chosen.dtype == np.int32
  counts = np.bincount(chosen, minlength=5)
  assert counts[3] == 0
  expected = np.exp(np.float64(logits)) * (np.arange(5) != 3)
  expected = draws * expected[counts > 0] / expected.sum()
  assert stats.chisquare(counts[counts > 0], expected).pvalue > 1e-4


def test_the_noise_of_a_row_depends_on_its_key_only():
  logits = jnp.zeros((4, 50))
  keys = jax.random.split(jax.random.key(0), 4)
  chosen = processors.choose(logits, keys)
  np.testing.assert_array_equal(processors.choose(logits[:2], keys[2:]), chosen[2:])
  np.testing.assert_array_equal(processors.choose(logits, keys[::-1]), chosen[::-1])
