"""Output of a run: JSONL files that can be truncated, TensorBoard and W&B.

Every file that a user may read is either replaced atomically (`write_*_atomic`) or append-only
with one JSON object per line (`JsonlFile`). The position in an append-only file, with a digest of
what precedes it, is saved in the checkpoint. On resume the file is truncated to it, so that no step
appears twice and a line left half-written by a kill is removed.

This module does not import JAX at the top: the launcher uses it before flags are parsed.
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import numbers
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrl_llm.training import files

# [[bytes from the start, SHA-256 of them], ...] of a `JsonlFile`, the current one last; [] is the
# start of the file.
Position = list[list[Any]]
ABSENT = '(absent)'  # Value of a missing field in `differences`.

_MOST_POSITIONS = 50  # That are kept to say where a file was changed.
_FLUSH_SECONDS = 30.0  # Between flushes of an event file.


def write_text_atomic(path: str | os.PathLike, text: str) -> None:
  """Writes a text file atomically.

  Args:
    path: the file to write; its directory must exist.
    text: the whole content.

  Raises:
    OSError: if it cannot be written; an existing file at `path` is then unchanged.
  """
  with files.replacing(path) as temporary:
    temporary.write_text(text, encoding='utf-8', newline='')


def write_json_atomic(path: str | os.PathLike, value: Any) -> None:
  """Writes `value` as indented JSON, atomically; non-finite numbers become strings."""
  write_text_atomic(path, json.dumps(plain(value), indent=2, allow_nan=False) + '\n')


def write_csv_atomic(
    path: str | os.PathLike, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
  """Writes a CSV file with a header line, atomically."""
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  writer.writerow(header)
  writer.writerows(rows)
  write_text_atomic(path, buffer.getvalue())


def plain(value: Any) -> Any:
  """Converts `value` to plain JSON types.

  Arrays and NumPy scalars become lists and numbers. NaN and the infinities, which JSON cannot
  represent, become the strings 'nan', 'inf' and '-inf'.

  Args:
    value: nested mappings, sequences, arrays, numbers, strings, booleans, paths and None.

  Returns:
    The same value as dict, list, int, float, str, bool and None.

  Raises:
    ValueError: for any other type.
  """
  if value is None or isinstance(value, (bool, str)):
    return value

  if isinstance(value, np.bool_):
    return bool(value)
  if isinstance(value, numbers.Integral):
    return int(value)
  if isinstance(value, numbers.Real):
    value = float(value)
    return value if math.isfinite(value) else str(value)

  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(item) for item in value]
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if hasattr(value, '__array__'):
    return plain(np.asarray(value).tolist())

  raise ValueError(f'cannot write a {type(value).__name__} as JSON, got {value!r}')


def differences(theirs: Any, ours: Any, name: str = '') -> Iterator[tuple[str, Any, Any]]:
  """Compares two plain documents, such as the config that a file was made from and a run's.

  Args:
    theirs: plain data, see `plain`.
    ours: plain data.
    name: name of both.

  Yields:
    (field, their value, our value) of each field that differs; 'a.b' is a nested one, and a value
    that one of them lacks is `ABSENT`.
  """
  if isinstance(theirs, dict) and isinstance(ours, dict):
    for key in dict.fromkeys([*theirs, *ours]):
      yield from differences(
          theirs.get(key, ABSENT), ours.get(key, ABSENT), f'{name}.{key}'.strip('.'))
  elif theirs != ours:
    yield name, theirs, ours


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    ValueError: one line with the path, if it is not JSON or is nested too deeply.
    OSError: if it cannot be read.
  """
  try:
    return json.loads(pathlib.Path(path).read_bytes())
  except RecursionError:
    raise ValueError(f'{path} is not JSON: it is nested too deeply') from None
  except ValueError as error:
    raise ValueError(f'{path} is not JSON: {error}') from error


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Reads a JSONL file; skips a last line that was cut off by a kill.

  Args:
    path: the file to read.

  Returns:
    One dict per line.

  Raises:
    FileNotFoundError: if the file does not exist.
    ValueError: if a line other than a half-written last one is not a JSON object.
  """
  records = []
  text = pathlib.Path(path).read_bytes()
  lines = text.split(b'\n')
  for number, line in enumerate(lines[:-1], 1):  # Text after the last newline is incomplete.
    try:
      record = json.loads(line)
    except (ValueError, RecursionError):
      record = None
    if not isinstance(record, dict):
      raise ValueError(f'{path}, line {number}, is not a JSON object: {line[:60]!r}')
    records.append(record)
  return records


class JsonlFile:
  """An append-only file of JSON objects, one per line, that can be truncated to a position.

  A position is saved with a checkpoint. It has the digest of everything before it, so that a line
  that was changed since is noticed, and those of earlier positions, which say roughly where.
  """

  def __init__(self, path: str | os.PathLike):
    """Opens (or creates) the file for appending.

    Args:
      path: the file; its directory must exist.
    """
    self.path = pathlib.Path(path)
    self._file = open(self.path, 'ab')  # noqa: SIM115 - open for the whole run.
    self._digest = hashlib.sha256(self.path.read_bytes())
    self._position: Position = []

  def write(self, record: Mapping[str, Any]) -> None:
    """Appends one line and flushes it to the operating system."""
    line = json.dumps(plain(record), allow_nan=False).encode() + b'\n'
    self._file.write(line)
    self._file.flush()
    self._digest.update(line)

  def position(self) -> Position:
    """Syncs to disk and returns the current position, for the checkpoint."""
    self._file.flush()
    os.fsync(self._file.fileno())
    here = [os.fstat(self._file.fileno()).st_size, self._digest.hexdigest()]
    if self._position[-1:] != [here]:
      self._position = [*self._position, here][-_MOST_POSITIONS:]
    return self._position

  def truncate(self, position: Position) -> None:
    """Truncates the file to a position.

    Args:
      position: a value returned by `position`, or [] for an empty file.

    Raises:
      ValueError: if the file is not what it was at that position: it is shorter, or lines before it
        were changed. The file is then left as it is.
    """
    self._file.flush()
    content = self.path.read_bytes()
    if not isinstance(position, list):
      raise ValueError(
          f'{self.path} has a checkpoint of an earlier version, without a digest of this file: '
          'give another --workdir')

    offset = position[-1][0] if position else 0
    if offset > len(content):
      raise ValueError(
          f'{self.path} must hold at least the {offset} bytes of the last checkpoint, got '
          f'{len(content)}: it was truncated or replaced since; restore it, or give another '
          '--workdir')

    start, digest = 0, hashlib.sha256()
    for end, expected in position:
      digest.update(content[start:end])
      if digest.hexdigest() != expected:
        lines = [content[:byte].count(b'\n') for byte in (start, end)]
        raise ValueError(
            f'{self.path} was changed since it was written, in lines {lines[0] + 1} to {lines[1]}: '
            'restore it, or give another --workdir')
      start = end

    self._file.truncate(offset)
    self._file.seek(0, os.SEEK_END)
    os.fsync(self._file.fileno())
    self._digest, self._position = digest, list(position)

  def close(self) -> None:
    """Flushes and closes the file."""
    self._file.close()


def to_floats(metrics: Mapping[str, Any]) -> dict[str, float]:
  """Converts the metrics of a step to Python floats, with one transfer from the device.

  Args:
    metrics: numbers, scalar arrays or `WeightedMean`s by flat name (`train/loss`).

  Returns:
    Floats under the same names; an empty mean is 0.
  """
  import jax

  from jaxrl_llm import types

  def number(value):
    if isinstance(value, types.WeightedMean):
      # `<= 0` is False for a weight of NaN: the result is NaN, not an empty mean.
      return 0.0 if value.weight <= 0 else float(value.total) / float(value.weight)
    return float(value)

  return {name: number(value) for name, value in jax.device_get(dict(metrics)).items()}


class MetricsWriter:
  """Writes metrics to metrics.jsonl, TensorBoard event files and, optionally, W&B.

  metrics.jsonl is the source: on resume it is truncated and the event files are rebuilt from it.
  Data sent to W&B cannot be taken back: there every process is a separate run.
  """

  def __init__(
      self,
      workdir: str | os.PathLike,
      *,
      tensorboard: bool = True,
      wandb_project: str = '',
      config: Mapping[str, Any] | None = None,
  ):
    """Opens the writers; nothing is truncated until `truncate`.

    Args:
      workdir: an existing directory.
      tensorboard: whether to write event files, under workdir/tensorboard.
      wandb_project: the W&B project; '' turns it off. Offline unless WANDB_MODE says otherwise.
      config: the config shown by W&B.

    Raises:
      ValueError: if W&B is requested but not installed.
    """
    self._workdir = pathlib.Path(workdir)
    self._jsonl = JsonlFile(self._workdir / 'metrics.jsonl')
    self._tensorboard_enabled = tensorboard
    self._tensorboard = None
    self._wandb = _start_wandb(self._workdir, wandb_project, config) if wandb_project else None

  @property
  def path(self) -> pathlib.Path:
    """Path of metrics.jsonl."""
    return self._jsonl.path

  def write(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Writes one object: {'step': step, name: value, ...}.

    Args:
      step: step of the update, from 0; must not have been written before.
      metrics: numbers, scalar arrays or `WeightedMean`s by flat name.

    Returns:
      The written values, as floats.
    """
    values = to_floats(metrics)
    self._jsonl.write({'step': step, **values})

    if self._tensorboard_enabled:
      self._write_tensorboard(step, values)
    if self._wandb is not None:
      self._wandb.log(values, step=step)

    return values

  def position(self) -> Position:
    """Syncs metrics.jsonl to disk and returns its position, for the checkpoint."""
    return self._jsonl.position()

  def truncate(self, position: Position) -> None:
    """Truncates metrics.jsonl to a checkpoint's position and rebuilds the event files from it.

    Args:
      position: the position in the checkpoint; [] to start over.

    Raises:
      ValueError: as for `JsonlFile.truncate`.
    """
    self._jsonl.truncate(position)
    if not self._tensorboard_enabled:
      return

    if self._tensorboard is not None:
      with self._tensorboard_may_fail():
        self._tensorboard.close()
      self._tensorboard = None

    for path in (self._workdir / 'tensorboard').glob('events.out.tfevents.*'):
      path.unlink()

    for record in read_jsonl(self._jsonl.path):
      self._write_tensorboard(record.pop('step'), record)

  def flush(self) -> None:
    """Flushes everything to the operating system."""
    if self._tensorboard is not None:
      with self._tensorboard_may_fail():
        self._tensorboard.flush()

  def close(self) -> None:
    """Closes all writers."""
    self._jsonl.close()
    if self._tensorboard is not None:
      with self._tensorboard_may_fail():
        self._tensorboard.close()
    if self._wandb is not None:
      self._wandb.finish()

  def _write_tensorboard(self, step: int, values: Mapping[str, Any]) -> None:
    if not self._tensorboard_enabled:
      return
    with self._tensorboard_may_fail():
      if self._tensorboard is None:
        self._tensorboard = _EventFile(self._workdir / 'tensorboard')
      self._tensorboard.write(step, values)

  @contextlib.contextmanager
  def _tensorboard_may_fail(self) -> Iterator[None]:
    """Turns the event files off, with one line, if they cannot be written."""
    try:
      yield
    except OSError as error:
      print(f'warning: TensorBoard files are incomplete: {error.strerror}; resuming the run '
            'rebuilds them', file=sys.stderr, flush=True)
      event_file, self._tensorboard = self._tensorboard, None
      self._tensorboard_enabled = False
      if event_file is not None:
        with contextlib.suppress(OSError):
          event_file.close()


