"""Safetensors directories: compatible with the library both ways; damaged ones are rejected."""

import errno
import json
import os
import re
import resource
import weakref

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from jaxrl_llm.models.pretrained import weights

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def _draw(shape, dtype, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def _arrays():
  return {
      'wide': _draw((3, 5), np.float32), 'half': _draw((7,), np.float16, 1),
      'brain': _draw((2, 3, 4), BFLOAT16, 2), 'scalar': _draw((), np.float32, 3),
      'none': np.zeros((0, 4), np.float32), 'ümlaut.0': _draw((1,), BFLOAT16, 4),
  }


def _new(name, array, made=None):
  return weights.NewTensor(name, array.shape, array.dtype, made or (lambda: array))


def _write(directory, arrays, max_shard_bytes=10**9):
  weights.write(
      directory, (_new(name, array) for name, array in arrays.items()),
      max_shard_bytes=max_shard_bytes)


def _equal(a, b):
  return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _raw(path, header, data=b'', length=None):
  """Writes a file in the format: the header's length, the header, the data."""
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  length = len(header) if length is None else length
  path.write_bytes(length.to_bytes(8, 'little') + header + data)


def _entry(begin, end, shape=(2,), dtype='F32'):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': [begin, end]}


def _error(directory):
  with pytest.raises(ValueError) as caught:
    weights.Reader(directory)
  message = str(caught.value)
  assert '\n' not in message and str(directory) in message
  return message


# --- Reading.


def test_files_of_the_library_are_read(tmp_path):
  arrays = _arrays()
  safetensors.numpy.save_file(arrays, tmp_path / 'model.safetensors', {'format': 'pt'})
  reader = weights.Reader(tmp_path)
  assert set(reader.tensors) == set(arrays)
  for name, array in arrays.items():
    assert name in reader and _equal(reader[name], array)
    assert not reader[name].flags.writeable
    assert reader.tensors[name].file == tmp_path / 'model.safetensors' == reader.source
  assert 'other' not in reader


def test_tensors_at_odd_offsets_are_read(tmp_path):
  array = _draw((3, 2), np.float32)
  header = json.dumps({'a': _entry(0, 24, (3, 2))}).encode()
  header += b' ' * (1 - len(header) % 2)  # 8 + an odd number.
  _raw(tmp_path / 'model.safetensors', header, array.tobytes())
  view = weights.Reader(tmp_path)['a']
  assert not view.flags.aligned
  assert _equal(view, array)
  np.testing.assert_array_equal(view.T.astype(BFLOAT16), array.T.astype(BFLOAT16))


def test_opening_reads_no_data(tmp_path):
  # A sparse file of 64 GB: neither opening it nor a slice reads them.
  shape = (2**20, 2**14)
  _raw(tmp_path / 'model.safetensors', {'a': _entry(0, 4 * 2**34, shape)})
  with open(tmp_path / 'model.safetensors', 'r+b') as file:
    size = file.seek(0, os.SEEK_END)
    file.truncate(size + 4 * 2**34)
  view = weights.Reader(tmp_path)['a']
  assert view.shape == shape
  assert not view.T[5:9, -3:].any()


def test_other_dtypes_are_listed_but_cannot_be_read(tmp_path):
  arrays = {'mask': np.ones((2, 2), bool), 'ids': np.arange(3), 'a': _draw((2,), np.float32)}
  safetensors.numpy.save_file(arrays, tmp_path / 'model.safetensors')
  reader = weights.Reader(tmp_path)
  assert reader.tensors['ids'].dtype == 'I64'
  with pytest.raises(ValueError, match=r'^tensor ids in .*model.safetensors has dtype I64, only '
                                       r'F32, F16, BF16 can be read$'):
    reader['ids']
  assert _equal(reader['a'], arrays['a'])


def test_a_single_file_is_preferred_to_an_index_as_in_transformers(tmp_path):
  array = _draw((2,), np.float32)
  safetensors.numpy.save_file({'a': array}, tmp_path / 'model.safetensors')
  (tmp_path / weights.INDEX_FILE).write_text('{"weight_map": {"a": "gone.safetensors"}}')
  assert _equal(weights.Reader(tmp_path)['a'], array)


_GOOD = {'first': _entry(0, 8), 'second': _entry(8, 16)}
_DAMAGES = {
    'truncated in the second tensor': (
        _GOOD, bytes(12), None,
        r'truncated in tensor second: the file has \d+ bytes, and needs \d+'),
    'truncated in the first tensor': (_GOOD, bytes(5), None, 'truncated in tensor first'),
    'bytes too many': (_GOOD, bytes(17), None, 'damaged: .*not fully covered'),
    'a gap': ({'first': _entry(0, 8), 'b': _entry(12, 20)}, bytes(20), None, 'damaged: .*`b`'),
    'an overlap': ({'first': _entry(0, 8), 'b': _entry(4, 12)}, bytes(12), None, 'damaged: .*`b`'),
    'a shape of another size': ({'a': _entry(0, 12)}, bytes(12), None, 'damaged: .*shape'),
    'a dtype that does not exist': (
        {'a': _entry(0, 8, dtype='F99')}, bytes(8), None, 'damaged: .*F99'),
    'a negative offset': ({'a': _entry(-8, 0)}, b'', None, 'damaged: .*-8'),
    'no JSON': (b'what is this?', b'', None, 'damaged: .*JSON'),
    'no object': (b'[]', b'', None, 'damaged'),
    'no tensor': (b'{"a": 1}', b'', None, 'damaged'),
    'a header longer than the file': (b'{}', b'', 99, 'damaged: .*header'),
    'a header longer than any': (b'{}', b'', 2**40, 'damaged: .*header too large'),
    'one name twice': (
        b'{"a":' + json.dumps(_entry(0, 8)).encode() + b',"a":'
        + json.dumps(_entry(0, 8)).encode() + b'}', bytes(8), None,
        'damaged: duplicate tensor a in its header'),
}


@pytest.mark.parametrize('header, data, length, message', _DAMAGES.values(), ids=_DAMAGES)
def test_damaged_files(tmp_path, header, data, length, message):
  path = tmp_path / 'model.safetensors'
  _raw(path, header, data, length)
  assert re.search(f'^{re.escape(str(path))} is {message}', _error(tmp_path))


def test_files_that_are_not_safetensors(tmp_path):
  path = tmp_path / 'model.safetensors'
  path.write_bytes(b'')
  assert 'model.safetensors is damaged' in _error(tmp_path)
  path.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n')
  assert 'is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`' in _error(
      tmp_path)


def test_every_truncation_of_a_file_is_rejected(tmp_path):
  safetensors.numpy.save_file(_arrays(), tmp_path / 'whole')
  whole = (tmp_path / 'whole').read_bytes()
  for size in range(0, len(whole), 7):
    (tmp_path / 'model.safetensors').write_bytes(whole[:size])
    _error(tmp_path)


def _sharded(directory):
  directory.mkdir(exist_ok=True)
  for name, keys in (('x.safetensors', 'ab'), ('y.safetensors', 'c')):
    safetensors.numpy.save_file(
        {key: _draw((2,), np.float32) for key in keys}, directory / name)
  return {'a': 'x.safetensors', 'b': 'x.safetensors', 'c': 'y.safetensors'}


def _index(directory, weight_map):
  (directory / weights.INDEX_FILE).write_text(json.dumps({'weight_map': weight_map}))


def test_shards_are_read_through_their_index(tmp_path):
  _index(tmp_path, _sharded(tmp_path))
  reader = weights.Reader(tmp_path)
  assert {name: tensor.file.name for name, tensor in reader.tensors.items()} == {
      'a': 'x.safetensors', 'b': 'x.safetensors', 'c': 'y.safetensors'}
  assert reader.source == tmp_path / weights.INDEX_FILE


@pytest.mark.parametrize('change, message', [
    ({'c': 'z.safetensors'}, r'z.safetensors is missing, but .*index.json lists it for tensor c'),
    ({'d': 'y.safetensors'}, r'tensor d is missing from .*y.safetensors, but is listed in .*index'),
    ({'a': 'y.safetensors'}, r'tensor a is missing from .*y.safetensors, but is listed in .*index'),
    ({'c': '../y.safetensors'},
     r"must name files in its directory, got '../y.safetensors' for tensor c"),
    ({'c': 3}, r'index.json is damaged: it must be a JSON object with a weight_map'),
])
def test_an_index_that_does_not_agree_with_its_files(tmp_path, change, message):
  _index(tmp_path, _sharded(tmp_path) | change)
  assert re.search(message, _error(tmp_path))


@pytest.mark.parametrize('text', ['', '{', '[]', '{}', '{"weight_map": ["a"]}', '\xff'])
def test_a_damaged_index(tmp_path, text):
  (tmp_path / weights.INDEX_FILE).write_bytes(text.encode('latin1'))
  assert 'index.json is damaged' in _error(tmp_path)


def test_a_tensor_in_two_shards(tmp_path):
  weight_map = _sharded(tmp_path)
  safetensors.numpy.save_file(
      {key: _draw((2,), np.float32) for key in 'bc'}, tmp_path / 'y.safetensors')
  _index(tmp_path, weight_map)
  assert 'duplicate tensor b: in ' in _error(tmp_path)


@pytest.mark.parametrize('name', [
    'pytorch_model.bin', 'pytorch_model-00001-of-00002.bin', 'consolidated.00.pth', 'model.pt',
    'last.ckpt', 'weights.bin'])
def test_pickles_are_rejected_with_a_way_to_convert_them(tmp_path, name):
  (tmp_path / name).write_bytes(b'\x80\x04N.')
  message = _error(tmp_path)
  assert f'{name} is a pickle' in message and 'safe_serialization=True' in message
  # Next to safetensors they are ignored.
  _write(tmp_path / 'new', {'a': _draw((2,), np.float32)})
  (tmp_path / 'new' / name).write_bytes(b'')
  assert 'a' in weights.Reader(tmp_path / 'new')


def test_directories_without_weights(tmp_path):
  (tmp_path / 'training_args.bin').write_bytes(b'')
  (tmp_path / 'adapter_model.safetensors').write_bytes(b'')
  message = _error(tmp_path)
  assert 'must contain model.safetensors or model.safetensors.index.json, got neither' in message
  assert '(only adapter_model.safetensors)' in message
  assert 'not a checkpoint directory' in _error(tmp_path / 'absent')


# --- Writing.


@pytest.mark.parametrize('max_shard_bytes, files', [(10**9, 1), (70, 2), (1, 6)])
def test_the_library_reads_written_files(tmp_path, max_shard_bytes, files):
  arrays = _arrays()
  _write(tmp_path / 'new', arrays, max_shard_bytes)
  reader = weights.Reader(tmp_path / 'new')
  paths = sorted((tmp_path / 'new').glob('*.safetensors'))

  tensors = {}
  for path in paths:
    with safetensors.safe_open(path, framework='numpy') as file:
      assert file.metadata() == {'format': 'pt'}
      tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  assert tensors.keys() == arrays.keys() == reader.tensors.keys()
  for name, array in arrays.items():
    assert _equal(tensors[name], array) and _equal(reader[name], array)
    # Every tensor is aligned to its item size, as torch requires.
    assert reader.tensors[name].offset % array.dtype.itemsize == 0

  index = tmp_path / 'new' / weights.INDEX_FILE
  if files == 1:
    assert [path.name for path in paths] == ['model.safetensors'] and not index.exists()
  else:
    assert len(paths) == files
    assert paths[0].name == f'model-00001-of-{len(paths):05}.safetensors'
    document = json.loads(index.read_text())
    assert document['metadata'] == {'total_size': sum(a.nbytes for a in arrays.values())}
    assert set(document['weight_map'].values()) == {path.name for path in paths}

  for path in paths:
    sizes = [arrays[n].nbytes for n, t in reader.tensors.items() if t.file == path]
    assert sum(sizes) <= max_shard_bytes or len([size for size in sizes if size]) == 1
  assert [path.name for path in tmp_path.iterdir()] == ['new']


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
  alive, most = 0, 0

  def make():
    nonlocal alive, most
    array = np.ones((5, 3), np.float32)
    weakref.finalize(array, gone)
    alive += 1
    most = max(most, alive)
    return array

  def gone():
    nonlocal alive
    alive -= 1

  tensors = [weights.NewTensor(f't{i}', (5, 3), np.dtype(np.float32), make) for i in range(6)]
  weights.write(tmp_path / 'new', tensors, max_shard_bytes=130)
  assert (most, alive) == (1, 0)
  assert len(weights.Reader(tmp_path / 'new').tensors) == 6


def test_transposed_views_are_written_in_order(tmp_path):
  array = _draw((4, 6), BFLOAT16)
  _write(tmp_path / 'new', {'a': array.T})
  assert _equal(weights.Reader(tmp_path / 'new')['a'], np.ascontiguousarray(array.T))


def _failing(error):
  def array():
    raise error

  return [_new('a', _draw((2,), np.float32)), weights.NewTensor('b', (2,), BFLOAT16, array)]


def test_a_failure_leaves_no_files(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    weights.write(tmp_path / 'new', _failing(KeyboardInterrupt()), max_shard_bytes=8)
  with pytest.raises(OSError, match='No space left on device .12 bytes are needed.'):
    weights.write(tmp_path / 'new', _failing(OSError(errno.ENOSPC, 'x')), max_shard_bytes=99)
  assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_files(tmp_path):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
  try:
    with pytest.raises(OSError) as caught:
      _write(tmp_path / 'new', {'a': np.zeros(10_000, np.float32)})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert caught.value.filename.endswith('model.safetensors')
  assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
  stale = tmp_path / '.new.incomplete'
  stale.mkdir()
  (stale / 'model.safetensors').write_bytes(b'half')
  _write(tmp_path / 'new', {'a': _draw((2,), np.float32)})
  assert [path.name for path in tmp_path.iterdir()] == ['new']
  assert set(weights.Reader(tmp_path / 'new').tensors) == {'a'}


def test_a_directory_in_use_is_not_changed(tmp_path):
  (tmp_path / 'mine').mkdir()
  _write(tmp_path / 'mine', {'a': _draw((2,), np.float32)})  # It was empty.
  before = (tmp_path / 'mine' / 'model.safetensors').read_bytes()
  with pytest.raises(ValueError, match=r'needs a new or empty directory, got .*mine$'):
    _write(tmp_path / 'mine', {'b': _draw((2,), np.float32)})
  with pytest.raises(ValueError, match='a new or empty directory'):
    _write(tmp_path / 'mine' / 'model.safetensors', {})
  assert (tmp_path / 'mine' / 'model.safetensors').read_bytes() == before


@pytest.mark.parametrize('tensors, message', [
    ([weights.NewTensor('a', (3, 2), BFLOAT16, lambda: np.zeros((2, 3), BFLOAT16))],
     r'tensor a must be bfloat16 \[3, 2\], got bfloat16 \[2, 3\]'),
    ([weights.NewTensor('a', (3,), BFLOAT16, lambda: np.zeros(3, np.float32))],
     r'tensor a must be bfloat16 \[3\], got float32 \[3\]'),
    ([_new('a', np.zeros(1, np.float32))] * 2, 'duplicate tensor a'),
])
def test_arrays_that_differ_from_their_declaration_are_rejected(tmp_path, tensors, message):
  with pytest.raises(ValueError, match=message):
    weights.write(tmp_path / 'new', tensors, max_shard_bytes=99)
  with pytest.raises(ValueError, match='max_shard_bytes must be at least 1, got 0'):
    weights.write(tmp_path / 'new', [], max_shard_bytes=0)
  assert not list(tmp_path.iterdir())
