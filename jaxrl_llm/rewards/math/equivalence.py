r"""Compares two answers: structure here, symbolic mathematics through a `Leaf`.

Conventions, where mathematics leaves a choice:
* 50% is 0.5 and also 50: ground truths are written either way.
* A missing unit fits; two units must fit each other (60 minutes = 1 hour, 12 cm != 12 m).
* Decimals are exact: 0.333 is not 1/3. A decimal with six or more digits after the point
  equals a number that it cannot express if it is that number rounded correctly.
* (1,2) keeps order and brackets; \{1,2\} is free in both; a bare list `1, 2` is free in its
  order and equals a set of the same elements, or a point with the same order.
* `x = 5` is 5, but not `y = 5`; 0 <= x < 1 is [0,1); \pm 3 is the list 3, -3.
* Words are compared without case, articles and punctuation; in mathematics case matters, also in
  up to four letters that may be points (ABC, abc). The letter of an option (A to E) that is the
  whole answer may have either case, but a bare e is the number; '(e)' is the option.
* '(A) 5' and 'A 5' are A and also 5; '(A) No' is A, '(A) no' retracts it.
* `a \approx b` is a, and also b where b is a rounded correctly to its own digits. Where b is a
  neither rounded nor cut off, the text gives two answers and equals neither.
* An identity equals its value where it is defined: `\sin^2 x + \cos^2 x` is 1, `15x/x` is 15.
* `\{5\}` is 5, the solution of its problem; `\{x\}` may be a fractional part and is not x.
* A column, a row and the point (1,2) are one vector, but a column is not a row.
* '5 (mod 7)' equals every other name of its class, and the least non-negative member alone.
* A sentence states its number only if a closed list of words leads to it ('she has 15 apples'):
  'unlike 15', 'if 15' and 'log of 15' state something else (hedges).
* Nothing is completed: `15:`, `15\cdot`, `--15` and `12'` are not numbers.
* 'a or b', and the constant sides of `a = b`, are right only if each of them is.
* A value that is not finite equals nothing; the infinities \infty and -\infty are names.
"""

import dataclasses
import fractions
import functools
import re
from collections.abc import Sequence
from typing import Protocol

from jaxrl_llm.rewards.math import (
  answer_text,
  answer_values,
  answer_words,
  clocks,
  expressions,
  finiteness,
  residues,
  roundings,
  units,
)
from jaxrl_llm.rewards.math.answer_kinds import Matrix, Residue
from jaxrl_llm.rewards.math.answer_values import Text
from jaxrl_llm.rewards.math.quantities import Quantity


class Leaf(Protocol):
  """Symbolic mathematics, which decides about expressions; see `symbolic`."""

  def equal(self, candidate: str, answer: str) -> bool:
    """Returns whether two expressions or relations are equal and finite."""

  def rounds(self, exact: str, value: fractions.Fraction, tolerance: fractions.Fraction) -> bool:
    """Returns whether a constant is within `tolerance` of `value`."""


MAX_EXPRESSION = 600  # Characters; a longer expression is compared as text only.


class Undecided(Exception):
  """Only symbolic mathematics can decide."""


def _letter(value: answer_values.Value, *, in_list: bool = False) -> str | None:
  """The letter that is the whole value, if it can name an option; e alone is a number."""
  if not isinstance(value, Quantity) or value.unit is not None:
    return None
  letter = value.text.strip()
  return letter if letter in _OPTIONS or (in_list and letter == 'e') else None


def _spelling(text: str) -> str:
  """A text without spaces, and without braces around single characters."""
  return re.sub(r'\{(\w)\}', r'\1', answer_text.squeezed(text))


_OPTIONS = frozenset('ABCDEabcd')
_OPTION_E = re.compile(r'E|\([Ee]\)|(?:[Oo]ption|[Cc]hoice) (?:[Ee]|\([Ee]\))')


def _is_constant(value: answer_values.Value) -> bool:
  """Returns whether no name occurs in a value."""
  if not isinstance(value, Quantity):
    return True
  tree = None if value.rational is not None else expressions.read(value.text)
  return tree is None or not expressions.has_names(tree)


