"""The citation data: what is read, what is mended, what is refused."""

import collections
import dataclasses
import os
import pickle

import numpy as np
import pytest
from scipy import sparse

from jaxrl_llm.data import planetoid


class _Runs:
  """A pickle of it runs a command when it is read."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return os.system, (f'touch {self._path}',)


def _one_hot(labels):
  return np.eye(2, dtype=np.int32)[labels]


def _parts():
  """Eight nodes: 0-3 in order, 7 and 5 as test nodes, 4 and 6 left out."""
  rows = lambda *rows: sparse.csr_matrix(np.array(rows, np.float32))
  edges = {0: [1, 2], 1: [0], 2: [0, 0], 3: [3, 7], 4: [], 5: [], 6: [], 7: [3]}
  return {
      'x': rows([1, 1, 0]), 'y': _one_hot([0]),
      'allx': rows([1, 1, 0], [0, 0, 2], [0, 1, 3], [0, 0, 0]), 'ally': _one_hot([0, 1, 1, 0]),
      'tx': rows([0, 5, 0], [4, 0, 0]), 'ty': _one_hot([1, 0]),
      'graph': collections.defaultdict(list, edges), 'test.index': '7\n5\n',
  }


def _write(folder, **changes):
  for part, value in (_parts() | changes).items():
    path = folder / f'ind.tiny.{part}'
    if isinstance(value, (str, bytes)):
      path.write_bytes(value.encode() if isinstance(value, str) else value)
    else:
      path.write_bytes(pickle.dumps(value, protocol=2))
  return folder


def _dense(graph):
  dense = np.zeros((graph.num_nodes, graph.num_features))
  np.add.at(dense, (np.arange(graph.num_nodes)[:, None], graph.indices), graph.values)
  return dense


def test_rows_of_test_nodes_go_where_the_index_says_and_missing_nodes_stay_empty(tmp_path):
  graph = planetoid.load(_write(tmp_path), 'tiny')
  np.testing.assert_allclose(_dense(graph), [
      [.5, .5, 0], [0, 0, 1], [0, .25, .75], [0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]])
  np.testing.assert_array_equal(graph.labels, [0, 1, 1, 0, -1, 0, -1, 1])
  # Listed in both directions or twice, an edge stands once; the self-loop of 3 is kept.
  np.testing.assert_array_equal(graph.edges, [[0, 1], [0, 2], [3, 3], [3, 7]])
  np.testing.assert_array_equal(graph.train, [0])
  np.testing.assert_array_equal(graph.validation, [1, 2, 3])
  np.testing.assert_array_equal(graph.test, [5, 7])
  assert (graph.num_nodes, graph.num_features, graph.num_classes) == (8, 3, 2)


def test_a_pickle_that_would_run_something_is_refused_and_its_wish_named(tmp_path):
  trap = tmp_path / 'ran'
  _write(tmp_path, graph=_Runs(trap))
  with pytest.raises(ValueError, match='ind.tiny.graph is refused: its pickle asks for .*system'):
    planetoid.load(tmp_path, 'tiny')
  assert not trap.exists()
  pickle.loads((tmp_path / 'ind.tiny.graph').read_bytes())  # The trap itself works.
  assert trap.exists()


@pytest.mark.parametrize('wish', [
    'builtins\neval', '__builtin__\ngetattr', 'numpy\nload', 'numpy\nndarray.tofile',
    'collections\nOrderedDict', '_codecs\ndecode', 'scipy.sparse.csr\ncsr_array',
    'numpy.core.multiarray\nscalar'])
def test_what_is_not_on_the_list_is_refused(tmp_path, wish):
  path = tmp_path / 'file'
  path.write_bytes(f'c{wish}\n.'.encode())
  with pytest.raises(ValueError, match='refused: its pickle asks for ' + wish.replace('\n', '.')):
    planetoid.read_pickle(path)


def test_a_pickled_matrix_brings_no_code_of_scipy(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(pickle.dumps(sparse.csr_matrix(np.eye(2)), protocol=2))
  matrix = planetoid.read_pickle(path)
  assert not isinstance(matrix, sparse.csr_matrix) and matrix.shape == (2, 2)


@pytest.mark.parametrize('changes, words', [
    ({'graph': b'\x80\x02'}, 'ind.tiny.graph is no complete pickle'),
    ({'allx': b'not a pickle'}, 'ind.tiny.allx is no complete pickle'),
    ({'test.index': '7\nsix\n'}, 'one node a line'),
    ({'test.index': '7\n7\n'}, 'must name 2 different nodes'),
    ({'test.index': '3\n7\n'}, 'nodes in the graph'),
    ({'graph': {0: [9]} | {i: [] for i in range(1, 8)}}, 'beyond the 8'),
    ({'graph': {0: []}}, '1 nodes in the graph, 8 with features'),
    ({'ty': np.zeros((3, 2), np.int32)}, 'must name 3 different nodes'),
    ({'ally': np.full((4, 2), 7)}, 'ally must hold rows of zeros and a one'),
    ({'tx': sparse.csr_matrix(-np.ones((2, 3)))}, 'negative'),
    ({'allx': 3}, 'do not fit together'),
])
def test_damaged_files_are_one_line(tmp_path, changes, words):
  with pytest.raises(ValueError, match=words) as error:
    planetoid.load(_write(tmp_path, **changes), 'tiny')
  assert '\n' not in str(error.value)


def test_a_matrix_with_wrong_pointers_is_refused(tmp_path):
  for name, value in (('indptr', [0, 1, 9]), ('indptr', [0, 2, 1]), ('indices', [0, 7])):
    bad = sparse.csr_matrix(np.eye(2, 3, dtype=np.float32))
    setattr(bad, name, np.array(value, np.int32))
    with pytest.raises(ValueError, match='do not fit together'):
      planetoid.load(_write(tmp_path, tx=bad), 'tiny')


def test_a_missing_folder_is_one_line(tmp_path):
  with pytest.raises(ValueError, match='data_dir must be a folder with tiny.npz or the files'):
    planetoid.load(tmp_path / 'nothing', 'tiny')
  _write(tmp_path)
  (tmp_path / 'ind.tiny.ty').unlink()
  with pytest.raises(ValueError, match='cannot read .*ind.tiny.ty'):
    planetoid.load(tmp_path, 'tiny')


def _same(a, b):
  for name, value in dataclasses.asdict(a).items():
    np.testing.assert_array_equal(value, getattr(b, name))
    assert type(value) is type(getattr(b, name))


def test_npz_holds_all_and_is_read_first(tmp_path):
  graph = planetoid.load(_write(tmp_path), 'tiny')
  planetoid.write(tmp_path / 'tiny.npz', graph)
  _same(planetoid.read(tmp_path / 'tiny.npz'), graph)
  (tmp_path / 'ind.tiny.graph').unlink()
  _same(planetoid.load(tmp_path, 'tiny'), graph)
  (tmp_path / 'tiny.npz').write_bytes(b'PK\x03\x04 cut off')
  with pytest.raises(ValueError, match='is not a graph that was written here'):
    planetoid.load(tmp_path, 'tiny')


def test_random_splits_have_n_a_class_and_test_on_the_rest():
  labels = np.array([0] * 9 + [1] * 12 + [2] * 7 + [-1] * 4, np.int32)
  smaller = np.array([], int)
  for per_class in (1, 2, 5):
    train, test = planetoid.random_split(labels, per_class, seed=3)
    np.testing.assert_array_equal(labels[train], np.repeat(np.arange(3), per_class))
    assert len(set(train)) == len(train) and set(smaller) <= set(train)
    # Every labelled node is in exactly one of them, no other node in either.
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(28))
    smaller = train
  again = planetoid.random_split(labels, 5, seed=3)
  np.testing.assert_array_equal(again[0], train)
  assert set(planetoid.random_split(labels, 5, seed=4)[0]) != set(train)
  with pytest.raises(ValueError, match='less than the 7 nodes of class 2, got 7'):
    planetoid.random_split(labels, 7, seed=0)
  with pytest.raises(ValueError, match='per_class must be at least 1, got 0'):
    planetoid.random_split(labels, 0, seed=0)


def test_random_splits_draw_every_node_alike():
  labels = np.repeat(np.arange(2), 5)
  drawn = np.concatenate([planetoid.random_split(labels, 1, seed)[0] for seed in range(500)])
  counts = np.bincount(drawn, minlength=10)
  assert np.square(counts - 100).sum() / 100 < 27.9  # Chi-square, 9 degrees, p = .001.


def test_cora(data_dir):
  graph = planetoid.load(data_dir / 'planetoid', 'cora')
  assert (graph.num_nodes, graph.num_features, graph.num_classes) == (2_708, 1_433, 7)
  np.testing.assert_array_equal(np.bincount(graph.labels), [351, 217, 418, 818, 426, 298, 180])
  assert len(graph.edges) == 5_278 and (graph.edges[:, 0] < graph.edges[:, 1]).all()
  assert (graph.values > 0).sum() == 49_216
  np.testing.assert_allclose(graph.values.sum(axis=1), 1, atol=1e-5)
  homophily = (graph.labels[graph.edges[:, 0]] == graph.labels[graph.edges[:, 1]]).mean()
  assert homophily == pytest.approx(.810, abs=5e-4)
  assert [len(part) for part in (graph.train, graph.validation, graph.test)] == [140, 500, 1_000]
  np.testing.assert_array_equal(np.bincount(graph.labels[graph.train]), [20] * 7)


def test_citeseer_has_nodes_without_label_and_self_loops(data_dir):
  graph = planetoid.load(data_dir / 'planetoid', 'citeseer')
  assert (graph.num_nodes, graph.num_features, graph.num_classes) == (3_327, 3_703, 6)
  loops = graph.edges[:, 0] == graph.edges[:, 1]
  assert loops.sum() == 124 and (~loops).sum() == 4_552
  # Nodes without an edge to another node; the 15 that the release leaves out have no features.
  assert graph.num_nodes - len(np.unique(graph.edges[~loops])) == 48
  assert (graph.labels == -1).sum() == 15
  assert (graph.values[graph.labels == -1] == 0).all()
  ends = graph.labels[graph.edges[~loops]]
  ends = ends[(ends >= 0).all(axis=1)]  # Sixteen edges lead to a node without a label.
  assert len(ends) == 4_552 - 16
  assert (ends[:, 0] == ends[:, 1]).mean() == pytest.approx(.739, abs=2e-3)
  train, test = planetoid.random_split(graph.labels, 20, seed=0)
  assert len(train) == 120 and len(test) == 3_327 - 15 - 120


def test_test_rows_of_cora_are_put_at_their_nodes(data_dir):
  folder = data_dir / 'planetoid'
  graph = planetoid.load(folder, 'cora')
  index = [int(line) for line in (folder / 'ind.cora.test.index').read_text().split()]
  matrix = planetoid.read_pickle(folder / 'ind.cora.tx')
  labels = planetoid.read_pickle(folder / 'ind.cora.ty')
  for row in (0, 1, 500, 999):
    words = matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]
    node = index[row]
    assert set(words) == set(graph.indices[node][graph.values[node] > 0])
    assert graph.labels[node] == labels[row].argmax()
