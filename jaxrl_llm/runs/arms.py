"""Finished arms of studies, read again instead of computed again; means over seeds."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxrl_llm.evaluation import statistics
from jaxrl_llm.runs import artefacts, launch


def identity_of(experiment: str, config: Any, **more: Any) -> dict[str, Any]:
  """Returns the identity of a result: its experiment, config and further fields.

  Args:
    experiment: name of the experiment.
    config: a dataclass. Fields that never change what is computed (`launch.RELOCATABLE_FIELDS`)
      are left out at every depth.
    **more: what else the result depends on, such as `arm` and `seed`.

  Returns:
    Nested plain data for `finished`.
  """
  return {'experiment': experiment, 'config': launch.computing_config(config), **more}


def finished(
    path: pathlib.Path,
    identity: Mapping[str, Any],
    make: Callable[[], Any],
    *,
    commit: str = '',
) -> Any:
  """Returns the result in a file of an earlier process, or computes it and writes the file.

  A file that is damaged or made for something else is renamed to NAME.damaged (with _ appended if
  that exists) and replaced, and a line on stdout says so.

  Args:
    path: NAME.json or NAME.npz; see `artefacts`.
    identity: what the result depends on; see `identity_of`.
    make: computes the result: JSON data for NAME.json, arrays by name for NAME.npz.
    commit: commit of the source, recorded in a file that is written.

  Returns:
    The result, as read from the file.

  Raises:
    artefacts.Damaged: the file is of an earlier version, without a digest.
    OSError: the file cannot be read or written.
  """
  if path.exists():
    try:
      return artefacts.read(path, identity)
    except artefacts.Damaged as error:
      if error.is_older:
        raise
      set_aside(path, f'{path}: {error.problem}')

  artefacts.write(path, make(), identity, commit=commit)
  return artefacts.read(path, identity)


def set_aside(path: pathlib.Path, problem: str) -> None:
  """Renames a file or directory to NAME.damaged, and prints the problem and that, in one line."""
  damaged = path.with_name(f'{path.name}.damaged')
  while os.path.lexists(damaged):
    damaged = damaged.with_name(f'{damaged.name}_')
  os.rename(path, damaged)
  print(f'{problem}; it was renamed to {damaged.name} and is computed again', flush=True)


def summary(name: str, values: np.ndarray) -> dict[str, float]:
  """Returns {name: mean over seeds, name_se: its standard error}; no error for one seed.

  Args:
    name: a flat name for results.json.
    values: one number per seed.

  Returns:
    One or two entries.
  """
  mean, error = statistics.mean_and_standard_error(values)
  return {name: float(mean)} | ({f'{name}_se': float(error)} if len(values) > 1 else {})
