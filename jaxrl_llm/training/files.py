"""Atomic writes of files and directories, and cleanup after killed processes.

Everything is written under a temporary name in the same directory and renamed when complete:

  .NAME.HOST-PID-START.tmp   NAME while it is being written (Orbax appends .orbax-checkpoint-tmp)
  .NAME.HOST-PID-START.old   the directory that NAME is about to replace

HOST is a hash that identifies the machine, PID the process and START its start time. A killed
process cannot remove its temporary files; a later process removes them if the writer is dead:

  - HOST is this machine: no such PID is alive, or it now belongs to a process with another START.
  - HOST is another machine (shared file system) or another container, whose processes cannot be
    checked: nothing in the file or directory has changed for a day.
  - .NAME.PID.tmp, written by earlier versions: treated as a process of this machine.

Other names are never touched, links are not followed, and anything that cannot be removed stays.

This module imports only the standard library: the launcher uses it before flags are parsed.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import platform
import re
import shutil
import time
from collections.abc import Iterator

CHECKSUMS = 'checksums.json'  # In directories of saved parameters; see `checkpoints`.

_FOREIGN_SECONDS = 24 * 60 * 60.0  # How long another machine's file is left alone.

_TEMPORARY = re.compile(
    r'(?:\.(?P<name>.+)|.+\.jsonl)\.'  # Earlier versions wrote NAME.jsonl.PID.tmp.
    r'(?:(?P<host>[0-9a-f]{8})-(?P<pid>[1-9]\d{0,9})-(?P<start>\d+)|(?P<earlier_pid>[1-9]\d{0,9}))'
    r'\.(?P<kind>tmp|old)(?:\.orbax-checkpoint-tmp.*)?', re.DOTALL)


def temporary_path(path: str | os.PathLike) -> pathlib.Path:
  """Returns the temporary name, in the same directory, under which this process writes `path`."""
  path, pid = pathlib.Path(path), os.getpid()
  return path.with_name(f'.{path.name}.{_host()}-{pid}-{_start_time(pid) or 0}.tmp')


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Writes a file atomically.

  Args:
    path: the file to write; its directory must exist.

  Yields:
    The temporary path to write to. After the block it is synced to disk and renamed to `path`; if
    the block raises, it is removed.

  Raises:
    OSError: if it cannot be written; an existing file at `path` is then unchanged.
  """
  remove_leftovers_of(path)
  temporary = temporary_path(path)

  try:
    yield temporary
    sync(temporary)
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def atomic_directory(directory: pathlib.Path) -> Iterator[pathlib.Path]:
  """Creates a temporary directory that replaces `directory` once it is complete and on disk.

  Leftovers of killed processes are removed first.

  Yields:
    The temporary directory, next to `directory`; it is removed if the block raises.

  Raises:
    OSError: the directory cannot be written; an existing one is then unchanged.
  """
  directory.parent.mkdir(parents=True, exist_ok=True)
  remove_leftovers_of(directory)
  temporary = temporary_path(directory)
  temporary.mkdir()

  try:
    yield temporary
    for path in (*temporary.rglob('*'), temporary):
      sync(path)
    replace_directory(temporary, directory)
    sync(directory.parent)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def replace_directory(temporary: pathlib.Path, directory: pathlib.Path) -> None:
  """Renames a complete `temporary_path(directory)` to `directory`, which may exist.

  A kill between the two renames leaves the previous directory under its `.old` name;
  `remove_leftovers` restores it.
  """
  if not directory.exists():
    os.rename(temporary, directory)
    return

  old = temporary.with_suffix('.old')
  os.rename(directory, old)
  os.rename(temporary, directory)
  os.rename(old, temporary)  # An .old directory is always complete: it may be restored.
  _remove(temporary)


def remove_leftovers(workdir: str | os.PathLike) -> None:
  """Removes leftovers of dead processes anywhere below a directory; never raises OSError."""
  for folder, folders, names in os.walk(workdir):
    for name in (*folders, *names):
      _remove_if_stale(pathlib.Path(folder, name))


def remove_leftovers_of(path: str | os.PathLike) -> None:
  """Removes leftovers of dead processes that were writing `path`; never raises OSError."""
  path = pathlib.Path(path)
  with contextlib.suppress(OSError):
    for name in os.listdir(path.parent):
      if name.startswith(f'.{path.name}.'):
        _remove_if_stale(path.with_name(name))


def sync(path: pathlib.Path) -> None:
  """Waits until a file or directory is on disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _remove_if_stale(path: pathlib.Path) -> None:
  match = _TEMPORARY.fullmatch(path.name)
  if match is None:
    return

  with contextlib.suppress(OSError):
    is_old = match['kind'] == 'old'
    if path.is_symlink() or (is_old and not (match['name'] and path.is_dir())):
      return  # Not ours: we write no links, and rename only directories to .old.
    if not _is_stale(path, match):
      return
    if is_old and not os.path.lexists(path.with_name(match['name'])):
      os.rename(path, path.with_name(match['name']))
    else:
      _remove(path)


def _is_stale(path: pathlib.Path, match: re.Match) -> bool:
  """Returns whether the writer of a temporary file is dead, as far as can be known."""
  if match['host'] not in (None, _host()):
    changed = max(os.lstat(each).st_mtime for each in (path, *path.rglob('*')))
    return time.time() - changed > _FOREIGN_SECONDS

  start = _start_time(int(match['pid'] or match['earlier_pid']))
  written_at = int(match['start'] or 0)
  return start is None or (start > 0 and written_at > 0 and start != written_at)


def _remove(path: pathlib.Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


@functools.cache
def _host() -> str:
  """Returns eight hex digits that identify this machine and, in a container, its PID namespace."""
  parts = [platform.node()]
  with contextlib.suppress(OSError):
    parts.append(pathlib.Path('/etc/machine-id').read_text(errors='replace'))
  with contextlib.suppress(OSError):
    parts.append(os.readlink('/proc/self/ns/pid'))
  return hashlib.sha256('\n'.join(parts).encode(errors='replace')).hexdigest()[:8]


def _start_time(pid: int) -> int | None:
  """Returns the start time of a process on this machine.

  Args:
    pid: positive.

  Returns:
    Clock ticks since boot (Linux), 0 if the process is alive but its start time is unknown, None
    if it is dead (including zombies).
  """
  with contextlib.suppress(OSError, ValueError, IndexError):
    text = pathlib.Path(f'/proc/{pid}/stat').read_text(errors='replace')
    fields = text.rpartition(')')[2].split()  # After the process name, which may hold anything.
    return None if fields[0] in 'ZX' else int(fields[19])

  if os.name != 'posix':
    return 0  # On Windows os.kill would end the process.
  try:
    os.kill(pid, 0)
  except (ProcessLookupError, OverflowError):
    return None
  except OSError:
    return 0  # It belongs to another user.
  return 0
