"""Loss and gradients do not depend on the mesh or the number of micro-batches."""

import functools

import jax
import numpy as np
import pytest

from tests.system import train_steps

NAMES = ('sft', 'a_star_po')


@functools.cache
def _one_device(name):
  return train_steps.loss_and_gradients(name)


def _assert_close(actual, expected, tolerance):
  """Relative to the largest entry of the whole gradient, and of each metric."""
  assert actual[0].keys() == expected[0].keys()
  for metric, value in expected[0].items():
    assert abs(actual[0][metric] - value) <= tolerance * abs(value), metric
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[1]))
  assert largest > 1e-4
  gaps = jax.tree.map(lambda a, b: np.abs(a - b).max() / largest, actual[1], expected[1])
  assert max(jax.tree.leaves(gaps)) <= tolerance, gaps


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2), (1, 8, 1)])
def test_meshes_agree_with_one_device(name, shape):
  _assert_close(
      train_steps.loss_and_gradients(name, mesh_shape=shape), _one_device(name), 1e-5)


@pytest.mark.parametrize('name', NAMES)
def test_eight_micro_batches_agree_with_one(name):
  """On the model and batch of the main job; they differ by float32 rounding."""
  run = functools.partial(
      train_steps.loss_and_gradients, name, shape=train_steps.main_job_model(), rows=128)
  _assert_close(run(num_micro_batches=8), run(num_micro_batches=1), 1e-6)


def test_micro_batches_on_a_mesh_agree_with_one_device():
  actual = train_steps.loss_and_gradients('a_star_po', mesh_shape=(2, 2, 2), num_micro_batches=4)
  _assert_close(actual, _one_device('a_star_po'), 1e-5)


def test_every_parameter_has_a_gradient():
  """Otherwise the comparisons above would be empty."""
  for name in NAMES:
    zero = [path for path, leaf in jax.tree_util.tree_leaves_with_path(_one_device(name)[1])
            if not np.any(leaf)]
    assert not zero