class _EventFile:
  """A TensorBoard event file, written in this thread.

  `tensorboardX.SummaryWriter` writes in another one: if that dies on a full disk, `add_scalar`
  waits for it forever.
  """

  def __init__(self, folder: pathlib.Path):
    from tensorboardX import event_file_writer

    folder.mkdir(exist_ok=True)
    self._file = event_file_writer.EventsWriter(str(folder / 'events'))
    self._last_flush = -math.inf

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes the scalars of a step; raises OSError if that fails."""
    from tensorboardX import summary
    from tensorboardX.proto import event_pb2

    for name, value in values.items():
      self._file.write_event(event_pb2.Event(
          wall_time=time.time(), step=step, summary=summary.scalar(name, float(value))))
    if time.monotonic() - self._last_flush >= _FLUSH_SECONDS:
      self.flush()

  def flush(self) -> None:
    """Waits until everything is on disk."""
    self._last_flush = time.monotonic()
    self._file.flush()

  def close(self) -> None:
    """Flushes and closes the file."""
    self._file.close()


def _start_wandb(workdir: pathlib.Path, project: str, config: Mapping[str, Any] | None):
  try:
    import wandb
  except ImportError as error:
    raise ValueError(
        f'wandb_project={project!r} needs the package wandb: pip install wandb, or leave it empty'
    ) from error
  return wandb.init(
      project=project,
      name=workdir.name,
      dir=str(workdir),
      mode=os.environ.get('WANDB_MODE', 'offline'),
      config=plain(config or {}),
      settings=wandb.Settings(silent=True, console='off'),
  )
