"""Weights and inputs of the golden checkpoints, drawn from their names.

The stream of NumPy's RandomState does not depend on its version, so the golden files need no
weights: they are drawn again from a case's name and its tensors' shapes.
"""

import json
import pathlib
import re
import zlib

import numpy as np

# Standard deviation of matrices. The usual initialisation (0.02) hides most errors: attention is
# flat, activations are linear, and biases and norms have no effect.
SCALE = 0.3


def _random(*names) -> np.random.RandomState:
  return np.random.RandomState(zlib.crc32('/'.join(map(str, names)).encode()))


def tensor(key: str, name: str, shape, *, norm_centre: float = 1.0) -> np.ndarray:
  """One tensor of a checkpoint, float32.

  Args:
    key: name of the case, and in live tests the seed.
    name: name of the tensor.
    shape: shape of the tensor; a one-dimensional weight belongs to a norm.
    norm_centre: mean of norm weights; 0 if the model adds one to them.
  """
  values = SCALE * _random(key, name).standard_normal(tuple(shape))
  if len(shape) == 1 and name.endswith('weight'):
    values += norm_centre
  return values.astype(np.float32)


def tensors(key: str, shapes: dict, *, norm_centre: float = 1.0) -> dict[str, np.ndarray]:
  """Draws all tensors of a checkpoint, by name."""
  return {name: tensor(key, name, shape, norm_centre=norm_centre)
          for name, shape in shapes.items()}


def in_shapes(key: str, weights: dict, shapes: dict, *, norm_centre: float) -> dict:
  """Weights for other shapes; tensors of another shape are repeated, new tensors are drawn."""
  drawn = tensors(key, shapes, norm_centre=norm_centre)
  return {name: np.resize(weights[name], shape) if name in weights else drawn[name]
          for name, shape in shapes.items()}


def edited(weights: dict, edit: tuple[str, str]) -> dict:
  """Weights with tensors changed: `edit` is 'zero' or 'minus_one', and the names' regex."""
  kind, pattern = edit
  changed = {name: value * 0 if kind == 'zero' else value - 1 for name, value in weights.items()
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
    left: whether the padding is on the left.
    fill: id of the padding; None for arbitrary ids, which must have no effect.

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


def at_tokens(values, mask, indices) -> np.ndarray:
  """Values at some tokens of a padded batch.

  Args:
    values: [B, T, ...].
    mask: bool [B, T].
    indices: (row, index of the token in its row) pairs.

  Returns:
    [len(indices), ...].
  """
  return np.stack([np.asarray(values[row])[mask[row]][token] for row, token in indices])


def write_checkpoint(directory: pathlib.Path, fields: dict, weights: dict) -> pathlib.Path:
  """Writes config.json and model.safetensors; returns the directory."""
  from safetensors import numpy as safetensors_numpy

  directory.mkdir(parents=True, exist_ok=True)
  (directory / 'config.json').write_text(json.dumps(fields))
  safetensors_numpy.save_file(
      weights, directory / 'model.safetensors', metadata={'format': 'pt'})
  return directory
