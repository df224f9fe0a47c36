"""The exact reference of `tasks.noisy_sum` as a network: its cache holds the tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.types import Head, ModelFns, ModelOutput

_NEVER = -1e30


def make(tokenizer, num_sums, error_rate):
  """(model, params): draws the sums that the demonstrations of the task have."""
  size = tokenizer.vocab_size
  digits = np.array([tokenizer.encode(str(digit))[0] for digit in range(10)])
  digit_of = np.zeros(size, np.int32)
  digit_of[digits] = np.arange(10)
  comma, stop = tokenizer.encode(',')[0], tokenizer.stop_ids[0]

  def apply(params, tokens, *, positions, valid, cache, cache_index):
    del params, valid
    stored = jax.lax.dynamic_update_slice(
        cache['tokens'], tokens[..., None, None].astype(jnp.float32), (0, cache_index, 0, 0))
    values = jnp.asarray(digit_of)[stored[..., 0, 0].astype(jnp.int32)]
    slots = cache_index + jnp.arange(tokens.shape[1])
    begin, written = slots - positions, positions - (num_sums + 1)  # Of the prompt; response.
    index = written // 2 + 1  # Of the sum that comes next.

    def digit_at(slot):
      return jnp.take_along_axis(values, jnp.clip(slot, 0, values.shape[1] - 1), axis=1)

    before = jnp.where(
        index == 1, digit_at(begin), digit_at(jnp.broadcast_to(slots - 1, begin.shape)))
    total = (before + digit_at(begin + index)) % 10
    ids = jnp.asarray(digits)
    one_hot = lambda token: jax.nn.one_hot(token, size)
    sums = ((1 - error_rate) * one_hot(ids[total])
            + error_rate * one_hot(ids[(total + 1) % 10]))
    probs = jnp.where((index > num_sums)[..., None], one_hot(stop), sums)
    probs = jnp.where((written % 2 == 1)[..., None], one_hot(comma), probs)
    logits = jnp.where(probs > 0, jnp.log(jnp.maximum(probs, 1e-30)), _NEVER)
    return ModelOutput(logits, Head(jnp.eye(size), None), {'tokens': stored})

  return ModelFns(
      None, apply, lambda batch, slots: {'tokens': jnp.zeros((batch, slots, 1, 1))}), {}
