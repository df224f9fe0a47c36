"""Llama 1, 2, 3, 3.1, 3.2 and Mistral (also SmolLM, TinyLlama, DeepSeek-R1-Distill-Llama)."""

from collections.abc import Mapping
from typing import Any

from jaxrl_llm.models import configs
from jaxrl_llm.models.pretrained import config_fields, llama_layout

MODEL_TYPES = ('llama', 'mistral')
ARCHITECTURES = llama_layout.architectures('Llama') | llama_layout.architectures('Mistral')
PREFIX = llama_layout.PREFIX
IGNORED = llama_layout.IGNORED
entries = llama_layout.entries


def read_config(fields: Mapping[str, Any]) -> configs.TransformerConfig:
  """Converts a config.json to a model config; raises ValueError naming an unsupported field."""
  # The first conversions of Llama 1 have max_sequence_length only.
  length = {'max_position_embeddings': fields.get('max_sequence_length')}
  given = config_fields.Fields({**length, **fields})
  mistral = fields.get('model_type') == 'mistral'
  sizes = llama_layout.read_sizes(given, tied=False, num_kv_heads=8 if mistral else None)
  sizes |= llama_layout.read_rope(given, max_positions=sizes['max_length'])
  activation = given.choose('hidden_act', 'silu', config_fields.GATED_ACTIVATIONS)
  sizes |= _read_mistral(given, sizes['num_layers']) if mistral else _read_llama(given)
  given.finish()
  config = configs.TransformerConfig(activation=activation, **sizes)
  config.validate()
  return config


def _read_llama(given: config_fields.Fields) -> dict[str, Any]:
  # Written by SmolLM2's trainer: the model is a Llama, and rotary positions pair the two halves
  # of a head, not neighbouring dimensions.
  given.only('is_llama_config', True)
  given.only('rope_interleaved', False)
  # Number of slices in which old versions summed a product; the result is equal up to rounding.
  slices = given.take('pretraining_tp', 1)
  if slices < 1:
    raise ValueError(f'{given.name}: pretraining_tp must be at least 1, got {slices}')

  bias = given.take('attention_bias', False)
  return {'attention_bias': bias, 'output_bias': bias, 'mlp_bias': given.take('mlp_bias', False)}


def _read_mistral(given: config_fields.Fields, num_layers: int) -> dict[str, Any]:
  for field in ('attention_bias', 'mlp_bias'):
    given.only(field, False)
  # An explicit null means no sliding layers, as in Mistral 7B v0.2.
  window = given.take('sliding_window', None if 'sliding_window' in given else 4096, kind=int)
  layers = config_fields.read_layers(given, num_layers, window=window, default=[True] * num_layers)
  if layers['layer_pattern'] != ('' if window is None else 's'):
    raise ValueError(
        f'{given.name}: layer_types must be sliding_attention in every layer if sliding_window is '
        f'given ({window}): in Mistral it applies to all layers'
    )
  return layers


def write_config(config: configs.TransformerConfig, model_type: str) -> dict[str, Any]:
  """Converts a model config to a config.json; raises ValueError if the family cannot express it."""
  fields = llama_layout.write_sizes(config)
  fields |= {'model_type': model_type, 'hidden_act': _activation(config)}
  if model_type == 'mistral':
    fields['sliding_window'] = config.sliding_window or None
  else:
    fields |= {'attention_bias': config.attention_bias, 'mlp_bias': config.mlp_bias}
  config_fields.check_expressed(config, read_config(fields), model_type)
  return fields


def _activation(config: configs.TransformerConfig) -> str:
  return {'swiglu': 'silu', 'geglu': 'gelu_pytorch_tanh'}.get(config.activation, 'silu')
