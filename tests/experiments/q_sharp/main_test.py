"""Q# end to end on tiny problems: its numbers, resuming, ablations and errors."""

import json
import shutil

import numpy as np
import pytest

from experiments.configs import q_sharp_gsm8k, q_sharp_noisy_sum, q_sharp_star_graph
from experiments.q_sharp import __main__ as q_sharp_main
from experiments.q_sharp import baselines, report
from experiments.q_sharp import config as q_sharp_config
from jaxrl_llm.algorithms import q_sharp
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import value_data, value_models
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.tasks import noisy_sum, star_graph
from jaxrl_llm.training import checkpoints, optim
from tests.experiments import studies, tiny_rebel


def _config(**changes):
  model = configs.TransformerConfig(
      num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_width=16, max_length=24,
      positions='learned')
  optimizer = optim.OptimizerConfig(name='adam', learning_rate=3e-3, schedule='constant')

  return q_sharp_config.QSharp(**{
      'task': noisy_sum.Config(
          num_sums=2, of='digits', error_rate=0.3, num_demonstrations=60, num_train=24,
          num_evaluation=8),
      'model': model,
      'sft': config_lib.SftConfig(steps=30, batch_size=16, save_every=30, optimizer=optimizer),
      'value': value_models.ValueConfig(
          model=model, epochs=1, batch_size=8, save_every=5, log_every=5, optimizer=optimizer,
          validation_fraction=0.25),
      'guidance': q_sharp_config.Guidance(num_candidates=4), 'samples_per_prompt': 2,
      'batch_size': 8, 'etas': (0.1, 1.0),
      'evaluation': config_lib.EvaluationConfig(num_samples=2, batch_size=8), **changes})


