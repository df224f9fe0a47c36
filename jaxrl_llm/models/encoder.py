"""A BERT-style text encoder: one vector per text.

Parameters are a plain dict; those of the blocks are stacked, [layers, ...]:
  embedder/{embedding [V, D], position_embedding [S, D], type_embedding [types, D]},
  embedding_norm/{scale, bias} [D], layers/attention/{query, key, value, output}/{kernel, bias},
  layers/{attention_post_norm, mlp_post_norm}/{scale, bias} and layers/mlp/{up, down}/....
Every token has the first token type, as in the published embedders.

References:
  Devlin et al., 2019, BERT, arXiv 1810.04805. Reimers and Gurevych, 2019, Sentence-BERT,
  arXiv 1908.10084 (pooling).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_llm import checks
from jaxrl_llm.models import attention, configs, layers

POOLINGS = ('cls', 'mean')


@dataclasses.dataclass
class EncoderConfig:
  """Config of a BERT-style encoder.

  Attributes:
    vocab_size: V, rows of the embedding.
    num_layers: number of blocks.
    width: D, width of the residual stream.
    num_heads: H, number of heads; divides `width`.
    mlp_width: F, width of the feed-forward layer.
    max_length: maximum number of tokens in a text; rows of the position table.
    type_vocab_size: rows of the token-type table.
    norm_epsilon: added to the variance.
    activation: 'gelu_exact', 'gelu' (tanh form) or 'relu'.
    pooling: vector of a text: that of its first token ('cls') or the 'mean' over its tokens.
    normalize: scale the vector to length 1.
    compute_dtype: dtype of the activations, 'float32' or 'bfloat16'; vectors are float32.
    remat: recompute everything inside a block in the backward pass.
    scan_unroll: blocks per iteration of the scan over layers; 0 unrolls all.
    attention_block: queries per block, as in `TransformerConfig`.
  """

  vocab_size: int = 30_522
  num_layers: int = 2
  width: int = 128
  num_heads: int = 4
  mlp_width: int = 512
  max_length: int = 512
  type_vocab_size: int = 2
  norm_epsilon: float = 1e-12
  activation: str = 'gelu_exact'
  pooling: str = 'cls'
  normalize: bool = False
  compute_dtype: str = 'float32'
  remat: bool = False
  scan_unroll: int = 0
  attention_block: int = 512

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(self, '', type_vocab_size=1, num_heads=1)
    checks.divisible(self, '', 'width', self.num_heads, 'num_heads')
    checks.one_of(self, '', activation=configs.NOT_GATED, pooling=POOLINGS)
    _layer_config(self).validate()


def mxbai_embed_large() -> EncoderConfig:
  """mixedbread-ai/mxbai-embed-large-v1 (its config.json and 1_Pooling/config.json)."""
  return EncoderConfig(
      num_layers=24, width=1024, num_heads=16, mlp_width=4096, compute_dtype='bfloat16',
      scan_unroll=1,
  )


class EncoderFns(NamedTuple):
  """An encoder as pure functions.

  Attributes:
    init: key -> params.
    hidden: (params, tokens int32 [B, T], valid bool [B, T]) -> [B, T, D] after the last block.
    embed: the same arguments -> the vectors of the texts, float32 [B, D].
  """

  init: Callable[[jax.Array], dict]
  hidden: Callable[[dict, jax.Array, jax.Array], jax.Array]
  embed: Callable[[dict, jax.Array, jax.Array], jax.Array]


def make(config: EncoderConfig) -> EncoderFns:
  """Returns the encoder as pure functions.

  Raises:
    ValueError: a field is out of range.
  """
  config = dataclasses.replace(config)
  config.validate()
  hidden = functools.partial(_hidden, config)

  def embed(params, tokens, valid):
    return pool(config, hidden(params, tokens, valid), valid)

  return EncoderFns(functools.partial(_init, config), hidden, embed)


def pool(config: EncoderConfig, hidden: jax.Array, valid: jax.Array) -> jax.Array:
  """Returns one vector per text: that of its first token, or the mean over its tokens.

  Args:
    config: encoder config; only `pooling` and `normalize` are used.
    hidden: [B, T, D].
    valid: bool [B, T]; True at real tokens. The mean of a row without any is 0.

  Returns:
    float32 [B, D].
  """
  hidden = hidden.astype(jnp.float32)
  if config.pooling == 'cls':
    first = jnp.argmax(valid, axis=1)
    pooled = jnp.take_along_axis(hidden, first[:, None, None], axis=1)[:, 0]
  else:
    total = jnp.sum(jnp.where(valid[:, :, None], hidden, 0.0), axis=1)
    pooled = total / jnp.maximum(jnp.sum(valid, axis=1), 1)[:, None]
  if config.normalize:
    square = jnp.sum(jnp.square(pooled), axis=-1, keepdims=True)
    pooled = pooled * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
  return pooled


def _layer_config(config: EncoderConfig) -> configs.TransformerConfig:
  """Config of the layers that encoders share with decoders."""
  return configs.TransformerConfig(
      vocab_size=config.vocab_size, num_layers=config.num_layers, width=config.width,
      num_heads=config.num_heads, num_kv_heads=config.num_heads,
      head_dim=config.width // config.num_heads, mlp_width=config.mlp_width,
      max_length=config.max_length, norm='layer', norm_epsilon=config.norm_epsilon,
      positions='learned', activation=config.activation, attention_bias=True, output_bias=True,
      mlp_bias=True, compute_dtype=config.compute_dtype, scan_unroll=config.scan_unroll,
      attention_block=config.attention_block,
  )


class _Block(nn.Module):
  """One encoder block on activations [B*T, D], with norms after the residual sums."""

  config: configs.TransformerConfig

  @nn.compact
  def __call__(self, x, *, valid):
    """Attention over all valid tokens, then the feed-forward layer."""
    norm = lambda name, y: layers.Norm(self.config, name=name)(y)
    # Every query is assigned the last slot, so that it sees all tokens in both directions.
    last_slot = jnp.full(valid.shape[1], valid.shape[1] - 1, jnp.int32)
    x = norm('attention_post_norm', x + attention.Attention(self.config, name='attention')(
        x, shape=valid.shape, rotary=None, valid=valid,
        write=lambda key, value: (key, value, last_slot, None),
    ))
    x = norm('mlp_post_norm', x + layers.Mlp(self.config, name='mlp')(x))
    return layers.constrain(x, layers.ROWS, None)


def _init(config: EncoderConfig, key: jax.Array) -> dict:
  """Draws the parameters, float32."""
  layer_config = _layer_config(config)
  x = jnp.zeros((1, config.width))

  def init_block(block_key):
    return _Block(layer_config).init(block_key, x, valid=jnp.ones((1, 1), bool))['params']

  *embed_keys, layer_key, norm_key = (jax.random.fold_in(key, i) for i in range(5))

  rows = {
      'embedding': config.vocab_size, 'position_embedding': config.max_length,
      'type_embedding': config.type_vocab_size,
  }
  draw = nn.initializers.normal(config.width**-0.5)
  layer_keys = jax.vmap(jax.random.fold_in, (None, 0))(layer_key, jnp.arange(config.num_layers))

  return {
      'embedder': {name: draw(embed_key, (number, config.width))
                   for (name, number), embed_key in zip(rows.items(), embed_keys)},
      'embedding_norm': layers.Norm(layer_config).init(norm_key, x)['params'],
      'layers': jax.vmap(init_block)(layer_keys),
  }


def _hidden(config: EncoderConfig, params: dict, tokens: jax.Array, valid: jax.Array) -> jax.Array:
  """Runs the encoder (see `EncoderFns.hidden`); positions count valid tokens and skip padding."""
  b, t = tokens.shape
  if t > config.max_length:
    raise ValueError(
        f'max_length must be at least the number of slots of a text ({t}), got '
        f'{config.max_length}: truncate the texts')

  layer_config = _layer_config(config)
  positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
  embedder = params['embedder']
  x = embedder['embedding'][tokens] + embedder['position_embedding'][positions]
  x = (x + embedder['type_embedding'][0]).reshape(b * t, config.width)
  x = layers.Norm(layer_config).apply({'params': params['embedding_norm']}, x)
  x = layers.constrain(layers.cast(x, config.compute_dtype), layers.ROWS, None)

  def body(x, layer_params):
    return _Block(layer_config).apply({'params': layer_params}, x, valid=valid), None

  x, _ = jax.lax.scan(
      jax.checkpoint(body) if config.remat else body, x, params['layers'],
      unroll=config.scan_unroll or config.num_layers,
  )
  return layers.constrain(x.reshape(b, t, config.width), layers.ROWS, None, None)
