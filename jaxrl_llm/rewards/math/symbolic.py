r"""Equality of two expressions or relations with SymPy. Runs in a worker process only.

`expressions` reads a text strictly, and this module builds the SymPy value node by node: a
node that is not finite (1/0, \log 0, a divergent sum) ends the comparison as False before a
later step can cancel it. Equality is decided by values, never by what SymPy simplifies away:
constants must agree to 40 digits, expressions with names at several points.

SymPy may never return, or use all memory: the worker has limits and can be killed.
"""

import fractions
import random
import re

from jaxrl_llm.rewards.math import expression_tokens, expressions
from jaxrl_llm.rewards.math.expressions import Tree

_PLAIN_DECIMAL = re.compile(r'^-? ?[0-9,]*\.([0-9]{6,})$')
_DIGITS = 50
_AGREEING_DIGITS = 40
_MIN_POINTS = 4  # At which two expressions must both have a value, and the same one.
_SIGNS = ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 1), (-1, -1))


class NotFinite(ValueError):
  """A part of the expression has no finite value."""


class Unknown(ValueError):
  """SymPy finds no value for a part of the expression."""


def warm_up() -> None:
  """Imports everything that the first comparison would, and runs each part once."""
  equal(r'\frac{\sqrt{8}}{2}', r'\sqrt{2}')
  equal('x^2+2x+1', '(x+1)^2')
  equal('2x-y+1=0', 'y=2x+1')
  rounds(r'\sqrt{2}', fractions.Fraction(141, 100), fractions.Fraction(1, 200))


def _checked(value):
  """`value`, which must be a finite number or an expression without infinite parts."""
  import sympy

  if not isinstance(value, sympy.Expr):
    raise Unknown(type(value).__name__)
  if value.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan, sympy.AccumBounds):
    raise NotFinite
  return value


def _number(value, points: dict | None = None):
  """The value as a complex number of `_DIGITS` digits, or None if it is not finite."""
  import sympy

  number = value.evalf(_DIGITS, subs=points)
  if number.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan) or number.free_symbols:
    return None
  parts = number.as_real_imag()
  return number if all(part.is_Float or part.is_Rational for part in parts) else None


def _points(names) -> list[dict]:
  """Values for the names: of both signs, never near an integer or each other."""
  import sympy

  source = random.Random(20260)
  ordered = sorted(names, key=lambda name: name.name)
  points = []
  for signs in _SIGNS:
    points.append({
        name: signs[index % 2] * sympy.Rational(source.randint(10**9, 3 * 10**9), 10**9 + 7)
        for index, name in enumerate(ordered)
    })
  return points


def _is_zero(value) -> bool:
  """Returns whether the value is zero, or too close to it to be distinguished."""
  import sympy

  if value.is_zero is not None and value.is_Rational:
    return bool(value.is_zero)
  names = value.free_symbols
  if not names:
    number = _number(value)
    return number is None or abs(number) < sympy.Float(10) ** -_AGREEING_DIGITS
  numbers = [_number(value, point) for point in _points(names)[:3]]
  return all(number is None or abs(number) < sympy.Float(10) ** -_AGREEING_DIGITS
             for number in numbers)