class Comparison:
  """Compares two parsed answers; `leaf` decides about expressions."""

  def __init__(self, leaf: Leaf):
    self._leaf = leaf

  def same_answer(self, candidate: answer_values.Value, answer: answer_values.Value) -> bool:
    """Returns whether two whole answers are the same; option letters may be in either case."""
    letters = _option_letters(candidate), _option_letters(answer)
    if all(letters):
      return sorted(letters[0]) == sorted(letters[1])
    return self.equal(candidate, answer)

  def equal(self, candidate: answer_values.Value, answer: answer_values.Value) -> bool:
    """Returns whether `candidate` equals `answer`, as parts of a larger answer."""
    if candidate == answer:
      return self.is_finite(candidate)
    for one, other, swapped in ((candidate, answer, False), (answer, candidate, True)):
      if isinstance(one, answer_values.Either):
        return self._approximation(one.values, other, swapped)
      if isinstance(one, answer_values.Choice):
        return self._choice(one, other, swapped)

    if type(candidate) is type(answer):
      return self._same_kind(candidate, answer)
    for one, other, swapped in ((candidate, answer, False), (answer, candidate, True)):
      verdict = self._mixed_kinds(one, other, swapped)
      if verdict is not None:
        return verdict
    return False

  def is_finite(self, value: answer_values.Value) -> bool:
    """Returns whether no part of the value is infinite or empty; named infinities are texts."""
    match value:
      case Quantity():
        return value.rational is not None or value.too_large or self._same_expression(
            value.text, value.text)
      case Text():
        return bool(value.text) and value.text.lower() != 'nan'

      case answer_values.Matrix():
        return all(self.is_finite(cell) for row in value.rows for cell in row)
      case answer_values.Choice() | answer_values.Assignment():
        return self.is_finite(value.value)
      case answer_values.Inequality():
        return self.is_finite(value.interval)
      case answer_values.Relation():
        return all(map(self.is_finite, value.constants)) and (
            value.last is None or self.is_finite(value.last)) and self._same_relation(value, value)
      case clocks.Ratio() | clocks.Clock() | Residue():
        return True
    return all(map(self.is_finite, value.values))

  def _approximation(self, values: Sequence, other, swapped: bool) -> bool:
    """Returns whether 'exact, about rounded' equals `other`, exactly or by a right rounding."""
    exact, *decimals = values
    if not all(self._is_connected(exact, rounded) for rounded in decimals):
      return False
    if self._ordered(exact, other, swapped):
      return True
    return any(
        self._ordered(rounded, other, swapped) and (
            self._rounds(exact, rounded) or self._is_decimal_of(exact, rounded))
        for rounded in decimals)

  def _is_connected(self, one, other) -> bool:
    """Returns whether one side of an approximation sign is the other, rounded or cut off."""
    if self._rounds(one, other) or self._rounds(one, other, cut_off=True):
      return True
    return self._is_decimal_of(one, other)

  def _is_decimal_of(self, decimal, exact) -> bool:
    """Returns whether the first side is the decimal, as in '3.14, about pi'."""
    number = roundings.number_of(decimal)
    return number is not None and number.decimals is not None and self._rounds(exact, decimal)

  def _rounds(self, exact, rounded, *, cut_off: bool = False) -> bool:
    """Returns whether `rounded` is `exact`, rounded (or cut off) to the digits that it has."""
    exact, rounded = roundings.number_of(exact), roundings.number_of(rounded)
    if exact is None or rounded is None or rounded.rational is None:
      return False

    unit = roundings.last_digit(rounded)
    factor = units.ratio(rounded.unit, exact.unit)
    if factor is None:
      return False
    if unit is None:  # 0.5, about 1/2: no digits to round to.
      return exact.rational == rounded.rational * factor

    value, tolerance = rounded.rational * factor, unit / 2 * factor
    if rounded.percent and not exact.percent:
      value, tolerance = value / 100, tolerance / 100
    if cut_off:
      value += tolerance if value >= 0 else -tolerance
      tolerance *= 1 - roundings.HAIR  # The next number up is not a cut-off one.

    if exact.rational is not None:
      return abs(exact.rational - value) <= tolerance
    return self._leaf.rounds(exact.text, value, tolerance)

  def _choice(self, one: answer_values.Choice, other, swapped: bool) -> bool:
    if isinstance(other, answer_values.Choice):
      return one.letter == other.letter and self._ordered(one.value, other.value, swapped)
    if (letter := _letter(other)) is not None:
      return one.letter == letter.upper() and self.is_finite(one.value)
    return self._ordered(one.value, other, swapped)

  def _ordered(self, one, other, swapped: bool) -> bool:
    return self.equal(other, one) if swapped else self.equal(one, other)

  def _same_kind(self, candidate, answer) -> bool:
    """Returns whether two values of one kind are equal."""
    match candidate:
      case Quantity():
        return self._quantities(candidate, answer)
      case Text():
        return answer_words.same(candidate.text, answer.text)

      # Structures.
      case answer_values.Items():
        return self._permuted(_unnamed(candidate.values), _unnamed(answer.values))
      case answer_values.Braces():
        return self._subset(candidate.values, answer.values) and self._subset(
            answer.values, candidate.values)
      case answer_values.Bracket():
        same = candidate.left == answer.left and candidate.right == answer.right
        return same and self._elementwise(candidate.values, answer.values)
      case answer_values.Union():
        return self._permuted(candidate.values, answer.values)
      case answer_values.Matrix():
        return len(candidate.rows) == len(answer.rows) and all(
            self._elementwise(*rows) for rows in zip(candidate.rows, answer.rows))

      case clocks.Ratio():
        return clocks.same_ratio(candidate, answer)
      case clocks.Clock():
        return clocks.same_clock(candidate, answer)

      # Equations.
      case answer_values.Assignment():
        if candidate.name == answer.name:
          return self.equal(candidate.value, answer.value)
        if answer_values.is_constant(candidate.value) or answer_values.is_constant(answer.value):
          return False
        return self._leaf.equal(candidate.source, answer.source)
      case answer_values.Inequality():
        return candidate.name == answer.name and self.equal(candidate.interval, answer.interval)
      case answer_values.Relation():
        return self._same_relation(candidate, answer)
    return False

  def _mixed_kinds(self, one, other, swapped: bool) -> bool | None:
    """Returns whether `one` equals `other`, which is of another kind; None if unknown."""
    kind = type(other)
    if isinstance(one, answer_values.Assignment):
      if isinstance(other, answer_values.Relation):
        return self._leaf.equal(*self._sources(one, other, swapped))
      return self._ordered(one.value, other, swapped)
    if isinstance(one, answer_values.Relation):
      if isinstance(other, (answer_values.Assignment, answer_values.Inequality)):
        return self._leaf.equal(*self._sources(one, other, swapped))
      values = (*one.constants, one.last)
      return one.last is not None and self._has_finite_sides(one) and all(
          self._ordered(value, other, swapped) for value in values)

    if isinstance(one, answer_values.Inequality):
      if kind in (answer_values.Bracket, answer_values.Union):
        return self._ordered(one.interval, other, swapped)
      return None
    if isinstance(one, Residue):
      number = residues.bare(one)
      return number is not None and self._ordered(number, other, swapped)
    if isinstance(one, Matrix) and kind is answer_values.Bracket:
      return self._vector(one, other, swapped)
    if isinstance(one, answer_values.Braces) and len(one.values) == 1:
      if not _is_constant(one.values[0]):
        return False  # \{x\} may be the fractional part of x.
      return self._ordered(one.values[0], other, swapped)
    if isinstance(one, answer_values.Items) and kind not in (
        answer_values.Assignment, answer_values.Relation):
      return self._list(one, other, swapped)

    if isinstance(one, Text) and kind is Quantity:
      number = answer_words.number_in_prose(one.text)
      return number is not None and self._ordered(number, other, swapped)
    if isinstance(one, clocks.Ratio) and kind is clocks.Clock:  # 3:30 and 3:30 p.m.
      return one.clock is not None and clocks.same_clock(one.clock, other)
    if isinstance(one, clocks.Ratio) and kind is Quantity:
      value = clocks.as_fraction(one)
      return value is not None and other.unit is None and value == other.rational
    return None

  def _vector(self, matrix: Matrix, point: answer_values.Bracket, swapped: bool) -> bool:
    """Returns whether a matrix of one column or one row has the coordinates of a point."""
    if (point.left, point.right) != ('(', ')'):
      return False
    if len(matrix.rows) == 1:
      cells = matrix.rows[0]
    elif all(len(row) == 1 for row in matrix.rows):
      cells = [row[0] for row in matrix.rows]
    else:
      return False
    pair = (point.values, cells) if swapped else (cells, point.values)
    return len(cells) > 1 and self._elementwise(*pair)

  def _sources(self, one, other, swapped: bool) -> tuple[str, str]:
    return (other.source, one.source) if swapped else (one.source, other.source)

  def _list(self, one: answer_values.Items, other, swapped: bool) -> bool:
    values = _unnamed(one.values)

    def pair(ours: Sequence, others: Sequence) -> tuple[Sequence, Sequence]:
      return (others, ours) if swapped else (ours, others)

    if isinstance(other, answer_values.Braces):
      return self._permuted(*pair(values, other.values))
    if isinstance(other, answer_values.Bracket):
      if {other.left, other.right} != {'(', ')'}:
        return False
      return self._elementwise(*pair(_in_order_of_names(one.values), other.values))
    if isinstance(other, answer_values.Union) and all(
        isinstance(value, (answer_values.Inequality, answer_values.Bracket))
        for value in one.values):
      intervals = [value.interval if isinstance(value, answer_values.Inequality) else value
                   for value in one.values]
      return self._permuted(*pair(intervals, other.values))
    return one.alternatives and all(self._ordered(value, other, swapped) for value in one.values)

  def _quantities(self, candidate: Quantity, answer: Quantity) -> bool:
    factor = units.ratio(candidate.unit, answer.unit)
    if factor is None:
      return False
    if candidate.too_large or answer.too_large:
      return answer_text.squeezed(candidate.text) == answer_text.squeezed(answer.text)
    if candidate.rational is not None and answer.rational is not None:
      if factor != 1:
        return candidate.rational * factor == answer.rational
      return self._percentages(candidate, answer)
    if factor != 1 or candidate.percent != answer.percent:
      return False
    return self._same_expression(candidate.text, answer.text)

  def _same_expression(self, candidate: str, answer: str) -> bool:
    """Returns whether two expressions are equal and finite; as texts where they cannot be read."""
    trees = [expressions.read(text) if len(text) <= MAX_EXPRESSION else None
             for text in (candidate, answer)]
    if None in trees:
      return _spelling(candidate) == _spelling(answer)
    if trees[0] == trees[1] and finiteness.is_sure(trees[0]):
      return True
    if trees[0] != trees[1] and all(tree[0] == 'name' for tree in trees):
      return False
    return self._leaf.equal(candidate, answer)

  def _has_finite_sides(self, relation: answer_values.Relation) -> bool:
    """Returns whether no side of an equation contains a value such as 1/0."""
    for side in answer_values.sides(relation.source):
      tree = expressions.read(side)
      if tree is not None and not finiteness.is_sure(tree) and not self._leaf.equal(side, side):
        return False
    return True

  def _same_relation(self, candidate, answer) -> bool:
    """Returns whether two equations are equivalent; as texts if they cannot be read."""
    same_text = answer_text.squeezed(candidate.source) == answer_text.squeezed(answer.source)
    if max(len(candidate.source), len(answer.source)) > MAX_EXPRESSION:
      return same_text
    try:
      sides = [expressions.parse_relation(relation.source)[0] for relation in (candidate, answer)]
    except (expressions.Unreadable, RecursionError):
      return same_text
    if same_text and all(map(finiteness.is_sure, sides[0])):
      return True
    return self._leaf.equal(candidate.source, answer.source)

  def _percentages(self, candidate: Quantity, answer: Quantity) -> bool:
    if candidate.percent == answer.percent:
      return roundings.same_number(candidate, answer)
    percent, plain = (candidate, answer) if candidate.percent else (answer, candidate)
    share = dataclasses.replace(percent, rational=percent.rational / 100, decimals=(
        None if percent.decimals is None else percent.decimals + 2))
    return roundings.same_number(percent, plain) or roundings.same_number(share, plain)

  def _elementwise(self, candidate: Sequence, answer: Sequence) -> bool:
    return len(candidate) == len(answer) and all(map(self.equal, candidate, answer))

  def _permuted(self, candidate: Sequence, answer: Sequence) -> bool:
    """Returns whether the two agree in some order.

    A matching by augmenting paths: equality is not transitive (50% is 0.5 and also 50), so the
    first partner of a value may be needed by another.
    """
    if len(candidate) != len(answer):
      return False
    partner_of: dict[int, int] = {}  # Index in `answer` -> index in `candidate`.

    @functools.cache
    def same(index: int, other: int) -> bool:
      return self.equal(candidate[index], answer[other])

    def assign(index: int, tried: set[int]) -> bool:
      for other in range(len(answer)):
        if other in tried or not same(index, other):
          continue
        tried.add(other)
        if other not in partner_of or assign(partner_of[other], tried):
          partner_of[other] = index
          return True
      return False

    return all(assign(index, set()) for index in range(len(candidate)))

  def _subset(self, inner: Sequence, outer: Sequence) -> bool:
    return all(any(self.equal(value, other) for other in outer) for value in inner)


