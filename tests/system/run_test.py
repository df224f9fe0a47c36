"""Outputs and internals of an uninterrupted run of experiments/a_star_po/."""

import collections
import csv
import json

import numpy as np
import pytest

from experiments.configs import a_star_po_arithmetic  # noqa: F401 - imports as a user's config.
from jaxrl_llm.rl import soft_values
from jaxrl_llm.tables import digests
from jaxrl_llm.tasks import arithmetic
from jaxrl_llm.training import metrics
from tests.system import running, tiny_config


@pytest.fixture(scope='module')
def records(whole):
  return metrics.read_jsonl(whole.workdir / 'metrics.jsonl')


def _task():
  config = tiny_config.get_config()
  return config.task.make(config.seed, '')


def test_every_jitted_function_is_compiled_once(whole):
  """Samplers (one per K, temperature and batch), scorer, train steps and KL divergence."""
  compiled = whole.record['compiled']
  assert compiled['jit(train_step)'] == 2  # One of fine-tuning, one of A*-PO.
  # N of stage 1, one, K and greedy of the evaluation, whose problems fill its batches.
  assert compiled['jit(sample)'] == 4
  # Nothing is compiled after the first batch of stage 2.
  first = running.SFT_STEPS
  counts = {step: sum(compiled.values()) for step, compiled in whole.record['compiled_at']}
  stage2 = [counts[step] for step in sorted(counts) if first < step <= first + running.STEPS]
  assert len(stage2) >= 5
  assert len(set(stage2)) == 1, stage2


def test_the_reference_stays_bit_identical(whole):
  pairs = whole.record['reference']
  assert len(pairs) == 2  # Before stage 1 and after stage 2.
  assert len({name for pair in pairs for name in pair}) == 1
  assert running.results(whole.workdir)['fingerprint/reference'] == pairs[0][0]


def test_A12_values_follow_the_example_through_shuffling_and_epochs(whole):
  """V* in each batch matches a table made from the rewards on disk."""
  task = _task()
  ids = {tuple(task.tokenizer.encode(e['prompt'])): e['id'] for e in task.train}
  lines = metrics.read_jsonl(whole.workdir / 'stage1.jsonl')[1:]
  rewards = {i: r for line in lines for i, r in zip(line['ids'], line['rewards'])}
  table = json.loads((whole.workdir / 'v_star.json').read_text())
  assert digests.is_intact(table) and table['max_response_tokens'] == task.max_response_tokens

  seen = collections.Counter()
  for batch in whole.record['batches']:
    for prompt, value in zip(batch['prompts'], batch['values']):
      example = ids[tuple(prompt)]
      k = sum(rewards[example])
      expected = 0.5 * np.log(1 - k / 4 + k / 4 * np.exp(2.0))
      assert value == pytest.approx(expected, abs=1e-6)
      assert table['values'][str(example)] == pytest.approx(expected, abs=1e-6)
      seen[example] += 1
  assert max(seen.values()) > 1  # More than one epoch: repeated prompts were looked up again.


def test_results_have_the_keys_that_readers_use(whole):
  results = running.results(whole.workdir)
  for name in (
      'eval/reference/pass@1', 'eval/trained/pass@1', 'eval/reference/greedy_accuracy',
      'eval/trained/greedy_accuracy', 'eval/trained/kl_to_reference', 'eval/control/pass@1',
      'sampled_tokens/stage1', 'sampled_tokens/stage2', 'sampled_tokens', 'wall_seconds',
  ):
    assert isinstance(results[name], (int, float)), name
  for name in ('experiment', 'setting', 'commit', 'device', 'versions/jax'):
    assert isinstance(results[name], str), name
  assert results['sampled_tokens'] == (
      results['sampled_tokens/stage1'] + results['sampled_tokens/stage2'])
  assert all(isinstance(value, (int, float, str)) for value in results.values())


def test_metrics_of_every_batch(whole, records):
  stage2 = [r for r in records if 'rollout/reward' in r]
  assert [r['step'] for r in stage2] == [running.SFT_STEPS + i for i in range(running.STEPS)]
  for record in stage2:
    for name in ('train/loss', 'train/grad_norm', 'train/learning_rate', 'train/entropy',
                 'rollout/truncated', 'rollout/length', 'time/sample_seconds'):
      assert np.isfinite(record[name]), name
    assert 0 <= record['train/sampler_gap'] <= 1e-4
  assert [r.get('train/initial_log_ratio', 1.0) < 1e-5 for r in stage2] == [
      True, *[False] * (len(stage2) - 1)]  # Only the first batch's policy is the reference.
  assert (whole.workdir / 'tensorboard').is_dir()


def test_evaluations_are_before_the_first_batch_every_few_and_after_the_last(records):
  evaluated = [r['step'] - running.SFT_STEPS for r in records if 'eval/pass@1' in r]
  assert evaluated == [0, 4, 8, 10]


def test_samples_show_the_same_problems_at_each_evaluation(whole):
  task = _task()
  shown = metrics.read_jsonl(whole.workdir / 'samples.jsonl')
  by_step = collections.defaultdict(list)
  for line in shown:
    by_step[line['step'], line['kind']].append(line)
    assert line['stop_reason'] in ('stopped', 'truncated')
    right = line['response'] == line['answer'] and line['stop_reason'] == 'stopped'
    assert line['reward'] == float(right)
  assert set(by_step) == {(s, k) for s in (0, 4, 8, 10) for k in ('sampled', 'greedy')}
  for lines in by_step.values():
    assert [line['id'] for line in lines] == [e['id'] for e in task.evaluation[:2]]


