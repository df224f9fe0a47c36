r"""Parses an answer: a quantity, a list, a set, an interval, an equation, a word ...

`parse` reads cleaned text (answer_text.clean) into a small tree whose leaves are
quantities (an exact rational where the text is arithmetic, else the text of an
expression) and words. Only structure is decided here; nothing is compared.
"""

import re

from jaxrl_llm.rewards.math import (
  answer_text,
  clocks,
  expression_tokens,
  hedges,
  quantities,
  residues,
  set_operations,
  units,
)
from jaxrl_llm.rewards.math.answer_kinds import (
  Assignment,
  Braces,
  Bracket,
  Choice,
  Either,
  Inequality,
  Items,
  Matrix,
  Relation,
  Text,
  Union,
  Value,
)
from jaxrl_llm.rewards.math.quantities import Quantity

_MAX_ITEMS = 64

_INFINITY = set_operations.INFINITY
_NEGATIVE_INFINITY = set_operations.NEGATIVE_INFINITY

_GREEK = rf'\\(?:{"|".join(sorted(expression_tokens.GREEK, key=len, reverse=True))})(?![a-zA-Z])'
_NAME = re.compile(
    rf"^(?:[a-zA-Z]|{_GREEK} ?)'*(?:_ ?\{{? ?[a-zA-Z0-9]{{1,5}} ?\}}?)?'*"
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
# 'A 5' names option A as '(A) 5' does, while A5 is a product.
_CHOICE = re.compile(r'^(?:\(([A-Ja-e])\):?|([A-E])(?:[).:]| (?=[0-9]))) ?(.+)$')
_OPTION_WITH_PARENTHESIS = re.compile(r'([A-J])\)')
# A second option after the first: '(A) 5 or (B) 6', 'A. or B.', '(A) C'.
_SECOND_CHOICE = re.compile(
    r'\([A-J]\)|(?:^|[\s,;])[A-J][).:](?=\s|$)|^\(?[A-Ja-e]\)?[.:]?$|^[-+*/^(=,;&|]'
    r'|(?:\b(?:or|and|not|nor|option|choice|answer)|[,;&/])\s+\(?[A-J]\b(?![a-z\'])'
    r'|^(?:or|and|nor|but|vs)\b|^[A-J]\s*(?:,|or\b|and\b)'
)
_LEAD = re.compile(
    r'^(?:=|\\(?:approx|therefore|implies|Rightarrow|Longrightarrow|rightarrow)(?![a-zA-Z])'
    r'|(?:approximately|exactly|about|around|roughly|a total of'
    r'|simply|just|[Oo]ptions?|[Cc]hoices?|(?:[Tt]he )?(?:[Ff]inal )?[Aa]nswers?|therefore'
    r'|equal to|equals|is'
    r'|(?:[Tt]he )?(?:number|point|vertex|cent(?:er|re)|midpoint|interval|set|vector'
    r'|ordered (?:pair|triple)|matrix|value'
    r'|fraction|equation|ratio|expression|polynomial)(?: is| of)?)(?![a-zA-Z]):?) ?'
)
_FUNCTIONS = expression_tokens.FUNCTIONS | {'mod'}
_WORD_LIKE = frozenset([
    'no', 'yes', 'ok', 'am', 'pm', 'is', 'or', 'if', 'on', 'in', 'at', 'to', 'of', 'we', 'he',
    'it', 'an', 'as', 'be', 'by', 'do', 'go', 'me', 'my', 'so', 'up', 'us',
])  # fmt: skip
_NOT_MATHEMATICS = re.compile(r'[^\w\s\\^{}()\[\]|+\-*/!.,\'<>=%:&]|_(?![\w{ ])')


def is_constant(value: 'Value') -> bool:
  """Returns whether the value is a rational number or a word, in which no name can occur."""
  return isinstance(value, Text) or (isinstance(value, Quantity) and value.rational is not None)


def split(text: str, separator: re.Pattern) -> list[str]:
  """Splits at the separators outside all brackets."""
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


_PLAIN_PROSE = re.compile(r'[\w\s.,;:!?\'"$%()/&-]*')
_MAX_WORDS = 20


def is_plain_prose(text: str) -> bool:
  """Returns whether the text is a few words and numbers, without mathematical signs."""
  if text.count('(') != text.count(')') or '_' in text:
    return False
  return len(text.split()) <= _MAX_WORDS and (
      _PLAIN_PROSE.fullmatch(text.replace(answer_text.DOLLAR, '$')) is not None)


_MIXED = re.compile(r'(?<![0-9.])[0-9]+ [0-9]+ ?/ ?[0-9]+(?![0-9.])')


def is_expression(text: str) -> bool:
  """Returns whether the text can be a mathematical expression, as opposed to words."""
  if not text or _NOT_MATHEMATICS.search(text) or not text.isascii():
    return False
  letters = _MIXED.sub('1', re.sub(r'\\[a-zA-Z]+', r'\\', text))
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
_CONJUNCTION = re.compile(
    r',? (?:and|or|i\.e\.,?|that is,?|equivalently,?|also known as) ', re.IGNORECASE
)
_ALTERNATIVE = re.compile(
    r' (?:or|i\.e\.,?|that is,?|equivalently,?|also known as) ', re.IGNORECASE
)
_UNION = re.compile(r'\\cup(?![a-zA-Z])|(?<=[\])}]) ?U ?(?=[\[({])')
_ABOUT = re.compile(
    r',? ?(?:or )?(?<![a-zA-Z])(?:about|approximately|approx\.?|roughly|around|nearly'
    r'|rounded to)(?= )|,? ?\\approx(?![a-zA-Z])', re.IGNORECASE
)
_ASIDE_ABOUT = re.compile(
    r' ?\( ?(?:or )?(?:about|approximately|approx\.?|roughly|around|nearly|\\approx) ([^()]*)\)$',
    re.IGNORECASE
)
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
  values = []
  for part in parts:
    value = parse(part)
    is_list = isinstance(value, Items) and not value.alternatives  # \pm 1, \pm 2
    values.extend(value.values if is_list else [value])
  alternatives = _ALTERNATIVE.search(text) is not None
  combined = None if alternatives else quantities.combined(values)
  return combined or Items(tuple(values), alternatives)


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
    if not inside:  # LaTeX does not print braces without backslashes.
      return set_operations.EMPTY if match[1].startswith('\\') else None
    if not match[1].startswith('\\') and len(split(inside, _COMMA)) == 1:
      return parse(inside)
    return Braces(_list(inside, _comma_of(inside)) or (parse(inside),))
  if (values := _list(inside, _COMMA)) is not None:
    return Bracket(left, right, values)
  if left == '(' and right == ')' and inside:
    return parse(inside)
  return Bracket(left, right, (parse(inside),)) if left == '[' and right == ']' and inside else None


_MATRIX = re.compile(
    r'^(.{0,200}?)\\begin ?\{ ?([pbBvV]?(?:small)?matrix|array) ?\}(?: ?\{[clr| ]{1,20}\})?(.*)'
    r'\\end ?\{ ?\2 ?\}(.{0,200})$',
    re.DOTALL,
)
_ROWS = re.compile(
    r'^\\begin ?\{ ?(cases|aligned|align\*?|gathered|split|array) ?\}(?: ?\{[clr| ]{1,20}\})?(.*)'
    r'\\end ?\{ ?\1 ?\}$',
    re.DOTALL,
)


def _matrix(text: str) -> Value | None:
  """A matrix, perhaps with a factor before it or a divisor after it."""
  if text.count(r'\begin') != 1:
    return None
  match = _MATRIX.match(re.sub(r'^\[ ?(\\begin.*) ?\]$', r'\1', text, flags=re.DOTALL).strip())
  if match is None or match[2].startswith(('v', 'V')):  # Bars make a determinant.
    return None
  before, after = match[1].strip(' *'), match[4].strip()
  scale = {'': '', '-': '-', '+': ''}.get(before, f'({before})*')
  if re.search(r'[=<>,;]', before + after):
    return None
  if (before and scale.endswith('*') and not is_expression(before)) or (
      after and not (after[0] in '/*' and is_expression(after[1:].strip()))):
    return None

  def cell(content: str) -> Value:
    content = content.strip()
    return parse(f'{scale}({content}){after}' if scale or after else content)

  rows = [row for row in re.split(r'\\\\', match[3]) if row.strip()]
  cells = tuple(tuple(map(cell, row.split('&'))) for row in rows)
  return Matrix(cells) if 0 < sum(map(len, cells)) <= _MAX_ITEMS else None


def _rows(text: str) -> Value | None:
  """A system of equations line by line, or the pieces of a function."""
  match = _ROWS.match(re.sub(r'^\\\{ ?(?=\\begin)', '', text))
  if match is None or text.count(r'\begin') != 1:
    return None
  rows = [row.strip(' ,') for row in re.split(r'\\\\', match[2]) if row.strip()]
  if match[1] != 'cases':
    rows = [row.replace('&', ' ') for row in rows]
  if not 0 < len(rows) <= _MAX_ITEMS:
    return None
  if any('&' in row for row in rows):
    return Matrix(tuple(tuple(parse(cell.strip(' ,')) for cell in row.split('&')) for row in rows))
  values = tuple(map(parse, rows))
  return values[0] if len(values) == 1 else Items(values)


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

  name = _bare(name)
  interval = Bracket('[' if closed[0] else '(', ']' if closed[-1] else ')', (low, high))
  return Inequality(name, interval, text)


_BARS = re.compile(r'^\|([^|]{1,20})\|$')
_EQUALS = re.compile(r'=|\\in(?![a-zA-Z])')


def _relation(text: str) -> Value | None:
  if len(split(text, _ORDER)) > 1:
    return _inequality(text)
  parts = split(text, _EQUALS)
  if len(parts) < 2 or not all(parts):
    return None
  if len(parts) == 2 and _is_name(parts[1]) and not _is_name(parts[0]):
    parts = parts[::-1]  # 5 = x

  if not all(map(answer_text.has_matching_brackets, parts)):
    return None
  last = parse(parts[-1])
  if isinstance(last, Quantity) and re.search(r'\\in(?![a-zA-Z])', text):
    return None  # A number has no elements.
  name = _bare(parts[0])
  names_a_point = name.startswith('(') and all(
      _NAME.match(part) for part in name.strip('()').split(',')
  )
  named = _NAME.match(parts[0]) or names_a_point
  label = _LABEL.match(parts[0]) and not is_expression(parts[0])
  constants = tuple(parse(part) for part in parts[:-1] if _is_constant_text(part))
  if len(parts) > 2 and (named or label) and constants:
    last = Relation(' = '.join(parts[1:]), last, constants)

  if named:
    return Assignment(name, last, text)
  if label:
    return last  # 'Total = 5'.
  # The zero of `2x + 1 = 0` is not an answer; the ends of `3 + 4 = 7` and `x + y = 5` are.
  is_zero_form = isinstance(last, Quantity) and last.rational == 0 and re.search(
      '[a-zA-Z]', ''.join(parts[:-1]))
  return Relation(text, None if is_zero_form else last, constants)


def sides(source: str) -> list[str]:
  """The texts between the equals signs of an equation."""
  return split(source, _EQUALS)


def _bare(name: str) -> str:
  """One spelling of a name: x_1 and x_{1}."""
  return re.sub(r'[{}\s]', '', name)


def _is_name(text: str) -> bool:
  return text not in ('e', 'i') and _NAME.match(text) is not None


_COMMANDS_OF_NUMBERS = re.compile(
    r'\\(?:frac|sqrt|pi|binom|sin|cos|tan|sec|csc|cot|log|ln|exp|arc(?:sin|cos|tan)|infty)'
    r'(?![a-zA-Z])'
)


def _is_constant_text(text: str) -> bool:
  """Returns whether a side of an equation is a constant, without names in it."""
  if quantities.parse(text) is not None:
    return True
  rest = _COMMANDS_OF_NUMBERS.sub(' ', text)
  return is_expression(text) and not re.search(r'\\|(?<![a-zA-Z])(?![ei](?![a-zA-Z]))[a-zA-Z]',
                                               rest)


_REALS = re.compile(r'\\mathbb ?\{? ?R ?\}?|[Aa]ll reals?(?: numbers)?')
_UNIT_IN_BRACKETS = re.compile(r'(.{1,200}[0-9)}]) ?[(\[] ?([a-zA-Z][a-zA-Z ^0-9/]{0,40}) ?[)\]]')


def parse(text: str) -> Value:
  """Parses one cleaned answer; never fails: anything not understood is `Text`."""
  text = text.strip()
  if len(text) > answer_text.MAX_CHARACTERS or answer_text.depth(text) > answer_text.MAX_DEPTH:
    return Text(answer_text.squeezed(text))
  while (match := _LEAD.match(text)) and match.end() < len(text):
    text = text[match.end() :].strip()

  if answer_text.squeezed(text) in (r'\infty', r'+\infty'):
    return _INFINITY
  if answer_text.squeezed(text) == r'-\infty':
    return _NEGATIVE_INFINITY
  if answer_text.squeezed(text) in (r'\emptyset', r'\{\}'):
    return set_operations.EMPTY
  if _REALS.fullmatch(text):
    return set_operations.REALS
  text = set_operations.spell_out(text)
  if match := _OPTION_WITH_PARENTHESIS.fullmatch(text):
    text = match[1]
  if (match := _UNIT_IN_BRACKETS.fullmatch(text)) and units.is_known(match[2]):
    text = f'{match[1]} {match[2]}'

  if (choice := _choice(text)) is not None:
    return choice
  sides = split(_ASIDE_ABOUT.sub(r' \\approx \1', text), _ABOUT)
  if len(sides) > 1 and all(sides):
    if len(sides) == 2 and (_is_name(sides[0]) or (
        _LABEL.match(sides[0]) and not is_expression(sides[0]))):
      return parse(sides[1])  # 'x is about 15'.
    return Either(tuple(parse(side) for side in sides))
  return _structure(text)


def _choice(text: str) -> Value | None:
  """'(B) 12', 'B. 12'; text that retracts the option, or names a second one, is only words."""
  match = _CHOICE.match(text)
  if match is None:
    return None
  rest = match[3].strip()
  if _SECOND_CHOICE.search(rest):
    return None
  value = _structure(rest)
  if text[1] == ' ' and not (isinstance(value, Quantity) and value.rational is not None):
    return None
  if hedges.takes_back(rest) or (isinstance(value, Text) and not is_plain_prose(rest)):
    return Text(text)
  return Choice((match[1] or match[2]).upper(), value)


_SET_OPERATION = re.compile(
    r'\\(?:setminus|cap)(?![a-zA-Z])|(?<=[}R)]) ?(-)(?= ?\\\{)'
)


def _set_operation(text: str) -> Value | None:
  """The difference or the intersection of sets of numbers."""
  parts = split(text, _SET_OPERATION)
  signs = {match[0].strip() == r'\cap' for match in _SET_OPERATION.finditer(text)}
  if not 2 <= len(parts) <= _MAX_ITEMS or len(signs) != 1 or not all(parts):
    return None
  values = tuple(parse(part) for part in parts)
  return set_operations.combined(values, difference=signs == {False}, source=text)


def _structure(text: str) -> Value:
  if (matrix := _matrix(text) or _rows(text)) is not None:
    return matrix
  if (quantity := quantities.parse(text)) is not None:
    return quantity
  if (compound := _compound(text)) is not None:
    return compound
  if (clock := clocks.parse_clock(text)) is not None:
    return clock
  if (ratio := clocks.parse_ratio(text)) is not None:
    return ratio
  if (congruence := residues.parse(text)) is not None:
    name, residue = congruence
    return Assignment(name, residue, text) if name else residue
  if (items := _items(text)) is not None:
    return items
  if (operation := _set_operation(text)) is not None:
    return operation

  unions = split(text, _UNION)
  if 1 < len(unions) <= _MAX_ITEMS and all(unions):
    values = tuple(parse(part) for part in unions)
    if all(isinstance(value, Braces) for value in values):
      return Braces(tuple(element for value in values for element in value.values))
    return Union(values, text)
  if (bracket := _brackets(text)) is not None:
    return bracket

  if (relation := _relation(text)) is not None:
    return relation
  if r'\pm' in text and text.count(r'\pm') == 1:
    return Items((parse(text.replace(r'\pm', '+')), parse(text.replace(r'\pm', '-'))))
  if is_expression(text):
    return quantities.expression(text)
  return Text(text)
