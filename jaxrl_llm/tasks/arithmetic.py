"""Addition with demonstrations that make a systematic mistake.

Problems look like `012+345=`. A fraction `carry_drop_rate` of the demonstrations
forgets every carry (each digit is summed modulo 10 independently). A model that
imitates them answers about half of the problems correctly when sampled, and
almost none when decoded greedily, since the mistake is the likelier answer.
The correct answers are in the support of the reference.

The scores of a perfect imitator follow from the problems alone. With f the
fraction of problems without a carry (where both answers agree) and d the drop
rate, pass@1 = f + (1 - f)(1 - d), and greedy accuracy = f for d > 1/2. f is
configurable and holds in every split up to rounding: f = 0.1 and d = 0.55 give
0.505 and 0.1.
"""

import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np

from jaxrl_llm import checks
from jaxrl_llm.data import tokenizers
from jaxrl_llm.rewards import exact_match
from jaxrl_llm.tasks import config as config_lib
from jaxrl_llm.types import Example, Task

ALPHABET = '0123456789+='
_POOL = 1_000_000  # Problems are drawn from at most this many candidates.


class ImitatorScores(NamedTuple):
  """Scores of a perfect imitator of the demonstrations.

  Attributes:
    pass_at_1: expected fraction of correct samples at temperature 1.
    greedy_accuracy: fraction of correct answers when the likelier one is given.
    carry_free_fraction: fraction of problems without a carry.
  """

  pass_at_1: float
  greedy_accuracy: float
  carry_free_fraction: float


