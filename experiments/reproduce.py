"""Reruns a committed setting and compares every headline number with the committed one.

  python -m experiments.reproduce --experiment=a_star_po --setting=arithmetic --seeds=0

The verdict is `equal` (the same bits), `k SE` (distance in standard errors over the committed
seeds), or `differs` if the distance exceeds --tolerance standard errors. A number without a
standard error (one committed seed, and none recorded in its results.json) is equal or differs. The
exit status is 1 if a number differs.
"""

import functools
import pathlib
import sys
from typing import Any

from absl import flags

from jaxrl_llm import checks
from jaxrl_llm.runs import command_line, figures, launch, programs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.tables import render


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this tool."""
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  text('experiment', '', 'the program, as in results/EXPERIMENT/')
  text('setting', 'default', 'the setting, as in results/EXPERIMENT/SETTING/')
  text('runs', 'results', 'directory of the committed results')
  text('workdir', 'runs/reproduce', 'directory of the new runs')
  flags.DEFINE_list('seeds', ['0'], 'seeds to run again', flag_values=values)
  flags.DEFINE_list('overrides', [], 'further config fields, as data_dir=DIR', flag_values=values)
  flags.DEFINE_float(
      'tolerance', 3.0, 'allowed distance in standard errors', flag_values=values)


def command_of(experiment: str, name: str) -> tuple[str, list[str]]:
  """Returns the config (FILE.py[:variant]) and extra flags that reproduce a committed setting.

  Args:
    experiment: name of the program, as in results/EXPERIMENT/.
    name: name of the setting, as in results/EXPERIMENT/NAME/.

  Raises:
    ValueError: no config file matches its name.
  """
  folder = launch.REPOSITORY / 'experiments' / 'configs'
  if experiment == 'arena':  # Its variants are not named after config files.
    task, _, variant = name.partition('_')
    file = ':'.join(filter(None, [str(folder / 'arena.py'), variant]))
    return file, [f'--config.task={task}', '--config.num_seeds=1']

  words = [] if name == 'default' else name.split('_')
  for count in range(len(words), -1, -1):  # Longest file name first; the rest is the variant.
    path = folder / f'{"_".join([experiment, *words[:count]])}.py'
    if path.is_file():
      variant = '_'.join(words[count:])
      return (f'{path}:{variant}' if variant else str(path)), []
  raise ValueError(
      f'setting must name a config {experiment}*.py in {folder}, got {name!r} (--setting)')


def verdict(new: float, old: float, error: float | None, tolerance: float) -> str:
  """Returns 'equal', the distance in standard errors, or 'differs'."""
  if new == old or (new != new and old != old):
    return 'equal'
  if not error:
    return 'differs'
  distance = abs(new - old) / error
  return f'{distance:.1f} SE' if distance <= tolerance else f'differs ({distance:.1f} SE)'


def compare(
    new: dict[str, Any], committed: render.Setting, seed: int, tolerance: float
) -> list[tuple[str, float, float, str]]:
  """Returns (name, committed, new, verdict) for each headline number."""
  old, rows = committed.runs[seed], []
  for name in render.headlines(committed.experiment, committed.quantities()):
    if name == 'wall_seconds' or name.startswith(('time/', 'memory/')) or name not in old:
      continue
    error = committed.summary(name).standard_error
    number = new.get(name, 'missing')
    result = 'differs' if number == 'missing' else verdict(  # NaN is a string in JSON.
        float(number), float(old[name]), error, tolerance)
    rows.append((name, old[name], number, result))
  return rows


def main(values: flags.FlagValues) -> None:
  """Reruns the seeds and prints a table for each."""
  results = {(s.experiment, s.name): s for s in render.read_results(values.runs)}
  committed = results.get((values.experiment, values.setting))
  if committed is None:
    known = ', '.join(sorted(f'{experiment}/{name}' for experiment, name in results))
    raise ValueError(f'{values.experiment}/{values.setting} must be one of {known}')

  checks.non_negative(values, '', 'tolerance')
  for seed in values.seeds or ['']:
    if not (seed.isascii() and seed.isdigit()) or int(seed) not in committed.runs:
      raise ValueError(
          f'seeds must be some of {", ".join(map(str, committed.runs))}, got {seed!r} (--seeds)')

  config, more = command_of(values.experiment, values.setting)
  loaded = command_line.load_config(config)
  if isinstance(loaded, config_lib.ReinforcementConfig) and (
      loaded.policy_init_from and loaded.sft.steps):
    raise ValueError(
        f'{values.experiment}/{values.setting} starts from a reference that its study fine-tunes: '
        f'run experiments.study --config={config.partition(":")[0]} instead')
  more += [f'--config.{override}' for override in values.overrides]

  differing, commit = 0, launch.current_commit()
  for seed in map(int, values.seeds):
    workdir = pathlib.Path(values.workdir) / f'{values.experiment}_{values.setting}_seed{seed}'
    command = [sys.executable, '-m', f'experiments.{values.experiment}', f'--config={config}',
               f'--config.seed={seed}', f'--workdir={workdir}', *more]
    print(' '.join(command[1:]), flush=True)
    if status := programs.run(command):
      raise ValueError(f'the run ended with status {status}; this command resumes it')

    new = launch.read_results(
        workdir / 'results.json', experiment=values.experiment, seed=seed)
    if new['commit'] != commit:  # The workdir was complete already.
      raise ValueError(f'{workdir} must be of commit {commit}, got {new["commit"]}: delete it or '
                       'give another --workdir')
    rows = compare(new, committed, seed, values.tolerance)
    print('\n' + figures.markdown_table(['number', 'committed', 'new', 'verdict'], rows))
    theirs, ours = (_machine(run) for run in (committed.runs[seed], new))
    print(f'\nseed {seed}: committed on {theirs}, now on {ours}')
    differing += sum('differs' in row[3] for row in rows)

  if differing:
    print(f'{differing} numbers differ by more than {values.tolerance:g} standard errors')
    sys.exit(1)


def _machine(run: dict[str, Any]) -> str:
  known = [f'{run[name]}{unit}' for name, unit in (
      ('device', ''), ('processor/model', ''), ('processor/threads', ' threads')) if name in run]
  return f'{", ".join(known)} (jax {run.get("versions/jax", "?")})'


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  launch.run_tool(functools.partial(main, flags.FLAGS))
