r"""What an answer is: a quantity, a list, a set, an interval, an equation, a word ...

`parse` reads cleaned text (answer_text.clean) into a small tree whose leaves are
quantities (an exact rational where the text is arithmetic, else the text of an
expression) and words. Only structure is decided here; nothing is compared.
"""

import dataclasses
import fractions
import re

from jaxrl_llm.rewards import answer_text, quantities
from jaxrl_llm.rewards.quantities import Quantity

_MAX_ITEMS = 64


@dataclasses.dataclass(frozen=True)
class Text:
  """Words: 'Tuesday', '3:30pm', 'no solution', or anything that is no mathematics."""

  text: str


@dataclasses.dataclass(frozen=True)
class Items:
  """A list without brackets: '1, 2 and 3'. Its order is free."""

  values: tuple['Value', ...]


@dataclasses.dataclass(frozen=True)
class Braces:
  """A set: its order and its repetitions are free."""

  values: tuple['Value', ...]


@dataclasses.dataclass(frozen=True)
class Bracket:
  """A point or an interval: brackets and order count."""

  left: str
  right: str
  values: tuple['Value', ...]


@dataclasses.dataclass(frozen=True)
class Union:
  """A union of sets; `source` is its text."""

  values: tuple['Value', ...]
  source: str


@dataclasses.dataclass(frozen=True)
class Matrix:
  """Rows of values."""

  rows: tuple[tuple['Value', ...], ...]


@dataclasses.dataclass(frozen=True)
class Ratio:
  """'3:4', '1:2:3'; only proportions count."""

  parts: tuple[fractions.Fraction, ...]


@dataclasses.dataclass(frozen=True)
class Assignment:
  """'x = 5', 'f(x) = x^2': a name and what it is; `source` is the text."""

  name: str
  value: 'Value'
  source: str


@dataclasses.dataclass(frozen=True)
class Relation:
  """Another equation or inequality. `last` is what stands behind its last equals sign."""

  source: str
  last: 'Value | None'


@dataclasses.dataclass(frozen=True)
class Inequality:
  """'0 <= x < 1': a name and the interval that it is confined to."""

  name: str
  interval: Bracket
  source: str


@dataclasses.dataclass(frozen=True)
class Either:
  """One answer said in two ways: 'sqrt(2), about 1.414', '(B) 12'."""

  values: tuple['Value', ...]


Value = (
    Quantity | Text | Items | Braces | Bracket | Union | Matrix | Ratio | Assignment | Relation
    | Inequality | Either
)  # fmt: skip

_INFINITY = Text('infinity')
_NEGATIVE_INFINITY = Text('-infinity')

_GREEK = r'\\(?:theta|alpha|beta|gamma|lambda|mu|phi|omega|sigma|delta|epsilon|rho)'
_NAME = re.compile(
    rf"^(?:[a-zA-Z]|{_GREEK} ?)'*(?:_ ?\{{? ?[a-zA-Z0-9]{{1,5}} ?\}}?)?"
    r'(?: ?\([a-zA-Z0-9, ]{1,12}\))?$'
)
_LABEL = re.compile(
    r"^[a-zA-Z][a-zA-Z']{0,20}(?: [a-zA-Z][a-zA-Z']{0,20}){0,5} ?(?:\([^()]{1,20}\))?$"
)
_OPENING = r'\\\{|\\langle(?![a-zA-Z])|[(\[{]'
_CLOSING = r'\\\}|\\rangle(?![a-zA-Z])|[)\]}]'
_SIDES = re.compile(rf'^({_OPENING})(.*?)({_CLOSING})$', re.DOTALL)
_SET_BUILDER = re.compile(
    r'^([a-z])(?: ?\\in ?\\mathbb ?\{? ?[RZNQ] ?\}?)? ?(?:\\mid|\||:) ?(.+)$'
)
_ORDER = re.compile(r'<|>|\\le |\\ge |\\ne ')
_CLOCK = re.compile(r'^([0-9]{1,2})(?::([0-9]{2}))? ?([aApP])\.? ?[mM]\.?$')
_DECIMAL = re.compile(r'-?[0-9]{1,15}(?:\.[0-9]{1,15})?')
_CHOICE = re.compile(r'^(?:\(([A-Ea-e])\)|([A-E])[).:]) ?(.+)$')
_LEAD = re.compile(
    r'^(?:=|\\approx(?![a-zA-Z])|(?:approximately|exactly|about|around|roughly|nearly|a total of'
    r'|simply|just|[Oo]ption|[Cc]hoice|[Aa]nswer|therefore|equal to|equals|is'
    r'|(?:[Tt]he )?(?:number|point|interval|set|vector|ordered (?:pair|triple)|matrix|value'
    r'|fraction|equation|ratio|expression|polynomial)(?: is| of)?)(?![a-zA-Z])) ?'
)
_FUNCTIONS = frozenset([
    'sin', 'cos', 'tan', 'sec', 'csc', 'cot', 'log', 'ln', 'exp', 'min', 'max', 'gcd', 'lcm',
    'det', 'mod', 'arcsin', 'arccos', 'arctan',
])  # fmt: skip
_WORD_LIKE = frozenset([
    'no', 'yes', 'ok', 'am', 'pm', 'is', 'or', 'if', 'on', 'in', 'at', 'to', 'of', 'we', 'he',
    'it', 'an', 'as', 'be', 'by', 'do', 'go', 'me', 'my', 'so', 'up', 'us',
])  # fmt: skip
_NOT_MATHEMATICS = re.compile(r'[^\w\s\\^{}()\[\]|+\-*/!.,\'<>=%:&]|_(?![\w{ ])')


