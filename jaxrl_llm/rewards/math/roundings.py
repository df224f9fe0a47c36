"""Recognises decimals that are rounded values of other numbers."""

import fractions
import re

from jaxrl_llm.rewards.math import answer_values, expressions
from jaxrl_llm.rewards.math.quantities import Quantity

# A decimal with at least this many digits after the point equals the number that it rounds.
MIN_ROUNDED_DECIMALS = 6
HAIR = fractions.Fraction(1, 10**9)

_INTEGER = re.compile(r'^-? ?[0-9,]*?(0*)$')
_SCIENTIFIC = re.compile(r'^-? ?[0-9]+(?:\.([0-9]*))? ?\* ?10 ?\^ ?\{? ?(-?[0-9]{1,3}) ?\}?$')


def same_number(left: Quantity, right: Quantity) -> bool:
  """Returns whether two exact values agree, up to correct rounding to six or more digits."""
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


def number_of(value: answer_values.Value) -> Quantity | None:
  """The quantity that a value reduces to: 5 of 'x = 5' and of '2 + 3 = 5'."""
  while True:
    match value:
      case Quantity():
        known = value.rational is not None or value.too_large
        return value if known or expressions.read(value.text) is not None else None
      case answer_values.Assignment():
        value = value.value
      case answer_values.Relation():
        value = value.last
      case _:
        return None


def last_digit(rounded: Quantity) -> fractions.Fraction | None:
  """The unit of the last digit that a decimal shows; None if it is not a decimal."""
  if rounded.decimals is not None:
    return fractions.Fraction(1, 10**rounded.decimals)
  if match := _INTEGER.match(rounded.text.strip()):
    return fractions.Fraction(10) ** len(match[1])
  if match := _SCIENTIFIC.match(rounded.text.strip()):
    return fractions.Fraction(10) ** (int(match[2]) - len(match[1] or ''))
  return None
