"""Every field of REBEL's configs has a visible effect or is refused."""

import dataclasses
import json
import re

import pytest

from experiments.rebel import __main__ as rebel_main
from experiments.rebel import config as rebel_config
from jaxrl_llm.algorithms import rebel as algorithm
from jaxrl_llm.models import configs, lora
from jaxrl_llm.runs import command_line
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.sharding import mesh
from jaxrl_llm.tasks import config as task_config
from jaxrl_llm.tasks import preferences
from jaxrl_llm.training import checkpoints, metrics, optim
from tests.experiments import tiny, tiny_rebel

CONFIGS = tiny.REPOSITORY / 'experiments' / 'configs'


@pytest.fixture(scope='module')
def folder(data_dir, tmp_path_factory):
  return tiny_rebel.write(tmp_path_factory.mktemp('config'), data_dir)


# --- Errors.

_ONLINE_ERRORS = {
    'steps': (-1, 'config.steps must be at least 0, got -1'),
    'eval_every': (0, 'config.eval_every must be at least 1, got 0'),
    'save_every': (0, 'config.save_every must be at least 1, got 0'),
    'batch_size': (0, 'config.batch_size must be at least 1, got 0'),
    'num_comparators': (2, "num_comparators must be positive with .* and 0 with 'rewards', got 2"),
    'reward_init_from': ('', 'reward_init_from must be the directory of a reward model'),
    'reference_init_from': ('nowhere', "reference_init_from: not a directory: 'nowhere'"),
    'chat_template': ('none', "chat_template must be 'auto' for a task with config.task.template"),
    'system': ('S', "config.system must be '' for a task with config.task.template, got 'S'"),
    'reward.template': ('auto', "max_tokens must be 0 with template 'same'.*got 0 with 'auto'"),
    'reward.max_tokens': (9, "max_tokens must be 0 with template 'same'.*got 9 with 'same'"),
    'reward.overlong': ('right', "overlong must be 'left' with template 'same', got 'right'"),
    'reward.scale': (0.0, 'reward.scale must be positive and finite, got 0.0'),
    'reward.missing_stop_penalty': (float('inf'), 'missing_stop_penalty must be finite, got inf'),
    'reward.eos_check': ('off', "missing_stop_penalty must be 0.0 with eos_check 'off', got -1"),
    'evaluation.num_samples': (0, 'evaluation.num_samples must be at least 1, got 0'),
    'evaluation.temperature': (-1.0, 'evaluation.temperature must be non-negative'),
    'evaluation.batch_size': (0, 'evaluation.batch_size must be at least 1, got 0'),
    'evaluation.num_shown': (-1, 'evaluation.num_shown must be at least 0, got -1'),
    'evaluation.head_chunk': (-1, 'evaluation.head_chunk must be at least 0, got -1'),
    'algorithm.eta': (0.0, r'eta must be positive and finite, got 0.0 \(config.algorithm\)'),
    'algorithm.num_micro_batches': (3, r'divisible by num_minibatches \* num_micro_batches \(3\)'),
    'optimizer.warmup_steps': (8, 'must be less than the 8 optimizer steps of the run, got 8'),
    'optimizer.learning_rate': (0.0, 'learning_rate must be positive'),
}
_LARGE_ERRORS = {
    'rounds': (0, 'config.rounds must be at least 1, got 0'),
    'generation_batch_size': (0, 'config.generation_batch_size must be at least 1, got 0'),
    'steps': (-1, 'config.steps must be at least 0, got -1'),
    'eval_every': (0, 'config.eval_every must be at least 1, got 0'),
    'top_p': (0.0, 'config.top_p must be positive and finite, got 0.0'),
    'algorithm.kl_coefficient': (0.1, 'kl_coefficient must be 0.0 in the large-batch.*got 0.1'),
    'algorithm.whiten_rewards': (True, 'algorithm.whiten_rewards must be False .*got True'),
}


@pytest.mark.parametrize('path', _ONLINE_ERRORS)
def test_bad_fields_of_the_online_pipeline(folder, path):
  new, message = _ONLINE_ERRORS[path]
  config = tiny_rebel.online(folder)
  config.validate()
  with pytest.raises(ValueError, match=message) as error:
    tiny_rebel.changed(config, path, new).validate()
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('path', _LARGE_ERRORS)
def test_bad_fields_of_the_large_batch_pipeline(folder, path):
  new, message = _LARGE_ERRORS[path]
  config = tiny_rebel.large_batch(folder)
  config.validate()
  with pytest.raises(ValueError, match=message):
    tiny_rebel.changed(config, path, new).validate()


