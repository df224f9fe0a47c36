"""Files and directories that appear whole or not at all, and what killed processes left of them.

Everything is written under a temporary name in the same directory and renamed when it is complete:

  .NAME.HOST-PID-START.tmp   NAME while it is written (Orbax appends .orbax-checkpoint-tmp)
  .NAME.HOST-PID-START.old   the directory that NAME is about to replace

HOST is a hash that identifies the machine, PID the process and START its start time. A process
that is killed cannot remove its temporary files; a later one does, if the writer is dead:

  - HOST is this machine: no such PID is alive, or it now belongs to a process with another START.
  - HOST is another machine (a shared file system) or another container, whose processes cannot be
    checked: nothing in it has changed for a day.
  - Earlier versions wrote .NAME.PID.tmp: taken as a process of this machine.

Nothing with any other name is touched, links are not followed, and what cannot be removed stays.

This module needs the standard library only: the launcher uses it before flags are parsed.
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

_FOREIGN_SECONDS = 24 * 60 * 60.0  # How long a file of another machine is left alone.

_TEMPORARY = re.compile(
    r'(?:\.(?P<name>.+)|.+\.jsonl)\.'  # Earlier versions wrote NAME.jsonl.PID.tmp.
    r'(?:(?P<host>[0-9a-f]{8})-(?P<pid>[1-9]\d{0,9})-(?P<start>\d+)|(?P<earlier_pid>[1-9]\d{0,9}))'
    r'\.(?P<kind>tmp|old)(?:\.orbax-checkpoint-tmp.*)?', re.DOTALL)


def temporary_path(path: str | os.PathLike) -> pathlib.Path:
  """The temporary name under which this process writes `path`; in the same directory."""
  path, pid = pathlib.Path(path), os.getpid()
  return path.with_name(f'.{path.name}.{_host()}-{pid}-{_start_time(pid) or 0}.tmp')


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Writes a file: all of it or nothing.

  Args:
    path: the file; its directory exists.

  Yields:
    The temporary path to write to. It is renamed to `path` after the block, once it is on the
    disk, and removed if the block raises.

  Raises:
    OSError: if it cannot be written; a file that was at `path` is then unchanged.
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


def replace_directory(temporary: pathlib.Path, directory: pathlib.Path) -> None:
  """Renames a complete `temporary_path(directory)` to `directory`, which may exist.

  A kill between the two renames leaves the previous directory under its `.old` name, and
  `remove_leftovers` puts it back.
  """
  if not directory.exists():
    os.rename(temporary, directory)
    return

  old = temporary.with_suffix('.old')
  os.rename(directory, old)
  os.rename(temporary, directory)
  os.rename(old, temporary)  # An .old directory is always complete: it may be put back.
  _remove(temporary)


def remove_leftovers(workdir: str | os.PathLike) -> None:
  """Removes what dead processes left anywhere below a directory; never raises OSError."""
  for folder, folders, names in os.walk(workdir):
    for name in (*folders, *names):
      _remove_if_stale(pathlib.Path(folder, name))


def remove_leftovers_of(path: str | os.PathLike) -> None:
  """Removes what dead processes left of attempts to write `path`; never raises OSError."""
  path = pathlib.Path(path)
  with contextlib.suppress(OSError):
    for name in os.listdir(path.parent):
      if name.startswith(f'.{path.name}.'):
        _remove_if_stale(path.with_name(name))


def sync(path: pathlib.Path) -> None:
  """Waits until a file or a directory is on the disk."""
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
      return  # Not ours: no link, and only directories are renamed to .old.
    if not _is_stale(path, match):
      return
    if is_old and not os.path.lexists(path.with_name(match['name'])):
      os.rename(path, path.with_name(match['name']))
    else:
      _remove(path)


def _is_stale(path: pathlib.Path, match: re.Match) -> bool:
  """Whether the process that wrote a temporary file is dead, as far as one can know."""
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
  """Eight hex digits for this machine, and for the namespace of its PIDs in a container."""
  parts = [platform.node()]
  with contextlib.suppress(OSError):
    parts.append(pathlib.Path('/etc/machine-id').read_text(errors='replace'))
  with contextlib.suppress(OSError):
    parts.append(os.readlink('/proc/self/ns/pid'))
  return hashlib.sha256('\n'.join(parts).encode(errors='replace')).hexdigest()[:8]


def _start_time(pid: int) -> int | None:
  """When a process of this machine started.

  Args:
    pid: positive.

  Returns:
    Clock ticks since boot (Linux), 0 if the process is alive and that is not known, None if it is
    dead; one that is dead and not yet waited for counts as dead.
  """
  with contextlib.suppress(OSError, ValueError, IndexError):
    text = pathlib.Path(f'/proc/{pid}/stat').read_text(errors='replace')
    fields = text.rpartition(')')[2].split()  # What follows the name, which may hold anything.
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
