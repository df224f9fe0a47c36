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

  Longest first, each sequence goes into the row in which it leaves the least room, or into
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
        f'sequence {worst} has {lengths[worst]} tokens, a packed row takes 1 to {row_length}'
    )

  shuffled = np.random.default_rng(seed).permutation(len(lengths))
  longest_first = shuffled[np.argsort(-lengths[shuffled], kind='stable')]
  rows: list[list[int]] = []
  # Rows by their remaining room, and an integer whose bit r is set if there is a row with
  # room r: its lowest bit from `length` on is the best fit.
  by_room: dict[int, list[int]] = {}
  rooms = 0

  for sequence in longest_first.tolist():
    length = int(lengths[sequence])
    fitting = rooms >> length << length
    if fitting:
      room = (fitting & -fitting).bit_length() - 1
      row = by_room[room].pop()
      if not by_room[room]:
        rooms ^= 1 << room
    else:
      room, row = row_length, len(rows)
      rows.append([])

    rows[row].append(sequence)
    if left := room - length:
      by_room.setdefault(left, []).append(row)
      rooms |= 1 << left

  return rows


def utilisation(lengths: Sequence[int], rows: Sequence[Sequence[int]], row_length: int) -> float:
  """Returns the fraction of slots that hold a token; 0 if there are no rows."""
  held = sum(int(lengths[sequence]) for row in rows for sequence in row)
  return held / (len(rows) * row_length) if rows else 0.0
