r"""Problems from any file of JSON objects with prompts and answers, for evaluation.

Prompts are plain text; `chat.with_template` puts them into a conversation. Columns that would be
part of a prompt (choices, context, a system text, images) and unknown columns are rejected;
`data.columns` lists those that are ignored. Worked solutions are ignored too.

`math_config` is for MATH and files with its layout (Hendrycks et al., 2021, arXiv 2103.03874:
'problem', 'solution' with the answer in \boxed{}, and often 'answer').
"""

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from jaxrl_llm import checks
from jaxrl_llm.data import columns, jsonl, tokenizers
from jaxrl_llm.rewards import exact_match, math_answer
from jaxrl_llm.rewards.math import answer_extraction, truths
from jaxrl_llm.tasks import config as config_lib
from jaxrl_llm.tasks import splits
from jaxrl_llm.types import Example, RewardFn, Task

MATH_INSTRUCTION = r'Reason step by step, and write the final answer in \boxed{}.'

# Correctness test: the response itself must equal the true answer, or else an answer extracted
# from it in the given mode of `math_answer.grade` must be equivalent to the true one.
REWARDS = {'exact': '', 'math': 'lenient', 'math_strict': 'strict', 'gsm8k': 'gsm8k'}

_MARKS = ('\\boxed', '\\fbox', '####')
_IDS = ('id', 'unique_id', 'problem_id')
# Keys copied to the examples, for results by group; other keys could be ambiguous here.
_METADATA = ('level', 'subject', 'type', 'source')
# Ignored keys: those that belong to the answer, and the ids of another tokenizer.
_ANSWER_COLUMNS = (
    'answer', 'solution', 'solutions', 'rationale', 'explanation', 'reasoning', 'reasoning_content',
    'thinking', 'response', 'output', 'completion', 'prompt_ids',
)


@dataclasses.dataclass
class Config(config_lib.TextConfig):
  r"""Config of a task that has only evaluation problems.

  The task is named after the file. Its examples keep 'level', 'subject', 'type' and 'source'.

  Attributes:
    file: one JSON object per line, or a JSON array of objects; relative to `data_dir`.
    prompt_field: key of the prompt in each object.
    answer_field: key of the true answer, a string or a number.
    solution_field: key of a worked solution whose marked answer (in \boxed{}, or after ####) is the
      true one if `answer_field` is missing; '' for none.
    instruction: appended to each prompt, on a separate line; '' for none.
    reward: one of `REWARDS`: 'exact' (the response is the answer), 'math' (a marked answer, with
      fallbacks down to the last number), 'math_strict' (only a marked answer) or 'gsm8k' (the
      number after ####). A truncated response scores 0; the task's lenient reward is 'math' with
      truncated responses allowed, or 'exact' if that is the reward.
    num_evaluation: number of problems; 0 for all.
    max_prompt_tokens: L; longer prompts are left out and counted by the code that encodes them.
    max_response_tokens: the sampler's limit.
  """

  file: str = ''
  prompt_field: str = 'prompt'
  answer_field: str = 'answer'
  solution_field: str = ''
  instruction: str = ''
  reward: str = 'math'
  num_evaluation: int = 0
  max_prompt_tokens: int = 512
  max_response_tokens: int = 1024

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(self, prefix, num_evaluation=0, max_prompt_tokens=1, max_response_tokens=1)
    checks.one_of(self, prefix, reward=tuple(REWARDS))

  def make(
      self,
      seed: int,
      data_dir: str | pathlib.Path = '',
      policy: config_lib.PolicyTokenizer = config_lib.FROM_SCRATCH,
  ) -> Task:
    """See `TaskConfig.make`; errors of a row name the file, the line and the field."""
    if not self.file:
      raise ValueError('a file of problems is needed: --config.task.file=FILE.jsonl')
    directory = self.resolve_tokenizer_dir(policy)
    if not directory:
      raise ValueError(
          'no tokenizer in the directory of config.policy_init_from: give '
          '--config.task.tokenizer_dir=DIR'
      )
    self.validate('config.task')

    path, mode = pathlib.Path(data_dir) / self.file, REWARDS[self.reward]
    examples = _read(path, self)
    reward_fn = lenient_reward_fn = exact_match.exact_match
    if mode:
      reward_fn = math_reward(mode)
      lenient_reward_fn = math_reward('lenient', count_truncated=True)

    return Task(
        name=path.stem,
        tokenizer=tokenizers.load_tokenizer(directory),
        demonstrations=[],
        train=[],
        evaluation=splits.choose(
            examples, self.num_evaluation, [seed, 2], name='num_evaluation'),
        reward_fn=reward_fn,
        lenient_reward_fn=lenient_reward_fn,
        max_prompt_tokens=self.max_prompt_tokens,
        max_response_tokens=self.max_response_tokens,
    )


