"""Runs every arm and seed of a study, one process each, and copies their results.

The config file lists its arms in `ARMS`; each arm is a variant of that file. All arms of a
seed start from the same fine-tuned reference. A finished run is not repeated; an interrupted
one is resumed. Results go to RESULTS/<experiment>/<variant>/seed<N>/results.json.
"""

import functools
import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from jaxrl_llm.runs import command_line, launch, programs
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


def _read_arms(config: str) -> Sequence[str]:
  """Returns the arms that a config file lists."""
  arms = getattr(command_line.load_module(config), 'ARMS', None)
  is_list = isinstance(arms, (list, tuple)) and all(isinstance(arm, str) for arm in arms)
  if not arms or not is_list:
    raise ValueError(
        'config must be a file with ARMS, a non-empty list of names, '
        f'got {config!r} with {arms!r} (--config)')
  return arms


def _is_program(name: str) -> bool:
  """Returns whether experiments/ has a program of this name that takes a config and a workdir."""
  folder = launch.REPOSITORY / 'experiments'
  paths = (folder / f'{name}.py', folder / name / '__main__.py')
  return name.isidentifier() and any(
      path.is_file() and 'launch.run(' in path.read_text(encoding='utf-8') for path in paths)


def _check(values: flags.FlagValues, chosen: Sequence[str], arms: Sequence[str]) -> None:
  """Raises a one-line ValueError or OSError before anything runs."""
  for name, given in (('arms', chosen), ('seeds', values.seeds)):
    if not given:
      raise ValueError(f'{name} must name at least one, got none (--{name})')
  for arm in chosen:
    if arm not in arms:
      raise ValueError(f'arms must be some of {", ".join(arms)}, got {arm!r} (--arms)')
  for seed in values.seeds:
    if not (seed.isascii() and seed.isdigit()):
      raise ValueError(f'seeds must be non-negative integers, got {seed!r} (--seeds)')

  program = values.experiment
  if not _is_program(program):
    raise ValueError(
        f'experiment must be a program in experiments/, got {program!r} (--experiment)')
  for folder in (values.work, values.results):
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
      raise ValueError(f'work and results must be writable directories, got {folder!r}')


def main(values: flags.FlagValues) -> None:
  """Runs the missing arms and seeds."""
  arms = _read_arms(values.config)
  chosen = arms if values.arms is None else values.arms
  _check(values, chosen, arms)

  name = pathlib.Path(values.config).stem
  work = pathlib.Path(values.work) / name
  for seed in values.seeds:
    reference = work / f'reference_seed{seed}'
    run_arm('sft', reference, f'{values.config}:{arms[0]}', [f'--config.seed={seed}'])

    for arm in chosen:
      variant = '_'.join(filter(None, [name.removeprefix(values.experiment).strip('_'), arm]))
      results = pathlib.Path(
          values.results, values.experiment, variant, f'seed{seed}', 'results.json')
      if results.exists():  # It may be a committed one of an earlier version.
        launch.read_results(
            results, experiment=values.experiment, seed=int(seed), setting=variant,
            allow_earlier=True)
        continue

      workdir = work / f'{arm}_seed{seed}'
      run_arm(values.experiment, workdir, f'{values.config}:{arm}',
              [f'--config.seed={seed}', f'--config.policy_init_from={reference / "params"}'])
      results.parent.mkdir(parents=True, exist_ok=True)
      metrics.write_json_atomic(results, launch.read_results(
          workdir / 'results.json', experiment=values.experiment, seed=int(seed), setting=variant))

  print(f'\nall {len(chosen) * len(values.seeds)} runs are complete; results under '
        f'{values.results}/{values.experiment}. Tables: python -m experiments.make_tables '
        f'--runs={values.results}')


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  launch.run_tool(functools.partial(main, flags.FLAGS))
