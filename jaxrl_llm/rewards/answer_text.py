r"""Brings the text of one answer into a single spelling: a small, ASCII, LaTeX-like one.

Everything here is a chain of replacements with regular expressions that need linear
time (no nested repetition), on a text whose length was capped before. Nothing is
evaluated. What remains afterwards: digits, letters, + - * / ^ ( ) [ ] { } \{ \}, the
relations = < > \le \ge \ne \in \approx, and LaTeX commands that carry a meaning.
"""

import re
import unicodedata

# A dollar sign that means money; `$` itself is only ever a LaTeX delimiter and is removed.
DOLLAR = '\uff04'

# Longer candidates are compared as text only: an answer of this size is no answer, and the
# cost of everything behind this line is bounded by it.
MAX_CHARACTERS = 2000
MAX_DEPTH = 40

_VULGAR = {
    '½': '1/2', '⅓': '1/3', '⅔': '2/3', '¼': '1/4', '¾': '3/4', '⅕': '1/5', '⅖': '2/5',
    '⅗': '3/5', '⅘': '4/5', '⅙': '1/6', '⅚': '5/6', '⅛': '1/8', '⅜': '3/8', '⅝': '5/8',
    '⅞': '7/8',
}  # fmt: skip
_SUPERSCRIPTS = dict(zip('⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ', '0123456789+-n'))
_SUBSCRIPTS = dict(zip('₀₁₂₃₄₅₆₇₈₉', '0123456789'))
_SYMBOLS = str.maketrans({
    '−': '-', '–': '-', '—': '-', '‐': '-', '‑': '-', '×': '*', '⋅': '*', '·': '*', '∙': '*',
    '•': '*', '÷': '/', '⁄': '/', '∕': '/', '√': r'\sqrt ', 'π': r'\pi ', 'Π': r'\pi ',
    '∞': r'\infty ', '≤': r'\le ', '⩽': r'\le ', '≥': r'\ge ', '⩾': r'\ge ', '≠': r'\ne ',
    '±': r'\pm ', '∓': r'\mp ', '∪': r'\cup ', '∩': r'\cap ', '∈': r'\in ', '∅': r'\emptyset ',
    '≈': r'\approx ', '°': r'^\circ ', '′': "'", '’': "'", '‘': "'", '“': '"', '”': '"',
    '∶': ':', '…': r'\ldots ', '⟨': r'\langle ', '⟩': r'\rangle ', 'θ': r'\theta ',
    'α': r'\alpha ', 'β': r'\beta ', 'λ': r'\lambda ', '\ufffd': ' ',
})  # fmt: skip

_RUN_OF_SUPERSCRIPTS = re.compile(f'[{"".join(_SUPERSCRIPTS)}]+')
_RUN_OF_SUBSCRIPTS = re.compile(f'[{"".join(_SUBSCRIPTS)}]+')
_VULGAR_AFTER = re.compile(f'([0-9]?)\\s?([{"".join(_VULGAR)}])')

