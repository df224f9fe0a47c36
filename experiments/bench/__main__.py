"""Benchmarks the reference workload: seconds, tokens/s, memory, and the machine's ceilings.

  python -m experiments.bench --suite=train,sample --json=FILE

The workload is a Llama-style decoder of 6.8M parameters in float32 (models/configs.py,
reference_workload): a supervised step of 8 x 256 tokens, an A*-PO step of 16 prompts x (32 + 64)
tokens with its parts, and sampling of 32 + 128 tokens at batch sizes 16 and 64. Workloads are
interleaved: each repetition runs each workload twice and times the second run. The tables show
medians over the repetitions. No response can stop early. The same run measures the machine's own
matrix products and memory bandwidth, and reports speeds as fractions of them.

--cores=N restricts the whole process to N of the cores that it may use. On CPUs, huge pages for
malloc save page faults: start with GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in the environment (Linux,
glibc 2.35 or newer). The JSON file records this setting, XLA_FLAGS and LD_PRELOAD.
"""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from jaxrl_llm.runs import figures, launch, processor
from jaxrl_llm.tables.digests import with_digest
from jaxrl_llm.training import metrics

# `main` imports JAX after choosing the cores, because JAX's threads inherit them.

_SUITE = flags.DEFINE_list('suite', ['train', 'sample'], 'suites to measure: train, sample, guided')
_SUITES = ('train', 'sample', 'guided')
_SCALE = flags.DEFINE_enum(
    'scale', 'reference', ['reference', 'tiny'], 'sizes; tiny is for tests')
_REPEATS = flags.DEFINE_integer('repeats', 7, 'timed repetitions')
_CORES = flags.DEFINE_integer('cores', 0, 'CPU cores; 0 for all that the process may use')
_SEED = flags.DEFINE_integer('seed', 0, 'seed of parameters, tokens and noise')
_JSON = flags.DEFINE_string('json', '', 'JSON file for the numbers; by default none')

_ENVIRONMENT = ('GLIBC_TUNABLES', 'XLA_FLAGS', 'LD_PRELOAD', 'JAX_PLATFORMS')
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')


def main() -> None:
  """Chooses the cores, measures, prints the tables and writes the JSON file."""
  suites = _check_flags()
  load = os.getloadavg()[0]
  available = _choose_cores(_CORES.value)

  from experiments.bench import workloads as workloads_lib

  scale = workloads_lib.SCALES[_SCALE.value]()
  rows, samples = measure(suites, scale, seed=_SEED.value, repeats=_REPEATS.value)
  numbers = {
      **_provenance(suites, available, load),
      **{name: value for row in rows for name, value in _summary(row, samples[row.name]).items()},
  }

  for row in rows:
    _add_fraction(numbers, row)
  print('\n'.join(['', *_tables(rows, numbers)]), flush=True)
  if _JSON.value:
    metrics.write_json_atomic(_JSON.value, with_digest(metrics.plain(numbers)))
    print(f'\nwritten: {_JSON.value}')


def measure(
    suites: Sequence[str], scale: Any, *, seed: int, repeats: int
) -> tuple[list[Any], dict[str, list[tuple[float, int]]]]:
  """Compiles everything, then runs all of it `repeats` times.

  As in training, a timed run follows another run of the same workload. Memory that was idle while
  other workloads ran can be slow to touch again (apparently pages that a virtual machine returned
  to its host): without the untimed run, the first step of a repetition could take twice as long.

  Args:
    suites: names of suites.
    scale: a `workloads_lib.Scale`.
    seed: seed of parameters, tokens and noise.
    repeats: number of timed repetitions.

  Returns:
    (the rows, a list of (seconds, tokens) by row name).
  """
  import jax

  from experiments.bench import guided
  from experiments.bench import workloads as workloads_lib
  from jaxrl_llm.training import loop

  makers = {
      'train': workloads_lib.train_suite, 'sample': workloads_lib.sample_suite,
      'guided': guided.suite}

  # A program from the on-disk cache would show no compile time.
  jax.config.update('jax_enable_compilation_cache', False)

  has_cores = jax.default_backend() == 'cpu' and len(_usable_cores()) > 1
  print('compiling ...', flush=True)
  workloads = list(workloads_lib.build(
      [makers[suite] for suite in suites], scale, seed=seed,
      one_core=_on_one_core if has_cores else None))
  rows = [row for workload in workloads for row in workload.rows]
  samples: dict[str, list] = {row.name: [] for row in rows}

  with loop.progress(repeats, 'repetitions') as bar:
    for repetition in range(repeats):
      for workload in workloads:
        workload.run(repetition, loop.Timers())  # Not timed; see above.
        timers = loop.Timers()
        tokens = workload.run(repetition, timers)
        seconds = timers.pop()
        for row in workload.rows:
          samples[row.name].append((seconds[f'time/{row.name}_seconds'], tokens.get(row.name, 0)))
      bar.update(1)
  return rows, samples


