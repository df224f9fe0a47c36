"""Peak host memory of loading is close to the model's size, as measured in a separate process."""

import json
import mmap
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments.bench_load import __main__ as bench_load
from tests import compiler_flags

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
LIMIT = 1.3  # Times the size of the parameters, which are included in the measured memory.

linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')


def _run(*arguments):
  environment = os.environ | {'XLA_FLAGS': compiler_flags.FAST_COMPILE}  # Devices are its own.
  return subprocess.run(
      [sys.executable, '-m', 'experiments.bench_load', *map(str, arguments)],
      cwd=REPOSITORY, capture_output=True, text=True, env=environment)


@linux
@pytest.mark.programs
@pytest.mark.parametrize('file_dtype, param_dtype', [  # Both with a cast, which costs more.
    ('bfloat16', 'float32'), ('float32', 'bfloat16')])
def test_loading_100m_parameters_onto_eight_devices(tmp_path, file_dtype, param_dtype):
  path = tmp_path / 'results.json'
  done = _run(
      '--model=llama_100m', f'--file_dtype={file_dtype}', f'--param_dtype={param_dtype}',
      '--mesh=1x8x1', f'--folder={tmp_path}', f'--json={path}')
  assert done.returncode == 0, done.stderr

  numbers = json.loads(path.read_text())
  assert all(isinstance(value, (int, float, str)) for value in numbers.values())
  assert 100e6 < numbers['parameters'] < 120e6
  assert numbers['parameter_bytes'] == numbers['parameters'] * np.dtype(
      {'bfloat16': 'u2', 'float32': 'f4'}[param_dtype]).itemsize
  assert numbers['device'] == '8 x cpu'
  # A value below 1 would mean that the parameters themselves were not measured.
  assert 1.0 < numbers['peak_ratio'] <= LIMIT
  assert numbers['peak_ratio'] == numbers['peak_anonymous_bytes'] / numbers['parameter_bytes']
  assert f'{numbers["peak_ratio"]:.3f} of the parameters' in done.stdout
  assert [file.name for file in tmp_path.iterdir()] == ['results.json']


@linux
def test_the_peak_includes_memory_that_was_freed():
  size = 2**26
  # Mapped: an allocator would hand out memory that earlier tests of this process have freed.
  private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
  with bench_load.anonymous_memory() as memory, mmap.mmap(-1, size, private) as block:
    array = np.frombuffer(block, np.uint8)
    for value in range(20):
      array[:] = value  # Written in one call, which holds the GIL.
    del array  # Else the block could not be closed.
  assert 0.5 * size <= memory['peak'] - memory['before'] < 1.5 * size
  with bench_load.anonymous_memory() as memory:
    pass
  assert abs(memory['peak'] - memory['before']) < 0.1 * size


@pytest.mark.parametrize('flag, message', [
    ('--mesh=8', "mesh must be three sizes such as 1x8x1, got '8' (--mesh)"),
    ('--folder=/nowhere', "folder must exist, got '/nowhere' (--folder)"),
    ('--json=/nowhere/x', "json must name a file in an existing folder, got '/nowhere/x' (--json)"),
])
def test_bad_flags(flag, message):
  done = _run(flag)
  assert (done.returncode, done.stderr) == (2, f'bench_load: error: {message}\n')
