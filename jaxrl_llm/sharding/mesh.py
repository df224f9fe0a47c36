"""The device mesh: always three axes, data, fsdp and tensor, each of size 1 or more.

Batches are split over data and fsdp together, parameters over fsdp and tensor (`rules`).
"""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ('data', 'fsdp', 'tensor')


@dataclasses.dataclass
class MeshConfig:
  """Size of each mesh axis; their product is the number of devices.

  Attributes:
    data: replicas of the parameters; -1 uses all devices left by the other axes.
    fsdp: shards of parameters and optimizer state, gathered when used; -1 as above.
    tensor: shards of a matrix product; -1 as above.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def validate(self, prefix: str = 'config.mesh') -> None:
    """Raises a one-line ValueError unless all sizes are positive; at most one can be -1."""
    for axis in AXES:
      size = getattr(self, axis)
      if size < 1 and size != -1:
        raise ValueError(
            f'{prefix}.{axis} must be at least 1, or -1 for the remaining devices, got {size}')
    if (self.data, self.fsdp, self.tensor).count(-1) > 1:
      raise ValueError(
          f'{prefix}: at most one axis may be -1, got data={self.data}, fsdp={self.fsdp}, '
          f'tensor={self.tensor}')


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Any = None) -> Mesh:
  """Builds a mesh over all devices.

  Args:
    data: size of the data axis; one of the three can be -1, for all remaining devices.
    fsdp: size of the fsdp axis.
    tensor: size of the tensor axis.
    devices: by default `jax.devices()`.

  Returns:
    A mesh with the axes `AXES`, of type Auto: the compiler propagates shardings.

  Raises:
    ValueError: if the sizes are not valid, or their product is not the number of devices.
  """
  MeshConfig(data, fsdp, tensor).validate()
  devices = jax.devices() if devices is None else list(devices)
  sizes = [data, fsdp, tensor]
  if -1 in sizes:
    given = math.prod(size for size in sizes if size != -1)
    sizes[sizes.index(-1)] = max(len(devices) // given, 1)
  if math.prod(sizes) != len(devices):
    shape = 'x'.join(map(str, (data, fsdp, tensor)))
    raise ValueError(
        f'config.mesh: a mesh (data x fsdp x tensor) must use all {len(devices)} devices, '
        f'got {shape}')
  return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def from_config(config: MeshConfig) -> Mesh:
  """Builds the mesh of a config; arguments and errors as for `make_mesh`."""
  return make_mesh(config.data, config.fsdp, config.tensor)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Shards the leading axis (prompts) over data and fsdp; a group of samples is never split."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def num_batch_shards(mesh: Mesh) -> int:
  """Returns the number of parts that `batch_sharding` splits the leading axis into."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def replicated(mesh: Mesh) -> NamedSharding:
  """Replicates the whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, rows: int, *, num_micro_batches: int = 1) -> None:
  """Raises ValueError unless every device gets the same number of rows of each micro-batch.

  Args:
    mesh: the mesh.
    rows: P, prompts per batch.
    num_micro_batches: micro-batches that a batch is split into first.
  """
  parts = num_batch_shards(mesh) * num_micro_batches
  if rows % parts:
    raise ValueError(
        f'a batch must be divisible by data x fsdp x micro-batches ({parts}), got {rows} prompts')
