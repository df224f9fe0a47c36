"""Entries: checking, loading onto meshes and saving."""

import weakref

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl_llm.models.pretrained import mapping, weights
from jaxrl_llm.sharding import mesh

LAYERS, WIDTH, OUT, ROWS = 3, 8, 16, 24
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# A small family: plain, transposed and fused tensors, and a head outside the prefix.
ENTRIES = mapping.with_prefix([
    mapping.same('embed', 'embedder/embedding'),
    mapping.same('h.{i}.norm', 'layers/norm/scale'),
    mapping.transposed('h.{i}.up', 'layers/mlp/up/kernel'),
    mapping.Entry(
        'h.{i}.both', ('layers/attention/key/kernel', 'layers/attention/value/kernel'),
        split=lambda x: tuple(np.split(x.T, 2, axis=1)),
        join=lambda *parts: np.concatenate(parts, axis=1).T),
    mapping.same('lm_head', 'head/kernel'),
], 'trunk.')

SPECS = {
    'embedder/embedding': PartitionSpec('tensor', 'fsdp'),
    'layers/mlp/up/kernel': PartitionSpec(None, 'fsdp', 'tensor'),
    'layers/attention/key/kernel': PartitionSpec(None, 'fsdp', 'tensor'),
    'layers/attention/value/kernel': PartitionSpec(None, ('fsdp', 'tensor'), None),
    'head/kernel': PartitionSpec(('data', 'tensor')),
}


def _theirs(dtype=np.float32, seed=0):
  rng = np.random.default_rng(seed)
  shapes = {'trunk.embed': (ROWS, WIDTH), 'lm_head': (ROWS, WIDTH)}
  for i in range(LAYERS):
    shapes[f'trunk.h.{i}.norm'] = (WIDTH,)
    shapes[f'trunk.h.{i}.up'] = (OUT, WIDTH)
    shapes[f'trunk.h.{i}.both'] = (2 * OUT, WIDTH)
  return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def _ours(theirs):
  """The expected tree, written out."""
  stack = lambda make: np.stack([make(i) for i in range(LAYERS)])
  layer = lambda i, name: theirs[f'trunk.h.{i}.{name}']
  return {
      'embedder': {'embedding': theirs['trunk.embed']},
      'head': {'kernel': theirs['lm_head']},
      'layers': {
          'attention': {
              'key': {'kernel': stack(lambda i: layer(i, 'both')[:OUT].T)},
              'value': {'kernel': stack(lambda i: layer(i, 'both')[OUT:].T)}},
          'mlp': {'up': {'kernel': stack(lambda i: layer(i, 'up').T)}},
          'norm': {'scale': stack(lambda i: layer(i, 'norm'))}},
  }


def _reader(directory, arrays):
  weights.write(
      directory,
      [weights.NewTensor(n, a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()],
      max_shard_bytes=2000)
  return weights.Reader(directory)


def _abstract(tree, dtype=np.float32, device_mesh=None):
  def leaf(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    spec = SPECS.get(name, PartitionSpec())
    return jax.ShapeDtypeStruct(
        x.shape, dtype, sharding=device_mesh and NamedSharding(device_mesh, spec))

  return jax.tree_util.tree_map_with_path(leaf, tree)


def _load(reader, abstract):
  return mapping.unflatten(dict(mapping.load(ENTRIES, reader, abstract)))


def _assert_same(tree, expected):
  assert jax.tree.structure(tree) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, tree, expected)


# --- Loading.


@pytest.mark.parametrize('shape', [None, (8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8)])
def test_all_meshes_load_the_same_numbers(tmp_path, shape):
  theirs = _theirs()
  reader = _reader(tmp_path / 'x', theirs)
  device_mesh = mesh.make_mesh(*shape) if shape else None
  abstract = _abstract(_ours(theirs), device_mesh=device_mesh)
  mapping.check(ENTRIES, reader, abstract)
  loaded = _load(reader, abstract)
  _assert_same(loaded, _ours(theirs))
  for array, leaf in zip(jax.tree.leaves(loaded), jax.tree.leaves(abstract)):
    if shape:
      assert array.sharding == leaf.sharding
    else:
      assert array.devices() == {jax.devices()[0]}


@pytest.mark.parametrize('source', [np.float32, np.float16, BFLOAT16])
@pytest.mark.parametrize('target', [np.float32, BFLOAT16])
def test_parameters_get_the_requested_dtype(tmp_path, source, target):
  theirs = _theirs(source)
  expected = jax.tree.map(lambda x: x.astype(target), _ours(theirs))
  abstract = _abstract(expected, target, mesh.make_mesh(2, 2, 2))
  loaded = _load(_reader(tmp_path / 'x', theirs), abstract)
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(target)}
  _assert_same(loaded, expected)


