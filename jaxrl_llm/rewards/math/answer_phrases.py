"""Separates an answer from the words around it: 'Thus, 15.', '15 (12 + 3)', 'a sentence'."""

import itertools
import re

from jaxrl_llm.rewards.math import answer_text, answer_values, equivalence, quantities, units

_MAX_WHOLE = 400
_MAX_ASIDES = 8
HAS_MATHEMATICS = re.compile(r'[0-9\\]')

# A fence's language, if a line of content follows; inline code and other fences.
_FENCE_WITH_LANGUAGE = re.compile(
    r'(?:```|~~~)[ \t]{0,9}[A-Za-z][\w+#.-]{0,20}[ \t]{0,9}\n(?!\s{0,9}(?:```|~~~))'
)
_FENCE = re.compile(r'`+|~~~')
_CONNECTIVE = (
    r'(?:therefore|thus|hence|so|then|finally|consequently|accordingly|ergo|overall|altogether'
    r'|indeed|clearly|now|well|okay|ok|actually|as a result|as a consequence|in conclusion'
    r'|to conclude|to summarize|in summary|to sum up|in total|in all|in short|in the end|at last'
    r'|at the end|for this reason|that is|that means|this means|it follows|we conclude|and|but'
    r'|i\.e\.|lastly|eventually|conclusion|simply|just)'
)
_OPENING = re.compile(
    rf'[\s,:]{{0,9}}{_CONNECTIVE}(?: that)?(?![\w-])[\s,:]{{0,9}}'
    r'|[\s,]{0,9}(?:\\therefore|∴)(?![a-zA-Z])[\s,:]{0,9}',
    re.IGNORECASE,
)
_ASIDE = re.compile(
    r'([^()]{1,200}?)(?:\s|~|\\[ ,;:]){1,5}(?:\\left)?\(([^()]{1,300})\)([^()]{0,100})')
_TEXT = re.compile(r'\\(?:text|textrm|mathrm|mbox) ?\{([^{}]{0,200})\}')
_REMARK_IN_TEXT = re.compile(r'\\(?:text|textrm|mathrm|mbox) ?\{[^{}()]{0,20}\(')
_ABOUT_NUMBER = re.compile(
    r'\s*(?:or )?(?:(?:about|approximately|approx\.?|roughly|around|nearly)\s|≈|\\approx)'
    r'\s*\\?\$?\s*-?\.?[0-9]', re.IGNORECASE
)
_BRACKETED_REMARK = re.compile(r' ?\[([a-zA-Z][a-zA-Z ]{0,80})\]$')  # '15 [see above]'
_ASIDE_IN_LINE = re.compile(
    r'(?<=[\w.%}$*])\s{1,3}\(([^()]{1,300})\)'
    r'|(?<=[)\]])\s{1,3}\(([^()]{0,100}[a-zA-Z]{2} [a-zA-Z]{2}[^()]{0,200})\)'
)
# In parentheses these change what the number means, or offer another answer.
_QUALIFIER = re.compile(
    r'.{0,300}(?<![a-zA-Z])(?:p?b?mod(?:ulo)?|base|or|also|another|either|alternatively|otherwise'
    r'|instead|else|if|unless|could|can|may|might|maybe|perhaps|possibly|possible|probably|unsure'
    r'|guess)(?![a-zA-Z])|\s*(?:wrong|incorrect|false|untrue|rejected|no)\b'
    r'|\s*in (?:hundreds|thousands|millions|billions)'
    r'|\s*not (?:sure|certain|correct|right|exact|really|quite)\b',
    re.IGNORECASE | re.DOTALL,
)
_SCALE = re.compile(
    r'\s*(?:percent|%|hundred|thousand|million|billion|trillion|dozen|[aApP]\.?[mM]\.?)\s*'
)
_REMARK = re.compile(r'=|≈|\\approx|\bi\.e\.|\be\.g\.|(?<![\\a-zA-Z])[a-zA-Z]{3,}')
_CURRENCY = re.compile(rf'\\?\$|[{units.CURRENCY}]')
_INLINE_MATH = re.compile(r'\\[()]')
_NUMBER = re.compile(r'[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?%?')
# A variable or a function, to which parentheses are an argument. A to E may be choices.
_FUNCTION_AT_END = re.compile(
    r'(?:^|[^a-zA-Z])(?:(?<=[^a-zA-Z])[A-Z]|[a-zF-Z]|sin|cos|tan|sec|csc|cot|log|ln|exp|min|max'
    r'|gcd|lcm|det|arcsin|arccos|arctan)$'
)


def _leaves(value) -> list:
  """The parts of a value that have no parts themselves."""
  if isinstance(value, (answer_values.Items, answer_values.Braces, answer_values.Bracket,
                        answer_values.Either, answer_values.Union)):
    return [leaf for part in value.values for leaf in _leaves(part)]
  if isinstance(value, answer_values.Relation):
    return [value if value.last is None else value.last, answer_values.Text(value.source)] if (
        not answer_values.is_expression(value.source)) else [value]
  return [value]


