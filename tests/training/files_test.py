"""Atomic files and directories, and which temporary files a later process removes."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from jaxrl_llm.training import files

HERE = files._host()
ELSEWHERE = f'{int(HERE, 16) ^ 1:08x}'
linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')


@pytest.fixture(scope='module')
def dead():
  """The PID of a process that has ended."""
  process = subprocess.Popen([sys.executable, '-c', ''])
  process.wait()
  return process.pid


@pytest.fixture(scope='module')
def other():
  """Another process, alive."""
  with subprocess.Popen(['sleep', '60']) as process:
    yield process
    process.kill()


def _plant(path, *, directory=False):
  path.parent.mkdir(parents=True, exist_ok=True)
  if directory:
    (path / 'state' / 'd').mkdir(parents=True)
    (path / 'state' / 'd' / 'bytes').write_bytes(b'half')
  else:
    path.write_bytes(b'half')
  return path


def _names(folder):
  return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*'))


def _written_by(path, host, pid, start=0):
  return path.with_name(f'.{path.name}.{host}-{pid}-{start}.tmp')


def test_what_the_dead_left_is_removed_at_any_depth(tmp_path, dead):
  for name in ('wall_seconds.json', 'seed3/arms/rebel.json', 'figures/a.png', 'a.b/.c', 'a\nb'):
    _plant(_written_by(tmp_path / name, HERE, dead, 17))
  for name in (
      '.wall_seconds.json.{}.tmp', '.accuracy_by_split.csv.{}.tmp', 'round1/pairs.jsonl.{}.tmp'):
    _plant(tmp_path / name.format(dead))  # As earlier versions named them.
  reference = _written_by(tmp_path / 'seed0' / 'reference', HERE, dead)
  _plant(reference, directory=True)
  _plant(reference.with_name(f'{reference.name}.orbax-checkpoint-tmp'), directory=True)
  _plant(tmp_path / f'seed1/.reference.{dead}.tmp.orbax-checkpoint-tmp', directory=True)
  _plant(tmp_path / f'seed1/.reference.{dead}.tmp.orbax-checkpoint-tmp-1700', directory=True)
  _plant(tmp_path / '.huge.9999999999.tmp')  # No system has such a PID.

  files.remove_leftovers(tmp_path)

  assert _names(tmp_path) == [
      'a.b', 'figures', 'round1', 'seed0', 'seed1', 'seed3', 'seed3/arms']


def test_what_is_not_ours_stays(tmp_path, dead):
  for name in (
      'results.json', 'metrics.jsonl', f'notes.{dead}.tmp', f'.notes.{dead}', f'.{dead}.tmp',
      '.notes.tmp', '.notes.0.tmp', f'.notes.{dead}.tmp.bak', f'.notes.{dead}.old',
      f'.notes.{HERE}-{dead}.tmp', f'.notes.{HERE.upper()}x-{dead}-1.tmp', f'.notes.-{dead}.tmp',
      f'.notes.{dead}x.tmp', f'x.jsonl.{dead}.old', 'a.tmp', '12.orbax-checkpoint-tmp'):
    _plant(tmp_path / name)
  before = _names(tmp_path)
  files.remove_leftovers(tmp_path)
  assert _names(tmp_path) == before


def test_files_of_live_processes_stay(tmp_path, other):
  own = files.temporary_path(tmp_path / 'mine.json')
  theirs = _written_by(tmp_path / 'b' / 'theirs.json', HERE, other.pid, _start(other.pid))
  saving = _written_by(tmp_path / 'params', HERE, other.pid, _start(other.pid))
  saving = saving.with_name(f'{saving.name}.orbax-checkpoint-tmp')
  remaining = [
      own, theirs, tmp_path / f'.earlier.{other.pid}.tmp', tmp_path / f'.earlier.{os.getpid()}.tmp']
  for path in remaining:
    _plant(path)
    os.utime(path, (0, 0))  # However old: its writer may have been suspended.
  _plant(saving, directory=True)
  before = _names(tmp_path)

  files.remove_leftovers(tmp_path)
  files.remove_leftovers_of(theirs.with_name('theirs.json'))

  assert _names(tmp_path) == before


def _start(pid):
  return files._start_time(pid)


@linux
def test_start_time_matches_the_kernels(other):
  # Field 22 of /proc/PID/stat, counted from 1 (proc_pid_stat(5)); 'sleep' has no spaces.
  assert _start(other.pid) == int(pathlib.Path(f'/proc/{other.pid}/stat').read_text().split()[21])
  assert _start(os.getpid()) > 0
  assert files.temporary_path('x/y').name == f'.y.{HERE}-{os.getpid()}-{_start(os.getpid())}.tmp'


@linux
def test_a_pid_that_is_used_again_is_not_the_writer(tmp_path, other):
  _plant(_written_by(tmp_path / 'a', HERE, other.pid, _start(other.pid) - 1))
  # In a container the next process often has the very PID of the one before.
  _plant(_written_by(tmp_path / 'b', HERE, os.getpid(), _start(os.getpid()) - 1))
  files.remove_leftovers(tmp_path)
  assert not _names(tmp_path)


@linux
def test_a_killed_process_that_nobody_waited_for_is_dead(tmp_path):
  process = subprocess.Popen(['sleep', '60'])
  path = _plant(_written_by(tmp_path / 'a', HERE, process.pid, _start(process.pid)))
  process.kill()
  for _ in range(500):
    if pathlib.Path(f'/proc/{process.pid}/stat').read_text().rpartition(')')[2].split()[0] == 'Z':
      break
    time.sleep(0.01)
  files.remove_leftovers(tmp_path)
  process.wait()
  assert not path.exists()


def test_without_proc_a_pid_that_answers_is_alive(tmp_path, dead, other, monkeypatch):
  # As on macOS, where the start is not known.
  real = pathlib.Path.read_text
  monkeypatch.setattr(pathlib.Path, 'read_text', lambda self, *args, **named: (
      (_ for _ in ()).throw(FileNotFoundError()) if str(self).startswith('/proc')
      else real(self, *args, **named)))
  assert (_start(other.pid), _start(os.getpid()), _start(1), _start(dead)) == (0, 0, 0, None)
  assert files.temporary_path('y').name == f'.y.{HERE}-{os.getpid()}-0.tmp'
  remaining = _plant(_written_by(tmp_path / 'a', HERE, other.pid, 5))
  gone = _plant(_written_by(tmp_path / 'b', HERE, dead, 5))
  files.remove_leftovers(tmp_path)
  assert remaining.exists() and not gone.exists()
  monkeypatch.setattr(os, 'kill', lambda *_: (_ for _ in ()).throw(PermissionError(1, 'x')))
  assert _start(other.pid) == 0  # Alive, and another user's.


def test_another_machine_is_given_a_day(tmp_path, dead):
  fresh = _plant(_written_by(tmp_path / 'fresh', ELSEWHERE, dead))
  old = _plant(_written_by(tmp_path / 'old', ELSEWHERE, dead))
  growing = _plant(_written_by(tmp_path / 'growing', ELSEWHERE, dead), directory=True)
  left = _plant(_written_by(tmp_path / 'left', ELSEWHERE, dead), directory=True)
  days_ago = lambda days: (time.time() - days * 86_400,) * 2
  os.utime(fresh, days_ago(0.9))
  for path in (old, growing, left, *left.rglob('*')):
    os.utime(path, days_ago(1.1))  # What changes in `growing` is deep inside.

  files.remove_leftovers(tmp_path)

  assert fresh.exists() and (growing / 'state' / 'd' / 'bytes').exists()
  assert not old.exists() and not left.exists()


def test_links_are_neither_followed_nor_removed(tmp_path, dead):
  outside = tmp_path / 'outside'
  _plant(_written_by(outside / 'a', HERE, dead))
  workdir = tmp_path / 'run'
  workdir.mkdir()
  (workdir / 'linked').symlink_to(outside)
  _written_by(workdir / 'b', HERE, dead).symlink_to(outside)
  inside = _plant(_written_by(workdir / 'params', HERE, dead), directory=True)
  (inside / 'linked').symlink_to(outside)
  before = _names(outside)

  files.remove_leftovers(workdir)

  assert _names(outside) == before and not inside.exists()
  assert sorted(path.name for path in workdir.iterdir()) == [
      _written_by(workdir / 'b', HERE, dead).name, 'linked']


def test_what_cannot_be_removed_is_left_without_an_error(tmp_path, dead, monkeypatch):
  _plant(_written_by(tmp_path / 'a', HERE, dead))
  _plant(_written_by(tmp_path / 'b', HERE, dead), directory=True)
  refuse = lambda *_, **__: (_ for _ in ()).throw(PermissionError(1, 'Operation not permitted'))
  with monkeypatch.context() as patch:
    for name in ('unlink', 'remove', 'rmdir', 'rename'):
      patch.setattr(os, name, refuse)
    files.remove_leftovers(tmp_path)
  assert len(list(tmp_path.iterdir())) == 2
  files.remove_leftovers(tmp_path / 'absent')


def test_a_write_removes_what_the_dead_left_of_the_same_file(tmp_path, dead, other):
  _plant(_written_by(tmp_path / 'a.json', HERE, dead))
  remaining = [
      _plant(_written_by(tmp_path / 'a.json', HERE, other.pid, _start(other.pid))),
      _plant(_written_by(tmp_path / 'other.json', HERE, dead))]
  with files.replacing(tmp_path / 'a.json') as temporary:
    temporary.write_text('whole')
    assert not (tmp_path / 'a.json').exists()
  assert (tmp_path / 'a.json').read_text() == 'whole'
  assert _names(tmp_path) == sorted(['a.json', *(path.name for path in remaining)])


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
  path = tmp_path / 'a'
  path.write_text('old')
  for error in (ValueError, KeyboardInterrupt):
    with pytest.raises(error), files.replacing(path) as temporary:
      temporary.write_text('new')
      raise error
  assert path.read_text() == 'old' and _names(tmp_path) == ['a']


class _Killed(BaseException):
  pass


@pytest.mark.parametrize('renames', range(4))
def test_a_directory_that_is_replaced_survives_a_kill(tmp_path, dead, renames, monkeypatch):
  """Killed before the first, second or third rename, or after it."""
  target = tmp_path / 'params'
  _plant(target / 'old')
  monkeypatch.setattr(files, 'temporary_path', lambda path: _written_by(path, HERE, dead))
  temporary = files.temporary_path(target)
  _plant(temporary / 'new')
  real, left = os.rename, [renames]

  def rename(*paths):
    if not left[0]:
      raise _Killed
    left[0] -= 1
    real(*paths)

  with monkeypatch.context() as patch, contextlib.suppress(_Killed):
    patch.setattr(os, 'rename', rename)
    patch.setattr(files, '_remove', lambda _: (_ for _ in ()).throw(_Killed))
    files.replace_directory(temporary, target)
  assert len(list(tmp_path.iterdir())) == 2

  files.remove_leftovers(tmp_path)
  assert _names(tmp_path) == ['params', 'params/new' if renames > 1 else 'params/old']


def test_a_directory_that_was_removed_in_part_is_not_put_back(tmp_path, dead, monkeypatch):
  target = tmp_path / 'params'
  _plant(target / 'old')
  temporary = _plant(_written_by(target, HERE, dead), directory=True)

  def die_within(path):
    (path / 'old').unlink()
    raise _Killed

  with monkeypatch.context() as patch, contextlib.suppress(_Killed):
    patch.setattr(files, '_remove', die_within)
    files.replace_directory(temporary, target)
  shutil.rmtree(target)  # By the user, who wants it made again.
  files.remove_leftovers(tmp_path)
  assert not _names(tmp_path)
