"""Files of records: what a kill leaves is used again, what was damaged is refused in one line."""

import json

import pytest

from jaxrl_llm.runs import records
from jaxrl_llm.runs.command_line import UsageError
from jaxrl_llm.training import metrics

PROVENANCE = {'task': 'addition', 'seed': 0}
TOTAL = 5


def rewrite(path, **provenance):
  """Writes a file of records again, with another provenance and the digests that belong to it."""
  first, *lines = metrics.read_jsonl(path)
  path.unlink()
  strip = lambda line: {name: value for name, value in line.items() if name != 'sha256'}
  with records.open_records(
      path, strip(first) | provenance, batch=1, total=len(lines)) as file:
    for line in lines:
      file.append(strip(line))


def _record(i):
  return {'id': i, 'rewards': [0.1 * i, 1.0], 'text': f'ä{i}'}


def _write(path, count=TOTAL):
  with records.open_records(path, PROVENANCE, batch=1, total=TOTAL) as file:
    for i in range(len(file.records), count):
      file.append(_record(i))
  return path.read_bytes()


def _read(path, *, batch=1, total=TOTAL, provenance=PROVENANCE):
  with records.open_records(path, provenance, batch=batch, total=total) as file:
    return file.records


def test_records_are_read_back_as_they_were_written(tmp_path):
  content = _write(tmp_path / 'a.jsonl')
  assert _read(tmp_path / 'a.jsonl') == [_record(i) for i in range(TOTAL)]
  assert (tmp_path / 'a.jsonl').read_bytes() == content
  first, *others = metrics.read_jsonl(tmp_path / 'a.jsonl')
  assert first.pop('sha256') and first == PROVENANCE
  assert [line['id'] for line in others] == list(range(TOTAL))


def test_after_a_kill_at_any_byte_the_file_ends_the_same(tmp_path):
  path = tmp_path / 'a.jsonl'
  content = _write(path)
  for end in range(len(content) + 1):
    path.write_bytes(content[:end])
    assert _write(path) == content


def test_an_incomplete_batch_is_made_again_but_not_an_incomplete_last_one(tmp_path):
  content = _write(tmp_path / 'a.jsonl', 3)
  assert len(_read(tmp_path / 'a.jsonl', batch=2)) == 2
  assert content.startswith((tmp_path / 'a.jsonl').read_bytes())
  _write(tmp_path / 'b.jsonl')
  assert len(_read(tmp_path / 'b.jsonl', batch=2)) == 5  # The last batch has one record.


@pytest.mark.parametrize('odd', [b'[]', b'null', b'5', b'{}', b'[' * 100_000, b'{"sha256": 3}'])
def test_a_line_of_another_kind_is_named(tmp_path, odd):
  lines = _write(tmp_path / 'a.jsonl').splitlines(keepends=True)
  lines[2] = odd + b'\n'
  (tmp_path / 'a.jsonl').write_bytes(b''.join(lines))
  with pytest.raises(UsageError, match=r'a\.jsonl, line 3, was changed since .*: remove the'):
    _read(tmp_path / 'a.jsonl')


@pytest.mark.parametrize('change', [
    lambda lines: [*lines[:2], *lines[3:]],  # Deleted.
    lambda lines: [*lines[:3], *lines[2:]],  # Doubled.
    lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],  # Exchanged.
    lambda lines: [*lines[:2], lines[2].replace(b'1.0]', b'0.0]'), *lines[3:]],
    lambda lines: [*lines[:2], lines[2].replace(b'1.0]', b'NaN]'), *lines[3:]],
    lambda lines: lines[1:],  # Without its provenance.
])
def test_changed_lines_are_refused_and_left_on_disk(tmp_path, change):
  lines = _write(tmp_path / 'a.jsonl').splitlines(keepends=True)
  changed = b''.join(change(lines))
  assert changed != b''.join(lines)
  (tmp_path / 'a.jsonl').write_bytes(changed)
  with pytest.raises(UsageError, match=r'a\.jsonl, line \d, was changed since it was written'):
    _read(tmp_path / 'a.jsonl')
  assert (tmp_path / 'a.jsonl').read_bytes() == changed


def test_one_flipped_bit_never_changes_a_record(tmp_path):
  path = tmp_path / 'a.jsonl'
  content = _write(path, 2)
  for position in range(len(content)):
    for bit in range(8):
      flipped = bytearray(content)
      flipped[position] ^= 1 << bit
      path.write_bytes(flipped)
      try:
        records_read = _read(path)
      except UsageError as error:
        assert str(path) in str(error) and '\n' not in str(error)
      else:  # A half-written last line is made again.
        assert records_read == [_record(i) for i in range(len(records_read))]


def test_records_of_something_else_are_refused_with_the_difference(tmp_path):
  _write(tmp_path / 'a.jsonl')
  message = r'holds samples of something else \(seed is 0 there, 1 here\)'
  with pytest.raises(UsageError, match=message):
    _read(tmp_path / 'a.jsonl', provenance={**PROVENANCE, 'seed': 1})


def test_a_file_of_an_earlier_version_is_one_line_that_says_how_to_go_on(tmp_path):
  (tmp_path / 'a.jsonl').write_text(json.dumps(PROVENANCE) + '\n' + json.dumps(_record(0)) + '\n')
  with pytest.raises(UsageError, match='by an earlier version, without digests: remove it'):
    _read(tmp_path / 'a.jsonl')
