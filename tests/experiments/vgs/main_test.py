"""Value-guided search end to end on tiny problems: numbers, resuming, losses and errors."""

import json

import numpy as np
import pytest

from experiments.configs import vgs_math, vgs_noisy_sum
from experiments.vgs import __main__ as vgs_main
from experiments.vgs import config as vgs_config
from experiments.vgs import evaluation, report
from jaxrl_llm.algorithms import vgs
from jaxrl_llm.evaluation import majority
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import value_models
from jaxrl_llm.tasks import arithmetic, noisy_sum
from jaxrl_llm.training import optim
from tests.experiments import studies, tiny_rebel


def _config(**changes):
  model = configs.TransformerConfig(
      num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_width=16, max_length=24,
      positions='learned')
  optimizer = optim.OptimizerConfig(name='adam', learning_rate=3e-3, schedule='constant')

  return vgs_config.Vgs(**{
      'task': noisy_sum.Config(
          num_sums=2, of='digits', error_rate=0.3, num_demonstrations=60, num_train=24,
          num_evaluation=8),
      'model': model,
      'sft': config_lib.SftConfig(steps=60, batch_size=16, save_every=60, optimizer=optimizer),
      'value': value_models.ValueConfig(
          model=model, epochs=1, batch_size=8, save_every=5, log_every=5, optimizer=optimizer,
          validation_fraction=0.25),
      'collection': vgs_config.Collection(
          temperatures=(1.0, 2.0), responses=2, cuts=2, batch_size=8, drop_unsolved=False),
      'temperature': 1.0, 'top_p': 1.0, 'budgets': (2, 4), 'block_tokens': 2, 'trees': 2,
      'scorers': 'value,exact',
      'evaluation': config_lib.EvaluationConfig(num_samples=2, batch_size=8), **changes})


def _run(config, workdir):
  tiny_rebel.run(vgs_main.main, config, workdir, experiment='vgs')
  return studies.timeless(workdir)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A whole run, not to be changed."""
  workdir = tmp_path_factory.mktemp('vgs') / 'run'
  return workdir, _run(_config(), workdir)


def test_the_results_have_their_names_and_budgets(whole):
  workdir, numbers = whole
  for name in ('pass@1', 'mv@4', 'wmv@4', 'bon@4', 'pass@4', 'vgs@4', 'beam@2', 'dvts/vgs@4',
               'exact/vgs@2', 'exact/vgs@4'):
    assert 0 <= numbers[f'eval/{name}'] <= 1
  limit = 5  # Tokens of a response, at most.
  assert numbers['eval/vgs@4_tokens'] <= 4 * limit and numbers['eval/mv@2_tokens'] <= 2 * limit
  assert numbers['expected/bon@2'] == pytest.approx(1 - 0.51**2)
  # Two depths of one step each: (1 - 0.3^2)^2.
  assert numbers['expected/single_beam'] == pytest.approx(0.91**2)
  assert numbers['flops/value@4/value_actual'] >= numbers['flops/value@4/value_cached'] > 0
  assert numbers['flops/exact@4/value_actual'] == 0 < numbers['flops/exact@4/generator']

  records = [json.loads(line) for line in
             (workdir / 'responses_temperature_2.jsonl').read_text().splitlines()]
  assert records[0]['num_cuts'] == 2 and len(records[1]['first'][0]) == 4
  for first, tokens in zip(records[1]['first'][0], records[1]['tokens'][0]):
    assert first <= len(tokens)


def test_a_killed_run_goes_on_bit_for_bit(whole, tmp_path):
  workdir, numbers = whole
  copy = tmp_path / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(evaluation, '_search', tiny_rebel.dying(evaluation._search, 2))
    with pytest.raises(tiny_rebel.Killed):
      _run(_config(), copy)
  assert _run(_config(), copy) == numbers


def test_the_pair_loss_and_random_choice_run(tmp_path):
  numbers = _run(_config(
      algorithm=vgs.Config(loss='bradley_terry'), scorers='value,random', budgets=(2,), trees=1),
      tmp_path / 'run')
  assert 0 <= numbers['eval/vgs@2'] <= 1 and 0 <= numbers['eval/random/vgs@2'] <= 1


def test_votes_and_best_responses_by_hand():
  groups = np.array([[0, 1, 1, majority.ABSTAINS], [0, 0, 1, 1]])
  rewards = np.array([[1, 0, 0, 0], [0, 0, 1, 1]], np.float32)
  scores = np.array([[0.9, 0.2, 0.3, 0.1], [0.1, 0.2, 0.2, 0.05]])
  samples = evaluation.Pool(rewards, groups, scores, np.array([40, 80]), np.zeros(2, int))
  searched = evaluation.Pool(
      rewards[:, :2], groups[:, :2], scores[:, :2], np.array([30, 30]), np.zeros(2, int))
  numbers = evaluation.numbers_of({'samples': samples, 'value@4': searched}, (2, 4))
  assert numbers['pass@1'] == 0.375 and numbers['pass@1_tokens'] == 15
  # Problem 1: 0.9 against 0.5; problem 2: 0.3 against 0.25.
  assert numbers['wmv@4'] == 0.5 and numbers['mv@4'] == pytest.approx(0.25)
  # The best of problem 2 is one of the two with 0.2.
  assert numbers['bon@4'] == 0.75 and numbers['bon@2'] == 0.5 and numbers['mv@4_tokens'] == 60
  assert numbers['vgs@4'] == 0.5 and numbers['best@4'] == 0.5 and numbers['beam@4'] == 0.25


def test_closed_forms_are_only_those_of_the_task():
  assert report.closed_forms(_config(block_tokens=3)).keys() == {'pass@1', 'bon@2', 'bon@4'}
  assert not report.closed_forms(_config(policy_init_from='elsewhere'))


@pytest.mark.parametrize('changes, message', [
    (dict(budgets=(2, 3)), 'num_blocks must be divisible by width'),
    (dict(trees=3), r'config.trees \* config.width must divide the largest budget, 4, got 3 \* 2'),
    (dict(task=arithmetic.Config()), "config.scorers must not have 'exact' for this task"),
    (dict(scorers='prm'), 'config.scorers must be some of value, exact, random'),
    (dict(collection=vgs_config.Collection(temperatures=())), 'config.collection.temperatures'),
    (dict(top_p=0.0), 'config.top_p must be in')])
def test_bad_fields_are_one_line(changes, message):
  with pytest.raises(ValueError, match=message):
    _config(**changes).validate()


def test_the_configs_are_valid(tmp_path):
  vgs_noisy_sum.get_config().validate()
  config = vgs_math.get_config()
  config.policy_init_from = config.value.init_from = str(tmp_path)
  config.set_task('problems.jsonl')
  config.validate()
  assert (config.task.files, config.task.reward) == ('problems.jsonl', 'math_strict')
