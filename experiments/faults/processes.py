"""Starts programs as their commands do, in processes forked from one that has already imported JAX.

A campaign starts thousands of processes. Importing JAX takes seconds each time, so a server imports
it once, starts no thread and no JAX backend, and every process is a fork of the server.
"""

import multiprocessing
import os
import pathlib
import resource
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

_PRELOADED = (
    'jax', 'optax', 'flax', 'orbax.checkpoint', 'numpy', 'ml_collections.config_flags',
    'jaxrl_llm.runs.launch',
)


class Ended(NamedTuple):
  """A process that has ended.

  Attributes:
    status: exit status; the negative number of the signal that killed it; None if it was still
      running at its time limit and was killed.
    stdout: what it printed.
    stderr: what it printed as progress and errors.
    seconds: its duration.
  """

  status: int | None
  stdout: str
  stderr: str
  seconds: float


class Server:
  """Starts `python -m MODULE ARGUMENTS` in forked processes; compiled programs are cached."""

  def __init__(self, cache: pathlib.Path):
    """Sets the environment that all processes inherit.

    Args:
      cache: directory of JAX's persistent compilation cache, shared by the processes.
    """
    os.environ |= {
        'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': str(cache),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }
    self._context = multiprocessing.get_context('forkserver')
    self._context.set_forkserver_preload(list(_PRELOADED))
    # A status can be read once. Starting a process polls all others, so that the thread that waits
    # for one of them could find it read, and status 255 in its place.
    self._lock = threading.Lock()

  def run(
      self, module: str, arguments: Sequence[str], logs: pathlib.Path, *, time_limit: float,
      file_bytes: int | None = None,
      interrupt: Callable[[int, float], bool] | None = None,
  ) -> Ended:
    """Runs a program to its end.

    Args:
      module: the program, such as 'experiments.a_star_po'.
      arguments: its command line.
      logs: directory for its output.
      time_limit: seconds after which it is killed.
      file_bytes: limit on the size of each file that it writes, as on a full disk.
      interrupt: called every few milliseconds with the process id and the seconds since the start,
        until it returns True: it sends signals.

    Returns:
      The ended process.
    """
    logs.mkdir(parents=True, exist_ok=True)
    out, err = logs / 'stdout', logs / 'stderr'
    process = self._context.Process(
        target=become, args=(module, list(arguments), str(out), str(err), file_bytes))
    with self._lock:
      process.start()
    start, timed_out = time.monotonic(), False

    while self._status(process) is None:
      seconds = time.monotonic() - start
      if seconds > time_limit:
        timed_out = True
        process.kill()
      elif interrupt is not None and interrupt(process.pid, seconds):
        interrupt = None
      connection.wait([process.sentinel], 0.005 if interrupt is not None else 0.2)

    read = lambda path: path.read_text(errors='replace') if path.exists() else ''
    status = None if timed_out else self._status(process)
    return Ended(status, read(out), read(err), time.monotonic() - start)

  def _status(self, process: Any) -> int | None:
    """Returns the exit status of a process, or None while it runs."""
    with self._lock:
      return process.exitcode


def become(
    module: str, arguments: list[str], out: str, err: str, file_bytes: int | None = None
) -> None:
  """Runs in a forked process: becomes `python -m MODULE ARGUMENTS`, with its output in files."""
  os.setsid()  # Ctrl-C is for the campaign alone.
  for descriptor, path in ((1, out), (2, err)):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, descriptor)
    os.close(file)
  sys.stdout = open(1, 'w', closefd=False)  # noqa: SIM115 - until the process ends.
  sys.stderr = open(2, 'w', buffering=1, closefd=False)  # noqa: SIM115

  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # See experiments/__init__.py.
    signal.signal(number, signal.SIG_DFL)
  if file_bytes is not None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # The write fails with EFBIG instead.
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))

  sys.argv = [module, *arguments]
  runpy.run_module(module, run_name='__main__', alter_sys=True)
