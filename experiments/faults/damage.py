"""Ways to damage a file that a run keeps, each a pure function of its content and a random source.

A damage returns None where it does not apply: an empty file has no bit to flip.
"""

import io
import json
import random
import zipfile
from collections.abc import Callable

import numpy as np

Damage = Callable[[bytes, random.Random], bytes | None]

_JSON_FILES = ('_CHECKPOINT_METADATA', '_METADATA', '_sharding')  # Of Orbax.
_ODD_VALUES = (b'[]', b'null', b'5', b'{}', b'"text"', b'[' * 5_000, b'{"a":' * 5_000)


def flip_bit(content: bytes, rng: random.Random) -> bytes | None:
  """Inverts one bit."""
  if not content:
    return None
  position = rng.randrange(len(content))
  flipped = bytes([content[position] ^ 1 << rng.randrange(8)])
  return content[:position] + flipped + content[position + 1 :]


def truncate(content: bytes, rng: random.Random) -> bytes | None:
  """Cuts the end off."""
  return content[: rng.randrange(1, len(content))] if len(content) > 1 else None


def empty(content: bytes, rng: random.Random) -> bytes | None:
  """Leaves a file of no bytes."""
  del rng
  return b'' if content else None


def zeros(content: bytes, rng: random.Random) -> bytes | None:
  """Overwrites up to 64 bytes with zeros, as a disk that lost a block."""
  if not content:
    return None
  position = rng.randrange(len(content))
  length = min(64, len(content) - position)
  return content[:position] + bytes(length) + content[position + length :]


def delete_line(content: bytes, rng: random.Random) -> bytes | None:
  """Removes a line; not the last one, whose loss is what a kill leaves."""
  lines = content.splitlines(keepends=True)
  if len(lines) < 2:
    return None
  del lines[rng.randrange(len(lines) - 1)]
  return b''.join(lines)


def double_line(content: bytes, rng: random.Random) -> bytes | None:
  """Writes a line twice."""
  lines = content.splitlines(keepends=True)
  if not lines:
    return None
  position = rng.randrange(len(lines))
  return b''.join([*lines[: position + 1], *lines[position:]])


def swap_lines(content: bytes, rng: random.Random) -> bytes | None:
  """Exchanges two neighbouring lines."""
  lines = content.splitlines(keepends=True)
  pairs = [i for i in range(len(lines) - 1) if lines[i] != lines[i + 1]]
  if not pairs:
    return None
  i = rng.choice(pairs)
  lines[i], lines[i + 1] = lines[i + 1], lines[i]
  return b''.join(lines)


def odd_line(content: bytes, rng: random.Random) -> bytes | None:
  """Replaces a line by a JSON value of another type, or by one that is nested too deeply."""
  lines = content.splitlines(keepends=True)
  if not lines:
    return None
  lines[rng.randrange(len(lines))] = rng.choice(_ODD_VALUES) + b'\n'
  return b''.join(lines)


def change_number(content: bytes, rng: random.Random) -> bytes | None:
  """Changes a number of a JSON document or of one line; the file remains valid JSON."""
  return _edit_json(content, rng, lambda value: rng.choice([value + 1, -value - 1]))


def not_a_number(content: bytes, rng: random.Random) -> bytes | None:
  """Replaces a number of a JSON document by NaN, null or text."""
  return _edit_json(content, rng, lambda value: rng.choice([float('nan'), None, 'nan', '']))


def remove_key(content: bytes, rng: random.Random) -> bytes | None:
  """Removes a key of a JSON document or of one line."""
  def remove(document):
    holders = [holder for holder in _containers(document) if isinstance(holder, dict) and holder]
    if not holders:
      return False
    holder = rng.choice(holders)
    del holder[rng.choice(sorted(holder))]
    return True

  return _with_document(content, rng, remove)


def change_array(content: bytes, rng: random.Random) -> bytes | None:
  """Changes one value of an array of an npz file, which remains a valid file."""
  def change(arrays):
    names = [name for name, x in arrays.items() if x.size and x.dtype.kind in 'fiub']
    if not names:
      return False
    name = rng.choice(sorted(names))
    flat = arrays[name].reshape(-1).copy()
    flat[rng.randrange(flat.size)] += np.ones((), flat.dtype)
    arrays[name] = flat.reshape(arrays[name].shape)
    return True

  return _with_arrays(content, change)


