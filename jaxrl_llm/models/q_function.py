"""A Q-function: the trunk with one or more outputs for each next token."""

import jax
import jax.numpy as jnp

from jaxrl_llm.models import configs, transformer
from jaxrl_llm.types import Head, ModelFns, ModelOutput


def make(config: configs.TransformerConfig, *, num_outputs: int = 1) -> ModelFns:
  """Returns Q(x, ·) as pure functions; its head is initialised to zero.

  Args:
    config: model config with `vocab_size` set.
    num_outputs: M, outputs for each token: 1 for a scalar, more for classes or atoms.

  Returns:
    ModelFns whose `apply` returns hidden [B, T, D] and a head with V · M rows, those of a token
    together; `rl.sequence_scores.outputs_of_choices` reads those of the chosen tokens.

  Raises:
    ValueError: a field is out of range.
  """
  config = transformer.frozen_copy(config)
  if num_outputs < 1:
    raise ValueError(f'num_outputs must be at least 1, got {num_outputs}')

  def init_head(key):
    del key
    rows = config.vocab_size * num_outputs
    return {'q_head': {'kernel': jnp.zeros((rows, config.width)), 'bias': jnp.zeros(rows)}}

  return transformer.with_head(config, init_head, lambda params: Head(**params['q_head']))


def all_outputs(output: ModelOutput, *, num_outputs: int = 1) -> jax.Array:
  """Outputs for every next token, float32 [B, T, V, M]; for decoding, one position at a time."""
  values = transformer.linear_outputs(output)
  return values.reshape(*values.shape[:2], -1, num_outputs)
