"""A language model on published HMMs: predictions, scores, groups, outputs, resume and errors."""

import csv
import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import icl_hmm_checkpoint as config_file
from experiments.icl_hmm import __main__ as icl_hmm_main
from experiments.icl_hmm import checkpoint as icl_hmm_checkpoint
from experiments.icl_hmm import checkpoint_config, checkpoint_report
from experiments.icl_hmm import report as icl_hmm_report
from jaxrl_llm import types
from jaxrl_llm.data import tokenizers
from jaxrl_llm.hmm import filtering, in_context, published_results
from jaxrl_llm.models import policy
from jaxrl_llm.models.pretrained import huggingface
from jaxrl_llm.runs import launch
from jaxrl_llm.training import loop, metrics
from jaxrl_llm.types import ModelFns
from tests.experiments import studies, tiny

CONFIG = 'experiments/configs/icl_hmm_checkpoint.py'
SMALL = ('--config.num_sequences=5', '--config.max_length=16', '--config.batch_size=4')
KINDS = ('abc', '123', 'random')
VOCABULARY = 11
SCORES = checkpoint_report.SCORES
TRANSITION = np.array([[.9, .1, 0], [.2, .7, .1], [.3, 0, .7]])
EMISSION = np.array([[.6, .3, .1], [.1, .2, .7], [.2, .5, .3]])


def _recorded(transition=TRANSITION, emission=EMISSION, **changes):
  fields = dict(
      line=2, initial=np.array([1., 0, 0])[: len(transition)], transition=transition,
      emission=emission, stationary=np.full(len(transition), 1 / len(transition)), lambda2=.7,
      transition_entropy=1., emission_entropy=1., accuracy={}, hellinger={})
  return published_results.RecordedHmm(**{**fields, **changes})


def _config(**changes):
  return checkpoint_config.IclHmmCheckpoint(**{
      'checkpoint_dir': '.', 'results_file': 'a.csv', 'num_sequences': 6, 'max_length': 16,
      'batch_size': 4, **changes})


def _model(seen=None):
  """A causal model whose parameters are its logits by last token.

  `seen` collects the shape of its input at each call.
  """
  def apply(params, tokens, *, positions, valid, cache=None):
    del positions, valid, cache
    if seen is not None:
      jax.debug.callback(lambda rows: seen.append(rows.shape), tokens)
    return types.ModelOutput(params[tokens], types.Head(jnp.eye(VOCABULARY), None), None)

  return ModelFns(init=None, apply=apply, init_cache=None)


def _predictor(config, logits, *, tokens=None, seen=None):
  """Predictor with `_model`, by default with one tokenisation for all kinds."""
  tokens = tokens or {kind: in_context.Tokenisation((7, 2, 5)) for kind in config.kinds}
  predictors = icl_hmm_checkpoint.make_predictors(config, _model(seen), tokens)
  return icl_hmm_checkpoint.InContextPredictor(jnp.asarray(logits, jnp.float32), predictors)


def _run(workdir, *arguments):
  return tiny.run(icl_hmm_main.main, f'--workdir={workdir}', *arguments, experiment='icl_hmm',
                  default_config=CONFIG)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory, data_dir):
  """A random Qwen2 with two layers and the tokenizer of the released ones."""
  folder = tmp_path_factory.mktemp('checkpoint') / 'model'
  config = tiny.shape(151_936, width=8, num_heads=1, num_kv_heads=1, mlp_width=8)
  huggingface.save(folder, config, tiny.params(config), model_type='qwen2', dtype='float32',
                   tokenizer_from=data_dir / 'tokenizers' / 'qwen2')
  return folder


@pytest.fixture(scope='module')
def finished(tmp_path_factory, checkpoint, data_dir):
  """(workdir, arguments) of a complete run."""
  workdir = tmp_path_factory.mktemp('icl_hmm_checkpoint') / 'run'
  arguments = (f'--config.checkpoint_dir={checkpoint}', *SMALL,
               f'--config.results_file={data_dir / "icl_hmm" / "entropy_results.csv"}')
  assert _run(workdir, *arguments) == 0
  return workdir, arguments


