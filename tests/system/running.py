"""Runs of the tiny config in child processes, and comparisons of their outcomes."""

import contextlib
import csv
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

from experiments.faults import processes
from jaxrl_llm.training import metrics
from tests import compiler_flags
from tests.system import child

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / 'tests' / 'system' / 'tiny_config.py'
SFT_STEPS, STEPS = 40, 10  # Of the tiny config.


class Child:
  """A program in a forked process, with the methods of `subprocess.Popen` that tests need."""

  def __init__(self, process, args: list[str], folder: pathlib.Path):
    self.args = args
    self._process, self._folder = process, folder

  @property
  def returncode(self) -> int | None:
    """Exit status; the negative number of the signal that ended it; None while it runs."""
    return self._process.exitcode

  poll = returncode.fget

  def send_signal(self, number: int) -> None:
    """Sends a signal."""
    os.kill(self._process.pid, number)

  def kill(self) -> None:
    """Sends SIGKILL."""
    self.send_signal(signal.SIGKILL)

  def communicate(self, timeout: float | None = None) -> tuple[str, str]:
    """Waits for the end, and returns what was printed to stdout and stderr."""
    self._process.join(timeout)
    if self.returncode is None:
      self._process.kill()
      raise subprocess.TimeoutExpired(self.args, timeout)
    return tuple((self._folder / name).read_text() for name in ('stdout', 'stderr'))


class Runner:
  """Starts programs on one device; they share a compilation cache.

  Each is a fork of one process that has imported JAX and started neither threads nor devices.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._environment = {
        'XLA_FLAGS': compiler_flags.FAST_COMPILE, 'PYTHONPATH': str(REPOSITORY)}
    self._counter = itertools.count()
    self._context = multiprocessing.get_context('forkserver')
    self._context.set_forkserver_preload([
        'tests.system.running', 'jax', 'optax', 'flax.linen', 'orbax.checkpoint',
        'matplotlib.pyplot', 'ml_collections.config_flags', 'experiments.a_star_po.__main__'])

  def start(self, workdir, *arguments, experiment='a_star_po', **probes) -> Child:
    """Starts a run under `tests/system/child.py`."""
    arguments = [f'--config={CONFIG}', f'--workdir={workdir}', *arguments]
    return self._fork('tests.system.child', [json.dumps(probes), experiment, *arguments])

  def finish(self, workdir, *arguments, **options) -> subprocess.CompletedProcess:
    """Starts a run and waits for its end."""
    return wait(self.start(workdir, *arguments, **options))

  def command(self, experiment, *arguments, cwd) -> subprocess.CompletedProcess:
    """Runs the command of a user in the directory `cwd`."""
    return wait(self._fork(f'experiments.{experiment}', list(map(str, arguments)), cwd=cwd))

  def _fork(self, module: str, arguments: list[str], cwd=REPOSITORY) -> Child:
    folder = self._folder / f'process{next(self._counter)}'
    folder.mkdir()
    process = self._context.Process(target=_become, args=(
        module, arguments, str(folder), str(cwd), self._environment, str(self._folder / 'cache')))
    process.start()
    return Child(process, [module, *arguments], folder)


def _become(module, arguments, folder, cwd, environment, cache) -> None:
  """Runs in the forked process."""
  import jax

  os.environ.update(environment)
  os.chdir(cwd)
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  processes.become(module, arguments, f'{folder}/stdout', f'{folder}/stderr')


def refuse(workdir, *arguments, experiment='a_star_po') -> subprocess.CompletedProcess:
  """Runs in this process, which has imported jax already, what ends before anything is trained."""
  out, error = io.StringIO(), io.StringIO()
  command = [experiment, f'--config={CONFIG}', f'--workdir={workdir}', *arguments]
  with (
      contextlib.chdir(REPOSITORY), contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(error), pytest.raises(SystemExit) as end,
  ):
    child.run(*command)
  return subprocess.CompletedProcess(command, end.value.code, out.getvalue(), error.getvalue())


def wait(process: Child, timeout: float = 300) -> subprocess.CompletedProcess:
  """Waits for a process; returns it with its output."""
  out, error = process.communicate(timeout=timeout)
  return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def wait_until(process: Child, condition, timeout: float = 300) -> None:
  """Returns as soon as `condition()` holds while the process runs; fails otherwise."""
  end = time.monotonic() + timeout
  while not condition():
    assert process.poll() is None, (process.returncode, process.communicate())
    assert time.monotonic() < end, 'the condition did not become true'
    time.sleep(0.002)


def num_lines(path: pathlib.Path) -> int:
  """Number of complete lines of a file that may not exist yet."""
  return path.read_bytes().count(b'\n') if path.exists() else 0


def copy(source: pathlib.Path, target: pathlib.Path, *, complete: bool = False) -> pathlib.Path:
  """A copy of a workdir; without its results unless `complete`, so that a start resumes it."""
  shutil.copytree(source, target)
  if not complete:
    (target / 'results.json').unlink()
  return target


def results(workdir: pathlib.Path) -> dict:
  """results.json."""
  return json.loads((workdir / 'results.json').read_text())


def _is_time(name: str) -> bool:
  return name == 'wall_seconds' or name.startswith(('time/', 'memory/'))


def outcome(workdir: pathlib.Path) -> dict:
  """Everything that must be equal, bit for bit, in two runs of one config."""
  timeless = lambda record: {
      k: v for k, v in record.items() if not _is_time(k) and k not in ('commit', 'sha256')}
  read = lambda name: (workdir / name).read_text()
  return {
      'results': timeless(results(workdir)),
      'metrics': [timeless(r) for r in metrics.read_jsonl(workdir / 'metrics.jsonl')],
      'v_star': timeless(json.loads(read('v_star.json'))),
      **{name: read(name) for name in (
          'samples.jsonl', 'stage1.jsonl', 'figures/learning_curve.csv', 'figures/v_star.csv')},
  }


def assert_same(workdir: pathlib.Path, whole: pathlib.Path) -> None:
  """Checks that both runs have the same outcome, and that no step is logged twice."""
  actual, expected = outcome(workdir), outcome(whole)
  for name, value in expected.items():
    assert actual[name] == value, name
  steps = [record['step'] for record in actual['metrics']]
  assert steps == sorted(set(steps))


def assert_one_line(done: subprocess.CompletedProcess, *words: str) -> None:
  """Checks for exit status 2 and a single error line on stderr."""
  assert done.returncode == 2, done
  lines = [line for line in done.stderr.splitlines() if 'error' in line.lower()]
  assert len(lines) == 1 and ': error: ' in lines[0], done.stderr
  assert 'Traceback' not in done.stderr
  for word in words:
    assert word in lines[0], (word, lines[0])


def read_csv(path: pathlib.Path) -> list[dict[str, float]]:
  """A CSV file of numbers."""
  with open(path, newline='') as file:
    return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
