"""Directory of compiled programs, so that the second start of a program compiles nothing.

JAX's own cache (https://docs.jax.dev/en/latest/persistent_compilation_cache.html) is off by
default, and skips programs that compile in under a second. A program read back is the machine code
that was compiled before, so results do not change by a bit. On another processor that code could
differ from what would be compiled there, or fail: each kind of processor has its own directory.

JAXRL_LLM_COMPILE_CACHE=DIR sets the parent directory, and JAXRL_LLM_COMPILE_CACHE=off turns the
cache off. A cache that is configured for JAX itself (JAX_COMPILATION_CACHE_DIR) is used as it is.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import pathlib
import sys
import time

from jaxrl_llm.runs import processor

VARIABLE = 'JAXRL_LLM_COMPILE_CACHE'
OFF = 'off'
_MOST_BYTES = 4 * 2**30
_SECONDS_TO_WRITE = 60  # An entry that is incomplete for longer was left by a killed process.


def use() -> pathlib.Path | None:
  """Configures JAX, if it is imported, to keep compiled programs; call it before compiling.

  A program that imports JAX later first chooses its cores or devices, to measure something: it
  compiles everything.

  Returns:
    The directory; None if the cache is off, configured elsewhere or cannot be written.
  """
  path, jax = directory(), sys.modules.get('jax')
  if path is None or jax is None or os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    return None
  try:
    path.mkdir(parents=True, exist_ok=True)
    remove_incomplete(path)
  except OSError:
    return None  # Such as a home directory that is read-only: everything is compiled.

  options = {
      'jax_compilation_cache_dir': str(path),
      'jax_persistent_cache_min_compile_time_secs': 0,
      'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  if importlib.util.find_spec('filelock'):
    # JAX then also locks the directory: no process reads what another one is writing.
    options['jax_compilation_cache_max_size'] = _MOST_BYTES
  for name, value in options.items():
    if name.upper() not in os.environ:  # Otherwise the user has chosen.
      jax.config.update(name, value)
  return path


def directory() -> pathlib.Path | None:
  """Returns the directory for this processor, or None if the cache is off."""
  chosen = os.environ.get(VARIABLE, '')
  if chosen == OFF:
    return None
  parent = pathlib.Path(chosen) if chosen else _user_directory()
  identity = json.dumps(processor.fields(), sort_keys=True)
  return parent / hashlib.sha256(identity.encode()).hexdigest()[:12]


def remove_incomplete(path: pathlib.Path) -> None:
  """Removes programs that a killed process did not finish writing.

  JAX writes KEY-cache, then KEY-atime, and stops evicting old programs once one lacks the latter.
  """
  for program in path.glob('*-cache'):
    time_file = program.with_name(program.name.removesuffix('-cache') + '-atime')
    with contextlib.suppress(FileNotFoundError):
      age = time.time() - program.stat().st_mtime
      if not time_file.exists() and age > _SECONDS_TO_WRITE:
        program.unlink()


def _user_directory() -> pathlib.Path:
  parent = os.environ.get('XDG_CACHE_HOME') or pathlib.Path('~/.cache').expanduser()
  return pathlib.Path(parent) / 'jaxrl_llm' / 'programs'
