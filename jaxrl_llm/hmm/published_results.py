"""Published results on hidden Markov models: one model per row, with each method's scores on it.

Files have the schema of DaiYijia02/hmm-visualization (arXiv 2506.07298): CSV, with nested lists
of numbers in cells. `num_state`, `A`, `num_observation`, `B`, `pi_0` are the model; `steady_state`,
`lambda2`, `A_entropy`, `B_entropy` are its target properties; `<method>_acc` and
`<method>_hellinger_distance` have ten numbers each, for 4, 8, ..., 2048 symbols seen. Other columns
are ignored.
"""

import csv
import dataclasses
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxrl_llm.hmm import random_models

LENGTHS = tuple(2**k for k in range(2, 12))  # Symbols seen.

# Our method names -> names in the columns.
METHODS = {
    'viterbi': 'viterbi',
    'true_state': 'p_o_given_prev_h',
    'ngram1': '1-gram',
    'ngram2': '2-gram',
    'ngram3': '3-gram',
    'ngram4': '4-gram',
    'baum_welch': 'bw',
}

_CELL_LIMIT = 10**8  # Characters; U of 64 states is near the default.
_SUM_TOLERANCE = 1e-3  # The published matrices were trained in float32.
_ROUNDING = 1e-6  # Distances above 1 by less than this are rounding.


@dataclasses.dataclass(frozen=True)
class RecordedHmm:
  """One row.

  Attributes:
    line: line of the file, from 1, where the row ends.
    initial: float64 [M]; π.
    transition: float64 [M, M]; A, rows normalised.
    emission: float64 [M, L]; B, rows normalised.
    stationary: float64 [M]; μ as recorded.
    lambda2: the second eigenvalue as recorded.
    transition_entropy: Σ_i μ_i H(A[i, :]) as recorded, bits.
    emission_entropy: entropy of each row of B as recorded, bits.
    accuracy: {method: float64 [10]}, by `LENGTHS`; in [0, 1].
    hellinger: {method: float64 [10]}; distance to B's row of the true hidden state, in [0, 1]; NaN
      where recorded as NaN, but not everywhere.
  """

  line: int
  initial: np.ndarray
  transition: np.ndarray
  emission: np.ndarray
  stationary: np.ndarray
  lambda2: float
  transition_entropy: float
  emission_entropy: float
  accuracy: Mapping[str, np.ndarray]
  hellinger: Mapping[str, np.ndarray]


def read(
    path: str | pathlib.Path,
    *,
    methods: Mapping[str, str] | None = None,
    optional: Mapping[str, str] | None = None,
) -> list[RecordedHmm]:
  """Reads a file of the published schema.

  Args:
    path: the CSV file.
    methods: our names -> column names of the required methods; by default `METHODS`.
    optional: the same for methods that are read if present.

  Returns:
    The rows, at least one.

  Raises:
    ValueError: one line with the file, the line, the column and the problem.
  """
  methods = METHODS if methods is None else methods
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f'{path} is not a file')

  previous = csv.field_size_limit(_CELL_LIMIT)
  try:
    with open(path, newline='', encoding='utf-8-sig') as file:
      reader = csv.DictReader(file, strict=True)
      names = reader.fieldnames or []
      required = [*_MODEL_COLUMNS, *(column for name in methods.values() for column in _pair(name))]

      missing = [column for column in required if column not in names]
      if missing:
        raise ValueError(f'{path} must have the columns {", ".join(missing)}')

      extra = {ours: name for ours, name in (optional or {}).items()
               if all(column in names for column in _pair(name))}
      rows = [_Row(f'{path}, line {reader.line_num}', reader.line_num, cells).recorded(
          {**methods, **extra}) for cells in reader]
  except (csv.Error, UnicodeDecodeError) as error:
    raise ValueError(f'{path} is not a CSV file in UTF-8: {error}') from error
  finally:
    csv.field_size_limit(previous)

  if not rows:
    raise ValueError(f'{path} must have at least one row, got none')
  return rows


def metadata_errors(recorded: RecordedHmm) -> dict[str, float]:
  """Errors of the recorded properties of a model.

  Args:
    recorded: a row.

  Returns:
    The largest absolute errors: 'stationary_law' (of μ A = μ), 'lambda2', 'transition_entropy' and
    'emission_entropy' (bits).
  """
  transition, stationary = recorded.transition, recorded.stationary
  emission_entropy = random_models.entropy_bits(recorded.emission)
  return {
      'stationary_law': float(np.abs(stationary @ transition - stationary).max()),
      'lambda2': float(abs(random_models.second_eigenvalue(transition) - recorded.lambda2)),
      'transition_entropy': abs(
          random_models.entropy_rate_bits(transition, stationary) - recorded.transition_entropy),
      'emission_entropy': float(np.abs(emission_entropy - recorded.emission_entropy).max()),
  }


