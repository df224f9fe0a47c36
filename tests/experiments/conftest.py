"""Fixtures of the tests of programs."""

import pytest


@pytest.fixture(scope='module', autouse=True)
def _one_device(few_devices):
  """Programs in the test's own process use one device, unless they ask for more."""
