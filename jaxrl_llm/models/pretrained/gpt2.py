"""GPT-2. Its linear layers are stored [in, out], with query, key and value in one matrix."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrl_llm.models import configs
from jaxrl_llm.models.pretrained import config_fields
from jaxrl_llm.models.pretrained.mapping import Entry, same

MODEL_TYPES = ('gpt2',)
ARCHITECTURES = {
    'GPT2LMHeadModel': 'policy', 'GPT2ForSequenceClassification': 'value', 'GPT2Model': 'trunk',
}
PREFIX = 'transformer.'
IGNORED = (r'.*h\.\d+\.attn\.(bias|masked_bias)',)  # The causal mask.

# Dropout, the head of GPT2DoubleHeadsModel, and the rounding of attention.
_INERT = (
    'attn_pdrop', 'embd_pdrop', 'resid_pdrop', 'summary_activation', 'summary_first_dropout',
    'summary_proj_to_labels', 'summary_type', 'summary_use_proj', 'reorder_and_upcast_attn',
)


def read_config(fields: Mapping[str, Any]) -> configs.TransformerConfig:
  """Converts a config.json to a model config; raises ValueError naming an unsupported field."""
  given = config_fields.Fields(fields)
  # transformers treats the second name of each pair as an alias of the first.
  width = given.take_same(('n_embd', 'hidden_size'), kind=int)
  num_heads = given.take_same(('n_head', 'num_attention_heads'), kind=int)
  num_layers = given.take_same(('n_layer', 'num_hidden_layers'), kind=int)
  max_length = given.take_same(('n_positions', 'max_position_embeddings'), kind=int)

  if num_heads < 1 or width % num_heads:
    raise ValueError(
        f'{given.name}: n_embd must be divisible by n_head ({num_heads}), got {width}'
    )

  mlp_width = given.take('n_inner', 4 * width)
  given.only('scale_attn_by_inverse_layer_idx', False)
  # The number of extra tokens, and whether the head predicts them; there are none.
  given.only('n_special', 0)
  given.only('predict_special_tokens', True)

  # transformers ignores these fields, so they must agree with the rest.
  given.only('n_ctx', max_length, f'n_positions is {max_length}')
  given.only('intermediate_size', mlp_width, f'n_inner is {mlp_width}')
  given.only('head_dim', width // num_heads, f'n_embd / n_head is {width // num_heads}')
  activation = fields.get('activation_function') or 'gelu_new'
  given.only('hidden_act', activation, f'activation_function is {activation!r}')

  config = configs.TransformerConfig(
      vocab_size=given.take('vocab_size', kind=int),
      num_layers=num_layers,
      width=width,
      num_heads=num_heads,
      num_kv_heads=num_heads,
      head_dim=width // num_heads,
      mlp_width=mlp_width,
      max_length=max_length,
      norm='layer',
      norm_epsilon=given.take('layer_norm_epsilon', 1e-5),
      positions='learned',
      query_scale=0.0 if given.take('scale_attn_weights', True) else 1.0,
      activation=given.choose('activation_function', 'gelu_new', config_fields.PLAIN_ACTIVATIONS),
      tie_embeddings=given.take('tie_word_embeddings', True),
      attention_bias=True,
      output_bias=True,
      mlp_bias=True,
  )
  given.finish(inert=_INERT)
  config.validate()

  return config


def write_config(config: configs.TransformerConfig, model_type: str) -> dict[str, Any]:
  """Converts a model config to a config.json; raises ValueError if the family cannot express it."""
  activation = config_fields.WRITTEN_ACTIVATIONS.get(config.activation, 'gelu_new')
  fields = {
      'model_type': model_type,
      'vocab_size': config.vocab_size,
      'n_layer': config.num_layers,
      'n_embd': config.width,
      'n_head': config.num_heads,
      'n_inner': config.mlp_width,
      'n_positions': config.max_length,
      'layer_norm_epsilon': config.norm_epsilon,
      'scale_attn_weights': config.query_scale != 1.0,
      'activation_function': activation,
      'tie_word_embeddings': config.tie_embeddings,
  }
  config_fields.check_expressed(config, read_config(fields), model_type)

  return fields


def entries(config: configs.TransformerConfig) -> list[Entry]:
  """Returns the name map of the trunk and the head."""
  heads = ('query', 'key', 'value')
  out = [
      same('wte.weight', 'embedder/embedding'), same('wpe.weight', 'embedder/position_embedding')
  ]

  for theirs, ours in (('weight', 'kernel'), ('bias', 'bias')):
    out.append(Entry(
        f'h.{{i}}.attn.c_attn.{theirs}',
        tuple(f'layers/attention/{head}/{ours}' for head in heads),
        split=lambda x: tuple(np.split(x, 3, axis=-1)),
        join=lambda *parts: np.concatenate(parts, axis=-1),
    ))
    out += [
        same(f'h.{{i}}.attn.c_proj.{theirs}', f'layers/attention/output/{ours}'),
        same(f'h.{{i}}.mlp.c_fc.{theirs}', f'layers/mlp/up/{ours}'),
        same(f'h.{{i}}.mlp.c_proj.{theirs}', f'layers/mlp/down/{ours}'),
    ]

  for theirs, ours in (('weight', 'scale'), ('bias', 'bias')):
    out += [
        same(f'h.{{i}}.ln_1.{theirs}', f'layers/attention_norm/{ours}'),
        same(f'h.{{i}}.ln_2.{theirs}', f'layers/mlp_norm/{ours}'),
        same(f'ln_f.{theirs}', f'final_norm/{ours}'),
    ]

  if not config.tie_embeddings:
    out.append(same('lm_head.weight', 'head/kernel'))
  return out
