"""Reward models trained on real pairs: centred, loaded again, resumed to the bit."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.reward_model import __main__ as reward_model_main
from experiments.reward_model import config as reward_model_config
from experiments.reward_model import pairs as reward_pairs
from jaxrl_llm.models import configs, lora
from jaxrl_llm.models import reward as reward_lib
from jaxrl_llm.runs import reward_models
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.tasks import config as task_config
from jaxrl_llm.training import checkpoints, loop, metrics, optim
from tests.experiments import tiny, tiny_rebel

RESPONSE = 260


@pytest.fixture(scope='module', autouse=True)
def compiled_once():
  with pytest.MonkeyPatch.context() as patch:
    tiny_rebel.share_programs(patch)
    start = reward_pairs.start
    steps = {}

    def shared(setup, finetuning, algorithm, params):
      state, train_step = start(setup, finetuning, algorithm, params)
      key = (setup.model, setup.config.optimizer, finetuning.lora, finetuning.last_layers)
      return state, steps.setdefault(repr(key), train_step)

    patch.setattr(reward_pairs, 'start', shared)
    yield


@pytest.fixture(scope='module')
def folder(data_dir, tmp_path_factory):
  return tiny_rebel.write(tmp_path_factory.mktemp('reward_model'), data_dir)


def _config(folder, **changes):
  task = dataclasses.replace(tiny_rebel.task(), max_response_tokens=RESPONSE, num_evaluation=20)
  return reward_model_config.RewardModel(**{
      'data_dir': str(folder), 'task': task, 'policy_init_from': str(folder / 'policy'),
      'optimizer': optim.OptimizerConfig(learning_rate=1e-2), 'steps': 8, 'batch_size': 8,
      'evaluation_batch_size': 8, 'eval_every': 5, 'save_every': 3, 'log_every': 2, **changes})


def _run(config, workdir):
  tiny_rebel.run(reward_model_main.main, config, workdir, 'reward_model')


@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory):
  """An uninterrupted run."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  _run(_config(folder), workdir)
  return workdir


def _scores(directory, task, examples, name):
  """Scores of responses, one row at a time, by the network in a directory."""
  model = configs.TransformerConfig(**checkpoints.read_metadata(directory)['model'])
  network = reward_lib.make(model)
  params, _ = checkpoints.load_params(
      directory, jax.eval_shape(network.init, jax.random.key(0)))
  width = tiny_rebel.PROMPT + RESPONSE

  @jax.jit
  def read(tokens, length):
    valid = np.arange(width)[None] < length
    output = network.apply(params, tokens, positions=np.arange(width)[None], valid=valid)
    return reward_lib.rewards(output, valid)[0]

  scores = []
  for example in examples:
    ids = example['prompt_ids'] + example[name]
    tokens = np.zeros((1, width), np.int32)
    tokens[0, : len(ids)] = ids
    scores.append(float(read(tokens, len(ids))))
  return np.array(scores)


def test_accuracy_and_centring(folder, whole):
  results = json.loads((whole / 'results.json').read_text())
  records = metrics.read_jsonl(whole / 'metrics.jsonl')
  assert [record['step'] for record in records] == [0, 2, 4, 5, 6, 7]
  assert [record['step'] for record in records if 'eval/accuracy' in record] == [0, 5]
  assert records[-1]['train/loss'] < 0.5 * records[0]['train/loss']

  task = _config(folder).task.make(
      0, folder, task_config.PolicyTokenizer(str(folder / 'policy')))
  held_out, trained = task.pairs(task.evaluation), task.pairs(task.train)
  assert results['pairs/train'] == len(trained) > 4
  assert results['pairs/evaluation'] == len(held_out) > 1

  chosen, rejected = (
      _scores(whole / 'params', task, held_out, f'{name}_ids') for name in ('chosen', 'rejected'))
  assert results['eval/accuracy'] == np.mean(chosen > rejected)
  assert results['eval/margin'] == pytest.approx(np.mean(chosen - rejected), abs=1e-4)
  assert results['eval/loss'] == pytest.approx(
      np.mean(np.log1p(np.exp(rejected - chosen))), abs=1e-4)

  # R22: references, which are the chosen training responses here, have mean 0 afterwards.
  references = [e for e in task.train if len(e['chosen_ids']) <= RESPONSE]
  assert results['centre/responses'] == len(references) > len(trained)

  scores = _scores(whole / 'params', task, references, 'chosen_ids')
  assert abs(scores.mean()) < 1e-4 < abs(results['centre/mean_score'])


