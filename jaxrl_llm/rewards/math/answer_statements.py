"""Reads sentences that announce an answer: 'The answer is 15.', 'Answer: 15', 'A: 15'.

A closing sentence about the answer ('This answer is correct.', 'The answer is positive.') is
skipped in favour of an answer that was announced before it. Any other later announcement is used,
so that only the last of two answers can earn a reward.
"""

import re
from collections.abc import Iterator

from jaxrl_llm.rewards.math import answer_phrases, number_words

_MAX_ATTEMPTS = 64
_MAX_TEXT = 100_000

_KEYWORD = re.compile(
    r'(?:\b|(?<=_))(?:answers?|ans|solutions?|results?|options?|choices?)\b'
    r'|(?<=\n)[ \t*]*A(?=:)|^[ \t*]*A(?=:)',
    re.IGNORECASE,
)
_VERB = (r'(?:is|are|was|be|becomes|equals|must be|should be|will be|would be|comes out to(?: be)?)'
         r'(?: (?:therefore|thus|then|simply|just|equal to|given by|exactly))?')
_AFTER_ANSWER = re.compile(
    r'(?:\*\*)?(?: (?:to|for|of|in)\b(?P<of>[^.\n:=]{0,100}?))?(?:\*\*)?'
    rf'[ \t]*(?:(?::|=|-(?= ))(?:\*\*)?[ \t]*(?:{_VERB}\b)?'
    rf'|(?:,(?P<apposition>[^.\n,]{{0,40}}),)? {_VERB}\b(?:[ \t]*:)?)',
    re.IGNORECASE,
)
_AFTER_SOLUTION = re.compile(
    rf'(?: (?:to|for|of|set)\b[^.\n:=]{{0,100}}?)? {_VERB}\b(?:[ \t]*:)?', re.IGNORECASE
)
_SENTENCE_END = re.compile(
    r'(?<![ap]\.m)(?<!\b[ap])(?<!\bi\.e)(?<!\be\.g)(?<!\bapprox)'
    r'[.!?](?=[\s*"\')]|$)'
    # '15. Or 16.' goes on with a second answer.
    r'(?!\s{1,3}(?:[Oo]r|[Mm]aybe|[Pp]erhaps|[Pp]ossibly)(?: it is| it\'s)? [-$\\]?[0-9\\])|\n'
)
_CLAUSE = re.compile(
    r',?\s{1,9}(?:because|since|which|so|where|but|therefore|thus|hence|i hope|given that'
    r'|as (?:the|we|it)|when|if|after|due to)\b'
    r'|,\s{1,9}(?:as|not|i|we|the|it|this|that|with)\b|;\s'
    r'|,?\s{1,9}and (?:this|that|it|we|our|my|i|the (?:answer|result|solution))\b(?=[^0-9\\]*$)',
    re.IGNORECASE,
)

_FILLER = (
    r'(?:(?:indeed|also|thus|therefore|then|now|clearly|certainly|definitely|surely|obviously'
    r'|probably|likely|quite|very|completely|entirely|perfectly|already|really|actually|in fact'
    r'|of course|logically|mathematically|both|a|an|the) )*'
)
# After a remark: no number except in 'by adding 12 and 3', and not 'found to be 15'.
_REMAINS = (
    r'(?=[^0-9\\]*$| (?:by|from|with|on|using|for|in|of|at|under|via)\b)'
    r'(?!\s*[:=]| to be| as [0-9$\\])'
)
# Words that judge an answer; these can be one ('is it left or right?') ...
_JUDGEMENT = re.compile(
    rf'[\s*,:]*{_FILLER}(?:correct|right|valid|sound|sure|clear|known|final|complete|good|fine'
    rf'|below|above){_REMAINS}',
    re.IGNORECASE,
)
# ... and these can not.
_NO_ANSWER = re.compile(
    rf'[\s*,:]*{_FILLER}(?:verified|confirmed|checked|consistent|reasonable|sensible|plausible'
    r'|logical|accurate|obvious|straightforward|as (?:expected|required|desired|requested|follows)'
    r'|what (?:we|was|the)|supported|justified|satisfactory|helpful|useful|in agreement|based'
    r'|obtained|found|derived|calculated|computed|determined|shown|stated|given|proved|proven'
    r'|established|done|solved|easy|hard|trivial|surprising|interesting|nice|neat|important'
    rf'|unexpected){_REMAINS}',
    re.IGNORECASE,
)
# Words that describe a number, without a number or with one that it is compared with.
_DESCRIPTION = re.compile(
    rf'[\s*,:]*{_FILLER}(?:not )?(?:positive|negative|(?<=not )zero|at(?= least| most)'
    r'|non-?negative|non-?zero|even|odd|prime|composite|finite|unique|exact|precise|approximate|rounded|whole|real|rational|irrational|integer'
    r'|natural|number|fraction|decimal|percentage|multiple|divisible|simplified|reduced|expressed'
    r'|written|measured|in|independent|greater|less|larger|smaller|bigger|higher|lower|more|fewer'
    r'|between|within|close|near|same|small|large|simple|true)'
    r'(?![\w-])(?=[^0-9\\]*$| (?:than|by|of|to|between|from)\b|.*\b(?:than|between|divisible'
    r'|multiple|within|close|near|rounded|independent|expressed|measured|digits?|places|range'
    r'|least|most)\b)',
    re.IGNORECASE,
)
# 'The other answers are wrong', 'my previous answer was 12'.
_OTHER = re.compile(r'\b(?:other|wrong|incorrect|previous|earlier|initial) $', re.IGNORECASE)
# The rest of a JSON object's member, '"answer": "15"', after its name.
_JSON_MEMBER = re.compile(r'"\s{0,3}:\s{0,3}("(?:[^"\\\n]|\\.){1,400}"|[^\s,"{}]{1,200})')
_DENIAL = re.compile(
    r"\b(?:not|no|never|wrong|incorrect|false|invalid|mistaken)\b|n't\b", re.IGNORECASE
)
# '*Answer: 15*' ends in emphasis; the star of `A^*` stays.
_END_OF_EMPHASIS = re.compile(r'(?<=[\w.)}\]$])(?<!\^)\*{1,3}$')
# 'The answer is 15? No.' asks, and denies.
_ASKED = re.compile(r'[^\n?]{1,200}\?\s{0,3}(?:no|nope|wrong|incorrect)\b', re.IGNORECASE)
_POINTS_BACK = re.compile(
    r'\b(?:this|our|my|that|such|above) (?:\w{1,12} )?(?:answer|solution|result)s?$', re.IGNORECASE
)


