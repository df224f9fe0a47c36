"""Reads results and errors of studies, and the names of their config fields, for tests."""

import csv
import dataclasses
import json
import re


def results(workdir):
  """Numbers of results.json."""
  return json.loads((workdir / 'results.json').read_text())


def timeless(workdir):
  """The same, without those that differ between two equal runs."""
  return {name: value for name, value in results(workdir).items()
          if name not in ('wall_seconds', 'commit', 'sha256')}


def rows(path):
  """Rows of a CSV file by column name."""
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def expect_error(capsys, program, words):
  """Requires that standard error is one line of a program's and matches the pattern `words`."""
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1
  assert lines[0].startswith(f'{program}: error: ')
  assert re.search(words, lines[0]), lines[0]


def leaves(config, prefix=''):
  """Dotted names of the fields of a config and of the dataclasses in it."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield from leaves(value, f'{prefix}{field.name}.')
    else:
      yield prefix + field.name


class Bar:
  """A progress bar that shows nothing."""

  def update(self, *_, **__):
    """Nothing is shown."""
