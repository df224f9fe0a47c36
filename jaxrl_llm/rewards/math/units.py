"""Units of measure: phrases that name one, and their comparison.

A unit is known (a dimension and an exact factor: '60 minutes' is '1 hour', '12 cm' is
not '12 m'), or it is any other noun ('5 apples').
"""

import dataclasses
import fractions
import re

from jaxrl_llm.rewards.math import answer_text, hedges

_F = fractions.Fraction

# Dimension -> {factor: names}. One name may have two dimensions (pound).
_TABLE: dict[str, list[tuple[_F, str]]] = {
    'length': [
        (_F(1, 10**6), 'um micrometer micrometre micron'),
        (_F(1, 1000), 'mm millimeter millimetre'), (_F(1, 100), 'cm centimeter centimetre'),
        (_F(1, 10), 'dm decimeter decimetre'), (_F(1), 'm meter metre'),
        (_F(1000), 'km kilometer kilometre'), (_F(254, 10000), 'in inch inches'),
        (_F(3048, 10000), 'ft foot feet'), (_F(9144, 10000), 'yd yard'),
        (_F(1609344, 1000), 'mi mile'),
    ],
    'mass': [
        (_F(1, 10**6), 'mg milligram'), (_F(1, 1000), 'g gram gm'), (_F(1), 'kg kilogram kilo'),
        (_F(45359237, 10**8), 'lb lbs pound'), (_F(45359237, 16 * 10**8), 'oz ounce'),
        (_F(1000), 'tonne'), (_F(45359237 * 2000, 10**8), 'ton'),
    ],
    'time': [
        (_F(1, 10**6), 'us microsecond'), (_F(1, 1000), 'ms millisecond'),
        (_F(1), 's sec second'), (_F(60), 'min minute'),
        (_F(3600), 'h hr hour'), (_F(86400), 'day'), (_F(7 * 86400), 'week wk'),
    ],
    'months': [(_F(1), 'month'), (_F(12), 'year yr'), (_F(120), 'decade'), (_F(1200), 'century')],
    'volume': [(_F(1, 1000), 'ml milliliter millilitre cc'), (_F(1), 'l liter litre')],
    'gallons': [(_F(1), 'gallon gal'), (_F(1, 4), 'quart qt'), (_F(1, 8), 'pint pt'),
                (_F(1, 16), 'cup')],
    'area': [(_F(1), 'acre')],
    'angle': [(_F(1), 'degree deg')],
    'radians': [(_F(1), 'radian rad')],
    'dollars': [(_F(1), f'dollar usd buck {answer_text.DOLLAR}'), (_F(1, 100), 'cent ¢')],
    'euros': [(_F(1), 'euro eur €')],
    'sterling': [(_F(1), 'pound gbp £'), (_F(1, 100), 'pence penny')],
    'yen': [(_F(1), 'yen jpy ¥')],
    'rupees': [(_F(1), 'rupee inr ₹ rs')],
    'speed': [(_F(1609344, 3600 * 1000), 'mph'), (_F(1000, 3600), 'kph kmh kmph')],
    'temperature': [(_F(1), 'celsius')],
    'fahrenheit': [(_F(1), 'fahrenheit')],
    'power': [(_F(1), 'watt'), (_F(1000), 'kilowatt kw')],
    'energy': [(_F(1), 'joule'), (_F(1000), 'kilojoule kj')],
    'force': [(_F(1), 'newton')],
    'volts': [(_F(1), 'volt')],
    'bytes': [(_F(1), 'byte'), (_F(2**10), 'kb kilobyte'), (_F(2**20), 'mb megabyte')],
}  # fmt: skip

CURRENCY = f'{answer_text.DOLLAR}€£¥₹¢'

Dimensions = tuple[tuple[str, int], ...]


def _names() -> dict[str, list[tuple[str, _F]]]:
  result: dict[str, list[tuple[str, _F]]] = {}
  for dimension, entries in _TABLE.items():
    for factor, names in entries:
      for name in names.split():
        result.setdefault(name, []).append((dimension, factor))
        if len(name) > 2 and not name.endswith('s'):
          result.setdefault(name + 's', []).append((dimension, factor))
  return result


_NAMES = _names()
# Nouns that say nothing about what is counted.
_GENERIC = frozenset(['unit', 'total', 'in', 'overall', 'piece', 'item', 'exactly'])
_SQUARE = re.compile(r'^(?:square|sq|sq\.) ?')
_CUBIC = re.compile(r'^(?:cubic|cu|cu\.) ?')
_POWER = re.compile(r' ?(?:\^ ?\{? ?([23]) ?\}?|(squared|cubed)|(?<=m)([23]))$')


