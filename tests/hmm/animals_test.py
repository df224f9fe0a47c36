"""Trials of mice: the real files, the rebuilt trials, and the layouts."""

import io
import itertools

import numpy as np
import pytest

from jaxrl_llm.hmm import animals

NAMES = ['CSHL_001', 'CSHL_002', 'CSHL_003', 'CSHL_005', 'CSHL_007']


@pytest.fixture(scope='module')
def folder(data_dir):
  return data_dir / 'ibl_mice'


@pytest.fixture(scope='module')
def mice(folder):
  return animals.load_folder(folder)


def _stored(folder, animal):
  with np.load(folder / f'{animal.name}_processed.npz', allow_pickle=False) as arrays:
    return arrays['arr_0'], arrays['arr_1'][:, 0], arrays['arr_2']


def _starts(animal):
  return np.concatenate([[True], np.diff(animal.sessions) > 0])


def test_the_five_animals_and_their_sessions(mice):
  assert [animal.name for animal in mice] == NAMES
  assert [animal.num_sessions for animal in mice] == [36, 48, 57, 47, 62]
  for animal in mice:
    assert set(np.bincount(animal.sessions)) == {90}
    assert (np.diff(animal.sessions) >= 0).all()
  assert sum(len(animal.choices) for animal in mice) == 22_500
  assert [int((animal.choices < 0).sum()) for animal in mice] == [2, 4, 3, 0, 5]


def test_contrasts_are_the_nine_levels_up_to_mean_and_scale(folder, mice):
  for animal in mice:
    stored = _stored(folder, animal)[0][:, 0]
    contrast = animals.CONTRASTS[animal.levels]
    assert set(animal.levels) == set(range(9))
    slope, offset = np.polyfit(contrast, stored, 1)
    np.testing.assert_allclose(slope * contrast + offset, stored, atol=1e-9)


def test_stored_covariates_are_those_of_the_trial_before(folder, mice):
  # [X] of the specification, on all five animals: previous choice = 2 choice − 1.
  for animal in mice:
    covariates, choices, _ = _stored(folder, animal)
    known = ~_starts(animal)[1:] & (choices[:-1] >= 0)
    np.testing.assert_array_equal(covariates[1:, 1][known], (2 * choices[:-1] - 1)[known])
    # The reward is 1 exactly where the choice is on the side of the contrast.
    reward = covariates[1:, 1] * covariates[1:, 2]
    level = animal.levels[:-1]
    sided = known & (level != animals.ZERO_LEVEL)
    right = (level > animals.ZERO_LEVEL) == (choices[:-1] > 0)
    np.testing.assert_array_equal(reward[sided] > 0, right[sided])
    # At contrast 0 chance decides: every other trial is rewarded.
    chance = reward[known & ~sided] > 0
    assert abs(chance.mean() - .5) < 4 * .5 / np.sqrt(len(chance))


def test_stored_covariates_of_a_first_trial_are_its_own(folder, mice):
  # Not those of the session before: they leak the answer, and are not used.
  same, count = 0, 0
  for animal in mice:
    covariates, choices, _ = _stored(folder, animal)
    first = _starts(animal) & (choices >= 0)
    same += (covariates[first, 1] == 2 * choices[first] - 1).sum()
    count += first.sum()
    reward = covariates[first, 1] * covariates[first, 2]
    sided = animal.levels[first] != animals.ZERO_LEVEL
    right = (animal.levels[first] > animals.ZERO_LEVEL) == (choices[first] > 0)
    np.testing.assert_array_equal((reward > 0)[sided], right[sided])
  assert same == count > 200
  for animal in mice:
    assert (animals.covariates(animal)[_starts(animal), 2:] == 0).all()


def test_rebuilt_covariates_agree_with_the_stored_ones(folder, mice):
  for animal in mice:
    covariates, choices, _ = _stored(folder, animal)
    rebuilt = animals.covariates(animal)
    np.testing.assert_array_equal(animal.choices, choices)
    known = rebuilt[:, 2] != 0  # Its session has an earlier trial with a choice.
    assert (~known).sum() <= 1.1 * animal.num_sessions
    np.testing.assert_array_equal(rebuilt[known, 2:], covariates[known, 1:])
    assert np.corrcoef(rebuilt[:, 0], covariates[:, 0])[0, 1] > 1 - 1e-12
    assert (rebuilt[:, 1] == 1).all()


