r"""Prompts with answers from JSON files of one's own, for training and evaluation.

A row is one object, such as {"prompt": "What is 3 + 4?", "answer": "7"}. Prompts are plain text;
`chat.with_template` puts them into a conversation. Columns that would be part of a prompt (choices,
context, a system text, images) and unknown columns are rejected; `data.columns` lists those that
are ignored. Worked solutions are ignored unless `solution_field` names them.

`math_config` is for MATH and files with its layout (Hendrycks et al., 2021, arXiv 2103.03874:
'problem', 'solution' with the answer in \boxed{}, and often 'answer').
"""

import dataclasses
import functools
import math
import pathlib
import re
from typing import Any

import numpy as np

from jaxrl_llm import checks
from jaxrl_llm.data import columns, jsonl, tokenizers
from jaxrl_llm.rewards import countdown, math_answer, user_function
from jaxrl_llm.rewards.math import answer_extraction, truths
from jaxrl_llm.tasks import config as config_lib
from jaxrl_llm.tasks import splits
from jaxrl_llm.types import Example, RewardFn, Task, Tokenizer

MATH_INSTRUCTION = r'Reason step by step, and write the final answer in \boxed{}.'

# Modes of `math_answer.grade` by reward.
MODES = {'math': 'lenient', 'math_strict': 'strict', 'gsm8k': 'gsm8k'}
REWARDS = ('exact', *MODES, 'countdown')

_MARKS = ('\\boxed', '\\fbox', '####')
_IDS = ('id', 'unique_id', 'problem_id')
# Keys copied to the examples, for results by group; other keys could be ambiguous here.
_METADATA = ('level', 'subject', 'type', 'source')
# Ignored keys: those that belong to the answer, and the ids of another tokenizer.
_ANSWER_COLUMNS = (
    'answer', 'solution', 'solutions', 'rationale', 'explanation', 'reasoning', 'reasoning_content',
    'thinking', 'response', 'output', 'completion', 'prompt_ids',
)
_COUNTDOWN = ('numbers', 'target')
_RESERVED = ('id', 'prompt', 'answer', 'question', 'response', 'prompt_ids', 'messages')


