"""GSM8K: grade-school word problems with worked solutions, from the published files.

The last line of a solution is `#### ` and the final number. Its other lines contain
calculator annotations such as `48/2 = <<48/2=24>>24`.

References:
  Cobbe et al. (2021), Training Verifiers to Solve Math Word Problems, arXiv 2110.14168.
"""

import pathlib
import re
from typing import NamedTuple

from jaxrl_llm.data import jsonl

SPLITS = ('train', 'test')
_LAST_LINE = re.compile(r'#### (-?[0-9][0-9,]*(?:\.[0-9]+)?)')
_ANNOTATION = re.compile(r'<<[^<>\n]*>>')


class Problem(NamedTuple):
  """One problem of the file.

  Attributes:
    index: line number in the file, from 0.
    question: text of the problem.
    answer: worked solution as published, including annotations and last line.
  """

  index: int
  question: str
  answer: str


def load_split(data_dir: str | pathlib.Path, split: str) -> list[Problem]:
  """Reads train.jsonl or test.jsonl.

  Args:
    data_dir: directory of the two files.
    split: 'train' or 'test'.

  Returns:
    The problems, in file order.

  Raises:
    ValueError: the file is missing, truncated or malformed; one line that names the file
      and the line in it.
  """
  if split not in SPLITS:
    raise ValueError(f"split must be 'train' or 'test', got {split!r}")
  path = pathlib.Path(data_dir) / f'{split}.jsonl'
  rows = jsonl.read_jsonl(path, required={'question': str, 'answer': str})
  problems = [Problem(index, row['question'], row['answer']) for index, row in enumerate(rows)]
  for problem in problems:
    try:
      final_answer(problem.answer)
    except ValueError as error:
      raise ValueError(f'{path}, line {problem.index + 1}: {error}') from None
    if not problem.question.strip():
      raise ValueError(f'{path}, line {problem.index + 1}: the question is empty')
  return problems


def final_answer(answer: str) -> str:
  """Returns the number on the last line of a published solution, without commas.

  Args:
    answer: solution that ends with a line such as `#### 1,234`.

  Returns:
    The bare number, such as '1234'.

  Raises:
    ValueError: the last line does not have that form.
  """
  last = answer.rstrip().rsplit('\n', 1)[-1]
  match = _LAST_LINE.fullmatch(last)
  if match is None:
    raise ValueError(f"the answer's last line must be '#### ' and a number, got {last[:60]!r}")
  return match.group(1).replace(',', '')


def strip_annotations(answer: str) -> str:
  """Removes calculator annotations: `48/2 = <<48/2=24>>24` becomes `48/2 = 24`."""
  return _ANNOTATION.sub('', answer)
