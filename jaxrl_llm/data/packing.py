"""Packing: several short sequences in one row, none cut, each exactly once.

Rows are made once, by best fit over all sequences, the longest first. Which sequences
share a row is then the same in every epoch, only the order of the rows is not: what a
step sees stays a pure function of (seed, step), an epoch has the same number of rows
each time, and a packed row is drawn, mixed and counted like any other example.
"""

from collections.abc import Sequence

import numpy as np


def best_fit(lengths: Sequence[int], row_length: int, *, seed: int = 0) -> list[list[int]]:
  """Packs sequences into rows.

  The longest first, each goes into the row that it leaves the least room in, or into
  a new one. The number of rows depends on the lengths only; the seed decides which of
  the sequences of one length goes where.

  Args:
    lengths: N positive lengths.
    row_length: what a row holds.
    seed: of the order among sequences of one length; non-negative.

  Returns:
    For each row the numbers of its sequences, which fit together.

  Raises:
    ValueError: a sequence does not fit into a row, or has no length.
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
  # Rows by the room that they have left, and an integer whose bit r is set where there is
  # a row with room r: the lowest bit from `length` on is the best fit.
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
  """The fraction of the rows' slots that hold a token; 0 without rows."""
  held = sum(int(lengths[sequence]) for row in rows for sequence in row)
  return held / (len(rows) * row_length) if rows else 0.0
