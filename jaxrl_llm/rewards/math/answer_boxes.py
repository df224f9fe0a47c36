r"""Reads `\boxed{...}` and `\fbox{...}`, with what belongs to the number outside the box.

A box in a box is one answer: `\boxed{x = \boxed{15}}` is 'x = 15'. A sign, a factor, a power or a
percent sign that touches the box belongs to the answer: `-\boxed{15}` is -15, `2\boxed{3}` is 6 and
`\boxed{15}^2` is 225; `\frac{\boxed{3}}{4}` is 3/4. A box that is one term of a larger equation,
such as `10 - \boxed{3} = 7`, fills a gap; its content alone is the answer.
"""

import re

from jaxrl_llm.rewards.math import answer_text

_MAX_BOX = 200_000
_MAX_BOXES = 64
_SCAN_BUDGET = 2_000_000
_WINDOW = 300  # Characters before and after a box that may belong to its expression.

_BRACE = re.compile(r'\\.|[{}]', re.DOTALL)
_BOX = re.compile(r'\\f?box(?:ed)?(?![a-zA-Z])\s{0,3}')
_JOIN = re.compile(r'^[\s$]*(?:,|;|and|or|,\s?and|,\s?or|\\text\{ ?(?:and|or) ?\})?[\s$]*$')

_SPACE = r'(?:[ \t]|~|\\[,;:! ]|\{\})'
_SIGN = r'(?:[-+−–±∓]|\{-\}|\\pm(?![a-zA-Z])|\\mp(?![a-zA-Z]))'
_OPERAND = (
    r'(?:[0-9]+(?:\.[0-9]+)?|\\[dtc]?frac ?(?:[0-9]{2}|\{[^{}]{1,40}\} ?\{[^{}]{1,40}\})'
    r'|\\sqrt ?(?:\[[0-9]\])?(?:[0-9]|\{[^{}]{1,40}\})|\\pi(?![a-zA-Z])|π|[½⅓⅔¼¾])'
)
_ASCII_SIGN = {'−': '-', '–': '-', '{-}': '-', '+': '', '±': r'\pm', '∓': r'\mp'}
_TIMES = r'(?:\\cdot(?![a-zA-Z])|\\times(?![a-zA-Z])|[*×·⋅])'
_RELATION = (
    r'(?:[=<>≈≤≥]|\\(?:approx|leq?|geq?|equiv|sim|implies|Rightarrow|to|therefore)(?![a-zA-Z]))'
)
# In mathematics spaces may separate sign, factor and box; in prose all must touch, since a
# dash there may be a list's bullet or end a phrase.
_FACTOR_IN_MATH = re.compile(
    rf'(?:^|[$&,:;]|(?<!\\)[(\[]|\\[(\[\\]|{_RELATION}|\\text\{{[^{{}}]{{0,80}}\}})\s{{0,3}}{_SPACE}{{0,3}}'
    rf'(?P<sign>{_SIGN}?){_SPACE}{{0,3}}(?:\\\$)?'
    rf'(?P<factor>(?:{_OPERAND}{_SPACE}?)*)(?P<times>{_TIMES}?){_SPACE}{{0,3}}\Z'
)
_FACTOR_IN_PROSE = re.compile(
    rf'(?:^|[\s*:(>"`]|{_RELATION}\s{{0,3}})(?P<sign>{_SIGN}?)(?:\\\$)?'
    rf'(?P<factor>(?:{_OPERAND})*)(?P<times>{_TIMES}?)\Z'
)
_SIGN_IN_EQUATION = re.compile(
    rf'{_RELATION}\s{{0,3}}(?P<sign>{_SIGN})\s{{1,3}}(?P<factor>)(?P<times>)\Z'
)
_NEGATIVE_WORD = re.compile(r'(?:\b(?:is|are|be|equals|get|gives|becomes)|[=:])\s+'
                            r'(?:negative|minus)\s+\Z')
_SUFFIX = (
    r'(?:\^ ?(?!\{? ?\\circ)(?:\{[^{}]{1,40}\}|[0-9a-zA-Z])|[⁰¹²³⁴⁵⁶⁷⁸⁹]+|\\?%|/[0-9]+(?![\w/])'
    r'|\\pi(?![a-zA-Z])|π|\\sqrt ?\{[^{}]{1,40}\}'
)
_SUFFIX_IN_MATH = re.compile(
    rf'{_SUFFIX}|{_SPACE}{{0,3}}(?:\\?%|\\pi(?![a-zA-Z])'
    r'|\\[dt]?frac ?\{[^{}]{1,40}\} ?\{[^{}]{1,40}\}'
    rf'|{_TIMES} ?{_OPERAND})|!|[a-zA-Z](?![a-zA-Z]))+'
)
_SUFFIX_IN_PROSE = re.compile(rf'{_SUFFIX})+')
_CONTINUES = re.compile(r'\s*(?:[-+*/−×÷·]|\\(?:cdot|times|div|pm)(?![a-zA-Z]))\s*[\w\\({]')
_FOLLOWS = re.compile(
    r'[\w)}]\s*(?:[-+*/−×÷·]|\\(?:cdot|times|div|pm)(?![a-zA-Z]))\s*\Z'
)
_EQUALS_NUMBER = re.compile(r'\s*=[^$=]{0,80}[0-9]')
_NUMBER_EQUALS = re.compile(r'[0-9][^$=]{0,80}=[^$=]{0,80}\Z')

