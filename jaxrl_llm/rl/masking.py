"""Response masks, and sums and means that masked slots cannot affect.

A response ends at the *position* of its first stop id. Nothing here compares a
token with a padding id, so that padding may share its id with a stop token.
"""

import math
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.types import Array


class ResponseMask(NamedTuple):
  """Mask, length and end of each response.

  Attributes:
    mask: float32 [..., T]; 1 up to and including the first stop id.
    lengths: int32 [...]; the number of ones.
    stop_reason: int8 [...]; `types.STOPPED` or `types.TRUNCATED`.
  """

  mask: Array
  lengths: Array
  stop_reason: Array


class Sequences(NamedTuple):
  """Prompts and responses joined for a network.

  Attributes:
    tokens: int32 [B, L + T].
    positions: int32 [B, L + T]; 0 at the first real token of a row.
    valid: bool [B, L + T]; False on padding, which must not be attended to.
  """

  tokens: Array
  positions: Array
  valid: Array


def response_mask(
    tokens: Array, stop_ids: tuple[int, ...], *, also_stops: Array | None = None
) -> ResponseMask:
  """Finds the end of each response by the position of its first stop id.

    n = 1 + min{t : y_t ∈ stop ids}, or T where there is none;    mask_t = 1[t < n]

  The stop token is part of the action, and so of the mask. Anything after it is
  ignored, further stop ids included.

  Args:
    tokens: integer [..., T].
    stop_ids: the ids that end a response; with none, every response is truncated.
    also_stops: bool [..., T]; True at further tokens that end a response.

  Returns:
    A `ResponseMask`.
  """
  chex.assert_type(tokens, int)
  slots = tokens.shape[-1]
  positions = jnp.arange(slots, dtype=jnp.int32)
  is_stop = jnp.zeros(tokens.shape, bool) if also_stops is None else also_stops
  for stop_id in stop_ids:
    is_stop |= tokens == stop_id
  # Position of the first stop, counted from 1; `slots` where there is none.
  lengths = jnp.min(jnp.where(is_stop, positions + 1, slots), axis=-1, initial=slots)
  stop_reason = jnp.where(jnp.any(is_stop, axis=-1), types.STOPPED, types.TRUNCATED)
  mask = positions < lengths[..., None]
  return ResponseMask(mask.astype(jnp.float32), lengths.astype(jnp.int32),
                      stop_reason.astype(jnp.int8))


def truncate_after_stop(tokens: Array, *, stop_ids: tuple[int, ...], pad_id: int) -> Array:
  """Overwrites everything after the first stop id with `pad_id`; the stop id stays.

  Args:
    tokens: integer [..., T].
    stop_ids: the ids that end a response.
    pad_id: the id to write; it may be one of `stop_ids`.

  Returns:
    integer [..., T].

  References:
    Gao et al. (2024), REBEL, released code `src/tldr/rebel.py`, arXiv 2404.16767.
  """
  chex.assert_type(tokens, int)
  mask = response_mask(tokens, stop_ids).mask
  return jnp.where(mask > 0, tokens, jnp.asarray(pad_id, tokens.dtype))


def replace_scores_without_stop(
    scores: Array,
    lengths: Array,
    stop_reason: Array,
    *,
    penalty: float,
    slots: int,
    eos_check: Literal['eos', 'pad'] = 'eos',
) -> Array:
  """Replaces the score of a response that did not stop by a constant.

  The score is replaced, not decreased: an unfinished response gets `penalty` at any score.

  The two rules differ on a stop token at the very last slot. `'eos'` checks whether a
  stop token was chosen. `'pad'` is the rule of the released code: it checks whether a
  padding slot is left, and so also penalises a response that stopped in the last slot.

  Args:
    scores: [...] raw scores.
    lengths: int32 [...] from `response_mask`.
    stop_reason: int8 [...] from `response_mask`.
    penalty: the constant (-1 for TL;DR in the released code).
    slots: T, the number of slots that a response could have used.
    eos_check: `'eos'` or `'pad'`.

  Returns:
    [...] scores.

  Raises:
    ValueError: on an unknown `eos_check`.

  References:
    Gao et al. (2024), REBEL, released code `src/tldr/rebel.py`, arXiv 2404.16767.
  """
  chex.assert_equal_shape([scores, lengths, stop_reason])
  chex.assert_type([scores, lengths, stop_reason], [float, int, int])
  if eos_check == 'eos':
    finished = stop_reason == types.STOPPED
  elif eos_check == 'pad':
    finished = lengths < slots
  else:
    raise ValueError(f"eos_check must be 'eos' or 'pad', got {eos_check!r}")
  return jnp.where(finished, scores, jnp.asarray(penalty, scores.dtype))


def shape_rewards(
    scores: Array,
    log_probs: Array,
    reference_log_probs: Array,
    *,
    kl_coefficient: float,
) -> Array:
  """Subtracts the sequence-level KL term from the score.

    r = s − c · (ln π_t(y|x) − ln π_ref(y|x))

  The result is a constant with respect to the parameters: the log-probs are those of the
  policy that sampled, and no gradient passes.

  Args:
    scores: [...] scores, after any missing-stop penalty.
    log_probs: [...] log-probs under the sampling policy, summed over the response, nats.
    reference_log_probs: [...] the same under the reference.
    kl_coefficient: c.

  Returns:
    [...] rewards.

  References:
    Gao et al. (2024), REBEL, released code `src/tldr/rebel.py`, arXiv 2404.16767.
  """
  chex.assert_equal_shape([scores, log_probs, reference_log_probs])
  chex.assert_type([scores, log_probs, reference_log_probs], float)
  return jax.lax.stop_gradient(scores - kl_coefficient * (log_probs - reference_log_probs))