_COMMANDS = [
    (re.compile(r'\\\\\s?\[[^\[\]\\]{0,20}\]'), r'\\\\ '),  # Row skips such as \\[2pt].
    (re.compile(r'\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|biggl|biggr)(?![a-zA-Z])\.?'), ''),
    (re.compile(r'\\(?:display|text|script)style(?![a-zA-Z])'), ''),
    (re.compile(r'\\(?:limits|nolimits)(?![a-zA-Z])'), ''),
    (re.compile(r'\\!|\\/'), ''),
    (re.compile(r'\\(?:simeq|approxeq)(?![a-zA-Z])|~='), r'\\approx '),
    (re.compile(r'\{,\}'), ','),
    (re.compile(r'(?<=[0-9])(?:\\,|\\ |\\;|\\:|~|[\u00a0\u202f\u2009])(?=[0-9]{3}(?![0-9]))'), ''),
    (re.compile(r'(?<!\\)\\[,;:> ]|~|\\q?quad(?![a-zA-Z])|\\thinspace(?![a-zA-Z])'), ' '),
    (re.compile(r'\\hspace\*?\{[^{}]{0,20}\}'), ' '),
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
_WRAPPER = re.compile(
    r'\\(?:text(?:bf|it|rm|sf|tt|sc|normal)?|mbox|hbox|math(?:rm|bf|it|sf|tt)|operatorname'
    r'|boldsymbol|boxed|fbox|emph|underline|bm)\*?\s?\{([^{}]*)\}'
)
# After the wrappers: words that stand for a command where they stand alone.
_WORDS = [
    (re.compile(r'(?<![\\a-zA-Z])sqrt(?![a-zA-Z])'), r'\\sqrt'),
    (re.compile(r'(?<![\\a-zA-Z])[pP]i(?![a-zA-Z])'), r'\\pi '),
    (re.compile(r'(?<![\\a-zA-Z])(?:oo|[iI]nfinity|inf)(?![a-zA-Z])'), r'\\infty '),
    (
        re.compile(r'(?<![\\a-zA-Z])(sin|cos|tan|sec|csc|cot|arcsin|arccos|arctan|log|ln|exp)'
                   r'(?=\s?[({0-9])'),
        r'\\\1',
    ),
    (re.compile(r'(?i)(?<=[0-9})])\s?(?:percentage(?: points?)?|per ?cent|pct)(?![a-zA-Z])'), '%'),
    (re.compile(r'(?<=[0-9])\s?[x×]\s?(?=10\s?\^)'), '*'),
]  # fmt: skip
_POWER = re.compile(r'(?<=[\w)}])\s?\*\*\s?(?=[\w({\\+-])')
# Inside a trigonometric function a degree is a number, and no unit of the result.
_TRIGONOMETRIC = re.compile(r'\\(?:sin|cos|tan|sec|csc|cot)(?![a-zA-Z])')
_DEGREES = re.compile(r'([0-9]+(?:\.[0-9]+)?) ?degrees')
_SPACES = re.compile(r'\s+')
_MONEY = re.compile(r'\$(?=\s?-?\.?[0-9])')
_EDGE = ' ,;:*`"\''


def _from_unicode(text: str) -> str:
  """The ASCII spelling of a text with other characters in it."""
  text = _VULGAR_AFTER.sub(lambda m: (m[1] + ' ' if m[1] else '') + _VULGAR[m[2]], text)
  text = _RUN_OF_SUPERSCRIPTS.sub(
      lambda m: '^{' + ''.join(_SUPERSCRIPTS[c] for c in m[0]) + '}', text)
  text = _RUN_OF_SUBSCRIPTS.sub(
      lambda m: '_{' + ''.join(_SUBSCRIPTS[c] for c in m[0]) + '}', text)
  text = unicodedata.normalize('NFKC', text.translate(_SYMBOLS)).translate(_SYMBOLS)
  kept = []
  for character in text[: 4 * MAX_CHARACTERS]:
    if character.isascii():
      kept.append(character)
      continue
    category = unicodedata.category(character)
    if category == 'Nd':
      kept.append(str(unicodedata.decimal(character)))
    elif category not in ('Cf', 'Cs', 'Cn', 'Co'):  # Direction marks, lone surrogates, ...
      kept.append(character)
  return ''.join(kept)


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
    left = start + 5
    while left < len(text) and text[left] == ' ':
      left += 1
    if left < len(text) and text[left] == '(':
      right = closing(text, left)
      if right is not None:
        inside = text[left + 1 : right]
        text = text[: start + 5] + '{' + inside + '}' + text[right + 1 :]
    start = text.find(r'\sqrt', start + 5)
  return text


def closing(text: str, left: int) -> int | None:
  """Where the bracket that opens at `left` is closed; None if it is not.

  Brackets of all kinds count alike, because an interval may open with one kind and
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


def depth(text: str) -> int:
  """How deeply brackets are nested in `text`."""
  now = deepest = 0
  for character in text:
    if character in '([{':
      now += 1
      deepest = max(deepest, now)
    elif character in ')]}':
      now -= 1
  return deepest


def clean(text: str) -> str:
  """One answer in the common spelling.

  Args:
    text: at most `MAX_CHARACTERS` characters; what is beyond is cut.

  Returns:
    the cleaned text, '' if nothing is left.
  """
  text = text[:MAX_CHARACTERS]
  if not text.isascii():
    text = _from_unicode(text)
  text = ''.join(c if c >= ' ' else ' ' for c in text)
  for pattern, replacement in _COMMANDS[:1]:
    text = pattern.sub(replacement, text)
  text = _without_delimiters(text)
  for pattern, replacement in _COMMANDS[1:]:
    text = pattern.sub(replacement, text)
  for _ in range(4):
    unwrapped = _WRAPPER.sub(r' \1 ', text)
    if unwrapped == text:
      break
    text = unwrapped
  for pattern, replacement in _WORDS:
    text = pattern.sub(replacement, text)
  if _TRIGONOMETRIC.search(text):
    text = _DEGREES.sub(r'(\1\\pi /180)', text)
  text = _root_of_parentheses(_POWER.sub('^', text))
  # A full stop ends a sentence, but opens a number such as .5.
  return _SPACES.sub(' ', text).lstrip(_EDGE).rstrip(_EDGE + '.')


def squeezed(text: str) -> str:
  """`text` without white space, for comparing spellings."""
  return _SPACES.sub('', text)
