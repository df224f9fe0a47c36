"""Predictors of mice: the data that each one sees, counts and fits."""

import dataclasses
import functools

import numpy as np
import pytest

from experiments.icl_hmm import mice as icl_hmm_mice
from experiments.icl_hmm import mice_predictors
from jaxrl_llm.hmm import animals
from tests.experiments import tiny_mice


def test_every_choice_is_predicted_once_from_training_sessions_and_its_own_past():
  animal = dataclasses.replace(tiny_mice.animal(), choices=tiny_mice.animal().choices.copy())
  animal.choices[[3, 20]] = -1

  fold = animals.folds(animal.num_sessions, 2, 0)
  trials, predicted = mice_predictors.held_out_windows(animal, fold, 30)
  actual = trials[predicted]
  np.testing.assert_array_equal(np.sort(actual), np.flatnonzero(animal.choices >= 0))

  order = []
  for row, mask in zip(trials, predicted):
    session = animal.sessions[row[mask][0]]
    real = row[row >= 0]
    for trial in real:
      own = animal.sessions[trial] == session
      assert own or fold[animal.sessions[trial]] != fold[session]
    seen = animal.sessions[real]
    order.append([*dict.fromkeys(int(s) for s in seen)])
    assert order[-1][-1] == session
    # Later sessions come first, then earlier ones.
    others = [s - 100 * (s > session) for s in order[-1][:-1]]
    assert others == sorted(others)
  assert max(map(len, order)) == 3


@functools.cache
def _predictions(changed=None):
  """All predictions of an animal, of which one choice may be flipped."""
  animal = tiny_mice.animal()
  if changed is not None:
    animal = dataclasses.replace(animal, choices=animal.choices.copy())
    animal.choices[changed] = 1 - animal.choices[changed]
  return icl_hmm_mice.predict_animal(
      tiny_mice.config(), animal, None, [tiny_mice.predictor()], (4, 12))


def test_8_12_no_prediction_depends_on_its_own_choice_or_a_later_one():
  # Flip a choice in the middle of session 1. Within its fold no prediction of an earlier or the
  # same trial changes; predictions of training-fold sessions may.
  flipped = 17
  before, after = _predictions(), _predictions(flipped)
  same_fold = before['fold'] == before['fold'][flipped]
  earlier = same_fold & (np.arange(48) <= flipped)

  for name in before:
    if not name.startswith('chance/') or name == 'chance/icl_shift':
      continue
    np.testing.assert_allclose(after[name][earlier], before[name][earlier], err_msg=name)
    changed, name = np.abs(after[name] - before[name]) > 0, name.removeprefix('chance/')
    if name not in ('chance', 'bias'):
      assert changed[flipped + 1 : flipped + 5].any(), name
    if name in ('bias', 'glm', 'glm_levels', 'glm_hmm2', 'ngram2'):
      assert changed[~same_fold].any(), name


def test_8_12_predictions_do_not_depend_on_other_held_out_sessions():
  flipped, sessions = 17, tiny_mice.animal().sessions
  before, after = _predictions(), _predictions(flipped)
  others = (before['fold'] == before['fold'][flipped]) & (sessions != sessions[flipped])
  assert (sessions[others] > sessions[flipped]).any()
  for name in before:
    if name.startswith('chance/'):
      np.testing.assert_array_equal(after[name][others], before[name][others], err_msg=name)


def test_counts_by_hand():
  levels, choices = np.array([3, 3, 5, 3, 3]), np.array([1, 0, 1, 1, 1])
  actual = mice_predictors.count_predictions(levels, choices)
  # 1-gram: (ones + 1/2) / (count + 1).
  np.testing.assert_allclose(actual[0], [.5, 1.5 / 2, 1.5 / 3, 2.5 / 4, 3.5 / 5])
  # 2-gram, with the 1-gram as one more observation.
  np.testing.assert_allclose(
      actual[1], [.5, (1 + .75) / 2, .5, (1 + .625) / 3, (2 + .7) / 4])
  # 3-gram: (none, 3), (1, 3), (0, 5), (1, 3), (1, 3).
  np.testing.assert_allclose(
      actual[2], [.5, actual[1, 1], .5, (0 + actual[1, 3]) / 2, (1 + actual[1, 4]) / 3])


def test_padding_does_not_change_fitted_models():
  config, animal = tiny_mice.config(), tiny_mice.animal()
  fold = animals.folds(4, 2, 0)
  padded = mice_predictors.fitted_predictions(config, animal, fold, (6, 15))
  for name in ('glm', 'glm_levels', 'glm_hmm2'):
    np.testing.assert_allclose(padded[name], _predictions()[f'chance/{name}'], atol=2e-4)


@functools.cache
def _fitted(**changes):
  return mice_predictors.fitted_predictions(
      tiny_mice.config(**changes), tiny_mice.animal(), animals.folds(4, 2, 0), (4, 12))


@pytest.mark.parametrize('changes, name', [
    (dict(ridge=1.0), 'glm'), (dict(pseudo_count=1.0), 'glm_hmm2'), (dict(restarts=3), 'glm_hmm2'),
    (dict(em_steps=1), 'glm_hmm2'), (dict(seed=1), 'glm_hmm2')])
def test_fields_change_the_fits(changes, name):
  assert (_fitted(**changes)[name] != _fitted()[name]).any()
