"""Words that turn a number into a bound, a guess or its opposite: 'at least 18', '18 or more'.

A text with such words does not state the number. The lists err on the side of rejection: a response
can always state a bare number.
"""

import re

_DENIAL = (
    r"\?|\s!|\b(?:not|no|none|never|neither|nor|if|whether|suppose|assum\w+|cannot|unequal|unlikely|wrong|incorrect|false|untrue"
    r"|impossible|maybe|perhaps|possibly|probably|might|could|or|guess(?:es)?|instead|but|except"
    r"|unless|excluding|excludes?|besides|doubt(?:ful)?|unsure|unknown)\b|n't\b"
)
_BOUND = (
    r'\b(?:less|more|fewer|greater|larger|bigger|smaller|higher|lower|older|younger|longer|shorter'
    r'|taller|later|earlier|other|rather|different(?:ly)?|away|far) (?:than|from|to)\b'
    r'|\bat (?:the )?(?:very )?(?:least|most|minimum|maximum|best|worst)\b|\bup (?:to|from)\b'
    r'|\b(?:minimum|maximum|max)\b(?! (?:[a-z]+ )?(?:is|was)\b| value of\b| ?[:=])'
    r'|\b(?:exceed\w*|surpass\w*|upwards?|downwards?|almost|barely|hardly'
    r'|short of|outside|bounded|limited|capped|starting|ranges?|ranging|differs?|anywhere)\b'
)
# Rejected right before the number: 'over 18', 'half of 18'; '18 left over' says 18.
_BEFORE = (
    r'\b(?:over|under|above|below|beyond|beneath|past|before|after|until|till|since|within|between'
    r'|beside|without|underneath|min|half|third|quarter|twice|double|triple|thrice|squared?|cubed?'
    r'|root|reciprocal|inverse|opposite|negation|complement|negative|minus|plus|times|by'
    r'|multiples?|factorial|floor|ceiling|from|through|toward|towards|near|nears|approaching'
    r'|close to|limit|every|each|all)'
    r'(?: (?:of|the|a|an|about|around|nearly|just|than|number|value|to|is))* ?[-(\[$]?[.0-9]'
)
_NUMBER = re.compile(r'[0-9][0-9.,/]*%?')
_AROUND = re.compile(f'{_DENIAL}|{_BOUND}|{_BEFORE}', re.IGNORECASE)
_FOLLOWING = re.compile(
    r'\bor (?:more|less|fewer|greater|larger|bigger|smaller|higher|lower|older|younger|longer'
    r'|shorter|above|below|over|under|beyond|up|upwards?|down|so|later|earlier|thereabouts|maybe'
    r'|perhaps|possibly|another|else|better|worse|not|any|some|something)\b'
    r'|\band (?:above|over|up|upwards?|more|older|higher|below|under|counting|beyond|maybe|then'
    r'|a half|a quarter)\b'
    r'|\bat (?:the )?(?:very )?(?:least|most|minimum|maximum)\b'
    # A second operand: 'less than x', 'times x', 'divided by x'.
    r'|^(?:less|more|fewer|greater|larger|bigger|smaller) than\b'
    r'|^(?:(?:st|nd|rd|th) )?(?:roots?|powers?|nope|no)\b'
    r'|^(?:divided|multiplied|added|subtracted|decreased|increased|reduced|raised)\b'
    r'|\b(?:than|by|times|minus|plus|of|over|less) [a-zA-Z]\b(?!\')'
    r'|^(?:plus|minus|over|under|above|below|tops|upwards?|exclusive|excluded|off|away|too'
    r'|factorial|squared|cubed)\b(?! per)'
    r"|\b(?:not|never|wrong|incorrect|false|cannot|impossible|minimum|maximum)\b|n't\b"
    r'|\b(?:but|maybe|perhaps|possibly|probably|otherwise|instead|unless|except|rather)\b'
    # '18 is too high', but '18 is the answer'.
    r'|^(?:is|was|are|were)\b(?! (?:(?:the|our|my|indeed|clearly) )?(?:(?:final|correct|right) )?'
    r'(?:answer|solution|result|total|value|correct|right)\b)'
    r'|\b(?:plus|max)$',
    re.IGNORECASE,
)

