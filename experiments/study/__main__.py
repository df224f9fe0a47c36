"""Runs every arm and seed of a study, one process each, and copies their results.

The config file lists its arms in `ARMS`; each arm is a variant of that file. All arms of a
seed start from the same reference, which experiments.sft fine-tunes with the first arm's config. A
finished run is not repeated (one of another config or reference is an error); an interrupted one is
resumed. Results go to RESULTS/<experiment>/<variant>/seed<N>/results.json.
"""

import functools
import os
import pathlib
import sys

from absl import flags

from experiments.study import arms as arms_lib
from jaxrl_llm.runs import launch, programs
from jaxrl_llm.training import metrics


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this tool."""
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  names = functools.partial(flags.DEFINE_list, flag_values=values)
  text('config', 'experiments/configs/a_star_po_ablation.py', 'a config file with ARMS')
  text('experiment', 'a_star_po', 'the program that runs an arm')
  names('arms', None, 'arms to run; by default all')
  names('seeds', ['0', '1', '2'], 'seeds')
  text('work', 'runs/study', 'directory of the runs')
  text('results', 'results', 'directory of the results.json files')


def run_arm(module: str, workdir: pathlib.Path, config: str, arguments: list[str]) -> None:
  """Runs one program to completion.

  Raises:
    ValueError: the program failed.
    KeyboardInterrupt: the program was interrupted.
  """
  command = [sys.executable, '-m', f'experiments.{module}', f'--config={config}',
             f'--workdir={workdir}', *arguments]
  print(f'\n=== {" ".join(command[1:])}', flush=True)
  if status := programs.run(command):
    raise ValueError(f'{workdir.name} ended with status {status}; run this command again to resume')


def _check(values: flags.FlagValues) -> None:
  """Raises a one-line ValueError or OSError before anything runs."""
  if not values.seeds:
    raise ValueError('seeds must name at least one, got none (--seeds)')
  for seed in values.seeds:
    if not (seed.isascii() and seed.isdigit()):
      raise ValueError(f'seeds must be non-negative integers, got {seed!r} (--seeds)')
  for folder in (values.work, values.results):
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
      raise ValueError(f'work and results must be writable directories, got {folder!r}')


def main(values: flags.FlagValues) -> None:
  """Runs the missing arms and seeds."""
  first, arms = arms_lib.read(values.config, values.experiment, values.arms)
  _check(values)
  seeds = [int(seed) for seed in values.seeds]
  paths = {
      (seed, arm.name): pathlib.Path(
          values.results, values.experiment, arm.setting, f'seed{seed}', 'results.json')
      for seed in seeds for arm in arms}
  finished = {(seed, arm.name): arm.read(paths[seed, arm.name], seed)
              for seed in seeds for arm in arms if paths[seed, arm.name].exists()}

  work = pathlib.Path(values.work) / pathlib.Path(values.config).stem
  for seed in seeds:
    if all((seed, arm.name) in finished for arm in arms):
      continue
    folder = work / f'reference_seed{seed}'
    run_arm('sft', folder, first.spec, [f'--config.seed={seed}'])
    reference = launch.read_results(
        folder / 'results.json', experiment='sft', seed=seed)['fingerprint']

    for arm in arms:
      path = paths[seed, arm.name]
      if (seed, arm.name) in finished:
        arm.read(path, seed, reference)
        continue
      workdir = work / f'{arm.name}_seed{seed}'
      run_arm(values.experiment, workdir, arm.spec,
              [f'--config.seed={seed}', f'--config.policy_init_from={folder / "params"}'])
      results = arm.read(workdir / 'results.json', seed, reference)
      path.parent.mkdir(parents=True, exist_ok=True)
      metrics.write_json_atomic(path, results)

  print(f'\nall {len(paths)} runs are complete; results under '
        f'{values.results}/{values.experiment}. Tables: python -m experiments.make_tables '
        f'--runs={values.results}')


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  launch.run_tool(functools.partial(main, flags.FLAGS))