def test_rewards_are_unknown_only_at_the_end_of_a_session_with_contrast_0(mice):
  for animal in mice:
    last = np.append(_starts(animal)[1:], True)
    np.testing.assert_array_equal(
        animal.rewards == 0,
        last & (animal.levels == animals.ZERO_LEVEL) & (animal.choices >= 0))
    assert (animal.rewards[animal.choices < 0] == -1).all()


# --- Rebuilt trials by hand, and invalid files.


def _write(folder, covariates, choices, sessions, name='M_processed.npz'):
  path = folder / name
  np.savez(path, np.asarray(covariates, float), np.asarray(choices)[:, None], np.asarray(sessions))
  return path


# Two sessions. Contrasts .125, 0, −1, (violation) 1 | 0, 1, with mean .5 and scale 2 taken out.
# They are unique: with .25, all could be scaled by a quarter.
COVARIATES = [
    # contrast, previous choice, previous choice · its reward
    [(.125 - .5) / 2, 1, 1],  # Its own: chose 1, rewarded.
    [(0 - .5) / 2, 1, 1],
    [(-1 - .5) / 2, -1, -1],  # Chose 0 at contrast 0 and was lucky: −1 · 1.
    [(1 - .5) / 2, 1, -1],  # Chose 1 at −1: no reward.
    [(0 - .5) / 2, 1, 1],
    [(1 - .5) / 2, -1, 1],  # Chose 0 at contrast 0, no reward: −1 · −1.
]
CHOICES, SESSIONS = [1, 0, 1, -1, 0, 1], ['a', 'a', 'a', 'a', 'b', 'b']


def test_trials_are_rebuilt(tmp_path):
  animal = animals.load(_write(tmp_path, COVARIATES, CHOICES, SESSIONS))
  assert animal.name == 'M'
  np.testing.assert_array_equal(animal.levels, [6, 4, 0, 8, 4, 8])
  np.testing.assert_array_equal(animal.choices, CHOICES)
  np.testing.assert_array_equal(animal.rewards, [1, 1, -1, -1, -1, 1])
  np.testing.assert_array_equal(animal.sessions, [0, 0, 0, 0, 1, 1])
  np.testing.assert_array_equal(
      animals.covariates(animal)[:, 2:], [[0, 0], [1, 1], [-1, -1], [1, -1], [0, 0], [-1, 1]])


def test_a_session_that_ends_at_contrast_0_has_an_unknown_reward(tmp_path):
  animal = animals.load(_write(
      tmp_path, [[-1, 1, 1], [1, -1, -1], [.125, 1, 1], [0, 1, 1]], [0, 1, 1, 0], ['a'] * 4))
  np.testing.assert_array_equal(animal.rewards, [1, 1, 1, 0])


def test_covariates_skip_violations():
  animal = animals.Animal(
      'm', np.array([8, 0, 8, 8]), np.array([-1, 1, -1, 0]), np.array([-1, -1, -1, -1]),
      np.zeros(4, int))
  np.testing.assert_array_equal(
      animals.covariates(animal)[:, 2:], [[0, 0], [0, 0], [1, -1], [1, -1]])


def test_fold_files_of_a_directory_are_skipped(tmp_path):
  _write(tmp_path, COVARIATES, CHOICES, SESSIONS, 'B_processed.npz')
  _write(tmp_path, COVARIATES, CHOICES, SESSIONS, 'A_processed.npz')
  np.savez(tmp_path / 'A_session_fold_lookup.npz', np.array([None, 1], object))
  assert [animal.name for animal in animals.load_folder(tmp_path)] == ['A', 'B']
  with pytest.raises(ValueError, match='must be a directory with animals'):
    animals.load_folder(tmp_path / 'nowhere')


def test_two_files_with_the_same_name_are_refused(tmp_path):
  for name in ('A.npz', 'A_processed.npz', 'B.npz'):
    _write(tmp_path, COVARIATES, CHOICES, SESSIONS, name)
  with pytest.raises(ValueError, match='one file per animal, got A.npz, A_processed.npz for A'):
    animals.load_folder(tmp_path)


def _with(row, column, value):
  changed = np.array(COVARIATES)
  changed[row, column] = value
  return changed


