"""Published baselines on HMMs, simulated anew: what is compared, kept, written and refused."""

import ast
import csv
import dataclasses
import inspect
import json
import math
import re

import jax
import numpy as np
import pytest

from experiments import icl_hmm, icl_hmm_published, settings_hmm
from jaxrl_llm.rl import hmm
from jaxrl_llm.tasks import hmm_results
from jaxrl_llm.training import metrics
from tests.experiments import tiny

CONFIG = 'experiments/configs/icl_hmm_published.py'
SMALL = ('--config.num_sequences=24', '--config.baum_welch_sequences=4',
         '--config.baum_welch_steps=3')
TRANSITIONS = ([[.9, .1], [.4, .6]], [[.5, .5], [.3, .7]])
EMISSION = [[.6, .3, .1], [.1, .2, .7]]
PLACES = hmm_results.PLACES


def _true_state(transition):
  """What who knows the state scores at each place, by the law of the chain."""
  transition, emission = np.array(transition), np.array(EMISSION)
  distances = np.asarray(hmm.hellinger(
      (transition @ emission)[:, None].astype(np.float32), emission.astype(np.float32)))
  scores = []
  for place in PLACES:
    law = np.linalg.matrix_power(transition, place - 1)[0]
    scores.append([law @ (transition @ emission).max(axis=1),
                   law @ (transition * distances).sum(axis=1)])
  return np.array(scores).T


def _write(path, transitions=TRANSITIONS, **changes):
  """A file of the published schema, right in what who knows the state scores."""
  rows = []
  for transition in transitions:
    share = transition[1][0] / (transition[0][1] + transition[1][0])
    cells = {'num_state': 2, 'steady_state': [share, 1 - share],
             'lambda2': transition[0][0] + transition[1][1] - 1, 'A': transition, 'A_entropy': 0.5,
             'num_observation': 3, 'B': EMISSION, 'B_entropy': 1, 'pi_0': [1, 0]}
    for ours, column in hmm_results.METHODS.items():
      exact = _true_state(transition).tolist() if ours == 'true_state' else [[.5] * 10] * 2
      cells |= {f'{column}_acc': exact[0], f'{column}_hellinger_distance': exact[1]}
    cells['bw_hellinger_distance'] = [math.nan] * 10
    rows.append(cells | changes)
  with open(path, 'w', newline='') as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  return path


def _run(workdir, *arguments):
  return tiny.run(icl_hmm.main, f'--workdir={workdir}', *arguments,
                  experiment='icl_hmm', default_config=CONFIG)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """(the workdir of a run, the arguments that it was started with)."""
  folder = tmp_path_factory.mktemp('published')
  arguments = (f'--config.results_file={_write(folder / "file.csv")}', *SMALL)
  assert _run(folder / 'run', *arguments) == 0
  return folder / 'run', arguments


def _results(workdir):
  return json.loads((workdir / 'results.json').read_text())


