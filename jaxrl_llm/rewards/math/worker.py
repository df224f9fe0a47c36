r"""The process in which SymPy runs: `python -m jaxrl_llm.rewards.math.worker`.

It is a new process (never forked from the trainer, whose threads a fork would break), imports
SymPy once, and then forks one child for each question that it reads. The child has its own memory
limit and timer, can neither write files nor start programs, and is killed at the deadline; the next
question gets a new child in a few milliseconds, so that a bomb costs only its deadline. Verdicts do
not depend on their order, because no answer can change the state that the next one starts from.

One JSON object per line in both directions: {"candidate", "answer", "seconds"} in, {"verdict",
"outcome", "seconds", "peak_kib"} out; the first line out is {"outcome": "ready"}.
Imports nothing heavy: no jax, no numpy.
"""

import gc
import json
import logging
import os
import resource
import select
import signal
import sys
import time

from jaxrl_llm.rewards.math import equivalence, symbolic

MEMORY_BYTES = 448 * 2**20  # Address space; resident memory is less. The promise is 512 MiB.

_FORBIDDEN = (
    'os.', 'shutil.', 'socket.', 'subprocess.', 'ctypes.', 'pty.', 'webbrowser.', 'urllib.',
    'signal.', 'resource.setrlimit', 'tempfile.',
)  # fmt: skip
_HARMLESS = ('os.listdir', 'os.scandir', 'os.walk', 'os.fwalk')


class _Forbidden(BaseException):
  """Raised in a child that tries to leave the sandbox; no handler in SymPy catches it."""


def _guard(event: str, arguments: tuple) -> None:
  """An audit hook that lets the child only compute."""
  if event == 'open':
    flags = arguments[2] if len(arguments) > 2 else 0
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    if isinstance(flags, int) and not flags & writes:
      return
    raise _Forbidden(event)
  if event.startswith(_FORBIDDEN) and event not in _HARMLESS:
    raise _Forbidden(event)


def _limit(seconds: float) -> None:
  """Limits this process permanently."""
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  # If the parent is gone, the kernel ends the process.
  signal.setitimer(signal.ITIMER_REAL, seconds + 0.5)
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
  sys.addaudithook(_guard)


def _answer(request: dict, pipe: int) -> None:
  """Runs in the child: decides, writes one byte, exits."""
  verdict = b'n'
  try:
    _limit(request['seconds'])
    if equivalence.compare(request['candidate'], request['answer'], leaf=symbolic):
      verdict = b'y'
  except MemoryError:
    verdict = b'm'
  except BaseException:  # An exception from SymPy does not prove equality.
    verdict = b'e'
  os.write(pipe, verdict)
  os._exit(0)


_OUTCOMES = {b'y': 'equal', b'n': 'different', b'm': 'memory', b'e': 'error', b'': 'died'}


def decide(request: dict) -> dict:
  """Answers one request in a new child.

  Args:
    request: {'candidate': str, 'answer': str, 'seconds': float}.

  Returns:
    {'verdict': bool, 'outcome': str, 'seconds': float, 'peak_kib': int}; the outcome is
    'equal', 'different', 'timeout', 'memory', 'error' or 'died'.
  """
  started = time.monotonic()
  reader, writer = os.pipe()
  child = os.fork()
  if child == 0:
    os.close(reader)
    _answer(request, writer)

  os.close(writer)
  ready, _, _ = select.select([reader], [], [], request['seconds'])
  outcome = _OUTCOMES[os.read(reader, 1)] if ready else 'timeout'
  os.close(reader)
  os.kill(child, signal.SIGKILL)  # It has replied or is out of time.
  _, _, usage = os.wait4(child, 0)

  return {
      'verdict': outcome == 'equal',
      'outcome': outcome,
      'seconds': time.monotonic() - started,
      'peak_kib': usage.ru_maxrss,
  }


def main() -> None:
  """Reads questions until the input ends."""
  # Replies use a private copy of standard output, so that prints cannot corrupt them.
  replies = os.fdopen(os.dup(1), 'w', encoding='ascii')
  null = os.open(os.devnull, os.O_RDWR)
  os.dup2(null, 1)
  logging.disable(logging.CRITICAL)
  symbolic.warm_up()
  os.dup2(null, 2)
  gc.collect()
  gc.freeze()  # So that a child's collector does not touch, and copy, every inherited page.

  def reply(message: dict) -> None:
    replies.write(json.dumps(message) + '\n')
    replies.flush()

  reply({'outcome': 'ready'})
  for line in sys.stdin.buffer:
    reply(decide(json.loads(line)))


if __name__ == '__main__':
  main()