def test_the_parameters_load_as_a_reward_model_and_as_a_start(folder, whole):
  config = tiny_rebel.online(folder, reward_init_from=str(whole / 'params'))
  with tiny_rebel.build(config) as setup:
    assert reward_models.load(setup).fingerprint == json.loads(
        (whole / 'results.json').read_text())['fingerprint']
  config = _config(folder, policy_init_from=str(whole / 'params'))
  with setup_lib.build(tiny_rebel.launched(config)) as setup:
    network = reward_lib.make(setup.model)
    abstract = setup_lib.abstract_params(network, setup.mesh)
    params = reward_models.initial_params(setup, network, abstract, head_init='zero')
    expected, _ = checkpoints.load_params(whole / 'params', abstract)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize(('changes', 'moves'), [
    ({'lora': lora.LoraConfig(rank=2, targets='attention/value')},
     {f'layers/{i}/attention/value/kernel' for i in range(2)}),
    ({'train_last_layers': 1}, {'layers/1/', 'final_norm/'}),
])
def test_a_part_is_trained_with_the_head(folder, tmp_path, changes, moves):
  """The rest is as loaded, and the saved reward model has the scores of results.json."""
  config = _config(folder, optimizer=optim.OptimizerConfig(learning_rate=3e-2), **changes)
  _run(config, tmp_path / 'run')
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  records = metrics.read_jsonl(tmp_path / 'run' / 'metrics.jsonl')
  assert records[-1]['train/loss'] < 0.9 * records[0]['train/loss']

  with setup_lib.build(tiny_rebel.launched(config)) as setup:
    network = reward_lib.make(setup.model)
    abstract = setup_lib.abstract_params(network, setup.mesh)
    before = reward_models.initial_params(setup, network, abstract, head_init='normal')
    held_out = reward_pairs.make(setup.task, setup.task.evaluation, 'held-out')
    after, _ = checkpoints.load_params(tmp_path / 'run' / 'params', abstract)
    # Measured on the file by a network without adapters.
    numbers = reward_pairs.Measure(
        tiny_rebel.with_config(setup, _config(folder)), held_out)(after)

  moved = tiny_rebel.moved(before, after)
  trained = {name for name in moved if not name.startswith('value_head/')}
  assert {'value_head/kernel', 'value_head/bias'} <= moved and trained
  assert all(any(name.startswith(move) for move in moves) for name in trained), trained
  assert all(any(name.startswith(move) for name in trained) for move in moves), trained
  for name in ('accuracy', 'margin', 'loss'):  # Up to the centring of the scores.
    assert numbers[name] == pytest.approx(results[f'eval/{name}'], abs=2e-5), name

  online = tiny_rebel.online(folder, reward_init_from=str(tmp_path / 'run' / 'params'))
  with tiny_rebel.build(online) as setup:
    assert reward_models.load(setup).fingerprint == results['fingerprint']


def test_a_killed_run_resumes_to_the_same_numbers(folder, whole, tmp_path):
  workdir = tmp_path / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop.Keeper, 'after_step', tiny_rebel.dying(loop.Keeper.after_step, 5))
    with pytest.raises(tiny_rebel.Killed):
      _run(_config(folder), workdir)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoints, 'save_params', tiny_rebel.dying(checkpoints.save_params, 1))
    with pytest.raises(tiny_rebel.Killed):
      _run(_config(folder), workdir)
  _run(_config(folder), workdir)
  mine, theirs = tiny_rebel.outcome(workdir), tiny_rebel.outcome(whole)
  for name, expected in theirs.items():
    assert mine[name] == expected, name