# --- Predictions.


def test_8_2_position_T_is_predicted_by_the_logits_at_T_minus_1_renormalised_over_the_symbols():
  config, symbols = _config(tokenisations='abc'), (7, 2, 5)
  logits = np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY))
  predictor = _predictor(config, logits)
  drawn = np.random.default_rng(1).integers(3, size=(5, 16))
  actual = icl_hmm_checkpoint.predict(
      predictor.predictors['abc'], predictor.params, drawn, config.lengths, 3)
  assert actual.shape == (5, 3, 3)
  np.testing.assert_allclose(actual.sum(axis=-1), 1, atol=1e-6)
  for k, length in enumerate((4, 8, 16)):
    last = np.array(symbols)[drawn[:, length - 1]]  # Token T − 1, of the T that were seen.
    chances = np.exp(logits[last])
    chances = (chances / chances.sum(axis=1, keepdims=True))[:, symbols]
    np.testing.assert_allclose(
        actual[:, k], chances / chances.sum(axis=1, keepdims=True), atol=1e-5)


def test_a_smaller_alphabet_uses_the_first_symbols_of_the_tokenisation():
  config = _config(tokenisations='abc')
  logits = np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY))
  drawn = np.random.default_rng(1).integers(2, size=(3, 16))
  wide, narrow = (_predictor(config, logits, tokens={'abc': in_context.Tokenisation(ids)})
                  for ids in ((7, 2, 5, 9), (7, 2)))
  expected = icl_hmm_checkpoint.predict(
      narrow.predictors['abc'], narrow.params, drawn, config.lengths, 2)
  actual = icl_hmm_checkpoint.predict(
      wide.predictors['abc'], wide.params, drawn, config.lengths, 2)
  assert actual.shape[-1] == 2
  np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_each_tokenisation_takes_one_forward_pass_per_trajectory():
  config, seen = _config(tokenisations='abc,random', num_sequences=8), []
  predictor = _predictor(config, np.zeros((VOCABULARY, VOCABULARY)), seen=seen)
  icl_hmm_checkpoint.measure_model(config, 0, _recorded(), predictor)
  jax.effects_barrier()
  assert seen == [(4, 16)] * 4  # Two tokenisations of 8 trajectories, 4 at a time.


def test_equal_logits_predict_the_first_symbol_and_the_uniform_distribution():
  config = _config(tokenisations='abc', num_sequences=7)
  recorded = _recorded(np.eye(3))  # The chain stays in state 0.
  actual = icl_hmm_checkpoint.measure_model(
      config, 0, recorded, _predictor(config, np.zeros((VOCABULARY, VOCABULARY))))

  mean, error = actual['abc']
  assert mean.shape == (len(SCORES), 3)
  distance = math.sqrt(1 - np.sqrt(EMISSION[0] / 3).sum())
  # B[0] = (.6, .3, .1): Viterbi and the filter know it.
  np.testing.assert_allclose(mean, np.repeat(
      [[.6], [1 / 3], [distance], [distance], [0], [0]], 3, axis=1), atol=1e-5)
  np.testing.assert_allclose(error, 0, atol=1e-6)
  np.testing.assert_allclose(
      actual['filter'][0, :, 0], [.6, .36 + .09 + .01, 0, 0, 0, 0], atol=5e-4)
  # Chance does not depend on the first symbol.
  np.testing.assert_allclose(actual['chance'][0, :2], 1 / 3, atol=1e-6)
  np.testing.assert_allclose(actual['chance'][0, 4:], .6 - 1 / 3, atol=1e-6)


def test_a_model_that_knows_the_hmm_has_no_gap_if_states_are_observed():
  # With B = I the filter is A's row of the last symbol, which a bigram model can represent.
  config, ids = _config(tokenisations='abc'), (7, 2, 5)
  logits = np.full((VOCABULARY, VOCABULARY), 3.0)
  logits[np.ix_(ids, ids)] = np.log(np.maximum(TRANSITION, 1e-30))
  actual = icl_hmm_checkpoint.measure_model(
      config, 0, _recorded(emission=np.eye(3)), _predictor(config, logits))
  for name in ('gap_viterbi', 'gap_filter', 'hellinger_filter'):
    np.testing.assert_allclose(actual['abc'][0, SCORES.index(name)], 0, atol=1e-3)
  np.testing.assert_allclose(actual['abc'][0, :3], actual['filter'][0, :3], atol=1e-5)
  assert actual['ngram2'][0, SCORES.index('gap_filter'), 0] >= 0


