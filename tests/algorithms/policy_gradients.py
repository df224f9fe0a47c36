"""Checks of the policy-gradient family: gradients by the chain rule, later steps, clipping."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm.types import TrainState
from tests.algorithms import groups, tabular, tiny


@functools.cache
def _log_probs_and_jacobian(num_samples, temperature):
  rollouts = groups.batch(num_samples).rollouts
  log_probs = lambda parameters: groups.log_probs(parameters, rollouts, temperature)
  return log_probs(tiny.params()), jax.jit(jax.jacrev(log_probs))(tiny.params())


def written_out(loss, *, num_samples=2, temperature=1.0):
  """(value, gradient) of loss(log-probs [P, K, T]) -> number, for the tokens of `groups.batch`.

  By the chain rule from the Jacobian of the log-probs, which uses nothing of rl/.
  """
  log_probs, jacobian = _log_probs_and_jacobian(num_samples, temperature)
  value, outer = jax.jit(jax.value_and_grad(loss))(log_probs)
  return value, jax.tree.map(lambda leaf: jnp.tensordot(outer, leaf, axes=3), jacobian)


def check_equal(got, expected, *, tolerance=1e-5):
  """Loss and gradient of a run are those of `written_out`."""
  np.testing.assert_allclose(got[0], expected[0], rtol=tolerance, atol=tolerance)
  tiny.assert_trees_close(got[1], expected[1], tolerance=tolerance)


def check_steps(make, loss, data, parameters, steps, *, learning_rate):
  """Steps of gradient descent against a policy that stays frozen.

  Args:
    make: optimizer -> Algorithm.
    loss: (parameters, rows) -> number, of the prompts in rows [n], written out.
    data: a batch that `parameters` sampled.
    parameters: by role.
    steps: the rows of each step that a train step must take.
    learning_rate: large enough that something is clipped.

  Returns:
    The metrics of the train step, by value.
  """
  algorithm = make(optax.sgd(learning_rate))
  state, metrics = jax.jit(algorithm.train_step)(
      algorithm.init(jax.random.key(0), parameters), data)
  assert int(state.step) == len(steps)
  gradient, expected = jax.jit(jax.grad(loss)), parameters
  for rows in steps:
    moved = gradient(expected, np.asarray(rows))
    expected = jax.tree.map(lambda p, g: p - learning_rate * g, expected, moved)
  step = lambda to: jax.tree.map(jnp.subtract, to, parameters)
  tiny.assert_trees_close(step(state.params), step(expected), tolerance=1e-4)
  first = jax.tree.map(lambda g: -learning_rate * g, gradient(parameters, np.asarray(steps[0])))
  assert tiny.differ(step(expected), jax.tree.map(lambda g: len(steps) * g, first), by=0.05)
  return {name: float(metric.value()) for name, metric in metrics.items()}


def check_clip(make, rewards, others=None) -> None:
  """A response of advantage 1 whose ratio is 1.9, one of advantage −1 whose ratio is 0.05.

  ℓ = −½ (min(1.9, 1 + c) − max(0.05, 1 − c)): from c = 1 on the ratio has no lower bound, and
  the bound is accepted.

  Args:
    make: (clip, optimizer) -> Algorithm on `tabular.LOGITS`, of two steps and without a penalty.
    rewards: rewards of the two, so that the advantages are 1 and −1.
    others: parameters by role other than the policy's.
  """
  old, new = np.log(np.float32([[.3, .3, .4], [.41, .57, .02]]))
  data = tabular.batch_of([[[1], [2]]], [rewards])
  others = others or {}
  for clip, loss, share in ((.94, -.92, .5), (1.0, -.925, 0), (float('inf'), -.925, 0)):
    start, target = {'policy': old, **others}, {'policy': new, **others}
    state = TrainState(np.int32(0), start, (target, target), jax.random.key(0), {})
    _, metrics = jax.jit(make(clip, tabular.JUMP).train_step)(state, data)
    # Means over two steps, of which the first has ratios of 1: no loss, and nothing is clipped.
    got = [2 * float(metrics[f'train/{name}'].value()) for name in ('loss', 'clip_fraction')]
    np.testing.assert_allclose(got, [loss, share], atol=1e-5)
