"""Policy-gradient losses by enumeration, against their formulas, and where nothing may pass."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from jaxrl_llm.rl import advantages, policy_losses, regression_losses

# A policy over three responses.
POLICY = np.array([.5, .3, .2])
LOGITS = np.log(POLICY)
REWARDS = np.array([1.0, 0.0, -1.0])


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _tuples(size):
  """Every group of so many samples [G, size], and its probability."""
  groups = np.array(list(itertools.product(range(3), repeat=size)))
  return groups, np.prod(POLICY[groups], axis=1)


def _policy_gradient():
  """∇ E r for the logits, by hand: π (r − E r)."""
  return POLICY * (REWARDS - POLICY @ REWARDS)


def _expected_gradient(loss, size):
  """E ∇ of loss(log-probs of a group [G, size], its rewards), samples held fixed."""
  groups, weights = _tuples(size)
  mean = lambda logits: jnp.sum(weights[:, None] * loss(
      jax.nn.log_softmax(logits)[groups], jnp.asarray(REWARDS[groups]))) / size
  return jax.jit(jax.grad(mean))(jnp.asarray(LOGITS))


@pytest.mark.parametrize('baseline', [0.0, 0.7, -3.0])
def test_reinforce_is_the_policy_gradient_with_any_baseline(baseline):
  gradient = _expected_gradient(
      lambda log_probs, rewards: policy_losses.reinforce_loss(log_probs, rewards - baseline), 1)
  np.testing.assert_allclose(gradient, -_policy_gradient(), atol=1e-12)


@pytest.mark.parametrize('size', [2, 3])
def test_the_mean_of_the_batch_as_baseline_scales_the_gradient(size):
  # b contains r_i / n, and E r_i/n ∇ ln π(y_i) = 1/n of the gradient: 1 − 1/n is left.
  gradient = _expected_gradient(
      lambda log_probs, rewards: policy_losses.reinforce_loss(
          log_probs, rewards - jnp.mean(rewards, axis=1, keepdims=True)), size)
  np.testing.assert_allclose(gradient, -(1 - 1 / size) * _policy_gradient(), atol=1e-12)


@pytest.mark.parametrize('size', [2, 3])
def test_B1_leave_one_out_is_the_policy_gradient(size):
  loss = lambda log_probs, rewards: policy_losses.reinforce_loss(
      log_probs, advantages.rloo(rewards))
  np.testing.assert_allclose(_expected_gradient(loss, size), -_policy_gradient(), atol=1e-12)


def test_R9_rebel_at_its_start_is_4_eta_times_rloo_pair_by_pair():
  # ∇(D − η ΔR)² at D = 0 is −2 η ΔR ∇D, and RLOO's loss −½ (ΔR ln π(y) − ΔR ln π(y')).
  eta = .7
  pairs, _ = _tuples(2)
  rewards = jnp.asarray(REWARDS[pairs])

  def rebel(logits):
    log_ratio = jax.nn.log_softmax(logits)[pairs] - LOGITS[pairs]
    return regression_losses.rebel_loss(log_ratio, rewards, eta=eta)

  def rloo(logits):
    return jnp.mean(policy_losses.reinforce_loss(
        jax.nn.log_softmax(logits)[pairs], advantages.rloo(rewards)), axis=1)

  theirs, ours = (jax.jacrev(f)(jnp.asarray(LOGITS)) for f in (rebel, rloo))
  assert np.abs(ours).max() > 0.3
  np.testing.assert_allclose(theirs, 4 * eta * ours, atol=1e-12)


# --- The clipped surrogate.


def _naive(log_ratio, advantage, low, high):
  ratio = np.exp(log_ratio)
  return -np.minimum(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)


def test_the_surrogate_by_hand():
  # ρ = 2, ½ with A = ±3, ε = (0.2, 0.3): −min(6, 1.3·3) = −3.9; −min(−6, −3.9) = 6;
  # −min(1.5, 0.8·3) = −1.5; −min(−1.5, −2.4) = 2.4.
  log_ratio = jnp.log(jnp.asarray([2.0, 2.0, .5, .5]))
  sign = jnp.asarray([3.0, -3.0, 3.0, -3.0])
  options = dict(clip_low=.2, clip_high=.3)
  np.testing.assert_allclose(
      policy_losses.clipped_surrogate(log_ratio, sign, **options), [-3.9, 6, -1.5, 2.4])
  np.testing.assert_array_equal(
      policy_losses.is_clipped(log_ratio, sign, **options), [True, False, False, True])


@pytest.mark.parametrize('low, high', [(.2, .2), (.2, .28), (0.0, 0.0), (1.0, np.inf)])
def test_the_surrogate_is_its_formula(low, high):
  log_ratio, advantage = (x.ravel() for x in np.meshgrid(
      np.linspace(-1.5, 1.5, 13) + .01, [-2.0, -.5, 0.0, 1.0]))
  loss = functools.partial(policy_losses.clipped_surrogate, clip_low=low, clip_high=high)
  np.testing.assert_allclose(loss(log_ratio, advantage), _naive(log_ratio, advantage, low, high))
  gradient = jax.jit(jax.grad(lambda x: jnp.sum(loss(x, jnp.asarray(advantage)))))(log_ratio)
  step = 1e-6
  numeric = (_naive(log_ratio + step, advantage, low, high)
             - _naive(log_ratio - step, advantage, low, high)) / (2 * step)
  np.testing.assert_allclose(gradient, numeric, atol=1e-8)
  clipped = policy_losses.is_clipped(log_ratio, advantage, clip_low=low, clip_high=high)
  np.testing.assert_array_equal(gradient == 0, clipped | (advantage == 0))
  if low == 1:
    assert not clipped.any()


@pytest.mark.parametrize('low, high', [(.2, .2), (0.0, 0.0)])
def test_B4_at_the_old_policy_the_gradient_is_the_policy_gradient(low, high):
  # Bounds of 0 too: where nothing has moved nothing is held back.
  advantage = jnp.asarray(REWARDS)
  options = dict(clip_low=low, clip_high=high)
  surrogate = lambda x: policy_losses.clipped_surrogate(
      jax.nn.log_softmax(x) - LOGITS, advantage, **options)
  plain = lambda x: policy_losses.reinforce_loss(jax.nn.log_softmax(x), advantage)
  theirs, ours = (jax.jacrev(f)(jnp.asarray(LOGITS)) for f in (surrogate, plain))
  np.testing.assert_allclose(theirs, ours, atol=1e-12)
  np.testing.assert_allclose(surrogate(jnp.asarray(LOGITS)), -REWARDS, atol=1e-12)
  assert not policy_losses.is_clipped(jnp.zeros(3), advantage, **options).any()


@pytest.mark.parametrize('log_ratio, advantage', [(1e4, 1.0), (-1e4, -1.0), (-1e4, 1.0)])
def test_ratios_out_of_range_leave_finite_numbers(log_ratio, advantage):
  loss = lambda x: policy_losses.clipped_surrogate(
      x, jnp.asarray(advantage), clip_low=.2, clip_high=.2)
  value, gradient = jax.value_and_grad(loss)(jnp.asarray(log_ratio))
  assert np.isfinite(value) and gradient == 0


@pytest.mark.parametrize('options, message', [
    (dict(clip_low=-.1, clip_high=.2), r'clip_low must be in \[0, 1\], got -0.1'),
    (dict(clip_low=1.1, clip_high=.2), r'clip_low must be in \[0, 1\], got 1.1'),
    (dict(clip_low=.2, clip_high=-1.0), 'clip_high must be non-negative, got -1.0'),
    (dict(clip_low=.2, clip_high=np.nan), 'clip_high must be non-negative, got nan'),
])
def test_bounds_out_of_range_are_one_line_errors(options, message):
  with pytest.raises(ValueError, match=message):
    policy_losses.clipped_surrogate(jnp.zeros(2), jnp.zeros(2), **options)


def test_gradients_against_finite_differences_and_constants():
  log_ratio = jnp.asarray([.05, -.1, .5, -.6])
  advantage = jnp.asarray([1.0, -2.0, -.5, .7])
  surrogate = functools.partial(policy_losses.clipped_surrogate, clip_low=.2, clip_high=.2)
  for loss in (surrogate, policy_losses.reinforce_loss):
    test_util.check_grads(lambda x, f=loss: f(x, advantage), (log_ratio,), order=1)
    assert not jax.grad(lambda a, f=loss: jnp.sum(f(log_ratio, a)))(advantage).any()


# --- Means over tokens.

MASK = np.array([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [0, 1, 1]]], np.float32)
LOSSES = np.arange(1.0, 13).reshape(2, 2, 3)


@pytest.mark.parametrize('normalisation, total, weight', [
    # Means of the responses: 3/2, 4, 8, 23/2.
    ('response', 1.5 + 4 + 8 + 11.5, 4),
    ('token', 1 + 2 + 4 + 7 + 8 + 9 + 11 + 12, 8),
    ('constant', 54, 12),
])
def test_means_by_hand(normalisation, total, weight):
  mean = policy_losses.mean_over_tokens(
      LOSSES, MASK, np.ones(2), normalisation=normalisation)
  np.testing.assert_allclose([mean.total, mean.weight], [total, weight])


@pytest.mark.parametrize('normalisation', ['response', 'token', 'constant'])
def test_R18_masked_values_are_ignored(normalisation):
  mean = functools.partial(policy_losses.mean_over_tokens, normalisation=normalisation)
  value = lambda x, mask, weight: mean(x, mask, weight).value()
  poisoned = np.where(MASK > 0, LOSSES, np.nan)
  expected, gradient = jax.value_and_grad(value)(jnp.asarray(LOSSES), MASK, np.ones(2))
  got, poisoned_gradient = jax.value_and_grad(value)(jnp.asarray(poisoned), MASK, np.ones(2))
  assert got == expected
  np.testing.assert_array_equal(gradient, poisoned_gradient)
  np.testing.assert_array_equal(gradient == 0, MASK == 0)
  # A prompt of weight 0 is ignored, and an empty mask no division by 0.
  alone = value(LOSSES[:1], MASK[:1], np.ones(1))
  np.testing.assert_allclose(value(poisoned, MASK, np.array([1.0, 0])), alone)
  assert value(LOSSES, np.zeros_like(MASK), np.ones(2)) == 0


@pytest.mark.parametrize('normalisation', ['response', 'token', 'constant'])
def test_means_of_parts_merge(normalisation):
  mean = functools.partial(policy_losses.mean_over_tokens, normalisation=normalisation)
  weight = np.array([1.0, .5])
  whole = mean(LOSSES, MASK, weight)
  parts = [mean(LOSSES[i:i + 1], MASK[i:i + 1], weight[i:i + 1]) for i in (0, 1)]
  np.testing.assert_allclose((parts[0] + parts[1]).value(), whole.value(), rtol=1e-12)
  # The order of samples does not matter.
  np.testing.assert_allclose(
      mean(LOSSES[::-1, ::-1], MASK[::-1, ::-1], weight[::-1]).value(), whole.value())


def test_the_three_means_agree_where_all_responses_are_full_and_only_there():
  values = lambda mask: [
      float(policy_losses.mean_over_tokens(LOSSES, mask, np.ones(2), normalisation=n).value())
      for n in ('response', 'token', 'constant')]
  np.testing.assert_allclose(values(np.ones_like(MASK)), np.mean(LOSSES))
  assert min(np.abs(np.diff(sorted(values(MASK))))) > 0.1


def test_another_normalisation_is_one_line():
  with pytest.raises(ValueError, match="normalisation must be 'response', .* got 'prompt'"):
    policy_losses.mean_over_tokens(LOSSES, MASK, np.ones(2), normalisation='prompt')
