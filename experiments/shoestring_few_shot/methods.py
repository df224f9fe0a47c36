"""The methods that classify an episode's examples, compiled for a batch of episodes."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from experiments.shoestring_few_shot.config import FewShot
from jaxrl_llm.algorithms import shoestring
from jaxrl_llm.graphs import network
from jaxrl_llm.training import optim, rng

METHODS = {
    'prototypes': 'prototypes',
    'refined': 'prototypes, refined',
    'lp': 'label propagation',
    'filtered': 'prototypes of filtered features',
    'gcn_softmax': 'graph network with the metric head, softmax',
    'gcn_prototypes': 'graph network with the metric head, prototypes',
}


class Classifier:
  """All methods on one episode, compiled for a batch of episodes."""

  def __init__(self, config: FewShot, shots: int, width: int):
    self._config = config
    self._num_support = config.way * shots
    self._network = network.make(
        num_features=width, width=config.width, num_classes=config.way, dropout=config.dropout)
    self._algorithm = shoestring.make(
        config.algorithm, self._network, optim.make_optimizer(optim.OptimizerConfig(
            name='adam', learning_rate=config.learning_rate, max_grad_norm=0.0)))
    self.classify = jax.jit(jax.vmap(self._classify))

  def scores(self, index: Array, features: Array, labels: Array) -> dict[str, Array]:
    """Scores of every example for every class in one episode, by method.

    Args:
      index: int32 []; index of the episode.
      features: [M, D], labelled examples first.
      labels: int32 [M]; read only for the labelled examples.

    Returns:
      [M, n] by the names of `METHODS`.
    """
    config, count = self._config, labels.shape[0]
    support = (jnp.arange(count) < self._num_support).astype(jnp.float32)
    adjacency = network.gaussian_graph(features, neighbours=config.neighbours)
    known = support[:, None] * jax.nn.one_hot(labels, config.way)
    filtered = network.propagate(adjacency, features, alpha=config.feature_alpha)

    refining = dataclasses.replace(config.algorithm, refinement_ratio=config.refinement_ratio)

    def by_prototypes(algorithm, rows):
      return shoestring.metric_scores(algorithm, rows, labels, support, num_classes=config.way)

    by_network = shoestring.scores(
        config.algorithm, self._train(index, features, adjacency, labels), labels, support,
        1 - support)

    return {
        'prototypes': by_prototypes(config.algorithm, features),
        'refined': by_prototypes(refining, features),
        'lp': network.propagate(adjacency, known, alpha=config.label_alpha),
        'filtered': by_prototypes(config.algorithm, filtered),
        'gcn_softmax': by_network['softmax'], 'gcn_prototypes': by_network['metric'],
    }

  def _classify(self, index: Array, features: Array, labels: Array) -> dict[str, Array]:
    """Accuracy on the queries of one episode, by method."""
    queries = slice(self._num_support, None)
    is_correct = {name: (jnp.argmax(values, axis=-1) == labels)[queries]
                  for name, values in self.scores(index, features, labels).items()}
    return {name: jnp.mean(values.astype(jnp.float32)) for name, values in is_correct.items()}

  def _train(self, index: Array, features: Array, adjacency: Array, labels: Array) -> Array:
    """Outputs [M, n] of a network trained on this episode."""
    rows = slice(self._num_support)
    batch = shoestring.Batch(network.Inputs(features, adjacency, adjacency[rows]), labels[rows],
                             jnp.ones(self._num_support))
    key = rng.stream_key(rng.base_key(self._config.seed), rng.DATA, index)
    params = self._network.init(rng.stream_key(key, rng.INIT))
    state = self._algorithm.init(rng.stream_key(key, rng.DROPOUT), {'network': params})

    def step(state, _):
      return self._algorithm.train_step(state, batch)[0], None

    state, _ = jax.lax.scan(step, state, length=self._config.steps)
    outputs = self._network.apply(
        state.params['network'], network.Inputs(features, adjacency, adjacency))
    # NaN if an update was skipped: the episode has diverged.
    return jnp.where(state.step == self._config.steps, outputs, jnp.nan)
