"""A small campaign in a process of its own."""

import os
import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
CONFIG = 'experiments/configs/faults.py:quick'
_COUNTS = {'kills': 1, 'signals': 1, 'damages': 4, 'disks': 1, 'invocations': 8}
NUM_CASES = sum(_COUNTS.values())


def run(workdir: pathlib.Path) -> subprocess.CompletedProcess:
  """Runs the quick variant with few cases."""
  counts = [f'--config.{name}={count}' for name, count in _COUNTS.items()]
  return subprocess.run(
      [sys.executable, '-m', 'experiments.faults', f'--config={CONFIG}', f'--workdir={workdir}',
       *counts],
      cwd=REPOSITORY, env=os.environ | {'PYTHONPATH': str(REPOSITORY)}, text=True,
      capture_output=True, timeout=600)
