"""Warnings about a run that learns nothing, and an estimate of the time that it takes."""

import sys
import time
from collections.abc import Callable, Mapping

import numpy as np

_HOUR = 3600.0
_MEASURED = 5.0  # Seconds of steps from which the rest is extrapolated.


class Warnings:
  """Prints warnings on stderr, each once."""

  def __init__(self):
    self._given: set[str] = set()

  def __call__(self, name: str, text: str) -> None:
    """Prints `text` unless a warning of this name was given."""
    if name not in self._given:
      self._given.add(name)
      print(f'warning: {text}', file=sys.stderr, flush=True)


class RewardMonitor:
  """Warns once if several batches in a row have rewards from which nothing can be learned.

  With one sample per prompt, the rewards of a batch are all equal; with more, those of each prompt
  are, so that every advantage and every difference is 0.
  """

  def __init__(self, num_batches: int = 3, *, warn: Callable[[str, str], None] | None = None):
    """Warns after `num_batches` batches in a row, by default on stderr."""
    self._num_batches, self._warn = num_batches, warn or Warnings()
    self._start()

  def _start(self) -> None:
    self._equal: list[tuple[np.ndarray, np.ndarray]] = []

  def __call__(self, rewards: np.ndarray, truncated: np.ndarray) -> None:
    """Checks the rewards [P, K] of a batch; `truncated`, bool [P, K], is for the advice."""
    rewards = np.asarray(rewards, np.float64)
    groups = rewards if rewards.shape[1] > 1 else rewards.reshape(1, -1)
    groups = groups[np.isfinite(groups).all(axis=1)]  # A failed reward model is reported elsewhere.
    if groups.size < 2 or np.any(groups.max(axis=1) > groups.min(axis=1)):
      self._start()
      return

    self._equal.append((rewards, np.asarray(truncated)))
    if len(self._equal) >= self._num_batches:
      self._warn('rewards', _describe(*map(np.concatenate, zip(*self._equal))))
      self._start()


def _describe(rewards: np.ndarray, truncated: np.ndarray) -> str:
  """Returns one line about rewards [P, K] without a signal, and what to try."""
  values = np.unique(rewards)
  cut = float(np.mean(truncated))
  if len(values) > 1:
    return (
        f'the samples of each of {len(rewards)} prompts got equal rewards, so that nothing is '
        'learned from them: use prompts that the policy solves only sometimes, more samples per '
        'prompt or a higher temperature')

  what = (f'all {rewards.size} rewards so far are {values[0]:g}, so that nothing is learned from '
          'them')
  if values[0] > 0:
    return f'{what}: use harder prompts'
  longer = (f'{100 * cut:.0f} % of the responses were cut off (raise the response limit of '
            'config.task); ' if cut > 0.1 else '')
  return (
      f'{what}: {longer}the task may be too hard for this policy (use easier prompts or a better '
      'policy), the prompts may lack its chat template, or its answers have another form than the '
      'verifier reads (python -m experiments.evaluate writes them to responses.jsonl)')


class TimeEstimate:
  """Says once, after the first steps of a loop, how long all of them will take.

  The first step is excluded, because it waits for the compiler.
  """

  def __init__(
      self, total: int, description: str, advice: Mapping[str, object], *, shortest: float = 120.0,
      clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      total: number of steps.
      description: name of the loop.
      advice: config fields that a shorter run lowers, with their values.
      shortest: estimates of fewer seconds are not shown.
      clock: returns seconds.
    """
    self._total, self._description, self._advice = total, description, advice
    self._shortest, self._clock = shortest, clock
    self._first: tuple[int, float] | None = None
    self._is_done = False

  def __call__(self, done: int, total: int | None = None) -> None:
    """Call it after each step.

    Args:
      done: number of complete steps.
      total: number of steps expected by now, if it is not that of the constructor.
    """
    total = self._total if total is None else total
    if self._is_done:
      return
    if self._first is None:
      self._first = done, self._clock()
      return

    steps, seconds = done - self._first[0], self._clock() - self._first[1]
    if seconds < _MEASURED or done >= total:
      return
    self._is_done = True
    left = seconds / steps * (total - done)
    if left >= self._shortest:
      print(self._text(seconds / steps, left, total - done), file=sys.stderr, flush=True)

  def _text(self, seconds: float, left: float, steps: int) -> str:
    text = (f'{self._description}: about {readable_time(left)} for the other {steps} steps, '
            f'{seconds:.3g} s a step')
    if left <= _HOUR or not self._advice:
      return text
    fields = ', '.join(f'config.{name} ({value})' for name, value in self._advice.items())
    return f'{text}; to shorten it lower {fields}. Ctrl-C stops it, and the steps so far are saved'


def readable_time(seconds: float) -> str:
  """Returns a duration in words, such as '25 hours'."""
  for unit, name, most in ((1, 'seconds', 120), (60, 'minutes', 120), (3600, 'hours', 72)):
    if seconds < most * unit:
      return f'{seconds / unit:.0f} {name}'
  return f'{seconds / 86400:.0f} days'
