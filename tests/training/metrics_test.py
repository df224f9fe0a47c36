"""Files of a run: atomic writes, JSONL that can be cut back, TensorBoard, W&B."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.training import metrics
from jaxrl_llm.types import WeightedMean


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  metrics.write_json_atomic(path, {'a': 1})
  monkeypatch.setattr(os, 'fsync', lambda _: (_ for _ in ()).throw(OSError(28, 'full')))
  with pytest.raises(OSError):
    metrics.write_json_atomic(path, {'a': 2})
  assert json.loads(path.read_text()) == {'a': 1}
  assert [p.name for p in tmp_path.iterdir()] == ['a.json']


def test_csv(tmp_path):
  metrics.write_csv_atomic(tmp_path / 'a.csv', ['x', 'y'], [(1, 'a,b'), (2.5, 'c')])
  assert (tmp_path / 'a.csv').read_text() == 'x,y\n1,"a,b"\n2.5,c\n'


def test_plain_makes_json_of_everything(tmp_path):
  value = {
      'int': np.int64(3), 'float': np.float32(0.5), 'bool': np.bool_(True), 'none': None,
      'nan': float('nan'), 'inf': -np.inf, 'array': jnp.arange(3), 'tuple': (1, 'a'),
      'path': tmp_path, 4: {'nested': np.array([[1.5, np.nan]])},
  }
  assert json.loads(json.dumps(metrics.plain(value), allow_nan=False)) == {
      'int': 3, 'float': 0.5, 'bool': True, 'none': None, 'nan': 'nan', 'inf': '-inf',
      'array': [0, 1, 2], 'tuple': [1, 'a'], 'path': str(tmp_path),
      '4': {'nested': [[1.5, 'nan']]},
  }
  with pytest.raises(ValueError, match='cannot write a set as JSON'):
    metrics.plain({'a': {1}})


def test_differences_of_two_documents():
  theirs = {'seed': 0, 'model': {'width': 8, 'depth': 2}, 'old': []}
  ours = {'seed': 1, 'model': {'width': 8, 'depth': 3}, 'new': None}
  assert list(metrics.differences(theirs, ours, 'config')) == [
      ('config.seed', 0, 1), ('config.model.depth', 2, 3), ('config.old', [], metrics.ABSENT),
      ('config.new', metrics.ABSENT, None)]
  assert not list(metrics.differences(theirs, theirs))
  assert list(metrics.differences(theirs, 5)) == [('', theirs, 5)]


def test_to_floats():
  values = metrics.to_floats({
      'a': WeightedMean(jnp.float32(3), jnp.float32(4)),
      'empty': WeightedMean(jnp.float32(0), jnp.float32(0)),
      'light': WeightedMean(jnp.float32(1), jnp.float32(0.5)),
      'only weights of 0': WeightedMean(jnp.float32(3), jnp.float32(0)),
      'b': jnp.float32(2), 'c': 1, 'd': np.float64(0.25),
      'nan': WeightedMean(jnp.float32(jnp.nan), jnp.float32(2)),
  })
  assert np.isnan(values.pop('nan'))
  assert values == {'a': 0.75, 'empty': 0.0, 'light': 2.0, 'only weights of 0': 0.0, 'b': 2.0,
                    'c': 1.0, 'd': 0.25}
  assert all(type(value) is float for value in values.values())


def test_cutting_back_removes_later_and_half_written_lines(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  file = metrics.JsonlFile(path)
  file.write({'step': 1, 'text': 'ä\n"'})
  position = file.position()
  file.write({'step': 2})
  with open(path, 'ab') as other:
    other.write(b'{"step": 3, "tra')  # Killed in the middle of a line.
  assert [record['step'] for record in metrics.read_jsonl(path)] == [1, 2]
  resumed = metrics.JsonlFile(path)
  resumed.truncate(position)
  resumed.write({'step': 2, 'again': True})
  assert metrics.read_jsonl(path) == [{'step': 1, 'text': 'ä\n"'}, {'step': 2, 'again': True}]
  assert resumed.position()[-1][0] == path.stat().st_size


def test_a_file_shorter_than_its_checkpoint_is_an_error(tmp_path):
  file = metrics.JsonlFile(tmp_path / 'metrics.jsonl')
  file.write({'step': 1})
  with pytest.raises(ValueError, match='must hold at least the 99 bytes of the last checkpoint, '
                     'got 12'):
    file.truncate([[99, '']])


def _changed(content, old, new):
  assert content.count(old) == 1
  return content.replace(old, new)


@pytest.mark.parametrize('change', [
    lambda content: _changed(content, b'"step": 3,', b'"step": 9,'),
    lambda content: _changed(content, b'{"step": 3, "x": 0.5}\n', b''),
    lambda content: _changed(content, b'{"step": 3, "x": 0.5}\n', b'{"step": 3, "x": 0.5}\n' * 2),
    lambda content: _changed(content, b'{"step": 3, "x": 0.5}', b'[]'),
])
def test_changed_lines_before_a_position_are_named_and_nothing_is_lost(tmp_path, change):
  file = metrics.JsonlFile(tmp_path / 'metrics.jsonl')
  for step in range(6):
    file.write({'step': step, 'x': 0.5})
    if step % 2:
      position = file.position()
  file.write({'step': 6, 'x': 0.5})  # After the checkpoint: nothing depends on it.
  file.close()

  content = change((tmp_path / 'metrics.jsonl').read_bytes())
  (tmp_path / 'metrics.jsonl').write_bytes(content + b'{"step": 7, "x": 0.5}\n')
  with pytest.raises(ValueError, match=r'metrics.jsonl was changed .*, in lines [35] to [3456]: '):
    metrics.JsonlFile(tmp_path / 'metrics.jsonl').truncate(position)
  assert (tmp_path / 'metrics.jsonl').read_bytes().startswith(content)


def test_positions_of_a_long_run_are_few(tmp_path):
  file = metrics.JsonlFile(tmp_path / 'metrics.jsonl')
  for step in range(80):
    file.write({'step': step})
    position = file.position()
  assert len(position) <= 50
  assert file.position() == position  # Nothing was written in between.
  again = metrics.JsonlFile(tmp_path / 'metrics.jsonl')
  again.truncate(position)
  assert again.position() == position


@pytest.mark.parametrize('line', ['[]', 'null', '5', '[' * 100_000, '"a"'])
def test_a_line_that_is_not_an_object_is_named(tmp_path, line):
  (tmp_path / 'a.jsonl').write_text('{"a": 1}\n' + line + '\n{"a": 2}\n')
  with pytest.raises(ValueError, match='a.jsonl, line 2, is not a JSON object'):
    metrics.read_jsonl(tmp_path / 'a.jsonl')


def test_broken_line_in_the_middle_is_named(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"a": 1}\n{"a"\n{"a": 2}\n')
  with pytest.raises(ValueError, match='a.jsonl, line 2, is not a JSON object'):
    metrics.read_jsonl(tmp_path / 'a.jsonl')


def _tensorboard_scalars(workdir):
  from tensorboardX import proto

  scalars = []
  for path in sorted((workdir / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:  # Records: length, its checksum, the event, its checksum.
      length = int.from_bytes(data[:8], 'little')
      event = proto.event_pb2.Event.FromString(data[12:12 + length])
      scalars += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
      data = data[16 + length:]
  return scalars


def test_writer_and_resume(tmp_path):
  writer = metrics.MetricsWriter(tmp_path)
  shown = writer.write(1, {'train/loss': WeightedMean(jnp.float32(1), jnp.float32(2))})
  assert shown == {'train/loss': 0.5}
  position = writer.position()
  writer.write(2, {'train/loss': float('nan')})
  writer.close()
  assert metrics.read_jsonl(writer.path)[1] == {'step': 2, 'train/loss': 'nan'}

  writer = metrics.MetricsWriter(tmp_path)
  writer.truncate(position)
  writer.write(2, {'train/loss': 0.25})
  writer.close()
  assert metrics.read_jsonl(writer.path) == [
      {'step': 1, 'train/loss': 0.5}, {'step': 2, 'train/loss': 0.25}]
  # No step appears twice in the event files either.
  assert _tensorboard_scalars(tmp_path) == [(1, 'train/loss', 0.5), (2, 'train/loss', 0.25)]


def test_starting_over_empties_everything(tmp_path):
  writer = metrics.MetricsWriter(tmp_path)
  writer.write(5, {'a': 1})
  writer.close()
  writer = metrics.MetricsWriter(tmp_path)
  writer.truncate([])
  writer.close()
  assert writer.path.read_bytes() == b'' and _tensorboard_scalars(tmp_path) == []


def test_without_tensorboard(tmp_path):
  writer = metrics.MetricsWriter(tmp_path, tensorboard=False)
  writer.write(1, {'a': 1})
  writer.close()
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


def test_a_full_disk_turns_the_event_files_off(tmp_path):
  script = textwrap.dedent(f"""
      import resource
      from jaxrl_llm.training import metrics
      resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))
      writer = metrics.MetricsWriter({str(tmp_path)!r})
      for step in range(500):
        writer.write(step, {{'a': 1}})
      writer.close()
  """)
  done = subprocess.run(
      [sys.executable, '-c', script], capture_output=True, text=True, timeout=60)
  assert done.returncode == 0, done.stderr
  (line,) = done.stderr.splitlines()
  assert line.startswith('warning: TensorBoard files are incomplete: File too large')
  assert len(metrics.read_jsonl(tmp_path / 'metrics.jsonl')) == 500


def test_a_position_of_an_earlier_version_is_one_line(tmp_path):
  file = metrics.JsonlFile(tmp_path / 'a.jsonl')
  with pytest.raises(ValueError, match='a.jsonl .* of an earlier version.*another --workdir'):
    file.truncate(11)


@pytest.mark.parametrize('content', [b'{', b'[' * 100_000, b'\xff'])
def test_a_file_that_is_not_json_is_named(tmp_path, content):
  path = tmp_path / 'a.json'
  path.write_bytes(content)
  with pytest.raises(ValueError, match='a.json is not JSON') as error:
    metrics.read_json(path)
  assert '\n' not in str(error.value)


def test_lines_survive_a_kill(tmp_path):
  script = textwrap.dedent(f"""
      import os, signal
      from jaxrl_llm.training import metrics
      file = metrics.JsonlFile({str(tmp_path / 'a.jsonl')!r})
      for step in range(50):
        file.write({{'step': step}})
      os.kill(os.getpid(), signal.SIGKILL)
  """)
  done = subprocess.run([sys.executable, '-c', script])
  assert done.returncode == -signal.SIGKILL
  assert [r['step'] for r in metrics.read_jsonl(tmp_path / 'a.jsonl')] == list(range(50))


def test_importing_metrics_does_not_import_jax():
  script = 'import sys; from jaxrl_llm.training import metrics; assert "jax" not in sys.modules'
  subprocess.run([sys.executable, '-c', script], check=True)


def test_wandb_offline(tmp_path, monkeypatch):
  monkeypatch.setenv('WANDB_MODE', 'offline')
  writer = metrics.MetricsWriter(
      tmp_path, tensorboard=False, wandb_project='jaxrl', config={'seed': 3, 'path': tmp_path})
  for step in (1, 2):
    writer.write(step, {'train/loss': 0.123456789 * step})
  writer.close()
  (log,) = (tmp_path / 'wandb').glob('offline-run-*/run-*.wandb')
  # W&B's own process writes the file, and may still do so on a busy machine.
  end = time.monotonic() + 30
  while b'0.246913578' not in (content := log.read_bytes()) and time.monotonic() < end:
    time.sleep(0.1)
  assert b'train/loss' in content and b'0.123456789' in content and b'0.246913578' in content


def test_wandb_missing_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(ValueError, match="wandb_project='p' needs the package wandb: pip install"):
    metrics.MetricsWriter(tmp_path, wandb_project='p')
