"""Choices of mice: outputs of a run, resumed runs, the effect of every field, and errors."""

import csv
import dataclasses
import functools
import re
import shutil

import jax
import numpy as np
import pytest

from experiments.icl_hmm import __main__ as icl_hmm_main
from experiments.icl_hmm import mice as icl_hmm_mice
from experiments.icl_hmm import mice_config, mice_predictors, mice_training
from jaxrl_llm.data import tokenizers
from jaxrl_llm.hmm import animals, in_context
from jaxrl_llm.models import policy
from jaxrl_llm.training import fingerprint, metrics
from tests.experiments import studies, tiny, tiny_mice

CONFIG = 'experiments/configs/icl_hmm_mice.py'
SMALL = (
    '--config.num_folds=2', '--config.num_simulated=1', '--config.simulated_sessions=2',
    '--config.num_cohort=3', '--config.num_trials=8', '--config.short_trials=8',
    '--config.short_fraction=0', '--config.steps=4', '--config.further_steps=4',
    '--config.save_every=2', '--config.log_every=1',
    '--config.batch_size=2', '--config.restarts=1', '--config.em_steps=2',
    '--config.num_states=(2,)', '--config.optimizer.warmup_steps=2', '--config.model.num_layers=1',
    '--config.model.width=8', '--config.model.num_heads=1', '--config.model.num_kv_heads=1',
    '--config.model.head_dim=8', '--config.model.mlp_width=8',
)


def _run(workdir, *arguments):
  return tiny.run(icl_hmm_main.main, f'--workdir={workdir}', *arguments, experiment='icl_hmm',
                  default_config=CONFIG)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('mice')
  tiny_mice.write(folder, tiny_mice.animal())
  return folder


def _untrained(run, stopper):
  del run, stopper
  return tiny_mice.predictor().params


def _never_trained(run, stopper):
  del run, stopper
  raise AssertionError('trained before the config was checked')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, data):
  workdir = tmp_path_factory.mktemp('icl_hmm_mice') / 'run'
  assert _run(workdir, *SMALL, f'--config.data_dir={data}') == 0
  return workdir


METHODS = {'chance', 'bias', 'glm', 'glm_levels', 'glm_hmm2', 'ngram2', 'ngram3', 'context_ngram2',
           'context_ngram3', *(f'icl_{arm}' for arm in mice_training.ARMS)}


