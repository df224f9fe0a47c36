"""JSON lines: round trips, and one-line errors for damaged files."""

import pytest

from jaxrl_llm.data import jsonl


def test_round_trip_with_line_separators_inside_strings(tmp_path):
  rows = [{'a': 'x\u2028y\x85z', 'b': [1, None]}, {'a': '"\\\n'}, {}]
  path = tmp_path / 'x.jsonl'
  jsonl.write_jsonl(path, rows)
  assert jsonl.read_jsonl(path) == rows
  assert [file.name for file in tmp_path.iterdir()] == ['x.jsonl']


def test_a_failed_write_leaves_the_old_file(tmp_path):
  path = tmp_path / 'x.jsonl'
  jsonl.write_jsonl(path, [{'a': 1}])
  with pytest.raises(TypeError):
    jsonl.write_jsonl(path, [{'a': 2}, {'a': object()}])
  assert jsonl.read_jsonl(path) == [{'a': 1}]
  assert [file.name for file in tmp_path.iterdir()] == ['x.jsonl']


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'is empty'),
        (b'\n\n', 'is empty'),
        (b'{"a": "1"}\n{"a": "2', 'line 2: not a complete JSON object'),
        (b'{"a": "1"}\n\n{"a": "2"}', 'line 2: not a complete JSON object'),
        (b'{"a": "1"}\n[1]', 'line 2: expected a JSON object, got list'),
        (b'{"b": "1"}', "line 1: the key 'a' is missing"),
        (b'{"a": 1}', "line 1: 'a' must be str, got int"),
        (b'{"a": "\xff"}', 'not UTF-8 at byte 7'),
        (b'{"a": ' + b'[' * 100_000 + b'}', 'line 1: (nested too deeply|not a complete)'),
        (b'{"a": ' + b'9' * 10_000 + b'}', 'line 1: '),
    ],
)
def test_damage_is_one_clear_line_with_file_and_line(tmp_path, content, message):
  path = tmp_path / 'bad.jsonl'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message) as error:
    jsonl.read_jsonl(path, required={'a': str})
  assert 'bad.jsonl' in str(error.value) and '\n' not in str(error.value)


def test_missing_file_and_folder(tmp_path):
  with pytest.raises(ValueError, match='cannot read .*none.jsonl: No such file'):
    jsonl.read_jsonl(tmp_path / 'none.jsonl')
  with pytest.raises(ValueError, match='Is a directory'):
    jsonl.read_jsonl(tmp_path)


@pytest.mark.parametrize('text, lines', [
    ('{"a": 1}\n{"a": [2]}\n', [1, 2]),
    ('[{"a": 1}, {"a": [2]}]', [1, 1]),
    ('\n[\n  {"a": 1\n}\n ,\n  {"a":\n [2]}]\n\n', [3, 6]),
    ('[\r\n{"a": 1},\r\n{"a": [2]}\r\n]\r\n', [2, 3]),
])
def test_an_array_or_lines_are_the_same_rows(tmp_path, text, lines):
  path = tmp_path / 'x.json'
  path.write_bytes(text.encode())
  rows = jsonl.read_rows(path)
  assert [row.value for row in rows] == [{'a': 1}, {'a': [2]}]
  assert [row.line for row in rows] == lines


@pytest.mark.parametrize('text, message', [
    ('', 'bad.json is empty'),
    ('[ ]', 'bad.json is empty'),
    ('[', 'line 1: not a complete JSON array of objects'),
    ('[\n{"a": "1"},\n{"a": "2', 'line 3: not a complete JSON array of objects'),
    ('[\n{"a": "1"},\n]', 'line 3: not a complete JSON array of objects'),
    ('[\n{"a": "1"}\n{"a": "2"}]', "line 2: expected ',' or the array's last ']'"),
    ('[\n{"a": "1"}', "line 2: expected ',' or the array's last ']' after this object"),
    ('[\n{"a": "1"}]\n{"a": "2"}', "line 2: expected ',' or the array's last ']'"),
    ('[\n{"a": "1"},\n\n7]', 'line 4: expected a JSON object, got int'),
    ('[{"a": "1"},\n{"b": "1"}]', "line 2: the key 'a' is missing"),
    ('[\n{"a": ' + '[' * 100_000 + '}]', 'line 2: nested too deeply'),
    ('[\n{"a": ' + '9' * 10_000 + '}]', 'line 2: '),
    ('{"a": "1"}\n[{"a": "1"}]', 'line 2: expected a JSON object, got list'),
    ('"a"', 'line 1: expected a JSON object, got str'),
])
def test_a_damaged_array_is_one_clear_line(tmp_path, text, message):
  path = tmp_path / 'bad.json'
  path.write_text(text)
  with pytest.raises(ValueError, match=message) as error:
    jsonl.read_rows(path, required={'a': str})
  assert 'bad.json' in str(error.value) and '\n' not in str(error.value)


def test_duplicate_keys_are_errors(tmp_path):
  path = tmp_path / 'rows.json'
  for text, line in (('{"a": 1}\n{"a": 1, "b": {"c": 1, "c": 2}}', 2), ('[{"c": 1,\n"c": 2}]', 1)):
    path.write_text(text)
    with pytest.raises(ValueError, match=f"line {line}: duplicate key 'c'"):
      jsonl.read_rows(path)
