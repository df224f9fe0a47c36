"""Measures sampling and training of a checkpoint next to transformers, in one run.

  python -m experiments.bench_transformers --checkpoint=DIR --json=FILE

The workloads are sampling at several batch sizes, an AdamW step of adapters and one of all
parameters, on the same random tokens. Both libraries load the same directory and use the same
number of threads; their logits and first losses must agree. After one run of each that is not
timed, the repetitions alternate between the two, so that a busy machine slows both. The table
shows medians. Needs torch, transformers and peft (requirements-parity.txt); --notransformers
measures this project alone.
"""

import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import statistics
import time
from typing import Any

import numpy as np
from absl import flags

from experiments.bench_transformers import theirs as theirs_lib
from experiments.bench_transformers.workload import Sizes, Workload
from jaxrl_llm.runs import figures, launch, processor
from jaxrl_llm.training import loop, metrics

_PARTS = ('sample', 'lora', 'full')
_TOLERANCE = {'float32': 1e-2, 'bfloat16': 0.5}  # Of logits; losses are means of many.
_VERSIONS = ('jax', 'jaxlib', 'numpy', *theirs_lib.PACKAGES)


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this tool."""
  number = functools.partial(flags.DEFINE_integer, lower_bound=1, flag_values=values)
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  text('checkpoint', '', 'a Hugging Face checkpoint of a language model; required')
  flags.DEFINE_list('parts', list(_PARTS), 'parts to measure', flag_values=values)
  flags.DEFINE_list('batches', ['1', '16', '64'], 'batch sizes to sample at', flag_values=values)
  flags.DEFINE_bool('transformers', True, 'measure transformers too', flag_values=values)
  flags.DEFINE_enum('dtype', 'float32', list(_TOLERANCE), 'dtype of parameters and activations',
                    flag_values=values)

  number('prompt_tokens', 32, 'tokens per prompt')
  number('new_tokens', 64, 'tokens to sample per prompt')
  number('rows', 16, 'sequences per step')
  number('sequence_tokens', 256, 'tokens per sequence of a step')
  number('micro_batches', 4, 'parts of a step whose gradients are summed')
  number('rank', 8, 'rank of the adapters')
  number('repeats', 5, 'timed repetitions')
  flags.DEFINE_integer('seed', 0, 'seed of tokens and noise', lower_bound=0,
                       upper_bound=2**32 - 1, flag_values=values)
  text('json', '', 'JSON file for the numbers; by default none')


def main(values: flags.FlagValues) -> None:
  """Measures, prints the table and writes the JSON file."""
  batches = _check_flags(values)
  load = os.getloadavg()[0]
  sizes = Sizes(**{field: values[field].value for field in Sizes.__dataclass_fields__})

  numbers = {
      'experiment': 'bench_transformers', 'setting': os.path.basename(
          os.path.normpath(values.checkpoint)),
      'commit': launch.current_commit(), 'load_average_at_start': load,
      'repeats': values.repeats, **vars(sizes), **processor.fields(),
      **{f'versions/{name}': importlib.metadata.version(name) for name in _VERSIONS
         if importlib.util.find_spec(name)},
  }
  numbers |= measure(values, sizes, batches)

  print('\n' + table(numbers, _names(values, batches)), flush=True)
  if values.json:
    metrics.write_json_atomic(values.json, numbers)
    print(f'\nwritten: {values.json}')


def measure(values: flags.FlagValues, sizes: Sizes, batches: list[int]) -> dict[str, Any]:
  """Loads both models and measures one workload after the other; returns flat numbers.

  Raises:
    ValueError: the checkpoint cannot be used, or the libraries disagree on logits or losses.
  """
  from experiments.bench_transformers import ours as ours_lib  # Imports JAX.

  models: dict[str, Any] = {}
  numbers: dict[str, Any] = {}
  start = time.perf_counter()
  models['ours'] = ours_lib.Model(values.checkpoint, sizes)
  numbers['load/ours/seconds'] = time.perf_counter() - start
  if values.transformers:
    start = time.perf_counter()
    models['transformers'] = theirs_lib.Model(
        values.checkpoint, sizes, threads=processor.num_threads())
    numbers['load/transformers/seconds'] = time.perf_counter() - start

    prompts = sizes.prompts(2, models['ours'].vocab_size)
    one, other = (model.logits(prompts) for model in models.values())
    numbers['logits/max_difference'] = float(np.abs(one - other).max())
    _check_agreement('logits', numbers['logits/max_difference'], sizes.dtype)

  names = _names(values, batches)
  with loop.progress(len(names) * (values.repeats + 1), 'runs') as bar:
    for name in names:
      numbers |= _measure_one(name, models, sizes.dtype, values.repeats, bar)
  return numbers


def _measure_one(
    name: str, models: dict[str, Any], dtype: str, repeats: int, bar: Any
) -> dict[str, Any]:
  """Measures one workload in every library; returns flat numbers."""
  numbers: dict[str, Any] = {}
  workloads: dict[str, Workload] = {}
  first = {}

  for library, model in models.items():
    start = time.perf_counter()
    kind, _, batch = name.partition('_')
    workloads[library] = (
        model.sampling(int(batch)) if kind == 'sample' else model.training(kind))
    first[library] = workloads[library].run()
    numbers[f'{name}/{library}/first_seconds'] = time.perf_counter() - start
  bar.update(1)

  if kind != 'sample':
    numbers |= {f'{name}/{library}/first_loss': loss for library, loss in first.items()}
    _check_agreement(f'the losses of {name}', max(first.values()) - min(first.values()), dtype)

  seconds: dict[str, list[float]] = {library: [] for library in workloads}
  for repetition in range(repeats):
    # The order alternates as well.
    for library in list(workloads)[:: 1 if repetition % 2 else -1]:
      start = time.perf_counter()
      workloads[library].run()
      seconds[library].append(time.perf_counter() - start)
    bar.update(1)

  for library, workload in workloads.items():
    median = statistics.median(seconds[library])
    numbers |= {
        f'{name}/{library}/seconds': median,
        f'{name}/{library}/seconds_min': min(seconds[library]),
        f'{name}/{library}/seconds_max': max(seconds[library]),
        f'{name}/{library}/tokens_per_second': workload.tokens / median,
    }
    if workload.peak_bytes:
      numbers[f'{name}/{library}/peak_bytes'] = workload.peak_bytes
  return numbers


def table(numbers: dict[str, Any], names: list[str]) -> str:
  """Renders the Markdown table of the workloads with a caption."""
  def of(name, library, key, form):
    value = numbers.get(f'{name}/{library}/{key}')
    return '-' if value is None else format(value, form)

  rows = []
  for name in names:
    ours, theirs = (numbers.get(f'{name}/{library}/tokens_per_second')
                    for library in ('ours', 'transformers'))
    rows.append([
        name, of(name, 'ours', 'tokens_per_second', ',.1f'),
        of(name, 'transformers', 'tokens_per_second', ',.1f'),
        f'{ours / theirs:.2f}' if theirs else '-',
        f'{numbers[f"{name}/ours/peak_bytes"] / 1e9:.2f}'])
  caption = (
      f'{numbers["setting"]}, {numbers["dtype"]}: sampling of {numbers["prompt_tokens"]} + '
      f'{numbers["new_tokens"]} tokens; steps of {numbers["rows"]} x '
      f'{numbers["sequence_tokens"]} tokens in {numbers["micro_batches"]} micro-batches, adapters '
      f'of rank {numbers["rank"]}; medians of {numbers["repeats"]} alternating repetitions; '
      f'{numbers["processor/threads"]} threads, {numbers["processor/model"]}; load average at the '
      f'start {numbers["load_average_at_start"]:.1f}')
  return figures.markdown_table(
      ['workload', 'tokens/s', 'tokens/s, transformers', 'ratio', 'compiled peak GB'],
      rows) + '\n\n' + caption


def _names(values: flags.FlagValues, batches: list[int]) -> list[str]:
  """Returns the names of the workloads, in order."""
  samples = [f'sample_{batch}' for batch in batches] if 'sample' in values.parts else []
  return samples + [part for part in ('lora', 'full') if part in values.parts]


def _check_flags(values: flags.FlagValues) -> list[int]:
  """Returns the batch sizes; raises ValueError with one line for a bad flag."""
  path = pathlib.Path(values.json)
  if values.json and (path.is_dir() or not path.parent.is_dir()):
    raise ValueError(
        f'json must be a file in an existing directory, got {values.json!r} (--json)')

  if not values.checkpoint:
    raise ValueError('--checkpoint=DIR is required: a Hugging Face checkpoint')
  unknown = [part for part in values.parts or [''] if part not in _PARTS]
  if unknown:
    raise ValueError(f'parts must be of {", ".join(_PARTS)}, got {unknown[0]!r} (--parts)')
  for text in values.batches or ['']:
    if not text.isdecimal() or not 1 <= int(text) <= 2**20:
      raise ValueError(f'batches must be positive integers, got {text!r} (--batches)')
  if values.rows % values.micro_batches:
    raise ValueError(
        f'rows must be divisible by micro_batches ({values.micro_batches}), got {values.rows} '
        '(--rows)')
  if values.transformers:
    theirs_lib.check_installed()
  return list(dict.fromkeys(map(int, values.batches)))


def _check_agreement(what: str, difference: float, dtype: str) -> None:
  """Raises ValueError unless the two libraries compute the same."""
  if not difference <= _TOLERANCE[dtype]:
    raise ValueError(
        f'{what} of the two libraries must agree to {_TOLERANCE[dtype]}, got a difference of '
        f'{difference:.3g}')


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  launch.run_tool(functools.partial(main, flags.FLAGS))
