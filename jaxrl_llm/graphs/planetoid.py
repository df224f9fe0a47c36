"""Citation graphs in the format of the Planetoid release (Cora, CiteSeer): pickles, read safely.

A pickle can name any function to be called while it is read. Here it can name only the few classes
that the released files consist of, and gets substitutes for them that build nothing but arrays of
numbers; `write` saves a graph as npz, which needs no pickle.

Two peculiarities of the release are corrected: the rows of tx and ty belong to the nodes listed in
test.index, in its order; and CiteSeer's test.index omits 15 nodes, which get zero features and no
label.

References: Yang, Cohen and Salakhutdinov (2016), Revisiting semi-supervised learning with graph
embeddings, arXiv 1603.08861.
"""

import collections
import dataclasses
import io
import math
import os
import pathlib
import pickle
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrl_llm.training import files

NO_LABEL = -1

_SPLIT = ('train', 'validation', 'test')
_PARTS = ('y', 'tx', 'ty', 'allx', 'ally', 'graph')
_NUM_VALIDATION = 500  # In the public split: the nodes after its training nodes.


@dataclasses.dataclass(frozen=True)
class Graph:
  """A graph with sparse features and, for most of its nodes, a class.

  Attributes:
    name: name of the data set.
    edges: int32 [E, 2]; pairs i ≤ j, each once, including self-loops of the data.
    indices: int32 [N, S]; indices of a node's features; 0 in unused slots.
    values: float32 [N, S]; their values, which sum to 1 per node; 0 in unused slots.
    labels: int32 [N]; `NO_LABEL` for unlabelled nodes.
    num_features: F.
    num_classes: C.
    train: int32 [n]; nodes of the public split. All three parts are empty if there is none.
    validation: int32 [v].
    test: int32 [t].
  """

  name: str
  edges: np.ndarray
  indices: np.ndarray
  values: np.ndarray
  labels: np.ndarray
  num_features: int
  num_classes: int
  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray

  @property
  def num_nodes(self) -> int:
    """Number of nodes N."""
    return len(self.labels)


class _Name:
  """Substitute for a global that a pickle names; its attributes cannot be set.

  A pickle can set attributes of anything it names, and call it with any arguments. That is why
  NumPy's own functions are not exposed: ndarray and dtype build objects from any bytes.
  """

  __slots__ = ()

  def __setattr__(self, name: str, value: Any) -> None:
    raise pickle.UnpicklingError(f'it sets {name!r} of something that it names')


class _ArrayType(_Name):
  """numpy.ndarray: an argument of `_Reconstruct`, which cannot be called."""


class _Reconstruct(_Name):
  """The function that starts each array in a pickle."""

  def __call__(self, kind: Any, *_: Any) -> '_Array':
    """Returns an array that the pickle will fill."""
    if not isinstance(kind, _ArrayType):
      raise pickle.UnpicklingError('it makes an array of another type than ndarray')
    return _Array()


class _MakeDtype(_Name):
  """numpy.dtype, for plain numbers only."""

  def __call__(self, code: Any, *_: Any) -> '_Dtype':
    """Returns the type of a code such as 'f4'."""
    if not isinstance(code, str) or not re.fullmatch('[biuf][1248]', code):
      raise pickle.UnpicklingError(f'its arrays must hold numbers, got the type {code!r}')
    return _Dtype(code)


class _Encode(_Name):
  """_codecs.encode, with which Python 3 writes bytes into a pickle of protocol 2."""

  def __call__(self, text: str, encoding: str) -> bytes:
    """Returns the bytes of a text."""
    if encoding != 'latin1':
      raise pickle.UnpicklingError(f"its bytes must be encoded as 'latin1', got {encoding!r}")
    return str.encode(text, 'latin1')


