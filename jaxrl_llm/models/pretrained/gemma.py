"""Gemma, Gemma 2 and the text models of Gemma 3."""

import math
from collections.abc import Mapping
from typing import Any

from jaxrl_llm.models import configs
from jaxrl_llm.models.pretrained import config_fields, llama_layout, rope_fields

MODEL_TYPES = ('gemma', 'gemma2', 'gemma3_text')
ARCHITECTURES = (
    llama_layout.architectures('Gemma')
    | llama_layout.architectures('Gemma2')
    | {
        'Gemma3ForCausalLM': 'policy', 'Gemma3TextForSequenceClassification': 'value',
        'Gemma3TextModel': 'trunk',
    }
)
PREFIX = llama_layout.PREFIX
IGNORED = llama_layout.IGNORED
entries = llama_layout.entries

_COMMON = {'norm': 'rms_plus_one', 'embedding_scale': True, 'activation': 'geglu'}


def read_config(fields: Mapping[str, Any]) -> configs.TransformerConfig:
  """Converts a config.json to a model config; raises ValueError naming an unsupported field."""
  given = config_fields.Fields(fields)
  sizes = llama_layout.read_sizes(
      given, tied=True, head_dim=256, num_kv_heads=16 if fields['model_type'] == 'gemma' else 4)
  given.only('mlp_bias', False)
  bias = given.take('attention_bias', False)
  sizes |= {'attention_bias': bias, 'output_bias': bias, **_COMMON}
  read = {'gemma': _read_gemma, 'gemma2': _read_gemma2, 'gemma3_text': _read_gemma3}
  sizes |= read[fields['model_type']](given, sizes)
  given.finish()
  config = configs.TransformerConfig(**sizes)
  config.validate()
  return config


def _read_gemma(given: config_fields.Fields, sizes: dict[str, Any]) -> dict[str, Any]:
  _check_activations(given)
  return llama_layout.read_rope(given, max_positions=sizes['max_length'])


def _read_gemma2(given: config_fields.Fields, sizes: dict[str, Any]) -> dict[str, Any]:
  rope = llama_layout.read_rope(given, max_positions=sizes['max_length'])
  # The first release stores the window in two fields; transformers reads sliding_window.
  window = _read_window(given)
  given.only('sliding_window_size', window, f'sliding_window is {window}')
  return rope | _read_newer(
      given, sizes, window=window, caps=(50.0, 30.0), slides=lambda i: i % 2 == 0
  )


def _read_gemma3(given: config_fields.Fields, sizes: dict[str, Any]) -> dict[str, Any]:
  # transformers has this field in Gemma 3's config, but its attention ignores it.
  given.only('attn_logit_softcapping', None)
  period = given.take_same(('sliding_window_pattern', '_sliding_window_pattern'), 6, kind=int)
  if period < 1:
    raise ValueError(f'{given.name}: sliding_window_pattern must be at least 1, got {period}')

  out = _read_newer(
      given, sizes, window=_read_window(given), caps=(0.0, 0.0),
      slides=lambda i: (i + 1) % period != 0,
  )

  nested = given.take('rope_parameters', {})
  if unknown := set(nested) - {'sliding_attention', 'full_attention'}:
    raise ValueError(f'{given.name}: rope_parameters has an unknown part {min(unknown)!r}')

  nested = config_fields.Fields(nested, name=f'{given.name}, rope_parameters')
  local_rope, full_rope = (
      nested.take(kind, None, kind=dict) for kind in ('sliding_attention', 'full_attention')
  )
  given.only('partial_rotary_factor', 1.0)
  local = rope_fields.read(
      {'rope_parameters.sliding_attention': local_rope},
      theta={'rope_local_base_freq': given.take('rope_local_base_freq', None, kind=float)},
      default_theta=10_000.0, max_positions=sizes['max_length'], name=given.name,
  )

  if local['rope_scaling'] != 'none':
    raise ValueError(f'{given.name}: rope_parameters of sliding layers must be of type default')

  out |= rope_fields.read(
      {'rope_scaling': given.take('rope_scaling', None, kind=dict),
       'rope_parameters.full_attention': full_rope},
      theta={'rope_theta': given.take('rope_theta', None, kind=float)},
      default_theta=1e6, max_positions=sizes['max_length'], name=given.name,
  )
  sliding_too = out['sliding_window'] > 0

  return out | {'qk_norm': True, 'rope_local_theta': local['rope_theta'] if sliding_too else 0.0}


def _read_window(given: config_fields.Fields) -> int:
  if 'sliding_window' not in given:
    return 4096
  return given.take('sliding_window', kind=int)  # transformers also fails on null.


def _check_activations(given: config_fields.Fields) -> None:
  """Takes the two names of the activation, which is tanh GELU in all published models.

  hidden_activation was added later and takes precedence. hidden_act was published as 'gelu' where
  the tanh form was meant (transformers, pull request 29402), also next to a hidden_activation of
  'gelu_pytorch_tanh': transformers then ignores it, and so do we. Any other value is rejected.
  """
  given.choose('hidden_activation', 'gelu_pytorch_tanh', _GELU)
  given.choose('hidden_act', 'gelu_pytorch_tanh', {'gelu': 'geglu', **_GELU})


def _read_newer(given, sizes, *, window, caps, slides) -> dict[str, Any]:
  """Reads the features shared by Gemma 2 and 3: post norms, windows, soft caps, query scale."""
  _check_activations(given)
  scalar = given.take('query_pre_attn_scalar', 256.0)
  if not 0 < scalar < math.inf:
    raise ValueError(f'{given.name}: query_pre_attn_scalar must be positive, got {scalar}')

  def cap(name: str, default: float) -> float:
    return given.take(name, default if name not in given else 0.0, kind=float)

  return {
      'post_norms': True,
      'query_scale': 0.0 if scalar == sizes['head_dim'] else scalar**-0.5,
      'attention_softcap': cap('attn_logit_softcapping', caps[0]),
      'logit_softcap': cap('final_logit_softcapping', caps[1]),
      **config_fields.read_layers(
          given, sizes['num_layers'], window=window,
          default=[slides(i) for i in range(sizes['num_layers'])],
      ),
  }


_GELU = {'gelu_pytorch_tanh': 'geglu', 'gelu_new': 'geglu'}


def write_config(config: configs.TransformerConfig, model_type: str) -> dict[str, Any]:
  """Converts a model config to a config.json; raises ValueError if the family cannot express it."""
  fields = llama_layout.write_sizes(config)
  fields |= {'model_type': model_type, 'attention_bias': config.attention_bias}

  if model_type == 'gemma':
    fields |= {'hidden_act': 'gelu_pytorch_tanh', 'hidden_activation': 'gelu_pytorch_tanh'}
  else:
    scalar = config.query_scale**-2 if config.query_scale else float(config.head_dim)
    whole = round(scalar)
    fields |= {
        'hidden_activation': 'gelu_pytorch_tanh',
        'query_pre_attn_scalar': whole if abs(scalar - whole) < 1e-9 * scalar else scalar,
        'attn_logit_softcapping': config.attention_softcap or None,
        'final_logit_softcapping': config.logit_softcap or None,
        'sliding_window': config.sliding_window or 4096,
        'layer_types': config_fields.write_layer_types(config),
    }

  if model_type == 'gemma3_text':
    fields['rope_local_base_freq'] = config.rope_local_theta or 10_000.0

  config_fields.check_expressed(config, read_config(fields), model_type)
  return fields