def is_constant(value: 'Value') -> bool:
  """Whether the value is a rational number or a word, in which no name can occur."""
  return isinstance(value, Text) or (isinstance(value, Quantity) and value.rational is not None)


def split(text: str, separator: re.Pattern) -> list[str]:
  """Splits at the separators that stand outside all brackets."""
  parts, start, depth, position = [], 0, 0, 0
  while position < len(text):
    character = text[position]
    if character in '([{':
      depth += 1
    elif character in ')]}':
      depth -= 1
    elif depth == 0 and (match := separator.match(text, position)) and match.end() > position:
      parts.append(text[start:position])
      start = position = match.end()
      continue
    position += 1
  parts.append(text[start:])
  return [part.strip() for part in parts]


def is_expression(text: str) -> bool:
  """Whether the text can be a mathematical expression, as opposed to words."""
  if not text or _NOT_MATHEMATICS.search(text) or not text.isascii():
    return False
  letters = re.sub(r'\\[a-zA-Z]+', r'\\', text)
  runs = [run for run in re.findall('[a-zA-Z]+', letters) if run not in _FUNCTIONS]
  if any(len(run) > 3 or run.lower() in _WORD_LIKE for run in runs):
    return False
  if re.search(r'[a-zA-Z]{2,} +[a-zA-Z]{2,}|(?<!_)[0-9] +[0-9]', letters):
    return False
  return bool(re.search(r'[0-9+*/^\\=-]', text)) or all(len(run) < 3 for run in runs)


def _list(text: str, separator: re.Pattern) -> tuple[Value, ...] | None:
  parts = [part for part in split(text, separator) if part]
  if len(parts) < 2 or len(parts) > _MAX_ITEMS:
    return None
  return tuple(parse(part) for part in parts)


_BETWEEN_UNITS = re.compile(r'(?<=[a-z]) (?=[0-9])')
_COMMA = re.compile(r'[,;]')
_CONJUNCTION = re.compile(r',? (?:and|or) ', re.IGNORECASE)
_UNION = re.compile(r'\\cup(?![a-zA-Z])|(?<=[\])}]) ?U ?(?=[\[({])')
_ABOUT = re.compile(r',? ?(?:or about|or approximately)(?= )|,? ?\\approx(?![a-zA-Z])')
# Where commas with a space separate, one between digits groups thousands.
_SPACED_COMMA = re.compile(r'[,;](?= )|[,;](?![0-9]{3}(?![0-9]))|(?<![0-9])[,;]|;')


def _items(text: str) -> Items | Quantity | None:
  """'1,2', '1, 2 and 3', 'x = 1 or x = 2'."""
  parts = []
  for piece in split(text, _CONJUNCTION):
    parts.extend(split(piece, _comma_of(piece)))
  parts = [re.sub(r'^(?:and|or) ', '', part) for part in parts if part]
  if not 2 <= len(parts) <= _MAX_ITEMS:
    return None
  values = [parse(part) for part in parts]
  return quantities.combined(values) or Items(tuple(values))


