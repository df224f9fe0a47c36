"""Helpers for the loop that stands, visibly, in a binary.

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

`step` counts from 0: metrics of the update that follows `step` updates carry `step`, so that an
evaluation before any training stands in line 0; a checkpoint carries the number of updates taken.
"""

import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TextIO

import numpy as np
import tqdm

from jaxrl_llm.training import metrics

# Nats, a mean over tokens or over whole responses; float32 gives 1e-5, bfloat16 on CPU 0.
LARGEST_INITIAL_LOG_RATIO = 1e-3
INTERRUPTED = 130  # Exit status after Ctrl-C: 128 + SIGINT, as shells have it.
_EXTREME = 1e12  # Metrics beyond this are named beside one that is not finite.


class NonFiniteLossError(ValueError):
  """A loss or gradient that is NaN or infinite: that update was not applied."""


class Interrupted(SystemExit):
  """Ends the process with status 130 after a graceful stop."""

  def __init__(self):
    super().__init__(INTERRUPTED)


class Stopper:
  """Lets the first Ctrl-C finish the step under way; the second one kills.

  A context manager. It takes over SIGINT, and SIGTERM, which preemption sends; it can only be
  entered in the main thread.

  Attributes:
    requested: whether a stop was asked for.
  """

  def __init__(self):
    self.requested = False
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> 'Stopper':
    for number in (signal.SIGINT, signal.SIGTERM):
      self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *exception) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def check(self, message: str = 'stopped') -> None:
    """Ends the process, if a stop was asked for; call it where nothing would be lost.

    Args:
      message: what the user is told, before how to resume.

    Raises:
      Interrupted: with status 130, if a stop was requested.
    """
    if self.requested:
      print(f'{message}; run the same command again to resume', file=sys.stderr, flush=True)
      raise Interrupted

  def _handle(self, number: int, frame: Any) -> None:
    del frame
    if self.requested:
      signal.signal(number, signal.SIG_DFL)
      signal.raise_signal(number)
    self.requested = True
    print('\nstopping after this step (again to kill) ...', file=sys.stderr, flush=True)


class Progress:
  """A progress bar on a terminal, a line every few seconds elsewhere."""

  def __init__(
      self,
      total: int,
      description: str,
      start: int = 0,
      *,
      stream: TextIO | None = None,
      line_every_seconds: float = 10.0,
  ):
    """Shows nothing yet.

    Args:
      total: steps in all.
      description: what is counted, such as 'stage 2'.
      start: steps done before this process.
      stream: by default stderr.
      line_every_seconds: how often a line is written where there is no terminal.
    """
    self._description, self._total, self._done = description, total, start
    self._stream = sys.stderr if stream is None else stream
    self._every = line_every_seconds
    self._began = self._last_line = time.monotonic()
    self._shown: dict[str, str] = {}
    self._bar = None
    if self._stream.isatty():
      self._bar = tqdm.tqdm(
          desc=description, total=total, initial=start, file=self._stream, dynamic_ncols=True)

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def update(self, steps: int = 1, **values: float | str) -> None:
    """Counts steps that were done, and shows the numbers that matter beside them.

    Args:
      steps: done since the last call.
      **values: shown from now on; what is not named again stays.
    """
    self._done += steps
    self._shown |= {
        name: value if isinstance(value, str) else f'{value:.4g}' for name, value in values.items()
    }
    if self._bar is not None:
      self._bar.set_postfix(self._shown, refresh=False)
      self._bar.update(steps)
    elif self._done >= self._total or time.monotonic() - self._last_line >= self._every:
      self._write_line()

  def close(self) -> None:
    """Ends the bar's line."""
    if self._bar is not None:
      self._bar.close()

  def _write_line(self) -> None:
    self._last_line = time.monotonic()
    shown = ''.join(f'  {name} {value}' for name, value in self._shown.items())
    print(
        f'{self._description}  {self._done}/{self._total}{shown}  '
        f'{self._last_line - self._began:.0f} s',
        file=self._stream, flush=True)