def _option_letters(value: answer_values.Value) -> list[str]:
  """The letters of an answer that names options, in upper case; [] for any other answer."""
  values = value.values if isinstance(value, answer_values.Items) else (value,)
  letters = [_letter(item, in_list=len(values) > 1) for item in values]
  if None in letters or len({letter.isupper() for letter in letters}) > 1:
    return []
  return [letter.upper() for letter in letters]


def _unnamed(values: Sequence) -> Sequence:
  """'x = 1, x = 2' as the values 1, 2; several names stay."""
  names = {value.name for value in values if isinstance(value, answer_values.Assignment)}
  if len(names) != 1:
    return values
  return [v.value if isinstance(v, answer_values.Assignment) else v for v in values]


def _in_order_of_names(values: Sequence) -> Sequence:
  """'y = 3, x = 2' as the values 2, 3 of a point."""
  if not all(isinstance(value, answer_values.Assignment) for value in values):
    return values
  if len({value.name for value in values}) != len(values):
    return values
  return [value.value for value in sorted(values, key=lambda value: value.name)]


class _Refuse:
  """A leaf without symbolic mathematics."""

  def equal(self, candidate: str, answer: str) -> bool:
    raise Undecided

  def rounds(self, exact: str, value: fractions.Fraction, tolerance: fractions.Fraction) -> bool:
    raise Undecided


