"""Choices of mice: data that each predictor sees, meta-training, outputs, resume and errors."""

import csv
import dataclasses
import functools
import json
import re
import shutil

import jax
import numpy as np
import pytest

from experiments.icl_hmm import __main__ as icl_hmm_main
from experiments.icl_hmm import mice as icl_hmm_mice
from experiments.icl_hmm import mice_config, mice_predictors, mice_report, mice_training
from jaxrl_llm.data import tokenizers
from jaxrl_llm.hmm import animals, in_context, simulated_mice
from jaxrl_llm.models import configs, policy
from jaxrl_llm.training import fingerprint, metrics, optim
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import TrainState
from tests.experiments import tiny

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


@functools.cache
def _animal(seed=0, sessions=4, length=12):
  generator = np.random.default_rng(seed)
  trials = simulated_mice.simulate(
      simulated_mice.draw(generator, 1), generator, num_trials=sessions * length,
                         session_length=length)
  return simulated_mice.as_animal(trials, 0, f'M{seed}')


def _write(folder, animal):
  """Writes an animal like the published files, whose first trials contain their own choices."""
  last = np.arange(len(animal.choices)) - 1
  last += np.concatenate([[True], np.diff(animal.sessions) > 0])
  choice = 2 * animal.choices[last].astype(int) - 1
  stimulus = animals.CONTRASTS[animal.levels] * 2.1 + .001
  np.savez(folder / f'{animal.name}_processed.npz',
           np.stack([stimulus, choice, choice * animal.rewards[last]], axis=1),
           animal.choices[:, None].astype(int), np.char.add('s', animal.sessions.astype(str)))


def _run(workdir, *arguments):
  return tiny.run(icl_hmm_main.main, f'--workdir={workdir}', *arguments, experiment='icl_hmm',
                  default_config=CONFIG)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('mice')
  _write(folder, _animal())
  return folder


def _untrained(run, stopper):
  del run, stopper
  return _predictor().params


def _never_trained(run, stopper):
  del run, stopper
  raise AssertionError('trained before the config was checked')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, data):
  workdir = tmp_path_factory.mktemp('icl_hmm_mice') / 'run'
  assert _run(workdir, *SMALL, f'--config.data_dir={data}') == 0
  return workdir


def _results(workdir):
  return json.loads((workdir / 'results.json').read_text())


METHODS = {'chance', 'bias', 'glm', 'glm_levels', 'glm_hmm2', 'ngram2', 'ngram3', 'context_ngram2',
           'context_ngram3', *(f'icl_{arm}' for arm in mice_training.ARMS)}


def test_a_run_writes_numbers_tables_and_a_figure_with_its_data(workdir):
  results = _results(workdir)
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


def _timeless(results):
  return {name: value for name, value in results.items()
          if name not in ('wall_seconds', 'commit', 'sha256')}


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
  assert _timeless(_results(tmp_path / 'run')) == _timeless(_results(workdir))
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
  before, path = _results(workdir), workdir / 'arms' / 'M0.animal.npz'
  with np.load(path) as arrays:
    arrays = {name: values for name, values in arrays.items() if name != '_header'}
  predicted = []
  monkeypatch.setattr(icl_hmm_mice, 'predict_animal', lambda config, animal, *rest: (
      predicted.append(animal.name), arrays)[1])

  def run_again(data_dir):
    (workdir / 'results.json').unlink()
    assert _run(workdir, *SMALL, f'--config.data_dir={data_dir}', '--config.note=a note') == 0
    output = capsys.readouterr().out
    assert 'a note' in output and _timeless(_results(workdir)) == _timeless(before)
    return output

  path.unlink()
  run_again(data)
  assert predicted == ['M0']
  run_again(data)
  assert predicted == ['M0']

  # An animal with other trials, then one with the same choices at other contrasts.
  _write(tmp_path, dataclasses.replace(_animal(5), name='M0'))
  assert f'{path}: it was made for something else: trials is' in run_again(tmp_path)
  levels = _animal().levels[::-1].copy()
  right = (levels > animals.ZERO_LEVEL) == (_animal().choices > 0)
  rewards = np.where(levels == animals.ZERO_LEVEL, 1, np.where(right, 1, -1))
  _write(tmp_path, dataclasses.replace(_animal(), levels=levels, rewards=rewards))
  assert f'{path}: it was made for something else: trials is' in run_again(tmp_path)
  assert predicted == ['M0'] * 3


