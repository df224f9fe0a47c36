"""Choices of mice, session by session: trials, and their encoding as symbol sequences.

A mouse sees a grating of one of nine signed contrasts and turns a wheel: choice 1 is right for
contrasts above 0, choice 0 for those below, and at contrast 0 the reward is random. The published
preprocessing (data of the International Brain Laboratory, prepared as by Ashwood et al., 2022)
stores covariates of a model: the z-scored contrast, the previous choice, and that choice times its
reward. Here trials are rebuilt from them:

- the reward of trial t is in the covariates of trial t + 1 of its session;
- the reward of a session's last trial follows from contrast and choice, except at contrast 0,
  where it is unknown;
- the covariates of a session's first trial contain that trial's own choice and reward: they would
  leak the answer, and are not used.

The released code of the in-context study (arXiv 2506.07298) puts the choice of the previous trial
next to the contrast and the reward of the current one: `shift` of `encode`. When that choice is
predicted, its own contrast and reward are already in the context.
"""

import collections
import dataclasses
import hashlib
import itertools
import lzma
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

CONTRASTS = np.array([-1, -.25, -.125, -.0625, 0, .0625, .125, .25, 1])
ZERO_LEVEL = 4

# Symbols: nine contrasts, two choices, two rewards, in the order of the released code's letters.
CHOICE_SYMBOLS = (9, 10)
REWARD_SYMBOLS = (11, 12)
NUM_SYMBOLS = 13
LAYOUTS = {
    'choice': ('choice',),
    'stim_choice': ('stim', 'choice'),
    'choice_reward': ('choice', 'reward'),
    'stim_choice_reward': ('stim', 'choice', 'reward'),
}
COVARIATES = ('stimulus', 'bias', 'previous choice', 'win-stay')

_FILES = '*.npz'
_LOOKUP = 'fold_lookup'
# Errors of numpy and zipfile on files that are damaged, encrypted or of another kind.
_UNREADABLE = (ValueError, OSError, KeyError, EOFError, AttributeError, TypeError, RuntimeError,
               OverflowError, MemoryError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
               struct.error)


@dataclasses.dataclass(frozen=True)
class Animal:
  """All trials of an animal, in order.

  Attributes:
    name: name of the animal.
    levels: int8 [N]; the contrast, an index into `CONTRASTS`.
    choices: int8 [N]; 0, 1, or -1 for no choice (a violation).
    rewards: int8 [N]; 1, -1 for no reward, and 0 if unknown.
    sessions: int32 [N]; 0, ..., 0, 1, ..., 1, ...
  """

  name: str
  levels: np.ndarray
  choices: np.ndarray
  rewards: np.ndarray
  sessions: np.ndarray

  def __post_init__(self):
    """Raises a one-line ValueError if an array does not match its description above."""
    check_trials(self.levels, self.choices, self.rewards, least_choice=-1)
    steps = np.diff(self.sessions, prepend=0)
    if self.sessions.shape != self.choices.shape or not np.isin(steps, (0, 1)).all():
      raise ValueError(f'sessions must count 0, ..., 0, 1, ..., one per trial, got '
                       f'{self.sessions.shape} for {self.choices.shape} choices')

  @property
  def num_sessions(self) -> int:
    """Number of sessions S."""
    return int(self.sessions[-1]) + 1


def check_trials(
    levels: np.ndarray, choices: np.ndarray, rewards: np.ndarray, *, least_choice: int
) -> None:
  """Rejects trials with a value that `encode` would map to another symbol, or to none.

  Args:
    levels: [...]; an index into `CONTRASTS`.
    choices: [...]; 0, 1, or -1 where `least_choice` is -1.
    rewards: [...]; -1, 0 or 1.
    least_choice: 0, or -1 if trials without a choice are allowed.

  Raises:
    ValueError: one line with the array, the rule, and the first value that breaks it.
  """
  for name, values, low, high in (
      ('levels', levels, 0, len(CONTRASTS) - 1), ('choices', choices, least_choice, 1),
      ('rewards', rewards, -1, 1)):
    values = np.asarray(values)
    bad = values[~np.isin(values, range(low, high + 1))]
    if values.shape != np.shape(choices) or bad.size:
      got = f'{bad[0]}' if bad.size else f'{values.shape} for {np.shape(choices)} choices'
      raise ValueError(
          f'{name} must be integers from {low} to {high}, one per trial, got {got}')


