"""The common part of training loops: where a stopped loop resumes, and what it refuses."""

import contextlib
import types

import jax.numpy as jnp
import pytest

from jaxrl_llm.runs import references, training_loop
from jaxrl_llm.training import loop, metrics, monitors


def _reference(fingerprint):
  return references.Reference(lambda policy: {}, None, fingerprint, 0, 0, 0.0)


def _train(workdir, *, last=5, fingerprint='aaaa', token_budget=None):
  """Runs the steps before `last` of five, and saves every two; returns (steps, state, metadata)."""
  setup = types.SimpleNamespace(
      config=types.SimpleNamespace(steps=5, task=None),
      run=types.SimpleNamespace(workdir=workdir, save_clock=lambda: None, identity={}),
      stopper=loop.Stopper())

  with (
      contextlib.closing(metrics.MetricsWriter(workdir)) as writer,
      training_loop.start(
          setup, 'toy', {'count': jnp.zeros(())}, files={'metrics': writer}, total=5, save_every=2,
          description='toy', offset=10, metadata={'tokens': 0},
          frozen={'reference': _reference(fingerprint)}, token_budget=token_budget) as training,
  ):
    steps = []
    for step in training.steps():
      if step == last:
        break
      training.state = {'count': training.state['count'] + 1}
      training.metadata['tokens'] += 3
      training.log(step, {'train/loss': float(training.state['count'])})
      training.end_step(step)
      steps.append(step)
  return steps, training.state, training.metadata


def test_a_stopped_loop_resumes_from_its_last_checkpoint(tmp_path):
  steps, _, _ = _train(tmp_path, last=3)
  assert steps == [0, 1, 2]

  steps, state, metadata = _train(tmp_path, last=5)
  assert steps == [2, 3, 4]
  assert state['count'] == 5 and metadata == {'tokens': 15, 'reference': 'aaaa'}
  records = metrics.read_jsonl(tmp_path / 'metrics.jsonl')
  assert [record['step'] for record in records] == [10, 11, 12, 13, 14]
  assert [record['train/loss'] for record in records] == [1, 2, 3, 4, 5]
  assert _train(tmp_path, last=5)[0] == []


@pytest.mark.parametrize(('budget', 'expected'), [
    (0, []), (6, [0, 1]), (7, [0, 1, 2]), (100, [0, 1, 2, 3, 4])])
def test_a_token_budget_ends_the_steps(tmp_path, budget, expected):
  assert _train(tmp_path, token_budget=budget)[0] == expected  # Each samples 3 tokens.
  saved = 2 * (len(expected) // 2) if len(expected) < 5 else 5
  assert _train(tmp_path, token_budget=budget)[0] == expected[saved:]


def test_the_time_is_estimated_for_the_token_budget(tmp_path, monkeypatch):
  totals = []
  monkeypatch.setattr(
      monitors.TimeEstimate, '__call__', lambda self, done, total: totals.append((done, total)))
  for name, budget in (('without', None), ('with', 7)):
    (tmp_path / name).mkdir()
    _train(tmp_path / name, token_budget=budget)
  assert totals == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5), (1, 3), (2, 3), (3, 3)]


def test_a_checkpoint_of_another_reference_is_refused(tmp_path):
  _train(tmp_path, last=3)
  with pytest.raises(ValueError, match='trained against the reference aaaa, this run has bbbb'):
    _train(tmp_path, last=5, fingerprint='bbbb')


def test_a_loss_that_is_not_finite_names_its_step(tmp_path):
  setup = types.SimpleNamespace(
      config=types.SimpleNamespace(steps=5, task=None),
      run=types.SimpleNamespace(workdir=tmp_path, save_clock=lambda: None, identity={}),
      stopper=loop.Stopper())
  with (
      contextlib.closing(metrics.MetricsWriter(tmp_path)) as writer,
      pytest.raises(loop.NonFiniteLossError, match='got nan at step 3'),
      training_loop.start(
          setup, 'toy', {'count': jnp.zeros(())}, files={'metrics': writer}, total=5, save_every=2,
          description='toy', offset=10) as training,
  ):
    training.log(3, {'train/loss': float('nan')})
