"""Online RL end to end on a tiny checkpoint: learning, PPO's critic with adapters, resuming."""

import json

import jax
import numpy as np
import pytest

from experiments.configs import online_rl_arithmetic, online_rl_own
from experiments.online_rl import __main__ as online_rl
from experiments.online_rl import config as online_config
from experiments.online_rl import critics
from jaxrl_llm.algorithms import a_star_po, dpo, grpo, ppo, rebel, reinforce, rloo
from jaxrl_llm.models import lora
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs.memory import num_weights
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.tasks import arithmetic, chat, jsonl
from jaxrl_llm.training import loop, metrics, optim
from tests.experiments import tiny, tiny_rebel

CHARACTERS = sorted(set('[]assistantuser012'))


def stops(prompt, response, example):
  """A reward that a random policy often gets: a truncated response scores 0 in any case."""
  return 1.0


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('online_rl')
  tiny.write_checkpoint(
      folder / 'policy', template=tiny.TEMPLATE, characters=CHARACTERS, tie_embeddings=False)
  rows = [{'prompt': f'{i:04b}'} for i in range(16)]
  (folder / 'task.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return folder


@pytest.fixture(scope='module', autouse=True)
def compiled_once():
  with pytest.MonkeyPatch.context() as patch:
    tiny_rebel.share_programs(patch)
    yield


def _config(folder, algorithm, **changes):
  return online_config.OnlineRl(**{
      'data_dir': str(folder),
      'task': jsonl.Config(
          files='task.jsonl', answer_field='', reward=f'{__name__}:stops',
          evaluation_fraction=0.5, max_prompt_tokens=32, max_response_tokens=4),
      'policy_init_from': str(folder / 'policy'), 'algorithm': algorithm,
      'sft': config_lib.SftConfig(steps=0),
      'evaluation': config_lib.EvaluationConfig(
          num_samples=1, batch_size=8, control_temperature=1.0, num_shown=2, head_chunk=0),
      'optimizer': optim.OptimizerConfig(name='adam', learning_rate=3e-2, schedule='constant'),
      'steps': 4, 'batch_size': 8, 'eval_every': 2, 'save_every': 2, **changes})


def _run(config, workdir):
  tiny_rebel.run(online_rl.main, config, workdir, experiment='online_rl')


@pytest.fixture(scope='module')
def with_critic(folder, tmp_path_factory):
  """A run of PPO with adapters for policy and critic, on two devices; not to be changed."""
  workdir = tmp_path_factory.mktemp('ppo') / 'run'
  _run(_ppo(folder), workdir)
  return workdir


def _ppo(folder):
  return _config(
      folder, ppo.Config(temperature=1.0, head_chunk=0, num_epochs=2),
      lora=lora.LoraConfig(rank=2), mesh=mesh_lib.MeshConfig(data=2))


def test_the_policy_learns(folder, tmp_path):
  """GRPO on all parameters, from a policy that rarely stops within four tokens."""
  config = _config(
      folder, grpo.Config(samples_per_prompt=4, kl_coefficient=0.0, head_chunk=0), steps=12,
      eval_every=12)
  _run(config, tmp_path / 'run')
  results = tiny_rebel.outcome(tmp_path / 'run')['results']
  assert results['algorithm'] == 'grpo'
  assert results['eval/reference/pass@1'] < 0.5 and results['eval/trained/pass@1'] > 0.8
  records = [r for r in metrics.read_jsonl(tmp_path / 'run' / 'metrics.jsonl')
             if 'rollout/reward' in r]
  assert len(records) == 12 and records[0]['train/initial_log_ratio'] < 1e-5
  assert results['sampled_tokens'] == records[-1]['rollout/sampled_tokens'] <= 12 * 32 * 4
  table = (tmp_path / 'run' / 'table.md').read_text()
  assert '| trained (grpo) ' in table and '| reference at temperature 1 ' in table


def test_metrics_and_results_of_ppo(with_critic):
  outcome = tiny_rebel.outcome(with_critic)
  results, records = outcome['results'], outcome['metrics.jsonl']
  assert [r['step'] for r in records if 'eval/pass@1' in r] == [0, 2, 4]
  assert records[0]['eval/kl_to_reference'] == 0 < records[-1]['eval/kl_to_reference']
  assert records[0]['train/value'] != records[-2]['train/value']
  for name in ('pass@1', 'greedy_accuracy', 'kl_to_reference', 'length'):
    assert results[f'eval/trained/{name}'] == records[-1][f'eval/{name}']
    assert results[f'eval/reference/{name}'] == records[0][f'eval/{name}']
  assert results['eval/problems'] == 8 and results['sampled_tokens'] <= 4 * 8 * 4
  shown = outcome['samples.jsonl']
  assert [(line['step'], line['kind']) for line in shown] == [
      (step, kind) for step in (0, 2, 4) for kind in ('sampled', 'greedy') for _ in range(2)]


def test_a_killed_run_of_ppo_has_the_same_numbers(folder, with_critic, tmp_path):
  workdir = tmp_path / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop.Keeper, 'after_step', tiny_rebel.dying(loop.Keeper.after_step, 3))
    with pytest.raises(tiny_rebel.Killed):
      _run(_ppo(folder), workdir)
  _run(_ppo(folder), workdir)
  mine, theirs = tiny_rebel.outcome(workdir), tiny_rebel.outcome(with_critic)
  for name, expected in theirs.items():
    assert mine[name] == expected, name


