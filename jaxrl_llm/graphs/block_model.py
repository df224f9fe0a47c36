"""A stochastic block model with words: a graph for machines without the citation data.

Nodes of the same class are joined with probability p, nodes of different classes with q < p. Each
node has `words_per_node` distinct words; with probability `word_signal` a word is drawn from those
of the node's class, otherwise from all. Neither the words nor the edges of a node determine its
class; together they nearly do.
"""

import numpy as np

from jaxrl_llm.graphs import planetoid


def make_graph(
    *,
    seed: int,
    num_classes: int = 4,
    nodes_per_class: int = 150,
    mean_degree: float = 4.0,
    homophily: float = 0.8,
    num_words: int = 400,
    words_per_node: int = 12,
    word_signal: float = 0.3,
) -> planetoid.Graph:
  """Draws a graph; a pure function of its arguments.

  Args:
    seed: random seed for all draws.
    num_classes: C ≥ 2.
    nodes_per_class: at least 2.
    mean_degree: expected number of neighbours of a node.
    homophily: expected fraction of edges within a class, in [0, 1].
    num_words: F, divisible by C; each class has F / C words of its own.
    words_per_node: at most F / C.
    word_signal: in [0, 1]; probability that a word is drawn from the class's own words.

  Returns:
    The graph, with all nodes labelled and no public split.

  Raises:
    ValueError: if an argument is out of range.
  """
  _require_at_least(num_classes=(num_classes, 2), nodes_per_class=(nodes_per_class, 2),
                    words_per_node=(words_per_node, 1))
  for name, value in (('homophily', homophily), ('word_signal', word_signal)):
    if not 0 <= value <= 1:
      raise ValueError(f'{name} must be in [0, 1], got {value}')

  if num_words % num_classes or num_words // num_classes < words_per_node:
    raise ValueError(
        f'num_words must be divisible by {num_classes}, with at least {words_per_node} words per '
        f'class, got {num_words}')

  num_nodes = num_classes * nodes_per_class
  within = mean_degree * homophily / (nodes_per_class - 1)
  between = mean_degree * (1 - homophily) / (num_nodes - nodes_per_class)
  if not (mean_degree >= 0 and max(within, between) <= 1):
    raise ValueError(
        'mean_degree must be non-negative and give edge probabilities of at most 1, got '
        f'{mean_degree}')

  rng = np.random.default_rng([seed, 37])
  labels = rng.permutation(np.repeat(np.arange(num_classes, dtype=np.int32), nodes_per_class))
  first, second = np.triu_indices(num_nodes, 1)
  probability = np.where(labels[first] == labels[second], within, between)
  joined = rng.random(len(first)) < probability

  rows = [_draw_words(label, rng, num_words, num_words // num_classes, words_per_node, word_signal)
          for label in labels]
  indices, values = planetoid.pad_rows([(row, np.ones(len(row))) for row in rows], num_words)
  none = np.zeros(0, np.int32)
  return planetoid.Graph(
      name='blocks', edges=np.stack([first[joined], second[joined]], axis=1).astype(np.int32),
      indices=indices, values=values, labels=labels, num_features=num_words,
      num_classes=num_classes, train=none, validation=none, test=none)


def _require_at_least(**values: tuple[int, int]) -> None:
  """Raises ValueError for the first (value, least) that is too small."""
  for name, (value, least) in values.items():
    if value < least:
      raise ValueError(f'{name} must be at least {least}, got {value}')


def _draw_words(
    label: int, rng: np.random.Generator, num_words: int, own: int, count: int, signal: float
) -> np.ndarray:
  """Draws the distinct words of a node, [count]."""
  num_own = int(rng.binomial(count, signal))
  mine = label * own + rng.permutation(own)[:num_own]
  others = rng.permutation(num_words)
  return np.concatenate([mine, others[~np.isin(others, mine)][: count - num_own]])
