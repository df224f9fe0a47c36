"""Checkpoints: the only file that knows Orbax.

A checkpoint is an array tree plus a JSON document, written asynchronously into a temporary
directory that is renamed when it is complete. Checksums are added before the rename, because
Orbax itself reads a flipped bit without complaint. Restoring takes the newest checkpoint that
passes; those that fail are moved aside, never deleted.

Trees are stored flat, by the path of each leaf ('params.policy.embedder.embedding'). The files
on disk therefore do not depend on Python classes, and a mismatch can name the parameter.
"""

import contextlib
import errno
import functools
import logging
import os
import pathlib
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from jaxrl_llm.training import files, metrics

_TEMPORARY = '.orbax-checkpoint-tmp'


class CheckpointError(ValueError):
  """Raised for a checkpoint that cannot be used; the message is one line."""


class Restored(NamedTuple):
  """Result of `Checkpoints.restore_latest`.

  Attributes:
    step: the step at which it was saved.
    state: shaped and sharded like the abstract state.
    metadata: the JSON object given to `save`.
    warnings: one line for each newer checkpoint that was skipped.
  """

  step: int
  state: Any
  metadata: dict[str, Any]
  warnings: list[str]


class Checkpoints:
  """The checkpoints of one run: saves asynchronously, keeps the newest few, restores."""

  def __init__(
      self, directory: str | os.PathLike, *, keep: int = 2,
      identity: Mapping[str, Any] | None = None,
  ):
    """Opens the directory and removes what a killed save left half-written.

    Args:
      directory: where the checkpoints are; created if missing.
      keep: how many of the newest checkpoints to keep; at least 2, in case one is corrupt.
      identity: what the states depend on (`launch.Run.identity`): saved with each, and compared
        when one is restored.

    Raises:
      ValueError: if `keep` is below 2.
    """
    if keep < 2:
      raise ValueError(f'config.keep must be at least 2, got {keep}')

    _quiet_libraries()
    self._directory = pathlib.Path(directory).absolute()
    self._identity = metrics.plain(identity or {})
    self._saving: int | None = None

    with _one_line_errors(self._directory):
      self._directory.mkdir(parents=True, exist_ok=True)
      self._remove_temporary()
      self._manager = ocp.CheckpointManager(
          self._directory,
          options=ocp.CheckpointManagerOptions(
              max_to_keep=keep, save_root_metadata=False,
              async_options=ocp.AsyncOptions(post_finalization_callback=self._add_checksums)),
      )

  @property
  def path(self) -> pathlib.Path:
    """Path of the directory."""
    return self._directory

  def steps(self) -> list[int]:
    """Returns the steps of the complete checkpoints, oldest first."""
    return sorted(self._manager.all_steps(read=True))

  def save(self, step: int, state: Any, metadata: Mapping[str, Any]) -> None:
    """Starts a save; returns once the arrays are copied, before they are on disk.

    Args:
      step: optimizer steps taken. A step that is already saved is left unchanged.
      state: a pytree of arrays; typed PRNG keys are allowed.
      metadata: a JSON object (offsets, fingerprints, data position).

    Raises:
      OSError: if the disk is full, now or in the previous save; complete checkpoints stay usable.
    """
    arrays, tree = _flatten(state)
    document = {'metadata': metrics.plain(metadata), 'tree': tree, 'identity': self._identity}

    with _one_line_errors(self._directory, on_failure=self._remove_temporary):
      self._manager.wait_until_finished()
      if step in self._manager.all_steps():
        return

      self._saving = step
      self._manager.save(
          step,
          args=ocp.args.Composite(
              state=ocp.args.StandardSave(arrays), document=ocp.args.JsonSave(document)
          ),
          force=True,
      )

  def wait(self) -> None:
    """Waits for the pending save to complete; raises like `save`."""
    with _one_line_errors(self._directory, on_failure=self._remove_temporary):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then releases the threads. Call it once, at the end."""
    try:
      self.wait()
    finally:
      with contextlib.suppress(Exception):  # wait() has raised any failure.
        self._manager.close()

  def restore_latest(self, abstract_state: Any) -> Restored | None:
    """Restores the newest intact checkpoint.

    Args:
      abstract_state: the tree to restore into: `jax.ShapeDtypeStruct`s with shardings, or arrays.
        The shardings may differ from those used for saving (another mesh). A leaf without one
        goes to the first device.

    Returns:
      The checkpoint, or None if there is none.

    Raises:
      CheckpointError: if all are corrupt, or the newest intact one is of another run or has
        different parameters (the message names the first that differs).
    """
    self.wait()
    steps = self.steps()

    problems: dict[int, str] = {}

    # Newest first, until one is intact.
    for step in reversed(steps):
      folder = self._directory / str(step)
      problem = _find_damage(folder)

      if problem is None:
        self._check_identity(folder)
        state, metadata = _read(folder, abstract_state)
        return Restored(step, state, metadata, self._set_aside(problems, step))
      problems[step] = problem

    if problems:
      newest = max(problems)
      raise CheckpointError(
          f'every checkpoint in {self._directory} is corrupt (steps '
          f'{", ".join(map(str, sorted(problems)))}; {newest}: {problems[newest]}); '
          'remove the folder to start over')
    return None

  def _check_identity(self, folder: pathlib.Path) -> None:
    saved = _read_document(folder).get('identity')
    if saved is None:
      raise CheckpointError(
          f'{folder} is of an earlier version, which did not record what it depends on: remove it, '
          'or give another --workdir')
    for name, theirs, ours in metrics.differences(saved, self._identity):
      raise CheckpointError(
          f'{folder} is a checkpoint of another run ({name}: {theirs!r} there, {ours!r} now): '
          'remove it, or give another --workdir')

  def _set_aside(self, problems: dict[int, str], good_step: int) -> list[str]:
    warnings = []
    for step, problem in problems.items():
      target = self._directory.with_name(self._directory.name + '.corrupt') / str(step)
      if jax.process_index() == 0:
        target.parent.mkdir(exist_ok=True)
        while target.exists():
          target = target.with_name(target.name + '_')
        os.rename(self._directory / str(step), target)

      warnings.append(
          f'checkpoint {step} is corrupt ({problem}); moved to {target}, continuing from step '
          f'{good_step}'
      )

    if problems:
      self._manager.reload()
    return warnings

  def _add_checksums(self) -> None:
    """Called by Orbax when all files of a checkpoint are written, before the rename."""
    if jax.process_index() == 0:
      folder = self._directory / f'{self._saving}{_TEMPORARY}'
      _write_checksums(folder if folder.exists() else self._directory / str(self._saving))

  def _remove_temporary(self) -> None:
    if jax.process_index() == 0:
      for path in self._directory.glob(f'*{_TEMPORARY}*'):
        shutil.rmtree(path, ignore_errors=True)


def save_params(directory: str | os.PathLike, params: Any, metadata: Mapping[str, Any]) -> None:
  """Writes parameters only, for runs that start from them (`policy_init_from`).

  Args:
    directory: where to write; if it exists, it is replaced once the new one is complete.
    params: a pytree of arrays.
    metadata: must match when the parameters are loaded: 'tokenizer' (fingerprint), 'model'
      (config).

  Raises:
    OSError: if the disk is full.
  """
  _quiet_libraries()
  directory = pathlib.Path(directory).absolute()
  arrays, tree = _flatten(params)
  document = {'metadata': metrics.plain(metadata), 'tree': tree}

  with _one_line_errors(directory), files.atomic_directory(directory) as temporary:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
      checkpointer.save(
          temporary,
          args=ocp.args.Composite(
              state=ocp.args.StandardSave(arrays), document=ocp.args.JsonSave(document)
          ),
          force=True,
      )
    _write_checksums(temporary)


def load_params(
    directory: str | os.PathLike,
    abstract_params: Any,
    *,
    expected: Mapping[str, Any] | None = None,
    cast: bool = False,
) -> tuple[Any, dict[str, Any]]:
  """Reads parameters written by `save_params`.

  Args:
    directory: where they were written.
    abstract_params: shapes, dtypes and shardings to restore into.
    expected: metadata that must match, such as {'tokenizer': fingerprint, 'model': {...}}, or
      'made_from' (seed and config) for parameters that a run reads again.
    cast: whether to convert parameters of another dtype; otherwise they are rejected.

  Returns:
    The parameters and the metadata.

  Raises:
    FileNotFoundError: if there is no such directory.
    CheckpointError: if it is damaged, or made for another tokenizer or model; the message names
      what differs, with both values.
  """
  _quiet_libraries()
  directory = pathlib.Path(directory).absolute()
  if not directory.is_dir():
    raise FileNotFoundError(f'no parameters at {directory} (config.policy_init_from)')

  is_ours = (directory / 'document').is_dir()
  problem = _find_damage(directory) if is_ours else 'it was not written by save_params'
  if problem is not None:
    raise _damaged_params(directory, problem)

  metadata = _read_document(directory)['metadata']
  if 'made_from' in (expected or {}) and 'made_from' not in metadata:
    raise CheckpointError(
        f'the parameters at {directory} are of an earlier version, which did not record what they '
        'were made from; give another --workdir'
    )
  expected = metrics.plain(expected or {})
  known = {name: metadata.get(name) for name in expected}
  for name, theirs, ours in metrics.differences(known, expected):
    raise CheckpointError(
        f'{name} of the parameters at {directory} is {theirs!r}, this run has {ours!r}'
    )

  return _read(directory, abstract_params, cast=cast)


def read_metadata(directory: str | os.PathLike) -> dict[str, Any]:
  """Reads the metadata written by `save_params`, without the arrays.

  Args:
    directory: where the parameters were written.

  Returns:
    The JSON object given to `save_params`.

  Raises:
    CheckpointError: if the directory holds no parameters, or they are damaged.
  """
  _quiet_libraries()
  directory = pathlib.Path(directory).absolute()
  if not (directory / 'document').is_dir():
    raise CheckpointError(
        f'{directory} holds neither parameters of this project (WORKDIR/params) nor a Hugging Face '
        'checkpoint (config.json and *.safetensors)'
    )
  problem = _find_damage(directory)
  if problem is not None:
    raise _damaged_params(directory, problem)
  return _read_document(directory)['metadata']


def _damaged_params(directory: pathlib.Path, problem: str) -> CheckpointError:
  return CheckpointError(
      f'the parameters at {directory} cannot be read: {problem}; restore them, or delete the '
      'directory and run the command that made them again')


def _flatten(tree: Any) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns arrays by path, with PRNG keys as plain data, and a description of each."""
  arrays, description = {}, {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    if name in arrays:
      raise ValueError(f'two leaves of the state have the same path {name}')
    description[name] = {'shape': list(leaf.shape), 'dtype': str(leaf.dtype)}
    if _is_key(leaf):
      description[name]['implementation'] = str(jax.random.key_impl(leaf))
      leaf = jax.random.key_data(leaf)
    arrays[name] = leaf
  return arrays, description


def _read(
    folder: pathlib.Path, abstract_tree: Any, *, cast: bool = False
) -> tuple[Any, dict[str, Any]]:
  document = _read_document(folder)
  saved = document['tree']

  leaves, treedef = jax.tree_util.tree_flatten_with_path(abstract_tree)
  wanted = {
      jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves
  }
  _check_tree(folder, saved, wanted, cast=cast)

  abstract = {name: _abstract_data(leaf) for name, leaf in wanted.items()}
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    arrays = checkpointer.restore(
        folder, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    ).state

  restored = []
  for name, leaf in wanted.items():
    array = arrays[name]
    if _is_key(leaf):
      array = jax.random.wrap_key_data(array, impl=saved[name]['implementation'])
      array = jax.device_put(array, _sharding(leaf))
    restored.append(array)

  return jax.tree_util.tree_unflatten(treedef, restored), document['metadata']


def _read_document(folder: pathlib.Path) -> dict[str, Any]:
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    return checkpointer.restore(
        folder, args=ocp.args.Composite(document=ocp.args.JsonRestore())
    ).document


def _check_tree(
    folder: pathlib.Path, saved: dict[str, Any], wanted: dict[str, Any], *, cast: bool
) -> None:
  for name in sorted(saved.keys() | wanted.keys()):
    shown = name.replace('.', '/')
    if name not in wanted:
      raise CheckpointError(f'{folder} holds {shown}, which this run does not have')
    if name not in saved:
      raise CheckpointError(f'{folder} does not hold {shown}, which this run has')

    there = saved[name]['dtype'], tuple(saved[name]['shape'])
    here = str(wanted[name].dtype), tuple(wanted[name].shape)
    if there[1] != here[1] or (there != here and not cast):
      raise CheckpointError(
          f'{shown} is {there[0]}{list(there[1])} in {folder} and {here[0]}{list(here[1])} in '
          'this run'
      )


def _abstract_data(leaf: Any) -> jax.ShapeDtypeStruct:
  data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
  return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=_sharding(leaf))


