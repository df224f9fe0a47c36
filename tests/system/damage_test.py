"""Corrupt files, a full disk, a diverging loss, a replaced reference."""

import contextlib
import ctypes
import os
import pathlib
import re
import resource
import shutil
import signal

import pytest

from jaxrl_llm.training import checkpoints
from tests.runs import records_test
from tests.system import running


def _flip(folder: pathlib.Path) -> None:
  """Inverts the bytes in the middle of the largest file of arrays."""
  path = max((folder / 'state').rglob('*'), key=lambda p: p.is_file() and p.stat().st_size)
  content = bytearray(path.read_bytes())
  middle = len(content) // 2
  content[middle : middle + 16] = bytes(255 - byte for byte in content[middle : middle + 16])
  path.write_bytes(content)


def test_a_corrupt_checkpoint_is_skipped_with_a_warning(runner, whole, tmp_path):
  workdir = running.copy(whole.workdir, tmp_path / 'run')
  folder = workdir / 'checkpoints' / 'a_star_po'
  assert {path.name for path in folder.iterdir()} == {'9', '10'}
  _flip(folder / '10')
  done = runner.finish(workdir)
  assert done.returncode == 0, done.stderr
  warnings = [line for line in done.stderr.splitlines() if line.startswith('warning: ')]
  assert len(warnings) == 1 and 'checkpoint 10 is corrupt' in warnings[0]
  assert 'continuing from step 9' in warnings[0]
  running.assert_same(workdir, whole.workdir)


def test_corruption_of_all_checkpoints_is_one_line_and_no_data_are_lost(runner, whole, tmp_path):
  workdir = running.copy(whole.workdir, tmp_path / 'run')
  for name in ('9', '10'):
    _flip(workdir / 'checkpoints' / 'a_star_po' / name)
  before = {p: p.read_bytes() for p in workdir.glob('*.jsonl')}
  running.assert_one_line(
      runner.finish(workdir), 'every checkpoint in ', ' is corrupt (steps 9, 10',
      'remove the folder to start over')
  assert {p: p.read_bytes() for p in workdir.glob('*.jsonl')} == before
  # Following the advice of the line restarts stage 2, with the same results.
  shutil.rmtree(workdir / 'checkpoints' / 'a_star_po')
  assert runner.finish(workdir).returncode == 0
  running.assert_same(workdir, whole.workdir)


@contextlib.contextmanager
def _small_disk(folder: pathlib.Path):
  """A disk of 2 MiB at `folder`, or None where this process may not mount one."""
  folder.mkdir()
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.mount(b'tmpfs', os.fsencode(folder), b'tmpfs', 0, b'size=2m'):
    yield None
    return
  try:
    yield folder
  finally:
    libc.umount2(os.fsencode(folder), 2)  # Lazily: the disk is no longer needed.


def _fill(folder: pathlib.Path, *, leave: int) -> pathlib.Path:
  disk = os.statvfs(folder)
  filler = folder / 'filler'
  filler.write_bytes(bytes(max(disk.f_bavail * disk.f_frsize - leave, 0)))
  return filler


@pytest.mark.parametrize('room', [0, 24_000], ids=['at a line', 'at a checkpoint'])
def test_a_full_disk_is_one_line_and_no_data_are_lost(runner, whole, tmp_path, room):
  with _small_disk(tmp_path / 'disk') as disk:
    workdir = (disk or tmp_path) / 'run'
    _at_step_six(whole.workdir, workdir)
    if disk:
      filler = _fill(disk, leave=room)
      done = runner.finish(workdir)
      filler.unlink()
    else:  # A limit on file sizes makes the same writes fail.
      limit = (workdir / 'metrics.jsonl').stat().st_size + 100
      limits = resource.getrlimit(resource.RLIMIT_FSIZE)
      resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
      try:
        done = runner.finish(workdir)
      finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    running.assert_one_line(done)
    # The save in the background and the next line compete for the last bytes: either may fail.
    assert not disk or re.search(
        'error: the disk is full; (the last complete checkpoint|what was complete) is kept',
        done.stderr)
    assert '6' in os.listdir(workdir / 'checkpoints' / 'a_star_po')
    assert not (workdir / 'results.json').exists()

    if room:
      again = runner.finish(workdir)  # The disk is no longer full.
      assert again.returncode == 0, again.stderr
      running.assert_same(workdir, whole.workdir)