def statement(text: str) -> str:
  """The statement after a marker: to the end of its sentence, without an explanation."""
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

  text = answer_phrases.without_opening(text)
  end = _SENTENCE_END.search(text)
  text = text[: end.start()] if end else text
  clause = _CLAUSE.search(text)
  if clause and text[: clause.start()].strip(' *:'):
    text = text[: clause.start()]
  text = text.strip()
  if '*' not in text.rstrip('*'):
    text = _END_OF_EMPHASIS.sub('', text)
  return answer_phrases.without_asides_in_line(answer_phrases.without_aside(text))


def _announcement(text: str, keyword: re.Match, rest: re.Pattern) -> re.Match | None:
  """Matches the text after a keyword if it announces something, else returns None."""
  if _OTHER.search(text[max(0, keyword.start() - 20) : keyword.start()]):
    return None
  if not keyword[0].endswith('s') and text.startswith(' are ', keyword.end()):
    return None  # 'The units of the answer are apples.'
  match = rest.match(text, keyword.end(), keyword.end() + 260)
  if match and _ASKED.match(text, match.end(), match.end() + 260):
    return None
  return match


def _announcements(text: str) -> Iterator[tuple[str, re.Match, bool]]:
  """(statement, match, whether of a solution or option) of each announcement, last first."""
  keywords = list(_KEYWORD.finditer(text))[-_MAX_ATTEMPTS:]
  for wanted in (_AFTER_ANSWER, _AFTER_SOLUTION):
    for keyword in reversed(keywords):
      is_solution = keyword[0].lower().startswith(('sol', 'res', 'opt', 'cho'))
      if is_solution != (wanted is _AFTER_SOLUTION):
        continue
      if member := _JSON_MEMBER.match(text, keyword.end()):
        yield member[1].strip(' "').replace('\\\\', '\\'), member, is_solution
        continue

      match = _announcement(text, keyword, wanted)
      if match is None:
        continue
      answer = statement(text[match.end() : match.end() + 4000])
      if answer.strip(' *$:.') and (
          answer_phrases.HAS_MATHEMATICS.search(answer) or answer_phrases.is_brief(answer)):
        yield answer, match, is_solution


def _has_value(text: str) -> bool:
  return bool(answer_phrases.HAS_MATHEMATICS.search(text) or number_words.leading(text.strip()))


def _judged_value(match: re.Match) -> str | None:
  """The 15 of 'the answer, 15, is correct' and of 'the answer of 15 is correct'."""
  groups = match.groupdict()
  for text in (groups.get('apposition'), groups.get('of')):
    if text and _has_value(text) and answer_phrases.is_answer(text):
      return text.strip()
  return None


def _points_back(text: str, match: re.Match, answer: str) -> bool:
  """Returns whether a sentence such as 'this answer is helpful' is about a stated answer."""
  before = text[max(0, match.start() - 60) : match.start()]
  has_value = _has_value(answer) and answer_phrases.is_answer(answer)
  return bool(_POINTS_BACK.search(before)) and not has_value and not _DENIAL.search(answer)


def announced(text: str) -> str | None:
  """Extracts the answer that a response announces last.

  Args:
    text: a response.

  Returns:
    The last statement that is not a remark about an answer announced before. A remark that could
    be an answer ('correct', 'positive') is returned if nothing was announced before it. None if
    nothing is announced.
  """
  text = text[-_MAX_TEXT:]
  remark, describes = None, False
  for answer, match, is_solution in _announcements(text):
    judges = any(rule.match(answer) for rule in (_JUDGEMENT, _NO_ANSWER))
    points_back = _points_back(text, match, answer)
    if judges or points_back or _DESCRIPTION.match(answer):
      if value := _judged_value(match):
        return value
      if remark is None and not points_back and not _NO_ANSWER.match(answer):
        remark, describes = answer, not judges
      continue

    # 'The result is 15, so the answer is odd' answers with a description.
    if remark is None or not describes or (_has_value(answer) and not is_solution):
      return answer
    break
  return remark
