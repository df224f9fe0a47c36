"""What the configs of the two studies of Shoestring can set."""

import dataclasses
import math

from experiments import settings
from jaxrl_llm.algorithms import shoestring
from jaxrl_llm.data import planetoid
from jaxrl_llm.models import graph
from jaxrl_llm.tasks import episodes as episodes_lib
from jaxrl_llm.tasks import graphs

DATASETS = ('cora', 'citeseer', 'blocks')
HEADS = ('softmax', 'cos', 'l1', 'l2')
AR_VARIANTS = ('igcn_ar', 'glp_ar')


@dataclasses.dataclass
class BlockModel:
  """The generated graph; fields as in `tasks.graphs.make_graph`."""

  num_classes: int = 4
  nodes_per_class: int = 150
  mean_degree: float = 4.0
  homophily: float = 0.8
  num_words: int = 400
  words_per_node: int = 12
  word_signal: float = 0.3

  def make(self, seed: int) -> planetoid.Graph:
    """Draws the graph."""
    return graphs.make_graph(seed=seed, **dataclasses.asdict(self))


@dataclasses.dataclass
class Shoestring:
  """One run of experiments/shoestring.py; all splits of an arm side by side.

  Attributes:
    seed: of the first split: its labelled nodes, weights and dropout; and of a generated graph.
    num_splits: seed, seed + 1, ...
    data_dir: the folder of the Planetoid files; none for 'blocks'.
    dataset: 'cora', 'citeseer' or 'blocks'.
    blocks: the generated graph.
    backbones: names from `models.graph.BACKBONES` with commas between them.
    heads: 'softmax' (λ = 0), 'cos', 'l1', 'l2' with commas between them.
    ar_heads: those of them that 'igcn_ar' and 'glp_ar' are run with, the variants of 'igcn' and
      'glp' with another filter.
    labels_per_class: n of the random splits.
    steps: epochs, each one optimizer step.
    learning_rate: of Adam.
    width: of the hidden layer.
    dropout: of both layers' inputs.
    algorithm: settings of Shoestring; the arms set `metric`, and λ = 0 for 'softmax'.
    refinement_ratios: of the closing sweep, on every trained network.
    public_split: whether the plain GCN is run on the public split too.
    note: what a reader must know; printed with the results.
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
    """Raises ValueError with one line for the first field that is out of range."""
    settings.at_least(self, 'config', seed=0, num_splits=1, steps=1, width=1)
    if self.dataset not in DATASETS:
      raise ValueError(
          f'config.dataset must be one of {", ".join(DATASETS)}, got {self.dataset!r}')
    if self.seed + self.num_splits > 2**31:
      raise ValueError('config.seed + config.num_splits must be at most 2**31, got '
                       f'{self.seed} + {self.num_splits}')
    if (self.dataset == 'blocks') == bool(self.data_dir):
      raise ValueError(
          "config.data_dir must name the folder of the Planetoid files, and be '' for 'blocks', "
          f'got {self.data_dir!r} for {self.dataset!r}')
    for name, allowed in (('backbones', tuple(graph.BACKBONES)), ('heads', HEADS),
                          ('ar_heads', HEADS)):
      chosen = getattr(self, name).split(',')
      if not set(chosen) <= set(allowed) or len(set(chosen)) < len(chosen):
        raise ValueError(f'config.{name} must be some of {", ".join(allowed)}, each once, got '
                         f'{getattr(self, name)!r}')
    for name in ('heads', 'ar_heads'):
      if 'softmax' not in getattr(self, name).split(','):
        raise ValueError(f"config.{name} must contain 'softmax', which the others are compared "
                         f'with, got {getattr(self, name)!r}')
    counts = self.labels_per_class
    if not counts or min(counts) < 1 or list(counts) != sorted(set(counts)):
      raise ValueError(f'config.labels_per_class must be positive and increasing, got {counts}')
    if not 0 < self.learning_rate < math.inf:
      raise ValueError(
          f'config.learning_rate must be positive and finite, got {self.learning_rate}')
    if not 0 <= self.dropout < 1:
      raise ValueError(f'config.dropout must lie in [0, 1), got {self.dropout}')
    self._validate_algorithm()
    if self.public_split and (self.dataset == 'blocks' or 'gcn' not in self.chosen_backbones()):
      raise ValueError("config.public_split must be False for 'blocks', which has none, and "
                       "without the backbone 'gcn', got True")

  def _validate_algorithm(self) -> None:
    self.algorithm.validate()
    if self.algorithm.metric != 'cos':
      raise ValueError("config.algorithm.metric must be 'cos' here (config.heads says which), got "
                       f'{self.algorithm.metric!r}')
    if not self.algorithm.metric_coefficient > 0:
      raise ValueError("config.algorithm.metric_coefficient must be positive here (the head "
                       f"'softmax' is 0), got {self.algorithm.metric_coefficient}")
    for name, needed, why in (
        ('leaky_eval', False, 'both evaluations are reported'),
        ('refinement_ratio', 0, 'config.refinement_ratios says which are tried'),
    ):
      if getattr(self.algorithm, name) != needed:
        raise ValueError(f'config.algorithm.{name} must be {needed!r} here ({why}), got '
                         f'{getattr(self.algorithm, name)!r}')
    ratios = self.refinement_ratios
    if not all(0 <= ratio <= 1 for ratio in ratios) or list(ratios) != sorted(set(ratios)):
      raise ValueError(
          f'config.refinement_ratios must lie in [0, 1] and increase, got {ratios}')

  def chosen_backbones(self) -> list[str]:
    """The backbones to run, in the order in which they are shown."""
    return [name for name in graph.BACKBONES if name in self.backbones.split(',')]

  def chosen_heads(self, backbone: str) -> list[str]:
    """The heads to run on a backbone, in the order in which they are shown."""
    chosen = self.heads.split(',')
    if backbone in AR_VARIANTS:
      chosen = [name for name in chosen if name in self.ar_heads.split(',')]
    return [name for name in HEADS if name in chosen]


@dataclasses.dataclass
class GeneratedFeatures:
  """Features for a machine without image features; fields as in `episodes.make_features`."""

  num_classes: int = 20
  per_class: int = 100
  width: int = 64
  spread: float = 0.22
  curvature: float = 0.4


@dataclasses.dataclass
class FewShot:
  """One run of experiments/shoestring_few_shot.py.

  Attributes:
    seed: of the episodes, and of generated features, weights and dropout.
    data_dir: the folder of `features_file`; '' generates features.
    features_file: an npz with 'features' [M, D] and 'labels' [M] of novel classes, made by
      whatever network; '' generates features.
    generated: the generated features.
    way: classes of an episode.
    shots: labelled examples a class; each is a study of its own.
    queries: unlabelled examples a class, which are classified together.
    episodes: how many.
    batch_size: episodes side by side; divides `episodes`.
    neighbours: k of the graph.
    label_alpha: α of label propagation. In so small a graph 100, as for citation graphs, lets the
      class of the best-connected labelled example take over.
    feature_alpha: α of the filter in front of the prototypes.
    refinement_ratio: of the arm with refined prototypes.
    steps: of the graph network; each episode trains its own.
    learning_rate: of Adam.
    width: of the hidden layer.
    dropout: of both layers' inputs.
    algorithm: settings of Shoestring; its metric is that of all arms with prototypes.
    note: what a reader must know; printed with the results.
  """

  seed: int = 0
  data_dir: str = ''
  features_file: str = ''
  generated: GeneratedFeatures = dataclasses.field(default_factory=GeneratedFeatures)
  way: int = 5
  shots: tuple[int, ...] = (1, 5)
  queries: int = 15
  episodes: int = 600
  batch_size: int = 100
  neighbours: int = 10
  label_alpha: float = 10.0
  feature_alpha: float = 5.0
  refinement_ratio: float = 0.1
  steps: int = 100
  learning_rate: float = 0.01
  width: int = 16
  dropout: float = 0.5
  algorithm: shoestring.Config = dataclasses.field(default_factory=shoestring.Config)
  note: str = ''

  def validate(self) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    settings.at_least(self, 'config', seed=0, way=2, queries=1, episodes=2, batch_size=1,
                      neighbours=1, steps=1, width=1)
    if self.seed >= 2**32:
      raise ValueError(f'config.seed must be less than 2**32, got {self.seed}')
    if not self.shots or min(self.shots) < 1 or list(self.shots) != sorted(set(self.shots)):
      raise ValueError(f'config.shots must be positive and increasing, got {self.shots}')
    if bool(self.data_dir) != bool(self.features_file):
      raise ValueError('config.data_dir and config.features_file must be given both or neither, '
                       f'got {self.data_dir!r} and {self.features_file!r}')
    if self.episodes % self.batch_size:
      raise ValueError(f'config.episodes must be divided by config.batch_size '
                       f'({self.batch_size}), got {self.episodes}')
    nodes = self.way * (min(self.shots) + self.queries)
    if self.neighbours >= nodes:
      raise ValueError(f'config.neighbours must be less than the {nodes} nodes of an episode, got '
                       f'{self.neighbours}')
    for name in ('label_alpha', 'feature_alpha', 'learning_rate'):
      if not 0 < getattr(self, name) < math.inf:
        raise ValueError(f'config.{name} must be positive and finite, got {getattr(self, name)}')
    if not 0 <= self.dropout < 1:
      raise ValueError(f'config.dropout must lie in [0, 1), got {self.dropout}')
    if not 0 <= self.refinement_ratio <= 1:
      raise ValueError(
          f'config.refinement_ratio must lie in [0, 1], got {self.refinement_ratio}')
    self.algorithm.validate()
    for name, needed in (('leaky_eval', False), ('refinement_ratio', 0)):
      if getattr(self.algorithm, name) != needed:
        raise ValueError(f'config.algorithm.{name} must be {needed!r} here, got '
                         f'{getattr(self.algorithm, name)!r}')

  def features(self) -> episodes_lib.Features:
    """The features that episodes are drawn from."""
    if not self.features_file:
      return episodes_lib.make_features(seed=self.seed, **dataclasses.asdict(self.generated))
    return episodes_lib.read_features(f'{self.data_dir}/{self.features_file}')
