"""Shoestring: its loss written out, its identities, and what the two evaluations may read."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm.algorithms import shoestring
from jaxrl_llm.graphs import block_model, planetoid, prototypes
from jaxrl_llm.graphs import network as network_lib
from jaxrl_llm.training import rng
from tests.algorithms import tiny

PER_CLASS, CLASSES = 3, 3


@functools.cache
def _world():
  """A graph of 90 nodes, its input to a GCN, and a split."""
  graph = block_model.make_graph(
      seed=0, num_classes=CLASSES, nodes_per_class=30, num_words=60, words_per_node=6,
      word_signal=.5)
  adjacency = network_lib.normalised_adjacency(graph.edges, graph.num_nodes)
  inputs = network_lib.full_inputs(
      network_lib.BACKBONES['gcn'], adjacency, network_lib.SparseRows(graph.indices, graph.values),
      graph.num_features)
  train, test = planetoid.random_split(graph.labels, PER_CLASS, seed=0)
  masks = np.zeros((2, graph.num_nodes), np.float32)
  masks[0, train], masks[1, test] = 1, 1
  return graph, inputs, train, masks


def _batch(seed=0):
  graph, inputs, _, _ = _world()
  train, _ = planetoid.random_split(graph.labels, PER_CLASS, seed)
  return shoestring.Batch(inputs._replace(second=inputs.second[train]), graph.labels[train],
               np.ones(len(train), np.float32))


@functools.cache
def _network(dropout):
  return network_lib.make(num_features=60, width=8, num_classes=CLASSES, dropout=dropout)


@functools.cache
def _runner(options, dropout):
  """(state, batch, steps) -> (state, metrics [steps]), compiled once per config."""
  algorithm = shoestring.make(
      shoestring.Config(**dict(options)), _network(dropout), optax.adam(.01))
  run = lambda state, batch, steps: jax.lax.scan(
      lambda state, _: algorithm.train_step(state, batch), state, length=steps)
  return algorithm, jax.jit(run, static_argnums=2)


def _run(steps=3, *, dropout=.5, seed=0, batch=None, dtype=np.float32, **options):
  algorithm, run = _runner(tuple(sorted(options.items())), dropout)
  key = rng.base_key(seed)
  params = {'network': _params(key, dropout, dtype)}
  start = algorithm.init(rng.stream_key(key, rng.DROPOUT), params)
  state, metrics = run(start, batch or _batch(), steps)
  return state, {name: np.asarray(jax.vmap(lambda m: m.value())(m)) for name, m in metrics.items()}


def _params(key, dropout, dtype):
  params = _network(dropout).init(rng.stream_key(key, rng.INIT))
  return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _equal(a, b):
  return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def _numpy_loss(outputs, labels, params, metric, coefficient=.01, decay=5e-4):
  """The equation, in float64, for equally many labels a class."""
  def mean_cross_entropy(scores):
    top = scores.max(axis=1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(scores - top).sum(axis=1))
    return (log_sum - scores[np.arange(len(labels)), labels]).mean()

  centres = np.stack([outputs[labels == c].mean(axis=0) for c in range(CLASSES)])
  apart = outputs[:, None] - centres
  norms = np.linalg.norm(outputs, axis=1)[:, None] * np.linalg.norm(centres, axis=1)
  scores = {'cos': outputs @ centres.T / norms, 'l1': -np.abs(apart).sum(-1),
            'l2': -(apart ** 2).sum(-1)}[metric]
  squares = sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in params.values())
  softmax, metric = mean_cross_entropy(outputs), mean_cross_entropy(scores)
  return softmax + coefficient * metric + decay / 2 * squares, softmax, metric


@pytest.mark.parametrize('metric', ['cos', 'l1', 'l2'])
def test_the_loss_is_the_equation(metric):
  state, metrics = _run(1, dropout=0.0, metric=metric)
  before = _network(0.0).init(rng.stream_key(rng.base_key(0), rng.INIT))
  batch = _batch()
  outputs = np.asarray(_network(0.0).apply(before, batch.inputs), np.float64)
  expected = _numpy_loss(outputs, batch.labels, before, metric)
  got = [metrics[f'train/{name}'][0] for name in ('loss', 'softmax_loss', 'metric_loss')]
  np.testing.assert_allclose(got, expected, rtol=2e-6)
  assert state.step == 1


def test_the_gradient_is_that_of_the_equation_and_flows_through_the_prototypes():
  # By differences of the equation in float64, along directions drawn at random.
  batch, generator = _batch(), np.random.default_rng(0)
  _, metrics = _run(1, dropout=0.0, metric='l2', metric_coefficient=1.0)
  algorithm = shoestring.make(
      shoestring.Config(metric='l2', metric_coefficient=1.0), _network(0.0), optax.sgd(1.0))
  params = _network(0.0).init(rng.stream_key(rng.base_key(0), rng.INIT))
  state = algorithm.init(rng.base_key(0), {'network': params})
  after = jax.jit(algorithm.train_step)(state, batch)[0].params['network']
  gradient = {name: np.asarray(params[name], np.float64) - after[name] for name in params}
  dense = np.zeros((len(batch.inputs.features.indices), 60))
  np.add.at(dense, (np.arange(len(dense))[:, None], batch.inputs.features.indices),
            batch.inputs.features.values)
  first, second = (np.asarray(m, np.float64) for m in batch.inputs[1:])

  def loss(weights):
    outputs = second @ np.maximum(first @ dense @ weights['layer_0'], 0) @ weights['layer_1']
    return _numpy_loss(outputs, batch.labels, weights, 'l2', 1.0)[0]

  for _ in range(3):
    direction = {name: generator.normal(size=np.shape(leaf)) for name, leaf in params.items()}
    move = lambda size, d=direction: {n: np.asarray(params[n], np.float64) + size * d[n]
                                      for n in params}
    slope = (loss(move(1e-5)) - loss(move(-1e-5))) / 2e-5
    got = sum((gradient[name] * direction[name]).sum() for name in params)
    assert got == pytest.approx(slope, rel=2e-3, abs=1e-4)
  norm = np.sqrt(sum((leaf ** 2).sum() for leaf in gradient.values()))
  assert metrics['train/grad_norm'][0] == pytest.approx(norm, rel=1e-4)


def _plain_training(steps, dtype):
  """A graph network trained by softmax and decay alone: no metric head anywhere."""
  network, batch, key = _network(.5), _batch(), rng.base_key(0)
  params, optimizer = _params(key, .5, dtype), optax.adam(.01)

  def loss(params, step, batch):
    noise = rng.stream_key(key, rng.DROPOUT, step)
    outputs = network.apply(params, batch.inputs, noise)
    mean = prototypes.cross_entropy(outputs, batch.labels, batch.weight)
    squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)]
    return mean.value() + 5e-4 / 2 * sum(squares)

  def step(carry, index, batch):
    params, opt_state = carry
    updates, opt_state = optimizer.update(jax.grad(loss)(params, index, batch), opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), None

  run = jax.jit(lambda carry, batch: jax.lax.scan(
      lambda carry, index: step(carry, index, batch), carry, jnp.arange(steps))[0])
  return run((params, optimizer.init(params)), batch)[0]


def test_SH7_without_coefficient_the_network_is_plain():
  states = {metric: _run(20, metric=metric, metric_coefficient=0.0)[0]
            for metric in ('cos', 'l2')}
  assert _equal(states['cos'].params, states['l2'].params)
  assert _equal(states['cos'].opt_state, states['l2'].opt_state)
  assert not _equal(states['cos'].params, _run(20)[0].params)
  # Two programs may round differently, which twenty steps of Adam magnify: in float64 that is
  # nothing. The noise is the same, too: the stream is that of dropout.
  with jax.enable_x64(True):
    plain = _plain_training(20, np.float64)
    state, _ = _run(20, metric='cos', metric_coefficient=0.0, dtype=np.float64)
  tiny.assert_trees_close(state.params['network'], plain, tolerance=1e-9)


def test_decay_of_the_first_layer_leaves_the_second_alone():
  shrink = {}
  for decay in ('all', 'first'):
    config = shoestring.Config(weight_decay=.1, decay=decay)
    params = {'layer_0': jnp.full((2, 3), 2.0), 'layer_1': jnp.full((3, 1), 3.0)}
    shrink[decay] = jax.value_and_grad(lambda p, c=config: shoestring.decay_loss(c, p))(params)
  assert shrink['all'][0] == pytest.approx(.05 * (6 * 4 + 3 * 9))
  assert shrink['first'][0] == pytest.approx(.05 * 24)
  np.testing.assert_allclose(shrink['first'][1]['layer_0'], .2, rtol=1e-6)
  np.testing.assert_allclose(shrink['first'][1]['layer_1'], 0)
  np.testing.assert_allclose(shrink['all'][1]['layer_1'], .3, rtol=1e-6)


def test_rows_that_fill_up_do_not_count():
  batch = _batch()
  padded = shoestring.Batch(
      batch.inputs._replace(second=np.pad(batch.inputs.second, ((0, 3), (0, 0)))),
      np.pad(batch.labels, (0, 3), constant_values=2), np.pad(batch.weight, (0, 3)))
  for metric in ('cos', 'l1', 'l2'):
    state, metrics = _run(3, metric=metric, metric_coefficient=.5)
    again, others = _run(3, metric=metric, metric_coefficient=.5, batch=padded)
    np.testing.assert_allclose(others['train/loss'], metrics['train/loss'], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
                 again.params, state.params)


def test_splits_side_by_side_are_splits_one_by_one():
  algorithm, _ = _runner((('metric', 'cos'),), .5)
  network, batches = _network(.5), [_batch(seed) for seed in range(2)]
  start = lambda seed: algorithm.init(rng.stream_key(rng.base_key(seed), rng.DROPOUT), {
      'network': network.init(rng.stream_key(rng.base_key(seed), rng.INIT))})
  states = jax.tree.map(lambda *x: jnp.stack(x), *[start(seed) for seed in range(2)])
  axes = shoestring.Batch(network_lib.Inputs(None, None, 0), 0, 0)

  shared = shoestring.Batch(
      batches[0].inputs._replace(second=np.stack([b.inputs.second for b in batches])),
      np.stack([b.labels for b in batches]), np.stack([b.weight for b in batches]))
  step = jax.vmap(algorithm.train_step, in_axes=(0, axes))
  both, _ = jax.jit(lambda states: jax.lax.scan(
      lambda s, _: step(s, shared), states, length=5))(states)

  for seed in range(2):
    alone, _ = _run(5, seed=seed, batch=batches[seed], metric='cos')
    jax.tree.map(lambda a, b, i=seed: np.testing.assert_allclose(a[i], b, atol=1e-4),
                 both.params, alone.params)


@functools.cache
def _trained():
  """A network after 150 steps, and its outputs for all nodes."""
  _, inputs, _, _ = _world()
  state, metrics = _run(150)
  return jax.jit(_network(.5).apply)(state.params['network'], inputs), metrics


def test_it_learns():
  graph, _, _, masks = _world()
  outputs, metrics = _trained()
  assert metrics['train/softmax_loss'][-20:].mean() < .5 * metrics['train/softmax_loss'][0]
  got = shoestring.evaluate(shoestring.Config(), outputs, graph.labels, *masks)
  assert got['softmax'] > .6 and got['metric'] > .6 and got['mixed'] > .6


def test_evaluate_is_the_fraction_of_test_nodes():
  graph, _, _, masks = _world()
  outputs, _ = _trained()
  config = shoestring.Config()
  scores = shoestring.scores(config, outputs, graph.labels, *masks)
  got = shoestring.evaluate(config, outputs, graph.labels, *masks)
  nodes = masks[1] > 0
  for name, values in scores.items():
    right = np.asarray(values).argmax(axis=1) == graph.labels
    assert got[name] == pytest.approx(right[nodes].mean(), abs=1e-6)
  mixed = jax.nn.softmax(outputs) + .01 * jax.nn.softmax(scores['metric'])
  np.testing.assert_allclose(scores['mixed'], mixed, atol=1e-6)
  np.testing.assert_array_equal(scores['softmax'], outputs)


def test_honest_prototypes_see_training_labels_alone_and_leaky_ones_test_labels():
  graph, _, _, masks = _world()
  outputs, _ = _trained()
  other = np.where(masks[1] > 0, np.random.default_rng(0).permutation(graph.labels), graph.labels)
  for ratio in (0.0, .2):
    honest = shoestring.Config(refinement_ratio=ratio)
    leaky = dataclasses.replace(honest, leaky_eval=True)
    read = lambda config, labels: np.asarray(
        shoestring.scores(config, outputs, labels, *masks)['metric'])
    np.testing.assert_array_equal(read(honest, graph.labels), read(honest, other))
    assert np.abs(read(leaky, graph.labels) - read(leaky, other)).max() > .1
    hidden = np.where(masks[0] > 0, (graph.labels + 1) % CLASSES, graph.labels)
    np.testing.assert_array_equal(read(leaky, graph.labels), read(leaky, hidden))
    assert np.abs(read(honest, graph.labels) - read(honest, hidden)).max() > .1


def test_prototypes_of_the_test_labels_gain_much_over_those_of_one_label_a_class():
  # One cluster a class, so wide that the mean of one node says little and that of many a lot.
  generator = np.random.default_rng(0)
  labels = np.arange(300) % 3
  outputs = jnp.asarray(np.eye(3)[labels] * .6 + generator.normal(size=(300, 3)), jnp.float32)
  train = (np.arange(300) < 3).astype(np.float32)
  accuracy = lambda **options: float(shoestring.evaluate(
      shoestring.Config(metric='l2', **options), outputs, labels, train, 1 - train)['metric'])
  assert accuracy(leaky_eval=True) > accuracy() + .05


@pytest.mark.parametrize('field, value', [
    ('metric', 'l2'), ('metric_coefficient', .5), ('weight_decay', .1), ('decay', 'first')])
def test_every_setting_of_training_has_an_effect(field, value):
  assert not _equal(_run(3)[0].params, _run(3, **{field: value})[0].params)


@pytest.mark.parametrize('field, value', [
    ('metric', 'l2'), ('metric_coefficient', 5.0), ('refinement_ratio', .3), ('leaky_eval', True)])
def test_every_setting_of_evaluation_has_an_effect(field, value):
  graph, _, _, masks = _world()
  outputs, _ = _trained()
  read = lambda config: shoestring.scores(config, outputs, graph.labels, *masks)
  default, changed = (read(shoestring.Config(**options)) for options in ({}, {field: value}))
  assert any(np.abs(default[name] - changed[name]).max() > 1e-3 for name in default)


def test_all_fields_are_perturbed_here():
  assert {field.name for field in dataclasses.fields(shoestring.Config)} == {
      'metric', 'metric_coefficient', 'weight_decay', 'decay', 'refinement_ratio', 'leaky_eval'}


@pytest.mark.parametrize('field, value, words', [
    ('metric', 'dot', "metric must be one of cos, l1, l2, got 'dot'"),
    ('metric_coefficient', -1.0, 'metric_coefficient must be non-negative and finite, got -1.0'),
    ('weight_decay', float('inf'), 'weight_decay must be non-negative and finite, got inf'),
    ('decay', 'second', "decay must be one of all, first, got 'second'"),
    ('refinement_ratio', 2.0, r'refinement_ratio must be in \[0, 1\], got 2.0'),
])
def test_bad_configs_are_one_line_errors(field, value, words):
  with pytest.raises(ValueError, match=words):
    shoestring.make(shoestring.Config(**{field: value}), _network(.5), optax.adam(.01))


def test_dropout_differs_from_step_to_step_and_from_key_to_key():
  frozen = shoestring.make(shoestring.Config(weight_decay=0.0), _network(.5), optax.sgd(0.0))
  params = {'network': _network(.5).init(jax.random.key(0))}
  run = jax.jit(lambda state: jax.lax.scan(
      lambda s, _: frozen.train_step(s, _batch()), state, length=3)[1]['train/loss'].total)
  losses = [np.asarray(run(frozen.init(rng.base_key(seed), params))) for seed in (0, 0, 1)]
  np.testing.assert_array_equal(losses[0], losses[1])
  assert len({*losses[0].tolist(), *losses[2].tolist()}) == 6


def test_the_leak_finds_classes_in_outputs_that_hold_none():
  # In four dozen dimensions thirty nodes are closest to the mean that they are part of.
  generator = np.random.default_rng(0)
  labels = np.arange(93) % 3
  outputs = jnp.asarray(generator.normal(size=(93, 48)), jnp.float32)
  train = (np.arange(93) < 3).astype(np.float32)
  read = lambda known: np.asarray(shoestring.metric_scores(
      shoestring.Config(metric='l2'), outputs, labels, known, num_classes=3)).argmax(axis=1)
  right = lambda known: (read(known) == labels)[3:].mean()
  assert abs(right(train) - 1 / 3) < .15  # Three standard errors of ninety guesses.
  assert right(1 - train) > .6
