"""Converts GGUF files, the format of llama.cpp, to Hugging Face checkpoints.

  model = gguf.read(path)
  tokenizer = gguf.read_tokenizer(model)
  gguf.save(directory, model, fields=tokenizer.fields, files=tokenizer.files)

llama.cpp stores a llama's query and key rows in another order, and Gemma's norms with 1 added; both
are undone. Metadata fields are consumed, known to be inert, or rejected, as in config.json.
"""

import functools
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_llm.models import configs, policy
from jaxrl_llm.models.pretrained import (
    config_fields,
    gguf_file,
    gguf_tokenizer,
    huggingface,
    mapping,
    weights,
)

# general.architecture -> model_type of config.json.
MODEL_TYPES = {
    'llama': 'llama', 'qwen2': 'qwen2', 'qwen3': 'qwen3', 'gemma': 'gemma', 'gemma2': 'gemma2',
    'gemma3': 'gemma3_text',
}
is_gguf = gguf_file.is_gguf

_ROPE_FACTORS = 'rope_freqs.weight'  # One factor per frequency: Llama 3's scaling.
# Llama 3.1's and 3.2's scaling, apart from its factor; metadata does not have these numbers.
_LLAMA3 = {
    'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192,
}
_MAX_LENGTH = 2**31 - 1

# Names of tensors in a checkpoint, without the layer, and in a GGUF file.
_NAMES = {
    'embed_tokens': 'token_embd', 'norm': 'output_norm', 'lm_head': 'output',
    'input_layernorm': 'attn_norm', 'post_attention_layernorm': 'ffn_norm',
    'self_attn.q_proj': 'attn_q', 'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output',
    'self_attn.q_norm': 'attn_q_norm', 'self_attn.k_norm': 'attn_k_norm',
    'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up', 'mlp.down_proj': 'ffn_down',
}
_POST_NORM_NAMES = _NAMES | {
    'post_attention_layernorm': 'post_attention_norm', 'pre_feedforward_layernorm': 'ffn_norm',
    'post_feedforward_layernorm': 'post_ffw_norm',
}
# Metadata of an architecture that its forward pass does not depend on.
_INERT = ('rope.scaling.finetuned', 'rope.scaling.original_context_length', 'tensor_data_layout')


class Model(NamedTuple):
  """A GGUF file, whose tensors have not been read.

  Attributes:
    config: model config.
    model_type: model_type in config.json.
    file: the file.
    dtype: default dtype of the checkpoint: 'bfloat16' if all matrices have it, else 'float32'.
  """

  config: configs.TransformerConfig
  model_type: str
  file: gguf_file.File
  dtype: str


def read(path: str | os.PathLike) -> Model:
  """Reads the header of a file.

  Args:
    path: the file.

  Returns:
    The model.

  Raises:
    ValueError: one line: the file is damaged or truncated, or describes an unsupported model.
  """
  file = gguf_file.File(path)
  metadata = file.metadata
  if metadata.get('split.count', 1) not in (0, 1):
    raise ValueError(
        f'{path} is one of {metadata["split.count"]} parts: merge them with '
        'llama-gguf-split --merge')
  if metadata.get('general.type', 'model') != 'model':
    raise ValueError(f"{path}: general.type must be 'model', got {metadata['general.type']!r}")

  architecture = metadata.get('general.architecture')
  if architecture not in tuple(MODEL_TYPES):
    raise ValueError(
        f'{path}: general.architecture must be one of {", ".join(MODEL_TYPES)}, got '
        f'{architecture!r}')

  model_type = MODEL_TYPES[architecture]
  fields = _Architecture(file, architecture).config_fields()
  try:
    config = huggingface.find_family(model_type).read_config({'model_type': model_type, **fields})
  except ValueError as error:
    raise ValueError(f'{path}: {error}'.replace(': config.json', '', 1)) from error

  matrices = {tensor.dtype for tensor in file.tensors.values() if len(tensor.shape) > 1}
  model = Model(config, model_type, file, 'bfloat16' if matrices == {'BF16'} else 'float32')
  _tensors(model, model.dtype)  # Checks that the file has them.
  return model


