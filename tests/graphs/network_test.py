"""Graph filters and networks: identities by their numbers, and what may not depend on what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.graphs import network as network_lib

PATH = np.array([[0, 1], [1, 2]])  # The path 1-2-3.
PATH_ADJACENCY = np.array([[.5, .408248, 0], [.408248, .333333, .408248], [0, .408248, .5]])


def _random_adjacency(num_nodes=30, num_edges=45, seed=0):
  edges = np.random.default_rng(seed).integers(num_nodes, size=(num_edges, 2))
  return network_lib.normalised_adjacency(edges, num_nodes)


def _closed_form(adjacency, alpha):
  dense = adjacency.toarray()
  return np.linalg.inv((1 + alpha) * np.eye(len(dense)) - alpha * dense)


def test_SH1_the_path_of_three_nodes():
  adjacency = network_lib.normalised_adjacency(PATH, 3).toarray()
  np.testing.assert_allclose(adjacency, PATH_ADJACENCY, atol=1e-6)
  np.testing.assert_allclose(np.linalg.eigvalsh(adjacency), [-1 / 6, 1 / 2, 1], atol=1e-12)
  root = np.sqrt([2, 3, 2])  # √D̃ 1.
  np.testing.assert_allclose(adjacency @ root, root, atol=1e-12)


def test_edges_count_once_in_either_direction_and_self_loops_are_ignored():
  messy = np.array([[1, 0], [0, 1], [1, 2], [1, 2], [2, 2], [0, 0]])
  np.testing.assert_allclose(
      network_lib.normalised_adjacency(messy, 3).toarray(), PATH_ADJACENCY, atol=1e-6)


@pytest.mark.parametrize('alpha, expected', [
    (1, [[.717949, .188422, .051282], [.188422, .692308, .188422], [.051282, .188422, .717949]]),
    (10, [[.385965, .322301, .219298], [.322301, .473684, .322301], [.219298, .322301, .385965]]),
])
def test_SH2_the_autoregressive_filter_of_the_path(alpha, expected):
  adjacency = network_lib.normalised_adjacency(PATH, 3)
  series = network_lib.ar_filter(adjacency, np.eye(3), alpha=alpha, terms=600)
  np.testing.assert_allclose(series, expected, atol=1e-6)
  np.testing.assert_allclose(series, _closed_form(adjacency, alpha), atol=1e-10)
  exact = network_lib.propagate(jnp.asarray(adjacency.toarray()), jnp.eye(3), alpha=alpha)
  np.testing.assert_allclose(exact, expected, atol=2e-6)


@pytest.mark.parametrize('name, alpha, terms, missing', [
    ('igcn_ar', 10, 41, .0201), ('glp_ar', 20, 80, .0202), ('lp', 100, 400, .0187)])
def test_SH2_the_truncation_error_of_the_series(name, alpha, terms, missing):
  adjacency = _random_adjacency()
  cut = network_lib.BACKBONES[name].filter(adjacency, np.eye(30))
  np.testing.assert_allclose(
      cut, network_lib.ar_filter(adjacency, np.eye(30), alpha=alpha, terms=terms), atol=1e-12)
  values, vectors = np.linalg.eigh(adjacency.toarray())
  ratio = np.diag(vectors.T @ cut @ vectors) * (1 + alpha * (1 - values))
  np.testing.assert_allclose(ratio, 1 - (alpha / (1 + alpha) * values) ** terms, atol=1e-9)
  assert 1 - ratio[-1] == pytest.approx(missing, abs=5e-5)
  assert (1 - ratio[:-1] <= 1 - ratio[-1] + 1e-12).all()


def test_SH3_iterated_label_propagation_is_the_filter_up_to_a_scale():
  adjacency, alpha = _random_adjacency(), 3.0
  classes, train = np.random.default_rng(0).integers(3, size=30), np.arange(6)
  labels = np.zeros((30, 3))
  labels[train, classes[train]] = 1
  scores = labels
  for _ in range(400):
    scores = adjacency @ scores / (1 + 1 / alpha) + labels
  filtered = network_lib.ar_filter(adjacency, labels, alpha=alpha, terms=401)
  np.testing.assert_allclose(scores, (1 + alpha) * filtered, atol=1e-10)
  np.testing.assert_allclose(filtered, _closed_form(adjacency, alpha) @ labels, atol=1e-10)

  # A backbone with this α: twelve terms of the same loop, with the same argmax.
  actual = network_lib.label_propagation(
      network_lib.Backbone('labels', 'ar', alpha), adjacency, classes, train[None], 3)[0]
  twelve = labels
  for _ in range(11):
    twelve = adjacency @ twelve / (1 + 1 / alpha) + labels
  np.testing.assert_allclose((1 + alpha) * actual, twelve, rtol=1e-5, atol=1e-7)
  np.testing.assert_array_equal(actual.argmax(axis=1), twelve.argmax(axis=1))


def test_SH3_from_no_smoothing_to_all():
  ring = network_lib.normalised_adjacency(np.stack([np.arange(9), (np.arange(9) + 1) % 9], 1), 9)
  labels = np.eye(9)[:, :2] + .5 * np.eye(9)[:, 4:6]
  dense = jnp.asarray(ring.toarray())
  np.testing.assert_allclose(network_lib.propagate(dense, labels, alpha=0.0), labels, atol=1e-6)
  np.testing.assert_allclose(
      network_lib.ar_filter(ring, labels, alpha=1e-9, terms=5), labels, atol=1e-8)
  smooth = network_lib.ar_filter(ring, labels, alpha=1e4, terms=100_000)
  ratios = smooth[:, 0] / smooth[:, 1]
  assert np.ptp(ratios) < 2e-2 * abs(ratios.mean())  # Proportional rows.


def test_SH3_label_propagation_of_several_splits():
  adjacency = _random_adjacency()
  labels = np.random.default_rng(1).integers(3, size=30)
  train = np.array([[0, 4, 9], [7, 2, 21]])
  scores = network_lib.label_propagation(network_lib.BACKBONES['lp'], adjacency, labels, train, 3)
  assert scores.shape == (2, 30, 3)
  for split, nodes in enumerate(train):
    known = np.zeros((30, 3))
    known[nodes, labels[nodes]] = 1
    expected = network_lib.ar_filter(adjacency, known, alpha=100, terms=400)
    np.testing.assert_allclose(scores[split], expected, rtol=1e-5)
  hidden = labels.copy()
  hidden[~np.isin(np.arange(30), train)] = 0  # Labels of other nodes are not looked at.
  again = network_lib.label_propagation(network_lib.BACKBONES['lp'], adjacency, hidden, train, 3)
  np.testing.assert_array_equal(again, scores)


def test_SH4_two_layers_of_order_5_without_weights_are_ten_steps_on_the_features():
  adjacency = _random_adjacency()
  x = np.random.default_rng(0).normal(size=(30, 4))
  layer = network_lib.BACKBONES['igcn'].filter(adjacency, np.eye(30))
  expected = np.linalg.matrix_power(adjacency.toarray(), 10) @ x
  np.testing.assert_allclose(layer @ (layer @ x), expected, atol=1e-12)
  np.testing.assert_allclose(
      network_lib.BACKBONES['glp'].filter(adjacency, x), expected, atol=1e-12)


# --- Networks.


def _rows(num_nodes=30, slots=5, num_features=12, seed=0):
  rng = np.random.default_rng(seed)
  indices = np.stack([rng.permutation(num_features)[:slots] for _ in range(num_nodes)])
  values = rng.uniform(.1, 1, (num_nodes, slots)) * (rng.random((num_nodes, slots)) < .8)
  return network_lib.SparseRows(indices.astype(np.int32), values.astype(np.float32))


def _dense(rows, num_features=12):
  dense = np.zeros((len(rows.indices), num_features))
  np.add.at(dense, (np.arange(len(dense))[:, None], rows.indices), rows.values)
  return dense


@functools.cache
def _network(dropout=.5):
  network = network_lib.make(num_features=12, width=8, num_classes=3, dropout=dropout)
  return network, network.init(jax.random.key(0)), jax.jit(network.apply)


def test_init_is_glorots_uniform_rule():
  network = network_lib.make(num_features=200, width=40, num_classes=4, dropout=.5)
  params = network.init(jax.random.key(0))
  assert jax.tree.map(np.shape, params) == {'layer_0': (200, 40), 'layer_1': (40, 4)}
  for kernel in params.values():
    limit = np.sqrt(6 / sum(kernel.shape))
    assert .95 * limit < np.abs(kernel).max() <= limit
    assert np.asarray(kernel).std() == pytest.approx(limit / np.sqrt(3), rel=.1)


@pytest.mark.parametrize('name', ['gcn', 'igcn', 'igcn_ar', 'glp', 'glp_ar', 'mlp'])
def test_a_backbone_is_its_equation(name):
  adjacency, rows = _random_adjacency(), _rows()
  network, params, apply = _network()
  inputs = network_lib.full_inputs(network_lib.BACKBONES[name], adjacency, rows, 12)
  w0, w1 = (np.asarray(params[layer], np.float64) for layer in ('layer_0', 'layer_1'))
  dense, eye = adjacency.toarray(), np.eye(30)
  power = np.linalg.matrix_power
  ar = lambda alpha, terms: sum(
      (alpha / (1 + alpha)) ** i * power(dense, i) for i in range(terms)) / (1 + alpha)
  layer = {'gcn': dense, 'igcn': power(dense, 5), 'igcn_ar': ar(10, 41)}.get(name, eye)
  first = {'glp': power(dense, 10), 'glp_ar': ar(20, 80)}.get(name, eye)
  expected = layer @ np.maximum(layer @ (first @ _dense(rows)) @ w0, 0) @ w1
  np.testing.assert_allclose(apply(params, inputs), expected, atol=1e-5)


@pytest.mark.parametrize('name', ['gcn', 'igcn', 'glp', 'mlp'])
def test_rows_alone_give_what_the_whole_graph_gives(name):
  # A long ring: gcn reaches five of its nodes from a labelled one, igcn (5 + 5) 21 of 100.
  num_nodes = 100
  ring = np.stack([np.arange(num_nodes), (np.arange(num_nodes) + 1) % num_nodes], axis=1)
  adjacency = network_lib.normalised_adjacency(ring, num_nodes)
  inputs = network_lib.full_inputs(network_lib.BACKBONES[name], adjacency, _rows(num_nodes), 12)
  nodes = np.array([[3, 50], [7, 8], [99, 0]])
  picked, axes = network_lib.inputs_of_rows(inputs, nodes)
  network, params, apply = _network(0.0)
  value = lambda params, inputs, rows: jnp.sum(jnp.sin(network.apply(params, inputs)[rows]))
  small = jax.jit(jax.vmap(jax.value_and_grad(value), (None, axes, None)))(
      params, picked, jnp.arange(2))
  whole = jax.jit(jax.vmap(jax.value_and_grad(value), (None, None, 0)))(params, inputs, nodes)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), small, whole)
  if name in ('gcn', 'igcn'):
    assert picked.first.shape == ((3, 6, 10) if name == 'gcn' else (3, 22, 42))


def test_where_most_nodes_are_reached_the_first_layer_is_shared():
  inputs = network_lib.full_inputs(
      network_lib.BACKBONES['igcn_ar'], _random_adjacency(num_edges=90), _rows(), 12)
  picked, axes = network_lib.inputs_of_rows(inputs, np.array([[3, 5], [7, 8]]))
  assert axes == network_lib.Inputs(None, None, 0)
  assert picked.first is inputs.first and picked.second.shape == (2, 2, 30)


def _chain_and_clique():
  """Nodes 0-39 on a line, 40-99 joined with all of each other: few and many neighbours."""
  line = np.stack([np.arange(39), np.arange(1, 40)], axis=1)
  clique = 40 + np.argwhere(np.triu(np.ones((60, 60)), 1))
  return network_lib.normalised_adjacency(np.concatenate([line, clique]), 100)


@pytest.mark.parametrize('count, is_picked', [(1, True), (4, False)])
def test_the_noise_of_a_set_does_not_depend_on_other_sets(count, is_picked):
  # 37 % of all pairs are joined: a node at random, unlike four, reaches less than half of them.
  # The first set reaches few nodes, the second one most of them.
  rows = np.array([[5, 11, 17, 23], [50, 60, 70, 80]])[:, :count]
  inputs = network_lib.full_inputs(
      network_lib.BACKBONES['gcn'], _chain_and_clique(), _rows(100), 12)
  network, params, _ = _network()
  keys = jax.random.split(jax.random.key(2), 2)
  picked, axes = network_lib.inputs_of_rows(inputs, rows)
  assert (axes.first == 0) == is_picked
  apply = lambda picked, axes, keys: jax.jit(jax.vmap(network.apply, (None, axes, 0)))(
      params, picked, keys)
  both = apply(picked, axes, keys)
  assert np.abs(both - apply(picked, axes, keys[::-1])).max() > 1e-3
  for i in range(2):
    alone, axes = network_lib.inputs_of_rows(inputs, rows[i : i + 1])
    np.testing.assert_allclose(
        apply(alone, axes, keys[i : i + 1])[0], both[i], atol=1e-5)


def test_SH6_permuting_the_nodes_permutes_the_outputs():
  adjacency, rows = _random_adjacency(), _rows()
  order = np.random.default_rng(5).permutation(30)
  _, params, apply = _network()
  outputs = {}
  for name, matrix, features in (
      ('here', adjacency, rows),
      ('there', adjacency[order][:, order], jax.tree.map(lambda leaf: leaf[order], rows))):
    inputs = network_lib.full_inputs(network_lib.BACKBONES['igcn'], matrix, features, 12)
    outputs[name] = np.asarray(apply(params, inputs))
  np.testing.assert_allclose(outputs['there'], outputs['here'][order], atol=1e-6)


def test_unused_slots_are_ignored():
  rows = _rows()
  other = rows._replace(indices=np.where(rows.values > 0, rows.indices, 11))
  _, params, apply = _network()
  make = lambda rows: network_lib.full_inputs(
      network_lib.BACKBONES['gcn'], _random_adjacency(), rows, 12)
  for key in (None, jax.random.key(1)):
    np.testing.assert_array_equal(
        apply(params, make(rows), key), apply(params, make(other), key))


def test_dropout_does_not_depend_on_rows_that_fill_up():
  # Splits of different reach are padded to the widest: the noise of real entries must stay.
  rows = _rows()
  _, params, apply = _network()
  first, second = np.random.default_rng(0).normal(size=(2, 30, 30)).astype(np.float32)
  padded = network_lib.Inputs(
      jax.tree.map(lambda leaf: np.pad(leaf, ((0, 6), (0, 0))), rows),
      np.pad(first, ((0, 4), (0, 6))), np.pad(second, ((0, 0), (0, 4))))
  key = jax.random.key(3)
  np.testing.assert_allclose(
      apply(params, network_lib.Inputs(rows, first, second), key), apply(params, padded, key),
      rtol=2e-5, atol=1e-5)


def test_dropout_works_on_both_inputs_and_keeps_the_mean():
  # One feature of 1, kept with probability .75; then two hidden entries, each kept likewise.
  network = network_lib.make(num_features=1, width=2, num_classes=1, dropout=.25)
  params = {'layer_0': jnp.ones((1, 2)), 'layer_1': jnp.array([[1.0], [10.0]])}
  count = 40_000
  rows = network_lib.SparseRows(np.zeros((count, 1), np.int32), np.ones((count, 1), np.float32))
  outputs = np.asarray(jax.jit(network.apply)(
      params, network_lib.Inputs(rows, None, None), jax.random.key(0)))[:, 0]
  unit = 1 / .75**2
  expected = {0: .25 + .75 * .25**2, 1: .75**2 * .25, 10: .75**2 * .25, 11: .75**3}
  for value, share in expected.items():
    assert np.isclose(outputs, unit * value).mean() == pytest.approx(share, abs=.01)
  assert outputs.mean() == pytest.approx(11, rel=.02)
  dense = network_lib.Inputs(np.ones((count, 1), np.float32), None, None)  # As of glp.
  outputs = np.asarray(jax.jit(network.apply)(params, dense, jax.random.key(0)))[:, 0]
  assert np.isclose(outputs, 0).mean() == pytest.approx(expected[0], abs=.01)


def test_two_keys_drop_differently_and_none_nothing():
  _, params, apply = _network()
  inputs = network_lib.full_inputs(network_lib.BACKBONES['gcn'], _random_adjacency(), _rows(), 12)
  keyed = [np.asarray(apply(params, inputs, jax.random.key(seed))) for seed in (0, 0, 1)]
  np.testing.assert_array_equal(keyed[0], keyed[1])
  assert np.abs(keyed[0] - keyed[2]).max() > 1e-2
  np.testing.assert_array_equal(apply(params, inputs), _network(0.0)[2](
      params, inputs, jax.random.key(0)))


def test_nodes_that_no_label_reaches():
  # Two pairs and a node alone; the label is that of node 0.
  adjacency = network_lib.normalised_adjacency(np.array([[0, 1], [2, 3]]), 5)
  scores = network_lib.label_propagation(
      network_lib.BACKBONES['lp'], adjacency, np.array([1, 0, 0, 0, 0]), np.array([[0], [4]]), 2)
  np.testing.assert_array_equal(network_lib.unreached(scores), [
      [False, False, True, True, True], [True, True, True, True, False]])


def test_too_large_a_graph_and_bad_sizes_are_one_line_errors():
  huge = network_lib.normalised_adjacency(np.zeros((0, 2), int), 5_001)
  with pytest.raises(ValueError, match='a graph must have at most 5000 nodes, got 5001'):
    network_lib.full_inputs(network_lib.BACKBONES['gcn'], huge, _rows(5_001), 12)
  good = dict(num_features=3, width=2, num_classes=2, dropout=.5)
  for name, value, words in (
      ('width', 0, 'width must be at least 1, got 0'),
      ('num_classes', 0, 'num_classes must be at least 1, got 0'),
      ('num_features', 0, 'num_features must be at least 1'),
      ('dropout', 1.0, r'dropout must be in \[0, 1\), got 1.0')):
    with pytest.raises(ValueError, match=words):
      network_lib.make(**(good | {name: value}))


# --- Graphs of a few points.


def test_a_gaussian_graph_is_its_equation():
  points = np.random.default_rng(0).normal(size=(12, 3))
  actual = np.asarray(network_lib.gaussian_graph(jnp.asarray(points, jnp.float32), neighbours=3))
  squares = ((points[:, None] - points) ** 2).sum(axis=-1)
  nearest = np.argsort(squares, axis=1)[:, 1:4]
  joined = np.eye(12, dtype=bool)
  np.put_along_axis(joined, nearest, True, axis=1)
  joined |= joined.T
  scale = 2 * np.take_along_axis(squares, nearest, axis=1).mean()
  weights = np.where(joined, np.exp(-squares / scale), 0)
  expected = weights / np.sqrt(np.outer(weights.sum(axis=1), weights.sum(axis=1)))
  np.testing.assert_allclose(actual, expected, atol=1e-5)
  np.testing.assert_allclose(actual, actual.T, atol=1e-7)
  # Neither the unit of length nor the origin matters.
  moved = network_lib.gaussian_graph(jnp.asarray(100 * points + 7, jnp.float32), neighbours=3)
  np.testing.assert_allclose(moved, expected, atol=1e-4)


def test_a_gaussian_graph_of_equal_points_is_finite_and_its_neighbours_are_checked():
  actual = network_lib.gaussian_graph(jnp.ones((4, 2)), neighbours=3)
  np.testing.assert_allclose(actual, .25, atol=1e-6)
  for neighbours in (0, 4):
    with pytest.raises(ValueError, match=f'between 1 and 3, got {neighbours}'):
      network_lib.gaussian_graph(jnp.ones((4, 2)), neighbours=neighbours)
