"""Exponents and squares near the largest float."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from jaxrl_llm.rl import advantages, divergences, overflow, policy_losses


@pytest.mark.parametrize('dtype, expected', [
    (jnp.float16, 11), (jnp.bfloat16, 88), (jnp.float32, 88), (np.float64, 709)])
def test_largest_exponent(dtype, expected):
  assert overflow.largest_exponent(dtype) == expected
  with jax.enable_x64(True):
    exponentials = jnp.exp(jnp.asarray([expected, expected + 1], dtype))
    assert jnp.isfinite(exponentials).tolist() == [True, False]


def test_saturate_clips_the_value_and_not_the_gradient():
  x = jnp.asarray([-jnp.inf, -3.0, -1.0, -0.0, 0.5, 2.0, jnp.inf, jnp.nan])
  value, gradient = jax.vmap(jax.value_and_grad(lambda x: overflow.saturate(x, -1.0, 2.0)))(x)
  np.testing.assert_array_equal(value, [-1, -1, -1, 0, 0.5, 2, 2, np.nan])
  np.testing.assert_array_equal(gradient, np.ones(8))
  # The slope of a function of it is the one at the bound.
  slope = jax.grad(lambda x: jnp.exp(overflow.saturate(x, None, 1.0)))(5.0)
  assert slope == pytest.approx(np.e)
  # Bounds are constants, and may differ by entry.
  bounds = jax.grad(lambda high: overflow.saturate(jnp.ones(2), None, high).sum())(jnp.zeros(2))
  assert not bounds.any()


def _exact(log_ratio):
  """k3 and its slope in float64."""
  log_ratio = np.asarray(log_ratio, np.float64)
  return np.expm1(-log_ratio) + log_ratio, 1 - np.exp(-log_ratio)


def test_N1_k3_is_exact_as_far_as_float32_goes():
  log_ratio = np.float32([-88, -87.3, -60, -20.5, -1, -1e-3, 0, 1e-3, 1, 20, 88, 1e4, 1e30])
  value, gradient = jax.vmap(jax.value_and_grad(divergences.k3))(log_ratio)
  expected = _exact(log_ratio)
  np.testing.assert_allclose(value, expected[0], rtol=2e-6, atol=1e-7)
  np.testing.assert_allclose(gradient, expected[1], rtol=2e-6, atol=1e-7)


def test_N1_k3_stays_at_its_bound_beyond():
  # e^88 = 1.6516e38; of 1 + 88 adding 88 changes nothing.
  log_ratio = jnp.asarray([-88.1, -90, -100, -1e4, -1e30, -jnp.inf], jnp.float32)
  value, gradient = jax.vmap(jax.value_and_grad(divergences.k3))(log_ratio)
  np.testing.assert_allclose(value, np.exp(88.0), rtol=1e-5)
  np.testing.assert_allclose(gradient, -np.exp(88.0), rtol=1e-5)
  assert np.isnan(divergences.k3(jnp.float32(jnp.nan)))


def test_k3_has_the_gradient_of_its_value():
  with jax.enable_x64(True):
    test_util.check_grads(divergences.k3, (jnp.asarray([-3.0, -0.2, 0.0, 0.7, 4.0]),), order=2)


def _surrogate(log_ratio, advantage, low=0.2, high=0.2):
  loss = lambda x: policy_losses.clipped_surrogate(
      x, jnp.float32(advantage), clip_low=low, clip_high=high)
  return jax.value_and_grad(loss)(jnp.float32(log_ratio))


@pytest.mark.parametrize('log_ratio', [88.7, 88.8, 100, 1e4, 1e30, np.inf, -100, -np.inf, 0, 0.1])
def test_an_advantage_of_0_has_no_loss_and_no_gradient_at_any_ratio(log_ratio):
  for bounds in ((0.2, 0.2), (1.0, np.inf), (0.0, 0.0)):
    value, gradient = _surrogate(log_ratio, 0.0, *bounds)
    assert value == 0 and gradient == 0


@pytest.mark.parametrize('advantage', [-1.0, -3.5, -0.01, -1e-30, -1e20, 2.0])
def test_N1_the_surrogate_is_exact_up_to_its_bound_and_stays_there(advantage):
  bounds = (1.0, np.inf)  # Nothing is clipped.
  bound = 88 - np.log(max(abs(advantage), 1))
  for log_ratio in (-5.0, 0.0, 3.0, bound - 1.0, bound - 0.01):
    value, gradient = _surrogate(log_ratio, advantage, *bounds)
    expected = -np.exp(np.float64(np.float32(log_ratio))) * advantage
    np.testing.assert_allclose([value, gradient], expected, rtol=1e-5)
  for log_ratio in (bound + 0.01, 90.0, 100.0, 1e4, np.inf):
    value, gradient = _surrogate(log_ratio, advantage, *bounds)
    np.testing.assert_allclose([value, gradient], -np.exp(bound) * advantage, rtol=1e-4)


@pytest.mark.parametrize('scale', [1e-4, 1.0, 1e17, 1e19, 1e30, 3e37])
def test_group_advantages_and_whitening_do_not_depend_on_the_scale(scale):
  # Spread far above ε: the same for any unit of reward.
  values = np.float32([[3, 1, -2], [5, 5, -6.5]])
  scaled = jnp.asarray(values * np.float32(scale))
  centred = values - values.mean(axis=1, keepdims=True)
  standardised = centred / values.std(axis=1, ddof=1, keepdims=True)
  np.testing.assert_allclose(
      advantages.grpo(scaled, epsilon=0.0), standardised, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
      advantages.grpo(scaled, scale='none') / scale, centred, rtol=1e-5, atol=1e-6)
  if scale >= 1:
    whitened = advantages.whiten(scaled, np.ones((2, 3)))
    np.testing.assert_allclose(
        whitened, (values - values.mean()) / values.std(), rtol=1e-5, atol=1e-6)
    with_mean = advantages.whiten(scaled, np.ones((2, 3)), mean='keep')
    np.testing.assert_allclose(with_mean, whitened + values.mean() * scale, rtol=1e-5)


def test_one_huge_reward_affects_its_own_group_alone():
  # (1e30, 0, 0): mean 1e30/3, unbiased std 1e30/√3.
  got = advantages.grpo(jnp.asarray([[1e30, 0, 0], [1, 0, 0]], jnp.float32), epsilon=0.0)
  np.testing.assert_allclose(got, np.tile([[2, -1, -1]], (2, 1)) / np.sqrt(3), rtol=1e-5)
  equal = jnp.full((2, 3), 1e30, jnp.float32)
  assert not advantages.grpo(equal).any()
  assert np.isfinite(advantages.whiten(equal, jnp.ones((2, 3)))).all()
