"""Signals that end a program: each as Ctrl-C does, and none is lost."""

import functools
import signal
import sys
import threading
from typing import Any

from jaxrl_llm.training import loop


def end_as_ctrl_c() -> None:
  """Lets SIGTERM (preemption) and SIGHUP (a closed terminal) end the process as Ctrl-C does.

  A program that can save first handles them itself (`loop.Stopper`). Under nohup, SIGHUP is ignored
  and stays so. A repeated SIGTERM or SIGHUP is ignored: senders repeat them.
  """
  received = loop.early_signals
  received.clear()

  def handle(number: int, frame: Any) -> None:
    is_first = not received
    received.append(number)
    if number == signal.SIGHUP:
      loop.leave_terminal()
    if is_first or number == signal.SIGINT:
      signal.default_int_handler(number, frame)

  _deliver_discarded_signals()
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
      signal.signal(number, handle)


@functools.cache
def _deliver_discarded_signals() -> None:
  """Delivers a signal again whose exception a callback discarded; installed once.

  JAX, for example, runs a callback at each garbage collection.
  """
  previous = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
      previous(unraisable)
      return
    number = loop.early_signals.pop() if loop.early_signals else signal.SIGINT
    loop.early_signals.clear()
    # Later, outside the callback; a real signal, because that ends a system call too.
    timer = threading.Timer(
        0.05, signal.pthread_kill, [threading.main_thread().ident, number])
    timer.daemon = True
    timer.start()

  sys.unraisablehook = hook
