"""Files of published results: the real one, row by row, and invalid files."""

import csv

import numpy as np
import pytest

from jaxrl_llm.hmm import published_results, random_models

METRICS = ('acc', 'hellinger_distance')


@pytest.fixture(scope='module')
def published(data_dir):
  return published_results.read(data_dir / 'icl_hmm' / 'entropy_results.csv')


def _cells(**changes):
  """Cells of a valid row with two states and three symbols."""
  cells = {
      'num_state': '2', 'steady_state': '[0.5, 0.5]', 'lambda2': '0.6',
      'A': '[[0.8, 0.2], [0.2, 0.8]]', 'A_entropy': '0.7219280948873623',
      'num_observation': '3', 'B': '[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]', 'B_entropy': '0',
      'pi_0': '[1.0, 0.0]'}
  for column in published_results.METHODS.values():
    for metric in METRICS:
      cells[f'{column}_{metric}'] = str([.1 * k for k in range(10)])
  return cells | changes


def _write(path, *rows):
  with open(path, 'w', newline='', encoding='utf-8') as file:
    writer = csv.writer(file)
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
  return path


def test_H7_the_81_published_chains_have_their_recorded_properties(published):
  assert len(published) == 81
  errors = [published_results.metadata_errors(row) for row in published]
  largest = {name: max(error[name] for error in errors) for name in errors[0]}
  assert largest['lambda2'] < 1e-6
  assert largest['transition_entropy'] < 1e-6
  assert largest['emission_entropy'] < 1e-9

  # Seven of nine stationary distributions are exact to float32; for two, U U⁻¹ is I to 1e-3.
  by_matrix = {row.transition.tobytes(): error['stationary_law']
               for row, error in zip(published, errors)}
  assert sorted(by_matrix.values())[-3] < 1e-7 and len(by_matrix) == 9
  assert largest['stationary_law'] < .0035

  for row in published:
    assert row.lambda2 == .75
    np.testing.assert_allclose(row.stationary, 1 / len(row.initial), atol=1e-9)
    np.testing.assert_array_equal(row.initial, np.eye(len(row.initial))[0])
    np.testing.assert_allclose(
        row.emission, random_models.make_emission(
            *row.emission.shape, row.emission_entropy), atol=1e-9)
    moduli = np.sort(np.abs(np.linalg.eigvals(row.transition)))
    assert moduli[-2] < .75 + 1e-6 and row.transition.min() > 0


def test_means_of_the_published_rows(published):
  mean = lambda method: np.mean([row.accuracy[method] for row in published], axis=0)
  np.testing.assert_allclose(mean('viterbi')[[0, -1]], [.401, .407], atol=5e-4)
  np.testing.assert_allclose(mean('true_state')[[0, -1]], [.450, .456], atol=5e-4)
  np.testing.assert_allclose(mean('ngram2')[[0, -1]], [.307, .401], atol=5e-4)
  np.testing.assert_allclose(mean('baum_welch')[[0, -1]], [.347, .373], atol=5e-4)
  distances = np.mean([row.hellinger['viterbi'] for row in published], axis=0)
  np.testing.assert_allclose(distances[[0, 4, -1]], [.471, .468, .470], atol=5e-4)
  # Some records of Baum-Welch are NaN.
  assert np.isnan([row.hellinger['baum_welch'] for row in published]).any()


def test_a_row_is_read(tmp_path):
  cells = _cells(**{'bw_hellinger_distance': '[nan, 1, 0' + ', 0.5' * 7 + ']',
                    'A': '[[0.8002, 0.2], [0.2, 0.8]]', 'U': 'not read', 'more_acc': '[1, 2]',
                    'more_hellinger_distance': str([0] * 10)})
  cells['more_acc'] = str([1e-05] * 10)
  row, = published_results.read(_write(tmp_path / 'a.csv', cells), optional={
      'ours': 'more', 'absent': 'lstm'})
  np.testing.assert_array_equal(row.initial, [1, 0])
  np.testing.assert_allclose(row.transition, [[.8002 / 1.0002, .2 / 1.0002], [.2, .8]], rtol=1e-12)
  np.testing.assert_array_equal(row.emission, np.eye(2, 3))
  np.testing.assert_array_equal(row.accuracy['ngram3'], [.1 * k for k in range(10)])
  np.testing.assert_array_equal(
      row.hellinger['baum_welch'], [np.nan, 1, 0] + [.5] * 7)
  np.testing.assert_array_equal(row.accuracy['ours'], [1e-5] * 10)
  assert set(row.accuracy) == {*published_results.METHODS, 'ours'} and row.line == 2
  assert published_results.metadata_errors(row)['lambda2'] < 1e-3