def test_a_run_writes_numbers_tables_and_a_figure_with_its_data(workdir):
  results = studies.results(workdir)
  assert (results['experiment'], results['setting']) == ('icl_hmm', 'mice')
  for name, methods in (('M0', METHODS), ('simulated_0', METHODS | {'bayes'})):
    for method in methods:
      for part in ('accuracy', 'probability'):
        assert 0 < results[f'mice/{name}/{method}/{part}'] <= 1
      assert results[f'mice/{name}/{method}/accuracy_se'] >= 0
  assert 'mice/M0/bayes/accuracy' not in results
  assert results['mice/M0/chance/accuracy'] == results['mice/M0/chance/probability'] == .5
  for method in METHODS:  # One real animal: the mean is its own.
    assert results[f'mean/{method}/accuracy'] == results[f'mice/M0/{method}/accuracy']
  assert results['cohort/bayes/minus_bayes'] == 0

  assert (workdir / 'figures' / 'icl_hmm_mice.png').read_bytes().startswith(b'\x89PNG')
  with open(workdir / 'figures' / 'icl_hmm_mice.csv', newline='') as file:
    assert {row['of'] for row in csv.DictReader(file)} == {'cohort', 'animals'}
  with open(workdir / 'animals.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 2 * len(METHODS) + 1
  table = (workdir / 'table.md').read_text()
  assert 'GLM-HMM, 2 states' in table and 'optimal (knows the mouse)' in table

  records = metrics.read_jsonl(workdir / 'metrics.jsonl')
  assert [record['step'] for record in records] == [*range(20)]
  assert 'train/stim_choice/loss' in records[3] and 'train/choice/divergence' in records[-1]


class _Killed(Exception):
  pass


def _raise_killed(*_):
  raise _Killed


def test_a_run_killed_in_training_ends_with_the_same_numbers(
    workdir, data, tmp_path, monkeypatch):
  options, draw = (*SMALL, f'--config.data_dir={data}'), mice_training.draw_batch
  killed_at, saved = [('stim_choice_reward', 1), ('stim_choice', 3)], []
  checkpoints = tmp_path / 'run' / 'checkpoints' / 'stim_choice'

  def killing(config, arm, step):
    if (arm, step) == killed_at[-1]:
      killed_at.pop()
      raise _Killed
    return draw(config, arm, step)

  with monkeypatch.context() as patch:
    patch.setattr(mice_training, 'draw_batch', killing)
    for _ in range(2):
      with pytest.raises(_Killed):
        _run(tmp_path / 'run', *options)
      saved.append(sorted(path.name for path in checkpoints.iterdir()))
  assert saved == [['2'], ['2', '4']]  # config.save_every.
  assert _run(tmp_path / 'run', *options) == 0
  assert studies.timeless(tmp_path / 'run') == studies.timeless(workdir)
  # No step is repeated or missing.
  records = metrics.read_jsonl(tmp_path / 'run' / 'metrics.jsonl')
  assert [record['step'] for record in records] == [*range(20)]


def test_parameters_of_another_seed_are_refused(workdir, data, tmp_path, capsys, monkeypatch):
  options = (*SMALL, f'--config.data_dir={data}', '--config.seed=1')
  with monkeypatch.context() as patch:  # Killed before the first step.
    patch.setattr(mice_training, 'draw_batch', _raise_killed)
    with pytest.raises(_Killed):
      _run(tmp_path / 'run', *options)

  shutil.copytree(workdir / 'params' / 'stim_choice', tmp_path / 'run' / 'params' / 'stim_choice')
  capsys.readouterr()
  assert _run(tmp_path / 'run', *options) == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert 'made_from.config.seed of the parameters at ' in error
  assert error.endswith('is 0, this run has 1')


def test_predictions_of_other_parameters_are_computed_again(
    workdir, data, tmp_path, capsys, monkeypatch):
  shutil.copytree(workdir, tmp_path / 'run')
  (tmp_path / 'run' / 'results.json').unlink()
  monkeypatch.setattr(mice_training, 'meta_train', _untrained)
  assert _run(tmp_path / 'run', *SMALL, f'--config.data_dir={data}') == 0
  assert capsys.readouterr().out.count('made for something else: models.icl.params.') == 3


def test_parameters_that_arms_share_are_hashed_once(monkeypatch):
  hashed, of_params = [], fingerprint.of_params
  monkeypatch.setattr(
      fingerprint, 'of_params', lambda params: hashed.append(params) or of_params(params))
  shared, own = {'w': np.zeros(3)}, {'w': np.ones(3)}
  by_arm = icl_hmm_mice.fingerprints({'a': shared, 'b': own, 'c': shared})
  assert by_arm == {'a': of_params(shared), 'b': of_params(own), 'c': of_params(shared)}
  assert len(hashed) == 2 and by_arm['a'] != by_arm['b']


def test_only_animals_without_a_valid_file_are_predicted(
    workdir, data, tmp_path, capsys, monkeypatch):
  before, path = studies.timeless(workdir), workdir / 'arms' / 'M0.animal.npz'
  with np.load(path) as arrays:
    arrays = {name: values for name, values in arrays.items() if name != '_header'}
  predicted = []
  monkeypatch.setattr(icl_hmm_mice, 'predict_animal', lambda config, animal, *rest: (
      predicted.append(animal.name), arrays)[1])

  def run_again(data_dir):
    (workdir / 'results.json').unlink()
    assert _run(workdir, *SMALL, f'--config.data_dir={data_dir}', '--config.note=a note') == 0
    output = capsys.readouterr().out
    assert 'a note' in output and studies.timeless(workdir) == before
    return output

  path.unlink()
  run_again(data)
  assert predicted == ['M0']
  run_again(data)
  assert predicted == ['M0']

  # An animal with other trials, then one with the same choices at other contrasts.
  tiny_mice.write(tmp_path, dataclasses.replace(tiny_mice.animal(5), name='M0'))
  assert f'{path}: it was made for something else: trials is' in run_again(tmp_path)
  levels = tiny_mice.animal().levels[::-1].copy()
  right = (levels > animals.ZERO_LEVEL) == (tiny_mice.animal().choices > 0)
  rewards = np.where(levels == animals.ZERO_LEVEL, 1, np.where(right, 1, -1))
  tiny_mice.write(tmp_path, dataclasses.replace(tiny_mice.animal(), levels=levels, rewards=rewards))
  assert f'{path}: it was made for something else: trials is' in run_again(tmp_path)
  assert predicted == ['M0'] * 3


def test_a_checkpoint_predicts_on_its_own_tokens(tmp_path):
  shape = tiny.write_checkpoint(tmp_path / 'model', start=True)
  config = tiny_mice.config(checkpoint=str(tmp_path / 'model'), tokenisation='random',
                   checkpoint_trials=6, checkpoint_batch_size=3)
  predictor = icl_hmm_mice.read_checkpoint(config)
  assert (predictor.name, predictor.num_trials) == ('checkpoint', 6)
  tokenizer = tokenizers.load_tokenizer(tmp_path / 'model')
  tokens = in_context.tokenise(tokenizer, 'random', animals.NUM_SYMBOLS, seed=0)
  assert len(tokens.prefix_ids) == 1

  trials = np.arange(6).reshape(1, 6)
  actual = predictor.predict('stim_choice', tiny_mice.animal(), trials)
  symbols = animals.encode(tiny_mice.animal().levels[trials], tiny_mice.animal().choices[trials],
                           tiny_mice.animal().rewards[trials], 'stim_choice')
  expected = in_context.Predictor(
      functools.partial(in_context.symbol_log_probs, policy.make(shape)), tokens,
      targets=animals.CHOICE_SYMBOLS, batch_size=3)(tiny.params(shape), symbols)
  np.testing.assert_allclose(actual, np.exp(expected[:, 1::2, 1]), atol=1e-5)
  with pytest.raises(ValueError, match='checkpoint_trials of 50 needs 151 tokens, .* has 128'):
    icl_hmm_mice.read_checkpoint(dataclasses.replace(config, checkpoint_trials=50))


def test_results_include_the_checkpoint(data, tmp_path, monkeypatch):
  monkeypatch.setattr(mice_training, 'meta_train', _untrained)
  monkeypatch.setattr(mice_predictors, 'make_predictor', lambda *_, **__: tiny_mice.predictor())
  checkpoint = tiny_mice.predictor()._replace(name='checkpoint')
  monkeypatch.setattr(icl_hmm_mice, 'read_checkpoint', lambda config: checkpoint)
  assert _run(tmp_path / 'run', *SMALL, f'--config.data_dir={data}', '--config.num_simulated=0',
              '--config.checkpoint=somewhere') == 0
  results = studies.results(tmp_path / 'run')
  for arm in mice_training.ARMS:
    assert results[f'mice/M0/checkpoint_{arm}/accuracy'] == results[f'mice/M0/icl_{arm}/accuracy']
  assert 'checkpoint: contrast, choice' in (tmp_path / 'run' / 'table.md').read_text()


# --- Config.


def test_fields_change_the_mice():
  config = tiny_mice.config(num_simulated=3, simulated_sessions=5)
  simulated = icl_hmm_mice.simulated_animals(config)
  assert [animal.num_sessions for animal, _ in simulated.values()] == [5] * 3
  for num_cohort in (2, 3):
    cohort = icl_hmm_mice.predict_cohort(
        tiny_mice.config(num_cohort=num_cohort), tiny_mice.predictor())
    assert cohort['chance/icl_choice'].shape == (num_cohort, 8)


def test_every_field_has_a_test_of_its_effect():
  batches = {'batch_size', 'num_trials', 'seed', 'short_fraction', 'short_trials', 'steps',
             'further_steps'}
  fits = {'ridge', 'pseudo_count', 'restarts', 'em_steps'}
  mice = {'num_simulated', 'simulated_sessions', 'num_cohort'}
  # By the runs above and the checkpoint that they read, or by the errors below.
  runs = {'data_dir', 'num_states', 'save_every', 'log_every', 'note', 'model', 'checkpoint',
          'tokenisation', 'checkpoint_trials', 'checkpoint_batch_size', 'optimizer', 'num_folds'}
  assert {field.name for field in dataclasses.fields(mice_config.IclHmmMice)} == (
      batches | fits | mice | runs)


@pytest.mark.parametrize('argument, words', [
    ('--config.num_folds=1', 'config.num_folds must be at least 2, got 1'),
    ('--config.num_folds=9', 'config.simulated_sessions must be at least 9, got 2'),
    ('--config.num_trials=3', 'config.num_trials must be at least 4, got 3'),
    ('--config.short_trials=9', r'config.short_trials must be at most .* \(8\), got 9'),
    ('--config.short_fraction=2', r'config.short_fraction must be in \[0, 1\], got 2'),
    ('--config.ridge=0', 'config.ridge must be positive and finite, got 0'),
    ('--config.optimizer.warmup_steps=9', 'warmup_steps'),
    ('--config.checkpoint_batch_size=0', 'checkpoint_batch_size must be at least 1, got 0'),
    # Repeated, a flag adds to a tuple.
    ('--config.num_states=(2,0)', r'config.num_states must all be at least 1, got \(2, 2, 0\)'),
    ('--config.tokenisation=roman', "config.tokenisation must be one of abc, 123, random, got 'ro"),
    ('--config.num_simulated=0', 'config.num_simulated must be at least 1 without config.data_dir'),
    ('--config.model.vocab_size=20', 'config.model.vocab_size must be 0 .*, got 20'),
    ('--config.model.max_length=24', r'config.model.max_length must be at least .* \(25\), got 24'),
    ('--config.data_dir=/nowhere', '/nowhere must be a directory with animals'),
    ('--config.checkpoint=/nowhere', "config.checkpoint: not a directory: '/nowhere'"),
])
def test_bad_configs_are_one_line_errors(tmp_path, capsys, monkeypatch, argument, words):
  monkeypatch.setattr(mice_training, 'meta_train', _never_trained)
  data = () if 'data_dir' in argument else ('--config.data_dir=',)
  assert _run(tmp_path / 'run', *SMALL, *data, argument) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and re.search(words, error), error
  assert not (tmp_path / 'run' / 'results.json').exists()


def test_fewer_sessions_than_folds_are_refused(data, tmp_path, capsys):
  assert _run(tmp_path / 'run', *SMALL, f'--config.data_dir={data}', '--config.num_folds=5',
              '--config.simulated_sessions=5') == 2
  assert ('config.num_folds must be at most the number of sessions of M0 (4), got 5'
          in capsys.readouterr().err)


def test_a_real_animal_named_like_a_simulated_one_is_refused(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(mice_training, 'meta_train', _never_trained)
  tiny_mice.write(tmp_path, dataclasses.replace(tiny_mice.animal(), name='simulated_0'))
  assert _run(tmp_path / 'run', *SMALL, f'--config.data_dir={tmp_path}') == 2
  error = capsys.readouterr().err
  assert "must not start with 'simulated_'" in error and error.count('\n') == 1


def test_a_fold_without_two_choices_in_a_session_is_refused(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(mice_training, 'meta_train', _never_trained)
  animal = tiny_mice.animal()
  fold = animals.folds(animal.num_sessions, 2, 0)[animal.sessions]
  choices = np.where(fold == 1, -1, animal.choices)
  choices[np.flatnonzero(fold == 1)[3]] = animal.choices[np.flatnonzero(fold == 1)[3]]
  monkeypatch.setattr(animals, 'load_folder', lambda _: [
      dataclasses.replace(animal, choices=choices)])
  assert _run(tmp_path / 'run', *SMALL, f'--config.data_dir={tmp_path}') == 2
  error = capsys.readouterr().err
  assert 'leave each fold of M0 a session with two choices, got 1 of 2 folds without' in error
  assert error.count('\n') == 1


def test_the_default_config_is_valid_and_small():
  from experiments.configs import icl_hmm_mice as config

  default = config.get_config()
  default.validate()
  model = mice_training.make_model(default)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) <= 300_000
