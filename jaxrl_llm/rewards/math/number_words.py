"""Numbers in English words: 'twelve', 'twenty-one', 'two hundred and five', '1.8 billion'."""

import fractions
import re

from jaxrl_llm.rewards.math import arithmetic

_SMALL = {
    'zero': 0, 'one': 1, 'two': 2, 'three': 3, 'four': 4, 'five': 5, 'six': 6, 'seven': 7,
    'eight': 8, 'nine': 9, 'ten': 10, 'eleven': 11, 'twelve': 12, 'thirteen': 13, 'fourteen': 14,
    'fifteen': 15, 'sixteen': 16, 'seventeen': 17, 'eighteen': 18, 'nineteen': 19,
}  # fmt: skip
_TENS = {
    'twenty': 20, 'thirty': 30, 'forty': 40, 'fifty': 50, 'sixty': 60, 'seventy': 70,
    'eighty': 80, 'ninety': 90,
}  # fmt: skip
_SCALES = {
    'dozen': 12, 'hundred': 100, 'thousand': 10**3, 'million': 10**6, 'billion': 10**9,
    'trillion': 10**12,
}  # fmt: skip
_SHARES = {
    'half': 2, 'halves': 2, 'third': 3, 'thirds': 3, 'quarter': 4, 'quarters': 4, 'fourth': 4,
    'fourths': 4, 'fifth': 5, 'fifths': 5, 'sixth': 6, 'sixths': 6, 'eighth': 8, 'eighths': 8,
    'tenth': 10, 'tenths': 10,
}  # fmt: skip
_SCALED = re.compile(rf'^(-?[0-9][0-9,.]{{0,40}}) ?({"|".join(_SCALES)})s?(?![a-z])')


def _cardinal(words: list[str]) -> int | None:
  total, group = 0, None
  for word in words:
    if word in _SMALL:
      if group is not None and (group % 10 or group % 100 // 10 == 1 or _SMALL[word] > 9
                                and group % 100):
        return None
      group = (group or 0) + _SMALL[word]

    elif word in _TENS:
      if group is not None and group % 100:
        return None
      group = (group or 0) + _TENS[word]
    elif word in _SCALES:
      group = (1 if group is None else group) * _SCALES[word]
      if _SCALES[word] >= 1000:
        total, group = total + group, None
    elif word != 'and':
      return None

  return None if group is None and not total else total + (group or 0)


def leading(text: str) -> tuple[fractions.Fraction, str] | None:
  """The number in words at the start of `text`, and the text after it.

  Args:
    text: cleaned text, such as 'twenty-one apples' or '2 million dollars'.

  Returns:
    (value, rest), or None if the text starts otherwise.
  """
  lowered = text.lower()
  if match := _SCALED.match(lowered):
    try:
      value = arithmetic.evaluate(match[1])
    except ValueError:
      return None
    return value * _SCALES[match[2]], text[match.end() :].strip()

  words = re.findall(r"[a-z]+|[^a-z\s-]+", lowered[:200])
  sign = -1 if words[:1] and words[0] in ('negative', 'minus') else 1
  words = words[1:] if sign < 0 else words
  if words[:1] == ['a'] and len(words) > 1 and words[1] in (*_SCALES, *_SHARES):
    words = ['one', *words[1:]]
    text = re.sub(r'^\s*[aA]\s', 'one ', text)

  for count in range(min(len(words), 12), 0, -1):
    value: fractions.Fraction | int | None = _cardinal(words[:count])
    if value is None and words[count - 1] in _SHARES and words[: count - 1] != ['and']:
      over = _cardinal(words[: count - 1]) if count > 1 else 1
      value = None if over is None else fractions.Fraction(over, _SHARES[words[count - 1]])
    if value is not None and words[count - 1] != 'and':
      pieces = re.split(r'[\s-]+', text.strip())
      rest = pieces[count + (sign < 0) :]
      return sign * fractions.Fraction(value), ' '.join(rest)
  return None
