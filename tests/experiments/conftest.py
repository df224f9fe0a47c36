"""Fixtures of the tests of programs."""

import math

import pytest

from jaxrl_llm.sharding import mesh as mesh_lib


@pytest.fixture(scope='module', autouse=True)
def few_devices():
  """Programs in the test's own process use one of the eight fake devices, unless they ask for more.

  Their small arrays would otherwise be divided among all of them, on a few real cores.
  """
  import jax

  def from_config(config):
    sizes = [max(getattr(config, axis), 1) for axis in mesh_lib.AXES]
    return mesh_lib.make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mesh_lib, 'from_config', from_config)
    yield