_STYLE = (
    r'\\(?:math(?:bf|rm|it|sf|tt)|text(?:bf|it|rm|sf|tt)?|boldsymbol|bm|underline|emph'
    r'|(?:text)?color ?\{[a-zA-Z]{1,20}\}) ?'
)
# (before a box, after it, whether they change the value): emphasis and delimiters do not.
_WRAPPERS = [
    (re.compile(rf'(?:{_STYLE}|(?<![\\\w}}\]^_]))\{{\s?\Z'), re.compile(r'\s?\}'), False),
    (re.compile(r'(?:\\left ?)?(?<![a-zA-Z\\])\(\s?\Z'), re.compile(r'\s?(?:\\right ?)?\)'), False),
    (re.compile(r'(?<!\\)\$\$?\s?\Z'), re.compile(r'\s?\$\$?'), False),
    (re.compile(r'\\\(\s?\Z'), re.compile(r'\s?\\\)'), False),
    (re.compile(r'\*\*\Z'), re.compile(r'\*\*'), False),
    (re.compile(r'\\[dt]?frac ?\{\s?\Z'), re.compile(r'\s?\} ?\{[^{}]{1,40}\}'), True),
    (re.compile(r'\\[dt]?frac ?\{[^{}]{1,40}\} ?\{\s?\Z'), re.compile(r'\s?\}'), True),
    (re.compile(r'\\sqrt ?(?:\[[0-9]\] ?)?\{\s?\Z'), re.compile(r'\s?\}'), True),
    (re.compile(r'(?<![\w.^_])[0-9]{1,9} ?\^ ?\{ ?-?\s?\Z'), re.compile(r'\s?\}'), True),
]
_DELIMITER = re.compile(r'(?<!\\)\$\$?|\\[()\[\]]|\n\s{0,9}|\\(?:begin|end)\{')
_ATOM = re.compile(rf'[0-9][0-9.,]*|[a-zA-Z]|\\[a-zA-Z]+|{_OPERAND}')
_NUMBER = re.compile(r'[0-9][0-9.,]*')
_SUM = re.compile(r'[-+−±]|\\pm')


def closing_brace(text: str, left: int, limit: int) -> int | None:
  """Index of the brace that closes the one at `left`; None if it is not before `limit`."""
  depth = 0
  for match in _BRACE.finditer(text, left, limit):
    if match[0] == '{':
      depth += 1
    elif match[0] == '}':
      depth -= 1
      if depth == 0:
        return match.start()
  return None


def outermost(text: str) -> list[tuple[int, int, str]]:
  """Finds the last outermost boxes.

  Args:
    text: any text.

  Returns:
    (start, end, content) of up to 64 boxes, last first; empty and unclosed ones are left out.
  """
  boxes, end, budget = [], len(text), _SCAN_BUDGET
  for _ in range(_MAX_BOXES):
    start = max(text.rfind('\\boxed', 0, end), text.rfind('\\fbox', 0, end))
    if start < 0 or budget < 0:
      break
    end = start
    match = _BOX.match(text, start)
    if match is None:
      continue

    if text[match.end() : match.end() + 1] != '{':
      word = re.match(r'[^\s{}$\\]{1,50}', text[match.end() : match.end() + 50])
      if word:
        boxes.append((start, match.end() + word.end(), word[0]))
      continue

    limit = min(len(text), match.end() + _MAX_BOX)
    close = closing_brace(text, match.end(), limit)
    budget -= (close or limit) - match.end()
    if close is not None:
      boxes = [box for box in boxes if box[0] > close]
      boxes.append((start, close + 1, text[match.end() + 1 : close].strip()))
  return [box for box in boxes if box[2]]


def _without_inner_boxes(content: str) -> str:
  """The content with its inner boxes replaced by their contents."""
  for start, end, inner in outermost(content):
    inner = _without_inner_boxes(inner)
    left, right = content[:start], content[end:]
    touches = re.search(rf'(?:{_OPERAND})\Z', left[-90:]) or (
        _SUM.search(inner) and (re.search(rf'(?:{_SIGN}|{_TIMES}|/)\s?$', left[-20:])
                                or re.match(r'\s?[\^*/]', right)))
    content = left + (f'({inner})' if touches else f' {inner} ') + right
  return content.strip()


