"""Countdown with three numbers: generated training problems, the published test file.

A problem looks like `30,100,93=23:`, with the solution `93-(100-30)`. The file of 256
problems (countdown_cd3_test.jsonl) is consistent with our generator: three numbers
uniform in 1 to 100; then, uniformly, one of the ways to combine them pairwise with
+ - * / through non-negative whole numbers that ends in 1 to 100. Its chi-square
statistics against the file are about 4.6 for the numbers (11 degrees of freedom) and
10.8 for the targets (10); 223 of the 256 need only + and -, where 217 are expected.

A policy with its own tokenizer is given the same problems in words, and answers with
`Answer: 93-(100-30)` on its last line.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from jaxrl_llm import checks
from jaxrl_llm.data import jsonl, tokenizers
from jaxrl_llm.rewards import countdown
from jaxrl_llm.tasks import config as config_lib
from jaxrl_llm.types import Example, Task, Tokenizer

ALPHABET = '0123456789+-*/(),=:'
TEST_FILE = 'countdown_cd3_test.jsonl'
MAX_PROMPT_TOKENS, MAX_RESPONSE_TOKENS = 128, 256  # For problems in words.
_INSTRUCTION = (
    'Reach {target} with the numbers {numbers}: use each of them exactly once, with the operations '
    '+, -, * and / and with parentheses where needed. End with a line that holds "{mark}" and the '
    'expression alone, such as "{mark} (5-2)*4".'
)
_LARGEST = 100  # Largest number and target, also in the published file.
_MAX_ATTEMPTS = 50  # Draws per requested problem before giving up.

Problem = tuple[tuple[int, ...], int]  # Numbers and target.


@dataclasses.dataclass
class Config(config_lib.TextConfig):
  """Config of the task.

  No two problems have the same target and the same numbers in any order. Ids are 0, 1, ... over
  evaluation, demonstrations and training problems. Examples also have 'numbers' and 'target', and a
  solution as 'answer'.

  Attributes:
    num_demonstrations: number of problems with a response, for supervised fine-tuning.
    num_train: number of problems for stages 1 and 2.
    wrong_rate: probability that a demonstration is an expression of the right numbers with another
      value, so that a model trained on them is imperfect.
    tokenizer_dir: with a tokenizer of config or policy the problems are put in words; without one
      they are encoded by character, as short as in the file.
    max_prompt_tokens: only with a tokenizer; 0 means `MAX_PROMPT_TOKENS`. Whether a longer prompt
      is left out or an error depends on the code that encodes it.
    max_response_tokens: only with a tokenizer; 0 means `MAX_RESPONSE_TOKENS`.
  """

  num_demonstrations: int = 20_000
  num_train: int = 2_000
  wrong_rate: float = 0.3
  max_prompt_tokens: int = 0
  max_response_tokens: int = 0

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(
        self, prefix, num_demonstrations=0, num_train=0, max_prompt_tokens=0, max_response_tokens=0)
    checks.fraction(self, prefix, 'wrong_rate')

  def make(
      self,
      seed: int,
      data_dir: str | pathlib.Path = '',
      policy: config_lib.PolicyTokenizer = config_lib.FROM_SCRATCH,
  ) -> Task:
    """See `TaskConfig.make`; `data_dir` is the directory of countdown_cd3_test.jsonl."""
    folder = config_lib.require_data_dir(data_dir, 'countdown', TEST_FILE)
    self.validate('config.task')
    tokenizer, max_prompt_tokens, max_response_tokens = self._tokenizer_and_limits(policy)
    in_words = not isinstance(tokenizer, tokenizers.CharacterTokenizer)

    published = read_problems(folder / TEST_FILE)
    taken = {(tuple(sorted(numbers)), target) for numbers, target in published}
    rng = np.random.default_rng([seed, 0])
    generated = _generate(rng, self.num_demonstrations + self.num_train, taken)

    answers = [solutions(numbers)[target][0] for numbers, target in published]
    examples = [
        _example(index, problem, answer, in_words)
        for index, (problem, answer) in enumerate([*zip(published, answers), *generated])
    ]

    train_start = len(published) + self.num_demonstrations
    demonstrations = examples[len(published) : train_start]
    rng = np.random.default_rng([seed, 1])
    for example, wrong in zip(demonstrations, rng.random(len(demonstrations)) < self.wrong_rate):
      text = _wrong_response(rng, example) if wrong else example['answer']
      example['response'] = f'\n{countdown.MARK} {text}' if in_words else text

    return Task(
        name='countdown_3_numbers',
        tokenizer=tokenizer,
        demonstrations=demonstrations,
        train=examples[train_start:],
        evaluation=examples[: len(published)],
        reward_fn=countdown.countdown,
        lenient_reward_fn=countdown.countdown,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens,
    )

  def _tokenizer_and_limits(
      self, policy: config_lib.PolicyTokenizer
  ) -> tuple[Tokenizer, int, int]:
    """Returns the tokenizer, and the limits of prompts and responses."""
    if directory := self.resolve_tokenizer_dir(policy):
      return (
          tokenizers.load_tokenizer(directory), self.max_prompt_tokens or MAX_PROMPT_TOKENS,
          self.max_response_tokens or MAX_RESPONSE_TOKENS,
      )

    checks.fixed(
        self, 'config.task', 'without a tokenizer_dir (characters have their own limits)',
        max_prompt_tokens=0, max_response_tokens=0)
    characters = tokenizers.CharacterTokenizer(ALPHABET)
    return characters, len('100,100,100=100:'), len('(100+100)+100=100') + 1


def read_problems(path: pathlib.Path) -> list[Problem]:
  """Reads problems such as {"input": "30,100,93", "output": "23"}, one per line.

  Args:
    path: the file to read.

  Returns:
    (numbers, target) of each line.

  Raises:
    ValueError: one line, if the file is missing or damaged, a line does not hold three
      numbers in 1 to 100 and a target, or a problem has no solution.
  """
  problems = []
  for number, row in enumerate(jsonl.read_jsonl(path, required={'input': str, 'output': str}), 1):
    fields = [*row['input'].split(','), row['output']]
    if len(fields) != 4 or not all(f.isascii() and f.isdigit() and len(f) <= 3 for f in fields):
      raise ValueError(
          f'{path}, line {number}: expected three numbers and a target, got {row["input"]!r} '
          f'and {row["output"]!r}'
      )

    *numbers, target = map(int, fields)
    if not all(1 <= value <= _LARGEST for value in (*numbers, target)):
      raise ValueError(f'{path}, line {number}: all values must be in [1, {_LARGEST}]')
    if target not in solutions(tuple(numbers)):
      raise ValueError(f'{path}, line {number}: {target} cannot be reached from {row["input"]}')
    problems.append((tuple(numbers), target))
  return problems


def _combine(a: tuple[str, int], b: tuple[str, int]) -> Iterator[tuple[str, int]]:
  """Yields all combinations of two expressions with a non-negative whole value."""
  (first, x), (second, y) = a, b
  yield f'{first}+{second}', x + y
  yield f'{first}*{second}', x * y
  for (left, u), (right, v) in ((a, b), (b, a)):
    if u >= v:
      yield f'{left}-{right}', u - v
    if v > 0 and u % v == 0:
      yield f'{left}/{right}', u // v


def solutions(numbers: tuple[int, ...]) -> dict[int, list[str]]:
  """Finds all targets in 1 to 100 that three numbers reach, with their expressions.

  Args:
    numbers: three positive numbers.

  Returns:
    {target: expressions that use each number once}; intermediate values are
    non-negative whole numbers.
  """
  expressions: dict[int, list[str]] = {}
  leaves = [(str(number), number) for number in numbers]
  for last in (2, 1, 0):
    first, second = (leaves[index] for index in range(3) if index != last)
    for text, value in _combine(first, second):
      for expression, target in _combine((f'({text})', value), leaves[last]):
        if 1 <= target <= _LARGEST:
          expressions.setdefault(target, []).append(expression)
  return expressions


def _generate(
    rng: np.random.Generator, count: int, taken: set[Problem]
) -> list[tuple[Problem, str]]:
  """Generates `count` problems, each with a solution, none of them in `taken`."""
  generated: list[tuple[Problem, str]] = []
  seen = set(taken)
  for _ in range(_MAX_ATTEMPTS * count):
    if len(generated) == count:
      break
    numbers = tuple(map(int, rng.integers(1, _LARGEST + 1, size=3)))
    ways = [(target, text) for target, texts in solutions(numbers).items() for text in texts]
    if not ways:
      continue

    target, text = ways[rng.integers(len(ways))]
    key = (tuple(sorted(numbers)), target)
    if key not in seen:
      seen.add(key)
      generated.append(((numbers, target), text))

  if len(generated) < count:
    raise ValueError(f'only {len(generated)} of {count} distinct problems could be generated')
  return generated


def _wrong_response(rng: np.random.Generator, example: Example) -> str:
  """Returns an expression of the example's numbers with a value other than its target."""
  ways = [
      text
      for target, texts in solutions(tuple(example['numbers'])).items()
      for text in texts
      if target != example['target']
  ]
  # If only one target can be reached, it is not the sum: where the sum is at most 100, the two
  # largest numbers minus the smallest are a second target.
  return ways[rng.integers(len(ways))] if ways else '+'.join(map(str, example['numbers']))


def _example(index: int, problem: Problem, answer: str, in_words: bool) -> Example:
  """Makes the example of a problem."""
  numbers, target = problem
  prompt = f'{",".join(map(str, numbers))}={target}:'
  if in_words:
    first, second, last = numbers
    prompt = _INSTRUCTION.format(
        numbers=f'{first}, {second} and {last}', target=target, mark=countdown.MARK
    )

  return {
      'id': index,
      'prompt': prompt,
      'answer': answer,
      'numbers': list(numbers),
      'target': target,
  }
