"""Published baselines on HMMs, simulated again: comparison, outputs, resume and errors."""

import csv
import dataclasses
import json
import math
import re
import types

import jax
import numpy as np
import pytest

from experiments.icl_hmm import __main__ as icl_hmm_main
from experiments.icl_hmm import config as icl_hmm_config
from experiments.icl_hmm import published as icl_hmm_published
from jaxrl_llm.hmm import filtering, published_results
from jaxrl_llm.runs import artefacts
from jaxrl_llm.training import metrics
from tests.experiments import studies, tiny

CONFIG = 'experiments/configs/icl_hmm_published.py'
SMALL = ('--config.num_sequences=24', '--config.baum_welch_sequences=4',
         '--config.baum_welch_best5_sequences=2', '--config.baum_welch_steps=3')
TRANSITIONS = ([[.9, .1], [.4, .6]], [[.5, .5], [.3, .7]])
EMISSION = [[.6, .3, .1], [.1, .2, .7]]
LENGTHS = published_results.LENGTHS


def _true_state(transition):
  """Exact scores of the true state at each length [2, 10]."""
  transition, emission = np.array(transition), np.array(EMISSION)
  distances = np.asarray(filtering.hellinger(
      (transition @ emission)[:, None].astype(np.float32), emission.astype(np.float32)))
  scores = []
  for length in LENGTHS:
    states = np.linalg.matrix_power(transition, length - 1)[0]
    scores.append([states @ (transition @ emission).max(axis=1),
                   states @ (transition * distances).sum(axis=1)])
  return np.array(scores).T


def _write(path, transitions=TRANSITIONS, **changes):
  """Writes a file of the published schema with exact scores of the true state."""
  rows = []
  for transition in transitions:
    share = transition[1][0] / (transition[0][1] + transition[1][0])
    cells = {'num_state': 2, 'steady_state': [share, 1 - share],
             'lambda2': transition[0][0] + transition[1][1] - 1, 'A': transition, 'A_entropy': 0.5,
             'num_observation': 3, 'B': EMISSION, 'B_entropy': 1, 'pi_0': [1, 0]}
    for ours, column in published_results.METHODS.items():
      exact = _true_state(transition).tolist() if ours == 'true_state' else [[.5] * 10] * 2
      cells |= {f'{column}_acc': exact[0], f'{column}_hellinger_distance': exact[1]}
    cells['bw_hellinger_distance'] = [math.nan] * 9 + [.5]
    rows.append(cells | changes)

  with open(path, 'w', newline='') as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  return path


def _run(workdir, *arguments):
  return tiny.run(icl_hmm_main.main, f'--workdir={workdir}', *arguments,
                  experiment='icl_hmm', default_config=CONFIG)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """(workdir, arguments) of a complete run."""
  folder = tmp_path_factory.mktemp('published')
  arguments = (f'--config.results_file={_write(folder / "file.csv")}', *SMALL)
  assert _run(folder / 'run', *arguments) == 0
  return folder / 'run', arguments