def permute_array(content: bytes, rng: random.Random) -> bytes | None:
  """Reverses an array of an npz file along its first axis."""
  def permute(arrays):
    names = [name for name, x in arrays.items() if x.ndim and not np.array_equal(x, x[::-1])]
    if names:
      name = rng.choice(sorted(names))
      arrays[name] = arrays[name][::-1]
    return bool(names)

  return _with_arrays(content, permute)


def shorten_array(content: bytes, rng: random.Random) -> bytes | None:
  """Removes the first entry of an array of an npz file."""
  def shorten(arrays):
    names = [name for name, x in arrays.items() if x.ndim and len(x) > 1]
    if names:
      name = rng.choice(sorted(names))
      arrays[name] = arrays[name][1:]
    return bool(names)

  return _with_arrays(content, shorten)


def nan_in_array(content: bytes, rng: random.Random) -> bytes | None:
  """Puts a NaN into an array of floats of an npz file."""
  def spoil(arrays):
    names = [name for name, x in arrays.items() if x.size and x.dtype.kind == 'f']
    if names:
      name = rng.choice(sorted(names))
      arrays[name] = arrays[name].copy()
      arrays[name].reshape(-1)[rng.randrange(arrays[name].size)] = np.nan
    return bool(names)

  return _with_arrays(content, spoil)


def remove_array(content: bytes, rng: random.Random) -> bytes | None:
  """Removes an array of an npz file."""
  def remove(arrays):
    del arrays[rng.choice(sorted(arrays))]
    return True

  return _with_arrays(content, remove)


def pickled_object(content: bytes, rng: random.Random) -> bytes | None:
  """Replaces an array of an npz file by one of pickled objects, which would run code if loaded."""
  def replace(arrays):
    arrays[rng.choice(sorted(arrays))] = np.array([{'a': 1}, None], dtype=object)
    return True

  return _with_arrays(content, replace)


BYTES = (flip_bit, truncate, empty, zeros)
LINES = (delete_line, double_line, swap_lines, odd_line)
DOCUMENTS = (change_number, not_a_number, remove_key)
ARRAYS = (
    change_array, permute_array, shorten_array, nan_in_array, remove_array, pickled_object)


def applicable(name: str) -> tuple[Damage, ...]:
  """Returns the damages that suit a file of this name."""
  if name.endswith('.jsonl'):
    return BYTES + LINES + DOCUMENTS
  if name.endswith('.json') or name in _JSON_FILES:
    return BYTES + (odd_line,) + DOCUMENTS
  if name.endswith('.npz'):
    return BYTES + ARRAYS
  return BYTES


def _edit_json(content, rng, edit) -> bytes | None:
  """Replaces a number by `edit` of it."""
  def change(document):
    numbers = [
        (holder, key) for holder in _containers(document)
        for key in (sorted(holder) if isinstance(holder, dict) else range(len(holder)))
        if isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool)]
    if not numbers:
      return False
    holder, key = rng.choice(numbers)
    holder[key] = edit(holder[key])
    return True

  return _with_document(content, rng, change)


def _containers(document):
  """Yields every dict and list of a document."""
  if isinstance(document, (dict, list)):
    yield document
    values = document.values() if isinstance(document, dict) else document
    for value in list(values):
      yield from _containers(value)


def _with_document(content, rng, change) -> bytes | None:
  """Applies `change` in place to the document, or to a line of a file of lines."""
  try:
    document = json.loads(content)
    whole = True
  except ValueError:
    whole = False
  if whole:
    return json.dumps(document, indent=2).encode() + b'\n' if change(document) else None

  lines = content.splitlines(keepends=True)
  position = rng.randrange(len(lines)) if lines else 0
  try:
    document = json.loads(lines[position])
  except (ValueError, IndexError):
    return None
  if not change(document):
    return None
  lines[position] = json.dumps(document).encode() + b'\n'
  return b''.join(lines)


def _with_arrays(content, change) -> bytes | None:
  """Applies `change` in place to the arrays of an npz file."""
  try:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
      arrays = dict(file)
  except (ValueError, OSError, zipfile.BadZipFile):
    return None
  if not arrays or not change(arrays):
    return None
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  return buffer.getvalue()
