"""Directories of safetensors files, read through memory maps and written one tensor at a time."""

import contextlib
import errno
import json
import mmap
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxrl_llm.training import files

SINGLE_FILE = 'model.safetensors'
INDEX_FILE = 'model.safetensors.index.json'

# Supported dtypes, by their names in the format.
DTYPES = {
    'F32': np.dtype(np.float32), 'F16': np.dtype(np.float16),
    'BF16': np.dtype(ml_dtypes.bfloat16),
}

# Pickled weights: reading them can run arbitrary code.
_PICKLES = (
    'pytorch_model*.bin', 'pytorch_model.bin.index.json', 'consolidated*.pth', '*.bin', '*.pth',
    '*.pt', '*.ckpt',
)
# Pickles of a Trainer that may be next to any weights.
_NO_WEIGHTS = ('training_args', 'optimizer', 'scheduler', 'rng_state')


class Tensor(NamedTuple):
  """Location of a tensor that has not been read.

  Attributes:
    shape: shape of the tensor.
    dtype: dtype name in the format: 'F32', 'BF16', 'I64' ...
    file: file that contains the tensor.
    offset: offset of its first byte in the file.
  """

  shape: tuple[int, ...]
  dtype: str
  file: pathlib.Path
  offset: int


class NewTensor(NamedTuple):
  """A tensor to be written.

  Attributes:
    name: name of the tensor.
    shape: shape of the tensor.
    dtype: one of the values of `DTYPES`.
    array: called once, when the tensor is written; returns an array of that shape and dtype.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  array: Callable[[], np.ndarray]


class Reader:
  """The tensors of a directory; `reader[name]` is a read-only view of the mapped file.

  The safetensors library checks each header. It could also read parts of tensors, but it copies
  what it reads and cannot transpose or split a tensor. A NumPy view of the map can be split,
  transposed and sliced, and only the data that is finally copied from it is read.

  Attributes:
    source: file that lists all tensors: the only file, or the index of several.
    tensors: tensors by name.
  """

  def __init__(self, directory: str | os.PathLike):
    """Reads the headers.

    Args:
      directory: directory with model.safetensors, or with model.safetensors.index.json and the
        files that it lists.

    Raises:
      ValueError: one line that names the file and if possible the tensor: these files are
        missing, one is damaged or truncated, or the index and the files disagree.
    """
    directory = pathlib.Path(directory)
    self.source = _find_source(directory)
    if self.source.name == INDEX_FILE:
      listed = _read_index(self.source)
      self.tensors = {}
      for file in sorted(set(listed.values())):
        self._add(_read_header(file))
      for name, file in listed.items():
        if name not in self.tensors or self.tensors[name].file != file:
          raise ValueError(f'tensor {name} is missing from {file}, but is listed in {self.source}')
    else:
      self.tensors = _read_header(self.source)
    self._maps = {file: _map(file) for file in {t.file for t in self.tensors.values()}}

  def _add(self, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
      if name in self.tensors:
        raise ValueError(
            f'duplicate tensor {name}: in {self.tensors[name].file} and in {tensor.file}')
      self.tensors[name] = tensor

  def __contains__(self, name: str) -> bool:
    return name in self.tensors

  def __getitem__(self, name: str) -> np.ndarray:
    """Returns a read-only view; data is read only when it is used.

    Raises:
      ValueError: the dtype is not float32, float16 or bfloat16.
    """
    tensor = self.tensors[name]
    self.check_dtype(name)
    return np.ndarray(
        tensor.shape, DTYPES[tensor.dtype], buffer=self._maps[tensor.file], offset=tensor.offset)

  def check_dtype(self, name: str) -> None:
    """Raises a one-line ValueError if the tensor's dtype cannot be read."""
    tensor = self.tensors[name]
    if tensor.dtype not in DTYPES:
      raise ValueError(
          f'tensor {name} in {tensor.file} has dtype {tensor.dtype}, only '
          f'{", ".join(DTYPES)} can be read')


