"""experiments/check_verifier: its report, its exit status, its one-line errors."""

import json
import pathlib
import subprocess
import sys

import pytest

from experiments.check_verifier import __main__ as check_verifier

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]


def _row(solution, label, truth='A: 18'):
  return {'question': 'q', 'ground_truth': f'9 * 2 = 18\n{truth}',
          'small': {'solution': solution, 'is_correct': label},
          'large': {'solution': 'work\nA: 18', 'is_correct': True}}


def _write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
  return path


def _run(*arguments):
  return subprocess.run(
      [sys.executable, '-m', 'experiments.check_verifier', *arguments], cwd=REPOSITORY, text=True,
      capture_output=True, timeout=120, check=False)


def test_agrees_on_the_real_file(data_dir):
  path = data_dir / 'gsm8k' / 'example_model_solutions.jsonl'
  done = _run(f'--solutions={path}')
  assert done.returncode == 0, done.stderr
  assert 'agreement: 5276 of 5276 labelled solutions' in done.stdout


@pytest.mark.parametrize('flag', ['--help', '-h', '--helpfull'])
def test_help_exits_with_status_0(flag):
  done = _run(flag)
  assert done.returncode == 0 and done.stderr == ''
  assert 'python -m experiments.check_verifier' in done.stdout and '--solutions' in done.stdout


def test_prints_each_disagreement_and_exits_with_1(tmp_path, capsys):
  rows = [_row('A: 18', True), _row('A: 19', True), _row('A: 18.0', False), _row('A: 7', False)]
  path = _write(tmp_path / 'solutions.jsonl', rows)
  assert check_verifier.check(path, 'lenient') == 1
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == ("problem 1 (line 2), small: label right, graded wrong; extracted '19', "
                      "truth '18'")
  assert lines[1] == ("problem 2 (line 3), small: label wrong, graded right; extracted '18.0', "
                      "truth '18'")
  assert lines[2:4] == ['small: 2 of 4', 'large: 4 of 4']
  assert lines[4].startswith('agreement: 6 of 8 labelled solutions (75.00 %)')
  assert len(lines) == 5


def test_exits_with_0_where_all_agree(tmp_path, capsys):
  path = _write(tmp_path / 'solutions.jsonl', [_row('A: 18', True, truth='#### 18')])
  assert check_verifier.check(path, 'strict') == 0
  assert 'agreement: 2 of 2' in capsys.readouterr().out


@pytest.mark.parametrize(('content', 'message'), [
    (json.dumps(_row('A: 1', False)) + '\n' + json.dumps(_row('A: 18', True))[:60],
     'line 2 is not valid JSON'),
    ('{"ground_truth": "A: 1"}\n', 'line 1: no labelled solution'),
    ('{"question": "q"}\n', 'line 1: the field ground_truth (text) is missing'),
    ('{"ground_truth": "eighteen", "m": {}}\n', 'line 1: the last line of ground_truth'),
    ('{"ground_truth": "A: 1", "m": {"is_correct": true}}\n', 'm needs the field solution (str)'),
    ('{"ground_truth": "A: 1", "m": {"solution": "", "is_correct": 1}}\n',
     'm needs the field is_correct (bool)'),
    ('[1, 2]\n', 'line 1: expected an object, got list'),
    ('[' * 100_000, 'line 1 is not valid JSON'),
    ('\n\n', 'contains no solutions'),
])
def test_malformed_files_name_the_line(tmp_path, content, message):
  path = tmp_path / 'solutions.jsonl'
  path.write_text(content, encoding='utf-8')
  with pytest.raises(check_verifier.InputError) as error:
    check_verifier.read_solutions(path)
  assert message in str(error.value) and str(path) in str(error.value)
  assert '\n' not in str(error.value)


def test_undecodable_bytes_are_reported_with_their_line(tmp_path):
  path = tmp_path / 'solutions.jsonl'
  path.write_bytes(b'\xff\xfe\x00broken\n')
  with pytest.raises(check_verifier.InputError, match='line 1 is not valid JSON'):
    check_verifier.read_solutions(path)


@pytest.mark.parametrize(('arguments', 'message'), [
    ((), '--solutions=FILE is required'),
    (('--solutions=/no/such/file',), 'cannot read --solutions=/no/such/file: No such file'),
    (('--solutions=/tmp',), 'Is a directory'),
    (('--mode=loose',), 'lenient|strict|gsm8k'),
    (('--solution=x',), 'solution'),
    (('file.jsonl',), "unexpected argument 'file.jsonl'"),
])
def test_bad_input_is_one_line_and_exit_status_2(arguments, message):
  done = _run(*arguments)
  assert done.returncode == 2
  assert done.stdout == ''
  assert message in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_truncated_real_file_names_its_line(data_dir, tmp_path):
  whole = (data_dir / 'gsm8k' / 'example_model_solutions.jsonl').read_bytes()
  path = tmp_path / 'truncated.jsonl'
  path.write_bytes(whole[:100_000])
  line = whole[:100_000].count(b'\n') + 1
  done = _run(f'--solutions={path}')
  assert done.returncode == 2
  assert f'line {line} is not valid JSON' in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
