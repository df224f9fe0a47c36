r"""Finds the final answer in a response.

Markers, in the order in which they are believed; of several of one kind the last counts:

1. `\boxed{...}` and `\fbox{...}` (boxes joined by nothing but 'and', 'or' or a comma are one
   list), GSM8K's `#### 72`, and `<answer>72</answer>`. The one that stands last counts.
2. 'the (final) answer is ...', 'answer: ...', a line `A: 18`, 'the solutions are ...',
   'the correct option is ...', up to the end of the sentence.
3. Bold text in the last line: '... there are **18** eggs.'

Without a marker, `extract` falls back, in this order, to: a response that as a whole is an
answer ('1/2', '(3, 4)', '5 apples'); what stands behind the last '=', 'is', 'are' or ':' of the
last line, if that is an answer; a point or an interval with which that line ends; the last
formula between dollar signs there; the last number of the response. `extract_marked` does not
fall back.

Only the response may be given, never the prompt: instructions contain the very markers
('put your answer in \boxed{}', 'after ####') that are looked for.

All scans are linear, and the number of attempts at each marker is bounded.
"""

import re

from jaxrl_llm.rewards import answer_text, answer_values, number_words, units

# Of a longer response the end counts: that is where the answer stands.
MAX_RESPONSE = 1_000_000
_MAX_BOX = 200_000
_MAX_ATTEMPTS = 64
_SCAN_BUDGET = 2_000_000
_MAX_WHOLE = 400

_BRACE = re.compile(r'\\.|[{}]', re.DOTALL)
_BOX = re.compile(r'\\f?box(?:ed)?(?![a-zA-Z])\s{0,3}')
_JOIN = re.compile(r'^[\s$]*(?:,|;|and|or|,\s?and|,\s?or|\\text\{ ?(?:and|or) ?\})?[\s$]*$')
_HASHES = re.compile(r'####[ \t]*([^\n#]{1,2000})')
_HASH_ANSWER = re.compile(rf'^[-+$.\\(\[{{0-9{units.CURRENCY}]|^\S+$')
_GSM8K = re.compile(
    r'####[ \t]{0,5}(-?[ \t]?\$?[ \t]?-?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+))'
)

_KEYWORD = re.compile(
    r'\b(?:answers?|ans|solutions?|results?|options?|choices?)\b'
    r'|(?<=\n)[ \t*]*A(?=:)|^[ \t*]*A(?=:)',
    re.IGNORECASE,
)
_VERB = (r'(?:is|are|was|be|becomes|equals|must be|should be|will be|would be|comes out to(?: be)?)'
         r'(?: (?:therefore|thus|then|simply|just|equal to|given by|exactly))?')
_BEHIND_ANSWER = re.compile(
    r'(?:\*\*)?(?: (?:to|for|of|in)\b[^.\n:=]{0,100}?)?(?:\*\*)?'
    rf'[ \t]*(?:(?::|=|-(?= ))(?:\*\*)?[ \t]*(?:{_VERB}\b)?'
    rf'|(?:,[^.\n,]{{0,40}},)? {_VERB}\b(?:[ \t]*:)?)',
    re.IGNORECASE,
)
_BEHIND_SOLUTION = re.compile(
    rf'(?: (?:to|for|of|set)\b[^.\n:=]{{0,100}}?)? {_VERB}\b(?:[ \t]*:)?', re.IGNORECASE
)
_SENTENCE_END = re.compile(r'(?<![ap]\.m)(?<!\b[ap])[.!?](?=[\s*"\')]|$)|\n')
_CLAUSE = re.compile(
    r',?\s{1,9}(?:because|since|which|so|where|but|therefore|thus|hence|i hope|given that'
    r'|as (?:the|we|it)|when|if|after|due to)\b'
    r'|,\s{1,9}(?:as|not|i|we|the|it|this|that|with)\b|;\s',
    re.IGNORECASE,
)
_BOLD = re.compile(r'\*\*([^*\n]{1,200})\*\*')
_LAST_NUMBER = re.compile(
    rf'(?:(?<![\w)}}\]])-[ \t]?)?[{units.CURRENCY}$]?(?<![0-9.])'
    r'(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?=\.[0-9]))'
    r'(?:\.[0-9]+)?(?:[/:][0-9]+)?(?:[ ]?\\?%)?'
)
_MATH_SPAN = re.compile(r'\$([^$\n]{1,400})\$|\\\(([^\n]{1,400}?)\\\)')
_TAIL = re.compile(r'(?:=|:| is| are| equals| of| get| have| gives| be)(?=[\s$])\s*|=')
_HAS_MATHEMATICS = re.compile(r'[0-9\\]')


def _closing_brace(text: str, left: int, limit: int) -> int | None:
  """Where the brace at `left` closes, looking no further than `limit`."""
  depth = 0
  for match in _BRACE.finditer(text, left, limit):
    if match[0] == '{':
      depth += 1
    elif match[0] == '}':
      depth -= 1
      if depth == 0:
        return match.start()
  return None


def _boxes(text: str) -> list[tuple[int, int, str]]:
  """The boxes that may matter, last first, as (start, end, content)."""
  found, end, budget = [], len(text), _SCAN_BUDGET
  for _ in range(_MAX_ATTEMPTS):
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
        found.append((start, match.end() + word.end(), word[0]))
      continue
    limit = min(len(text), match.end() + _MAX_BOX)
    close = _closing_brace(text, match.end(), limit)
    budget -= (close or limit) - match.end()
    if close is not None:
      found.append((start, close + 1, text[match.end() + 1 : close].strip()))
  return [box for box in found if box[2]]


