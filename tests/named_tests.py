"""Tests that are named as `file::test`, with the file's path in tests/."""

import pathlib
import re
from collections.abc import Iterable

TESTS = pathlib.Path(__file__).resolve().parent


def missing(names: Iterable[str]) -> list[str]:
  """Returns the names of tests that do not exist."""
  return [name for name in names if not _exists(*name.split('::'))]


def _exists(file, test):
  path = TESTS / file
  return path.is_file() and bool(re.search(rf'^def {test}\(', path.read_text(), re.MULTILINE))
