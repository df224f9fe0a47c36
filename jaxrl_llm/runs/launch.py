"""Starts the programs of experiments/: flags, config, workdir, one-line errors, results.json.

A program is a module with a docstring, a `main(run)` and

  if __name__ == '__main__':
    launch.run(main, default_config='experiments/configs/NAME.py')

Flags: --config=FILE.py[:variant] (a file with `get_config()`, which returns a plain typed mutable
dataclass), --config.field=value (overrides, nested by dots), --workdir=DIR, --debug (tracebacks
instead of one line). Exit status: 0 if the run is complete, now or already before; 2 for bad input,
with one line on stderr; 130 if interrupted.

This module does not import JAX before the flags are parsed and the workdir is checked.
"""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import numbers
import os
import pathlib
import platform
import re
import select
import signal
import subprocess
import sys
import sysconfig
import time
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from jaxrl_llm.runs import (
  artefacts,
  command_line,
  compile_cache,
  interrupts,
  manifest,
  memory,
  processor,
)
from jaxrl_llm.runs.command_line import UsageError
from jaxrl_llm.runs.results import read_results
from jaxrl_llm.tables.digests import with_digest
from jaxrl_llm.training import compilation, files, loop, metrics

REPOSITORY = command_line.REPOSITORY

# Config fields that only change where data is or how results are shown, never what is computed:
# a run may be resumed with another value.
RELOCATABLE_FIELDS = frozenset(
    {'data_dir', 'results_file', 'wandb_project', 'note', 'scale_note'})

_PACKAGES = {
    'jax': 'jax', 'jaxlib': 'jaxlib', 'flax': 'flax', 'optax': 'optax',
    'orbax': 'orbax-checkpoint', 'numpy': 'numpy',
}


def computing_config(config: Any) -> dict[str, Any]:
  """Returns a config without the fields that never change what is computed, at every depth.

  Args:
    config: a dataclass.

  Returns:
    Its other fields, nested: part of the identity of a result.
  """
  def computing(value):
    if isinstance(value, Mapping):
      return {name: computing(field) for name, field in value.items()
              if name not in RELOCATABLE_FIELDS}
    return value

  return computing(dataclasses.asdict(config))


def config_digest(config: Any) -> str:
  """Returns a digest of `computing_config` without the seed and without paths of checkpoints.

  Args:
    config: a dataclass.

  Returns:
    Hexadecimal digits, the same for all seeds of a setting on any machine.
  """
  fields = {
      name: value for name, value in computing_config(config).items()
      if name != 'seed' and not name.endswith('_init_from')}
  return with_digest(metrics.plain(fields))['sha256']


