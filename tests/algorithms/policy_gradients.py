"""What the tests of the policy-gradient family share: gradients spelt out, and a bandit."""

import contextlib
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm.models import configs, policy
from jaxrl_llm.rl import scoring
from jaxrl_llm.sampling import decode
from jaxrl_llm.training import optim
from jaxrl_llm.types import Batch, TrainState
from tests.algorithms import groups, tabular, tiny


@contextlib.contextmanager
def fast_compilation():
  """Nearly all of these tests' time goes into compiling programs that run once."""
  jax.config.update('jax_disable_most_optimizations', True)
  try:
    yield
  finally:
    jax.config.update('jax_disable_most_optimizations', False)


def runner(make, config_class, parameters=None, **defaults):
  """As `groups.runner`, where naming a default costs no compilation."""
  inner = groups.runner(make, config_class, parameters, **defaults)
  base = config_class(**defaults)
  return lambda data, **changes: inner(
      data, **{name: value for name, value in changes.items() if getattr(base, name) != value})


@functools.cache
def _log_probs_and_jacobian(num_samples, temperature):
  rollouts = groups.batch(num_samples).rollouts
  log_probs = lambda parameters: groups.log_probs(parameters, rollouts, temperature)
  return log_probs(tiny.params()), jax.jit(jax.jacrev(log_probs))(tiny.params())


def spelt_out(loss, *, num_samples=2, temperature=1.0):
  """(value, gradient) of loss(log-probs [P, K, T]) -> number, for the tokens of `groups.batch`.

  By the chain rule from the Jacobian of the log-probs, which uses nothing of rl/.
  """
  log_probs, jacobian = _log_probs_and_jacobian(num_samples, temperature)
  value, outer = jax.jit(jax.value_and_grad(loss))(log_probs)
  return value, jax.tree.map(lambda leaf: jnp.tensordot(outer, leaf, axes=3), jacobian)


def check_equal(got, expected, *, tolerance=1e-5):
  """Loss and gradient of a run are those of `spelt_out`."""
  np.testing.assert_allclose(got[0], expected[0], rtol=tolerance, atol=tolerance)
  tiny.assert_trees_close(got[1], expected[1], tolerance=tolerance)


def check_steps(make, loss, data, parameters, steps, *, learning_rate):
  """Steps of gradient descent against a policy that stays frozen.

  Args:
    make: optimizer -> Algorithm.
    loss: (parameters, rows) -> number, of the prompts in rows [n], spelt out.
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

  ℓ = −½ (min(1.9, 1 + c) − max(0.05, 1 − c)): from c = 1 on there is no lower bound, and none is
  refused.

  Args:
    make: (clip, optimizer) -> Algorithm on `tabular.LOGITS`, of two steps and without a penalty.
    rewards: of the two, so that the advantages are 1 and −1.
    others: parameters by role besides the policy's.
  """
  old, new = (np.float32(np.log(law)) for law in ([.3, .3, .4], [.41, .57, .02]))
  data = tabular.batch_of([[[1], [2]]], [rewards])
  others = others or {}
  for clip, loss, share in ((.94, -.92, .5), (1.0, -.925, 0), (float('inf'), -.925, 0)):
    start, target = {'policy': old, **others}, {'policy': new, **others}
    state = TrainState(np.int32(0), start, (target, target), jax.random.key(0), {})
    _, metrics = jax.jit(make(clip, tabular.JUMP).train_step)(state, data)
    # Means over two steps, of which the first has ratios of 1: no loss, and nothing is clipped.
    got = [2 * float(metrics[f'train/{name}'].value()) for name in ('loss', 'clip_fraction')]
    np.testing.assert_allclose(got, [loss, share], atol=1e-5)


# --- A bandit: six prompts, each with one right answer among eight that start out about equal.

BANDIT = configs.TransformerConfig(
    vocab_size=8, num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_width=32,
    max_length=8)
BANDIT_MODEL = policy.make(BANDIT)
_PROMPTS = np.arange(1, 7, dtype=np.int32)
_RIGHT = np.array([3, 1, 7, 7, 2, 5])


class Learned(NamedTuple):
  """What came of `play`: `success` and `kl` [6] by prompt, the state, the last metrics."""

  success: np.ndarray
  kl: np.ndarray
  before: np.ndarray
  state: object
  metrics: dict


def play(make, num_samples, *, num_iterations=150, rows=48, others=None, learning_rate=1e-2):
  """Trains an algorithm, make(optimizer) -> Algorithm, on answers that it samples; one program.

  Args:
    make: the algorithm on `BANDIT_MODEL`.
    num_samples: K.
    num_iterations: train steps.
    rows: completions of an iteration, over all prompts.
    others: parameters by role besides the policy's.
    learning_rate: of Adam.
  """
  algorithm = make(optim.make_optimizer(
      optim.OptimizerConfig(name='adam', learning_rate=learning_rate)))
  reference = jax.jit(BANDIT_MODEL.init)(jax.random.key(0))
  sampler = decode.make_sampler(
      BANDIT_MODEL, num_samples=num_samples, max_tokens=1, stop_ids=(0,), pad_id=0)
  chosen = np.arange(rows // num_samples) % 6

  def iterate(state, key):
    rollouts = sampler(
        state.params['policy'], _PROMPTS[chosen][:, None], np.ones(len(chosen), np.int32),
        np.arange(len(chosen)), key)
    rewards = (rollouts.tokens[:, :, 0] == _RIGHT[chosen][:, None]).astype(jnp.float32)
    reference_log_probs, _ = scoring.score(BANDIT_MODEL, reference, rollouts)
    return algorithm.train_step(
        state, Batch(rollouts, rewards, reference_log_probs, {}, jnp.ones(len(chosen))))

  keys = jax.random.split(jax.random.key(2), num_iterations)
  state = algorithm.init(jax.random.key(1), {'policy': reference, **(others or {})})
  state, metrics = jax.jit(lambda s: jax.lax.scan(iterate, s, keys))(state)
  learned, before = (_answers(p) for p in (state.params['policy'], reference))
  return Learned(
      success=learned[np.arange(6), _RIGHT], before=before[np.arange(6), _RIGHT],
      kl=np.sum(learned * np.log(learned / before), axis=-1), state=state,
      metrics={name: np.asarray(m.total / m.weight) for name, m in metrics.items()})


def optimum(before, coefficient):
  """(success, KL) of the maximiser of E r − c KL(π ‖ π_ref), by prompt; see a_star_po_test."""
  normaliser = 1 - before + before * np.exp(1 / coefficient)
  success = before * np.exp(1 / coefficient) / normaliser
  return success, (success - coefficient * np.log(normaliser)) / coefficient


@jax.jit
def _answers(params):
  output = BANDIT_MODEL.apply(
      params, _PROMPTS[:, None], positions=np.zeros((6, 1), np.int32),
      valid=np.ones((6, 1), bool))
  return jax.nn.softmax(output.hidden[:, 0] @ output.head.kernel.T)
