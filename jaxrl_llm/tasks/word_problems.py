"""Short arithmetic in words: sums and differences of small numbers, each in a sentence.

  Tom has 3 apples and gets 4 more. How many apples does Tom have now?  ->  3 + 4 = 7.

A demonstration is the calculation. The answer of a response is its last number, which must be
written out in digits: `3 + 4` is wrong. A truncated response is wrong too. Held-out problems are of
pairs of numbers that no other problem has, in either order. After a short fine-tuning on
demonstrations, which teaches the form, a pretrained model of 0.1B parameters solves some of the
problems but not all, so that there is something to learn from the verifier alone.
"""

import dataclasses
import pathlib
import re

import numpy as np

from jaxrl_llm import checks
from jaxrl_llm.data import tokenizers
from jaxrl_llm.tasks import config as config_lib
from jaxrl_llm.types import Example, Task

NAMES = ('Ann', 'Ben', 'Eva', 'Leo', 'Mia', 'Sam', 'Tom', 'Zoe')
THINGS = ('apples', 'books', 'cards', 'coins', 'eggs', 'pens', 'shells', 'stamps')
# Text of each kind of problem, and the calculation; {c} is a + b.
KINDS = (
    ('{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?',
     '{a} + {b} = {c}.'),
    ('{name} has {c} {things} and gives {b} away. How many {things} does {name} have left?',
     '{c} - {b} = {a}.'),
    ('{name} has {a} {things} and {other} has {b}. How many {things} do they have together?',
     '{a} + {b} = {c}.'),
)
_LEAST = 2  # "1 apples" would be wrong.
_TEXTS = len(KINDS) * len(NAMES) * len(THINGS)  # Problems of a pair of numbers.
_HELD_OUT = 0.25  # Share of the pairs of numbers that only held-out problems have.
# A number with everything that belongs to it, such as a sign, a decimal point or a percent sign.
_NUMBER = re.compile(r'[-−+]?[0-9][0-9.,/%^*]*')
_LONGEST = 1_000  # Characters of a response that are read, from its end.


@dataclasses.dataclass
class Config(config_lib.TextConfig):
  """Config of the task.

  The three sets of problems are pairwise disjoint. Ids number all problems of a `max_number`;
  examples also have the key 'kind', an index of `KINDS`.

  Attributes:
    max_number: largest a and b; both are at least 2, and c = a + b.
    num_demonstrations: number of problems with a response.
    num_train: number of problems for RL.
    num_evaluation: number of held-out problems; drawn first, independently of the other sizes.
    max_prompt_tokens: longer prompts are left out and counted.
    max_response_tokens: the sampler's limit.
  """

  max_number: int = 20
  num_demonstrations: int = 256
  num_train: int = 512
  num_evaluation: int = 128
  max_prompt_tokens: int = 96
  max_response_tokens: int = 16

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(
        self, prefix, max_number=_LEAST, num_demonstrations=0, num_train=0, num_evaluation=0,
        max_prompt_tokens=1, max_response_tokens=1)
    checks.at_most(self, prefix, max_number=100)

  def make(
      self,
      seed: int,
      data_dir: str | pathlib.Path = '',
      policy: config_lib.PolicyTokenizer = config_lib.FROM_SCRATCH,
  ) -> Task:
    """See `TaskConfig.make`; a split that needs more problems than there are is an error."""
    self.validate('config.task')
    config_lib.reject_data_dir(data_dir, 'word problems')
    directory = self.resolve_tokenizer_dir(policy)
    if not directory:
      raise ValueError(
          'word problems need a tokenizer: give the directory of a policy '
          '(--config.policy_init_from=DIR), or --config.task.tokenizer_dir=DIR')

    held_out, others = _pools(self.max_number, seed)
    read = self.num_demonstrations + self.num_train
    for names, needed, pool in (
        ('num_evaluation', self.num_evaluation, held_out),
        ('num_demonstrations + num_train', read, others)):
      if needed > len(pool):
        raise ValueError(
            f'config.task: {names} must be at most {len(pool)} with max_number '
            f'{self.max_number}, got {needed}')

    def build(ids: np.ndarray) -> list[Example]:
      return [problem(int(index), self.max_number) for index in ids]

    return Task(
        name=f'word_problems_to_{self.max_number}',
        tokenizer=tokenizers.load_tokenizer(directory),
        demonstrations=build(others[: self.num_demonstrations]),
        train=_without_response(build(others[self.num_demonstrations : read])),
        evaluation=_without_response(build(held_out[: self.num_evaluation])),
        reward_fn=_reward,
        lenient_reward_fn=_lenient_reward,
        max_prompt_tokens=self.max_prompt_tokens,
        max_response_tokens=self.max_response_tokens,
    )


def problem(index: int, max_number: int) -> Example:
  """Returns the problem with an id, and its calculation as the response.

  Args:
    index: in [0, 192 (max_number - 1)²).
    max_number: as in the config.
  """
  count = max_number - _LEAST + 1
  rest, b = divmod(index, count)
  rest, a = divmod(rest, count)
  rest, things = divmod(rest, len(THINGS))
  kind, name = divmod(rest, len(NAMES))
  a, b = a + _LEAST, b + _LEAST

  values = {
      'a': a, 'b': b, 'c': a + b, 'things': THINGS[things], 'name': NAMES[name],
      'other': NAMES[(name + 1) % len(NAMES)]}
  text, calculation = (template.format(**values) for template in KINDS[kind])
  answer = calculation.rpartition('= ')[2].removesuffix('.')
  return {'id': index, 'prompt': text, 'answer': answer, 'kind': kind, 'response': calculation}


def last_number(response: str) -> str:
  """Returns the last number of a response as it is written, without a full stop or comma after it.

  What is joined to it by a sign, a decimal point, a percent sign or an operator is part of it: such
  a text equals no answer.
  """
  numbers = _NUMBER.findall(response[-_LONGEST:])
  return numbers[-1].rstrip('.,') if numbers else ''


def _pools(max_number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the ids of the held-out problems and of the others, each in random order."""
  count = max_number - _LEAST + 1
  rng = np.random.default_rng([seed, 0])
  draws = np.tril(rng.random((count, count)))
  draws += np.tril(draws, -1).T  # The same for (a, b) and (b, a).
  is_held_out = draws.ravel() < _HELD_OUT
  order = rng.permutation(_TEXTS * count**2)
  chosen = is_held_out[order % count**2]
  return order[chosen], order[~chosen]


def _grade(responses: list[str], examples: list[Example]) -> np.ndarray:
  return np.array([last_number(response) == example['answer']
                   for response, example in zip(responses, examples)], np.float32)


def _reward(prompts, responses, truncated, examples) -> np.ndarray:
  """1 where the last number is the answer and the response has ended."""
  return _grade(responses, examples) * ~np.asarray(truncated, bool)


def _lenient_reward(prompts, responses, truncated, examples) -> np.ndarray:
  return _grade(responses, examples)


def _without_response(examples: list[Example]) -> list[Example]:
  return [{key: value for key, value in example.items() if key != 'response'}
          for example in examples]
