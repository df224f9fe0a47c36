"""Few-shot prompts: solved problems before each problem, in its text or as turns of a chat."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.data import jsonl
from jaxrl_llm.types import Example, Task

PROMPT_FORMATS = ('plain', 'question_answer')
_KEYS = (('prompt', 'response'), ('question', 'answer'))
_STREAM = 3  # Of the seed, next to those with which tasks choose problems.


class Shot(NamedTuple):
  """A solved problem."""

  question: str
  answer: str


def add(config: Any, task: Task) -> Task:
  """Formats the held-out prompts and puts the shots of the config before each.

  All problems get the same shots in the same order.

  Args:
    config: an `EvaluatePolicy`.
    task: the task, without a chat template; shots are its demonstrations unless a file is named.

  Returns:
    The task. The examples' prompts have the shots in them, or, for turns, 'shots' has messages.

  Raises:
    ValueError: if there are too few shots, a shot is a held-out problem, or the file is malformed.
  """
  shots = _choose(config, task)
  questions = {shot.question for shot in shots}
  for example in task.evaluation:
    if example['prompt'] in questions:
      raise ValueError(
          f'a shot must not be a held-out problem, got {example["prompt"][:60]!r} '
          '(config.shots_file)')

  def with_shots(example: Example) -> Example:
    question = _question(config, example['prompt'])
    if config.shots_as_turns:
      return {**example, 'prompt': question, 'shots': _turns(config, shots)}
    texts = [_question(config, shot.question) + _answer(config, shot.answer) for shot in shots]
    return {**example, 'prompt': '\n\n'.join([*texts, question])}

  return dataclasses.replace(task, evaluation=[with_shots(e) for e in task.evaluation])


def _choose(config: Any, task: Task) -> list[Shot]:
  if not config.num_shots:
    return []
  if config.shots_file:
    path = pathlib.Path(config.data_dir) / config.shots_file
    shots = _read(path)[: config.num_shots]
    source = f'{path} (config.shots_file)'
  else:
    order = np.random.default_rng([config.seed, _STREAM]).permutation(len(task.demonstrations))
    chosen = [task.demonstrations[i] for i in order[: config.num_shots]]
    shots = [Shot(example['prompt'], example['response']) for example in chosen]
    source = f'the demonstrations of {task.name} (config.shots_file names another source)'

  if len(shots) < config.num_shots:
    raise ValueError(
        f'config.num_shots must be at most {len(shots)}, the number of {source}, got '
        f'{config.num_shots}')
  return shots


def _read(path: pathlib.Path) -> list[Shot]:
  """Reads a file of objects with 'prompt' and 'response', or 'question' and 'answer'."""
  shots = []
  for row in jsonl.read_rows(path):
    keys = next((keys for keys in _KEYS if all(
        isinstance(row.value.get(key), str) and row.value[key].strip() for key in keys)), None)
    if keys is None:
      raise ValueError(
          f"{path}, line {row.line}: a shot needs the texts 'prompt' and 'response', or 'question' "
          "and 'answer'")
    shots.append(Shot(*(row.value[key] for key in keys)))
  return shots


def _question(config: Any, text: str) -> str:
  return f'Question: {text}\nAnswer:' if config.prompt_format == 'question_answer' else text


def _answer(config: Any, text: str) -> str:
  if config.prompt_format == 'question_answer':
    return f' {text.strip()}'
  return text if text[:1].isspace() else f'\n{text}'


def _turns(config: Any, shots: Sequence[Shot]) -> list[dict[str, str]]:
  messages = []
  for shot in shots:
    messages += [{'role': 'user', 'content': _question(config, shot.question)},
                 {'role': 'assistant', 'content': shot.answer.strip()}]
  return messages
