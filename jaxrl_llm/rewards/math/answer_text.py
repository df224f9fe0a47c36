r"""Normalises the text of one answer to a single spelling: a small, LaTeX-like one.

Formatting commands are removed (latex_formatting), and mathematics in Unicode is spelled with ASCII
(unicode_text); letters of all scripts stay. Everything here is a chain of replacements with
regular expressions that need linear time (no nested repetition), on a text of bounded length.
Nothing is evaluated. What remains of mathematics: digits, letters,
+ - * / ^ ( ) [ ] { } \{ \}, the relations = < > \le \ge \ne \in \approx, and LaTeX commands
that carry a meaning.
"""

import re

from jaxrl_llm.rewards.math import latex_formatting, unicode_text

# A dollar sign that means money; `$` itself is only ever a LaTeX delimiter and is removed.
DOLLAR = '\uff04'

# Longer candidates are compared as text only. This bounds the cost of parsing.
MAX_CHARACTERS = 2000
MAX_DEPTH = 40

_DOTS = r' ?(?:\.\.\.|\\(?:l|c)?dots(?![a-zA-Z]))'
_COMMANDS = [
    (re.compile(r'\\\\\s?\[[^\[\]\\]{0,20}\]'), r'\\\\ '),  # Row skips such as \\[2pt].
    (re.compile(r'(?:,|\{,\})\\!\s?(?=[0-9]{3}(?![0-9]))'), ','),
    (re.compile(r'\\!|\\/'), ''),
    (re.compile(r'\\(?:simeq|approxeq)(?![a-zA-Z])|~='), r'\\approx '),
    # 0.333... repeats its last digit, 0.2727... its last two; 1.414213... is cut off.
    (re.compile(rf'(\.[0-9]{{0,20}}?)([0-9])\2{{2,20}}{_DOTS}'), r'\1\\overline{\2}'),
    (re.compile(rf'(\.[0-9]{{0,20}}?)([0-9]{{2,10}})\2{{1,9}}{_DOTS}'), r'\1\\overline{\2}'),
    (re.compile(rf'(\.[0-9]{{6,50}}){_DOTS} *$'), r'\1'),
    (re.compile(r'\{,\}'), ','),
    (re.compile(r'\{:\}'), ':'),
    (re.compile(r'(?<=[0-9]\.)\(([0-9]{1,20})\)(?![0-9])'), r'\\overline{\1}'),  # 0.(3)
    (re.compile(r'^ *<([^<>=]{1,200},[^<>=]{1,200})> *$'), r'\\langle \1\\rangle '),
    (re.compile(r'\\(?:dots|cdots|dotsc|dotsb|hdots)(?![a-zA-Z])|(?<![0-9.])\.\.\.'), r'\\ldots '),
    (re.compile(r'(?<=[0-9])(?:\\,|\\ |\\;|\\:|~|[\u00a0\u202f\u2009])(?=[0-9]{3}(?![0-9]))'), ''),
    (re.compile(r'(?<!\\)\\[,;:> ]|~'), ' '),
    (re.compile(r'\\(?:nicefrac|sfrac)(?![a-zA-Z])'), r'\\frac'),
    (re.compile(r'\\sqrt ?([0-9])(?![0-9]*\.[0-9])'), r'\\sqrt{\1}'),
    (re.compile(r'\\(?:smallsetminus|backslash)(?![a-zA-Z])'), r'\\setminus '),
    (re.compile(r'\\(?:pounds|textsterling)(?![a-zA-Z])'), '£'),
    (re.compile(r'\\(?:texteuro|euro)(?![a-zA-Z])'), '€'),
    (re.compile(r'\\lbrack(?![a-zA-Z])'), '['),
    (re.compile(r'\\rbrack(?![a-zA-Z])'), ']'),
    (re.compile(r'\\lparen(?![a-zA-Z])'), '('),
    (re.compile(r'\\rparen(?![a-zA-Z])'), ')'),
    (re.compile(r'\\colon(?![a-zA-Z])'), ':'),
    (re.compile(r'\\var(phi|epsilon|theta|rho|sigma|kappa)(?![a-zA-Z])'), r'\\\1'),
    (re.compile(r'\\([_#])'), r'\1'),
    (re.compile(r'\\[dtc]frac(?![a-zA-Z])'), r'\\frac'),
    (re.compile(r'\\[dt]binom(?![a-zA-Z])'), r'\\binom'),
    (re.compile(r'\\(?:leq|leqslant|le)(?![a-zA-Z])|<=|=<'), r'\\le '),
    (re.compile(r'\\(?:geq|geqslant|ge)(?![a-zA-Z])|>='), r'\\ge '),
    (re.compile(r'\\(?:neq|ne|not\s?=)(?![a-zA-Z])|!='), r'\\ne '),
    (re.compile(r'\\lt(?![a-zA-Z])'), '<'),
    (re.compile(r'\\gt(?![a-zA-Z])'), '>'),
    (re.compile(r'\\(?:cdot|times|ast)(?![a-zA-Z])'), '*'),
    (re.compile(r'\\div(?![a-zA-Z])'), '/'),
    (re.compile(r'\\(?:varnothing|emptyset|O)(?![a-zA-Z])'), r'\\emptyset '),
    (re.compile(r'\\lbrace(?![a-zA-Z])'), r'\\{'),
    (re.compile(r'\\rbrace(?![a-zA-Z])'), r'\\}'),
    (re.compile(r'\\l?vert(?![a-zA-Z])|\\rvert(?![a-zA-Z])'), '|'),
    (
        re.compile(r'\^\s?\{\s?\\circ\s?\}|\^\s?\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])'),
        ' degrees ',
    ),
    (re.compile(r'\\%'), '%'),
]  # fmt: skip
_PRIMES = re.compile(r"\^\s?\{\s?((?:\\prime\s?|')+)\}|\^?\s?\\prime(?![a-zA-Z])|\^(?=')")
_PRIME = re.compile(r"\\prime|'")
_ANGLES = re.compile(r'\\([lr])angle(?![a-zA-Z])')
# Infix commands: {n \choose k}, {a \over b}.
_INFIX = re.compile(r'\\(choose|over)(?![a-zA-Z])')
# A prime alone is not read as a unit: 12' may be feet, minutes of arc or a derivative.
_FEET = re.compile(r'^([0-9]+(?:\.[0-9]+)?)\'\s?([0-9]+(?:\.[0-9]+)?)(?:"|\'\')$')
_INCHES = re.compile(r'^([0-9]+(?:\.[0-9]+)?)(?:"|\'\')$')
# Applied after the formatting: whole words that mean a command.
_WORDS = [
    (re.compile(r'(?i)(?<![\\a-zA-Z])(?:the )?(?:square root of|sqrt) ?([0-9]+(?:\.[0-9]+)?)'),
     r'\\sqrt{\1}'),
    (re.compile(r'(?i)(?<![\\a-zA-Z])(?:the )?(?:cube root of|cbrt) ?([0-9]+(?:\.[0-9]+)?)'),
     r'\\sqrt[3]{\1}'),
    (re.compile(r'(?<![\\a-zA-Z])sqrt(?![a-zA-Z])'), r'\\sqrt'),
    (re.compile(r'(?<![\\a-zA-Z])cbrt(?![a-zA-Z])'), r'\\sqrt[3]'),
    (re.compile(r'(?<![\\a-zA-Z])[pP]i(?![a-zA-Z])'), r'\\pi '),
    (re.compile(r'(?<![\\a-zA-Z])(?:oo|[iI]nfinity|inf)(?![a-zA-Z])'), r'\\infty '),
    (
        re.compile(r'(?<![\\a-zA-Z])(sin|cos|tan|sec|csc|cot|arcsin|arccos|arctan|log|ln|exp)'
                   r'(?=\s?[({0-9])'),
        r'\\\1',
    ),
    (re.compile(r'(?i)(?<=[0-9})])\s?(?:percentage(?: points?)?|per ?cent|pct)(?![a-zA-Z])'), '%'),
    (re.compile(r'(?<=[0-9])\s?[x×]\s?(?=10\s?\^)'), '*'),
    (
        re.compile(r'(?i)(?:^|(?<=[=(,:\[{])|(?<=\bis)|(?<=\bbe)|(?<=\bare)) *'
                   rf'\b(?:negative|minus) +(?={DOLLAR}?\.?[0-9]|\\[a-zA-Z{{]|\(|[a-z](?![a-z]))'),
        ' -',
    ),
]  # fmt: skip
_POWER = re.compile(r'(?<=[\w)}])\s?\*\*\s?(?=[\w({\\+-])')
# Inside a trigonometric function a degree is a number, and no unit of the result.
_TRIGONOMETRIC = re.compile(r'\\(?:sin|cos|tan|sec|csc|cot)(?![a-zA-Z])')
_DEGREES = re.compile(r'([0-9]+(?:\.[0-9]+)?) ?degrees')
_SPACES = re.compile(r'\s+')
_MONEY = re.compile(r'\$(?=\s?-?\.?[0-9])')


