"""Policies with known probabilities, with the interface of a network (`ModelFns`)."""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.types import Head, ModelFns, ModelOutput


def bigram(logits, *, seen=None):
  """A policy whose next-token logits are a row of a table.

  Args:
    logits: float [V, V]; row v has the logits after token v.
    seen: a list to which the shape of each traced `tokens` is appended.

  Returns:
    (model, params).
  """
  table = np.asarray(logits, np.float32)

  def apply(params, tokens, *, positions, valid, cache=None, cache_index=None):
    del positions, valid, cache_index
    if seen is not None:
      seen.append(tokens.shape)
    return ModelOutput(params[tokens], Head(jnp.eye(len(table)), None), cache)

  cache = lambda batch, slots: {'unused': jnp.zeros((batch, slots, 1, 1))}
  return ModelFns(lambda key: table, apply, cache), table


def chain(successors, *, seen=None):
  """A bigram policy that draws successors[v] after token v, almost surely."""
  size = len(successors)
  logits = np.full((size, size), -50.0)
  logits[np.arange(size), successors] = 50.0
  return bigram(logits, seen=seen)