def fingerprint(animal: Animal) -> str:
  """Short hash of all trials of an animal: contrasts, choices, rewards and sessions."""
  arrays = (animal.levels, animal.choices, animal.rewards, animal.sessions)
  return hashlib.sha256(np.stack(arrays).astype(np.int64).tobytes()).hexdigest()[:16]


def load_folder(directory: str | pathlib.Path) -> list[Animal]:
  """Loads all animals of a directory, sorted by name; skips fold files (`*fold_lookup.npz`).

  Raises:
    ValueError: if the directory is missing or has no animals, if two files share a name, or as
      for `load`.
  """
  paths = sorted(p for p in pathlib.Path(directory).glob(_FILES) if _LOOKUP not in p.name)
  if not paths:
    raise ValueError(f'{directory} must be a directory with animals ({_FILES}), got none')
  names = collections.Counter(map(_name, paths))
  for name, count in names.items():
    if count > 1:
      files = ', '.join(path.name for path in paths if _name(path) == name)
      raise ValueError(f'{directory} must have one file per animal, got {files} for {name}')
  return [load(path) for path in paths]


def load(path: str | pathlib.Path) -> Animal:
  """Rebuilds an animal's trials from `NAME_processed.npz`; nothing is unpickled.

  Args:
    path: a file with arr_0 [N, 3], the covariates; arr_1 [N, 1], the choices; and arr_2 [N], the
      session of each trial.

  Returns:
    The animal.

  Raises:
    ValueError: one line; if the file is of another kind, or its arrays are not such covariates.
  """
  path = pathlib.Path(path)
  try:
    with np.load(path, allow_pickle=False) as arrays:
      covariates, choices, names = (arrays[f'arr_{i}'] for i in range(3))
    covariates = np.asarray(covariates, float)
    choices = np.asarray(choices).reshape(-1)
    names = np.asarray(names).reshape(-1)
  except _UNREADABLE as error:
    problem = ' '.join(str(error).split())
    raise ValueError(f'{path} is not an animal file (arr_0, arr_1, arr_2): {problem}') from error

  try:
    return _rebuild(_name(path), covariates, choices, names)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def _name(path: pathlib.Path) -> str:
  return path.stem.removesuffix('_processed')


def _rebuild(name: str, covariates, choices, names) -> Animal:
  """Rebuilds trials from stored covariates; see the module docstring."""
  count = len(choices)
  if count < 2 or covariates.shape != (count, 3) or names.shape != (count,):
    raise ValueError(f'arr_0, arr_1 and arr_2 must be [N, 3], [N, 1] and [N] with N > 1, got '
                     f'{covariates.shape}, {choices.shape} and {names.shape}')
  if not np.isfinite(covariates).all():
    row = int(np.flatnonzero(~np.isfinite(covariates).all(axis=1))[0])
    raise ValueError(f'arr_0 must be finite, got {covariates[row].tolist()} in row {row}')
  if not np.isin(choices, (-1, 0, 1)).all():
    raise ValueError(f'choices must be 0, 1 or -1, got {np.unique(choices)}')

  starts = np.concatenate([[True], names[1:] != names[:-1]])
  if starts.sum() != len(np.unique(names)):
    raise ValueError('the trials of a session must be contiguous, got an interrupted session')

  levels, choices = _levels(covariates[:, 0]), choices.astype(np.int8)
  right = np.where(levels > ZERO_LEVEL, 1, 0) == choices
  rewards = np.where(levels == ZERO_LEVEL, 0, np.where(right, 1, -1))
  # Trials whose choice and reward are in the covariates of the next trial.
  stored_trials = np.flatnonzero(~starts[1:] & (choices[:-1] >= 0))
  before = covariates[stored_trials + 1, 1:]
  stored = before[:, 0] * before[:, 1]

  agrees = (np.abs(before) == 1).all(axis=1) & (
      (before[:, 0] > 0) == (choices[stored_trials] > 0))
  agrees &= (rewards[stored_trials] == 0) | (rewards[stored_trials] == stored)
  if not agrees.all():  # Different column order, different sign, or a modified file.
    row = int(stored_trials[~agrees][0]) + 1
    raise ValueError(
        'arr_0 must have contrast, previous choice (-1 or 1) and previous choice times reward (-1 '
        f'or 1), got {(~agrees).sum()} of {len(stored_trials)} rows that contradict the trial '
        f'before them, the first of them row {row} with {covariates[row].tolist()}')

  rewards[stored_trials] = stored.astype(int)
  rewards[choices < 0] = -1

  return Animal(name, levels, choices, rewards.astype(np.int8),
                (np.cumsum(starts) - 1).astype(np.int32))