def _compound(text: str) -> Quantity | None:
  """'3 ft 6 in', '2 hours 30 minutes' as one quantity."""
  parts = _BETWEEN_UNITS.split(text)
  if not 2 <= len(parts) <= 4:
    return None
  return quantities.combined([quantities.parse(part) for part in parts])


def _comma_of(text: str) -> re.Pattern:
  return _SPACED_COMMA if ', ' in text or not re.search(r'[,;]', text) else _COMMA


def _brackets(text: str) -> Value | None:
  """'(1,2)', '[0,1)', '\\{1,2\\}', '(5)'."""
  match = _SIDES.match(text)
  if match is None:
    return None
  first = match.end(1) - 1 if match[1][-1] in '([{' else None
  if first is not None:
    last = answer_text.closing(text, first)
    if last != len(text) - 1:
      return None
  left, inside, right = match[1], match[2].strip(), match[3]
  left = '(' if left.startswith(r'\langle') else left.lstrip('\\')
  right = ')' if right.startswith(r'\rangle') else right.lstrip('\\')
  if (left == '{') != (right == '}'):
    return None
  if left == '{':
    if builder := _SET_BUILDER.match(inside):
      return parse(builder[2])
    if not inside:
      return Text('no solution')
    return Braces(_list(inside, _comma_of(inside)) or (parse(inside),))
  if (values := _list(inside, _COMMA)) is not None:
    return Bracket(left, right, values)
  if left == '(' and right == ')' and inside:
    return parse(inside)
  return Bracket(left, right, (parse(inside),)) if left == '[' and right == ']' and inside else None


_MATRIX = re.compile(
    r'^\\begin ?\{ ?([pbBvV]?(?:small)?matrix|array) ?\}(?: ?\{[clr| ]{1,20}\})?(.*)'
    r'\\end ?\{ ?\1 ?\}$',
    re.DOTALL,
)


def _matrix(text: str) -> Matrix | None:
  match = _MATRIX.match(re.sub(r'^\[ ?(\\begin.*) ?\]$', r'\1', text, flags=re.DOTALL).strip())
  if match is None or match[1].startswith(('v', 'V')):  # Bars make a determinant.
    return None
  rows = [row for row in re.split(r'\\\\', match[2]) if row.strip()]
  cells = tuple(tuple(parse(cell.strip()) for cell in row.split('&')) for row in rows)
  return Matrix(cells) if 0 < sum(map(len, cells)) <= _MAX_ITEMS else None


def _inequality(text: str) -> Value | None:
  signs = [match[0].strip() for match in _ORDER.finditer(text)]
  parts = split(text, _ORDER)
  if not signs or len(parts) != len(signs) + 1 or len(parts) > 3 or not all(parts):
    return None
  greater = [sign in ('>', r'\ge') for sign in signs]
  if r'\ne' in signs or len(set(greater)) > 1 or '=' in text:
    return Relation(text, None)
  if greater[0]:
    parts, signs = parts[::-1], signs[::-1]
  closed = [sign in (r'\le', r'\ge') for sign in signs]
  if len(parts) == 3 and _NAME.match(parts[1]):
    name, low, high = parts[1], parse(parts[0]), parse(parts[2])
  elif len(parts) == 2 and _NAME.match(parts[0]):
    name, low, high, closed = parts[0], _NEGATIVE_INFINITY, parse(parts[1]), [False, *closed]
  elif len(parts) == 2 and _NAME.match(parts[1]):
    name, low, high, closed = parts[1], parse(parts[0]), _INFINITY, [*closed, False]
  elif len(parts) == 2 and (bars := _BARS.match(parts[0])) and _NAME.match(bars[1].strip()):
    # |x| < 2 confines x from both sides.
    name, low, high = bars[1].strip(), parse(f'-({parts[1]})'), parse(parts[1])
    closed = [closed[-1]] * 2
  else:
    return Relation(text, None)
  interval = Bracket('[' if closed[0] else '(', ']' if closed[-1] else ')', (low, high))
  return Inequality(name, interval, text)


_BARS = re.compile(r'^\|([^|]{1,20})\|$')
_EQUALS = re.compile(r'=|\\in(?![a-zA-Z])')


