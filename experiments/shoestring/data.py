"""The graph of a run, and its splits into a few labelled nodes and those that are tested."""

import dataclasses

import numpy as np

from experiments.shoestring.config import Shoestring
from jaxrl_llm.graphs import network, planetoid
from jaxrl_llm.runs import arms as arms_lib
from jaxrl_llm.runs import launch

PUBLIC = 'public'  # Used instead of a number of labels.


def load_graph(run: launch.Run) -> planetoid.Graph:
  """Loads the graph from the npz file that the first process of the run writes."""
  config = run.config

  def make():
    made = (config.blocks.make(config.seed) if config.dataset == 'blocks' else
            planetoid.load(config.data_dir, config.dataset))
    _check(config, planetoid.check(made))
    return dataclasses.asdict(made)

  identity = {'experiment': 'shoestring', 'dataset': config.dataset}
  if config.dataset == 'blocks':
    identity |= {'seed': config.seed, 'blocks': dataclasses.asdict(config.blocks)}
  return planetoid.from_arrays(arms_lib.finished(
      run.workdir / 'graph.npz', identity, make, commit=run.commit))


def _check(config: Shoestring, graph: planetoid.Graph) -> None:
  """Raises ValueError if the config does not suit this graph."""
  for labels in config.labels_per_class:
    planetoid.random_split(graph.labels, labels, config.seed)
  if config.public_split and not len(graph.train):
    raise ValueError(f'config.public_split must be False for {graph.name}, which has none')
  for backbone in config.chosen_backbones():
    network.check_size(network.BACKBONES[backbone], graph.num_nodes)


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
