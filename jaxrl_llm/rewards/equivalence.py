r"""When two answers are the same: structure here, symbolic mathematics through a `Leaf`.

Conventions, where mathematics leaves a choice:
* 50% is 0.5 and also 50: ground truths are written either way.
* A missing unit fits; two units must fit each other (60 minutes = 1 hour, 12 cm != 12 m).
* Decimals are exact: 0.333 is not 1/3. A decimal with six or more digits behind the point
  equals a number that it cannot express if it is that number rounded correctly.
* (1,2) keeps order and brackets; \{1,2\} is free in both; a bare list `1, 2` is free in its
  order and equals a set of the same elements, or a point with the same order.
* `x = 5` is 5, but not `y = 5`; 0 <= x < 1 is [0,1); \pm 3 is the list 3, -3.
* Words are compared without case, articles and punctuation.
"""

import dataclasses
import fractions
import re
from collections.abc import Callable, Sequence

from jaxrl_llm.rewards import answer_text, answer_values, quantities, units
from jaxrl_llm.rewards.answer_values import Text
from jaxrl_llm.rewards.quantities import Quantity

# (candidate, answer) -> whether two expressions are equal.
Leaf = Callable[[str, str], bool]

MIN_ROUNDED_DECIMALS = 6
MAX_EXPRESSION = 600  # Characters; a longer expression is compared as text only.


class Undecided(Exception):
  """Only symbolic mathematics can tell."""


_SYNONYMS = {
    'nosolution': 'no solution', 'nosolutions': 'no solution', 'emptyset': 'no solution',
    'solutiondoesnotexist': 'no solution', 'nosolutionexists': 'no solution',
    'thereisnosolution': 'no solution', 'therearenosolutions': 'no solution',
    'doesnotexist': 'dne', 'infinite': 'infinitely many', 'infinitelymany': 'infinitely many',
    'infinitelymanysolutions': 'infinitely many',
}  # fmt: skip
_NOT_WORDS = re.compile(r'[^a-z0-9+\-=<>/^.]+')
_LEADING_WORDS = re.compile(r'^(?:the|a|an|option|choice|answer|letter|it is|it\'s|is) +')
_NUMBER_IN_PROSE = re.compile(
    rf'(?<![\w.^_])(?:(?<![\w)}}] )-)?[{units.CURRENCY}]? ?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)'
    r'(?:/[0-9]+)?%?(?![0-9])'
)
_NEGATION = re.compile(
    r"\b(?:not|no|never|neither|nor|cannot|less than|more than|at least|at most)\b|n't\b"
)


def _canonical(text: str) -> str:
  lowered = _LEADING_WORDS.sub('', text.lower().strip())
  word = _NOT_WORDS.sub('', lowered).strip('.')
  return _SYNONYMS.get(word, word)


def _same_words(left: str, right: str) -> bool:
  if answer_text.squeezed(left) == answer_text.squeezed(right):
    return True
  canonical = _canonical(left)
  return bool(canonical) and canonical == _canonical(right)


def same_number(left: Quantity, right: Quantity) -> bool:
  """Whether two exact values agree, up to correct rounding to six or more digits."""
  if left.rational == right.rational:
    return True
  for rounded, exact in ((left, right), (right, left)):
    if rounded.decimals is None or rounded.decimals < MIN_ROUNDED_DECIMALS:
      continue
    terminates = exact.rational.denominator
    for prime in (2, 5):
      while terminates % prime == 0:
        terminates //= prime
    half_a_digit = fractions.Fraction(1, 2 * 10**rounded.decimals)
    if terminates != 1 and abs(rounded.rational - exact.rational) <= half_a_digit:
      return True
  return False