@dataclasses.dataclass
class Run:
  """The argument of a program's `main`.

  Attributes:
    config: the config with its overrides, validated; it has a field `seed`.
    workdir: an existing directory, locked by this process.
    experiment: name of the program.
    setting: the config file's name without the experiment's, and the variant after the colon.
    config_file: the config as given, `FILE.py[:variant]`.
    overrides: config fields given on the command line, such as 'model.width'.
    commit: commit of the source, with '-dirty' if tracked files differ, or 'unknown'.
    marks: wall seconds at which each phase was first complete, by phase.
    processors: `processor.fields()` of each processor used by the run.
  """

  config: Any
  workdir: pathlib.Path
  experiment: str
  setting: str
  config_file: str
  overrides: tuple[str, ...] = ()
  commit: str = dataclasses.field(default_factory=lambda: current_commit())

  def __post_init__(self):
    self._started = time.monotonic()
    here = processor.fields()
    self._earlier_seconds, self.marks, self.processors = 0.0, {}, [here]
    if self._clock_path.exists():
      try:
        clock = artefacts.read(self._clock_path, self.identity)
      except artefacts.Damaged as error:  # Nothing that is computed depends on it.
        print(f'warning: {error.path} is ignored, and seconds count from now: {error.problem}',
              file=sys.stderr, flush=True)
        return
      self._earlier_seconds, self.marks = clock['wall_seconds'], clock['marks']
      self.processors = [each for each in clock['processors'] if each != here] + [here]

  @property
  def seed(self) -> int:
    """The config's seed."""
    return self.config.seed

  @property
  def results_path(self) -> pathlib.Path:
    """Path written by `write_results`; the file exists if and only if the run is complete."""
    return self.workdir / 'results.json'

  @property
  def table_path(self) -> pathlib.Path:
    """Path of a program's final table (Markdown); shown again for a complete run."""
    return self.workdir / 'table.md'

  @property
  def identity(self) -> dict[str, Any]:
    """Everything that the run depends on: saved with what it keeps, and compared on resume."""
    return {'experiment': self.experiment, 'config': computing_config(self.config)}

  @property
  def _clock_path(self) -> pathlib.Path:
    return self.workdir / 'wall_seconds.json'

  def wall_seconds(self) -> float:
    """Returns the seconds of this run; earlier processes count up to their last `save_clock`."""
    return self._earlier_seconds + time.monotonic() - self._started

  def save_clock(self) -> None:
    """Saves `wall_seconds` for a process that resumes; call it with each checkpoint."""
    clock = {
        'wall_seconds': self.wall_seconds(), 'marks': self.marks, 'processors': self.processors}
    artefacts.write(self._clock_path, clock, self.identity, commit=self.commit)

  def open_metrics(self) -> contextlib.closing:
    """Opens the `MetricsWriter` of a program that trains, as a context manager."""
    return contextlib.closing(metrics.MetricsWriter(
        self.workdir, wandb_project=self.config.wandb_project,
        config=dataclasses.asdict(self.config)))

  def open_samples(self) -> contextlib.closing:
    """Opens WORKDIR/samples.jsonl, as a context manager."""
    return contextlib.closing(metrics.JsonlFile(self.workdir / 'samples.jsonl'))

  def mark(self, phase: str) -> None:
    """Records when a phase was first complete (`marks`, wall seconds by phase)."""
    self.marks.setdefault(phase, self.wall_seconds())
    self.save_clock()


def run(
    main: Callable[[Run], Any],
    *,
    default_config: str,
    config_types: Sequence[type] = (),
    experiment: str | None = None,
    argv: Sequence[str] | None = None,
) -> typing.NoReturn:
  """Parses the command line, prepares the workdir and calls `main`; never returns.

  Args:
    main: the program's main function; its return value is ignored.
    default_config: `FILE.py[:variant]`, relative to the current directory or the repository.
    config_types: types of config that the program takes, if there are others than the default's.
    experiment: name in results.json; by default that of the main module.
    argv: the command line; `sys.argv` by default.
  """
  argv = list(sys.argv if argv is None else argv)
  experiment = experiment or _main_name()

  def start() -> None:
    if command_line.wants_help(argv):
      signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends quietly.
      print(command_line.help_text(experiment, argv, default_config))
      return

    command = command_line.expand(argv)
    config, spec, values = command_line.parse(command, default_config, config_types)
    memory.check(config.memory())
    config_name, _, variant = spec.partition(':')
    config_name = pathlib.Path(config_name).stem
    workdir = values['workdir'].value or _default_workdir(config_name, variant, config)
    workdir = pathlib.Path(workdir)
    setting = '_'.join(filter(None, [config_name.removeprefix(experiment).strip('_'), variant]))

    _refuse_foreign(workdir)
    with _locked(workdir):
      if _prepare_workdir(workdir, config, experiment, spec):
        compile_cache.use()
        try:
          with compilation.announced():
            main(Run(config, workdir, experiment, setting or 'default', spec,
                     command_line.overridden(command[1:])))
        except (ValueError, OSError):
          _discard_if_unused(workdir)
          raise

  _exit_with_one_line(start, name=experiment, debug='--debug' in argv)


def run_tool(
    main: Callable[[], Any], *, name: str | None = None, argv: Sequence[str] | None = None
) -> typing.NoReturn:
  """Runs a program without config and workdir, with absl flags and one-line errors.

  Args:
    main: the program's main function; reads its own flags.
    name: prefix of the error line; by default the name of the main module.
    argv: the command line; `sys.argv` by default.
  """
  argv = list(sys.argv if argv is None else argv)
  name = name or _main_name()

  def start() -> None:
    if command_line.wants_help(argv):
      print(command_line.docstring() + '\n\n' + flags.FLAGS.main_module_help())
      return
    command = command_line.expand(argv)
    command_line.parse_flags(flags.FLAGS, [arg for arg in command if arg != '--debug'])
    compile_cache.use()
    with compilation.announced():
      main()

  _exit_with_one_line(start, name=name, debug='--debug' in argv)


