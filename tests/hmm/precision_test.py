"""No product of hidden Markov models is left to an accelerator's default precision."""

import functools

import jax
import jax.numpy as jnp
import pytest

from experiments.icl_hmm import published as icl_hmm_published
from jaxrl_llm.hmm import filtering, glm_hmm, learners, oracles

STATES, SYMBOLS, STEPS, INPUTS = 3, 4, 8, 2
MODEL = (jnp.full(STATES, 1 / STATES), jnp.full((STATES, STATES), 1 / STATES),
         jnp.full((STATES, SYMBOLS), 1 / SYMBOLS))
OBSERVATIONS, POSITIONS = jnp.arange(STEPS) % SYMBOLS, jnp.array([0, 3, STEPS])
LIKELIHOODS = MODEL[2].T[OBSERVATIONS]
PARAMETERS = learners.Parameters(*MODEL)
DISTRIBUTIONS = jnp.full((2, STATES), 1 / STATES)
SESSIONS = jnp.ones((2, STEPS, INPUTS)), jnp.zeros((2, STEPS), int)
MIXTURE = glm_hmm.GlmHmm(*MODEL[:2], jnp.ones((STATES, INPUTS)))

FUNCTIONS = {
    'filter_states': lambda: filtering.filter_states(*MODEL[:2], LIKELIHOODS),
    'smooth': lambda: filtering.smooth(*MODEL[:2], LIKELIHOODS),
    'predict_next': lambda: oracles.predict_next(*MODEL, OBSERVATIONS),
    'predict_next_by_path': lambda: oracles.predict_next_by_path(*MODEL, OBSERVATIONS),
    'predict_next_by_state': lambda: oracles.predict_next_by_state(
        *MODEL, OBSERVATIONS % STATES, POSITIONS),
    'predict_next_by_window': lambda: oracles.predict_next_by_window(
        *MODEL, OBSERVATIONS, window=2),
    'predict_ngrams': lambda: learners.predict_ngrams(
        OBSERVATIONS, POSITIONS, max_order=3, num_symbols=SYMBOLS),
    'baum_welch': lambda: learners.baum_welch(PARAMETERS, OBSERVATIONS),
    'empirical_moments': lambda: learners.empirical_moments(OBSERVATIONS, num_symbols=SYMBOLS),
    'exact_moments': lambda: learners.exact_moments(PARAMETERS),
    'spectral': lambda: learners.predict_spectral(learners.spectral_operators(
        learners.exact_moments(PARAMETERS), num_states=2), OBSERVATIONS),
    'fit_glm': lambda: glm_hmm.fit_glm(SESSIONS[0][0], SESSIONS[1][0], ridge=1.0),
    'glm_hmm.fit': lambda: glm_hmm.fit(
        jax.random.key(0), *SESSIONS, num_states=2, restarts=2, steps=2),
    'glm_hmm.predict': lambda: glm_hmm.predict(MIXTURE, *SESSIONS),
    'score': functools.partial(
        icl_hmm_published.score, jnp.full((2, SYMBOLS), 1 / SYMBOLS), DISTRIBUTIONS, MODEL[2]),
    'simulate': lambda: icl_hmm_published.simulate(
        jax.random.split(jax.random.key(0), 2), *MODEL),
}


def _products(jaxpr):
  """All products of a program, of those inside its loops and branches as well."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      yield equation
    for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
      if _is_program(inner):
        yield from _products(getattr(inner, 'jaxpr', inner))


def _is_program(value):
  return hasattr(value, 'eqns')


@pytest.mark.parametrize('name', FUNCTIONS)
def test_products_are_of_full_precision(name):
  products = list(_products(jax.make_jaxpr(FUNCTIONS[name])().jaxpr))
  assert products
  for product in products:
    highest = jax.lax.Precision.HIGHEST
    assert product.params['precision'] == (highest, highest), product