def _sharding(leaf: Any) -> jax.sharding.Sharding:
  sharding = getattr(leaf, 'sharding', None)
  return sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _is_key(leaf: Any) -> bool:
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _write_checksums(folder: pathlib.Path) -> None:
  checksums = {name: _checksum(folder / name) for name in _checked_files(folder)}
  metrics.write_json_atomic(folder / files.CHECKSUMS, checksums)


def _checked_files(folder: pathlib.Path) -> list[str]:
  # Subdirectories only, which restoring reads: Orbax rewrites the top-level files after this.
  paths = sorted(path for path in folder.glob('*/**/*') if path.is_file())
  return [path.relative_to(folder).as_posix() for path in paths]


def _find_damage(folder: pathlib.Path) -> str | None:
  """Describes damage to a checkpoint's files; None if they are those that were written."""
  try:
    checksums = dict(metrics.read_json(folder / files.CHECKSUMS))
    actual = _checked_files(folder)
    for name, checksum in checksums.items():
      if name not in actual:
        return f'{name} is missing'
      if _checksum(folder / name) != checksum:
        return f'{name} does not have the bytes that were written'
  except FileNotFoundError:
    return f'{files.CHECKSUMS} is missing'
  except (OSError, ValueError, TypeError) as error:
    return f'{files.CHECKSUMS} cannot be read: {_first_line(error)}'

  unlisted = [name for name in actual if name not in checksums]
  return f'{files.CHECKSUMS} does not list {unlisted[0]}' if unlisted else None


