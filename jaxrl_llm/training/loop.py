"""Helpers for the training loop, which each binary writes out explicitly.

  with loop.Stopper() as stopper:
    keeper = loop.Keeper(checkpoints, files=..., total=total, save_every=50, stopper=stopper)
    restored = keeper.restore(abstract_state)
    start, state = (restored.step, restored.state) if restored else (0, state)
    with loop.progress(total, 'stage 2', start) as bar:
      for step in range(start, total):
        state, metrics = train_step(state, batch(step))
        values = writer.write(step, metrics)
        loop.check_finite(step, values)
        bar.update(1, reward=values['rollout/reward'])
        keeper.after_step(step + 1, state)

`step` counts from 0: the metrics of an update carry the number of updates before it, so that an
evaluation before any training has step 0. A checkpoint carries the number of updates taken.
"""

import contextlib
import math
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TextIO

import numpy as np
import tqdm

from jaxrl_llm.training import metrics

# Nats, a mean over tokens or whole responses. float32 gives 1e-5, bfloat16 on CPU 0.
LARGEST_INITIAL_LOG_RATIO = 1e-3
INTERRUPTED = 130  # Exit status after Ctrl-C: 128 + SIGINT, as in shells.
_EXTREME = 1e12  # The error for a non-finite metric also names metrics beyond this.


class NonFiniteLossError(ValueError):
  """Raised if a loss or gradient is NaN or infinite: that update was not applied."""


class Interrupted(SystemExit):
  """Raised after a graceful stop; ends the process with status 130."""

  def __init__(self):
    super().__init__(INTERRUPTED)


# Signals that came before a `Stopper` handled them, added by `launch`: a library may have caught
# the KeyboardInterrupt that they raised.
early_signals: list[int] = []


class Stopper:
  """Lets the current step finish after the first Ctrl-C; the second one kills.

  A context manager. It handles SIGINT, SIGTERM (which preemption sends) and SIGHUP (a closed
  terminal), and can only be entered in the main thread. Only a second SIGINT kills: the kernel and
  the shell each send SIGHUP, and schedulers repeat SIGTERM.

  Attributes:
    requested: whether a stop was requested.
  """

  def __init__(self):
    self.requested = bool(early_signals)
    self._interrupts = 0
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> 'Stopper':
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
      if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup.
        self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *exception) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def check(self, message: str = 'stopped') -> None:
    """Ends the process if a stop was requested; call it where nothing would be lost.

    Args:
      message: printed before the hint on how to resume.

    Raises:
      Interrupted: with status 130, if a stop was requested.
    """
    if self.requested:
      with contextlib.suppress(OSError):
        print(f'{message}; run the same command again to resume', file=sys.stderr, flush=True)
      raise Interrupted

  def _handle(self, number: int, frame: Any) -> None:
    del frame
    self._interrupts += number == signal.SIGINT
    if self._interrupts == 2:
      signal.signal(number, signal.SIG_DFL)
      signal.raise_signal(number)

    if not self.requested or number == signal.SIGINT:
      # The terminal may be closed, or the signal may interrupt another print.
      with contextlib.suppress(OSError, RuntimeError):
        print('\nstopping after this step (Ctrl-C again to kill) ...', file=sys.stderr, flush=True)
    self.requested = True
    if number == signal.SIGHUP:
      leave_terminal()


def leave_terminal() -> None:
  """Redirects stdout and stderr to /dev/null if they are terminals; call it after a SIGHUP.

  Writing to a closed terminal raises OSError, which would end a run before it saves. A closed
  terminal is no longer recognised as one, so that every character device is redirected.
  """
  for descriptor in (1, 2):
    with contextlib.suppress(OSError):
      if stat.S_ISCHR(os.fstat(descriptor).st_mode):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)


class Progress:
  """A progress bar on a terminal; otherwise a line every few seconds.

  A stream that cannot be written (a closed terminal) is ignored.
  """

  def __init__(
      self,
      total: int,
      description: str,
      start: int = 0,
      *,
      stream: TextIO | None = None,
      line_every_seconds: float = 10.0,
      is_part: bool = False,
  ):
    """Shows nothing yet.

    Args:
      total: total number of steps.
      description: label of the bar, such as 'stage 2'.
      start: steps done before this process.
      stream: where to write; stderr by default.
      line_every_seconds: time between lines if `stream` is not a terminal.
      is_part: whether this is a part of a step with a bar of its own: nothing is shown if it is
        done within seconds, and nothing remains on a terminal.
    """
    self._description, self._total, self._done = description, total, start
    self._stream = sys.stderr if stream is None else stream
    self._every, self._shows_end = line_every_seconds, not is_part
    self._began = self._last_line = time.monotonic()
    self._shown: dict[str, str] = {}

    self._bar = None
    if self._stream.isatty():
      with contextlib.suppress(OSError):
        self._bar = tqdm.tqdm(
            desc=description, total=total, initial=start, file=self._stream, dynamic_ncols=True,
            leave=not is_part, delay=2.0 if is_part else 0.0)

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def update(self, steps: int = 1, **values: float | str) -> None:
    """Advances the count and shows the given values next to it.

    Args:
      steps: steps done since the last call.
      **values: values to show from now on; names not given again keep their last value.
    """
    self._done += steps
    self._shown |= {
        name: value if isinstance(value, str) else f'{value:.4g}' for name, value in values.items()
    }

    with contextlib.suppress(OSError):
      if self._bar is not None:
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update(steps)
      elif (self._shows_end and self._done >= self._total
            or time.monotonic() - self._last_line >= self._every):
        self._write_line()

  def close(self) -> None:
    """Closes the bar."""
    if self._bar is not None:
      with contextlib.suppress(OSError):
        self._bar.close()

  def _write_line(self) -> None:
    self._last_line = time.monotonic()
    shown = ''.join(f'  {name} {value}' for name, value in self._shown.items())
    print(
        f'{self._description}  {self._done}/{self._total}{shown}  '
        f'{self._last_line - self._began:.0f} s',
        file=self._stream, flush=True)


