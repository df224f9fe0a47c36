"""Simulated mice: the prior, their choices, and the optimal prediction."""

import itertools

import numpy as np
import pytest

from jaxrl_llm.hmm import animals, simulated_mice

HAND = simulated_mice.Mice(
    initial=np.array([[.7, .3]]), transition=np.array([[[.9, .1], [.2, .8]]]),
    weights=np.array([[[2.0, .1, .5, -.3], [.2, -1.0, 0, .4]]]), power=np.array([.5]))


def _drawn(seed, count, **options):
  return simulated_mice.draw(np.random.default_rng(seed), count, **options)


def test_drawn_mice_have_valid_distributions_and_one_to_three_states():
  drawn = _drawn(0, 600)
  np.testing.assert_allclose(drawn.initial.sum(axis=-1), 1)
  np.testing.assert_allclose(drawn.transition.sum(axis=-1), 1)
  states = (drawn.initial > 0).sum(axis=-1)
  assert min(np.bincount(states)[1:]) > 150 and states.max() == 3
  # A state that a mouse does not have is never entered from those that it has.
  outside = np.arange(3) >= states[:, None]
  entered = np.where(outside[:, :, None], 0, drawn.transition) * outside[:, None, :]
  assert entered.max() == 0
  stay = np.diagonal(drawn.transition, axis1=1, axis2=2)[~outside]
  assert ((stay >= .9) & (stay <= 1)).all()
  assert drawn.weights.shape == (600, 3, 4) and drawn.power.shape == (600,)


def test_draws_are_functions_of_the_generator():
  a, b = (simulated_mice.simulate(
      _drawn(3, 4), np.random.default_rng(5), num_trials=20) for _ in range(2))
  for x, y in zip(a, b):
    np.testing.assert_array_equal(x, y)


def test_sessions_begin_at_the_phase():
  drawn = _drawn(0, 2)
  trials = simulated_mice.simulate(
      drawn, np.random.default_rng(0), num_trials=200, phase=np.array([0, 60]))
  np.testing.assert_array_equal(np.flatnonzero(trials.starts[0]), [0, 90, 180])
  np.testing.assert_array_equal(np.flatnonzero(trials.starts[1]), [0, 30, 120])
  animal = simulated_mice.as_animal(trials, 1, 'b')
  assert animal.num_sessions == 3 and list(np.bincount(animal.sessions)) == [30, 90, 80]


def test_rewards_follow_choices_and_at_contrast_0_chance():
  trials = simulated_mice.simulate(_drawn(1, 200), np.random.default_rng(1), num_trials=90)
  sided = trials.levels != animals.ZERO_LEVEL
  right = (trials.levels > animals.ZERO_LEVEL) == (trials.choices > 0)
  np.testing.assert_array_equal((trials.rewards > 0)[sided], right[sided])
  lucky = (trials.rewards > 0)[~sided]
  assert abs(lucky.mean() - .5) < 4 * .5 / np.sqrt(len(lucky))
  assert set(np.unique(trials.rewards)) == {-1, 1}
  counts = np.bincount(trials.levels.ravel(), minlength=9) / trials.levels.size
  np.testing.assert_allclose(counts, 1 / 9, atol=4 * np.sqrt(8 / 81 / trials.levels.size))


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _by_paths(mouse, trials):
  """P(choice 1 | before) by summing over all paths of the state."""
  count = trials.levels.shape[1]
  stimulus = animals.stimulus(mouse.power[0])
  chances = np.zeros((count, 2))
  for t in range(count):
    fresh = trials.starts[0, t]
    before = 0 if fresh else 2 * int(trials.choices[0, t - 1]) - 1
    inputs = [stimulus[trials.levels[0, t]], 1, before, before * trials.rewards[0, t - 1]]
    chances[t] = _sigmoid(mouse.weights[0] @ np.array(inputs, float))

  predictions = []
  for t in range(count):
    joint = np.zeros(2)
    for path in itertools.product(range(2), repeat=t + 1):
      weight = 1.0
      for s, state in enumerate(path):
        start = trials.starts[0, s]
        weight *= (mouse.initial[0] if start else mouse.transition[0, path[s - 1]])[state]
        if s < t:
          weight *= chances[s, state] if trials.choices[0, s] else 1 - chances[s, state]
      joint += weight * np.array([1 - chances[t, path[-1]], chances[t, path[-1]]])
    predictions.append(joint[1] / joint.sum())
  return np.array(predictions)


def test_the_best_prediction_is_the_sum_over_all_paths():
  trials = simulated_mice.simulate(HAND, np.random.default_rng(2), num_trials=7, session_length=4)
  np.testing.assert_allclose(
      simulated_mice.predict(HAND, trials)[0], _by_paths(HAND, trials), atol=1e-12)


def test_predictions_are_calibrated_and_better_than_those_of_another_mouse():
  count = 400
  drawn = _drawn(4, count)
  trials = simulated_mice.simulate(drawn, np.random.default_rng(4), num_trials=180)
  best = simulated_mice.predict(drawn, trials)

  def score(p):
    return np.log(np.where(trials.choices > 0, p, 1 - p)).mean(axis=1)

  others = simulated_mice.predict(
      simulated_mice.Mice(*(np.roll(x, 1, axis=0) for x in drawn)), trials)
  gain = score(best) - score(others)
  assert gain.mean() > 5 * gain.std() / np.sqrt(count)
  for low in (.05, .25, .45, .65, .85):
    near = np.abs(best - low) < .05
    error = 4 * np.sqrt(.25 / near.sum())
    assert abs(trials.choices[near].mean() - best[near].mean()) < error


def test_states_and_choices_have_the_frequencies_of_the_parameters():
  copies = simulated_mice.Mice(*(np.repeat(x, 4000, axis=0) for x in HAND))
  trials = simulated_mice.simulate(copies, np.random.default_rng(6), num_trials=2)
  assert (trials.states[:, 0] == 1).mean() == pytest.approx(.3, abs=.03)
  stayed = trials.states[:, 1][trials.states[:, 0] == 0] == 0
  assert stayed.mean() == pytest.approx(.9, abs=.03)
  assert trials.choices[:, 0].mean() == pytest.approx(
      simulated_mice.predict(copies, trials)[:, 0].mean(), abs=.03)


@pytest.mark.parametrize('call, words', [
    (lambda: _drawn(0, 0), 'count must be at least 1, got 0'),
    (lambda: _drawn(0, 1, max_states=0), 'max_states must be at least 1, got 0'),
    (lambda: simulated_mice.simulate(HAND, np.random.default_rng(0), num_trials=0),
     'num_trials must be at least 1, got 0'),
    (lambda: simulated_mice.simulate(
        HAND, np.random.default_rng(0), num_trials=1, session_length=0),
     'session_length must be at least 1, got 0'),
])
def test_bad_numbers_are_refused(call, words):
  with pytest.raises(ValueError, match=words):
    call()
