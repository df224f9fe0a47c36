r"""Quantities: a number or an expression, perhaps with a unit, a currency or a percent sign."""

import dataclasses
import fractions
import re
import unicodedata

from jaxrl_llm.rewards.math import arithmetic, expressions, number_words, units


@dataclasses.dataclass(frozen=True)
class Quantity:
  """A number or an expression.

  Attributes:
    text: its text, without unit and percent sign.
    rational: its exact value, if the text is rational arithmetic.
    decimals: digits after the decimal point, if the text is one decimal number.
    percent: whether a percent sign followed it.
    unit: the unit after or before it, or None.
    too_large: the text is arithmetic whose value cannot be written down.
  """

  text: str
  rational: fractions.Fraction | None = None
  decimals: int | None = None
  percent: bool = False
  unit: units.Unit | None = None
  too_large: bool = False


_DECIMAL = re.compile(r'^[-+]? ?[0-9,]*\.([0-9]*)$')
_SPACED_GROUPS = re.compile(r'^-?[0-9]{1,3}(?: [0-9]{3}){1,10}(?:\.[0-9]+)?$')
_CURRENCY = re.compile(
    rf'^([-+]?) ?(?:US|USD)? ?([{units.CURRENCY}]|(?:Rs\.?|USD|EUR|GBP|INR|JPY)(?= ?[0-9])) ?(.*)$'
)
_ORDINAL = re.compile(r'^([0-9]{1,15}) ?\^? ?\{? ?(?:st|nd|rd|th)(?![a-zA-Z]) ?\}?(.*)$')
_BASED = re.compile(
    r'^([0-9a-zA-Z]{1,200}) ?(?:_ ?\{? ?\(? ?|,? ?\(?(?:in )?(?=base ))(?:base )?'
    r'([0-9]{1,2}|[a-z]{3,12}(?:-[a-z]{3,5})?) ?\)? ?\}?$'
)
_HEXADECIMAL = re.compile(r'^[A-F]{2,20}$')
_PLAIN_LETTER = re.compile(rf'(?<![\\a-zA-Z])(?:[^\W\d_]|[{units.CURRENCY}])')
_COMMAND = re.compile(r'\\[a-zA-Z]+')
# Attached to its number, a single letter is a variable (5x) unless it is one of these.
_ATTACHED = re.compile(r'^[mgL](?:\^ ?\{? ?[23] ?\}?)?$')
_STRUCTURE = re.compile(r'[=<>,;]|\\(?:le|ge|ne|in|pm|cup)\b')
# Digits and signs without a finite value, such as 1/0.
_ARITHMETIC = re.compile(r'^ ?-?[0-9.]+ ?[-+*/^(){}0-9. ]*$')
_LETTER_UNITS = frozenset(['m', 'g', 's', 'h', 'l', 'L', 'N', 'J', 'V', 'W', 'A', 'K', 'C', 'F'])


def rational(text: str) -> fractions.Fraction | None:
  """The exact value of cleaned text, or None if it is not rational arithmetic."""
  try:
    return arithmetic.evaluate(text)
  except ValueError:
    return None


def number(value: int) -> Quantity:
  """An integer as a quantity."""
  return Quantity(str(value), rational=fractions.Fraction(value))


def expression(text: str) -> Quantity:
  """A quantity of which only the text is known."""
  return Quantity(text)


def _number(text: str) -> Quantity | None:
  """A bare number: its exact value, or a mark that it is too large to have one."""
  if _SPACED_GROUPS.match(text):
    text = text.replace(' ', '')
  try:
    value = arithmetic.evaluate(text)
  except arithmetic.TooLarge:
    return Quantity(text, too_large=True)
  except arithmetic.NotArithmetic:
    return None
  match = _DECIMAL.match(text)
  return Quantity(text, rational=value, decimals=len(match[1]) if match else None)


def _based(text: str) -> Quantity | None:
  """'1011_2', '1011_{two}', '1011 in base 2': digits with their base."""
  match = _BASED.match(text)
  if match is None or (match[1].isalpha() and not _HEXADECIMAL.match(match[1])):
    return None  # x_2 is a name.
  named = number_words.leading(match[2]) if match[2].isascii() and not match[2].isdigit() else None
  base = int(match[2]) if match[2].isdigit() else named[0] if named and not named[1] else 0
  if base not in range(2, 37):
    return None
  try:
    return Quantity(text, rational=fractions.Fraction(int(match[1], int(base))))
  except ValueError:
    return None


