"""Converts between checkpoint tensors and our tree, with one list of entries for both directions.

A family describes each tensor of one layer once, with two NumPy functions: `split` (theirs -> ours)
and `join` (ours -> theirs). They serve to check shapes, load parameters and save tensors.
Paths are '/'-separated. A tree may have `last_layers` after `layers`: the blocks that follow.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.models.pretrained import weights

# Number of columns copied at a time. The destination of a transposed matrix is then written in
# pieces that fit in the caches, two to five times as fast as in NumPy's own order.
_STRIP = 256


class Entry(NamedTuple):
  """Conversion between one checkpoint tensor (of each layer) and our parameters.

  Attributes:
    theirs: name of the tensor, with '{i}' for the layer.
    ours: paths in our tree; in an entry with '{i}' they are stacked, [layers, ...].
    split: their tensor -> our parameters of one layer, a tuple as long as `ours`; views where
      possible.
    join: our parameters of one layer -> their tensor.
  """

  theirs: str
  ours: tuple[str, ...]
  split: Callable[[np.ndarray], tuple[np.ndarray, ...]]
  join: Callable[..., np.ndarray]


def same(theirs: str, ours: str) -> Entry:
  """Entry for one tensor that equals one parameter."""
  return Entry(theirs, (ours,), lambda x: (x,), lambda x: x)


def transposed(theirs: str, ours: str) -> Entry:
  """Entry for a matrix of theirs, [out, in], that is a kernel of ours, [in, out]."""
  return Entry(theirs, (ours,), lambda x: (x.T,), lambda x: x.T)


def flatten(tree: Any) -> dict[str, Any]:
  """Flattens a nested dict to {path: leaf}."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> dict:
  """The inverse of `flatten`."""
  tree: dict = {}
  for path, leaf in leaves.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def with_prefix(entries: Sequence[Entry], prefix: str) -> list[Entry]:
  """Adds `prefix` to the names of the trunk's tensors, but not to those of a head."""
  in_head = lambda entry: all(path.startswith(('head/', 'value_head/')) for path in entry.ours)
  return [entry if in_head(entry) else entry._replace(theirs=prefix + entry.theirs)
          for entry in entries]


class _Stack:
  """A parameter of all layers: `layers/x`, and `last_layers/x` if the tree has it."""

  def __init__(self, leaves: Mapping[str, Any], path: str, *, stacked: bool):
    last = 'last_' + path
    self.parts = [leaves[path]] if path in leaves else []
    if stacked and path.startswith('layers/') and last in leaves:
      self.parts.append(leaves[last])
    self.stacked = stacked

  @property
  def layers(self) -> int:
    """Number of layers; 1 for a parameter that is not stacked."""
    return sum(part.shape[0] for part in self.parts) if self.stacked else len(self.parts)

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of one layer."""
    return tuple(self.parts[0].shape[1:] if self.stacked else self.parts[0].shape)

  def layer(self, index: int) -> np.ndarray:
    """Returns one layer as a host array, without caching it in the parameter."""
    part = self.parts[0]
    if not self.stacked:
      # A JAX array caches its NumPy copy: convert a copy of it instead.
      return part if isinstance(part, np.ndarray) else np.asarray(jnp.copy(part))
    for part in self.parts:
      if index < part.shape[0]:
        return np.asarray(part[index])
      index -= part.shape[0]
    raise IndexError(index)


class _Expected(NamedTuple):
  """One tensor to build from the parameters of a tree: `layer` of an entry's stacks."""

  name: str
  shape: tuple[int, ...]
  entry: Entry
  stacks: list[_Stack]
  layer: int

  def array(self, dtype: np.dtype) -> np.ndarray:
    """Fetches the parameters of this layer and joins them."""
    array = self.entry.join(*(stack.layer(self.layer) for stack in self.stacks))
    return array.astype(dtype, copy=False)


