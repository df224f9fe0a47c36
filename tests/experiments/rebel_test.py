"""REBEL's two pipelines, end to end on tiny checkpoints and real prompts; resumed to the bit."""

import json
import shutil

import jax
import numpy as np
import pytest

from experiments import rebel, rebel_stages
from jaxrl_llm.training import loop, metrics
from tests.experiments import tiny_rebel


@pytest.fixture(scope='module')
def folder(data_dir, tmp_path_factory):
  return tiny_rebel.write(tmp_path_factory.mktemp('rebel'), data_dir)


@pytest.fixture(scope='module', autouse=True)
def compiled_once(tmp_path_factory):
  """Programs are compiled once for all runs of this file."""
  options = {
      'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('compiled')),
      'jax_persistent_cache_min_compile_time_secs': 0.0,
      'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  before = {name: getattr(jax.config, name) for name in options}
  for name, option in options.items():
    jax.config.update(name, option)
  yield
  for name, option in before.items():
    jax.config.update(name, option)


@pytest.fixture(scope='module')
def online(folder, tmp_path_factory):
  """An undisturbed run."""
  workdir = tmp_path_factory.mktemp('online') / 'run'
  tiny_rebel.run(rebel.main, tiny_rebel.online(folder), workdir)
  return workdir


def test_the_online_pipeline(online):
  outcome = tiny_rebel.outcome(online)
  print(json.dumps(outcome['results'], indent=1))
  assert False