def masked_sum(
    values: Array, mask: Array, *, axis: int | tuple[int, ...] | None = None
) -> Array:
  """Sum of `mask * values` that ignores any masked value, NaN included.

  NaN and infinity under a zero of the mask change neither the sum nor its gradient:
  they are zeroed before anything is computed with them. Earlier computations still meet
  them in their gradient, as 0 · NaN: mask the inputs of a square, an exponential or a
  logarithm too.

  Args:
    values: float [...].
    mask: [...] of the same shape: bool, 0/1, or non-negative weights.
    axis: axes to sum over; all by default.

  Returns:
    At least float32; `values` reduced over `axis`.
  """
  chex.assert_equal_shape([values, mask])
  chex.assert_type(values, float)
  values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
  unmasked = jnp.where(mask > 0, values, 0.0)
  return jnp.sum(unmasked * mask.astype(values.dtype), axis=axis)


def masked_mean(
    values: Array, mask: Array, *, axis: int | tuple[int, ...] | None = None
) -> types.WeightedMean:
  """Masked mean of `values`, not yet divided.

  Means of micro-batches or devices are added, then divided once by the total weight:
  no other order gives the mean over the whole batch.

  Args:
    values: float [...].
    mask: [...] of the same shape: bool, 0/1, or non-negative weights.
    axis: axes to average over; all by default.

  Returns:
    A `types.WeightedMean` with total Σ mask·values and weight Σ mask.
  """
  chex.assert_equal_shape([values, mask])
  total = masked_sum(values, mask, axis=axis)
  return types.WeightedMean(total, jnp.sum(mask.astype(total.dtype), axis=axis))


def left_pad_positions(lengths: Array, slots: int) -> tuple[Array, Array]:
  """Positions and validity of left-padded rows.

    positions_t = max(0, t − (L − n)),    valid_t = t ≥ L − n

  The first real token has position 0, so that padding does not shift a prompt.

  Args:
    lengths: int32 [...]; n, the number of real tokens, at the right end.
    slots: L.

  Returns:
    (positions int32 [..., L], valid bool [..., L]).
  """
  chex.assert_type(lengths, int)
  offsets = jnp.arange(slots, dtype=jnp.int32) - (slots - lengths[..., None])
  return jnp.maximum(offsets, 0).astype(jnp.int32), offsets >= 0


def concatenate_prompt_response(rollouts: types.Rollouts) -> Sequences:
  """Joins every prompt with each of its K responses into rows of L + T slots.

  Row p·K + k holds prompt p and response k. Validity follows `lengths`, not `mask`:
  the policy does not choose a user's turn inside a response, but it reads it.

  Args:
    rollouts: the samples.

  Returns:
    `Sequences` with B = P·K rows.
  """
  chex.assert_rank([rollouts.prompts, rollouts.tokens], [2, 3])
  chex.assert_type([rollouts.prompts, rollouts.tokens, rollouts.lengths], int)
  chex.assert_equal_shape_prefix([rollouts.prompts, rollouts.tokens], 1)
  chex.assert_shape(rollouts.lengths, rollouts.tokens.shape[:2])

  num_prompts, prompt_slots = rollouts.prompts.shape
  _, num_samples, slots = rollouts.tokens.shape
  rows = num_prompts * num_samples

  positions, valid = left_pad_positions(rollouts.prompt_lengths, prompt_slots)
  steps = jnp.arange(slots, dtype=jnp.int32)
  starts = jnp.repeat(rollouts.prompt_lengths.astype(jnp.int32), num_samples)
  response_valid = steps < rollouts.lengths.reshape(rows, 1)

  def join(prompt_part, response_part):
    return jnp.concatenate([jnp.repeat(prompt_part, num_samples, axis=0), response_part], axis=1)

  return Sequences(
      tokens=join(rollouts.prompts, rollouts.tokens.reshape(rows, slots)),
      positions=join(positions, starts[:, None] + steps),
      valid=join(valid, response_valid),
  )


def check_range(name: str, values: Array, low: int, high: int, meaning: str) -> None:
  """Raises unless all values are in [low, high]; traced values pass unchecked.

  JAX clamps indices that are out of range, so that a wrong symbol would silently read another one.

  Args:
    name: name of the values in the message.
    values: int [...], concrete or traced.
    low: smallest allowed value.
    high: largest allowed value.
    meaning: the rule, in words.

  Raises:
    ValueError: with the rule, the first value that breaks it, and where it is.
  """
  if isinstance(values, jax.core.Tracer):
    return
  values = np.asarray(values)
  bad = np.argwhere((values < low) | (values > high))
  if bad.size:
    index = tuple(bad[0].tolist())
    raise ValueError(f'{name} must be {meaning}, got {values[index]} at {list(index)}')


def check_positive(name: str, value: float | Array) -> None:
  """Raises unless `value` is positive and finite; a traced value passes unchecked.

  Args:
    name: name of the value in the message.
    value: a number, or a traced array.

  Raises:
    ValueError: with the rule and the value.
  """
  if isinstance(value, jax.core.Tracer):
    return
  if not (float(value) > 0 and math.isfinite(float(value))):
    raise ValueError(f'{name} must be positive and finite, got {value}')