def write_results(run: Run, numbers_: Mapping[str, Any]) -> pathlib.Path:
  """Writes a flat results.json with its digest atomically; call it last.

  The device is that of the writing process; processors are all that the run used.

  Args:
    run: the run.
    numbers_: headline numbers and strings by flat name. If missing, `sampled_tokens` is added as
      the sum of the entries `sampled_tokens/...`, and `wall_seconds` as the run's.

  Returns:
    The path written.

  Raises:
    ValueError: if a value is neither a number nor a string.
  """
  results: dict[str, Any] = {
      'experiment': run.experiment,
      'setting': run.setting,
      'seed': run.seed,
      'commit': run.commit,
      'config_sha256': config_digest(run.config),
      **numbers_,
  }
  tokens = [value for name, value in numbers_.items() if name.startswith('sampled_tokens/')]
  results.setdefault('sampled_tokens', sum(tokens))

  results['versions/python'] = platform.python_version()
  for name, package in _PACKAGES.items():
    try:
      results[f'versions/{name}'] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      results[f'versions/{name}'] = 'not installed'

  results['device'] = _device()
  results |= processor.joined(run.processors)
  run.save_clock()
  results.setdefault('wall_seconds', round(run.wall_seconds(), 3))

  results = metrics.plain(results)
  for name, value in results.items():
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, str)):
      raise ValueError(f'results must be numbers and strings, got {value!r} ({name})')
  finish(run, results)
  return run.results_path


def finish(run: Run, results: Mapping[str, Any]) -> None:
  """Writes results.json with its digest, after manifest.json: the run is then complete."""
  results = with_digest(results)
  manifest.write(run.workdir, results['sha256'])
  metrics.write_json_atomic(run.results_path, results)


def current_commit() -> str:
  """Returns the commit of this source, plus '-dirty' if tracked files differ, or 'unknown'."""
  def git(*arguments: str) -> str:
    return subprocess.run(
        ['git', '-C', str(REPOSITORY), *arguments],
        capture_output=True, text=True, check=True, timeout=30,
    ).stdout.strip()

  try:
    if pathlib.Path(git('rev-parse', '--show-toplevel')).resolve() != REPOSITORY:
      return 'unknown'  # An installed copy inside another repository.
    dirty = git('status', '--porcelain', '--untracked-files=no')
    return git('rev-parse', 'HEAD') + ('-dirty' if dirty else '')
  except (OSError, subprocess.SubprocessError):
    return 'unknown'


def _default_workdir(config_name: str, variant: str, config: Any) -> str:
  name = '_'.join(filter(None, [config_name, re.sub(r'[^\w.-]', '_', variant)]))
  return os.path.join('runs', f'{name}_seed{config.seed}' if config.seed else name)


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
  """Holds the lock of a workdir; raises UsageError if another process holds it."""
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / '.lock', 'a') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UsageError(f'another process is running in {workdir} (--workdir)') from error
    yield


def _prepare_workdir(workdir: pathlib.Path, config: Any, experiment: str, spec: str) -> bool:
  """Checks or writes config.json, removes leftovers; returns False if the run is complete."""
  _refuse_foreign(workdir)
  path = workdir / 'config.json'
  ours = metrics.plain({
      'experiment': experiment, 'config_file': spec, 'config': dataclasses.asdict(config)
  })

  if not path.exists():
    files.remove_leftovers(workdir)
    metrics.write_json_atomic(path, with_digest(ours))
    return True

  try:
    earlier = json.loads(path.read_text())
    is_changed = 'sha256' in earlier and with_digest(earlier) != earlier
    differences = [
        (name, old, new)
        for name, old, new in metrics.differences(earlier['config'], ours['config'], 'config')
        if name.rpartition('.')[2] not in RELOCATABLE_FIELDS]
    if earlier['experiment'] != experiment:
      differences.insert(0, ('experiment', earlier['experiment'], experiment))
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    problem = command_line.one_line(error)
    raise UsageError(
        f'{path} is not a config of a run ({problem}): give another --workdir') from error

  if is_changed:
    raise UsageError(f'{path} was changed since it was written: give another --workdir')

  if differences:
    listed = '; '.join(f'{name}: {old!r} there, {new!r} given' for name, old, new in differences)
    raise UsageError(f'{path} is of another config ({listed}); give another --workdir')

  files.remove_leftovers(workdir)
  if (workdir / 'results.json').exists():
    results = read_results(workdir / 'results.json', experiment=experiment, seed=config.seed)
    manifest.check(workdir, results['sha256'])
    print(f'This run is complete: {workdir / "results.json"}')
    if (workdir / 'table.md').exists():
      print(f'Its table, {workdir / "table.md"}:\n\n{(workdir / "table.md").read_text()}')
    return False
  return True


