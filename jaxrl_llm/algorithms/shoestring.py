"""Shoestring: a metric head for graph networks with few labels.

Lin, Gao and Li, 2020, "Shoestring: graph-based semi-supervised classification with severely
limited labeled data", CVPR, arXiv 1910.12976; code: iQua/CVPR2020-Shoestring. (The abstract
mentions a metric network after the graph network; the released code has none, nor has this file.)

The C outputs z_u of a graph network for a node are used twice: as logits, and as a point that is
compared with prototypes, the mean outputs of the labelled nodes of each class:

  p_c = mean of z_u over labelled u of class c,
  s(z, c) = z·p_c / (|z| |p_c|)   or   −|z − p_c|²   or   −|z − p_c|₁,
  L = CE(softmax Z) + λ CE(softmax s) + wd Σ |W|² / 2,

both cross-entropies over labelled nodes; the gradient also flows through the prototypes. λ = 0
is the plain network. A train step is one step on all labelled nodes; the network runs only on the
nodes that they depend on (given by the batch).

**The released evaluation uses test labels.** There, the prototypes are recomputed at test time
from the labels and the mask in use then: those of the test nodes. Here prototypes come from the
training labels; `leaky_eval=True` reproduces the released evaluation, which gains many points for
any network, λ = 0 included.

Further departures from the released code, and why:
- Here the weights after the last step are evaluated; there, those of the smallest training loss
  among the epochs that are checked (with dropout, that choice is a matter of chance).
- Prototypes are refined with unlabelled nodes in evaluation only (off by default, as there); the
  loss compares with the prototypes of the labelled nodes.
- As there, Adam's loss includes the squares of the weights: this is not AdamW.

Tables: experiments/configs/{shoestring_cora,shoestring_citeseer,shoestring_blocks}.py; images:
shoestring_few_shot.py.
"""

import dataclasses
from typing import Any, Protocol

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_llm import checks
from jaxrl_llm.graphs import prototypes
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Array, Params, TrainState, WeightedMean


@dataclasses.dataclass
class Config:
  """Shoestring config; the defaults are those of the released configs.

  Attributes:
    metric: 'cos', 'l1' or 'l2', for both the loss and the evaluation.
    metric_coefficient: λ ≥ 0; 0 is the plain network.
    weight_decay: wd ≥ 0.
    decay: 'all' layers, or only the 'first' (as in Kipf's GCN).
    refinement_ratio: fraction of the unlabelled nodes that refine a prototype in evaluation.
    leaky_eval: evaluate with prototypes from test labels, as released. Not a fair number.
  """

  metric: str = 'cos'
  metric_coefficient: float = 0.01
  weight_decay: float = 5e-4
  decay: str = 'all'
  refinement_ratio: float = 0.0
  leaky_eval: bool = False

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.one_of(self, '', metric=prototypes.METRICS, decay=('all', 'first'))
    checks.non_negative(self, '', 'metric_coefficient', 'weight_decay')
    checks.fraction(self, '', 'refinement_ratio')