def test_a_run_leaves_its_numbers_a_table_and_a_figure_with_its_data(finished):
  workdir, _ = finished
  results = _results(workdir)
  assert results['num_models'] == 2 and results['sampled_tokens'] == 2 * 24 * 2048
  # Who knows the state is averaged over the label exactly: little noise is left of 24 samples.
  assert results['published/true_state/accuracy_mae'] < .03
  assert results['published/true_state/hellinger_mae'] < .02
  for method in hmm_results.METHODS:
    assert 0 <= results[f'published/{method}/accuracy_mae'] < 1
    assert results[f'published/{method}/accuracy_cells'] == 20
  assert results['published/within_bars'] == 0  # The other methods were recorded as .5.
  assert results['published/baum_welch/hellinger_mae'] == 'nan'
  assert results['published/baum_welch/hellinger_cells'] == 0
  assert results['metadata/lambda2_error'] < 1e-9 < results['metadata/emission_entropy_error']
  assert (workdir / 'figures' / 'published.png').read_bytes().startswith(b'\x89PNG')
  with open(workdir / 'figures' / 'published.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 2 * 7 * 10
  row = next(row for row in rows if row['method'] == 'true_state' and row['model'] == '1')
  assert float(row['accuracy_recorded']) == pytest.approx(_true_state(TRANSITIONS[1])[0, 0])
  assert 'NOT met' in (workdir / 'table.md').read_text()
  records = metrics.read_jsonl(workdir / 'metrics.jsonl')
  assert [record['step'] for record in records] == list(PLACES)
  assert 'recorded/baum_welch/hellinger' not in records[0]


def test_models_that_are_kept_are_not_simulated_again(finished, monkeypatch):
  workdir, arguments = finished
  before = _results(workdir)
  (workdir / 'results.json').unlink()
  next((workdir / 'models').glob('0001_*.npz')).unlink()
  simulated, simulate = [], icl_hmm_published.simulate_model
  monkeypatch.setattr(icl_hmm_published, 'simulate_model', lambda config, index, *rest, **width: (
      simulated.append(index), simulate(config, index, *rest, **width))[1])
  assert _run(workdir, *arguments) == 0
  assert simulated == [1]
  timeless = lambda results: {k: v for k, v in results.items() if k not in ('wall_seconds',
                                                                           'commit')}
  assert timeless(_results(workdir)) == timeless(before)


def test_H9_published_numbers_come_out_again(data_dir):
  models = [model for model in hmm_results.read(
      data_dir / 'icl_hmm' / 'entropy_results.csv') if model.emission.shape == (4, 4)]
  assert len(models) == 4
  simulated = []
  for index, model in enumerate(models):
    keys = jax.random.split(jax.random.key(index), 512)
    tables = [np.float32(x) for x in (model.initial, model.transition, model.emission)]
    scores = np.asarray(icl_hmm_published.simulate(keys, *tables)[2])
    simulated.append(dict(zip(icl_hmm_published.SIMULATED, np.moveaxis(scores, 1, 0))))
    simulated[-1]['baum_welch'] = np.full((2, 10), np.nan)
  cells = icl_hmm_published.compare(models, simulated)
  for method in icl_hmm_published.BARRED:
    numbers = icl_hmm_published.mean_differences(cells[method])
    assert numbers['accuracy_cells'] == 40
    assert numbers['accuracy_mae'] <= .02 and numbers['accuracy_worst'] <= .045
    assert numbers['hellinger_mae'] <= .008 and numbers['hellinger_worst'] <= .03


def test_a_score_is_an_average_over_states_and_symbols():
  rng = np.random.default_rng(0)
  predictions = rng.dirichlet(np.ones(4), (3, 2)).astype(np.float32)
  predictions[0, 0] = [.4, .1, .4, .1]  # A tie: the first counts.
  law = rng.dirichlet(np.ones(3), 2).astype(np.float32)
  emission = rng.dirichlet(np.ones(4), 3).astype(np.float32)
  got = icl_hmm_published.score(predictions, law, emission)
  assert got.shape == (2, 3, 2)
  for method in range(3):
    for place in range(2):
      p = predictions[method, place]
      hit = sum(law[place, m] * emission[m, np.argmax(p)] for m in range(3))
      distance = sum(law[place, m] * math.sqrt(max(0, 1 - np.sqrt(p * emission[m]).sum()))
                     for m in range(3))
      np.testing.assert_allclose(got[:, method, place], [hit, distance], atol=1e-6)


def test_baum_welch_is_fitted_to_what_stands_before_each_place(finished):
  del finished  # It has compiled these shapes.
  config = settings_hmm.IclHmmPublished(baum_welch_steps=3)
  keys = jax.random.split(jax.random.key(0), 4)
  rng = np.random.default_rng(0)
  observations = rng.integers(3, size=(4, PLACES[-1])).astype(np.int32)
  laws = rng.dirichlet(np.ones(2), (4, 10)).astype(np.float32)
  emission = np.array(EMISSION)
  learn = lambda observations: icl_hmm_published.learn(
      config, keys, observations, laws, emission, width=3)
  got = learn(observations)
  assert got.shape == (2, 10)
  # What comes after a place is not seen.
  other = np.append(observations[:, :PLACES[4]], (observations[:, PLACES[4]:] + 1) % 3, axis=1)
  np.testing.assert_array_equal(learn(other)[:, :5], got[:, :5])
  assert (learn(other)[:, 5:] != got[:, 5:]).all()
  # The last symbols before a place, by the book.
  starts = icl_hmm_published.draw_starts(
      keys, 3, num_places=10, restarts=1, num_states=2, width=3)
  seen, scores = observations[:, :PLACES[2]], []
  fits = icl_hmm_published.fit(jax.tree.map(lambda leaf: leaf[2], starts), seen, steps=3)
  for n in range(4):
    initial, transition, table = (np.asarray(leaf[n], np.float64) for leaf in fits)
    law = initial
    for symbol in seen[n]:
      law = law * table[:, symbol]
      law = law / law.sum() @ transition
    scores.append(icl_hmm_published.score(
        (law @ table).astype(np.float32), laws[n, 2], emission.astype(np.float32)))
  np.testing.assert_allclose(got[:, 2], np.mean(scores, axis=0), atol=1e-4)


def test_symbols_that_never_come_change_nothing():
  keys = jax.random.split(jax.random.key(0), 2)
  starts = icl_hmm_published.draw_starts(
      keys, 3, num_places=1, restarts=2, num_states=2, width=5)
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


def test_differences_leave_out_what_was_not_recorded():
  simulated, recorded = np.full((2, 3, 10), .5), np.full((2, 3, 10), .4)
  recorded[1, 0, 0], recorded[1, 1] = .8, np.nan
  numbers = icl_hmm_published.mean_differences(np.stack([simulated, recorded]))
  assert numbers == pytest.approx({
      'accuracy_mae': .1, 'accuracy_bias': .1, 'accuracy_worst': .1, 'accuracy_cells': 30,
      'hellinger_mae': (19 * .1 + .3) / 20, 'hellinger_bias': (19 * .1 - .3) / 20,
      'hellinger_worst': .3, 'hellinger_cells': 20})


def test_every_field_is_read():
  source = ''.join(map(inspect.getsource, (icl_hmm_published, settings_hmm.IclHmmPublished)))
  read = {node.attr for node in ast.walk(ast.parse(source))
          if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
  assert {field.name for field in dataclasses.fields(settings_hmm.IclHmmPublished)} <= read


@pytest.mark.parametrize('arguments, words', [
    (['--config.num_sequences=0'], 'config.num_sequences must be at least 1, got 0'),
    (['--config.num_sequences=8'],
     r'config.baum_welch_sequences must be at most config.num_sequences \(8\), got 64'),
    (['--config.baum_welch_restarts=0'], 'config.baum_welch_restarts must be at least 1, got 0'),
    (['--config.results_file='], 'a CSV file of published results is needed: --config.results_f'),
    (['--config.results_file=nowhere.csv'], 'nowhere.csv is not a file'),
])
def test_bad_settings_are_one_line_and_status_2(tmp_path, capsys, arguments, words):
  assert _run(tmp_path / 'run', *arguments) == 2
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1
  assert lines[0].startswith('icl_hmm: error: ')
  assert re.search(words, lines[0]), lines[0]


def test_a_bad_file_is_one_line_and_leaves_nothing(tmp_path, capsys):
  path = _write(tmp_path / 'file.csv', A=[[.9, .2], [.4, .6]])
  assert _run(tmp_path / 'run', f'--config.results_file={path}') == 2
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1 and 'line 2, column A: must hold probabilities' in lines[0]
  assert not (tmp_path / 'run').exists()


def test_settings_of_another_kind_are_refused(tmp_path, capsys):
  other = tmp_path / 'other.py'
  other.write_text('from experiments import settings_games\n\n\n'
                   'def get_config():\n  return settings_games.RebelGames()\n')
  assert _run(tmp_path / 'run', f'--config={other}') == 2
  line = capsys.readouterr().err.strip()
  assert 'other.py must return settings of IclHmm, IclHmmPublished' in line
  assert 'got RebelGames' in line