_TAKES_BACK = re.compile(
    r'^(?:is|was|are|seems|looks)\b(?! (?:the |definitely |clearly |surely )?'
    r'(?:correct|right|true|answer|best|only|solution)\b)'
    r"|^(?:may|might|could|can(?:not|'t)?(?! be determined)|(?:is|was|are|wo|does)n't)\b"
    r'|^(?:wrong|incorrect|but|nor|or|excluded|eliminated|rejected)\b|\?$'
    r'|^not(?:$| (?:correct|right|true|it|sure|possible|the (?:answer|correct|right)))'
    r'|\b(?:but|instead|unless|rather|maybe|perhaps|possibly|probably)\b'
    r'|\b(?:is|are|was) (?:wrong|incorrect|false|not (?:correct|right|true|it|the answer))\b'
    # '(A) No' is the option that says no; in lower case the word refuses the option.
    r'|^(?-i:no|none|never|nope)[.!]?$',
    re.IGNORECASE,
)
# Other languages' words for 'or more', 'less than', 'about' and 'not' that touch the number.
_FOREIGN_BOUND = re.compile(
    '以上|以下|以内|以外|以前|以后|以後|未满|未満|左右|不足|不到|不是|不对|错|或|还是|または|より|まで|から|ない|上下'
)
_NO_UNIT = re.compile(
    r'^(?:and|or|if|than|to|from|through|is|was|are|were)\b|\b(?:i\.e\b|that is|equivalently)'
    r'|\b(?:of|and|or|to|the|a|by|from|as)$',
    re.IGNORECASE,
)


# The last word before a number in a sentence that says the number. A closed list, because
# any other word may change it: 'unlike 18', 'fake 18', 'log of 18'.
_INTRODUCES = re.compile(
    r'(?:^|[:=]|\b(?:is|are|was|were|am|be|been|being|equals?|equalled|equaled|has|have|had|having'
    r'|gets?|got|gotten|gives?|gave|yields?|makes?|made|needs?|needed|takes?|took|costs?|pays?|paid'
    r'|spends?|spent|earns?|earned|sells?|sold|buys?|bought|saves?|saved|owes?|owed|contains?'
    r'|contained|requires?|required|leaves?|left|remains?|remained|becomes?|became|receives?'
    r'|received|produces?|produced|weighs?|weighed|travels?|travell?ed|walks?|walked|runs?|ran'
    r'|drives?|drove|scores?|scored|wins?|won|eats?|ate|drinks?|drank|reads?|uses?|used|holds?'
    r'|held|bakes?|baked|finds?|found|collects?|collected|grows?|grew|works?|worked|charges?'
    r'|charged|raises?|raised|keeps?|kept|sees?|saw|obtains?|obtained|exactly|precisely|only|just'
    r'|simply|approximately|about|roughly|around|total|totals|totaling|totalling|numbers?|value'
    r'|answer|result|the|these|those|there|so|thus|therefore|hence|currently|now|still|altogether'
    r'|(?:comes?|came|amounts?|amounted|adds up|equal|sums?|works out) to'
    r'|(?:total|answer|value|result|sum|average|mean|median|score|speed|distance|cost|price|profit'
    r'|length|area|volume|perimeter|age|salary|payment|weight|height|width|rate|probability|number'
    r'|remainder|product|difference|quotient|amount|maximum|balance|bill|radius|diameter|angle'
    r'|mass|discount|tax|tip|change|loss|gain|income|fee) of))[ (\[]*$', re.IGNORECASE
)
_SIGN_AT_END = re.compile(r'(?:[-+$€£¥₹¢\uff04] ?)+$')


def around_number(text: str) -> bool:
  """Returns whether the words around a number may change its meaning."""
  number = _NUMBER.search(text)
  if number is None:
    return True
  before = _SIGN_AT_END.sub('', text[: number.start()])
  after = text[number.end() :].strip()
  return not _INTRODUCES.search(before) or any(
      pattern.search(part) for pattern, part in ((_AROUND, text), (_FOLLOWING, after)))


def names_no_unit(phrase: str) -> bool:
  """Returns whether the words after a number name no unit: they continue, retract or bound it."""
  phrase = phrase.strip()
  if not phrase.isascii() and ' ' in phrase:
    return True  # Several words in another language cannot be checked.
  return any(pattern.search(phrase) for pattern in (_FOLLOWING, _NO_UNIT, _FOREIGN_BOUND))


def takes_back(remark: str) -> bool:
  """Returns whether the words after an option's letter reject it, or offer another one."""
  return _TAKES_BACK.search(remark) is not None
