"""Asks worker processes, with a deadline: the trainer's side of `worker`.

A pool starts its workers when they are first needed. A question's clock starts only when the worker
has imported SymPy. A worker that dies is replaced and the question asked once more; one that does
not reply is killed.
Safe to call from many threads.
"""

import atexit
import contextlib
import dataclasses
import json
import os
import pathlib
import select
import subprocess
import sys
import threading
import time

# Wall time for one answer in a worker that is ready. With the grace period below and the cost of
# extraction, an answer takes less than the promised 2 seconds.
ANSWER_SECONDS = 1.0
_GRACE_SECONDS = 0.5
_START_SECONDS = 120.0
_MODULE = 'jaxrl_llm.rewards.math.worker'
_ROOT = pathlib.Path(__file__).resolve().parents[3]


class WorkerError(RuntimeError):
  """No worker could be started: an error of the installation, not of an answer."""


@dataclasses.dataclass(frozen=True)
class Reply:
  """Reply of a worker.

  Attributes:
    verdict: whether the two answers were shown to be equal.
    outcome: 'equal', 'different', 'timeout', 'memory', 'error' or 'died'.
    seconds: wall time that the answer took in the worker.
    peak_kib: the largest resident memory of the process that decided, KiB.
  """

  verdict: bool
  outcome: str
  seconds: float
  peak_kib: int


class _Gone(Exception):
  """The worker ended or broke the protocol."""


class Worker:
  """One worker process and its two pipes. Not thread-safe: one question at a time."""

  def __init__(self):
    # Verdicts must not depend on the caller's environment; its __main__ is not imported.
    environment = {key: os.environ[key] for key in ('PATH', 'LD_LIBRARY_PATH', 'SYSTEMROOT',
                                                    'VIRTUAL_ENV') if key in os.environ}
    environment |= {'PYTHONPATH': os.pathsep.join([str(_ROOT), *filter(None, sys.path)]),
                    'PYTHONHASHSEED': '0', 'PYTHONDONTWRITEBYTECODE': '1'}
    self.process = subprocess.Popen(
        [sys.executable, '-m', _MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=environment, start_new_session=True)  # fmt: skip
    self._ready = False
    self._buffer = b''

  def wait_until_ready(self) -> None:
    """Returns once the worker has imported what it needs.

    Raises:
      WorkerError: it ended before that, or took more than two minutes.
    """
    if self._ready:
      return
    try:
      message = self._read(time.monotonic() + _START_SECONDS)
    except _Gone:
      self.kill()
      error = self.process.stderr.read().decode(errors='replace').strip().splitlines()
      reason = error[-1] if error else f'exit status {self.process.returncode}'
      raise WorkerError(f'the worker of the answer verifier did not start: {reason}') from None
    if message is None:
      self.kill()
      raise WorkerError(f'the worker of the answer verifier took over {_START_SECONDS:.0f} s')
    self.process.stderr.close()
    self._ready = True

  def ask(self, candidate: str, answer: str, seconds: float) -> Reply:
    """One question to a worker that is ready.

    Raises:
      _Gone: the worker is dead.
    """
    # ASCII on the wire: lone surrogates and line separators travel as escapes.
    request = json.dumps({'candidate': candidate, 'answer': answer, 'seconds': seconds}) + '\n'
    try:
      self.process.stdin.write(request.encode('ascii'))
      self.process.stdin.flush()
    except OSError:
      raise _Gone from None
    message = self._read(time.monotonic() + seconds + _GRACE_SECONDS)
    if message is None:
      self.kill()
      return Reply(False, 'timeout', seconds + _GRACE_SECONDS, 0)
    return Reply(**message)

  def _read(self, deadline: float) -> dict | None:
    """The next message, or None at the deadline."""
    descriptor = self.process.stdout.fileno()
    while b'\n' not in self._buffer:
      ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
      if not ready:
        return None
      chunk = os.read(descriptor, 65536)
      if not chunk:
        raise _Gone
      self._buffer += chunk
    line, _, self._buffer = self._buffer.partition(b'\n')
    return json.loads(line)

  @property
  def alive(self) -> bool:
    """Returns whether the process runs."""
    return self.process.poll() is None

  def kill(self) -> None:
    """Ends the process now."""
    with contextlib.suppress(OSError):
      self.process.kill()
    self.process.wait()
    for pipe in (self.process.stdin, self.process.stdout):  # stderr may hold the reason.
      with contextlib.suppress(OSError):
        pipe.close()


class WorkerPool:
  """Up to `size` workers, started as they are needed."""

  def __init__(self, *, size: int | None = None, seconds: float = ANSWER_SECONDS):
    if size is not None and size < 1:
      raise ValueError(f'size must be at least 1, got {size}')
    self.size = size or max(1, min(4, os.cpu_count() or 1))
    self.seconds = seconds
    self._slots = threading.BoundedSemaphore(self.size)
    self._lock = threading.Lock()
    self._idle: list[Worker] = []
    self._all: set[Worker] = set()

  @contextlib.contextmanager
  def _worker(self):
    """A worker for exclusive use; it returns to the pool if it is still alive."""
    with self._slots:
      with self._lock:
        worker = self._idle.pop() if self._idle else None
        if worker is None:
          worker = Worker()
          self._all.add(worker)
      try:
        yield worker
      finally:
        with self._lock:
          if worker.alive and worker in self._all:
            self._idle.append(worker)
          else:
            self._all.discard(worker)

  def start(self) -> None:
    """Starts one worker and waits until it is ready, so that later calls need not."""
    with self._worker() as worker:
      worker.wait_until_ready()

  def ask(self, candidate: str, answer: str) -> Reply:
    """Returns whether two answers are equal, decided in a worker.

    Args:
      candidate: the answer extracted from a response.
      answer: text of the ground truth.

    Returns:
      The reply; its verdict is False at the deadline.

    Raises:
      WorkerError: no worker can be started.
    """
    for _ in range(2):
      with self._worker() as worker:
        try:
          worker.wait_until_ready()
          return worker.ask(candidate, answer, self.seconds)
        except _Gone:  # It was killed from outside, not because of the answer.
          worker.kill()
    return Reply(False, 'died', 0.0, 0)

  def process_ids(self) -> list[int]:
    """Process ids of the running workers."""
    with self._lock:
      return [worker.process.pid for worker in self._all if worker.alive]

  def close(self) -> None:
    """Ends all workers; the pool can be used again and starts new ones."""
    with self._lock:
      workers, self._all, self._idle = self._all, set(), []
    for worker in workers:
      worker.kill()


_shared: WorkerPool | None = None
_shared_lock = threading.Lock()


def shared() -> WorkerPool:
  """The pool of this process. It is closed when the process ends."""
  global _shared
  with _shared_lock:
    if _shared is None:
      _shared = WorkerPool()
      atexit.register(_shared.close)
    return _shared


def _forget() -> None:
  """Drops the pool in a forked child, which must not write into its parent's pipes."""
  global _shared, _shared_lock
  _shared, _shared_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
