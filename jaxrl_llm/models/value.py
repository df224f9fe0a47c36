"""A value function: the trunk with a small linear head at every position."""

import jax
import jax.numpy as jnp

from jaxrl_llm.models import configs, transformer
from jaxrl_llm.types import Head, ModelFns, ModelOutput, Params


def make(config: configs.TransformerConfig, *, num_outputs: int = 1) -> ModelFns:
  """Returns the value function as pure functions.

  The head starts at zero: before training every state has value 0, rather than
  a random number that would bias the first advantages.

  Args:
    config: model config with `vocab_size` set.
    num_outputs: rows of the head: 1 for a scalar, more for classes or atoms.

  Returns:
    ModelFns whose `apply` returns hidden [B, T, D] and a head with num_outputs rows.

  Raises:
    ValueError: a field is out of range.
  """
  config = transformer.frozen_copy(config)
  if num_outputs < 1:
    raise ValueError(f'num_outputs must be at least 1, got {num_outputs}')

  def init_head(key):
    del key
    kernel = jnp.zeros((num_outputs, config.width))
    return {'value_head': {'kernel': kernel, 'bias': jnp.zeros(num_outputs)}}

  return transformer.with_head(config, init_head, lambda params: Head(**params['value_head']))


def with_trunk(params: Params, policy: Params) -> Params:
  """Replaces the trunk of a value function by that of a policy; the head is kept.

  Args:
    params: parameters of the value function.
    policy: parameters of a policy of the same shape.

  Returns:
    The parameters of a value function that starts from the policy.
  """
  trunk = {name: leaf for name, leaf in policy.items() if name in params}
  return {**params, **trunk}


def outputs(output: ModelOutput) -> jax.Array:
  """All outputs of the head at each position, float32 [B, T, num_outputs]."""
  return transformer.linear_outputs(output)


def values(output: ModelOutput) -> jax.Array:
  """The scalar value of the state after each token, float32 [B, T]."""
  return outputs(output)[..., 0]
