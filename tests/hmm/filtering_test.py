"""Hidden Markov models: every recursion against a sum over all paths of states."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.hmm import filtering
from tests.hmm import hmm_paths


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


_filter, _log_filter = jax.jit(filtering.filter_states), jax.jit(filtering.log_filter_states)
_smooth, _viterbi = jax.jit(filtering.smooth), jax.jit(filtering.viterbi)
_likelihoods = jax.jit(filtering.symbol_likelihoods)


def test_H1_the_worked_example():
  likelihoods = _likelihoods(hmm_paths.EMISSION, hmm_paths.OBSERVATIONS)
  filtered, log_likelihood = _filter(hmm_paths.INITIAL, hmm_paths.TRANSITION, likelihoods)
  assert np.exp(log_likelihood) == pytest.approx(.093636, abs=5e-7)
  np.testing.assert_allclose(filtered[-1], [.376586, .623414], atol=5e-7)
  path, log_prob = _viterbi(hmm_paths.INITIAL, hmm_paths.TRANSITION, likelihoods)
  assert path.tolist() == [0, 0, 0]
  # .6 * .7 * (.9 * .3)**2.
  assert np.exp(log_prob) == pytest.approx(.6 * .7 * .27 ** 2, rel=1e-12)


@pytest.mark.parametrize('num_states, steps, zeros', [(2, 6, 0.), (3, 5, 0.), (3, 6, .3)])
def test_H2_forward_and_smoothing_are_sums_over_all_paths(num_states, steps, zeros):
  initial, transition, emission = hmm_paths.random_model(num_states + steps, num_states, 4, zeros)
  _, observations = filtering.sample(
      jax.random.key(steps), *map(jnp.asarray, (initial, transition, emission)), steps)
  likelihoods = np.asarray(_likelihoods(emission, observations))
  joint = hmm_paths.joint(initial, transition, likelihoods)
  total = sum(joint.values())
  filtered, log_likelihood = _filter(initial, transition, likelihoods)
  assert log_likelihood == pytest.approx(np.log(total), abs=1e-10)
  for t in range(steps):
    prefix = hmm_paths.joint(initial, transition, likelihoods[: t + 1])
    np.testing.assert_allclose(
        filtered[t], hmm_paths.last_distribution(prefix, num_states), atol=1e-10)

  gamma, xi = np.zeros((steps, num_states)), np.zeros((num_states, num_states))
  for path, chance in joint.items():
    for t in range(steps):
      gamma[t, path[t]] += chance / total
    for t in range(1, steps):
      xi[path[t - 1], path[t]] += chance / total
  got = _smooth(initial, transition, likelihoods)
  np.testing.assert_allclose(got[0], gamma, atol=1e-10)
  np.testing.assert_allclose(got[1], xi, atol=1e-10)
  assert got[2] == pytest.approx(np.log(total), abs=1e-10)

  path, log_prob = _viterbi(initial, transition, likelihoods)
  # Paths with the same steps in another order tie: any of them is right.
  best = max(joint.values())
  assert joint[tuple(path.tolist())] == pytest.approx(best, rel=1e-12)
  assert log_prob == pytest.approx(np.log(best), abs=1e-10)


def test_H2_scaled_and_log_space_agree_over_2048_steps():
  initial, transition, emission = map(jnp.asarray, hmm_paths.random_model(0, 4, 5))
  _, observations = jax.jit(filtering.sample, static_argnums=4)(
      jax.random.key(0), initial, transition, emission, 2048)
  likelihoods = _likelihoods(emission, observations)
  filtered, log_likelihood = _filter(initial, transition, likelihoods)
  logs = _log_filter(jnp.log(initial), jnp.log(transition), jnp.log(likelihoods))
  np.testing.assert_allclose(np.exp(logs[0]), filtered, atol=1e-10)
  assert log_likelihood == pytest.approx(float(logs[1]), abs=1e-8)
  assert log_likelihood < -2000  # Far below what a product in float64 can hold.


def test_H2_alpha_times_beta_sums_to_the_same_at_every_step():
  # Without scaling, in NumPy: sum_i α_t(i) β_t(i) = P(o), and γ is α β divided by it.
  initial, transition, emission = hmm_paths.random_model(3, 3, 4)
  observations = np.random.default_rng(3).integers(4, size=12)
  likelihoods = emission.T[observations]
  alpha, beta = [initial * likelihoods[0]], [np.ones(3)]
  for t in range(1, 12):
    alpha.append(alpha[-1] @ transition * likelihoods[t])
    beta.insert(0, transition @ (likelihoods[12 - t] * beta[0]))
  products = np.stack(alpha) * np.stack(beta)
  totals = products.sum(axis=1)
  np.testing.assert_allclose(totals, totals[0], rtol=1e-12)
  gamma, _, log_likelihood = _smooth(initial, transition, likelihoods)
  np.testing.assert_allclose(gamma, products / totals[0], atol=1e-12)
  assert log_likelihood == pytest.approx(np.log(totals[0]), abs=1e-12)


def test_H6_hellinger():
  uniform, one_hot = np.full(4, .25), np.eye(4)[1]
  assert filtering.hellinger(uniform, one_hot) == pytest.approx(.707107, abs=5e-7)
  p, q = np.array([.5, .5]), np.array([.9, .1])
  assert filtering.hellinger(p, q) == pytest.approx(.324920, abs=5e-7)
  assert filtering.hellinger(q, p) == filtering.hellinger(p, q)
  assert filtering.hellinger(one_hot, np.eye(4)[0]) == 1
  distributions = np.random.default_rng(0).dirichlet(np.ones(5) * .2, 50)
  distances = np.asarray(filtering.hellinger(distributions[:, None], distributions))
  assert distances.min() >= 0 and distances.max() <= 1
  np.testing.assert_allclose(np.diag(distances), 0, atol=1e-7)


def test_kl_is_infinite_for_excluded_symbols_and_never_nan():
  p, q = np.array([.5, .5, 0]), np.array([.9, .1, 0])
  assert filtering.kl_divergence(p, q) == pytest.approx(
      .5 * math.log(.5 / .9) + .5 * math.log(.5 / .1), abs=1e-12)
  assert filtering.kl_divergence(p, np.array([1., 0, 0])) == math.inf
  assert filtering.kl_divergence(np.array([1., 0, 0]), p) == pytest.approx(math.log(2))
  assert filtering.kl_divergence(np.array([1., 0, 0]), np.array([1., 0, 0])) == 0


def test_padding_changes_nothing():
  initial, transition, emission = hmm_paths.random_model(14, 3, 4)
  observations = np.random.default_rng(5).integers(4, size=6)
  padded = np.append(observations, [-1, -1, -1])
  likelihoods, longer = _likelihoods(emission, observations), _likelihoods(emission, padded)
  np.testing.assert_array_equal(longer[6:], 1)
  filtered, log_likelihood = _filter(initial, transition, likelihoods)
  got = _filter(initial, transition, longer)
  np.testing.assert_allclose(got[0][:6], filtered, atol=1e-12)
  assert got[1] == pytest.approx(float(log_likelihood), abs=1e-12)
  gamma, xi, _ = _smooth(initial, transition, likelihoods)
  got = _smooth(initial, transition, longer, valid=padded >= 0)
  np.testing.assert_allclose(got[0], np.concatenate([gamma, np.zeros((3, 3))]), atol=1e-12)
  np.testing.assert_allclose(got[1], xi, atol=1e-12)
  # Without a mask, three unobserved steps count as steps.
  np.testing.assert_allclose(_smooth(initial, transition, longer)[1].sum(), 8, atol=1e-12)


def test_an_impossible_observation_is_minus_infinity_and_nothing_is_nan():
  transition, emission = np.eye(2), np.eye(2)
  observations = np.array([0, 1, 0])  # State 0 never emits symbol 1.
  initial = np.array([1., 0])

  likelihoods = _likelihoods(emission, observations)
  filtered, log_likelihood = _filter(initial, transition, likelihoods)
  assert log_likelihood == -math.inf
  np.testing.assert_array_equal(filtered, [[1, 0]] * 3)
  logs, log_likelihood = _log_filter(*(jnp.log(x) for x in (initial, transition, likelihoods)))
  assert log_likelihood == -math.inf
  np.testing.assert_array_equal(np.exp(logs), filtered)

  gamma, xi, log_likelihood = _smooth(initial, transition, likelihoods)
  assert log_likelihood == -math.inf
  np.testing.assert_array_equal(gamma, filtered)
  np.testing.assert_array_equal(xi, [[2, 0], [0, 0]])
  path, log_prob = _viterbi(initial, transition, likelihoods)
  assert log_prob == -math.inf and path.tolist() == [0, 0, 0]

  gradient = jax.grad(
      lambda a: filtering.filter_states(initial, a, likelihoods)[0].sum())(transition)
  assert np.isfinite(gradient).all()


def test_gradients_of_the_log_likelihood():
  initial, transition, emission = map(jnp.asarray, hmm_paths.random_model(15, 3, 4))
  observations = jnp.array([0, 3, 1, 1, 2])

  def log_likelihood(transition, emission):
    likelihoods = filtering.symbol_likelihoods(emission, observations)
    return filtering.filter_states(initial, transition, likelihoods)[1]

  jax.test_util.check_grads(log_likelihood, (transition, emission), order=1, modes=['rev'])
  # d ln P(o) / dA_ij = ξ(i, j) / A_ij, Fisher's identity.
  _, xi, _ = _smooth(initial, transition, _likelihoods(emission, observations))
  np.testing.assert_allclose(
      jax.grad(log_likelihood)(transition, emission), xi / transition, atol=1e-10)


def test_samples_have_the_distribution_of_the_model():
  model = tuple(map(jnp.asarray, hmm_paths.random_model(16, 2, 3)))
  keys = jax.random.split(jax.random.key(0), 20_000)
  states, observations = jax.jit(jax.vmap(lambda key: filtering.sample(key, *model, 3)))(keys)
  cells = np.ravel_multi_index((*states.T, *observations.T), (2, 2, 2, 3, 3, 3))
  initial, transition, emission = map(np.asarray, model)
  expected = np.einsum('i,ij,jk,ia,jb,kc->ijkabc', initial, transition, transition,
                       emission, emission, emission).ravel() * len(keys)
  counts = np.bincount(cells, minlength=216)
  enough = expected >= 5
  statistic = (np.square(counts - expected) / expected)[enough].sum()
  freedom = enough.sum() - 1
  assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_a_sample_does_not_depend_on_its_length():
  model = tuple(map(jnp.asarray, hmm_paths.random_model(17, 3, 3)))
  short, long = (filtering.sample(jax.random.key(1), *model, steps) for steps in (4, 9))
  for a, b in zip(short, long):
    np.testing.assert_array_equal(a, b[:4])


def test_impossible_states_and_symbols_are_not_drawn():
  initial, transition, emission = map(jnp.asarray, hmm_paths.random_model(18, 4, 4, zeros=.6))
  states, observations = map(np.asarray, jax.jit(jax.vmap(
      lambda key: filtering.sample(key, initial, transition, emission, 20)))(
          jax.random.split(jax.random.key(2), 500)))
  assert (np.asarray(initial)[states[:, 0]] > 0).all()
  assert (np.asarray(transition)[states[:, :-1], states[:, 1:]] > 0).all()
  assert (np.asarray(emission)[states, observations] > 0).all()


@pytest.mark.parametrize('uniform, drawn', [(0.0, 1), (np.nextafter(1.0, 0), 2)])
def test_nothing_impossible_is_drawn_at_the_limits_of_the_uniform_numbers(
    uniform, drawn, monkeypatch):
  # 0 is not below the cumulative sum 0 of an impossible first entry, and a number just below 1
  # not above a sum that rounding has left below 1.
  monkeypatch.setattr(
      jax.random, 'uniform', lambda key, shape, dtype: jnp.full(shape, uniform, dtype))
  table = jnp.array([0, .25, .75 - 1e-9, 0])
  states, observations = filtering.sample(
      jax.random.key(0), table, jnp.tile(table, (4, 1)), jnp.tile(table, (4, 1)), 2)
  assert states.tolist() == observations.tolist() == [drawn] * 2


def test_sequences_of_one_step():
  initial, transition, emission = hmm_paths.random_model(19, 3, 4)
  likelihoods = _likelihoods(emission, np.array([2]))
  joint = initial * emission[:, 2]
  for states in (_filter(initial, transition, likelihoods)[0],
                 _smooth(initial, transition, likelihoods)[0]):
    np.testing.assert_allclose(states, joint[None] / joint.sum(), atol=1e-12)
  np.testing.assert_array_equal(_smooth(initial, transition, likelihoods)[1], 0)
  path, log_prob = _viterbi(initial, transition, likelihoods)
  assert path.tolist() == [joint.argmax()] and np.exp(log_prob) == pytest.approx(joint.max())


def _logs(values):
  with np.errstate(divide='ignore'):
    return np.log(values)


def _smooth_in_logs(initial, transition, likelihoods):
  """γ and ξ by α β in logarithms, in NumPy."""
  initial, transition, likelihoods = map(_logs, (initial, transition, likelihoods))
  add = lambda values, axis: np.logaddexp.reduce(values, axis=axis)
  alpha, beta = [initial + likelihoods[0]], [np.zeros(len(initial))]
  for seen in likelihoods[1:]:
    alpha.append(add(alpha[-1][:, None] + transition, 0) + seen)
  for seen in likelihoods[:0:-1]:
    beta.insert(0, add(transition + seen + beta[0], 1))
  total, alpha, beta = add(alpha[-1], 0), np.array(alpha), np.array(beta)
  pairs = (alpha[:-1, :, None] + transition + (likelihoods + beta)[1:, None, :]) - total
  return np.exp(alpha + beta - total), np.exp(pairs).sum(axis=0)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('transition', [np.eye(2), np.array([[1, 0], [.1, .9]])])
def test_an_unreachable_state_does_not_affect_the_others(transition, dtype):
  # State 1 explains every symbol better, but cannot be reached.
  model = [np.array([1., 0]), transition, np.tile([.5, .9], (2048, 1))]
  gamma, xi, log_likelihood = _smooth(*(np.asarray(table, dtype) for table in model))
  assert gamma.dtype == dtype
  np.testing.assert_array_equal(gamma, np.tile([1, 0], (2048, 1)))
  np.testing.assert_array_equal(xi, [[2047, 0], [0, 0]])
  assert log_likelihood == pytest.approx(2048 * math.log(.5), rel=1e-5)


@pytest.mark.parametrize('dtype, tolerance', [(np.float32, 2e-4), (np.float64, 1e-9)])
@pytest.mark.parametrize('zeros', [0., .4])
def test_smoothing_over_2048_steps_agrees_with_logarithms(zeros, dtype, tolerance):
  initial, transition, emission = hmm_paths.random_model(21, 4, 5, zeros)
  _, observations = jax.jit(filtering.sample, static_argnums=4)(
      jax.random.key(3), *map(jnp.asarray, (initial, transition, emission)), 2048)
  model = initial, transition, emission.T[np.asarray(observations)]
  gamma, xi, _ = _smooth(*(np.asarray(table, dtype) for table in model))
  expected = _smooth_in_logs(*model)
  np.testing.assert_allclose(gamma, expected[0], atol=tolerance)
  np.testing.assert_allclose(xi, expected[1], rtol=tolerance, atol=tolerance)
  np.testing.assert_allclose(gamma.sum(axis=1), 1, atol=1e-6)
  np.testing.assert_allclose(xi.sum(), 2047, rtol=1e-5)


@pytest.mark.parametrize('factor', [1, 4])
def test_smoothing_survives_transitions_near_the_smallest_number(factor):
  # The transition from 0 to 1 is nearly impossible, and happens again and again.
  rare = factor * float(np.finfo(np.float32).tiny)
  model = [np.array([1, 0]), np.array([[1, rare], [.5, .5]]), np.tile(np.eye(2), (200, 1))]
  gamma, xi, _ = _smooth(*(table.astype(np.float32) for table in model))
  np.testing.assert_allclose(gamma, model[2], atol=1e-6)
  np.testing.assert_allclose(xi, [[0, 200], [199, 0]], rtol=1e-5)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_the_best_path_is_right_where_products_underflow(dtype):
  # 1500 symbols favour state 1, by 1.8 to 1 each; the last one excludes it.
  emission = np.array([[.5, .4, .1], [.9, .1, 0]], dtype)
  likelihoods = emission.T[np.append(np.zeros(1500, int), 2)]
  model = np.array([.5, .5], dtype), np.eye(2, dtype=dtype), likelihoods
  path, log_prob = _viterbi(*model)
  expected = math.log(.5) + 1500 * math.log(.5) + math.log(.1)
  assert path.tolist() == [0] * 1501
  assert log_prob == pytest.approx(expected, rel=1e-4)
  messages, scales = jax.jit(filtering.max_product)(*model)
  np.testing.assert_array_equal(messages.argmax(axis=1), [1] * 1500 + [0])
  np.testing.assert_array_equal(messages.max(axis=1), 0)
  assert scales.sum() == pytest.approx(expected, rel=1e-4)
  logs, log_likelihood = _log_filter(*map(_logs, model))
  np.testing.assert_array_equal(np.exp(logs[-1]), [1, 0])
  assert log_likelihood == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('zeros', [0., .4])
def test_the_best_path_of_2048_steps_is_that_of_a_plain_loop(zeros):
  initial, transition, emission = hmm_paths.random_model(22, 4, 5, zeros)
  _, observations = jax.jit(filtering.sample, static_argnums=4)(
      jax.random.key(4), *map(jnp.asarray, (initial, transition, emission)), 2048)
  likelihoods = emission.T[np.asarray(observations)]
  path, log_prob = _viterbi(initial, transition, likelihoods)
  reach, back = _logs(initial) + _logs(likelihoods[0]), []
  for seen in likelihoods[1:]:
    ways = reach[:, None] + _logs(transition)
    back.append(ways.argmax(axis=0))
    reach = ways.max(axis=0) + _logs(seen)
  expected = [reach.argmax()]
  for before in reversed(back):
    expected.insert(0, before[expected[0]])
  assert path.tolist() == expected
  assert log_prob == pytest.approx(reach.max(), rel=1e-12)
