"""Checkpoints: bit for bit, onto other meshes, after kills, corruption and a full disk."""

import errno
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.sharding import rules
from jaxrl_llm.training import checkpoints, files, rng
from jaxrl_llm.types import TrainState

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def _state(seed=0):
  random_state = np.random.default_rng(seed)
  params = {'policy': {
      'embedder': {'embedding': jnp.asarray(random_state.normal(size=(16, 8)), jnp.float32)},
      'layers': {'mlp': {'up': {'kernel': jnp.asarray(
          random_state.normal(size=(2, 8, 16)), jnp.bfloat16)}}},
      'final_norm': {'scale': jnp.asarray([np.nan, np.inf, -0.0, 1e-42, 1, 2, 3, 4], jnp.float32)},
  }}
  return TrainState(
      step=jnp.int32(seed), params=params, opt_state=OPTIMIZER.init(params),
      key=rng.base_key(seed), aux={'none': None, 'empty': {}, 'count': jnp.int32(3)})


def _leaves(tree):
  is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  return [
      np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
      for leaf in jax.tree.leaves(tree)
  ]


def _assert_identical(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(_leaves(actual), _leaves(expected), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture
def opened():
  """Opens checkpoint folders and closes them after the test."""
  everything = []

  def open_checkpoints(path, **options):
    everything.append(checkpoints.Checkpoints(path, **options))
    return everything[-1]

  yield open_checkpoints
  for one in everything:
    one.close()


def test_restore_is_bit_identical(tmp_path, opened):
  state = _state(3)
  first = opened(tmp_path / 'c')
  assert first.restore_latest(state) is None
  first.save(7, state, {'offsets': {'metrics': 12}, 'name': 'a'})
  first.wait()
  restored = opened(tmp_path / 'c').restore_latest(jax.eval_shape(lambda: state))
  assert (restored.step, restored.warnings) == (7, [])
  assert restored.metadata == {'offsets': {'metrics': 12}, 'name': 'a'}
  _assert_identical(restored.state, state)
  # The key is a key again, and draws the same numbers.
  draws = [jax.random.normal(rng.stream_key(s.key, rng.DATA, 1)) for s in (restored.state, state)]
  assert float(draws[0]) == float(draws[1])


def test_a_checkpoint_of_another_run_is_named(tmp_path, opened):
  """Directories of checkpoints are copied by hand: their states would fit."""
  state, ours = _state(3), {'experiment': 'sft', 'config': {'seed': 0}}
  first = opened(tmp_path / 'c', identity=ours)
  first.save(7, state, {})
  first.wait()
  assert opened(tmp_path / 'c', identity=ours).restore_latest(state).step == 7

  other = opened(tmp_path / 'c', identity={'experiment': 'sft', 'config': {'seed': 1}})
  with pytest.raises(checkpoints.CheckpointError) as error:
    other.restore_latest(state)
  assert str(error.value) == (
      f'{tmp_path / "c" / "7"} is a checkpoint of another run (config.seed: 0 there, 1 now): '
      'remove it, or give another --workdir')


def test_a_checkpoint_that_does_not_say_whose_it_is_is_refused(tmp_path, opened, monkeypatch):
  state = _state(3)
  first = opened(tmp_path / 'c')
  monkeypatch.setattr(first, '_identity', None)  # As earlier versions wrote it.
  first.save(7, state, {})
  first.wait()
  with pytest.raises(checkpoints.CheckpointError, match='c/7 is of an earlier version, which did'):
    opened(tmp_path / 'c', identity={'experiment': 'sft'}).restore_latest(state)


def test_saving_is_safe_under_donation(tmp_path, opened):
  """The saved state is the one before the step that reuses its buffers."""
  folder = opened(tmp_path / 'c')
  advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
  tree = {'x': jnp.zeros((1000, 1000)), 'y': jnp.zeros(3)}
  for step in range(6):
    folder.save(step, tree, {})
    for _ in range(3):
      tree = advance(tree)
    restored = folder.restore_latest(tree)
    assert restored.step == step
    assert all(np.all(leaf == 3 * step) for leaf in _leaves(restored.state))


@pytest.mark.parametrize('shapes', [((8, 1, 1), (2, 2, 2)), ((1, 8, 1), (1, 1, 8)),
                                    ((2, 2, 2), (8, 1, 1))])
def test_restore_onto_another_mesh(tmp_path, opened, shapes):
  table = (*rules.STATE_RULES, ('aux/count', rules.P()), *rules.DECODER_RULES)
  state = _state(1)
  there, here = (
      rules.shardings(mesh_lib.make_mesh(*shape), state, rules=table) for shape in shapes)
  folder = opened(tmp_path / 'c')
  folder.save(1, jax.device_put(state, there), {})
  abstract = rules.abstract(jax.eval_shape(lambda: state), here)
  restored = folder.restore_latest(abstract).state
  _assert_identical(restored, state)
  for leaf, sharding in zip(jax.tree.leaves(restored), jax.tree.leaves(here), strict=True):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_keeps_the_newest(tmp_path, opened):
  folder = opened(tmp_path / 'c', keep=2)
  for step in (1, 2, 3, 3):  # Saving a step twice changes nothing.
    folder.save(step, _state(step), {})
  folder.wait()
  assert folder.steps() == [2, 3]


def test_keep_must_leave_one_to_fall_back_on(tmp_path):
  with pytest.raises(ValueError, match='at least 2, got 1'):
    checkpoints.Checkpoints(tmp_path, keep=1)


def _flip_a_bit(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0x10
  path.write_bytes(data)


def _biggest(folder):
  return max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


DAMAGES = {
    'flipped bit': lambda folder: _flip_a_bit(_biggest(folder / 'state')),
    'truncated': lambda folder: os.truncate(_biggest(folder / 'state'), 10),
    'missing file': lambda folder: _biggest(folder / 'state').unlink(),
    'empty document': lambda folder: os.truncate(_biggest(folder / 'document'), 0),
    'broken checksums': lambda folder: (folder / 'checksums.json').write_text('{'),
    'empty checksums': lambda folder: (folder / 'checksums.json').write_text('{}'),
    'checksums of another type': lambda folder: (folder / 'checksums.json').write_text('[1]'),
    'deep checksums': lambda folder: (folder / 'checksums.json').write_text('[' * 10**5),
    'no checksums': lambda folder: (folder / 'checksums.json').unlink(),
    'further file': lambda folder: (folder / 'state' / 'further').write_text('a'),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_corrupt_newest_falls_back_and_says_so(tmp_path, opened, damage):
  folder = opened(tmp_path / 'c')
  for step in (1, 2):
    folder.save(step, _state(step), {'at': step})
  folder.wait()
  DAMAGES[damage](tmp_path / 'c' / '2')
  resumed = opened(tmp_path / 'c')
  restored = resumed.restore_latest(_state())
  assert (restored.step, restored.metadata) == (1, {'at': 1})
  _assert_identical(restored.state, _state(1))
  assert len(restored.warnings) == 1 and '\n' not in restored.warnings[0]
  assert restored.warnings[0].startswith('checkpoint 2 is corrupt (')
  assert (tmp_path / 'c.corrupt' / '2').is_dir()  # Moved, not deleted.
  # The run goes on and saves the step again.
  resumed.save(2, _state(2), {'at': 2})
  _assert_identical(resumed.restore_latest(_state()).state, _state(2))


def test_all_corrupt_is_one_line(tmp_path, opened):
  folder = opened(tmp_path / 'c')
  for step in (1, 2):
    folder.save(step, _state(step), {})
  folder.wait()
  for step in (1, 2):
    DAMAGES['truncated'](tmp_path / 'c' / str(step))
  with pytest.raises(checkpoints.CheckpointError, match=r'is corrupt \(steps 1, 2; 2: ') as error:
    opened(tmp_path / 'c').restore_latest(_state())
  assert '\n' not in str(error.value)
  assert (tmp_path / 'c' / '1').is_dir() and (tmp_path / 'c' / '2').is_dir()


def test_a_file_of_orbax_that_is_nested_too_deeply_is_one_line(tmp_path, opened):
  checkpoint = opened(tmp_path / 'c')
  checkpoint.save(1, _state(), {})
  checkpoint.wait()
  (tmp_path / 'c' / '1' / '_CHECKPOINT_METADATA').write_text('[' * 100_000)
  with pytest.raises(checkpoints.CheckpointError, match='is damaged: a file is nested too deeply'):
    opened(tmp_path / 'c').restore_latest(_state())


def test_mismatch_names_the_parameter(tmp_path, opened):
  folder = opened(tmp_path / 'c')
  folder.save(1, {'params': {'a': jnp.zeros((2, 3)), 'b': jnp.zeros(1)}}, {})
  folder.wait()

  cases = {
      r'params/a is float32\[2, 3\] in .* and float32\[2, 4\] in this run':
          {'a': jnp.zeros((2, 4)), 'b': jnp.zeros(1)},
      r'params/a is float32\[2, 3\] in .* and bfloat16\[2, 3\]':
          {'a': jnp.zeros((2, 3), jnp.bfloat16), 'b': jnp.zeros(1)},
      r'holds params/b, which this run does not have': {'a': jnp.zeros((2, 3))},
      r'does not hold params/c, which this run has':
          {'a': jnp.zeros((2, 3)), 'b': jnp.zeros(1), 'c': jnp.zeros(1)},
  }

  for message, params in cases.items():
    with pytest.raises(checkpoints.CheckpointError, match=message):
      folder.restore_latest({'params': params})
  assert folder.steps() == [1]  # A mismatch is not damage: nothing was moved.


# A file system of 800 kB of the process's own; the test's other processes do not see it.
SMALL_DISK = ['unshare', '--map-root-user', '--mount', 'sh', '-c',
              'mount -t tmpfs -o size=800k tmpfs "$1" && shift && exec "$@"', 'sh']


FULL_DISK = textwrap.dedent("""
    import errno, sys
    import numpy as np
    import jax.numpy as jnp
    from jaxrl_llm.training import checkpoints
    folder = checkpoints.Checkpoints(sys.argv[1], keep=3)
    # Many arrays: each that cannot be written fails in a thread of its own.
    tree = {f'x{i}': jnp.asarray(np.random.default_rng(i).normal(size=3_000)) for i in range(20)}
    try:
      for step in range(1, 9):
        folder.save(step, tree, {})
        folder.wait()
      print('never full')
    except OSError as error:
      assert error.errno == errno.ENOSPC, error
      print('full at', step, error.strerror)
    folder.close()
    folder = checkpoints.Checkpoints(sys.argv[1], keep=3)
    print('restored', folder.restore_latest(tree).step)
    folder.close()
""")


def _check_on_a_small_disk(tmp_path):
  probe = [*SMALL_DISK, str(tmp_path), 'true']
  if not shutil.which('unshare') or subprocess.run(probe, capture_output=True).returncode:
    return  # Only where a process may mount a disk of its own.
  done = subprocess.run(
      [*SMALL_DISK, str(tmp_path), sys.executable, '-c', FULL_DISK, str(tmp_path / 'c')],
      cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
  assert done.returncode == 0, done.stderr
  assert done.stderr == ''  # One line is the caller's to print; the libraries stay quiet.
  full, restored = done.stdout.splitlines()
  match = re.fullmatch(r'full at (\d) the disk is full; the last complete checkpoint is kept', full)
  assert int(match[1]) >= 3  # About 250 kB a checkpoint.
  assert restored == f'restored {int(match[1]) - 1}'


def test_full_disk_keeps_the_last_complete_checkpoint(tmp_path, monkeypatch, opened):
  folder = opened(tmp_path / 'fake')
  folder.save(1, _state(1), {})
  folder.wait()

  def fail():
    raise ValueError('RESOURCE_EXHAUSTED: Failed writing: "x" [No space left on device]')

  with monkeypatch.context() as patch:
    patch.setattr(folder._manager, 'wait_until_finished', fail)
    with pytest.raises(OSError, match='the disk is full') as error:
      folder.save(2, _state(2), {})
  assert error.value.errno == errno.ENOSPC
  assert folder.restore_latest(_state()).step == 1
  _check_on_a_small_disk(tmp_path)


SAVE_FOREVER = textwrap.dedent("""
    import sys
    import jax.numpy as jnp
    from jaxrl_llm.training import checkpoints, files, rng
    folder = checkpoints.Checkpoints(sys.argv[1])
    tree = lambda step: {'x': jnp.full((400, 400), float(step)), 'key': rng.base_key(step)}
    restored = folder.restore_latest(tree(0))
    step = restored.step if restored else 0
    while True:
      step += 1
      folder.save(step, tree(step), {'step': step})
      folder.wait()
      print(step, flush=True)
""")


def test_kill_while_saving_leaves_a_usable_checkpoint(tmp_path, opened):
  delays = random.Random(0)
  expected = lambda step: {'x': jnp.full((400, 400), float(step)), 'key': rng.base_key(step)}
  complete = 0

  for _ in range(4):
    process = subprocess.Popen(
        [sys.executable, '-c', SAVE_FOREVER, str(tmp_path / 'c')], cwd=REPOSITORY,
        stdout=subprocess.PIPE, text=True)
    complete = max(complete, int(process.stdout.readline()))
    time.sleep(delays.uniform(0.05, 0.3))
    process.send_signal(signal.SIGKILL)
    rest = process.communicate()[0].split('\n')[:-1]  # A cut-off last line does not count.
    complete = max([complete, *map(int, rest)])
    restored = opened(tmp_path / 'c').restore_latest(expected(0))
    assert restored.step in (complete, complete + 1)  # + 1: renamed, and killed before the print.
    assert restored.warnings == [] and restored.metadata == {'step': restored.step}
    _assert_identical(restored.state, expected(restored.step))
    complete = restored.step

  assert complete > 4


def test_half_written_folders_are_removed(tmp_path, opened):
  folder = opened(tmp_path / 'c')
  folder.save(1, _state(1), {})
  folder.wait()
  leftover = tmp_path / 'c' / '2.orbax-checkpoint-tmp' / 'state'
  leftover.mkdir(parents=True)
  resumed = opened(tmp_path / 'c')
  assert resumed.steps() == [1] and not leftover.exists()
  resumed.save(2, _state(2), {})
  resumed.wait()
  assert resumed.steps() == [1, 2]


def test_params_round_trip_and_replace(tmp_path):
  params = _state(1).params['policy']
  metadata = {'tokenizer': 'abc', 'model': {'width': 8, 'layers': [1, 2]}}
  checkpoints.save_params(tmp_path / 'p', _state(2).params['policy'], metadata)
  checkpoints.save_params(tmp_path / 'p', params, metadata)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['p']
  loaded, stored = checkpoints.load_params(
      tmp_path / 'p', jax.eval_shape(lambda: params),
      expected={'tokenizer': 'abc', 'model': {'width': 8, 'layers': (1, 2)}})
  _assert_identical(loaded, params)
  assert stored == metadata


_KILLED_SAVE = textwrap.dedent("""
    import os, signal, sys
    import numpy as np
    from jaxrl_llm.training import checkpoints, files

    def dying(rename):
      def renamed(source, target, **options):
        if str(source).endswith('.orbax-checkpoint-tmp'):
          os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target, **options)
      return renamed

    os.rename, os.replace = dying(os.rename), dying(os.replace)
    checkpoints.save_params(sys.argv[1], {'x': np.ones(4)}, {})
""")


def test_a_kill_while_orbax_writes_params_leaves_what_the_next_start_removes(tmp_path):
  done = subprocess.run(
      [sys.executable, '-c', _KILLED_SAVE, str(tmp_path / 'seed0' / 'reference')],
      env=os.environ | {'PYTHONPATH': str(REPOSITORY), 'JAX_PLATFORMS': 'cpu'})
  assert done.returncode == -signal.SIGKILL
  (left,) = (tmp_path / 'seed0').iterdir()
  assert left.name.startswith('.reference.') and left.name.endswith('.tmp.orbax-checkpoint-tmp')
  files.remove_leftovers(tmp_path)
  assert not list((tmp_path / 'seed0').iterdir())


def test_params_of_something_else_are_one_line_errors(tmp_path):
  params = _state().params['policy']
  checkpoints.save_params(tmp_path / 'p', params, {'tokenizer': 'abc', 'model': {'width': 8}})
  cases = [
      ({'tokenizer': 'xyz'}, params, r"tokenizer of .* is 'abc', this run has 'xyz'"),
      ({'model': {'width': 9}}, params, r'model.width of .* is 8, this run has 9'),
      ({'made_from': {'seed': 0}}, params, 'are of an earlier version, .* give another --workdir'),
      ({'model': {'width': 8, 'depth': 9}}, params,
       r"model.depth of .* is '\(absent\)', this run has 9"),
      ({}, {'head': jnp.zeros(2)}, r'holds embedder/embedding, which this run does not have'),
  ]
  for expected, abstract, message in cases:
    with pytest.raises(checkpoints.CheckpointError, match=message) as error:
      checkpoints.load_params(tmp_path / 'p', abstract, expected=expected)
    assert '\n' not in str(error.value)


def test_missing_or_damaged_params(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no parameters at .*/p \(config.policy_init_from\)'):
    checkpoints.load_params(tmp_path / 'p', {})
  (tmp_path / 'empty').mkdir()
  with pytest.raises(checkpoints.CheckpointError, match='was not written by save_params'):
    checkpoints.load_params(tmp_path / 'empty', {})
  params = _state().params['policy']
  checkpoints.save_params(tmp_path / 'p', params, {})
  for damage, message in {
      'further file': 'checksums.json does not list state/further',
      'flipped bit': 'does not have the bytes', 'no checksums': 'checksums.json is missing',
  }.items():
    DAMAGES[damage](tmp_path / 'p')
    with pytest.raises(checkpoints.CheckpointError, match=message):
      checkpoints.load_params(tmp_path / 'p', params)


def test_parameters_of_another_dtype_are_refused_or_converted(tmp_path):
  params = {'kernel': jnp.asarray([1.0, 2.5, 1 / 3], jnp.bfloat16)}
  checkpoints.save_params(tmp_path / 'params', params, {'model': {}})
  abstract = {'kernel': jax.ShapeDtypeStruct((3,), jnp.float32)}
  with pytest.raises(checkpoints.CheckpointError, match='kernel is bfloat16.*float32'):
    checkpoints.load_params(tmp_path / 'params', abstract)
  loaded, _ = checkpoints.load_params(tmp_path / 'params', abstract, cast=True)
  assert loaded['kernel'].dtype == jnp.float32
  np.testing.assert_array_equal(loaded['kernel'], params['kernel'].astype(jnp.float32))
  wrong = {'kernel': jax.ShapeDtypeStruct((4,), jnp.float32)}
  with pytest.raises(checkpoints.CheckpointError, match='kernel is'):
    checkpoints.load_params(tmp_path / 'params', wrong, cast=True)


def test_metadata_is_read_without_arrays(tmp_path):
  checkpoints.save_params(tmp_path / 'params', {'x': jnp.ones(2)}, {'tokenizer': 'abc'})
  assert checkpoints.read_metadata(tmp_path / 'params') == {'tokenizer': 'abc'}
  with pytest.raises(checkpoints.CheckpointError, match='neither parameters'):
    checkpoints.read_metadata(tmp_path)