def fingerprint(recorded: RecordedHmm) -> str:
  """Short hash of a model: of π, A and B, not of its recorded properties."""
  tables = (recorded.initial, recorded.transition, recorded.emission)
  return hashlib.sha256(b''.join(table.tobytes() for table in tables)).hexdigest()[:12]


_MODEL_COLUMNS = ('num_state', 'steady_state', 'lambda2', 'A', 'A_entropy', 'num_observation', 'B',
                  'B_entropy', 'pi_0')


def _pair(name: str) -> tuple[str, str]:
  return f'{name}_acc', f'{name}_hellinger_distance'


@dataclasses.dataclass
class _Row:
  """The cells of a row, with its location for error messages."""

  where: str
  line: int
  cells: Mapping[str, str]

  def recorded(self, methods: Mapping[str, str]) -> RecordedHmm:
    if None in self.cells or None in self.cells.values():
      raise ValueError(f'{self.where}: must have as many cells as the first line')

    num_states, num_symbols = self._size('num_state'), self._size('num_observation')
    results = [{ours: self._scores(_pair(name)[i], missing=i == 1)
                for ours, name in methods.items()} for i in range(2)]
    # In the order of the fields.
    return RecordedHmm(
        self.line,
        self._distributions('pi_0', (num_states,)),
        self._distributions('A', (num_states, num_states)),
        self._distributions('B', (num_states, num_symbols)),
        self._distributions('steady_state', (num_states,)),
        self._number('lambda2', 1.0),
        self._number('A_entropy', math.inf),
        self._number('B_entropy', math.inf),
        *results)

  def _number(self, column: str, most: float) -> float:
    value = float(self._array(column, ()))
    if not 0 <= value <= most:
      limit = 'non-negative' if most == math.inf else f'in [0, {most:g}]'
      raise self._error(column, f'must be {limit}, got {value:g}')
    return value

  def _scores(self, column: str, *, missing: bool) -> np.ndarray:
    """Means by length, in [0, 1]; with `missing`, some may be NaN, but not all."""
    values = self._array(column, (len(LENGTHS),), finite=False)
    known = ~np.isnan(values) if missing else np.ones(values.shape, bool)
    bad = values[known & ~((values >= 0) & (values <= 1 + _ROUNDING))]
    if bad.size:
      raise self._error(column, f'must be numbers in [0, 1], got {bad[0]:g}')
    if not known.any():
      raise self._error(column, 'must have a number, got only nan')
    return values

  def _size(self, column: str) -> int:
    value = float(self._array(column, ()))
    if value != int(value) or value < 2:
      raise self._error(column, f'must be an integer of at least 2, got {self.cells[column]}')
    return int(value)

  def _distributions(self, column: str, shape: tuple[int, ...]) -> np.ndarray:
    values = self._array(column, shape)
    sums = values.sum(axis=-1, keepdims=True)
    if values.min() < 0 or np.abs(sums - 1).max() > _SUM_TOLERANCE:
      raise self._error(column, 'must be probabilities that sum to 1, got a smallest entry of '
                                f'{values.min():.6g} and sums from {sums.min():.6g} to '
                                f'{sums.max():.6g}')
    return values / sums

  def _array(self, column: str, shape: tuple[int, ...], *, finite: bool = True) -> np.ndarray:
    text = self.cells[column]
    try:
      values = _parse(text)
    except (ValueError, OverflowError, RecursionError):
      shown = text if len(text) <= 40 else f'{text[:40]}...'
      raise self._error(column, f'must be numbers in nested lists, got {shown!r}') from None

    if values.shape != shape:
      expected, got = (' x '.join(map(str, sizes)) or 'one number'
                       for sizes in (shape, values.shape))
      raise self._error(column, f'must be {expected}, got {got}')
    if finite and not np.isfinite(values).all():
      raise self._error(column, 'must be finite')
    return values

  def _error(self, column: str, problem: str) -> ValueError:
    return ValueError(f'{self.where}, column {column}: {problem}')


def _parse(text: str) -> np.ndarray:
  """Parses numbers, inf and nan in nested lists, without evaluating code."""
  # As an extension, JSON has other names for these two.
  text = re.sub(r'\bnan\b', 'NaN', re.sub(r'\binf\b', 'Infinity', text))
  value = json.loads(text)
  if not _only_numbers(value):
    raise ValueError('not only numbers')
  return np.asarray(value, np.float64)


def _only_numbers(value: float | Sequence) -> bool:
  if isinstance(value, list):
    return all(map(_only_numbers, value))
  return isinstance(value, (int, float)) and not isinstance(value, bool)
