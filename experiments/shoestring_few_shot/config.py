"""Config of experiments/shoestring_few_shot/."""

import dataclasses

from jaxrl_llm import checks
from jaxrl_llm.algorithms import shoestring
from jaxrl_llm.graphs import episodes as episodes_lib


@dataclasses.dataclass
class GeneratedFeatures:
  """Generated features, if no image features are available; fields as in `make_features`."""

  num_classes: int = 20
  per_class: int = 100
  width: int = 64
  spread: float = 0.22
  curvature: float = 0.4


@dataclasses.dataclass
class FewShot:
  """One run of experiments/shoestring_few_shot/.

  Attributes:
    seed: seed of the episodes, and of generated features, weights and dropout.
    data_dir: directory of `features_file`; '' generates features.
    features_file: an npz with 'features' [M, D] and 'labels' [M] of novel classes, made by any
      network; '' generates features.
    generated: the generated features.
    way: classes per episode.
    shots: labelled examples per class; each value is a separate study.
    queries: unlabelled examples per class, which are classified together.
    episodes: number of episodes.
    batch_size: episodes in parallel; divides `episodes`.
    neighbours: k of the graph.
    label_alpha: α of label propagation. In such a small graph 100, as for citation graphs, lets the
      class of the best-connected labelled example take over.
    feature_alpha: α of the filter before the prototypes.
    refinement_ratio: ratio for the arm with refined prototypes.
    steps: training steps of the graph network; each episode trains its own.
    learning_rate: learning rate of Adam.
    width: width of the hidden layer.
    dropout: dropout rate of both layers' inputs.
    algorithm: config of Shoestring; all arms with prototypes use its metric.
    note: note for the reader, printed with the results.
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
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(
        self, 'config', seed=0, way=2, queries=1, episodes=2, batch_size=1, neighbours=1, steps=1,
        width=1)
    checks.positive(self, 'config', 'label_alpha', 'feature_alpha', 'learning_rate')
    checks.fraction(self, 'config', 'refinement_ratio')
    checks.interval(self, 'config', '[0, 1)', 'dropout')
    checks.increasing(self, 'config', 'shots')
    checks.divisible(self, 'config', 'episodes', self.batch_size, of='config.batch_size')

    if self.seed >= 2**32:
      raise ValueError(f'config.seed must be less than 2**32, got {self.seed}')
    if bool(self.data_dir) != bool(self.features_file):
      raise ValueError('config.data_dir and config.features_file must be given both or neither, '
                       f'got {self.data_dir!r} and {self.features_file!r}')

    nodes = self.way * (min(self.shots) + self.queries)
    if self.neighbours >= nodes:
      raise ValueError(f'config.neighbours must be less than the {nodes} nodes of an episode, got '
                       f'{self.neighbours}')

    self.algorithm.validate()
    checks.fixed(
        self.algorithm, 'config.algorithm', 'here', leaky_eval=False, refinement_ratio=0)

  def memory(self) -> dict[str, int]:
    """Returns the bytes that a run needs at least, by what needs them; see `runs.memory`."""
    nodes, generated = self.way * (min(self.shots) + self.queries), self.generated
    features = generated.num_classes * generated.per_class * generated.width
    return {
        'the generated features (config.generated)': 0 if self.features_file else 4 * features,
        'the episodes (config.episodes)': self.episodes * 4 * nodes,
        'the hidden layers of a batch (config.batch_size, config.width)':
            self.batch_size * 4 * nodes * self.width,
        'the losses of a batch (config.steps)': self.batch_size * 4 * self.steps,
    }

  def features(self) -> episodes_lib.Features:
    """The features that episodes are drawn from."""
    if not self.features_file:
      return episodes_lib.make_features(seed=self.seed, **dataclasses.asdict(self.generated))
    return episodes_lib.read_features(f'{self.data_dir}/{self.features_file}')