def compare(candidate: str, answer: str, *, leaf: Leaf | None = None) -> bool:
  """Returns whether two answers are equal.

  Args:
    candidate: the answer extracted from a response.
    answer: the ground truth.
    leaf: compares two expressions that are not rational numbers.

  Returns:
    The verdict.

  Raises:
    Undecided: a leaf was needed and none was given.
  """
  if not candidate.strip() or not answer.strip():
    return False
  if max(len(candidate), len(answer)) > answer_text.MAX_CHARACTERS:
    return same_long_text(candidate, answer)
  texts = [answer_words.without_name(answer_text.clean(text)) for text in (candidate, answer)]
  if all(map(_OPTION_E.fullmatch, texts)):
    return True
  values = list(map(answer_values.parse, texts))
  return Comparison(leaf or _Refuse()).same_answer(*values)


def same_long_text(candidate: str, answer: str) -> bool:
  """Equality of texts too long to be read as mathematics: their characters, without spaces.

  Integers may be grouped and padded: '000123,456' is '123456'.
  """
  sides = [answer_text.squeezed(text).strip('$.') for text in (candidate, answer)]
  if all(re.fullmatch(r'-?[0-9,]+(?:\.0*)?', side) for side in sides):
    for index, side in enumerate(sides):
      digits = side.lstrip('-').replace(',', '').split('.')[0].lstrip('0')
      sides[index] = ('-' if side.startswith('-') else '') + digits
  return bool(sides[0]) and sides[0] == sides[1]
