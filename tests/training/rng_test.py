"""Streams and coordinates: pure functions of their numbers, all different."""

import itertools

import jax
import numpy as np
import pytest

from jaxrl_llm.training import rng


def _bits(key):
  return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_stream_key_is_the_nested_fold_in():
  key = rng.base_key(7)
  by_hand = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, 3), 11), 5)
  assert _bits(rng.stream_key(key, rng.SAMPLE_TRAIN, 11, 5)) == _bits(by_hand)


def test_all_coordinates_give_different_keys():
  seen = set()
  draws = list(itertools.product((0, 1), rng.Stream, range(3), range(3)))
  for seed, stream, step, example in draws:
    seen.add(_bits(rng.stream_key(rng.base_key(seed), stream, step, example)))
  assert len(seen) == len(draws)


def test_traced_indices_agree_with_host_integers():
  key = rng.base_key(0)
  traced = jax.jit(lambda step: rng.stream_key(key, rng.DATA, step, 2))(9)
  assert _bits(traced) == _bits(rng.stream_key(key, rng.DATA, 9, 2))


def test_stream_numbers_are_unique_and_fixed():
  # They are part of what a seed means: a committed result depends on them.
  assert [int(stream) for stream in rng.Stream] == list(range(len(rng.Stream)))
  streams = (rng.INIT, rng.DATA, rng.SAMPLE_STAGE1, rng.SAMPLE_TRAIN, rng.SAMPLE_EVAL, rng.DROPOUT)
  assert streams == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize('seed', [-1, 2**32])
def test_seed_out_of_range(seed):
  with pytest.raises(ValueError, match=r'seed must be in \[0, 2\*\*32\), got'):
    rng.base_key(seed)
