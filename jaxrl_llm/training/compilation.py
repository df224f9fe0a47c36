"""Says on stderr what is compiled, if it takes long: otherwise a run is silent for minutes."""

import contextlib
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

# Events of `jax.monitoring`: the program is lowered and XLA begins; XLA is done.
_BEGIN_EVENT = '/jax/core/compile/jaxpr_to_mlir_module_duration'
_END_EVENT = '/jax/core/compile/backend_compile_duration'


@contextlib.contextmanager
def announced(*, after_seconds: float = 5.0, stream: TextIO | None = None) -> Iterator[None]:
  """Inside the block, announces each compilation that takes longer than `after_seconds`.

  Nothing is announced in a program that has not imported JAX before the block.

  Args:
    after_seconds: time after which a compilation is announced.
    stream: where to write; stderr by default.
  """
  if 'jax' not in sys.modules:  # Such as a program that reads only results.
    yield
    return
  jax = sys.modules['jax']

  pending: dict[str, tuple[threading.Timer, float]] = {}

  def write(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # A closed terminal.
      print(text, file=stream or sys.stderr, flush=True)

  def listen(event: str, duration: float, **details: Any) -> None:
    if event not in (_BEGIN_EVENT, _END_EVENT):
      return

    name = re.sub(r'^jit\((.*)\)$', r'\1', str(details.get('fun_name', 'a program')))
    timer, began = pending.pop(name, (None, 0.0))
    if timer is not None:
      timer.cancel()
    if event == _BEGIN_EVENT:
      timer = threading.Timer(after_seconds, write, [f'compiling {name} (first call) ...'])
      timer.daemon = True
      pending[name] = timer, time.monotonic()
      timer.start()
    elif timer is not None and time.monotonic() - began >= after_seconds:
      write(f'compiled {name} in {duration:.0f} s')

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
    for timer, _ in pending.values():
      timer.cancel()
