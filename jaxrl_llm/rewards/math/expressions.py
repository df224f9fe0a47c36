r"""Reads cleaned text (answer_text.clean) as one expression or relation; evaluates nothing.

math-verify is not used for this, because it drops what it does not know and folds case: it reads
`f'(x)` as f(x), `A^T` as a and `3R^2` as 3r^2, and 1/0 as a value (zoo) that a later step cancels.

Every character must be understood: a text with anything else in it is `Unreadable`, so that
no letter, accent, prime or index can be lost on the way. Upper and lower case differ.

A tree is a nested tuple (kind, *parts):
  ('number', Fraction), ('name', text), ('constant', 'pi' | 'e' | 'i' | 'infinity'),
  ('negate', a), ('add', a, b), ('multiply', a, b), ('divide', a, b), ('power', a, b),
  ('call', function, *arguments), ('mark', accent, a), ('derivative', text, a),
  ('sum' | 'product' | 'integral', body, name, low, high), ('limit', body, name, point, side).
"""

import fractions
import functools
import re

from jaxrl_llm.rewards.math import arithmetic
from jaxrl_llm.rewards.math import expression_tokens as tokens
from jaxrl_llm.rewards.math.expression_tokens import Unreadable

Tree = tuple

_MAX_DEPTH = 60


