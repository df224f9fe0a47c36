"""The decoder trunk: embedding, a scan over stacked blocks, and the final norm.

Parameters are a plain dict; those of the blocks are stacked, [layers, ...]:
  embedder/embedding [V, D], embedder/position_embedding [S, D] (learned positions),
  layers/{attention_norm, attention, mlp_norm, mlp}/..., final_norm/..., and a head
  (see policy.py, value.py, q_function.py, reward.py).
With post norms there are also layers/{attention_post_norm, mlp_post_norm}. The last
blocks may be stored separately, in `last_layers`, stacked in the same way, so that only they
are trained (see partial.py).
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_llm.models import attention, configs, layers
from jaxrl_llm.types import Head, ModelFns, ModelOutput


class Block(nn.Module):
  """One decoder block on activations [B*T, D]."""

  config: configs.TransformerConfig

  @nn.compact
  def __call__(self, x, *, shape, rotary, valid, write, window=None, segments=None):
    """Adds attention and the feed-forward layer to the residual stream x."""
    config = self.config
    norm = lambda name, y: layers.Norm(config, name=name)(y)
    add = functools.partial(layers.elementwise, jnp.add)

    def attend(x):
      y = attention.Attention(config, name='attention')(
          norm('attention_norm', x), shape=shape, rotary=rotary, valid=valid, write=write,
          window=window, segments=segments,
      )
      return norm('attention_post_norm', y) if config.post_norms else y

    def feed_forward(x):
      y = layers.Mlp(config, name='mlp')(norm('mlp_norm', x))
      return norm('mlp_post_norm', y) if config.post_norms else y

    if config.parallel_residual:
      x = add(add(x, attend(x)), feed_forward(x))
    else:
      x = add(x, attend(x))
      x = add(x, feed_forward(x))

    return layers.constrain(x, layers.ROWS, None)


def init(config: configs.TransformerConfig, key: jax.Array) -> dict:
  """Draws the trunk's parameters, float32 (see `cast`)."""
  config.validate()
  embed_key, position_key, layer_key, norm_key = (jax.random.fold_in(key, i) for i in range(4))
  x = jnp.zeros((1, config.width))
  no_cache = lambda k, v: (k, v, jnp.zeros(1, jnp.int32), None)

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
  """Returns an empty KV cache.

  If the scan over layers is fully unrolled, the cache is a tuple of layers, so
  that no layer is sliced out of (copied from) a stacked array. Otherwise it
  is stacked and carried through the scan.

  Args:
    config: model config.
    batch: B, number of rows.
    slots: S, number of positions.

  Returns:
    {'key', 'value'} of [B, S, KV, h] per layer, as a tuple or stacked [layers, ...].
  """
  shape = (batch, slots, config.num_kv_heads, config.head_dim)
  dtype = jnp.dtype(config.compute_dtype)
  if config.blocks_per_iteration == config.num_layers:
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
    segments: jax.Array | None = None,
    siblings: int = 0,
):
  """Runs the trunk; see `types.ApplyFn` for the arguments.

  Returns:
    (hidden [B, T, D] after the final norm, the updated cache or None).

  Raises:
    ValueError: the sequence or the cache is longer than the model's `max_length`, packed segments
      are given with a cache, or siblings without one.
  """
  b, t = tokens.shape
  slots = valid.shape[-1] - siblings  # The slots of the cache, if there is one.
  if slots > config.max_length:
    # A learned position beyond the table would silently read its last row.
    raise ValueError(
        f'max_length must be at least the number of slots of the sequence or cache ({slots}), got '
        f'{config.max_length}'
    )
  if cache is not None and segments is not None:
    raise ValueError('segments must be None with a cache: a cache holds one sequence per row')
  if siblings and cache is None:
    raise ValueError(f'siblings must be 0 without a cache, got {siblings}')

  x = _embed(config, params['embedder'], tokens, positions)
  rotary = _rotary(config, positions)
  first_slot = 0 if cache_index is None else cache_index
  query_slots, own_slots = first_slot + jnp.arange(t, dtype=jnp.int32), None
  if siblings:  # All of them continue the same tokens.
    steps = jnp.arange(t, dtype=jnp.int32)
    own_slots = jnp.where(steps < t - siblings, query_slots, slots + steps - (t - siblings))
    query_slots = jnp.minimum(query_slots, first_slot + t - siblings)
  block = Block(config)

  def run_block(layer_params, x, sliding, store):
    """Runs one block; `sliding` is a bool if it is equal in all layers, otherwise traced."""
    tables, window = rotary, None
    if isinstance(sliding, bool):
      window = config.sliding_window if sliding else None
    else:
      window = jnp.where(sliding, config.sliding_window, config.max_length)

    if config.rope_local_theta:
      local, everywhere = rotary
      if isinstance(sliding, bool):
        tables = local if sliding else everywhere
      else:
        tables = jax.tree.map(lambda x, y: jnp.where(sliding, x, y), local, everywhere)

    return block.apply(
        {'params': layer_params}, x, shape=(b, t), rotary=tables, valid=valid, window=window,
        segments=segments,
        write=lambda key, value: (*store(key, value), query_slots, own_slots),
    )

  if cache is None:
    x = _run_without_cache(config, run_block, params, x)
  elif isinstance(cache, tuple):
    x, cache = _run_unrolled(config, run_block, params, x, cache, cache_index, siblings)
  else:
    x, cache = _run_stacked(config, run_block, params, x, cache, cache_index, siblings)

  x = layers.Norm(config).apply({'params': params['final_norm']}, x)
  return x.reshape(b, t, config.width), cache


