"""A policy: the trunk with a head over the vocabulary."""

import jax
import jax.numpy as jnp

from jaxrl_llm.models import configs, transformer
from jaxrl_llm.types import ModelFns


def make(config: configs.TransformerConfig) -> ModelFns:
  """Returns the policy as pure functions; `apply` returns the head, for chunked logits.

  Args:
    config: model config with `vocab_size` set.

  Returns:
    ModelFns whose `apply` returns hidden [B, T, D] and a head with V rows.

  Raises:
    ValueError: a field is out of range.
  """
  config = transformer.frozen_copy(config)

  def init_head(key):
    if config.tie_embeddings:
      return {}
    draw = jax.nn.initializers.normal(config.width**-0.5)
    kernel = draw(transformer.head_key(key), (config.vocab_size, config.width))
    bias = {'bias': jnp.zeros(config.vocab_size)} if config.head_bias else {}
    return {'head': {'kernel': kernel, **bias}}

  def head(params):
    tied = {'kernel': params['embedder']['embedding']} if config.tie_embeddings else {}
    # A tied head has its own parameters only if it has an adapter.
    return transformer.linear_head(config, {**tied, **params.get('head', {})})

  return transformer.with_head(config, init_head, head)
