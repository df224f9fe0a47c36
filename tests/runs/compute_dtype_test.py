"""A loaded checkpoint computes in float32 or bfloat16, as the config says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.models import configs, policy
from jaxrl_llm.rl import scoring
from jaxrl_llm.runs import checkpoint_sources
from jaxrl_llm.sampling import decode
from tests.experiments import tiny


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  folder = tmp_path_factory.mktemp('dtype') / 'checkpoint'
  tiny.write_checkpoint(folder)
  return checkpoint_sources.read(str(folder), field='config.policy_init_from')


def _loaded(source, **fields):
  """(network, parameters) as `setup.build` makes them for a config with these fields."""
  model = checkpoint_sources.resolve_model(
      dataclasses.replace(configs.TransformerConfig(), **fields), source)
  network = policy.make(model)
  return network, source.load_on_one_device(network)


@pytest.mark.parametrize('fields', [
    {'compute_dtype': 'bfloat16'}, {'compute_dtype': 'bfloat16', 'param_dtype': 'bfloat16'}])
def test_bfloat16_is_close_to_float32_and_is_not_float32(source, fields):
  exact, narrow = _loaded(source), _loaded(source, **fields)
  stored = fields.get('param_dtype', 'float32')
  assert {leaf.dtype.name for leaf in jax.tree.leaves(narrow[1])} == {stored}

  rng = np.random.default_rng(0)
  inputs = (rng.integers(3, 200, (4, 5)).astype(np.int32), np.full(4, 5, np.int32), np.arange(4))

  def evaluate(network, params, key):
    """(sampled log-probs, the same by the scorer, the rollouts)."""
    sampler = decode.make_sampler(
        network, num_samples=2, max_tokens=6, stop_ids=(0,), pad_id=0)
    rollouts = sampler(params, *inputs, key)
    return rollouts.log_probs, scoring.score(network, params, rollouts)[0], rollouts

  sampled, scored, rollouts = jax.jit(lambda p, key: evaluate(narrow[0], p, key))(
      narrow[1], jax.random.key(1))
  assert sampled.dtype == scored.dtype == jnp.float32
  np.testing.assert_allclose(sampled, scored, atol=0.1)  # The gap of sampler and trainer.

  loss = jax.jit(lambda p, r: scoring.score(exact[0], p, r)[0])
  expected = loss(exact[1], rollouts)
  assert float(jnp.abs(expected).max()) > 1
  difference = np.abs(np.asarray(scored) - expected)
  assert 1e-5 < difference.max() < 0.2 and difference.mean() < 0.03
  mean = lambda values: float(jnp.sum(values * rollouts.mask) / jnp.sum(rollouts.mask))
  assert mean(scored) == pytest.approx(mean(expected), rel=0.01)  # The supervised loss.
