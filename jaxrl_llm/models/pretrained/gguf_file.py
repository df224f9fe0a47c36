"""Reads GGUF files, the format of llama.cpp: metadata, and tensors, dequantised one at a time.

The header is parsed here, because the reader of the `gguf` package trusts every length in it: a
damaged file makes it loop or allocate without end. The package decodes the quantised blocks.
"""

import math
import mmap
import os
import pathlib
import struct
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from jaxrl_llm.models.pretrained import weights

MAGIC = b'GGUF'
# Supported types of tensors.
TYPES = (
    'F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q4_K', 'Q5_K', 'Q6_K',
)

_VERSIONS = (2, 3)
_ALIGNMENT = 32  # Default of general.alignment, in bytes.
_MAX_DIMENSIONS = 4
_CHUNK = 2**18  # Elements dequantised at a time; a multiple of all block sizes.

# Types of metadata values; the numbers are those of the format.
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: 'u1', 1: 'i1', 2: '<u2', 3: '<i2', 4: '<u4', 5: '<i4', 6: '<f4', _BOOL: 'u1', 10: '<u8',
    11: '<i8', 12: '<f8',
}


def is_gguf(path: str | os.PathLike) -> bool:
  """True for a file that is named *.gguf or begins like one."""
  path = pathlib.Path(path)
  if not path.is_file():
    return False
  with open(path, 'rb') as file:
    return path.suffix.lower() == '.gguf' or file.read(len(MAGIC)) == MAGIC


