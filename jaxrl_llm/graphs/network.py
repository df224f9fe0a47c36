"""Graph networks for few labels: graph filters, two layers without biases, label propagation.

  A_s = D^-1/2 (A + I) D^-1/2,     Z = P₂ drop(relu(P₁ drop(X) W₀)) W₁

The backbones differ in what they filter, and by which function of A_s:

  gcn      both layers by A_s                        (Kipf and Welling)
  igcn     both layers by A_s⁵                       (IGCN with the renormalisation filter, RNM)
  igcn_ar  both layers by (I + α L)^-1, α = 10       (IGCN with the autoregressive filter, AR)
  glp      the features once by A_s¹⁰, P = I         (GLP, RNM)
  glp_ar   the features once by AR, α = 20, P = I    (GLP, AR)
  mlp      nothing, P = I
  lp       the labels by AR, α = 100; nothing is trained

L = I − A_s. The AR filter is a truncated series, as in the authors' code (`ar_filter`).

Filters are built once on the host, those of layers as dense matrices (a graph can have up to
5,000 nodes); features are padded non-zeros, and dropout applies to them. A network can be run on
only the rows that the loss needs (`inputs_of_rows`): Z of a few labelled nodes depends on few
rows of P₂, and through them on the rows of P₁ and X that they reach. This is exact.

References: Kipf and Welling (2017), arXiv 1609.02907; Li, Wu, Liu, Zhang and Guan (2019), Label
efficient semi-supervised learning via graph filtering, arXiv 1901.09993; Zhou, Bousquet, Lal,
Weston and Schölkopf (2004), Learning with local and global consistency.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.types import Array, Params

MAX_DENSE_NODES = 5_000
# Above this expected fraction of the nodes, rows are not picked: one matrix for all is faster.
_WORTH_PICKING = 0.5


@dataclasses.dataclass(frozen=True)
class Backbone:
  """The filter of a network, and where it is applied.

  Attributes:
    where: 'layers', 'features', 'labels' or 'nowhere'.
    kind: 'rnm' or 'ar'.
    strength: k of A_s^k, or α of (I + α L)^-1.
  """

  where: str
  kind: str = 'rnm'
  strength: float = 1

  def filter(self, adjacency: Any, columns: np.ndarray) -> np.ndarray:
    """Applies the filter to `columns` [N, M]; within layers the series has one more term."""
    if self.kind == 'rnm':
      return rnm_filter(adjacency, columns, order=int(self.strength))
    terms = math.ceil(4 * self.strength) + (self.where == 'layers')
    return ar_filter(adjacency, columns, alpha=self.strength, terms=terms)


BACKBONES = {
    'lp': Backbone('labels', 'ar', 100),
    'mlp': Backbone('nowhere'),
    'gcn': Backbone('layers', 'rnm', 1),
    'igcn': Backbone('layers', 'rnm', 5),
    'igcn_ar': Backbone('layers', 'ar', 10),
    'glp': Backbone('features', 'rnm', 10),
    'glp_ar': Backbone('features', 'ar', 20),
}


class SparseRows(NamedTuple):
  """Non-zeros by row: indices int32 [..., R, S], values float32 [..., R, S], 0 if unused."""

  indices: Array
  values: Array


class Inputs(NamedTuple):
  """Inputs of a network.

  Attributes:
    features: `SparseRows` of R rows, or an array [R, F].
    first: P₁ [Q, R], or None for I.
    second: P₂ [M, Q], or None for I.
  """

  features: Any
  first: Array | None
  second: Array | None


class GraphFns(NamedTuple):
  """A network as two pure functions.

  Attributes:
    init: key -> {'layer_0': [F, D], 'layer_1': [D, C]}.
    apply: (params, inputs, key) -> [M, C]; no dropout without a key.
  """

  init: Callable[[Array], Params]
  apply: Callable[..., Array]


# --- On the host: the graph and its filters.


def normalised_adjacency(edges: np.ndarray, num_nodes: int) -> Any:
  """A_s = D^-1/2 (A + I) D^-1/2 of an unweighted graph.

  A is binary with an empty diagonal: an edge that is listed twice counts once, and a self-loop of
  the data (CiteSeer has 124) does not make the diagonal 2.

  Args:
    edges: int [E, 2], in any direction.
    num_nodes: N.

  Returns:
    A scipy CSR matrix [N, N], float64, symmetric, with eigenvalues in (−1, 1].
  """
  from scipy import sparse

  pairs = np.concatenate([edges, edges[:, ::-1], np.stack([np.arange(num_nodes)] * 2, axis=1)])
  rows, columns = np.unique(pairs, axis=0).T
  scale = 1 / np.sqrt(np.bincount(rows, minlength=num_nodes))
  return sparse.csr_matrix(
      (scale[rows] * scale[columns], (rows, columns)), shape=(num_nodes, num_nodes))


def rnm_filter(adjacency: Any, columns: np.ndarray, *, order: int) -> np.ndarray:
  """Multiplies columns by A_s^k.

  Args:
    adjacency: A_s [N, N], sparse or dense.
    columns: [N, M].
    order: k ≥ 0.

  Returns:
    [N, M].
  """
  for _ in range(order):
    columns = adjacency @ columns
  return columns


def ar_filter(adjacency: Any, columns: np.ndarray, *, alpha: float, terms: int) -> np.ndarray:
  """Autoregressive filter, as a truncated series.

    (I + α L)^-1 = ᾱ / (1 + ᾱ) Σ_i (A_s / (1 + ᾱ))^i,   ᾱ = 1/α,  i = 0, ..., terms − 1

  The truncation error is (α / (1 + α))^terms along the eigenvalue 1, less elsewhere. In the
  released code ᾱ is also called alpha, and there are ⌈4α⌉ terms, one more within a layer.

  Args:
    adjacency: A_s [N, N], sparse or dense.
    columns: [N, M].
    alpha: α > 0.
    terms: at least 1.

  Returns:
    [N, M].
  """
  shrink = alpha / (1 + alpha)  # 1 / (1 + ᾱ)
  total = columns
  for _ in range(terms - 1):  # F ← A_s F / (1 + ᾱ) + Y: label propagation, step by step.
    total = shrink * (adjacency @ total) + columns
  return total / (1 + alpha)


def label_propagation(
    backbone: Backbone, adjacency: Any, labels: np.ndarray, train: np.ndarray, num_classes: int
) -> np.ndarray:
  """Scores of label propagation: the filter applied to the known labels.

  Args:
    backbone: a backbone with `where='labels'`.
    adjacency: A_s [N, N].
    labels: int [N]; read only at `train`.
    train: int [B, L]; the labelled nodes of B splits.
    num_classes: C.

  Returns:
    float32 [B, N, C].
  """
  splits = np.arange(len(train))[:, None]
  known = np.zeros((adjacency.shape[0], len(train), num_classes))
  known[train, splits, labels[train]] = 1
  scores = backbone.filter(adjacency, known.reshape(len(known), -1))
  return scores.reshape(known.shape).transpose(1, 0, 2).astype(np.float32)


def unreached(scores: np.ndarray) -> np.ndarray:
  """Marks the nodes that no label reaches: they are not connected to any node with a known label.

  All classes have score 0 for them, and argmax assigns them the first class.

  Args:
    scores: [..., N, C]; result of `label_propagation`.

  Returns:
    bool [..., N].
  """
  return (scores == 0).all(axis=-1)


def check_size(backbone: Backbone, num_nodes: int) -> None:
  """Raises ValueError if a filter within layers would be too large a dense matrix."""
  if backbone.where == 'layers' and num_nodes > MAX_DENSE_NODES:
    raise ValueError(
        f'filters are dense matrices: a graph must have at most {MAX_DENSE_NODES} nodes, got '
        f'{num_nodes}')


def full_inputs(
    backbone: Backbone, adjacency: Any, features: SparseRows, num_features: int
) -> Inputs:
  """Inputs of a network for all nodes, on the host.

  Args:
    backbone: any backbone that does not filter labels.
    adjacency: A_s [N, N].
    features: NumPy arrays [N, S].
    num_features: F.

  Returns:
    Inputs with R = Q = M = N.

  Raises:
    ValueError: if a layer filter has more than `MAX_DENSE_NODES` nodes.
  """
  num_nodes = adjacency.shape[0]
  if backbone.where == 'features':
    dense = np.zeros((num_nodes, num_features))
    np.add.at(dense, (np.arange(num_nodes)[:, None], features.indices), features.values)
    return Inputs(backbone.filter(adjacency, dense).astype(np.float32), None, None)

  if backbone.where == 'nowhere':
    return Inputs(features, None, None)

  check_size(backbone, num_nodes)
  matrix = backbone.filter(adjacency, np.eye(num_nodes)).astype(np.float32)
  return Inputs(features, matrix, matrix)


def inputs_of_rows(inputs: Inputs, rows: np.ndarray) -> tuple[Inputs, Inputs]:
  """Selects the inputs that the outputs of some nodes depend on, for a batch of node sets.

  Padding rows are at the end of a set, with zero features and zero columns. Picking rows changes
  the dropout noise that a row gets; whether rows are picked depends only on the filter and L, so
  that a set is treated the same for any other sets.

  Args:
    inputs: inputs of all N nodes, on the host.
    rows: int [B, L].

  Returns:
    (inputs with M = L and a leading axis B, the axes for `jax.vmap`: 0, or None for inputs that
    all sets share. If L random nodes are expected to reach more than half of the graph, nothing
    except rows of P₂ is picked).
  """
  pick = lambda features, index: jax.tree.map(lambda leaf: leaf[index], features)
  if inputs.first is None:
    return Inputs(pick(inputs.features, rows), None, None), Inputs(0, None, None)

  num_nodes = len(inputs.first)
  density = np.count_nonzero(inputs.second) / num_nodes**2
  if 1 - (1 - density) ** rows.shape[1] > _WORTH_PICKING:
    return inputs._replace(second=inputs.second[rows]), Inputs(None, None, 0)

  reached = [np.flatnonzero(inputs.second[r].any(axis=0)) for r in rows]
  fields = [np.flatnonzero(inputs.first[q].any(axis=0)) for q in reached]
  width, depth = max(map(len, reached)), max(map(len, fields))
  first = np.zeros((len(rows), width, depth), np.float32)
  second = np.zeros((len(rows), rows.shape[1], width), np.float32)
  for i, (r, q, field) in enumerate(zip(rows, reached, fields)):
    first[i, : len(q), : len(field)] = inputs.first[np.ix_(q, field)]
    second[i, :, : len(q)] = inputs.second[np.ix_(r, q)]

  filled = np.stack([np.pad(field, (0, depth - len(field)), constant_values=-1)
                     for field in fields])
  blank = lambda leaf: np.where((filled < 0)[..., None], leaf.dtype.type(0), leaf)
  features = jax.tree.map(blank, pick(inputs.features, filled))
  return Inputs(features, first, second), Inputs(0, 0, 0)


# --- On the device: the network, and graphs of a few points.


def make(*, num_features: int, width: int, num_classes: int, dropout: float) -> GraphFns:
  """Builds the network of all backbones.

  Args:
    num_features: F.
    width: D, size of the hidden layer.
    num_classes: C.
    dropout: probability of dropping an entry of X or of the hidden layer; the others are scaled
      up. It applies to the non-zeros of sparse features: zeros stay zero in any case.

  Returns:
    GraphFns(init, apply); weights are initialised by Glorot's uniform rule.

  Raises:
    ValueError: if a size or the rate is out of range.
  """
  for name, value in (('num_features', num_features), ('width', width),
                      ('num_classes', num_classes)):
    if value < 1:
      raise ValueError(f'{name} must be at least 1, got {value}')
  if not 0 <= dropout < 1:
    raise ValueError(f'dropout must be in [0, 1), got {dropout}')
  glorot = jax.nn.initializers.glorot_uniform()

  def init(key: Array) -> Params:
    draw = lambda layer, shape: glorot(jax.random.fold_in(key, layer), shape, jnp.float32)
    return {'layer_0': draw(0, (num_features, width)), 'layer_1': draw(1, (width, num_classes))}

  def drop(values: Array, key: Array | None) -> Array:
    if key is None or not dropout:
      return values
    keep = jax.random.bernoulli(key, 1 - dropout, values.shape)
    return jnp.where(keep, values / (1 - dropout), 0.0)

  def apply(params: Params, inputs: Inputs, key: Array | None = None) -> Array:
    keys = (None, None) if key is None else jax.random.split(key)
    features, kernel = inputs.features, params['layer_0']
    if isinstance(features, SparseRows):
      hidden = _sparse_product(features._replace(values=drop(features.values, keys[0])), kernel)
    else:
      hidden = drop(features, keys[0]) @ kernel

    if inputs.first is not None:
      hidden = inputs.first @ hidden
    outputs = drop(jax.nn.relu(hidden), keys[1]) @ params['layer_1']
    return outputs if inputs.second is None else inputs.second @ outputs

  return GraphFns(init, apply)


def _sparse_product(rows: SparseRows, kernel: Array) -> Array:
  """X W of padded non-zeros, slot by slot, without an array [R, S, D].

  Args:
    rows: [R, S].
    kernel: [F, D].

  Returns:
    [R, D].
  """
  add = lambda total, slot: (total + slot.values[:, None] * kernel[slot.indices], None)
  start = jnp.zeros((rows.values.shape[0], kernel.shape[1]), kernel.dtype)
  return jax.lax.scan(add, start, SparseRows(rows.indices.T, rows.values.T))[0]


def gaussian_graph(points: Array, *, neighbours: int) -> Array:
  """A_s of a graph that joins each point with its nearest neighbours.

    w_ij = exp(−|x_i − x_j|² / (2 σ²))  if j is one of the k nearest of i, or i of j;  w_ii = 1

  σ² is the mean of |x_i − x_j|² over all points and their k nearest; A_s = D^-1/2 w D^-1/2.

  Args:
    points: float [M, D].
    neighbours: k, from 1 to M − 1.

  Returns:
    float [M, M], symmetric.

  Raises:
    ValueError: if `neighbours` is out of range.
  """
  count = points.shape[0]
  if not 1 <= neighbours < count:
    raise ValueError(f'neighbours must be between 1 and {count - 1}, got {neighbours}')
  distances = jnp.sum(jnp.square(points[:, None] - points), axis=-1)
  others = distances + jnp.where(jnp.eye(count, dtype=bool), jnp.inf, 0.0)
  nearest, index = jax.lax.top_k(-others, neighbours)

  joined = jnp.zeros((count, count), bool).at[jnp.arange(count)[:, None], index].set(True)
  joined = joined | joined.T | jnp.eye(count, dtype=bool)

  scale = jnp.maximum(2 * jnp.mean(-nearest), 1e-12)
  weights = jnp.where(joined, jnp.exp(-distances / scale), 0.0)
  degrees = jax.lax.rsqrt(jnp.sum(weights, axis=1))
  return degrees[:, None] * weights * degrees


def propagate(adjacency: Array, columns: Array, *, alpha: float) -> Array:
  """Multiplies columns by (I + α L)^-1 exactly: `ar_filter` with all of its terms.

  Args:
    adjacency: A_s [M, M], dense.
    columns: [M, C].
    alpha: α ≥ 0; 0 returns the columns unchanged.

  Returns:
    [M, C].
  """
  identity = jnp.eye(adjacency.shape[0], dtype=adjacency.dtype)
  return jnp.linalg.solve((1 + alpha) * identity - alpha * adjacency, columns)