def _checksum(path: pathlib.Path) -> str:
  value, size = 0, 0
  with open(path, 'rb') as file:
    while block := file.read(1 << 22):
      value = zlib.crc32(block, value)
      size += len(block)
  return f'{size}:{value:08x}'


@contextlib.contextmanager
def _one_line_errors(directory: pathlib.Path, on_failure=None) -> Iterator[None]:
  try:
    yield
  except Exception as error:  # TensorStore reports a full disk as a ValueError.
    if on_failure is not None:
      on_failure()
    text = str(error)
    if getattr(error, 'errno', None) == errno.ENOSPC or 'No space left on device' in text:
      raise OSError(
          errno.ENOSPC, 'the disk is full; the last complete checkpoint is kept', str(directory)
      ) from error
    if isinstance(error, RecursionError):  # Orbax reads files of its own that have no checksum.
      raise CheckpointError(f'{directory} is damaged: a file is nested too deeply') from error
    raise


def _first_line(error: BaseException) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _quiet_libraries() -> None:
  """Silences Orbax's logging on the terminal; anything important is raised or returned."""
  absl_logging.set_verbosity(absl_logging.FATAL)
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  _drop_late_failures()


@functools.cache
def _drop_late_failures() -> None:
  """Drops what TensorStore's threads print after a failed save; installed once.

  One array that cannot be written ends Orbax's event loop. Every other one then fails too, with a
  traceback; the first failure, which is raised, suffices.
  """
  previous = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      previous(unraisable)

  sys.unraisablehook = hook


