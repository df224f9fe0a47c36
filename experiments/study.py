"""Runs every arm and seed of a study, one process each, and copies their results.

The config file lists its arms in `ARMS`; each arm is a variant of that file. All arms of a
seed start from the same fine-tuned reference. A finished run is not repeated (one of another
config is an error); an interrupted one is resumed. Results go to
RESULTS/<experiment>/<variant>/seed<N>/results.json.
"""

import functools
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from jaxrl_llm.runs import command_line, launch, programs
from jaxrl_llm.runs import config as config_lib
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
  """Lists the arms of a config file."""
  arms = getattr(command_line.load_module(config), 'ARMS', None)
  if not (arms and isinstance(arms, (list, tuple)) and all(isinstance(a, str) for a in arms)):
    raise ValueError(
        'config must be a file with ARMS, a non-empty list of names, '
        f'got {config!r} with {arms!r} (--config)')
  return arms


def _read_configs(values: flags.FlagValues, arms: Sequence[str]) -> dict[str, Any]:
  """Returns the config of each arm; raises a one-line ValueError if the program takes another."""
  configs = {}
  for arm in arms:
    spec = f'{values.config}:{arm}'
    config = configs[arm] = command_line.load_config(spec)
    kind = f'{type(config).__module__}.{type(config).__name__}'
    # The reference is fine-tuned with the same config.
    is_taken = isinstance(config, config_lib.PolicyConfig)
    if not is_taken or not kind.startswith(f'experiments.{values.experiment}.'):
      raise ValueError(
          f'config must be one of {values.experiment} for a policy, got {kind} ({spec})')
    config.validate()
  return configs


def _is_program(name: str) -> bool:
  """Returns whether experiments/ has a program of this name that takes a config and a workdir."""
  path = launch.REPOSITORY / 'experiments' / name / '__main__.py'
  return name.isidentifier() and path.is_file() and bool(
      re.search(r'^  launch\.run\(', path.read_text(encoding='utf-8'), re.MULTILINE))


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


def _check_finished(path: pathlib.Path, config: Any, **identity: Any) -> None:
  """Raises a one-line ValueError if a results.json is damaged, or of another run or config."""
  results = launch.read_results(path, **identity)
  # Results committed by earlier versions do not record their config.
  if results.get('config_sha256') not in (None, launch.config_digest(config)):
    raise ValueError(
        f'{path} is of another version of the config file: delete it, or give another --results')


def main(values: flags.FlagValues) -> None:
  """Runs the missing arms and seeds."""
  arms = _read_arms(values.config)
  chosen = arms if values.arms is None else values.arms
  _check(values, chosen, arms)
  configs = _read_configs(values, chosen)

  name = pathlib.Path(values.config).stem
  work = pathlib.Path(values.work) / name
  for seed in values.seeds:
    reference = work / f'reference_seed{seed}'
    run_arm('sft', reference, f'{values.config}:{arms[0]}', [f'--config.seed={seed}'])

    for arm in chosen:
      variant = '_'.join(filter(None, [name.removeprefix(values.experiment).strip('_'), arm]))
      results = pathlib.Path(
          values.results, values.experiment, variant, f'seed{seed}', 'results.json')
      identity = {'experiment': values.experiment, 'seed': int(seed), 'setting': variant}
      if results.exists():
        _check_finished(results, configs[arm], **identity)
        continue

      workdir = work / f'{arm}_seed{seed}'
      run_arm(values.experiment, workdir, f'{values.config}:{arm}',
              [f'--config.seed={seed}', f'--config.policy_init_from={reference / "params"}'])
      results.parent.mkdir(parents=True, exist_ok=True)
      metrics.write_json_atomic(
          results, launch.read_results(workdir / 'results.json', **identity))

  print(f'\nall {len(chosen) * len(values.seeds)} runs are complete; results under '
        f'{values.results}/{values.experiment}. Tables: python -m experiments.make_tables '
        f'--runs={values.results}')


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  launch.run_tool(functools.partial(main, flags.FLAGS))
