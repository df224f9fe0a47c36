r"""Equality of two expressions by math-verify. Runs in a worker process only.

math-verify parses LaTeX with a grammar (nothing is evaluated as code) and compares with
SymPy, which may take for ever or all memory: the worker is limited and may be killed.
Its looseness is kept out: what reaches it is one expression, without units or lists, and
decimals are turned into fractions, because it rounds floats to six digits.

References:
  Hynek Kydlíček, Math-Verify 0.9 (2025).
"""

import re

_DECIMAL = re.compile(r'(?<![0-9.])([0-9]*)\.([0-9]+)(?![0-9.])')
_GROUPS = re.compile(r'(?<=[0-9]),(?=[0-9]{3}(?![0-9]))')
_PLAIN_DECIMAL = re.compile(r'^-? ?[0-9,]*\.([0-9]{6,})$')
_DIGITS = 30


def warm_up() -> None:
  """Imports everything that the first comparison would, and runs each part once."""
  equal(r'\frac{\sqrt{8}}{2}', r'\sqrt{2}')
  equal('x^2+2x+1', '(x+1)^2')
  equal('2x-y+1=0', 'y=2x+1')


def _latex(text: str) -> str:
  text = _GROUPS.sub('', text)
  text = _DECIMAL.sub(
      lambda m: rf'\frac{{{int((m[1] + m[2]) or "0")}}}{{{10 ** len(m[2])}}}', text)
  return text.replace('*', r' \cdot ')


def _parse(text: str):
  import math_verify
  from latex2sympy2_extended import latex2sympy2

  normalization = latex2sympy2.NormalizationConfig(
      basic_latex=True, units=False, malformed_operators=True, nits=True, boxed='none')
  config = math_verify.LatexExtractionConfig(normalization_config=normalization)
  return math_verify.parse(
      f'${_latex(text)}$', [config], fallback_mode='no_fallback', parsing_timeout=None)


def _is_finite(value) -> bool:
  """Whether a number is finite, or an expression, relation or set contains no other value.

  Infinities, `nan` and SymPy's AccumBounds compare within any tolerance that is derived from
  them; a sum or integral that stays unevaluated has no known value.
  """
  import sympy

  poles = (sympy.oo, -sympy.oo, sympy.zoo, sympy.nan, sympy.AccumBounds)
  if value.has(*poles):
    return False
  if not isinstance(value, sympy.Expr) or not value.is_number:
    return True
  number = value.evalf(_DIGITS)
  return all(part.is_Float or part.is_Rational for part in number.as_real_imag()) and not (
      number.has(*poles))


def _close(left, right) -> bool:
  """Whether two constants agree to `_DIGITS` significant digits."""
  left, right = left.doit(), right.doit()
  if not (_is_finite(left) and _is_finite(right)):
    return False
  if left == right:
    return True
  scale = max(abs(left.evalf(_DIGITS)), abs(right.evalf(_DIGITS)))
  if 0 in (left, right):  # Nothing to measure by: the other may be a zero in disguise.
    return bool((left - right).equals(0))
  return bool(abs((left - right).evalf(_DIGITS)) <= scale * 10.0 ** (5 - _DIGITS))


def _imaginary(expression):
  """Reads the letter i as the imaginary unit, as math-verify does only in some places."""
  import sympy

  if not isinstance(expression, sympy.Expr):
    return expression
  letters = {s: sympy.I for s in expression.free_symbols if s.name == 'i'}
  return expression.xreplace(letters) if letters else expression


def _rounded(decimal: str, exact) -> bool:
  """Whether a decimal with six or more digits is an irrational constant, rounded."""
  match = _PLAIN_DECIMAL.match(decimal)
  if match is None or not getattr(exact, 'is_number', False) or exact.is_rational:
    return False
  import sympy

  value = sympy.Rational(decimal.replace(' ', '').replace(',', ''))
  exact = exact.doit()
  if not _is_finite(exact):
    return False
  difference = abs(exact.evalf(_DIGITS) - value)
  return bool(difference <= sympy.Rational(1, 2 * 10 ** len(match[1])))


def equal(candidate: str, answer: str) -> bool:
  """Whether two expressions or equations are equal as mathematics.

  Args:
    candidate: cleaned text of what was answered.
    answer: cleaned text of the ground truth.

  Returns:
    the verdict; False where a text cannot be parsed.
  """
  import math_verify
  import sympy

  try:
    target, gold = _parse(candidate), _parse(answer)
    if not target or not gold:
      return False
    target, gold = _imaginary(target[0]), _imaginary(gold[0])
    for text, other in ((candidate, gold), (answer, target)):
      if _PLAIN_DECIMAL.match(text.strip()):
        return _rounded(text.strip(), other)
    both = (gold, target)
    if all(isinstance(side, sympy.Expr) and side.is_number for side in both):
      # math-verify compares to an absolute 1e-15, which is nothing beside 10^{-20}.
      return _close(gold, target)
    if not all(_is_finite(side) and _is_finite(side.doit()) for side in both):
      return False
    return bool(math_verify.verify(gold, target, timeout_seconds=None))
  except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError,
          RecursionError, sympy.SympifyError):
    return False
