"""Short arithmetic in words: sums and differences of small numbers, each in a sentence.

  Tom has 3 apples and gets 4 more. How many apples does Tom have now?  ->  3 + 4 = 7.

A demonstration is the calculation. The answer of a response is its last number, compared as
mathematics; a truncated response is wrong. After a short fine-tuning on demonstrations, which
teaches the form, a pretrained model of 0.1B parameters solves some of the problems but not all, so
that there is something to learn from the verifier alone.
"""

import dataclasses
import pathlib

import numpy as np

from jaxrl_llm import checks
from jaxrl_llm.data import tokenizers
from jaxrl_llm.tasks import config as config_lib
from jaxrl_llm.tasks import jsonl
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
    max_prompt_tokens: longest prompt; a longer one is an error.
    max_response_tokens: the sampler's limit.
  """

  max_number: int = 20
  num_demonstrations: int = 256
  num_train: int = 512
  num_evaluation: int = 128
  max_prompt_tokens: int = 96
  max_response_tokens: int = 16

  @property
  def num_problems(self) -> int:
    """Number of different problems."""
    return len(KINDS) * len(NAMES) * len(THINGS) * (self.max_number - _LEAST + 1) ** 2

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(
        self, prefix, max_number=_LEAST, num_demonstrations=0, num_train=0, num_evaluation=0,
        max_prompt_tokens=1, max_response_tokens=1)
    checks.at_most(self, prefix, max_number=1_000)  # Ids must fit an int32.
    needed = self.num_demonstrations + self.num_train + self.num_evaluation
    if needed > self.num_problems:
      raise ValueError(
          f'{prefix}: num_demonstrations + num_train + num_evaluation must be at most '
          f'{self.num_problems}, the number of problems of max_number {self.max_number}, got '
          f'{needed}')

  def make(
      self,
      seed: int,
      data_dir: str | pathlib.Path = '',
      policy: config_lib.PolicyTokenizer = config_lib.FROM_SCRATCH,
  ) -> Task:
    """See `TaskConfig.make`."""
    self.validate('config.task')
    config_lib.reject_data_dir(data_dir, 'word problems')
    directory = self.resolve_tokenizer_dir(policy)
    if not directory:
      raise ValueError(
          'word problems need a tokenizer: give the directory of a policy '
          '(--config.policy_init_from=DIR), or --config.task.tokenizer_dir=DIR')

    order = np.random.default_rng([seed, 0]).permutation(self.num_problems)
    ends = np.cumsum([self.num_evaluation, self.num_demonstrations, self.num_train])
    evaluation, demonstrations, train, _ = (
        [problem(int(index), self.max_number) for index in part]
        for part in np.split(order, ends))
    return Task(
        name=f'word_problems_to_{self.max_number}',
        tokenizer=tokenizers.load_tokenizer(directory),
        demonstrations=demonstrations,
        train=[_without_response(example) for example in train],
        evaluation=[_without_response(example) for example in evaluation],
        reward_fn=jsonl.math_reward('lenient'),
        lenient_reward_fn=jsonl.math_reward('lenient', count_truncated=True),
        max_prompt_tokens=self.max_prompt_tokens,
        max_response_tokens=self.max_response_tokens,
    )


def problem(index: int, max_number: int) -> Example:
  """Returns the problem with an id, and its calculation as the response.

  Args:
    index: in [0, `Config.num_problems`).
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


def _without_response(example: Example) -> Example:
  return {key: value for key, value in example.items() if key != 'response'}
