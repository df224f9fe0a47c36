"""Progress, Ctrl-C, resume: the helpers around a visible loop."""

import io
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import textwrap
import time

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.training import checkpoints, loop, metrics
from jaxrl_llm.types import WeightedMean

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class _Terminal(io.StringIO):

  def isatty(self):
    return True


def test_progress_writes_lines_where_there_is_no_terminal():
  stream = io.StringIO()
  with loop.Progress(5, 'stage 2', 2, stream=stream, line_every_seconds=0.0) as bar:
    bar.update(1, reward=0.123456)
    bar.update(1)
    bar.update(1, reward=0.5, arm='a')
  lines = stream.getvalue().splitlines()
  assert [re.sub(r'\d+ s$', 'N s', line) for line in lines] == [
      'stage 2  3/5  reward 0.1235  N s', 'stage 2  4/5  reward 0.1235  N s',
      'stage 2  5/5  reward 0.5  arm a  N s']


def test_progress_is_quiet_between_lines():
  stream = io.StringIO()
  with loop.Progress(1000, 'x', stream=stream, line_every_seconds=60.0) as bar:
    for _ in range(1000):
      bar.update()
  assert len(stream.getvalue().splitlines()) == 1  # The last.


def test_a_part_of_a_step_shows_nothing_unless_it_takes_long(capsys):
  for seconds, lines in ((60.0, 0), (0.0, 3)):
    stream = io.StringIO()
    with loop.Progress(3, 'x', stream=stream, line_every_seconds=seconds, is_part=True) as bar:
      for _ in range(3):
        bar.update()
    assert len(stream.getvalue().splitlines()) == lines
  terminal = _Terminal()
  with loop.Progress(3, 'x', stream=terminal, is_part=True) as bar:
    bar.update()
  assert 'x' not in terminal.getvalue()

  items = loop.Tracked('abc', 'evaluation')
  assert len(items) == 3 and list(items) == list(items) == ['a', 'b', 'c']
  assert not capsys.readouterr().err


def test_progress_draws_a_bar_on_a_terminal():
  stream = _Terminal()
  with loop.Progress(4, 'stage 1', stream=stream) as bar:
    for _ in range(4):
      bar.update(1, success=0.25)
  assert 'stage 1' in stream.getvalue() and '4/4' in stream.getvalue()
  assert 'success=0.25' in stream.getvalue()


def test_first_interrupt_is_noted_and_the_handler_comes_back(capsys):
  before = signal.getsignal(signal.SIGINT)
  with loop.Stopper() as stopper:
    stopper.check()
    os.kill(os.getpid(), signal.SIGINT)
    assert stopper.requested
    with pytest.raises(SystemExit) as stop:
      stopper.check('stage 1 is kept')
  assert stop.value.code == 130
  assert 'stage 1 is kept; run the same command again to resume' in capsys.readouterr().err
  assert signal.getsignal(signal.SIGINT) == before


def test_second_interrupt_kills():
  script = textwrap.dedent("""
      import os, signal
      from jaxrl_llm.training import loop
      with loop.Stopper():
        os.kill(os.getpid(), signal.SIGINT)
        print('still here', flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        print('never')
  """)
  done = subprocess.run([sys.executable, '-c', script], cwd=REPOSITORY, capture_output=True)
  assert done.returncode == -signal.SIGINT and done.stdout == b'still here\n'