class Timers:
  """Accumulates seconds by name, for `time/NAME_seconds` metrics.

  JAX returns before the device is done: block on the result inside the timed block, or the time
  is attributed to the next block that waits.
  """

  def __init__(self):
    self._seconds: dict[str, float] = {}

  @contextlib.contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    """Times a block."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

  def pop(self) -> dict[str, float]:
    """Returns the seconds since the last call as {'time/NAME_seconds': ...}; resets to 0."""
    seconds, self._seconds = self._seconds, {}
    return {f'time/{name}_seconds': value for name, value in seconds.items()}


class Appendable(Protocol):
  """An append-only file that can be truncated: `metrics.JsonlFile`, `metrics.MetricsWriter`."""

  def position(self) -> metrics.Position:
    """Returns the current position, with a digest of what precedes it."""

  def truncate(self, position: metrics.Position) -> None:
    """Truncates to a position; raises ValueError if what precedes it was changed."""


class Keeper:
  """Saves a run's state with the positions of its files, and restores both.

  After a restore nothing on disk is newer than the state: metrics.jsonl and samples.jsonl are
  truncated to what they held when the checkpoint was taken.
  """

  def __init__(
      self,
      checkpoints: Any,
      *,
      files: Mapping[str, Appendable],
      total: int,
      save_every: int,
      stopper: Stopper | None = None,
      on_save: Callable[[], None] | None = None,
      base_positions: Mapping[str, metrics.Position] | None = None,
  ):
    """Stores the arguments; reads and writes nothing yet.

    Args:
      checkpoints: a `checkpoints.Checkpoints`.
      files: the run's append-only files, by the names used in the checkpoint.
      total: the last step; always saved.
      save_every: steps between saves; 0 saves only at the end.
      stopper: checked after each step.
      on_save: called at each save (`run.save_clock`).
      base_positions: where to truncate the files if there is no checkpoint; the start by default.
        A phase that follows another one gives the positions at which that one ended.

    Raises:
      ValueError: if `save_every` is negative.
    """
    if save_every < 0:
      raise ValueError(f'save_every must be at least 0, got {save_every} (config.save_every)')
    self._checkpoints, self._files, self._total = checkpoints, files, total
    self._save_every, self._stopper, self._on_save = save_every, stopper, on_save
    self._base_positions = dict(base_positions or {})
    self.last_saved: int | None = None

  def restore(self, abstract_state: Any) -> Any:
    """Restores the newest intact checkpoint and truncates the files to it.

    Warnings about corrupt checkpoints go to stderr, one line each.

    Args:
      abstract_state: as in `Checkpoints.restore_latest`.

    Returns:
      The `checkpoints.Restored` with the metadata given to `after_step`, or None if the run starts
      from scratch.
    """
    restored = self._checkpoints.restore_latest(abstract_state)
    positions = self._base_positions
    if restored:
      if 'positions' not in restored.metadata:
        raise ValueError(
            f'{self._checkpoints.path} holds checkpoints of an earlier version, without '
            'digests of the logs: give another --workdir')
      positions = restored.metadata['positions']
    for name, file in self._files.items():
      file.truncate(positions.get(name, []))

    if restored is None:
      return None

    for warning in restored.warnings:
      print(f'warning: {warning}', file=sys.stderr, flush=True)

    self.last_saved = restored.step
    return restored._replace(metadata=restored.metadata['run'])

  def after_step(
      self, step: int, state: Any, metadata: Mapping[str, Any] | None = None
  ) -> None:
    """Saves if a save is due; stops the process if a stop was requested.

    Call it last in the loop's body, after `check_finite`.

    Args:
      step: optimizer steps taken.
      state: the state after them.
      metadata: further JSON to save with it.

    Raises:
      Interrupted: after the save is complete, if a stop was requested.
    """
    stopping = self._stopper is not None and self._stopper.requested
    if stopping or step == self._total or should(self._save_every, step):
      self.save(step, state, metadata)
    if stopping:
      self._checkpoints.wait()
      self._stopper.check(f'stopped after step {step} of {self._total}, saved')

  def save(self, step: int, state: Any, metadata: Mapping[str, Any] | None = None) -> None:
    """Saves now; takes the arguments of `after_step`."""
    positions = {name: file.position() for name, file in self._files.items()}
    self._checkpoints.save(step, state, {'positions': positions, 'run': dict(metadata or {})})
    self.last_saved = step
    if self._on_save is not None:
      self._on_save()


def progress(total: int, description: str, start: int = 0) -> Progress:
  """Returns a `Progress` on stderr; takes its arguments."""
  return Progress(total, description, start)


class Tracked:
  """A sequence that shows its progress each time it is iterated over; see `is_part`."""

  def __init__(self, items: Sequence[Any], description: str):
    self._items, self._description = items, description

  def __len__(self) -> int:
    return len(self._items)

  def __iter__(self) -> Iterator[Any]:
    with Progress(len(self), self._description, is_part=True) as bar:
      for item in self._items:
        yield item
        bar.update(1)


def should(every: int, step: int) -> bool:
  """Returns whether an action taken every `every` steps is due; never if `every` is 0."""
  return every > 0 and step % every == 0


class RatioWatch:
  """Warns once, on stderr, if the policy before the first step differs from the scored one.

  The scoring and training programs must give a token the same log-prob. In bfloat16 they do so
  only if both round at the same places (models/layers.py).
  """

  def __init__(self):
    self._warned = False

  def __call__(self, values: Mapping[str, float]) -> None:
    """Checks `train/initial_log_ratio` (nats, a mean of absolute values), if present."""
    ratio = values.get('train/initial_log_ratio', 0.0)
    if ratio > LARGEST_INITIAL_LOG_RATIO and not self._warned:
      self._warned = True
      print(
          f'warning: the log-ratio before the first step must be 0, got {ratio:.2g} nats (at most '
          f'{LARGEST_INITIAL_LOG_RATIO:g}): scoring and training round differently',
          file=sys.stderr, flush=True,
      )


def check_finite(
    step: int,
    values: Mapping[str, float],
    *,
    last_saved: int | None = None,
    learning_rate: str = 'config.optimizer.learning_rate',
) -> None:
  """Stops a run whose loss or gradient is not finite, with advice on what to change.

  The train step leaves parameters and optimizer state unchanged (`step.apply_gradients`). Call
  this before the state is saved, so that the last good checkpoint is kept.

  Args:
    step: step of the update, from 0.
    values: metrics as floats; those named `train/...` must be finite.
    last_saved: step of the last checkpoint, for the message.
    learning_rate: the config field that the message suggests lowering.

  Raises:
    NonFiniteLossError: one line with the step, the metric and its value, any extreme metrics,
      and what to change: resuming would reach the same step again.
  """
  for name, value in values.items():
    if name.startswith('train/') and not math.isfinite(value):
      resumable = 'no checkpoint was saved yet' if last_saved is None else (
          f'the checkpoint of step {last_saved} is kept')
      extreme = ', '.join(
          f'{other} is {x:.3g}' for other, x in values.items() if _EXTREME < abs(x) < math.inf)

      raise NonFiniteLossError(
          f'{name} must be finite, got {value} at step {step}; {resumable}; this update was not '
          f'applied{extreme and f" ({extreme})"}. Running the same command again meets the same '
          f'step: lower {learning_rate} and give another --workdir, or correct the rewards or '
          'log-probs of this batch')


def check_updates(
    taken: Any, expected: int, *, learning_rate: str = 'config.optimizer.learning_rate'
) -> None:
  """Like `check_finite`, for a compiled loop of updates, which skips non-finite updates.

  Args:
    taken: `state.step` of one state, or of several stacked states.
    expected: number of updates if none was skipped.
    learning_rate: the config field that the message suggests lowering.

  Raises:
    NonFiniteLossError: if updates were skipped.
  """
  least = int(np.min(taken))
  if least != expected:
    raise NonFiniteLossError(
        f'loss and gradients must be finite, and were not in {expected - least} of the first '
        f'{expected} updates, which were not applied; running again meets the same: lower '
        f'{learning_rate}')


class PendingCheck:
  """Checks every step, but waits for the device only when the loop reads its metrics.

  A non-finite step does not change the state, so the metrics of the next step can be finite
  again: checking only the last metrics would miss it.
  """

  def __init__(self, *, learning_rate: str = 'config.optimizer.learning_rate'):
    """Starts empty; `learning_rate` is as in `check_finite`."""
    self._learning_rate = learning_rate
    self._pending: list[tuple[int, Mapping[str, Any]]] = []

  def add(self, step: int, update: Mapping[str, Any]) -> None:
    """Stores the metrics of a step, without a transfer from the device."""
    self._pending.append((step, update))

  def check(self, *, last_saved: int | None = None) -> None:
    """Runs `check_finite` on all steps since the last check; call it before a save."""
    pending, self._pending = self._pending, []
    for step, update in pending:
      check_finite(step, metrics.to_floats(update), last_saved=last_saved,
                   learning_rate=self._learning_rate)