def _expand(entries: Sequence[Entry], leaves: Mapping[str, Any]) -> Iterator[_Expected]:
  """Yields all tensors of a flat tree; skips entries whose parameters it does not have."""
  for entry in entries:
    stacks = [_Stack(leaves, path, stacked='{i}' in entry.theirs) for path in entry.ours]
    layers = {path: stack.layers for path, stack in zip(entry.ours, stacks)}
    if len(set(layers.values())) > 1:
      counted = ', '.join(f'{number} of {path}' for path, number in layers.items())
      raise ValueError(f'{entry.theirs} needs the same number of layers of each, got {counted}')
    if stacks[0].layers:
      # One broadcast byte: a join that only rearranges views costs nothing.
      seen = [np.broadcast_to(np.int8(0), stack.shape) for stack in stacks]
      shape = entry.join(*seen).shape
      for i in range(stacks[0].layers):
        yield _Expected(entry.theirs.replace('{i}', str(i)), shape, entry, stacks, i)


def shapes(entries: Sequence[Entry], abstract: Any) -> dict[str, tuple[int, ...]]:
  """Returns names and shapes of the tensors of a tree.

  Args:
    entries: entries with their prefix.
    abstract: our tree, of arrays or `jax.ShapeDtypeStruct`s.
  """
  return {tensor.name: tensor.shape for tensor in _expand(entries, flatten(abstract))}


def uncovered(entries: Sequence[Entry], tree: Any) -> list[str]:
  """Returns the paths of the parameters without an entry."""
  covered = {path for entry in entries for path in entry.ours}
  return [path for path in flatten(tree) if _path_of_all(path) not in covered]


def _path_of_all(path: str) -> str:
  """Maps last_layers/x to layers/x."""
  return path.removeprefix('last_') if path.startswith('last_layers/') else path


def check(
    entries: Sequence[Entry],
    reader: weights.Reader,
    abstract: Any,
    *,
    ignored: Sequence[str] = (),
    prefix: str = '',
) -> None:
  """Checks that a checkpoint has the tensors that a tree needs, and no others.

  Args:
    entries: entries with their prefix.
    reader: the checkpoint.
    abstract: our tree; parameters without an entry are skipped.
    ignored: regular expressions for other tensors that are allowed, matched against the whole
      name, with or without `prefix`.
    prefix: prefix of the trunk's tensors.

  Raises:
    ValueError: one line that names tensor and file: a tensor is missing, has the wrong shape or
      an unreadable dtype, or is unknown.
  """
  expected = {tensor.name: tensor for tensor in _expand(entries, flatten(abstract))}
  missing = [name for name in expected if name not in reader]
  if missing:
    raise ValueError(f'tensor {missing[0]} is missing from {reader.source}{_more(missing)}')

  for name, (_, shape, entry, *_) in expected.items():
    tensor = reader.tensors[name]
    if tensor.shape != shape:
      raise ValueError(
          f'tensor {name} in {tensor.file} has shape {list(tensor.shape)}, the model needs '
          f'{list(shape)} ({", ".join(entry.ours)})')
    reader.check_dtype(name)

  patterns = [re.compile(pattern) for pattern in ignored]
  unknown = [
      name for name in reader.tensors
      if name not in expected and not any(
          pattern.fullmatch(name) or pattern.fullmatch(name.removeprefix(prefix))
          for pattern in patterns)]

  if unknown:
    file = reader.tensors[unknown[0]].file
    raise ValueError(f'tensor {unknown[0]} in {file} is not used by the model{_more(unknown)}')


def _more(names: Sequence[str]) -> str:
  return f' (and {len(names) - 1} more like it)' if len(names) > 1 else ''


def load(
    entries: Sequence[Entry], reader: weights.Reader, abstract: Any
) -> Iterator[tuple[str, jax.Array]]:
  """Loads parameters one at a time, one device's part after another.

  A part is read from the memory map layer by layer into one host array of the target dtype,
  copied to its device, and dropped. Apart from the parameters themselves, the host holds only one
  part of one parameter at a time.

  Args:
    entries: entries with their prefix, checked by `check`.
    reader: the checkpoint.
    abstract: our tree of `jax.ShapeDtypeStruct`s; parameters without an entry are skipped.
      A parameter without a sharding goes to the first device.

  Yields:
    (path, parameter), once it is on its devices.
  """
  leaves = flatten(abstract)
  sources = {path: (entry, part) for entry in entries for part, path in enumerate(entry.ours)}
  for path, leaf in leaves.items():
    path_of_all = _path_of_all(path)
    if path_of_all in sources:
      # If a tree has both, `last_layers` follow `layers`.
      before = leaves[path_of_all].shape[0] if path != path_of_all and path_of_all in leaves else 0
      entry, part = sources[path_of_all]
      read = functools.partial(_read, reader, entry, part, before, leaf.dtype)
      yield path, device_array(leaf, read)