def _levels(z_scored: np.ndarray) -> np.ndarray:
  """Recovers the contrast of each trial for any mean and scale of the z-score.

  This works with all nine contrasts, or with fewer if only one scale yields valid contrasts.
  """
  if np.ptp(z_scored) == 0:
    raise ValueError('contrasts must differ')
  values, index = np.unique(z_scored, return_inverse=True)
  share = (values - values[0]) / (values[-1] - values[0])
  fits = []
  for low, high in itertools.combinations(CONTRASTS, 2):
    contrasts = low + (high - low) * share
    levels = np.abs(contrasts[:, None] - CONTRASTS).argmin(axis=1)
    if np.abs(contrasts - CONTRASTS[levels]).max() <= 5e-4 * (high - low):
      fits.append(levels)

  if not fits:
    raise ValueError(f'contrasts must be some of {CONTRASTS.tolist()} up to mean and scale, got '
                     f'{len(values)} values from {values[0]:.4f} to {values[-1]:.4f}')
  if len(fits) > 1:
    first, second = (CONTRASTS[np.unique(levels)].tolist() for levels in fits[:2])
    raise ValueError(f'contrasts must determine their mean and scale, got values that could be '
                     f'{first} or {second}')
  return fits[0][index.reshape(-1)].astype(np.int8)


def stimulus(power: float | np.ndarray = 1.0) -> np.ndarray:
  """Model inputs of the nine contrasts: sign(c) |c|^power, scaled to unit mean square.

  Args:
    power: a number, or [...]; below 1, weak contrasts get more weight.

  Returns:
    float [..., 9].
  """
  power = np.asarray(power, float)[..., None]
  drive = np.sign(CONTRASTS) * np.abs(CONTRASTS) ** power
  return drive / np.sqrt(np.mean(drive**2, axis=-1, keepdims=True))


def covariates(animal: Animal) -> np.ndarray:
  """Inputs of a GLM: contrast, 1, previous choice, previous choice times its reward.

  'Previous' is the last trial with a choice in the same session; 0 where there is none.

  Args:
    animal: the trials.

  Returns:
    float [N, 4], in the order of `COVARIATES`.
  """
  count = len(animal.choices)
  chosen = np.where(animal.choices >= 0, np.arange(count), -1)
  last = np.concatenate([[-1], np.maximum.accumulate(chosen)[:-1]])
  known = (last >= 0) & (animal.sessions[last] == animal.sessions)
  choice = np.where(known, 2 * animal.choices[last] - 1, 0)
  rewards = np.where(animal.rewards > 0, 1, -1)
  return np.stack([stimulus()[animal.levels], np.ones(count), choice,
                   choice * rewards[last]], axis=1).astype(np.float64)


def by_session(animal: Animal, values: np.ndarray, fill: float) -> np.ndarray:
  """Reshapes [N, ...] to [S, T, ...], T the longest session; pads shorter ones with `fill`."""
  lengths = np.bincount(animal.sessions)
  starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
  padded = np.full((len(lengths), lengths.max(), *values.shape[1:]), fill, values.dtype)
  padded[animal.sessions, np.arange(len(starts)) - starts] = values
  return padded


