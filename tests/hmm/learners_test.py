"""n-grams, Baum-Welch and the spectral method against counting, enumeration and the filter."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.hmm import filtering, learners, oracles

POSITIONS = np.array([0, 1, 2, 3, 5, 8, 13, 30])


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _random_model(seed, num_states, num_symbols, concentration=1.0):
  rng = np.random.default_rng(seed)
  draw = lambda size, rows: rng.dirichlet(np.full(size, concentration), rows)
  return learners.Parameters(*map(jnp.asarray, (
      draw(num_states, 1)[0], draw(num_states, num_states), draw(num_symbols, num_states))))


_sample = jax.jit(
    lambda key, model, steps: filtering.sample(key, *model, steps)[1], static_argnums=2)
_step = jax.jit(learners.baum_welch_step)
_ngrams = jax.jit(
    learners.predict_ngrams, static_argnames=('max_order', 'num_symbols'))


def _count(observations, position, order, num_symbols):
  """Prediction of an n-gram, counted in a loop over the sequence."""
  known = list(observations[:position])
  for n in range(order, 0, -1):
    if order > 1 and n == 1:
      break  # Never the unigram.
    context = known[len(known) - (n - 1):] if n > 1 else []
    if len(known) < n - 1:
      continue
    counts = np.zeros(num_symbols)
    for j in range(n - 1, position):
      if known[j - (n - 1): j] == context:
        counts[known[j]] += 1
    if counts.sum():
      return counts / counts.sum()
  return np.full(num_symbols, 1 / num_symbols)


@pytest.mark.parametrize('num_symbols', [2, 5])
def test_ngrams_count_the_symbols_after_the_same_context(num_symbols):
  observations = np.random.default_rng(num_symbols).integers(num_symbols, size=30)
  got = _ngrams(observations, POSITIONS, max_order=4, num_symbols=num_symbols)
  assert got.shape == (len(POSITIONS), 4, num_symbols)
  for (k, position), order in itertools.product(enumerate(POSITIONS), range(1, 5)):
    np.testing.assert_allclose(
        got[k, order - 1], _count(observations, position, order, num_symbols), atol=1e-6)


def test_ngrams_fall_back_to_shorter_ones_and_then_to_the_uniform_distribution():
  # After 0 1 0 1 2: nothing has followed 2; the unigram has counts.
  distributions = _ngrams(np.array([0, 1, 0, 1, 2]), np.array([5]), max_order=3, num_symbols=4)[0]
  np.testing.assert_allclose(distributions[0], [.4, .4, .2, 0], atol=1e-6)
  np.testing.assert_allclose(distributions[1:], .25)
  # After 3 0 1 0: nothing has followed (1, 0), but 1 has followed 0.
  distributions = _ngrams(np.array([3, 0, 1, 0]), np.array([4]), max_order=3, num_symbols=4)[0]
  np.testing.assert_allclose(distributions[1:], [[0, 1, 0, 0]] * 2)


def test_ngrams_do_not_look_ahead():
  first = np.random.default_rng(0).integers(3, size=30)
  second = np.append(first[:8], (first[8:] + 1) % 3)
  positions = np.array([2, 5, 8])
  np.testing.assert_array_equal(
      _ngrams(first, positions, max_order=4, num_symbols=3),
      _ngrams(second, positions, max_order=4, num_symbols=3))


def test_a_step_of_baum_welch_is_an_expectation_over_all_paths():
  model = _random_model(0, 2, 3)
  observations = np.array([0, 2, 2, 1, 0, 2])
  initial, transition, emission = map(np.asarray, model)
  counts = [np.zeros(2), np.zeros((2, 2)), np.zeros((2, 3))]
  total = 0

  for path in itertools.product(range(2), repeat=6):
    chance = initial[path[0]] * emission[path[0], observations[0]]
    for t in range(1, 6):
      chance *= transition[path[t - 1], path[t]] * emission[path[t], observations[t]]
    total += chance
    counts[0][path[0]] += chance
    for t in range(6):
      counts[2][path[t], observations[t]] += chance
    for t in range(1, 6):
      counts[1][path[t - 1], path[t]] += chance

  got, log_likelihood = _step(model, observations)
  assert log_likelihood == pytest.approx(np.log(total), abs=1e-10)
  for mine, expected in zip(got, counts):
    np.testing.assert_allclose(mine, expected / expected.sum(axis=-1, keepdims=True), atol=1e-10)


@functools.cache
def _climb():
  """Log-likelihoods of 60 steps on four sequences from two starts each [2, 4, 60]."""
  observations = jax.vmap(lambda key: _sample(key, _random_model(1, 3, 4, .3), 60))(
      jax.random.split(jax.random.key(0), 4))
  starts = jax.vmap(functools.partial(
      learners.random_parameters, num_states=3, num_symbols=4))(
          jax.random.split(jax.random.key(1), 2))
  starts = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), starts)

  def run(parameters, observations):
    return jax.lax.scan(lambda p, _: learners.baum_welch_step(p, observations), parameters,
                        length=60)[1]

  each = jax.vmap(jax.vmap(run, (None, 0)), (0, None))
  return np.asarray(jax.jit(each)(starts, observations))


def test_H3_the_log_likelihood_never_falls():
  curves = _climb()
  assert np.diff(curves, axis=-1).min() >= -1e-8
  assert (curves[..., -1] - curves[..., 0]).min() > 3


def test_H3_the_order_of_states_does_not_matter():
  model, observations = _random_model(2, 3, 4), np.array([0, 3, 3, 1, 2, 0, 1])
  order = np.array([2, 0, 1])
  renamed = learners.Parameters(
      model.initial[order], model.transition[order][:, order], model.emission[order])

  def predict(model):
    return oracles.predict_next(*_step(model, observations)[0], observations)

  np.testing.assert_allclose(predict(renamed), predict(model), atol=1e-12)


def test_H3_true_parameters_are_a_fixed_point_in_expectation():
  model = _random_model(3, 2, 3)
  keys = jax.random.split(jax.random.key(2), 8_000)
  observations = jax.vmap(lambda key: _sample(key, model, 6))(keys)

  @jax.jit
  @jax.vmap
  def counts(observations):
    gamma, xi, _ = filtering.smooth(
        model.initial, model.transition, filtering.symbol_likelihoods(model.emission, observations))
    return gamma[0], xi, gamma.T @ jax.nn.one_hot(observations, 3)

  for count, distribution in zip(counts(observations), model):
    total = np.asarray(count).sum(axis=0)
    np.testing.assert_allclose(total / total.sum(axis=-1, keepdims=True), distribution, atol=.02)


def test_baum_welch_stops_when_the_log_likelihood_is_constant():
  observations = _sample(jax.random.key(3), _random_model(1, 3, 4, .3), 60)
  start = _random_model(4, 3, 4)
  fit = jax.jit(functools.partial(learners.baum_welch, max_steps=7))(start, observations)
  parameters = start
  for _ in range(7):
    parameters, log_likelihood = _step(parameters, observations)
  assert fit.steps == 7
  assert fit.log_likelihood == pytest.approx(float(log_likelihood), abs=1e-9)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), fit.parameters, parameters)

  loose = jax.jit(functools.partial(learners.baum_welch, max_steps=500, tolerance=1e-2))
  fit = loose(start, observations)
  assert 1 < fit.steps < 500
  # One state only learns frequencies: the third step changes nothing.
  one = learners.Parameters(jnp.ones(1), jnp.ones((1, 1)), jnp.array([[.1, .2, .3, .4]]))
  fit = loose(one, observations)
  assert fit.steps == 3
  np.testing.assert_allclose(
      fit.parameters.emission[0], np.bincount(observations, minlength=4) / 60, atol=1e-12)


def test_only_a_step_below_the_tolerance_ends_baum_welch(monkeypatch):
  one = learners.Parameters(jnp.ones(1), jnp.ones((1, 1)), jnp.array([[.5, .5]]))
  # Nothing changes from the second step on, but no change is below 0.
  fit = learners.baum_welch(one, jnp.array([0, 1]), max_steps=9, tolerance=0.0)
  assert fit.steps == 9
  # In float32 a long sequence's log-likelihood also falls by rounding: that is a change too.
  heights = jnp.array([-9.0, -5.0, -5.5, -5.0, -5.0, -7.0])
  count_up = lambda parameters, _: (
      parameters._replace(initial=parameters.initial + 1),
      heights[parameters.initial[0].astype(int)])
  monkeypatch.setattr(learners, 'baum_welch_step', count_up)
  start = one._replace(initial=jnp.zeros(1))
  fit = learners.baum_welch(start, jnp.array([0, 1]), tolerance=.1)
  assert fit.steps == 5 and fit.log_likelihood == -5


def test_baum_welch_of_a_padded_sequence_is_that_of_the_sequence():
  model, observations = _random_model(5, 3, 4), np.array([0, 3, 3, 1, 2, 0, 1])
  got, log_likelihood = _step(model, np.append(observations, [-1, -1]))
  expected = _step(model, observations)
  assert log_likelihood == pytest.approx(float(expected[1]), abs=1e-12)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), got, expected[0])


def test_the_rows_of_an_unvisited_state_are_unchanged():
  model = learners.Parameters(
      jnp.array([1., 0]), jnp.array([[1., 0], [.4, .6]]), jnp.array([[.5, .5, 0], [.2, .3, .5]]))
  got, log_likelihood = _step(model, np.array([0, 1, 1]))
  assert np.isfinite(log_likelihood)
  np.testing.assert_allclose(got.transition, model.transition)
  np.testing.assert_allclose(got.emission, [[1 / 3, 2 / 3, 0], [.2, .3, .5]])
  # Observations that are impossible under the model leave it finite too.
  got, log_likelihood = _step(model, np.array([0, 2, 1]))
  assert log_likelihood == -np.inf
  assert all(np.isfinite(leaf).all() for leaf in got)
  np.testing.assert_allclose(got.emission.sum(axis=1), 1)


def test_a_start_of_baum_welch_has_no_zeros(monkeypatch):
  # Not even if all uniform numbers are the smallest: EM could not leave a row of zeros.
  monkeypatch.setattr(
      jax.random, 'uniform', lambda key, shape, minval=0.0: jnp.full(shape, minval))
  start = learners.random_parameters(jax.random.key(0), num_states=2, num_symbols=4)
  np.testing.assert_allclose(start.emission, np.full((2, 4), .25))


def test_the_likeliest_of_several_fits_is_returned():
  observations = _sample(jax.random.key(4), _random_model(6, 3, 4, .3), 40)
  starts = jax.vmap(functools.partial(
      learners.random_parameters, num_states=3, num_symbols=4))(
          jax.random.split(jax.random.key(5), 4))
  for leaf in starts:
    np.testing.assert_allclose(np.asarray(leaf).sum(axis=-1), 1, atol=1e-6)
    assert np.asarray(leaf).min() > 0 and len({row.tobytes() for row in np.asarray(leaf)}) == 4
  climb = functools.partial(learners.baum_welch, max_steps=20)
  fits = jax.jit(jax.vmap(climb, (0, None)))(starts, observations)
  best = int(np.argmax(fits.log_likelihood))
  assert np.ptp(fits.log_likelihood) > .1
  got = jax.jit(functools.partial(learners.fit_best, max_steps=20))(starts, observations)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[best], atol=1e-5), got, fits)


@pytest.mark.parametrize('num_states, num_symbols', [(2, 2), (3, 3), (3, 5)])
def test_H8_operators_of_exact_moments_are_the_filter(num_states, num_symbols):
  model = _random_model(7 + num_symbols, num_states, num_symbols)
  observations = np.asarray(_sample(jax.random.key(6), model, 60))
  operators = learners.spectral_operators(
      learners.exact_moments(model), num_states=num_states)
  distributions = learners.predict_spectral(operators, observations)
  expected = oracles.predict_next(*model, observations)
  np.testing.assert_allclose(distributions, expected, atol=1e-8)
  positions = np.array([60, 0, 7])
  np.testing.assert_allclose(
      learners.predict_spectral(operators, observations, positions),
      np.asarray(expected)[positions], atol=1e-8)


def test_predictions_restart_after_a_symbol_that_the_operators_exclude():
  # Readouts b_inf^T B_x: (.9, .1), (-.2, -.1), (.3, 1) and a rounding error.
  rest = np.array([[[.9, 0], [0, .1]], [[-.2, -.1], [0, 0]], [[0, 1], [.3, 0]],
                   [[1e-17, 1e-17], [0, 0]]])
  operators = learners.Operators(*map(jnp.asarray, (np.full(2, .5), np.ones(2), rest)))
  predict = functools.partial(learners.predict_spectral, observations=np.array([0, 1, 0, 3]))
  start, after = np.array([.5, 0, .65, 0]), np.array([.82, 0, .37, 0])
  expected = [start / start.sum(), after / after.sum()] * 2 + [start / start.sum()]
  np.testing.assert_allclose(predict(operators), expected, atol=1e-12)
  gradient = jax.grad(lambda tables: jnp.sum(jnp.square(predict(
      operators._replace(updates=tables)))))(operators.updates.at[1].set(0.0))
  assert np.isfinite(gradient).all()


def test_exact_moments_are_sums_over_three_states():
  model = _random_model(20, 3, 4)
  initial, transition, emission = map(np.asarray, model)
  joint = np.einsum('a,ab,bc,ai,bx,cj->ixj', initial, transition, transition,
                  emission, emission, emission)
  moments = learners.exact_moments(model)
  np.testing.assert_allclose(moments.first, joint.sum(axis=(1, 2)), atol=1e-12)
  np.testing.assert_allclose(moments.pairs, joint.sum(axis=2).T, atol=1e-12)
  np.testing.assert_allclose(moments.triples, joint.transpose(1, 2, 0), atol=1e-12)


def test_empirical_moments_are_frequencies():
  observations = np.array([0, 1, 2, 1, 1, 2, 1])
  moments = learners.empirical_moments(observations, num_symbols=3)
  np.testing.assert_allclose(moments.first, np.array([1, 4, 2]) / 7)
  pairs, triples = np.zeros((3, 3)), np.zeros((3, 3, 3))
  for a, b in zip(observations, observations[1:]):
    pairs[b, a] += 1 / 6
  for a, b, c in zip(observations, observations[1:], observations[2:]):
    triples[b, c, a] += 1 / 5
  np.testing.assert_allclose(moments.pairs, pairs)
  np.testing.assert_allclose(moments.triples, triples)


def test_the_spectral_method_learns_from_one_trajectory():
  model = learners.Parameters(
      jnp.array([.5, .5]), jnp.array([[.9, .1], [.2, .8]]),
      jnp.array([[.8, .1, .1], [.1, .2, .7]]))
  observations = _sample(jax.random.key(7), model, 20_000)

  @functools.partial(jax.jit, static_argnums=1)
  def gap(observations, length):
    operators = learners.spectral_operators(
        learners.empirical_moments(observations[:length], num_symbols=3), num_states=2)
    distributions = learners.predict_spectral(operators, observations[:400])
    exact = oracles.predict_next(*model, observations[:400])
    return distributions, filtering.hellinger(distributions, exact).mean()

  (few, far), (many, near) = gap(observations, 100), gap(observations, 20_000)
  assert near < .015 < far
  for distributions in (few, many):  # Distributions, even for poor estimates.
    assert np.asarray(distributions).min() >= 0
    np.testing.assert_allclose(np.asarray(distributions).sum(axis=-1), 1, atol=1e-5)


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match='max_order must be at least 1, got 0'):
    learners.predict_ngrams(np.array([0, 1]), np.array([1]), max_order=0, num_symbols=2)
  moments = learners.exact_moments(_random_model(0, 3, 2))
  with pytest.raises(ValueError, match=r'num_states must be .* at most .* symbols \(2\), got 3'):
    learners.spectral_operators(moments, num_states=3)
