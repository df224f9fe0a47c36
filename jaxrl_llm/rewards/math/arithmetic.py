r"""Exact values of rational arithmetic: '1,234', '-2\frac{1}{4}', '1.5*10^{3}', '5!'.

A small recursive descent parser, instead of anything that evaluates text. Its cost is bounded in
advance: the size of a power or a factorial is estimated first, and a budget covers the whole
expression, so that 9^9^9 costs nothing.
"""

import fractions
import math
import re

_MAX_DIGITS = 2000  # Of one literal; Python itself refuses to convert beyond 4300.
_MAX_BITS = 20_000  # Of a numerator or a denominator.
_BUDGET = 1_000_000  # Bits that all operations of one expression may touch.
_MAX_FACTORIAL = 500
_MAX_NESTING = 60

_THOUSANDS = r'[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])'
NUMBER = (
    rf'(?:(?:{_THOUSANDS}|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{{1,4}}(?![0-9a-zA-Z]))?'
)
_TOKEN = re.compile(
    rf'\s*(?:(?P<number>{NUMBER})|(?P<fraction>\\frac)(?![a-zA-Z])|(?P<symbol>[-+*/^(){{}}!]))'
)
_MIXED = re.compile(r'(?<![0-9.,/^])([0-9]+)(?: ([0-9]+)\s?/\s?([0-9]+)(?![0-9./^!])'
                    r'| ?\\frac ?(?:\{ ?([0-9]+) ?\} ?\{ ?([0-9]+) ?\}|([0-9]) ?([0-9])))')


class NotArithmetic(ValueError):
  """The text is not rational arithmetic."""


class TooLarge(ValueError):
  """The text is arithmetic whose value is too large to be written down."""


def parse_number(literal: str) -> fractions.Fraction:
  """The exact value of one literal: '1,234', '.5', '2.50', '1e-3'."""
  if len(literal) > _MAX_DIGITS:
    raise TooLarge('number too long')
  mantissa, _, exponent = literal.replace(',', '').lower().partition('e')
  power = int(exponent or 0)
  if abs(power) > 2 * _MAX_DIGITS:
    raise TooLarge('exponent too large')
  whole, _, decimals = mantissa.partition('.')
  value = fractions.Fraction(int(whole + decimals or '0'), 10 ** len(decimals))
  return value * fractions.Fraction(10) ** power


def _tokens(text: str) -> list[tuple[str, str]]:
  result, position = [], 0
  while position < len(text):
    match = _TOKEN.match(text, position)
    if match is None:
      if not text[position:].strip():
        break
      raise NotArithmetic(text)
    result.append((match.lastgroup, match[match.lastgroup]))
    position = match.end()
  return result


