"""runs/programs: exit status, and signals that reach the program."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest

from jaxrl_llm.runs import programs

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# Prints that it started, and saves for half a second after the first signal.
CHILD = """
import time
from jaxrl_llm.training import loop
with loop.Stopper() as stopper:
  print('started', flush=True)
  while not stopper.requested:
    time.sleep(0.02)
  time.sleep(0.5)
  print('saved', flush=True)
  stopper.check()
"""


def test_the_status_is_returned():
  assert programs.run([sys.executable, '-c', 'raise SystemExit(3)']) == 3
  with pytest.raises(KeyboardInterrupt):
    programs.run([sys.executable, '-c', 'raise SystemExit(130)'])


@pytest.mark.parametrize('number, to_group', [
    (signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False),
    (signal.SIGHUP, False)])
def test_a_program_saves_before_its_study_ends(number, to_group):
  script = textwrap.dedent(f"""
      import sys
      from jaxrl_llm.runs import launch, programs
      launch.run_tool(
          lambda: programs.run([sys.executable, '-c', {CHILD!r}]), name='study', argv=['study'])
  """)
  study = subprocess.Popen(
      [sys.executable, '-c', script], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, start_new_session=True)

  assert study.stdout.readline() == 'started\n'
  os.killpg(study.pid, number) if to_group else study.send_signal(number)
  output, error = study.communicate(timeout=60)

  assert study.returncode == 130 and output == 'saved\n', error
  assert 'study: interrupted; run the same command again to resume' in error
