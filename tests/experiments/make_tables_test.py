"""The binary that makes tables, from its command line."""

import json
import pathlib
import shutil
import subprocess
import sys

from jaxrl_llm.tables import digests

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def _run(*arguments):
  return subprocess.run(
      [sys.executable, '-m', 'experiments.make_tables', *map(str, arguments)],
      cwd=REPOSITORY, capture_output=True, text=True)


def _write(folder, seed, **numbers):
  path = folder / 'a_star_po' / 'arithmetic' / f'seed{seed}' / 'results.json'
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps(digests.with_digest({
      'experiment': 'a_star_po', 'setting': 'arithmetic', 'seed': seed, 'commit': 'c',
      'sampled_tokens': 9, 'wall_seconds': 1.5, 'device': 'cpu', **numbers})))
  return path


def test_writes_markdown_and_csv_and_prints(tmp_path):
  for seed, accuracy in enumerate((0.96, 0.98)):
    _write(tmp_path, seed, **{'eval/trained/greedy_accuracy': accuracy})
  done = _run(f'--runs={tmp_path}')
  assert done.returncode == 0, done.stderr
  markdown = (tmp_path / 'tables' / 'a_star_po.md').read_text()
  assert '| arithmetic | 2 | 0.9700 ± 0.0100 |' in markdown
  assert markdown in done.stdout and 'tables/a_star_po.csv' in done.stdout
  first = (tmp_path / 'tables' / 'a_star_po.csv').read_text()
  # Made again from the same runs, into another folder: the same bytes.
  assert _run(f'--runs={tmp_path}', f'--out={tmp_path / "other"}').returncode == 0
  assert (tmp_path / 'other' / 'a_star_po.csv').read_text() == first


def _assert_one_line(done, *words):
  assert done.returncode == 2
  assert done.stderr.startswith('make_tables: error: ') and done.stderr.count('\n') == 1
  for word in words:
    assert word in done.stderr


def test_bad_input_is_one_line_with_status_2(tmp_path):
  _assert_one_line(_run(f'--runs={tmp_path / "absent"}'), 'not a directory', 'absent')
  _assert_one_line(_run('--runs='), "runs must name a directory, got ''")
  _assert_one_line(_run(f'--rums={tmp_path}'), 'unknown flag --rums; did you mean --runs?')
  path = _write(tmp_path, 0)
  page = tmp_path / 'page.md'
  page.write_bytes(b'\xff\xfe')
  bench = tmp_path / 'bench' / 'cpu.json'
  bench.parent.mkdir()
  shutil.copy(next((REPOSITORY / 'results' / 'bench').glob('*.json')), bench)
  _assert_one_line(_run(f'--runs={tmp_path}', f'--pages={page}'), 'page.md must be UTF-8 text')
  _assert_one_line(_run(f'--flagfile={page}'), '(--flagfile)')
  path.write_text('{"experiment": ')
  _assert_one_line(_run(f'--runs={tmp_path}'), str(path), 'is not JSON')


def test_help():
  done = _run('--help')
  assert done.returncode == 0 and '--runs' in done.stdout and 'Makes the tables' in done.stdout
