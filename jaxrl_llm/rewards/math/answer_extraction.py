r"""Extracts the final answer from a response.

If the response has reasoning blocks, only the part after the last one is read; a response whose
last block is not closed has no answer (see `reasoning`). Code fences and backticks are dropped
first.

Markers, in order of precedence; of several of one kind the last is used:

1. `\boxed{...}` and `\fbox{...}` (see `answer_boxes`; boxes joined by nothing but 'and', 'or' or a
   comma are one list), GSM8K's `#### 72`, and `<answer>72</answer>`. The last one is used.
2. 'the (final) answer is ...', 'answer: ...', a line `A: 18`, 'the solutions are ...',
   'the correct option is ...', up to the end of the sentence (see `answer_statements`).
3. Bold text in the last line: '... there are **18** eggs.'

Without a marker, `extract` falls back, in this order, to: a response that as a whole is an
answer ('1/2', '(3, 4)', 'Thus, 5 apples.'); what follows the last '=', 'is', 'are' or ':' of the
last line, if that is an answer; a point or an interval with which that line ends; the last
formula between dollar signs there; the last number of the response, where one outside a remark in
parentheses comes first. `extract_marked` does not fall back.

Pass only the response, never the prompt: instructions contain the markers themselves ('put your
answer in \boxed{}', 'after ####').

All scans are linear, and the number of attempts at each marker is bounded.
"""

import re

from jaxrl_llm.rewards.math import (
  answer_boxes,
  answer_phrases,
  answer_statements,
  answer_text,
  answer_values,
  number_words,
  reasoning,
  units,
)

# Only the end of a longer response is read: the answer is there.
MAX_RESPONSE = 1_000_000
_MAX_TAGGED = 200_000
_MAX_ATTEMPTS = 64
_MAX_LINE = 600  # Of a longer last line only the end is read.

_HASHES = re.compile(r'####[ \t]*([^\n#]{1,2000})')
_HASH_ANSWER = re.compile(rf'^[-+$.\\(\[{{0-9{units.CURRENCY}]|^\S+$')
_GSM8K = re.compile(
    r'####[ \t]{0,5}(-?[ \t]?\$?[ \t]?-?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+))'
)

_BOLD = re.compile(r'\*\*([^*\n]{1,200})\*\*')
_LAST_NUMBER = re.compile(
    rf'(?:(?<![\w)}}\]])-[ \t]?)?[{units.CURRENCY}$]?(?<![0-9.])'
    r'(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?=\.[0-9]))'
    r'(?:\.[0-9]+)?(?:[/:][0-9]+)?(?:[ ]?\\?%)?'
)
_MATH_SPAN = re.compile(r'\$([^$\n]{1,400})\$|\\\(([^\n]{1,400}?)\\\)')
_TAIL = re.compile(r'(?:=|:| is| are| equals| of| get| have| gives| has| be)(?=[\s$])\s*|=')


def _hashes(text: str) -> tuple[int, str] | None:
  end = len(text)
  for _ in range(_MAX_ATTEMPTS):
    start = text.rfind('####', 0, end)
    if start < 0:
      return None
    match = _HASHES.match(text, start)
    if match and _HASH_ANSWER.match(match[1].strip()) and not match[1].rstrip().endswith(':'):
      return start, match[1].strip()
    end = start
  return None


def _tagged(text: str) -> tuple[int, str] | None:
  end = text.rfind('</answer>')
  start = text.rfind('<answer>', 0, max(end, 0))
  content = text[start + 8 : end].strip() if start >= 0 and end - start < _MAX_TAGGED else ''
  return (start, content) if content else None


def _last_line(text: str) -> str:
  return text.rstrip()[-4000:].rpartition('\n')[2].strip()


def _bold(text: str) -> str | None:
  """The last bold text of the last line, if it is an answer and no heading."""
  for match in reversed(_BOLD.findall(_last_line(text))):
    content = match.strip()
    if (answer_phrases.HAS_MATHEMATICS.search(content) and not content.endswith(':')
        and answer_phrases.is_answer(answer_phrases.without_aside(content))):
      return content
  return None