@pytest.mark.parametrize('change, words', [
    (dict(choices=[2, 0, 1, -1, 0, 1]), 'choices must be 0, 1 or -1, got'),
    (dict(sessions=['a', 'b', 'a', 'a', 'b', 'b']), 'must be contiguous'),
    (dict(covariates=np.array(COVARIATES)[:, :2]), r'must be \[N, 3\], .* got \(6, 2\)'),
    (dict(covariates=np.array(COVARIATES)[:, [0, 2, 1]]), '2 of 4 rows that .* row 3 with'),
    (dict(covariates=np.array(COVARIATES) * [-1, 1, 1]), '2 of 4 rows that .* row 1 with'),
    (dict(covariates=_with(2, 2, np.nan)), r'must be finite, got \[-0.75, -1.0, nan\] in row 2'),
    (dict(covariates=_with(4, 1, np.inf)), 'must be finite, got .* in row 4'),
    (dict(covariates=_with(2, 1, -.5)), '1 of 4 rows that contradict .* row 2 with .*-0.5, -1.0'),
    (dict(covariates=_with(2, 2, 0)), '1 of 4 rows that contradict .* row 2 with .*-1.0, 0.0'),
    (dict(covariates=_with(5, 1, 1)), '1 of 4 rows that contradict .* row 5 with .*1.0, 1.0'),
    (dict(covariates=np.array(COVARIATES) + np.arange(6)[:, None]), 'up to mean and scale'),
    (dict(covariates=np.array(COVARIATES) * [0, 1, 1]), 'contrasts must differ'),
])
def test_invalid_files_are_refused(tmp_path, change, words):
  values = dict(covariates=COVARIATES, choices=CHOICES, sessions=SESSIONS) | change
  with pytest.raises(ValueError, match=words) as error:
    animals.load(_write(tmp_path, **values))
  assert str(tmp_path) in str(error.value) and '\n' not in str(error.value)


def test_nothing_is_unpickled(tmp_path):
  path = tmp_path / 'X_processed.npz'
  np.savez(path, np.array([None], object), np.zeros((1, 1)), np.zeros(1))
  with pytest.raises(ValueError, match='is not an animal file'):
    animals.load(path)
  path.write_bytes(b'nothing')
  with pytest.raises(ValueError, match='is not an animal file'):
    animals.load(path)
  np.savez(path, np.zeros((1, 1)))
  with pytest.raises(ValueError, match='is not an animal file'):
    animals.load(path)
  with open(path, 'wb') as file:
    np.save(file, np.zeros((4, 3)))  # One array, not an archive.
  with pytest.raises(ValueError, match='is not an animal file'):
    animals.load(path)


def test_a_damaged_file_is_refused_or_has_the_same_content(tmp_path):
  path = _write(tmp_path, COVARIATES, CHOICES, SESSIONS)
  expected, whole = animals.load(path), io.BytesIO()
  with np.load(path) as arrays:
    np.savez_compressed(whole, *(arrays[f'arr_{i}'] for i in range(3)))
  whole, refused = whole.getvalue(), 0

  for index in range(len(whole)):
    for mask in (0x01, 0xff):
      path.write_bytes(whole[:index] + bytes([whole[index] ^ mask]) + whole[index + 1 :])
      try:
        actual = animals.load(path)
      except ValueError as error:
        assert '\n' not in str(error)
        refused += 1
      else:
        np.testing.assert_array_equal(actual.choices, expected.choices)
  assert refused > len(whole)


def test_ambiguous_contrasts_are_refused(tmp_path):
  # Three contrasts, .0625 apart, fit several scales.
  narrow = np.array(COVARIATES)
  narrow[:, 0] = [-.0625, 0, .0625, .0625, 0, -.0625]
  with pytest.raises(ValueError, match='must determine their mean and scale, got values .* or'):
    animals.load(_write(tmp_path, narrow, CHOICES, SESSIONS))


def test_contrasts_need_not_reach_the_extremes(tmp_path):
  # −1 and one other contrast are missing: only one scale fits.
  levels = np.array([1, 2, 3, 4, 5, 6, 8])
  choices = (levels > animals.ZERO_LEVEL).astype(int)
  before = np.concatenate([[1], 2 * choices[:-1] - 1])
  rows = np.stack([animals.CONTRASTS[levels] / 3 + .2, before, before], axis=1)
  actual = animals.load(_write(tmp_path, rows, choices, ['a'] * 7))
  np.testing.assert_array_equal(actual.levels, levels)


