"""The report on mice: scores, errors over folds, curves, and what the paragraph says."""

import numpy as np
import pytest

from experiments.icl_hmm import mice_report


def test_hits_and_log_probs():
  chances, choices = np.array([.5, .8, .8, np.nan, .3]), np.array([1, 1, 0, 1, -1])
  np.testing.assert_array_equal(
      mice_report.hits(chances, choices), [.5, 1, 0, np.nan, np.nan])
  np.testing.assert_allclose(
      mice_report.log_probs(chances, choices), np.log([.5, .8, .2, np.nan, np.nan]))
  assert np.isfinite(mice_report.log_probs(np.array([0.0]), np.array([1]))).all()


def test_standard_errors_are_over_folds():
  arrays = {'choices': np.array([1, 1, 0, 0]), 'fold': np.array([0, 0, 1, 1]),
            'chance/glm': np.array([.9, .9, .9, .2]), 'chance/bayes': np.array([.9, .9, .1, .1])}
  numbers = mice_report.animal_numbers({'M': arrays})
  assert numbers['mice/M/glm/accuracy'] == .75  # 1 and 1/2.
  assert numbers['mice/M/glm/accuracy_se'] == pytest.approx(.25)
  assert numbers['mice/M/glm/probability'] == pytest.approx((.9 + np.sqrt(.1 * .8)) / 2)
  assert numbers['mean/glm/accuracy_se'] == 0


def test_curves_are_by_trials_read():
  choices = np.ones((2, 8), int)
  chances = np.tile(np.repeat([.1, .5, .9], [2, 2, 4]), (2, 1))
  x, mean, error = mice_report.curve(chances, choices)
  np.testing.assert_array_equal(x, [.5, 2.5, 5.5])
  np.testing.assert_array_equal(mean, [0, .5, 1])
  assert (error == 0).all()


def test_the_paragraph_names_both_layouts_and_the_most_states():
  methods = (*mice_report.LABELS, 'glm_hmm2', 'glm_hmm3', 'glm_hmm10')
  numbers = {f'mean/{name}/accuracy': .5 + index / 100 for index, name in enumerate(methods)}
  numbers |= {f'cohort/{name}/minus_bayes': -.02 for name in ('icl_stim_choice', 'icl_shift')}
  percent = lambda name: f'{100 * numbers[f"mean/{name}/accuracy"]:.1f} %'
  for swapped in (False, True):
    if swapped:
      names = [f'mean/{name}/accuracy' for name in ('icl_stim_choice', 'icl_stim_choice_reward')]
      numbers[names[0]], numbers[names[1]] = numbers[names[1]], numbers[names[0]]
    text = mice_report.paragraph(numbers, real=True)
    assert (f'in context, {percent("icl_stim_choice")} (ICL: contrast, choice) and '
            f'{percent("icl_stim_choice_reward")} (ICL: contrast, choice, reward)') in text
    assert (f'{percent("icl_choice")} (ICL: choice) and {percent("icl_choice_reward")} '
            '(ICL: choice, reward)') in text
    assert f'GLM-HMM, 10 states fitted to the training sessions {percent("glm_hmm10")}' in text
