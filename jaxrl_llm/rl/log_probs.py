"""The single implementation of log-probs, through a head that is chunked along T.

Sampler, old policy, reference and trainer all use it, temperature included, so that
the ratio of two of them is 1 where it should be: to 1e-5 in float32, and in bfloat16
because models round where their dtypes say so (models/layers.py). Logits exist for one
chunk at a time: the custom gradient recomputes a chunk's logits instead of storing them,
so that neither pass holds an array of [B, T, V].
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm import types
from jaxrl_llm.rl import masking
from jaxrl_llm.types import Array

# Tokens per row in one chunk: [B * 128, V] logits are large enough to keep a matmul
# unit busy and small compared to the activations of the trunk.
DEFAULT_CHUNK_SIZE = 128


class _HeadConfig(NamedTuple):
  """Static arguments of the chunked head."""

  temperature: float
  chunk_size: int
  with_entropy: bool
  softcap: float


def scan_chunks(
    function: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    arrays: Any,
    *,
    chunk_size: int,
) -> tuple[Any, Any]:
  """Runs `function` over chunks of the T axis, one after the other.

  The chunks have equal length, at most `chunk_size`. If they do not divide T exactly,
  the last one is padded with zeros and the padding of its outputs is dropped.
  What `function` adds to the carry must be 0 for padding.

  Args:
    function: (carry, arrays [B, c, ...]) -> (carry, outputs [B, c, ...]).
    carry: the initial carry.
    arrays: a pytree of arrays [B, T, ...].
    chunk_size: the largest chunk; 0, or T and above, means one chunk without a scan.

  Returns:
    (the final carry, outputs [B, T, ...]).

  Raises:
    ValueError: if `chunk_size` is negative.
  """
  if chunk_size < 0:
    raise ValueError(f'chunk_size must be 0 (one chunk) or positive, got {chunk_size}')

  leaves = jax.tree.leaves(arrays)
  chex.assert_equal_shape_prefix(leaves, 2)
  rows, steps = leaves[0].shape[:2]
  if chunk_size == 0 or chunk_size >= steps:
    return function(carry, arrays)

  num_chunks = -(-steps // chunk_size)
  size = -(-steps // num_chunks)

  def split(array):
    padding = [(0, 0)] * array.ndim
    padding[1] = (0, num_chunks * size - steps)
    array = jnp.pad(array, padding).reshape(rows, num_chunks, size, *array.shape[2:])
    return jnp.moveaxis(array, 1, 0)

  def join(array):
    array = jnp.moveaxis(array, 0, 1)
    return array.reshape(rows, num_chunks * size, *array.shape[3:])[:, :steps]

  carry, outputs = jax.lax.scan(function, carry, jax.tree.map(split, arrays))
  return carry, jax.tree.map(join, outputs)


def _rounded(kernel: Array, dtype: jnp.dtype) -> Array:
  """Kernel in the dtype of the products; XLA might skip the rounding of a plain cast."""
  if jnp.finfo(dtype).bits >= jnp.finfo(kernel.dtype).bits:
    return kernel.astype(dtype)
  info = jnp.finfo(dtype)
  return jax.lax.reduce_precision(kernel, info.nexp, info.nmant).astype(dtype)


def head_logits(hidden: Array, head: types.Head, *, temperature: float = 1.0) -> Array:
  """Logits of the head, divided by the temperature.

    z = cap(W h + b) / τ,    cap(z) = c tanh(z / c) where the head has a soft cap c

  The product runs in the dtype of `hidden` (bfloat16 on accelerators) and is accumulated
  in float32; everything after it is float32.

  Args:
    hidden: float [..., D].
    head: kernel [V, D], bias [V] or None, soft cap.
    temperature: τ, positive and finite.

  Returns:
    At least float32 [..., V].
  """
  chex.assert_type(hidden, float)
  chex.assert_rank(head.kernel, 2)
  chex.assert_axis_dimension(head.kernel, 1, hidden.shape[-1])
  masking.check_positive('temperature', temperature)

  dtype = jnp.promote_types(hidden.dtype, jnp.float32)
  logits = jnp.einsum('...d,vd->...v', hidden, _rounded(head.kernel, hidden.dtype),
                      preferred_element_type=dtype)
  if head.bias is not None:
    chex.assert_shape(head.bias, head.kernel.shape[:1])
    logits = logits + head.bias.astype(dtype)
  if head.softcap:
    logits = head.softcap * jnp.tanh(logits / head.softcap)
  return logits if temperature == 1.0 else logits / temperature


def log_probs_from_logits(logits: Array, tokens: Array, *, temperature: float = 1.0) -> Array:
  """Log-probs of tokens from given logits.

    ln π(y) = z_y/τ − ln Σ_v exp(z_v/τ)

  For samplers, which already hold the logits of one position. Agrees with
  `token_log_probs`, which the trainer uses. A logit of −inf marks a token that cannot
  be chosen. An id outside the vocabulary gives NaN: a mask hides it, and without a mask
  it shows.

  Args:
    logits: float [..., V].
    tokens: integer [...].
    temperature: τ, positive and finite.

  Returns:
    At least float32 [...], nats.
  """
  chex.assert_type([logits, tokens], [float, int])
  chex.assert_shape(tokens, logits.shape[:-1])
  masking.check_positive('temperature', temperature)
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  if temperature != 1.0:
    logits = logits / temperature
  return _chosen(logits, tokens) - jax.nn.logsumexp(logits, axis=-1)


def _chosen(logits: Array, tokens: Array) -> Array:
  """Logit of each token; NaN where the id does not exist."""
  exists = (tokens >= 0) & (tokens < logits.shape[-1])
  chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1, mode='clip')[..., 0]
  return jnp.where(exists, chosen, jnp.nan)


def _entropy(logits: Array, log_normaliser: Array) -> Array:
  """H = −Σ p ln p, with p ln p = 0 at p = 0, so also at a logit of −inf."""
  log_probs = logits - log_normaliser[..., None]
  return -jnp.sum(jnp.where(log_probs > -jnp.inf, jnp.exp(log_probs) * log_probs, 0.0), axis=-1)


def _forward(config, hidden, kernel, bias, targets):
  """((log_probs, entropy or None), log normaliser), each [B, T]."""
  head = types.Head(_rounded(kernel, hidden.dtype), bias, config.softcap)

  def chunk(carry, arrays):
    hidden, targets = arrays
    rows, size, width = hidden.shape
    flat = hidden.reshape(rows * size, width)
    logits = head_logits(flat, head, temperature=config.temperature)
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    log_probs = _chosen(logits, targets.reshape(-1)) - log_normaliser
    entropy = _entropy(logits, log_normaliser) if config.with_entropy else None
    outputs = ((log_probs, entropy), log_normaliser)
    return carry, jax.tree.map(lambda x: x.reshape(rows, size), outputs)

  _, outputs = scan_chunks(chunk, (), (hidden, targets), chunk_size=config.chunk_size)
  return outputs


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked_head(config, hidden, kernel, bias, targets):
  return _forward(config, hidden, kernel, bias, targets)[0]


def _chunked_head_forward(config, hidden, kernel, bias, targets):
  outputs, log_normaliser = _forward(config, hidden, kernel, bias, targets)
  return outputs, (hidden, kernel, bias, targets, log_normaliser, outputs[1])


def _logits_gradient(config, logits, targets, log_normaliser, entropy, cotangents):
  """d/dz of Σ g·ln π(y) + Σ h·H, for one chunk of [N, V] logits; z is W h + b.

    ∂ ln π(y) / ∂z_v = 1[v = y] − p_v          ∂H / ∂z_v = −p_v (ln p_v + H)
  """
  log_probs_cotangent, entropy_cotangent = cotangents
  log_probs = logits - log_normaliser[:, None]
  probs = jnp.exp(log_probs)
  # A comparison with an iota fuses into the loop over V; a scatter would not.
  chosen = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 1) == targets[:, None]
  gradient = (jnp.where(chosen, 1.0, 0.0) - probs) * log_probs_cotangent[:, None]
  if config.with_entropy:
    surprise = jnp.where(log_probs > -jnp.inf, log_probs, 0.0) + entropy[:, None]
    gradient = gradient - probs * surprise * entropy_cotangent[:, None]
  if config.softcap:  # d/dz c tanh(z / c) = 1 - tanh².
    gradient = gradient * (1 - jnp.square(logits * (config.temperature / config.softcap)))
  return gradient if config.temperature == 1.0 else gradient / config.temperature


def _chunked_head_backward(config, residuals, cotangents):
  hidden, kernel, bias, targets, log_normaliser, entropy = residuals
  compute = hidden.dtype
  head = types.Head(_rounded(kernel, compute), bias, config.softcap)
  wide = log_normaliser.dtype

  def chunk(carry, arrays):
    hidden, targets, log_normaliser, entropy, cotangents = arrays
    rows, size, width = hidden.shape
    flatten = functools.partial(jax.tree.map, lambda x: x.reshape(-1))
    cotangents = flatten(cotangents)
    # Tokens that the loss ignores are zeroed, in case their hidden state is NaN:
    # 0 * NaN would reach the gradient of the kernel.
    counts = functools.reduce(jnp.logical_or, [g != 0 for g in jax.tree.leaves(cotangents)])
    flat = jnp.where(counts[:, None], hidden.reshape(rows * size, width), 0)

    logits = head_logits(flat, head, temperature=config.temperature)
    gradient = _logits_gradient(
        config, logits, *flatten((targets, log_normaliser, entropy)), cotangents)
    gradient = jnp.where(counts[:, None], gradient, 0.0)

    kernel_sum, bias_sum = carry
    if bias is not None:
      bias_sum = bias_sum + jnp.sum(gradient, axis=0)
    gradient = gradient.astype(compute)
    kernel_sum = kernel_sum + jnp.einsum(
        'nv,nd->vd', gradient, flat, preferred_element_type=wide)

    hidden_gradient = jnp.einsum('nv,vd->nd', gradient, head.kernel, preferred_element_type=wide)
    return (kernel_sum, bias_sum), hidden_gradient.astype(compute).reshape(rows, size, width)

  carry = (jnp.zeros(kernel.shape, wide), None if bias is None else jnp.zeros(bias.shape, wide))
  arrays = (hidden, targets, log_normaliser, entropy, cotangents)
  (kernel_sum, bias_sum), hidden_gradient = scan_chunks(
      chunk, carry, arrays, chunk_size=config.chunk_size)
  bias_gradient = None if bias is None else bias_sum.astype(bias.dtype)
  return hidden_gradient, kernel_sum.astype(kernel.dtype), bias_gradient, None


_chunked_head.defvjp(_chunked_head_forward, _chunked_head_backward)


def _check_head(hidden: Array, head: types.Head, targets: Array, temperature: float) -> None:
  chex.assert_rank([hidden, head.kernel, targets], [3, 2, 2])
  chex.assert_type([hidden, head.kernel, targets], [float, float, int])
  chex.assert_shape(targets, hidden.shape[:2])
  masking.check_positive('temperature', temperature)


def token_log_probs(
    hidden: Array,
    head: types.Head,
    targets: Array,
    *,
    temperature: float = 1.0,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> Array:
  """Log-probs of given tokens under a head, without an array of [B, T, V].

    ln π(y_t) = z_{t,y_t} − ln Σ_v exp(z_{t,v}),    z_t = (W h_t + b) / τ

  Use the sampling temperature: scoring at another one breaks ratio = 1.
  `hidden[:, t]` must predict `targets[:, t]`; see `response_log_probs` for
  that shift. Gradients flow to hidden, kernel and bias. Differentiable once, in
  reverse mode.

  Args:
    hidden: float [B, T, D], any float dtype; the logits are float32 in any case.
    head: kernel [V, D], bias [V] or None.
    targets: integer [B, T]. An id outside the vocabulary gives NaN, to be masked.
    temperature: τ, a positive number (static).
    chunk_size: tokens per row in one chunk; 0 for all of them at once.

  Returns:
    At least float32 [B, T], nats.

  Raises:
    ValueError: on a temperature that is not positive, or a negative chunk size.
  """
  _check_head(hidden, head, targets, temperature)
  config = _HeadConfig(float(temperature), chunk_size, False, head.softcap)
  log_probs, _ = _chunked_head(config, hidden, head.kernel, head.bias, targets)
  return log_probs


def token_log_probs_and_entropy(
    hidden: Array,
    head: types.Head,
    targets: Array,
    *,
    temperature: float = 1.0,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> tuple[Array, Array]:
  """`token_log_probs`, and the entropy of the distribution at each position.

    H_t = −Σ_v p_{t,v} ln p_{t,v},    p_t = softmax(z_t)

  Both are differentiable. The entropy costs one more pass over each chunk's logits.

  Args:
    hidden: float [B, T, D].
    head: kernel [V, D], bias [V] or None.
    targets: integer [B, T].
    temperature: τ, a positive number (static); the entropy is at τ too.
    chunk_size: tokens per row in one chunk; 0 for all of them at once.

  Returns:
    (log-probs, entropy), each at least float32 [B, T], nats.

  Raises:
    ValueError: on a temperature that is not positive, or a negative chunk size.
  """
  _check_head(hidden, head, targets, temperature)
  config = _HeadConfig(float(temperature), chunk_size, True, head.softcap)
  return _chunked_head(config, hidden, head.kernel, head.bias, targets)


def _response_inputs(hidden: Array, rollouts: types.Rollouts) -> tuple[Array, Array]:
  """(hidden [B, T, D] that predicts the response, targets [B, T])."""
  chex.assert_rank([hidden, rollouts.prompts, rollouts.tokens], [3, 2, 3])
  num_prompts, num_samples, slots = rollouts.tokens.shape
  prompt_slots = rollouts.prompts.shape[1]
  rows = num_prompts * num_samples
  chex.assert_shape(hidden, (rows, prompt_slots + slots, None))
  targets = rollouts.tokens.reshape(rows, slots)
  return hidden[:, prompt_slots - 1 : prompt_slots + slots - 1], targets


def response_log_probs(
    hidden: Array,
    head: types.Head,
    rollouts: types.Rollouts,
    *,
    temperature: float = 1.0,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> Array:
  """Log-probs of the responses, from hidden states over prompts and responses.

  This is the only place that applies the shift: slot L − 1 + t predicts response token
  t, so that slots L − 1 to L + T − 2 are read and the head skips the prompt.

  Args:
    hidden: float [B, L + T, D] over `masking.concatenate_prompt_response(rollouts)`.
    head: the output head.
    rollouts: the samples, B = P·K.
    temperature: the sampling temperature (static).
    chunk_size: tokens per row in one chunk; 0 for all of them at once.

  Returns:
    At least float32 [P, K, T], nats; 0 where `rollouts.mask` is 0.
  """
  inputs, targets = _response_inputs(hidden, rollouts)
  values = token_log_probs(inputs, head, targets, temperature=temperature, chunk_size=chunk_size)
  return jnp.where(rollouts.mask > 0, values.reshape(rollouts.mask.shape), 0.0)


def response_log_probs_and_entropy(
    hidden: Array,
    head: types.Head,
    rollouts: types.Rollouts,
    *,
    temperature: float = 1.0,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> tuple[Array, Array]:
  """`response_log_probs`, and the entropy at each position.

  Args:
    hidden: float [B, L + T, D] over `masking.concatenate_prompt_response(rollouts)`.
    head: the output head.
    rollouts: the samples, B = P·K.
    temperature: the sampling temperature (static).
    chunk_size: tokens per row in one chunk; 0 for all of them at once.

  Returns:
    (log-probs, entropy), each at least float32 [P, K, T], nats; 0 where
    `rollouts.mask` is 0.
  """
  inputs, targets = _response_inputs(hidden, rollouts)
  values = token_log_probs_and_entropy(
      inputs, head, targets, temperature=temperature, chunk_size=chunk_size)
  mask = rollouts.mask > 0
  log_probs, entropy = (jnp.where(mask, value.reshape(mask.shape), 0.0) for value in values)
  return log_probs, entropy


def cross_entropy(
    hidden: Array,
    head: types.Head,
    targets: Array,
    mask: Array,
    *,
    temperature: float = 1.0,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> types.WeightedMean:
  """Cross-entropy of supervised fine-tuning: a mean over all unmasked tokens.

    −( Σ m_t ln π(y_t) ) / Σ m_t,    both sums over the whole batch

  Args:
    hidden: float [B, T, D]; `hidden[:, t]` predicts `targets[:, t]`.
    head: the output head.
    targets: integer [B, T].
    mask: [B, T]; 1 (or a weight) where a token counts.
    temperature: 1 for a likelihood.
    chunk_size: tokens per row in one chunk; 0 for all of them at once.

  Returns:
    A `types.WeightedMean`, nats per token; divide once, after all micro-batches.
  """
  chex.assert_equal_shape([targets, mask])
  values = token_log_probs(hidden, head, targets, temperature=temperature, chunk_size=chunk_size)
  return masking.masked_mean(-values, mask)
