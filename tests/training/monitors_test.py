"""Warnings about rewards without a signal, estimates of time, and announced compilations."""

import io
import re

import jax
import numpy as np
import pytest

from jaxrl_llm.training import compilation, monitors


def _warnings(batches, capsys, **options):
  monitor = monitors.RewardMonitor(**options)
  for rewards, cut in batches:
    rewards = np.array(rewards)
    monitor(rewards, np.full(rewards.shape, cut))
  return capsys.readouterr().err.splitlines()


ZEROS, MIXED, EQUAL = [[0, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 0], [1, 1]]
NAN = [[np.nan, 0], [0, 0]]


def test_rewards_without_a_signal_are_reported_once(capsys):
  assert not _warnings([(ZEROS, False)] * 2, capsys)
  (line,) = _warnings([(ZEROS, False)] * 9, capsys)
  assert line.startswith('warning: all 12 rewards so far are 0') and 'cut off' not in line
  assert 'chat template' in line
  (line,) = _warnings([(ZEROS, True)] * 3, capsys)
  assert '100 % of the responses were cut off (raise the response limit' in line
  (line,) = _warnings([(ZEROS, True)], capsys, num_batches=1)
  assert 'all 4 rewards' in line
  (line,) = _warnings([(np.ones((2, 2)), False)] * 3, capsys)
  assert line.endswith('are 1, so that nothing is learned from them: use harder prompts')
  (line,) = _warnings([(EQUAL, False)] * 3, capsys)
  assert 'the samples of each of 6 prompts got equal rewards' in line
  assert _warnings([(NAN, False)] * 3, capsys)


def test_rewards_with_a_signal_are_not(capsys):
  for batches in (
      [MIXED] * 9, [ZEROS, ZEROS, MIXED, ZEROS, ZEROS],
      [[[0], [1]]] * 9,  # One sample per prompt: the rewards of the batch differ.
      [[[np.nan, np.nan]]] * 9):
    assert not _warnings([(batch, True) for batch in batches], capsys)
  # One sample per prompt, all equal.
  (line,) = _warnings([([[0], [0]], False)] * 3, capsys)
  assert 'all 6 rewards so far are 0' in line


def _estimate(seconds, capsys, *, total=1000, done=0, advice=None):
  """Lines printed by steps of the given seconds; the first one waits for 60 s more."""
  now = [0.0]
  estimate = monitors.TimeEstimate(total, 'training', advice or {}, clock=lambda: now[0])
  for step in range(done, min(done + 50, total)):
    now[0] += seconds + 60 * (step == done)
    estimate(step + 1)
  return capsys.readouterr().err.splitlines()


def test_the_time_of_the_run_is_estimated_without_the_first_step(capsys):
  assert _estimate(6.0, capsys) == [
      'training: about 100 minutes for the other 998 steps, 6 s a step']
  (line,) = _estimate(90.0, capsys, advice={'sft.steps': 1000, 'sft.batch_size': 16})
  assert line == (
      'training: about 25 hours for the other 998 steps, 90 s a step; to shorten it lower '
      'config.sft.steps (1000), config.sft.batch_size (16). Ctrl-C stops it, and the steps so far '
      'are saved')
  assert _estimate(1.0, capsys, done=500) == [
      'training: about 8 minutes for the other 494 steps, 1 s a step']
  assert not _estimate(0.1, capsys)  # Less than two minutes.
  assert not _estimate(200.0, capsys, total=2)


def test_the_expected_number_of_steps_may_change(capsys):
  now = [0.0]
  estimate = monitors.TimeEstimate(1000, 'training', {}, clock=lambda: now[0])
  for step, total in ((1, 1000), (2, 102)):
    now[0] += 60
    estimate(step, total)
  assert capsys.readouterr().err.splitlines() == [
      'training: about 100 minutes for the other 100 steps, 60 s a step']


@pytest.mark.parametrize(('seconds', 'text'), [
    (61, '61 seconds'), (600, '10 minutes'), (7200, '2 hours'), (90_000, '25 hours'),
    (400_000, '5 days')])
def test_durations(seconds, text):
  assert monitors.readable_time(seconds) == text


def test_long_compilations_are_announced():
  lines = {}
  for seconds in (0.0, 100.0):
    @jax.jit
    def slow_to_compile(x):
      return sum(jax.numpy.sin(x * i) @ x for i in range(40)).sum()

    stream = io.StringIO()
    with compilation.announced(after_seconds=seconds, stream=stream):
      for _ in range(2):
        slow_to_compile(np.ones((3, 3), np.float32)).block_until_ready()
    lines[seconds] = stream.getvalue().splitlines()

  of_ours = [line for line in lines[0.0] if 'slow_to_compile' in line]
  assert [re.sub(r'\d+ s', 'N s', line) for line in of_ours] == [
      'compiling slow_to_compile (first call) ...', 'compiled slow_to_compile in N s']
  assert not lines[100.0]
