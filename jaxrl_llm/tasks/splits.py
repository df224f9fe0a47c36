"""Random subsets and held-out examples of data that comes as one list."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from jaxrl_llm.types import Example


def choose(examples: list[Example], count: int, seed: Sequence[int], *, name: str) -> list[Example]:
  """Selects random examples, in their original order.

  Args:
    examples: all examples.
    count: number of examples; 0 for all.
    seed: seed of `np.random.default_rng`.
    name: the config field of `count`, for errors.

  Raises:
    ValueError: if there are fewer than `count` examples.
  """
  if not count or not examples:
    return list(examples)
  if count > len(examples):
    raise ValueError(f'config.task.{name} must be at most {len(examples)}, got {count}')
  chosen = np.random.default_rng(seed).choice(len(examples), count, replace=False)
  return [examples[index] for index in sorted(chosen)]


def hold_out(
    examples: list[Example],
    count: int,
    seed: int,
    *,
    question: Callable[[Example], Hashable],
    name: str,
    given: Sequence[Example] = (),
) -> tuple[list[Example], list[Example]]:
  """Returns (the rest, the held-out examples), which share no question.

  Args:
    examples: all examples.
    count: number of held-out examples; 0 for all of `given`.
    seed: determines which examples are held out.
    question: returns what an example asks.
    name: name of the examples, for errors.
    given: the examples to hold out from; if empty, all examples.

  Raises:
    ValueError: if `count` is out of range, or nothing is left.
  """
  pool = given or examples
  least, most = (0, len(pool)) if given else (1, len(pool) - 1)
  if not least <= count <= most:
    raise ValueError(
        f'config.task.num_evaluation must be in [{least}, {most}] (of {len(pool)} {name}), '
        f'got {count}'
    )

  chosen = np.random.default_rng([seed, 2]).permutation(len(pool))[: count or len(pool)]
  held_out = [pool[index] for index in sorted(chosen)]

  excluded = set(map(question, given or held_out))
  rest = [example for example in examples if question(example) not in excluded]
  if not rest:
    raise ValueError(f'all {len(examples)} {name} ask the same as the held-out ones')
  return rest, held_out