def _embed(config, embedder, tokens, positions):
  """Returns the input of the first block, [B*T, D]."""
  dtype = jnp.dtype(config.compute_dtype)
  x = embedder['embedding'][tokens]
  if config.positions == 'learned':
    x = layers.elementwise(jnp.add, x, embedder['position_embedding'][positions])
  x = layers.cast(x, dtype).reshape(-1, config.width)
  if config.embedding_scale:
    x = layers.elementwise(jnp.multiply, x, jnp.asarray(config.width**0.5, dtype))
  return layers.constrain(x, layers.ROWS, None)


def _rotary(config, positions):
  """Returns rotary tables, a pair for (sliding, full) layers if they differ, or None."""
  if config.positions != 'rope':
    return None

  def tables(local):
    return layers.rotary_tables(positions, layers.rotary_frequencies(config, local=local))

  return (tables(True), tables(False)) if config.rope_local_theta else tables(False)


def _stacks(config, params):
  """Yields (parameters, first layer, sliding flag per layer) of each stack of blocks, in order."""
  first = 0
  for name in ('layers', 'last_layers'):
    if name in params:
      count = jax.tree.leaves(params[name])[0].shape[0]
      yield params[name], first, config.sliding_layers[first : first + count]
      first += count


def _scanned(sliding):
  """Returns the sliding flags to scan over; None if all layers are of one kind."""
  return None if len(set(sliding)) == 1 else jnp.asarray(sliding)


def _run_without_cache(config, run_block, params, x):
  def keep(key, value):
    return key, value

  for stack, _, sliding in _stacks(config, params):

    def body(x, scanned, sliding=sliding):
      layer_params, is_sliding = scanned
      is_sliding = sliding[0] if is_sliding is None else is_sliding
      return run_block(layer_params, x, is_sliding, keep), None

    unroll = min(config.blocks_per_iteration, len(sliding))
    x, _ = jax.lax.scan(
        _remat(body, config.remat), x, (stack, _scanned(sliding)), unroll=unroll
    )
  return x


def _stored(old, new, index, cache_index, siblings):
  """Writes the last keys or values of a layer at the end of its cache, the others at the index.

  Args:
    old: [..., B, S, KV, h].
    new: [..., B, T, KV, h], with 1 for the axis of layers if `old` has one.
    index: indices of the axes before the slots.
    cache_index: slot of the first.
    siblings: number of them at the end.
  """
  def write(old, new, slot):
    return jax.lax.dynamic_update_slice(old, new, (*index, slot, 0, 0))

  sequence = new.shape[-3] - siblings
  if siblings:
    old = write(old, new[..., sequence:, :, :], old.shape[-3] - siblings)
  return write(old, new[..., :sequence, :, :], cache_index) if sequence else old


