"""The checks that configs declare: what passes, and the one line that says what does not."""

import math
import os
import types

import pytest

from jaxrl_llm import checks


def _config(**fields):
  return types.SimpleNamespace(**fields)


@pytest.mark.parametrize('value, passes', [(1, True), (2.5, True), (0, False), (math.nan, False)])
def test_at_least(value, passes):
  if passes:
    checks.at_least(_config(steps=value), 'config', steps=1)
  else:
    with pytest.raises(ValueError, match=f'^config.steps must be at least 1, got {value}$'):
      checks.at_least(_config(steps=value), 'config', steps=1)


@pytest.mark.parametrize('value, positive, non_negative', [
    (1e-9, True, True), (0, False, True), (-1e-9, False, False), (math.inf, False, False),
    (math.nan, False, False)])
def test_signs(value, positive, non_negative):
  for check, passes, rule in (
      (checks.positive, positive, 'positive'), (checks.non_negative, non_negative, 'non-negative')):
    if passes:
      check(_config(eta=value), '', 'eta')
    else:
      with pytest.raises(ValueError, match=f'^eta must be {rule} and finite, got {value}$'):
        check(_config(eta=value), '', 'eta')


def test_one_of():
  checks.one_of(_config(mode='max'), 'config', mode=('mean', 'max'))
  with pytest.raises(ValueError, match="^config.mode must be one of mean, max, got 'x'$"):
    checks.one_of(_config(mode='x'), 'config', mode=('mean', 'max'))
  checks.one_of(_config(prefix='own'), 'config', prefix=('own',))  # Any name of a field will do.


def test_names_of():
  checks.names_of(_config(heads='l1,cos'), 'config', heads=('cos', 'l1', 'l2'))
  for value in ('l1,x', 'l1,l1', ''):
    message = f"^config.heads must be some of cos, l1, each once, got '{value}'$"
    with pytest.raises(ValueError, match=message):
      checks.names_of(_config(heads=value), 'config', heads=('cos', 'l1'))


def test_increasing():
  checks.increasing(_config(shots=(1, 5), ratios=(0.5,)), 'config', 'shots', 'ratios')
  for value in ((), (0, 1), (5, 1), (1, 1)):
    with pytest.raises(ValueError, match='^config.shots must be positive and increasing, got '):
      checks.increasing(_config(shots=value), 'config', 'shots')


def test_divisible():
  checks.divisible(_config(batch_size=8), 'config', 'batch_size', 4, of='the parts')
  message = r'^config.batch_size must be divisible by the parts \(4\), got 10$'
  with pytest.raises(ValueError, match=message):
    checks.divisible(_config(batch_size=10), 'config', 'batch_size', 4, of='the parts')


def test_within_adds_the_path():
  message = r'^eta must be positive \(config.algorithm\)$'
  with pytest.raises(ValueError, match=message), checks.within('config.algorithm'):
    raise ValueError('eta must be positive')


@pytest.mark.parametrize('check, passing, failing, rule', [
    (lambda c: checks.at_most(c, 'config', x=2), (2, -5), (3, math.nan), 'must be at most 2'),
    (lambda c: checks.finite(c, 'config', 'x'), (-3.5, 0), (math.inf, math.nan), 'must be finite'),
    (lambda c: checks.fraction(c, 'config', 'x'), (0, 0.5, 1), (-0.1, 1.1, math.nan),
     r'must be in \[0, 1\]'),
    (lambda c: checks.interval(c, 'config', '[0, 0.5)', 'x'), (0, 0.49), (-0.1, 0.5, math.nan),
     r'must be in \[0, 0.5\)'),
    (lambda c: checks.interval(c, 'config', '(0, inf]', 'x'), (1e-9, math.inf), (0, -1, math.nan),
     r'must be in \(0, inf\]'),
    (lambda c: checks.fixed(c, 'config', 'where a is off', x=0), (0,), (1,),
     'must be 0 where a is off'),
])
def test_ranges(check, passing, failing, rule):
  for value in passing:
    check(_config(x=value))
  for value in failing:
    with pytest.raises(ValueError, match=f'^config.x {rule}, got {value}$'):
      check(_config(x=value))


def test_required():
  checks.required(_config(path='a'), 'config', 'path')
  with pytest.raises(ValueError, match="^config.path must be set, got ''$"):
    checks.required(_config(path=''), 'config', 'path')


def test_model_directory(tmp_path):
  checks.model_directory(types.SimpleNamespace(a='', b=str(tmp_path)), 'config', 'a', 'b')
  with pytest.raises(ValueError, match="config.a: not a directory: 'nowhere'"):
    checks.model_directory(types.SimpleNamespace(a='nowhere'), 'config', 'a')
  with pytest.raises(ValueError, match="config.a: not a directory: 'Org/M-1.5B'; download a mo"):
    checks.model_directory(types.SimpleNamespace(a='Org/M-1.5B'), 'config', 'a')


def test_hints_about_the_directory_of_a_model(tmp_path, monkeypatch):
  monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path))
  hint = checks.model_directory_hint
  assert 'hf download Org/M --local-dir DIR' in hint('Org/M')
  snapshots = tmp_path / 'models--Org--M' / 'snapshots'
  for age, name in ((100, 'old'), (50, 'new')):
    (snapshots / name).mkdir(parents=True)
    os.utime(snapshots / name, (10**9 - age, 10**9 - age))
  for path in ('Org/M', snapshots, snapshots.parent):
    assert hint(path).endswith(f'give {snapshots / "new"}'), path

  (tmp_path / 'm.GGUF').write_bytes(b'')
  for path in (tmp_path, tmp_path / 'm.GGUF'):
    assert hint(path).endswith(f'--from={tmp_path / "m.GGUF"} --to=DIR')
  # An ordinary directory, and paths that are not names on the hub.
  for path in (snapshots / 'new', tmp_path / 'absent', 'nowhere', 'tests/absent', 'a/b/c', ''):
    assert not hint(path), path