def test_a_checkpoint_predicts_on_its_own_tokens(tmp_path):
  shape = tiny.write_checkpoint(tmp_path / 'model', start=True)
  config = _config(checkpoint=str(tmp_path / 'model'), tokenisation='random',
                   checkpoint_trials=6, checkpoint_batch_size=3)
  predictor = icl_hmm_mice.read_checkpoint(config)
  assert (predictor.name, predictor.num_trials) == ('checkpoint', 6)
  tokenizer = tokenizers.load_tokenizer(tmp_path / 'model')
  tokens = in_context.tokenise(tokenizer, 'random', animals.NUM_SYMBOLS, seed=0)
  assert len(tokens.prefix_ids) == 1

  trials = np.arange(6).reshape(1, 6)
  actual = predictor.predict('stim_choice', _animal(), trials)
  symbols = animals.encode(_animal().levels[trials], _animal().choices[trials],
                           _animal().rewards[trials], 'stim_choice')
  expected = in_context.Predictor(
      functools.partial(in_context.symbol_log_probs, policy.make(shape)), tokens,
      targets=animals.CHOICE_SYMBOLS, batch_size=3)(tiny.params(shape), symbols)
  np.testing.assert_allclose(actual, np.exp(expected[:, 1::2, 1]), atol=1e-5)
  with pytest.raises(ValueError, match='checkpoint_trials of 50 needs 151 tokens, .* has 128'):
    icl_hmm_mice.read_checkpoint(dataclasses.replace(config, checkpoint_trials=50))


def test_results_include_the_checkpoint(data, tmp_path, monkeypatch):
  monkeypatch.setattr(mice_training, 'meta_train', _untrained)
  monkeypatch.setattr(mice_predictors, 'make_predictor', lambda *_, **__: _predictor())
  monkeypatch.setattr(
      icl_hmm_mice, 'read_checkpoint', lambda config: _predictor()._replace(name='checkpoint'))
  assert _run(tmp_path / 'run', *SMALL, f'--config.data_dir={data}', '--config.num_simulated=0',
              '--config.checkpoint=somewhere') == 0
  results = _results(tmp_path / 'run')
  for arm in mice_training.ARMS:
    assert results[f'mice/M0/checkpoint_{arm}/accuracy'] == results[f'mice/M0/icl_{arm}/accuracy']
  assert 'checkpoint: contrast, choice' in (tmp_path / 'run' / 'table.md').read_text()


# --- Data that each predictor sees.


def test_every_choice_is_predicted_once_from_training_sessions_and_its_own_past():
  animal = dataclasses.replace(_animal(), choices=_animal().choices.copy())
  animal.choices[[3, 20]] = -1

  fold = animals.folds(animal.num_sessions, 2, 0)
  trials, predicted = mice_predictors.held_out_windows(animal, fold, 30)
  actual = trials[predicted]
  np.testing.assert_array_equal(np.sort(actual), np.flatnonzero(animal.choices >= 0))

  order = []
  for row, mask in zip(trials, predicted):
    session = animal.sessions[row[mask][0]]
    real = row[row >= 0]
    for trial in real:
      own = animal.sessions[trial] == session
      assert own or fold[animal.sessions[trial]] != fold[session]
    seen = animal.sessions[real]
    order.append([*dict.fromkeys(int(s) for s in seen)])
    assert order[-1][-1] == session
    # Later sessions come first, then earlier ones.
    others = [s - 100 * (s > session) for s in order[-1][:-1]]
    assert others == sorted(others)
  assert max(map(len, order)) == 3


