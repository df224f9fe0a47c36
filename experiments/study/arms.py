"""The arms of a study: which there are, what a program can make of them, and what is finished."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxrl_llm import checks
from jaxrl_llm.runs import command_line, launch
from jaxrl_llm.runs import config as config_lib


class Arm(NamedTuple):
  """An arm of a study.

  Attributes:
    name: its name in `ARMS`.
    spec: `FILE.py:NAME`.
    experiment: the program that runs it.
    setting: name of its setting in results.json.
    config: its config.
  """

  name: str
  spec: str
  experiment: str
  setting: str
  config: Any

  def read(self, path: pathlib.Path, seed: int, reference: str | None = None) -> dict[str, Any]:
    """Reads results of this arm.

    Args:
      path: a results.json.
      seed: the seed that it must be of.
      reference: the fingerprint of the reference that it must have started from; None for any.

    Returns:
      The results.

    Raises:
      ValueError: the file is damaged, or of another arm, seed, config or reference; one line.
    """
    results = launch.read_results(
        path, experiment=self.experiment, seed=seed, setting=self.setting)
    what_to_do = 'delete it, or give another --results'
    # Results committed by earlier versions do not record their config.
    if results.get('config_sha256') not in (None, launch.config_digest(self.config)):
      raise ValueError(f'{path} is of another version of the config file: {what_to_do}')
    theirs = results.get('fingerprint/reference')
    if reference is not None and theirs not in (None, reference):
      raise ValueError(
          f'{path} started from the reference {theirs}, the other arms from {reference} (trained '
          f'on another processor, by another version or config): {what_to_do}')
    return results


def read(file: str, experiment: str, chosen: Sequence[str] | None) -> tuple[Arm, list[Arm]]:
  """Reads the arms of a config file.

  Args:
    file: the config file.
    experiment: the program that runs them.
    chosen: names of arms; None for all.

  Returns:
    (the first arm of the file, which makes the references; the chosen arms).

  Raises:
    ValueError: one line; the file has no such arms, there is no such program, or it takes another
      config.
  """
  names = getattr(command_line.load_module(file), 'ARMS', None)
  if not (names and isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names)):
    raise ValueError(
        'config must be a file with ARMS, a non-empty list of names, '
        f'got {file!r} with {names!r} (--config)')
  chosen = names if chosen is None else chosen
  if not chosen:
    raise ValueError('arms must name at least one, got none (--arms)')
  for name in chosen:
    if name not in names:
      raise ValueError(f'arms must be some of {", ".join(names)}, got {name!r} (--arms)')
  if not _is_program(experiment):
    raise ValueError(
        f'experiment must be a program in experiments/, got {experiment!r} (--experiment)')

  stem = pathlib.Path(file).stem.removeprefix(experiment).strip('_')
  made = {}
  for name in dict.fromkeys([names[0], *chosen]):
    spec, setting = f'{file}:{name}', '_'.join(filter(None, [stem, name]))
    made[name] = Arm(name, spec, experiment, setting, _read_config(spec, experiment))
  return made[names[0]], [made[name] for name in chosen]


def _read_config(spec: str, experiment: str) -> Any:
  """Returns a valid config that a program takes."""
  config = command_line.load_config(spec)
  modules = [kind.__module__ for kind in type(config).mro()]
  # The reference is fine-tuned with the same config.
  is_taken = isinstance(config, config_lib.PolicyConfig) and any(
      module.startswith(f'experiments.{experiment}.') for module in modules)
  if not is_taken:
    raise ValueError(
        f'config must be a config of experiments.{experiment} that trains a policy, got '
        f'{modules[0]}.{type(config).__name__} ({spec})')
  with checks.within(spec):
    config.validate()
  return config


def _is_program(name: str) -> bool:
  """Returns whether experiments/ has a program of this name that takes a config and a workdir."""
  folder = launch.REPOSITORY / 'experiments'
  paths = (folder / f'{name}.py', folder / name / '__main__.py')
  return name.isidentifier() and any(
      re.search(r'^  launch\.run\(', path.read_text(encoding='utf-8'), re.MULTILINE)
      for path in paths if path.is_file())
