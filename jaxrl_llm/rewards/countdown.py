r"""Countdown: reach a target with each of the given numbers exactly once.

Typography is free: `**Answer:** 93 − (100 − 30).` and `$\boxed{93 - (100 - 30)}$` are read like
`Answer: 93-(100-30)` (see `expression_text`). An expression is read by a parser of our own
(numbers, + - * / and parentheses, nothing else) and computed exactly in fractions. The cost is
bounded by the length of the text: a few hundred characters hold at most that many operations on
numbers of at most that many digits.
"""

import re
from fractions import Fraction
from typing import Any

import numpy as np

from jaxrl_llm.rewards import expression_text
from jaxrl_llm.rewards.math import answer_boxes, reasoning

MAX_LENGTH = 256  # Characters of an expression; longer ones score 0.
MAX_DEPTH = 16  # Nested parentheses and signs.
_MAX_DIGITS = 9  # Digits of one number.
_TOKEN = re.compile(r'[ \t]*([0-9]+|[-+*/()])', re.ASCII)
_TAGS = ('<answer>', '</answer>')
_BLANK = ' \t\r\n'
MARK = 'Answer:'  # May precede an expression.
# The same in bold or italics, which end before the colon, after it, or after the expression.
_MARK = re.compile(
    r'(?P<opens>(?<![*_])(?:\*{1,3}|_{1,3}))?Answer(?P<ends>[*_]{1,3})? ?[:：]'
    r'(?P<ends_late>[*_]{1,3}| ?\})?'
)
_MAX_RESPONSE = 1_000_000  # Of a longer response the end counts.
_MAX_TYPESET = 4 * MAX_LENGTH  # Characters of an expression as it was typeset.
_MAX_MARKUP_LINES = 8
_ALLOWED = re.compile(r'[-+*/()=0-9 \t]*', re.ASCII)


def countdown(
    prompts: list[str],
    responses: list[str],
    truncated: np.ndarray,
    examples: list[dict[str, Any]],
) -> np.ndarray:
  """Scores responses by whether they solve their problem (a `types.RewardFn`).

  r_i = 1 if the response ended by itself, its expression uses each of the problem's numbers
  exactly once and no other, and its value is the target; else 0. `extract_expression` selects the
  part that is graded; it must be an expression, which `= target` may follow.

  Args:
    prompts: n prompts; unused.
    responses: n decoded responses.
    truncated: bool [n]; True where the length limit ended the response.
    examples: n examples with the keys 'numbers' (list of int) and 'target' (int).

  Returns:
    float32 [n] of zeros and ones.
  """
  del prompts
  if not len(responses) == len(truncated) == len(examples):
    raise ValueError(
        'countdown needs equally many responses, flags and examples, got '
        f'{len(responses)}, {len(truncated)} and {len(examples)}'
    )

  scores = [
      not cut and is_solution(response, example['numbers'], example['target'])
      for response, cut, example in zip(responses, truncated, examples)
  ]
  return np.array(scores, np.float32)


def is_solution(response: str, numbers: list[int], target: int) -> bool:
  """Returns whether `response` reaches `target` with each of `numbers` exactly once."""
  text = extract_expression(response)
  if text is None:
    return False
  sides = text.split('=')
  if len(sides) > 2 or (len(sides) == 2 and not _is_number(sides[1], target)):
    return False
  try:
    value, used = evaluate(sides[0])
  except ValueError:
    return False
  return value == target and sorted(used) == sorted(numbers)


def extract_expression(response: str) -> str | None:
  r"""Extracts the part of a response that is graded; the rest of it is free text.

  It is the content of the last <answer></answer>; without these tags the first line with
  text after the last 'Answer:'; without that the line with the last \boxed{}; without that the
  last line with text. In a part with words around a box, the box is used. A reasoning block never
  holds the answer (see `reasoning`).

  Args:
    response: any text.

  Returns:
    The part in plain typography, or None if a tag is unmatched or the part is longer than
    `MAX_LENGTH`.
  """
  part = _part(reasoning.final_part(response[-_MAX_RESPONSE:]))
  if part is None or len(part) > _MAX_TYPESET:
    return None
  text = expression_text.plain(part)
  if not _ALLOWED.fullmatch(text) and (boxes := answer_boxes.outermost(part)):
    text = expression_text.plain(boxes[0][2])
  return text if len(text) <= MAX_LENGTH else None


