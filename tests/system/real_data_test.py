"""The GSM8K and Countdown configs on real files, reduced to seconds."""

import pytest

from jaxrl_llm.training import metrics
from tests.system import running

_SMALL = (
    '--config.model.num_layers=1', '--config.model.width=16', '--config.model.num_heads=2',
    '--config.model.num_kv_heads=1', '--config.model.head_dim=8', '--config.model.mlp_width=16',
    '--config.sft.steps=2', '--config.sft.optimizer.warmup_steps=0', '--config.sft.batch_size=4',
    '--config.steps=2',
    '--config.batch_size=4', '--config.stage1_batch_size=8',
    '--config.algorithm.samples_per_prompt=2', '--config.evaluation.num_samples=1',
    '--config.evaluation.batch_size=8', '--config.evaluation.diagnosed_prompts=0',
)
_TASKS = {
    'gsm8k': (
        '--config.task.num_train=8', '--config.task.num_evaluation=8',
        '--config.task.max_response_tokens=24', '--config.task.num_demonstrations=8',
        '--config.task.max_vocabulary=512', '--config.task.max_prompt_tokens=100',
        '--config.algorithm.stage1_reward=lenient',
    ),
    'countdown': (
        '--config.task.num_train=16', '--config.task.num_demonstrations=16',
        '--config.evaluation.batch_size=64',
    ),
}


@pytest.mark.parametrize('task', _TASKS)
def test_the_program_runs_on_the_real_files(runner, data_dir, tmp_path, task):
  if task == 'gsm8k':
    # Demonstrations longer than the response limit are left out and counted.
    arguments = [*_SMALL, *_TASKS[task], '--config.task.max_response_tokens=60']
  else:
    arguments = [*_SMALL, *_TASKS[task]]
  config = running.REPOSITORY / 'experiments' / 'configs' / f'a_star_po_{task}.py'
  done = runner.command(
      'a_star_po', f'--config={config}', f'--config.data_dir={data_dir / task}',
      f'--workdir={tmp_path / "run"}', *arguments, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert 'from scratch' in done.stdout
  results = running.results(tmp_path / 'run')
  assert results['eval/problems'] == (8 if task == 'gsm8k' else 256)
  records = metrics.read_jsonl(tmp_path / 'run' / 'metrics.jsonl')
  assert [record['step'] for record in records if 'rollout/reward' in record] == [2, 3]


def test_the_released_variants_need_a_checkpoint(runner, data_dir, tmp_path):
  config = running.REPOSITORY / 'experiments' / 'configs' / 'a_star_po_gsm8k.py'
  done = runner.command(
      'a_star_po', f'--config={config}:qwen2.5_1.5b', f'--config.data_dir={data_dir / "gsm8k"}',
      cwd=tmp_path)
  running.assert_one_line(done, '--config.policy_init_from=DIR')


@pytest.mark.parametrize('damage', ['missing', 'truncated'])
def test_missing_and_truncated_files_are_one_line_errors(runner, data_dir, tmp_path, damage):
  folder = tmp_path / 'data' / 'gsm8k'
  folder.mkdir(parents=True)
  if damage == 'truncated':
    for name in ('train.jsonl', 'test.jsonl'):
      (folder / name).write_bytes((data_dir / 'gsm8k' / name).read_bytes()[:5000])
  config = running.REPOSITORY / 'experiments' / 'configs' / 'a_star_po_gsm8k.py'
  done = runner.command(
      'a_star_po', f'--config={config}', f'--config.data_dir={folder}', cwd=tmp_path)
  running.assert_one_line(done, 'train.jsonl')
