"""The common part of training loops: resuming, logging, checks, progress, saving and stopping.

  with training_loop.start(setup, 'rebel', state, files=files, total=config.steps, ...) as training:
    for step in training.steps():
      training.state, update = train_step(training.state, batch(step))
      values = training.log(step, jax.device_get(update))
      training.end_step(step, loss=values['train/loss'])

`step` counts from 0, as in `jaxrl_llm.training.loop`.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import checkpoints, loop, metrics, monitors
from jaxrl_llm.types import TrainState


class Frozen(Protocol):
  """A part of a run that training does not change; checkpoints contain its fingerprint."""

  @property
  def fingerprint(self) -> str:
    """Fingerprint of its parameters."""

  def check(self, other: str) -> None:
    """Raises ValueError unless `other`, the fingerprint in a checkpoint, is that of this part."""


class TrainingLoop:
  """A training loop in progress; made by `start`.

  Attributes:
    state: the current train state, which the caller replaces in each step.
    metadata: JSON saved with each checkpoint: the fingerprints, and counts of the caller.
    fingerprints: fingerprints of the frozen parts by name.
    timers: their seconds are logged with the next metrics.
    check_rewards: takes rewards and truncation [P, K] of each batch that is sampled; warns if
      nothing can be learned from them.
    done: number of complete steps.
  """

  def __init__(
      self, state: TrainState, done: int, metadata: dict[str, Any], fingerprints: dict[str, str],
      *, total: int, offset: int, writer: metrics.MetricsWriter, keeper: loop.Keeper,
      bar: loop.Progress, monitor: Callable[[Mapping[str, float]], None],
      estimate: monitors.TimeEstimate, token_budget: int | None,
  ):
    self.state, self.done = state, done
    self.metadata, self.fingerprints = metadata, fingerprints
    self.timers = loop.Timers()
    self.check_rewards = monitors.RewardMonitor()
    self._total, self._offset, self._writer = total, offset, writer
    self._keeper, self._bar, self._monitor = keeper, bar, monitor
    self._estimate, self._token_budget = estimate, token_budget

  def steps(self) -> Iterator[int]:
    """Yields the steps that are not in the checkpoint, until the token budget is spent."""
    for step in range(self.done, self._total):
      if self._token_budget is not None and self.metadata['tokens'] >= self._token_budget:
        return
      yield step

  def _expected_total(self) -> int:
    """Returns the number of steps after which the token budget would be spent, or all of them."""
    if self._token_budget is None or not self.metadata['tokens']:
      return self._total
    return min(self._total, math.ceil(self.done * self._token_budget / self.metadata['tokens']))

  def write(self, step: int, values: Mapping[str, Any]) -> dict[str, float]:
    """Writes metrics of a step, with the seconds of the timers; returns them as floats."""
    return self._writer.write(self._offset + step, {**values, **self.timers.pop()})

  def check(self, step: int, values: Mapping[str, Any]) -> None:
    """Waits for the metrics of a step and raises NonFiniteLossError unless they are finite."""
    loop.check_finite(step, metrics.to_floats(values), last_saved=self._keeper.last_saved)

  def log(self, step: int, values: Mapping[str, Any]) -> dict[str, float]:
    """Writes metrics as `write` does; they are checked and given to the monitor."""
    floats = self.write(step, values)
    loop.check_finite(step, floats, last_saved=self._keeper.last_saved)
    self._monitor(floats)
    return floats

  def end_step(self, step: int, **shown: float) -> None:
    """Shows progress, saves if a save is due, and stops if Ctrl-C was pressed; call it last."""
    self.done = step + 1
    self._bar.update(1, **shown)
    self._estimate(self.done, self._expected_total())
    self._keeper.after_step(self.done, self.state, self.metadata)


@contextlib.contextmanager
def start(
    setup: setup_lib.Setup, name: str, state: TrainState, *,
    files: Mapping[str, Any], total: int, save_every: int, description: str, offset: int = 0,
    base_positions: Mapping[str, metrics.Position] | None = None,
    frozen: Mapping[str, Frozen] | None = None,
    metadata: Mapping[str, Any] | None = None,
    monitor: Callable[[Mapping[str, float]], None] | None = None,
    costs: Sequence[str] = ('steps', 'token_budget', 'batch_size', 'task.max_response_tokens'),
    token_budget: int | None = None,
) -> Iterator[TrainingLoop]:
  """Restores the newest checkpoint, if there is one, and shows a progress bar inside the block.

  After the first steps it says how long the rest will take.

  Args:
    setup: the run's setup.
    name: directory of the checkpoints in WORKDIR/checkpoints.
    state: the initial train state.
    files: the run's append-only files by name; metrics are written to 'metrics'.
    total: number of steps.
    save_every: steps between checkpoints.
    description: label of the progress bar.
    offset: step under which the metrics of step 0 are written.
    base_positions: positions in `files` at which the earlier phases ended.
    frozen: parts whose fingerprints must be those in the checkpoint.
    metadata: initial value of `TrainingLoop.metadata`, without the fingerprints.
    monitor: called with all logged metrics; by default `loop.RatioWatch`.
    costs: config fields on which the time depends, for the advice on how to shorten a long run;
      those that the config lacks are ignored.
    token_budget: the steps end once `TrainingLoop.metadata['tokens']` is at least this; None: with
      the last step.

  Yields:
    The training loop.

  Raises:
    ValueError: if the checkpoint was made with another frozen part.
  """
  saved = checkpoints.Checkpoints(
      setup.run.workdir / 'checkpoints' / name, identity=setup.run.identity)
  keeper = loop.Keeper(
      saved, files=files, total=total, save_every=save_every, stopper=setup.stopper,
      on_save=setup.run.save_clock, base_positions=base_positions,
  )

  frozen = frozen or {}
  fingerprints = {name: part.fingerprint for name, part in frozen.items()}
  done, metadata = 0, {**(metadata or {}), **fingerprints}
  if restored := keeper.restore(state):
    done, state, metadata = restored.step, restored.state, dict(restored.metadata)
    for part_name, part in frozen.items():
      part.check(metadata[part_name])

  # Closing waits for the pending save, even if the loop raises.
  with contextlib.closing(saved), loop.progress(total, description, done) as bar:
    yield TrainingLoop(
        state, done, metadata, fingerprints, total=total, offset=offset, writer=files['metrics'],
        keeper=keeper, bar=bar, monitor=monitor or loop.RatioWatch(),
        estimate=monitors.TimeEstimate(total, description, _values(setup.config, costs)),
        token_budget=token_budget,
    )


def _values(config: Any, fields: Sequence[str]) -> dict[str, Any]:
  """Returns the values of the fields, given with dots, that the config has and that are not 0."""
  values = {}
  for field in fields:
    value = config
    for name in field.split('.'):
      value = getattr(value, name, 0)
    if value:
      values[field] = value
  return values
