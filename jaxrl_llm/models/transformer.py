"""The decoder trunk: embedding, a scan over stacked blocks, the last norm.

Parameters are a plain dict; those of the blocks are stacked, [layers, ...]:
  embedder/embedding [V, D], embedder/position_embedding [S, D] (learned positions),
  layers/{attention_norm, attention, mlp_norm, mlp}/..., final_norm/..., and a head
  (see policy.py, value.py, q_function.py, reward.py).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_llm.models import attention, configs, layers
from jaxrl_llm.types import ModelOutput


class Block(nn.Module):
  """One pre-norm decoder block on activations [B*T, D]."""

  config: configs.TransformerConfig

  @nn.compact
  def __call__(self, x, *, shape, rotary, valid, write):
    """Adds attention and the feed-forward layer to the residual stream x."""
    norm = lambda name: layers.Norm(self.config, name=name)
    x = x + attention.Attention(self.config, name='attention')(
        norm('attention_norm')(x), shape=shape, rotary=rotary, valid=valid, write=write
    )
    x = x + layers.Mlp(self.config, name='mlp')(norm('mlp_norm')(x))
    return layers.constrain(x, layers.ROWS, None)


def init(config: configs.TransformerConfig, key: jax.Array) -> dict:
  """Draws the trunk's parameters, float32."""
  config.validate()
  embed_key, position_key, layer_key, norm_key = (jax.random.fold_in(key, i) for i in range(4))
  x = jnp.zeros((1, config.width))
  no_cache = lambda k, v: (k, v, jnp.zeros(1, jnp.int32))

  def init_block(block_key):
    return Block(config).init(
        block_key, x, shape=(1, 1), rotary=None, valid=jnp.ones((1, 1), bool), write=no_cache
    )['params']

  draw = nn.initializers.normal(config.width**-0.5)
  embedder = {'embedding': draw(embed_key, (config.vocab_size, config.width))}
  if config.positions == 'learned':
    embedder['position_embedding'] = draw(position_key, (config.max_length, config.width))
  layer_keys = jax.vmap(jax.random.fold_in, (None, 0))(layer_key, jnp.arange(config.num_layers))
  return {
      'embedder': embedder,
      'layers': jax.vmap(init_block)(layer_keys),
      'final_norm': layers.Norm(config).init(norm_key, x)['params'],
  }


def init_cache(config: configs.TransformerConfig, batch: int, slots: int):
  """An empty KV cache.

  Where the scan over layers is fully unrolled the cache is a tuple of layers, so
  that no layer is ever sliced out of (copied from) a stacked array; otherwise it
  is stacked and travels in the scan's carry.

  Args:
    config: the model.
    batch: B rows.
    slots: S positions.

  Returns:
    {'key', 'value'} of [B, S, KV, h] a layer, as a tuple or stacked [layers, ...].
  """
  shape = (batch, slots, config.num_kv_heads, config.head_dim)
  dtype = jnp.dtype(config.compute_dtype)
  if config.scan_unroll in (0, config.num_layers):
    layer = lambda: {'key': jnp.zeros(shape, dtype), 'value': jnp.zeros(shape, dtype)}
    return tuple(layer() for _ in range(config.num_layers))
  stacked = (config.num_layers, *shape)
  return {'key': jnp.zeros(stacked, dtype), 'value': jnp.zeros(stacked, dtype)}


def _remat(function, policy: str):
  if policy == 'none':
    return function
  saveable = jax.checkpoint_policies
  chosen = {'dots': saveable.dots_saveable, 'full': saveable.nothing_saveable}[policy]
  return jax.checkpoint(function, policy=chosen)


def apply(
    config: configs.TransformerConfig,
    params: dict,
    tokens: jax.Array,
    *,
    positions: jax.Array,
    valid: jax.Array,
    cache=None,
    cache_index: jax.Array | None = None,
):
  """Runs the trunk; arguments as in `types.ApplyFn`.

  Returns:
    (hidden [B, T, D] after the last norm, the updated cache or None).

  Raises:
    ValueError: the sequence, or the cache, is longer than the model's `max_length`.
  """
  b, t = tokens.shape
  slots = valid.shape[-1]  # Those of the cache, where there is one.
  if slots > config.max_length:
    # A learned position beyond the table would silently be read as its last row.
    raise ValueError(
        f'max_length must be at least the {slots} slots of the sequence or cache, got '
        f'{config.max_length}'
    )
  block = Block(config)
  x = params['embedder']['embedding'][tokens]
  if config.positions == 'learned':
    x = x + params['embedder']['position_embedding'][positions]
  x = x.astype(jnp.dtype(config.compute_dtype)).reshape(b * t, config.width)
  x = layers.constrain(x, layers.ROWS, None)
  rotary = None
  if config.positions == 'rope':
    rotary = layers.rotary_tables(positions, config.head_dim, config.rope_theta)
  first_slot = 0 if cache_index is None else cache_index
  query_slots = first_slot + jnp.arange(t, dtype=jnp.int32)

  def run_block(layer_params, x, write):
    return block.apply(
        {'params': layer_params}, x, shape=(b, t), rotary=rotary, valid=valid, write=write
    )

  unroll = config.scan_unroll or config.num_layers
  if cache is None:

    def body(x, layer_params):
      write = lambda key, value: (key, value, query_slots)
      return run_block(layer_params, x, write), None

    x, _ = jax.lax.scan(_remat(body, config.remat), x, params['layers'], unroll=unroll)
  elif isinstance(cache, tuple):
    new_cache = []
    for i, layer_cache in enumerate(cache):
      layer_params = jax.tree.map(lambda p: p[i], params['layers'])  # noqa: B023

      def write(key, value, layer_cache=layer_cache):
        store = lambda name, new: jax.lax.dynamic_update_slice_in_dim(
            layer_cache[name], new, cache_index, axis=1
        )
        updated = {'key': store('key', key), 'value': store('value', value)}
        new_cache.append(updated)
        return updated['key'], updated['value'], query_slots

      x = run_block(layer_params, x, write)
    cache = tuple(new_cache)
  else:

    def cached_body(carry, scanned):
      x, cache = carry
      layer_params, layer = scanned
      updated = {}

      def write(key, value):
        for name, new in (('key', key), ('value', value)):
          updated[name] = jax.lax.dynamic_update_slice(
              cache[name], new[None], (layer, 0, cache_index, 0, 0)
          )
        return updated['key'][layer], updated['value'][layer], query_slots

      x = run_block(layer_params, x, write)
      return (x, updated), None

    (x, cache), _ = jax.lax.scan(
        cached_body, (x, cache), (params['layers'], jnp.arange(config.num_layers)), unroll=unroll
    )
  x = layers.Norm(config).apply({'params': params['final_norm']}, x)
  return x.reshape(b, t, config.width), cache


def apply_with_head(
    config, head, params, tokens, *, positions, valid, cache=None, cache_index=None
) -> ModelOutput:
  """`apply`, with head(params) beside the hidden states: a `types.ApplyFn`, once bound."""
  hidden, cache = apply(
      config, params, tokens, positions=positions, valid=valid, cache=cache,
      cache_index=cache_index,
  )
  return ModelOutput(layers.constrain(hidden, layers.ROWS, None, None), head(params), cache)


def head_key(key: jax.Array) -> jax.Array:
  """The key from which a head is drawn, apart from all those of `init`."""
  return jax.random.fold_in(key, 4)


def frozen_copy(config: configs.TransformerConfig) -> configs.TransformerConfig:
  """A validated copy, so that later changes of the caller's object have no effect."""
  config = dataclasses.replace(config)
  config.validate()
  return config