def folds(num_sessions: int, num_folds: int, seed: int) -> np.ndarray:
  """Assigns each session a fold, [S]: fold sizes differ by at most one; drawn by seed.

  Raises:
    ValueError: if there are fewer sessions than folds, or fewer than two folds.
  """
  if not 2 <= num_folds <= num_sessions:
    raise ValueError(f'folds must be at least 2 and at most the number of sessions '
                     f'({num_sessions}), got {num_folds}')
  order = np.random.default_rng(seed).permutation(num_sessions)
  fold = np.empty(num_sessions, np.int32)
  fold[order] = np.arange(num_sessions) % num_folds
  return fold


def encode(
    levels: np.ndarray,
    choices: np.ndarray,
    rewards: np.ndarray,
    layout: str,
    *,
    shift: bool = False,
) -> np.ndarray:
  """Encodes trials as a sequence of symbols in a given layout.

  Args:
    levels: integer [..., W].
    choices: integer [..., W]; violations must be excluded.
    rewards: integer [..., W]; unknown rewards are encoded as no reward.
    layout: one of `LAYOUTS`; n symbols per trial.
    shift: use the order of the released code, to show its effect: (contrast of trial i, choice of
      trial i − 1, reward of trial i), for i from 1.

  Returns:
    int32 [..., W n], or [..., (W − 1) n] if shifted. See `label_positions`.

  Raises:
    ValueError: if the layout is not in `LAYOUTS`, a choice is missing, or a number is not valid
      for a trial.
  """
  if layout not in LAYOUTS:
    raise ValueError(f'layout must be one of {", ".join(LAYOUTS)}, got {layout!r}')
  if np.min(choices, initial=0) < 0:
    raise ValueError('choices must be 0 or 1 (exclude trials without a choice), got -1')
  check_trials(levels, choices, rewards, least_choice=0)

  symbols = {
      'stim': levels,
      'choice': np.asarray(choices) + CHOICE_SYMBOLS[0],
      'reward': np.where(np.asarray(rewards) > 0, REWARD_SYMBOLS[1], REWARD_SYMBOLS[0]),
  }
  if shift:
    symbols = {name: values[..., :-1] if name == 'choice' else values[..., 1:]
               for name, values in symbols.items()}
  parts = np.stack([symbols[name] for name in LAYOUTS[layout]], axis=-1)
  return parts.reshape(*parts.shape[:-2], -1).astype(np.int32)


def label_positions(layout: str, num_trials: int, *, shift: bool = False) -> np.ndarray:
  """Positions of the choices of trials 0, 1, ... in `encode`'s sequence; if shifted, not the last.

  Args:
    layout: one of `LAYOUTS`.
    num_trials: W.
    shift: as in `encode`.

  Returns:
    int [W], or [W − 1] if shifted.
  """
  names = LAYOUTS[layout]
  return np.arange(num_trials - shift) * len(names) + names.index('choice')


def windows(
    before: Sequence[int] | np.ndarray,
    predicted: Sequence[int] | np.ndarray,
    width: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Splits trials into windows in which each trial is predicted from those before it.

  The trials to predict are split into blocks of at most width / 2, each at the end of a window
  that is filled with the preceding trials.

  Args:
    before: trials that come first, in order.
    predicted: trials to predict, in order.
    width: W, trials per window, at least 2.

  Returns:
    (trials [R, W], padded with -1 at the end; predicted bool [R, W], each trial of `predicted`
    once).

  Raises:
    ValueError: if `width` is below 2.
  """
  if width < 2:
    raise ValueError(f'width must be at least 2, got {width}')

  trials = np.concatenate([np.asarray(before, int), np.asarray(predicted, int)])
  first = len(before)
  rows = -(-len(predicted) // (width // 2))
  ends = [first + (len(predicted) * (row + 1)) // rows for row in range(rows)]

  filled = np.full((rows, width), -1)
  chosen = np.zeros((rows, width), bool)
  for row, (start, end) in enumerate(zip([first, *ends], ends)):
    begin = max(0, end - width)
    filled[row, : end - begin] = trials[begin:end]
    chosen[row, start - begin : end - begin] = True
  return filled, chosen