@pytest.mark.parametrize('algorithm', [
    rebel.Config(
        samples_per_prompt=4, pairs='best_worst', temperature=1.0, head_chunk=0, num_epochs=2),
    rloo.Config(samples_per_prompt=4, head_chunk=0),
    reinforce.Config(baseline='running', samples_per_prompt=4, head_chunk=0),
    dpo.Config(samples_per_prompt=4, pairs='best_worst', head_chunk=0),
], ids=['rebel', 'rloo', 'reinforce', 'dpo'])
def test_the_other_algorithms_train(folder, tmp_path, capfd, algorithm):
  config = _config(folder, algorithm, steps=2, eval_every=2)
  _run(config, tmp_path / 'run')
  results = tiny_rebel.outcome(tmp_path / 'run')['results']
  assert results['algorithm'] == config.name and results['eval/trained/kl_to_reference'] > 0
  assert 'log-ratio' not in capfd.readouterr().err  # Also not of DPO.


def test_the_token_budget_ends_a_run(folder, tmp_path):
  config = _ppo(folder)
  config.token_budget, config.eval_every = 40, 4
  _run(config, tmp_path / 'run')
  tokens = [r['rollout/sampled_tokens'] for r in metrics.read_jsonl(
      tmp_path / 'run' / 'metrics.jsonl') if 'rollout/sampled_tokens' in r]
  assert len(tokens) < 4 and tokens[-2] < 40 <= tokens[-1]


@pytest.mark.parametrize('changes', [
    {}, {'lora': lora.LoraConfig(rank=2)}, {'train_last_layers': 1}])
def test_the_critic_is_the_policys_trunk_with_a_head_of_zeros(folder, changes):
  with tiny_rebel.build(_config(folder, ppo.Config(), **changes)) as setup:
    critic, plain = critics.make(setup), setup.initial_params()
    made = critics.initial(setup, critic)(plain)['value']
    value = critic.plain(made)

  for name, leaf in plain.items():
    if name != 'head':
      jax.tree.map(np.testing.assert_array_equal, leaf, value[name])
  assert set(value) == set(plain) - {'head'} | {'value_head'}
  assert not any(leaf.any() for leaf in jax.tree.leaves(value['value_head']))
  if changes:  # The head is trained with any part.
    optimizer = optim.make_optimizer(optim.OptimizerConfig(), trainable=critic.trainable)
    head = optimizer.select({'value': made})['value']
    head = head.get('base', head)['value_head']
    assert len(jax.tree.leaves(head)) == 2


@pytest.mark.parametrize('variant', online_rl_arithmetic.VARIANTS)
def test_every_variant_has_a_valid_config(folder, variant):
  scratch, own = online_rl_arithmetic.get_config(variant), online_rl_own.get_config(variant)
  assert scratch.name == own.name == variant
  own.policy_init_from, own.task.files = str(folder / 'policy'), 'task.jsonl'
  for config, completions in ((scratch, 128), (own, 32)):
    config.validate()
    assert config.batch_size * config.algorithm.samples_per_prompt == completions
  assert scratch.updates_per_batch == {'rebel': 4, 'ppo': 4}.get(variant, 1)


@pytest.mark.parametrize('changes, words', [
    ({'algorithm': a_star_po.Config()}, 'config.algorithm must be the Config of one of rebel, gr'),
    ({'algorithm': None}, 'got NoneType'),
    ({'algorithm': rebel.Config(signal='preferences')}, 'config.algorithm.signal'),
    ({'algorithm': reinforce.Config(temperature=0.0)}, r'temperature .* \(config.algorithm\)'),
    ({'algorithm': reinforce.Config(num_micro_batches=3)}, 'batch_size must be divisible by'),
    ({'task': chat.Config()}, 'config.task must have a reward'),
    ({'steps': -1}, 'config.steps'), ({'token_budget': -1}, 'config.token_budget'),
    ({'eval_every': 0}, 'config.eval_every'), ({'batch_size': 0}, 'config.batch_size'),
])
def test_bad_configs_are_one_line(changes, words):
  config = online_config.OnlineRl(**{'task': arithmetic.Config(), **changes})
  with pytest.raises(ValueError, match=words) as error:
    config.validate()
  assert '\n' not in str(error.value)


def test_a_critic_needs_memory_of_its_own():
  memory = lambda algorithm: online_rl_arithmetic.get_config(algorithm).memory()
  name = "the critic and its optimizer's moments (config.model)"
  assert name not in memory('grpo')
  assert memory('ppo')[name] == 3 * 4 * num_weights(online_rl_arithmetic.get_config().model)


def test_only_dpo_against_the_reference_starts_elsewhere_than_its_sampler():
  compares = lambda algorithm: online_config.OnlineRl(algorithm=algorithm).compares_with_reference
  assert compares(dpo.Config())
  assert not compares(dpo.Config(reference='policy')) and not compares(grpo.Config())
