"""Answers in words: whether two are the same, and the number in a few words."""

import re

from jaxrl_llm.rewards.math import answer_text, answer_values, hedges, quantities, units
from jaxrl_llm.rewards.math.quantities import Quantity

_SYNONYMS = {
    'nosolution': 'no solution', 'nosolutions': 'no solution', 'emptyset': 'no solution',
    'solutiondoesnotexist': 'no solution', 'nosolutionexists': 'no solution',
    'thereisnosolution': 'no solution', 'therearenosolutions': 'no solution',
    'doesnotexist': 'dne', 'infinite': 'infinitely many', 'infinitelymany': 'infinitely many',
    'infinitelymanysolutions': 'infinitely many',
}  # fmt: skip
# Not compared in words: spaces, quotes, brackets, and the punctuation outside numbers.
_NOT_WORDS = re.compile(r'[\s"\'`$*_{}()\[\]!?✓✔✅&#@|\\~]+|(?<![0-9])[,.:;]+|[,.:;]+(?![0-9])')
_WORD = re.compile(r'[^\W\d_]+')
_MATHEMATICAL = re.compile(r'[0-9+*/^=<>\\]')
_LEADING_WORDS = re.compile(r'^(?:the|a|an|option|choice|answer|letter|it is|it\'s|is) +')
_NUMBER_IN_PROSE = re.compile(
    rf'(?<![^\s(:])(?:(?<![\w)}}] )-)?[{units.CURRENCY}]? ?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)'
    r'(?:/[0-9]+)?%?(?![\w/^=])'
)


def _canonical(text: str) -> str:
  """The words without case, articles, spaces and punctuation."""
  lowered = _LEADING_WORDS.sub('', text.casefold().strip())
  if _MATHEMATICAL.search(text):  # One or two letters are names there.
    lowered = _WORD.sub(lambda match: match[0] if len(match[0]) < 3 else match[0].casefold(),
                        _LEADING_WORDS.sub('', text.strip()))
  word = _NOT_WORDS.sub('', lowered).strip('.')
  return _SYNONYMS.get(word, word)


_SHORT_WORDS = frozenset([
    'yes', 'no', 'odd', 'even', 'true', 'none', 'dne', 'zero', 'one', 'two', 'four', 'five', 'six',
    'nine', 'ten', 'red', 'blue', 'tan', 'mon', 'tue', 'wed', 'thu', 'fri', 'sat', 'sun', 'jan',
    'feb', 'mar', 'apr', 'may', 'jun', 'jul', 'aug', 'sep', 'oct', 'nov', 'dec', 'am', 'pm', 'sss',
    'sas', 'asa', 'aas',
])  # fmt: skip


def _is_letters_in_two_cases(left: str, right: str) -> bool:
  """Returns whether two texts are names of points or a product: ABC and abc."""
  return (left.isascii() and left.isalpha() and len(left) < 5 and {left, right} == {
      left.upper(), left.lower()} and len({left, right}) == 2 and left.lower() not in _SHORT_WORDS)


def same(left: str, right: str) -> bool:
  """Returns whether two texts are the same words."""
  if answer_text.squeezed(left) == answer_text.squeezed(right):
    return True
  if _is_letters_in_two_cases(left.strip(), right.strip()):
    return False
  canonical = _canonical(left)
  return bool(canonical) and canonical == _canonical(right)


_NAMED_VALUE = re.compile(
    r'^(?:the )?(?:total|area|volume|perimeter|sum|product|difference|probability|remainder|length'
    r'|distance|speed|cost|price|average|mean|median|radius|diameter|slope|angle)(?: is\b:?|:)'
    r' ?(?=[-+\\$(.0-9])(?!.*(?:[,;]| and | or ))', re.IGNORECASE
)


def without_name(text: str) -> str:
  r"""The value of 'the area is 15 cm^2' and 'Total: \frac{1}{2}'; other texts as they are."""
  return _NAMED_VALUE.sub('', text)


def number_in_prose(text: str) -> Quantity | None:
  """The one number in a few plain words ('the number 18').

  None if there are several numbers, a character beyond ASCII, or words that make the number a
  bound, a guess or its opposite.
  """
  if not re.sub(f'[{units.CURRENCY}]', '', text).isascii():
    return None
  if ' ' not in text or not answer_values.is_plain_prose(text) or hedges.around_number(text):
    return None
  match = _NUMBER_IN_PROSE.search(text)
  if match is None or re.search('[0-9]', text[: match.start()] + text[match.end() :]):
    return None
  return quantities.parse(match[0].strip())