def test_figures_have_their_data_next_to_them(whole, records):
  figures = whole.workdir / 'figures'
  for name in ('learning_curve', 'v_star'):
    assert (figures / f'{name}.png').read_bytes().startswith(b'\x89PNG')
  curve = running.read_csv(figures / 'learning_curve.csv')
  evaluated = [r for r in records if 'eval/pass@1' in r]
  assert [row['sampled_tokens'] for row in curve] == [r['eval/sampled_tokens'] for r in evaluated]
  assert [row['pass@1, sampled'] for row in curve] == [r['eval/pass@1'] for r in evaluated]
  # The curve starts with the tokens of stage 1.
  assert curve[0]['sampled_tokens'] == running.results(whole.workdir)['sampled_tokens/stage1']
  rows = running.read_csv(figures / 'v_star.csv')
  grid = {float(soft_values.binary_v_star(np.float32(k / 4), beta=0.5)) for k in range(5)}
  assert all(min(abs(row['estimated_value'] - v) for v in grid) < 1e-6 for row in rows)


def test_the_table_is_printed_and_saved(whole):
  table = (whole.workdir / 'table.md').read_text()
  assert table.splitlines()[0] in whole.stdout
  for row in ('| reference ', '| reference at temperature 0.5', '| trained (A*-PO)'):
    assert row in table
  header = next(csv.reader([table.splitlines()[0]], delimiter='|'))
  assert len(header) == 9


def test_evaluation_problems_are_in_neither_sft_nor_either_stage():
  task = _task()
  held_out = {frozenset((e['a'], e['b'])) for e in task.evaluation}
  assert not held_out & {frozenset((e['a'], e['b'])) for e in (*task.demonstrations, *task.train)}
  assert arithmetic.has_carry([e['a'] for e in task.train], [e['b'] for e in task.train]).any()


def test_a_complete_run_is_reported(runner, whole):
  before = (whole.workdir / 'results.json').read_bytes()
  done = runner.finish(whole.workdir)
  assert done.returncode == 0
  assert 'This run is complete' in done.stdout and '| trained (A*-PO)' in done.stdout
  assert (whole.workdir / 'results.json').read_bytes() == before


def test_another_config_in_the_same_workdir_is_refused_by_field(runner, whole):
  done = runner.finish(whole.workdir, '--config.steps=11', '--config.optimizer.learning_rate=0.5')
  running.assert_one_line(
      done, 'config.steps: 10 there, 11 given', 'config.optimizer.learning_rate: 0.01 there')


def test_sft_alone_makes_the_same_reference_and_other_runs_start_from_it(runner, whole, tmp_path):
  done = runner.finish(tmp_path / 'sft', experiment='sft')
  assert done.returncode == 0, done.stderr
  reference = running.results(whole.workdir)['fingerprint/reference']
  assert running.results(tmp_path / 'sft')['fingerprint'] == reference

  params = tmp_path / 'sft' / 'params'
  done = runner.finish(
      tmp_path / 'run', f'--config.policy_init_from={params}', '--config.steps=2',
      '--config.algorithm.filter_all_wrong=True', '--config.algorithm.num_minibatches=2')
  assert done.returncode == 0, done.stderr

  results = running.results(tmp_path / 'run')
  assert results['fingerprint/reference'] == reference
  steps = [r['step'] for r in metrics.read_jsonl(tmp_path / 'run' / 'metrics.jsonl')]
  assert steps == [0, 1, 2]  # Nothing was fine-tuned here.

  # Parameters of another model are refused, with the field.
  done = runner.finish(
      tmp_path / 'other', f'--config.policy_init_from={params}', '--config.model.width=32')
  running.assert_one_line(done, 'model.width', '16', '32')


def test_a_token_budget_ends_stage_2_and_a_restart_ends_the_same(runner, whole, tmp_path):
  stage1 = running.results(whole.workdir)['sampled_tokens/stage1']
  budget = f'--config.token_budget={stage1 + 60}'
  one = runner.finish(tmp_path / 'one', budget)
  assert one.returncode == 0, one.stderr
  results = running.results(tmp_path / 'one')
  assert results['sampled_tokens'] >= stage1 + 60
  records = metrics.read_jsonl(tmp_path / 'one' / 'metrics.jsonl')
  spent = [r['rollout/sampled_tokens'] for r in records if 'rollout/sampled_tokens' in r]
  assert 1 < len(spent) < running.STEPS
  assert spent[-2] < 60 <= spent[-1] == results['sampled_tokens/stage2']
  running.copy(tmp_path / 'one', tmp_path / 'two')
  assert runner.finish(tmp_path / 'two', budget).returncode == 0
  running.assert_same(tmp_path / 'two', tmp_path / 'one')


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--config.algorithm.samples_per_prompt=0'], ['samples_per_prompt', 'at least 1', '0']),
        (['--config.algorithm.beta1=0'], ['beta1', 'positive', '0']),
        (['--config.algorithm.beta2=-1'], ['beta2', 'positive', '-1']),
        (['--config.algorithm.beta3=1'], ['unknown field config.algorithm.beta3', 'beta']),
        (['--config.steps=many'], ['config.steps must be an integer', "'many'"]),
        (['--config.data_dir=/nowhere'], ['generated', '/nowhere']),
        (['--config.policy_init_from=/nowhere'], ['policy_init_from', '/nowhere']),
        (['--config.sft.steps=0'], ['policy_init_from', 'sft.steps', '0']),
        (['--config.model.max_length=3'], ['max_length must be at least', '3']),
        (['--config.batch_size=7', '--config.algorithm.num_minibatches=2'], ['batch_size', '7']),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, arguments, words):
  done = running.refuse(tmp_path / 'run', *arguments)
  running.assert_one_line(done, *words)
  assert not (tmp_path / 'run').exists() or not list((tmp_path / 'run').glob('*.json*'))
