"""Groups of HMMs by difficulty, and the length at which the gap of a group closes."""

import math
import re

import numpy as np
import pytest

from experiments.icl_hmm import report as icl_hmm_report
from jaxrl_llm.hmm import random_models


def test_groups_include_their_lower_ends_and_every_model():
  groups = {group.name: group for group in icl_hmm_report.difficulty_groups(
      np.array([.3, .5, .75, .9, 1.0]), np.array([0, 1 / 3, .5, 2 / 3, 1]), np.full(5, .2))}
  rows = {name: np.flatnonzero(group.rows).tolist() for name, group in groups.items()}
  assert rows == {
      '': [0, 1, 2, 3, 4], 'lambda2_0-0.5': [0], 'lambda2_0.5-0.75': [1],
      'lambda2_0.75-0.9': [2], 'lambda2_0.9-1': [3, 4], 'H_A_0-0.33': [0],
      'H_A_0.33-0.67': [1, 2], 'H_A_0.67-1': [3, 4], 'H_B_0-0.33': [0, 1, 2, 3, 4]}
  assert groups['H_A_0-0.33'].label == 'H_A/log2 M 0-0.33'


def test_convergence_is_that_of_the_mean_gap_of_a_group():
  gaps = np.array([[.1, .03, .02], [.1, .01, -.02], [.5, .5, .5]])
  groups = [icl_hmm_report.Group('', 'all', np.ones(3, bool)),
            icl_hmm_report.Group('easy', 'easy', np.array([True, True, False]))]

  actual = icl_hmm_report.convergence((4, 8, 16), gaps, groups)
  assert actual['easy'] == pytest.approx({
      'final_gap': 0, 'final_gap_se': .02, 'reached_0.01': 16, 'reached_0.02': 8,
      'reached_0.05': 8, 'count': 2})
  assert actual['']['reached_0.05'] == math.inf

  given = icl_hmm_report.convergence((4, 8, 16), gaps, groups, errors=np.array([.03, .04, .5]))
  assert given['easy']['final_gap_se'] == pytest.approx(.025)

  flat = icl_hmm_report.flat_convergence('eval', actual)
  assert flat['eval/easy/reached_0.02'] == 8 and flat['eval/count'] == 3
  assert 'eval/reached_0.05' not in flat
  table = icl_hmm_report.convergence_table(groups, {'me': actual})
  assert re.search(r'\| easy +\| 2 +\| me +\| 0.0000 ± 0.0200 +\| 16 ', table)
  assert 'not reached' in table


def test_the_study_from_scratch_uses_the_same_groups():
  rng, count = np.random.default_rng(0), 40
  models = random_models.sample_hmms(rng, count, num_states=4, num_symbols=8)
  scores = {
      name: {score: rng.uniform(size=(count, 3)) for score in ('accuracy', 'nll', 'hellinger')}
      for name in ('icl', 'filter', 'bigram')}
  flat = icl_hmm_report.numbers(
      icl_hmm_report.HeldOut(np.array([4, 8, 16]), scores, models, None))

  gap = (scores['filter']['accuracy'] - scores['icl']['accuracy'])[:, -1]
  assert flat['eval/final_gap'] == pytest.approx(gap.mean())
  low = models.emission_entropy / 3 < 1 / 3  # log2 of 8 symbols.
  assert flat['eval/H_B_0-0.33/final_gap'] == pytest.approx(gap[low].mean())

  share = []
  for transition in models.transition:
    stationary = np.linalg.matrix_power(transition, 2**14)[0]
    share.append(stationary @ random_models.entropy_bits(transition) / 2)  # log2 of 4 states.
  middle = (np.array(share) >= 1 / 3) & (np.array(share) < 2 / 3)
  assert flat['eval/H_A_0.33-0.67/count'] == middle.sum() > 2
  assert flat['eval/H_A_0.33-0.67/final_gap'] == pytest.approx(gap[middle].mean())
  assert flat['eval/lambda2_0.9-1/count'] == (models.lambda2 >= .9).sum()