class Network(Protocol):
  """The trained network: `models.graph.GraphFns`, or any network with weights by layer."""

  def init(self, key: Array) -> Params:
    """{'layer_0': [F, D], 'layer_1': ...}: matrices only, no biases."""

  def apply(self, params: Params, inputs: Any, key: Array | None = None) -> Array:
    """Outputs [M, C] of the nodes that `inputs` is built for; dropout only with a key."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """The labelled nodes, and the inputs from which the network computes their outputs.

  Attributes:
    inputs: argument of `Network.apply`, which maps it to [M, C].
    labels: int32 [M].
    weight: float32 [M]; 0 for padding rows.
  """

  inputs: Any
  labels: Array
  weight: Array


def make(
    config: Config, network: Network, optimizer: optax.GradientTransformation
) -> Algorithm:
  """Shoestring as two pure functions; a train step is one epoch.

  Args:
    config: Shoestring config.
    network: the network of params['network'].
    optimizer: an optax transformation, without its own weight decay.

  Returns:
    Algorithm(init, train_step). `init` takes the PRNG key for dropout, which must not be used for
    anything else (`training.rng.stream_key(base_key, DROPOUT)`); `train_step` takes a `Batch`.

  Raises:
    ValueError: if a config field is out of range.
  """
  config.validate()

  def init(key, params) -> TrainState:
    return TrainState.create(params, optimizer, key)

  def loss_fn(params, batch: Batch, key: Array):
    outputs = network.apply(params['network'], batch.inputs, key)
    softmax_loss = prototypes.cross_entropy(outputs, batch.labels, batch.weight)
    loss = softmax_loss.value() + decay_loss(config, params['network'])
    metrics = {'train/softmax_loss': softmax_loss}
    if config.metric_coefficient:  # Skipped otherwise: λ = 0 is the plain network bit for bit.
      scores = metric_scores(
          dataclasses.replace(config, refinement_ratio=0.0), outputs, batch.labels, batch.weight,
          num_classes=outputs.shape[-1])
      metric_loss = prototypes.cross_entropy(scores, batch.labels, batch.weight)
      loss = loss + config.metric_coefficient * metric_loss.value()
      metrics['train/metric_loss'] = metric_loss
    return loss, metrics

  def train_step(state, batch: Batch):
    key = jax.random.fold_in(state.key, state.step)
    gradients_of = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, metrics), gradients = gradients_of(state.params, batch, key)
    state, step_metrics = step_lib.apply_gradients(
        optimizer, state, gradients, allowed=jnp.isfinite(loss))
    return state, {
        'train/loss': WeightedMean(loss, jnp.ones_like(loss)), **metrics, **step_metrics}

  return Algorithm(init, train_step)


def decay_loss(config: Config, params: Params) -> Array:
  """wd Σ |W|² / 2 over the layers that decay; float32 []."""
  decayed = params if config.decay == 'all' else params['layer_0']
  squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(decayed)]
  return config.weight_decay / 2 * sum(squares)


def scores(
    config: Config, outputs: Array, labels: Array, train: Array, test: Array
) -> dict[str, Array]:
  """Scores of every node for every class, by each way of using the outputs.

  Args:
    config: `metric`, `metric_coefficient`, `refinement_ratio` and `leaky_eval` are used.
    outputs: float [N, C]; outputs of all nodes, without dropout.
    labels: int [N]; read where `train` is 1, or with `leaky_eval` where `test` is 1.
    train: float [N]; 1 for training nodes.
    test: float [N]; 1 for test nodes.

  Returns:
    [N, C] by name: 'softmax' Z; 'metric' s; 'mixed' softmax(Z) + λ softmax(s).
  """
  chex.assert_equal_shape([labels, train, test])
  known = test if config.leaky_eval else train
  metric = metric_scores(config, outputs, labels, known, num_classes=outputs.shape[-1])
  mixed = jax.nn.softmax(outputs) + config.metric_coefficient * jax.nn.softmax(metric)
  return {'softmax': outputs, 'metric': metric, 'mixed': mixed}


def evaluate(
    config: Config, outputs: Array, labels: Array, train: Array, test: Array
) -> dict[str, Array]:
  """Test accuracy of each way of using the outputs.

  Args:
    config: as for `scores`.
    outputs: float [N, C].
    labels: int [N].
    train: float [N].
    test: float [N]; not all 0.

  Returns:
    float32 [], under the names of `scores`.
  """
  accuracies = {}
  for name, values in scores(config, outputs, labels, train, test).items():
    correct = (jnp.argmax(values, axis=-1) == labels).astype(jnp.float32)
    accuracies[name] = jnp.sum(test * correct) / jnp.sum(test)
  return accuracies


def metric_scores(
    config: Config, outputs: Array, labels: Array, known: Array, *, num_classes: int
) -> Array:
  """Similarity of all rows to the prototypes of the labelled rows.

  Args:
    config: `metric` and `refinement_ratio` are used.
    outputs: float [N, D]; outputs of a network, or any features.
    labels: int [N]; read where `known` is 1.
    known: float [N]; 1 for labelled rows; all others may refine the prototypes.
    num_classes: C.

  Returns:
    s [N, C].
  """
  centres, counts = prototypes.prototypes(outputs, labels, known, num_classes=num_classes)
  if config.refinement_ratio:
    unlabelled = (known == 0).astype(outputs.dtype)
    centres = prototypes.refine(
        centres, counts, outputs, unlabelled, metric=config.metric, ratio=config.refinement_ratio)
  return prototypes.similarities(outputs, centres, metric=config.metric)
