"""The digest of results.json, and reading it again.

This module does not import JAX: the launcher uses it before flags are parsed.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxrl_llm.runs import command_line
from jaxrl_llm.runs.command_line import UsageError


def with_digest(results: Mapping[str, Any]) -> dict[str, Any]:
  """Returns plain results with 'sha256', the digest of the other entries."""
  others = {name: value for name, value in results.items() if name != 'sha256'}
  text = json.dumps(others, sort_keys=True, allow_nan=False)
  return {**others, 'sha256': hashlib.sha256(text.encode()).hexdigest()}


def read_results(
    path: pathlib.Path, *, experiment: str, seed: int, allow_earlier: bool = False
) -> dict[str, Any]:
  """Reads the results.json of a complete run.

  Args:
    path: the file.
    experiment: name of the program that must have written it.
    seed: the seed that it must be of.
    allow_earlier: whether to accept a file without digest, as earlier versions wrote it.

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
    is_earlier = 'sha256' not in results
    if is_earlier and not allow_earlier:
      problem = 'it has no digest: it is damaged or of an earlier version'
    elif not is_earlier and with_digest(results) != results:
      problem = 'it is damaged (its content does not match its digest)'
    for name, expected in (('experiment', experiment), ('seed', seed)):
      if not problem and results.get(name) != expected:
        problem = f'its {name} must be {expected!r}, got {results.get(name)!r}'

  if problem:
    raise UsageError(f'{path} cannot be used: {problem}; delete it and run the command again')
  return results