class Timers:
  """Adds up seconds by name, for `time/NAME_seconds` metrics.

  JAX returns before the device is done: block on the result inside the timed block, or the time
  goes to whoever waits next.
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
    """The seconds since the last call, as {'time/NAME_seconds': ...}; starts again from 0."""
    seconds, self._seconds = self._seconds, {}
    return {f'time/{name}_seconds': value for name, value in seconds.items()}


class Appendable(Protocol):
  """A file that grows and can be cut back: `metrics.JsonlFile`, `metrics.MetricsWriter`."""

  def offset(self) -> int:
    """Bytes on the disk."""

  def truncate(self, offset: int) -> None:
    """Cuts back."""


class Keeper:
  """Saves a run's state with the offsets of its files, and brings both back.

  After a restore nothing on the disk is newer than the state: metrics.jsonl and samples.jsonl
  are cut back to what they held when the checkpoint was taken.
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
      base_offsets: Mapping[str, int] | None = None,
  ):
    """Does nothing yet.

    Args:
      checkpoints: a `checkpoints.Checkpoints`.
      files: what grows with the run, by a name that goes into the checkpoint.
      total: the last step; always saved.
      save_every: steps between saves; 0 saves at the end alone.
      stopper: asked after each step.
      on_save: called with each save (`run.save_clock`).
      base_offsets: where the files are cut if there is no checkpoint; by default at 0. A phase
        that follows another one gives what that one left.

    Raises:
      ValueError: if `save_every` is negative.
    """
    if save_every < 0:
      raise ValueError(f'save_every must be at least 0, got {save_every} (config.save_every)')
    self._checkpoints, self._files, self._total = checkpoints, files, total
    self._save_every, self._stopper, self._on_save = save_every, stopper, on_save
    self._base_offsets = dict(base_offsets or {})
    self.last_saved: int | None = None

  def restore(self, abstract_state: Any) -> Any:
    """Restores the newest sound checkpoint and cuts the files back to it.

    Warnings about corrupt checkpoints go to stderr, one line each.

    Args:
      abstract_state: as in `Checkpoints.restore_latest`.

    Returns:
      The `checkpoints.Restored` with the metadata given to `after_step`, or None for a start from
      scratch.
    """
    restored = self._checkpoints.restore_latest(abstract_state)
    offsets = restored.metadata['offsets'] if restored else self._base_offsets
    for name, file in self._files.items():
      file.truncate(offsets.get(name, 0))
    if restored is None:
      return None
    for warning in restored.warnings:
      print(f'warning: {warning}', file=sys.stderr, flush=True)
    self.last_saved = restored.step
    return restored._replace(metadata=restored.metadata['run'])

  def after_step(
      self, step: int, state: Any, metadata: Mapping[str, Any] | None = None
  ) -> None:
    """Saves if it is time to; stops the process if Ctrl-C asked for it.

    Call it last in the loop's body, after `check_finite`.

    Args:
      step: optimizer steps taken.
      state: the state after them.
      metadata: further JSON to keep with it.

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
    """Saves now; arguments as for `after_step`."""
    offsets = {name: file.offset() for name, file in self._files.items()}
    self._checkpoints.save(step, state, {'offsets': offsets, 'run': dict(metadata or {})})
    self.last_saved = step
    if self._on_save is not None:
      self._on_save()


def progress(total: int, description: str, start: int = 0) -> Progress:
  """A `Progress` on stderr; arguments as there."""
  return Progress(total, description, start)


def should(every: int, step: int) -> bool:
  """Whether something that happens every `every` steps is due; never for 0."""
  return every > 0 and step % every == 0


class RatioWatch:
  """Warns once, on stderr, if the policy before the first step is not the one that was scored.

  The program that scores and the one that trains have to give a token the same log-prob. In
  bfloat16 they do only if both round at the same places (models/layers.py).
  """

  def __init__(self):
    self._warned = False

  def __call__(self, values: Mapping[str, float]) -> None:
    """Reads `train/initial_log_ratio`, if it is there: nats, a mean of absolute values."""
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
  """Stops a run whose loss or gradient is not finite, and says what to change.

  The train step left parameters and optimizer state as they were (`step.apply_gradients`). Call
  this before the state is saved: the last good checkpoint is then kept.

  Args:
    step: of the update, from 0.
    values: metrics as floats; those named `train/...` must be finite.
    last_saved: the step of the last checkpoint, for the message.
    learning_rate: the config field that the message suggests to lower.

  Raises:
    NonFiniteLossError: one line with the step, the metric and its value, any metric that is
      extreme, and what to change: resuming would meet the same step again.
  """
  for name, value in values.items():
    if name.startswith('train/') and not math.isfinite(value):
      kept = 'no checkpoint was saved yet' if last_saved is None else (
          f'the checkpoint of step {last_saved} is kept')
      extreme = ', '.join(
          f'{other} is {x:.3g}' for other, x in values.items() if _EXTREME < abs(x) < math.inf)
      raise NonFiniteLossError(
          f'{name} must be finite, got {value} at step {step}; {kept}; this update was not '
          f'applied{extreme and f" ({extreme})"}. Running the same command again meets the same '
          f'step: lower {learning_rate} and give another --workdir, or correct the rewards or '
          'log-probs of this batch')


def check_updates(
    taken: Any, expected: int, *, learning_rate: str = 'config.optimizer.learning_rate'
) -> None:
  """As `check_finite`, after a compiled loop of updates: an update that is not finite is left out.

  Args:
    taken: `state.step`, of one state or of several side by side.
    expected: how many updates it counts if none was left out.
    learning_rate: the config field that the message suggests to lower.

  Raises:
    NonFiniteLossError: updates were left out.
  """
  least = int(np.min(taken))
  if least != expected:
    raise NonFiniteLossError(
        f'loss and gradients must be finite, and were not in {expected - least} of the first '
        f'{expected} updates, which were not applied; running again meets the same: lower '
        f'{learning_rate}')


class PendingCheck:
  """Checks every step, but waits for the device only where the loop looks at its metrics.

  A step that is not finite is left out of the state, so that the metrics of the next one can be
  finite again: the last metrics alone do not tell.
  """

  def __init__(self, *, learning_rate: str = 'config.optimizer.learning_rate'):
    """Holds nothing yet; the argument is that of `check_finite`."""
    self._learning_rate = learning_rate
    self._pending: list[tuple[int, Mapping[str, Any]]] = []

  def add(self, step: int, update: Mapping[str, Any]) -> None:
    """Notes the metrics of a step, as they come from the device."""
    self._pending.append((step, update))

  def check(self, *, last_saved: int | None = None) -> None:
    """As `check_finite`, for all steps since the last check; call it before a save."""
    pending, self._pending = self._pending, []
    for step, update in pending:
      check_finite(step, metrics.to_floats(update), last_saved=last_saved,
                   learning_rate=self._learning_rate)
