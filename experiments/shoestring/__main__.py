"""Shoestring: node classification with very few labels per class, honest and as released.

Each backbone of the config is trained with each head (none, or a metric head) on random splits with
n labels per class, and tested on all other labelled nodes. One network is read in several ways: by
its softmax, by prototypes of the training labels (honest), and by prototypes of the test labels (as
in the released code; `leaky`). The splits of an arm run in parallel; finished arms are saved: the
same command resumes with the next one.
"""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shoestring import criteria as shoestring_criteria
from experiments.shoestring import report as shoestring_report
from experiments.shoestring.config import Shoestring
from jaxrl_llm.algorithms import shoestring
from jaxrl_llm.graphs import network, planetoid
from jaxrl_llm.graphs.prototypes import METRICS
from jaxrl_llm.runs import arms as arms_lib
from jaxrl_llm.runs import artefacts, criteria, launch
from jaxrl_llm.training import loop, metrics, optim, rng
from jaxrl_llm.types import WeightedMean

CHUNK = 20  # Epochs between progress updates.
PUBLIC = 'public'  # Used instead of a number of labels.


@dataclasses.dataclass(frozen=True)
class Split:
  """Stacked splits: train int [S, L], test float32 [S, N]."""

  train: np.ndarray
  test: np.ndarray

  def train_mask(self) -> np.ndarray:
    """float32 [S, N]; 1 at training nodes."""
    mask = np.zeros_like(self.test)
    np.put_along_axis(mask, self.train, 1, axis=1)
    return mask


def make_split(config: Shoestring, graph: planetoid.Graph, labels: int | str) -> Split:
  """Splits of all seeds with `labels` labels per class, or as many copies of the public split."""
  several = range(config.seed, config.seed + config.num_splits)
  pairs = [(graph.train, graph.test) if labels == PUBLIC else
           planetoid.random_split(graph.labels, labels, seed) for seed in several]
  test = np.zeros((config.num_splits, graph.num_nodes), np.float32)
  for mask, (_, nodes) in zip(test, pairs):
    mask[nodes] = 1
  return Split(np.stack([train for train, _ in pairs]), test)


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