def _config(**options):
  small = dict(num_folds=2, num_states=(2,), restarts=1, em_steps=2, num_cohort=2, num_trials=8,
               short_trials=8, short_fraction=0.0, steps=4, further_steps=4, batch_size=2,
               model=configs.TransformerConfig(
                   num_layers=1, width=8, num_heads=1, num_kv_heads=1, head_dim=8, mlp_width=8,
                   max_length=64, tie_embeddings=False))
  return mice_config.IclHmmMice(**small | options)


@functools.cache
def _predictor():
  model = mice_training.make_model(_config())
  params = jax.jit(model.init)(jax.random.key(0))
  return mice_predictors.make_predictor(
      'icl', model, dict.fromkeys(mice_training.ARMS, params),
      mice_training.TOKENISATION, num_trials=8, batch_size=4)


@functools.cache
def _predictions(changed=None):
  """All predictions of an animal, of which one choice may be flipped."""
  animal = _animal()
  if changed is not None:
    animal = dataclasses.replace(animal, choices=animal.choices.copy())
    animal.choices[changed] = 1 - animal.choices[changed]
  return icl_hmm_mice.predict_animal(_config(), animal, None, [_predictor()], (4, 12))


def test_8_12_no_prediction_depends_on_its_own_choice_or_a_later_one():
  # Flip a choice in the middle of session 1. Within its fold no prediction of an earlier or the
  # same trial changes; predictions of training-fold sessions may.
  flipped = 17
  before, after = _predictions(), _predictions(flipped)
  same_fold = before['fold'] == before['fold'][flipped]
  earlier = same_fold & (np.arange(48) <= flipped)

  for name in before:
    if not name.startswith('chance/') or name == 'chance/icl_shift':
      continue
    np.testing.assert_allclose(after[name][earlier], before[name][earlier], err_msg=name)
    changed, name = np.abs(after[name] - before[name]) > 0, name.removeprefix('chance/')
    if name not in ('chance', 'bias'):
      assert changed[flipped + 1 : flipped + 5].any(), name
    if name in ('bias', 'glm', 'glm_levels', 'glm_hmm2', 'ngram2'):
      assert changed[~same_fold].any(), name


def test_8_12_predictions_do_not_depend_on_other_held_out_sessions():
  flipped, sessions = 17, _animal().sessions
  before, after = _predictions(), _predictions(flipped)
  others = (before['fold'] == before['fold'][flipped]) & (sessions != sessions[flipped])
  assert (sessions[others] > sessions[flipped]).any()
  for name in before:
    if name.startswith('chance/'):
      np.testing.assert_array_equal(after[name][others], before[name][others], err_msg=name)


def test_counts_by_hand():
  levels, choices = np.array([3, 3, 5, 3, 3]), np.array([1, 0, 1, 1, 1])
  actual = mice_predictors.count_predictions(levels, choices)
  # 1-gram: (ones + 1/2) / (count + 1).
  np.testing.assert_allclose(actual[0], [.5, 1.5 / 2, 1.5 / 3, 2.5 / 4, 3.5 / 5])
  # 2-gram, with the 1-gram as one more observation.
  np.testing.assert_allclose(
      actual[1], [.5, (1 + .75) / 2, .5, (1 + .625) / 3, (2 + .7) / 4])
  # 3-gram: (none, 3), (1, 3), (0, 5), (1, 3), (1, 3).
  np.testing.assert_allclose(
      actual[2], [.5, actual[1, 1], .5, (0 + actual[1, 3]) / 2, (1 + actual[1, 4]) / 3])


def test_padding_does_not_change_fitted_models():
  config, animal = _config(), _animal()
  fold = animals.folds(4, 2, 0)
  padded = mice_predictors.fitted_predictions(config, animal, fold, (6, 15))
  for name in ('glm', 'glm_levels', 'glm_hmm2'):
    np.testing.assert_allclose(padded[name], _predictions()[f'chance/{name}'], atol=2e-4)


