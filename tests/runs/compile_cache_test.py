"""The second start of a program compiles nothing; one directory per processor; killed writers."""

import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import pytest

from jaxrl_llm.runs import compile_cache, processor

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
_CHILD = '''
import collections, json
from jaxrl_llm.runs import compile_cache
assert compile_cache.use() is None  # It would have to import JAX.
import jax
path = compile_cache.use()
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **details: counts.update([event]))
x = jax.numpy.linspace(0.0, 1.0, 64).reshape(8, 8)
value = jax.jit(lambda x: jax.numpy.sin(x @ x).sum())(x)
print(json.dumps({
    'path': str(path), 'value': float(value).hex(),
    'hits': counts['/jax/compilation_cache/cache_hits'],
    'misses': counts['/jax/compilation_cache/cache_misses']}))
'''


def _start(**environment):
  done = subprocess.run(
      [sys.executable, '-c', _CHILD], cwd=REPOSITORY, check=True, capture_output=True,
      text=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu', **environment})
  return json.loads(done.stdout)


def test_the_second_start_compiles_nothing_and_computes_the_same(tmp_path):
  environment = {compile_cache.VARIABLE: str(tmp_path)}
  first, second = _start(**environment), _start(**environment)
  assert first['misses'] > 0 and first['hits'] == 0
  assert second['misses'] == 0 and second['hits'] == first['misses']
  assert first['value'] == second['value']
  assert pathlib.Path(second['path']).parent == tmp_path


def test_another_processor_has_another_directory(monkeypatch, tmp_path):
  monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path))
  here = compile_cache.directory()
  assert here == compile_cache.directory() and here.parent == tmp_path
  fields = processor.fields()
  for name, value in (('processor/model', 'other'), ('processor/threads', 97)):
    monkeypatch.setattr(processor, 'fields', lambda: {**fields, name: value})  # noqa: B023
    assert compile_cache.directory() not in (None, here)


def test_the_default_is_below_the_cache_directory_of_the_user(monkeypatch, tmp_path):
  monkeypatch.delenv(compile_cache.VARIABLE)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert compile_cache.directory().parent == tmp_path / 'jaxrl_llm' / 'programs'


@pytest.mark.parametrize('changes', [
    {compile_cache.VARIABLE: 'off'}, {'JAX_COMPILATION_CACHE_DIR': '/elsewhere'},
    {compile_cache.VARIABLE: '/dev/null'}])
def test_nothing_is_configured_if_it_is_off_or_configured_elsewhere_or_not_a_directory(
    changes, monkeypatch, tmp_path):
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path / 'cache'))
  for name, value in changes.items():
    monkeypatch.setenv(name, value)
  assert compile_cache.use() is None
  assert jax.config.jax_compilation_cache_dir == before and not (tmp_path / 'cache').exists()


def test_what_a_killed_process_left_is_removed(tmp_path):
  old = time.time() - 3600
  for name in ('whole-cache', 'whole-atime', 'partial-cache', 'fresh-cache', 'other'):
    (tmp_path / name).write_text('x')
    if not name.startswith('fresh'):  # Another process may be writing this one.
      os.utime(tmp_path / name, (old, old))
  compile_cache.remove_incomplete(tmp_path)
  assert sorted(path.name for path in tmp_path.iterdir()) == [
      'fresh-cache', 'other', 'whole-atime', 'whole-cache']