def _find_source(directory: pathlib.Path) -> pathlib.Path:
  if not directory.is_dir():
    raise ValueError(f'not a checkpoint directory: {str(directory)!r}')
  for name in (SINGLE_FILE, INDEX_FILE):
    if (directory / name).exists():
      return directory / name
  pickle = find_pickle(directory)
  if pickle is not None:
    raise ValueError(
        f'{pickle} is a pickle, which can run code when it is read, and is rejected; if you trust '
        'it, convert it with transformers: AutoModelForCausalLM.from_pretrained(folder)'
        '.save_pretrained(new_folder, safe_serialization=True)')
  others = sorted(path.name for path in directory.glob('*.safetensors'))
  listed = f' (only {", ".join(others[:3])})' if others else ''
  raise ValueError(f'{directory} must contain {SINGLE_FILE} or {INDEX_FILE}, got neither{listed}')


def find_pickle(directory: pathlib.Path) -> pathlib.Path | None:
  """Returns the first file of a directory that looks like pickled weights, or None."""
  for pattern in _PICKLES:
    for path in sorted(directory.glob(pattern)):
      if not path.name.startswith(_NO_WEIGHTS):
        return path
  return None


def _read_index(path: pathlib.Path) -> dict[str, pathlib.Path]:
  """Reads {tensor name: file} and checks that all files exist."""
  try:
    listed = json.loads(path.read_bytes())['weight_map']
    files = {name: path.parent / file for name, file in listed.items()}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
        f'{path} is damaged: it must be a JSON object with a weight_map of tensor names and file '
        f'names ({_one_line(error)})') from error
  for name, file in files.items():
    if pathlib.PurePath(listed[name]).name != listed[name]:
      raise ValueError(
          f'{path} must name files in its directory, got {listed[name]!r} for tensor {name}')
    if not file.exists():
      raise ValueError(f'{file} is missing, but {path} lists it for tensor {name}')
  return files


def _read_header(path: pathlib.Path) -> dict[str, Tensor]:
  """Reads the tensors of one file; the library checks the header and the file's length."""
  import safetensors

  try:
    with safetensors.safe_open(path, framework='numpy'):
      pass
    start, header = _parse_header(path)
  except (safetensors.SafetensorError, ValueError) as error:
    raise ValueError(_damage(path, error)) from error
  header.pop('__metadata__', None)
  return {
      name: Tensor(tuple(entry['shape']), entry['dtype'], path, start + entry['data_offsets'][0])
      for name, entry in header.items()}


def _parse_header(path: pathlib.Path) -> tuple[int, dict[str, Any]]:
  """Returns (start of the data, the header); the library does not expose the offsets."""

  def unique(pairs):
    # Of two entries with the same name, the library takes the last.
    if len(dict(pairs)) < len(pairs):
      names = [name for name, _ in pairs]
      twice = next(name for name in names if names.count(name) > 1)
      raise ValueError(f'duplicate tensor {twice} in its header')
    return dict(pairs)

  with open(path, 'rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    if length > os.fstat(file.fileno()).st_size - 8:
      raise ValueError(f'its header of {length} bytes is truncated')
    return 8 + length, json.loads(file.read(length), object_pairs_hook=unique)


def _damage(path: pathlib.Path, error: Exception) -> str:
  """Describes an unreadable file in one line; names the first truncated tensor."""
  size = path.stat().st_size
  with open(path, 'rb') as file:
    if file.read(15) == b'version https:/':
      return f'{path} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`'
  with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, IndexError):
    start, header = _parse_header(path)
    ends = {name: start + entry['data_offsets'][1]
            for name, entry in header.items() if name != '__metadata__'}
    for name, end in sorted(ends.items(), key=lambda item: item[1]):
      if end > size:
        return (f'{path} is truncated in tensor {name}: the file has {size} bytes, and needs '
                f'{max(ends.values())}')
  return f'{path} is damaged: {_one_line(error)}'


def _one_line(error: Exception) -> str:
  return ' '.join((str(error) or type(error).__name__).split())


