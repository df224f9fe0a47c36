"""Few-shot episodes: n classes with k labelled examples each, from a file of features.

The features can come from any network trained on other classes; here they are rows of an npz
file, or synthetic (`make_features`).
"""

import os
import pathlib
from typing import NamedTuple

import numpy as np

# Keeps squared distances finite in float32, for any practical number of dimensions.
_LARGEST = 1e15


class Features(NamedTuple):
  """Examples of novel classes.

  Attributes:
    features: float32 [M, D].
    labels: int32 [M]; 0, ..., number of classes − 1.
  """

  features: np.ndarray
  labels: np.ndarray


class Episode(NamedTuple):
  """One problem: the first n·k rows are labelled, the others are queries.

  Attributes:
    features: float32 [n (k + q), D].
    labels: int32 [n (k + q)]; 0, ..., n − 1, class by class within each part.
    rows: int [n (k + q)]; row indices in the file.
  """

  features: np.ndarray
  labels: np.ndarray
  rows: np.ndarray


def read_features(path: str | os.PathLike) -> Features:
  """Reads an npz file with 'features' [M, D] and 'labels' [M] (integers of any value).

  Features are real numbers, in float32 no larger than 1e15.

  Args:
    path: path of the file.

  Returns:
    Its features, with labels renumbered from 0.

  Raises:
    ValueError: if the file is missing, damaged or has other contents; one line.
  """
  if not pathlib.Path(path).is_file():
    raise ValueError(f'features_file: not a file: {str(path)!r}')
  try:
    with np.load(path, allow_pickle=False) as arrays:
      features, labels = arrays['features'], arrays['labels']
  except Exception as error:  # A damaged archive can raise almost anything.
    raise ValueError(
        f"{path} must be an npz file with 'features' and 'labels' ({error})") from None

  if features.ndim != 2 or not features.shape[1] or features.dtype.kind not in 'fiub':
    raise ValueError(f'{path}: features must be real numbers [M, D], D at least 1, got '
                     f'{features.dtype} {features.shape}')
  if labels.shape != features.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f'{path}: labels must be {len(features)} integers, got {labels.dtype} '
                     f'{labels.shape}')

  with np.errstate(over='ignore', invalid='ignore'):
    features = features.astype(np.float32)
  if not (np.abs(features) <= _LARGEST).all():  # Also rejects NaN.
    raise ValueError(f'{path}: features must be finite and at most {_LARGEST:g} in magnitude')
  return Features(
      features, np.unique(labels, return_inverse=True)[1].astype(np.int32))


def make_features(
    *, seed: int, num_classes: int, per_class: int, width: int, spread: float, curvature: float
) -> Features:
  """Draws classes that are arcs rather than balls: their mean alone does not describe them.

  Each class has a random centre and two random directions, of length 1: with t uniform in (−1, 1)

    x = centre + curvature · (2 t · along + 2 (t² − 1/3) · across) + spread · normal noise,

  which a graph of neighbours follows.

  Args:
    seed: random seed for all draws.
    num_classes: at least 2.
    per_class: examples per class, at least 1.
    width: D ≥ 1.
    spread: standard deviation of the noise, non-negative.
    curvature: half of the arcs' extent, non-negative.

  Returns:
    The features, class by class.

  Raises:
    ValueError: if an argument is out of range.
  """
  for name, value, least in (('num_classes', num_classes, 2), ('per_class', per_class, 1),
                             ('width', width, 1), ('spread', spread, 0),
                             ('curvature', curvature, 0)):
    if not value >= least:
      raise ValueError(f'{name} must be at least {least}, got {value}')

  rng = np.random.default_rng([seed, 38])
  axes = rng.normal(size=(num_classes, 3, width))
  centre, along, across = np.moveaxis(axes / np.linalg.norm(axes, axis=-1, keepdims=True), 1, 0)

  t = rng.uniform(-1, 1, (num_classes, per_class, 1))
  noise = spread * rng.normal(size=(num_classes, per_class, width))
  bent = curvature * (2 * t * along[:, None] + 2 * (t**2 - 1 / 3) * across[:, None])
  features = (centre[:, None] + bent + noise).reshape(-1, width)
  labels = np.repeat(np.arange(num_classes, dtype=np.int32), per_class)
  return Features(features.astype(np.float32), labels)


def draw_episode(
    data: Features, *, way: int, shots: int, queries: int, seed: int, index: int
) -> Episode:
  """Draws one episode; a pure function of its arguments.

  Args:
    data: the features.
    way: n, number of distinct classes.
    shots: k, labelled examples per class.
    queries: q, further examples per class.
    seed: random seed shared by all episodes.
    index: index of this episode.

  Returns:
    The episode.

  Raises:
    ValueError: if too few classes have enough examples.
  """
  counts = np.bincount(data.labels)
  enough = np.flatnonzero(counts >= shots + queries)
  if len(enough) < way:
    raise ValueError(
        f'way must be at most {len(enough)}, the classes with {shots} + {queries} examples, got '
        f'{way}')

  rng = np.random.default_rng([seed, 39, index])
  drawn = np.stack([
      rng.permutation(np.flatnonzero(data.labels == label))[: shots + queries]
      for label in rng.permutation(enough)[:way]])
  rows = np.concatenate([drawn[:, :shots].ravel(), drawn[:, shots:].ravel()])
  labels = np.concatenate([np.repeat(np.arange(way), count) for count in (shots, queries)])
  return Episode(data.features[rows], labels.astype(np.int32), rows)
