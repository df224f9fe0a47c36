"""Symbols, states, positions and choices out of range: refused, or without effect if traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.hmm import filtering, glm_hmm, learners, oracles

INITIAL = jnp.asarray([0.6, 0.4])
TRANSITION = jnp.asarray([[0.9, 0.1], [0.3, 0.7]])
EMISSION = jnp.asarray([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
MODEL = learners.Parameters(INITIAL, TRANSITION, EMISSION)
SYMBOLS = np.array([0, 2, 1, 2], np.int32)

_MOMENTS = learners.exact_moments(MODEL)
FUNCTIONS = {
    'likelihoods': lambda x: filtering.symbol_likelihoods(EMISSION, x),
    'filter': lambda x: oracles.predict_next(*MODEL, x),
    'path': lambda x: oracles.predict_next_by_path(*MODEL, x),
    'window': lambda x: oracles.predict_next_by_window(*MODEL, x, window=2),
    'n-grams': lambda x: learners.predict_ngrams(
        x, jnp.asarray([2, 4]), max_order=2, num_symbols=3),
    'step': lambda x: learners.baum_welch_step(MODEL, x),
    'EM': lambda x: learners.baum_welch(MODEL, x, max_steps=2),
    'restarts': lambda x: learners.fit_best(
        jax.tree.map(lambda leaf: leaf[None], MODEL), x, max_steps=2),
    'moments': lambda x: learners.empirical_moments(x, num_symbols=3),
    'spectral': lambda x: learners.predict_spectral(
        learners.spectral_operators(_MOMENTS, num_states=2), x),
}
PADDED = ('likelihoods', 'filter', 'path', 'step', 'EM', 'restarts')


@pytest.mark.parametrize('name', FUNCTIONS)
def test_H1_a_symbol_outside_the_alphabet_is_refused(name):
  read = FUNCTIONS[name]
  read(SYMBOLS)
  for symbol in (3, 4, 1000):
    for wrap in (np.asarray, jnp.asarray):
      with pytest.raises(ValueError, match=rf'^observations must be .*, got {symbol} at \[1\]$'):
        read(wrap(np.where(np.arange(4) == 1, symbol, SYMBOLS)))
  negative = np.where(np.arange(4) == 3, -1, SYMBOLS)
  if name in PADDED:
    read(negative)
  else:
    with pytest.raises(ValueError, match=r'must be in \[0, 3\), the symbols, got -1 at \[3\]'):
      read(negative)


def test_H1_under_tracing_no_state_emits_such_a_symbol():
  read = jax.jit(filtering.symbol_likelihoods)
  got = read(EMISSION, np.array([2, 3, 7, -1]))
  np.testing.assert_array_equal(got, [EMISSION[:, 2], [0, 0], [0, 0], [1, 1]])
  np.testing.assert_array_equal(read(EMISSION, SYMBOLS), EMISSION.T[SYMBOLS])
  filtered, log_likelihood = jax.jit(filtering.filter_states)(INITIAL, TRANSITION, got)
  assert log_likelihood == -np.inf and np.isfinite(filtered).all()
  # The spectral predictor restarts after it.
  predict = jax.jit(FUNCTIONS['spectral'])
  np.testing.assert_allclose(
      predict(np.array([1, 9, 0, 2]))[2:], predict(np.array([0, 2])), rtol=1e-5)


def test_states_and_positions_out_of_range_are_refused():
  def by_state(states):
    return oracles.predict_next_by_state(*MODEL, np.asarray(states))

  by_state([0, 1])
  for states, value in (([0, 2], '2 at [1]'), ([-1, 0], '-1 at [0]')):
    with pytest.raises(ValueError) as error:
      by_state(states)
    assert str(error.value) == f'states must be in [0, 2), the number of states, got {value}'

  for read in (
      lambda positions: oracles.predict_next(*MODEL, SYMBOLS, positions),
      lambda positions: oracles.predict_next_by_window(*MODEL, SYMBOLS, positions, window=1),
      lambda positions: learners.predict_ngrams(SYMBOLS, positions, max_order=1, num_symbols=3),
      lambda positions: learners.predict_spectral(
          learners.spectral_operators(_MOMENTS, num_states=2), SYMBOLS, positions)):
    read(jnp.asarray([0, 4]))
    for position in (5, -1):
      message = rf'positions must be in \[0, 4\], .*, got {position} at'
      with pytest.raises(ValueError, match=message):
        read(jnp.asarray([0, position]))


INPUTS = np.random.default_rng(0).normal(size=(2, 5, 2)).astype(np.float32)
CHOICES = np.array([[0, 1, 1, 0, -1], [1, 0, -1, 1, 1]])


@pytest.mark.parametrize('read', [
    lambda x: glm_hmm.choice_likelihoods(jnp.ones((2, 2)), INPUTS, x),
    lambda x: glm_hmm.fit_glm(INPUTS[0], x[0], ridge=0.1),
    lambda x: glm_hmm.fit(jax.random.key(0), INPUTS, x, num_states=2, restarts=1, steps=1),
    lambda x: glm_hmm.predict(glm_hmm.GlmHmm(INITIAL, TRANSITION, jnp.eye(2)), INPUTS, x),
], ids=['likelihoods', 'GLM', 'fit', 'predict'])
def test_H2_choices_other_than_0_and_1_are_refused(read):
  for choice in (2, 3, 9):
    bad = np.array(CHOICES)
    bad[0, 3] = choice
    with pytest.raises(ValueError, match=f'choices must be 0, 1, or negative .*, got {choice} at'):
      read(bad)
