"""Config of experiments/shoestring/."""

import dataclasses

from jaxrl_llm import checks
from jaxrl_llm.algorithms import shoestring
from jaxrl_llm.graphs import block_model, network, planetoid

DATASETS = ('cora', 'citeseer', 'blocks')
HEADS = ('softmax', 'cos', 'l1', 'l2')
AR_VARIANTS = ('igcn_ar', 'glp_ar')


@dataclasses.dataclass
class BlockModel:
  """The generated graph; fields as in `block_model.make_graph`."""

  num_classes: int = 4
  nodes_per_class: int = 150
  mean_degree: float = 4.0
  homophily: float = 0.8
  num_words: int = 400
  words_per_node: int = 12
  word_signal: float = 0.3

  def make(self, seed: int) -> planetoid.Graph:
    """Draws the graph."""
    return block_model.make_graph(seed=seed, **dataclasses.asdict(self))


@dataclasses.dataclass
class Shoestring:
  """One run of experiments/shoestring/, with all splits of an arm in parallel.

  Attributes:
    seed: seed of the first split (labelled nodes, weights and dropout) and of a generated graph.
    num_splits: number of splits, with seeds seed, seed + 1, ...
    data_dir: directory of the Planetoid files; '' for 'blocks'.
    dataset: 'cora', 'citeseer' or 'blocks'.
    blocks: the generated graph.
    backbones: comma-separated names from `graphs.network.BACKBONES`.
    heads: comma-separated list of 'softmax' (λ = 0), 'cos', 'l1', 'l2'.
    ar_heads: the heads for 'igcn_ar' and 'glp_ar', the variants of 'igcn' and 'glp' with another
      filter; heads not listed in `heads` are ignored.
    labels_per_class: values of n for the random splits.
    steps: epochs, each one optimizer step.
    learning_rate: learning rate of Adam.
    width: width of the hidden layer.
    dropout: dropout rate of both layers' inputs.
    algorithm: config of Shoestring; the arms set `metric`, and λ = 0 for 'softmax'.
    refinement_ratios: ratios of the final sweep, on every trained network.
    public_split: whether to run the plain GCN on the public split too.
    note: note for the reader, printed with the results.
  """

  seed: int = 0
  num_splits: int = 20
  data_dir: str = ''
  dataset: str = 'blocks'
  blocks: BlockModel = dataclasses.field(default_factory=BlockModel)
  backbones: str = 'lp,gcn,igcn,glp'
  heads: str = 'softmax,cos,l1,l2'
  ar_heads: str = 'softmax,cos,l1,l2'
  labels_per_class: tuple[int, ...] = (1, 2, 5, 20)
  steps: int = 200
  learning_rate: float = 0.01
  width: int = 16
  dropout: float = 0.5
  algorithm: shoestring.Config = dataclasses.field(default_factory=shoestring.Config)
  refinement_ratios: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)
  public_split: bool = False
  note: str = ''

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(self, 'config', seed=0, num_splits=1, steps=1, width=1)
    checks.one_of(self, 'config', dataset=DATASETS)
    checks.positive(self, 'config', 'learning_rate')

    if self.seed + self.num_splits > 2**31:
      raise ValueError('config.seed + config.num_splits must be at most 2**31, got '
                       f'{self.seed} + {self.num_splits}')
    if (self.dataset == 'blocks') == bool(self.data_dir):
      raise ValueError(
          "config.data_dir must be the directory of the Planetoid files, or '' for 'blocks', "
          f'got {self.data_dir!r} for {self.dataset!r}')

    checks.names_of(
        self, 'config', backbones=tuple(network.BACKBONES), heads=HEADS, ar_heads=HEADS)
    for name in ('heads', 'ar_heads'):
      if 'softmax' not in getattr(self, name).split(','):
        raise ValueError(f"config.{name} must contain 'softmax', which the others are compared "
                         f'with, got {getattr(self, name)!r}')

    checks.increasing(self, 'config', 'labels_per_class')
    checks.interval(self, 'config', '[0, 1)', 'dropout')
    self._validate_algorithm()
    if self.public_split and (self.dataset == 'blocks' or 'gcn' not in self.chosen_backbones()):
      raise ValueError("config.public_split must be False for 'blocks', which has none, and "
                       "without the backbone 'gcn', got True")

  def memory(self) -> dict[str, int]:
    """Returns the bytes that a run needs at least, by what needs them; see `runs.memory`."""
    blocks = self.blocks
    generated = self.dataset == 'blocks'
    nodes = blocks.num_classes * blocks.nodes_per_class if generated else 1
    features = blocks.num_words if generated else 1
    return {
        'the words of the graph (config.blocks)': nodes * 4 * blocks.words_per_node,
        'the networks of all splits (config.num_splits, config.width)':
            self.num_splits * 3 * 4 * features * self.width,
        'the hidden layers of all splits (config.num_splits, config.width)':
            self.num_splits * 4 * nodes * self.width,
        'the losses of all splits (config.steps)': self.num_splits * 4 * self.steps,
    }

  def _validate_algorithm(self) -> None:
    algorithm, name = self.algorithm, 'config.algorithm'
    algorithm.validate()
    checks.fixed(algorithm, name, 'here: config.heads selects the metrics', metric='cos')
    checks.positive(algorithm, name, 'metric_coefficient')  # It is 0 for the head 'softmax'.
    checks.fixed(algorithm, name, 'here: both evaluations are reported', leaky_eval=False)
    checks.fixed(
        algorithm, name, 'here: config.refinement_ratios lists the ratios', refinement_ratio=0)

    ratios = self.refinement_ratios
    if not all(0 <= ratio <= 1 for ratio in ratios) or list(ratios) != sorted(set(ratios)):
      raise ValueError(
          f'config.refinement_ratios must be in [0, 1] and increase, got {ratios}')

  def chosen_backbones(self) -> list[str]:
    """The backbones to run, in display order."""
    return [name for name in network.BACKBONES if name in self.backbones.split(',')]

  def chosen_heads(self, backbone: str) -> list[str]:
    """The heads to run on a backbone, in display order."""
    chosen = self.heads.split(',')
    if backbone in AR_VARIANTS:
      chosen = [name for name in chosen if name in self.ar_heads.split(',')]
    return [name for name in HEADS if name in chosen]
