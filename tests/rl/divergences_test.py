"""KL estimators by enumeration, and the exact sum over the vocabulary."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import types
from jaxrl_llm.rl import divergences, masking

P = jnp.array([.4, -1.0, .9, .2])
Q = jnp.array([-.3, .5, .1, 1.2])


def _expectation(estimator, logits_p):
  """E_p of an estimator whose samples come from p at `P`, held fixed."""
  log_ratio = jax.nn.log_softmax(logits_p) - jax.nn.log_softmax(Q)
  return jnp.sum(jax.nn.softmax(P) * estimator(log_ratio))


def _inputs(seed=0, rows=2, steps=7, width=5, vocabulary=11):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return draw(rows, steps, width), types.Head(draw(vocabulary, width), draw(vocabulary))


def test_exact_kl_by_hand():
  # p = (1/2, 1/2), q = (1/4, 3/4): ln 2 / 2 + ln(2/3) / 2 = ln(4/3) / 2.
  value = divergences.exact_kl(jnp.log(jnp.array([.5, .5])), jnp.log(jnp.array([.25, .75])))
  np.testing.assert_allclose(value, .5 * np.log(4 / 3), rtol=1e-6)
  assert divergences.exact_kl(P, P + 3.0) == pytest.approx(0, abs=1e-6)


def test_exact_kl_with_excluded_tokens():
  inf = jnp.inf
  p, q = jnp.array([0.0, 0.0, -inf]), jnp.array([0.0, jnp.log(3.0), 2.0])
  # p has no third token: q = (1, 3, e^2) / (4 + e^2), and the third adds nothing.
  expected = .5 * np.log(.5 / (1 / (4 + np.e**2))) + .5 * np.log(.5 / (3 / (4 + np.e**2)))
  np.testing.assert_allclose(divergences.exact_kl(p, q), expected, rtol=1e-6)
  np.testing.assert_allclose(divergences.exact_kl(p, p), 0, atol=1e-7)
  assert divergences.exact_kl(q, p) == inf
  gradient = jax.grad(divergences.exact_kl)(p, q)
  assert np.all(np.isfinite(gradient)) and gradient[2] == 0


def test_k1_and_k3_are_unbiased_and_k2_is_not():
  exact = divergences.exact_kl(P, Q)
  np.testing.assert_allclose(_expectation(divergences.k1, P), exact, rtol=1e-5)
  np.testing.assert_allclose(_expectation(divergences.k3, P), exact, rtol=1e-5)
  assert abs(_expectation(divergences.k2, P) - exact) > .01


def test_k2_bias_is_of_third_order():
  # Halving the distance to q divides k2 - KL by about eight.
  def bias(scale):
    p = Q + scale * jnp.array([1.0, -.5, .2, -.9])
    log_ratio = jax.nn.log_softmax(p) - jax.nn.log_softmax(Q)
    return jnp.sum(jax.nn.softmax(p) * divergences.k2(log_ratio)) - divergences.exact_kl(p, Q)

  with jax.enable_x64(True):
    assert 7 < bias(.02) / bias(.01) < 9


def test_gradients_of_the_estimators():
  gradient = lambda estimator: jax.grad(lambda x: _expectation(estimator, x))(P)
  forward = jax.grad(divergences.exact_kl)(P, Q)
  backward = jax.grad(lambda x: divergences.exact_kl(Q, x))(P)
  np.testing.assert_allclose(gradient(divergences.k1), 0, atol=1e-6)
  np.testing.assert_allclose(gradient(divergences.k2), forward, atol=1e-6)
  np.testing.assert_allclose(gradient(divergences.k3), backward, atol=1e-6)


def test_estimators_by_hand():
  # At a log-ratio of ln 2: ln 2, (ln 2)^2 / 2, 1/2 - 1 + ln 2.
  log_ratio = jnp.log(2.0)
  values = [f(log_ratio) for f in (divergences.k1, divergences.k2, divergences.k3)]
  np.testing.assert_allclose(values, [.693147, .240227, .193147], atol=1e-6)


@pytest.mark.parametrize('size', [1e-2, 3e-3, 1e-3])
def test_k3_stays_exact_where_its_leading_terms_cancel(size):
  # x^2 / 2 - x^3 / 6 + x^4 / 24. Rounding e^-x - 1 costs a few times 6e-8 x, which is 12e-8 / x
  # of the result each; rounding e^-x before 1 is subtracted would cost 12e-8 / x^2 of it.
  x = np.float32([size, -size]).astype(np.float64)
  expected = x**2 / 2 - x**3 / 6 + x**4 / 24
  np.testing.assert_allclose(divergences.k3(jnp.asarray(x, jnp.float32)), expected, rtol=1e-3)


@pytest.mark.parametrize('chunk_size', [0, 1, 3, 7])
def test_token_kl_equals_the_sum_over_the_vocabulary(chunk_size):
  # Two networks of different widths over one vocabulary.
  (hidden_p, head_p), (hidden_q, head_q) = _inputs(0), _inputs(1, width=3)
  logits = [(h @ w.kernel.T + w.bias) / .6 for h, w in ((hidden_p, head_p), (hidden_q, head_q))]
  p, q = (np.asarray(jax.nn.softmax(x), np.float64) for x in logits)
  actual = divergences.token_kl(
      hidden_p, head_p, hidden_q, head_q, temperature=.6, chunk_size=chunk_size)
  np.testing.assert_allclose(actual, np.sum(p * np.log(p / q), -1), rtol=1e-4, atol=1e-5)


def test_token_kl_is_a_measurement():
  (hidden, head), (other, other_head) = _inputs(0), _inputs(1)
  gradients = jax.grad(
      lambda h, w: divergences.token_kl(h, w, other, other_head, chunk_size=3).sum(), (0, 1))(
          hidden, head)
  assert not any(np.any(x) for x in jax.tree.leaves(gradients))
  same = divergences.token_kl(hidden, head, hidden, head, chunk_size=3)
  np.testing.assert_allclose(same, 0, atol=1e-6)


def test_sequence_kl_by_enumeration():
  # Two tokens, each with its own conditional: the KL of whole responses is the mean over
  # responses of the sum of per-token ones, and a stop id at the first slot ends it.
  rng = np.random.default_rng(5)
  first, second = rng.normal(size=(2, 3)), rng.normal(size=(2, 3, 3))
  log_p, log_q = (
      (np.asarray(jax.nn.log_softmax(a)), np.asarray(jax.nn.log_softmax(b)))
      for a, b in zip(first, second, strict=True))
  stop, exact, measured = 0, 0.0, 0.0

  for tokens in itertools.product(range(3), repeat=2):
    if tokens[0] == stop and tokens[1] != 0:
      continue  # One response, regardless of what is after its stop token.
    mask = masking.response_mask(jnp.array(tokens), (stop,)).mask
    # After the stop token is NaN: it must not be read.
    kl = jnp.array([divergences.exact_kl(first[0], first[1]),
                    divergences.exact_kl(second[0, tokens[0]], second[1, tokens[0]])])
    kl = jnp.where(mask > 0, kl, jnp.nan)
    terms = [log[0][tokens[0]] + (log[1][tokens] if mask[1] else 0) for log in (log_p, log_q)]
    exact += np.exp(terms[0]) * (terms[0] - terms[1])
    measured += np.exp(terms[0]) * float(divergences.sequence_kl(kl, mask))

  assert measured == pytest.approx(exact, rel=1e-5) and exact > .1
