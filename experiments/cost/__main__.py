"""Computes bytes and flops of one iteration of each algorithm at published sizes, without a device.

  python -m experiments.cost [--sizes=qwen2.5_1.5b,...] [--algorithms=grpo,...] [--out=DIR]

Parameters and optimizer come from the abstract shapes of the real init functions, temporaries from
compiling the real train steps for fake CPU devices, and flops from the formulas in model.py. These
are checked against the traced train step of every algorithm and size (and in the tests against
XLA's own count of small programs). Nothing is allocated or run. The outputs are DIR/cost.json (all
numbers), cost.md (tables next to the published columns, and a verdict), cost.csv and cost.png. DIR
is results/cost if everything is computed, else runs/cost. Cost: about five minutes on one core.
"""

import difflib
import functools
import importlib.metadata
import pathlib
import platform
import time
from typing import Any

import jax
from absl import flags

from experiments.cost import model as cost_model
from experiments.cost import programs as cost_programs
from experiments.cost import report as cost_report
from jaxrl_llm.runs import command_line, launch, processor
from jaxrl_llm.training import loop, metrics, optim

_DEFAULT_CONFIG = 'experiments/configs/cost.py'
_TOLERANCE = 0.02  # Between a formula and the traced train step.


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this tool."""
  names = functools.partial(flags.DEFINE_list, flag_values=values)
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  text('config', '', f'FILE.py[:variant] with the study; by default {_DEFAULT_CONFIG}')
  names('sizes', [], 'models to compute; by default all of the study')
  names('algorithms', [], 'algorithms to compute; by default all of the study')
  text('out', '', 'output directory; by default results/cost, or runs/cost for a part')


def main(values: flags.FlagValues) -> None:
  """Measures, writes and prints the tables."""
  start = time.monotonic()
  study = command_line.load_config(values.config or command_line.in_repository(_DEFAULT_CONFIG))
  if not isinstance(study, cost_model.Study):
    raise ValueError(f'config must be a cost_model.Study, got {type(study).__name__} (--config)')
  sizes = _chosen('sizes', values.sizes, study.models)
  algorithms = _chosen('algorithms', values.algorithms, study.recipes)
  study.validate()

  whole = not (values.config or values.sizes or values.algorithms)
  folder = pathlib.Path(
      values.out or launch.REPOSITORY / ('results' if whole else 'runs') / 'cost')
  if folder.exists() and not folder.is_dir():
    raise ValueError(f'out: not a directory: {str(folder)!r} (--out)')

  _use_fake_devices(study.workload.devices)
  numbers = measure(study, sizes, algorithms)

  numbers = {
      'experiment': 'cost', 'setting': study.name, 'commit': launch.current_commit(),
      'device': f'{study.workload.devices} fake CPU devices; nothing was run', **processor.fields(),
      'note': study.note, **numbers, 'versions/python': platform.python_version(),
      **{f'versions/{name}': importlib.metadata.version(name)
         for name in ('jax', 'jaxlib', 'flax', 'optax')},
      'wall_seconds': round(time.monotonic() - start, 1),
  }

  folder.mkdir(parents=True, exist_ok=True)
  text = cost_report.markdown(study, numbers)
  metrics.write_json_atomic(folder / 'cost.json', numbers)
  metrics.write_csv_atomic(folder / 'cost.csv', *cost_report.flat_table(numbers, sizes, algorithms))
  metrics.write_text_atomic(folder / 'cost.md', text)
  cost_report.figure(folder / 'cost.png', study, numbers)
  print(f'{text}\nwritten to {folder}: cost.json, cost.md, cost.csv, cost.png')


def measure(study: cost_model.Study, sizes: list[str], algorithms: list[str]) -> dict[str, Any]:
  """Returns all counts, flat: '<size>/<algorithm>/<quantity>'.

  Raises:
    ValueError: a formula does not match the computation of a train step.
  """
  workload = study.workload
  optimizer = optim.make_optimizer(optim.OptimizerConfig(weight_decay=1e-2))
  numbers: dict[str, Any] = {f'workload/{name}': n for name, n in vars(workload).items()}
  numbers |= {f'layout/{name}': layout.title for name, layout in study.layouts.items()}

  with loop.progress(len(sizes) * len(algorithms) * len(study.layouts), 'compiling') as bar:
    for size in sizes:
      for name in algorithms:
        recipe, model, prefix = study.recipes[name], study.models[size], f'{size}/{name}'
        numbers |= {f'{prefix}/{key}': number for key, number in _count(
            study, name, size, optimizer).items()}

        for label, layout in study.layouts.items():
          used = cost_programs.memory(recipe, model, optimizer, workload, layout)
          used['total'] = sum(used.values()) + numbers[
              f'{prefix}/bytes/reference'] // workload.devices
          numbers |= {
              f'{prefix}/bytes_per_device/{label}/{key}': number for key, number in used.items()}
          bar.update(1)
  return numbers


def _count(
    study: cost_model.Study, name: str, size: str, optimizer: Any
) -> dict[str, float]:
  """Computes the numbers that need no compiler: resident bytes, the KV cache, flops."""
  recipe, model, workload = study.recipes[name], study.models[size], study.workload
  model = next(iter(study.layouts.values())).apply_to(model)
  state = cost_programs.abstract_state(
      recipe, model, cost_programs.make(recipe, model, optimizer))

  rows = workload.prompts * recipe.samples
  flops = cost_model.iteration(model, recipe, workload)
  formula = (flops['old'] + flops['critic'] + flops['update']) * (
      workload.minibatch_prompts / workload.prompts)
  traced = cost_programs.traced_step(recipe, model, optimizer, workload)

  if abs(traced / formula - 1) > _TOLERANCE:
    raise ValueError(
        f'the train step of {name} has {traced:.3e} operations, and by formula {formula:.3e}: '
        'experiments/configs/cost.py does not describe its computation')

  return {
      'samples_per_prompt': recipe.samples,
      'parameters': sum(leaf.size for leaf in jax.tree.leaves(state.params['policy'])),
      **{f'bytes/{key}': n for key, n in cost_programs.state_bytes(recipe, state).items()},
      'bytes/kv_cache': cost_model.cache_bytes(model, rows, workload),
      **{f'flops/{key}': n for key, n in flops.items()},
      'flops/traced_over_formula': traced / formula,
  }


def _chosen(flag: str, names: list[str], known: dict[str, Any]) -> list[str]:
  """Returns the given names in the study's order, or all names if none is given."""
  for name in names:
    if name not in known:
      close = difflib.get_close_matches(name, known, 1)
      hint = f'; did you mean {close[0]}?' if close else ''
      raise ValueError(f'{flag} must be of {", ".join(known)}, got {name!r} (--{flag}){hint}')
  return [name for name in known if name in names or not names]


def _use_fake_devices(count: int) -> None:
  """Requests CPU devices, unless the backend is already up or the environment sets their number."""
  jax.config.update('jax_platforms', 'cpu')
  try:
    jax.config.update('jax_num_cpu_devices', count)
  except RuntimeError:  # JAX raises it in both cases; `cost_programs.memory` counts devices.
    return


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  launch.run_tool(functools.partial(main, flags.FLAGS))