def _without_delimiters(text: str) -> str:
  """Drops LaTeX's dollar signs and keeps those that mean money, as `DOLLAR`."""
  text = text.replace(r'\$', DOLLAR)
  count = text.count('$')
  if count:
    money = len(_MONEY.findall(text))
    if money == count or count % 2:
      text = _MONEY.sub(DOLLAR, text)
    text = text.replace('$', ' ')
  # \( \) \[ \] delimit mathematics too; `\\[` was dealt with as a row skip.
  return re.sub(r'(?<!\\)\\[()\[\]]', ' ', text)


def _root_of_parentheses(text: str) -> str:
  r"""Spells `\sqrt(...)` as `\sqrt{...}`."""
  start = text.find(r'\sqrt')
  while start >= 0:
    match = _ROOT_HEAD.match(text, start)
    right = closing(text, match.end()) if match else None
    if match and right is not None:
      inside = text[match.end() + 1 : right]
      text = text[:start] + match[1] + '{' + inside + '}' + text[right + 1 :]
    start = text.find(r'\sqrt', start + 5)
  return text


_ROOT_HEAD = re.compile(r'(\\sqrt(?:\[[^\[\]]{1,20}\])?) *(?=\()')


def _infix(text: str) -> str:
  r"""Spells `{n \choose k}` as `\binom{n}{k}` and `{a \over b}` as `\frac{a}{b}`."""
  for _ in range(20):
    match = _INFIX.search(text)
    if match is None:
      break

    left, depth_now = match.start() - 1, 0
    while left >= 0 and (text[left] != '{' or depth_now):
      depth_now += (text[left] == '}') - (text[left] == '{')
      left -= 1
    right = closing(text, left) if left >= 0 else len(text)
    if right is None:
      break

    name = {'choose': 'binom', 'over': 'frac'}[match[1]]
    over, under = text[left + 1 : match.start()].strip(), text[match.end() : right].strip()
    text = f'{text[: max(left, 0)]}\\{name}{{{over}}}{{{under}}}{text[right + 1 :]}'
  return text