class _Dtype:
  """A number type with its byte order."""

  __slots__ = ('code', 'order')

  def __init__(self, code: str):
    self.code, self.order = code, '='

  def __setstate__(self, state: tuple) -> None:
    _, order, *nothing = state
    if order not in ('<', '>', '|', '=') or any(nothing[:3]):
      raise pickle.UnpicklingError(f'its arrays must hold plain numbers, got {state!r}')
    self.order = order

  def get(self) -> np.dtype:
    """Returns the NumPy dtype."""
    return np.dtype(self.order + self.code)


class _Array:
  """An array in a pickle, checked before NumPy sees it."""

  __slots__ = ('value',)

  def __setstate__(self, state: tuple) -> None:
    _, shape, dtype, is_fortran, content = state
    content = content.encode('latin1') if isinstance(content, str) else bytes(content)
    kind = _Dtype.get(dtype)
    if not all(type(size) is int and size >= 0 for size in shape):
      raise pickle.UnpicklingError(f'an array has the shape {shape!r}')
    if math.prod(shape) * kind.itemsize != len(content):
      raise pickle.UnpicklingError(f'an array {shape} of {kind} has {len(content)} bytes')
    flat = np.frombuffer(content, kind) if content else np.zeros(0, kind)
    self.value = flat.reshape(shape, order='F' if is_fortran else 'C')


class _Sealed(type):
  """A class whose attributes cannot be set."""

  def __setattr__(cls, name: str, value: Any) -> None:
    raise pickle.UnpicklingError(f'it sets {name!r} of something that it names')


class _SparseRows(metaclass=_Sealed):
  """Substitute for a pickled scipy csr_matrix: its arrays, and none of its code."""

  __slots__ = ('data', 'indices', 'indptr', 'shape')

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.data, self.indices, self.indptr = (
        state[name].value for name in ('data', 'indices', 'indptr'))
    rows, columns = state['_shape']
    self.shape = int(rows), int(columns)


_GLOBALS = {
    ('numpy', 'ndarray'): _ArrayType(),
    ('numpy', 'dtype'): _MakeDtype(),
    ('numpy.core.multiarray', '_reconstruct'): _Reconstruct(),
    ('numpy._core.multiarray', '_reconstruct'): _Reconstruct(),
    ('scipy.sparse.csr', 'csr_matrix'): _SparseRows,
    ('scipy.sparse._csr', 'csr_matrix'): _SparseRows,
    ('collections', 'defaultdict'): collections.defaultdict,
    ('__builtin__', 'list'): list,
    ('builtins', 'list'): list,
    ('_codecs', 'encode'): _Encode(),
}


class _ForbiddenGlobalError(pickle.UnpicklingError):
  """A pickle names a global that is not allowed."""


class _Unpickler(pickle.Unpickler):
  """An unpickler that knows only the classes of the released files, through substitutes."""

  def find_class(self, module: str, name: str) -> Any:
    """Returns the substitute for an allowed global; raises for any other."""
    if (module, name) not in _GLOBALS:
      raise _ForbiddenGlobalError(repr(f'{module}.{name}'))
    return _GLOBALS[module, name]


def read_pickle(path: str | os.PathLike) -> Any:
  """Reads one pickled file of the release; runs nothing that it names except allowed globals.

  Args:
    path: path of the file.

  Returns:
    An array, a dict of lists, or an object with the arrays and the shape of a csr_matrix.

  Raises:
    ValueError: if the file cannot be read, is damaged, or names any other global; one line.
  """
  try:
    content = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise ValueError(f'cannot read {path}: {error.strerror}') from None
  try:  # Written by Python 2: byte strings hold the arrays' contents.
    loaded = _Unpickler(io.BytesIO(content), encoding='latin1').load()
    return loaded.value if isinstance(loaded, _Array) else loaded
  except _ForbiddenGlobalError as error:
    allowed = ', '.join(sorted({name for _, name in _GLOBALS}))
    raise ValueError(
        f'{path} is refused: its pickle asks for {error}; allowed are {allowed}') from None
  except Exception as error:  # A damaged pickle can raise almost anything.
    raise ValueError(f'{path} is not a complete pickle of arrays ({_line(error)})') from None