class _Builder:
  """Builds the SymPy value of a tree; raises NotFinite or Unknown."""

  def __init__(self, *, real: bool):
    self._real = real

  def build(self, tree: Tree):
    """The value of a tree, every node checked."""
    return _checked(getattr(self, '_' + tree[0])(*tree[1:]))

  def _symbol(self, name: str):
    import sympy

    return sympy.Symbol(name, real=self._real or None)

  def _number(self, value):
    import sympy

    return sympy.Rational(value.numerator, value.denominator)

  def _name(self, name):
    return self._symbol(name)

  def _constant(self, name):
    import sympy

    if name == 'infinity':
      raise NotFinite
    return {'pi': sympy.pi, 'e': sympy.E, 'i': sympy.I}[name]

  def _negate(self, tree):
    return -self.build(tree)

  def _add(self, left, right):
    return self.build(left) + self.build(right)

  def _multiply(self, left, right):
    return self.build(left) * self.build(right)

  def _divide(self, over, under):
    divisor = self.build(under)
    if _is_zero(divisor):
      raise NotFinite
    return self.build(over) / divisor

  def _power(self, base, exponent):
    base, exponent = self.build(base), self.build(exponent)
    if not (exponent.is_number and exponent.is_positive) and _is_zero(base):
      raise NotFinite
    # Of a negative real number the odd roots are real: (-8)^{1/3} is -2.
    odd_root = exponent.is_Rational and exponent.q > 1 and exponent.q % 2
    if self._real and odd_root and base.is_real and not base.is_nonnegative:
      import sympy

      return sympy.sign(base) ** exponent.p * abs(base) ** exponent
    return base**exponent

  def _mark(self, mark, tree):
    inside = self.build(tree)
    if mark == 'bar' and not inside.free_symbols and not inside.is_real:
      import sympy

      return sympy.conjugate(inside)
    return self._symbol(f'{mark}({inside})')

  def _derivative(self, text, tree):
    return self._symbol(f'{text}({self.build(tree)})')

  def _call(self, name, *trees):
    import sympy

    arguments = [self.build(tree) for tree in trees]
    if name in ('gcd', 'lcm', 'max', 'min') and len(arguments) < 2:
      raise Unknown(name)  # 'max 18' is a bound.
    if name in ('gcd', 'lcm'):
      if not all(argument.is_Integer for argument in arguments):
        raise Unknown(name)
      return getattr(sympy, name)(list(arguments))
    if name in ('log', 'ln', 'lg'):
      base = arguments[1] if len(arguments) > 1 else sympy.E if name == 'ln' else sympy.Integer(10)
      return self._logarithm(arguments[0], base)
    function = self._function(name)
    if function is None:
      return self._symbol(f'{name}({", ".join(str(sympy.expand(a)) for a in arguments)})')
    if len(arguments) != 1 and name not in ('max', 'min', 'binomial'):
      raise Unknown(name)
    return function(*arguments)

  def _logarithm(self, value, base):
    import sympy

    if _is_zero(value) or _is_zero(base) or _is_zero(base - 1):
      raise NotFinite
    return sympy.log(value) / sympy.log(base)

  def _function(self, name):
    """SymPy's function of that name, or None if the name is unknown."""
    import sympy

    renamed = {
        'abs': sympy.Abs, 'ceil': sympy.ceiling, 'max': sympy.Max, 'min': sympy.Min,
        r'\Gamma': sympy.gamma, 'sgn': sympy.sign,
    }  # fmt: skip
    if name in renamed:
      return renamed[name]
    plain = ('floor', 'exp', 'binomial', 'factorial', 'factorial2', 'sinh', 'cosh', 'tanh', 'coth')
    if name in plain or name in expression_tokens.TRIGONOMETRIC:
      return getattr(sympy, name)
    if name.startswith('ar') and name in expression_tokens.FUNCTIONS and name != 'arg':
      return getattr(sympy, 'a' + name.removeprefix('arc').removeprefix('ar'))
    return None

  def _bound(self, tree):
    """A bound; only there infinity is allowed."""
    import sympy

    if tree == ('constant', 'infinity'):
      return sympy.oo
    if tree == ('negate', ('constant', 'infinity')):
      return -sympy.oo
    return self.build(tree)

  def _sum(self, body, name, low, high):
    import sympy

    return self._accumulate(sympy.Sum, body, name, low, high)

  def _product(self, body, name, low, high):
    import sympy

    return self._accumulate(sympy.Product, body, name, low, high)

  def _accumulate(self, kind, body, name, low, high):
    import sympy

    index = sympy.Symbol(name, integer=True)
    term = self.build(body).subs(self._symbol(name), index)
    bounds = (self._bound(low), self._bound(high))
    _check_dependence(term)
    whole = kind(term, (index, *bounds))
    if sympy.oo in bounds and whole.is_convergent() is not sympy.true:
      raise NotFinite
    return self._evaluated(whole, kind)

  def _evaluated(self, whole, kind):
    value = whole.doit()
    if value.has(kind):
      raise Unknown(kind.__name__)
    return value

  def _integral(self, body, name, low, high):
    import sympy

    variable = self._symbol(name)
    function = self.build(body)
    _check_dependence(function)
    bounds = (self._bound(low), self._bound(high))
    if all(bound.is_real or bound.is_infinite for bound in bounds):
      between = sympy.Interval.open(sympy.Min(*bounds), sympy.Max(*bounds))
      if sympy.singularities(function, variable, between) is not sympy.S.EmptySet:
        raise NotFinite
    return self._evaluated(sympy.Integral(function, (variable, *bounds)), sympy.Integral)

  def _limit(self, body, name, point, side):
    import sympy

    function, target = self.build(body), self._bound(point)
    _check_dependence(function)
    side = side or ('-' if target == sympy.oo else '+' if target == -sympy.oo else '+-')
    return sympy.limit(function, self._symbol(name), target, side)


def _check_dependence(body) -> None:
  """Raises Unknown if a body contains f(x), whose dependence on x is not known."""
  if any('(' in symbol.name for symbol in body.free_symbols):
    raise Unknown('a function without a definition')


def _has_i(tree: Tree) -> bool:
  return tree == ('constant', 'i') or any(
      _has_i(part) for part in tree[1:] if isinstance(part, tuple))


def _values(*trees: Tree) -> list:
  """The values of several trees, in which one name is one symbol."""
  builder = _Builder(real=not any(map(_has_i, trees)))
  return [builder.build(tree) for tree in trees]