@pytest.mark.parametrize('options, name', [
    ({'pairs': 'all', 'samples_per_prompt': 2}, 'pairs'),
    ({'pairs': 'all', 'samples_per_prompt': 2, 'signal': 'preferences'}, 'pairs'),
    ({'pairs': 'all', 'samples_per_prompt': 2, 'offline_fraction': 0.5}, 'pairs'),
])
def test_the_large_batch_pipeline_needs_the_best_and_the_worst(folder, options, name):
  config = tiny_rebel.large_batch(folder)
  config.algorithm = dataclasses.replace(config.algorithm, **options)
  with pytest.raises(ValueError, match=f'algorithm.{name} must be .* large-batch pipeline'):
    config.validate()


# --- Effects.

# Changed in a single run; each leaves its own trace.
_CHANGED = {
    'seed': 3, 'steps': 3, 'batch_size': 16, 'eval_every': 2, 'save_every': 1, 'note': 'A note',
    'scale_note': 'scaled', 'policy_init_from': '', 'sft.steps': 2,
    'evaluation.num_samples': 2, 'evaluation.temperature': 0.0, 'evaluation.batch_size': 16,
    'evaluation.num_shown': 1, 'reward.scale': 2.0, 'reward.missing_stop_penalty': -4.0,
    'reward.eos_check': 'pad',
}
# Tested in tests/experiments/rebel/{main,batches}_test.py,
# tests/runs/{config,reward_models}_test.py and tests/system.
_ELSEWHERE = {
    'data_dir', 'reference_init_from', 'reward_init_from', 'train_last_layers', 'wandb_project',
    'chat_template', 'system',
    'num_comparators', 'reward.template', 'reward.max_tokens', 'reward.overlong',
    'evaluation.head_chunk',
}
_GROUPS = ('evaluation', 'reward')


def test_every_field_of_the_online_pipeline_is_tested(folder):
  config, names = tiny_rebel.online(folder), set()
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if field.name in _GROUPS:
      names |= {f'{field.name}.{inner.name}' for inner in dataclasses.fields(value)}
    elif not dataclasses.is_dataclass(value):
      names.add(field.name)
  assert names == (set(_CHANGED) - {'sft.steps'}) | _ELSEWHERE
  large = {field.name for field in dataclasses.fields(rebel_config.LargeBatch)}
  online = {field.name for field in dataclasses.fields(rebel_config.Online)}
  assert large - online == {
      'rounds', 'top_p', 'keep_truncated', 'generation_batch_size'}  # largebatch_test.py.


@pytest.fixture(scope='module')
def changed(folder, tmp_path_factory):
  """Adapters on a policy from scratch, best and worst of three, on a mesh of all axes."""
  config = tiny_rebel.online(
      folder, algorithm={'samples_per_prompt': 3, 'pairs': 'best_worst'},
      model=configs.TransformerConfig(
          num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_width=16,
          max_length=512),
      task=tiny_rebel.task(tokenizer_dir=str(folder / 'policy')),
      lora=lora.LoraConfig(rank=2, alpha=4.0), mesh=mesh.MeshConfig(2, 2, 2))
  for path, new in _CHANGED.items():
    config = tiny_rebel.changed(config, path, new)
  config.sft = dataclasses.replace(
      config.sft, batch_size=4, optimizer=optim.OptimizerConfig(learning_rate=1e-2))
  workdir = tmp_path_factory.mktemp('changed') / 'run'
  tiny_rebel.run(rebel_main.main, config, workdir)
  return workdir


def test_steps_and_intervals_show_in_the_files(changed):
  records = metrics.read_jsonl(changed / 'metrics.jsonl')
  # Two steps of fine-tuning, then three batches, then the last evaluation.
  assert [record['step'] for record in records] == [0, 1, 2, 3, 4, 5]
  assert [r['step'] for r in records if 'eval/score' in r] == [2, 4, 5]
  assert [r['step'] for r in records if 'rollout/score' in r] == [2, 3, 4]
  saved = {int(path.name) for path in (changed / 'checkpoints' / 'rebel').iterdir()}
  assert saved == {2, 3}
  lengths = [r['rollout/length'] * 16 * 3 for r in records if 'rollout/length' in r]
  results = json.loads((changed / 'results.json').read_text())
  assert sum(lengths) == pytest.approx(results['sampled_tokens']) and results['seed'] == 3