@dataclasses.dataclass
class Config(config_lib.TextConfig):
  r"""Config of the task.

  The task is named after the first file. Its examples keep 'level', 'subject', 'type' and 'source'.
  A demonstration is the worked solution of a training problem, or else its answer; it begins on a
  new line. The held-out problems depend only on the files, the seed and their number, and no
  training problem has the same prompt.

  Attributes:
    files: comma-separated names of files, relative to `data_dir`: one JSON object per line, or a
      JSON array of objects.
    evaluation_files: files of held-out problems, instead of a part of `files`.
    prompt_field: key of the prompt in each object.
    answer_field: key of the true answer, a string or a number; '' for none, with a function of your
      own as `reward`.
    solution_field: key of a worked solution, whose marked answer (in \boxed{}, or after ####) is
      the true one if `answer_field` is missing; '' for none.
    keep_fields: comma-separated keys that are copied to the examples, for a function of your own.
    instruction: appended to each prompt, on a separate line; '' for none.
    reward: one of `REWARDS`, or `module:function`. 'exact': the response is the answer, apart from
      white space around it. 'math': a marked answer, with fallbacks down to the last number, in
      what the response adds to the prompt. 'math_strict': only a marked answer. 'gsm8k': the number
      after ####. 'countdown': an expression of all 'numbers' of the row with the value 'target'
      (`rewards.countdown`). `module:function`: see `rewards.user_function`. A truncated response
      scores 0; the task's lenient reward is 'math' with truncated responses allowed, or else the
      reward itself.
    num_evaluation: number of held-out problems; 0 for all of `evaluation_files`, or without these
      for `evaluation_fraction`.
    evaluation_fraction: fraction of the problems of `files` that is held out, at least one, if
      `num_evaluation` is 0 and there are no `evaluation_files`; 0 holds out all, for a program that
      only evaluates.
    max_prompt_tokens: L; longer prompts are left out and counted.
    max_response_tokens: the sampler's limit.
  """

  files: str = ''
  evaluation_files: str = ''
  prompt_field: str = 'prompt'
  answer_field: str = 'answer'
  solution_field: str = ''
  keep_fields: str = ''
  instruction: str = ''
  reward: str = 'math'
  num_evaluation: int = 0
  evaluation_fraction: float = 0.0
  max_prompt_tokens: int = 512
  max_response_tokens: int = 1024

  @property
  def mode(self) -> str:
    """The mode of `math_answer.grade`; '' for a reward that is not mathematical."""
    return MODES.get(self.reward, '')

  @property
  def is_own_function(self) -> bool:
    """True if the reward is a `module:function`."""
    return user_function.is_name(self.reward)

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(self, prefix, num_evaluation=0, max_prompt_tokens=1, max_response_tokens=1)
    checks.interval(self, prefix, '[0, 1)', 'evaluation_fraction')
    checks.required(self, prefix, 'prompt_field')

    if not self.is_own_function:
      if self.reward not in REWARDS:
        raise ValueError(
            f'{prefix}.reward must be one of {", ".join(REWARDS)}, or module:function, got '
            f'{self.reward!r}')
      checks.fixed(self, prefix, f'with reward {self.reward!r}', keep_fields='')
      if self.reward != 'countdown' and not self.solution_field:
        checks.required(self, prefix, 'answer_field')
    reserved = set(config_lib.split(self.keep_fields)) & set(_RESERVED)
    if reserved:
      raise ValueError(
          f'{prefix}.keep_fields must not contain {", ".join(_RESERVED)}, got {sorted(reserved)}')

  def make(
      self,
      seed: int,
      data_dir: str | pathlib.Path = '',
      policy: config_lib.PolicyTokenizer = config_lib.FROM_SCRATCH,
  ) -> Task:
    """See `TaskConfig.make`; errors of a row name the file, the line and the field."""
    names = config_lib.split(self.files)
    if not names:
      raise ValueError('a file of problems is needed: --config.task=FILE.jsonl')
    directory = self.resolve_tokenizer_dir(policy)
    if not directory:
      raise ValueError(
          'no tokenizer in the directory of config.policy_init_from: give '
          '--config.task.tokenizer_dir=DIR' if policy.directory or policy.pretrained else
          'a file of problems needs a tokenizer: give the directory of a policy '
          '(--config.policy_init_from=DIR), or --config.task.tokenizer_dir=DIR'
      )
    self.validate('config.task')
    reward_fn, lenient_reward_fn = _rewards(self)
    tokenizer = tokenizers.load_tokenizer(directory)

    folder = config_lib.existing_dir(data_dir)
    examples = _read([folder / name for name in names], self)
    given = _read(
        [folder / name for name in config_lib.split(self.evaluation_files)], self,
        first_id=len(examples))
    train, evaluation = _split(examples, given, self, seed)
    short = {'train': _within(train, tokenizer, self.max_prompt_tokens),
             'evaluation': _within(evaluation, tokenizer, self.max_prompt_tokens)}

    return Task(
        name=pathlib.Path(names[0]).stem,
        tokenizer=tokenizer,
        demonstrations=[example for example in short['train'] if 'response' in example],
        train=_prompts(short['train']),
        evaluation=_prompts(short['evaluation']),
        reward_fn=reward_fn,
        lenient_reward_fn=lenient_reward_fn,
        max_prompt_tokens=self.max_prompt_tokens,
        max_response_tokens=self.max_response_tokens,
        num_filtered={
            'train': len(train) - len(short['train']),
            'evaluation': len(evaluation) - len(short['evaluation']),
        },
        num_repeated=len(examples) - len(train) - (0 if given else len(evaluation)),
        reward_source=user_function.source(self.reward) if self.is_own_function else '',
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


def _split(
    examples: list[Example], given: list[Example], config: Config, seed: int
) -> tuple[list[Example], list[Example]]:
  """Returns (training problems, held-out problems), which share no prompt."""
  count = config.num_evaluation
  if not (count or given):
    count = round(config.evaluation_fraction * len(examples))
    count = max(1, count) if config.evaluation_fraction else 0
  pool = given or examples
  if count > len(pool):
    raise ValueError(
        f'{config.evaluation_files or config.files} has {len(pool)} problems: '
        f'config.task.num_evaluation must be at most {len(pool)}, got {count}')
  evaluation = splits.choose(pool, count, [seed, 2], name='num_evaluation')

  held_out = {example['prompt'] for example in given or evaluation}
  return [example for example in examples if example['prompt'] not in held_out], evaluation


def _within(examples: list[Example], tokenizer: Tokenizer, limit: int) -> list[Example]:
  """Keeps the prompts of at most `limit` tokens; raises ValueError if all are longer."""
  short = [
      example for example in examples
      if len(tokenizer.start_ids) + len(tokenizer.encode(example['prompt'])) <= limit
  ]
  if examples and not short:
    raise ValueError(
        f'no prompt of {len(examples)} has at most {limit} tokens (config.task.max_prompt_tokens)')
  return short


def _prompts(examples: list[Example]) -> list[Example]:
  """Returns the examples without their responses."""
  return [
      {key: value for key, value in example.items() if key != 'response'} for example in examples]


def _read(files: list[pathlib.Path], config: Config, *, first_id: int = 0) -> list[Example]:
  """Reads the examples of files, with consecutive ids.

  Errors name the file, the line and the row's id. Answers that are compared mathematically must be
  finite.
  """
  examples: list[Example] = []
  for file in files:
    for row in jsonl.read_rows(file, required={config.prompt_field: str}):
      try:
        example = _example(row.value, config)
      except ValueError as error:
        name = next((f' (id {row.value[key]!r})' for key in _IDS if key in row.value), '')
        raise ValueError(f'{file}, line {row.line}{name}: {error}') from None
      examples.append({'id': first_id + len(examples), **example})
  return examples


def _example(row: dict[str, Any], config: Config) -> Example:
  """Makes the example of a row, without its id."""
  prompt = row[config.prompt_field]
  if not prompt.strip():
    raise ValueError(f'{config.prompt_field!r} must not be empty')
  if config.reward == 'countdown':
    answer, more = _countdown(row)
  else:
    answer, more = _answer(row, config), {}
  if answer.strip() == prompt.strip():
    raise ValueError(f'the answer must not repeat {config.prompt_field!r}, got {answer!r:.80}')
  if config.mode:
    truths.check(answer)

  copied = config_lib.split(config.keep_fields)
  for key in copied:
    if key not in row:
      raise ValueError(f'the key {key!r} is missing (config.task.keep_fields)')
  fields = {config.prompt_field, config.answer_field, config.solution_field}
  repeated = {key for key, value in row.items() if value in ('', prompt)}
  columns.check(row, fields | {*_METADATA, *_ANSWER_COLUMNS, *more, *copied} | repeated)

  example = {key: value for key, value in row.items() if key in (*_METADATA, *copied)} | more
  example |= {
      'prompt': f'{prompt}\n{config.instruction}' if config.instruction else prompt,
      'answer': answer}
  response = row.get(config.solution_field) or answer
  if not isinstance(response, str):
    raise ValueError(
        f'{config.solution_field!r} must be a text, got {type(response).__name__}')
  return example | ({'response': f'\n{response.strip()}'} if response.strip() else {})


def _countdown(row: dict[str, Any]) -> tuple[str, Example]:
  """Returns the answer of a row, '' for none, and what the verifier needs."""
  numbers, target = (row.get(key) for key in _COUNTDOWN)
  if not (isinstance(numbers, list) and numbers and all(type(n) is int for n in numbers)):
    raise ValueError(f"'numbers' must be a list of integers, got {columns.shown(numbers)}")
  if type(target) is not int:
    raise ValueError(f"'target' must be an integer, got {columns.shown(target)}")

  answer = row.get('answer') or ''
  if answer and not (isinstance(answer, str) and countdown.is_solution(answer, numbers, target)):
    raise ValueError(
        f"'answer' must reach the target {target} with the numbers {numbers}, got "
        f'{columns.shown(answer)}')
  return answer, {'numbers': numbers, 'target': target}


def _answer(row: dict[str, Any], config: Config) -> str:
  """Returns the true answer of a row as text; '' if there is none, for a function of one's own."""
  answer_field, solution_field = config.answer_field, config.solution_field
  answer = row.get(answer_field)
  if answer is None and solution_field:
    solution = row.get(solution_field)
    if not isinstance(solution, str):
      raise ValueError(
          f'{answer_field!r} or {solution_field!r} must be a text, got {type(solution).__name__}')
    marked = any(mark in solution for mark in _MARKS)  # Excludes '... so the answer is that ...'.
    answer = answer_extraction.extract_marked(solution) if marked else None

    if answer is None and not (config.is_own_function and not answer_field):
      raise ValueError(f'{solution_field!r} marks no answer (in \\boxed{{}}, or after ####)')
  if answer is None and config.is_own_function and not answer_field:
    return ''
  if answer is None:
    raise ValueError(f'the key {answer_field!r} is missing')

  if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
    raise ValueError(f'{answer_field!r} must be a text or a number, got {type(answer).__name__}')
  if isinstance(answer, float) and not math.isfinite(answer):
    raise ValueError(f'{answer_field!r} must be finite, got {answer}')
  if not str(answer).strip():
    raise ValueError(f'{answer_field!r} must not be empty')
  return str(answer)


def _rewards(config: Config) -> tuple[RewardFn, RewardFn]:
  """Returns the reward and the lenient reward of a config."""
  if config.mode:
    make = functools.partial(math_reward, instruction=config.instruction)
    return make(config.mode), make('lenient', count_truncated=True)
  if config.is_own_function:
    with checks.within('config.task.reward'):
      function = user_function.load(config.reward)
    return tuple(
        user_function.make_reward(config.reward, function, count_truncated=count_truncated)
        for count_truncated in (False, True))
  reward_fn = countdown.countdown if config.reward == 'countdown' else exact_reward
  return reward_fn, reward_fn


def exact_reward(
    prompts: list[str], responses: list[str], truncated: np.ndarray, examples: list[Example]
) -> np.ndarray:
  """Scores 1 for a response that stopped and is the answer, apart from white space around it."""
  del prompts
  right = [
      bool(example['answer'].strip()) and response.strip() == example['answer'].strip()
      for response, example in zip(responses, examples, strict=True)
  ]
  return (np.array(right, bool) & ~np.asarray(truncated, bool)).astype(np.float32)


def math_reward(
    mode: str, *, instruction: str = '', count_truncated: bool = False
) -> RewardFn:
  """Makes a reward that is 1 where the answer in a response equals example['answer'].

  With fallbacks ('lenient') a copy of the prompt in the response is ignored: its last number may be
  the answer.

  Args:
    mode: how the answer is extracted, see `math_answer.grade`.
    instruction: the last line of the prompts, which a copy may lack.
    count_truncated: whether a truncated response may be correct.

  Returns:
    A `types.RewardFn`.
  """

  def reward(
      prompts: list[str], responses: list[str], truncated: np.ndarray, examples: list[Example]
  ) -> np.ndarray:
    if mode == 'lenient':
      # In a template, the prompt that a response may copy is 'question'.
      questions = [e.get('question', prompt) for prompt, e in zip(prompts, examples)]
      responses = [
          _without_echo(response, (question, question.removesuffix(instruction)))
          for response, question in zip(responses, questions)]
    right = math_answer.grade_batch(
        responses, [example['answer'] for example in examples], mode=mode
    )
    counts = count_truncated | ~np.asarray(truncated, bool)
    return (np.array(right, bool) & counts).astype(np.float32)

  return reward


def _without_echo(response: str, prompts: tuple[str, ...]) -> str:
  """Removes copies of prompts from a response."""
  for text in filter(None, map(str.strip, prompts)):
    response = re.sub(rf'(?<!\w){re.escape(text)}(?!\w)', ' ', response)
  return response