# --- Meta-training.


@pytest.mark.parametrize('name', mice_training.ARMS)
def test_labels_come_after_the_positions_that_predict_them(name):
  width = 6
  batch = mice_training.encode_batch(np.random.default_rng(0), name, 3, width)
  arm = mice_training.ARMS[name]
  generator = np.random.default_rng(0)
  drawn = simulated_mice.draw(generator, 3)
  trials = simulated_mice.simulate(drawn, generator, num_trials=width + arm.shift,
                                   phase=generator.integers(90, size=3))

  tokens = np.concatenate([batch.tokens, np.full((3, 1), -1)], axis=1)
  labels = np.take_along_axis(tokens, batch.positions + 1, axis=1)
  shown = labels >= 0  # The last choice may be the last token, which is not in the batch.
  np.testing.assert_array_equal(
      (labels - animals.CHOICE_SYMBOLS[0])[shown], trials.choices[:, :width][shown])
  assert (batch.tokens[:, 0] == animals.NUM_SYMBOLS).all()
  assert batch.tokens[:, 1:].max() < animals.NUM_SYMBOLS

  best = simulated_mice.predict(drawn, trials)[:, :width]
  zero = trials.levels[:, :width] == animals.ZERO_LEVEL
  if arm.shift:  # The contrast and reward in the context determine the choice.
    np.testing.assert_array_equal(batch.chances[~zero], trials.choices[:, :width][~zero])
  np.testing.assert_allclose(batch.chances[zero if arm.shift else ...],
                             best[zero if arm.shift else ...], atol=1e-6)