def test_predictions_do_not_depend_on_the_ids_for_a_model_that_ignores_them():
  # Its logits depend only on whether two tokens are the same.
  config = _config(tokenisations='random')
  logits = 2.0 * np.eye(VOCABULARY)
  draws = [icl_hmm_checkpoint.measure_model(
      config, 3, _recorded(),
      _predictor(config, logits, tokens={'random': in_context.Tokenisation(ids)}))['random']
           for ids in ((7, 2, 5), (0, 10, 3), (5, 7, 2))]
  for other in draws[1:]:
    np.testing.assert_array_equal(other, draws[0])


def test_scores_are_averages_over_states_and_symbols():
  rng = np.random.default_rng(0)
  predictions, best = rng.dirichlet(np.ones(3), (2, 4, 2)).astype(np.float32)
  distributions = rng.dirichlet(np.ones(3), (4, 2)).astype(np.float32)
  actual = np.asarray(icl_hmm_checkpoint.score(
      predictions, distributions, best, EMISSION.astype(np.float32)))
  for n in range(4):
    for k in range(2):
      p, expected = predictions[n, k], np.zeros(4)
      for state, weight in enumerate(distributions[n, k]):
        for symbol in range(3):
          chance = weight * EMISSION[state, symbol]
          expected[:2] += chance * np.array([symbol == np.argmax(p), p[symbol]])
        expected[2] += weight * math.sqrt(1 - np.sqrt(p * EMISSION[state]).sum())
      expected[3] = math.sqrt(1 - np.sqrt(p * best[n, k]).sum())
      np.testing.assert_allclose(actual[:, n, k], expected, atol=1e-5)


def test_state_distributions_are_conditioned_on_the_true_state_before():
  keys = jax.random.split(jax.random.key(0), 3)
  model = [np.float32(x) for x in (np.array([1, 0, 0]), TRANSITION, EMISSION)]
  drawn = icl_hmm_checkpoint.draw(keys, *model, lengths=(4, 8))
  assert drawn.symbols.shape == (3, 8)
  for n, key in enumerate(keys):
    states, symbols = filtering.sample(key, *model, 8)
    np.testing.assert_array_equal(drawn.symbols[n], symbols)
    np.testing.assert_allclose(
        drawn.state_distributions[n], TRANSITION[np.asarray(states)[[3, 7]]], atol=1e-6)
    for k, length in enumerate((4, 8)):  # Frequencies after the last symbol so far.
      seen = np.asarray(symbols)[:length]
      follows = np.bincount(seen[1:][seen[:-1] == seen[-1]], minlength=3)
      expected = follows / follows.sum() if follows.any() else np.full(3, 1 / 3)
      np.testing.assert_allclose(drawn.predictions['ngram2'][n, k], expected, atol=1e-6)


# --- Groups.


def test_entropies_are_fractions_of_their_maxima():
  # 1 bit of log2 4, and of log2 8: at most 1, unlike in the paper's figures.
  model = _recorded(np.full((4, 4), .25), np.full((4, 8), .125), initial=np.full(4, .25))
  actual = checkpoint_report.shares([model])
  np.testing.assert_allclose(np.concatenate(actual), [1 / 2, 1 / 3])


# --- A run.