def load(data_dir: str | os.PathLike, name: str) -> Graph:
  """Reads a data set.

  Args:
    data_dir: directory with `NAME.npz` (as written by `write`), or with the released files
      `ind.NAME.x` and so on.
    name: name of the data set, such as 'cora'.

  Returns:
    The graph.

  Raises:
    ValueError: if a file is missing, damaged, or inconsistent with the others; one line.
  """
  folder = pathlib.Path(data_dir)
  if (folder / f'{name}.npz').is_file():
    return read(folder / f'{name}.npz', name=name)
  if not (folder / f'ind.{name}.graph').is_file():
    raise ValueError(
        f'data_dir must be a directory with {name}.npz or the files ind.{name}.graph, .allx, '
        f'.ally, .tx, .ty, .y and .test.index, got {str(data_dir)!r}')

  parts = {part: read_pickle(folder / f'ind.{name}.{part}') for part in _PARTS}
  test = _read_test_index(folder / f'ind.{name}.test.index')
  try:
    return _assemble(name, parts, test)
  except (ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError) as error:
    raise ValueError(f'{folder}/ind.{name}.* do not fit together: {_line(error)}') from None


def _read_test_index(path: pathlib.Path) -> np.ndarray:
  try:
    return np.array([int(line) for line in path.read_text().split()], np.int64)
  except OSError as error:
    raise ValueError(f'cannot read {path}: {error.strerror}') from None
  except ValueError as error:
    raise ValueError(f'{path} must have one node per line: {_line(error)}') from None


def _assemble(name: str, parts: dict[str, Any], test: np.ndarray) -> Graph:
  """Builds a graph from the released parts; see the module docstring."""
  first = _require_labels('ally', parts['ally'])
  rest = _require_labels('ty', parts['ty'])
  num_features = parts['allx'].shape[1]

  if len(rest) != len(test) or len(set(test.tolist())) != len(test):
    raise ValueError(f'test.index must name {len(rest)} different nodes, got {len(test)}')
  if parts['tx'].shape != (len(rest), num_features) or parts['allx'].shape[0] != len(first):
    raise ValueError(f'tx has shape {parts["tx"].shape}, allx {parts["allx"].shape}')
  num_nodes = max(len(first) + len(rest), int(test.max()) + 1)
  if test.min() < len(first) or num_nodes != len(parts['graph']):
    raise ValueError(f'{len(parts["graph"])} nodes in the graph, {num_nodes} with features')

  nodes = np.concatenate([np.arange(len(first)), test])
  labels = np.full(num_nodes, NO_LABEL, np.int32)
  known = np.concatenate([first, rest])
  labels[nodes] = np.where(known.any(axis=1), known.argmax(axis=1), NO_LABEL)

  rows = [(np.zeros(0, np.int64), np.zeros(0))] * num_nodes
  for node, row in zip(nodes, [*_rows(parts['allx']), *_rows(parts['tx'])]):
    rows[node] = row
  indices, values = pad_rows(rows, num_features)

  num_train = len(_require_labels('y', parts['y']))
  if not np.array_equal(parts['y'], first[:num_train]):
    raise ValueError(f'y must be the first rows of ally, got {num_train} others')

  split = np.arange(min(num_train + _NUM_VALIDATION, len(first)), dtype=np.int32)
  return check(Graph(
      name=name, edges=_edges(parts['graph'], num_nodes), indices=indices, values=values,
      labels=labels, num_features=num_features, num_classes=first.shape[1],
      train=split[:num_train], validation=split[num_train:],
      test=np.sort(test).astype(np.int32)))


def _line(error: Exception) -> str:
  """Message of another library's error, in one line."""
  return ' '.join(str(error).split())