def test_a_run_writes_numbers_a_table_and_a_figure_with_its_data(finished):
  workdir, _ = finished
  results = studies.results(workdir)
  assert results['num_models'] == 2 and results['sampled_tokens'] == 2 * 24 * 2048
  # Exact averages over the label leave little noise with 24 trajectories.
  assert results['published/true_state/accuracy_mae'] < .03
  assert results['published/true_state/hellinger_mae'] < .02
  for method in published_results.METHODS:
    assert 0 <= results[f'published/{method}/accuracy_mae'] < 1
    assert results[f'published/{method}/accuracy_cells'] == 20
  assert results['published/within_bars'] == 0  # The other methods are recorded as .5.
  assert results['published/baum_welch/hellinger_cells'] == 2  # The others are NaN.
  assert results['metadata/lambda2_error'] < 1e-9 < results['metadata/emission_entropy_error']

  assert (workdir / 'figures' / 'published.png').read_bytes().startswith(b'\x89PNG')
  with open(workdir / 'figures' / 'published.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 2 * 8 * 10
  row = next(row for row in rows if row['method'] == 'true_state' and row['model'] == '1')
  assert float(row['accuracy_recorded']) == pytest.approx(_true_state(TRANSITIONS[1])[0, 0])
  assert 'NOT met' in (workdir / 'table.md').read_text()
  records = metrics.read_jsonl(workdir / 'metrics.jsonl')
  assert [record['step'] for record in records] == list(LENGTHS)
  assert 'recorded/baum_welch/hellinger' not in records[0]


def test_five_starts_are_compared_with_the_first_of_them(finished):
  workdir, _ = finished
  results, gains = studies.results(workdir), []
  for path in sorted((workdir / 'models').glob('*.npz')):
    with np.load(path) as arrays:
      assert arrays['baum_welch_best5'].shape == (2, 10)
      # Two of the four sequences: another mean.
      assert (arrays['baum_welch_same'] != arrays['baum_welch']).any()
      gains.append(arrays['baum_welch_best5'] - arrays['baum_welch_same'])
  assert np.abs(gains).max() > 1e-3
  for i, name in enumerate(icl_hmm_published.BARS):
    assert results[f'published/baum_welch_best5/{name}_gain'] == pytest.approx(
        np.mean(gains, axis=(0, 2))[i])
  assert results['published/baum_welch_best5/accuracy_cells'] == 20


def _ends(**accuracies):
  """Results of two models with the given mean accuracies after the last symbol."""
  def one(sign):
    return {name: np.full((2, 10), np.nan) for name in icl_hmm_published.LABELS} | {
        name: np.concatenate([np.full((1, 10), value + .3 * sign), np.zeros((1, 10))])
        for name, value in accuracies.items()}
  return [one(-1), one(1)]


def test_the_order_of_the_baselines_is_a_criterion(finished):
  ends = dict(viterbi=.407, filter=.408, ngram2=.401, ngram3=.389, baum_welch=.373, ngram4=.363,
              ngram1=.161)
  finding = icl_hmm_published.baseline_order(_ends(**ends))
  assert finding.holds and 'Viterbi 0.4070, filter 0.4080, 2-gram 0.4010' in finding.measured
  for change in (dict(viterbi=.402), dict(filter=.4015), dict(ngram2=.4075), dict(ngram3=.402),
                 dict(baum_welch=.39), dict(ngram4=.374), dict(ngram1=.37)):
    assert not icl_hmm_published.baseline_order(_ends(**ends | change)).holds
  # Earlier lengths are ignored.
  results = _ends(**ends)
  for result in results:
    result['ngram1'][0, :-1] = 1
  assert icl_hmm_published.baseline_order(results).holds
  workdir, _ = finished
  assert studies.results(workdir)['published/order_holds'] in (0, 1)
  assert '- (f) after 2,048 symbols' in (workdir / 'table.md').read_text()


def test_the_clock_is_saved_with_each_model(tmp_path, monkeypatch):
  simulate = icl_hmm_published.simulate_model

  def fails_second(config, index, *rest, **width):
    if index:
      raise RuntimeError('stopped')
    return simulate(config, index, *rest, **width)

  monkeypatch.setattr(icl_hmm_published, 'simulate_model', fails_second)
  path = _write(tmp_path / 'file.csv')
  with pytest.raises(RuntimeError, match='stopped'):
    _run(tmp_path / 'run', f'--config.results_file={path}', *SMALL)
  path_of_clock = tmp_path / 'run' / 'wall_seconds.json'
  document = json.loads(path_of_clock.read_text())
  clock, identity = document['content'], document['identity']
  assert clock['wall_seconds'] > 0

  monkeypatch.setattr(icl_hmm_published, 'simulate_model', simulate)
  artefacts.write(path_of_clock, clock | {'wall_seconds': 1e4}, identity)
  assert _run(tmp_path / 'run', f'--config.results_file={path}', *SMALL) == 0
  assert studies.results(tmp_path / 'run')['wall_seconds'] > 1e4


def test_finished_models_are_read_and_damaged_ones_simulated_again(finished, monkeypatch, capsys):
  workdir, arguments = finished
  before = studies.timeless(workdir)
  (workdir / 'results.json').unlink()
  next((workdir / 'models').glob('0001_*.npz')).write_bytes(b'damaged')

  simulated, simulate = [], icl_hmm_published.simulate_model
  monkeypatch.setattr(icl_hmm_published, 'simulate_model', lambda config, index, *rest, **width: (
      simulated.append(index), simulate(config, index, *rest, **width))[1])
  assert _run(workdir, *arguments, '--config.note=a note') == 0
  assert simulated == [1]
  output = capsys.readouterr().out
  assert 'is damaged' in output and 'a note' in output

  assert studies.timeless(workdir) == before


def test_H9_published_numbers_are_reproduced(data_dir):
  models = [model for model in published_results.read(
      data_dir / 'icl_hmm' / 'entropy_results.csv', optional=icl_hmm_published.OPTIONAL)
            if model.emission.shape == (4, 4)]
  assert len(models) == 4

  simulated = []
  for index, model in enumerate(models):
    keys = jax.random.split(jax.random.key(index), 512)
    tables = [np.float32(x) for x in (model.initial, model.transition, model.emission)]
    scores = np.asarray(icl_hmm_published.simulate(keys, *tables)[2])
    simulated.append(dict(zip(icl_hmm_published.SIMULATED, np.moveaxis(scores, 1, 0))))
    simulated[-1] |= dict.fromkeys(icl_hmm_published.FITTED, np.full((2, 10), np.nan))

  cells = icl_hmm_published.compare(models, simulated)
  released = ('filter_released', *icl_hmm_published.WINDOWS)
  assert len(released) == 5
  for method in (*icl_hmm_published.BARRED, *released):
    numbers = icl_hmm_published.mean_differences(cells[method])
    assert numbers['accuracy_cells'] == 40
    assert numbers['accuracy_mae'] <= .02 and numbers['accuracy_worst'] <= .045
    assert numbers['hellinger_mae'] <= .008 and numbers['hellinger_worst'] <= .03


# Far from symmetric, and not started in its stationary distribution: a transposed or shifted
# computation gives other numbers.
SKEWED = (np.array([.1, .3, .6]),
          np.array([[.6, .35, .05], [.05, .25, .7], [.85, .1, .05]]),
          np.array([[.7, .1, .1, .05, .05], [.05, .05, .1, .6, .2], [.1, .45, .05, .1, .3]]))


def _draw(rng, rows):
  sums = np.cumsum(rows, axis=1)
  return np.minimum((sums < rng.random(len(rows))[:, None]).sum(axis=1), rows.shape[1] - 1)


def _sampled(rng, count, length):
  """(states, symbols) [count, length] of the skewed model."""
  initial, transition, emission = SKEWED
  states, following = [], np.tile(initial, (count, 1))
  for _ in range(length):
    states.append(_draw(rng, following))
    following = transition[states[-1]]
  symbols = [_draw(rng, emission[state]) for state in states]
  return np.stack(states, axis=1), np.stack(symbols, axis=1)


def _beliefs(symbols, best):
  """Distribution of the last state or, if `best`, the end of the best path as one-hot rows."""
  initial, transition, emission = SKEWED
  reach = np.tile(initial, (len(symbols), 1))
  for t, seen in enumerate(symbols.T):
    if t:
      ways = belief[:, :, None] * transition  # noqa: F821
      reach = ways.max(axis=1) if best else ways.sum(axis=1)
    belief = reach * emission[:, seen].T
    belief = belief / belief.sum(axis=1, keepdims=True)
  return np.eye(3)[belief.argmax(axis=1)] if best else belief


def _ngram(symbols, order):
  """Frequencies of the symbols that followed the last `order` − 1 symbols."""
  count, length = symbols.shape
  follows = np.ones((count, length), bool)
  for back in range(1, order):
    follows[:, back:] &= symbols[:, :-back] == symbols[:, -back:][:, :1]
    follows[:, :back] = False
  counts = np.einsum('nt,nts->ns', follows, np.eye(5)[symbols])
  total = counts.sum(axis=1, keepdims=True)
  shorter = np.full((count, 5), .2) if order <= 2 else _ngram(symbols, order - 1)
  return np.where(total > 0, counts / np.maximum(total, 1), shorter)


def test_H9_scores_of_a_skewed_model_agree_with_a_plain_simulation():
  lengths, rng = LENGTHS[:7], np.random.default_rng(0)
  states, symbols = _sampled(rng, 3_000, lengths[-1] + 1)
  _, transition, emission = SKEWED

  expected = []
  for length in lengths:
    seen, label, state = symbols[:, :length], symbols[:, length], states[:, length]
    predictions = {
        'viterbi': _beliefs(seen, best=True) @ transition @ emission,
        'filter': _beliefs(seen, best=False) @ transition @ emission,
        'true_state': (transition @ emission)[states[:, length - 1]],
        **{f'ngram{order}': _ngram(seen, order) for order in range(1, 5)}}
    expected.append({name: [
        (prediction.argmax(axis=1) == label).mean(),
        np.sqrt(np.maximum(0, 1 - np.sqrt(prediction * emission[state]).sum(axis=1))).mean()]
                     for name, prediction in predictions.items()})

  scores = np.asarray(icl_hmm_published.simulate(
      jax.random.split(jax.random.key(0), 512), *map(np.float32, SKEWED))[2])
  scores = dict(zip(icl_hmm_published.SIMULATED, np.moveaxis(scores, 1, 0)))

  def differences(simulated, name):
    return np.abs(scores[simulated][:, :7].T - [at[name] for at in expected])

  for name in expected[0]:
    errors = differences(name, name)
    assert (errors.mean(axis=0) < [.015, .01]).all(), (name, errors.mean(axis=0))
    assert (errors.max(axis=0) < [.035, .025]).all(), (name, errors.max(axis=0))
  # The released orientation is clearly different.
  assert differences('filter_released', 'filter').mean(axis=0)[0] > .05


def test_a_score_is_an_average_over_states_and_symbols():
  rng = np.random.default_rng(0)
  predictions = rng.dirichlet(np.ones(4), (3, 2)).astype(np.float32)
  predictions[0, 0] = [.4, .1, .4, .1]  # A tie: the first counts.
  states = rng.dirichlet(np.ones(3), 2).astype(np.float32)
  emission = rng.dirichlet(np.ones(4), 3).astype(np.float32)
  got = icl_hmm_published.score(predictions, states, emission)
  assert got.shape == (2, 3, 2)
  for method in range(3):
    for position in range(2):
      p = predictions[method, position]
      hit = sum(states[position, m] * emission[m, np.argmax(p)] for m in range(3))
      distance = sum(states[position, m] * math.sqrt(max(0, 1 - np.sqrt(p * emission[m]).sum()))
                     for m in range(3))
      np.testing.assert_allclose(got[:, method, position], [hit, distance], atol=1e-6)


def test_baum_welch_is_fitted_to_the_symbols_before_each_position(finished):
  del finished  # Compiled for these shapes.
  config = icl_hmm_config.IclHmmPublished(baum_welch_steps=3)
  keys = jax.random.split(jax.random.key(0), 4)
  rng = np.random.default_rng(0)
  observations = rng.integers(3, size=(4, LENGTHS[-1])).astype(np.int32)
  states = rng.dirichlet(np.ones(2), (4, 10)).astype(np.float32)
  emission = np.array(EMISSION)

  def learn(observations):
    return icl_hmm_published.learn(
        config, keys, observations, states, emission, restarts=1, width=3).mean(axis=-1)

  got = learn(observations)
  assert got.shape == (2, 10)
  # Symbols after a position have no effect.
  other = np.append(observations[:, :LENGTHS[4]], (observations[:, LENGTHS[4]:] + 1) % 3, axis=1)
  np.testing.assert_array_equal(learn(other)[:, :5], got[:, :5])
  assert (learn(other)[:, 5:] != got[:, 5:]).all()

  # The prediction after 16 symbols, computed step by step.
  starts = icl_hmm_published.draw_starts(
      keys, 3, num_lengths=10, restarts=1, num_states=2, width=3)
  seen, scores = observations[:, :LENGTHS[2]], []
  fits = icl_hmm_published.fit(jax.tree.map(lambda leaf: leaf[2], starts), seen, steps=3)
  for n in range(4):
    initial, transition, table = (np.asarray(leaf[n], np.float64) for leaf in fits)
    belief = initial
    for symbol in seen[n]:
      belief = belief * table[:, symbol]
      belief = belief / belief.sum() @ transition
    scores.append(icl_hmm_published.score(
        (belief @ table).astype(np.float32), states[n, 2], emission.astype(np.float32)))
  np.testing.assert_allclose(got[:, 2], np.mean(scores, axis=0), atol=1e-4)


def test_unused_symbols_do_not_change_the_fit():
  keys = jax.random.split(jax.random.key(0), 2)
  starts = icl_hmm_published.draw_starts(
      keys, 3, num_lengths=1, restarts=2, num_states=2, width=5)
  assert starts.emission.shape == (1, 2, 2, 2, 5)
  np.testing.assert_array_equal(starts.emission[..., 3:], 0)
  np.testing.assert_allclose(starts.emission.sum(axis=-1), 1, atol=1e-6)
  wide = jax.tree.map(lambda leaf: leaf[0], starts)
  observations = np.random.default_rng(0).integers(3, size=(2, 16)).astype(np.int32)
  narrow = wide._replace(emission=wide.emission[..., :3])
  got, expected = (
      icl_hmm_published.fit(each, observations, steps=3) for each in (wide, narrow))
  np.testing.assert_array_equal(got.emission[..., 3:], 0)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
               got._replace(emission=got.emission[..., :3]), expected)