def test_a_run_writes_numbers_tables_and_figures(finished):
  workdir, _ = finished
  results = studies.results(workdir)
  assert (results['experiment'], results['setting']) == ('icl_hmm', 'checkpoint')
  assert results['num_models'] == 4  # Of four states and four symbols.
  assert results['sampled_tokens'] == 4 * 5 * 16
  assert results['note'] == config_file.get_config().note
  for method in (*checkpoint_report.BASELINES, *KINDS):
    for score in SCORES[:4]:
      for length in (4, 8, 16):
        assert 0 <= results[f'eval/{method}/{score}/T{length}'] <= 1
        assert results[f'eval/{method}/{score}_se/T{length}'] >= 0
  assert 'eval/abc/accuracy/T32' not in results
  assert results['eval/chance/accuracy/T4'] == .25

  for kind in KINDS:
    accuracy = {method: results[f'eval/{method}/accuracy/T16'] for method in (
        kind, 'viterbi', 'filter')}
    assert results[f'eval/{kind}/final_gap'] == pytest.approx(
        accuracy['viterbi'] - accuracy[kind])
    assert results[f'eval/{kind}/to_filter/final_gap'] == pytest.approx(
        accuracy['filter'] - accuracy[kind])
    assert results[f'eval/{kind}/H_B_0-0.33/count'] == 2
    assert 0 <= results[f'eval/{kind}/models_within_0.05'] <= 1

  assert {path.name for path in (workdir / 'figures').glob('*.png')} == {
      'by_length.png', 'gap_by_difficulty.png', 'convergence.png'}
  table = (workdir / 'table.md').read_text()
  assert 'random tokens' in table and 'qwen2.5_7b, recorded' in table
  assert '| recorded accuracy (%) at T | baum_welch | qwen2.5_0.5b |' in table
  records = metrics.read_jsonl(workdir / 'metrics.jsonl')
  assert [record['step'] for record in records] == [4, 8, 16]
  assert records[2]['eval/abc/accuracy'] == results['eval/abc/accuracy/T16']


def test_results_include_the_recorded_language_models(finished, data_dir):
  workdir, _ = finished
  results = studies.results(workdir)
  models = [model for model in published_results.read(
      data_dir / 'icl_hmm' / 'entropy_results.csv', methods={},
      optional={'viterbi': 'viterbi', 'llm': 'llm_qwen_1_5b'}) if model.emission.shape == (4, 4)]
  for k, length in enumerate((4, 8, 16)):
    expected = np.mean([model.accuracy['llm'][k] for model in models])
    assert results[f'recorded/qwen2.5_1.5b/accuracy/T{length}'] == pytest.approx(expected)
    expected = np.mean([model.hellinger['llm'][k] for model in models])
    assert results[f'recorded/qwen2.5_1.5b/hellinger/T{length}'] == pytest.approx(expected)
  gap = np.mean([model.accuracy['viterbi'][2] - model.accuracy['llm'][2] for model in models])
  assert results['recorded/qwen2.5_1.5b/final_gap'] == pytest.approx(gap)