def test_a_batch_is_a_function_of_seed_and_step():
  config, arm = _config(short_fraction=.25, short_trials=4), 'stim_choice'
  a, b = (mice_training.draw_batch(config, arm, 3) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  other = mice_training.draw_batch(dataclasses.replace(config, seed=1), arm, 3)
  assert (a.tokens != other.tokens).any()
  assert mice_training.draw_batch(config, arm, 0).positions.shape == (4, 4)
  assert a.positions.shape == (2, 8)


def test_the_loss_is_the_cross_entropy_with_the_optimal_prediction():
  config = _config()
  model = mice_training.make_model(config)
  batch = mice_training.encode_batch(np.random.default_rng(1), 'stim_choice', 2, 5)
  loss, extra = jax.jit(functools.partial(mice_training.loss_fn, model))(
      {'policy': _predictor().params['stim_choice']}, batch)

  trials = np.arange(10).reshape(2, 5)
  symbols = batch.tokens[:, 1:].reshape(2, -1)
  flat = animals.Animal('m', *(np.zeros((2, 5), int) for _ in range(4)))
  flat.levels[:] = symbols[:, ::2]
  flat.choices[:, :4] = symbols[:, 1::2] - animals.CHOICE_SYMBOLS[0]
  flat = animals.Animal('m', *(x.reshape(-1) for x in (
      flat.levels, flat.choices, flat.rewards, flat.sessions)))

  p, q = _predictor().predict('stim_choice', flat, trials), batch.chances.astype(float)
  cross = -(q * np.log(p) + (1 - q) * np.log(1 - p)).mean()
  own = -(q * np.log(q) + (1 - q) * np.log(1 - q)).mean()
  assert float(loss.value()) == pytest.approx(cross, abs=1e-5)
  assert float(extra['train/divergence'].value()) == pytest.approx(cross - own, abs=1e-5)


def test_the_predictor_learns_to_follow_the_contrast():
  config = _config(batch_size=32)
  model = mice_training.make_model(config)
  optimizer = optim.make_optimizer(optim.OptimizerConfig(learning_rate=2e-2))

  @jax.jit
  def init():
    params = {'policy': model.init(jax.random.key(0))}
    return TrainState.create(params, optimizer, jax.random.key(0))

  @jax.jit
  def step(state, batch):
    return step_lib.take_step(
        functools.partial(mice_training.loss_fn, model), optimizer, state, batch)

  state, losses = init(), []
  for index in range(60):
    batch = mice_training.encode_batch(
        np.random.default_rng(index), 'stim_choice', 32, 16)
    state, update = step(state, batch)
    losses.append(float(update['train/loss'].value()))
  assert losses[0] > .6 and np.mean(losses[-10:]) < .61  # ln 2 is .693, the optimum .46.


def test_7g_the_leaked_answer_beats_the_optimal_prediction():
  # The rule 'the choice fits the contrast and the reward in the context', with no parameter.
  generator = np.random.default_rng(3)
  drawn = simulated_mice.draw(generator, 100)
  trials = simulated_mice.simulate(drawn, generator, num_trials=180)
  best = mice_report.hits(simulated_mice.predict(drawn, trials), trials.choices)[:, :-1].mean()
  symbols = animals.encode(
      trials.levels, trials.choices, trials.rewards, 'stim_choice_reward', shift=True)
  labels = animals.label_positions('stim_choice_reward', 180, shift=True)[1:]
  rewarded = symbols[:, labels - 2] == animals.REWARD_SYMBOLS[1]
  level = symbols[:, labels - 4]
  guess = np.where(rewarded, level > animals.ZERO_LEVEL, level < animals.ZERO_LEVEL)
  chances = np.where(level == animals.ZERO_LEVEL, .5, guess)
  leaked = mice_report.hits(chances, symbols[:, labels] - animals.CHOICE_SYMBOLS[0])
  assert leaked.mean() == pytest.approx(17 / 18, abs=.01)
  assert leaked.mean() > best + .1


# --- Config.


def test_fields_change_the_batches():
  def shape(**changes):
    config = _config(**{'short_trials': 4, **changes})
    return mice_training.draw_batch(config, 'stim_choice', 1).positions.shape

  assert shape() == (2, 8)
  assert shape(batch_size=3) == (3, 8)
  assert shape(num_trials=10) == (2, 10)
  assert shape(short_fraction=1.0) == (4, 4)
  assert shape(short_fraction=1.0, short_trials=5) == (3, 5)
  assert shape(short_fraction=.3) == (4, 4) and shape(short_fraction=.3, steps=2) == (2, 8)
  assert mice_training.num_steps(_config(further_steps=7), 'choice') == 7


@functools.cache
def _fitted(**changes):
  return mice_predictors.fitted_predictions(
      _config(**changes), _animal(), animals.folds(4, 2, 0), (4, 12))


@pytest.mark.parametrize('changes, name', [
    (dict(ridge=1.0), 'glm'), (dict(pseudo_count=1.0), 'glm_hmm2'), (dict(restarts=3), 'glm_hmm2'),
    (dict(em_steps=1), 'glm_hmm2'), (dict(seed=1), 'glm_hmm2')])
def test_fields_change_the_fits(changes, name):
  assert (_fitted(**changes)[name] != _fitted()[name]).any()


def test_fields_change_the_mice():
  config = _config(num_simulated=3, simulated_sessions=5)
  simulated = icl_hmm_mice.simulated_animals(config)
  assert [animal.num_sessions for animal, _ in simulated.values()] == [5] * 3
  for num_cohort in (2, 3):
    cohort = icl_hmm_mice.predict_cohort(_config(num_cohort=num_cohort), _predictor())
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
  _write(tmp_path, dataclasses.replace(_animal(), name='simulated_0'))
  assert _run(tmp_path / 'run', *SMALL, f'--config.data_dir={tmp_path}') == 2
  error = capsys.readouterr().err
  assert "must not start with 'simulated_'" in error and error.count('\n') == 1


def test_a_fold_without_two_choices_in_a_session_is_refused(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(mice_training, 'meta_train', _never_trained)
  animal = _animal()
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
