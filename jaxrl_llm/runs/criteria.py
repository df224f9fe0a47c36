"""What a study is expected to show, and whether it did."""

from collections.abc import Sequence
from typing import NamedTuple


class Finding(NamedTuple):
  """One criterion.

  Attributes:
    name: its letter in the study it belongs to.
    claim: what is expected.
    holds: whether it was so; None where nothing is asserted.
    measured: the numbers.
  """

  name: str
  claim: str
  holds: bool | None
  measured: str


def markdown(found: Sequence[Finding]) -> str:
  """A list, one line a criterion."""
  verdict = {True: '**holds**', False: '**does not hold**', None: 'reported'}
  return '\n'.join(f'- ({f.name}) {f.claim}: {verdict[f.holds]}. {f.measured}' for f in found)