def _refuse_foreign(workdir: pathlib.Path) -> None:
  """Raises if the workdir exists and is not ours; writes nothing to it."""
  if workdir.exists() and not workdir.is_dir():
    raise UsageError(f'--workdir: not a directory: {str(workdir)!r}')
  if workdir.exists() and not (workdir / 'config.json').exists():
    others = sorted(p.name for p in workdir.iterdir() if not p.name.startswith('.'))
    if others:
      raise UsageError(
          f'{workdir} is not the directory of a run: it contains {others[0]} and no config.json; '
          'give an empty or a new one (--workdir)')


def _discard_if_unused(workdir: pathlib.Path) -> None:
  """Removes a workdir that holds no output, so that the corrected command can reuse it."""
  empty = {'config.json', 'task.json', 'wall_seconds.json', '.lock'}
  paths = list(workdir.iterdir())
  if all(p.name in empty or (p.is_file() and not p.stat().st_size) or
         (p.is_dir() and not any(p.iterdir())) for p in paths):
    for path in paths:
      path.rmdir() if path.is_dir() else path.unlink()
    with contextlib.suppress(OSError):
      workdir.rmdir()


def _exit_with_one_line(start: Callable[[], None], *, name: str, debug: bool) -> typing.NoReturn:
  interrupts.end_as_ctrl_c()

  try:
    start()
  except KeyboardInterrupt:
    loop.early_signals.clear()
    print(f'{name}: interrupted; run the same command again to resume', file=sys.stderr)
    sys.exit(130)
  except (ValueError, OSError, OverflowError) as error:
    if isinstance(error, BrokenPipeError):
      _end_if_output_is_closed()
      raise
    if debug:
      traceback.print_exc()
    hint = '' if debug or _is_ours(error) else ' (--debug shows the traceback)'
    print(f'{name}: error: {command_line.one_line(error)}{hint}', file=sys.stderr)
    sys.exit(2)
  except Exception as error:
    line = memory.out_of_memory_line(error, _function_of_ours(error))
    if debug or line is None:
      raise
    print(f'{name}: error: {line}', file=sys.stderr)
    sys.exit(2)
  sys.exit(0)


def _end_if_output_is_closed() -> None:
  """Ends the process quietly if nobody reads its output any more, as in `... | head -1`."""
  poll = select.poll()
  poll.register(sys.stdout, select.POLLOUT)
  if any(event & select.POLLERR for _, event in poll.poll(0)):
    # Otherwise Python would try to write the rest at its end, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)


def _function_of_ours(error: BaseException) -> str:
  """Returns the innermost function of this project in a traceback."""
  libraries = (sysconfig.get_path('stdlib'), sysconfig.get_path('purelib'), 'site-packages')
  ours = [
      frame for frame in traceback.extract_tb(error.__traceback__)
      if not any(library in frame.filename for library in libraries)]
  return f'{pathlib.Path(ours[-1].filename).stem}.{ours[-1].name}' if ours else 'a library'


def _is_ours(error: BaseException) -> bool:
  """Returns whether the error was raised by this project's checks, not inside a library."""
  frames = traceback.extract_tb(error.__traceback__)
  return isinstance(error, OSError) or (
      bool(frames) and 'site-packages' not in frames[-1].filename)


def _main_name() -> str:
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  name = spec.name.removesuffix('.__main__') if spec else pathlib.Path(sys.argv[0]).stem
  return name.rpartition('.')[2]


def _device() -> str:
  import jax

  devices = jax.devices()
  cores = f' ({os.cpu_count()} cores)' if devices[0].platform == 'cpu' else ''
  return f'{len(devices)} x {devices[0].device_kind}{cores}'