def _first_letter(text: str) -> int | None:
  """Index of the first letter outside LaTeX commands."""
  blanked = _COMMAND.sub(lambda match: '\\' * len(match[0]), text)
  match = _PLAIN_LETTER.search(blanked)
  return match.start() if match else None


def _acceptable_unit(phrase: str, attached: bool) -> units.Unit | None:
  unit = units.parse(phrase)
  another = number_words.leading(phrase)
  if unit is None or (another is not None and not another[1]):  # 5 six
    return None
  first = re.match(r'[^\W\d_]*', phrase)[0]
  if first and unicodedata.category(first[0]) == 'Lo':  # Chinese and others: words of any length.
    return unit
  if phrase.startswith('of the '):  # 1/3 of the pizza
    return unit
  if len(first) == 1:
    allowed = _ATTACHED.match(phrase) if attached else first in _LETTER_UNITS
    return unit if allowed else None
  if unit.readings:
    return unit
  return unit if len(first) > (3 if attached else 2) else None


def _with_unit(text: str) -> Quantity | None:
  start = _first_letter(text)
  if not start:
    return None
  value, phrase = text[:start], text[start:]
  if value.count('{') != value.count('}') or value.count('(') != value.count(')'):
    return None
  unit = _acceptable_unit(phrase, attached=not value.endswith(' '))
  if unit is None or not value.strip():
    return None
  inner = _percent(value.strip())
  if inner is None and not _STRUCTURE.search(value) and (
      unit.is_plain_measure or (not unit.readings and expressions.read(value.strip()) is not None)):
    inner = Quantity(value.strip())  # 36\pi cm^2, 1/0 apples
  return None if inner is None else dataclasses.replace(inner, unit=unit)


def _percent(text: str) -> Quantity | None:
  if not text.endswith('%'):
    return _number(text)
  inner = _number(text[:-1].strip())
  return None if inner is None else dataclasses.replace(inner, percent=True)


def parse(text: str) -> Quantity | None:
  r"""Reads '18', '$1,234.00', '12 cm^2', '33\frac{1}{3}%', '1011_2', 'twelve', '36\pi cm^2'.

  Args:
    text: cleaned text.

  Returns:
    The quantity, or None if the text is neither a number nor a number with a unit.
  """
  if match := _CURRENCY.match(text):
    inner = _without_currency(match[1] + match[3])
    if inner is None and _ARITHMETIC.match(match[3]):
      inner = Quantity(match[1] + match[3])  # $1/0
    if inner is None:
      return None
    symbol = 'rupee' if match[2].startswith('Rs') else match[2]
    return dataclasses.replace(inner, unit=units.parse(symbol))
  return _without_currency(text)


def _without_currency(text: str) -> Quantity | None:
  if (quantity := _percent(text) or _based(text)) is not None:
    return quantity
  if (match := _ORDINAL.match(text)) and (
      not match[2] or (match[2].startswith(' ') and units.parse(match[2]) is not None)):
    return _number(match[1])
  if (scaled := number_words.leading(text)) is not None:
    value, rest = scaled
    if not rest:
      return Quantity(str(value), rational=value)
    if number_words.leading(rest) is None and (unit := units.parse(rest)) is not None:
      return Quantity(str(value), rational=value, unit=unit)
    return None
  return _with_unit(text)


def combined(parts: list) -> Quantity | None:
  """'2 hours' and '30 minutes' as 2.5 hours: different measures of one dimension, largest first.

  Args:
    parts: parsed values.

  Returns:
    The sum in the first part's unit, or None if the parts are something else.
  """
  if not all(isinstance(part, Quantity) and part.rational is not None and part.unit is not None
             and part.unit.readings for part in parts):
    return None
  ratios = [units.ratio(part.unit, parts[0].unit) for part in parts]
  if None in ratios or any(later >= earlier for earlier, later in zip(ratios, ratios[1:])):
    return None
  total = sum(part.rational * ratio for part, ratio in zip(parts, ratios))
  return Quantity(str(total), rational=total, unit=parts[0].unit)
