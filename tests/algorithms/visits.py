"""REFUEL away from where it sampled: the loss and its gradient at other parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.algorithms import refuel
from jaxrl_llm.types import TrainState
from tests.algorithms import tabular, tiny

PLAIN = dict(num_epochs=1, temperature=1.0, kl_coefficient=0.3, eta=2.0)


@functools.cache
def _visit(model, eta):
  """A step that goes to the parameters in its optimizer's state, then computes the gradient."""
  config = refuel.Config(**{**PLAIN, 'kl_coefficient': 0.0, 'eta': eta, 'num_epochs': 2})
  return jax.jit(refuel.make(config, model, tabular.JUMP).train_step)


def at(target, batch, model=tiny.MODEL, parameters=None, *, eta=2.0):
  """(loss, gradient) at `target` where `parameters` sampled, without a penalty."""
  start = tiny.params() if parameters is None else parameters
  state = TrainState(jnp.int32(0), start, (target, target), jax.random.key(0), {})
  state, metrics = _visit(model, eta)(state, batch)
  # The metrics are of both steps, and the first one's loss is known (R5).
  first = np.average(np.square(eta * np.subtract(*np.asarray(batch.rewards).T)),
                     weights=np.asarray(batch.weight))
  return 2 * float(metrics['train/loss'].value()) - first, state.opt_state[1]