def _check_flags() -> list[str]:
  """Returns the suites without duplicates; raises ValueError with one line for a bad flag."""
  suites = list(dict.fromkeys(_SUITE.value))
  for name in suites or ['']:
    if name not in _SUITES:
      raise ValueError(f'suite must be some of {", ".join(_SUITES)}, got {name!r} (--suite)')
  if _REPEATS.value < 1:
    raise ValueError(f'repeats must be at least 1, got {_REPEATS.value} (--repeats)')
  if not 0 <= _SEED.value < 2**32:
    raise ValueError(f'seed must be in [0, 2**32), got {_SEED.value} (--seed)')
  path = pathlib.Path(_JSON.value)
  if _JSON.value and (path.is_dir() or not path.parent.is_dir()):
    raise ValueError(
        f'json must be a file in an existing directory, got {_JSON.value!r} (--json)')
  return suites


def _choose_cores(wanted: int) -> int:
  """Restricts this process to `wanted` cores (0 for all); returns the number available."""
  usable = _usable_cores()
  if not 0 <= wanted <= len(usable):
    allowed = f'1 to {len(usable)}, or 0 for all of them' if usable else '0 on this system'
    raise ValueError(f'cores must be {allowed}, got {wanted} (--cores)')
  if wanted:
    _pin(usable[:wanted])
  return len(usable) or os.cpu_count() or 1


def _usable_cores() -> list[int]:
  """Returns the cores that this process may use; empty if the system does not report them."""
  return sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []


def _pin(cores: Sequence[int]) -> None:
  """Moves every thread of this process to `cores`; new threads inherit them."""
  for thread in os.listdir('/proc/self/task'):
    with contextlib.suppress(ProcessLookupError):  # The thread has ended.
      os.sched_setaffinity(int(thread), cores)


@contextlib.contextmanager
def _on_one_core() -> Iterator[None]:
  cores = _usable_cores()
  _pin(cores[:1])
  try:
    yield
  finally:
    _pin(cores)


def _provenance(suites: Sequence[str], available: int, load: float) -> dict[str, Any]:
  """Provenance of the numbers."""
  import jax

  from jaxrl_llm.algorithms import a_star_po, sft

  device, host = jax.devices()[0], processor.fields()
  numbers = {
      'experiment': 'bench', 'suite': ','.join(suites), 'scale': _SCALE.value,
      'seed': _SEED.value, 'repeats': _REPEATS.value, 'commit': launch.current_commit(),
      'device': device.device_kind, 'platform': device.platform,
      'cpu': host['processor/model'], **host,  # 'cpu' is the name in older files.
      'cores': len(_usable_cores()) or available,
      'cores_available': available, 'load_average_at_start': load,
      'compute_dtype': 'float32', 'sft_step/head_chunk': sft.Config().head_chunk,
      'a_star_po_step/head_chunk': a_star_po.Config().head_chunk,
      'versions/python': platform.python_version(),
      **{f'versions/{name}': importlib.metadata.version(name) for name in _PACKAGES},
  }

  for name in _ENVIRONMENT:
    if name in os.environ:
      numbers[f'environment/{name}'] = os.environ[name]
  return numbers