def _is_brief(value) -> bool:
  if isinstance(value, answer_values.Text):
    return len(value.text.split()) <= 4 and not (
        ' ' in value.text.strip() and HAS_MATHEMATICS.search(value.text))
  return True


def is_brief(text: str) -> bool:
  """Returns whether each part of the text is mathematics or at most four words."""
  value = answer_values.parse(answer_text.clean(text[: answer_text.MAX_CHARACTERS]))
  return all(map(_is_brief, _leaves(value)))


def is_answer(text: str) -> bool:
  """Returns whether the text as a whole reads as an answer, as opposed to a sentence.

  A list of words and numbers, such as 'Thus, 15', is a sentence.
  """
  if not text.strip() or len(text) > _MAX_WHOLE:
    return False
  value = answer_values.parse(answer_text.clean(text))
  if isinstance(value, answer_values.Items):
    words = [isinstance(part, answer_values.Text) for part in value.values]
    if any(words) and not all(words):
      return False
  return all(_is_brief(part) for part in _leaves(value))


def without_fences(text: str) -> str:
  """The text without code fences, their languages, and backticks."""
  if '`' in text or '~~~' in text:
    text = _FENCE.sub('', _FENCE_WITH_LANGUAGE.sub('\n', text))
  return text


def without_opening(text: str) -> str:
  """The text after words that open a sentence: '15.' of 'Thus, 15.'."""
  for _ in range(3):
    match = _OPENING.match(text)
    if match is None or match.end() == len(text):
      break
    text = text[match.end() :]
  return text


def _number(text: str) -> quantities.Quantity | None:
  value = answer_values.parse(answer_text.clean(text))
  if isinstance(value, answer_values.Assignment):
    value = value.value
  return value if isinstance(value, quantities.Quantity) else None


def _same(left: str, right: str) -> bool:
  """Returns whether two numbers are equal, ignoring their currency."""
  try:
    return equivalence.compare(*(_CURRENCY.sub('', text) for text in (left, right)))
  except equivalence.Undecided:
    return False


def without_aside(text: str) -> str:
  r"""The text without a remark in parentheses after its number.

  '15 (12 + 3)' and '15 apples (3 of them red)' lose the remark; '15 (cm)' is 15 cm. Parentheses
  stay if they touch the text before them, as in f(2), or change the value: '5 (mod 7)',
  '1011 (base 2)', '15 (or 16)', '3 (x + 1)', '5 (2 + 1)'.
  """
  if len(text) > 2 * _MAX_WHOLE:
    return text
  stripped = _BRACKETED_REMARK.sub(r' (\1)', text.strip())
  if _REMARK_IN_TEXT.search(stripped):
    stripped = _TEXT.sub(r'\1', stripped)

  match = _ASIDE.fullmatch(_INLINE_MATH.sub('$', stripped))
  if match is None:
    return text

  main, aside, rest = match[1].strip(), match[2], match[3].strip(' .,;:!$*')
  denied = aside.strip().removeprefix('not ')
  if denied != aside.strip() and _same(main, denied):
    return text
  if not main or _FUNCTION_AT_END.search(main) or _QUALIFIER.match(aside):
    return text
  if not rest and _ABOUT_NUMBER.match(aside):
    return stripped  # '5/13 (about 0.385)': whether that is a rounding is decided later.

  number = _number(main)
  if rest and (number is None or not re.fullmatch(r'[a-zA-Z ]{1,60}', rest)):
    return text

  unit = units.parse(answer_text.clean(aside))
  if not rest and (_SCALE.fullmatch(aside) or (unit is not None and unit.readings)):
    return f'{main} {aside.strip()}'
  if _REMARK.search(aside) or _same(main, aside):
    return f'{main} {rest}'.strip()
  return text


def without_asides_in_line(line: str) -> str:
  """A line of prose without the remarks in parentheses, as `without_aside` knows them."""
  if len(line) > 2 * _MAX_WHOLE:
    return line
  pieces, end = [], 0
  for match in itertools.islice(_ASIDE_IN_LINE.finditer(line), _MAX_ASIDES):
    before, aside = line[end : match.start()], match[1] or match[2]
    numbers = _NUMBER.findall(before)
    is_remark = _REMARK.search(aside) or (numbers and _same(numbers[-1], aside))
    if _ABOUT_NUMBER.match(aside) and not line[match.end() :].strip(' .!$*'):
      is_remark = False
    if is_remark and not _QUALIFIER.match(aside) and not _FUNCTION_AT_END.search(before):
      pieces.append(before)
      end = match.end()
  return ''.join(pieces) + line[end:]