def read_tokenizer(model: Model) -> gguf_tokenizer.TokenizerFiles:
  """Builds the tokenizer files; raises a one-line ValueError if metadata is not enough."""
  path = model.file.source
  tokenizer = gguf_tokenizer.read(model.file.metadata, path, model_type=model.model_type)
  if tokenizer.size > model.config.vocab_size:
    raise ValueError(
        f'{path}: the tokenizer has {tokenizer.size} tokens and the embedding only '
        f'{model.config.vocab_size} rows')
  return tokenizer


def save(
    directory: str | os.PathLike,
    model: Model,
    *,
    dtype: str = '',
    fields: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes a Hugging Face checkpoint atomically, with one tensor in memory at a time.

  Args:
    directory: new or empty directory.
    model: the file.
    dtype: 'float32' or 'bfloat16'; by default that of the model.
    fields: fields of config.json that do not change the model, such as special ids.
    files: additional files, such as those of a tokenizer: contents by name.
    max_shard_bytes: maximum data size of one file.

  Raises:
    ValueError: the directory is in use.
    OSError: the directory cannot be written.
  """
  dtype = dtype or model.dtype
  document = huggingface.config_document(
      model.config, model_type=model.model_type, role='policy', dtype=dtype, fields=fields or {})

  with weights.new_directory(directory) as folder:
    (folder / 'config.json').write_text(json.dumps(document, indent=2, sort_keys=True) + '\n')
    for name, content in (files or {}).items():
      (folder / name).write_bytes(content)
    weights.write_files(folder, _tensors(model, dtype), max_shard_bytes=max_shard_bytes)


class _Architecture:
  """Reads the fields of config.json from the metadata of an architecture."""

  def __init__(self, file: gguf_file.File, name: str):
    self._file = file
    self._name = name
    prefix = f'{name}.'
    own = {key: value for key, value in file.metadata.items() if key.startswith(prefix)}
    for key, value in own.items():
      if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f'{file.source}: {key} must be finite, got {value}')
    self._given = config_fields.Fields(own, name=str(file.source))

  def config_fields(self) -> dict[str, Any]:
    """Returns the fields of config.json."""
    fields = self._read_sizes()
    fields |= self._read_rope(fields)
    if self._name == 'llama':
      fields |= {'attention_bias': self._has_bias('attn_q'), 'mlp_bias': self._has_bias('ffn_gate')}
    elif self._name == 'qwen3':
      fields['attention_bias'] = self._has_bias('attn_q')
    elif self._name in ('gemma2', 'gemma3'):
      fields |= self._read_gemma(fields)

    self._only('attention.causal', True)
    for name in ('expert_count', 'expert_used_count'):
      self._only(name, 0)
    self._given.finish(inert=[f'{self._name}.{name}' for name in _INERT])
    return fields

  def _take(self, name: str, *default: Any, kind: type) -> Any:
    return self._given.take(f'{self._name}.{name}', *default, kind=kind)

  def _only(self, name: str, value: Any) -> None:
    self._given.only(f'{self._name}.{name}', value)

  def _has_bias(self, name: str) -> bool:
    return f'blk.0.{name}.bias' in self._file

  def _read_sizes(self) -> dict[str, Any]:
    """Reads the sizes, each of which must be that of a tensor: damaged ones could be huge."""
    rows, width = self._shape('token_embd.weight')
    layers = {match[1] for match in map(re.compile(r'blk\.(\d+)\.').match, self._file.tensors)
              if match}
    num_heads = self._take('attention.head_count', kind=int)
    self._check('embedding_length', self._take('embedding_length', kind=int), width)
    if num_heads < 1:
      raise self._error('attention.head_count', 'at least 1', num_heads)

    head_dim = self._take('attention.key_length', width // num_heads, kind=int)
    num_kv_heads = self._take('attention.head_count_kv', num_heads, kind=int)
    mlp_width = self._take('feed_forward_length', kind=int)
    self._only('attention.value_length', head_dim)
    self._check('vocab_size', self._take('vocab_size', rows, kind=int), rows)
    self._check('block_count', self._take('block_count', kind=int), len(layers))

    # Tensors of other layers are compared with these sizes later.
    for name, number in (('q', num_heads * head_dim), ('k', num_kv_heads * head_dim)):
      self._check(f'attention.head_count{"" if name == "q" else "_kv"} * attention.key_length',
                  number, self._shape(f'blk.0.attn_{name}.weight')[0])
    self._check('feed_forward_length', mlp_width, self._shape('blk.0.ffn_up.weight')[0])

    length = self._take('context_length', kind=int)
    if not 1 <= length <= _MAX_LENGTH:
      raise self._error('context_length', f'in [1, {_MAX_LENGTH}]', length)

    return {
        'vocab_size': rows, 'hidden_size': width, 'num_hidden_layers': len(layers),
        'num_attention_heads': num_heads, 'num_key_value_heads': num_kv_heads,
        'head_dim': head_dim, 'intermediate_size': mlp_width, 'max_position_embeddings': length,
        'rms_norm_eps': self._take('attention.layer_norm_rms_epsilon', kind=float),
        'tie_word_embeddings': 'output.weight' not in self._file,
    }

  def _shape(self, name: str) -> tuple[int, int]:
    """Returns the shape of a matrix."""
    if name not in self._file:
      raise ValueError(f'tensor {name} is missing from {self._file.source}')
    shape = self._file.tensors[name].shape
    if len(shape) != 2:
      raise ValueError(
          f'tensor {name} in {self._file.source} must have 2 dimensions, got {list(shape)}')
    return shape

  def _check(self, name: str, value: int, actual: int) -> None:
    """Raises ValueError unless a size is that of the tensors."""
    if value != actual:
      raise self._error(name, f'{actual}, the size of the tensors', value)

  def _error(self, name: str, rule: str, value: Any) -> ValueError:
    return ValueError(f'{self._file.source}: {self._name}.{name} must be {rule}, got {value!r}')

  def _read_rope(self, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the rotary positions."""
    is_gemma3 = self._name == 'gemma3'
    self._only('rope.dimension_count', fields['head_dim'])
    self._only('rope.scaling.attn_factor', 1.0)
    out = {'rope_theta': self._take('rope.freq_base', 1e6 if is_gemma3 else 1e4, kind=float)}
    if is_gemma3:
      out['rope_local_base_freq'] = self._take('rope.freq_base_swa', 1e4, kind=float)

    kind = self._take('rope.scaling.type', 'linear', kind=str)
    factor = self._take('rope.scaling.factor', 1.0, kind=float)
    factor = self._take('rope.scale_linear', factor, kind=float)  # Its former name.
    if kind not in ('none', 'linear'):
      raise self._error('rope.scaling.type', 'one of none, linear', kind)

    if _ROPE_FACTORS in self._file:
      out['rope_scaling'] = self._read_llama3(fields['head_dim'], out['rope_theta'])
    elif kind == 'linear' and factor != 1.0:
      out['rope_scaling'] = {'rope_type': 'linear', 'factor': factor}
    return out

  def _read_llama3(self, head_dim: int, theta: float) -> dict[str, Any] | None:
    """Recovers Llama 3's scaling from the factors of all frequencies."""
    factors = self._file.read(_ROPE_FACTORS)
    scaling = {'rope_type': 'llama3', 'factor': float(factors.flat[-1]), **_LLAMA3}
    expected = _llama3_factors(scaling, head_dim, theta)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
      raise ValueError(
          f'tensor {_ROPE_FACTORS} in {self._file.source} must be the scaling of Llama 3.1 with '
          'frequency factors 1 and 4 and an original length of 8192')
    return scaling

  def _read_gemma(self, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the features of Gemma 2 and 3."""
    is_gemma2 = self._name == 'gemma2'
    # Metadata has no query scale; the largest model of each family is the exception.
    is_largest = fields['num_hidden_layers'] == (46 if is_gemma2 else 62)
    scalar = fields['head_dim']
    if is_largest:
      scalar = fields['hidden_size'] // fields['num_attention_heads']

    out = {
        'query_pre_attn_scalar': scalar,
        'sliding_window': self._take('attention.sliding_window', 4096, kind=int),
        'final_logit_softcapping':
            self._take('final_logit_softcapping', 30.0 if is_gemma2 else 0.0, kind=float),
    }
    if is_gemma2:
      out['attn_logit_softcapping'] = self._take('attn_logit_softcapping', 50.0, kind=float)
    else:
      self._only('attn_logit_softcapping', 0.0)
      out['sliding_window_pattern'] = self._take('attention.sliding_window_pattern', 6, kind=int)
    return out


def _llama3_factors(scaling: Mapping[str, Any], head_dim: int, theta: float) -> np.ndarray:
  """Returns the numbers by which Llama 3's scaling divides each frequency, [head_dim / 2]."""
  lengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)  # In tokens.
  low, high = scaling['low_freq_factor'], scaling['high_freq_factor']
  turns = scaling['original_max_position_embeddings'] / lengths
  smooth = np.clip((turns - low) / (high - low), 0, 1)
  return 1 / ((1 - smooth) / scaling['factor'] + smooth)


def _tensors(model: Model, dtype: str) -> list[weights.NewTensor]:
  """Lists the tensors of the checkpoint; raises ValueError if the file does not have them."""
  config, family = model.config, huggingface.find_family(model.model_type)
  abstract = jax.eval_shape(policy.make(config).init, jax.random.key(0))
  entries = family.entries(config)
  stored = [entry._replace(theirs=_name_in_gguf(entry.theirs, config)) for entry in entries]
  mapping.check(stored, model.file, abstract, ignored=[re.escape(_ROPE_FACTORS)])

  entries = mapping.with_prefix(entries, family.PREFIX)
  names = zip(mapping.shapes(entries, abstract).items(), mapping.shapes(stored, abstract))
  out = []
  for (name, shape), theirs in names:
    array = functools.partial(_read_tensor, model, theirs, np.dtype(dtype))
    out.append(weights.NewTensor(name, shape, np.dtype(dtype), array))
  return out


def _name_in_gguf(name: str, config: configs.TransformerConfig) -> str:
  """Returns the name of a checkpoint's tensor in a GGUF file; '{i}' is the layer."""
  layer = 'layers.{i}.'
  stem, _, kind = name.removeprefix(layer).rpartition('.')
  stem = (_POST_NORM_NAMES if config.post_norms else _NAMES)[stem]
  return ('blk.{i}.' if name.startswith(layer) else '') + f'{stem}.{kind}'


def _read_tensor(model: Model, name: str, dtype: np.dtype) -> np.ndarray:
  """Reads a tensor and undoes what llama.cpp's conversion changed."""
  restore = _find_restore(model, name)
  if restore is None:
    return model.file.read(name, dtype)
  return restore(model.file.read(name)).astype(dtype, copy=False)


def _find_restore(model: Model, name: str) -> Callable[[np.ndarray], np.ndarray] | None:
  """Returns the inverse of llama.cpp's change to a tensor; None if it is unchanged."""
  heads = {'attn_q': model.config.num_heads, 'attn_k': model.config.num_kv_heads}
  part = name.split('.')[-2]
  if model.model_type == 'llama' and part in heads:
    return functools.partial(_unpermute, num_heads=heads[part])
  if model.model_type.startswith('gemma') and part.endswith('norm'):
    return lambda scale: scale - 1
  return None


def _unpermute(rows: np.ndarray, *, num_heads: int) -> np.ndarray:
  """Restores the order of rows: llama.cpp has the two halves of a head in turn."""
  pairs = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
  return pairs.swapaxes(1, 2).reshape(rows.shape)