def _summary(row: Any, samples: Sequence[tuple[float, int]]) -> dict[str, float | str]:
  """Summarises one row as flat numbers.

  Args:
    row: a `workloads_lib.Row`.
    samples: (seconds, tokens) of each repetition.

  Returns:
    Median, quartiles and extremes of the seconds, and median speeds.
  """
  seconds = sorted(sample[0] for sample in samples)
  quartiles = statistics.quantiles(seconds, n=4, method='inclusive') if len(seconds) > 1 else (
      seconds * 3)
  median = quartiles[1]

  # In the order of the JSON file.
  numbers: dict[str, float | str] = {
      'description': row.description, 'seconds': median, 'seconds_min': seconds[0],
      'seconds_first_quartile': quartiles[0], 'seconds_third_quartile': quartiles[2],
      'seconds_max': seconds[-1], 'flops': row.flops,
      'gflops_per_second': row.flops / median / 1e9,
  }

  if row.traffic:
    numbers |= {
        'traffic_bytes': row.traffic, 'gigabytes_per_second': row.traffic / median / 1e9
    }
  if row.peak_bytes:
    numbers |= {
        'tokens': statistics.median(tokens for _, tokens in samples),
        'tokens_per_second': statistics.median(tokens / time for time, tokens in samples),
        'peak_bytes': row.peak_bytes, 'compile_seconds': row.compile_seconds,
    }

  return {f'{row.name}/{name}': value for name, value in numbers.items()}


def _add_fraction(numbers: dict[str, Any], row: Any) -> None:
  """Adds the row's speed as a fraction of its ceiling, if it has one."""
  if row.ceiling:
    numbers[f'{row.name}/ceiling'] = row.ceiling
    numbers[f'{row.name}/ceiling_fraction'] = (
        numbers[f'{row.name}/gflops_per_second'] / numbers[f'{row.ceiling}/gflops_per_second'])


def _tables(rows: Sequence[Any], numbers: Mapping[str, Any]) -> list[str]:
  """Renders Markdown tables of the workloads and of the ceilings."""
  def of(row, name):
    return numbers[f'{row.name}/{name}']

  def quartiles(row):
    return f'{of(row, "seconds_first_quartile"):.3g} - {of(row, "seconds_third_quartile"):.3g}'

  def speed(name, row):
    value = numbers.get(f'{name}/{"gigabytes" if row.traffic else "gflops"}_per_second')
    return '-' if value is None else f'{value:.1f}'

  # Workloads have a ceiling; ceilings have none.
  workloads = [
      [row.name, row.description, f'{of(row, "seconds"):.3g}', quartiles(row),
       f'{of(row, "tokens_per_second"):,.0f}', f'{of(row, "gflops_per_second"):.1f}',
       f'{100 * of(row, "ceiling_fraction"):.0f}', f'{of(row, "peak_bytes") / 2**20:,.1f}',
       f'{of(row, "compile_seconds"):.1f}']
      for row in rows if row.ceiling
  ]

  ceilings = [
      [row.name.removeprefix('ceiling/'), row.description, f'{of(row, "seconds"):.3g}',
       quartiles(row), 'GB/s' if row.traffic else 'GFLOP/s', speed(row.name, row),
       speed(f'{row.name}_one_core', row)]
      for row in rows if not row.ceiling and not row.name.endswith('_one_core')
  ]

  caption = (
      f'{numbers["cores"]} of {numbers["cores_available"]} cores, {numbers["cpu"]}; medians and '
      f'quartiles of {numbers["repeats"]} interleaved repetitions; load average at the start '
      f'{numbers["load_average_at_start"]:.1f}; GLIBC_TUNABLES '
      f'{numbers.get("environment/GLIBC_TUNABLES", "not set")}'
  )
  return [
      caption, '',
      figures.markdown_table(
          ['workload', 'description', 'seconds', 'quartiles', 'tokens/s', 'GFLOP/s',
           '% of ceiling', 'peak MiB', 'compile s'], workloads),
      '',
      figures.markdown_table(
          ['ceiling', 'description', 'seconds', 'quartiles', 'unit', 'speed', 'on one core'],
          ceilings),
  ]


if __name__ == '__main__':
  launch.run_tool(main)
