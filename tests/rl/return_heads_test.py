"""Heads of the return: extreme inputs, special cases of one another, what their losses learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.rl import return_heads, soft_values

BERNOULLI, OUTCOME = return_heads.Bernoulli(), return_heads.Outcome()
HEADS = (BERNOULLI, return_heads.SquaredError(), return_heads.Histogram(), OUTCOME)
LOGITS = np.array([-80, -20, -3, -0.5, 0, 0.1, 2, 15, 80], np.float32)

_offset = jax.jit(lambda logits, inv_eta: BERNOULLI.soft_offset(logits[..., None], inv_eta))


@pytest.mark.parametrize('inv_eta', [0.0, 1e-4, 0.1, 0.999, 1.0, 10.0, 100.0, 500.0])
def test_C15_the_bernoulli_offset_is_its_definition_and_finite(inv_eta):
  offset = np.asarray(_offset(LOGITS, inv_eta))
  wide = LOGITS.astype(np.float64)
  expected = np.logaddexp(0, wide + inv_eta) - np.logaddexp(0, wide)
  # Rounding of the result, and of 1/η where the result is a difference from it.
  np.testing.assert_allclose(
      offset, expected, rtol=1e-6, atol=1e-30 + 1e-7 * inv_eta * (inv_eta >= 1))
  assert (offset >= 0).all() and (offset <= inv_eta * (1 + 1e-6)).all()
  assert (np.diff(offset) >= 0).all()
  slopes = jax.jit(jax.grad(lambda logits: _offset(logits, inv_eta).sum()))(LOGITS)
  expected = 1 / (1 + np.exp(-wide - inv_eta)) - 1 / (1 + np.exp(-wide))
  np.testing.assert_allclose(slopes, expected, atol=1e-6)  # A difference of numbers below 1.


def test_C15_it_is_the_optimal_value_of_two_rewards_over_eta():
  rates = np.array([0.001, 0.2, 0.5, 0.99], np.float32)
  for eta in (0.05, 0.1, 0.5, 3.0):
    value = soft_values.binary_v_star(jnp.asarray(rates), beta=eta)
    logits = np.log(rates / (1 - rates))
    np.testing.assert_allclose(_offset(logits, 1 / eta), value / eta, rtol=1e-4)


@pytest.mark.parametrize('head', HEADS, ids=lambda head: type(head).__name__)
def test_C9_without_guidance_every_offset_is_exactly_zero(head):
  outputs = 30 * np.random.default_rng(0).normal(size=(50, head.num_outputs)).astype(np.float32)
  for dtype in (jnp.float32, jnp.bfloat16):
    offset = jax.jit(head.soft_offset)(jnp.asarray(outputs, dtype), 0.0)
    assert offset.dtype == jnp.float32 and not np.asarray(offset).any()
    per_row = head.soft_offset(jnp.asarray(outputs, dtype), jnp.arange(50.0))
    assert per_row[0] == 0 and np.isfinite(per_row).all() and (per_row[1:] > 0).all()


def test_C17_two_atoms_are_a_bernoulli():
  two = return_heads.Histogram(num_atoms=2)
  outputs = jnp.stack([jnp.zeros(LOGITS.shape), LOGITS], axis=-1)
  targets = jnp.asarray(np.arange(LOGITS.size) % 2, jnp.float32)

  def loss(head, outputs):
    return head.loss(outputs, targets).sum()

  expected, slopes = jax.value_and_grad(lambda x: loss(BERNOULLI, x))(outputs[:, 1:])
  got, two_slopes = jax.value_and_grad(lambda x: loss(two, x))(outputs)
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  np.testing.assert_allclose(two_slopes[:, 1:], slopes, atol=1e-6)
  for inv_eta in (0.5, 10.0, 500.0):
    np.testing.assert_allclose(
        two.soft_offset(outputs, inv_eta), _offset(LOGITS, inv_eta), rtol=1e-5,
        atol=1e-7 * (80 + inv_eta))
  np.testing.assert_allclose(
      two.expectation(outputs), BERNOULLI.expectation(outputs[:, 1:]), atol=1e-6)


def test_C17_the_nearest_atom_is_trained_and_the_range_may_be_any():
  unit = return_heads.Histogram(num_atoms=5)
  other = return_heads.Histogram(num_atoms=5, low=-3.0, high=5.0)
  outputs = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)
  returns = np.array([-2.0, 0.0, 0.1, 0.2, 0.6, 1.0, 9.0], np.float32)
  nearest = [0, 0, 0, 1, 2, 4, 4]
  expected = -np.asarray(jax.nn.log_softmax(outputs))[np.arange(7), nearest]
  np.testing.assert_allclose(unit.loss(outputs, returns), expected, rtol=1e-6)
  np.testing.assert_allclose(other.loss(outputs, 8 * returns - 3), expected, rtol=1e-6)
  np.testing.assert_allclose(
      other.expectation(outputs), 8 * unit.expectation(outputs) - 3, atol=1e-5)
  np.testing.assert_allclose(
      other.soft_offset(outputs, 0.5), unit.soft_offset(outputs, 4.0) - 1.5, atol=1e-5)
  certain = np.where(np.arange(5) == 3, 0, -1e4).astype(np.float32)
  np.testing.assert_allclose(unit.soft_offset(certain, 10.0), 7.5, rtol=1e-6)


def test_C17_finer_atoms_converge_to_the_distribution():
  returns = np.random.default_rng(2).beta(2, 5, size=200_000)
  exact = np.log(np.mean(np.exp(3 * returns)))

  def error(num_atoms):
    head = return_heads.Histogram(num_atoms=num_atoms)
    counts = np.bincount(np.round(returns * (num_atoms - 1)).astype(int), minlength=num_atoms)
    logits = np.log(np.maximum(counts, 1e-30)).astype(np.float32)
    return abs(float(head.soft_offset(logits, 3.0)) - exact)

  assert error(101) < 1e-3 < error(5)


@pytest.mark.parametrize('head, slope', [
    (BERNOULLI, lambda p, mean: p - mean),
    (return_heads.SquaredError(), lambda p, mean: 2 * (p - mean) * p * (1 - p))],
    ids=['cross-entropy', 'squared error'])
def test_C19_the_minimiser_is_the_mean_label(head, slope):
  labels = jnp.asarray([1, 0, 0, 0, 1, 0, 0, 0, 1, 0], jnp.float32)
  mean_loss = lambda logit: head.loss(jnp.full((10, 1), logit), labels).mean()
  step = jax.jit(jax.grad(mean_loss))
  assert step(1.5) == pytest.approx(float(slope(jax.nn.sigmoid(1.5), 0.3)), rel=1e-5)
  logit = jax.lax.fori_loop(0, 4000, lambda _, x: x - step(x), jnp.float32(1.5))
  assert jax.nn.sigmoid(logit) == pytest.approx(0.3, abs=1e-3)


def test_C20_three_classes_without_the_third_are_two():
  outputs = np.random.default_rng(3).normal(size=(6, 3)).astype(np.float32)
  classes = np.array([0, 1, 1, 0, 1, 0])
  unused = outputs + np.array([0, 0, -1e4], np.float32)
  difference = (outputs[:, 1] - outputs[:, 0])[:, None]
  np.testing.assert_allclose(
      OUTCOME.loss(unused, classes), BERNOULLI.loss(difference, classes.astype(np.float32)),
      rtol=1e-5)
  np.testing.assert_allclose(
      OUTCOME.soft_offset(unused, 10.0), BERNOULLI.soft_offset(difference, 10.0), rtol=1e-5)

  value = np.asarray(OUTCOME.expectation(outputs))
  assert (value > 0).all() and (value < 1).all()
  for function in (lambda x: OUTCOME.loss(x, classes), OUTCOME.expectation,
                   lambda x: OUTCOME.soft_offset(x, 10.0)):
    np.testing.assert_allclose(function(outputs + 3), function(outputs), rtol=1e-5, atol=1e-6)
  # A response that was cut off is neither wrong nor right.
  assert OUTCOME.expectation(np.float32([0, 0, 50])) < 1e-9


@pytest.mark.parametrize('make, message', [
    (lambda: return_heads.Histogram(num_atoms=1), 'Histogram.num_atoms must be at least 2, got 1'),
    (lambda: return_heads.Histogram(low=1.0, high=1.0),
     'Histogram.low must be below Histogram.high, both finite, got 1.0 and 1.0'),
    (lambda: return_heads.Exponential(0.0), 'inv_eta must be positive and finite, got 0.0'),
])
def test_bad_values_are_one_line(make, message):
  with pytest.raises(ValueError, match=message):
    make()
