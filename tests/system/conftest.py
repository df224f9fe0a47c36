"""One undisturbed run for all system tests."""

import json
import pathlib
from typing import NamedTuple

import pytest

from tests.system import running


class Whole(NamedTuple):
  """A complete run: its workdir, the record of `tests/system/child.py`, and its output."""

  workdir: pathlib.Path
  record: dict
  stdout: str
  stderr: str


@pytest.fixture(scope='session')
def runner(tmp_path_factory) -> running.Runner:
  """Starts processes."""
  return running.Runner(tmp_path_factory.mktemp('processes'))


@pytest.fixture(scope='session')
def whole(runner, tmp_path_factory) -> Whole:
  """The tiny config, undisturbed. Copy the workdir before you change it."""
  folder = tmp_path_factory.mktemp('whole')
  done = runner.finish(folder / 'run', record=str(folder / 'record.json'))
  assert done.returncode == 0, done.stderr
  record = json.loads((folder / 'record.json').read_text())
  return Whole(folder / 'run', record, done.stdout, done.stderr)
