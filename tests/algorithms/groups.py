"""Several samples a prompt, and what every algorithm that trains on them is held to.

A check takes `run(batch, **changes_of_the_config) -> (loss, gradients, metrics)` of one iteration
with one optimizer step, as `runner` makes it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.rl import masking
from jaxrl_llm.types import Batch, Head, ModelFns, ModelOutput, Rollouts, TrainState
from tests.algorithms import tiny

STOP = PAD = 0  # The padding shares its id with the stop token throughout.
PROMPTS, SLOTS = 4, 3


@functools.lru_cache
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


def make_rollouts(tokens, prompts, prompt_lengths) -> Rollouts:
  """Rollouts of tokens [P, K, T]; their log-probs are those of `tiny.params()`."""
  tokens = jnp.asarray(tokens, jnp.int32)
  mask, lengths, reasons = masking.response_mask(tokens, (STOP,))
  rollouts = Rollouts(
      jnp.asarray(prompts, jnp.int32), jnp.asarray(prompt_lengths, jnp.int32), tokens, lengths,
      mask, jnp.zeros(mask.shape), reasons)
  return dataclasses.replace(rollouts, log_probs=log_probs(tiny.params(), rollouts))


@functools.partial(jax.jit, static_argnames='temperature')
def log_probs(parameters, rollouts, temperature=1.0):
  """ln π(y_t | ...) [P, K, T], each row moved to the left so that its padding stands behind.

  Nothing of rl/ is used.
  """
  samples, slots = rollouts.tokens.shape[1:]
  width = rollouts.prompts.shape[1]
  lengths = jnp.repeat(rollouts.prompt_lengths, samples)
  rows = jnp.concatenate(
      [jnp.repeat(rollouts.prompts, samples, axis=0), rollouts.tokens.reshape(-1, slots)], axis=1)
  places = jnp.arange(width + slots)
  shift = jnp.minimum(places + (width - lengths)[:, None], width + slots - 1)
  tokens = jnp.take_along_axis(rows, shift, axis=1)
  valid = places < (lengths + slots)[:, None]
  output = tiny.MODEL.apply(
      parameters['policy'], tokens, positions=jnp.broadcast_to(places, tokens.shape), valid=valid)
  read = (lengths[:, None] - 1 + jnp.arange(slots))[..., None]
  hidden = jnp.take_along_axis(output.hidden, read, axis=1)
  every = jax.nn.log_softmax(hidden @ output.head.kernel.T / temperature)
  chosen = jnp.take_along_axis(every, rollouts.tokens.reshape(-1, slots, 1), axis=-1)[..., 0]
  return jnp.where(rollouts.mask > 0, chosen.reshape(rollouts.mask.shape), 0.0)


def gradient_of(function, parameters=None):
  """Gradient of a loss spelt out: parameters -> number."""
  return jax.jit(jax.grad(function))(tiny.params() if parameters is None else parameters)


def runner(make, config_class, parameters=None, **defaults):
  """`run` of an algorithm: make(config, optimizer) -> Algorithm; one compilation a setting."""
  @functools.lru_cache
  def step(changes):
    algorithm = make(config_class(**{**defaults, **dict(changes)}), tiny.recorder())
    return jax.jit(algorithm.train_step)

  def run(data, **changes):
    start = tiny.params() if parameters is None else parameters
    return tiny.run_once(step(tuple(sorted(changes.items()))), start, data)

  return run


def replace_rollouts(data: Batch, **changes) -> Batch:
  """The batch with other rollouts."""
  return dataclasses.replace(data, rollouts=dataclasses.replace(data.rollouts, **changes))


def _same(got, expected, *, tolerance=1e-5):
  np.testing.assert_allclose(got[0], expected[0], rtol=10 * tolerance, atol=tolerance)
  tiny.assert_trees_close(got[1], expected[1], tolerance=tolerance)


def check_initial_ratio(run, data) -> None:
  """R20: before the first step the policy is the one that sampled, at any temperature."""
  for temperature in (0.6, 1.0, 1.3):
    sampled = log_probs(tiny.params(), data.rollouts, temperature)
    metrics = run(replace_rollouts(data, log_probs=sampled), temperature=temperature)[2]
    assert abs(metrics['train/initial_log_ratio']) < 1e-5
    assert abs(metrics['train/sampler_gap']) < 1e-5
  other = run(replace_rollouts(data, log_probs=sampled), temperature=0.5)[2]
  assert other['train/sampler_gap'] > 1e-2  # The gap can be seen where there is one.


def check_padding(run, data) -> None:
  """Nothing behind a stop token or in front of a prompt has a part, NaN included."""
  expected = run(data)
  mask = data.rollouts.mask
  assert (mask == 0).sum() > 3
  slots = np.arange(data.rollouts.prompts.shape[1])
  front = slots < slots.size - np.asarray(data.rollouts.prompt_lengths)[:, None]
  other = replace_rollouts(
      data, tokens=jnp.where(mask > 0, data.rollouts.tokens, 5),
      log_probs=jnp.where(mask > 0, data.rollouts.log_probs, jnp.nan),
      prompts=jnp.where(front, 6 - data.rollouts.prompts, data.rollouts.prompts))
  if data.reference_log_probs is not None:
    other = dataclasses.replace(other, reference_log_probs=jnp.where(
        mask > 0, data.reference_log_probs, jnp.nan))
  _same(run(other), expected)


def check_orders(run, data, *, samples=True) -> None:
  """Neither the order of prompts nor that of a group's samples has a part."""
  expected = run(data)
  turned = jax.tree.map(lambda leaf: leaf[np.array([2, 0, 3, 1])], data)
  _same(run(turned), expected)
  if samples:
    _same(run(data.samples(slice(None, None, -1))), expected)


