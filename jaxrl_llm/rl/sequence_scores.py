"""Scalars that a network with a one-row head computes on rollouts: reward models and critics.

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


def _apply(model: ModelFns, params: Params, rollouts: Rollouts) -> ModelOutput:
  sequences = masking.concatenate_prompt_response(rollouts)
  return model.apply(
      params, sequences.tokens, positions=sequences.positions, valid=sequences.valid)


def _scalars(hidden: Array, head: Head) -> Array:
  """Applies the head in float32 throughout: a one-row head costs almost nothing."""
  chex.assert_axis_dimension(head.kernel, 0, 1)
  dtype = jnp.promote_types(hidden.dtype, jnp.float32)
  return log_probs.head_logits(hidden.astype(dtype), head)[..., 0]
