"""Norms, rotary positions, the feed-forward layer, rounding, and the sharding constraint.

Activations are two-dimensional, [B*T, D], wherever positions do not matter. Each product is then
a single matrix product, which is faster on CPUs.

Every bfloat16 result goes through `rounded` or `elementwise`. Otherwise XLA may keep it in
float32 (`xla_allow_excess_precision` is on by default), and it does so in different places in a
forward pass and in a forward pass with its gradient. Log-probs of the same parameters and tokens
then differ by 0.1 nats per response, and the ratio before the first step is not 1.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxrl_llm.models import configs

# The mesh axes over which rows (sequences) are sharded.
ROWS = ('data', 'fsdp')


def constrain(x: jax.Array, *axes) -> jax.Array:
  """Constrains an activation's sharding; does nothing if no mesh is set.

  Without these constraints the TPU partitioner may replicate the batch. A dimension that
  is not divisible by its mesh axes is left to the compiler.

  Args:
    x: any array.
    *axes: for each dimension, a mesh axis, a tuple of mesh axes, or None.

  Returns:
    x with the constraint applied.
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


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _rounded(x, dtype):
  info = jnp.finfo(dtype)
  # In float32: XLA may drop a reduction to the precision that the operand already has.
  return jax.lax.reduce_precision(x.astype(jnp.float32), info.nexp, info.nmant).astype(dtype)


@_rounded.defjvp
def _rounded_jvp(dtype, primals, tangents):
  return _rounded(*primals, dtype), tangents[0].astype(dtype)


