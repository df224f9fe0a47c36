"""Norms, rotary positions, the feed-forward layer, and the sharding constraint.

Activations are kept two-dimensional, [B*T, D], wherever positions do not matter:
products are then single matrix products, which CPUs reward.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxrl_llm.models import configs

# The mesh axes over which rows (sequences) are spread.
ROWS = ('data', 'fsdp')


def constrain(x: jax.Array, *axes) -> jax.Array:
  """Pins an activation's sharding; does nothing where no mesh is set.

  Without such pins the TPU partitioner may replicate the batch. A dimension that
  its mesh axes do not divide is left to the compiler.

  Args:
    x: any array.
    *axes: for each dimension, a mesh axis, a tuple of them, or None.

  Returns:
    x, with the constraint.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  spec = []
  for size, axis in zip(x.shape, axes, strict=True):
    names = (axis,) if isinstance(axis, str) else axis or ()
    ways = 1
    for name in names:
      ways *= mesh.shape[name]
    spec.append(axis if size % ways == 0 else None)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def fan_in(scale: float = 1.0):
  """Normal initialiser with standard deviation scale / sqrt(inputs)."""
  return nn.initializers.variance_scaling(scale**2, 'fan_in', 'normal')


def dense(config: configs.TransformerConfig, features: int, *, bias: bool, name: str, scale=1.0):
  """A linear map with kernel [in, out], computing in the trunk's dtype."""
  return nn.Dense(
      features, use_bias=bias, dtype=jnp.dtype(config.compute_dtype), kernel_init=fan_in(scale),
      name=name,
  )


class Norm(nn.Module):
  """RMSNorm or LayerNorm over the last axis, computed in float32."""

  config: configs.TransformerConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises x [..., D]."""
    width = x.shape[-1]
    scale = self.param('scale', nn.initializers.ones, (width,))
    y = x.astype(jnp.float32)
    if self.config.norm == 'layer':
      y = y - jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(variance + self.config.norm_epsilon) * scale
    if self.config.norm == 'layer':
      y = y + self.param('bias', nn.initializers.zeros, (width,))
    return y.astype(x.dtype)


def rotary_tables(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of the rotary angles.

  angle[t, i] = positions[t] θ^(-2i / head_dim), i < head_dim / 2.

  Args:
    positions: int32 [B, T].
    head_dim: width of a head, even.
    theta: the base θ.

  Returns:
    (cos, sin), float32 [B, T, 1, head_dim / 2].

  References:
    Su et al., 2021, RoFormer, eq. 15, arXiv 2104.09864 (halves, not interleaved
    pairs, are rotated against each other, as in Llama and Qwen checkpoints).
  """
  frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  angle = positions[:, :, None, None].astype(jnp.float32) * frequency
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Applies rotary positions to x [B, T, heads, head_dim]."""
  cos, sin = tables
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x.dtype)


class Mlp(nn.Module):
  """The feed-forward layer: SwiGLU, or GELU between two projections."""

  config: configs.TransformerConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps x [B*T, D] to [B*T, D]."""
    config = self.config
    bias = config.output_bias
    up = dense(config, config.mlp_width, bias=bias, name='up')(x)
    if config.activation == 'swiglu':
      gate = dense(config, config.mlp_width, bias=bias, name='gate')(x)
      hidden = nn.silu(gate) * up
    else:
      hidden = nn.gelu(up, approximate=True)
    hidden = constrain(hidden, ROWS, 'tensor')
    scale = (2 * config.num_layers) ** -0.5
    return dense(config, config.width, bias=bias, name='down', scale=scale)(hidden)
