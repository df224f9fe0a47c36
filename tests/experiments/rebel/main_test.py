"""REBEL's online pipeline, end to end on tiny checkpoints and real prompts; resumed to the bit."""

import json
import shutil

import pytest

from experiments.rebel import __main__ as rebel_main
from jaxrl_llm.models.pretrained import huggingface
from jaxrl_llm.runs import policy_report, reward_config
from jaxrl_llm.training import loop, metrics
from tests.experiments import tiny, tiny_rebel


@pytest.fixture(scope='module', autouse=True)
def compiled_once():
  with pytest.MonkeyPatch.context() as patch:
    tiny_rebel.share_programs(patch)
    yield


@pytest.fixture(scope='module')
def folder(data_dir, tmp_path_factory):
  return tiny_rebel.write(tmp_path_factory.mktemp('rebel'), data_dir)


def _online(folder):
  """Trains only the last block, on preferences, some over the data's responses."""
  return tiny_rebel.online(
      folder, algorithm={'signal': 'preferences', 'offline_fraction': 0.3}, num_comparators=1,
      train_last_layers=1,
      reward=reward_config.RewardConfig(eos_check='off', missing_stop_penalty=0.0))


@pytest.fixture(scope='module')
def online(folder, tmp_path_factory):
  """An uninterrupted run. Copy the workdir before you change it."""
  workdir = tmp_path_factory.mktemp('online') / 'run'
  tiny_rebel.run(rebel_main.main, _online(folder), workdir)
  return workdir


# --- The online pipeline.


def test_metrics_and_results_of_the_online_pipeline(folder, online):
  outcome = tiny_rebel.outcome(online)
  results, records = outcome['results'], outcome['metrics.jsonl']
  assert [record['step'] for record in records] == [0, 1, 2, 3, 4]
  assert [r['step'] for r in records if 'eval/score' in r] == [0, 2, 4]

  trained = [record for record in records if 'train/loss' in record]
  assert len(trained) == 4
  for record in trained:
    assert record['train/initial_log_ratio'] < 1e-5  # R20.
    assert record['train/sampler_gap'] < 1e-4 and record['train/dropped'] == 0
    assert record['rollout/median_target'] <= 2  # A difference of preferences.
    assert record['train/grad_norm'] > 0

  # The policy is the reference before any step, and the saved one after the last.
  assert records[0]['eval/kl_to_reference'] == 0 < records[-1]['eval/kl_to_reference']
  for name in ('score', 'kl_to_reference', 'length', 'truncated', 'decoded_score'):
    assert results[f'eval/trained/{name}'] == records[-1][f'eval/{name}']
    assert results[f'eval/reference/{name}'] == records[0][f'eval/{name}']
  assert results['eval/prompts'] == 8 and 0 <= results['eval/trained/win_rate'] <= 1

  # Three samples of each of eight prompts: the pair and what it is compared with.
  tokens = [record['rollout/sampled_tokens'] for record in trained]
  assert results['sampled_tokens'] == tokens[-1] <= 4 * 8 * 3 * tiny_rebel.RESPONSE
  assert tokens == sorted(tokens) and tokens[0] > 8 * 3

  moved = tiny_rebel.moved(*map(tiny_rebel.load_params, (folder / 'policy', online / 'trained')))
  assert moved and all(name.startswith(('layers/1/', 'final_norm/', 'head/')) for name in moved)
  shown = outcome['samples.jsonl']
  assert [(line['step'], line['kind']) for line in shown] == [
      (step, kind) for step in (0, 2, 4) for kind in ('sampled', 'decoded') for _ in range(2)]
  assert (online / 'figures' / 'score.png').stat().st_size > 1_000

  rows = (online / 'figures' / 'score.csv').read_text().splitlines()
  assert rows[0].startswith('sampled_tokens,') and len(rows) == 4
  assert '| trained ' in (online / 'table.md').read_text()


def test_a_killed_run_of_the_online_pipeline_has_the_same_numbers(folder, online, tmp_path):
  config, workdir = _online(folder), tmp_path / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop.Keeper, 'after_step', tiny_rebel.dying(loop.Keeper.after_step, 3))
    with pytest.raises(tiny_rebel.Killed):
      tiny_rebel.run(rebel_main.main, config, workdir)
  assert [r['step'] for r in metrics.read_jsonl(workdir / 'metrics.jsonl')] == [0, 1, 2]
  with pytest.MonkeyPatch.context() as patch:  # Once more, when all but the results is there.
    patch.setattr(policy_report, '_figure', tiny_rebel.dying(policy_report._figure, 1))
    with pytest.raises(tiny_rebel.Killed):
      tiny_rebel.run(rebel_main.main, config, workdir)
  tiny_rebel.run(rebel_main.main, config, workdir)
  mine, theirs = tiny_rebel.outcome(workdir), tiny_rebel.outcome(online)
  assert mine.keys() == theirs.keys()
  for name, expected in theirs.items():
    assert mine[name] == expected, name


def test_a_replaced_reward_model_is_refused(folder, online, tmp_path):
  workdir, reward, original = tmp_path / 'run', folder / 'reward', tmp_path / 'reward'
  shutil.copytree(online, workdir)
  model = huggingface.read_config(folder / 'policy').config
  reward.rename(original)
  try:
    tiny_rebel.write_reward(reward, model, tokenizer_from=folder / 'policy', seed=2)
    with pytest.raises(ValueError, match='was trained with the reward model .*another --workdir'):
      tiny_rebel.run(rebel_main.main, _online(folder), workdir)
  finally:
    shutil.rmtree(reward)
    original.rename(reward)