def _at_step_six(whole: pathlib.Path, workdir: pathlib.Path) -> None:
  """Copies the run of the fixture `at_six`, whose newest checkpoint is that of step 6."""
  source = whole.parent / 'at_six'
  if not source.exists():
    pytest.fail('the fixture at_six did not run')
  # The next start would gain space by removing the partial files of the kill.
  shutil.copytree(source, workdir, ignore=shutil.ignore_patterns('*.orbax-checkpoint-tmp*'))


@pytest.fixture(scope='module', autouse=True)
def at_six(runner, whole):
  """A run that died while the third checkpoint of stage 2 was written."""
  folder = whole.workdir.parent / 'at_six'
  done = runner.finish(folder, '--config.policy_init_from=', die=['checkpoint', 7])
  assert done.returncode == -signal.SIGKILL
  assert '6' in os.listdir(folder / 'checkpoints' / 'a_star_po')
  return folder


def test_diverging_fine_tuning_stops_before_it_saves(runner, tmp_path):
  workdir = tmp_path / 'run'
  done = runner.finish(
      workdir, '--config.sft.optimizer.learning_rate=1e30', '--config.sft.save_every=2',
      '--config.sft.log_every=30', experiment='sft')
  running.assert_one_line(done, 'must be finite, got nan at step ')
  # No line was due between steps 0 and 30, but no diverged state was saved.
  step = int(done.stderr.partition('at step ')[2].partition(';')[0])
  assert step < 30
  saved = [int(name) for name in os.listdir(workdir / 'checkpoints' / 'sft')]
  assert all(number <= step for number in saved)
  advice = f'the checkpoint of step {max(saved)} is kept' if saved else 'no checkpoint was saved'
  assert advice in done.stderr
  assert not (workdir / 'params').exists()


def test_diverging_stage_2_stops_with_the_step_and_keeps_the_last_checkpoint(
    runner, whole, tmp_path
):
  workdir = tmp_path / 'run'
  done = runner.finish(
      workdir, f'--config.policy_init_from={whole.workdir / "params"}', '--config.save_every=1',
      '--config.optimizer.learning_rate=1e30')
  running.assert_one_line(done, ' must be finite, got nan at step 1; ',
                          'the checkpoint of step 1 is kept')
  assert os.listdir(workdir / 'checkpoints' / 'a_star_po') == ['1']
  # Starting again ends with the same line: the bad step was not saved.
  again = runner.finish(
      workdir, f'--config.policy_init_from={whole.workdir / "params"}', '--config.save_every=1',
      '--config.optimizer.learning_rate=1e30')
  assert again.stderr.splitlines()[-1] == done.stderr.splitlines()[-1]


def test_samples_and_checkpoints_of_another_reference_are_refused(runner, whole, tmp_path):
  other = tmp_path / 'other'
  assert runner.finish(other, '--config.seed=1', experiment='sft').returncode == 0
  workdir = running.copy(whole.workdir, tmp_path / 'run')
  shutil.rmtree(workdir / 'params')
  shutil.copytree(other / 'params', workdir / 'params')
  running.assert_one_line(
      runner.finish(workdir), 'made_from.seed of the parameters at ', 'is 1, this run has 0')

  # The samples are also refused if the parameters claim to be of this seed.
  document = workdir / 'params' / 'document' / 'metadata'
  document.write_text(document.read_text().replace('"seed": 1', '"seed": 0'))
  checkpoints._write_checksums(workdir / 'params')
  replaced = running.results(other)['fingerprint']
  original = running.results(whole.workdir)['fingerprint/reference']
  running.assert_one_line(
      runner.finish(workdir), 'stage1.jsonl holds samples of something else',
      f"reference is '{original}' there, '{replaced}' here")

  # The checkpoint is also refused if the samples claim to be of the other reference.
  records_test.rewrite(workdir / 'stage1.jsonl', reference=replaced)
  running.assert_one_line(
      runner.finish(workdir), 'the checkpoint was trained against the reference',
      original, replaced, 'give another --workdir')


def test_logs_that_were_changed_after_the_end_of_a_run_are_named(whole, tmp_path):
  workdir = running.copy(whole.workdir, tmp_path / 'run', complete=True)
  for name in ('metrics.jsonl', 'samples.jsonl', 'stage1.jsonl'):
    path = workdir / name
    content = path.read_bytes()
    path.write_bytes(content.replace(b'0', b'1', 1))
    running.assert_one_line(
        running.refuse(workdir), name, 'manifest.json', 'give another --workdir')
    path.write_bytes(content)