def _relation(text: str) -> Value | None:
  if _ORDER.search(text):
    return _inequality(text)
  parts = split(text, _EQUALS)
  if len(parts) < 2 or not parts[-1]:
    return None
  last = parse(parts[-1])
  name = answer_text.squeezed(parts[0])
  names_a_point = name.startswith('(') and all(
      _NAME.match(part) for part in name.strip('()').split(',')
  )
  if _NAME.match(parts[0]) or names_a_point:
    return Assignment(name, last, text)
  if _LABEL.match(parts[0]) and not is_expression(parts[0]):
    return last  # 'Total = 5'.
  # Of `2x + 1 = 0` the zero says nothing; of `3 + 4 = 7` and `x + y = 5` the end is the answer.
  says_nothing = isinstance(last, Quantity) and last.rational == 0 and re.search(
      '[a-zA-Z]', ''.join(parts[:-1]))
  return Relation(text, None if says_nothing else last)


def _ratio(text: str) -> Ratio | None:
  if not re.fullmatch(r'[0-9./ ]{1,20}(?:(?::| to )[0-9./ ]{1,20}){1,5}', text):
    return None
  parts = [quantities.rational(part.strip()) for part in re.split(r':| to ', text)]
  return None if any(part is None for part in parts) else Ratio(tuple(parts))


def _clock(text: str) -> Text | None:
  """'3:30 p.m.' in one spelling; without am or pm it is a ratio, until compared with a clock."""
  match = _CLOCK.match(text)
  if match is None or int(match[2] or 0) > 59:
    return None
  return Text(f'{int(match[1])}:{match[2] or "00"}{match[3].lower()}m')


def parse(text: str) -> Value:
  """Reads one cleaned answer; never fails: what is not understood is `Text`."""
  text = text.strip()
  if len(text) > answer_text.MAX_CHARACTERS or answer_text.depth(text) > answer_text.MAX_DEPTH:
    return Text(answer_text.squeezed(text))
  while (match := _LEAD.match(text)) and match.end() < len(text):
    text = text[match.end() :].strip()
  if answer_text.squeezed(text) in (r'\infty', r'+\infty'):
    return _INFINITY
  if answer_text.squeezed(text) == r'-\infty':
    return _NEGATIVE_INFINITY
  if answer_text.squeezed(text) in (r'\emptyset', r'\{\}', r'\{\emptyset\}'):
    return Text('no solution')
  if re.fullmatch(r'\\mathbb ?\{? ?R ?\}?|[Aa]ll reals?(?: numbers)?', text):
    return Bracket('(', ')', (_NEGATIVE_INFINITY, _INFINITY))
  if (choice := _CHOICE.match(text)) and not re.match(r'[-+*/^(=,;]', choice[3]):
    return Either((quantities.expression(choice[1] or choice[2]), _structure(choice[3])))
  sides = split(text, _ABOUT)
  if len(sides) == 2 and all(sides) and not _two_guesses(*sides):
    return Either(tuple(parse(side) for side in sides))
  return _structure(text)


def _two_guesses(exact: str, rounded: str) -> bool:
  """Whether "a ≈ b" names two numbers that no rounding connects: two answers are none."""
  if not (_DECIMAL.fullmatch(exact.strip()) and _DECIMAL.fullmatch(rounded.strip())):
    return False
  one, other = float(exact), float(rounded)
  return abs(one - other) > 0.01 * max(abs(one), abs(other))


def _structure(text: str) -> Value:
  if (matrix := _matrix(text)) is not None:
    return matrix
  if (quantity := quantities.parse(text)) is not None:
    return quantity
  if (compound := _compound(text)) is not None:
    return compound
  if (clock := _clock(text)) is not None:
    return clock
  if (ratio := _ratio(text)) is not None:
    return ratio
  if (items := _items(text)) is not None:
    return items
  unions = split(text, _UNION)
  if 1 < len(unions) <= _MAX_ITEMS and all(unions):
    return Union(tuple(parse(part) for part in unions), text)
  if (bracket := _brackets(text)) is not None:
    return bracket
  if (relation := _relation(text)) is not None:
    return relation
  if r'\pm' in text and text.count(r'\pm') == 1:
    return Items((parse(text.replace(r'\pm', '+')), parse(text.replace(r'\pm', '-'))))
  if is_expression(text):
    return quantities.expression(text)
  return Text(text)