class Study:
  """All arms of a run; finished arms are read from disk instead of trained."""

  def __init__(self, run: launch.Run):
    self._run, self._config = run, run.config
    self._graph = self._load()
    self._graph_digest = artefacts.digest(dataclasses.asdict(self._graph))
    self._adjacency = network.normalised_adjacency(self._graph.edges, self._graph.num_nodes)
    self._trainers: dict[str, Trainer] = {}
    self._readers: dict[str, Any] = {}
    self._states = None
    self._inputs: tuple[str, network.Inputs] | None = None

  def _load(self) -> planetoid.Graph:
    """Loads the graph from the npz file that the first process of the run writes."""
    config = self._config

    def make():
      made = (config.blocks.make(config.seed) if config.dataset == 'blocks' else
              planetoid.load(config.data_dir, config.dataset))
      self._check(planetoid.check(made))
      return dataclasses.asdict(made)

    identity = {'experiment': 'shoestring', 'dataset': config.dataset}
    if config.dataset == 'blocks':
      identity |= {'seed': config.seed, 'blocks': dataclasses.asdict(config.blocks)}
    return planetoid.from_arrays(arms_lib.finished(
        self._run.workdir / 'graph.npz', identity, make, commit=self._run.commit))

  def _check(self, graph: planetoid.Graph) -> None:
    """Raises ValueError if the config does not suit this graph."""
    for labels in self._config.labels_per_class:
      planetoid.random_split(graph.labels, labels, self._config.seed)
    if self._config.public_split and not len(graph.train):
      raise ValueError(f'config.public_split must be False for {graph.name}, which has none')
    for backbone in self._config.chosen_backbones():
      network.check_size(network.BACKBONES[backbone], graph.num_nodes)

  def _trainer(self, head: str, **changes) -> Trainer:
    name = head + str(changes)
    if name not in self._trainers:
      self._trainers[name] = Trainer(
          self._config, self._graph, dataclasses.replace(self._algorithm(head), **changes))
    return self._trainers[name]

  def _train(self, trainer: Trainer, *arguments):
    if self._states is None:
      self._states = trainer.start()
    return trainer.train(self._states, *arguments)

  def _read(self, head: str, outputs: np.ndarray, split: Split) -> dict[str, np.ndarray]:
    """Reads outputs; at λ = 0 with every metric, so that each head has an equal comparison."""
    if head not in self._readers:
      others = tuple(m for m in METRICS if m != 'cos') if head == 'softmax' else ()
      self._readers[head] = make_reader(self._config, self._algorithm(head), others)
    accuracies = self._readers[head](outputs, self._graph.labels, split.train_mask(), split.test)
    return {name: np.asarray(value, np.float64) for name, value in accuracies.items()}

  def _algorithm(self, head: str) -> shoestring.Config:
    if head == 'softmax':
      return dataclasses.replace(self._config.algorithm, metric_coefficient=0.0)
    return dataclasses.replace(self._config.algorithm, metric=head)

  def _full_inputs(self, backbone: str) -> network.Inputs:
    """Inputs of a backbone; cached for one backbone at a time, as the filters are large."""
    if self._inputs is None or self._inputs[0] != backbone:
      graph = self._graph
      self._inputs = backbone, network.full_inputs(
          network.BACKBONES[backbone], self._adjacency,
          network.SparseRows(graph.indices, graph.values), graph.num_features)
    return self._inputs[1]

  def _play(self, backbone: str, head: str, labels: int | str, bar, title: str, **changes):
    """Runs one arm."""
    graph, split = self._graph, make_split(self._config, self._graph, labels)
    if _is_propagation(backbone):
      outputs = network.label_propagation(
          network.BACKBONES[backbone], self._adjacency, graph.labels, split.train,
          graph.num_classes)
      unreached = split.test * network.unreached(outputs)
      more = {'loss': np.zeros((len(outputs), 0)),
              'unreached': unreached.sum(axis=1) / split.test.sum(axis=1)}
      bar.update(0, arm=title)
    else:
      outputs, losses = self._train(
          self._trainer(head, **changes), self._full_inputs(backbone), graph.labels, split, bar,
          title)
      more = {'loss': losses}
    return self._read(head, outputs, split) | more

  def arms(self) -> list[tuple[str, str, int | str, dict]]:
    """(backbone, head, labels, config changes) of every arm, in running order."""
    config = self._config
    arms = [(backbone, head, labels, {}) for backbone in config.chosen_backbones()
              for head in config.chosen_heads(backbone)
              for labels in config.labels_per_class]
    if config.public_split:
      arms += [('gcn', 'softmax', PUBLIC, {'decay': decay}) for decay in ('all', 'first')]
    return arms

  def play(self) -> dict[tuple[str, ...], dict[str, np.ndarray]]:
    """Runs all arms; arrays by (backbone, head, 'n1' and so on, or 'public/all' and so on)."""
    outcomes, arms = {}, self.arms()
    trained = [arm for arm in arms if not _is_propagation(arm[0])]

    with loop.progress(self._config.steps * len(trained), 'epochs') as bar:
      for backbone, head, labels, changes in arms:
        last = f'{PUBLIC}/{changes["decay"]}' if labels == PUBLIC else f'n{labels}'
        title = f'{backbone}_{head}_{last}'.replace('/', '_')
        path = self._run.workdir / 'arms' / f'{title}.npz'
        if path.exists() and not _is_propagation(backbone):
          bar.update(self._config.steps, arm=title)

        identity = arms_lib.identity_of(
            'shoestring', self._config, arm=title, graph=self._graph_digest)
        outcomes[backbone, head, last] = arms_lib.finished(path, identity, functools.partial(
            self._play, backbone, head, labels, bar, title, **changes), commit=self._run.commit)
        self._run.save_clock()
    return outcomes


def _is_propagation(backbone: str) -> bool:
  return network.BACKBONES[backbone].where == 'labels'


def write_metrics(run: launch.Run, outcomes: dict[tuple[str, ...], dict[str, np.ndarray]]) -> None:
  """Writes the loss of every arm by epoch, means over splits, to metrics.jsonl."""
  with contextlib.closing(metrics.MetricsWriter(run.workdir)) as writer:
    writer.truncate([])
    for step in sorted({*range(0, run.config.steps, CHUNK), run.config.steps - 1}):
      writer.write(step, {f'train/{"/".join(name)}/loss': arm['loss'][:, step].mean()
                          for name, arm in outcomes.items() if arm['loss'].size})


def main(run: launch.Run) -> None:
  """Runs all arms and writes the table, the figure and results.json."""
  config = run.config
  outcomes = Study(run).play()
  numbers = shoestring_report.summarise(outcomes)
  findings = shoestring_criteria.findings(config.dataset, outcomes)

  write_metrics(run, outcomes)
  shoestring_report.write_figure(run.workdir / 'figures' / 'accuracy.png', outcomes)
  shoestring_report.write_splits(run.workdir / 'accuracy_by_split.csv', outcomes, config.seed)

  report = '\n\n'.join(filter(None, [
      shoestring_report.table(outcomes), shoestring_report.differences(outcomes),
      shoestring_report.refinement(outcomes, config.refinement_ratios),
      criteria.markdown(findings), config.note]))

  metrics.write_text_atomic(run.table_path, report + '\n')
  launch.write_results(run, {
      **numbers, **{f'criteria/{f.name}': float(f.holds) for f in findings if f.holds is not None},
      'dataset': config.dataset, 'num_splits': config.num_splits, 'sampled_tokens': 0,
  })
  print(f'\n{report}\n\nfigure: {run.workdir / "figures" / "accuracy.png"}\n'
        f'results: {run.results_path}')


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/shoestring_blocks.py')