def _agree(left, right) -> bool | None:
  """Returns whether two numbers are the same; None if both are too close to 0 to decide."""
  import sympy

  scale = max(abs(left), abs(right))
  if scale < sympy.Float(10) ** -_AGREEING_DIGITS:
    return None
  return bool(abs(left - right) <= scale * sympy.Float(10) ** -_AGREEING_DIGITS)


def _same_value(left, right) -> bool:
  """Returns whether two values are equal: exactly, or at all points at which both have a value."""
  import sympy

  if left == right:
    return True
  if left.is_Rational and right.is_Rational:
    return False
  agreed = 0
  for point in _points(left.free_symbols | right.free_symbols):
    numbers = [_number(side, point) for side in (left, right)]
    if None in numbers:
      continue
    verdict = _agree(*numbers)
    if verdict is None:  # It may be exactly zero or not: only algebra can tell.
      return bool(sympy.simplify(left - right) == 0)
    if not verdict:
      return False
    agreed += 1
  return agreed >= _MIN_POINTS


def _proportional(left, right, *, positive: bool) -> bool:
  """Returns whether left = c * right for one constant c other than 0."""
  ratios = []
  for point in _points(left.free_symbols | right.free_symbols):
    numbers = [_number(side, point) for side in (left, right)]
    if None in numbers or _agree(*numbers) is None or any(number == 0 for number in numbers):
      continue
    ratio = (numbers[0] / numbers[1]).evalf(_DIGITS)
    if positive and not (ratio.is_real and ratio > 0):
      return False
    ratios.append(ratio)
  return len(ratios) >= _MIN_POINTS and all(_agree(ratio, ratios[0]) for ratio in ratios)


def _same_relation(candidate, answer) -> bool:
  """Returns whether two relations are equivalent, sign by sign: 2x - y + 1 = 0 and y = 2x + 1."""
  import sympy

  if len(candidate[1]) != len(answer[1]):
    return False
  for index in range(len(answer[1])):
    differences, signs = [], []
    for sides, all_signs in (candidate, answer):
      sign = all_signs[index]
      left, right = sides[index], sides[index + 1]
      if sign in ('>', r'\ge'):
        left, right, sign = right, left, {'>': '<', r'\ge': r'\le'}[sign]
      signs.append(sign)
      differences.append(left - right)

    if signs[0] != signs[1] or not all(d.free_symbols and not _is_zero(d) for d in differences):
      return False
    ordered = signs[0] in ('<', r'\le')
    if _proportional(*differences, positive=ordered):
      continue
    numerators = [sympy.fraction(sympy.together(d))[0] for d in differences]
    if ordered or not _proportional(*numerators, positive=False):
      return False
  return True


def _rounded(decimal: str, exact) -> bool | None:
  """Returns whether a decimal with six or more digits is an irrational constant, rounded."""
  match = _PLAIN_DECIMAL.match(decimal)
  if match is None:
    return None
  if exact.free_symbols or exact.is_Rational:
    return False
  value = fractions.Fraction(decimal.replace(' ', '').replace(',', ''))
  return _within(exact, value, fractions.Fraction(1, 2 * 10 ** len(match[1])))


def _within(exact, value: fractions.Fraction, tolerance: fractions.Fraction) -> bool:
  import sympy

  number = _number(exact)
  if number is None:
    return False
  difference = abs(number - sympy.Rational(value.numerator, value.denominator))
  return bool(difference <= sympy.Rational(tolerance.numerator, tolerance.denominator))


def equal(candidate: str, answer: str) -> bool:
  """Returns whether two expressions or relations are equal as mathematics.

  Args:
    candidate: cleaned text of the answer in a response.
    answer: cleaned text of the ground truth.

  Returns:
    The verdict; False if a text cannot be read, or has no finite value. SymPy's own errors are not
    caught: the worker answers False for any.
  """
  try:
    sides = [expressions.parse_relation(text) for text in (candidate, answer)]
  except expressions.Unreadable:
    return False

  try:
    counts = [len(trees) for trees, _ in sides]
    values = _values(*sides[0][0], *sides[1][0])
    relations = [(values[: counts[0]], sides[0][1]), (values[counts[0] :], sides[1][1])]
    if sides[0] == sides[1]:
      return True
    if counts != [1, 1]:
      return _same_relation(*relations)

    target, gold = values
    for text, other in ((candidate, gold), (answer, target)):
      if (verdict := _rounded(text.strip(), other)) is not None:
        return verdict
    return _same_value(target, gold)
  except NotFinite:
    return False
  except Unknown:
    return sides[0] == sides[1]


def rounds(exact: str, value: fractions.Fraction, tolerance: fractions.Fraction) -> bool:
  """Returns whether a constant is within `tolerance` of `value`.

  Args:
    exact: cleaned text of the constant.
    value: its rounded value.
    tolerance: half a unit of the last digit.
  """
  try:
    (number,) = _values(expressions.parse(exact))
    return not number.free_symbols and _within(number, value, tolerance)
  except (expressions.Unreadable, NotFinite, Unknown):
    return False
