"""Learning HMMs in context: the loss written out, its two labels, and that it learns to infer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.algorithms import icl_hmm
from jaxrl_llm.hmm import filtering, oracles
from jaxrl_llm.models import configs, policy
from jaxrl_llm.training import optim, step
from tests.algorithms import groups, tiny
from tests.models import witness

ROWS, LENGTH, SYMBOLS = 4, 5, 7


def _batch():
  rng = np.random.default_rng(0)
  distributions = rng.dirichlet(np.ones(SYMBOLS), (ROWS, LENGTH)).astype(np.float32)
  symbols = rng.integers(0, SYMBOLS, (ROWS, LENGTH + 1)).astype(np.int32)
  return icl_hmm.Trajectories(symbols=symbols, predictions=distributions)


def _run(batch=None, **changes):
  return groups.runner(icl_hmm)(_batch() if batch is None else batch, **changes)


def _predicted(symbols):
  """ln π of every symbol after each prefix, by NumPy."""
  _, logits = witness.forward(tiny.CONFIG, tiny.params()['policy'], symbols)
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_the_losses_are_the_equations_written_out():
  batch = _batch()
  sampled, expected, certain = [], [], []
  for symbols, distributions in zip(batch.symbols, batch.predictions):
    predicted = _predicted(symbols[:-1])
    sampled += [-predicted[t, symbols[t + 1]] for t in range(LENGTH)]
    expected += [-(distributions[t] * predicted[t]).sum() for t in range(LENGTH)]
    certain += [-(distributions[t] * np.log(distributions[t])).sum() for t in range(LENGTH)]
  loss, _, metrics = _run()
  assert loss == pytest.approx(np.mean(sampled), rel=1e-5)
  assert metrics['train/entropy'] == pytest.approx(np.mean(certain), rel=1e-5)
  assert metrics['train/divergence'] == pytest.approx(
      np.mean(expected) - np.mean(certain), rel=1e-4)
  assert _run(labels='filter')[0] == pytest.approx(np.mean(expected), rel=1e-5)


def test_distributions_with_zeros_have_finite_losses():
  batch = _batch()
  certain = np.eye(SYMBOLS, dtype=np.float32)[batch.symbols[:, 1:]]
  got = groups.exactly(
      icl_hmm, icl_hmm.Trajectories(symbols=batch.symbols, predictions=certain), labels='filter')
  expected = groups.exactly(icl_hmm, batch)
  groups.assert_same(got, expected, tolerance=groups.EXACT)
  assert got[2]['train/entropy'] == 0


def test_labels_of_the_filter_are_the_mean_of_sampled_ones():
  # Over every last symbol, weighted by its distribution: the same gradient from a sure label.
  batch = _batch()
  distributions = np.eye(SYMBOLS, dtype=np.float32)[batch.symbols[:, 1:]]
  distributions[:, -1] = batch.predictions[:, -1]
  _, expected, _ = _run(
      icl_hmm.Trajectories(symbols=batch.symbols, predictions=distributions), labels='filter')
  total = jax.tree.map(np.zeros_like, expected)

  for row in range(ROWS):
    for symbol in range(SYMBOLS):
      symbols = batch.symbols.copy()
      symbols[row, -1] = symbol
      gradient = _run(icl_hmm.Trajectories(symbols=symbols, predictions=distributions))[1]
      weight = distributions[row, -1, symbol]
      total = jax.tree.map(lambda t, g, w=weight: t + w * np.asarray(g), total, gradient)

  # Rows move one at a time; of the others each term holds the sampled label.
  sampled = _run()[1]
  mixed = jax.tree.map(lambda t, s: t - (ROWS - 1) * np.asarray(s), total, sampled)
  tiny.assert_trees_close(mixed, expected, tolerance=1e-5)
  assert tiny.differ(sampled, expected)


def test_it_learns_to_infer_in_context():
  """Two sticky states that show themselves; which symbol is whose, only the context tells.

  Every HMM has one state a symbol and a probability of its own, from 0 to 1, to stay: without
  counting no prediction is better than ln 2.
  """
  rows, length = 64, 24
  model = policy.make(configs.TransformerConfig(
      vocab_size=2, num_layers=2, width=32, num_heads=2, num_kv_heads=2, head_dim=16, mlp_width=48,
      max_length=length, positions='learned'))
  algorithm = icl_hmm.make(
      icl_hmm.Config(labels='filter'), model,
      optim.make_optimizer(optim.OptimizerConfig(name='adam', learning_rate=5e-3)))

  @jax.jit
  def draw(key):
    stay = jax.random.bernoulli(key, shape=(rows,)).astype(jnp.float32) * 0.8 + 0.1
    transition = jnp.stack([jnp.stack([stay, 1 - stay], -1), jnp.stack([1 - stay, stay], -1)], 1)
    initial, emission = jnp.full(2, 0.5), jnp.eye(2)

    def one(key, transition):
      _, symbols = filtering.sample(key, initial, transition, emission, length + 1)
      distributions = oracles.predict_next(initial, transition, emission, symbols)
      return icl_hmm.Trajectories(symbols=symbols, predictions=distributions[1:-1])

    return jax.vmap(one)(jax.random.split(jax.random.fold_in(key, 1), rows), transition)

  train_step = step.jit_train_step(algorithm.train_step)
  state = algorithm.init(jax.random.key(1), {'policy': jax.jit(model.init)(jax.random.key(0))})
  divergences = []
  for index in range(250):
    state, metrics = train_step(state, draw(jax.random.fold_in(jax.random.key(2), index)))
    divergences.append(float(metrics['train/divergence'].value()))
  assert train_step.num_traces == 1
  ignorant = np.log(2) - float(metrics['train/entropy'].value())
  assert np.mean(divergences[:5]) > 0.9 * ignorant
  assert np.mean(divergences[-20:]) < 0.3 * ignorant, divergences[::25]
