"""Samples against exact probabilities, on models small enough to enumerate."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl_llm.models import configs, policy
from jaxrl_llm.rl import masking, scoring
from jaxrl_llm.sampling import decode
from jaxrl_llm.types import Rollouts
from tests.models import witness
from tests.sampling import models

# Far below p-values of a correct sampler over these few draws, far above those of a wrong one.
SIGNIFICANCE = 1e-4


def _p_value(counts, probabilities):
  """p-value of a chi-square test; cells with fewer than five expected samples are merged."""
  expected = counts.sum() * np.asarray(probabilities, np.float64)
  assert counts[expected == 0].sum() == 0
  small = expected < 5
  if small.any():
    counts = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
  possible = expected > 0
  counts, expected = counts[possible], expected[possible]
  return stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue


def _softmax(logits):
  weights = np.exp(np.float64(logits) - np.max(logits))
  return weights / weights.sum()


TABLE = np.array([
    [0.0, 0.5, 1.0, -1.0, 2.0],
    [1.0, 0.0, -2.0, 0.5, 0.0],
    [0.3, 0.2, 0.1, 0.0, 0.4],
    [2.0, -1.0, 0.0, 1.0, 1.0],
    [0.0, 0.0, 0.0, 0.0, 0.0],
])


@pytest.mark.parametrize('arguments, weights_of', [
    (dict(temperature=1.0), lambda z: _softmax(z)),
    (dict(temperature=0.6), lambda z: _softmax(z / 0.6)),
    (dict(temperature=1.3, top_k=3), lambda z: _softmax(z / 1.3) * (np.argsort(
        np.argsort(-z, kind='stable'), kind='stable') < 3)),
    # After token 0 the probabilities are .56, .21, .13, .08, .03: three reach 0.85.
    (dict(top_p=0.85), lambda z: _softmax(z) * (z >= np.sort(z)[-3])),
    # The nucleus is that of the tempered probabilities .90, .07, .02 ...: two tokens reach 0.95,
    # and four would at temperature 1.
    (dict(temperature=0.4, top_p=0.95), lambda z: _softmax(z / 0.4) * (z >= np.sort(z)[-2])),
])
def test_one_token_follows_its_distribution(arguments, weights_of):
  model, params = models.bigram(TABLE)
  sampler = decode.make_sampler(
      model, num_samples=1000, max_tokens=1, stop_ids=(4,), pad_id=0, **arguments)
  prompts = jnp.zeros((2, 1), jnp.int32)
  weights = weights_of(TABLE[0])
  sample = jax.jit(sampler)
  for seed in range(2):
    rollouts = sample(params, prompts, jnp.ones(2, jnp.int32), jnp.array([3, 9]),
                      jax.random.key(seed))
    counts = np.bincount(np.asarray(rollouts.tokens).ravel(), minlength=5)
    assert _p_value(counts, weights / weights.sum()) > SIGNIFICANCE


def _every_sequence(vocabulary, stop, slots):
  """Yields all responses of at most `slots` tokens, stopped or truncated."""
  for sequence in itertools.product(range(vocabulary), repeat=slots):
    end = sequence.index(stop) + 1 if stop in sequence else slots
    if all(token == 0 for token in sequence[end:]):  # Each response once.
      yield sequence


@functools.lru_cache
def _tiny():
  """A transformer with 3 tokens, which has 1 + 2 + 4 + 8 = 15 responses of up to 3 tokens."""
  model = policy.make(configs.TransformerConfig(
      vocab_size=3, num_layers=1, width=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_width=8,
      max_length=8))
  params = witness.draw_params(model, seed=3)
  params = jax.tree.map(lambda leaf: 0.7 * leaf, params)
  return model, params


def test_sequences_of_a_network_follow_their_exact_probabilities():
  model, params = _tiny()
  stop, slots = 2, 3
  sequences = np.array(list(_every_sequence(3, stop, slots)), np.int32)
  assert len(sequences) == 15
  prompts, lengths = jnp.array([[0, 1, 0]], jnp.int32), jnp.array([2], jnp.int32)
  tokens = jnp.asarray(sequences)[None]
  mask, ends, reasons = masking.response_mask(tokens, (stop,))
  rollouts = Rollouts(prompts, lengths, tokens, ends, mask, jnp.zeros(mask.shape), reasons)
  sampler = jax.jit(decode.make_sampler(
      model, num_samples=3000, max_tokens=slots, stop_ids=(stop,), pad_id=0))

  log_probs, _ = jax.jit(functools.partial(scoring.score, model))(params, rollouts)
  probabilities = np.exp(np.float64(log_probs.sum(-1)[0]))
  np.testing.assert_allclose(probabilities.sum(), 1.0, atol=1e-5)
  for seed in range(3):
    drawn = sampler(params, prompts, lengths, jnp.array([seed]), jax.random.key(seed))
    drawn = np.asarray(drawn.tokens[0])
    counts = np.array([(drawn == sequence).all(axis=1).sum() for sequence in sequences])
    assert counts.sum() == 3000  # Each sample is one of the fifteen, including padding.
    assert _p_value(counts, probabilities) > SIGNIFICANCE
    # The same counts reject a distribution that is flatter by a fifth.
    flatter = probabilities ** (1 / 1.2)
    assert _p_value(counts, flatter / flatter.sum()) < SIGNIFICANCE
