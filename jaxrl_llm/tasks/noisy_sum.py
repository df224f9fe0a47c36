"""Running sums modulo 10 by a reference that makes mistakes, with closed forms for everything.

  31415=   ->   4,8,9,4,        (the sums 3 + 1, 3 + 1 + 4, ...; the answer is the last one)

In the demonstrations each sum is one too large with probability ε, and the mistake propagates. With
m sums of which at most 9 can go wrong, a response is right if and only if none does:

  pass@1 = (1 − ε)^m,    P(answer is the truth + k) = C(m, k) ε^k (1 − ε)^(m − k).

With m = 8 and ε = 0.15 the truth has probability 0.272 and the truth + 1 has 0.385: the majority of
many samples is wrong. The value of a prefix is (1 − ε)^(sums to come) if its sums are right, and 0
otherwise, so that a value model can be compared with the exact one, and search with its closed
forms (`search_accuracy`).

With `of='digits'` the right response lists the digits themselves, and a mistake shifts all later
ones: 3141= -> 3,1,5,2, with a mistake at the third. The closed forms are the same, and a small
value model learns to see the mistakes: a shifted digit differs from one token of the prompt, while
a wrong sum differs from a function of two other tokens, which takes far longer to learn from
outcomes alone.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from jaxrl_llm import checks
from jaxrl_llm.data import tokenizers
from jaxrl_llm.tasks import config as config_lib
from jaxrl_llm.types import Example, Task

ALPHABET = '0123456789=,'
MOST_SUMS = 8  # Ids of problems must fit an int32.
OF = ('sums', 'digits')


@dataclasses.dataclass
class Config(config_lib.TaskConfig):
  """Config of the task.

  The problems of the three sets are all different, and do not depend on `error_rate`: references
  of several rates can be made for the same problems. Ids are the digits of the prompt.

  Attributes:
    num_sums: m, steps of a response; at most `MOST_SUMS`.
    of: 'sums' of the digits so far, or the 'digits' themselves.
    error_rate: ε.
    num_demonstrations: number of problems with a response.
    num_train: number of problems for RL or for a value model.
    num_evaluation: number of held-out problems; drawn first, independently of the other sizes.
  """

  num_sums: int = 8
  of: str = 'sums'
  error_rate: float = 0.15
  num_demonstrations: int = 20_000
  num_train: int = 2_000
  num_evaluation: int = 300

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(
        self, prefix, num_sums=1, num_demonstrations=0, num_train=0, num_evaluation=0)
    checks.at_most(self, prefix, num_sums=MOST_SUMS)
    checks.one_of(self, prefix, of=OF)
    checks.fraction(self, prefix, 'error_rate')

  def make(
      self,
      seed: int,
      data_dir: str | pathlib.Path = '',
      policy: config_lib.PolicyTokenizer = config_lib.FROM_SCRATCH,
  ) -> Task:
    """See `TaskConfig.make`; more problems than there are is an error."""
    del policy  # Problems are encoded by character.
    self.validate('config.task')
    config_lib.reject_data_dir(data_dir, 'noisy sums')
    sizes = (self.num_evaluation, self.num_demonstrations, self.num_train)
    num_digits = self.num_sums + (self.of == 'sums')
    ids = _distinct(np.random.default_rng([seed, 0]), 10**num_digits, sum(sizes))
    evaluation, demonstrations, train = (
        [problem(int(index), self.num_sums, self.of) for index in part]
        for part in np.split(ids, np.cumsum(sizes)[:2]))

    mistakes = np.random.default_rng([seed, 1]).random(
        (self.num_demonstrations, self.num_sums)) < self.error_rate
    return Task(
        name=f'noisy_{self.of}_{self.num_sums}',
        tokenizer=tokenizers.CharacterTokenizer(ALPHABET),
        demonstrations=[
            example | {'response': response(example, row)}
            for example, row in zip(demonstrations, mistakes)],
        train=train,
        evaluation=evaluation,
        reward_fn=reward,
        lenient_reward_fn=reward,
        max_prompt_tokens=num_digits + 1,
        max_response_tokens=2 * self.num_sums + 1,
    )


def _distinct(random: np.random.Generator, count: int, size: int) -> np.ndarray:
  """Draws `size` different integers below `count`, in random order; a prefix needs no other draw.

  Raises:
    ValueError: if there are not enough.
  """
  if 2 * size > count:
    if size > count:
      raise ValueError(
          f'config.task: all sets together must have at most {count} problems with as many sums, '
          f'got {size}')
    return random.permutation(count)[:size]
  drawn = np.zeros(0, np.int64)
  while len(drawn) < size:
    both = np.concatenate([drawn, random.integers(0, count, size=size)])
    drawn = both[np.sort(np.unique(both, return_index=True)[1])]
  return drawn[:size]


def problem(index: int, num_sums: int, of: str = 'sums') -> Example:
  """Returns the problem with an id: its prompt, and the right response as 'steps'."""
  digits = f'{index:0{num_sums + (of == "sums")}d}'
  steps = [int(digit) for digit in digits]
  if of == 'sums':
    steps = (np.cumsum(steps)[1:] % 10).tolist()
  return {'id': index, 'prompt': f'{digits}=', 'answer': str(steps[-1]), 'steps': steps}


def response(example: Example, mistakes: Sequence[bool]) -> str:
  """Returns a response of which step i is one too large after those before it if mistakes[i]."""
  steps = (np.asarray(example['steps']) + np.cumsum(mistakes)) % 10
  return ''.join(f'{value},' for value in steps)


def reward(
    prompts: list[str], responses: list[str], truncated: np.ndarray, examples: list[Example]
) -> np.ndarray:
  """Scores 1 for a response that stopped after as many steps as asked, the last one being right."""
  del prompts
  return np.array([
      not cut and answer_of(text, len(example['steps'])) == example['answer']
      for text, cut, example in zip(responses, truncated, examples, strict=True)], np.float32)


def answer_of(text: str, num_sums: int) -> str:
  """Returns the last step of a whole response; '' if it has another form."""
  return text[-2] if re.fullmatch(f'([0-9],){{{num_sums}}}', text, re.ASCII) else ''


# --- Closed forms.


def success_rate(num_sums: int, error_rate: float) -> float:
  """P(a response of the reference is right) = (1 − ε)^m."""
  return (1 - error_rate) ** num_sums


def answer_probabilities(num_sums: int, error_rate: float) -> np.ndarray:
  """P(the answer is the truth + k), k = 0 ... m; float64 [m + 1]."""
  return np.array([
      math.comb(num_sums, k) * error_rate**k * (1 - error_rate) ** (num_sums - k)
      for k in range(num_sums + 1)])


def prefix_values(example: Example, text: str, error_rate: float) -> np.ndarray:
  """P(right) after each character of a response if the reference goes on.

  Args:
    example: a problem of this task.
    text: a response, or its beginning.
    error_rate: ε of the reference.

  Returns:
    float64 [len(text)]; 0 from the first character on that is not in the right response.
  """
  steps = example['steps']
  right = response(example, np.zeros(len(steps), bool))
  values = np.zeros(len(text))
  for i, character in enumerate(text):
    if i >= len(right) or character != right[i]:
      break
    values[i] = success_rate(len(steps) - (i // 2 + 1), error_rate)
  return values


def search_accuracy(num_sums: int, error_rate: float, *, block: int, width: int) -> float:
  """P(right) of a single beam that keeps the best of `width` blocks of sums by their exact value.

    (1 − (1 − q)^w)^(m / b),    q = (1 − ε)^b

  Args:
    num_sums: m, a multiple of `block`.
    error_rate: ε.
    block: b, sums in a block.
    width: w.
  """
  if num_sums % block:
    raise ValueError(f'block must divide the {num_sums} sums, got {block}')
  right = success_rate(block, error_rate)
  return (1 - (1 - right) ** width) ** (num_sums // block)