class File:
  """The metadata and the tensors of one file.

  Attributes:
    source: the file.
    metadata: values by key; arrays are lists, and float32 numbers have their shortest decimals.
    tensors: tensors by name, with the shape in NumPy's order; `dtype` is the name of the type.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads the header.

    Args:
      path: the file.

    Raises:
      ValueError: one line: the file is not a GGUF file, is damaged or truncated, or the `gguf`
        package is missing.
    """
    self.source = pathlib.Path(path)
    self._library = _import_library(self.source)
    self._data = _map(self.source)

    cursor = _Cursor(self.source, self._data)
    num_tensors, num_values = _read_counts(cursor)
    self.metadata = dict(_read_metadata(cursor, num_values))
    if len(self.metadata) < num_values:
      raise ValueError(f'{self.source} is damaged: a metadata field occurs twice')
    self.tensors = self._read_tensors(cursor, num_tensors)

  def __contains__(self, name: str) -> bool:
    return name in self.tensors

  def check_dtype(self, name: str) -> None:
    """Raises a one-line ValueError if the tensor's type cannot be read."""
    tensor = self.tensors[name]
    if tensor.dtype not in TYPES:
      raise ValueError(
          f'tensor {name} in {tensor.file} has type {tensor.dtype}, only {", ".join(TYPES)} can be '
          'read')

  def read(self, name: str, dtype: np.dtype | type = np.float32) -> np.ndarray:
    """Dequantises one tensor into a new array; raises ValueError like `check_dtype`."""
    self.check_dtype(name)
    tensor = self.tensors[name]
    kind = self._library.GGMLQuantizationType[tensor.dtype]
    size = math.prod(tensor.shape)
    out = np.empty(size, dtype)

    for start in range(0, size, _CHUNK):
      stop = min(start + _CHUNK, size)
      begin, end = (self._bytes(kind, count) for count in (start, stop))
      blocks = np.frombuffer(self._data, np.uint8, end - begin, tensor.offset + begin)
      out[start:stop] = self._library.quants.dequantize(blocks[None], kind)[0]

    return out.reshape(tensor.shape)

  def _bytes(self, kind: Any, count: int) -> int:
    """Returns the bytes of `count` elements."""
    block, size = self._library.GGML_QUANT_SIZES[kind]
    return count // block * size

  def _read_tensors(self, cursor: '_Cursor', count: int) -> dict[str, weights.Tensor]:
    """Reads names, shapes, types and offsets; checks that the file has all of their data."""
    infos = [self._read_tensor(cursor) for _ in range(count)]
    alignment = self.metadata.get('general.alignment', _ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
      raise ValueError(
          f'{self.source}: general.alignment must be a power of two, got {alignment!r}')

    start = -(-cursor.position // alignment) * alignment
    tensors, ends = {}, {}
    for name, shape, kind, offset in infos:
      if name in tensors:
        raise ValueError(f'duplicate tensor {name} in {self.source}')
      tensors[name] = weights.Tensor(shape, kind.name, self.source, start + offset)
      ends[name] = start + offset + self._bytes(kind, math.prod(shape))

    for name, end in sorted(ends.items(), key=lambda item: item[1]):
      if end > len(self._data):
        raise ValueError(
            f'{self.source} is truncated in tensor {name}: the file has {len(self._data)} bytes, '
            f'and needs {max(ends.values())}')
    return tensors

  def _read_tensor(self, cursor: '_Cursor') -> tuple[str, tuple[int, ...], Any, int]:
    """Returns (name, shape, type, offset in the data)."""
    name = cursor.text()
    dimensions = cursor.number('<I')
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
      raise ValueError(
          f'tensor {name!r} in {self.source} must have 1 to {_MAX_DIMENSIONS} dimensions, got '
          f'{dimensions}')
    shape = tuple(cursor.number('<Q') for _ in range(dimensions))[::-1]  # The fastest is first.
    number, offset = cursor.number('<I'), cursor.number('<Q')

    try:
      kind = self._library.GGMLQuantizationType(number)
    except ValueError:
      raise ValueError(f'tensor {name!r} in {self.source} has unknown type {number}') from None
    block = self._library.GGML_QUANT_SIZES[kind][0]
    if min(shape) < 1 or shape[-1] % block:
      raise ValueError(
          f'tensor {name!r} in {self.source} of type {kind.name} must have rows of a multiple of '
          f'{block} elements, got shape {list(shape)}')
    return name, shape, kind, offset


def _import_library(path: pathlib.Path) -> ModuleType:
  """Imports the `gguf` package; raises a one-line ValueError if it is not installed."""
  try:
    import gguf
  except ImportError as error:
    raise ValueError(f'{path} needs the package gguf: pip install gguf') from error
  return gguf


def _map(path: pathlib.Path) -> mmap.mmap:
  """Maps a file that begins like a GGUF file."""
  try:
    with open(path, 'rb') as file:
      if file.read(len(MAGIC)) != MAGIC:
        raise ValueError(f'{path} is not a GGUF file: it does not begin with {MAGIC.decode()}')
      return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  except OSError as error:
    raise ValueError(f'cannot read the file {path}: {error.strerror}') from None


class _Cursor:
  """A position in the header; reading past the end of the file raises a one-line ValueError."""

  def __init__(self, path: pathlib.Path, data: mmap.mmap):
    self.path = path
    self.position = 0
    self._data = data

  def take(self, count: int) -> bytes:
    """Returns the next bytes."""
    self.check_left(count)
    self.position += count
    return self._data[self.position - count : self.position]

  def check_left(self, count: int) -> None:
    """Raises ValueError if the file ends before `count` more bytes."""
    left = len(self._data) - self.position
    if count > left:
      raise ValueError(
          f'{self.path} is damaged or truncated: its header needs {count} bytes at offset '
          f'{self.position}, but only {left} follow')

  def number(self, layout: str) -> int:
    """Returns the next number, with the layout of `struct`."""
    return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

  def text(self) -> str:
    """Returns the next string."""
    content = self.take(self.number('<Q'))
    try:
      return content.decode()
    except UnicodeDecodeError:
      raise ValueError(
          f'{self.path} is damaged: the text at offset {self.position - len(content)} is not UTF-8'
      ) from None


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
  """Returns the numbers of tensors and of metadata values."""
  cursor.take(len(MAGIC))
  version = cursor.number('<I')
  if version and not version % 65536:
    raise ValueError(f'{cursor.path} is big-endian: only little-endian GGUF files can be read')
  if version not in _VERSIONS:
    raise ValueError(
        f'{cursor.path}: the GGUF version must be one of {", ".join(map(str, _VERSIONS))}, got '
        f'{version}')

  num_tensors, num_values = cursor.number('<Q'), cursor.number('<Q')
  # The smallest entries: a name without characters, one dimension; a value of one byte.
  cursor.check_left(num_tensors * 32 + num_values * 13)
  return num_tensors, num_values


def _read_metadata(cursor: _Cursor, count: int) -> Iterator[tuple[str, Any]]:
  """Yields (key, value)."""
  for _ in range(count):
    key, kind = cursor.text(), cursor.number('<I')
    if kind == _ARRAY:
      kind, length = cursor.number('<I'), cursor.number('<Q')
      yield key, _read_values(cursor, key, kind, length)
    else:
      yield key, _read_values(cursor, key, kind, 1)[0]


def _read_values(cursor: _Cursor, key: str, kind: int, count: int) -> list[Any]:
  """Reads values of the same type."""
  if kind == _STRING:
    cursor.check_left(8 * count)
    return [cursor.text() for _ in range(count)]
  if kind not in _SCALARS:
    raise ValueError(f'{cursor.path}: metadata field {key!r} has unsupported type {kind}')

  dtype = np.dtype(_SCALARS[kind])
  cursor.check_left(count * dtype.itemsize)
  values = np.frombuffer(cursor.take(count * dtype.itemsize), dtype)
  if kind == _BOOL:
    return values.astype(bool).tolist()
  # The shortest decimals: 1e-05 instead of 9.999999747378752e-06.
  return [float(str(x)) for x in values] if dtype == np.float32 else values.tolist()
