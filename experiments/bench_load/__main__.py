"""Measures the host memory and time that loading a Hugging Face checkpoint takes.

  python -m experiments.bench_load --model=qwen2.5_1.5b --json=FILE

The program writes a random checkpoint of a published shape to a temporary directory (which needs
the disk space; --folder sets its parent) and loads it onto a mesh. The metric is the process's
anonymous memory (RssAnon, which excludes pages of the mapped file), which on CPU devices also holds
the parameters: its peak during the load, minus its value just before, over the size of the
parameters. A second process polls it, so it also sees peaks while NumPy or XLA block this one.
Linux only.
"""

import contextlib
import functools
import importlib.metadata
import math
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from absl import flags

from jaxrl_llm.runs import launch, processor, random_checkpoints
from jaxrl_llm.training import metrics

# Functions import JAX, after `main` sets the number of devices.

_DTYPES = ('bfloat16', 'float32')

_PACKAGES = ('jax', 'jaxlib', 'numpy', 'ml_dtypes', 'safetensors')

# Prints the peak RssAnon of process argv[1], in bytes, once standard input is closed.
_WATCHER = '''
import re, select, sys
peak, done = 0, False
print('ready', flush=True)
while not done:
  done = bool(select.select([sys.stdin], [], [], 0.002)[0])
  status = open(f'/proc/{sys.argv[1]}/status').read()
  peak = max(peak, 1024 * int(re.search(r'RssAnon:\\s+(\\d+)', status)[1]))
print(peak)
'''


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this tool."""
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  choice = functools.partial(flags.DEFINE_enum, flag_values=values)
  choice('model', 'llama_100m', random_checkpoints.SHAPES, 'shape of the checkpoint')
  choice('file_dtype', 'bfloat16', _DTYPES, 'type of the tensors in the file')
  choice('param_dtype', 'bfloat16', _DTYPES, 'type of the loaded parameters')
  text('mesh', '1x8x1', 'mesh sizes, data x fsdp x tensor')
  flags.DEFINE_integer('cpu_devices', 8, 'fake CPU devices; 0 for the real devices',
                       lower_bound=0, upper_bound=1024, flag_values=values)
  text('folder', '', 'parent directory of the checkpoint; by default /tmp')
  text('json', '', 'JSON file for the numbers; by default none')


def main(values: flags.FlagValues) -> None:
  """Writes a checkpoint, loads it, and prints and writes the numbers."""
  if not re.fullmatch(r'\d+x\d+x\d+', values.mesh):
    raise ValueError(f'mesh must be three sizes such as 1x8x1, got {values.mesh!r} (--mesh)')
  count = math.prod(map(int, values.mesh.split('x')))
  if values.cpu_devices and count != values.cpu_devices:  # Before the checkpoint is written.
    raise ValueError(f'mesh must use all {values.cpu_devices} devices (--cpu_devices), got '
                     f'{values.mesh} (--mesh)')
  random_checkpoints.check_paths(values)

  if values.cpu_devices:
    os.environ['JAX_PLATFORMS'] = 'cpu'
    os.environ['XLA_FLAGS'] = (
        f'{os.environ.get("XLA_FLAGS", "")} '
        f'--xla_force_host_platform_device_count={values.cpu_devices}')

  with tempfile.TemporaryDirectory(dir=values.folder or None) as folder:
    directory = pathlib.Path(folder) / 'checkpoint'
    print(f'writing {values.model} in {values.file_dtype} to {directory} ...', flush=True)

    # A subprocess writes the checkpoint: memory that this process freed but still held would be
    # reused without showing in the measurement.
    arguments = (str(directory), values.model, values.file_dtype)
    code = ('from jaxrl_llm.runs import random_checkpoints\n'
            f'random_checkpoints.write_random(*{arguments!r})')
    subprocess.run(
        [sys.executable, '-c', code], check=True, cwd=launch.REPOSITORY,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
    numbers = measure(values, directory)

  print(
      f'{numbers["parameters"]:,} parameters, {numbers["parameter_bytes"] / 1e9:.3f} GB, loaded in '
      f'{numbers["seconds"]:.1f} s; peak of anonymous memory '
      f'{numbers["peak_anonymous_bytes"] / 1e9:.3f} GB, {numbers["peak_ratio"]:.3f} of the '
      'parameters')

  if values.json:
    metrics.write_json_atomic(values.json, numbers)
    print(f'written: {values.json}')


def measure(values: flags.FlagValues, directory: pathlib.Path) -> dict[str, Any]:
  """Loads the checkpoint onto the mesh of the flags and returns flat numbers."""
  import jax
  import jax.numpy as jnp

  from jaxrl_llm.models import policy
  from jaxrl_llm.models.pretrained import huggingface
  from jaxrl_llm.sharding import mesh, rules
  from jaxrl_llm.training import loop

  checkpoint = huggingface.read_config(directory)
  config, _ = random_checkpoints.shape(values.model, param_dtype=values.param_dtype)
  abstract = jax.eval_shape(policy.make(config).init, jax.random.key(0))

  sizes = map(int, values.mesh.split('x'))
  abstract = rules.abstract(abstract, rules.shardings(mesh.make_mesh(*sizes), abstract))
  leaves = jax.tree.leaves(abstract)

  jnp.zeros(8).block_until_ready()  # Start the backend before the load.
  with loop.progress(len(leaves), 'parameters') as bar, anonymous_memory() as memory:
    start = time.monotonic()
    params = huggingface.load_params(checkpoint, abstract, progress=lambda *_: bar.update(1))
    seconds = time.monotonic() - start

  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  itemsize = jnp.dtype(values.param_dtype).itemsize
  peak = memory['peak'] - memory['before']

  # Provenance, sizes, results, versions.
  return {
      'experiment': 'bench_load', 'setting': values.model, 'file_dtype': values.file_dtype,
      'param_dtype': values.param_dtype, 'mesh': values.mesh, 'commit': launch.current_commit(),
      'device': f'{len(jax.devices())} x {jax.devices()[0].device_kind}',
      **processor.fields(), 'cores': os.cpu_count(),
      'parameters': size // itemsize, 'parameter_bytes': size,
      'largest_parameter_bytes': max(math.prod(leaf.shape) for leaf in leaves) * itemsize,
      'peak_anonymous_bytes': peak, 'peak_ratio': peak / size, 'seconds': seconds,
      'versions/python': platform.python_version(),
      **{f'versions/{name}': importlib.metadata.version(name) for name in _PACKAGES},
  }


@contextlib.contextmanager
def anonymous_memory() -> Iterator[dict[str, int]]:
  """Yields a dict with RssAnon `before` the block and, after it, its `peak` within, in bytes."""
  status = pathlib.Path('/proc/self/status').read_text()
  numbers = {'before': 1024 * int(re.search(r'RssAnon:\s+(\d+)', status)[1])}
  with subprocess.Popen(
      [sys.executable, '-c', _WATCHER, str(os.getpid())], stdin=subprocess.PIPE,
      stdout=subprocess.PIPE, text=True) as watcher:
    watcher.stdout.readline()
    yield numbers
    numbers['peak'] = int(watcher.communicate()[0])


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  launch.run_tool(functools.partial(main, flags.FLAGS))