def test_matrices_wider_than_a_strip_are_copied_whole(tmp_path):
  array = np.arange(3 * 1000, dtype=np.float32).reshape(1000, 3)
  reader = _reader(tmp_path / 'x', {'a': array})
  entry = mapping.transposed('a', 'a')
  leaf = jax.ShapeDtypeStruct((3, 1000), np.float32)
  ((path, loaded),) = mapping.load([entry], reader, {'a': leaf})
  assert path == 'a'
  np.testing.assert_array_equal(loaded, array.T)


def test_last_layers_follow_the_others(tmp_path):
  theirs = _theirs()
  tree = _ours(theirs)
  split = {**tree, 'layers': jax.tree.map(lambda x: x[:1], tree['layers']),
           'last_layers': jax.tree.map(lambda x: x[1:], tree['layers'])}
  reader = _reader(tmp_path / 'x', theirs)
  abstract = _abstract(split, device_mesh=mesh.make_mesh(2, 2, 2))
  mapping.check(ENTRIES, reader, abstract)
  loaded = _load(reader, abstract)
  _assert_same(loaded, split)
  saved = {t.name: t.array() for t in mapping.tensors(ENTRIES, loaded, 'float32')}
  _assert_same(saved, theirs)


def test_each_part_is_read_once():
  # 2 x 2 x 2 devices, sharded over fsdp and tensor: four parts, each on two devices.
  device_mesh = mesh.make_mesh(2, 2, 2)
  sharding = NamedSharding(device_mesh, PartitionSpec('fsdp', 'tensor'))
  whole = np.arange(32.0, dtype=np.float32).reshape(4, 8)
  reads = []

  def read(where):
    reads.append(where)
    return whole[where]

  array = mapping.device_array(jax.ShapeDtypeStruct((4, 8), np.float32, sharding=sharding), read)
  np.testing.assert_array_equal(array, whole)
  assert array.sharding == sharding
  assert sorted((r.start, r.stop, c.start, c.stop) for r, c in reads) == [
      (0, 2, 0, 4), (0, 2, 4, 8), (2, 4, 0, 4), (2, 4, 4, 8)]


@pytest.mark.parametrize('offset', [0, 4])
def test_loaded_parameters_can_be_donated(offset):
  # A CPU device would alias a host array that begins at a multiple of 64 bytes.
  raw = np.ones(64 * 64 + 32, np.float32)
  start = -raw.ctypes.data % 64 // 4 + offset
  host = raw[start : start + 64 * 64].reshape(64, 64)
  array = mapping.device_array(jax.ShapeDtypeStruct((64, 64), np.float32), lambda where: host)
  pointer = array.unsafe_buffer_pointer()
  after = jax.jit(lambda x: x + 1, donate_argnums=0)(array)
  assert after.unsafe_buffer_pointer() == pointer


# --- Checking.


def _error(tmp_path, theirs, *, tree=None, **arguments):
  reader = _reader(tmp_path / 'x', theirs)
  abstract = _abstract(_ours(_theirs()) if tree is None else tree)
  with pytest.raises(ValueError) as caught:
    mapping.check(ENTRIES, reader, abstract, **arguments)
  message = str(caught.value)
  assert '\n' not in message and str(tmp_path / 'x') in message
  return message