def _last_group(line: str) -> str | None:
  """A point or an interval with which the line ends."""
  if not line.endswith((')', ']')):
    return None
  depth = 0
  for index in range(len(line) - 1, -1, -1):
    depth += (line[index] in ')]}') - (line[index] in '([{')
    if depth == 0:
      group = line[index:]
      return group if ',' in group and answer_phrases.is_answer(group) else None
  return None


def _prepared(response: str) -> str:
  """The final part of a response, without code fences and backticks."""
  return answer_phrases.without_fences(reasoning.final_part(response[-MAX_RESPONSE:]))


def _marked(text: str) -> str | None:
  candidates = answer_boxes.last(text), _hashes(text), _tagged(text)
  marked = [candidate for candidate in candidates if candidate]
  if marked:
    return max(marked)[1]
  return answer_statements.announced(text) or _bold(text)


def _is_number_in_words(text: str) -> bool:
  """'fifteen', 'twenty-five dollars'."""
  number = number_words.leading(text.strip(' .!'))
  if number is None:
    return False
  _, rest = number
  return not rest or bool(re.fullmatch(r'[a-z]{3,20}', rest))


def _ends_in_number_word(text: str) -> bool:
  """Returns whether a sentence such as 'the sum is fifteen' ends in a number in words."""
  return not answer_phrases.HAS_MATHEMATICS.search(text) and any(
      _is_number_in_words(text[match.end() :]) for match in _TAIL.finditer(text[-_MAX_LINE:]))


def _unmarked(text: str) -> str | None:
  """Extracts an answer without a marker, by the fallbacks in the module docstring."""
  whole = answer_phrases.without_aside(answer_phrases.without_opening(text.strip()))
  if len(whole) <= _MAX_LINE and '\n' not in whole:
    whole = answer_phrases.without_asides_in_line(whole)
  if answer_phrases.is_answer(whole) and not _ends_in_number_word(whole):
    return whole

  line = answer_phrases.without_opening(re.sub(r'[.!]$', '', _last_line(text))[-_MAX_LINE:])
  line = answer_phrases.without_asides_in_line(line)
  tails = [answer_phrases.without_aside(line[match.end() :]) for match in _TAIL.finditer(line)]
  for tail in [*reversed(tails[-4:]), answer_phrases.without_aside(line)]:
    has_number = answer_phrases.HAS_MATHEMATICS.search(tail) or _is_number_in_words(tail)
    if has_number and answer_phrases.is_answer(tail):
      return tail

  if (group := _last_group(line)) is not None:
    return group
  spans = [first or second for first, second in _MATH_SPAN.findall(line)]
  if spans and answer_values.is_expression(answer_text.clean(spans[-1])):
    return spans[-1]
  return _last_number(line) or _last_number(text)


def extract_marked(response: str) -> str | None:
  """Extracts the marked answer, or returns None; see the module docstring."""
  answer = _marked(_prepared(response))
  return None if answer is None else answer_phrases.without_aside(answer)


def extract_gsm8k(response: str) -> str | None:
  """The number right after the last `####`, and nothing else; None if there is none."""
  numbers = _GSM8K.findall(_prepared(response))
  return numbers[-1] if numbers else None


def _last_number(text: str) -> str | None:
  number = None
  for match in _LAST_NUMBER.finditer(text[-20_000:]):
    number = match[0]
  return number


def extract(response: str) -> str | None:
  """Extracts the final answer: the marked one, else by the fallbacks in the module docstring.

  Args:
    response: the model's response, without the prompt.

  Returns:
    The text of the answer, or None if the response has no marker and no number.
  """
  text = _prepared(response)
  answer = _marked(text)
  return _unmarked(text) if answer is None else answer_phrases.without_aside(answer)