def rounded(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """Casts to the trunk's dtype, with rounding that the compiler cannot remove.

  XLA may skip the rounding of a plain cast if a cast back follows. It never skips
  `reduce_precision`. The derivative is that of a cast.

  Args:
    x: float32 or bfloat16, any shape.
    dtype: float32 (a plain cast) or bfloat16.

  Returns:
    x in `dtype`.
  """
  dtype = jnp.dtype(dtype)
  return x.astype(dtype) if dtype == jnp.float32 else _rounded(x, dtype)


def cast(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """Casts an operand to the trunk's dtype with `rounded`, unless it already has that dtype."""
  return x if x.dtype == dtype else rounded(x, dtype)


def elementwise(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
  """Applies a function to activations in float32 and rounds its result once.

  The backward pass recomputes the function from `arrays`, so that no float32 copy of an
  activation is stored for it.

  Args:
    function: elementwise (or broadcasting) function of arrays.
    *arrays: arrays of one dtype; float32 arrays are passed to `function` unchanged.

  Returns:
    The result, in the dtype of `arrays`.
  """
  dtype = arrays[0].dtype
  if dtype == jnp.float32:
    return function(*arrays)

  def widened(*arrays):
    return rounded(function(*(x.astype(jnp.float32) for x in arrays)), dtype)

  return jax.checkpoint(widened, prevent_cse=False)(*arrays)


def fan_in(scale: float = 1.0):
  """Normal initialiser with standard deviation scale / sqrt(inputs)."""
  return nn.initializers.variance_scaling(scale**2, 'fan_in', 'normal')


class Dense(nn.Module):
  """A linear layer with kernel [in, out], computed in the trunk's dtype.

  If its parameters include an adapter, `lora_a` [in, r] and `lora_b` [r, out], the output is
  x W + (x A) B. The adapter is already scaled (see models/lora.py).
  """

  config: configs.TransformerConfig
  features: int
  bias: bool
  scale: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps x [..., in] to [..., out]."""
    dtype = jnp.dtype(self.config.compute_dtype)
    x = cast(x, dtype)
    kernel = self.param('kernel', fan_in(self.scale), (x.shape[-1], self.features))
    y = rounded(x @ cast(kernel, dtype), dtype)
    if self.has_variable('params', 'lora_a'):
      a, b = (cast(self.get_variable('params', name), dtype) for name in ('lora_a', 'lora_b'))
      y = elementwise(jnp.add, y, rounded(rounded(x @ a, dtype) @ b, dtype))
    if self.bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y = elementwise(jnp.add, y, cast(bias, dtype))
    return y


class Norm(nn.Module):
  """RMSNorm or LayerNorm over the last axis, computed in float32."""

  config: configs.TransformerConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises x [..., D]."""
    width = x.shape[-1]
    offset = self.config.norm == 'rms_plus_one'
    start = nn.initializers.zeros if offset else nn.initializers.ones
    scale = self.param('scale', start, (width,))
    if offset:
      scale = 1 + scale.astype(jnp.float32)
    y = x.astype(jnp.float32)
    if self.config.norm == 'layer':
      y = y - jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(variance + self.config.norm_epsilon) * scale
    if self.config.norm == 'layer':
      y = y + self.param('bias', nn.initializers.zeros, (width,))
    return rounded(y, x.dtype)


def rotary_frequencies(config: configs.TransformerConfig, *, local: bool = False) -> jax.Array:
  """Rotary frequency of each pair of dimensions, in radians per token.

  f_i = θ^(-2i / r), i < r / 2, with r rotated dimensions. Linear scaling gives f / s.
  Llama 3's scaling, with wavelength w = 2π / f and original length n, gives:

    w > n / low: f / s;   w < n / high: f;   between: u f + (1 - u) f / s,
    u = (n / w - low) / (high - low).

  Args:
    config: model config.
    local: return the frequencies of sliding layers, if they have their own.

  Returns:
    float32 [rotary_dim / 2].

  References:
    Su et al., 2021, RoFormer, eq. 15, arXiv 2104.09864. Chen et al., 2023, Position
    interpolation, arXiv 2306.15595. Grattafiori et al., 2024, Llama 3, arXiv 2407.21783.
  """
  own = local and config.rope_local_theta
  theta = config.rope_local_theta if own else config.rope_theta
  size = config.rotary_dim
  frequency = theta ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
  if own or config.rope_scaling == 'none':
    return frequency
  stretched = frequency / config.rope_factor
  if config.rope_scaling == 'linear':
    return stretched
  low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
  turns = config.rope_original_length * frequency / (2 * math.pi)  # n / w
  unscaled = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
  return unscaled * frequency + (1 - unscaled) * stretched


def rotary_tables(positions: jax.Array, frequencies: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of the rotary angles, positions[t] f_i.

  Args:
    positions: int32 [B, T].
    frequencies: float32 [r / 2], from `rotary_frequencies`.

  Returns:
    (cos, sin), float32 [B, T, 1, r / 2].
  """
  angle = positions[:, :, None, None].astype(jnp.float32) * frequencies
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Applies rotary positions to the first r dimensions of x [B, T, heads, head_dim].

  The two halves are rotated against each other, not interleaved pairs, as in the checkpoints
  of all supported families.
  """
  cos, sin = tables
  size = 2 * cos.shape[-1]
  turned, rest = x[..., :size].astype(jnp.float32), x[..., size:]
  first, second = jnp.split(turned, 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  turned = rounded(turned, x.dtype)
  return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned


def _activate(name: str, x: jax.Array) -> jax.Array:
  if name == 'swiglu':
    return nn.silu(x)
  if name == 'relu':
    return nn.relu(x)
  return nn.gelu(x, approximate=name != 'gelu_exact')


class Mlp(nn.Module):
  """The feed-forward layer: an up projection (gated for some activations) and a down projection."""

  config: configs.TransformerConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps x [B*T, D] to [B*T, D]."""
    config = self.config
    dense = functools.partial(Dense, config, bias=config.mlp_bias)
    activate = functools.partial(_activate, config.activation)
    up = dense(config.mlp_width, name='up')(x)
    if config.activation in configs.GATED:
      gate = dense(config.mlp_width, name='gate')(x)
      hidden = elementwise(lambda gate, up: activate(gate) * up, gate, up)
    else:
      hidden = elementwise(activate, up)
    hidden = constrain(hidden, ROWS, 'tensor')
    return dense(config.width, name='down', scale=(2 * config.num_layers) ** -0.5)(hidden)