def test_initialisation_of_the_head(folder):
  model = {'vocab_size': 0, 'width': 64, 'num_heads': 2, 'num_kv_heads': 1, 'head_dim': 8}
  task = _config(folder).task
  config = _config(
      folder, policy_init_from='', model=configs.TransformerConfig(**model, max_length=1024),
      task=dataclasses.replace(task, tokenizer_dir=str(folder / 'policy')))
  with setup_lib.build(tiny_rebel.launched(config)) as setup:
    network = reward_lib.make(setup.model)
    abstract = setup_lib.abstract_params(network, setup.mesh)
    normal, zero = (reward_models.initial_params(setup, network, abstract, head_init=kind)
                    for kind in ('normal', 'zero'))

  kernel = np.asarray(normal['value_head']['kernel'])
  assert np.sqrt(np.mean(kernel**2)) == pytest.approx(65**-0.5, rel=0.3)
  assert not np.any(zero['value_head']['kernel']) and not np.any(normal['value_head']['bias'])
  jax.tree.map(np.testing.assert_array_equal, normal['layers'], zero['layers'])

  # A policy's trunk is taken; its head over the vocabulary is left out.
  config = _config(folder)
  with setup_lib.build(tiny_rebel.launched(config)) as setup:
    network = reward_lib.make(setup.model)
    abstract = setup_lib.abstract_params(network, setup.mesh)
    params = reward_models.initial_params(setup, network, abstract, head_init='normal')
    plain = setup.initial_params()

  assert params.keys() == {*plain.keys(), 'value_head'} - {'head'}
  jax.tree.map(np.testing.assert_array_equal, params['layers'], plain['layers'])


def test_references_of_another_file(folder, tmp_path):
  rows = [{'q': f'Say {i}.', 'best': str(i)} for i in range(5)]
  path = folder / 'references.jsonl'
  path.write_text(''.join(json.dumps({'prompt': r['q'], 'response': r['best']}) + '\n'
                          for r in rows))
  config = _config(folder, centring_file='references.jsonl', centring_schema='conversations')
  config.validate()
  with setup_lib.build(tiny_rebel.launched(config)) as setup:
    references = reward_pairs.references(setup)
    assert len(references) == 5 and references.rollouts.tokens.shape[1] == 1
    assert set(references.rollouts.lengths.ravel()) == {2}  # A digit and the stop token.
    config = dataclasses.replace(config, centre=False, centring_file='')
    assert reward_pairs.references(tiny_rebel.with_config(setup, config)) is None


@pytest.mark.parametrize('arguments, words', [
    (['--config.policy_init_from=nowhere'], ["policy_init_from: not a directory: 'nowhere'"]),
    (['--config.task.max_response_tokens=4'],
     ['none of', 'has a chosen and a rejected response of at most 4 tokens']),
    (['--config.steps=0', '--config.batch_size=512'],
     ['config.batch_size must be at most the', 'for one pass']),
    (['--config.centring_file=pairs.json', '--config.centre=False'],
     ["config.centring_file must be '' without config.centre"]),
    (['--config.centring_schema=tldr'],
     ["config.centring_schema must be '' without config.centring_file"]),
    (['--config.lora.rank=2', '--config.train_last_layers=1'],
     ['config.train_last_layers must be 0 if config.lora.rank is positive, got 1']),
    (['--config.train_last_layers=9'],
     ['the number of last layers to train must be in [1, 1] for a model of 2, got 9']),
    (['--config.lora.rank=1000000000'],
     ['the largest contributor, the adapters with their optimizer (config.lora.rank)']),
    (['--config.head_init=one'], ["head_init must be one of normal, zero, got 'one'"]),
    (['--config.algorithm.num_micro_batches=3'], ['must be divisible by', '(3), got 8']),
])
def test_bad_input_is_one_line(folder, tmp_path, capsys, arguments, words):
  file = tiny.REPOSITORY / 'experiments' / 'configs' / 'reward_model_demo.py'
  status = tiny.run(
      reward_model_main.main, f'--config={file}', f'--workdir={tmp_path / "run"}',
      f'--config.data_dir={folder}', f'--config.policy_init_from={folder / "policy"}',
      '--config.task.files=pairs.json', '--config.task.template=auto',
      '--config.task.num_evaluation=8', *arguments, experiment='reward_model')
  errors = capsys.readouterr().err
  lines = [line for line in errors.splitlines() if 'error' in line]
  assert status == 2 and len(lines) == 1 and 'Traceback' not in errors, errors
  for word in words:
    assert word in lines[0], (word, lines[0])