def test_every_model_and_length_is_in_a_csv_file(finished):
  workdir, _ = finished
  with open(workdir / 'rows.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 4 * (len(KINDS) + 1 + 8)  # The bigram, and eight recorded.
  with open(workdir / 'scores.csv', newline='') as file:
    scores = list(csv.DictReader(file))
  assert len(scores) == 4 * 7 * 3
  row = next(row for row in rows if (row['row'], row['predictor']) == ('9', 'random'))
  assert (row['M'], row['L'], row['lambda2'], row['H_B_share']) == ('4', '4', '0.75', '0.0')
  gaps = [float(line['gap_viterbi']) for line in scores
          if (line['row'], line['method']) == ('9', 'random')]
  assert float(row['final_gap']) == gaps[-1]
  for tolerance in icl_hmm_report.TOLERANCES:
    assert float(row[f'T_{tolerance:g}']) == icl_hmm_report.reached((4, 8, 16), gaps, tolerance)


def test_the_run_agrees_with_the_checkpoint_on_its_own_tokens(finished, checkpoint, data_dir):
  workdir, _ = finished
  config = dataclasses.replace(
      config_file.get_config(), checkpoint_dir=str(checkpoint), num_sequences=5, max_length=16,
      batch_size=4)
  recorded = published_results.read(config.results_file, methods={})[9]

  shape = tiny.shape(151_936, width=8, num_heads=1, num_kv_heads=1, mlp_width=8)
  tokenizer = tokenizers.load_tokenizer(data_dir / 'tokenizers' / 'qwen2')
  log_probs_fn = jax.jit(functools.partial(in_context.symbol_log_probs, policy.make(shape)))
  own = {kind: in_context.Predictor(
      log_probs_fn, in_context.tokenise(tokenizer, kind, 4, seed=config.seed), batch_size=5)
         for kind in ('123', 'random')}
  actual = icl_hmm_checkpoint.measure_model(
      config, 9, recorded, icl_hmm_checkpoint.InContextPredictor(tiny.params(shape), own))
  with np.load(next((workdir / 'models').glob('0009_*.npz'))) as arrays:
    for kind in own:
      np.testing.assert_allclose(arrays[kind], actual[kind], atol=1e-5)


def test_finished_models_are_read_and_damaged_ones_computed_again(finished, monkeypatch, capsys):
  workdir, arguments = finished
  before = studies.timeless(workdir)
  (workdir / 'results.json').unlink()
  next((workdir / 'models').glob('0001_*.npz')).write_bytes(b'damaged')

  measured, measure = [], icl_hmm_checkpoint.measure_model
  monkeypatch.setattr(icl_hmm_checkpoint, 'measure_model', lambda config, index, *rest: (
      measured.append(index), measure(config, index, *rest))[1])
  assert _run(workdir, *arguments) == 0
  assert measured == [1] and studies.timeless(workdir) == before
  assert 'is damaged' in capsys.readouterr().out


def test_models_measured_with_another_checkpoint_at_its_path_are_measured_again(
    tmp_path, monkeypatch, capsys):
  config, measured = _config(), []
  run = launch.Run(config, tmp_path, 'icl_hmm', '', CONFIG, (), '0' * 40)
  zeros = np.zeros((2, len(SCORES), len(config.lengths)))
  monkeypatch.setattr(icl_hmm_checkpoint, 'measure_model', lambda config, index, *_: (
      measured.append(index), dict.fromkeys((*checkpoint_report.BASELINES, *KINDS), zeros))[1])

  predictor = _predictor(config, np.zeros((VOCABULARY, VOCABULARY)))
  for params, expected in (('a', [3]), ('a', []), ('b', [3])):
    with loop.Stopper() as stopper:
      icl_hmm_checkpoint.measure_all(
          run, stopper, {3: _recorded()}, predictor._replace(identity={'params': params}))
    assert measured == expected
    measured.clear()
  assert "language_model.params is 'a' there, 'b' here" in capsys.readouterr().out


def test_a_stopped_run_finishes_the_current_model(tmp_path, finished, monkeypatch):
  _, arguments = finished

  def request_stop(stopper):
    stopper.requested = True
    return stopper

  monkeypatch.setattr(loop.Stopper, '__enter__', request_stop)
  assert _run(tmp_path / 'run', *arguments, '--config.tokenisations=random') == loop.INTERRUPTED
  assert len(list((tmp_path / 'run' / 'models').iterdir())) == 1
  assert not (tmp_path / 'run' / 'results.json').exists()


# --- Config.


def test_rows_are_selected_by_size_and_spread_over_the_file():
  models = [_recorded(), _recorded(), _recorded(emission=np.full((3, 4), .25)), _recorded(),
            _recorded()]

  def select(**changes):
    return icl_hmm_checkpoint.select(_config(**changes), models)

  assert select() == [0, 1, 2, 3, 4] and select(max_rows=9) == [0, 1, 2, 3, 4]
  assert select(num_symbols=3) == [0, 1, 3, 4] and select(num_symbols=3, max_rows=2) == [0, 4]
  assert select(max_symbols=3) == [0, 1, 3, 4] and select(max_symbols=99) == select()
  assert select(max_rows=3) == [0, 2, 4]
  with pytest.raises(ValueError, match='3 and 3, 3 and 4.*, got 5, 0 and 0'):
    select(num_states=5)


def test_the_lengths_are_doublings():
  assert _config(max_length=4).lengths == (4,)
  assert _config(max_length=2048).lengths == published_results.LENGTHS


def test_fields_change_the_scores():
  logits = np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY))

  def measure(**changes):
    config = _config(**changes)
    return icl_hmm_checkpoint.measure_model(config, 0, _recorded(), _predictor(config, logits))

  default = measure()
  assert (measure(seed=1)['viterbi'] != default['viterbi']).any()
  assert (measure(num_sequences=7)['abc'] != default['abc']).any()
  assert default['abc'].shape == (2, 6, 3) and measure(max_length=8)['abc'].shape == (2, 6, 2)
  assert default.keys() - measure(tokenisations='abc').keys() == {'123', 'random'}