def device_array(
    leaf: jax.ShapeDtypeStruct, read: Callable[[tuple[slice, ...]], np.ndarray]
) -> jax.Array:
  """Builds an array from the parts that `read` returns, one part on the host at a time.

  `jax.make_array_from_callback` would hold the parts of all devices on the host at once.

  Args:
    leaf: shape, dtype and sharding, by default the first device.
    read: slices with start and stop, one per axis -> that part, in the leaf's dtype.
  """
  sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  where = {
      device: tuple(slice(*cut.indices(size)[:2]) for cut, size in zip(index, leaf.shape))
      for device, index in sharding.addressable_devices_indices_map(leaf.shape).items()}
  bounds = lambda device: [(cut.start, cut.stop) for cut in where[device]]
  arrays, done = {}, None
  for device in sorted(where, key=bounds):  # Groups devices that hold the same part.
    if done != bounds(device):
      part, done = _unaligned(read(where[device])), bounds(device)
    arrays[device] = jax.device_put(part, device, may_alias=False).block_until_ready()
  return jax.make_array_from_single_device_arrays(
      leaf.shape, sharding, [arrays[device] for device in where])


def _unaligned(array: np.ndarray) -> np.ndarray:
  """Returns the array in memory that a CPU device copies instead of aliasing.

  Regardless of `may_alias`, a CPU device uses a host array that begins at a multiple of 64 bytes
  as its own buffer, which then cannot be donated to a train step.
  """
  if array.ctypes.data % 64:
    return array
  buffer = np.empty(array.nbytes + 128, np.uint8)
  start = -buffer.ctypes.data % 64 + array.itemsize
  out = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
  out[...] = array
  return out


def _read(
    reader: weights.Reader, entry: Entry, part: int, before: int, dtype: np.dtype,
    where: tuple[slice, ...],
) -> np.ndarray:
  """Reads the slices `where` of one parameter; its first layer is layer `before` of the model."""
  out = np.empty([cut.stop - cut.start for cut in where], dtype)
  if '{i}' not in entry.theirs:
    _copy(out, entry.split(reader[entry.theirs])[part][where])
    return out
  for row in range(out.shape[0]):
    name = entry.theirs.replace('{i}', str(before + where[0].start + row))
    _copy(out[row, ...], entry.split(reader[name])[part][where[1:]])
  return out


def _copy(out: np.ndarray, source: np.ndarray) -> None:
  if out.ndim < 2:
    out[...] = source
    return
  for start in range(0, out.shape[-1], _STRIP):
    strip = np.s_[..., start : start + _STRIP]
    out[strip] = source[strip]


def tensors(
    entries: Sequence[Entry], params: Any, dtype: str | np.dtype
) -> Iterator[weights.NewTensor]:
  """Yields the tensors to save for a tree; parameters are fetched when an array is requested.

  Args:
    entries: entries with their prefix.
    params: our tree of arrays, with the parameters of the entries and no others.
    dtype: dtype of the tensors, float32 or bfloat16.

  Yields:
    The tensors for `weights.write`.

  Raises:
    ValueError: a parameter has no entry, or an entry lacks a parameter; the message names it.
  """
  dtype, leaves = jnp.dtype(dtype), flatten(params)
  unknown = uncovered(entries, params)
  if unknown:
    raise ValueError(
        f'parameter {unknown[0]} is not part of the checkpoint format{_more(unknown)}')

  present = {_path_of_all(path) for path in leaves}
  missing = [path for entry in entries for path in entry.ours if path not in present]
  if missing:
    raise ValueError(f'parameter {missing[0]} is needed for the checkpoint{_more(missing)}')

  for tensor in _expand(entries, leaves):
    yield weights.NewTensor(
        tensor.name, tensor.shape, dtype, functools.partial(tensor.array, dtype))
