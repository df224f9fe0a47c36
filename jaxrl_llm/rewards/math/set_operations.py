r"""Differences and intersections of sets: `\{1,2,3\} \setminus \{2\}`, all reals except 0.

Computed only where every element is a rational number, so that membership and order are exact.
"""

import fractions
import re
from collections.abc import Sequence

from jaxrl_llm.rewards.math.answer_kinds import Braces, Bracket, Text, Union, Value
from jaxrl_llm.rewards.math.quantities import Quantity

INFINITY = Text('infinity')
NEGATIVE_INFINITY = Text('-infinity')
EMPTY = Text('no solution')
REALS = Bracket('(', ')', (NEGATIVE_INFINITY, INFINITY))


_REALS_WITHOUT = re.compile(
    r'[Aa]ll reals?(?: numbers)?(?: [a-z])?,? (?:except|excluding|but|other than)(?: for)? '
    r'(.{1,200})'
)
_NAME = re.compile(r'^[a-z] ?(?:=|\\ne)')
_AND = re.compile(r',? and ')


def spell_out(text: str) -> str:
  r"""Spells 'all real numbers except x = 2 and x = 3' as `\mathbb{R} \setminus \{2, 3\}`."""
  match = _REALS_WITHOUT.fullmatch(text)
  if match is None:
    return text
  points = [_NAME.sub('', point.strip()) for point in _AND.sub(',', match[1]).split(',')]
  return rf'\mathbb{{R}} \setminus \{{{", ".join(points)}\}}'


def _numbers(value: Value) -> dict[fractions.Fraction, Quantity] | None:
  """The elements of a finite set of rational numbers; None if it is another set."""
  if value == EMPTY:
    return {}
  if not isinstance(value, Braces):
    return None
  numbers = {}
  for element in value.values:
    if not isinstance(element, Quantity) or element.rational is None or element.unit:
      return None
    numbers[element.rational] = element
  return numbers


def without_points(points: dict[fractions.Fraction, Quantity], source: str) -> Value:
  """The real numbers without some points, as a union of open intervals."""
  ends = [NEGATIVE_INFINITY, *(points[number] for number in sorted(points)), INFINITY]
  intervals = tuple(Bracket('(', ')', pair) for pair in zip(ends, ends[1:]))
  return Union(intervals, source) if len(intervals) > 1 else intervals[0]


def _combined(left: Value, right: Value, *, difference: bool, source: str) -> Value | None:
  right_numbers = _numbers(right)
  if right_numbers is None:
    return None
  if left == REALS:
    return without_points(right_numbers, source) if difference else right

  left_numbers = _numbers(left)
  if left_numbers is None:
    return None
  elements = tuple(element for number, element in left_numbers.items()
                   if (number in right_numbers) != difference)
  return Braces(elements) if elements else EMPTY


def combined(values: Sequence[Value], *, difference: bool, source: str) -> Value | None:
  """The difference or the intersection of sets, from left to right.

  Args:
    values: at least one set.
    difference: whether to take differences instead of intersections.
    source: text of the whole expression.

  Returns:
    The set, or None if it is not computed here.
  """
  result = values[0]
  for value in values[1:]:
    result = _combined(result, value, difference=difference, source=source)
    if result is None:
      return None
  return result