# --- A published setting: ids of its schema, a reward model with a tokenizer of its own, bfloat16.


def test_the_published_settings_of_nectar_run_on_small_checkpoints(tmp_path, capsys):
  size = tiny.write_tokenizer(tmp_path / 'tokens', template=tiny.TEMPLATE)
  theirs = tiny.write_tokenizer(tmp_path / 'theirs', template=tiny.TEMPLATE, more=('<pad>',))
  shape = {'num_layers': 5, 'num_kv_heads': 2, 'attention_bias': False, 'tie_embeddings': False}
  model = tiny.shape(size, **shape)
  huggingface.save(tmp_path / 'policy', model, tiny.params(model), model_type='mistral',
                   tokenizer_from=tmp_path / 'tokens')
  tiny_rebel.write_reward(
      tmp_path / 'reward', tiny.shape(theirs, **shape), tokenizer_from=tmp_path / 'theirs',
      model_type='llama')
  padding = 9_999  # An id that no tokenizer has, as in the published files.
  rows = [{'prompt': f'Hi {i}', 'oc_prompt_tokens': [padding, 9, 10 + i, 11],
           'rm_tokens': [padding, padding, 12, 13 + i]} for i in range(24)]
  (tmp_path / 'train.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  status = tiny.run(
      rebel_main.main,
      f'--config={tiny.REPOSITORY}/experiments/configs/rebel_chat.py:nectar_openchat',
      f'--workdir={tmp_path / "run"}', f'--config.data_dir={tmp_path}',
      f'--config.policy_init_from={tmp_path / "policy"}',
      f'--config.reward_init_from={tmp_path / "reward"}', '--config.task.num_evaluation=8',
      '--config.task.max_prompt_tokens=8', '--config.task.max_response_tokens=8',
      '--config.reward.max_tokens=16', '--config.steps=2', '--config.batch_size=8',
      '--config.algorithm.num_micro_batches=1', '--config.evaluation.batch_size=8',
      '--config.evaluation.temperature=0.5', experiment='rebel')
  assert status == 0, capsys.readouterr().err

  outcome = tiny_rebel.outcome(tmp_path / 'run')
  for record in outcome['metrics.jsonl'][:2]:
    assert record['train/initial_log_ratio'] < 1e-2  # In bfloat16.
    assert record['rollout/score'] and record['train/sampler_gap'] < 0.05
  results = outcome['results']
  assert results['eval/reference/score'] and 'eval/trained/win_rate' in results


# --- Bad input is one line, with status 2.


def _command(folder, tmp_path, *arguments, config='rebel_chat'):
  """Runs the command of a user in this process; returns its status."""
  return tiny.run(
      rebel_main.main, f'--config={tiny.REPOSITORY / "experiments" / "configs" / config}.py',
      f'--workdir={tmp_path / "run"}', f'--config.data_dir={folder}',
      f'--config.policy_init_from={folder / "policy"}', '--config.task.files=pairs.json',
      '--config.task.num_evaluation=8', '--config.task.template=auto', *arguments,
      experiment='rebel')


@pytest.mark.parametrize('arguments, words', [
    ([], ['config.reward_init_from must be the directory of a reward model']),
    (['--config.reward_init_from=nowhere'], ["reward_init_from: not a directory: 'nowhere'"]),
    (['--config.reward_init_from={folder}/policy'],
     ['must hold a reward model', 'got Qwen2ForCausalLM in']),
    (['--config.reward_init_from={folder}/two'], ['one score, got 2 labels']),
    (['--config.reward_init_from={folder}/foreign'],
     ['is not that of the policy', '--config.reward.template=auto']),
    (['--config.reward_init_from={folder}/reward', '--config.sft.log_every=4'],
     ['config.sft.log_every has no effect with config.policy_init_from']),
    (['--config.reward_init_from={folder}/reward', '--config.task.schema=nectar'],
     ["pairs.json, line 1: the key 'prompt' is missing"]),
    (['--config.reward_init_from={folder}/reward', '--config.batch_size=12',
      '--config.mesh.data=8'], ['must be divisible by', 'got 12 prompts (config.batch_size)']),
    (['--config.reward_init_from={folder}/reward', '--config.algorithm.offline_fraction=0.5',
      '--config.task.max_response_tokens=1'], ['has a response of at most 1 tokens to mix in']),
])
def test_bad_input_is_one_line(folder, tmp_path, capsys, arguments, words):
  if '{folder}/two' in str(arguments):
    tiny_rebel.write_reward(
        folder / 'two', huggingface.read_config(folder / 'policy').config, outputs=2,
        tokenizer_from=folder / 'policy')
  if '{folder}/foreign' in str(arguments):
    size = tiny.write_tokenizer(tmp_path / 'tokens', characters='abc')
    tiny_rebel.write_reward(
        folder / 'foreign', tiny.shape(size), tokenizer_from=tmp_path / 'tokens')
  status = _command(folder, tmp_path, *(text.format(folder=folder) for text in arguments))
  errors = capsys.readouterr().err
  lines = [line for line in errors.splitlines() if 'error' in line]
  assert status == 2 and len(lines) == 1 and 'Traceback' not in errors, errors
  for word in words:
    assert word in lines[0], (word, lines[0])
  assert not (tmp_path / 'run' / 'results.json').exists()
