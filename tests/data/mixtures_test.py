"""Mixtures: shares after every draw, epochs of each source, and independence of previous steps."""

import math
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from jaxrl_llm.data import batching, mixtures

_WEIGHTS = strategies.lists(
    strategies.one_of(strategies.floats(1e-3, 10), strategies.integers(1, 5)),
    min_size=1, max_size=9,
)


def _stream(sizes, weights, batch_size, steps, seed=0):
  """Returns (sources, indices) of the first draws."""
  parts = [
      mixtures.mixture_indices(sizes, weights, batch_size, seed=seed, step=step)
      for step in range(steps)
  ]
  return tuple(np.concatenate(part) for part in zip(*parts))


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(_WEIGHTS, strategies.integers(1, 7))
def test_after_every_draw_each_source_has_had_its_share(weights, batch_size):
  sources, _ = _stream([3] * len(weights), weights, batch_size, -(-300 // batch_size))
  draws = np.arange(1, len(sources) + 1)
  share = np.array(weights) / math.fsum(weights)
  bound = math.ceil(math.log2(len(weights))) / 2
  for source in range(len(weights)):
    counts = np.cumsum(sources == source)
    assert np.abs(counts - draws * share[source]).max() <= bound + 1e-9


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    strategies.lists(strategies.tuples(strategies.integers(1, 9), strategies.integers(1, 4)),
                     min_size=1, max_size=5),
    strategies.integers(1, 6), strategies.integers(0, 3),
)
def test_each_source_goes_through_its_own_epochs(pairs, batch_size, seed):
  sizes, weights = zip(*pairs)
  sources, indices = _stream(sizes, weights, batch_size, 40, seed)
  for source, size in enumerate(sizes):
    own = indices[sources == source]
    for epoch in range(len(own) // size):
      visited = own[epoch * size : (epoch + 1) * size]
      order = batching.epoch_permutation(size, seed=seed, epoch=epoch, source=source)
      np.testing.assert_array_equal(visited, order)


def test_by_hand():
  # Of n draws the first source gets round(3 n / 4): 1, 2, 2, 3, 4, 5, 5, 6 (halves go up).
  sources, _ = mixtures.mixture_indices([5, 5], [3, 1], 8, seed=0, step=0)
  assert list(sources) == [0, 0, 1, 0, 0, 0, 1, 0]
  sources, _ = mixtures.mixture_indices([5, 5, 5, 5], [1, 1, 1, 1], 8, seed=0, step=3)
  assert sorted(sources) == [0, 0, 1, 1, 2, 2, 3, 3]  # Equal weights: every batch is exact.


def test_one_source_is_the_plain_order():
  for step in range(5):
    sources, indices = mixtures.mixture_indices([10], [0.3], 4, seed=3, step=step)
    np.testing.assert_array_equal(sources, 0)
    np.testing.assert_array_equal(
        indices, batching.batch_indices(10, 4, seed=3, step=step))


def test_the_batch_size_does_not_change_the_order():
  a, b = _stream([4, 7, 5], [1, 2, 0.5], 3, 20), _stream([4, 7, 5], [1, 2, 0.5], 5, 12)
  np.testing.assert_array_equal(a, b)


def test_a_late_step_is_as_cheap_as_the_first():
  # Only permutations are cached; a step does not depend on previous steps.
  batching.epoch_permutation.cache_clear()
  begin = time.perf_counter()
  late = mixtures.mixture_indices([9, 5], [0.7, 0.3], 64, seed=0, step=10**12)
  assert time.perf_counter() - begin < 1.0
  batching.epoch_permutation.cache_clear()
  again = mixtures.mixture_indices([9, 5], [0.7, 0.3], 64, seed=0, step=10**12)
  np.testing.assert_array_equal(late, again)
  assert 43 <= np.sum(late[0] == 0) <= 46


def test_extreme_weights():
  sources, _ = _stream([3, 3, 3], [1e-300, 1, 1e300], 50, 4)
  assert np.all(sources == 2)
  sources, _ = _stream([3, 3], [1, 1 - 2**-53], 50, 4)
  assert np.sum(sources == 0) == 100


@pytest.mark.parametrize('change, message', [
    ({'sizes': [3, 0]}, 'chat has no examples'),
    ({'weights': [1, 0]}, 'the weight of chat must be positive and finite, got 0'),
    ({'weights': [-1, 1]}, 'the weight of maths must be positive and finite, got -1'),
    ({'weights': [1, float('nan')]}, 'the weight of chat must be positive and finite, got nan'),
    ({'weights': [1, float('inf')]}, 'the weight of chat must be positive and finite, got inf'),
    ({'weights': [1, 2, 3]}, 'a size, a weight and a name for each, got 2, 3 and 2'),
    ({'sizes': [], 'weights': [], 'names': []}, 'at least one source'),
    ({'batch_size': 0}, 'batch_size must be at least 1, got 0'),
    ({'seed': -1}, 'seed must be at least 0, got -1'),
    ({'step': -1}, 'step must be at least 0, got -1'),
    ({'sizes': [0, 3], 'names': None}, 'source 0 has no examples'),
])
def test_bad_arguments_name_the_source(change, message):
  arguments = {'sizes': [3, 4], 'weights': [1, 2], 'batch_size': 2, 'seed': 0, 'step': 0,
               'names': ['maths', 'chat']}
  with pytest.raises(ValueError, match=message):
    mixtures.mixture_indices(**(arguments | change))


def test_parse_weights():
  assert mixtures.parse_weights(' a.json = 3,b=c=0.5,') == {'a.json': 3.0, 'b=c': 0.5}
  assert mixtures.parse_weights('') == {}
  for text in ('a', 'a=', '=1', 'a=x', 'a=0', 'a=-1', 'a=nan', 'a=inf', 'a=1,a=2'):
    with pytest.raises(ValueError, match="of the form 'NAME=NUMBER, ...'"):
      mixtures.parse_weights(text)
