"""Soft values against their limits, closed forms and enumeration."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from jaxrl_llm.rl import soft_values

TWO_OF_EIGHT = np.array([1, 0, 0, 1, 0, 0, 0, 0], np.float32)
A1_TABLE = {
    .001: .998614, .01: .986137, .1: .861384, .25: .666799, .5: .477229,
    1: .357374, 2: .300596, 10: .259530, 1e3: .250094,
}


# Compiled once a shape, with beta as an argument.
_log_mean_exp = jax.jit(soft_values.log_mean_exp, static_argnames='axis')


def _samples(seed=0, shape=(5, 6)):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('beta, value', A1_TABLE.items())
def test_A1_two_of_eight(beta, value):
  # In float32 already: the large betas need more than a plain logsumexp.
  np.testing.assert_allclose(
      _log_mean_exp(TWO_OF_EIGHT, beta=beta), value, atol=6e-7)


def test_A1_between_mean_and_max_and_nonincreasing_in_beta():
  rewards = _samples()
  values = np.stack([_log_mean_exp(rewards, beta=10.0**k) for k in range(-6, 7)])
  assert np.all(np.diff(values, axis=0) <= 1e-6)
  np.testing.assert_allclose(values[0], rewards.max(-1), atol=1e-5)
  np.testing.assert_allclose(values[-1], rewards.mean(-1), atol=1e-6)
  assert np.all(values <= rewards.max(-1) + 1e-6) and np.all(values >= rewards.mean(-1) - 1e-6)


@pytest.mark.parametrize('beta', [1e-3, 1e-30, 1e-45])
def test_A1_finite_at_tiny_beta(beta):
  value, gradient = jax.value_and_grad(
      lambda x: soft_values.log_mean_exp(x, beta=beta))(jnp.array([3.0, 1e4, -1e4]))
  # max - beta ln 3, with a gradient on the largest alone.
  np.testing.assert_allclose(value, 1e4, rtol=1e-6)
  np.testing.assert_array_equal(gradient, [0, 1, 0])


def test_A2_k_of_eight():
  table = [0, .293513, .477229, .611284, .716890, .804034, .878221, .942809, 1]
  rewards = np.array([[1.0] * k + [0.0] * (8 - k) for k in range(9)], np.float32)
  np.testing.assert_allclose(_log_mean_exp(rewards, beta=.5), table, atol=6e-7)
  for beta in A1_TABLE:
    values = _log_mean_exp(rewards, beta=beta)
    assert values[0] == 0.0 and values[8] == 1.0


def test_A3_shift_scale_permutation_and_duplication():
  rewards = _samples(1)
  values = _log_mean_exp(rewards, beta=.5)
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
  close(_log_mean_exp(rewards + 3, beta=.5), values + 3)
  close(_log_mean_exp(4 * rewards, beta=2.0), 4 * values)
  close(_log_mean_exp(rewards[:, ::-1], beta=.5), values)
  close(_log_mean_exp(np.tile(rewards, 3), beta=.5), values)
  close(_log_mean_exp(rewards.T, beta=.5, axis=0), values)
  np.testing.assert_array_equal(_log_mean_exp(rewards[:, :1], beta=.5), rewards[:, 0])


def test_A3_expansion_in_one_over_beta():
  # The error of mean + Var / (2 beta) falls a hundredfold where beta grows tenfold.
  with jax.enable_x64(True):
    rewards = jnp.asarray(_samples(2), jnp.float64)
    errors = [
        np.abs(_log_mean_exp(rewards, beta=beta)
               - (rewards.mean(-1) + rewards.var(-1) / (2 * beta))).max()
        for beta in (1e2, 1e3)
    ]
  assert 90 < errors[0] / errors[1] < 110


@pytest.mark.parametrize('beta', [1e-4, .01, .5, .999, 1.0, 20.0, 1e4])
def test_A4_binary_closed_form(beta):
  # p = k / 8 is a sample of eight with k successes; and both agree with the definition.
  rewards = np.array([[1.0] * k + [0.0] * (8 - k) for k in range(9)], np.float32)
  closed = soft_values.binary_v_star(jnp.arange(9) / 8, beta=beta)
  np.testing.assert_allclose(closed, _log_mean_exp(rewards, beta=beta), atol=2e-6)
  if beta >= .01:
    naive = [beta * math.log(1 - k / 8 + k / 8 * math.exp(1 / beta)) for k in range(9)]
    np.testing.assert_allclose(closed, naive, atol=2e-6)
  assert closed[0] == 0.0
  np.testing.assert_allclose(closed[8], 1.0, rtol=1e-6)


def test_A4_rare_success():
  # p = 1e-6: 1 + 0.05 ln(1e-6 + e^-20), worked in Python's float64.
  expected = [1 + beta * math.log(1e-6 + (1 - 1e-6) * math.exp(-1 / beta)) for beta in (.05, .5)]
  actual = [float(soft_values.binary_v_star(jnp.float32(1e-6), beta=beta)) for beta in (.05, .5)]
  np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_A5_bias_of_the_estimator_by_enumeration():
  # E V_N = sum_k Binomial(N, p)(k) V(k of N); below V* and increasing in N.
  def expectation(n, p=.25, beta=.5):
    rewards = np.tri(n + 1, n, -1, dtype=np.float32)
    weights = [math.comb(n, k) * p**k * (1 - p)**(n - k) for k in range(n + 1)]
    return np.dot(weights, _log_mean_exp(rewards, beta=beta))

  values = [expectation(n) for n in (1, 2, 4, 8, 32)]
  np.testing.assert_allclose(values, [.25, .33133, .39762, .43824, .46812], atol=6e-6)
  limit = soft_values.binary_v_star(jnp.float32(.25), beta=.5)
  np.testing.assert_allclose(limit, .47723, atol=6e-6)
  assert np.all(np.diff(values) > 0) and values[-1] < limit


def test_A5_A13_expected_filter_rate():
  # Every outcome of N = 8 draws, weighted: (1 - p)^8 of the mass has no success.
  outcomes = (np.arange(256)[:, None] >> np.arange(8)) & 1
  selected = np.asarray(soft_values.any_success(jnp.asarray(outcomes, jnp.float32)))
  for p, rate in ((.05, .66342), (.25, .10011)):
    weights = np.prod(np.where(outcomes, p, 1 - p), axis=-1)
    assert weights[~selected].sum() == pytest.approx(rate, abs=6e-6)


def test_A13_keeps_rows_with_a_success():
  rewards = jnp.array([[0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, .5]])
  np.testing.assert_array_equal(soft_values.any_success(rewards), [False, True, True, True])


def test_modes():
  rewards = _samples(3)
  np.testing.assert_array_equal(
      soft_values.v_star(rewards, beta=.5), soft_values.log_mean_exp(rewards, beta=.5))
  np.testing.assert_allclose(soft_values.v_star(rewards, mode='mean'), rewards.mean(-1), rtol=1e-6)
  np.testing.assert_array_equal(soft_values.v_star(rewards, mode='max'), rewards.max(-1))
  np.testing.assert_array_equal(soft_values.v_star(rewards, mode='zero'), np.zeros(5))
  np.testing.assert_array_equal(soft_values.v_star(rewards.T, mode='max', axis=0), rewards.max(-1))


def test_gradient_is_the_softmax():
  with jax.enable_x64(True):
    rewards = jnp.asarray(_samples(4), jnp.float64)
    for beta in (.3, 50.0):
      function = functools.partial(soft_values.log_mean_exp, beta=beta)
      test_util.check_grads(function, (rewards[0],), order=1)
      gradient = jax.vmap(jax.grad(function))(rewards)
      np.testing.assert_allclose(gradient, jax.nn.softmax(rewards / beta), rtol=1e-10)


@pytest.mark.parametrize('beta', [0, -.5, float('nan'), float('inf')])
def test_bad_beta_is_one_line(beta):
  for function in (soft_values.log_mean_exp, soft_values.v_star, soft_values.binary_v_star):
    with pytest.raises(ValueError, match=f'beta must be positive and finite, got {beta}'):
      function(jnp.ones(3), beta=beta)


def test_bad_mode_and_missing_beta_are_one_line_errors():
  with pytest.raises(ValueError, match="mode must be .* got 'min'"):
    soft_values.v_star(jnp.ones(3), beta=1.0, mode='min')
  with pytest.raises(ValueError, match='beta must be given'):
    soft_values.v_star(jnp.ones(3))
