"""Weighted mixtures of data sources, as pure functions of (seed, step).

Draws are scheduled, not random. The error of a random choice among K sources would grow like
the square root of the number of draws, and a source's position in its epoch would depend on
all previous draws. Here the sources are the leaves of a balanced binary tree. Of the first n
draws that reach a node whose children have weights a and b, the left child gets
round(n a / (a + b)), in exact integer arithmetic, and the right child the rest. Therefore

  - each level is off by at most half a draw, and after n draws source k was drawn
    n w_k times to within ceil(log2 K) / 2 (to within 1/2 for two sources);
  - the source of draw n, and how often it was drawn before, depend on n only, at a cost of
    log2 K for any n.

Each source goes through its own epochs, with each example once per epoch.
"""

import fractions
import math
from collections.abc import Sequence

import numpy as np

from jaxrl_llm.data import batching


def mixture_indices(
    sizes: Sequence[int],
    weights: Sequence[float],
    batch_size: int,
    *,
    seed: int,
    step: int,
    names: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the examples of one step, drawn from K sources.

  Step s takes draws s·B to (s + 1)·B - 1. With one source the examples are those
  of `batching.batch_indices`.

  Args:
    sizes: number of examples of each source, at least 1.
    weights: positive weight of each source; they need not sum to 1.
    batch_size: B, at least 1.
    seed: seed for the order within each source's epochs; non-negative.
    step: step number, from 0.
    names: names of the sources, for errors.

  Returns:
    (source int64 [B], index within that source int64 [B]).

  Raises:
    ValueError: an argument is out of range; the message names the source.
  """
  _check(sizes, weights, batch_size, seed, step, names)
  shares = _whole_numbers(weights)
  drawn = [_draw(shares, int(step) * batch_size + row) for row in range(batch_size)]
  index = []
  for source, before in drawn:
    epoch, offset = divmod(before, sizes[source])
    order = batching.epoch_permutation(
        int(sizes[source]), seed=int(seed), epoch=epoch, source=source
    )
    index.append(order[offset])
  return np.array([source for source, _ in drawn], np.int64), np.array(index, np.int64)


def parse_weights(text: str) -> dict[str, float]:
  """Parses weights such as 'chat.json=3, maths.jsonl=1'; '' gives {}.

  Raises:
    ValueError: an entry is not a name with a positive number, or a name occurs twice.
  """
  weights: dict[str, float] = {}
  for entry in filter(None, map(str.strip, text.split(','))):
    name, _, number = map(str.strip, entry.rpartition('='))
    try:
      weight = float(number)
    except ValueError:
      weight = math.nan
    if not name or name in weights or not 0 < weight < math.inf:
      raise ValueError(
          "weights must be of the form 'NAME=NUMBER, ...', with distinct names and positive "
          f'numbers, got {entry!r} in {text!r}'
      )
    weights[name] = weight
  return weights


def _whole_numbers(weights: Sequence[float]) -> list[int]:
  """Returns integers exactly proportional to `weights`."""
  exact = [fractions.Fraction(float(weight)) for weight in weights]
  scale = math.lcm(*(weight.denominator for weight in exact))
  return [int(weight * scale) for weight in exact]


def _draw(shares: list[int], draw: int) -> tuple[int, int]:
  """Returns (source of draw number `draw`, how often that source was drawn before)."""
  first, last = 0, len(shares)  # The sources below the current node; `draw` counts its draws.
  while last - first > 1:
    middle = (first + last) // 2
    left, total = sum(shares[first:middle]), sum(shares[first:last])
    before, after = (
        (2 * count * left + total) // (2 * total) for count in (draw, draw + 1)  # Rounded.
    )
    if after > before:
      draw, last = before, middle
    else:
      draw, first = draw - before, middle
  return first, draw


def _check(
    sizes: Sequence[int],
    weights: Sequence[float],
    batch_size: int,
    seed: int,
    step: int,
    names: Sequence[str] | None,
) -> None:
  """Raises a one-line ValueError for the first argument that is out of range."""
  names = [f'source {k}' for k in range(len(sizes))] if names is None else names
  if not sizes or not len(sizes) == len(weights) == len(names):
    raise ValueError(
        'a mixture needs at least one source, and a size, a weight and a name for each, got '
        f'{len(sizes)}, {len(weights)} and {len(names)}'
    )
  for name, size, weight in zip(names, sizes, weights):
    if size < 1:
      raise ValueError(f'{name} has no examples')
    if not 0 < weight < math.inf:
      raise ValueError(f'the weight of {name} must be positive and finite, got {weight}')
  batching.check_at_least(batch_size=(batch_size, 1), seed=(seed, 0), step=(step, 0))