def check(graph: Graph) -> Graph:
  """Returns the graph if it is valid; see `Graph`.

  Raises:
    ValueError: if sizes, types or ranges do not match `Graph`; one line.
  """
  num_nodes = len(graph.labels)
  slots = graph.indices.shape[1:]

  for name, dtype, shape in (
      ('edges', np.int32, (len(graph.edges), 2)), ('labels', np.int32, (num_nodes,)),
      ('indices', np.int32, (num_nodes, *slots[:1])), ('values', np.float32, (num_nodes, *slots)),
      *((part, np.int32, (len(getattr(graph, part)),)) for part in _SPLIT)):
    array = getattr(graph, name)
    if array.shape != shape or array.dtype != dtype:
      raise ValueError(f'{name} must be {np.dtype(dtype)} {shape}, got {array.dtype} '
                       f'{array.shape}')

  for name, least, end in (
      ('edges', 0, num_nodes), ('indices', 0, graph.num_features),
      ('labels', NO_LABEL, graph.num_classes), *((part, 0, num_nodes) for part in _SPLIT)):
    array = getattr(graph, name)
    if array.size and not least <= array.min() <= array.max() < end:
      raise ValueError(f'{name} must be between {least} and {end - 1}, got {array.min()} to '
                       f'{array.max()}')

  if not (np.isfinite(graph.values).all() and (graph.values >= 0).all()):
    raise ValueError('values must be non-negative and finite')
  pairs = np.unique(graph.edges, axis=0)
  if len(pairs) != len(graph.edges) or (graph.edges[:, 0] > graph.edges[:, 1]).any():
    raise ValueError('edges must be pairs i ≤ j, each once')
  _check_split(graph)
  return graph


def _check_split(graph: Graph) -> None:
  """Raises ValueError for an invalid public split."""
  nodes = np.concatenate([getattr(graph, part) for part in _SPLIT])
  if len(np.unique(nodes)) != len(nodes):
    raise ValueError('train, validation and test must not share nodes or repeat one')
  if (graph.labels[nodes] == NO_LABEL).any():
    raise ValueError('train, validation and test must have nodes with a label')
  if len(nodes) and not (len(graph.train) and len(graph.test)):
    raise ValueError(f'train and test must both be empty or neither, got {len(graph.train)} and '
                     f'{len(graph.test)} nodes, and {len(graph.validation)} for validation')


def _require_labels(part: str, value: Any) -> np.ndarray:
  if not isinstance(value, np.ndarray) or value.ndim != 2 or not np.isin(value, (0, 1)).all():
    raise ValueError(f'{part} must have rows of zeros and a one')
  if (value.sum(axis=1) > 1).any():
    raise ValueError(f'{part} must have rows of zeros and a one, got one with several classes')
  return value


def _rows(matrix: _SparseRows) -> list[tuple[np.ndarray, np.ndarray]]:
  """(indices, values) of each row of a pickled sparse matrix."""
  starts = np.asarray(matrix.indptr, np.int64)
  if len(starts) != matrix.shape[0] + 1 or starts[0] != 0 or (np.diff(starts) < 0).any():
    raise ValueError('the row pointers of a sparse matrix are damaged')
  if starts[-1] != len(matrix.indices) or starts[-1] != len(matrix.data):
    raise ValueError('a sparse matrix has fewer entries than its rows claim')
  return [(np.asarray(matrix.indices[a:b], np.int64), np.asarray(matrix.data[a:b], np.float64))
          for a, b in zip(starts, starts[1:])]


def _edges(neighbours: dict[int, list[int]], num_nodes: int) -> np.ndarray:
  """Pairs i ≤ j, each once, from lists of neighbours."""
  pairs = np.array([(i, j) for i, js in neighbours.items() for j in js], np.int64).reshape(-1, 2)
  if len(pairs) and not 0 <= pairs.min() <= pairs.max() < num_nodes:
    raise ValueError(
        f'edges must join nodes below {num_nodes}, got {pairs.min()} to {pairs.max()}')
  return np.unique(np.sort(pairs, axis=1), axis=0).astype(np.int32)


