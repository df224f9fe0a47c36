"""Batches with several samples per prompt, compiled train steps, and log-probs written out.

Train steps are compiled once per (algorithm, networks, config), for all test files.
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.models import q_function, reward, value
from jaxrl_llm.rl import masking
from jaxrl_llm.types import Batch, Head, ModelFns, ModelOutput, Rollouts, TrainState
from tests.algorithms import tiny
from tests.models import witness

STOP = PAD = 0  # The padding shares its id with the stop token throughout.
PROMPTS, SLOTS = 4, 3
NETWORKS = {
    'policy': tiny.MODEL, 'value': value.make(tiny.CONFIG), 'reward': reward.make(tiny.CONFIG),
    'q_function': q_function.make(tiny.CONFIG)}


@functools.cache
def parameters(roles=('policy',), seed=0):
  """Parameters of `NETWORKS` by role."""
  return {
      role: jax.tree.map(lambda leaf: 0.7 * leaf, witness.draw_params(
          NETWORKS[role], seed + 7 * (role == 'value')))
      for role in roles}


# --- Batches.


@functools.cache
def batch(num_samples: int = 2, seed: int = 0) -> Batch:
  """Four prompts of 1 to 4 tokens; responses that stop first, last, in between, never."""
  rng = np.random.default_rng([seed, num_samples])
  tokens = rng.integers(1, 7, (PROMPTS, num_samples, SLOTS))
  for row, stops in enumerate(rng.integers(0, SLOTS + 1, (PROMPTS, num_samples))):
    for sample, stop in enumerate(stops):
      tokens[row, sample, stop:] = STOP
  tokens[0, 0], tokens[1, -1] = [STOP] * SLOTS, [2, 5, 1]

  rollouts = make_rollouts(tokens, rng.integers(1, 7, (PROMPTS, 4)), [4, 1, 2, 3])
  rewards = rng.normal(size=(PROMPTS, num_samples))
  reference = rng.normal(-2, 0.5, rollouts.mask.shape) * np.asarray(rollouts.mask)
  return Batch(rollouts, jnp.asarray(rewards, jnp.float32), jnp.asarray(reference, jnp.float32),
               {}, jnp.ones(PROMPTS))


@functools.cache
def two_turns() -> Batch:
  """The batch as dialogues: a first turn of one token, a second one of two."""
  data = batch()
  turns = jnp.broadcast_to(jnp.asarray([0, 1, 1], jnp.int32), data.rollouts.tokens.shape)
  return dataclasses.replace(
      data, aux={'turns': turns, 'turn': jnp.asarray([1, 0, 1, 0], jnp.int32)})


def make_rollouts(tokens, prompts, prompt_lengths) -> Rollouts:
  """Rollouts of tokens [P, K, T]; their log-probs are those of `tiny.params()`."""
  tokens = jnp.asarray(tokens, jnp.int32)
  mask, lengths, reasons = masking.response_mask(tokens, (STOP,))
  rollouts = Rollouts(
      jnp.asarray(prompts, jnp.int32), jnp.asarray(prompt_lengths, jnp.int32), tokens, lengths,
      mask, jnp.zeros(mask.shape), reasons)
  return dataclasses.replace(rollouts, log_probs=log_probs(tiny.params(), rollouts))


def replace_rollouts(data: Batch, **changes) -> Batch:
  """The batch with other rollouts."""
  return dataclasses.replace(data, rollouts=dataclasses.replace(data.rollouts, **changes))


# --- Log-probs, without rl/.


@functools.partial(jax.jit, static_argnames='temperature')
def log_probs(parameters, rollouts, temperature=1.0):
  """ln π(y_t | ...) [P, K, T]; each row is moved to the left, so that its padding comes last."""
  tokens, positions, valid, read = left_aligned(rollouts)
  output = tiny.MODEL.apply(parameters['policy'], tokens, positions=positions, valid=valid)
  hidden = jnp.take_along_axis(output.hidden, read[..., None], axis=1)
  every = jax.nn.log_softmax(hidden @ output.head.kernel.T / temperature)
  responses = rollouts.tokens.reshape(-1, rollouts.tokens.shape[-1], 1)
  chosen = jnp.take_along_axis(every, responses, axis=-1)[..., 0]
  return jnp.where(rollouts.mask > 0, chosen.reshape(rollouts.mask.shape), 0.0)


def left_aligned(rollouts):
  """Rows of prompt and response without padding in front.

  Returns:
    tokens, positions and valid [P * K, L + T]; the index [P * K, T] where each token of the
    response is chosen.
  """
  samples, slots = rollouts.tokens.shape[1:]
  width = rollouts.prompts.shape[1]
  lengths = jnp.repeat(rollouts.prompt_lengths, samples)
  rows = jnp.concatenate(
      [jnp.repeat(rollouts.prompts, samples, axis=0), rollouts.tokens.reshape(-1, slots)], axis=1)
  index = jnp.arange(width + slots)
  shifted = jnp.minimum(index + (width - lengths)[:, None], width + slots - 1)
  tokens = jnp.take_along_axis(rows, shifted, axis=1)
  return (tokens, jnp.broadcast_to(index, tokens.shape), index < (lengths + slots)[:, None],
          lengths[:, None] - 1 + jnp.arange(slots))


# A policy or Q-function that reads one token back, in the dtype of its table; a critic if that has
# one column.
TABLE = np.random.default_rng(1).normal(size=(7, 7)).astype(np.float32)
BIGRAM = ModelFns(
    init=None, init_cache=None,
    apply=lambda params, tokens, **unused: ModelOutput(
        params['table'][tokens], Head(jnp.eye(params['table'].shape[1]), None), None))


def tables(roles=('policy',), scale=1.0):
  """Parameters of `BIGRAM` by role."""
  wide = ('policy', 'q_function')
  return {role: {'table': scale * (TABLE if role in wide else TABLE[:, :1])} for role in roles}


def bigram_log_probs(rollouts, temperature=1.0):
  """ln π(y_t | ...) [P, K, T] of `BIGRAM`, by NumPy in float64."""
  tokens = np.asarray(rollouts.tokens)
  last = np.broadcast_to(np.asarray(rollouts.prompts)[:, None, -1:], (*tokens.shape[:2], 1))
  before = np.concatenate([last, tokens[..., :-1]], axis=-1)
  logits = TABLE[before].astype(np.float64) / temperature
  every = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  chosen = np.take_along_axis(every, tokens[..., None], axis=-1)[..., 0]
  return chosen * np.asarray(rollouts.mask)


# --- Train steps.


def train_step(module: types.ModuleType, networks=(tiny.MODEL,), *, learning_rate=0.0, **options):
  """Jitted train step with `tiny.recorder`; setting a field to its default compiles nothing."""
  default = module.Config()
  changes = {name: x for name, x in options.items() if getattr(default, name) != x}
  return _compiled(module, networks, learning_rate, tuple(sorted(changes.items())))


@functools.cache
def _compiled(module, networks, learning_rate, changes):
  config = module.Config(**dict(changes))
  return jax.jit(module.make(config, *networks, tiny.recorder(learning_rate)).train_step)


def runner(module, networks=(tiny.MODEL,), start=None, **defaults):
  """`run(data, **changes) -> (loss, gradients, metrics)` of a train step of one optimizer step.

  Args:
    module: the algorithm.
    networks: in the order of its `make`.
    start: parameters by role; `tiny.params()` by default.
    **defaults: fields of the config.
  """
  def run(data, **changes):
    step = train_step(module, networks, **{**defaults, **changes})
    return tiny.run_once(step, tiny.params() if start is None else start, data)

  return run


EXACT = 1e-9


def exactly(module, data, networks=(BIGRAM,), start=None, *, learning_rate=0.0, **options):
  """(loss, last gradients, metrics) of a train step in float64.

  Two programs may add up the same terms in different orders. With n terms their sums may differ by
  n ulp of the sum of the terms' sizes: in float32 about 1e-5 of the result, depending on the
  processor; in float64 1e-13, so that only a fault is larger than `EXACT`.

  Args:
    module: the algorithm.
    data: a batch.
    networks: in the order of its `make`; they compute in the dtype of their parameters.
    start: parameters by role; `tables()` by default.
    learning_rate: step size of gradient descent.
    **options: fields of the config.
  """
  def widen(leaf):
    return np.asarray(leaf, np.float64) if leaf.dtype == np.float32 else leaf

  step = train_step(module, networks, learning_rate=learning_rate, **options)
  with jax.enable_x64(True):
    start, data = jax.tree.map(widen, (tables() if start is None else start, data))
    state = TrainState.create(start, tiny.recorder(), jax.random.key(0))
    state, metrics = step(state, data)
    values = {name: float(metric.value()) for name, metric in metrics.items()}
    return values['train/loss'], state.opt_state, values


def assert_same(got, expected, *, tolerance=1e-5):
  """Two results of a run have the same loss and gradients."""
  np.testing.assert_allclose(got[0], expected[0], rtol=10 * tolerance, atol=tolerance)
  tiny.assert_trees_close(got[1], expected[1], tolerance=tolerance)


def assert_exactly_same(got, expected):
  """Two results of `exactly` have the same loss, gradients and metrics."""
  assert_same(got, expected, tolerance=EXACT)
  assert got[2] == pytest.approx(expected[2], rel=EXACT, abs=EXACT)


def gradient_of(function, start=None):
  """Gradient of a loss that is written out: parameters -> number."""
  return jax.jit(jax.grad(function))(tiny.params() if start is None else start)
