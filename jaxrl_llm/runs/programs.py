"""Runs a program in a process of its own, for studies that run several."""

import signal
import subprocess
from collections.abc import Sequence
from typing import Any

from jaxrl_llm.training import loop


def run(command: Sequence[str]) -> int:
  """Runs a program to completion; forwards SIGINT, SIGTERM and SIGHUP and waits for it to save.

  Ctrl-C in a terminal reaches the program too. It is forwarded as SIGTERM, because the second
  SIGINT kills a program that is saving (`loop.Stopper`).

  Args:
    command: the program and its arguments.

  Returns:
    The exit status; negative if a signal killed the program.

  Raises:
    KeyboardInterrupt: this process or the program was interrupted; the program has ended.
  """
  received: list[int] = []
  process: subprocess.Popen | None = None

  def forward(number: int, frame: Any) -> None:
    del frame
    received.append(number)
    if number == signal.SIGHUP:
      loop.leave_terminal()
    if process is not None:
      process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

  previous = {}
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is not signal.SIG_IGN:  # As under nohup.
      previous[number] = signal.signal(number, forward)

  try:
    process = subprocess.Popen(command)
    if received:  # While it started.
      process.terminate()
    status = process.wait()
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)

  if received or status in (loop.INTERRUPTED, -signal.SIGINT):
    raise KeyboardInterrupt
  return status
