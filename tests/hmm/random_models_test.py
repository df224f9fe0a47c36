"""Constructed and drawn hidden Markov models have the requested properties."""

import itertools
import math

import numpy as np
import pytest

from jaxrl_llm.hmm import random_models


def test_H1_numbers_of_the_worked_example():
  transition = np.array([[.9, .1], [.2, .8]])
  assert random_models.second_eigenvalue(transition) == pytest.approx(.7, abs=1e-12)
  stationary = random_models.stationary_distribution(transition)
  np.testing.assert_allclose(stationary, [2 / 3, 1 / 3], atol=1e-12)
  np.testing.assert_array_equal(
      random_models.stationary_distribution(transition[None]), stationary[None])
  assert random_models.entropy_rate_bits(transition, stationary) == pytest.approx(
      .553306, abs=5e-7)


def test_entropy_bits_of_certain_and_uniform_distributions():
  np.testing.assert_allclose(
      random_models.entropy_bits([[1, 0, 0, 0], [.25] * 4, [.5, .5, 0, 0]]), [0, 2, 1], atol=1e-12)


def test_beta_distributions():
  uniform, skewed, concentrated = (random_models.beta_distribution(4, a) for a in (1, 4, 16))
  np.testing.assert_allclose(uniform, .25)
  # (1, 3/4, 1/2, 1/4)**3 / 1.5625.
  np.testing.assert_allclose(skewed, [.64, .27, .08, .01], atol=1e-12)
  np.testing.assert_allclose(concentrated, [.9868, .0132, 0, 0], atol=5e-5)
  with pytest.raises(ValueError, match='exponent must be positive and finite, got 0'):
    random_models.beta_distribution(4, 0)


@pytest.mark.parametrize('num_states, lambda2, exponent, entropy', [
    (2, .9, 1, None), (4, .75, 1, 1.0), (4, .99, 4, .1), (4, .99, 16, .1), (8, .75, 1, 2.0),
    (8, .95, 4, .53), (8, .95, 16, .53), (16, .5, 1, 3.0)])
def test_H7_a_constructed_chain_has_the_requested_properties(
    num_states, lambda2, exponent, entropy):
  stationary = random_models.beta_distribution(num_states, exponent)
  transition = random_models.make_transition(
      np.random.default_rng(0), stationary, lambda2=lambda2, entropy=entropy)
  np.testing.assert_allclose(transition.sum(axis=1), 1, atol=1e-12)
  np.testing.assert_allclose(stationary @ transition, stationary, atol=1e-12)
  assert transition.min() > 0
  moduli = np.sort(np.abs(np.linalg.eigvals(transition)))[::-1]
  assert moduli[1] == pytest.approx(lambda2, abs=1e-9)
  assert (moduli[2:] < lambda2).all()
  if entropy is not None:
    assert random_models.entropy_rate_bits(
        transition, stationary) == pytest.approx(entropy, abs=.02)


def test_the_descent_follows_the_gradient():
  # `_pull` is the gradient of the violations: entries below the margin, and the entropy.
  rng = np.random.default_rng(0)
  stationary = rng.dirichlet(np.ones(3))
  matrix = rng.dirichlet(np.ones(3), 3)
  matrix[0] = [1.1, -.3, .2]
  root = np.sqrt(stationary)
  margin = 1e-3 / 3 * np.minimum(1, stationary / stationary[:, None])

  def loss(matrix):
    below = np.maximum(margin - matrix, 0) * root[:, None] / root
    excess = random_models.entropy_rate_bits(np.maximum(matrix, margin), stationary) - 1.2
    return below.sum() + excess**2

  pull, done = random_models._pull(matrix, stationary, 1.2, .02)
  assert not done
  for i, j in itertools.product(range(3), repeat=2):
    step = np.zeros((3, 3))
    step[i, j] = 1e-6
    slope = (loss(matrix + step) - loss(matrix - step)) / 2e-6
    assert pull[i, j] == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize('options, words', [
    ({'lambda2': 1.0}, r'lambda2 must be in \(0, 1\), got 1.0'),
    ({'entropy': 2.0}, r'entropy must be in \(0, log2 4\) for 4 states, got 2.0'),
    ({'stationary': [.5, .5, .5]}, 'stationary must be at least two positive numbers that sum'),
    ({'stationary': [1., 0]}, 'stationary must be at least two positive numbers'),
    # With λ2 = .5 the chain forgets half of its state at each step: its entropy is larger.
    ({'entropy': .05, 'lambda2': .5, 'attempts': 2, 'steps': 50},
     'no transition matrix after 2 attempts with 4 states, lambda2 0.5, entropy 0.05'),
])
def test_impossible_properties_are_refused(options, words):
  options = {'stationary': np.full(4, .25), 'lambda2': .75} | options
  with pytest.raises(ValueError, match=words):
    random_models.make_transition(np.random.default_rng(0), options.pop('stationary'), **options)


