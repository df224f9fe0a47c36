"""One head on any backbone: how it is trained, and how its outputs are read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shoestring.config import Shoestring
from experiments.shoestring.data import Split
from jaxrl_llm.algorithms import shoestring
from jaxrl_llm.graphs import network, planetoid
from jaxrl_llm.training import loop, optim, rng
from jaxrl_llm.types import WeightedMean

CHUNK = 20  # Epochs between progress updates.


class Trainer:
  """One head on any backbone: written for one split, vmapped over all splits."""

  def __init__(self, config: Shoestring, graph: planetoid.Graph, algorithm: shoestring.Config):
    self._config = config
    self._network = network.make(
        num_features=graph.num_features, width=config.width, num_classes=graph.num_classes,
        dropout=config.dropout)
    optimizer = optim.make_optimizer(optim.OptimizerConfig(
        name='adam', learning_rate=config.learning_rate, max_grad_norm=0.0))
    self._algorithm = shoestring.make(algorithm, self._network, optimizer)
    self._advances = jax.jit(self._advance, static_argnums=(2, 3), donate_argnums=0)
    self._outputs = jax.jit(jax.vmap(
        lambda state, inputs: self._network.apply(state.params['network'], inputs), (0, None)))

  def start(self):
    """Initial states, one per seed, shared by all heads, numbers of labels and backbones."""
    def state(key):
      params = self._network.init(rng.stream_key(key, rng.INIT))
      return self._algorithm.init(rng.stream_key(key, rng.DROPOUT), {'network': params})

    first = self._config.seed
    keys = [rng.base_key(seed) for seed in range(first, first + self._config.num_splits)]
    return jax.jit(jax.vmap(state))(jnp.stack(keys))

  def _advance(self, states, batch: shoestring.Batch, axes: network.Inputs, steps: int):
    """Runs `steps` epochs of all splits; inputs that the splits share have no split axis."""
    step = jax.vmap(self._algorithm.train_step, in_axes=(0, shoestring.Batch(axes, 0, 0)))
    return jax.lax.scan(lambda states, _: step(states, batch), states, length=steps)

  def train(
      self, states, inputs: network.Inputs, labels: np.ndarray, split: Split, bar, title: str):
    """Runs all epochs; returns the final outputs [S, N, C] and the loss by epoch [S, steps]."""
    config, states = self._config, jax.tree.map(jnp.copy, states)
    picked, axes = network.inputs_of_rows(inputs, split.train)
    batch = jax.device_put(shoestring.Batch(
        picked, labels[split.train], np.ones(split.train.shape, np.float32)))

    losses = []
    for begin in range(0, config.steps, CHUNK):
      steps = min(CHUNK, config.steps - begin)
      states, update = self._advances(states, batch, axes, steps)
      losses.append(np.asarray(jax.vmap(jax.vmap(WeightedMean.value))(update['train/loss'])).T)
      loop.check_updates(states.step, begin + steps, learning_rate='config.learning_rate')
      mean = float(losses[-1][:, -1].mean())
      bar.update(steps, arm=title, loss=mean)

    outputs = np.asarray(self._outputs(states, jax.device_put(inputs)))
    return outputs, np.concatenate(losses, axis=1)


def make_reader(
    config: Shoestring, algorithm: shoestring.Config, other_metrics: tuple[str, ...] = ()
):
  """Makes a jitted function for the accuracy by each way of reading the outputs.

  Args:
    config: `refinement_ratios` is used.
    algorithm: config of Shoestring for the arm.
    other_metrics: further metrics to read the outputs with.

  Returns:
    (outputs [S, N, C], labels [N], train [S, N], test [S, N]) -> [S] by name: 'softmax',
    'prototypes', 'mixed'; 'leaky' and 'leaky_mixed' with prototypes of the test labels;
    'refined_0.1' and so on (honest); 'prototypes_l1' and 'leaky_l1' with another metric.
  """
  def read(*arrays):
    def evaluate(**changes):
      return shoestring.evaluate(dataclasses.replace(algorithm, **changes), *arrays)

    honest, leaky = evaluate(), evaluate(leaky_eval=True)
    refined = {f'refined_{ratio:g}': evaluate(refinement_ratio=ratio)['metric']
               for ratio in config.refinement_ratios}
    others = {f'{name}_{metric}': evaluate(metric=metric, leaky_eval=is_leaky)['metric']
              for metric in other_metrics
              for name, is_leaky in (('prototypes', False), ('leaky', True))}
    return {'softmax': honest['softmax'], 'prototypes': honest['metric'], 'mixed': honest['mixed'],
            'leaky': leaky['metric'], 'leaky_mixed': leaky['mixed'], **refined, **others}

  return jax.jit(jax.vmap(read, (0, None, 0, 0)))