# --- Stimuli, sessions, folds.


def test_the_stimulus_has_unit_mean_square_and_the_sign_of_the_contrast():
  for power in (.25, 1, 2):
    drive = animals.stimulus(power)
    assert np.mean(drive**2) == pytest.approx(1)
    np.testing.assert_allclose(drive, -drive[::-1])
    assert (np.diff(drive) > 0).all()
    assert drive[8] / drive[7] == pytest.approx(4**power)
  assert animals.stimulus(np.array([.5, 1])).shape == (2, 9)


def test_sessions_are_padded_at_their_ends(tmp_path):
  animal = animals.load(_write(tmp_path, COVARIATES, CHOICES, SESSIONS))
  padded = animals.by_session(animal, np.arange(6.0)[:, None], np.nan)
  np.testing.assert_array_equal(
      padded[..., 0], [[0, 1, 2, 3], [4, 5, np.nan, np.nan]])


def test_folds_are_balanced_and_drawn_by_seed():
  fold = animals.folds(36, 5, 0)
  assert sorted(np.bincount(fold)) == [7, 7, 7, 7, 8]
  np.testing.assert_array_equal(fold, animals.folds(36, 5, 0))
  assert (fold != animals.folds(36, 5, 1)).any()
  for sessions, number in ((3, 4), (3, 1)):
    with pytest.raises(ValueError, match=f'at most the number of sessions .3., got {number}'):
      animals.folds(sessions, number, 0)


# --- Layouts.

LEVELS, ANSWERS, REWARDS = np.array([8, 0, 4]), np.array([1, 1, 0]), np.array([1, -1, 0])


@pytest.mark.parametrize('layout, expected, labels', [
    ('choice', [10, 10, 9], [0, 1, 2]),
    ('stim_choice', [8, 10, 0, 10, 4, 9], [1, 3, 5]),
    ('choice_reward', [10, 12, 10, 11, 9, 11], [0, 2, 4]),
    ('stim_choice_reward', [8, 10, 12, 0, 10, 11, 4, 9, 11], [1, 4, 7]),
])
def test_layouts_and_their_label_positions(layout, expected, labels):
  symbols = animals.encode(LEVELS, ANSWERS, REWARDS, layout)
  np.testing.assert_array_equal(symbols, expected)
  actual = animals.label_positions(layout, 3)
  np.testing.assert_array_equal(actual, labels)
  # The released (start, step): (0, 1), (1, 2), (0, 2), (1, 3).
  assert (actual[0], actual[1] - actual[0]) == {
      'choice': (0, 1), 'stim_choice': (1, 2), 'choice_reward': (0, 2),
      'stim_choice_reward': (1, 3)}[layout]
  np.testing.assert_array_equal(symbols[actual] - animals.CHOICE_SYMBOLS[0], ANSWERS)
  # Batched sequences.
  both = animals.encode(*(np.stack([x, x[::-1]]) for x in (LEVELS, ANSWERS, REWARDS)), layout)
  np.testing.assert_array_equal(both[0], expected)
  assert symbols.max() < animals.NUM_SYMBOLS


def test_8_12_a_shifted_trial_has_its_contrast_the_choice_before_and_its_reward():
  symbols = animals.encode(LEVELS, ANSWERS, REWARDS, 'stim_choice_reward', shift=True)
  np.testing.assert_array_equal(symbols, [0, 10, 11, 4, 10, 11])
  labels = animals.label_positions('stim_choice_reward', 3, shift=True)
  np.testing.assert_array_equal(symbols[labels] - animals.CHOICE_SYMBOLS[0], ANSWERS[:2])


def _leaked_rule(animal, trials, shift):
  """Accuracy of the rule that the choice fits the last contrast and reward in the context."""
  arrays = (animal.levels[trials], animal.choices[trials], animal.rewards[trials])
  symbols = animals.encode(*arrays, 'stim_choice_reward', shift=shift)
  labels = animals.label_positions('stim_choice_reward', len(trials), shift=shift)[1:]
  reward = symbols[labels - 2] == animals.REWARD_SYMBOLS[1]
  level = symbols[labels - 4]
  guess = np.where(reward, level > animals.ZERO_LEVEL, level < animals.ZERO_LEVEL)
  right = guess == (symbols[labels] == animals.CHOICE_SYMBOLS[1])
  return np.where(level == animals.ZERO_LEVEL, .5, right).mean()


