"""Outputs of reward models, critics and value functions on rollouts.

Apart from `scoring`, this is the only file of rl/ that calls a network, through `ModelFns`.
"""

import chex
import jax.numpy as jnp

from jaxrl_llm.rl import log_probs, masking
from jaxrl_llm.types import Array, Head, ModelFns, ModelOutput, Params, Rollouts


def sequence_scores(model: ModelFns, params: Params, rollouts: Rollouts) -> Array:
  """Scalar at the last token of each response, its stop token included.

  It is read at slot L − 1 + n of prompt and response, n the length of the response. An empty
  response is read at the last token of its prompt.

  Args:
    model: a network whose head has one row.
    params: parameters of the network.
    rollouts: prompts [P, L] and responses [P, K, T].

  Returns:
    float32 [P, K].

  References:
    Gao et al. (2024), REBEL, released code `src/tldr/rm.py`, arXiv 2404.16767 (for where the
    scalar is read).
  """
  output = _apply(model, params, rollouts)
  last = rollouts.prompts.shape[1] - 1 + rollouts.lengths.reshape(-1, 1, 1)
  hidden = jnp.take_along_axis(output.hidden, last, axis=1)
  return _scalars(hidden, output.head).reshape(rollouts.lengths.shape)


def token_values(model: ModelFns, params: Params, rollouts: Rollouts) -> Array:
  """Scalar of the state in which each token is chosen, before it is seen.

  It is read at slots L − 1 to L + T − 2 of prompt and response: the value of y_t at y_{t−1}, that
  of the first token at the end of the prompt.

  Args:
    model: a network whose head has one row.
    params: parameters of the network.
    rollouts: prompts [P, L] and responses [P, K, T].

  Returns:
    float32 [P, K, T]; 0 where `rollouts.mask` is 0.
  """
  output = _apply(model, params, rollouts)
  hidden = output.hidden[:, rollouts.prompts.shape[1] - 1 : -1]
  values = _scalars(hidden, output.head).reshape(rollouts.mask.shape)
  return jnp.where(rollouts.mask > 0, values, 0.0)


def outputs_after(model: ModelFns, params: Params, rollouts: Rollouts) -> Array:
  """Outputs after each token of the responses, read at the token's own slot.

  A value function that has read the token: its outputs are Q(x_t, y_t) = V(x_t y_t).

  Args:
    model: a network whose head has M rows.
    params: parameters of the network.
    rollouts: prompts [P, L] and responses [P, K, T].

  Returns:
    float32 [P, K, T, M]; 0 where `rollouts.mask` is 0.

  References:
    Zhou et al. (2025), Q#, appendix D (V-type), arXiv 2502.20548.
  """
  output = _apply(model, params, rollouts)
  hidden = output.hidden[:, rollouts.prompts.shape[1] :]
  return _unmasked(_linear(hidden, output.head), rollouts)


def outputs_of_choices(
    model: ModelFns, params: Params, rollouts: Rollouts, *, num_outputs: int = 1
) -> Array:
  """Outputs of a Q-function for each token, read where it is chosen: one slot earlier.

  Only the rows of the chosen tokens are multiplied: there is no array of V columns.

  Args:
    model: a network whose head has V · M rows, those of a token together.
    params: parameters of the network.
    rollouts: prompts [P, L] and responses [P, K, T].
    num_outputs: M.

  Returns:
    float32 [P, K, T, M]; 0 where `rollouts.mask` is 0.

  References:
    Zhou et al. (2025), Q#, appendix D (Q-type), arXiv 2502.20548.
  """
  output = _apply(model, params, rollouts)
  hidden = output.hidden[:, rollouts.prompts.shape[1] - 1 : -1]
  tokens = rollouts.tokens.reshape(-1, rollouts.tokens.shape[-1])
  rows = tokens[..., None] * num_outputs + jnp.arange(num_outputs)
  kernel, bias = output.head.kernel[rows], output.head.bias
  dtype = jnp.promote_types(hidden.dtype, jnp.float32)
  values = jnp.einsum('btd,btmd->btm', hidden.astype(dtype), kernel.astype(dtype))
  return _unmasked(values if bias is None else values + bias[rows], rollouts)


def _unmasked(values: Array, rollouts: Rollouts) -> Array:
  """[B, T, M] as [P, K, T, M], 0 where the mask is 0."""
  values = values.reshape(*rollouts.mask.shape, values.shape[-1])
  return jnp.where(rollouts.mask[..., None] > 0, values, 0.0)


def _apply(model: ModelFns, params: Params, rollouts: Rollouts) -> ModelOutput:
  sequences = masking.concatenate_prompt_response(rollouts)
  return model.apply(
      params, sequences.tokens, positions=sequences.positions, valid=sequences.valid)


def _scalars(hidden: Array, head: Head) -> Array:
  chex.assert_axis_dimension(head.kernel, 0, 1)
  return _linear(hidden, head)[..., 0]


def _linear(hidden: Array, head: Head) -> Array:
  """Applies the head in float32 throughout: one of few rows costs almost nothing."""
  dtype = jnp.promote_types(hidden.dtype, jnp.float32)
  return log_probs.head_logits(hidden.astype(dtype), head)
