"""KL divergences: estimates from samples, and exact sums over the vocabulary.

All are KL(p ‖ q) with samples from p: in RL, p is the policy, q the reference,
and `log_ratio` = ln p − ln q at a sampled token.
"""

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm import types
from jaxrl_llm.rl import log_probs, masking, overflow
from jaxrl_llm.types import Array


def k1(log_ratio: Array) -> Array:
  """Plain estimate of KL(p ‖ q) from y ~ p.

    k₁ = ln p(y) − ln q(y),    E_p k₁ = KL(p ‖ q)

  Unbiased; may be negative. Useless as a loss: E_p ∇k₁ = 0.

  Args:
    log_ratio: float [...], nats.

  Returns:
    [...] nats.

  References:
    Schulman (2020), Approximating KL divergence (joschu.net/blog/kl-approx.html).
  """
  chex.assert_type(log_ratio, float)
  return log_ratio


def k2(log_ratio: Array) -> Array:
  """Squared estimate of KL(p ‖ q) from y ~ p.

    k₂ = ½ (ln p(y) − ln q(y))²,    E_p ∇k₂ = ∇KL(p ‖ q)

  Its value has a bias of third order in p − q. Its gradient with respect to p, with the
  samples fixed, is unbiased: use this one as a loss.

  Args:
    log_ratio: float [...], nats.

  Returns:
    [...] nats, at least 0.

  References:
    Schulman (2020), Approximating KL divergence (joschu.net/blog/kl-approx.html).
  """
  chex.assert_type(log_ratio, float)
  return 0.5 * jnp.square(log_ratio)


def k3(log_ratio: Array) -> Array:
  """Corrected estimate of KL(p ‖ q) from y ~ p.

    k₃ = q(y)/p(y) − 1 + ln p(y) − ln q(y),    E_p k₃ = KL(p ‖ q)

  Unbiased where p covers q; never negative. Beware of it as a loss: its gradient, with the
  samples fixed, is that of the other direction, E_p ∇k₃ = ∇KL(q ‖ p).

  It grows like q/p: value and gradient are exact down to a log-ratio of −88 in float32, beyond
  which q/p would overflow. Below that both keep their values at −88, about 1.7e38 and −1.7e38:
  large, finite, and pulling the right way.

  Args:
    log_ratio: float [...], nats.

  Returns:
    [...] nats, at least 0.

  References:
    Schulman (2020), Approximating KL divergence (joschu.net/blog/kl-approx.html).
  """
  chex.assert_type(log_ratio, float)
  lowest = -overflow.largest_exponent(log_ratio.dtype)
  log_ratio = overflow.saturate(log_ratio, lowest, None)
  return jnp.expm1(-log_ratio) + log_ratio


def exact_kl(logits_p: Array, logits_q: Array) -> Array:
  """KL divergence of two softmax distributions, summed over the vocabulary.

    KL(p ‖ q) = Σ_v p_v (ln p_v − ln q_v)

  A logit of −inf means probability 0: a token that p excludes adds nothing, and one
  that only q excludes makes the result +inf.

  Args:
    logits_p: float [..., V].
    logits_q: float [..., V].

  Returns:
    At least float32 [...], nats.
  """
  chex.assert_equal_shape([logits_p, logits_q])
  chex.assert_type([logits_p, logits_q], float)
  dtype = jnp.promote_types(jnp.promote_types(logits_p.dtype, logits_q.dtype), jnp.float32)
  log_p = jax.nn.log_softmax(logits_p.astype(dtype), axis=-1)
  log_q = jax.nn.log_softmax(logits_q.astype(dtype), axis=-1)
  possible = log_p > -jnp.inf
  difference = jnp.where(possible, log_p, 0.0) - jnp.where(possible, log_q, 0.0)
  return jnp.sum(jnp.exp(log_p) * difference, axis=-1)


def token_kl(
    hidden_p: Array,
    head_p: types.Head,
    hidden_q: Array,
    head_q: types.Head,
    *,
    temperature: float = 1.0,
    chunk_size: int = log_probs.DEFAULT_CHUNK_SIZE,
) -> Array:
  """Exact KL(p_t ‖ q_t) of two networks at each position, one chunk of logits at a time.

    KL_t = Σ_v p_{t,v} (ln p_{t,v} − ln q_{t,v}),    p_t = softmax(W_p h_t^p / τ)

  Its sum over a response, averaged over responses sampled from p, estimates the KL of whole
  responses with less variance than log-ratios. For metrics only: no gradient passes.

  Args:
    hidden_p: float [B, T, D_p].
    head_p: kernel [V, D_p], bias [V] or None.
    hidden_q: float [B, T, D_q].
    head_q: kernel [V, D_q], bias [V] or None.
    temperature: τ of both, a positive number (static).
    chunk_size: tokens per row in one chunk; 0 for all of them at once.

  Returns:
    At least float32 [B, T], nats.

  Raises:
    ValueError: on a temperature that is not positive, or a negative chunk size.
  """
  chex.assert_rank([hidden_p, hidden_q, head_p.kernel, head_q.kernel], [3, 3, 2, 2])
  chex.assert_type([hidden_p, hidden_q], float)
  chex.assert_equal_shape_prefix([hidden_p, hidden_q], 2)
  chex.assert_equal_shape_prefix([head_p.kernel, head_q.kernel], 1)
  arrays, heads = jax.lax.stop_gradient(((hidden_p, hidden_q), (head_p, head_q)))

  def chunk(carry, arrays):
    rows, size = arrays[0].shape[:2]
    logits = [
        log_probs.head_logits(x.reshape(rows * size, -1), head, temperature=temperature)
        for x, head in zip(arrays, heads, strict=True)
    ]
    return carry, exact_kl(*logits).reshape(rows, size)

  _, values = log_probs.scan_chunks(chunk, (), arrays, chunk_size=chunk_size)
  return values


def sequence_kl(values: Array, mask: Array) -> Array:
  """Sum of per-token values over each response.

    KL(response) = Σ_t m_t KL_t

  Args:
    values: float [..., T], nats per token, exact or estimated.
    mask: [..., T]; 1 where the policy chose the token.

  Returns:
    At least float32 [...], nats per response.
  """
  chex.assert_equal_shape([values, mask])
  chex.assert_type(values, float)
  return masking.masked_sum(values, mask, axis=-1)
