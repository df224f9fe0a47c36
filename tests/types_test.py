"""Pytrees shared between packages: the state before a run, and samples selected from a batch."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm.types import Batch, Rollouts, TrainState

PROMPTS, SAMPLES, SLOTS = 2, 3, 4


def _batch():
  """Every number gives its index: 100 p + 10 k + t."""
  p, k, t = jnp.indices((PROMPTS, SAMPLES, SLOTS))
  tokens = 100 * p + 10 * k + t
  rollouts = Rollouts(
      prompts=jnp.ones((PROMPTS, 5), jnp.int32), prompt_lengths=jnp.full(PROMPTS, 5), tokens=tokens,
      lengths=tokens[..., 0], mask=0.1 * tokens, log_probs=-1.0 * tokens,
      stop_reason=tokens[..., 1])
  return Batch(rollouts, 2.0 * tokens[..., 0], -2.0 * tokens, {'values': jnp.arange(PROMPTS)},
               jnp.ones(PROMPTS))


def test_a_new_state_is_that_of_its_optimizer_before_the_first_step():
  params, optimizer = {'policy': {'w': jnp.arange(3.0)}}, optax.adam(1e-3)
  key = jax.random.key(7)
  state = TrainState.create(params, optimizer, key)
  assert state.step.dtype == jnp.int32 and state.step == 0
  assert state.params is params and state.key is key and state.aux == {}
  jax.tree.map(np.testing.assert_array_equal, state.opt_state, optimizer.init(params))
  aux = {'mean': jnp.float32(2.0)}
  assert TrainState.create(params, optimizer, key, aux).aux is aux


def test_types_do_not_import_optax():
  code = 'import sys; import jaxrl_llm.types; sys.exit("optax" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0


@pytest.mark.parametrize('index, by_prompt', [
    (slice(1, 3), [[1, 2], [1, 2]]),
    (slice(None, None, -1), [[2, 1, 0], [2, 1, 0]]),
    ([0, 0], [[0, 0], [0, 0]]),
    (np.array([[2, 0], [1, 2]]), [[2, 0], [1, 2]]),
], ids=['slice', 'reversed', 'repeated', 'by prompt'])
@pytest.mark.parametrize('on_host', [False, True])
def test_samples_selects_from_every_field_with_an_axis_of_samples(index, by_prompt, on_host):
  batch = jax.tree.map(np.asarray, _batch()) if on_host else _batch()
  got = batch.samples(index)
  rows, columns = np.arange(PROMPTS)[:, None], np.array(by_prompt)
  for name in ('prompts', 'prompt_lengths'):
    np.testing.assert_array_equal(getattr(got.rollouts, name), getattr(batch.rollouts, name))
  fields = {field.name for field in dataclasses.fields(Rollouts)} - {'prompts', 'prompt_lengths'}
  for name in fields:
    selected = np.asarray(getattr(batch.rollouts, name))[rows, columns]
    np.testing.assert_array_equal(getattr(got.rollouts, name), selected)
    np.testing.assert_array_equal(getattr(batch.rollouts.samples(index), name), selected)
  np.testing.assert_array_equal(got.rewards, np.asarray(batch.rewards)[rows, columns])
  np.testing.assert_array_equal(
      got.reference_log_probs, np.asarray(batch.reference_log_probs)[rows, columns])
  assert got.aux is batch.aux and got.weight is batch.weight


def test_samples_of_a_batch_without_reference():
  batch = dataclasses.replace(_batch(), reference_log_probs=None)
  assert batch.samples(slice(1)).reference_log_probs is None


def test_samples_by_traced_indices():
  got = jax.jit(lambda batch, index: batch.samples(index))(_batch(), jnp.array([[1], [2]]))
  np.testing.assert_array_equal(got.rewards, [[20], [240]])


def test_map_samples_joins_the_samples_of_two_rollouts():
  rollouts = _batch().rollouts
  first, rest = rollouts.samples(slice(1)), rollouts.samples(slice(1, None))
  joined = first.map_samples(lambda *leaves: jnp.concatenate(leaves, axis=1), rest)
  jax.tree.map(np.testing.assert_array_equal, joined, rollouts)