def _run(config, workdir):
  tiny_rebel.run(q_sharp_main.main, config, workdir, experiment='q_sharp')
  return studies.timeless(workdir)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A whole run, not to be changed."""
  workdir = tmp_path_factory.mktemp('q_sharp') / 'run'
  return workdir, _run(_config(), workdir)


def test_the_results_have_their_names_and_the_reference_is_eta_infinity(whole):
  workdir, numbers = whole
  for name in ('reference/accuracy', 'q_sharp/accuracy', 'q_sharp/kl', 'cd/accuracy', 'cd/kl',
               'control/accuracy', 'q_sharp/maj@2', 'cd/eta_1/kl_of_paper'):
    assert np.isfinite(numbers[f'eval/{name}'])
  assert numbers['eval/reference/kl'] == 0
  assert numbers['eval/q_sharp/eta_0.1/accuracy'] == numbers['eval/q_sharp/accuracy']
  assert numbers['expected/eta_0.1/accuracy'] == pytest.approx(
      1 / (1 + np.exp(-(np.log(0.49 / 0.51) + 10))))
  assert 0 <= numbers['value/calibration_error'] <= 1
  assert {path.name for path in (workdir / 'figures').iterdir()} == {
      'accuracy.png', 'accuracy.csv'}

  lines = (workdir / 'responses_2.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert records[0]['guide'] and records[0]['eta'] == 0.1
  assert json.loads((workdir / 'responses_1.jsonl').read_text().splitlines()[0])['guide'] == ''
  assert numbers['sampled_tokens'] > sum(record['sampled_tokens'] for record in records[1:])


def test_a_killed_run_goes_on_bit_for_bit(whole, tmp_path):
  """Killed in the roll-outs of the second round."""
  workdir, numbers = whole
  copy = tmp_path / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(value_data.Collector, '_collect', tiny_rebel.dying(
        value_data.Collector._collect, 4))
    with pytest.raises(tiny_rebel.Killed):
      _run(_config(), copy)
  assert _run(_config(), copy) == numbers
  for name in ('responses_1.jsonl', 'responses_2.jsonl'):
    assert (copy / name).read_bytes() == (workdir / name).read_bytes()


@pytest.mark.parametrize('changes', [
    dict(algorithm=q_sharp.Config(function='q_function', head='histogram', num_atoms=3)),
    dict(algorithm=q_sharp.Config(head='squared_error', positions='first'), rules='fudge',
         mesh=mesh_lib.MeshConfig(data=2))])
def test_ablations_and_meshes_run(changes, tmp_path):
  config = _config(**{'rounds': 1, 'etas': (0.1,), 'rules': 'q_sharp'} | changes)
  if config.algorithm.function != 'value':
    config.value.reference_layers = 1
  numbers = _run(config, tmp_path / 'run')
  rule = config.rules.split(',')[0]
  assert 0 <= numbers[f'eval/{rule}/accuracy'] <= 1
  assert numbers['eval/reference/kl'] == 0


def _star_graph():
  return _config(
      task=star_graph.Config(
          length=3, num_labels=8, num_demonstrations=60, num_train=20, num_evaluation=8),
      rounds=1, data='pairs', samples_per_prompt=2, rules='q_sharp,cd', etas=(0.1,),
      guidance=q_sharp_config.Guidance(num_candidates=4, tail='truncate'),
      baselines=baselines.Baselines(
          names='reinforce,rpo', steps=4, batch_size=8, pair_samples=2, save_every=2,
          log_every=2),
      evaluation=config_lib.EvaluationConfig(num_samples=1, batch_size=8))


def test_star_graphs_with_all_baselines_go_on_where_they_stopped(tmp_path):
  numbers = _run(_star_graph(), tmp_path / 'whole')
  for arm in ('reference', 'q_sharp', 'cd', 'reinforce', 'rpo'):
    assert 0 <= numbers[f'eval/{arm}/accuracy'] <= 1
  assert numbers['expected/eta_0.1/accuracy'] == pytest.approx(1 / (1 + np.exp(-10)))

  records = [json.loads(line) for line in
             (tmp_path / 'whole' / 'pairs.jsonl').read_text().splitlines()[1:]]
  wrong = sum(min(rewards) <= 0 for record in records for rewards in record['rewards'])
  metadata = checkpoints.read_metadata(tmp_path / 'whole' / 'value_1')
  held_out = 5  # A quarter of twenty problems; two responses for each that has a wrong sample.
  assert metadata['steps'] - 30 in {2 * (wrong - x) // 8 for x in range(held_out + 1)}

  copy = tmp_path / 'run'
  shutil.copytree(tmp_path / 'whole', copy)
  for name in ('rpo', 'evaluation', 'checkpoints/rpo/4'):  # Stopped after the first of two.
    shutil.rmtree(copy / name)
  assert _run(_star_graph(), copy) == numbers


def test_changed_responses_are_refused(whole, tmp_path):
  copy = tmp_path / 'run'
  shutil.copytree(whole[0], copy)
  path = copy / 'responses_2.jsonl'
  path.write_text(path.read_text().replace('"rewards": [[0.0', '"rewards": [[1.0', 1))
  with pytest.raises(ValueError, match='was changed since it was written'):
    _run(_config(), copy)


@pytest.mark.parametrize('changes, message', [
    (dict(rounds=0), 'config.rounds must be at least 1, got 0'),
    (dict(etas=(1.0, 0.1)), 'config.etas must be'),
    (dict(rules='q_sharp,vas'), 'config.rules must be some of q_sharp, cd, fudge, each once'),
    (dict(guidance=q_sharp_config.Guidance(eta=0.0)), 'config.guidance.eta must be positive'),
    (dict(guidance=q_sharp_config.Guidance(tail='cut')), 'config.guidance.tail must be one of'),
    (dict(value=value_models.ValueConfig(validation_fraction=1.0)),
     'config.value.validation_fraction must be in')])
def test_bad_fields_are_one_line(changes, message):
  with pytest.raises(ValueError, match=message):
    _config(**changes).validate()


def test_rewards_that_are_not_probabilities_need_a_histogram():
  data = value_data.ValueData(
      None, *(np.zeros(2, int) for _ in range(5)), np.array([0.0, 2.0], np.float32), 0)
  with pytest.raises(ValueError, match=r"rewards must be in \[0, 1\] .*'bernoulli', got 0 to 2"):
    q_sharp_main._check_rewards(_config(), data)
  q_sharp_main._check_rewards(
      _config(algorithm=q_sharp.Config(head='histogram', high=2.0)), data)


def test_a_value_model_of_more_blocks_than_the_reference_is_refused(tmp_path):
  config = _config()
  config.value.reference_layers = 2
  with pytest.raises(ValueError, match='reference_layers must be at most the 1 of the reference'):
    _run(config, tmp_path / 'run')


def test_the_best_policy_has_the_divergence_of_its_successes():
  accuracy, divergence = report.optimal(0.5, np.array([0.0, 10.0, 500.0]))
  assert accuracy.tolist() == pytest.approx([0.5, 0.99995, 1.0], abs=1e-5)
  assert divergence.tolist() == pytest.approx([0.0, np.log(2), np.log(2)], abs=1e-3)


def test_the_configs_are_valid(tmp_path):
  config = q_sharp_gsm8k.get_config()
  config.policy_init_from = config.value.init_from = str(tmp_path)
  config.validate()
  q_sharp_noisy_sum.get_config().validate()
  for variant in ('', *q_sharp_star_graph.VARIANTS):
    config = q_sharp_star_graph.get_config(variant)
    config.validate()
    assert config.baselines.names == 'reinforce,dpo,rpo'
  with pytest.raises(ValueError, match='variant must be pairs or gpt2 or none'):
    q_sharp_star_graph.get_config('large')
