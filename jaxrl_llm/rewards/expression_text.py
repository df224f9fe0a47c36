r"""Converts an arithmetic expression as people and models typeset it to plain ASCII.

'**(2 × 3) + 4 = 10.**' and `$\boxed{(2 \times 3) + 4 = 10}$` become '(2 * 3) + 4 = 10'. Only the
typography changes: no digit, operator or parenthesis is added except around a fraction and a box,
and no replacement joins two numbers.
"""

import re

from jaxrl_llm.rewards.math import answer_boxes

_CHARACTERS = str.maketrans({
    '×': '*', '⋅': '*', '·': '*', '∙': '*', '∗': '*', '＊': '*', '✕': '*', '✖': '*',
    '÷': '/', '⁄': '/', '∕': '/', '／': '/', '➗': '/',
    '−': '-', '–': '-', '—': '-', '‐': '-', '‑': '-', '﹣': '-', '－': '-', '➖': '-',
    '“': '"', '”': '"', '‘': "'", '’': "'", '＋': '+', '➕': '+', '（': '(', '）': ')', '＝': '=',
    '\u00a0': ' ', '\u2002': ' ', '\u2003': ' ', '\u2007': ' ', '\u2009': ' ', '\u200a': ' ',
    '\u200b': ' ', '\u202f': ' ', '\u2060': ' ', '\ufeff': ' ', '\ufe0f': ' ', '$': ' ', '~': ' ',
})  # fmt: skip
_COMMANDS = [
    (re.compile(r'\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])'), ''),
    (re.compile(r'\\(?:times|cdot|ast)(?![a-zA-Z])'), '*'),
    (re.compile(r'\\div(?![a-zA-Z])'), '/'),
    (re.compile(r'\\[()\[\],;:! ]|\\q?quad(?![a-zA-Z])|\\displaystyle(?![a-zA-Z])'), ' '),
    (re.compile(r'(?<=[0-9)])[ \t]*[xX][ \t]*(?=[0-9(])'), '*'),
]
_FRACTION = re.compile(r'\\[dt]?frac ?\{([^{}]*)\} ?\{([^{}]*)\}')
_FENCE_LINE = re.compile(r'^(?:```|~~~)[ \t]*[A-Za-z]*$')
_EMPHASIS = re.compile(r'(\*{1,3}|_{1,3}|`{1,3}|"|\')([^*_`].*)\1', re.DOTALL)
_BLANK = ' \t\r\n'
_MAX_NESTING = 8  # Fractions in fractions, boxes in boxes.


def _unboxed(text: str) -> str:
  """The text with each box replaced by its content, in parentheses if a part is boxed."""
  for _ in range(_MAX_NESTING):
    boxes = answer_boxes.outermost(text)
    if not boxes:
      break
    start, end, content = boxes[0]
    around = text[:start].rpartition('=')[2] + text[end:].partition('=')[0]
    is_part = around.strip(_BLANK + '.*_`$\\()[]')
    text = text[:start] + (f'({content})' if is_part else f' {content} ') + text[end:]
  return text


def _without_emphasis(text: str) -> str:
  """The text without blanks, quotes, and pairs of Markdown's asterisks and backticks."""
  text = text.strip(_BLANK)
  while match := _EMPHASIS.fullmatch(text):
    text = match[2].strip(_BLANK)
  return text


def plain(text: str) -> str:
  """An expression in ASCII, without markup around it and without a final full stop.

  Args:
    text: one expression, or anything else: what is not understood is left for the parser to reject.

  Returns:
    The text, '' if it was only markup.
  """
  if _FENCE_LINE.match(text.strip()):
    return ''
  text = _unboxed(text).translate(_CHARACTERS)
  for pattern, replacement in _COMMANDS:
    text = pattern.sub(replacement, text)
  for _ in range(_MAX_NESTING):
    text, count = _FRACTION.subn(r'((\1)/(\2))', text)
    if not count:
      break

  text = _without_emphasis(text)
  if text.endswith('.'):
    text = _without_emphasis(text[:-1])
  return '='.join(map(_without_emphasis, text.split('=')))
