"""Expected findings of a study, and whether they hold."""

from collections.abc import Sequence
from typing import NamedTuple


class Finding(NamedTuple):
  """The verdict on one criterion.

  Attributes:
    name: letter of the criterion in its study.
    claim: the expected result.
    holds: whether the claim holds; None if nothing is asserted.
    measured: the measured numbers, as text.
  """

  name: str
  claim: str
  holds: bool | None
  measured: str


def markdown(findings: Sequence[Finding]) -> str:
  """Returns a Markdown list, one line per criterion."""
  verdict = {True: '**holds**', False: '**does not hold**', None: 'reported'}
  return '\n'.join(f'- ({f.name}) {f.claim}: {verdict[f.holds]}. {f.measured}' for f in findings)