def math_config(**fields: Any) -> Config:
  r"""Config for files in MATH's layout, with an instruction to box the answer.

  Args:
    **fields: fields of `Config`; they override the defaults for MATH.

  Returns:
    The config; its task's examples usually also have 'level' and 'subject'.
  """
  return Config(**{
      'prompt_field': 'problem', 'solution_field': 'solution', 'instruction': MATH_INSTRUCTION,
      'reward': 'math_strict', **fields,
  })


def _read(file: pathlib.Path, config: Config) -> list[Example]:
  """Reads the examples of a file; errors name the file, the line and the row's id.

  Answers that are compared mathematically must be finite.
  """
  fields = {config.prompt_field, config.answer_field, config.solution_field}
  examples = []
  for index, row in enumerate(jsonl.read_rows(file, required={config.prompt_field: str})):
    try:
      answer = _answer(row.value, config.answer_field, config.solution_field)
      prompt = row.value[config.prompt_field]
      if not prompt.strip():
        raise ValueError(f'{config.prompt_field!r} must not be empty')

      repeated = {key for key, value in row.value.items() if value in ('', prompt)}
      columns.check(row.value, fields | {*_METADATA, *_ANSWER_COLUMNS} | repeated)
      if REWARDS[config.reward]:
        truths.check(answer)
    except ValueError as error:
      name = next((f' (id {row.value[key]!r})' for key in _IDS if key in row.value), '')
      raise ValueError(f'{file}, line {row.line}{name}: {error}') from None

    text = f'{prompt}\n{config.instruction}' if config.instruction else prompt
    metadata = {key: value for key, value in row.value.items() if key in _METADATA}
    examples.append({**metadata, 'id': index, 'prompt': text, 'answer': answer})
  return examples


def _answer(row: dict[str, Any], answer_field: str, solution_field: str) -> str:
  """Returns the true answer of a row as text."""
  answer = row.get(answer_field)
  if answer is None and solution_field:
    solution = row.get(solution_field)
    if not isinstance(solution, str):
      raise ValueError(
          f'{answer_field!r} or {solution_field!r} must be a text, got {type(solution).__name__}')
    marked = any(mark in solution for mark in _MARKS)  # Excludes '... so the answer is that ...'.
    answer = answer_extraction.extract_marked(solution) if marked else None

    if answer is None:
      raise ValueError(f'{solution_field!r} marks no answer (in \\boxed{{}}, or after ####)')
  if answer is None:
    raise ValueError(f'the key {answer_field!r} is missing')

  if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
    raise ValueError(f'{answer_field!r} must be a text or a number, got {type(answer).__name__}')
  if isinstance(answer, float) and not math.isfinite(answer):
    raise ValueError(f'{answer_field!r} must be finite, got {answer}')
  if not str(answer).strip():
    raise ValueError(f'{answer_field!r} must not be empty')
  return str(answer)


def math_reward(mode: str, *, count_truncated: bool = False) -> RewardFn:
  """Makes a reward that is 1 where the answer in a response equals example['answer'].

  Args:
    mode: how the answer is extracted, see `math_answer.grade`.
    count_truncated: whether a truncated response may be correct.

  Returns:
    A `types.RewardFn`.
  """

  def reward(
      prompts: list[str], responses: list[str], truncated: np.ndarray, examples: list[Example]
  ) -> np.ndarray:
    del prompts  # The instruction contains the answer marks.
    right = math_answer.grade_batch(
        responses, [example['answer'] for example in examples], mode=mode
    )
    counts = count_truncated | ~np.asarray(truncated, bool)
    return (np.array(right, bool) & counts).astype(np.float32)

  return reward
