"""Every field of REFUEL's config has a visible effect or is refused."""

import dataclasses

import pytest

from experiments.refuel import config as refuel_config
from experiments.refuel import dialogues as refuel_dialogues
from jaxrl_llm.runs import command_line, reward_config
from jaxrl_llm.training import optim
from tests.experiments import tiny, tiny_rebel, tiny_refuel

CONFIGS = tiny.REPOSITORY / 'experiments' / 'configs'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny_refuel.write(tmp_path_factory.mktemp('config'))


# --- Errors.

_ERRORS = {
    'steps': (-1, 'config.steps must be at least 0, got -1'),
    'eval_every': (0, 'config.eval_every must be at least 1, got 0'),
    'max_tokens': (-1, 'config.max_tokens must be at least 0, got -1'),
    'rollout_batch_size': (3, r'rollout_batch_size must divide config.batch_size \(8\), got 3'),
    'law': ('three', "config.law must be one of one, two, got 'three'"),
    'widths': ('narrow', "config.widths must be one of growing, fixed, got 'narrow'"),
    'reward_init_from': ('', 'reward_init_from must be the directory of a reward model'),
    'reward.eos_check': ('pad', "eos_check must be 'eos' or 'off'.* got 'pad' and 'same'"),
    'reward': (reward_config.RewardConfig(template='none', max_tokens=9),
               "not 'none', for dialogues, got 'eos' and 'none'"),
    'algorithm.eta': (0.0, r'eta must be positive and finite, got 0.0 \(config.algorithm\)'),
    'algorithm.samples_per_prompt': (3, r'must be 2 for REFUEL, got 3 \(config.algorithm\)'),
    'algorithm.num_micro_batches': (3, r'divisible by num_minibatches \* num_micro_batches \(3\)'),
    'optimizer': (optim.OptimizerConfig(schedule='linear', warmup_steps=9),
                  'warmup_steps must be less than the 6 optimizer steps of the run, got 9'),
    'task.first_only': (True, "first_only must be true for a user that is simulated.*'fixed'"),
    'task.num_turns': (0, 'config.task.num_turns must be at least 1, got 0'),
    'task.min_turns': (4, r'min_turns must be at most num_turns \(3\), got 4'),
    'task.max_message_tokens': (0, 'config.task.max_message_tokens must be at least 1, got 0'),
    'task.template': ('none', "template must not be 'none': dialogues need a chat template"),
    'task.limits': ('1', r"limits must be written as .*, got '1' \(config.task.limits\)"),
    'user.kind': ('people', "user.kind must be one of fixed, model, endpoint, got 'people'"),
    'user.max_tokens': (0, "user.max_tokens has no effect with kind 'fixed', got 0"),
    'user.url': ('http://a', "user.url has no effect with kind 'fixed', got 'http://a'"),
}


@pytest.mark.parametrize('path', _ERRORS)
def test_bad_fields(folder, path):
  new, message = _ERRORS[path]
  config = tiny_refuel.config(folder)
  config.validate()
  with pytest.raises(ValueError, match=message) as error:
    tiny_rebel.changed(config, path, new).validate()
  assert '\n' not in str(error.value)


_SERVER = {'kind': 'endpoint', 'url': 'http://a', 'model': 'm', 'mark': 'Q:'}


@pytest.mark.parametrize('options, message', [
    ({**_SERVER, 'url': ''}, r"user.url must be given with kind 'endpoint' .*kind=model.*got none"),
    ({**_SERVER, 'mark': ''}, "user.mark must be given with kind 'endpoint'"),
    ({**_SERVER, 'key_variable': 'NO_SUCH_KEY'}, "that is set, got 'NO_SUCH_KEY'"),
    ({**_SERVER, 'instruction': 'Ask.'}, "instruction must name the mark 'Q:', got 'Ask.'"),
    ({**_SERVER, 'retries': -1}, 'user.retries must be at least 0, got -1'),
    ({**_SERVER, 'timeout': 0.0}, 'user.timeout must be at least 0.001, got 0.0'),
    ({**_SERVER, 'init_from': 'x'}, "init_from has no effect with kind 'endpoint', got 'x'"),
    ({'kind': 'model', 'temperature': -1.0}, 'temperature must be non-negative and finite, got -1'),
    ({'kind': 'model', 'instruction': 'Ask.'}, "user.instruction needs a mark, got 'Ask.'"),
    ({'kind': 'model', 'workers': 3}, "user.workers has no effect with kind 'model', got 3"),
])
def test_bad_users(options, message):
  with pytest.raises(ValueError, match=message):
    refuel_config.UserConfig(**options).validate('config.user')


