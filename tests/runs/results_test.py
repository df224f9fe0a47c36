"""results.json: its fields, the clock of a run and its processors, the commit."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import subprocess

import pytest

from jaxrl_llm.runs import launch

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class _Config:
  seed: int = 3


def _run(tmp_path):
  return launch.Run(_Config(), tmp_path, 'toy', 'small', 'toy_small.py', commit='abc')


def test_results_fields(tmp_path):
  path = launch.write_results(_run(tmp_path), {
      'eval/trained/pass@1': 0.5, 'sampled_tokens/stage1': 30, 'sampled_tokens/stage2': 12,
      'note': 'text', 'eval/nan': float('nan')})
  results = json.loads(path.read_text())
  assert path == tmp_path / 'results.json'
  assert (results['experiment'], results['setting'], results['seed']) == ('toy', 'small', 3)
  assert results['commit'] == 'abc' and results['sampled_tokens'] == 42
  assert results['eval/trained/pass@1'] == 0.5 and results['note'] == 'text'
  assert results['eval/nan'] == 'nan'

  for name in ('jax', 'jaxlib', 'flax', 'optax', 'numpy'):
    assert results[f'versions/{name}'] == importlib.metadata.version(name)
  assert results['versions/orbax'] == importlib.metadata.version('orbax-checkpoint')
  assert results['versions/python'].startswith('3.')
  assert results['processor/model'] and results['processor/vector_extensions']
  assert results['processor/threads'] == len(os.sched_getaffinity(0))
  assert 'cpu' in results['device'] and 0 <= results['wall_seconds'] < 60
  assert all(isinstance(value, (int, float, str)) for value in results.values())


def test_results_list_every_processor_of_the_run(tmp_path, monkeypatch):
  def run_on(model, threads):
    monkeypatch.setattr(launch.processor, 'fields', lambda: {
        'processor/model': model, 'processor/vector_extensions': 'avx2',
        'processor/threads': threads})
    _run(tmp_path).save_clock()

  def processors():
    results = json.loads(launch.write_results(_run(tmp_path), {}).read_text())
    return [results[f'processor/{key}'] for key in ('model', 'vector_extensions', 'threads')]

  run_on('AMD EPYC', 2)
  run_on('AMD EPYC', 2)
  assert processors() == ['AMD EPYC', 'avx2', 2]
  run_on('Intel Xeon', 4)
  run_on('AMD EPYC', 2)
  assert processors() == ['Intel Xeon + AMD EPYC', 'avx2', '4 + 2']


@pytest.mark.parametrize('text', [
    '', '{"wall_', '[]', '{"wall_seconds": 1.0, "marks": {}, "processors": []}', '[' * 100_000])
def test_a_damaged_clock_is_ignored_and_named(tmp_path, text, capsys):
  (tmp_path / 'wall_seconds.json').write_text(text)
  run = _run(tmp_path)
  assert run.wall_seconds() < 60 and len(run.processors) == 1
  warning = capsys.readouterr().err
  assert warning.count('\n') == 1 and warning.startswith('warning: ')
  assert str(tmp_path / 'wall_seconds.json') in warning


def test_the_clock_of_another_config_is_ignored(tmp_path, capsys):
  _run(tmp_path).save_clock()
  launch.Run(_Config(seed=4), tmp_path, 'toy', 'small', 'toy_small.py', commit='abc')
  assert 'config.seed is 3 there, 4 here' in capsys.readouterr().err


def test_a_total_given_by_the_program_is_used(tmp_path):
  path = launch.write_results(_run(tmp_path), {'sampled_tokens': 5, 'sampled_tokens/stage1': 1})
  assert json.loads(path.read_text())['sampled_tokens'] == 5


@pytest.mark.parametrize('value', [None, True, [1], {'a': 1}])
def test_results_must_be_flat(tmp_path, value):
  with pytest.raises(ValueError, match=r'results must be numbers and strings, got .* \(bad\)'):
    launch.write_results(_run(tmp_path), {'bad': value})
  assert not (tmp_path / 'results.json').exists()


def test_wall_seconds_add_up_over_resumes(tmp_path):
  run = _run(tmp_path)
  run._earlier_seconds, run.marks = 1000.0, {'sft': 400.0}
  run.save_clock()
  run = _run(tmp_path)
  assert 1000 <= run.wall_seconds() < 1060
  run.mark('sft')
  run.mark('stage1')
  assert run.marks['sft'] == 400 and 1000 <= run.marks['stage1'] < 1060
  assert _run(tmp_path).marks == run.marks
  run.save_clock()
  assert _run(tmp_path).wall_seconds() >= run._earlier_seconds


def test_commit_of_this_source():
  commit = launch.current_commit()
  head = subprocess.run(
      ['git', '-C', str(REPOSITORY), 'rev-parse', 'HEAD'], capture_output=True, text=True)
  if head.returncode:
    assert commit == 'unknown'
  else:
    assert commit.removesuffix('-dirty') == head.stdout.strip()


def test_commit_is_unknown_without_git(monkeypatch):
  monkeypatch.setenv('PATH', '')
  assert launch.current_commit() == 'unknown'
