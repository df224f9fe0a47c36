r"""Tokens of mathematical text: numbers, commands, letters, signs. Nothing else is read."""

import re

from jaxrl_llm.rewards.math import arithmetic


class Unreadable(ValueError):
  """The text is not an expression that this module understands."""


TRIGONOMETRIC = frozenset(['sin', 'cos', 'tan', 'sec', 'csc', 'cot'])
FUNCTIONS = TRIGONOMETRIC | frozenset([
    'arcsin', 'arccos', 'arctan', 'arcsec', 'arccsc', 'arccot', 'sinh', 'cosh', 'tanh', 'coth',
    'arcsinh', 'arccosh', 'arctanh', 'arsinh', 'arcosh', 'artanh', 'ln', 'log', 'lg', 'exp',
    'gcd', 'lcm', 'max', 'min', 'det', 'sgn', 'arg', 'deg', 'dim', 'tr', 'rank',
])  # fmt: skip
# Without a backslash these are read as functions too.
_SPELLED = tuple(sorted(FUNCTIONS - {'tr', 'arg', 'deg', 'dim', 'rank'}, key=len, reverse=True))
GREEK = frozenset([
    'alpha', 'beta', 'gamma', 'delta', 'epsilon', 'zeta', 'eta', 'theta', 'iota', 'kappa',
    'lambda', 'mu', 'nu', 'xi', 'omicron', 'rho', 'sigma', 'tau', 'upsilon', 'phi', 'chi', 'psi',
    'omega', 'Alpha', 'Beta', 'Gamma', 'Delta', 'Epsilon', 'Zeta', 'Eta', 'Theta', 'Iota',
    'Kappa', 'Lambda', 'Mu', 'Nu', 'Xi', 'Omicron', 'Pi', 'Rho', 'Sigma', 'Tau', 'Upsilon',
    'Phi', 'Chi', 'Psi', 'Omega', 'varpi',
])  # fmt: skip
OTHER_NAMES = frozenset(['ell', 'hbar', 'partial', 'nabla', 'aleph', 'Re', 'Im', 'wp', 'imath'])
ACCENTS = {
    'bar': 'bar', 'overline': 'bar', 'hat': 'hat', 'widehat': 'hat', 'vec': 'vec',
    'overrightarrow': 'vec', 'tilde': 'tilde', 'widetilde': 'tilde', 'dot': 'dot',
    'ddot': 'ddot', 'dddot': 'dddot', 'check': 'check', 'breve': 'breve', 'acute': 'acute',
    'grave': 'grave', 'mathring': 'ring', 'overleftarrow': 'left', 'mathbb': 'mathbb',
    'mathcal': 'mathcal', 'mathfrak': 'mathfrak', 'mathscr': 'mathscr', 'overset': 'overset',
    'overbrace': 'overbrace', 'underbrace': 'underbrace', 'not': 'not', 'cancel': 'cancel',
}  # fmt: skip
# Commands that make one name with the next: \Delta y.
DIFFERENCES = frozenset([r'\Delta', r'\delta', r'\nabla', r'\partial'])
# Letters that usually name functions: f(x + 1) is not a product, P(1 + r) may be one.
ALWAYS_CALLED = frozenset('fgFG')
CALLED_ON_ATOMS = frozenset('hpqHPQ')
EXPONENT_MARKS = {
    r'\top': 'T', r'\intercal': 'T', r'\dagger': r'\dagger', '*': r'\ast', r'\star': r'\star',
    r'\perp': r'\perp', r'\complement': r'\complement', r'\ast': r'\ast',
}  # fmt: skip

_TOKEN = re.compile(
    rf"\s*(?:({arithmetic.NUMBER})|(\\[a-zA-Z]+)|([a-zA-Z]+)|('+|[-+*/^_(){{}}\[\]!|=<>,%]))"
)
RELATIONS = frozenset(['=', '<', '>', r'\le', r'\ge', r'\ne'])
CLOSING = {'(': ')', '[': ']', '{': '}', '|': '|', r'\lfloor': r'\rfloor', r'\lceil': r'\rceil'}
WRAPPED = {'|': 'abs', r'\lfloor': 'floor', r'\lceil': 'ceil'}
# Commands that cannot open a factor.
NO_FACTORS = RELATIONS | {r'\rfloor', r'\rceil', r'\to', r'\rightarrow', r'\in', r'\cup'}


def split(text: str) -> list[str]:
  """The tokens of a text; a run of letters is a spelled function or single letters."""
  result, position = [], 0
  text = text.rstrip()
  while position < len(text):
    match = _TOKEN.match(text, position)
    if match is None:
      raise Unreadable(text)

    position = match.end()
    run = match[3]
    if run is None:
      result.append(match[1] or match[2] or match[4])
      continue

    function = next((name for name in _SPELLED if run.startswith(name)), None)
    if function and len(run) - len(function) < 2:
      result.append('\\' + function)
      run = run[len(function) :]
    result.extend(run)
  return result


def is_number(token: str) -> bool:
  """Returns whether the token is a number."""
  return token[:1].isdigit() or (token[:1] == '.' and token[1:2].isdigit())


def is_letter(token: str) -> bool:
  """Returns whether the token is a single letter."""
  return len(token) == 1 and token.isalpha()


def is_name(token: str) -> bool:
  """Returns whether the token is a letter or a command that names a quantity."""
  return is_letter(token) or token[1:] in GREEK or token[1:] in OTHER_NAMES
