"""Worker processes: deadlines, limits, deaths, threads, forks, and what they may do."""

import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from jaxrl_llm.rewards.math import worker_pool

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
TRUE = (r'\sqrt{8}', r'2\sqrt{2}')
FALSE = (r'\sqrt{8}', r'3\sqrt{2}')
BOMB = (r'\sqrt{9^{9^9}}', '5')


@pytest.fixture
def pool():
  made = worker_pool.WorkerPool(size=1)
  yield made
  made.close()


def _python(code, *, directory=REPOSITORY, check=True):
  """Runs a new script, without a main guard, and returns its output."""
  done = subprocess.run(
      [sys.executable, '-c', textwrap.dedent(code)], cwd=directory, text=True, capture_output=True,
      env=os.environ | {'PYTHONPATH': str(REPOSITORY)}, timeout=120, check=False)
  assert not check or done.returncode == 0, done.stderr
  return done.stdout.strip()


def _ends(process_id, seconds=10.0):
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    try:
      os.kill(process_id, 0)
    except ProcessLookupError:
      return True
    stat = pathlib.Path(f'/proc/{process_id}/stat')
    if stat.exists() and stat.read_text().rpartition(')')[2].split()[0] == 'Z':
      return True
    time.sleep(0.05)
  return False


def test_verdicts(pool):
  assert pool.ask(*TRUE).outcome == 'equal'
  assert pool.ask(*FALSE).outcome == 'different'
  reply = pool.ask('\ud800 \x00 \u2028 "}\n', r'\sqrt{2}')
  assert not reply.verdict


def test_workers_start_when_needed_and_not_before():
  pool = worker_pool.WorkerPool(size=3)
  assert not pool.process_ids()
  assert pool.ask(*TRUE).verdict
  assert len(pool.process_ids()) == 1
  pool.close()
  assert not pool.process_ids()


def test_a_bomb_is_stopped_at_the_deadline_and_the_worker_goes_on(pool):
  pool.start()
  worker = pool.process_ids()
  started = time.monotonic()
  reply = pool.ask(*BOMB)
  assert time.monotonic() - started <= 2.0
  assert reply.outcome == 'timeout' and not reply.verdict
  started = time.monotonic()
  assert pool.ask(*TRUE).verdict
  assert time.monotonic() - started <= 1.0
  assert pool.process_ids() == worker


def test_the_start_is_not_timed():
  # Less time than importing SymPy takes, and the first answer is still decided.
  pool = worker_pool.WorkerPool(size=1, seconds=0.4)
  assert pool.ask(*TRUE).verdict
  pool.close()


def test_a_killed_worker_is_replaced(pool):
  pool.start()
  (first,) = pool.process_ids()
  os.kill(first, signal.SIGKILL)
  assert _ends(first)
  assert pool.ask(*TRUE).verdict
  (second,) = pool.process_ids()
  assert second != first


def test_a_worker_killed_while_it_works_is_replaced_and_asked_again(pool):
  pool.start()
  (first,) = pool.process_ids()
  threading.Timer(0.3, os.kill, (first, signal.SIGKILL)).start()
  assert pool.ask(*BOMB).outcome == 'timeout'  # Asked again, and stopped at the deadline.
  assert pool.process_ids() != [first]
  assert pool.ask(*TRUE).verdict


def test_a_worker_that_does_not_reply_is_killed():
  pool = worker_pool.WorkerPool(size=1, seconds=0.2)
  pool.start()
  (first,) = pool.process_ids()
  os.kill(first, signal.SIGSTOP)
  started = time.monotonic()
  assert pool.ask(*TRUE).outcome == 'timeout'
  assert time.monotonic() - started <= 2.0
  assert _ends(first)
  pool.close()


def test_many_threads_share_the_workers():
  pool = worker_pool.WorkerPool(size=2)
  questions = [TRUE, FALSE] * 12
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    verdicts = list(threads.map(lambda pair: pool.ask(*pair).verdict, questions))
  assert verdicts == [True, False] * 12
  assert 1 <= len(pool.process_ids()) <= 2
  pool.close()


def test_size_must_be_positive():
  with pytest.raises(ValueError, match='size must be at least 1, got 0'):
    worker_pool.WorkerPool(size=0)


