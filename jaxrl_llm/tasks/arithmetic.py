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

from typing import NamedTuple

import numpy as np

from jaxrl_llm.data import tokenizers
from jaxrl_llm.rewards import exact_match
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


def make_task(
    *,
    seed: int,
    num_demonstrations: int,
    num_train: int,
    num_evaluation: int,
    digits: int = 3,
    carry_drop_rate: float = 0.55,
    carry_free_fraction: float = 0.1,
    answer_format: str = 'reversed',
    padding: str = 'zeros',
) -> Task:
  """Makes the task; a pure function of its arguments.

  The three sets of problems (ordered pairs) are pairwise disjoint, each drawn
  without replacement. No evaluation problem is a demonstration or training problem
  with swapped operands. Ids are a·10^digits + b.

  Args:
    seed: determines the problems, their order and which demonstrations are wrong.
    num_demonstrations: number of problems with a response.
    num_train: number of problems for stages 1 and 2.
    num_evaluation: number of held-out problems; drawn first, independently of the other sizes.
    digits: digits per operand, 1 to 4 (ids must fit an int32).
    carry_drop_rate: probability that a demonstration forgets its carries.
    carry_free_fraction: fraction of problems without a carry in each split.
    answer_format: 'plain', or 'reversed': least significant digit first, which a
      small model learns much faster.
    padding: 'zeros' (operands have `digits` digits, answers one more) or 'none'.

  Returns:
    The task. Examples also have the keys 'a' and 'b'.

  Raises:
    ValueError: if a value is out of range, or there are not enough problems.
  """
  _check(digits, carry_drop_rate, carry_free_fraction, answer_format, padding)
  evaluation, demonstrations, train = _draw_problems(
      seed, digits, (num_evaluation, num_demonstrations, num_train), carry_free_fraction
  )

  def build(ids: np.ndarray) -> list[Example]:
    return [_example(int(index), digits, answer_format, padding) for index in ids]

  drops = np.random.default_rng([seed, 1]).random(num_demonstrations) < carry_drop_rate
  return Task(
      name=f'arithmetic_{digits}_digits',
      tokenizer=tokenizers.CharacterTokenizer(ALPHABET),
      demonstrations=[
          example | {'response': _respond(example, drop, digits, answer_format, padding)}
          for example, drop in zip(build(demonstrations), drops)
      ],
      train=build(train),
      evaluation=build(evaluation),
      reward_fn=exact_match.exact_match,
      lenient_reward_fn=exact_match.exact_match,
      max_prompt_tokens=2 * digits + 2,
      max_response_tokens=digits + 2,
  )


def _check(
    digits: int,
    carry_drop_rate: float,
    carry_free_fraction: float,
    answer_format: str,
    padding: str,
) -> None:
  """Raises a one-line ValueError for the first argument that is out of range."""
  if not 1 <= digits <= 4:
    raise ValueError(f'digits must lie in 1 to 4, got {digits}')
  for name, value in (
      ('carry_drop_rate', carry_drop_rate),
      ('carry_free_fraction', carry_free_fraction),
  ):
    if not 0.0 <= value <= 1.0:
      raise ValueError(f'{name} must lie in [0, 1], got {value}')
  if answer_format not in ('reversed', 'plain'):
    raise ValueError(f"answer_format must be 'reversed' or 'plain', got {answer_format!r}")
  if padding not in ('zeros', 'none'):
    raise ValueError(f"padding must be 'zeros' or 'none', got {padding!r}")


def _draw_problems(
    seed: int, digits: int, sizes: tuple[int, int, int], carry_free_fraction: float
) -> list[np.ndarray]:
  """Draws the ids of the evaluation, demonstration and training problems."""
  base = 10**digits
  rng = np.random.default_rng([seed, 0])
  pool = rng.choice(base * base, size=min(base * base, _POOL), replace=False)

  names = ('num_evaluation', 'num_demonstrations', 'num_train')
  splits = []
  for index, (name, size) in enumerate(zip(names, sizes)):
    if size < 0:
      raise ValueError(f'{name} must be at least 0, got {size}')

    split = rng.permutation(_take(pool, base, name, size, carry_free_fraction))
    splits.append(split)
    taken = split
    if index == 0:  # Also exclude evaluation problems with swapped operands.
      taken = np.concatenate([split, split % base * base + split // base])

    pool = pool[~np.isin(pool, taken)]
  return splits


def _take(
    pool: np.ndarray, base: int, name: str, size: int, carry_free_fraction: float
) -> np.ndarray:
  """Takes the first problems of each kind from `pool`, the carry-free ones first."""
  carry = has_carry(pool // base, pool % base)
  num_free = round(size * carry_free_fraction)
  free_places, carry_places = np.flatnonzero(~carry), np.flatnonzero(carry)
  if num_free > len(free_places) or size - num_free > len(carry_places):
    raise ValueError(
        f'{name} = {size} needs {num_free} problems without and {size - num_free} with a carry, '
        f'but {len(free_places)} and {len(carry_places)} are left (more digits give more)'
    )
  return pool[np.concatenate([free_places[:num_free], carry_places[: size - num_free]])]


def _example(index: int, digits: int, answer_format: str, padding: str) -> Example:
  """Makes the example with id `index`."""
  a, b = divmod(index, 10**digits)
  width = digits if padding == 'zeros' else 1
  return {
      'id': index,
      'prompt': f'{a:0{width}d}+{b:0{width}d}=',
      'answer': _write_answer(a + b, digits, answer_format, padding),
      'a': a,
      'b': b,
  }


def _respond(example: Example, drop: bool, digits: int, answer_format: str, padding: str) -> str:
  """Returns a demonstration's response: the answer, or the sum without carries."""
  if not drop:
    return example['answer']
  wrong = int(drop_carries(example['a'], example['b']))
  return _write_answer(wrong, digits, answer_format, padding)


def _write_answer(value: int, digits: int, answer_format: str, padding: str) -> str:
  """Formats `value` in the task's answer format."""
  width = digits + 1 if padding == 'zeros' else 1
  text = f'{value:0{width}d}'
  return text[::-1] if answer_format == 'reversed' else text