def test_differences_exclude_missing_records():
  simulated, recorded = np.full((2, 3, 10), .5), np.full((2, 3, 10), .4)
  recorded[1, 0, 0], recorded[1, 1] = .8, np.nan
  numbers = icl_hmm_published.mean_differences(np.stack([simulated, recorded]))
  assert numbers == pytest.approx({
      'accuracy_mae': .1, 'accuracy_bias': .1, 'accuracy_worst': .1, 'accuracy_cells': 30,
      'hellinger_mae': (19 * .1 + .3) / 20, 'hellinger_bias': (19 * .1 - .3) / 20,
      'hellinger_worst': .3, 'hellinger_cells': 20})


# --- Config. The runs above depend on the numbers of sequences, the file and the note.


def test_the_seed_changes_all_scores(finished):
  workdir, arguments = finished
  recorded = published_results.read(arguments[0].partition('=')[2])[0]
  config = icl_hmm_config.IclHmmPublished(
      seed=1, num_sequences=24, baum_welch_sequences=4, baum_welch_best5_sequences=2,
      baum_welch_steps=3)
  scores = icl_hmm_published.simulate_model(config, 0, recorded, width=3)
  with np.load(next((workdir / 'models').glob('0000_*.npz'))) as arrays:
    assert set(arrays) == {*scores, '_header'}
    for method, values in scores.items():
      assert (arrays[method] != values).any(), method


