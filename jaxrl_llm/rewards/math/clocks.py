"""Times of day and ratios, which share the form '3:30'.

A ratio compares by proportion, a time by hour and minute. '6:00', '0:45' and '09:30' can only
be times; '3:30' may be either and is compared as a time with another of that form or with
'3:30 p.m.', and as a fraction with 1/10 only in lowest terms: '10:15' equals neither 2:3 nor 2/3.
"""

import dataclasses
import fractions
import math
import re

from jaxrl_llm.rewards.math import quantities


@dataclasses.dataclass(frozen=True)
class Ratio:
  """'3:4', '1:2:3', '3:30'.

  Attributes:
    parts: its numbers; only their proportions matter.
    clock: the time that it may be.
    only_clock: whether it cannot be a ratio.
  """

  parts: tuple[fractions.Fraction, ...]
  clock: 'Clock | None' = None
  only_clock: bool = False


@dataclasses.dataclass(frozen=True)
class Clock:
  """A time of day.

  Attributes:
    hour: 0 to 24, as written.
    rest: minutes and seconds.
    half: 'a' (before noon), 'p' (after noon) or '' (not given).
  """

  hour: int
  rest: tuple[int, int]
  half: str = ''


_TIME = re.compile(r'^([0-9]{1,2}):([0-5][0-9])(?::([0-5][0-9]))?$')
_TWELVE_HOURS = re.compile(
    r"^([0-9]{1,2})(?:[:.]([0-5][0-9]))?(?::([0-5][0-9]))? ?(?:o'?clock )?"
    r'(?:\(?([aApP])\.? ?[mM]\.?\)?|in the (morning|afternoon|evening)|(noon|midnight))$'
)
_NAMED = {'noon': Clock(12, (0, 0), 'p'), 'midday': Clock(12, (0, 0), 'p'),
          'midnight': Clock(12, (0, 0), 'a')}  # fmt: skip
_RATIO = re.compile(r'[0-9./ ]{1,20}(?:(?::| to )[0-9./ ]{1,20}){1,5}')


def parse_clock(text: str) -> Clock | None:
  """'3:30 p.m.', '5 am', 'noon'; without a half of the day it is a `Ratio`."""
  if text.lower() in _NAMED:
    return _NAMED[text.lower()]
  match = _TWELVE_HOURS.match(text)
  if match is None or int(match[1]) > 24:
    return None
  half = match[4] or {'morning': 'a', 'midnight': 'a'}.get(match[5] or match[6], 'p')
  return Clock(int(match[1]), _rest(match), half.lower())


def _rest(match: re.Match) -> tuple[int, int]:
  return int(match[2] or 0), int(match[3] or 0)


def parse_ratio(text: str) -> Ratio | None:
  """'3:4', '1:2:3', '3 to 4', '6:00'."""
  if not _RATIO.fullmatch(text):
    return None
  parts = [quantities.rational(part.strip()) for part in re.split(r':| to ', text)]
  if any(part is None for part in parts):
    return None
  match = _TIME.match(text.strip())
  if match is None or int(match[1]) > 24:
    return Ratio(tuple(parts))
  padded = any(part and part.startswith('0') for part in match.groups())
  return Ratio(tuple(parts), Clock(int(match[1]), _rest(match)), padded)


def same_clock(left: Clock, right: Clock) -> bool:
  """Returns whether two times are the same; a missing half of the day fits both."""
  if left.rest != right.rest:
    return False
  if left.half and right.half:
    return left.half == right.half and left.hour % 12 == right.hour % 12
  if not left.half and not right.half:
    return left.hour == right.hour

  with_half, other = (left, right) if left.half else (right, left)
  if other.hour > 12 or other.hour == 0:
    return other.hour % 24 == with_half.hour % 12 + 12 * (with_half.half == 'p')
  return with_half.hour % 12 == other.hour % 12


def same_ratio(left: Ratio, right: Ratio) -> bool:
  """Returns whether two ratios are proportional, or two times the same."""
  if left.only_clock or right.only_clock or (
      left.clock and right.clock and len(left.parts) == len(right.parts) == 2):
    return bool(left.clock and right.clock) and same_clock(left.clock, right.clock)
  if bool(left.clock) != bool(right.clock) and len(left.parts) == len(right.parts) == 2:
    return left.parts == right.parts
  if len(left.parts) != len(right.parts):
    return False
  if 0 in left.parts + right.parts:
    return left.parts == right.parts
  return all(a * right.parts[0] == b * left.parts[0] for a, b in zip(left.parts, right.parts))


def as_fraction(ratio: Ratio) -> fractions.Fraction | None:
  """The value of a ratio of two numbers, unless it is or may well be a time."""
  if len(ratio.parts) != 2 or ratio.parts[1] == 0 or ratio.only_clock:
    return None
  if ratio.clock and math.gcd(*map(int, ratio.parts)) > 1:
    return None
  return ratio.parts[0] / ratio.parts[1]
