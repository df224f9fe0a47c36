"""Preference losses by hand and by enumeration: three responses, every pair weighed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from jaxrl_llm.rl import preference_losses, regression_losses

BETA = .5
REFERENCE = np.array([.5, .3, .2])
REWARDS = np.array([1.0, 0.0, -1.0])
CHOSEN, REJECTED = np.stack(np.meshgrid(range(3), range(3), indexing='ij'), -1).reshape(-1, 2).T
LOSSES = {
    'sigmoid': functools.partial(preference_losses.dpo_loss, beta=BETA),
    'ipo': functools.partial(preference_losses.ipo_loss, tau=BETA),
    'hinge': functools.partial(preference_losses.hinge_loss, beta=BETA),
    'conservative': functools.partial(
        preference_losses.conservative_dpo_loss, beta=BETA, label_smoothing=.2),
    'robust': functools.partial(preference_losses.robust_dpo_loss, beta=BETA, label_smoothing=.2),
}
every_loss = pytest.mark.parametrize('loss', LOSSES.values(), ids=LOSSES)


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _of_pairs(loss, logits):
  """The loss of each of the nine pairs (chosen, rejected) of three responses."""
  log_ratio = jax.nn.log_softmax(logits) - jnp.log(REFERENCE)
  return loss(log_ratio[CHOSEN], log_ratio[REJECTED])


def _descend(loss, start):
  """Newton's method on a convex function of logits, whose direction (1, 1, 1) is free."""
  gradient, hessian = jax.grad(loss), jax.hessian(loss)
  step = lambda _, x: x - jnp.linalg.pinv(hessian(x), rtol=1e-9) @ gradient(x)
  return jax.jit(lambda x: jax.lax.fori_loop(0, 30, step, x))(start)


# With beta = tau = 1/2 the pairs below have D = (2, 0, -2) and z = beta D = (1, 0, -1);
# L(z) = ln(1 + e^-z) = (.313262, .693147, 1.313262).
@pytest.mark.parametrize('name, expected', [
    ('sigmoid', [.313262, .693147, 1.313262]),
    ('ipo', [1.0, 1.0, 9.0]),  # (D - 1)^2.
    ('hinge', [0.0, 1.0, 2.0]),  # max(0, 1 - z).
    # .8 L(z) + .2 L(-z) = L(z) + .2 z.
    ('conservative', [.513262, .693147, 1.113262]),
    # (.8 L(z) - .2 L(-z)) / .6 = L(z) - z/3.
    ('robust', [-.020072, .693147, 1.646595]),
])
def test_hand_worked(name, expected):
  chosen, rejected = jnp.array([1.5, .4, -3.0]), jnp.array([-.5, .4, -1.0])
  np.testing.assert_allclose(LOSSES[name](chosen, rejected), expected, atol=5e-7)


def test_bradley_terry_hand_worked():
  losses = preference_losses.bradley_terry_loss(jnp.array([2.0, .3]), jnp.array([1.0, .3]))
  np.testing.assert_allclose(losses, [.313262, .693147], atol=5e-7)


def test_B8_bradley_terry_at_equal_scores_and_under_a_shift():
  rng = np.random.default_rng(0)
  chosen, rejected = jnp.asarray(rng.normal(size=(2, 5)))
  loss = preference_losses.bradley_terry_loss
  np.testing.assert_allclose(loss(chosen, chosen), np.log(2), rtol=1e-15)
  np.testing.assert_allclose(loss(chosen + 7.0, rejected + 7.0), loss(chosen, rejected), rtol=1e-12)
  # A probability, and its complement.
  both = np.exp(-loss(chosen, rejected)) + np.exp(-loss(rejected, chosen))
  np.testing.assert_allclose(both, 1, rtol=1e-12)


def test_B5_at_the_reference_dpo_is_ln_2_and_parallel_to_rebel():
  logits = jnp.log(REFERENCE)
  np.testing.assert_allclose(_of_pairs(LOSSES['sigmoid'], logits), np.log(2), rtol=1e-12)
  gradients = jax.jacobian(lambda x: _of_pairs(LOSSES['sigmoid'], x))(logits)
  scores = np.eye(3) - REFERENCE  # d ln pi_i / d logit_j.
  np.testing.assert_allclose(
      gradients, -BETA / 2 * (scores[CHOSEN] - scores[REJECTED]), atol=1e-14)
  # REBEL with a reward larger by 1 for the chosen response: -2 eta (...).
  eta = .7
  rebel = lambda chosen, rejected: regression_losses.rebel_loss(
      jnp.stack([chosen, rejected], 1), jnp.tile(jnp.array([1.0, 0.0]), (9, 1)), eta=eta)
  expected = jax.jacobian(lambda x: _of_pairs(rebel, x))(logits)
  np.testing.assert_allclose(4 * eta / BETA * gradients, expected, atol=1e-14)


def test_B7_ipo_is_rebel_with_a_constant_target():
  log_ratio = jnp.array([[.4, -1.0], [2.0, .5], [-1.0, .3]])
  rewards = jnp.array([[1.0, 0.0], [.3, -.7], [5.0, 4.0]])
  expected = regression_losses.rebel_loss(log_ratio, rewards, eta=1 / (2 * BETA))
  np.testing.assert_allclose(LOSSES['ipo'](*log_ratio.T), expected, rtol=1e-12)


