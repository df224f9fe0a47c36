"""GGUF files: metadata, every supported type of tensor, and one line for each kind of damage."""

import random
import struct
import sys

import ml_dtypes
import numpy as np
import pytest

from jaxrl_llm.models.pretrained import gguf_file
from tests.models.pretrained import gguf_files
from tests.models.pretrained.gguf_files import TYPES


def _draw(shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _half(content, start):
  return np.frombuffer(content, np.float16, 1, start)[0].astype(np.float32)


def _decode_32(block, kind):
  """Decodes one block of 32 numbers, as in the description of the formats."""
  scale, name = _half(block, 0), kind.name
  if kind == TYPES.Q8_0:
    return [scale * np.int8(byte if byte < 128 else byte - 256) for byte in block[2:]]

  offset, start = (_half(block, 2), 4) if name.endswith('_1') else (None, 2)
  high = 0
  if name.startswith('Q5'):
    high, start = int.from_bytes(block[start : start + 4], 'little'), start + 4
  nibbles = [byte & 15 for byte in block[start:]] + [byte >> 4 for byte in block[start:]]
  numbers = [nibble | (high >> i & 1) << 4 for i, nibble in enumerate(nibbles)]
  if offset is not None:
    return [np.float32(number) * scale + offset for number in numbers]
  middle = 16 if name.startswith('Q5') else 8
  return [np.float32(number - middle) * scale for number in numbers]


def _decode_256(block, kind):
  """Decodes one block of 256 numbers."""
  if kind == TYPES.Q6_K:
    low, high, scales = block[:128], block[128:192], np.frombuffer(block, np.int8, 16, 192)
    out = []
    for i in range(256):
      half, within = divmod(i, 128)
      quarter, column = divmod(within, 32)
      nibble = low[64 * half + 32 * (quarter % 2) + column] >> 4 * (quarter // 2) & 15
      bits = high[32 * half + column] >> 2 * quarter & 3
      out.append(_half(block, 208) * np.float32(scales[i // 16]) * ((nibble | bits << 4) - 32))
    return out

  scale, least, packed = _half(block, 0), _half(block, 2), block[4:16]
  high, low = (block[16:48], block[48:]) if kind == TYPES.Q5_K else (bytes(32), block[16:])
  out = []
  for i in range(256):
    group, column = divmod(i, 32)
    if group < 4:
      factor, offset = packed[group] & 63, packed[group + 4] & 63
    else:
      factor = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
      offset = packed[group + 4] >> 4 | packed[group] >> 6 << 4
    nibble = low[32 * (group // 2) + column] >> 4 * (group % 2) & 15
    number = nibble | (high[column] >> group & 1) << 4
    out.append(scale * factor * np.float32(number) - least * offset)
  return out


# Type -> (bytes of a block, offsets of its float16 numbers).
_BLOCKS_32 = {
    TYPES.Q8_0: (34, [0]), TYPES.Q4_0: (18, [0]), TYPES.Q4_1: (20, [0, 2]),
    TYPES.Q5_0: (22, [0]), TYPES.Q5_1: (24, [0, 2]),
}
_BLOCKS_256 = {TYPES.Q4_K: (144, [0, 2]), TYPES.Q5_K: (176, [0, 2]), TYPES.Q6_K: (210, [208])}


@pytest.mark.parametrize('kind', [*_BLOCKS_32, *_BLOCKS_256], ids=lambda kind: kind.name)
def test_quantised_blocks(tmp_path, kind):
  size, numbers = (_BLOCKS_32 | _BLOCKS_256)[kind]
  length, decode = (32, _decode_32) if kind in _BLOCKS_32 else (256, _decode_256)
  generator = np.random.default_rng(1)
  blocks = generator.integers(0, 256, (6, size), np.uint8)
  for start in numbers:
    blocks[:, start : start + 2] = generator.normal(size=(6, 1)).astype(np.float16).view(np.uint8)

  gguf_files.write(
      tmp_path / 'x.gguf', 'llama', {}, {'x': (blocks.reshape(3, 2 * size), kind)})
  file = gguf_file.File(tmp_path / 'x.gguf')
  assert file.tensors['x'].shape == (3, 2 * length) and file.tensors['x'].dtype == kind.name
  expected = np.array([decode(block.tobytes(), kind) for block in blocks], np.float32)
  np.testing.assert_allclose(file.read('x'), expected.reshape(3, -1), rtol=1e-6, atol=1e-6)


def test_floats_and_large_tensors(tmp_path, monkeypatch):
  array = _draw((5, 3, 96))
  brain = array.astype(ml_dtypes.bfloat16)
  gguf_files.write(tmp_path / 'x.gguf', 'llama', {}, {
      'wide': array, 'half': array.astype(np.float16), 'vector': array[0, 0, :5],
      'brain': (brain.view(np.uint8), TYPES.BF16), 'packed': gguf_files.quantise(array, TYPES.Q8_0),
  }, alignment=64)
  file = gguf_file.File(tmp_path / 'x.gguf')
  np.testing.assert_array_equal(file.read('wide'), array)
  np.testing.assert_array_equal(file.read('half'), array.astype(np.float16))
  np.testing.assert_array_equal(file.read('brain', ml_dtypes.bfloat16), brain)
  np.testing.assert_array_equal(file.read('vector'), array[0, 0, :5])
  assert {name: tensor.offset % 64 for name, tensor in file.tensors.items()} == dict.fromkeys(
      file.tensors, 0)

  whole = file.read('packed')
  assert np.abs(whole - array).max() < 0.05
  monkeypatch.setattr(gguf_file, '_CHUNK', 256)  # 1440 elements: the last part is shorter.
  np.testing.assert_array_equal(file.read('packed'), whole)
  np.testing.assert_array_equal(
      file.read('packed', ml_dtypes.bfloat16), whole.astype(ml_dtypes.bfloat16))


def test_metadata(tmp_path):
  given = {
      'text': 'Größe\n', 'flag': True, 'count': 7, 'epsilon': 1e-5, 'negative': -3, 'huge': 2**40,
      'names': ['a', '', 'ü'], 'numbers': [1, 2, 3], 'scores': [-0.1, 2.0], 'flags': [True, False],
  }
  gguf_files.write(tmp_path / 'x.gguf', 'llama', given, {})
  metadata = gguf_file.File(tmp_path / 'x.gguf').metadata
  assert {key: metadata[key] for key in given} == given
  assert type(metadata['flag']) is bool and metadata['general.architecture'] == 'llama'


def test_files_are_recognised(tmp_path):
  gguf_files.write(tmp_path / 'x.bin', 'llama', {}, {})
  (tmp_path / 'y.gguf').write_bytes(b'other')
  (tmp_path / 'z.bin').write_bytes(b'other')
  assert gguf_file.is_gguf(tmp_path / 'x.bin') and gguf_file.is_gguf(tmp_path / 'y.gguf')
  assert not gguf_file.is_gguf(tmp_path / 'z.bin') and not gguf_file.is_gguf(tmp_path)
  assert not gguf_file.is_gguf(tmp_path / 'absent.gguf')


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
  gguf_files.write(tmp_path / 'x.gguf', 'llama', {}, {})
  monkeypatch.setitem(sys.modules, 'gguf', None)
  assert _error(tmp_path / 'x.gguf').endswith('needs the package gguf: pip install gguf')


# --- Damage.


def _error(path):
  with pytest.raises(ValueError) as caught:
    gguf_file.File(path)
  line = str(caught.value)
  assert str(path) in line and '\n' not in line and len(line) < 400
  return line


def _text(text):
  return struct.pack('<Q', len(text.encode())) + text.encode()


def _file(path, *, version=3, tensors=0, values=0, content=b''):
  path.write_bytes(b'GGUF' + struct.pack('<IQQ', version, tensors, values) + content)
  return path


def _tensor(name='x', shape=(2,), kind=0, offset=0):
  return _text(name) + struct.pack(
      f'<I{len(shape)}QIQ', len(shape), *shape[::-1], kind, offset)


_HUGE = 10**12


@pytest.mark.parametrize(('file', 'words'), [
    ({'version': 1}, 'the GGUF version must be one of 2, 3, got 1'),
    ({'version': 3 << 24}, 'is big-endian'),
    ({'tensors': _HUGE}, 'damaged or truncated: its header needs'),
    ({'values': _HUGE}, 'damaged or truncated: its header needs'),
    ({'values': 1, 'content': struct.pack('<Q', _HUGE) + bytes(40)}, f'needs {_HUGE} bytes'),
    ({'values': 1, 'content': _text('k') + struct.pack('<I', 13)}, "'k' has unsupported type 13"),
    ({'values': 1, 'content': _text('k') + struct.pack('<IIQ', 9, 4, _HUGE)},
     f'needs {4 * _HUGE} bytes'),
    ({'values': 1, 'content': _text('k') + struct.pack('<IIQ', 9, 8, _HUGE)},
     f'needs {8 * _HUGE} bytes'),
    ({'values': 1, 'content': _text('k') + struct.pack('<IIQ', 9, 9, 1) + bytes(12)},
     "'k' has unsupported type 9"),
    ({'values': 1, 'content': struct.pack('<Q', 1) + b'\xff' + bytes(40)}, 'is not UTF-8'),
    ({'values': 2, 'content': 2 * (_text('k') + struct.pack('<II', 4, 1))}, 'field occurs twice'),
    ({'values': 1, 'content': _text('general.alignment') + struct.pack('<II', 4, 3)},
     'general.alignment must be a power of two, got 3'),
    ({'tensors': 1, 'content': _tensor(shape=())[:-4] + bytes(24)}, 'must have 1 to 4 dimensions'),
    ({'tensors': 1, 'content': _tensor(shape=(1,) * 5)}, 'must have 1 to 4 dimensions, got 5'),
    ({'tensors': 1, 'content': _tensor(shape=(_HUGE, _HUGE))}, 'is truncated in tensor x'),
    ({'tensors': 1, 'content': _tensor(offset=_HUGE)}, 'is truncated in tensor x'),
    ({'tensors': 1, 'content': _tensor(shape=(0,))}, r'got shape \[0\]'),
    ({'tensors': 1, 'content': _tensor(shape=(2, 31), kind=2)},
     r'type Q4_0 must have rows of a multiple of 32 elements, got shape \[2, 31\]'),
    ({'tensors': 1, 'content': _tensor(kind=99)}, "tensor 'x' in .* has unknown type 99"),
    ({'tensors': 2, 'content': 2 * _tensor() + bytes(64)}, 'duplicate tensor x'),
])
def test_a_damaged_header_is_one_line(tmp_path, file, words):
  path = _file(tmp_path / 'x.gguf', **file)
  with pytest.raises(ValueError, match=words):
    gguf_file.File(path)
  _error(path)


@pytest.mark.parametrize('content', [b'', b'GG', b'{"model": 1}', bytes(64)])
def test_other_files_are_rejected(tmp_path, content):
  (tmp_path / 'x.gguf').write_bytes(content)
  assert 'is not a GGUF file: it does not begin with GGUF' in _error(tmp_path / 'x.gguf')


def test_an_unsupported_type_is_named(tmp_path):
  gguf_files.write(
      tmp_path / 'x.gguf', 'llama', {}, {'x': (np.zeros((2, 18), np.uint8), TYPES.IQ4_NL)})
  file = gguf_file.File(tmp_path / 'x.gguf')
  with pytest.raises(ValueError, match='tensor x in .* has type IQ4_NL, only F32, .* can be read'):
    file.read('x')


def test_truncation_and_random_changes_raise_only_value_errors(tmp_path):
  path = tmp_path / 'x.gguf'
  gguf_files.write(path, 'llama', gguf_files.byte_tokenizer() | {'llama.block_count': 2}, {
      'x': _draw((4, 32)), 'y': gguf_files.quantise(_draw((2, 64)), TYPES.Q5_1)})
  content = path.read_bytes()
  for length in range(0, len(content) - 1, 41):
    path.write_bytes(content[:length])
    _error(path)

  generator = random.Random(0)
  for _ in range(300):
    changed = bytearray(content)
    for _ in range(generator.randrange(1, 4)):
      changed[generator.randrange(len(changed))] = generator.randrange(256)
    path.write_bytes(changed)
    try:
      gguf_file.File(path)
    except ValueError as error:
      assert '\n' not in str(error)
