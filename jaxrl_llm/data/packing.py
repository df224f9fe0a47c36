"""Packs several short sequences into one row, none truncated, each exactly once.

Rows are built once, by best fit over all sequences, longest first. The sequences of a row
are therefore the same in every epoch; only the order of the rows changes. The examples of a
step remain a pure function of (seed, step), every epoch has the same number of rows, and a
packed row is drawn, mixed and counted like any other example.
"""

from collections.abc import Sequence

import numpy as np


def best_fit(lengths: Sequence[int], row_length: int, *, seed: int = 0) -> list[list[int]]:
  """Packs sequences into rows.

  Longest first, each sequence goes into the row in which it leaves the least free space, or into
  a new one. The number of rows depends on the lengths only; the seed determines how sequences
  of equal length are distributed.

  Args:
    lengths: N positive lengths.
    row_length: capacity of a row, in tokens.
    seed: seed for the order of sequences of equal length; non-negative.

  Returns:
    The indices of the sequences in each row.

  Raises:
    ValueError: a sequence does not fit into a row, or is empty.
  """
  lengths = np.asarray(lengths, np.int64)
  if lengths.size and not 1 <= lengths.min() <= lengths.max() <= row_length:
    worst = int(lengths.argmin() if lengths.min() < 1 else lengths.argmax())
    raise ValueError(
        f'sequence {worst} must have 1 to {row_length} tokens for a packed row, got '
        f'{lengths[worst]}'
    )

  shuffled = np.random.default_rng(seed).permutation(len(lengths))
  longest_first = shuffled[np.argsort(-lengths[shuffled], kind='stable')]
  rows: list[list[int]] = []
  # Rows by their number of free slots, and an integer whose bit n is set if there is a row with
  # n free slots: its lowest bit from `length` on is the best fit.
  by_free: dict[int, list[int]] = {}
  free_bits = 0

  for sequence in longest_first.tolist():
    length = int(lengths[sequence])
    fitting = free_bits >> length << length
    if fitting:
      free = (fitting & -fitting).bit_length() - 1
      row = by_free[free].pop()
      if not by_free[free]:
        free_bits ^= 1 << free
    else:
      free, row = row_length, len(rows)
      rows.append([])

    rows[row].append(sequence)
    if left := free - length:
      by_free.setdefault(left, []).append(row)
      free_bits |= 1 << left

  return rows


def utilisation(lengths: Sequence[int], rows: Sequence[Sequence[int]], row_length: int) -> float:
  """Returns the fraction of slots with a token; 0 if there are no rows."""
  used = sum(int(lengths[sequence]) for row in rows for sequence in row)
  return used / (len(rows) * row_length) if rows else 0.0
