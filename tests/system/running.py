"""Runs of the tiny config in child processes, and comparisons of their outcomes."""

import contextlib
import csv
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from jaxrl_llm.training import metrics
from tests import compiler_flags
from tests.system import child

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / 'tests' / 'system' / 'tiny_config.py'
SFT_STEPS, STEPS = 40, 10  # Of the tiny config.


class Runner:
  """Starts programs on one device; they share a compilation cache."""

  def __init__(self, cache: pathlib.Path):
    self._environment = os.environ | {
        'XLA_FLAGS': compiler_flags.FAST_COMPILE, 'PYTHONPATH': str(REPOSITORY),
        'JAX_COMPILATION_CACHE_DIR': str(cache),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }

  def start(self, workdir, *arguments, experiment='a_star_po', **probes) -> subprocess.Popen:
    """Starts a run under `tests/system/child.py`."""
    command = [sys.executable, '-m', 'tests.system.child', json.dumps(probes), experiment]
    return self._popen([*command, f'--config={CONFIG}', f'--workdir={workdir}', *arguments])

  def finish(self, workdir, *arguments, **options) -> subprocess.CompletedProcess:
    """Starts a run and waits for its end."""
    return wait(self.start(workdir, *arguments, **options))

  def command(self, experiment, *arguments, cwd) -> subprocess.CompletedProcess:
    """Runs the command of a user in the directory `cwd`."""
    return wait(self._popen(
        [sys.executable, '-m', f'experiments.{experiment}', *map(str, arguments)], cwd=cwd))

  def _popen(self, command, cwd=REPOSITORY) -> subprocess.Popen:
    return subprocess.Popen(
        command, cwd=cwd, env=self._environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)


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


def wait(process: subprocess.Popen, timeout: float = 300) -> subprocess.CompletedProcess:
  """Waits for a process; returns it with its output."""
  out, error = process.communicate(timeout=timeout)
  return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def wait_until(process: subprocess.Popen, condition, timeout: float = 300) -> None:
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
  return name == 'wall_seconds' or name.startswith('time/')


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