def check_rows_that_do_not_count(run, data) -> None:
  """Rows of weight 0, and prompts with a reward that is no number: dropped, and counted."""
  dead = jnp.arange(PROMPTS) == 2
  fill = lambda leaf, value: jnp.where(
      dead.reshape((-1,) + (1,) * (leaf.ndim - 1)), value, leaf)
  filler = dataclasses.replace(data, weight=jnp.where(dead, 0.0, data.weight))
  expected = run(filler)
  assert np.isfinite(list(expected[2].values())).all()
  assert expected[2]['train/dropped'] == 0
  assert tiny.differ(run(data)[1], expected[1])
  poisoned = dataclasses.replace(
      filler, rewards=fill(data.rewards, jnp.nan),
      reference_log_probs=jax.tree.map(lambda x: fill(x, jnp.inf), data.reference_log_probs))
  _same(run(replace_rollouts(
      poisoned, log_probs=fill(data.rollouts.log_probs, jnp.nan))), expected)
  for bad in (jnp.nan, jnp.inf, -99_999.0):  # One reward of the group is enough.
    rewards = data.rewards.at[2, -1].set(bad)
    got = run(dataclasses.replace(data, rewards=rewards))
    _same(got, expected)
    assert got[2]['train/dropped'] == pytest.approx(1 / PROMPTS)
  nothing = run(dataclasses.replace(data, weight=jnp.zeros(PROMPTS)))
  assert nothing[0] == 0 and np.isfinite(list(nothing[2].values())).all()
  assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(nothing[1]))


# A policy that reads one token back, in the dtype of its table; a critic if that has one column.
TABLE = np.random.default_rng(1).normal(size=(7, 7)).astype(np.float32)
BIGRAM = ModelFns(
    init=None, init_cache=None,
    apply=lambda params, tokens, **unused: ModelOutput(
        params['table'][tokens], Head(jnp.eye(params['table'].shape[1]), None), None))


def in_float64(algorithm, data, parameters=None):
  """(loss, last gradients, metrics) of a train step, made with `tiny.recorder`, in float64.

  The place to compare two programs that add up the same terms in different orders. With n terms
  their sums may differ by n ulp of the sum of the terms' sizes: in float32 about 1e-5 of the
  result, and how much of it depends on the processor; in float64 1e-13, so that only a fault is
  larger than `EXACT`.

  Args:
    algorithm: on a network that computes in the dtype of its parameters.
    data: a batch.
    parameters: by role; those of `BIGRAM` by default.
  """
  parameters = {'policy': {'table': TABLE}} if parameters is None else parameters
  widen = lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf
  with jax.enable_x64(True):
    parameters, data = jax.tree.map(widen, (parameters, data))
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    state = TrainState(jnp.int32(0), parameters, zeros, jax.random.key(0), {})
    state, metrics = _compiled(algorithm.train_step)(state, data)
    values = {name: float(metric.value()) for name, metric in metrics.items()}
    return values['train/loss'], state.opt_state, values


EXACT = 1e-9
_compiled = functools.lru_cache(jax.jit)


def check_same_in_float64(got, expected) -> None:
  """Two results of `in_float64` agree in loss, gradients and metrics."""
  _same(got, expected, tolerance=EXACT)
  assert got[2] == pytest.approx(expected[2], rel=EXACT, abs=EXACT)


def check_micro_batches(make, data, parameters=None) -> None:
  """Four micro-batches are one, though lengths and weights are uneven; a weight is a repetition.

  Args:
    make: options of the config -> Algorithm on `BIGRAM`, with `tiny.recorder`.
    data: samples of `BIGRAM`.
    parameters: as for `in_float64`.
  """
  data, whole = dataclasses.replace(data, weight=jnp.asarray([2.0, 1, 0, 1])), make()
  expected = in_float64(whole, data, parameters)
  got = in_float64(make(num_micro_batches=4, head_chunk=2), data, parameters)
  check_same_in_float64(got, expected)
  rows = jax.tree.map(lambda leaf: leaf[np.array([0, 0, 1, 3])], data)
  repeated = dataclasses.replace(rows, weight=jnp.ones(PROMPTS))
  check_same_in_float64(in_float64(whole, repeated, parameters), expected)


def check_one_prompt(run, data) -> None:
  """A batch of a single prompt works, and is that prompt's part of a larger one."""
  first = run(dataclasses.replace(data, weight=jnp.asarray([1.0, 0, 0, 0])))
  _same(run(jax.tree.map(lambda leaf: leaf[:1], data)), first)


def check_seeds(make, config, data) -> None:
  """Under vmap over seeds each state takes the step that it takes alone."""
  algorithm = make(config, tiny.recorder())
  states = [TrainState(jnp.int32(0), p, tiny.recorder().init(p), jax.random.key(0), {})
            for p in (tiny.params(0), tiny.params(1))]
  stack = lambda *leaves: jnp.stack(leaves)
  stacked, _ = jax.jit(jax.vmap(algorithm.train_step, (0, None)))(
      jax.tree.map(stack, *states), data)
  alone = jax.jit(algorithm.train_step)
  for index, state in enumerate(states):
    expected = alone(state, data)[0].opt_state
    got = jax.tree.map(lambda leaf, i=index: leaf[i], stacked.opt_state)
    tiny.assert_trees_close(got, expected, tolerance=1e-5)