def test_missing_tensors(tmp_path):
  theirs = _theirs()
  del theirs['trunk.h.1.up'], theirs['lm_head']
  message = _error(tmp_path, theirs)
  assert message.startswith('tensor trunk.h.1.up is missing from ')
  assert message.endswith('model.safetensors.index.json (and 1 more like it)')


def test_wrong_shapes(tmp_path):
  theirs = _theirs()
  theirs['trunk.h.2.both'] = theirs['trunk.h.2.both'][:-1]
  message = _error(tmp_path, theirs)
  assert message.startswith('tensor trunk.h.2.both in ') and message.endswith(
      '.safetensors has shape [31, 8], the model needs [32, 8] '
      '(layers/attention/key/kernel, layers/attention/value/kernel)')


def test_unknown_tensors(tmp_path):
  theirs = _theirs() | {'trunk.h.0.gate': np.zeros(2, np.float32)}
  message = _error(tmp_path, theirs)
  assert message.startswith('tensor trunk.h.0.gate in ')
  assert message.endswith('.safetensors is not used by the model')


def test_layers_too_many_are_unknown_and_too_few_missing(tmp_path):
  theirs = _theirs()
  tree = _ours(theirs)
  fewer = {**tree, 'layers': jax.tree.map(lambda x: x[1:], tree['layers'])}
  assert 'tensor trunk.h.2.norm in' in _error(tmp_path, theirs, tree=fewer)
  more = {**tree, 'layers': jax.tree.map(lambda x: np.repeat(x, 2, 0), tree['layers'])}
  (tmp_path / 'more').mkdir()
  assert 'tensor trunk.h.3.norm is missing' in _error(tmp_path / 'more', theirs, tree=more)


def test_a_tensor_without_its_parameter_is_an_error(tmp_path):
  theirs = _theirs()
  tree = _ours(theirs)
  del tree['layers']['norm']

  assert 'tensor trunk.h.0.norm in' in _error(tmp_path, theirs, tree=tree)


def test_dtypes_that_cannot_be_read(tmp_path):
  (tmp_path / 'x').mkdir()
  theirs = _theirs() | {'lm_head': np.zeros((ROWS, WIDTH), np.int8)}
  safetensors.numpy.save_file(theirs, tmp_path / 'x' / 'model.safetensors')
  with pytest.raises(ValueError, match='tensor lm_head in .* has dtype I8, only F32, F16, BF16'):
    mapping.check(ENTRIES, weights.Reader(tmp_path / 'x'), _abstract(_ours(_theirs())))


@pytest.mark.parametrize('pattern', [r'trunk\.h\.\d+\.mask', r'h\.\d+\.mask'])
def test_ignored_tensors_may_have_any_dtype(tmp_path, pattern):
  (tmp_path / 'x').mkdir()
  theirs = _theirs() | {'trunk.h.0.mask': np.zeros(2, bool)}
  safetensors.numpy.save_file(theirs, tmp_path / 'x' / 'model.safetensors')
  reader, abstract = weights.Reader(tmp_path / 'x'), _abstract(_ours(_theirs()))
  mapping.check(ENTRIES, reader, abstract, ignored=[pattern], prefix='trunk.')
  for other in ('mask', r'h\.\d+\.mas'):  # Whole names only.
    with pytest.raises(ValueError, match='trunk.h.0.mask'):
      mapping.check(ENTRIES, reader, abstract, ignored=[other], prefix='trunk.')


def test_shapes_of_large_models_need_no_memory():
  # 80 layers of 8192 x 28672 are 75 GB; the shapes are computed from views of one byte.
  entries = [mapping.transposed('h.{i}.up', 'layers/up'), mapping.same('e', 'e')]
  abstract = {'layers': {'up': jax.ShapeDtypeStruct((80, 8192, 28_672), jnp.float32)},
              'e': jax.ShapeDtypeStruct((2**17, 8192), jnp.float32)}
  shapes = mapping.shapes(entries, abstract)
  assert len(shapes) == 81
  assert (shapes['h.79.up'], shapes['e']) == ((28_672, 8192), (2**17, 8192))