def test_emissions_have_the_published_probabilities():
  published = {(4, 1): .810710, (8, 1): .855791, (8, 2): .627026, (16, 1): .879733,
               (16, 2): .710331, (16, 3): .487977}
  for (num_symbols, entropy), probability in published.items():
    assert random_models.dominant_probability(
        num_symbols, entropy) == pytest.approx(probability, abs=5e-7)
    emission = random_models.make_emission(5, num_symbols, entropy)
    np.testing.assert_allclose(random_models.entropy_bits(emission), entropy, atol=1e-9)
    for state in range(5):
      assert emission[state].argmax() == state % num_symbols
      others = np.delete(emission[state], state % num_symbols)
      np.testing.assert_allclose(others, (1 - emission[state].max()) / (num_symbols - 1))
  np.testing.assert_array_equal(random_models.make_emission(6, 4, 0), np.eye(4)[[0, 1, 2, 3, 0, 1]])
  np.testing.assert_allclose(random_models.make_emission(2, 4, 2), .25, atol=1e-7)
  with pytest.raises(ValueError, match=r'entropy must be in \[0, 2\], log2 of 4 symbols, got 2.5'):
    random_models.dominant_probability(4, np.array([1, 2.5]))


@pytest.mark.parametrize('num_states, num_symbols', [(2, 2), (4, 4), (8, 4), (3, 6)])
def test_drawn_models_have_their_recorded_properties(num_states, num_symbols):
  batch = random_models.sample_hmms(
      np.random.default_rng(0), 300, num_states=num_states, num_symbols=num_symbols)
  assert batch.transition.shape == (300, num_states, num_states)
  assert batch.emission.shape == (300, num_states, num_symbols)
  assert batch.transition.min() >= 0
  np.testing.assert_allclose(batch.transition.sum(axis=-1), 1, atol=1e-12)
  np.testing.assert_allclose(batch.emission.sum(axis=-1), 1, atol=1e-12)
  np.testing.assert_array_equal(batch.initial, np.tile(np.eye(num_states)[0], (300, 1)))

  np.testing.assert_allclose(
      random_models.second_eigenvalue(batch.transition), batch.lambda2, atol=1e-9)
  np.testing.assert_allclose(
      random_models.entropy_bits(batch.emission),
      np.repeat(batch.emission_entropy[:, None], num_states, 1), atol=1e-9)

  # Uniform over their ranges, to four standard errors.
  for values, low, high in ((batch.lambda2, .3, .99),
                            (batch.emission_entropy, 0, math.log2(num_symbols))):
    assert values.min() >= low and values.max() <= high
    assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * 300)


def test_symbols_are_permuted_at_random():
  batch = random_models.sample_hmms(
      np.random.default_rng(1), 3_000, num_states=3, num_symbols=4, entropy=(.5, 1.5))
  first = batch.emission.argmax(axis=2)
  counts = np.bincount(first[:, 0], minlength=4)
  assert (abs(counts - 750) < 4 * math.sqrt(3_000 * 3 / 16)).all()
  # Permuted, so that different states still have different symbols.
  assert all(len(set(row)) == 3 for row in first.tolist())


def test_ranges_are_respected_and_checked():
  def draw(**options):
    return random_models.sample_hmms(
        np.random.default_rng(0), 8, num_states=4, num_symbols=4, **options)

  np.testing.assert_allclose(
      random_models.second_eigenvalue(draw(lambda2=(0, 0)).transition), 0, atol=1e-7)
  np.testing.assert_allclose(
      random_models.second_eigenvalue(draw(lambda2=(.95, .95)).transition), .95, atol=1e-9)
  np.testing.assert_allclose(
      random_models.entropy_bits(draw(entropy=(1, 1)).emission), 1, atol=1e-9)
  with pytest.raises(ValueError, match=r'lambda2 must be a range in \[0, 1\), got \(0.5, 1'):
    draw(lambda2=(.5, 1.))
  with pytest.raises(ValueError, match=r'entropy must be a range .* got \(1, 3\)'):
    draw(entropy=(1, 3))
  with pytest.raises(ValueError, match='at least 2, got 1 and 4'):
    random_models.sample_hmms(np.random.default_rng(0), 1, num_states=1, num_symbols=4)