@pytest.mark.parametrize('first, second', [
    (signal.SIGHUP, signal.SIGHUP), (signal.SIGTERM, signal.SIGTERM),
    (signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_only_a_second_ctrl_c_kills(first, second):
  with loop.Stopper() as stopper:
    os.kill(os.getpid(), first)
    os.kill(os.getpid(), second)
    assert stopper.requested


def test_a_run_saves_after_its_terminal_is_closed(tmp_path):
  script = textwrap.dedent(f"""
      import pathlib, sys, time
      from jaxrl_llm.runs import launch
      from jaxrl_llm.training import loop
      def main():
        with loop.Stopper() as stopper, loop.Progress(10**6, 'x', line_every_seconds=0.0) as bar:
          pathlib.Path({str(tmp_path / 'started')!r}).touch()
          while not stopper.requested:
            time.sleep(0.05)
          for _ in range(3):
            bar.update(1, loss=1.0)
            print('a line', flush=True)
          pathlib.Path({str(tmp_path / 'saved')!r}).touch()
          stopper.check()
      launch.run_tool(main, name='x', argv=['x'])
  """)
  child, terminal = pty.fork()
  if not child:
    os.chdir(REPOSITORY)
    os.execv(sys.executable, [sys.executable, '-c', script])

  deadline = time.monotonic() + 60
  while not (tmp_path / 'started').exists() and time.monotonic() < deadline:
    time.sleep(0.05)
  os.close(terminal)
  while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
    time.sleep(0.05)

  assert os.waitstatus_to_exitcode(ended[1]) == 130 and ended[0] == child
  assert (tmp_path / 'saved').exists()


def test_non_finite_loss_names_step_metric_and_checkpoint():
  loop.check_finite(3, {'train/loss': 0.5, 'eval/x': float('nan')})
  with pytest.raises(loop.NonFiniteLossError, match='train/grad_norm must be finite, got inf at '
                     'step 3; the checkpoint of step 2 is kept'):
    loop.check_finite(3, {'train/loss': 0.5, 'train/grad_norm': float('inf')}, last_saved=2)
  with pytest.raises(ValueError, match='got nan at step 1; no checkpoint was saved yet'):
    loop.check_finite(1, {'train/loss': float('nan')})


def test_non_finite_loss_says_what_to_change():
  values = {'train/target': 1e30, 'train/loss': float('inf'), 'rollout/reward': -2e29, 'x': 3.0}
  with pytest.raises(loop.NonFiniteLossError) as error:
    loop.check_finite(7, values, learning_rate='config.sft.optimizer.learning_rate')
  message = str(error.value)
  assert '\n' not in message
  assert 'this update was not applied (train/target is 1e+30, rollout/reward is -2e+29)' in message
  assert 'the same command again meets the same step' in message
  assert 'lower config.sft.optimizer.learning_rate and give another --workdir' in message
  with pytest.raises(loop.NonFiniteLossError, match='was not applied. Running'):
    loop.check_finite(7, {'train/loss': float('nan')})


def test_a_step_between_two_checks_is_not_missed():
  mean = lambda value: {'train/loss': WeightedMean(np.float32(value), np.float32(1))}
  pending = loop.PendingCheck(learning_rate='config.a')
  for step in range(3):
    pending.add(step, mean(step))
  pending.check(last_saved=None)
  for step, value in ((3, 1.0), (4, np.nan), (5, 1.0)):
    pending.add(step, mean(value))
  with pytest.raises(loop.NonFiniteLossError, match=r'got nan at step 4; .*lower config\.a and'):
    pending.check(last_saved=2)
  pending.check()  # Each step is looked at once.


def test_updates_that_were_left_out_of_a_compiled_loop():
  loop.check_updates(jnp.asarray([4, 4]), 4)
  with pytest.raises(loop.NonFiniteLossError, match='not in 3 of the first 4 updates, .*config.b'):
    loop.check_updates(jnp.asarray([4, 1]), 4, learning_rate='config.b')


def test_ratio_watch_warns_once(capsys):
  watch = loop.RatioWatch()
  watch({'train/loss': 1.0})  # Runs without an old policy.
  watch({'train/initial_log_ratio': loop.LARGEST_INITIAL_LOG_RATIO})
  assert not capsys.readouterr().err
  watch({'train/initial_log_ratio': 0.187})
  watch({'train/initial_log_ratio': 0.187})
  assert capsys.readouterr().err == (
      'warning: the log-ratio before the first step must be 0, got 0.19 nats (at most 0.001): '
      'scoring and training round differently\n')


def test_should():
  assert [step for step in range(7) if loop.should(3, step)] == [0, 3, 6]
  assert not loop.should(0, 3)


def test_timers_add_up_and_start_again():
  timers = loop.Timers()
  for _ in range(2):
    with timers('sample'):
      time.sleep(0.02)
  with pytest.raises(KeyError), timers('train'):
    raise KeyError
  seconds = timers.pop()
  assert set(seconds) == {'time/sample_seconds', 'time/train_seconds'}
  assert 0.04 <= seconds['time/sample_seconds'] < 1
  assert timers.pop() == {}


class _Run:
  """A loop as in a binary: the state depends on all steps, and a line is written for each."""

  def __init__(self, workdir, stopper=None, on_save=None):
    self.checkpoints = checkpoints.Checkpoints(workdir / 'checkpoints')
    self.writer = metrics.MetricsWriter(workdir, tensorboard=False)
    self.samples = metrics.JsonlFile(workdir / 'samples.jsonl')
    self.keeper = loop.Keeper(
        self.checkpoints, files={'metrics': self.writer, 'samples': self.samples}, total=10,
        save_every=4, stopper=stopper, on_save=on_save)
    initial = {'x': jnp.float32(1.0)}
    self.restored = self.keeper.restore(initial)
    self.start = self.restored.step if self.restored else 0
    self.state = self.restored.state if self.restored else initial

  def steps(self, stop=10, interrupt_at=None):
    for step in range(self.start, stop):
      self.state = {'x': self.state['x'] * 1.1 + step}
      self.writer.write(step + 1, {'train/x': self.state['x']})
      if step % 3 == 0:
        self.samples.write({'step': step + 1})
      if step == interrupt_at:
        os.kill(os.getpid(), signal.SIGINT)
      self.keeper.after_step(step + 1, self.state, {'position': step * 2})

  def close(self):
    self.checkpoints.close()
    self.writer.close()
    self.samples.close()


def _files(workdir):
  return [(workdir / name).read_bytes() for name in ('metrics.jsonl', 'samples.jsonl')]


def test_resume_repeats_nothing_and_ends_the_same(tmp_path):
  (tmp_path / 'whole').mkdir()
  whole = _Run(tmp_path / 'whole')
  whole.steps()
  whole.close()

  for stop in (2, 4, 7, 9):  # Before the first save, at a save, between saves, after the last.
    workdir = tmp_path / str(stop)
    workdir.mkdir()
    killed = _Run(workdir)
    killed.steps(stop)
    killed.close()
    with open(workdir / 'metrics.jsonl', 'ab') as file:
      file.write(b'{"step": 1')
    resumed = _Run(workdir)
    assert resumed.start == stop // 4 * 4
    if resumed.start:
      assert resumed.restored.metadata == {'position': 2 * (resumed.start - 1)}
      assert resumed.keeper.last_saved == resumed.start
    resumed.steps()
    resumed.close()
    np.testing.assert_array_equal(resumed.state['x'], whole.state['x'])
    assert _files(workdir) == _files(tmp_path / 'whole')


def test_interrupt_finishes_the_step_and_saves_it(tmp_path, capsys):
  saves = []
  with loop.Stopper() as stopper, pytest.raises(loop.Interrupted):
    run = _Run(tmp_path, stopper, on_save=lambda: saves.append(1))
    run.steps(interrupt_at=5)
  run.close()
  assert 'stopped after step 6 of 10, saved; run the same command again' in capsys.readouterr().err
  assert len(saves) == 2  # Step 4, and step 6.
  resumed = _Run(tmp_path)
  assert resumed.start == 6
  resumed.steps()
  resumed.close()
  assert [r['step'] for r in metrics.read_jsonl(tmp_path / 'metrics.jsonl')] == list(range(1, 11))


def test_corrupt_checkpoint_is_said_on_stderr(tmp_path, capsys):
  run = _Run(tmp_path)
  run.steps()
  run.close()
  os.truncate(next((tmp_path / 'checkpoints' / '10' / 'state').rglob('manifest.ocdbt')), 3)
  resumed = _Run(tmp_path)
  resumed.close()
  assert resumed.start == 8
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith('warning: checkpoint 10 is corrupt (')


def test_a_later_phase_keeps_what_the_earlier_one_wrote(tmp_path):
  file = metrics.JsonlFile(tmp_path / 'metrics.jsonl')
  file.write({'phase': 1})
  base = file.position()
  file.write({'phase': 2})
  folder = checkpoints.Checkpoints(tmp_path / 'c')
  keeper = loop.Keeper(
      folder, files={'metrics': file}, total=1, save_every=0, base_positions={'metrics': base})
  assert keeper.restore({'x': jnp.zeros(())}) is None
  folder.close()
  assert metrics.read_jsonl(tmp_path / 'metrics.jsonl') == [{'phase': 1}]


def test_checkpoints_without_digests_are_refused_in_one_line(tmp_path):
  folder = checkpoints.Checkpoints(tmp_path / 'c')
  state = {'x': jnp.zeros(())}
  folder.save(1, state, {'offsets': {'metrics': 0}, 'run': {}})
  keeper = loop.Keeper(folder, files={}, total=1, save_every=0)
  with pytest.raises(ValueError, match=r'c holds checkpoints of an earlier version, .* --workdir'):
    keeper.restore(state)
  folder.close()


def test_save_every_is_at_least_0():
  with pytest.raises(ValueError, match='save_every must be at least 0, got -1'):
    loop.Keeper(None, files={}, total=1, save_every=-1)
