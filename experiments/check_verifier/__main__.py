r"""Checks the answer verifier against labelled solutions and prints every disagreement.

    python -m experiments.check_verifier \
        --solutions=../shared/data/gsm8k/example_model_solutions.jsonl

Each line of the file is an object with `ground_truth`, whose last line is `A: 18` (or
`#### 18`), and one or more labelled solutions: {"solution": str, "is_correct": bool} under
the name of the model that wrote it. Cost: a few seconds on one core for 5,276 solutions.
Exit status: 0 if the verifier agrees with every label, 1 if not, 2 if the input is unusable.
"""

import collections
import dataclasses
import json
import pathlib
import re
import sys
import time

from absl import flags

from jaxrl_llm.rewards import math_answer
from jaxrl_llm.rewards.math import truths
from jaxrl_llm.runs import launch

_SOLUTIONS = flags.DEFINE_string('solutions', None, 'JSON Lines file of labelled solutions')
_MODE = flags.DEFINE_enum(
    'mode', 'lenient', list(math_answer.MODES), 'how the answer of a solution is extracted')

_TRUTH = re.compile(r'^(?:A:|####)[ \t]*(\S.*)$')


class InputError(ValueError):
  """Error for unusable input; the message is one clear line."""


@dataclasses.dataclass(frozen=True)
class Labelled:
  """One labelled solution.

  Attributes:
    line: line number in the file, from 1.
    problem: index of the problem, from 0.
    source: name of the model that wrote the solution.
    solution: text of the solution.
    truth: the bare ground truth.
    is_correct: the label.
  """

  line: int
  problem: int
  source: str
  solution: str
  truth: str
  is_correct: bool


def _problem(row: object, line: int, problem: int) -> list[Labelled]:
  if not isinstance(row, dict):
    raise InputError(f'line {line}: expected an object, got {type(row).__name__}')
  if not isinstance(row.get('ground_truth'), str):
    raise InputError(f'line {line}: the field ground_truth (text) is missing')

  truth = _TRUTH.match(row['ground_truth'].strip().rpartition('\n')[2].strip())
  if truth is None:
    raise InputError(f'line {line}: the last line of ground_truth must be "A: answer"')
  try:
    truths.check(truth[1].strip())
  except ValueError as error:
    raise InputError(f'line {line}: {error}') from None

  labelled = []
  for source, entry in row.items():
    if not isinstance(entry, dict):
      continue
    for field, kind in (('solution', str), ('is_correct', bool)):
      if not isinstance(entry.get(field), kind):
        raise InputError(f'line {line}: {source} needs the field {field} ({kind.__name__})')
    labelled.append(Labelled(
        line, problem, source, entry['solution'], truth[1].strip(), entry['is_correct']))

  if not labelled:
    raise InputError(f'line {line}: no labelled solution')
  return labelled


def read_solutions(path: pathlib.Path) -> list[Labelled]:
  """Reads all labelled solutions of a file.

  Args:
    path: a file of JSON lines.

  Returns:
    The solutions in file order.

  Raises:
    InputError: if the file is missing or unreadable, or one of its lines is malformed.
  """
  try:
    lines = path.read_bytes().split(b'\n')
  except OSError as error:
    raise InputError(f'cannot read --solutions={path}: {error.strerror}') from None

  labelled: list[Labelled] = []
  problem = 0
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue

    try:
      row = json.loads(line.decode('utf-8'))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
      reason = getattr(error, 'msg', None) or getattr(error, 'reason', None) or 'nested too deeply'
      raise InputError(
          f'{path}: line {number} is not valid JSON ({reason}); is the file truncated?') from None
    try:
      labelled.extend(_problem(row, number, problem))
    except InputError as error:
      raise InputError(f'{path}: {error}') from None
    problem += 1

  if not labelled:
    raise InputError(f'{path} contains no solutions')
  return labelled


def check(path: pathlib.Path, mode: str) -> int:
  """Grades all solutions of a file, prints the result, and returns the exit status."""
  labelled = read_solutions(path)

  started = time.monotonic()
  verdicts = math_answer.grade_batch(
      [entry.solution for entry in labelled], [entry.truth for entry in labelled], mode=mode)
  seconds = time.monotonic() - started

  agreeing: collections.Counter[str] = collections.Counter()
  total: collections.Counter[str] = collections.Counter()
  for entry, verdict in zip(labelled, verdicts):
    total[entry.source] += 1
    agreeing[entry.source] += verdict == entry.is_correct

    if verdict != entry.is_correct:
      extracted = math_answer.extract(entry.solution, mode=mode)
      print(f'problem {entry.problem} (line {entry.line}), {entry.source}: '
            f'label {"right" if entry.is_correct else "wrong"}, '
            f'graded {"right" if verdict else "wrong"}; '
            f'extracted {ascii(extracted)}, truth {ascii(entry.truth)}')

  for source, count in total.items():
    print(f'{source}: {agreeing[source]} of {count}')

  agreed, count = sum(agreeing.values()), len(labelled)
  print(f'agreement: {agreed} of {count} labelled solutions ({100 * agreed / count:.2f} %), '
        f'{seconds:.1f} s')
  return 0 if agreed == count else 1


def main() -> None:
  """Checks the file given by the flags."""
  if not _SOLUTIONS.value:
    raise InputError('--solutions=FILE is required: a file of JSON lines with labelled solutions')
  if status := check(pathlib.Path(_SOLUTIONS.value), _MODE.value):
    sys.exit(status)


if __name__ == '__main__':
  launch.run_tool(main)