@pytest.mark.parametrize('options, message', [
    ({'first_only': True, 'filter_replies': True}, 'filter_replies has no effect with first_only'),
    ({'first_only': True, 'limits': '1=2:3'}, 'limits has no effect with first_only'),
    ({'key': 'chosen', 'schema': 'tldr'}, "schema has no effect with key, got 'tldr'"),
    ({'key': 'chosen', 'tfds_dir': 'x'}, "tfds_dir has no effect with key, got 'x'"),
])
def test_incompatible_fields_of_the_task(options, message):
  with pytest.raises(ValueError, match=message):
    tiny_refuel.task(**options).validate('config.task')


# --- Effects; fields shared with REBEL are tested there.

_TESTED_IN = {
    'main_test.py': {
        'steps', 'eval_every', 'batch_size', 'law', 'max_tokens', 'rollout_batch_size', 'user',
        'task', 'reward', 'evaluation', 'seed', 'algorithm', 'save_every'},
    'batches_test.py': {'widths'},
    'rebel/config_test.py': {
        'data_dir', 'model', 'policy_init_from', 'reference_init_from', 'reward_init_from',
        'lora', 'train_last_layers', 'sft', 'mesh', 'wandb_project', 'note',
        'scale_note', 'optimizer', 'chat_template', 'system'},
}


def test_every_field_is_tested():
  names = {field.name for field in dataclasses.fields(refuel_config.Refuel)}
  assert names == set().union(*_TESTED_IN.values())
  read = {name for names in refuel_config._READ.values() for name in names}
  assert read == {field.name for field in dataclasses.fields(refuel_config.UserConfig)} - {
      'kind'}


# --- The configs.


@pytest.mark.parametrize('spec', [
    'refuel_one.py:demo', 'refuel_one.py:ultrainteract', 'refuel_two.py:demo', 'refuel_two.py:hh',
    'refuel_two.py:ultrainteract'])
def test_every_config_is_valid_with_its_directories(spec, tmp_path):
  config = command_line.load_config(str(CONFIGS / spec))
  assert isinstance(config, refuel_config.Refuel)
  config.reward_init_from = str(tmp_path)
  if ':demo' not in spec:
    config.policy_init_from = str(tmp_path)
    assert 'not run here' in config.note and not config.scale_note
  else:
    assert config.scale_note.startswith('Scaled for a CPU')
  if spec == 'refuel_one.py:ultrainteract':
    with pytest.raises(ValueError, match='config.user.url must be given'):
      config.validate()
    config.user.url, config.user.model = 'http://localhost:8000/v1', 'user'
  config.validate()


@pytest.mark.parametrize('name', ['refuel_one', 'refuel_two'])
def test_an_unknown_variant_is_refused(name):
  with pytest.raises(command_line.UsageError, match="variant must be one of demo, .*got 'llama'"):
    command_line.load_config(str(CONFIGS / f'{name}.py:llama'))


def test_the_published_numbers():
  """As in the released scripts (addresses in the configs)."""
  one = command_line.load_config(str(CONFIGS / 'refuel_one.py:ultrainteract'))
  algorithm, updates = one.algorithm, one.steps * one.algorithm.num_minibatches
  assert (algorithm.eta, algorithm.temperature, algorithm.kl_coefficient) == (1e3, 0.8, 0)
  assert (updates, one.optimizer.warmup_steps, one.batch_size * one.steps) == (500, 50, 64_000)
  assert one.batch_size // algorithm.num_minibatches == 128 and one.max_tokens == 2_048
  assert (one.law, one.task.num_turns, one.user.temperature) == ('one', 5, 0.8)

  for name, penalty, coefficient in (('hh', -10, 0.05), ('ultrainteract', -4, 0)):
    two = command_line.load_config(str(CONFIGS / f'refuel_two.py:{name}'))
    assert two.reward.missing_stop_penalty == penalty
    assert two.algorithm.kl_coefficient == coefficient and two.algorithm.eta == 1
    assert (two.optimizer.learning_rate, two.optimizer.b2, two.batch_size) == (3e-7, 0.95, 32)
    assert (two.train_last_layers, two.algorithm.num_epochs, two.law) == (4, 4, 'two')

  limits = refuel_dialogues.parse_limits(two.task.limits)
  assert limits[5] == (128, 512)
  # All fit into the window of the released code.
  assert max(turns * (user + reply) for turns, (user, reply) in limits.items()) == 3_200
