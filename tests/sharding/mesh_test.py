"""Meshes on eight fake devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from jaxrl_llm.sharding import mesh as mesh_lib


@pytest.mark.parametrize('given,expected', [
    ((8, 1, 1), (8, 1, 1)), ((2, 2, 2), (2, 2, 2)), ((-1, 2, 1), (4, 2, 1)),
    ((1, -1, 4), (1, 2, 4)), ((-1, 1, 1), (8, 1, 1)), ((2, 4, -1), (2, 4, 1)),
])
def test_three_axes_of_type_auto(given, expected):
  mesh = mesh_lib.make_mesh(*given)
  assert mesh.axis_names == ('data', 'fsdp', 'tensor')
  assert tuple(mesh.shape.values()) == expected
  assert mesh.axis_types == (AxisType.Auto,) * 3
  assert mesh_lib.from_config(mesh_lib.MeshConfig(*given)) == mesh


def test_one_device():
  assert mesh_lib.make_mesh(1, 1, 1, devices=jax.devices()[:1]).size == 1
  assert mesh_lib.make_mesh(devices=jax.devices()[:1]).size == 1


@pytest.mark.parametrize('given,message', [
    ((3, 1, 1), 'must use all 8 devices, got 3x1x1'),
    ((16, 1, 1), 'must use all 8 devices, got 16x1x1'),
    ((-1, 3, 1), 'must use all 8 devices, got -1x3x1'),
    ((-1, 16, 1), 'must use all 8 devices, got -1x16x1'),
    ((0, 1, 1), r'data must be at least 1, or -1 for the remaining devices, got 0'),
    ((1, 1, -2), r'tensor must be at least 1, or -1 for the remaining devices, got -2'),
    ((-1, -1, 1), 'at most one axis may be -1, got data=-1, fsdp=-1, tensor=1'),
])
def test_invalid_sizes(given, message):
  with pytest.raises(ValueError, match=message):
    mesh_lib.make_mesh(*given)


def test_a_batch_is_split_over_data_and_fsdp_but_groups_are_not():
  mesh = mesh_lib.make_mesh(2, 2, 2)
  rewards = jax.device_put(jnp.arange(32.0).reshape(8, 4), mesh_lib.batch_sharding(mesh))
  assert {shard.data.shape for shard in rewards.addressable_shards} == {(2, 4)}
  starts = {shard.index[0].start or 0 for shard in rewards.addressable_shards}
  assert starts == {0, 2, 4, 6}


def test_replicated():
  mesh = mesh_lib.make_mesh(2, 2, 2)
  value = jax.device_put(jnp.arange(3), mesh_lib.replicated(mesh))
  assert all(shard.data.shape == (3,) for shard in value.addressable_shards)


def test_check_batch():
  mesh = mesh_lib.make_mesh(2, 2, 2)
  mesh_lib.check_batch(mesh, 8, num_micro_batches=2)
  with pytest.raises(ValueError, match='divisible by data x fsdp x micro-batches .16., got 8'):
    mesh_lib.check_batch(mesh, 8, num_micro_batches=4)
