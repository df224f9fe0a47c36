"""Weights and inputs of the golden checkpoints, drawn from their names.

NumPy's RandomState keeps its stream from version to version, so the golden files hold
no weights: whoever knows a case's name and its tensors' shapes draws the same ones.
"""

import json
import pathlib
import re
import zlib

import numpy as np

# The spread of matrices: initialisation as libraries do it (0.02) hides most errors, since
# attention is then flat, activations are linear, and biases and norms do nothing.
SCALE = 0.3


def _random(*names) -> np.random.RandomState:
  return np.random.RandomState(zlib.crc32('/'.join(map(str, names)).encode()))


def tensor(key: str, name: str, shape, *, norm_centre: float = 1.0) -> np.ndarray:
  """One tensor of a checkpoint, float32.

  Args:
    key: of the case (and, live, of the seed).
    name: the tensor's name.
    shape: its shape. Whatever is one-dimensional and called weight belongs to a norm.
    norm_centre: mean of norm weights; 0 where the model adds one to them.
  """
  values = SCALE * _random(key, name).standard_normal(tuple(shape))
  if len(shape) == 1 and name.endswith('weight'):
    values += norm_centre
  return values.astype(np.float32)


def tensors(key: str, shapes: dict, *, norm_centre: float = 1.0) -> dict[str, np.ndarray]:
  """All tensors of a checkpoint, by name."""
  return {name: tensor(key, name, shape, norm_centre=norm_centre)
          for name, shape in shapes.items()}


def in_shapes(key: str, weights: dict, shapes: dict, *, norm_centre: float) -> dict:
  """Weights for other shapes: repeated where a shape differs, drawn where a tensor is new."""
  drawn = tensors(key, shapes, norm_centre=norm_centre)
  return {name: np.resize(weights[name], shape) if name in weights else drawn[name]
          for name, shape in shapes.items()}


def edited(weights: dict, edit: tuple[str, str]) -> dict:
  """Weights with tensors changed: `edit` is 'zero' or 'minus_one', and the names' regex."""
  how, pattern = edit
  changed = {name: value * 0 if how == 'zero' else value - 1 for name, value in weights.items()
             if re.fullmatch(pattern, name)}
  if not changed:
    raise ValueError(f'{pattern} matches no tensor')
  return {**weights, **changed}


def rows(key: str, lengths, vocab_size: int) -> list[list[int]]:
  """Sequences of random ids of the given lengths, none of them 0."""
  random = _random(key, 'tokens')
  return [random.randint(1, vocab_size, size=n).tolist() for n in lengths]


def padded(sequences, *, width: int, left: bool, fill=None):
  """A batch of unequal sequences.

  Args:
    sequences: lists of ids.
    width: T.
    left: the side on which the padding stands.
    fill: the id of the padding; None for arbitrary real ids, which must not matter.

  Returns:
    (tokens int32 [B, T], mask bool [B, T], positions int32 [B, T]: 0 at a row's first token).
  """
  tokens = np.zeros((len(sequences), width), np.int32)
  tokens[:] = np.arange(1, width + 1) if fill is None else fill
  mask = np.zeros(tokens.shape, bool)
  for row, ids in enumerate(sequences):
    columns = slice(width - len(ids), None) if left else slice(0, len(ids))
    tokens[row, columns] = ids
    mask[row, columns] = True
  return tokens, mask, np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)


def at_tokens(values, mask, places) -> np.ndarray:
  """What stands at the given tokens of a padded batch.

  Args:
    values: [B, T, ...].
    mask: bool [B, T].
    places: (row, number of the token in its row) pairs.

  Returns:
    [len(places), ...].
  """
  return np.stack([np.asarray(values[row])[mask[row]][token] for row, token in places])


def write_checkpoint(directory: pathlib.Path, fields: dict, weights: dict) -> pathlib.Path:
  """Writes config.json and model.safetensors; returns the directory."""
  from safetensors import numpy as safetensors_numpy

  directory.mkdir(parents=True, exist_ok=True)
  (directory / 'config.json').write_text(json.dumps(fields))
  safetensors_numpy.save_file(
      weights, directory / 'model.safetensors', metadata={'format': 'pt'})
  return directory