def test_kernels_of_one_tensor_must_have_the_same_layers():
  tree = _ours(_theirs())
  tree['layers']['attention']['key']['kernel'] = np.zeros((2, WIDTH, OUT))
  message = ('trunk.h.{i}.both needs the same number of layers of each, got 2 of '
             'layers/attention/key/kernel, 3 of layers/attention/value/kernel')
  with pytest.raises(ValueError, match=message):
    mapping.shapes(ENTRIES, tree)


# --- Saving.


@pytest.mark.parametrize('dtype', [np.float32, BFLOAT16])
def test_load_save_load_is_bit_exact(tmp_path, dtype):
  theirs = _theirs(dtype)
  reader = _reader(tmp_path / 'x', theirs)
  abstract = _abstract(_ours(theirs), dtype, mesh.make_mesh(2, 2, 2))
  loaded = _load(reader, abstract)
  weights.write(
      tmp_path / 'y', mapping.tensors(ENTRIES, loaded, dtype), max_shard_bytes=1500)
  again = weights.Reader(tmp_path / 'y')
  assert again.tensors.keys() == theirs.keys()
  assert all(again[name].tobytes() == array.tobytes() for name, array in theirs.items())
  _assert_same(_load(again, abstract), loaded)


def test_numpy_trees_are_saved_too_and_cast():
  theirs = _theirs()
  saved = {t.name: t.array() for t in mapping.tensors(ENTRIES, _ours(theirs), 'bfloat16')}
  _assert_same(saved, {name: array.astype(BFLOAT16) for name, array in theirs.items()})


def _is_cached(make):
  """True if something still refers to an array after it has been dropped here."""
  array = make()
  while isinstance(array.base, np.ndarray):
    array = array.base
  reference = weakref.ref(array)
  del array
  return reference() is not None


def test_saving_caches_nothing_on_the_host():
  sharding = NamedSharding(mesh.make_mesh(1, 8, 1), PartitionSpec('fsdp'))
  array = jax.device_put(np.arange(64.0, dtype=np.float32).reshape(8, 8), sharding)
  entries = [mapping.same('a', 'a'), mapping.same('b.{i}', 'layers/b')]
  tree = {'a': array, 'layers': {'b': array}}
  arrays = {tensor.name: tensor.array for tensor in mapping.tensors(entries, tree, 'float32')}
  np.testing.assert_array_equal(arrays['a'](), array)
  np.testing.assert_array_equal(arrays['b.3'](), np.arange(24, 32))
  assert not _is_cached(arrays['a'])
  assert not _is_cached(arrays['b.3'])
  assert _is_cached(lambda: np.asarray(array))  # A JAX array caches its NumPy copy.


def test_parameters_that_cannot_be_saved():
  tree = _ours(_theirs())
  tree['head']['lora_a'] = np.zeros((2, WIDTH))
  tree['layers']['lora_b'] = np.zeros((LAYERS, 2))
  message = r'^parameter head/lora_a is not part of the checkpoint format \(and 1 more like it\)$'
  with pytest.raises(ValueError, match=message):
    list(mapping.tensors(ENTRIES, tree, 'float32'))
  assert mapping.uncovered(ENTRIES, tree) == ['head/lora_a', 'layers/lora_b']
  tree = _ours(_theirs())
  del tree['head']
  with pytest.raises(ValueError, match='^parameter head/kernel is needed for the checkpoint$'):
    list(mapping.tensors(ENTRIES, tree, 'float32'))


def test_flatten_and_unflatten():
  tree = {'a': {'b': 1, 'c': {'d': 2}}, 'e': 3}
  assert mapping.flatten(tree) == {'a/b': 1, 'a/c/d': 2, 'e': 3}
  assert mapping.unflatten(mapping.flatten(tree)) == tree