def test_8_12_the_shifted_layout_leaks_the_answer_on_real_mice_and_the_other_does_not(mice):
  for animal in mice:
    trials = np.flatnonzero(animal.choices >= 0)
    zero = (animal.levels == animals.ZERO_LEVEL).mean()
    # A rule without parameters is right on all trials except half of those at contrast 0.
    assert _leaked_rule(animal, trials, shift=True) == pytest.approx(1 - zero / 2, abs=.005)
    # Unshifted, it predicts that the last choice is repeated.
    assert _leaked_rule(animal, trials, shift=False) < .75


def test_bad_layouts_are_refused():
  with pytest.raises(ValueError, match="layout must be one of choice, .*, got 'reward'"):
    animals.encode(LEVELS, ANSWERS, REWARDS, 'reward')
  with pytest.raises(ValueError, match='exclude trials without a choice'):
    animals.encode(LEVELS, np.array([0, -1, 1]), REWARDS, 'choice')


# --- Windows.


@pytest.mark.parametrize('before, count, width', itertools.product((0, 3, 40), (1, 7, 20), (2, 9)))
def test_windows_predict_every_trial_once_from_the_trials_before_it(before, count, width):
  before = np.arange(100, 100 + before)
  predicted = np.arange(count)
  trials, chosen = animals.windows(before, predicted, width)
  assert trials.shape == chosen.shape and trials.shape[1] == width
  np.testing.assert_array_equal(trials[chosen], predicted)
  everything = np.concatenate([before, predicted])
  for row, mask in zip(trials, chosen):
    real = row[row >= 0]
    assert (row[len(real):] == -1).all() and mask.sum() <= width // 2
    begin = int(np.flatnonzero(everything == real[0])[0])
    np.testing.assert_array_equal(real, everything[begin : begin + len(real)])
    assert mask[len(real) - 1] and (len(real) == width or begin == 0)


def test_windows_of_one_trial_are_refused():
  with pytest.raises(ValueError, match='width must be at least 2, got 1'):
    animals.windows([], [0], 1)


# --- Trials from a user.


def _animal(**changes):
  arrays = dict(
      levels=np.array([0, 4, 8]), choices=np.array([0, -1, 1]), rewards=np.array([1, -1, 0]),
      sessions=np.array([0, 0, 1]))
  return animals.Animal('own', **{**arrays, **changes})


@pytest.mark.parametrize('changes, message', [
    (dict(choices=np.array([0, 2, 1])), 'choices must be integers from -1 to 1, .*, got 2'),
    (dict(choices=np.array([0, 0.5, 1])), 'choices must be integers from -1 to 1, .*, got 0.5'),
    (dict(levels=np.array([0, 9, 8])), 'levels must be integers from 0 to 8, .*, got 9'),
    (dict(levels=np.array([-1, 0, 8])), 'levels must be integers from 0 to 8, .*, got -1'),
    (dict(rewards=np.array([1, 2, 0])), 'rewards must be integers from -1 to 1, .*, got 2'),
    (dict(levels=np.array([0, 4])), r'levels must be .*, got \(2,\) for \(3,\) choices'),
    (dict(sessions=np.array([0, 2, 2])), 'sessions must count 0, ..., 0, 1, ...'),
    (dict(sessions=np.array([0, 0])), r'sessions must count .*, got \(2,\) for \(3,\) choices'),
])
def test_H2_invalid_trials_are_refused(changes, message):
  assert _animal().num_sessions == 2
  with pytest.raises(ValueError, match=message):
    _animal(**changes)


@pytest.mark.parametrize('name, value', [('levels', 9), ('levels', -1), ('choices', 2),
                                         ('rewards', 2)])
def test_H1_trials_that_would_become_other_symbols_are_refused(name, value):
  trials = dict(levels=np.array([[0, 8]]), choices=np.array([[0, 1]]), rewards=np.array([[1, -1]]))
  layout = 'stim_choice_reward'
  assert animals.encode(**trials, layout=layout).tolist() == [[0, 9, 12, 8, 10, 11]]
  with pytest.raises(ValueError, match=f'{name} must be integers from .*, got {value}'):
    animals.encode(**{**trials, name: np.array([[0, value]])}, layout=layout)
