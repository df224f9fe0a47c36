"""A Q-function: the trunk with one output for each next token."""

import jax
import jax.numpy as jnp

from jaxrl_llm.models import configs, transformer
from jaxrl_llm.types import Head, ModelFns, ModelOutput


def make(config: configs.TransformerConfig) -> ModelFns:
  """Returns Q(x, ·) as pure functions; its head of V rows is initialised to zero.

  Args:
    config: model config with `vocab_size` set.

  Returns:
    ModelFns whose `apply` returns hidden [B, T, D] and a head with V rows.

  Raises:
    ValueError: a field is out of range.
  """
  config = transformer.frozen_copy(config)

  def init_head(key):
    del key
    kernel = jnp.zeros((config.vocab_size, config.width))
    return {'q_head': {'kernel': kernel, 'bias': jnp.zeros(config.vocab_size)}}

  return transformer.with_head(config, init_head, lambda params: Head(**params['q_head']))


def all_q_values(output: ModelOutput) -> jax.Array:
  """Q of every next token, float32 [B, T, V]; used in decoding, one position at a time."""
  return transformer.linear_outputs(output)


def q_values(output: ModelOutput, tokens: jax.Array) -> jax.Array:
  """Q of the chosen tokens, without an array of V columns.

  Args:
    output: output of a model from `make`, hidden [B, T, D].
    tokens: int32 [B, T]; tokens[:, t] was chosen in the state of hidden[:, t].

  Returns:
    float32 [B, T].
  """
  kernel, bias = output.head.kernel[tokens], output.head.bias[tokens]
  return jnp.einsum('btd,btd->bt', output.hidden.astype(jnp.float32), kernel) + bias