def _trim(text: str) -> str:
  """Strips the punctuation around an answer; a prime and an exponent `*` belong to it."""
  text = text.strip()
  while text:
    before = text
    if len(text) > 1 and text[0] in '"\'`' and text[-1] in '"\'`':
      text = text[1:-1]

    # A full stop ends a sentence, but opens a number such as .5. Operators and colons stay, so
    # that an unfinished `15:` is not 15.
    text = text.lstrip(' ,;`"\'')
    text = text.rstrip(' ,;`')
    if not text.endswith('..'):  # 15... may go on.
      text = text.rstrip('. ')
    if text.endswith('"') and not text.startswith('"'):
      text = text[:-1]

    if text == before:
      break
  return text


def _without_emphasis(text: str) -> str:
  """The text without Markdown's asterisks around it; an exponent `*` belongs to it."""
  text = text.strip()
  if re.search(r'\^ ?\{? ?\*\**$', text):
    return text.lstrip('*')
  while len(text) > 2 and text[0] == text[-1] == '*':
    text = text[1:-1].strip()
  return re.sub(r'^\*+(?=[\s*])|^\*\*|\*\*\**$', ' ', text).strip()


def closing(text: str, left: int) -> int | None:
  """Index at which the bracket that opens at `left` is closed; None if it is not.

  All kinds of brackets match each other, because an interval may open with one kind and
  close with another.
  """
  depth = 0
  for index in range(left, len(text)):
    if text[index] in '([{':
      depth += 1
    elif text[index] in ')]}':
      depth -= 1
      if depth == 0:
        return index
  return None


_PAIRS = {')': '(', ']': '[', '}': '{'}


def has_matching_brackets(side: str) -> bool:
  """Returns whether brackets match in kind; only an interval may mix them: [0,1)."""
  stack, mixed = [], False
  for character in side:
    if character in '([{':
      stack.append(character)
    elif character in ')]}':
      if not stack or (stack[-1] == '{') != (character == '}'):
        return False
      mixed |= stack.pop() != _PAIRS[character]
  return not stack and (not mixed or re.search(r'[,;][^+*/^!]*$', side) is not None)


def depth(text: str) -> int:
  """Returns the nesting depth of brackets in `text`."""
  now = deepest = 0
  for character in text:
    if character in '([{':
      now += 1
      deepest = max(deepest, now)
    elif character in ')]}':
      now -= 1
  return deepest


def clean(text: str) -> str:
  """Normalises the spelling of one answer.

  Args:
    text: an answer; only its first `MAX_CHARACTERS` characters are read.

  Returns:
    The cleaned text, '' if nothing is left.
  """
  text = _without_emphasis(text[:MAX_CHARACTERS])
  if not text.isascii():
    text = unicode_text.spell_out(text)[: 4 * MAX_CHARACTERS]
  text = ''.join(c if c >= ' ' else ' ' for c in text)
  for pattern, replacement in _COMMANDS[:1]:
    text = pattern.sub(replacement, text)
  text = latex_formatting.remove(_without_delimiters(text))

  for pattern, replacement in _COMMANDS[1:]:
    text = pattern.sub(replacement, text)
  text = _infix(_PRIMES.sub(lambda match: "'" * len(_PRIME.findall(match[0])), text))
  if '|' not in text:  # With a bar it is a product of states or vectors.
    text = _ANGLES.sub(lambda match: '(' if match[1] == 'l' else ')', text)
  for pattern, replacement in _WORDS:
    text = pattern.sub(replacement, text)
  if _TRIGONOMETRIC.search(text):
    text = _DEGREES.sub(r'(\1\\pi /180)', text)

  text = _root_of_parentheses(_POWER.sub('^', text))
  text = _SPACES.sub(' ', text).strip()
  if match := _FEET.match(text):
    return f'{match[1]} feet {match[2]} inches'
  if match := _INCHES.match(text):
    return f'{match[1]} inches'
  return _trim(text)


def squeezed(text: str) -> str:
  """`text` without white space, for comparing spellings."""
  return _SPACES.sub('', text)