def test_the_number_of_steps_changes_the_fits(monkeypatch):
  monkeypatch.setattr(icl_hmm_published, 'LENGTHS', (8, 16))
  keys = jax.random.split(jax.random.key(0))
  observations = np.random.default_rng(0).integers(3, size=(2, 16)).astype(np.int32)
  few, many = (icl_hmm_published.learn(
      icl_hmm_config.IclHmmPublished(baum_welch_steps=steps), keys, observations,
      np.full((2, 2, 2), .5, np.float32), np.array(EMISSION), restarts=1, width=3)
               for steps in (1, 3))
  assert few.shape == (2, 2, 2) and (few != many).any()


def test_every_field_has_a_test_of_its_effect():
  assert {field.name for field in dataclasses.fields(icl_hmm_config.IclHmmPublished)} == {
      'seed', 'results_file', 'num_sequences', 'baum_welch_sequences',
      'baum_welch_best5_sequences', 'baum_welch_steps', 'note'}


@pytest.mark.parametrize('arguments, words', [
    (['--config.num_sequences=0'], 'config.num_sequences must be at least 1, got 0'),
    ([f'--config.baum_welch_steps={2**31}'], 'config.baum_welch_steps must be at most 2147483647'),
    (['--config.num_sequences=8'],
     r'config.baum_welch_sequences must be at most config.num_sequences \(8\), got 64'),
    (['--config.baum_welch_best5_sequences=65'],
     r'config.baum_welch_best5_sequences must be at most config.baum_welch_sequences \(64\), got'),
    (['--config.results_file='], "config.results_file must be set, got ''"),
    (['--config.results_file=nowhere.csv'], 'nowhere.csv is not a file'),
])
def test_bad_configs_are_one_line_and_status_2(tmp_path, capsys, arguments, words):
  assert _run(tmp_path / 'run', *arguments) == 2
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1
  assert lines[0].startswith('icl_hmm: error: ')
  assert re.search(words, lines[0]), lines[0]


def test_a_bad_file_is_one_line_and_makes_no_workdir(tmp_path, capsys):
  path = _write(tmp_path / 'file.csv', A=[[.9, .2], [.4, .6]])
  assert _run(tmp_path / 'run', f'--config.results_file={path}') == 2
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1 and 'line 2, column A: must be probabilities' in lines[0]
  assert not (tmp_path / 'run').exists()


def test_configs_of_another_experiment_are_refused(tmp_path, capsys):
  other = tmp_path / 'other.py'
  other.write_text('from experiments.rebel_games import config\n\n\n'
                   'def get_config():\n  return config.RebelGames()\n')
  assert _run(tmp_path / 'run', f'--config={other}') == 2
  line = capsys.readouterr().err.strip()
  assert 'other.py is a config of another program: ' in line
  assert 'it makes experiments.rebel_games.config.RebelGames' in line


def test_a_subclass_of_a_config_runs_the_study_of_its_base(monkeypatch):
  class Own(icl_hmm_config.IclHmmPublished):
    pass

  started = []
  monkeypatch.setitem(icl_hmm_main.STUDIES, icl_hmm_config.IclHmmPublished, started.append)
  run = types.SimpleNamespace(config=Own())
  icl_hmm_main.main(run)
  assert started == [run]