class _Parser:
  """Recursive descent: sum > product > sign > power > postfix > atom."""

  def __init__(self, text: str):
    self._tokens = _tokens(text)
    self._next = 0
    self._budget = _BUDGET
    self._nesting = 0

  def parse(self) -> fractions.Fraction:
    value = self._sum()
    if self._next != len(self._tokens):
      raise NotArithmetic('trailing text')
    return value

  def _peek(self) -> str:
    return self._tokens[self._next][1] if self._next < len(self._tokens) else ''

  def _take(self, expected: str) -> None:
    if self._peek() != expected:
      raise NotArithmetic(expected)
    self._next += 1

  def _pay(self, value: fractions.Fraction) -> fractions.Fraction:
    bits = value.numerator.bit_length() + value.denominator.bit_length()
    self._budget -= bits + 64
    if bits > 2 * _MAX_BITS or self._budget < 0:
      raise TooLarge('too much arithmetic')
    return value

  def _sum(self) -> fractions.Fraction:
    self._nesting += 1
    if self._nesting > _MAX_NESTING:
      raise TooLarge('nested too deeply')
    value = self._product()
    while self._peek() in ('+', '-'):
      sign = self._peek()
      self._next += 1
      term = self._product()
      value = self._pay(value + term if sign == '+' else value - term)
    self._nesting -= 1
    return value

  def _product(self) -> fractions.Fraction:
    value = self._signed()
    while True:
      operator = self._peek()
      if operator in ('*', '/'):
        self._next += 1
        value = self._divide(value, self._signed()) if operator == '/' else self._pay(
            value * self._signed())
      elif operator in ('(', '{') or operator == r'\frac':  # 2(3), (2)(3), 2\frac{..}{..}
        value = self._pay(value * self._power())
      else:
        return value

  def _divide(self, value, divisor) -> fractions.Fraction:
    if divisor == 0:
      raise NotArithmetic('division by zero')
    return self._pay(value / divisor)

  def _signed(self) -> fractions.Fraction:
    sign = 1
    if self._peek() in ('+', '-'):  # One sign: `--15` is a slip, `-(-15)` and `3--15` are not.
      sign = -1 if self._peek() == '-' else 1
      self._next += 1
    return sign * self._power()

  def _power(self) -> fractions.Fraction:
    base = self._postfix()
    if self._peek() != '^':
      return base

    self._next += 1
    self._nesting += 1
    if self._nesting > _MAX_NESTING:
      raise TooLarge('nested too deeply')
    exponent = self._signed()
    self._nesting -= 1

    if exponent.denominator != 1:
      raise NotArithmetic('a root')
    if base == 0 and exponent <= 0:
      raise NotArithmetic('zero to a power that is not positive')

    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) != 1 and base != 0 and bits * abs(exponent) > _MAX_BITS:
      raise TooLarge('power too large')
    if base in (-1, 0, 1):
      return base ** int(exponent % 2 or 2)
    return self._pay(base ** int(exponent))

  def _postfix(self) -> fractions.Fraction:
    value = self._atom()
    while self._peek() == '!':
      self._next += 1
      if self._peek() == '!':
        raise NotArithmetic('double factorial')
      if value.denominator != 1 or value < 0:
        raise NotArithmetic('factorial')
      if value > _MAX_FACTORIAL:
        raise TooLarge('factorial too large')
      value = self._pay(fractions.Fraction(math.factorial(int(value))))
    return value

  def _atom(self) -> fractions.Fraction:
    if self._next >= len(self._tokens):
      raise NotArithmetic('end of text')
    kind, token = self._tokens[self._next]
    self._next += 1
    if kind == 'number':
      return self._pay(parse_number(token))
    if kind == 'fraction':
      numerator = self._argument()
      return self._divide(numerator, self._argument())
    if token in ('(', '{'):
      value = self._sum()
      self._take(')' if token == '(' else '}')
      return value
    raise NotArithmetic(token)

  def _argument(self) -> fractions.Fraction:
    if self._peek() != '{':
      raise NotArithmetic('argument')
    return self._atom()


_SHORT_FRACTION = re.compile(
    r'\\frac ?(?:([0-9]) ?([0-9])(?![0-9])|([0-9]) ?(\{)|(\{[^{}]*\}) ?([0-9]))'
)


_REPEATING = re.compile(
    r'([0-9]{0,20})\.([0-9]{0,20}) ?\\(?:overline|bar|dot) ?\{ ?([0-9]{1,20}) ?\}'
)


def _repeating(match: re.Match) -> str:
  whole, start, period = match[1] or '0', match[2], match[3]
  over = int(whole + start + period) - int(whole + start)
  return f'({over}/{(10 ** len(period) - 1) * 10 ** len(start)})'


def _expand_short(match: re.Match) -> str:
  if match[1]:
    return rf'\frac{{{match[1]}}}{{{match[2]}}}'
  if match[3]:
    return rf'\frac{{{match[3]}}}{match[4]}'
  return rf'\frac{match[5]}{{{match[6]}}}'


def spell_out(text: str) -> str:
  r"""Spells out `\frac12`, a mixed number `1\frac{1}{2}` (a sum) and `0.\overline{3}`."""
  text = _REPEATING.sub(_repeating, text)

  def add(match: re.Match) -> str:
    over, under = match[2] or match[4] or match[6], match[3] or match[5] or match[7]
    return rf'({match[1]}+\frac{{{over}}}{{{under}}})'
  return _SHORT_FRACTION.sub(_expand_short, _MIXED.sub(add, text))


def evaluate(text: str) -> fractions.Fraction:
  """The exact value of cleaned text.

  Args:
    text: see `answer_text.clean`.

  Returns:
    The value.

  Raises:
    NotArithmetic: the text is not rational arithmetic; it may still be an expression.
    TooLarge: it is, but its value has too many digits.
  """
  return _Parser(spell_out(text)).parse()
