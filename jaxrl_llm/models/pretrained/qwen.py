"""Qwen2, Qwen2.5 (also DeepSeek-R1-Distill-Qwen) and Qwen3."""

from collections.abc import Mapping
from typing import Any

from jaxrl_llm.models import configs
from jaxrl_llm.models.pretrained import config_fields, llama_layout

MODEL_TYPES = ('qwen2', 'qwen3')
ARCHITECTURES = llama_layout.architectures('Qwen2') | llama_layout.architectures('Qwen3')
PREFIX = llama_layout.PREFIX
IGNORED = llama_layout.IGNORED
entries = llama_layout.entries


def read_config(fields: Mapping[str, Any]) -> configs.TransformerConfig:
  """Converts a config.json to a model config; raises ValueError naming an unsupported field."""
  given = config_fields.Fields(fields)
  qwen3 = fields.get('model_type') == 'qwen3'
  sizes = llama_layout.read_sizes(
      given, tied=False, head_dim=128 if qwen3 else None, num_kv_heads=32)
  sizes |= llama_layout.read_rope(given, max_positions=sizes['max_length'])
  sizes['max_length'] = min(sizes['max_length'], _read_first_chunk(given, sizes['max_length']))

  # Without use_sliding_window, the window and its first layer are ignored.
  slides = given.take('use_sliding_window', False)
  window, first = given.take('sliding_window', 4096), given.take('max_window_layers', 28)
  sizes |= config_fields.read_layers(
      given, sizes['num_layers'], window=window if slides else None,
      default=[i >= first for i in range(sizes['num_layers'])],
  )
  given.only('mlp_bias', False)

  if qwen3:
    bias = given.take('attention_bias', False)
    sizes |= {'qk_norm': True, 'attention_bias': bias, 'output_bias': bias}
  else:
    given.only('attention_bias', True)  # transformers ignores it.
    sizes['attention_bias'] = True

  activation = given.choose('hidden_act', 'silu', {'silu': 'swiglu'})
  given.finish()
  config = configs.TransformerConfig(activation=activation, **sizes)
  config.validate()
  return config


def _read_first_chunk(given: config_fields.Fields, max_length: int) -> int:
  """Returns the longest text that dual chunk attention leaves unchanged, in tokens.

  Qwen2.5-1M uses it: the positions of keys restart in every chunk, so that attention in the first
  chunk is the usual one. transformers does not read the field.
  """
  chunks = given.take('dual_chunk_attention_config', None, kind=dict)
  if chunks is None:
    return max_length
  chunks = config_fields.Fields(chunks, name=f'{given.name}, dual_chunk_attention_config')
  first = chunks.take('chunk_size', kind=int) - chunks.take('local_size', kind=int)
  chunks.finish(inert=('original_max_position_embeddings',))
  return first


def write_config(config: configs.TransformerConfig, model_type: str) -> dict[str, Any]:
  """Converts a model config to a config.json; raises ValueError if the family cannot express it."""
  fields = llama_layout.write_sizes(config)
  fields |= {
      'model_type': model_type, 'hidden_act': 'silu',
      'use_sliding_window': bool(config.sliding_window),
      'sliding_window': config.sliding_window or None,
      'max_window_layers': _first_sliding(config),
  }

  if config.sliding_window:
    fields['layer_types'] = config_fields.write_layer_types(config)
  if model_type == 'qwen3':
    fields['attention_bias'] = config.attention_bias
  elif config.head_dim * config.num_heads == config.width:
    del fields['head_dim']  # Not a field of Qwen2.

  config_fields.check_expressed(config, read_config(fields), model_type)
  return fields


def _first_sliding(config: configs.TransformerConfig) -> int:
  sliding = config.sliding_layers
  return sliding.index(True) if any(sliding) else config.num_layers
