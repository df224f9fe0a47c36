"""Predictions that use the true model: sums over all paths, and their ranking."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.hmm import filtering, oracles, random_models
from tests.hmm import hmm_paths


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


_predict = jax.jit(oracles.predict_next, static_argnames='compat')
_by_path = jax.jit(oracles.predict_next_by_path)
_by_state = jax.jit(oracles.predict_next_by_state)
_by_window = jax.jit(oracles.predict_next_by_window, static_argnames=('window', 'compat'))


def test_H1_predictions_of_the_worked_example():
  model, observations = hmm_paths.MODEL, hmm_paths.OBSERVATIONS
  np.testing.assert_allclose(_predict(*model, observations)[-1], [.378166, .621834], atol=5e-7)
  # The best path ends in state 0: .9 * (.7, .3) + .1 * (.1, .9).
  np.testing.assert_allclose(_by_path(*model, observations)[-1], [.64, .36], atol=1e-12)


def test_H1_the_released_filter_is_different():
  initial, transition, emission = hmm_paths.MODEL
  observations = hmm_paths.OBSERVATIONS
  # A α throughout, and a result that does not sum to 1.
  released = _predict(*hmm_paths.MODEL, observations, compat='released')[-1]
  np.testing.assert_allclose(released, [.281185, .671289], atol=5e-7)
  # Transposed only in the last step.
  filtered, _ = filtering.filter_states(
      jnp.asarray(initial), jnp.asarray(transition), emission.T[observations])
  np.testing.assert_allclose(
      filtered[-1] @ transition.T @ emission, [.338293, .637024], atol=5e-7)
  # A symmetric A hides the difference.
  symmetric = (initial, np.array([[.8, .2], [.2, .8]]), emission)
  np.testing.assert_allclose(
      _predict(*symmetric, observations, compat='released'), _predict(*symmetric, observations),
      atol=1e-12)


def test_predictions_are_sums_over_all_paths_at_every_position():
  initial, transition, emission = hmm_paths.random_model(7, 3, 3, zeros=.2)
  states, observations = map(np.asarray, filtering.sample(
      jax.random.key(1), *map(jnp.asarray, (initial, transition, emission)), 5))
  model = initial, transition, emission

  exact, path, state = (np.asarray(f(*model, x)) for f, x in (
      (_predict, observations), (_by_path, observations), (_by_state, states)))
  for distributions in (exact, path, state):
    assert distributions.shape == (6, 3)
    np.testing.assert_allclose(distributions[0], initial @ emission, atol=1e-12)
  for t in range(1, 6):
    joint = hmm_paths.joint(initial, transition, emission.T[observations[:t]])
    np.testing.assert_allclose(
        exact[t], hmm_paths.last_distribution(joint, 3) @ transition @ emission, atol=1e-10)
    end = max(joint, key=joint.get)[-1]
    np.testing.assert_allclose(path[t], transition[end] @ emission, atol=1e-10)
    np.testing.assert_allclose(state[t], transition[states[t - 1]] @ emission, atol=1e-10)


def test_positions_select_rows():
  model = hmm_paths.random_model(8, 3, 4)
  observations = np.random.default_rng(0).integers(4, size=9)
  positions = np.array([9, 0, 4])
  for predict in (_predict, _by_path, functools.partial(_by_window, window=2)):
    expected = np.asarray(predict(*model, observations))[positions]
    np.testing.assert_allclose(predict(*model, observations, positions), expected, atol=1e-12)


@pytest.mark.parametrize('compat', ['correct', 'released'])
def test_H5_a_window_of_everything_is_the_filter(compat):
  model = hmm_paths.random_model(9, 3, 4)
  observations = np.random.default_rng(1).integers(4, size=7)
  np.testing.assert_allclose(
      _by_window(*model, observations, window=7, compat=compat),
      _predict(*model, observations, compat=compat), atol=1e-12)


def test_H5_a_window_is_a_sum_over_all_paths_without_older_symbols():
  initial, transition, emission = hmm_paths.random_model(10, 3, 4)
  observations = np.random.default_rng(2).integers(4, size=6)
  for window in (1, 2, 4):
    got = _by_window(initial, transition, emission, observations, window=window)
    for t in range(1, 7):
      likelihoods = emission.T[observations[:t]].copy()
      likelihoods[: max(t - window, 0)] = 1
      joint = hmm_paths.joint(initial, transition, likelihoods)
      last = hmm_paths.last_distribution(joint, 3)
      np.testing.assert_allclose(got[t], last @ transition @ emission, atol=1e-10)


def test_H5_one_symbol_from_the_stationary_distribution_is_the_bigram_of_the_model():
  _, transition, emission = hmm_paths.random_model(11, 3, 4)
  stationary = random_models.stationary_distribution(transition)
  pairs = np.einsum('i,ix,ij,jy->xy', stationary, emission, transition, emission)
  bigram = pairs / pairs.sum(axis=1, keepdims=True)
  observations = np.random.default_rng(3).integers(4, size=8)
  got = _by_window(stationary, transition, emission, observations, window=1)
  np.testing.assert_allclose(got[1:], bigram[observations], atol=1e-12)


def test_H5_without_noise_only_the_last_symbol_matters():
  # Entropy 0 and M <= L: the symbol determines the state.
  initial, transition, _ = hmm_paths.random_model(12, 3, 3)
  emission = np.eye(3, 4)
  observations = np.random.default_rng(4).integers(3, size=8)
  exact = np.asarray(_predict(initial, transition, emission, observations))
  np.testing.assert_allclose(exact[1:], (transition @ emission)[observations], atol=1e-12)
  for other in (_by_window(initial, transition, emission, observations, window=1),
                _by_path(initial, transition, emission, observations)):
    np.testing.assert_allclose(other, exact, atol=1e-12)


def test_H4_the_filter_predicts_best():
  # Slow, skewed and noisy: the past matters, and so does the direction of A.
  model = (jnp.array([.2, .3, .5]),
           jnp.array([[.96, .04, 0], [.1, .85, .05], [.3, 0, .7]]),
           jnp.array([[.5, .3, .2], [.2, .6, .2], [.1, .2, .7]]))

  def losses(key):
    states, observations = filtering.sample(key, *model, 20)
    distributions = [f(*model, x)[:-1] for f, x in (
        (oracles.predict_next, observations),
        (oracles.predict_next_by_path, observations),
        (functools.partial(oracles.predict_next_by_window, window=2), observations),
        (functools.partial(oracles.predict_next, compat='released'), observations),
        (oracles.predict_next_by_state, states))]
    distributions = jnp.stack(distributions)
    hits = jnp.argmax(distributions, axis=-1) == observations
    chance = jnp.take_along_axis(distributions, observations[None, :, None], axis=-1)[..., 0]
    return -jnp.log(chance).mean(axis=1), hits.mean(axis=1)

  keys = jax.random.split(jax.random.key(0), 4_000)
  nll, accuracy = map(np.asarray, jax.jit(jax.vmap(losses))(keys))
  for other in (1, 2, 3):
    gap = nll[:, other] - nll[:, 0]
    assert gap.mean() > 3 * gap.std() / math.sqrt(len(gap))
    gap = accuracy[:, 0] - accuracy[:, other]
    assert gap.mean() > -3 * gap.std() / math.sqrt(len(gap))
  gap = nll[:, 0] - nll[:, 4]  # The true state is more informative.
  assert gap.mean() > 3 * gap.std() / math.sqrt(len(gap))


def test_impossible_symbols_are_skipped():
  # State 0 never emits symbol 1.
  certain, observations = np.eye(2), np.array([0, 1, 0])
  for predict in (_predict, _by_path, functools.partial(_by_window, window=2)):
    np.testing.assert_array_equal(
        predict(certain[0], certain, certain, observations), [[1, 0]] * 4)


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match="compat must be 'correct' or 'released', got 'paper'"):
    oracles.predict_next(*hmm_paths.MODEL, hmm_paths.OBSERVATIONS, compat='paper')
  with pytest.raises(ValueError, match='window must be at least 1, got 0'):
    oracles.predict_next_by_window(*hmm_paths.MODEL, hmm_paths.OBSERVATIONS, window=0)
