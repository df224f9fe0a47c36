"""REBEL on policies whose parameters are their logits, also away from where they sampled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm.algorithms import rebel
from jaxrl_llm.rl import masking
from jaxrl_llm.types import (
  Batch,
  Head,
  ModelFns,
  ModelOutput,
  Rollouts,
  TrainState,
)


def apply(params, tokens, **_):
  """Logits that depend on the slot alone: [B, L + T, V], or [V] for all of them."""
  size = params.shape[-1]
  return ModelOutput(jnp.broadcast_to(params, (*tokens.shape, size)), Head(jnp.eye(size), None),
                     None)


LOGITS = ModelFns(lambda key: None, apply, lambda *_: None)
# Moves to the parameters in its state, and keeps the gradient that it was given.
JUMP = optax.GradientTransformation(
    lambda params: (params, params),
    lambda gradient, state, params: (
        jax.tree.map(jnp.subtract, state[0], params), (state[0], gradient)))


@functools.lru_cache
def _jump_step(model, changes):
  config = {'temperature': 1.0, 'kl_coefficient': 0.0, 'num_epochs': 2, **dict(changes)}
  return jax.jit(rebel.make(rebel.Config(**config), model, JUMP).train_step)


def at(new, old, batch, model=LOGITS, **changes):
  """(loss, gradient, metrics) at the parameters `new` on what `old` sampled.

  The second of two optimizer steps, the first of which has led from the one to the other.
  """
  as_tree = lambda tree: {'policy': tree if isinstance(tree, dict) else np.float32(tree)}
  new, old = as_tree(new), as_tree(old)
  train_step = _jump_step(model, tuple(sorted(changes.items())))
  start = lambda new: TrainState(np.int32(0), old, (new, new), jax.random.key(0), {})
  _, stayed = train_step(start(old), batch)
  state, moved = train_step(start(new), batch)
  # Sums over both steps, of which the first is the same in both runs.
  metrics = {name: float(2 * (moved[name].total - stayed[name].total / 2) / moved[name].weight)
             for name in moved}
  return metrics['train/loss'], state.opt_state[1]['policy'], metrics


def batch_of(tokens, rewards, *, prompt_slots=1, reference=None, weight=None, stop=0):
  """Pairs [P, 2, T] after prompts that this policy ignores."""
  tokens = np.asarray(tokens, np.int32)
  mask, lengths, reasons = map(np.asarray, masking.response_mask(tokens, (stop,)))
  rows = len(tokens)
  rollouts = Rollouts(
      np.zeros((rows, prompt_slots), np.int32), np.full(rows, prompt_slots, np.int32), tokens,
      lengths, mask, np.zeros_like(mask), reasons)
  as_float = lambda x: None if x is None else np.asarray(x, np.float32)
  weight = np.ones(rows) if weight is None else weight
  return Batch(rollouts, as_float(rewards), as_float(reference), {}, as_float(weight))
