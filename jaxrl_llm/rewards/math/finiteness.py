"""Checks that an expression is finite, by its value at one point in floating point.

Cheap, and one-sided: a tree that is far from every pole at an arbitrary point has no division by an
expression that is zero everywhere. If the check fails, `symbolic` decides.
"""

import cmath
import math
import zlib

from jaxrl_llm.rewards.math.expressions import Tree

_NEAR_ZERO = 1e-9
_TOO_LARGE = 1e100


class _Unsure(Exception):
  """The value is near a pole, too large, or not computed here."""


def is_sure(tree: Tree) -> bool:
  """Returns whether no part of a tree can be infinite or undefined; False if unknown."""
  try:
    _value(tree)
  except (_Unsure, ArithmeticError, ValueError, RecursionError):
    return False
  return True


def _point(text: str) -> float:
  """A value for a name: between 1 and 3, the same for the same name."""
  return 1 + 2 * (zlib.crc32(text.encode()) % 999_983) / 999_983


def _nonzero(value: complex) -> complex:
  if abs(value) < _NEAR_ZERO:
    raise _Unsure
  return value


def _value(tree: Tree) -> complex:
  kind, *parts = tree
  if kind == 'number':
    return complex(float(parts[0]))
  if kind == 'name':
    return complex(_point(parts[0]))
  if kind == 'constant':
    if parts[0] == 'infinity':
      raise _Unsure
    return complex({'pi': math.pi, 'e': math.e, 'i': 1j}[parts[0]])

  values = [_value(part) for part in parts if isinstance(part, tuple)]
  result = _combined(kind, parts, values)
  if not abs(result) < _TOO_LARGE:
    raise _Unsure
  return result


def _combined(kind: str, parts: list, values: list[complex]) -> complex:
  """The value of a node from the values of its trees."""
  if kind == 'negate':
    return -values[0]
  if kind == 'add':
    return values[0] + values[1]
  if kind == 'multiply':
    return values[0] * values[1]
  if kind == 'divide':
    return values[0] / _nonzero(values[1])

  if kind == 'power':
    positive = values[1].imag == 0 and values[1].real > 0
    return (values[0] if positive else _nonzero(values[0])) ** values[1]
  if kind in ('mark', 'derivative'):
    return complex(_point(repr(parts)))
  if kind == 'call':
    return _called(parts[0], values, _point(repr(parts)))
  raise _Unsure


def _called(name: str, values: list[complex], unknown: float) -> complex:
  """The value of a function; `unknown` for one that only has a name."""
  value = values[0]
  if name in ('ln', 'log', 'lg'):
    base = cmath.log(_nonzero(values[1])) if len(values) > 1 else 1
    return cmath.log(_nonzero(value)) / _nonzero(base)
  if name in ('tan', 'sec'):
    return 1 / _nonzero(cmath.cos(value))
  if name in ('cot', 'csc'):
    return 1 / _nonzero(cmath.sin(value))

  if name in ('sin', 'cos', 'exp', 'sinh', 'cosh', 'tanh'):
    return getattr(cmath, name)(value)
  if name in ('factorial', 'factorial2', r'\Gamma'):
    if value.imag or not 1 <= value.real < 60:
      raise _Unsure
    return complex(math.gamma(value.real + (name != r'\Gamma')))
  if name in ('arcsin', 'arccos', 'abs'):
    return complex(abs(value))
  if name in ('floor', 'ceil'):
    return complex(math.floor(value.real) + (name == 'ceil'))
  if name.startswith(('ar', 'cot', 'gcd', 'lcm')):
    raise _Unsure
  return complex(unknown)
