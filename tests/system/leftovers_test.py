"""kill -9 before any rename: the next start removes temporary files and writes the same files."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap

import pytest

from jaxrl_llm.runs import launch

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# A program without JAX that writes files in every way and dies before its n-th rename.
BINARY = textwrap.dedent('''
    """Writes files."""
    import os, signal
    import numpy as np
    from jaxrl_llm.data import jsonl
    from jaxrl_llm.runs import arms, launch
    from jaxrl_llm.training import files, metrics

    def main(run):
      folder = run.workdir / 'seed1'
      arm = arms.finished(folder / 'arms' / 'a.npz', {}, lambda: {'x': np.arange(3)})
      run.save_clock()
      params = folder / 'params'  # Written and replaced by each start.
      temporary = files.temporary_path(params)
      temporary.mkdir()
      metrics.write_json_atomic(temporary / 'x.json', arm)
      files.replace_directory(temporary, params)
      jsonl.write_jsonl(folder / 'pairs.jsonl', [{'x': int(x)} for x in arm['x']])
      metrics.write_csv_atomic(folder / 'accuracy_by_split.csv', ['x'], arm['x'][:, None])
      metrics.write_text_atomic(run.table_path, '| a | table |')
      launch.finish(run, {'experiment': run.experiment, 'seed': run.seed})

    left = int(os.environ.get('DIE', 0))

    def dying(rename):
      def renamed(*paths):
        global left
        left -= 1
        if not left:
          os.kill(os.getpid(), signal.SIGKILL)
        rename(*paths)
      return renamed

    os.replace, os.rename = dying(os.replace), dying(os.rename)
    if __name__ == '__main__':
      launch.run(main, default_config='config.py')
''')
CONFIG = textwrap.dedent('''
    import dataclasses

    @dataclasses.dataclass
    class Config:
      seed: int = 0

      def validate(self):
        pass

      def memory(self):
        return {}

    def get_config():
      return Config()
''')


@pytest.fixture(scope='module')
def binary(tmp_path_factory):
  folder = tmp_path_factory.mktemp('binary')
  (folder / 'writing.py').write_text(BINARY)
  (folder / 'config.py').write_text(CONFIG)

  def run(workdir, die=0):
    return subprocess.run(
        [sys.executable, 'writing.py', f'--workdir={workdir}'], cwd=folder, text=True,
        env=os.environ | {'PYTHONPATH': str(REPOSITORY), 'DIE': str(die)}, capture_output=True)

  return run


def _contents(workdir):
  """Bytes by path, except for the clock."""
  return {path.relative_to(workdir).as_posix(): path.read_bytes() if path.is_file() else b''
          for path in workdir.rglob('*') if path.name != 'wall_seconds.json'}


def _temporary(workdir):
  return [name for name in _contents(workdir) if '.tmp' in name or '.old' in name]


def _writers(workdir):
  return {re.search(r'\.([0-9a-f]{8}-\d+-\d+)\.(tmp|old)', name)[1] for name in _temporary(workdir)}


def test_a_run_killed_before_any_rename_leaves_no_temporary_files(binary, tmp_path):
  assert binary(tmp_path / 'whole').returncode == 0
  expected = _contents(tmp_path / 'whole')
  assert 'seed1/params/x.json' in expected and not _temporary(tmp_path / 'whole')

  workdir, kills = tmp_path / 'run', 0
  # Each start is killed one rename later than the last, whose temporary files it removes.
  while (done := binary(workdir, die=kills + 1)).returncode == -signal.SIGKILL:
    kills += 1
    assert len(_writers(workdir)) == 1, _temporary(workdir)
    assert kills < 20
  assert done.returncode == 0, done.stderr
  assert kills >= 9
  assert _contents(workdir) == expected


def test_a_complete_run_is_cleaned_and_another_config_is_not(binary, tmp_path):
  workdir = tmp_path / 'run'
  process = subprocess.Popen([sys.executable, '-c', ''])
  process.wait()
  (workdir / f'.params.{process.pid}.tmp').mkdir(parents=True)
  assert binary(workdir).returncode == 0
  expected = _contents(workdir)
  assert not _temporary(workdir)
  stale = workdir / 'seed1' / f'.reference.{process.pid}.tmp.orbax-checkpoint-tmp'
  (stale / 'state').mkdir(parents=True)
  live = workdir / f'.live.{os.getpid()}.tmp'
  live.write_text('of a live process')

  config = (workdir / 'config.json').read_text()
  other = json.loads(config)
  other['config']['seed'] = 9
  (workdir / 'config.json').write_text(json.dumps(launch.with_digest(other)))
  done = binary(workdir)
  assert done.returncode == 2 and 'config.json is of another config' in done.stderr
  assert stale.exists()
  (workdir / 'config.json').write_text(config)
  done = binary(workdir)
  assert done.returncode == 0 and 'This run is complete' in done.stdout

  assert live.read_text() == 'of a live process'
  live.unlink()
  assert _contents(workdir) == expected