def test_evaluation_and_reward_fields_show_in_the_files(changed):
  shown = metrics.read_jsonl(changed / 'samples.jsonl')
  assert [(line['step'], line['kind']) for line in shown] == [
      (step, kind) for step in (0, 2, 3) for kind in ('sampled', 'decoded')]
  assert 'at temperature 0 ' in (changed / 'table.md').read_text()
  assert 'A note. scaled' in (changed / 'table.md').read_text()
  for record in metrics.read_jsonl(changed / 'metrics.jsonl'):
    if 'rollout/score' in record and record['rollout/truncated'] == 1:
      assert record['rollout/reward'] == -4
    elif 'rollout/score' in record:
      assert record['rollout/reward'] < -2 and record['rollout/score'] > -2


def test_only_adapters_are_trained(changed):
  folders = changed / 'params', changed / 'trained'
  moved = tiny_rebel.moved(*map(tiny_rebel.load_params, folders), layers=1)
  assert moved == {f'layers/0/attention/{name}/kernel' for name in (
      'query', 'key', 'value', 'output')}
  assert 'hugging_face' not in checkpoints.read_metadata(changed / 'trained')


# --- The task.

_TASK = {
    'files': 'other.json', 'evaluation_files': 'other.json', 'schema': 'ultrafeedback_prompts',
    'fields': 'prompt=prompt,chosen=rejected,rejected=chosen', 'file_pad_id': 5,
    'template': 'none', 'num_train': 3, 'num_evaluation': 4, 'max_prompt_tokens': 40,
    'max_response_tokens': 7, 'vocabulary': 'compact',
    'stop_tokens': '<start>',
}
# Fields that need other fields.
_WITH = {
    'file_pad_id': {'schema': 'tldr', 'files': 'ids.json'},
    'vocabulary': {'template': 'none'},
    'stop_tokens': {'template': 'none'},
}


@pytest.fixture(scope='module')
def task_folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('task')
  tiny.write_tokenizer(folder / 'tokens', template=tiny.TEMPLATE)
  tiny.write_tokenizer(folder / 'others', template=tiny.TEMPLATE, more=('<more>',))
  row = lambda i: {'prompt': f'Say {"very " * i}{i}.', 'chosen': f'{i}', 'rejected': f'not {i}'}
  rows = {'pairs.json': map(row, range(9)), 'other.json': map(row, range(20, 29)), 'ids.json': (
      {'query_token': [5, 9, i + 9], 'reference_response_token': [7, 5]} for i in range(9))}
  for name, content in rows.items():
    (folder / name).write_text(json.dumps(list(content)))
  return folder


def _task(folder, **options):
  task = preferences.Config(**{
      'files': 'pairs.json', 'num_evaluation': 3, 'tokenizer_dir': str(folder / 'tokens'),
      **options})
  made = task.make(0, str(folder))
  plain = lambda examples: [
      {k: v for k, v in e.items() if k not in ('ids', 'loss_mask')} for e in examples]
  return (made.tokenizer.fingerprint, made.tokenizer.stop_ids, plain(made.train),
          plain(made.evaluation), made.max_prompt_tokens, made.max_response_tokens)


@pytest.mark.parametrize('name', _TASK)
def test_every_field_of_the_task_has_an_effect(task_folder, name):
  others = _WITH.get(name, {})
  assert _task(task_folder, **{**others, name: _TASK[name]}) != _task(task_folder, **others)


def test_directories_of_the_task(task_folder, tmp_path):
  assert {field.name for field in dataclasses.fields(preferences.Config)} == {
      *_TASK, 'max_vocabulary', 'tokenizer_dir', 'tfds_dir'}
  base = _task(task_folder)
  assert _task(task_folder, tokenizer_dir=str(task_folder / 'others')) != base
  assert _task(task_folder, tfds_dir=str(tmp_path / 'tfds')) == base  # The same rows,
  assert list((tmp_path / 'tfds').glob('*/preferences/1.0.0'))  # read there.


