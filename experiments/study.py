"""Runs every arm and seed of a study, one process each, and keeps their results.

The config file names its arms in `ARMS`; each is a setting of that file. All arms of a
seed start from one fine-tuned reference. A finished run is not repeated; an
interrupted one is resumed. Kept: RESULTS/<experiment>/<setting>/seed<N>/results.json.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

from absl import flags

from experiments import command_line, launch

_CONFIG = flags.DEFINE_string(
    'config', 'experiments/configs/a_star_po_ablation.py', 'a config file with ARMS'
)
_EXPERIMENT = flags.DEFINE_string('experiment', 'a_star_po', 'the binary that runs an arm')
_ARMS = flags.DEFINE_list('arms', None, 'some of the arms; by default all')
_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'seeds')
_WORK = flags.DEFINE_string('work', 'runs/study', 'where the runs write')
_OUT = flags.DEFINE_string('results', 'results', 'where results.json files are kept')


def run_arm(module: str, workdir: pathlib.Path, config: str, arguments: list[str]) -> None:
  """Runs one binary to its end; raises ValueError if it fails, Interrupted with it."""
  command = [sys.executable, '-m', f'experiments.{module}', f'--config={config}',
             f'--workdir={workdir}', *arguments]
  print(f'\n=== {" ".join(command[1:])}', flush=True)
  process = subprocess.Popen(command)
  # Ctrl-C reaches the arm as well: it finishes its step and saves, and we wait for that.
  previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    status = process.wait()
  finally:
    signal.signal(signal.SIGINT, previous)
  if status in (130, -2):
    raise KeyboardInterrupt
  if status:
    raise ValueError(f'{workdir.name} ended with status {status}; run this command again to resume')


def main() -> None:
  """Runs what is missing."""
  arms = command_line.load_module(_CONFIG.value).ARMS
  chosen = _ARMS.value or arms
  for arm in chosen:
    if arm not in arms:
      raise ValueError(f'arms must be some of {", ".join(arms)}, got {arm!r} (--arms)')
  for seed in _SEEDS.value:
    if not seed.isdigit():
      raise ValueError(f'seeds must be non-negative integers, got {seed!r} (--seeds)')
  name = pathlib.Path(_CONFIG.value).stem
  work = pathlib.Path(_WORK.value) / name
  for seed in _SEEDS.value:
    reference = work / f'reference_seed{seed}'
    run_arm('sft', reference, f'{_CONFIG.value}:{arms[0]}', [f'--config.seed={seed}'])
    for arm in chosen:
      setting = f'{name.removeprefix(_EXPERIMENT.value).strip("_")}_{arm}'
      kept = pathlib.Path(_OUT.value, _EXPERIMENT.value, setting, f'seed{seed}')
      workdir = work / f'{arm}_seed{seed}'
      if not (kept / 'results.json').exists():
        run_arm(_EXPERIMENT.value, workdir, f'{_CONFIG.value}:{arm}',
                [f'--config.seed={seed}', f'--config.policy_init_from={reference / "params"}'])
        kept.mkdir(parents=True, exist_ok=True)
        temporary = kept / f'.results.json.{os.getpid()}.tmp'
        shutil.copyfile(workdir / 'results.json', temporary)
        os.replace(temporary, kept / 'results.json')
  print(f'\nall {len(chosen) * len(_SEEDS.value)} runs are complete; results under {_OUT.value}/'
        f'{_EXPERIMENT.value}. Tables: python -m experiments.make_tables --runs={_OUT.value}')


if __name__ == '__main__':
  launch.run_tool(main)