class _Parser:
  """Recursive descent: sum > product > sign > power > postfix > atom."""

  def __init__(self, sequence: list[str], depth: int = 0):
    self._tokens = sequence
    self._next = 0
    self._depth = depth
    self._integrals = 0  # Number of open integrals: `d` ends the innermost.
    self._bars = 0
    self._split = False  # Whether a command took the first digits of the number here.
    if depth > _MAX_DEPTH:
      raise Unreadable('nested too deeply')

  def whole(self) -> Tree:
    """The tree of all tokens."""
    tree = self._sum()
    if self._next != len(self._tokens):
      raise Unreadable(f'trailing {self._peek()!r}')
    return tree

  def _peek(self, ahead: int = 0) -> str:
    index = self._next + ahead
    return self._tokens[index] if index < len(self._tokens) else ''

  def _take(self, *expected: str) -> str:
    token = self._peek()
    if not token or (expected and token not in expected):
      raise Unreadable(f'expected {expected}, got {token!r}')
    self._next += 1
    return token

  def _sum(self) -> Tree:
    self._depth += 1
    if self._depth > _MAX_DEPTH:
      raise Unreadable('nested too deeply')
    tree = self._product()
    while self._peek() in ('+', '-'):
      sign = self._take()
      term = self._product()
      tree = ('add', tree, term if sign == '+' else ('negate', term))
    self._depth -= 1
    return tree

  def _product(self) -> Tree:
    tree = self._signed()
    while self._peek() in ('*', '/'):
      kind = 'multiply' if self._take() == '*' else 'divide'
      tree = (kind, tree, self._signed())
    return tree

  def _signed(self) -> Tree:
    negative = self._sign()
    tree = self._juxtaposed()
    return ('negate', tree) if negative else tree

  def _sign(self) -> bool:
    """Takes at most one sign; returns whether it is a minus. `--15` is a slip and not 15."""
    return self._peek() in ('+', '-') and self._take() == '-'

  def _starts_factor(self) -> bool:
    token = self._peek()
    if self._integrals and token == 'd' and tokens.is_name(self._peek(1)):
      return False
    if token == '|':
      return not self._bars
    return token in tokens.CLOSING or tokens.is_letter(token) or (
        token[:1] == '\\' and token not in tokens.NO_FACTORS)

  def _juxtaposed(self, *, functions: bool = True) -> Tree:
    """Factors without a sign between them: `2x(y+1)`."""
    tree = self._power()
    while self._starts_factor() or (tokens.is_number(self._peek()) and self._may_precede_number()):
      if not functions and self._peek()[1:] in tokens.FUNCTIONS:
        break
      tree = ('multiply', tree, self._power())
    return tree

  def _may_precede_number(self) -> bool:
    """Returns whether a digit here must be a factor: after `\\sqrt3` or `)`, not after 3 or x."""
    return self._tokens[self._next - 1] in (')', '}', ']', '!') or self._split

  def _power(self) -> Tree:
    base = self._postfix()
    while self._peek() == '^':
      self._take()
      base = ('power', base, self._exponent())
      base = self._after(base)
    return base

  def _exponent(self) -> Tree:
    inside = self._peek(1) if self._peek() == '{' and self._peek(2) == '}' else self._peek()
    if inside in tokens.EXPONENT_MARKS:
      self._next += 3 if self._peek() == '{' else 1
      return ('name', tokens.EXPONENT_MARKS[inside])
    negative = self._sign()
    if tokens.is_number(self._peek()):
      tree = self._number()
      if self._peek() == '^':  # 2^3^2
        self._take()
        tree = ('power', tree, self._exponent())
    else:
      tree = self._argument()
    return ('negate', tree) if negative else tree

  def _postfix(self) -> Tree:
    return self._after(self._atom())

  def _after(self, tree: Tree) -> Tree:
    """Applies factorials, percent signs and primes that follow."""
    while True:
      if self._peek() == '!':
        self._take()
        double = self._peek() == '!'
        if double:
          self._take()
        tree = ('call', 'factorial2' if double else 'factorial', tree)

      elif self._peek() == '%':
        self._take()
        if self._starts_factor() or tokens.is_number(self._peek()):
          raise Unreadable('a remainder')
        tree = ('divide', tree, ('number', fractions.Fraction(100)))
      elif self._peek()[:1] == "'":
        if tree[0] in ('number', 'constant'):
          raise Unreadable('a prime after a number')
        tree = ('mark', self._take(), tree)
      else:
        return tree

  def _atom(self) -> Tree:
    token = self._peek()
    self._split = False
    if tokens.is_number(token):
      return self._number()
    if token in ('d', r'\partial') and (tree := self._slashed_derivative()) is not None:
      return tree
    if token in tokens.CLOSING:
      return self._group()
    if tokens.is_name(token) or token in (r'\pi', r'\infty'):
      return self._named()
    if token[:1] == '\\':
      return self._command()
    raise Unreadable(token or 'end of text')

  def _number(self) -> Tree:
    token = self._take()
    if self._peek() == '_':
      self._take()
      base = ''.join(self._argument_tokens())
      if base in ('0', '1'):  # Python would guess the base.
        raise Unreadable('base')
      try:
        return ('number', fractions.Fraction(int(token, int(base))))
      except ValueError:
        raise Unreadable('base') from None
    try:
      return ('number', arithmetic.parse_number(token))
    except ValueError:
      raise Unreadable(token[:40]) from None

  def _group(self) -> Tree:
    left = self._take()
    outside = self._integrals, self._bars
    self._integrals, self._bars = 0, int(left == '|')
    tree = self._sum()
    self._take(tokens.CLOSING[left])
    self._integrals, self._bars = outside
    return ('call', tokens.WRAPPED[left], tree) if left in tokens.WRAPPED else tree

  def _argument_tokens(self) -> list[str]:
    """The tokens of an argument: in braces, or a single one (one digit of a number)."""
    token = self._take()
    if token == '{':
      start, depth = self._next, 1
      while depth:
        depth += {'{': 1, '}': -1}.get(self._take(), 0)
      return self._tokens[start : self._next - 1]

    if tokens.is_number(token) and len(token) > 1:
      if not token.isdigit():
        raise Unreadable('argument')
      self._next -= 1
      self._tokens[self._next] = token[1:]
      self._split = True
      return [token[0]]
    if tokens.is_number(token) or tokens.is_name(token) or token in (r'\pi', r'\infty'):
      return [token]
    raise Unreadable('argument')

  def _argument(self) -> Tree:
    """An argument as a tree; a command brings arguments of its own: `\\sqrt\\frac12`."""
    token = self._peek()
    if token[:1] == '\\' and not tokens.is_name(token) or token == '(':
      return self._atom()
    return _Parser(self._argument_tokens(), self._depth + 1).whole()

  def _subscript(self) -> str:
    self._take('_')
    if tokens.is_number(self._peek()):
      return '_{' + self._take() + '}'
    return '_{' + ''.join(self._argument_tokens()) + '}'

  def _named(self) -> Tree:
    token = name = self._take()
    if token in tokens.DIFFERENCES and tokens.is_name(self._peek()):
      name += ' ' + self._take()  # In \\frac{\\Delta y}{\\Delta x} nothing cancels.
    while self._peek() == '_' or self._peek()[:1] == "'":
      name += self._subscript() if self._peek() == '_' else self._take()
    if name in (r'\pi', r'\infty', 'e', 'i'):
      return ('constant', {r'\pi': 'pi', r'\infty': 'infinity'}.get(name, name))
    if self._peek() == '(' and (
        token in tokens.ALWAYS_CALLED or "'" in name or token == r'\Gamma'
        or token in tokens.CALLED_ON_ATOMS and self._peek(2) in (')', ',')):
      return ('call', name, *self._arguments())
    return ('name', name)

  def _arguments(self) -> list[Tree]:
    """'(a, b)'."""
    closing = tokens.CLOSING[self._take('(', '[', '{')]
    outside = self._integrals, self._bars
    self._integrals = self._bars = 0
    trees = [self._sum()]
    while self._peek() == ',':
      self._take()
      trees.append(self._sum())
    self._take(closing)
    self._integrals, self._bars = outside
    return trees

  def _command(self) -> Tree:
    name = self._take()[1:]
    if name == 'frac':
      return self._fraction()
    if name == 'binom':
      return ('call', 'binomial', self._argument(), self._argument())
    if name == 'sqrt':
      return self._root()

    if name in tokens.ACCENTS:
      mark, inside = tokens.ACCENTS[name], self._argument_tokens()
      if mark == 'overset':
        mark, inside = 'overset ' + ''.join(inside), self._argument_tokens()
      if mark == 'vec' and len(inside) > 1 and all(map(tokens.is_name, inside)):
        return ('mark', mark, ('name', ''.join(inside)))  # From A to B: no product.
      return ('mark', mark, _Parser(inside, self._depth + 1).whole())

    if name in tokens.FUNCTIONS:
      return self._function(name)
    if name in ('sum', 'prod', 'int'):
      return self._accumulated(name)
    if name == 'lim':
      return self._limit()
    raise Unreadable('\\' + name)

  def _root(self) -> Tree:
    half = ('number', fractions.Fraction(1, 2))
    if self._peek() != '[':
      return ('power', self._argument(), half)
    self._take()
    degree = self._sum()
    self._take(']')
    return ('power', self._argument(), ('divide', ('number', fractions.Fraction(1)),
                                        degree))

  def _fraction(self) -> Tree:
    if self._peek()[:1] == '\\' and not tokens.is_name(self._peek()):
      return ('divide', self._argument(), self._argument())
    over = self._argument_tokens()
    if self._peek()[:1] == '\\' and not tokens.is_name(self._peek()):
      return ('divide', _Parser(over, self._depth + 1).whole(), self._argument())
    under = self._argument_tokens()
    if over[:1] in (['d'], [r'\partial']) and under[:1] == over[:1] and len(under) > 1:
      return self._derivative(over[1:], ''.join(under))
    return ('divide', _Parser(over, self._depth + 1).whole(),
            _Parser(under, self._depth + 1).whole())

  def _derivative(self, over: list[str], under: str) -> Tree:
    """d(over)/(under); with nothing over the line, of the factors that follow."""
    order = ''
    if over[:1] == ['^']:
      braces = over[1:2] == ['{']
      end = over.index('}') + 1 if braces and '}' in over else 2
      order, over = ''.join(over[1:end]).strip('{}'), over[end:]
    of = _Parser(over, self._depth + 1).whole() if over else self._juxtaposed()
    return ('derivative', f'd^{order}/{under.replace("{", "").replace("}", "")}', of)

  def _slashed_derivative(self) -> Tree | None:
    """'dy/dx', 'd/dx y', 'd^2y/dx^2'; None if there is none."""
    text = self._tokens[self._next : self._next + 16]
    d = text[0]
    slash = text.index('/') if '/' in text else 0
    order = text[1:3] if text[1:2] == ['^'] else []
    of = text[1 + len(order) : slash]
    if not slash or len(of) > 1 or (of and not tokens.is_name(of[0])):
      return None
    under = text[slash + 1 : slash + 3]
    if len(under) < 2 or under[0] != d or not tokens.is_name(under[1]):
      return None
    used = slash + 3
    if text[used : used + 1] == ['^']:
      under, used = text[slash + 1 : used + 2], used + 2
    self._next += used
    return self._derivative([*order, *of], ''.join(under))

  def _function(self, name: str) -> Tree:
    base = exponent = None
    while self._peek() in ('^', '_'):
      if self._take() == '^':
        exponent = self._exponent()
      elif tokens.is_number(self._peek()) and name != 'log':
        raise Unreadable('index of a function')
      elif tokens.is_number(self._peek()) and not self._peek().startswith('0'):
        base = self._log_base()
      else:
        base = self._argument()

    arguments = self._function_arguments(name)
    if exponent == ('negate', ('number', 1)) and name in tokens.TRIGONOMETRIC:
      name, exponent = 'arc' + name, None
    if base is not None:
      if name != 'log' or len(arguments) != 1:
        raise Unreadable('index of a function')
      arguments.append(base)
    tree = ('call', name, *arguments)
    return tree if exponent is None else ('power', tree, exponent)

  def _log_base(self) -> Tree:
    """The base of `\\log_2 8` or `\\log_10 5`; in `\\log_28` TeX takes the first digit."""
    if self._peek() in ('10', '16'):
      return self._number()
    return self._argument()

  def _function_arguments(self, name: str) -> list[Tree]:
    if self._peek() in ('(', '[', '{'):
      return self._arguments()
    if self._peek() == '-':
      self._take()
      return [('negate', self._juxtaposed(functions=False))]
    start = self._next
    tree = self._juxtaposed(functions=False)
    is_angle = name in tokens.TRIGONOMETRIC and r'\pi' in self._tokens[start : self._next]
    if is_angle and self._peek() == '/' and tokens.is_number(self._peek(1)):
      self._take()
      tree = ('divide', tree, self._number())
    return [tree]

  def _accumulated(self, name: str) -> Tree:
    low = high = variable = None
    while self._peek() in ('_', '^'):
      if self._take() == '^':
        high = self._bound()
      elif name == 'int':
        low = self._bound()
      else:
        inside = self._argument_tokens()
        if inside[1:2] != ['='] or not tokens.is_name(inside[0]):
          raise Unreadable('bounds')
        variable, low = inside[0], _Parser(inside[2:], self._depth + 1).whole()

    if name != 'int':
      body = self._product()
    else:
      self._integrals += 1
      body = self._sum() if self._peek() != 'd' else ('number', fractions.Fraction(1))
      self._integrals -= 1
      self._take('d')
      variable = self._take()

    if low is None or high is None or variable is None or not tokens.is_name(variable):
      raise Unreadable('bounds')
    kind = {'sum': 'sum', 'prod': 'product', 'int': 'integral'}[name]
    return (kind, body, variable, low, high)

  def _bound(self) -> Tree:
    if self._peek() == '-':
      self._take()
      return ('negate', self._argument())
    return self._argument()

  def _limit(self) -> Tree:
    self._take('_')
    inside = self._argument_tokens()
    arrows = (r'\to', r'\rightarrow')
    if len(inside) < 3 or not tokens.is_name(inside[0]) or inside[1] not in arrows:
      raise Unreadable('limit')
    point, side = inside[2:], ''
    if point[-2:-1] == ['^'] and point[-1] in '+-':
      point, side = point[:-2], point[-1]
    elif len(point) > 4 and point[-4:-2] == ['^', '{'] and point[-2] in '+-':
      point, side = point[:-4], point[-2]
    return ('limit', self._product(), inside[0], _Parser(point, self._depth + 1).whole(), side)