@pytest.mark.parametrize('options, message', [
    ({'num_train': -1}, 'config.task.num_train must be at least 0, got -1'),
    ({'file_pad_id': -2}, 'config.task.file_pad_id must be at least -1, got -2'),
    ({'max_prompt_tokens': 0}, 'config.task.max_prompt_tokens must be at least 1, got 0'),
    ({'files': ''}, 'needs the names of its files'),
    ({'vocabulary': 'compact', 'max_vocabulary': 9}, 'max_size must be at least 258'),
])
def test_bad_fields_of_the_task(task_folder, options, message):
  with pytest.raises(ValueError, match=message):
    _task(task_folder, **options)


def test_the_task_needs_a_directory_and_the_vocabulary_of_a_checkpoint():
  task = preferences.Config(files='dpo_en_demo.json')
  with pytest.raises(ValueError, match='needs the directory of dpo_en_demo.json: --config.data'):
    task.make(0, '')
  with pytest.raises(ValueError, match="'full' or 'auto' for a policy from a Hugging Face"):
    dataclasses.replace(task, vocabulary='compact').make(
        0, '.', task_config.PolicyTokenizer(pretrained=True))


# --- The configs.


@pytest.mark.parametrize('spec', [
    'rebel_tldr.py:demo', 'rebel_tldr.py:pythia_1.4b', 'rebel_tldr.py:pythia_2.8b',
    'rebel_tldr.py:pythia_6.9b', 'rebel_tldr.py:sft', 'rebel_chat.py:demo',
    'rebel_chat.py:nectar_openchat', 'rebel_chat.py:ultrafeedback_llama3',
    'rebel_largebatch.py:demo', 'rebel_largebatch.py:ultrafeedback_llama3', 'reward_model_demo.py',
    'reward_model_tldr.py',
])
def test_every_config_is_valid_with_its_directories(spec, tmp_path):
  config = command_line.load_config(str(CONFIGS / spec))
  if isinstance(config, rebel_config.Online | rebel_config.LargeBatch):
    config.reward_init_from = str(tmp_path)
  if ':demo' not in spec and 'reward_model_demo' not in spec:
    config.policy_init_from = str(tmp_path)
    assert 'not run here' in config.note and not config.scale_note
  elif ':sft' not in spec:
    assert config.scale_note.startswith('Scaled for a CPU')
  config.validate()


@pytest.mark.parametrize('name', ['rebel_tldr', 'rebel_chat', 'rebel_largebatch', 'refuel_two'])
def test_scale_notes_match_the_configs(name):
  config = command_line.load_config(str(CONFIGS / f'{name}.py:demo'))
  size, steps = re.search(
      r'batches of (\d+) \(\d+[^)]*\)(?:, (\d+) of them)?', config.scale_note).groups()
  assert int(size) == config.batch_size and int(steps or config.steps) == config.steps


@pytest.mark.parametrize('name', ['rebel_tldr', 'rebel_chat', 'rebel_largebatch'])
def test_an_unknown_variant_is_refused(name):
  with pytest.raises(command_line.UsageError, match="variant must be one of demo, .*got 'llama'"):
    command_line.load_config(str(CONFIGS / f'{name}.py:llama'))


def test_the_published_numbers():
  """As in the released scripts (addresses in the configs)."""
  tldr = command_line.load_config(str(CONFIGS / 'rebel_tldr.py:pythia_2.8b'))
  assert (tldr.steps, tldr.batch_size, tldr.algorithm.num_epochs) == (1_953, 512, 4)
  assert (tldr.lora.rank, tldr.lora.alpha, tldr.optimizer.eps) == (1_024, 2_048, 1e-5)
  chat = command_line.load_config(str(CONFIGS / 'rebel_chat.py:nectar_openchat'))
  assert (chat.batch_size, chat.train_last_layers, chat.algorithm.temperature) == (32, 4, 0.5)
  assert chat.reward.missing_stop_penalty == -4
  large = command_line.load_config(str(CONFIGS / 'rebel_largebatch.py:ultrafeedback_llama3'))
  assert (large.steps, large.batch_size, large.rounds, large.algorithm.eta) == (468, 128, 3, 1e6)
  assert algorithm.Config().kl_coefficient == tldr.algorithm.kl_coefficient == 0.05
  assert isinstance(command_line.load_config(str(CONFIGS / 'rebel_tldr.py:sft')),
                    config_lib.PolicyConfig)
