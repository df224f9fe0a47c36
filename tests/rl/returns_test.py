"""Returns and advantages along responses, against obvious loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.rl import returns

# Full, right-padded, left-padded, with a user's turn inside, one slot, none.
MASK = np.array([
    [1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1],
    [1, 1, 0, 0, 1, 1], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0],
], np.float32)


def _draw(seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(2, *MASK.shape)).astype(np.float32)


def _loop(rewards, values, mask, discount, trace, bootstrap):
  """One response after the other, over the slots that count."""
  advantages = np.zeros(mask.shape)
  for row in range(len(mask)):
    next_value, advantage = bootstrap[row], 0.0
    for slot in reversed(np.flatnonzero(mask[row])):
      delta = rewards[row, slot] + discount * next_value - values[row, slot]
      advantage = delta + discount * trace * advantage
      advantages[row, slot] = advantage
      next_value = values[row, slot]
  return advantages


def test_returns_by_hand():
  # gamma = 1/2: 4, 2 + 4/2 = 4, 1 + 4/2 = 3.
  values = returns.discounted_returns(jnp.array([1.0, 2.0, 4.0]), jnp.ones(3), discount=.5)
  np.testing.assert_array_equal(values, [3, 4, 4])


@pytest.mark.parametrize('discount', [0.0, .9, 1.0])
def test_returns_against_a_loop(discount):
  rewards, _ = _draw()
  expected = np.zeros(MASK.shape)
  for row in range(len(MASK)):
    slots = np.flatnonzero(MASK[row])
    for i, slot in enumerate(slots):
      expected[row, slot] = sum(discount**k * rewards[row, s] for k, s in enumerate(slots[i:]))
  actual = returns.discounted_returns(rewards, MASK, discount=discount)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_generalized_advantages_by_hand():
  # gamma = .5, lambda = .5, r = (0, 1), V = (2, 4): delta_1 = 1 - 4 = -3,
  # delta_0 = .5 * 4 - 2 = 0, A_0 = 0 + .25 * -3 = -.75; returns A + V = (1.25, 1).
  result = returns.generalized_advantages(
      jnp.array([0.0, 1.0]), jnp.array([2.0, 4.0]), jnp.ones(2), discount=.5, trace=.5)
  np.testing.assert_array_equal(result.advantages, [-.75, -3])
  np.testing.assert_array_equal(result.returns, [1.25, 1])


@pytest.mark.parametrize('discount, trace', [(1.0, .95), (.9, .5), (.7, 0.0)])
@pytest.mark.parametrize('with_bootstrap', [False, True])
def test_generalized_advantages_against_a_loop(discount, trace, with_bootstrap):
  rewards, values = _draw()
  bootstrap = np.arange(6, dtype=np.float32) if with_bootstrap else None
  expected = _loop(rewards, values, MASK, discount, trace, bootstrap if with_bootstrap else [0] * 6)
  result = jax.jit(functools.partial(
      returns.generalized_advantages, discount=discount, trace=trace))(
          rewards, values, MASK, bootstrap=bootstrap)
  np.testing.assert_allclose(result.advantages, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
      result.returns, np.where(MASK > 0, expected + values, 0), rtol=1e-5, atol=1e-6)


def test_B3_lambda_one_is_return_minus_value():
  rewards, values = _draw(1)
  result = returns.generalized_advantages(rewards, values, MASK, discount=1.0, trace=1.0)
  expected = returns.discounted_returns(rewards, MASK)
  np.testing.assert_allclose(result.returns, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
      result.advantages, np.where(MASK > 0, expected - values, 0), rtol=1e-5, atol=1e-5)


def test_masked_slots_are_not_read():
  rewards, values = _draw(2)
  expected = returns.generalized_advantages(rewards, values, MASK)
  poisoned = [np.where(MASK > 0, x, np.nan) for x in (rewards, values)]
  jax.tree.map(np.testing.assert_array_equal,
               returns.generalized_advantages(*poisoned, MASK), expected)
  np.testing.assert_array_equal(returns.discounted_returns(poisoned[0], MASK),
                                returns.discounted_returns(rewards, MASK))


def test_rows_permute_and_leading_axes_are_free():
  rewards, values = _draw(3)
  order = np.array([3, 1, 5, 0, 2, 4])
  expected = returns.generalized_advantages(rewards, values, MASK)
  actual = returns.generalized_advantages(rewards[order], values[order], MASK[order])
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[order]), actual, expected)
  grouped = returns.generalized_advantages(*(x.reshape(3, 2, 6) for x in (rewards, values, MASK)))
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x.reshape(6, 6), y), grouped, expected)


def test_outputs_are_constants():
  rewards, values = (jnp.asarray(x) for x in _draw(4))

  def total(rewards, values, bootstrap):
    result = returns.generalized_advantages(rewards, values, MASK, bootstrap=bootstrap)
    return sum(jnp.sum(x**2) for x in (*result, returns.discounted_returns(rewards, MASK)))

  gradients = jax.grad(total, argnums=(0, 1, 2))(rewards, values, jnp.ones(6))
  assert not any(np.any(x) for x in gradients)


@pytest.mark.parametrize('options', [{'discount': 1.5}, {'trace': -.1}])
def test_bad_options_are_one_line_errors(options):
  with pytest.raises(ValueError, match=r'must be in \[0, 1\], got'):
    returns.generalized_advantages(jnp.ones(2), jnp.ones(2), jnp.ones(2), **options)
