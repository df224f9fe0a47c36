"""PRNG keys: every random number of a run is derived from one base key by `fold_in`.

A stream number separates the uses (parameters, data, sampling ...). It is followed by the
coordinates of one draw: step, example id, sample, position. The noise of a draw is therefore a
pure function of (seed, stream, coordinates). It does not depend on batch composition,
micro-batching, the number of devices or earlier draws.
"""

import enum

import jax

_SEED_LIMIT = 2**32


class Stream(enum.IntEnum):
  """Stream numbers. They determine a run's noise: append new ones, never renumber."""

  INIT = 0
  DATA = 1
  SAMPLE_STAGE1 = 2
  SAMPLE_TRAIN = 3
  SAMPLE_EVAL = 4
  DROPOUT = 5
  SFT_DATA = 6
  SAMPLE_CONTROL = 7
  SAMPLE_DIAGNOSTIC = 8
  ADAPTERS = 9
  CRITIC = 10


INIT = Stream.INIT
DATA = Stream.DATA
SAMPLE_STAGE1 = Stream.SAMPLE_STAGE1
SAMPLE_TRAIN = Stream.SAMPLE_TRAIN
SAMPLE_EVAL = Stream.SAMPLE_EVAL
DROPOUT = Stream.DROPOUT
SFT_DATA = Stream.SFT_DATA
SAMPLE_CONTROL = Stream.SAMPLE_CONTROL
SAMPLE_DIAGNOSTIC = Stream.SAMPLE_DIAGNOSTIC


def base_key(seed: int) -> jax.Array:
  """Returns the base key of a run.

  The generator is fixed (Threefry) rather than left to the library's default, so that a seed
  gives the same noise wherever the run is repeated.

  Args:
    seed: in [0, 2**32).

  Returns:
    A typed key, shape [].

  Raises:
    ValueError: if the seed is out of range.
  """
  if not 0 <= seed < _SEED_LIMIT:
    raise ValueError(f'seed must be in [0, 2**32), got {seed} (config.seed)')
  return jax.random.key(seed, impl='threefry2x32')


def stream_key(key: jax.Array, stream: int, *indices: int | jax.Array) -> jax.Array:
  """Returns the key of one draw: fold_in(... fold_in(fold_in(key, stream), index_1) ..., index_n).

  The order of the indices matters: (1, 2) and (2, 1) are different draws. So does their number:
  the key of (stream, step) must not be used both for drawing and for further folding.

  Args:
    key: the base key, shape []; it is folded, never split.
    stream: a stream number.
    *indices: coordinates of the draw, non-negative integers or int32 scalars (traced or not).

  Returns:
    A typed key, shape [].
  """
  key = jax.random.fold_in(key, int(stream))
  for index in indices:
    key = jax.random.fold_in(key, index)
  return key