def _run_unrolled(config, run_block, params, x, cache, cache_index, siblings):
  """Runs the blocks with one cache array per layer, so that none is copied out of a stack."""
  new_cache = []
  for stack, first, sliding in _stacks(config, params):
    for i, is_sliding in enumerate(sliding):

      def store(key, value, old=cache[first + i]):
        new_cache.append({
            name: _stored(old[name], new, (0,), cache_index, siblings)
            for name, new in (('key', key), ('value', value))})
        return new_cache[-1]['key'], new_cache[-1]['value']

      layer_params = jax.tree.map(lambda p: p[i], stack)  # noqa: B023
      x = run_block(layer_params, x, is_sliding, store)
  return x, tuple(new_cache)


def _run_stacked(config, run_block, params, x, cache, cache_index, siblings):
  """Runs the blocks with the stacked cache in the scan's carry, updated in place."""
  for stack, first, sliding in _stacks(config, params):

    def body(carry, scanned, sliding=sliding):
      x, cache = carry
      layer_params, layer, is_sliding = scanned
      is_sliding = sliding[0] if is_sliding is None else is_sliding
      updated = {}

      def store(key, value):
        for name, new in (('key', key), ('value', value)):
          updated[name] = _stored(cache[name], new[None], (layer, 0), cache_index, siblings)
        return updated['key'][layer], updated['value'][layer]

      x = run_block(layer_params, x, is_sliding, store)
      return (x, updated), None

    layer_numbers = jnp.arange(first, first + len(sliding))
    (x, cache), _ = jax.lax.scan(
        body, (x, cache), (stack, layer_numbers, _scanned(sliding)),
        unroll=min(config.blocks_per_iteration, len(sliding)),
    )

  return x, cache


def apply_with_head(
    config, head, params, tokens, *, positions, valid, cache=None, cache_index=None, segments=None,
    siblings=0,
) -> ModelOutput:
  """Runs `apply` and adds head(params); a `types.ApplyFn` once config and head are bound."""
  hidden, cache = apply(
      config, params, tokens, positions=positions, valid=valid, cache=cache,
      cache_index=cache_index, segments=segments, siblings=siblings,
  )
  return ModelOutput(layers.constrain(hidden, layers.ROWS, None, None), head(params), cache)


def with_head(
    config: configs.TransformerConfig,
    init_head: Callable[[jax.Array], dict],
    head: Callable[[dict], Head],
) -> ModelFns:
  """Builds a model from the trunk and a head.

  Args:
    config: validated model config.
    init_head: key -> the head's parameters, float32, to be added to the trunk's.
    head: parameters of the model -> its head.

  Returns:
    The model as pure functions.
  """
  def init_model(key):
    return cast(config, init(config, key) | init_head(key))

  return ModelFns(
      init_model, functools.partial(apply_with_head, config, head),
      functools.partial(init_cache, config))


def linear_outputs(output: ModelOutput) -> jax.Array:
  """All outputs of a small head with a bias at each position, float32 [B, T, outputs]."""
  hidden = output.hidden.astype(jnp.float32)
  return jnp.einsum('btd,od->bto', hidden, output.head.kernel) + output.head.bias


def linear_head(config: configs.TransformerConfig, parameters: dict) -> Head:
  """Builds a head from {'kernel' [V, D], 'bias'?, adapter 'lora_a' [r, D], 'lora_b' [V, r]?}."""
  kernel = parameters['kernel']
  if 'lora_a' in parameters:
    kernel = kernel + parameters['lora_b'] @ parameters['lora_a']
  return Head(kernel, parameters.get('bias'), config.logit_softcap)


def cast(config: configs.TransformerConfig, params: dict) -> dict:
  """Casts freshly drawn parameters to the config's `param_dtype`."""
  return jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(config.param_dtype)), params)


def head_key(key: jax.Array) -> jax.Array:
  """PRNG key for a head, different from all keys of `init`."""
  return jax.random.fold_in(key, 4)


def frozen_copy(config: configs.TransformerConfig) -> configs.TransformerConfig:
  """Returns a validated copy, so that later changes to the caller's object have no effect."""
  config = dataclasses.replace(config)
  config.validate()
  return config
