"""GLM and GLM-HMM against enumeration; the ascent of EM; recovery of parameters."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.hmm import animals, glm_hmm, simulated_mice

MODEL = glm_hmm.GlmHmm(
    np.array([.7, .3]), np.array([[.9, .1], [.2, .8]]), np.array([[2.0, .1], [.2, -1.0]]))


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _data(seed, sessions=3, length=5, width=2):
  generator = np.random.default_rng(seed)
  inputs = generator.normal(size=(sessions, length, width))
  return inputs, generator.integers(0, 2, size=(sessions, length))


_fit_glm = jax.jit(glm_hmm.fit_glm, static_argnames='steps')
_predict = jax.jit(glm_hmm.predict)


# --- The GLM.


def test_two_counts_by_hand():
  # 30 ones and 10 zeros with an input of 1: w = ln 3 up to the ridge's pull, 40 σ' (w) dw = r w.
  inputs, choices = np.ones((40, 1)), np.repeat([1, 0], [30, 10])
  assert float(_fit_glm(inputs, choices, ridge=1e-9)[0]) == pytest.approx(np.log(3), abs=1e-6)
  actual = float(_fit_glm(inputs, choices, ridge=2.0)[0])
  assert 30 - 40 * _sigmoid(actual) == pytest.approx(2.0 * actual, abs=1e-6)
  # The same input twice: only the ridge determines the two weights, one half each.
  twice = np.asarray(_fit_glm(np.ones((40, 2)), choices, ridge=2.0))
  np.testing.assert_allclose(30 - 40 * _sigmoid(twice.sum()), 2.0 * twice, atol=1e-6)


def test_the_gradient_of_the_penalised_likelihood_is_0_at_the_fit():
  generator = np.random.default_rng(0)
  inputs = generator.normal(size=(200, 3))
  choices = (generator.random(200) < _sigmoid(inputs @ [1.0, -2, .5])).astype(int)
  counts = generator.uniform(0, 2, 200)
  weights = np.asarray(_fit_glm(inputs, choices, ridge=.3, counts=counts))
  gradient = inputs.T @ (counts * (choices - _sigmoid(inputs @ weights))) - .3 * weights
  np.testing.assert_allclose(gradient, 0, atol=1e-9)


def test_counts_are_repetitions_and_missing_choices_are_ignored():
  inputs, choices = (x.reshape(-1, *x.shape[2:]) for x in _data(1, sessions=4))
  times = np.array([1, 2, 0, 3] * 5)
  repeated = _fit_glm(np.repeat(inputs, times, axis=0), np.repeat(choices, times), ridge=.5)
  counted = _fit_glm(inputs, choices, ridge=.5, counts=times.astype(float))
  np.testing.assert_allclose(counted, repeated, atol=1e-10)
  more = np.concatenate([inputs, np.full((2, 2), np.nan)])
  missing = _fit_glm(more, np.concatenate([choices, [-1, -1]]), ridge=.5)
  np.testing.assert_allclose(missing, _fit_glm(inputs, choices, ridge=.5), atol=1e-10)


def test_separable_choices_have_a_finite_fit():
  inputs = np.linspace(-1, 1, 21)[:, None] * 100
  actual = _fit_glm(inputs, (inputs[:, 0] > 0).astype(int), ridge=1e-3)
  assert np.isfinite(actual).all() and actual[0] > 0
  # Far from the fit a full Newton step overshoots; it is halved.
  far = _fit_glm(inputs, (inputs[:, 0] > 0).astype(int), ridge=1e-3, start=np.array([-.5]),
                 steps=60)
  assert float(far[0]) == pytest.approx(float(actual[0]), rel=1e-6)


@pytest.mark.parametrize('begin', [-2.0, -20.0, 3.0, 50.0])
def test_a_step_is_halved_until_the_objective_does_not_fall(begin):
  # Where all choices are nearly certain, only the ridge has curvature: a Newton step is thousands
  # of times too long.
  inputs = np.linspace(-1, 1, 21)[:, None] * 100
  choices = (inputs[:, 0] > 0).astype(int)

  def objective(w):
    signed = np.where(choices > 0, 1, -1) * inputs[:, 0] * w
    return np.sum(-np.logaddexp(0, -signed)) - 1e-3 / 2 * w**2

  weights, values = np.array([begin]), [objective(begin)]
  for _ in range(60):
    weights = np.asarray(_fit_glm(inputs, choices, ridge=1e-3, start=weights, steps=1))
    values.append(objective(weights[0]))
  assert np.diff(values).min() >= -1e-9 * abs(values[0])
  actual = _fit_glm(inputs, choices, ridge=1e-3, steps=60)
  assert weights[0] == pytest.approx(float(actual[0]), rel=1e-6)


@pytest.mark.parametrize('objective', [
    lambda weights: -jnp.sum(weights), lambda weights: jnp.sum(weights) * np.nan])
def test_a_step_that_never_improves_is_not_taken(objective):
  start, before = jnp.array([1.0, 2.0]), jnp.asarray(-3.0)
  weights, value = glm_hmm._backtrack(objective, start, jnp.ones(2), before)
  np.testing.assert_array_equal(weights, start)
  assert value == before


# --- The GLM-HMM.


def _by_paths(model, inputs, choices):
  """(P(y_t = 1 | before), the likelihood) of one session, summed over all paths."""
  count, states = len(choices), len(model.initial)
  chances = _sigmoid(inputs @ model.weights.T)
  predictions = []
  for t in range(count + 1):
    joint = np.zeros(2)
    for path in itertools.product(range(states), repeat=min(t + 1, count)):
      weight = model.initial[path[0]]
      for a, b in itertools.pairwise(path):
        weight *= model.transition[a, b]
      for s in range(t):
        if choices[s] >= 0:
          weight *= chances[s, path[s]] if choices[s] else 1 - chances[s, path[s]]
      last = chances[t, path[t]] if t < count else .5
      joint += weight * np.array([1 - last, last])
    predictions.append(joint[1] / joint.sum())

  return np.array(predictions[:-1]), joint.sum()


def test_predictions_and_likelihood_are_sums_over_all_paths():
  inputs, choices = _data(2)
  choices[1, 2] = -1  # A trial without an answer still lets the state move.
  actual = _predict(MODEL, inputs, choices)
  total = 0.0
  for s in range(3):
    expected, likelihood = _by_paths(MODEL, inputs[s], choices[s])
    np.testing.assert_allclose(actual[s], expected, atol=1e-12)
    total += np.log(likelihood)
  step = jax.jit(functools.partial(glm_hmm.em_step, ridge=.3, pseudo_count=.2))
  _, before = step(MODEL, inputs, choices, np.ones((3, 5), bool))
  prior = .2 * (np.log(MODEL.initial).sum() + np.log(MODEL.transition).sum())
  assert float(before) == pytest.approx(total - .15 * (MODEL.weights**2).sum() + prior, abs=1e-10)


def test_predictions_do_not_depend_on_their_own_choice_or_later_ones():
  inputs, choices = _data(3)
  changed = choices.copy()
  changed[:, 3] = 1 - changed[:, 3]
  before, after = _predict(MODEL, inputs, choices), _predict(MODEL, inputs, changed)
  np.testing.assert_array_equal(before[:, :4], after[:, :4])
  assert np.abs(before[:, 4] - after[:, 4]).min() > 0


def test_padding_changes_nothing():
  inputs, choices = _data(4)
  padded = np.full((5, 9, 2), np.nan)  # Longer sessions, and two without a trial.
  padded[:3, :5] = inputs
  answers = np.full((5, 9), -1)
  answers[:3, :5] = choices
  answers[3:] = 1  # Values in padding are ignored.
  np.testing.assert_allclose(
      _predict(MODEL, padded, answers)[:3, :5], _predict(MODEL, inputs, choices), atol=1e-12)
  fit = jax.jit(functools.partial(glm_hmm.fit, num_states=2, restarts=2, steps=8))
  key = jax.random.key(0)
  plain, trace = fit(key, inputs, choices)
  filled, other = fit(key, padded, answers)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), plain, filled)
  np.testing.assert_allclose(trace, other, atol=1e-7)


@functools.cache
def _simulated():
  """A mouse of two clearly different states, 30 sessions: (mouse, trials, inputs, choices)."""
  mouse = simulated_mice.Mice(
      np.array([[.8, .2]]), np.array([[[.97, .03], [.05, .95]]]),
      np.array([[[4.0, 0, .3, .2], [.3, 1.5, .3, 0]]]), np.ones(1))
  trials = simulated_mice.simulate(mouse, np.random.default_rng(7), num_trials=30 * 90)
  animal = simulated_mice.as_animal(trials, 0, 'simulated')
  inputs = animals.by_session(animal, animals.covariates(animal), np.nan)
  return mouse, trials, inputs, animals.by_session(animal, animal.choices.astype(int), -1)


@functools.cache
def _fitted():
  _, _, inputs, choices = _simulated()
  with jax.enable_x64(True):
    return jax.jit(functools.partial(glm_hmm.fit, num_states=2, restarts=2, steps=50))(
        jax.random.key(1), inputs, choices)


def test_H3_the_log_posterior_never_falls():
  traces = np.asarray(_fitted()[1])
  assert traces.shape == (2, 50)
  assert np.diff(traces, axis=1).min() > -1e-8
  assert (traces[:, -1] - traces[:, 0] > 20).all()


def test_keys_are_folded_and_never_split(monkeypatch):
  inputs, choices = _data(8)
  fit = jax.jit(
      functools.partial(glm_hmm.fit, num_states=2, steps=3), static_argnames='restarts')
  key = jax.random.key(2)

  def refuse(*_, **__):
    raise AssertionError('a key was split')

  monkeypatch.setattr(jax.random, 'split', refuse)
  few, many = (np.asarray(fit(key, inputs, choices, restarts=count)[1]) for count in (2, 3))
  # A restart does not depend on their number, and all differ.
  np.testing.assert_allclose(many[:2], few, rtol=1e-9)
  assert len(np.unique(many[:, -1].round(9))) == 3


def test_the_restart_that_is_likeliest_after_all_steps_is_returned():
  inputs, choices = _data(8)
  options = dict(ridge=.1, pseudo_count=.1)
  step = jax.jit(lambda model: glm_hmm.em_step(
      model, inputs, choices, np.ones(choices.shape, bool), **options))
  begin = jax.jit(functools.partial(glm_hmm._start, num_states=2))
  single = _fit_glm(inputs.reshape(-1, 2), choices.ravel(), ridge=.1)

  def climb(seed):
    """Log posteriors of three restarts before and after one step."""
    keys = [jax.random.fold_in(jax.random.key(seed), restart) for restart in range(3)]
    first = [step(begin(key, single)) for key in keys]
    return [float(before) for _, before in first], [float(step(model)[1]) for model, _ in first]

  # A seed where the best start does not end best.
  seed, last = next((seed, last) for seed in range(20) for first, last in [climb(seed)]
                    if np.argmax(first) != np.argmax(last))
  model, _ = glm_hmm.fit(
      jax.random.key(seed), inputs, choices, num_states=2, restarts=3, steps=1, **options)
  assert np.ptp(last) > 1e-3
  assert float(step(model)[1]) == pytest.approx(max(last), abs=1e-9)


def test_a_simulated_mouse_is_recovered():
  mouse, trials, inputs, choices = _simulated()
  model, _ = _fitted()
  assert model.weights[0, 0] > model.weights[1, 0]  # In decreasing order of the stimulus weight.
  np.testing.assert_allclose(model.weights, mouse.weights[0], atol=.6)
  np.testing.assert_allclose(model.transition, mouse.transition[0], atol=.03)
  actual = np.asarray(_predict(model, inputs, choices)).ravel()
  best = simulated_mice.predict(mouse, trials)[0]
  answers = trials.choices[0]

  def score(p):
    return np.log(np.where(answers > 0, p, 1 - p)).mean()

  assert abs(score(actual) - score(best)) < .004
  # One GLM is worse.
  flat, y = inputs.reshape(-1, 4), choices.ravel()
  single = _sigmoid(flat @ np.asarray(_fit_glm(flat, y, ridge=.1)))
  assert score(best) - score(single) > .01


def test_the_true_parameters_predict_as_the_simulator_does():
  mouse, trials, inputs, choices = _simulated()
  true = glm_hmm.GlmHmm(mouse.initial[0], mouse.transition[0], mouse.weights[0])
  np.testing.assert_allclose(
      np.asarray(_predict(true, inputs, choices)).ravel(), simulated_mice.predict(mouse, trials)[0],
      atol=1e-12)


def test_predictions_do_not_depend_on_the_order_of_states():
  inputs, choices = _data(5)
  other = glm_hmm.GlmHmm(
      MODEL.initial[::-1].copy(), MODEL.transition[::-1, ::-1].copy(), MODEL.weights[::-1].copy())
  np.testing.assert_allclose(
      _predict(MODEL, inputs, choices), _predict(other, inputs, choices), atol=1e-12)


def test_one_state_is_a_glm():
  inputs, choices = _data(6, length=20)
  model, _ = jax.jit(functools.partial(glm_hmm.fit, num_states=1, restarts=1, steps=20))(
      jax.random.key(0), inputs, choices)
  single = _fit_glm(inputs.reshape(-1, 2), choices.ravel(), ridge=.1)
  np.testing.assert_allclose(model.weights[0], single, atol=1e-6)


@pytest.mark.parametrize('options, words', [
    (dict(ridge=0.0), 'ridge must be positive'),
    (dict(pseudo_count=0.0), 'pseudo_count must be positive'),
    (dict(num_states=0), 'num_states must be at least 1, got 0'),
    (dict(restarts=0), 'restarts must be at least 1, got 0'),
    (dict(steps=0), 'steps must be at least 1, got 0'),
])
def test_bad_arguments_are_refused(options, words):
  inputs, choices = _data(7)
  with pytest.raises(ValueError, match=words):
    glm_hmm.fit(jax.random.key(0), inputs, choices, **{'num_states': 2, **options})
