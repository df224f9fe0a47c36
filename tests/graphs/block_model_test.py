"""The generated graph."""

import dataclasses

import numpy as np
import pytest

from jaxrl_llm.graphs import block_model


def test_edges_and_words_follow_the_classes():
  graph = block_model.make_graph(
      seed=0, num_classes=4, nodes_per_class=200, mean_degree=6.0, homophily=.7, num_words=80,
      words_per_node=10, word_signal=.5)
  assert (graph.num_nodes, graph.num_features, graph.num_classes) == (800, 80, 4)
  np.testing.assert_array_equal(np.bincount(graph.labels), [200] * 4)
  assert (graph.edges[:, 0] < graph.edges[:, 1]).all()
  assert len(np.unique(graph.edges, axis=0)) == len(graph.edges)
  assert 2 * len(graph.edges) / 800 == pytest.approx(6, abs=.5)
  same = graph.labels[graph.edges[:, 0]] == graph.labels[graph.edges[:, 1]]
  assert same.mean() == pytest.approx(.7, abs=.04)

  # Ten different words each: of the class's 20 half by design, and of the others those that are
  # drawn from the 80 - 5 that are left, of which 15 are the class's own: .5 + .5 * 15 / 75.
  np.testing.assert_allclose(graph.values, .1)
  assert all(len(set(row)) == 10 for row in graph.indices)
  own = (graph.indices // 20 == graph.labels[:, None]).mean()
  assert own == pytest.approx(.6, abs=.02)


def test_without_signal_neither_edges_nor_words_tell_the_class():
  graph = block_model.make_graph(
      seed=1, num_classes=4, nodes_per_class=200, mean_degree=6.0, homophily=199 / 799,
      num_words=80, words_per_node=10, word_signal=0.0)
  same = graph.labels[graph.edges[:, 0]] == graph.labels[graph.edges[:, 1]]
  assert same.mean() == pytest.approx(.25, abs=.04)
  assert (graph.indices // 20 == graph.labels[:, None]).mean() == pytest.approx(.25, abs=.02)


def test_it_is_a_function_of_its_seed():
  small = dict(nodes_per_class=10, num_words=40, words_per_node=4)
  first, again, other = (block_model.make_graph(seed=seed, **small) for seed in (0, 0, 1))
  for name, value in dataclasses.asdict(first).items():
    np.testing.assert_array_equal(value, getattr(again, name))
  assert not np.array_equal(first.labels, other.labels)
  assert len(first.train) == len(first.validation) == len(first.test) == 0


@pytest.mark.parametrize('field, value, words', [
    ('num_classes', 1, 'num_classes must be at least 2, got 1'),
    ('nodes_per_class', 1, 'nodes_per_class must be at least 2, got 1'),
    ('words_per_node', 0, 'words_per_node must be at least 1, got 0'),
    ('homophily', 1.5, r'homophily must be in \[0, 1\], got 1.5'),
    ('word_signal', -.1, r'word_signal must be in \[0, 1\], got -0.1'),
    ('num_words', 401, 'num_words must be divisible by 4'),
    ('num_words', 40, 'at least 12 words per class, got 40'),
    ('mean_degree', 500.0, 'mean_degree must be non-negative and give edge prob.*got 500'),
    ('mean_degree', -1.0, 'mean_degree must be non-negative'),
    ('mean_degree', float('nan'), 'mean_degree must be non-negative'),
])
def test_bad_arguments_are_one_line_errors(field, value, words):
  with pytest.raises(ValueError, match=words):
    block_model.make_graph(seed=0, **{field: value})


@pytest.mark.parametrize('homophily', [0.0, 1.0])
def test_a_negative_degree_is_rejected_at_either_end_of_homophily(homophily):
  with pytest.raises(ValueError, match='mean_degree must be non-negative .*got -3'):
    block_model.make_graph(seed=0, mean_degree=-3.0, homophily=homophily)