def test_dpo_on_bradley_terry_labels_is_regularised_rl():
  # Every pair, each way round as often as Bradley-Terry says: the minimiser is the policy that
  # maximises E r - beta KL, pi_ref e^(r / beta) / Z.
  weights = REFERENCE[CHOSEN] * REFERENCE[REJECTED] * jax.nn.sigmoid(
      REWARDS[CHOSEN] - REWARDS[REJECTED])
  logits = _descend(
      lambda x: jnp.dot(weights, _of_pairs(LOSSES['sigmoid'], x)), jnp.log(REFERENCE))
  optimum = REFERENCE * np.exp(REWARDS / BETA)
  np.testing.assert_allclose(jax.nn.softmax(logits), optimum / optimum.sum(), atol=1e-9)


def test_conservative_dpo_stops_at_one_minus_epsilon():
  beta, epsilon = .5, .2
  gap = np.log((1 - epsilon) / epsilon) / beta  # sigma(beta D) = 1 - epsilon.
  slope = jax.grad(lambda d: LOSSES['conservative'](d, jnp.zeros(1)).sum())
  np.testing.assert_allclose(slope(jnp.array([gap])), 0, atol=1e-15)
  assert slope(jnp.array([gap - 1]))[0] < -.01 < .01 < slope(jnp.array([gap + 1]))[0]


def test_robust_dpo_averages_to_dpo_over_flips():
  rng = np.random.default_rng(1)
  first, second = jnp.asarray(rng.normal(size=(2, 6)))
  noisy = .8 * LOSSES['robust'](first, second) + .2 * LOSSES['robust'](second, first)
  np.testing.assert_allclose(noisy, LOSSES['sigmoid'](first, second), rtol=1e-12)


@pytest.mark.parametrize('smoothed', [
    preference_losses.conservative_dpo_loss, preference_losses.robust_dpo_loss])
def test_without_smoothing_it_is_dpo(smoothed):
  first, second = jnp.asarray(np.random.default_rng(2).normal(size=(2, 6)))
  np.testing.assert_allclose(
      smoothed(first, second, beta=BETA, label_smoothing=0.0), LOSSES['sigmoid'](first, second),
      rtol=1e-14)


@every_loss
def test_pairs_do_not_mix_and_only_the_difference_matters(loss):
  rng = np.random.default_rng(3)
  first, second = jnp.asarray(rng.normal(size=(2, 5)))
  expected = loss(first, second)
  assert expected.shape == (5,)
  np.testing.assert_allclose(loss(first + 3.0, second + 3.0), expected, rtol=1e-11)
  order = np.array([4, 2, 0, 1, 3])
  np.testing.assert_array_equal(loss(first[order], second[order]), expected[order])
  jacobian = jax.jacobian(loss)(first, second)
  np.testing.assert_array_equal(jacobian, np.diag(np.diag(jacobian)))


@every_loss
def test_gradients(loss):
  # Away from D = 1 / beta = 2, the corner of the hinge.
  first, second = jnp.array([.4, -1.2, 3.0, 5.0]), jnp.array([.1, .9, -.2, 1.5])
  test_util.check_grads(loss, (first, second), order=2)


@every_loss
def test_finite_in_float32_however_large_the_gap(loss):
  gap = jnp.asarray([-1e4, -200.0, 200.0, 1e4], jnp.float32)
  value, slope = jax.value_and_grad(lambda d: loss(d, jnp.zeros_like(d)).sum())(gap)
  assert value.dtype == jnp.float32 and np.isfinite(value) and np.isfinite(slope).all()
  # Far on the wrong side it pulls; nothing has been rounded away.
  assert (slope[:2] < -.2).all()


def test_small_losses_keep_their_digits_in_float32():
  loss = preference_losses.bradley_terry_loss(jnp.asarray([30.0], jnp.float32), jnp.zeros(1, 'f'))
  np.testing.assert_allclose(loss, np.exp(-30.0), rtol=1e-5)


def test_pairs_are_put_in_the_order_of_their_rewards():
  values = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
  rewards = jnp.array([[0.0, -3.0], [.1, .2], [.7, .7]])
  chosen, rejected, decided = preference_losses.split_by_preference(values, rewards)
  np.testing.assert_array_equal(chosen, [1, 4, 5])
  np.testing.assert_array_equal(rejected, [2, 3, 6])
  np.testing.assert_array_equal(decided, [1, 1, 0])
  # The gradient goes where the number came from.
  slope = jax.grad(lambda x: preference_losses.split_by_preference(x, rewards)[0].sum())(values)
  np.testing.assert_array_equal(slope, [[1, 0], [0, 1], [1, 0]])


def test_bad_options_are_one_line_errors():
  ones = jnp.ones(1)
  for name in ('dpo_loss', 'hinge_loss'):
    with pytest.raises(ValueError, match='beta must be positive and finite, got 0'):
      getattr(preference_losses, name)(ones, ones, beta=0)
  with pytest.raises(ValueError, match='tau must be positive and finite, got inf'):
    preference_losses.ipo_loss(ones, ones, tau=float('inf'))
  for name in ('conservative_dpo_loss', 'robust_dpo_loss'):
    for bad in (-.1, .5, float('nan')):
      with pytest.raises(ValueError, match=rf'label_smoothing must be in \[0, 0.5\), got {bad}'):
        getattr(preference_losses, name)(ones, ones, beta=1.0, label_smoothing=bad)
  with pytest.raises(AssertionError):
    preference_losses.dpo_loss(jnp.ones(2), jnp.ones(3), beta=1.0)
  with pytest.raises(AssertionError):
    preference_losses.split_by_preference(jnp.ones((2, 3)), jnp.ones((2, 3)))