def _in_mathematics(text: str, start: int) -> bool:
  """Returns whether an index is inside `$...$`, `\\(...\\)`, `\\[...\\]` or an environment."""
  opened = ''
  for match in _DELIMITER.finditer(text, max(0, start - 2000), start):
    mark = match[0]
    if mark.isspace():  # Inline formulas end with their line: a dollar sign may be money.
      opened = '' if opened == '$' or mark.count('\n') > 1 else opened
    elif mark.startswith('$'):
      opened = '' if opened else mark
    else:
      opened = mark if mark in (r'\(', r'\[', r'\begin{') else ''
  return bool(opened)


def _in_parentheses(content: str) -> bool:
  return content.startswith('(') and answer_text.closing(content, 0) == len(content) - 1


def _product(sign: str, factor: str, times: str, content: str, suffix: str) -> str:
  """Joins a box and its surroundings to one expression."""
  atom = bool(_ATOM.fullmatch(content)) or _in_parentheses(content)
  if factor:
    atom = atom and not _NUMBER.fullmatch(content)
  elif not suffix or suffix.strip() in ('%', r'\%'):
    atom = atom or not _SUM.search(content)

  body = content if atom else f'({content})'
  if factor:
    joint = r' \cdot ' if times else ' ' if atom else ''
    body = factor.strip() + joint + body
  sign = _ASCII_SIGN.get(sign, sign)
  return sign + (' ' if sign.startswith('\\') else '') + body + suffix


def _peeled(text: str, box: tuple[int, int, str], lowest: int) -> tuple[int, int, str] | None:
  """The box with the wrapper, fraction, root or power directly around it; None if there is none."""
  start, end, content = box
  before, after = text[max(lowest, start - _WINDOW) : start], text[end : end + _WINDOW]
  for opening, closing, template in _WRAPPERS:
    left, right = opening.search(before), closing.match(after)
    if left and right:
      start, end = start - len(left[0]), end + right.end()
      if template:
        content = left[0].strip() + content + right[0].strip()
      return start, end, content
  return None


def _with_surroundings(text: str, box: tuple[int, int, str], lowest: int) -> tuple[int, int, str]:
  """Extends a box by sign, factor and suffix; reads nothing before `lowest`."""
  outer = box
  for _ in range(6):
    start, end, content = outer
    inside = not text.startswith(('$', r'\('), start) and _in_mathematics(text, start)
    before, after = text[max(lowest, start - _WINDOW) : start], text[end : end + _WINDOW]
    left = _SIGN_IN_EQUATION.search(before) or (
        _FACTOR_IN_MATH if inside else _FACTOR_IN_PROSE).search(before)
    right = (_SUFFIX_IN_MATH if inside else _SUFFIX_IN_PROSE).match(after)
    if (left and (left['sign'] or left['factor'])) or right:
      break

    wider = _peeled(text, outer, lowest)
    if wider is None:
      break
    outer = wider

  sign, factor, times = (left['sign'], left['factor'], left['times']) if left else ('', '', '')
  if times and not factor:
    sign, times = '', ''
  if not (sign or factor or inside) and _NEGATIVE_WORD.search(before):
    sign = '-'
  suffix = right[0] if right else ''

  # One term of a larger sum, or one side of an equation with another number: it fills a gap.
  rest = after[len(suffix) :]
  changed = bool(factor or suffix or content != box[2])
  fills_a_gap = inside and (_CONTINUES.match(rest) or (
      not (sign or factor) and _FOLLOWS.search(before)))
  if fills_a_gap or not (sign or changed) or (
      changed and (_EQUALS_NUMBER.match(rest) or _NUMBER_EQUALS.search(before))):
    return box
  shown = left[0].lstrip() if left else ''
  used = len(shown) - len(re.match(r'[$&,:;(\[\s]*', shown)[0])
  return start - used, end + len(suffix), _product(sign, factor, times, content, suffix)


def last(text: str) -> tuple[int, str] | None:
  """Reads the answer in the last box, or in several that a comma, 'and' or 'or' joins to a list.

  Args:
    text: a response.

  Returns:
    (index of the box, its answer), or None if no box has any content.
  """
  boxes = outermost(text)
  if not boxes:
    return None

  position = boxes[0][0]
  contents, start = [], None
  for index, box in enumerate(boxes):
    lowest = boxes[index + 1][1] if index + 1 < len(boxes) else 0
    box = box[0], box[1], _without_inner_boxes(box[2])
    extended = _with_surroundings(text, box, lowest)
    between = text[extended[1] : start] if start is not None else ''
    if start is not None and (len(between) > 30 or '\n' in between or not _JOIN.match(between)):
      break
    contents.append(extended[2])
    start = extended[0]
  return position, ', '.join(dict.fromkeys(reversed(contents)))
