"""The citation data: what is read, what is mended, what is refused."""

import collections
import dataclasses
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse

from jaxrl_llm.graphs import planetoid


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
  # Listed in both directions or twice, an edge is in the graph once; the self-loop of 3 stays.
  np.testing.assert_array_equal(graph.edges, [[0, 1], [0, 2], [3, 3], [3, 7]])
  np.testing.assert_array_equal(graph.train, [0])
  np.testing.assert_array_equal(graph.validation, [1, 2, 3])
  np.testing.assert_array_equal(graph.test, [5, 7])
  assert (graph.num_nodes, graph.num_features, graph.num_classes) == (8, 3, 2)


def test_a_pickle_that_would_run_something_is_rejected(tmp_path):
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
def test_globals_that_are_not_on_the_list_are_rejected(tmp_path, wish):
  path = tmp_path / 'file'
  path.write_bytes(f'c{wish}\n.'.encode())
  with pytest.raises(ValueError, match="refused: its pickle asks for '" + wish.replace('\n', '.')):
    planetoid.read_pickle(path)


def test_a_pickled_matrix_brings_no_code_of_scipy(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(pickle.dumps(sparse.csr_matrix(np.eye(2)), protocol=2))
  matrix = planetoid.read_pickle(path)
  assert not isinstance(matrix, sparse.csr_matrix) and matrix.shape == (2, 2)
  with pytest.raises(pickle.UnpicklingError, match="sets 'shape' of something"):
    type(matrix).shape = 5  # As a pickle would that has the class itself.


_OBJECTS = (b'cnumpy\nndarray\n(K\x01K\x01\x86cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R'
            b'X\x08\x00\x00\x00AAAAAAAAtR.')


@pytest.mark.parametrize('payload, words', [
    # Objects of the pickle's own bytes: to look at one would be to follow a pointer.
    (_OBJECTS, 'not a complete pickle of arrays'),
    (b'cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.', "must hold numbers, got the type 'O'"),
    (b'cnumpy\ndtype\nX\x03\x00\x00\x00V64\x85R.', "must hold numbers, got the type 'V64'"),
    # Attributes of what is named, by the two forms of state that a pickle has.
    (b'cscipy.sparse.csr\ncsr_matrix\nN}X\x05\x00\x00\x00shapeK\x05s\x86b.',
     'not a complete pickle'),
    (b'cscipy.sparse.csr\ncsr_matrix\n}X\x05\x00\x00\x00shapeK\x05sb.', 'not a complete pickle'),
    (b'cnumpy\ndtype\nN}X\x08\x00\x00\x00__call__K\x05s\x86b.', "sets '__call__' of something"),
    (b'ccollections\ndefaultdict\nN}X\x01\x00\x00\x00aK\x05s\x86b.', 'not a complete pickle'),
    (b'c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00rot_13\x86R.', "got 'rot_13'"),
])
def test_a_pickle_cannot_make_objects_of_bytes_nor_change_what_it_names(tmp_path, payload, words):
  path = tmp_path / 'file'
  path.write_bytes(payload)

  # In a separate process: a payload that is not rejected may end the process that reads it.
  done = subprocess.run(
      [sys.executable, '-c',
       'import sys, numpy as np, pickle\n'
       'from jaxrl_llm.graphs import planetoid\n'
       'try:\n  planetoid.read_pickle(sys.argv[1])\n'
       'except ValueError as error:\n  print(error)\n'
       'from scipy import sparse\n'
       'open(sys.argv[1], "wb").write(pickle.dumps(sparse.csr_matrix(np.eye(2)), protocol=2))\n'
       'print(planetoid.read_pickle(sys.argv[1]).shape)\n', str(path)],
      capture_output=True, text=True, timeout=60, check=False)
  assert done.returncode == 0, done.stderr
  refused, shape = done.stdout.splitlines()
  assert re.search(words, refused) and shape == '(2, 2)'


def _array_payload(shape, content, code=b'f4'):
  """A pickled array whose bytes need not fit its shape."""
  size = len(content).to_bytes(4, 'little')
  return (b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01'
          + shape + b'cnumpy\ndtype\nU\x02' + code + b'\x85R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff'
          b'\xff\xff\xffK\x00tb\x89T' + size + content + b'tb.')


def test_an_array_in_a_pickle_has_the_bytes_of_its_shape(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(_array_payload(b'K\x02\x85', np.float32([1, 2]).tobytes()))
  np.testing.assert_array_equal(planetoid.read_pickle(path), [1, 2])
  for shape, code in ((b'K\x03\x85', b'f4'), (b'J\xff\xff\xff\xff\x85', b'f4'),
                      (b'K\x02\x85', b'f8'), (b'X\x01\x00\x00\x002\x85', b'f4')):
    path.write_bytes(_array_payload(shape, np.float32([1, 2]).tobytes(), code))
    with pytest.raises(ValueError, match='not a complete pickle'):
      planetoid.read_pickle(path)


def test_arrays_come_back_as_they_were_pickled(tmp_path):
  path = tmp_path / 'file'
  for array in (np.arange(6, dtype='>i4').reshape(2, 3), np.eye(3, dtype=bool),
                np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.array(3, np.uint8)):
    path.write_bytes(pickle.dumps(array, protocol=2))
    actual = planetoid.read_pickle(path)
    np.testing.assert_array_equal(actual, array)
    assert actual.dtype == array.dtype


def test_a_name_with_a_newline_stays_in_one_line(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(b'\x80\x04\x8c\x02os\x8c\x08sys\ntem\n\x93.')
  with pytest.raises(ValueError, match=r"asks for 'os.sys.ntem.n'") as error:
    planetoid.read_pickle(path)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('changes, words', [
    ({'graph': b'\x80\x02'}, 'ind.tiny.graph is not a complete pickle'),
    ({'allx': b'not a pickle'}, 'ind.tiny.allx is not a complete pickle'),
    ({'test.index': '7\nsix\n'}, 'one node per line'),
    ({'test.index': '7\n7\n'}, 'must name 2 different nodes'),
    ({'test.index': '3\n7\n'}, 'nodes in the graph'),
    ({'graph': {0: [9]} | {i: [] for i in range(1, 8)}}, 'edges must join nodes below 8'),
    ({'graph': {0: []}}, '1 nodes in the graph, 8 with features'),
    ({'ty': np.zeros((3, 2), np.int32)}, 'must name 3 different nodes'),
    ({'ally': np.full((4, 2), 7)}, 'ally must have rows of zeros and a one'),
    ({'ally': np.array([[1, 0], [0, 1], [1, 1], [1, 0]])}, 'got one with several classes'),
    ({'y': _one_hot([1])}, 'y must be the first rows of ally'),
    ({'y': _one_hot([0, 1, 1, 0, 1])}, 'y must be the first rows of ally, got 5'),
    ({'ally': np.array([[0, 0], [0, 1], [0, 1], [1, 0]]), 'y': np.zeros((1, 2), int)},
     'must have nodes with a label'),
    ({'tx': sparse.csr_matrix(-np.ones((2, 3)))}, 'negative'),
    ({'allx': 3}, 'do not fit together'),
])
def test_damaged_files_are_one_line_errors(tmp_path, changes, words):
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
  with pytest.raises(ValueError, match='data_dir must be a directory with tiny.npz or the files'):
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


def _changed(graph, name, index, value):
  array = getattr(graph, name).copy()
  array[index] = value
  return {name: array}


@pytest.mark.parametrize('change, words', [
    (lambda g: _changed(g, 'edges', (0, 1), 999), 'edges must be between 0 and 7, got 0 to 999'),
    (lambda g: _changed(g, 'edges', 1, g.edges[0]), 'edges must be pairs i ≤ j, each once'),
    (lambda g: {'edges': g.edges[:, ::-1].copy()}, 'edges must be pairs i ≤ j, each once'),
    (lambda g: {'edges': g.edges[:, :1]}, r'edges must be int32 .4, 2., got int32 .4, 1.'),
    (lambda g: {'edges': g.edges.astype(np.int64)}, 'edges must be int32 .*got int64'),
    (lambda g: {'indices': g.indices + 5_000}, 'indices must be between 0 and 2'),
    (lambda g: {'indices': g.indices[:, 0]}, 'indices|values'),
    (lambda g: {'labels': g.labels[:7]}, 'indices must be int32 .7, 2., got'),
    (lambda g: {'labels': g.labels - 5}, 'labels must be between -1 and 1, got -6'),
    (lambda g: {'num_classes': 1}, 'labels must be between -1 and 0'),
    (lambda g: {'num_features': 2}, 'indices must be between 0 and 1'),
    (lambda g: _changed(g, 'values', (0, 0), np.nan), 'values must be non-negative and finite'),
    (lambda g: _changed(g, 'values', (0, 0), -.5), 'values must be non-negative and finite'),
    (lambda g: {'values': g.values.astype(float)}, 'values must be float32'),
    (lambda g: {'train': g.test}, 'must not share nodes'),
    (lambda g: {'validation': g.test[[0]]}, 'must not share nodes'),
    (lambda g: {'test': g.test[[0, 0]]}, 'must not share nodes or repeat one'),
    (lambda g: {'test': g.test[:0]}, 'both be empty or neither, got 1 and 0 nodes'),
    (lambda g: {'train': g.train[:0], 'test': g.test[:0]}, 'got 0 and 0 nodes, and 3'),
    (lambda g: _changed(g, 'train', 0, 4), 'must have nodes with a label'),
    (lambda g: _changed(g, 'test', 0, 8), 'test must be between 0 and 7'),
    (lambda g: {'name': 'citeseer'}, "must be the data set 'tiny', got 'citeseer'"),
])
def test_an_npz_that_is_not_a_graph_is_one_line(tmp_path, change, words):
  graph = planetoid.load(_write(tmp_path), 'tiny')
  planetoid.write(tmp_path / 'tiny.npz', dataclasses.replace(graph, **change(graph)))
  with pytest.raises(ValueError, match=words) as error:
    planetoid.load(tmp_path, 'tiny')
  assert '\n' not in str(error.value) and 'tiny.npz' in str(error.value)


def test_random_splits_have_n_per_class_and_test_on_the_rest():
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


def test_random_splits_draw_every_node_equally_often():
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
