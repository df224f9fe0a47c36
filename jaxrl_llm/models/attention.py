"""Causal attention with grouped queries. All models call `attend`.

A platform-specific kernel belongs inside `attend`, so that models need not choose one.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_llm.models import configs, layers

# Finite, so that the output of a row that attends to nothing (left padding) is finite.
MASKED = -1e30


@jax.custom_vjp
def _core(query, key, value, bias):
  """softmax(query keyᵀ + bias) value, for [N, Q, h], [N, S, h], [N, S, h], [N', Q', S]."""
  return _core_forward(query, key, value, bias)[0]


def _core_forward(query, key, value, bias):
  scores = jnp.einsum('nqh,nsh->nqs', query, key, preferred_element_type=jnp.float32)
  # There is one bias per sequence, and one score matrix per sequence and key head: the group
  # of query heads is folded into the query length.
  b, t, s = bias.shape
  shape = scores.shape
  scores = scores.reshape(b, -1, t, s) + bias[:, None]
  scores = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
  weights = (scores / jnp.sum(scores, axis=-1, keepdims=True)).reshape(shape)
  weights = layers.rounded(weights, value.dtype)
  out = layers.rounded(jnp.einsum('nqs,nsh->nqh', weights, value), value.dtype)
  return out, (query, key, value, weights, out, bias)


def _core_backward(residuals, gradient):
  query, key, value, weights, out, bias = residuals
  value_gradient = jnp.einsum('nqs,nqh->nsh', weights, gradient)
  weight_gradient = jnp.einsum('nqh,nsh->nqs', gradient, value, preferred_element_type=jnp.float32)
  # Σ_s weights · weight_gradient = gradient · out, which is a shorter sum.
  inner = jnp.sum((gradient * out).astype(jnp.float32), axis=-1, keepdims=True)
  score_gradient = (weights * (weight_gradient - inner)).astype(query.dtype)
  query_gradient = jnp.einsum('nqs,nsh->nqh', score_gradient, key)
  key_gradient = jnp.einsum('nqs,nqh->nsh', score_gradient, query)
  return query_gradient, key_gradient, value_gradient, jnp.zeros_like(bias)


_core.defvjp(_core_forward, _core_backward)


def _capped(query, key, value, bias, cap):
  """Like `_core`, with scores z replaced by c tanh(z / c) before the mask."""
  scores = jnp.einsum('nqh,nsh->nqs', query, key, preferred_element_type=jnp.float32)
  b, t, s = bias.shape
  scores = (cap * jnp.tanh(scores / cap)).reshape(b, -1, t, s) + bias[:, None]
  weights = jax.nn.softmax(scores, axis=-1).reshape(query.shape[0], -1, s)
  weights = layers.rounded(weights, value.dtype)
  return layers.rounded(jnp.einsum('nqs,nsh->nqh', weights, value), value.dtype)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_slots: jax.Array,
    valid: jax.Array,
    *,
    block: int,
    own_slots: jax.Array | None = None,
    window: int | jax.Array | None = None,
    segments: jax.Array | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
) -> jax.Array:
  """Causal attention: softmax(cap(q kᵀ scale) + mask) v, with grouped queries.

  Query t sees slot s if s ≤ query_slots[t], s > query_slots[t] - window, valid[s], and
  both are in the same segment. With `own_slots` it sees s < query_slots[t] and its own slot.
  The mask does not depend on trained inputs, so its gradient is zero.

  Args:
    query: [B, T, H, h].
    key: [B, S, KV, h]; KV divides H.
    value: [B, S, KV, h].
    query_slots: int32 [T]; the slot of each query's own key.
    valid: bool [B, S]; True at slots that may be attended to.
    block: queries per block; with more than one block, each is rematerialised in
      the backward pass, and peak memory is that of one block.
    own_slots: int32 [T]; the slots of the queries' own keys where they are stored apart from the
      sequence, as those of alternatives for one slot; None: `query_slots`.
    window: number of slots that a query sees, including its own (static or int32 []); None: all.
    segments: int32 [B, T], with T = S; None: each row is one segment.
    scale: factor on the scores; None is 1 / √h.
    softcap: c; scores z become c tanh(z / c). 0 is off.

  Returns:
    [B, T, H, h].
  """
  b, t, num_heads, head_dim = query.shape
  s, num_kv_heads = key.shape[1:3]
  group = num_heads // num_kv_heads
  scale = head_dim**-0.5 if scale is None else scale

  fold = lambda x: x.transpose(0, 2, 1, 3).reshape(b * num_kv_heads, -1, head_dim)
  key, value = fold(key), fold(value)
  slots = jnp.arange(s)

  def one_block(query, query_slots, own_slots, query_segments):
    q = query.shape[1]
    last = query_slots if own_slots is None else query_slots - 1
    visible = slots[None, :] <= last[:, None]
    if window is not None:
      visible &= slots[None, :] > query_slots[:, None] - window
    if own_slots is not None:
      visible |= slots[None, :] == own_slots[:, None]

    visible = visible[None] & valid[:, None, :]
    if segments is not None:
      visible &= query_segments[:, :, None] == segments[:, None, :]

    bias = jnp.where(visible, 0.0, MASKED)  # [B, q, S]
    query = query.reshape(b, q, num_kv_heads, group, head_dim)
    query = layers.elementwise(lambda query: query * scale, query)
    query = query.transpose(0, 2, 3, 1, 4).reshape(b * num_kv_heads, group * q, head_dim)
    if softcap:
      out = _capped(query, key, value, bias, softcap)
    else:
      out = _core(query, key, value, bias)

    out = out.reshape(b, num_kv_heads, group, q, head_dim).transpose(0, 3, 1, 2, 4)
    return out.reshape(b, q, num_heads, head_dim)

  if t <= block:
    return one_block(query, query_slots, own_slots, segments)

  blocks = -(-t // block)
  rows = lambda x: x.reshape(b, blocks, block, *x.shape[2:]).swapaxes(0, 1)
  padding = blocks * block - t
  query = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))
  def by_block(slots):
    slots = jnp.pad(slots, (0, padding), constant_values=s - 1)
    return slots.reshape(blocks, block)

  blocked = (rows(query), by_block(query_slots))
  blocked += (None if own_slots is None else by_block(own_slots),)
  blocked += (None if segments is None else rows(jnp.pad(segments, ((0, 0), (0, padding)))),)
  out = jax.lax.map(lambda arrays: jax.checkpoint(one_block)(*arrays), blocked)

  return out.swapaxes(0, 1).reshape(b, blocks * block, num_heads, head_dim)[:, :t]


class Attention(nn.Module):
  """Self-attention over a sequence, or over a KV cache."""

  config: configs.TransformerConfig

  @nn.compact
  def __call__(self, x, *, shape, rotary, valid, write, window=None, segments=None):
    """Attends.

    Args:
      x: [B*T, D].
      shape: (B, T).
      rotary: tables from `layers.rotary_tables`, or None.
      valid: bool [B, S].
      write: (key, value) [B, T, KV, h] -> (key, value) [B, S, KV, h] to attend to, and the
        query slots and own slots of `attend`; it stores keys and values in the cache, if there is
        one.
      window: see `attend`.
      segments: see `attend`.

    Returns:
      [B*T, D].
    """
    config = self.config

    def heads(name, number):
      y = layers.Dense(
          config, number * config.head_dim, bias=config.attention_bias, name=name
      )(x).reshape(*shape, number, config.head_dim)
      if config.qk_norm and name != 'value':
        y = layers.Norm(config, name=f'{name}_norm')(y)
      return layers.constrain(y, layers.ROWS, None, 'tensor', None)

    query = heads('query', config.num_heads)
    key = heads('key', config.num_kv_heads)
    value = heads('value', config.num_kv_heads)
    if rotary is not None:
      query, key = layers.rotate(query, rotary), layers.rotate(key, rotary)

    key, value, query_slots, own_slots = write(key, value)
    out = attend(
        query, key, value, query_slots, valid, block=config.attention_block, own_slots=own_slots,
        window=window, segments=segments, scale=config.query_scale or None,
        softcap=config.attention_softcap,
    )
    out = out.reshape(-1, config.num_heads * config.head_dim)

    return layers.Dense(
        config, config.width, bias=config.output_bias, name='output',
        scale=(2 * config.num_layers) ** -0.5,
    )(out)
