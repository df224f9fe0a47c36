r"""Congruences: '5 (mod 7)', `x \equiv 1, 5 \pmod 7`, '15 mod 4'.

A residue class is represented by its least non-negative member: `12 \pmod 7` is `5 \pmod 7`.
Without a modulus the answer must be that member: `15 \pmod 4` is 3 and not 15. '5 mod 7' in plain
text, without parentheses, is an unfinished calculation that equals only another congruence.
"""

import re

from jaxrl_llm.rewards.math import quantities
from jaxrl_llm.rewards.math.answer_kinds import Items, Residue

_MAX_MEMBERS = 64
_CONGRUENCE = re.compile(
    r'^([^()]{1,200}?),? ?\(? ?(?:\\[bp]?mod|mod(?:ulo)?)(?![a-zA-Z]) ?'
    r'[({]? ?([1-9][0-9]{0,8}) ?[)}]? ?\)?$'
)
_SIGN = re.compile(r'\\equiv(?![a-zA-Z])|≡|=')
_NAME = re.compile(r'[a-zA-Z](?: ?_ ?\{? ?[a-zA-Z0-9] ?\}?)?')
_SEPARATOR = re.compile(r',|;|\b(?:and|or)\b')


def _members(text: str, modulus: int) -> tuple[int, ...] | None:
  """The classes of a list of integers; None if it contains anything else."""
  values = [quantities.rational(part.strip()) for part in _SEPARATOR.split(text) if part.strip()]
  if not 0 < len(values) <= _MAX_MEMBERS or any(
      value is None or value.denominator != 1 for value in values):
    return None
  return tuple(sorted({int(value) % modulus for value in values}))


def bare(residue: Residue) -> quantities.Quantity | Items | None:
  """The least non-negative members as numbers: one, or a list; None of '5 mod 7'."""
  if residue.is_plain:
    return None
  numbers = tuple(quantities.number(member) for member in residue.members)
  return numbers[0] if len(numbers) == 1 else Items(numbers)


def parse(text: str) -> tuple[str, Residue] | None:
  """Reads a congruence.

  Args:
    text: cleaned text.

  Returns:
    (the name that is congruent or '', the residue classes), or None if the text is not a congruence
    or one of its sides is not congruent to the last.
  """
  match = _CONGRUENCE.match(text)
  if match is None:
    return None
  *before, last = [side.strip() for side in _SIGN.split(match[1])]
  modulus = int(match[2])
  members = _members(last, modulus)
  if members is None:
    return None

  name = ''
  if before and _NAME.fullmatch(before[0]):
    name, before = re.sub(r'[{}\s]', '', before[0]), before[1:]
  if any(_members(side, modulus) != members for side in before):
    return None
  is_plain = not before and not name and text[match.end(1) :].lstrip(' ,').startswith('mod')
  return name, Residue(members, modulus, is_plain)
