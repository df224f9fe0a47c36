"""Reading results.json again.

This module does not import JAX: the launcher uses it before flags are parsed.
"""

import json
import pathlib
from typing import Any

from jaxrl_llm.runs import command_line
from jaxrl_llm.runs.command_line import UsageError
from jaxrl_llm.tables import digests


def read_results(
    path: pathlib.Path, *, experiment: str, seed: int, setting: str | None = None
) -> dict[str, Any]:
  """Reads the results.json of a complete run.

  Args:
    path: the file.
    experiment: name of the program that must have written it.
    seed: the seed that it must be of.
    setting: the setting that it must be of; None for any.

  Returns:
    The results by flat name.

  Raises:
    UsageError: the file is damaged, or of something else; one line.
    OSError: the file cannot be read.
  """
  try:
    results = json.loads(path.read_bytes())
    problem = '' if isinstance(results, dict) else 'it is damaged (not an object)'
  except (ValueError, RecursionError) as error:
    problem = f'it is damaged ({command_line.one_line(error)})'

  if not problem:
    if 'sha256' not in results:
      problem = 'it has no digest: it is damaged or of an earlier version'
    elif not digests.is_intact(results):
      problem = 'it is damaged (its content does not match its digest)'
    for name, expected in (('experiment', experiment), ('seed', seed), ('setting', setting)):
      if not problem and expected is not None and results.get(name) != expected:
        problem = f'its {name} must be {expected!r}, got {results.get(name)!r}'

  if problem:
    raise UsageError(f'{path} cannot be used: {problem}; delete it and run the command again')
  return results