@dataclasses.dataclass(frozen=True)
class Unit:
  """The words after a number.

  Attributes:
    readings: the ways to read it as a measure, each (dimensions, factor to the base
      unit); empty for a noun that is not a known measure.
    words: the words, lower case.
  """

  readings: tuple[tuple[Dimensions, fractions.Fraction], ...]
  words: tuple[str, ...]

  @property
  def is_plain_measure(self) -> bool:
    """Returns whether it is a measure without a power of time alone: `\\pi hr^2` is a product."""
    powers_of_time = [dict(dimensions) for dimensions, _ in self.readings]
    return bool(self.readings) and not any(
        list(dimensions) == ['time'] and dimensions['time'] > 1 for dimensions in powers_of_time)


def _power_of(phrase: str) -> tuple[str, int]:
  power = 1
  if match := _SQUARE.match(phrase):
    phrase, power = phrase[match.end() :], 2
  elif match := _CUBIC.match(phrase):
    phrase, power = phrase[match.end() :], 3
  elif match := _POWER.search(phrase):
    power = int(match[1] or match[3] or {'squared': 2, 'cubed': 3}[match[2]])
    phrase = phrase[: match.start()]
  return phrase.strip(), power


def _readings(phrase: str) -> list[tuple[Dimensions, fractions.Fraction]]:
  """All readings of 'miles per hour', 'square cm', 'm/s^2'; [] if there is none."""
  parts = re.split(r' per |/| an? (?=\w+$)', phrase)
  if len(parts) > 3:
    return []

  results = [({}, _F(1))]
  for index, part in enumerate(parts):
    name, power = _power_of(part.strip())
    if name not in _NAMES:
      return []
    power = -power if index else power
    results = [
        ({**dimensions, dimension: dimensions.get(dimension, 0) + power}, total * factor**power)
        for dimensions, total in results
        for dimension, factor in _NAMES[name]
    ]

  readings = []
  for dimensions, factor in results:
    if dimensions.get('speed') == 1 and len(dimensions) == 1:
      dimensions = {'length': 1, 'time': -1}
    readings.append((tuple(sorted((d, p) for d, p in dimensions.items() if p)), factor))
  return readings


# Letters of all scripts: 8点, 5 яблок.
_FORMAT = re.compile(r"^(?:[^\W\d_]|[€£¥₹¢\uff04%])[\w ^{}/.'€£¥₹¢\uff04-]{0,119}$")


_UNITS_OF_NOTHING = re.compile(
    r'^(?:(?:square|sq|cubic) )?units?(?: ?\^ ?\{? ?[23] ?\}?| squared| cubed)?$'
)


def parse(phrase: str) -> Unit | None:
  """Reads the words after a number as a unit; None if they cannot be one."""
  phrase = re.sub(r'\s+', ' ', phrase.strip())
  if not _FORMAT.match(phrase) or '_' in phrase or hedges.names_no_unit(phrase):
    return None
  lowered = phrase.lower().strip('. ')
  lowered = _UNITS_OF_NOTHING.sub('unit', lowered)
  lowered = re.sub(r'^degrees? (?:c|celsius)$', 'celsius', lowered)
  lowered = re.sub(r'^degrees? (?:f|fahrenheit)$', 'fahrenheit', lowered)
  lowered = re.sub(r'(?<=[a-z])\.(?= |$)', '', lowered)
  readings = _readings(lowered)
  if not readings and re.search(r'[0-9^{}/]', lowered):
    return None
  return Unit(tuple(readings), tuple(lowered.split()))


def is_known(phrase: str) -> bool:
  """Returns whether the phrase names a measure."""
  unit = parse(phrase)
  return unit is not None and bool(unit.readings)


_PLURALS = (('ies', 'y'), ('ches', 'ch'), ('shes', 'sh'), ('xes', 'x'), ('s', ''))


def _stem(word: str) -> str:
  for ending, replacement in _PLURALS:
    if word.endswith(ending) and len(word) > len(ending) + 1:
      return word[: -len(ending)] + replacement
  return word


def ratio(left: Unit | None, right: Unit | None) -> fractions.Fraction | None:
  """Factor that converts a number in `left` to `right`.

  A missing unit fits every unit: ground truths often leave it out, and so do responses.
  Two measures fit if they have the same dimension. Two other nouns fit unless both are a single
  word; then they must be the same word.

  Returns:
    The factor, or None if the two do not fit.
  """
  if left is None or right is None:
    return _F(1)
  if left.readings and right.readings:
    for left_dimensions, left_factor in left.readings:
      for right_dimensions, right_factor in right.readings:
        if left_dimensions == right_dimensions:
          return left_factor / right_factor
    return None
  if len(left.words) == len(right.words) == 1:
    stems = {_stem(left.words[0]), _stem(right.words[0])}
    if len(stems) == 2 and not stems & _GENERIC:
      return None
  return _F(1)