_NUMBER_FIRST = re.compile(r'(?<![0-9a-zA-Z)}\]/^.])([0-9]+)/([0-9]+) +(?=[a-zA-Z\\(])')


def _split(text: str) -> list[str]:
  """The tokens of a text; '1/2 bh' is half of bh, while '1/2b' divides by 2b."""
  return tokens.split(arithmetic.spell_out(_NUMBER_FIRST.sub(r'\\frac{\1}{\2} ', text)))


@functools.lru_cache(maxsize=1024)
def parse(text: str) -> Tree:
  """The tree of an expression.

  Args:
    text: cleaned text.

  Raises:
    Unreadable: it is not an expression, or a part of it is not understood.
  """
  return _Parser(_split(text)).whole()


def read(text: str) -> Tree | None:
  """The tree of an expression, or None if it is unreadable."""
  try:
    return parse(text)
  except (Unreadable, RecursionError):
    return None


_BINDERS = frozenset(['sum', 'product', 'integral', 'limit'])


def has_names(tree: Tree, bound: frozenset[str] = frozenset()) -> bool:
  """Returns whether a tree contains a name that no sum, integral or limit in it binds."""
  kind, *parts = tree
  if kind == 'name':
    return parts[0] not in bound
  if kind in _BINDERS:
    body, name, *bounds = parts
    trees = [part for part in bounds if isinstance(part, tuple)]
    return has_names(body, bound | {name}) or any(has_names(part, bound) for part in trees)
  return any(has_names(part, bound) for part in parts if isinstance(part, tuple))


@functools.lru_cache(maxsize=1024)
def parse_relation(text: str) -> tuple[tuple[Tree, ...], tuple[str, ...]]:
  r"""The sides of 'x + y = 5' or '0 < x \le 1', and the signs between them.

  Raises:
    Unreadable: as for `parse`; a text without a sign has one side.
  """
  sides, signs, depth = [[]], [], 0
  for token in _split(text):
    depth += (token in ('(', '[', '{')) - (token in (')', ']', '}'))
    if depth == 0 and token in tokens.RELATIONS:
      signs.append(token)
      sides.append([])
    else:
      sides[-1].append(token)
  return tuple(_Parser(side).whole() for side in sides), tuple(signs)
