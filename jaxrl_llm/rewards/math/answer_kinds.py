"""The kinds of answers: a quantity, words, a list, a set, an interval, an equation ..."""

import dataclasses

from jaxrl_llm.rewards.math.clocks import Clock, Ratio
from jaxrl_llm.rewards.math.quantities import Quantity


@dataclasses.dataclass(frozen=True)
class Text:
  """Words: 'Tuesday', 'no solution', or any text that is not mathematics."""

  text: str


@dataclasses.dataclass(frozen=True)
class Items:
  """A list without brackets: '1, 2 and 3'. Its order is free.

  `alternatives` where 'or' joins it: '1/2 or 0.5' may be one value in two spellings.
  """

  values: tuple['Value', ...]
  alternatives: bool = False


@dataclasses.dataclass(frozen=True)
class Braces:
  """A set: its order and its repetitions are free."""

  values: tuple['Value', ...]


@dataclasses.dataclass(frozen=True)
class Bracket:
  """A point or an interval: brackets and order count."""

  left: str
  right: str
  values: tuple['Value', ...]


@dataclasses.dataclass(frozen=True)
class Union:
  """A union of sets; `source` is its text."""

  values: tuple['Value', ...]
  source: str


@dataclasses.dataclass(frozen=True)
class Matrix:
  """Rows of values."""

  rows: tuple[tuple['Value', ...], ...]


@dataclasses.dataclass(frozen=True)
class Assignment:
  """'x = 5', 'f(x) = x^2': a name and what it is; `source` is the text."""

  name: str
  value: 'Value'
  source: str


@dataclasses.dataclass(frozen=True)
class Relation:
  """Another equation or inequality.

  Attributes:
    source: its text.
    last: what is after its last equals sign, None if that is not an answer.
    constants: its other sides without names; all must equal `last`.
  """

  source: str
  last: 'Value | None'
  constants: tuple['Value', ...] = ()


@dataclasses.dataclass(frozen=True)
class Inequality:
  """'0 <= x < 1': a name and the interval that it is confined to."""

  name: str
  interval: Bracket
  source: str


@dataclasses.dataclass(frozen=True)
class Residue:
  """'x = 1, 5 (mod 7)': classes modulo an integer, by their least non-negative members.

  `is_plain` where the modulus follows in plain text, '5 mod 7'.
  """

  members: tuple[int, ...]
  modulus: int
  is_plain: bool = dataclasses.field(default=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Either:
  """'sqrt(2), about 1.414': a value, and then what it rounds to."""

  values: tuple['Value', ...]


@dataclasses.dataclass(frozen=True)
class Choice:
  """'(B) 12': an option with its letter."""

  letter: str
  value: 'Value'


Value = (
    Quantity | Text | Items | Braces | Bracket | Union | Matrix | Ratio | Clock | Assignment
    | Relation | Inequality | Either | Choice | Residue
)  # fmt: skip