def test_a_worker_that_cannot_start_is_an_error(monkeypatch):
  monkeypatch.setattr(worker_pool, '_MODULE', 'jaxrl_llm.rewards.no_such_worker')
  with pytest.raises(worker_pool.WorkerError, match='no_such_worker') as error:
    worker_pool.WorkerPool(size=1).ask(*TRUE)
  assert '\n' not in str(error.value)


def test_no_main_guard_is_needed_and_main_is_not_run_again(tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(textwrap.dedent(r"""
      from jaxrl_llm.rewards import math_answer
      with open('runs.txt', 'a') as file:
        file.write('run\n')
      print(math_answer.grade_batch([r'\boxed{\sqrt{8}}', r'\boxed{x+1}'], [r'2\sqrt{2}', '2+x']))
      """))
  done = subprocess.run(
      [sys.executable, str(script)], cwd=tmp_path, text=True, capture_output=True, timeout=120,
      env=os.environ | {'PYTHONPATH': str(REPOSITORY)}, check=False)
  assert done.stdout.strip() == '[True, False]', done.stderr
  assert done.stderr == ''
  assert (tmp_path / 'runs.txt').read_text() == 'run\n'


def test_a_worker_imports_nothing_heavy():
  loaded = _python("""
      import sys
      from jaxrl_llm.rewards.math import symbolic, worker
      symbolic.warm_up()
      heavy = ('jax', 'flax', 'numpy', 'torch', 'tensorflow')
      print([name for name in heavy if name in sys.modules])
      """)
  assert loaded == '[]'
  parent = _python("""
      import sys
      from jaxrl_llm.rewards import math_answer
      print(math_answer.grade('18', '18'), 'sympy' in sys.modules, 'math_verify' in sys.modules)
      """)
  assert parent == 'True False False'


def test_workers_end_with_their_parent():
  for ending in ('pass', 'os.kill(os.getpid(), signal.SIGKILL)'):
    printed = _python(f"""
        import os, signal
        from jaxrl_llm.rewards.math import worker_pool
        worker_pool.shared().start()
        print(worker_pool.shared().process_ids()[0], flush=True)
        {ending}
        """, check=False)
    assert _ends(int(printed))


def test_a_forked_child_gets_its_own_workers():
  printed = _python(r"""
      import os
      from jaxrl_llm.rewards.math import worker_pool
      pair = (r'\sqrt{8}', r'2\sqrt{2}')
      worker_pool.shared().ask(*pair)
      before = worker_pool.shared().process_ids()

      child = os.fork()
      if child == 0:
        good = worker_pool.shared().ask(*pair).verdict
        good = good and worker_pool.shared().process_ids() != before
        worker_pool.shared().close()
        os._exit(0 if good else 1)
      status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
      print(status, worker_pool.shared().ask(*pair).verdict)
      """)
  assert printed == '0 True'


def _outcome(leaf):
  """The outcome of a question whose comparison does `leaf`."""
  return _python(f"""
      import os, sys, time
      from jaxrl_llm.rewards.math import symbolic, worker
      symbolic.equal = lambda candidate, answer: {leaf}
      reply = worker.decide({{'candidate': 'x+y', 'answer': 'x+z', 'seconds': 1.0}})
      print(reply['outcome'], reply['verdict'], reply['peak_kib'] < 512 * 1024)
      """)


@pytest.mark.parametrize(('leaf', 'expected'), [
    ('True', 'equal True True'),
    ('False', 'different False True'),
    ('bool(bytearray(10**9))', 'memory False True'),
    ('time.sleep(30)', 'timeout False True'),
    ('1 / 0', 'error False True'),
    ('sys.exit()', 'error False True'),
    ('os.abort()', 'died False True'),
    ('os._exit(0)', 'died False True'),
    ("bool(open('/dev/null', 'w'))", 'error False True'),
    ("bool(open('/proc/self/stat').read())", 'equal True True'),
    ("os.system('true') == 0", 'error False True'),
    ("bool(os.listdir('/'))", 'equal True True'),
    ("os.remove('/nothing') or True", 'error False True'),
    ("bool(__import__('socket').socket())", 'error False True'),
    ("__import__('subprocess').call(['true']) == 0", 'error False True'),
])
def test_a_child_has_limits(leaf, expected):
  assert _outcome(leaf) == expected