def test_every_field_has_a_test_of_its_effect():
  scores = {'seed', 'num_sequences', 'max_length', 'tokenisations'}
  rows = {'num_states', 'num_symbols', 'max_symbols', 'max_rows'}  # test_rows_are_selected_...
  batches = {'batch_size'}  # test_each_tokenisation_takes_...
  runs = {'checkpoint_dir', 'results_file', 'note', 'model'}  # Runs, and errors below.
  names = {field.name for field in dataclasses.fields(checkpoint_config.IclHmmCheckpoint)}
  assert names == scores | rows | batches | runs


def test_variants_of_the_config_file():
  plain, grid = config_file.get_config(), config_file.get_config('grid')
  assert (plain.kinds, plain.num_states, plain.num_symbols) == (KINDS, 4, 4)
  assert (grid.kinds, grid.num_states, grid.num_symbols) == (('abc',), 0, 0)
  smollm2, sixteen = (config_file.get_config(name) for name in ('smollm2', 'smollm2_16'))
  assert (smollm2.kinds, smollm2.max_symbols, smollm2.lengths[-1]) == (KINDS, 8, 1_024)
  assert (sixteen.kinds, sixteen.num_symbols) == (('abc', 'random'), 16)
  with pytest.raises(ValueError, match="variant must be grid, .* or none, got 'all'"):
    config_file.get_config('all')


@pytest.mark.parametrize('arguments, words', [
    (['--config.checkpoint_dir='], "config.checkpoint_dir must be set, got ''"),
    (['--config.checkpoint_dir=/nowhere'], "config.checkpoint_dir: not a directory: '/nowhere'"),
    (['--config.results_file='], "config.results_file must be set, got ''"),
    (['--config.results_file=nowhere.csv'], 'nowhere.csv is not a file'),
    (['--config.num_sequences=1'], 'config.num_sequences must be at least 2, got 1'),
    (['--config.max_length=2'], 'config.max_length must be at least 4, got 2'),
    (['--config.max_length=100'], 'config.max_length must be a power of two, got 100'),
    (['--config.max_length=256'],
     'config.max_length of 256 needs 256 tokens, and the context of .* has 128'),
    (['--config.batch_size=0'], 'config.batch_size must be at least 1, got 0'),
    (['--config.tokenisations=abc,roman'],
     "config.tokenisations must be distinct kinds of abc, 123, random, .*, got 'abc,roman'"),
    (['--config.tokenisations=abc,abc'], "separated by commas, got 'abc,abc'"),
    (['--config.num_states=5'], 'config.num_states, config.num_symbols and .*, got 5, 4 and 0'),
    (['--config.num_symbols=16', '--config.tokenisations=123'],  # Its tokenizer splits '10'.
     "must have 16 single tokens of kind '123', one per symbol, got 10 .*config.max_symbols"),
    (['--config.model.compute_dtype=float8'], r"compute_dtype must be one of .*got 'float8'"),
    (['--config.model.width=7'], 'config.model.width is 7, and 8 in'),
])
def test_bad_configs_are_one_line_and_status_2(
    tmp_path, capsys, checkpoint, data_dir, arguments, words):
  good = (f'--config.checkpoint_dir={checkpoint}', *SMALL, '--config.num_states=0',
          f'--config.results_file={data_dir / "icl_hmm" / "entropy_results.csv"}')
  assert _run(tmp_path / 'run', *good, *arguments) == 2
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1
  assert lines[0].startswith('icl_hmm: error: ')
  assert re.search(words, lines[0]), lines[0]
  assert not (tmp_path / 'run').exists()
