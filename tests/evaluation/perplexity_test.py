"""Held-out loss: against a loop in NumPy, and independent of the batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.data import sft_batches, tokenizers
from jaxrl_llm.evaluation import perplexity
from tests.algorithms import tiny

PARAMETERS = tiny.params()['policy']
TOKENIZER = tokenizers.CharacterTokenizer('abcde')


def _sequences(count=11):
  rng = np.random.default_rng(0)
  examples = []
  for index in range(count):
    length = rng.integers(2, 9)
    mask = rng.random(length) < 0.5
    mask[-1] = True
    examples.append({'id': index, 'ids': rng.integers(0, 7, length), 'loss_mask': mask})
  return sft_batches.encode_sequences(
      examples, TOKENIZER, max_prompt_tokens=4, max_response_tokens=4)


SEQUENCES = _sequences()


def _measure(parameters=PARAMETERS, chunk_size=0, **layout):
  batches = sft_batches.Batches(SEQUENCES, seed=0, **({'batch_size': 4} | layout))
  return perplexity.HeldOutLoss(
      tiny.MODEL, batches.in_order(), chunk_size=chunk_size)(parameters)


def test_against_a_loop_over_tokens():
  @jax.jit
  def logits_of(row):  # Of tokens that something else may follow.
    output = tiny.MODEL.apply(
        PARAMETERS, row, positions=jnp.arange(8)[None], valid=jnp.ones((1, 8), bool))
    return output.hidden[0] @ output.head.kernel.T

  nats = []
  for example in SEQUENCES.examples:
    ids = example['ids']
    logits = np.asarray(logits_of(np.resize(ids, (1, 8))), np.float64)
    for t in range(1, len(ids)):
      if example['loss_mask'][t]:
        nats.append(np.log(np.exp(logits[t - 1]).sum()) - logits[t - 1, ids[t]])
  measured = _measure()
  assert measured['loss_tokens'] == len(nats)
  assert measured['loss'] == pytest.approx(np.mean(nats), rel=1e-5)
  assert measured['perplexity'] == pytest.approx(np.exp(np.mean(nats)), rel=1e-5)


@pytest.mark.parametrize('layout', [
    {'batch_size': 11}, {'batch_size': 16}, {'batch_size': 1}, {'chunk_size': 3},
    {'packed_length': 14}, {'packed_length': 16, 'batch_size': 2, 'chunk_size': 5},
])
def test_the_layout_does_not_matter(layout):
  measured, expected = _measure(**layout), _measure()
  assert measured['loss_tokens'] == expected['loss_tokens']
  assert measured['loss'] == pytest.approx(expected['loss'], rel=1e-5)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
  measured = _measure(jax.tree.map(jnp.zeros_like, PARAMETERS))
  assert measured['perplexity'] == pytest.approx(7, rel=1e-6)


def test_everything_is_masked():
  with pytest.raises(ValueError, match='all tokens of the held-out sequences are masked'):
    perplexity.HeldOutLoss(tiny.MODEL, [])(PARAMETERS)


def test_numbers_that_are_not_finite_are_not_hidden():
  broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), PARAMETERS)
  measured = _measure(broken)
  assert np.isnan(measured['loss']) and np.isnan(measured['perplexity'])
