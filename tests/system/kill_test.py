"""kill -9, Ctrl-C and preemption: rerunning the command gives the same results."""

import random
import re
import signal
import time

from jaxrl_llm.training import metrics
from tests.system import running

SLOW = 0.03  # Seconds per line: phases last long enough to be interrupted.


def _lines(workdir, name, count):
  return lambda: running.num_lines(workdir / name) >= count


def _kill_when(runner, workdir, condition):
  """SIGKILL at a random moment after the condition first holds."""
  process = runner.start(workdir, slow=SLOW)
  running.wait_until(process, condition)
  time.sleep(random.uniform(0, 2 * SLOW))
  process.kill()
  assert running.wait(process).returncode == -signal.SIGKILL
  assert not (workdir / 'results.json').exists()


def _die(runner, workdir, point, count):
  done = runner.finish(workdir, die=[point, count])
  assert done.returncode == -signal.SIGKILL, (point, done.stderr)
  assert not (workdir / 'results.json').exists()


def _temporary(folder):
  return [path.name for path in folder.glob('*tmp*')]


def test_a_run_killed_in_every_phase_has_the_same_results(runner, whole, tmp_path):
  workdir = tmp_path / 'run'
  saved = workdir / 'checkpoints'
  _kill_when(runner, workdir, _lines(workdir, 'metrics.jsonl', 3))  # In fine-tuning.
  assert not (workdir / 'params').exists()
  _die(runner, workdir, 'checkpoint', 2)
  assert _temporary(saved / 'sft')  # Killed while writing a checkpoint.
  _die(runner, workdir, 'params', 1)
  assert not (workdir / 'params').exists() and list(workdir.glob('.params*'))
  _die(runner, workdir, 'stage1.jsonl', 3)
  assert not (workdir / 'stage1.jsonl').read_bytes().endswith(b'\n')
  assert running.num_lines(workdir / 'stage1.jsonl') == 2
  logged = running.num_lines(workdir / 'metrics.jsonl')
  _kill_when(runner, workdir, _lines(workdir, 'metrics.jsonl', logged + 4))  # In stage 2.
  assert metrics.read_jsonl(workdir / 'metrics.jsonl')[-1]['step'] > running.SFT_STEPS
  _die(runner, workdir, 'checkpoint', 1)
  assert _temporary(saved / 'a_star_po')
  _die(runner, workdir, 'samples.jsonl', 3)
  _die(runner, workdir, 'metrics.jsonl', 2)
  assert not (workdir / 'metrics.jsonl').read_bytes().endswith(b'\n')
  _die(runner, workdir, 'results', 1)
  assert list(workdir.glob('.results.json*'))

  done = runner.finish(workdir)
  assert done.returncode == 0, done.stderr
  running.assert_same(workdir, whole.workdir)
  assert not [path for path in workdir.rglob('*') if '.tmp' in path.name or '-tmp' in path.name]


def test_a_run_stopped_by_signals_resumes_to_the_same_results(runner, whole, tmp_path):
  workdir = tmp_path / 'run'

  def stop(number, condition):
    process = runner.start(workdir, slow=SLOW)
    running.wait_until(process, condition)
    process.send_signal(number)
    done = running.wait(process)
    assert done.returncode == 130, done
    assert 'stopping after this step' in done.stderr and 'Traceback' not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.endswith('; run the same command again to resume')
    assert not (workdir / 'results.json').exists()
    return last

  line = stop(signal.SIGTERM, _lines(workdir, 'metrics.jsonl', 3))
  step, total = re.match(r'stopped after step (\d+) of (\d+), saved', line).groups()
  assert (workdir / 'checkpoints' / 'sft' / step).is_dir() and int(total) == running.SFT_STEPS
  line = stop(signal.SIGINT, _lines(workdir, 'stage1.jsonl', 2))
  assert line.startswith('stopped in stage 1; all complete batches are saved')
  assert 2 <= running.num_lines(workdir / 'stage1.jsonl') <= 5
  logged = running.num_lines(workdir / 'metrics.jsonl')
  line = stop(signal.SIGINT, _lines(workdir, 'metrics.jsonl', logged + 2))
  step = int(re.match(r'stopped after step (\d+) of 10, saved', line)[1])
  assert (workdir / 'checkpoints' / 'a_star_po' / str(step)).is_dir()
  # The current step was completed, and no other was started.
  last = metrics.read_jsonl(workdir / 'metrics.jsonl')[-1]['step']
  assert last == running.SFT_STEPS + step - 1

  done = runner.finish(workdir)
  assert done.returncode == 0, done.stderr
  running.assert_same(workdir, whole.workdir)
