"""The critic's clipped loss: by hand, against its formula, and where it has no gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from jaxrl_llm.rl import value_losses


def _loss(values, old=0.0, returns=1.0, clip=.2):
  values = jnp.asarray(values, jnp.float32)
  fill = lambda x: jnp.full(values.shape, x, jnp.float32)
  return value_losses.clipped_value_loss(values, fill(old), fill(returns), clip=clip)


def test_by_hand():
  # V_old = 0, R = 1, c = 0.2. V = 0.1: within bounds, ½ 0.9². V = 0.5: held at 0.2, the larger
  # error is ½ 0.8². V = −0.5: held at −0.2, but the larger error is V's own, ½ 1.5².
  np.testing.assert_allclose(_loss([.1, .5, -.5]), [.405, .32, 1.125], rtol=1e-6)


def test_gradient_vanishes_only_where_the_value_has_left_its_bounds_towards_the_return():
  gradient = jax.grad(lambda x: jnp.sum(_loss(x)))(jnp.asarray([.1, .5, -.5, 0.0]))
  np.testing.assert_allclose(gradient, [-.9, 0, -1.5, -1], rtol=1e-6)


def test_formula_and_the_plain_square_without_bounds():
  rng = np.random.default_rng(0)
  values, old, returns = rng.normal(size=(3, 2, 3, 4)).astype(np.float32)
  got = value_losses.clipped_value_loss(values, old, returns, clip=.3)
  held = np.clip(values, old - .3, old + .3)
  np.testing.assert_allclose(
      got, .5 * np.maximum((values - returns)**2, (held - returns)**2), rtol=1e-5)
  plain = value_losses.clipped_value_loss(values, old, returns, clip=np.inf)
  np.testing.assert_allclose(plain, .5 * (values - returns)**2, rtol=1e-5)
  assert (np.abs(got - plain) > 1e-3).any() and (got >= plain - 1e-6).all()


def test_gradients_against_finite_differences_and_constants():
  values, old, returns = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6)), jnp.float32)
  loss = functools.partial(value_losses.clipped_value_loss, clip=.3)
  test_util.check_grads(lambda x: loss(x, old, returns), (values,), order=1, atol=2e-2, rtol=2e-2)
  gradients = jax.grad(lambda *x: jnp.sum(loss(values, *x)), argnums=(0, 1))(old, returns)
  assert not any(g.any() for g in gradients)


@pytest.mark.parametrize('clip', [0.0, -.2, np.nan])
def test_bounds_out_of_range_are_one_line_errors(clip):
  with pytest.raises(ValueError, match=f'clip must be positive, got {clip}'):
    _loss([0.0], clip=clip)
