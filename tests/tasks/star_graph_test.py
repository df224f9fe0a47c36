"""Star graphs: their form, lengths of the released data, leaks, and the reward against junk."""

import collections
import itertools

import numpy as np
import pytest

from jaxrl_llm.tasks import config as config_lib
from jaxrl_llm.tasks import star_graph

SMALL = dict(num_demonstrations=1_500, num_train=300, num_evaluation=200)


@pytest.fixture(scope='module')
def task():
  return star_graph.Config(**SMALL).make(seed=0)


def _edges(example, separator=''):
  """Pairs of labels in the order of the prompt, and (start, goal)."""
  graph, query = example['prompt'].rstrip('=').split('/')
  parts = graph.split(separator) if separator else [
      graph[i : i + 2] for i in range(0, len(graph), 2)]
  split = lambda text: tuple(text.split(',') if ',' in text else text)
  return [split(part) for part in parts], split(query)


def test_the_answer_is_the_only_path_to_the_goal(task):
  for example in task.train:
    edges, (start, goal) = _edges(example)
    assert len(edges) == 6 and len(set(itertools.chain(*edges))) == 7
    before = {v: u for u, v in edges}
    path = [goal]
    while path[0] != start:
      path.insert(0, before[path[0]])
    assert ''.join(path) == example['answer'] and len(path) == 4
    assert collections.Counter(u for u, _ in edges)[start] == 2
    assert goal not in {u for u, _ in edges}


@pytest.mark.parametrize('degree, length, prompt, response', [
    (2, 5, 36, 9), (5, 5, 84, 9), (3, 8, 88, 15)])
def test_lengths_are_those_of_the_released_data(degree, length, prompt, response, data_dir):
  task = star_graph.Config(
      degree=degree, length=length, num_labels=50, separators=True, num_demonstrations=3,
      num_train=3, num_evaluation=3, tokenizer_dir=str(data_dir / 'tokenizers' / 'gpt2'),
  ).make(seed=0)
  assert (task.max_prompt_tokens, task.max_response_tokens) == (prompt, response + 1)
  for example in task.train + task.evaluation:
    assert len(task.tokenizer.encode(example['prompt'])) == prompt
    assert len(task.tokenizer.encode(example['answer'])) == response
    edges, (start, _) = _edges(example, '|')
    assert collections.Counter(u for u, _ in edges)[start] == degree


def test_no_graph_is_in_two_sets(task):
  def key(example):
    edges, query = _edges(example)
    return frozenset(edges), query

  sets = [{key(e) for e in part} for part in (task.demonstrations, task.train, task.evaluation)]
  assert [len(part) for part in sets] == [1_500, 300, 200]
  assert not any(a & b for a, b in itertools.combinations(sets, 2))
  assert {e['id'] for e in task.evaluation} == set(range(200))
  more = star_graph.Config(**{**SMALL, 'num_train': 400}).make(seed=0)
  assert {key(e) for e in more.evaluation} == sets[2]


def test_nothing_but_the_edges_tells_the_branches_apart(task):
  """Position of the branch's first edge, and order of the labels of both second nodes."""
  first, smaller = [], []
  for example in task.demonstrations:
    edges, _ = _edges(example)
    right, wrong = ((example['branches'][i][0], example['branches'][i][1]) for i in range(2))
    first.append(edges.index(right) < edges.index(wrong))
    smaller.append(right[1] < wrong[1])
  bound = 4 * np.sqrt(0.25 / len(first))
  assert abs(np.mean(first) - 0.5) < bound and abs(np.mean(smaller) - 0.5) < bound
  positions = collections.Counter(
      _edges(e)[0].index(tuple(e['branches'][0][:2])) for e in task.demonstrations)
  assert max(positions.values()) < 2 * min(positions.values())


def _score(task, example, text, cut=False):
  return task.reward_fn([example['prompt']], [text], np.array([cut]), [example])[0]


def test_only_the_whole_path_is_rewarded(task):
  for example in task.evaluation[:50]:
    path, other = (''.join(branch) for branch in example['branches'])
    assert _score(task, example, path) == 1 and _score(task, example, path, cut=True) == 0
    junk = ['', other, path[:-1], path[1:], path[::-1], path + path[-1], f' {path}', path * 2,
            path[0] + other[1:], path[:2] + other[2:], example['prompt'], path + '=']
    assert not any(_score(task, example, text) for text in junk)


def test_exact_values_by_hand():
  example = {'branches': [['0', '3', '7'], ['0', '9', '2']]}
  value = lambda *path: star_graph.exact_prefix_value(example, list(path))
  assert value('0') == 0.5 and value('0', '3') == value('0', '3', '7') == 1
  assert value('0', '9') == value('3') == value('0', '3', '2') == 0


@pytest.mark.parametrize('changes, message', [
    (dict(degree=1), 'config.task.degree must be at least 2, got 1'),
    (dict(length=2), 'config.task.length must be at least 3, got 2'),
    (dict(num_labels=6), 'config.task.num_labels must be at least the 7 nodes of a graph, got 6'),
    (dict(num_labels=51), 'config.task.num_labels must be at most 50, got 51'),
    (dict(num_labels=7, num_train=3_000), 'at most half of the 5040 graphs of this size')])
def test_bad_fields_are_one_line(changes, message):
  with pytest.raises(ValueError, match=message):
    star_graph.Config(**SMALL | changes).make(seed=0)


def test_words_need_separators(data_dir):
  policy = config_lib.PolicyTokenizer(str(data_dir / 'tokenizers' / 'gpt2'), pretrained=True)
  with pytest.raises(ValueError, match='config.task.separators must be True with a tokenizer'):
    star_graph.Config(**SMALL).make(0, policy=policy)