def pad_rows(
    rows: list[tuple[np.ndarray, np.ndarray]], num_features: int
) -> tuple[np.ndarray, np.ndarray]:
  """Pads sparse rows to one length, each divided by its sum.

  Args:
    rows: (indices, non-negative values) per node; both may be empty.
    num_features: F; an exclusive bound of the indices.

  Returns:
    (int32 [N, S], float32 [N, S]), S the entries of the longest row; zeros in unused slots.

  Raises:
    ValueError: if an index or a value is out of range.
  """
  longest = max([len(indices) for indices, _ in rows] + [1])
  all_indices = np.zeros((len(rows), longest), np.int32)
  all_values = np.zeros((len(rows), longest), np.float32)
  for node, (indices, values) in enumerate(rows):
    if len(indices) and not 0 <= indices.min() <= indices.max() < num_features:
      raise ValueError(f'a feature of node {node} is not one of the {num_features}')
    if not (np.isfinite(values).all() and (values >= 0).all()):
      raise ValueError(f'a feature of node {node} is negative or not finite')
    all_indices[node, : len(indices)] = indices
    all_values[node, : len(indices)] = values / max(values.sum(), 1e-12)
  return all_indices, all_values


def write(path: str | os.PathLike, graph: Graph) -> None:
  """Writes a graph as npz, atomically; `read` loads it."""
  path = pathlib.Path(path)
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **dataclasses.asdict(graph))
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as temporary:
    temporary.write_bytes(buffer.getvalue())


def read(path: str | os.PathLike, *, name: str | None = None) -> Graph:
  """Reads a graph written by `write`.

  Args:
    path: path of the file.
    name: required name of the data set; any if None.

  Returns:
    The graph.

  Raises:
    ValueError: if the file is damaged, is not a `Graph`, or has a different name; one line.
  """
  try:
    with np.load(path, allow_pickle=False) as arrays:
      graph = from_arrays({field.name: arrays[field.name] for field in dataclasses.fields(Graph)})
  except Exception as error:  # A damaged archive can raise almost anything.
    raise ValueError(f'{path} is not a graph that was written here ({_line(error)})') from None
  if name is not None and graph.name != name:
    raise ValueError(f'{path} must be the data set {name!r}, got {graph.name!r}')
  return graph


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Graph:
  """Returns the graph with these fields; name and sizes may be arrays of shape ().

  Raises:
    ValueError: if they are not a valid graph; see `check`.
  """
  plain = {'name': str, 'num_features': int, 'num_classes': int}
  return check(Graph(**arrays | {name: kind(arrays[name]) for name, kind in plain.items()}))


def random_split(labels: np.ndarray, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Draws a few training nodes per class; all other labelled nodes are test nodes.

  The shuffle depends only on the seed: the training nodes for a smaller `per_class` are a subset
  of those for a larger one. Nodes without a label are in neither part.

  Args:
    labels: int [N]; `NO_LABEL` for unlabelled nodes.
    per_class: n ≥ 1.
    seed: random seed for the shuffle, at least 0.

  Returns:
    (train [C n], class by class; test, in order), int32.

  Raises:
    ValueError: if a class has at most `per_class` nodes, or `per_class` is below 1.
  """
  if per_class < 1:
    raise ValueError(f'per_class must be at least 1, got {per_class}')

  order = np.random.default_rng([seed, 36]).permutation(len(labels))
  train = []
  for label in range(labels.max() + 1):
    members = order[labels[order] == label]
    if len(members) <= per_class:
      raise ValueError(
          f'per_class must be less than the {len(members)} nodes of class {label}, got {per_class}')
    train.append(members[:per_class])

  train = np.concatenate(train)
  held_out = labels != NO_LABEL
  held_out[train] = False
  return train.astype(np.int32), np.flatnonzero(held_out).astype(np.int32)