def test_metadata_errors_by_property(tmp_path):
  row, = published_results.read(_write(tmp_path / 'a.csv', _cells()))
  assert max(published_results.metadata_errors(row).values()) < 1e-12
  row, = published_results.read(_write(tmp_path / 'b.csv', _cells(
      steady_state='[0.7, 0.3]', lambda2='0.5', A_entropy='0.5', B_entropy='1')))
  errors = published_results.metadata_errors(row)
  assert errors == pytest.approx({
      'stationary_law': .08, 'lambda2': .1, 'transition_entropy': .2219280948873623,
      'emission_entropy': 1})


def _ten(last):
  return '[' + '0.5, ' * 9 + last + ']'


@pytest.mark.parametrize('changes, words', [
    ({'A': '[[0.8, 0.2]]'}, 'line 2, column A: must be 2 x 2, got 1 x 2'),
    ({'A': '[[0.8, 0.1], [0.2, 0.8]]'}, 'column A: must be probabilities .* sums from 0.9 to 1'),
    ({'B': '[[1.2, -0.2, 0], [0, 1, 0]]'}, 'column B: must be probabilities .* entry of -0.2'),
    ({'pi_0': '[nan, 1]'}, 'column pi_0: must be finite'),
    ({'A': '[[0.8, 0.2], [0.2]]'}, 'column A: must be numbers in nested lists, got'),
    ({'A': '__import__("os").getcwd()'}, 'column A: must be numbers in nested lists, got'),
    ({'A': '[["0.8", 0.2], [0.2, 0.8]]'}, 'column A: must be numbers in nested lists, got'),
    ({'A': '[[true, 0], [0.2, 0.8]]'}, 'column A: must be numbers in nested lists, got'),
    ({'A': '[' * 100_000}, 'column A: must be numbers in nested lists, got .*\\.\\.\\.'),
    ({'lambda2': '1' + '0' * 400}, 'column lambda2: must be numbers in nested lists, got'),
    ({'lambda2': ''}, "column lambda2: must be numbers in nested lists, got ''"),
    ({'num_state': '2.5'}, 'column num_state: must be an integer of at least 2, got 2.5'),
    ({'num_observation': '1'}, 'column num_observation: must be an integer of at least 2, got 1'),
    ({'2-gram_acc': '[0.5, 0.5]'}, 'column 2-gram_acc: must be 10, got 2'),
    ({'2-gram_acc': '0.5'}, 'column 2-gram_acc: must be 10, got one number'),
    ({'2-gram_acc': _ten('75')}, r'column 2-gram_acc: must be numbers in \[0, 1\], got 75'),
    ({'2-gram_acc': _ten('-1')}, r'column 2-gram_acc: must be numbers in \[0, 1\], got -1'),
    ({'2-gram_acc': _ten('nan')}, r'column 2-gram_acc: must be numbers in \[0, 1\], got nan'),
    ({'viterbi_hellinger_distance': _ten('1.3')},
     r'column viterbi_hellinger_distance: must be numbers in \[0, 1\], got 1.3'),
    ({'bw_hellinger_distance': _ten('inf')}, r'must be numbers in \[0, 1\], got inf'),
    ({'viterbi_hellinger_distance': str(['nan'] * 10).replace("'", '')},
     'column viterbi_hellinger_distance: must have a number, got only nan'),
    ({'lambda2': '5'}, r'column lambda2: must be in \[0, 1\], got 5'),
    ({'A_entropy': '-3'}, 'column A_entropy: must be non-negative, got -3'),
    ({'B_entropy': '-0.1'}, 'column B_entropy: must be non-negative, got -0.1'),
])
def test_a_bad_cell_is_one_line(tmp_path, changes, words):
  path = _write(tmp_path / 'a.csv', _cells(**changes))
  with pytest.raises(ValueError, match=words) as caught:
    published_results.read(path)
  assert str(caught.value).startswith(f'{path}, line 2, ') and '\n' not in str(caught.value)


def test_a_bad_file_is_one_line(tmp_path):
  with pytest.raises(ValueError, match='nowhere.csv is not a file'):
    published_results.read(tmp_path / 'nowhere.csv')

  cells = _cells()
  del cells['bw_acc'], cells['pi_0']
  with pytest.raises(ValueError, match='must have the columns pi_0, bw_acc'):
    published_results.read(_write(tmp_path / 'a.csv', cells))

  (tmp_path / 'b.csv').write_text('')
  with pytest.raises(ValueError, match='must have the columns num_state, '):
    published_results.read(tmp_path / 'b.csv')
  (tmp_path / 'c.csv').write_text(','.join(_cells()) + '\n')
  with pytest.raises(ValueError, match='must have at least one row, got none'):
    published_results.read(tmp_path / 'c.csv')

  (tmp_path / 'd.csv').write_text(','.join(_cells()) + '\n2,3\n')
  with pytest.raises(ValueError, match='line 2: must have as many cells as the first line'):
    published_results.read(tmp_path / 'd.csv')
  (tmp_path / 'e.csv').write_bytes(b'num_state\n\xff\xfe')
  with pytest.raises(ValueError, match='is not a CSV file in UTF-8'):
    published_results.read(tmp_path / 'e.csv')