def _part(response: str) -> str | None:
  """Extracts the part of a response as it was typeset; None if a tag is unmatched."""
  start, end = response.rfind(_TAGS[0]), response.rfind(_TAGS[1])
  if start >= 0 or end >= 0:
    start = response.rfind(_TAGS[0], 0, max(end, 0))
    return response[start + len(_TAGS[0]) : end] if start >= 0 else None

  mark = None
  for match in _MARK.finditer(response):
    mark = match
  if mark:
    rest = response[mark.end() :].strip(_BLANK)
    still_open = mark['opens'] if not (mark['ends'] or mark['ends_late']) else None
    for _ in range(_MAX_MARKUP_LINES):
      line, _, rest = rest.partition('\n')
      if not rest or len(line) > _MAX_TYPESET or expression_text.plain(line):
        return line.rstrip(_BLANK).removesuffix(still_open) if still_open else line
    return ''

  if boxes := answer_boxes.outermost(response):
    first = response.rfind('\n', 0, boxes[0][0]) + 1
    last = response.find('\n', boxes[0][1])
    return response[first : last if last >= 0 else len(response)]

  before = response
  for _ in range(_MAX_MARKUP_LINES):
    before, _, line = before.rstrip(_BLANK).rpartition('\n')
    if not before or len(line) > _MAX_TYPESET or expression_text.plain(line):
      return line
  return ''


def _is_number(text: str, target: int) -> bool:
  """Returns whether `text` is `target`, written as an integer."""
  text = text.strip(' \t')
  return re.fullmatch(r'-?[0-9]{1,9}', text, re.ASCII) is not None and int(text) == target


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
  """The exact value of an arithmetic expression, and the numbers in it.

  Products and quotients bind more strongly than sums and differences, equals from
  left to right; an operand may have a sign.

  Args:
    expression: at most `MAX_LENGTH` characters.

  Returns:
    (its value, the integers in their order).

  Raises:
    ValueError: no expression, too long, too deep, a number of more than nine
      digits, or a division by zero.
  """
  if len(expression) > MAX_LENGTH:
    raise ValueError(
        f'an expression must have at most {MAX_LENGTH} characters, got {len(expression)}'
    )
  parser = _Parser(_tokenize(expression))
  value = parser.sum(0)
  if parser.peek() is not None:
    raise ValueError(f'unexpected {parser.peek()!r} after the expression')
  return value, parser.used


def _tokenize(expression: str) -> list[str]:
  """Numbers and signs of `expression`."""
  tokens, position = [], 0
  expression = expression.rstrip(' \t')
  while position < len(expression):
    match = _TOKEN.match(expression, position)
    if match is None:
      raise ValueError(f'unexpected character {expression[position:].lstrip()[0]!r}')
    tokens.append(match.group(1))
    position = match.end()
  return tokens


class _Parser:
  """Recursive descent parser that evaluates as it parses."""

  def __init__(self, tokens: list[str]):
    self.tokens = tokens
    self.position = 0
    self.used: list[int] = []

  def peek(self) -> str | None:
    """The next token, or None at the end."""
    return self.tokens[self.position] if self.position < len(self.tokens) else None

  def take(self) -> str:
    """Consumes the next token."""
    token = self.peek()
    if token is None:
      raise ValueError('the expression ends early')
    self.position += 1
    return token

  def sum(self, depth: int) -> Fraction:
    """Products, added and subtracted."""
    value = self.product(depth)
    while self.peek() in ('+', '-'):
      sign = self.take()
      other = self.product(depth)
      value = value + other if sign == '+' else value - other
    return value

  def product(self, depth: int) -> Fraction:
    """Operands, multiplied and divided."""
    value = self.operand(depth)
    while self.peek() in ('*', '/'):
      sign = self.take()
      other = self.operand(depth)
      if sign == '/' and other == 0:
        raise ValueError('division by zero')
      value = value * other if sign == '*' else value / other
    return value

  def operand(self, depth: int) -> Fraction:
    """A number, a sign with an operand, or a sum in parentheses."""
    if depth > MAX_DEPTH:
      raise ValueError(f'nested deeper than {MAX_DEPTH}')
    token = self.take()
    if token in ('+', '-'):
      value = self.operand(depth + 1)
      return value if token == '+' else -value

    if token == '(':
      value = self.sum(depth + 1)
      if self.take() != ')':
        raise ValueError('a parenthesis is not closed')
      return value

    if not token.isdigit():
      raise ValueError(f'unexpected {token!r}')
    if len(token) > _MAX_DIGITS:
      raise ValueError(f'a number must have at most {_MAX_DIGITS} digits, got {len(token)}')
    self.used.append(int(token))
    return Fraction(int(token))