def _map(path: pathlib.Path) -> mmap.mmap:
  with open(path, 'rb') as file:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@contextlib.contextmanager
def new_directory(directory: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Creates a temporary directory that is renamed to `directory` once it is complete and on disk.

  As `files.atomic_directory`, but never in place of files that exist.

  Args:
    directory: new or empty directory.

  Yields:
    The temporary directory, next to `directory`; it is removed if the block raises.

  Raises:
    ValueError: `directory` is in use.
    OSError: the directory cannot be written.
  """
  directory = pathlib.Path(directory).absolute()
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise ValueError(f'a checkpoint needs a new or empty directory, got {directory}')

  earlier = directory.with_name(f'.{directory.name}.incomplete')  # The name in earlier versions.
  shutil.rmtree(earlier, ignore_errors=True)
  with files.atomic_directory(directory) as temporary:
    yield temporary


def write(
    directory: str | os.PathLike, tensors: Iterable[NewTensor], *, max_shard_bytes: int
) -> None:
  """Writes a new directory with the tensors only; see `new_directory` and `write_files`."""
  with new_directory(directory) as folder:
    write_files(folder, tensors, max_shard_bytes=max_shard_bytes)


def write_files(
    folder: pathlib.Path, tensors: Iterable[NewTensor], *, max_shard_bytes: int
) -> None:
  """Writes model.safetensors, or shards with their index, one tensor in memory at a time.

  The library's writer needs all tensors of a file at once.

  Args:
    folder: existing directory; files in it are overwritten (see `new_directory`).
    tensors: tensors to write; they are assigned to shards in this order.
    max_shard_bytes: maximum data size of one file; a larger tensor gets its own file.

  Raises:
    ValueError: a name occurs twice, or an array differs from the declared shape or dtype.
    OSError: the disk is full.
  """
  if max_shard_bytes < 1:
    raise ValueError(f'max_shard_bytes must be at least 1, got {max_shard_bytes}')

  shards, names, total = [[]], set(), 0
  filled = 0
  for tensor in tensors:
    if tensor.name in names:
      raise ValueError(f'duplicate tensor {tensor.name}')
    names.add(tensor.name)

    size = _size(tensor)
    if shards[-1] and filled + size > max_shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append(tensor)
    filled += size
    total += size

  if len(shards) == 1:
    _write_file(folder / SINGLE_FILE, shards[0])
    return

  listed = {}
  for number, shard in enumerate(shards, 1):
    name = f'model-{number:05}-of-{len(shards):05}.safetensors'
    _write_file(folder / name, shard)
    listed |= {tensor.name: name for tensor in shard}

  index = {'metadata': {'total_size': total}, 'weight_map': dict(sorted(listed.items()))}
  (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + '\n')


def _size(tensor: NewTensor) -> int:
  return int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize


def _write_file(path: pathlib.Path, tensors: Sequence[NewTensor]) -> None:
  # Wide dtypes first, as in the library: each tensor is then aligned to its item size.
  tensors = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
  names = {dtype: name for name, dtype in DTYPES.items()}
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}  # Required by transformers.
  end = 0
  for tensor in tensors:
    begin, end = end, end + _size(tensor)
    header[tensor.name] = {
        'dtype': names[tensor.dtype], 'shape': list(tensor.shape), 'data_offsets': [begin, end]}

  encoded = json.dumps(header, separators=(',', ':')).encode()
  encoded += b' ' * (-len(encoded) % 8)

  try:
    with open(path, 'wb') as file:
      file.write(len(encoded).to_bytes(8, 'little') + encoded)
      for tensor in tensors:
        array = tensor.array()
        if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
          raise ValueError(
              f'tensor {tensor.name} must be {tensor.dtype} {list(tensor.shape)}, got '
              f'{array.dtype} {list(array.shape)}')
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        del array  # Free it before the next one is created.
  except OSError as error:  # An error from write(2) does not name the file.
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    need = f' ({end} bytes are needed)' if full else ''
    raise OSError(error.errno, os.strerror(error.errno) + need, str(path)) from error
