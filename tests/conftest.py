"""Fixtures and environment of all tests: eight fake devices, real data and fetched models."""

import gc
import math
import os
import pathlib
import signal
import tempfile
from collections.abc import Callable

import pytest

from tests import compiler_flags, named_tests

# Must precede the import of jax: meshes are tested on eight fake CPU devices.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = compiler_flags.add(
    f'{compiler_flags.EIGHT_DEVICES} {compiler_flags.FAST_COMPILE}',
    os.environ.get('XLA_FLAGS', ''))

# Programs that tests start leave the user's directory of compiled programs alone.
os.environ['JAXRL_LLM_COMPILE_CACHE'] = 'off'

# A shell makes background processes ignore Ctrl-C, which the processes that tests start and
# interrupt would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


# Their tests run whole programs; those of numbered identities are part of `make test` all the same.
PROGRAMS = ('system', 'experiments', 'colabs')


@pytest.hookimpl(tryfirst=True)  # Before tests are selected by their marks.
def pytest_collection_modifyitems(items):
  """Marks the tests of `make test-programs`, and starts the longest modules first."""
  for item in items:
    folder = item.path.relative_to(REPOSITORY / 'tests').parts[0]
    if folder in PROGRAMS and not named_tests.has_number(item.name):
      item.add_marker('programs')

  def order(item):
    is_system = item.path.is_relative_to(REPOSITORY / 'tests' / 'system')
    return not is_system, item.path.name != 'main_test.py'

  items.sort(key=order)


def pytest_collection_finish():
  """Collects garbage rarely: tracing makes millions of objects, and imports leave many more."""
  gc.freeze()
  gc.set_threshold(50_000, 20, 20)


def pytest_sessionfinish():
  """Skips garbage collection at the end: gigabytes of compiled programs are still referenced."""
  gc.freeze()


@pytest.fixture(scope='session', autouse=True)
def keep_programs():
  """Keeps compiled programs in files: another `jax.jit` of the same function reads them back.

  Each worker of pytest-xdist has its own directory: jax does not write the files atomically.
  """
  import jax

  with tempfile.TemporaryDirectory(prefix='jaxrl_llm_programs_') as directory:
    jax.config.update('jax_compilation_cache_dir', directory)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
    yield


@pytest.fixture(scope='module', autouse=True)
def forget_programs():
  """Drops compiled programs and traces after a test module.

  With gigabytes of them, a trace, its lowering and a garbage collection take twice as long.
  """
  yield
  import jax

  jax.clear_caches()


@pytest.fixture(scope='module')
def few_devices():
  """A config's mesh uses one of the eight fake devices, unless the config asks for more.

  Small arrays would otherwise be divided among all of them, on a few real cores.
  """
  import jax

  from jaxrl_llm.sharding import mesh as mesh_lib

  def from_config(config):
    sizes = [max(getattr(config, axis), 1) for axis in mesh_lib.AXES]
    return mesh_lib.make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mesh_lib, 'from_config', from_config)
    yield


@pytest.fixture(scope='session')
def data_dir() -> pathlib.Path:
  """Directory of real data: JAXRL_LLM_DATA, by default ../shared/data.

  If JAXRL_LLM_REQUIRE_DATA is set (as in CI), a missing directory fails instead of skipping.
  """
  default = REPOSITORY.parent / 'shared' / 'data'
  path = pathlib.Path(os.environ.get('JAXRL_LLM_DATA', default))
  if not path.is_dir():
    if os.environ.get('JAXRL_LLM_REQUIRE_DATA'):
      pytest.fail(f'real data not found at {path}, and JAXRL_LLM_REQUIRE_DATA is set')
    pytest.skip(f'real data not found at {path} (set JAXRL_LLM_DATA)')
  return path


@pytest.fixture(scope='session')
def model_dir() -> Callable[[str], pathlib.Path]:
  """Finds a model of `make models` by name, in JAXRL_LLM_MODELS, by default models.

  If JAXRL_LLM_REQUIRE_MODELS is set (as in CI), a missing model fails instead of skipping.
  """
  folder = pathlib.Path(os.environ.get('JAXRL_LLM_MODELS') or REPOSITORY / 'models')

  def find(name: str) -> pathlib.Path:
    path = folder / name
    if not (path / 'config.json').is_file():
      if os.environ.get('JAXRL_LLM_REQUIRE_MODELS'):
        pytest.fail(f'model not found at {path}, and JAXRL_LLM_REQUIRE_MODELS is set')
      pytest.skip(f'model not found at {path} (`make models` fetches it)')
    return path

  return find
