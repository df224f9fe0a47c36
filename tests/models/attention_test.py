"""`attend` against a loop, and its gradient against that of a plain softmax."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from jaxrl_llm.models import attention
from tests.models import witness


def _inputs(*, rows=2, queries=7, slots=7, heads=4, kv_heads=2, head_dim=6, dtype=np.float32):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(dtype)
  return (
      draw(rows, queries, heads, head_dim),
      draw(rows, slots, kv_heads, head_dim),
      draw(rows, slots, kv_heads, head_dim),
  )


def _valid(rows, slots):
  """The first row is left-padded by two slots, the others have a hole after slot 3."""
  valid = np.ones((rows, slots), bool)
  valid[0, :2] = False
  valid[1:, 4] = False
  return valid


def _naive(query, key, value, query_slots, valid):
  """Softmax attention, differentiated by jax.grad."""
  group = query.shape[2] // key.shape[2]
  key, value = (jnp.repeat(x, group, axis=2) for x in (key, value))
  scores = jnp.einsum('bthd,bshd->bhts', query, key) / np.sqrt(query.shape[-1])
  visible = (jnp.arange(key.shape[1]) <= query_slots[:, None])[None] & valid[:, None]
  weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf), axis=-1)
  return jnp.einsum('bhts,bshd->bthd', weights, value)


@pytest.mark.parametrize('kv_heads', [1, 2, 4])
@pytest.mark.parametrize('block', [64, 3])
def test_attend_equals_the_loop_with_grouped_queries_and_any_block(kv_heads, block):
  query, key, value = _inputs(kv_heads=kv_heads)
  valid, slots = _valid(2, 7), np.arange(7)
  out = attention.attend(query, key, value, slots, valid, block=block)
  for row in range(2):
    # A query on padding sees nothing, and its output is not used.
    real = valid[row]
    expected = witness.attend(
        query[row][real], key[row], value[row], slots[real], valid[row])
    np.testing.assert_allclose(out[row][real], expected, atol=1e-5)


@pytest.mark.parametrize('block', [64, 2])
def test_attend_to_a_longer_cache_sees_slots_up_to_its_own(block):
  # Three queries write slots 4, 5, 6 of ten: slots 7 to 9 are still empty and unseen.
  query, key, value = _inputs(queries=3, slots=10)
  slots = np.arange(4, 7)
  valid = np.ones((2, 10), bool)
  valid[0, :2] = False
  out = attention.attend(query, key, value, slots, valid, block=block)
  for row in range(2):
    expected = witness.attend(query[row], key[row], value[row], slots, valid[row])
    np.testing.assert_allclose(out[row], expected, atol=1e-5)


def test_invisible_slots_have_no_influence():
  query, key, value = _inputs()
  valid, slots = _valid(2, 7), jnp.arange(7)
  huge = np.where(valid[:, :, None, None], 0.0, 1e6).astype(np.float32)
  attend = functools.partial(attention.attend, query, query_slots=slots, valid=valid, block=3)
  real = valid[:, :, None, None]
  np.testing.assert_array_equal(
      np.where(real, attend(key, value), 0), np.where(real, attend(key + huge, value + huge), 0))

  # The future is invisible too: a change of slot 6 reaches query 6 only.
  later = np.array(value)
  later[:, 6] += 1.0
  change = np.where(real, attend(key, later) - attend(key, value), 0)
  changed = np.abs(change).max(axis=(0, 2, 3))
  assert changed[6] > 0.01
  np.testing.assert_array_equal(changed[:6], 0)


@pytest.mark.parametrize('block', [64, 3])
def test_the_gradient_is_that_of_a_plain_softmax(block):
  query, key, value = _inputs()
  valid, slots = np.ones((2, 7), bool), jnp.arange(7)
  valid[1, 4] = False
  weights = np.random.default_rng(1).standard_normal(query.shape).astype(np.float32)

  def total(attend, *inputs):
    return jnp.sum(weights * attend(*inputs, slots, valid))

  ours = functools.partial(total, functools.partial(attention.attend, block=block))
  naive = functools.partial(total, _naive)
  got = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(query, key, value)
  expected = jax.jit(jax.grad(naive, argnums=(0, 1, 2)))(query, key, value)

  for name, a, b in zip(('query', 'key', 'value'), got, expected):
    np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)
    assert np.abs(b).max() > 0.1


def test_the_core_passes_check_grads():
  query, key, value = (x.swapaxes(1, 2).reshape(4, 7, 6) for x in _inputs(heads=2))
  bias = np.where(np.tri(7, dtype=bool), 0.0, attention.MASKED)[None].repeat(2, 0)
  core = jax.jit(lambda q, k, v: attention._core(q, k, v, bias.astype(np.float32)))
  jax.test_util.check_grads(core, (query, key, value), order=1, modes=['rev'], eps=1e-2,
                            atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize('block', [64, 3])
def test_a_row_that_attends_to_nothing_is_finite(block):
  query, key, value = _inputs()
  valid = np.array([[False] * 7, [True] * 7])

  def total(query, key, value):
    out = attention.attend(query, key, value, jnp.arange(7), valid, block=block)
    return jnp.sum(jnp.square(out)), out

  gradients, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(query, key, value)
  for array in (out, *gradients):
    assert np.isfinite(array).all()


@pytest.mark.parametrize('block', [64, 3])
def test_bfloat16_is_close_to_float32(block):
  inputs = _inputs()
  slots, valid = jnp.arange(7), np.ones((2, 7), bool)
  attend = functools.partial(attention.attend, query_slots=slots, valid=valid, block=block)
  out = attend(*(jnp.asarray(x, jnp.bfloat16) for x in inputs))
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(np.float32), attend(*inputs), atol=0.05)

  gradient = jax.jit(jax.grad(
      lambda *x: attend(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2)))
  gradients = gradient(*(jnp.asarray(x, jnp.bfloat16) for x in inputs))
  exact = gradient(*inputs)
  for a, b in zip(gradients, exact):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(a.astype(np.float32), b, atol=0.1)


def _sizes(jaxpr):
  """Yields the number of elements of every array that a jaxpr computes, including inner jaxprs."""
  for equation in jaxpr.eqns:
    yield from (np.prod(out.aval.shape, dtype=int) for out in equation.outvars)
    for param in jax.tree.leaves(
        equation.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')):
      inner = getattr(param, 'jaxpr', param)
      if hasattr(inner, 'eqns'):
        yield from _sizes(inner)


@pytest.mark.parametrize('block, stores_scores', [(8, False), (64, True)])
def test_blocks_store_no_array_of_queries_times_keys(block, stores_scores):
  query, key, value = _inputs(rows=1, queries=64, slots=64, heads=2, kv_heads=2, head_dim=4)

  def total(*inputs):
    out = attention.attend(*inputs, jnp.arange(64), np.ones((1, 64), bool), block=block)
    return jnp.sum(jnp.square(out))

  jaxpr = jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2)))(query, key, value)
  assert (max(_sizes(jaxpr.jaxpr)) >= 2 * 64 * 64) == stores_scores