def has_carry(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns whether a + b has a carry at any digit; bool, shaped like `a`."""
  return drop_carries(a, b) != np.asarray(a) + np.asarray(b)


def drop_carries(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Adds without carries: Σ_i ((a_i + b_i) mod 10)·10^i.

  Args:
    a: non-negative integers.
    b: non-negative integers of the same shape.

  Returns:
    int64 of that shape; equal to a + b if and only if no position carries.
  """
  a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
  total = np.zeros_like(a + b)
  power = 1
  while np.any(a >= power) or np.any(b >= power):
    total += (a // power + b // power) % 10 * power
    power *= 10
  return total


def imitator_scores(examples: list[Example], *, carry_drop_rate: float) -> ImitatorScores:
  """Computes the scores on `examples` of a perfect imitator of the demonstrations.

  pass@1 = f + (1 - f)(1 - d); greedy accuracy = f if d > 1/2, otherwise 1. Greedy
  decoding picks the mistake at the first digit where the answers differ; from then
  on the prefix forces it.

  Args:
    examples: problems with the keys 'a' and 'b'.
    carry_drop_rate: d, the fraction of demonstrations without carries.

  Returns:
    The scores, each in [0, 1].
  """
  carry = has_carry([example['a'] for example in examples], [example['b'] for example in examples])
  free = 1.0 - float(np.mean(carry))
  greedy = free if carry_drop_rate > 0.5 else 1.0
  return ImitatorScores(free + (1 - free) * (1 - carry_drop_rate), greedy, free)


@dataclasses.dataclass
class Config(config_lib.TaskConfig):
  """Config of the task.

  The three sets of problems (ordered pairs) are pairwise disjoint, each drawn without replacement.
  No evaluation problem is a demonstration or training problem with swapped operands. Ids are
  a·10^digits + b. Examples also have the keys 'a' and 'b'.

  Attributes:
    digits: digits per operand, 1 to 4 (ids must fit an int32).
    num_demonstrations: number of problems with a response.
    num_train: number of problems for stages 1 and 2.
    num_evaluation: number of held-out problems; drawn first, independently of the other sizes.
    carry_drop_rate: probability that a demonstration forgets its carries.
    carry_free_fraction: fraction of problems without a carry in each split.
    answer_format: 'plain', or 'reversed': least significant digit first, which a small model
      learns much faster.
    padding: 'zeros' (operands have `digits` digits, answers one more) or 'none'.
  """

  digits: int = 3
  num_demonstrations: int = 20_000
  num_train: int = 2_000
  num_evaluation: int = 1_000
  carry_drop_rate: float = 0.55
  carry_free_fraction: float = 0.1
  answer_format: str = 'reversed'
  padding: str = 'zeros'

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(
        self, prefix, digits=1, num_demonstrations=0, num_train=0, num_evaluation=0)
    checks.at_most(self, prefix, digits=4)
    checks.fraction(self, prefix, 'carry_drop_rate', 'carry_free_fraction')
    checks.one_of(self, prefix, answer_format=('reversed', 'plain'), padding=('zeros', 'none'))

  def make(
      self,
      seed: int,
      data_dir: str | pathlib.Path = '',
      policy: config_lib.PolicyTokenizer = config_lib.FROM_SCRATCH,
  ) -> Task:
    """See `TaskConfig.make`; a split that needs more problems than there are is an error."""
    del policy  # Problems are encoded by character.
    self.validate('config.task')
    config_lib.reject_data_dir(data_dir, 'arithmetic')
    evaluation, demonstrations, train = _draw_problems(self, seed)

    def build(ids: np.ndarray) -> list[Example]:
      return [_example(int(index), self) for index in ids]

    drops = np.random.default_rng([seed, 1]).random(self.num_demonstrations) < self.carry_drop_rate
    return Task(
        name=f'arithmetic_{self.digits}_digits',
        tokenizer=tokenizers.CharacterTokenizer(ALPHABET),
        demonstrations=[
            example | {'response': _respond(example, drop, self)}
            for example, drop in zip(build(demonstrations), drops)
        ],
        train=build(train),
        evaluation=build(evaluation),
        reward_fn=exact_match.exact_match,
        lenient_reward_fn=exact_match.exact_match,
        max_prompt_tokens=2 * self.digits + 2,
        max_response_tokens=self.digits + 2,
    )


def _draw_problems(config: Config, seed: int) -> list[np.ndarray]:
  """Draws the ids of the evaluation, demonstration and training problems."""
  base = 10**config.digits
  rng = np.random.default_rng([seed, 0])
  pool = rng.choice(base * base, size=min(base * base, _POOL), replace=False)

  splits = []
  for name in ('num_evaluation', 'num_demonstrations', 'num_train'):
    size = getattr(config, name)
    split = rng.permutation(_take(pool, base, name, size, config.carry_free_fraction))
    splits.append(split)

    taken = split
    if name == 'num_evaluation':  # Also exclude evaluation problems with swapped operands.
      taken = np.concatenate([split, split % base * base + split // base])
    pool = pool[~np.isin(pool, taken)]
  return splits


def _take(
    pool: np.ndarray, base: int, name: str, size: int, carry_free_fraction: float
) -> np.ndarray:
  """Takes the first problems of each kind from `pool`, the carry-free ones first."""
  has = has_carry(pool // base, pool % base)
  free, carrying = np.flatnonzero(~has), np.flatnonzero(has)

  num_free = round(size * carry_free_fraction)
  if num_free > len(free) or size - num_free > len(carrying):
    raise ValueError(
        f'{name} = {size} needs {num_free} problems without and {size - num_free} with a carry, '
        f'but {len(free)} and {len(carrying)} are left (more digits give more)'
    )
  return pool[np.concatenate([free[:num_free], carrying[: size - num_free]])]


def _example(index: int, config: Config) -> Example:
  """Makes the example with id `index`."""
  a, b = divmod(index, 10**config.digits)
  width = config.digits if config.padding == 'zeros' else 1
  return {
      'id': index,
      'prompt': f'{a:0{width}d}+{b:0{width}d}=',
      'answer': _write_answer(a + b, config),
      'a': a,
      'b': b,
  }


def _respond(example: Example, drop: bool, config: Config) -> str:
  """Returns a demonstration's response: the answer, or the sum without carries."""
  if not drop:
    return example['answer']
  return _write_answer(int(drop_carries(example['a'], example['b'])), config)


def _write_answer(value: int, config: Config) -> str:
  """Formats `value` in the task's answer format."""
  width = config.digits + 1 if config.padding == 'zeros' else 1
  text = f'{value:0{width}d}'
  return text[::-1] if config.answer_format == 'reversed' else text
