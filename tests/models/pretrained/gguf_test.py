"""GGUF files of every family become the checkpoints that they were made from, or one line."""

import json
import random
import tracemalloc

import jax
import numpy as np
import pytest

from jaxrl_llm.models import policy
from jaxrl_llm.models.pretrained import gguf, huggingface, weights
from tests.models.pretrained import gguf_files
from tests.models.pretrained.gguf_files import TYPES

_SIZES = {
    'vocab_size': 64, 'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4,
    'num_key_value_heads': 2, 'intermediate_size': 96, 'max_position_embeddings': 128,
    'rms_norm_eps': 1e-5, 'rope_theta': 5e5,
}
_LLAMA3 = {
    'rope_type': 'llama3', 'factor': 32.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
}
_GEMMA2 = {'head_dim': 16, 'query_pre_attn_scalar': 16, 'sliding_window': 8,
           'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0}
_GEMMA3 = {'head_dim': 16, 'query_pre_attn_scalar': 16, 'sliding_window': 8,
           'num_hidden_layers': 7, 'rope_local_base_freq': 1e4, 'rope_theta': 1e6}

# (architecture, fields of config.json, metadata other than the sizes)
CASES = {
    'llama': ('llama', {'tie_word_embeddings': True}, {
        'vocab_size': 64, 'rope.dimension_count': 8, 'tensor_data_layout': 'Meta AI original pth'}),
    'llama, linear, with biases': (
        'llama', {'rope_scaling': {'rope_type': 'linear', 'factor': 2.0}, 'attention_bias': True},
        {'rope.scaling.type': 'linear', 'rope.scaling.factor': 2.0}),
    'llama 3.2': ('llama', {'head_dim': 16, 'rope_scaling': _LLAMA3}, {
        'attention.key_length': 16, 'attention.value_length': 16}),
    'qwen2': ('qwen2', {'tie_word_embeddings': True}, {}),
    'qwen3': ('qwen3', {'head_dim': 16}, {'attention.key_length': 16}),
    'gemma': ('gemma', {'head_dim': 16}, {'attention.key_length': 16}),
    'gemma2': ('gemma2', _GEMMA2, {
        'attention.key_length': 16, 'attention.sliding_window': 8, 'attn_logit_softcapping': 50.0,
        'final_logit_softcapping': 30.0}),
    'gemma3': ('gemma3', _GEMMA3, {'attention.key_length': 16, 'attention.sliding_window': 8}),
    'gemma3, scaled': (
        'gemma3',
        _GEMMA3 | {'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
                   'sliding_window_pattern': 3},
        {'attention.key_length': 16, 'attention.sliding_window': 8, 'rope.scaling.type': 'linear',
         'rope.scaling.factor': 8.0, 'attention.sliding_window_pattern': 3}),
}


def _params(config):
  """Multiples of 2^-8, so that 1 can be added to a norm without rounding."""
  generator = np.random.default_rng(0)
  return jax.tree.map(
      lambda leaf: generator.integers(-128, 128, leaf.shape).astype(leaf.dtype) / 256,
      jax.eval_shape(policy.make(config).init, jax.random.key(0)))


def _write(folder, case='qwen2', *, kind=TYPES.F32, metadata=None, tensors=None, dtype='float32'):
  """Writes a checkpoint to folder/there and its GGUF file; returns (file, checkpoint)."""
  architecture, more, named = CASES[case]
  fields = {'model_type': gguf.MODEL_TYPES[architecture], **_SIZES, **more}
  config = huggingface.find_family(fields['model_type']).read_config(fields)
  huggingface.save(
      folder / 'there', config, _params(config), model_type=fields['model_type'], dtype=dtype)

  stored = gguf_files.tensors_of(folder / 'there', architecture, fields, kind=kind)
  if 'rope_type' in (fields.get('rope_scaling') or {}) and case == 'llama 3.2':
    stored['rope_freqs.weight'] = _frequency_factors(fields)
  path = folder / 'model.gguf'
  named = {f'{architecture}.{name}': value for name, value in named.items()}
  all_metadata = gguf_files.sizes_of(architecture, fields) | named | (metadata or {})
  gguf_files.write(
      path, architecture, {key: value for key, value in all_metadata.items() if value is not None},
      {name: value for name, value in (stored | (tensors or {})).items() if value is not None})
  return path, huggingface.read_config(folder / 'there')


def _frequency_factors(fields):
  """Llama 3's scaling of each frequency, as in llama.cpp's conversion."""
  factors = []
  for i in range(0, fields['head_dim'], 2):
    length = 2 * np.pi * fields['rope_theta'] ** (i / fields['head_dim'])
    smooth = (8192 / length - 1) / (4 - 1)
    between = 1 / ((1 - smooth) / 32 + smooth)
    factors.append(1 if length < 8192 / 4 else 32 if length > 8192 else between)
  return np.array(factors, np.float32)


def _tensors(directory):
  reader = weights.Reader(directory)
  return {name: np.asarray(reader[name], np.float32) for name in reader.tensors}


@pytest.mark.parametrize('case', CASES)
def test_a_file_becomes_the_checkpoint_that_it_was_made_from(tmp_path, case):
  path, checkpoint = _write(tmp_path, case)
  model = gguf.read(path)
  assert model.config == checkpoint.config and model.dtype == 'float32'
  gguf.save(tmp_path / 'back', model, fields={'eos_token_id': 3})

  back, there = _tensors(tmp_path / 'back'), _tensors(tmp_path / 'there')
  assert back.keys() == there.keys()
  for name, tensor in there.items():
    np.testing.assert_array_equal(back[name], tensor, name)

  again = huggingface.read_config(tmp_path / 'back')
  assert again.config == checkpoint.config and again.model_type == checkpoint.model_type
  original = json.loads((tmp_path / 'there' / 'config.json').read_text())
  assert again.fields == original | {'eos_token_id': 3}


def test_rows_of_a_llama_are_restored():
  # Two heads of four: llama.cpp has their halves in turn.
  stored = np.array([0, 2, 1, 3, 4, 6, 5, 7])
  np.testing.assert_array_equal(gguf._unpermute(stored, num_heads=2), np.arange(8))
  rows = np.random.default_rng(0).normal(size=(24, 5))
  for heads in (1, 2, 3, 4):
    stored = gguf_files.permute(rows, heads)
    np.testing.assert_array_equal(gguf._unpermute(stored, num_heads=heads), rows)


@pytest.mark.parametrize('kind', [
    TYPES.F16, TYPES.BF16, TYPES.Q8_0, TYPES.Q4_0, TYPES.Q4_1, TYPES.Q5_0, TYPES.Q5_1],
    ids=lambda kind: kind.name)
def test_a_quantised_model_is_the_original_up_to_rounding(tmp_path, kind):
  path, _ = _write(tmp_path, 'llama', kind=kind)
  gguf.save(tmp_path / 'back', gguf.read(path))
  bound = {'F16': 0, 'BF16': 0, 'Q8_0': 0.003}.get(kind.name, 0.063)
  back, there = _tensors(tmp_path / 'back'), _tensors(tmp_path / 'there')
  for name, tensor in there.items():
    assert np.abs(back[name] - tensor).max() <= bound, name
    if tensor.ndim > 1:  # Blocks are parts of rows: the order of rows does not matter.
      np.testing.assert_array_equal(back[name], gguf_files.rounded(tensor, kind), name)


def test_bfloat16_stays_bfloat16(tmp_path):
  path, checkpoint = _write(tmp_path, 'gemma2', kind=TYPES.BF16, dtype='bfloat16')
  model = gguf.read(path)
  assert model.dtype == 'bfloat16'
  gguf.save(tmp_path / 'back', model, max_shard_bytes=5000)
  assert len(list((tmp_path / 'back').glob('*.safetensors'))) > 2
  one, two = weights.Reader(tmp_path / 'back'), weights.Reader(checkpoint.directory)
  for name, tensor in two.tensors.items():
    assert one.tensors[name].dtype == tensor.dtype == 'BF16'
    np.testing.assert_array_equal(one[name], two[name])
  gguf.save(tmp_path / 'wide', model, dtype='float32')
  assert {tensor.dtype for tensor in weights.Reader(tmp_path / 'wide').tensors.values()} == {'F32'}


def test_memory_is_that_of_the_largest_tensor(tmp_path):
  rows = np.zeros((2**19, 32 * 2), np.uint8)  # An embedding of 64 MiB in float32.
  path, _ = _write(tmp_path, 'gemma3', tensors={'token_embd.weight': (rows, TYPES.BF16)})
  model = gguf.read(path)
  tracemalloc.start()
  gguf.save(tmp_path / 'back', model)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert 2**26 <= peak < 1.2 * 2**26


# --- One line for each unsupported field and damaged size.

_HUGE = 10**12


@pytest.mark.parametrize(('case', 'metadata', 'words'), [
    ('qwen2', {'general.architecture': 'phi3'}, 'general.architecture must be one of llama, qwen2'),
    ('qwen2', {'general.type': 'adapter'}, "general.type must be 'model', got 'adapter'"),
    ('qwen2', {'split.count': 3}, 'is one of 3 parts: merge them with llama-gguf-split'),
    ('qwen2', {'qwen2.embedding_length': None}, "has no field 'qwen2.embedding_length'"),
    ('qwen2', {'qwen2.embedding_length': _HUGE},
     f'qwen2.embedding_length must be 32, the size of the tensors, got {_HUGE}'),
    ('qwen2', {'qwen2.block_count': _HUGE},
     f'qwen2.block_count must be 2, the size of the tensors, got {_HUGE}'),
    ('qwen2', {'qwen2.feed_forward_length': _HUGE}, 'feed_forward_length must be 96, the size'),
    ('qwen2', {'qwen2.feed_forward_length': [96, 96]}, r'must be of type int, got \[96, 96\]'),
    ('qwen2', {'qwen2.attention.head_count': _HUGE}, r'head_count \* attention.key_length must'),
    ('qwen2', {'qwen2.attention.head_count': 0}, 'attention.head_count must be at least 1, got 0'),
    ('qwen2', {'qwen2.attention.head_count_kv': 4}, r'head_count_kv \* attention.key_length must'),
    ('qwen2', {'qwen2.attention.key_length': _HUGE}, r'head_count \* attention.key_length must'),
    ('qwen2', {'qwen2.attention.value_length': 4}, 'attention.value_length must be 8, got 4'),
    ('qwen2', {'qwen2.context_length': _HUGE}, r'context_length must be in \[1, 2147483647\]'),
    ('qwen2', {'qwen2.context_length': 0}, r'context_length must be in \[1, 2147483647\], got 0'),
    ('qwen2', {'qwen2.vocab_size': _HUGE}, 'vocab_size must be 64, the size of the tensors'),
    ('qwen2', {'qwen2.rope.freq_base': float('nan')}, 'rope.freq_base must be finite, got nan'),
    ('qwen2', {'qwen2.rope.freq_base': 'x'}, "freq_base must be of type float, got 'x'"),
    ('qwen2', {'qwen2.rope.freq_base': -1.0}, 'rope_theta must be positive'),
    ('qwen2', {'qwen2.rope.dimension_count': 4}, 'rope.dimension_count must be 8, got 4'),
    ('qwen2', {'qwen2.rope.scaling.type': 'yarn'},
     "rope.scaling.type must be one of none, linear, got 'yarn'"),
    ('qwen2', {'qwen2.expert_count': 8}, 'qwen2.expert_count must be 0, got 8'),
    ('qwen2', {'qwen2.logit_scale': 2.0}, r"unknown field 'qwen2.logit_scale' \(2.0\)"),
    ('gemma3', {'gemma3.attn_logit_softcapping': 50.0}, 'attn_logit_softcapping must be 0.0'),
])
def test_an_unsupported_field_is_one_line(tmp_path, case, metadata, words):
  path, _ = _write(tmp_path, case, metadata=metadata)
  with pytest.raises(ValueError, match=words) as caught:
    gguf.read(path)
  assert str(path) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(('tensors', 'words'), [
    ({'token_embd.weight': None}, 'tensor token_embd.weight is missing from'),
    ({'blk.1.attn_v.weight': None}, 'tensor blk.1.attn_v.weight is missing from'),
    ({'blk.1.attn_v.weight': np.zeros((32, 16), np.float32)},
     r'tensor blk.1.attn_v.weight in .* has shape \[32, 16\], the model needs \[16, 32\]'),
    ({'blk.1.ffn_up.weight': np.zeros(32, np.float32)}, r'has shape \[32\], the model needs'),
    ({'blk.0.ffn_up.weight': np.zeros(32, np.float32)}, r'must have 2 dimensions, got \[32\]'),
    ({'blk.0.attn_q_norm.weight': np.zeros(8, np.float32)},
     'tensor blk.0.attn_q_norm.weight in .* is not used by the model'),
    ({'blk.0.attn_q.weight': (np.zeros((32, 18), np.uint8), TYPES.IQ4_NL)},
     'tensor blk.0.attn_q.weight in .* has type IQ4_NL, only F32'),
    ({'rope_freqs.weight': np.full(4, 3, np.float32)},
     'rope_freqs.weight in .* must be the scaling of Llama 3.1'),
])
def test_an_unsupported_tensor_is_one_line(tmp_path, tensors, words):
  path, _ = _write(tmp_path, 'qwen2', tensors=tensors)
  with pytest.raises(ValueError, match=words) as caught:
    gguf.read(path)
  assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_random_changes_raise_only_value_errors(tmp_path):
  path, _ = _write(tmp_path, 'llama 3.2', metadata=gguf_files.byte_tokenizer())
  content = path.read_bytes()
  # The header without the tokens, which are most of it.
  start, end = content.index(b'tokenizer.ggml.tokens'), content.index(b'tokenizer.ggml.eos')
  generator = random.Random(0)
  for _ in range(40):
    changed = bytearray(content)
    position = generator.randrange(4, end + 3000)
    changed[position if position < start else position - start + end] = generator.randrange(256)
    path.write_bytes(changed)
    try:
      gguf.read_tokenizer(gguf.read(path))
    except ValueError as error:
      assert '\n' not in str(error)