def _boxed(text: str) -> tuple[int, str] | None:
  """(position, content) of the last box, or of the last few that are joined to a list."""
  boxes = _boxes(text)
  if not boxes:
    return None
  contents = [boxes[0][2]]
  for later, earlier in zip(boxes, boxes[1:]):
    between = text[earlier[1] : later[0]]
    if len(between) > 30 or '\n' in between or not _JOIN.match(between):
      break
    contents.append(earlier[2])
  return boxes[0][0], ', '.join(dict.fromkeys(reversed(contents)))


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
  content = text[start + 8 : end].strip() if start >= 0 and end - start < _MAX_BOX else ''
  return (start, content) if content else None


def is_answer(text: str) -> bool:
  """Whether the text as a whole reads as an answer, as opposed to a sentence."""
  if not text.strip() or len(text) > _MAX_WHOLE:
    return False
  value = answer_values.parse(answer_text.clean(text))
  return all(_is_brief(part) for part in _leaves(value))


def _leaves(value) -> list:
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
        ' ' in value.text.strip() and _HAS_MATHEMATICS.search(value.text))
  return True


def _statement(text: str) -> str:
  """What a marker announces: up to the end of its sentence, without an explanation."""
  text = text[:4000]
  lines = text.lstrip(' \t').split('\n')
  if not lines[0].strip(' *:'):
    text = text.lstrip(' \t\n*:')
  stripped = text.strip()
  for opening, ending in (('$$', '$$'), (r'\[', r'\]'), (r'\begin', None)):
    if stripped.startswith(opening):
      if ending is None:
        close = max(stripped.find('}', stripped.find(r'\end')), 0)
        return stripped[: close + 1] or stripped
      close = stripped.find(ending, len(opening))
      return stripped[len(opening) : close] if close > 0 else stripped
  end = _SENTENCE_END.search(text)
  text = text[: end.start()] if end else text
  clause = _CLAUSE.search(text)
  if clause and text[: clause.start()].strip(' *:'):
    text = text[: clause.start()]
  return text.strip()


def _announced(text: str) -> str | None:
  """What stands behind the last 'answer is', 'answer:' or `A:`."""
  keywords = list(_KEYWORD.finditer(text[-100_000:]))[-_MAX_ATTEMPTS:]
  text = text[-100_000:]
  for wanted in (_BEHIND_ANSWER, _BEHIND_SOLUTION):
    for keyword in reversed(keywords):
      is_solution = keyword[0].lower().startswith(('sol', 'res', 'opt', 'cho'))
      if is_solution != (wanted is _BEHIND_SOLUTION):
        continue
      match = wanted.match(text, keyword.end(), keyword.end() + 260)
      if match is None:
        continue
      statement = _statement(text[match.end() :])
      value = answer_values.parse(answer_text.clean(statement[: answer_text.MAX_CHARACTERS]))
      if statement.strip(' *$:.') and (_HAS_MATHEMATICS.search(statement) or all(
          map(_is_brief, _leaves(value)))):
        return statement
  return None


def _last_line(text: str) -> str:
  return text.rstrip()[-4000:].rpartition('\n')[2].strip()


def _bold(text: str) -> str | None:
  """The last bold text of the last line, if it is an answer and no heading."""
  for match in reversed(_BOLD.findall(_last_line(text))):
    content = match.strip()
    if _HAS_MATHEMATICS.search(content) and not content.endswith(':') and is_answer(content):
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
      return group if ',' in group and is_answer(group) else None
  return None


def extract_marked(response: str) -> str | None:
  """The answer that the response marks as its answer, or None; see the module's rules."""
  text = response[-MAX_RESPONSE:]
  marked = [found for found in (_boxed(text), _hashes(text), _tagged(text)) if found]
  if marked:
    return max(marked)[1]
  return _announced(text) or _bold(text)


def extract_gsm8k(response: str) -> str | None:
  """The number right behind the last `####`, and nothing else; None if there is none."""
  found = _GSM8K.findall(response[-MAX_RESPONSE:])
  return found[-1] if found else None


def _last_number(text: str) -> str | None:
  found = None
  for match in _LAST_NUMBER.finditer(text[-20_000:]):
    found = match[0]
  return found


def extract(response: str) -> str | None:
  """The final answer: the marked one, else by the fallbacks of the module's rules.

  Args:
    response: what the model said, without the prompt.

  Returns:
    the text of the answer, or None if the response has no marker and no number.
  """
  marked = extract_marked(response)
  if marked is not None:
    return marked
  text = response[-MAX_RESPONSE:].strip()
  if is_answer(text):
    return text
  line = re.sub(r'[.!]$', '', _last_line(text))[-600:]
  tails = [line[match.end() :] for match in _TAIL.finditer(line)]
  for tail in reversed(tails[-4:]):
    in_words = number_words.leading(tail)
    if is_answer(tail) and (_HAS_MATHEMATICS.search(tail) or (in_words and not in_words[1])):
      return tail
  if (group := _last_group(line)) is not None:
    return group
  spans = [first or second for first, second in _MATH_SPAN.findall(line)]
  if spans and answer_values.is_expression(answer_text.clean(spans[-1])):
    return spans[-1]
  return _last_number(text)