class Comparison:
  """Compares two parsed answers; `leaf` decides about expressions."""

  def __init__(self, leaf: Leaf):
    self._leaf = leaf

  def equal(self, candidate: answer_values.Value, answer: answer_values.Value) -> bool:
    """Whether `candidate` says the same as `answer`."""
    if candidate == answer:
      return not isinstance(candidate, Text) or bool(candidate.text)
    for one, other, swapped in ((candidate, answer, False), (answer, candidate, True)):
      if isinstance(one, answer_values.Either):
        return any(self._ordered(value, other, swapped) for value in one.values)
    if type(candidate) is type(answer):
      return self._same_kind(candidate, answer)
    for one, other, swapped in ((candidate, answer, False), (answer, candidate, True)):
      verdict = self._mixed_kinds(one, other, swapped)
      if verdict is not None:
        return verdict
    return False

  def _ordered(self, one, other, swapped: bool) -> bool:
    return self.equal(other, one) if swapped else self.equal(one, other)

  def _same_kind(self, candidate, answer) -> bool:
    match candidate:
      case Quantity():
        return self._quantities(candidate, answer)
      case Text():
        return _same_words(candidate.text, answer.text)
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
      case answer_values.Ratio():
        return len(candidate.parts) == len(answer.parts) and all(
            a * answer.parts[0] == b * candidate.parts[0]
            for a, b in zip(candidate.parts, answer.parts))
      case answer_values.Assignment():
        if candidate.name == answer.name:
          return self.equal(candidate.value, answer.value)
        if answer_values.is_constant(candidate.value) or answer_values.is_constant(answer.value):
          return False
        return self._leaf(candidate.source, answer.source)
      case answer_values.Inequality():
        return candidate.name == answer.name and self.equal(candidate.interval, answer.interval)
      case answer_values.Relation():
        return answer_text.squeezed(candidate.source) == answer_text.squeezed(
            answer.source) or self._leaf(candidate.source, answer.source)
    return False

  def _mixed_kinds(self, one, other, swapped: bool) -> bool | None:
    """Whether `one` equals `other`, which is of another kind; None if `one` cannot tell."""
    kind = type(other)
    if isinstance(one, answer_values.Assignment):
      if isinstance(other, answer_values.Relation):
        return self._leaf(*self._sources(one, other, swapped))
      return self._ordered(one.value, other, swapped)
    if isinstance(one, answer_values.Relation):
      if isinstance(other, (answer_values.Assignment, answer_values.Inequality)):
        return self._leaf(*self._sources(one, other, swapped))
      return one.last is not None and self._ordered(one.last, other, swapped)
    if isinstance(one, answer_values.Inequality):
      if kind in (answer_values.Bracket, answer_values.Union):
        return self._ordered(one.interval, other, swapped)
      return None
    if isinstance(one, answer_values.Braces) and len(one.values) == 1:
      return self._ordered(one.values[0], other, swapped)
    if isinstance(one, answer_values.Items):
      return self._list(one, other, swapped)
    if isinstance(one, Text) and kind is Quantity:
      number = number_in_prose(one.text)
      return number is not None and self._ordered(number, other, swapped)
    if isinstance(one, answer_values.Ratio) and kind is Text:  # 3:30 and 3:30 p.m.
      return len(one.parts) == 2 and other.text[:-2] == f'{one.parts[0]}:{str(one.parts[1]):0>2}'
    if isinstance(one, answer_values.Ratio) and kind is Quantity:
      return (len(one.parts) == 2 and one.parts[1] != 0 and other.rational is not None
              and other.unit is None and one.parts[0] / one.parts[1] == other.rational)
    return None

  def _sources(self, one, other, swapped: bool) -> tuple[str, str]:
    return (other.source, one.source) if swapped else (one.source, other.source)

  def _list(self, one: answer_values.Items, other, swapped: bool) -> bool:
    values = _unnamed(one.values)
    pair = (lambda a, b: (b, a)) if swapped else (lambda a, b: (a, b))
    if isinstance(other, answer_values.Braces):
      return self._permuted(*pair(values, other.values))
    if isinstance(other, answer_values.Bracket):
      if {other.left, other.right} != {'(', ')'}:
        return False
      return self._elementwise(*pair(_in_order_of_names(one.values), other.values))
    if isinstance(other, answer_values.Union) and all(
        isinstance(value, answer_values.Inequality) for value in one.values):
      return self._permuted(*pair([value.interval for value in one.values], other.values))
    return False

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
    if answer_text.squeezed(candidate.text) == answer_text.squeezed(answer.text):
      return factor == 1
    letters = [text if re.fullmatch('[A-Za-z]', text) else None
               for text in (candidate.text.strip(), answer.text.strip())]
    if all(letters):
      choices = all(letter.upper() in 'ABCDE' for letter in letters)
      return choices and letters[0].upper() == letters[1].upper()
    if factor != 1 or max(len(candidate.text), len(answer.text)) > MAX_EXPRESSION:
      return False
    return self._leaf(candidate.text, answer.text)

  def _percentages(self, candidate: Quantity, answer: Quantity) -> bool:
    if candidate.percent == answer.percent:
      return same_number(candidate, answer)
    percent, plain = (candidate, answer) if candidate.percent else (answer, candidate)
    share = dataclasses.replace(percent, rational=percent.rational / 100, decimals=(
        None if percent.decimals is None else percent.decimals + 2))
    return same_number(percent, plain) or same_number(share, plain)

  def _elementwise(self, candidate: Sequence, answer: Sequence) -> bool:
    return len(candidate) == len(answer) and all(map(self.equal, candidate, answer))

  def _permuted(self, candidate: Sequence, answer: Sequence) -> bool:
    """Whether the two agree in some order; equality is transitive, so greed is enough."""
    if len(candidate) != len(answer):
      return False
    left = list(answer)
    for value in candidate:
      index = next((i for i, other in enumerate(left) if self.equal(value, other)), None)
      if index is None:
        return False
      del left[index]
    return True

  def _subset(self, inner: Sequence, outer: Sequence) -> bool:
    return all(any(self.equal(value, other) for other in outer) for value in inner)


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


def number_in_prose(text: str) -> Quantity | None:
  """The one number in a few words ('the number 18'); None if there are several, or a 'not'."""
  if ' ' not in text or _NEGATION.search(text.lower()):
    return None
  numbers = [match[0].strip() for match in _NUMBER_IN_PROSE.finditer(text)]
  return quantities.parse(numbers[0]) if len(numbers) == 1 else None


def _refuse(candidate: str, answer: str) -> bool:
  raise Undecided


def compare(candidate: str, answer: str, *, leaf: Leaf = _refuse) -> bool:
  """Whether two answers are equal.

  Args:
    candidate: what a response says, as extracted.
    answer: the ground truth.
    leaf: decides about two expressions that are no rational numbers.

  Returns:
    the verdict.

  Raises:
    Undecided: a leaf was needed and none was given.
  """
  if not candidate.strip() or not answer.strip():
    return False
  if max(len(candidate), len(answer)) > answer_text.MAX_CHARACTERS:
    return same_long_text(candidate, answer)
  values = [answer_values.parse(answer_text.clean(text)) for text in (candidate, answer)]
  return Comparison(leaf).equal(*values)


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
