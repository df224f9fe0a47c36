"""Names of tests: `file::test`, the path being in tests/, and those of numbered identities."""

import pathlib
import re
from collections.abc import Iterable

TESTS = pathlib.Path(__file__).resolve().parent


def missing(names: Iterable[str]) -> list[str]:
  """Returns the names of tests that do not exist."""
  return [name for name in names if not _exists(*name.split('::'))]


def has_number(name: str) -> bool:
  """Returns whether a test is of a numbered identity of a paper, as `test_R9_...`."""
  return re.match(r'test_([A-Z]{1,2}\d+|\d+_\d+)_', name) is not None


def _exists(file, test):
  path = TESTS / file
  return path.is_file() and bool(re.search(rf'^def {test}\(', path.read_text(), re.MULTILINE))
