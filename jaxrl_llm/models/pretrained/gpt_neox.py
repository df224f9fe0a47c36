"""GPT-NeoX (Pythia). Query, key and value of each head are adjacent in one matrix."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrl_llm.models import configs
from jaxrl_llm.models.pretrained import config_fields, rope_fields
from jaxrl_llm.models.pretrained.mapping import Entry, same, transposed

MODEL_TYPES = ('gpt_neox',)
ARCHITECTURES = {
    'GPTNeoXForCausalLM': 'policy', 'GPTNeoXForSequenceClassification': 'value',
    'GPTNeoXModel': 'trunk',
}
PREFIX = 'gpt_neox.'
# The causal mask and the rotary frequencies, stored by old versions.
IGNORED = (
    r'.*\.attention\.(bias|masked_bias)', r'.*\.rotary_emb\.(inv_freq|cos_cached|sin_cached)',
)

# Dropout, as spelled in GPT-NeoX-20B.
_INERT = ('attention_probs_dropout_prob', 'hidden_dropout_prob')


def read_config(fields: Mapping[str, Any]) -> configs.TransformerConfig:
  """Converts a config.json to a model config; raises ValueError naming an unsupported field."""
  given = config_fields.Fields(fields)
  width = given.take('hidden_size', kind=int)
  num_heads = given.take('num_attention_heads', kind=int)
  if num_heads < 1 or width % num_heads:
    raise ValueError(
        f'{given.name}: hidden_size must be divisible by num_attention_heads ({num_heads}), got '
        f'{width}'
    )

  head_dim = width // num_heads
  given.only('head_dim', head_dim, f'hidden_size / num_attention_heads is {head_dim}')
  max_length = given.take('max_position_embeddings', kind=int)
  rope = _read_rope(given, max_length)
  bias = given.take('attention_bias', True)

  config = configs.TransformerConfig(
      vocab_size=given.take('vocab_size', kind=int),
      num_layers=given.take('num_hidden_layers', kind=int),
      width=width,
      num_heads=num_heads,
      num_kv_heads=num_heads,
      head_dim=head_dim,
      mlp_width=given.take('intermediate_size', kind=int),
      max_length=max_length,
      norm='layer',
      norm_epsilon=given.take('layer_norm_eps', 1e-5),
      parallel_residual=given.take('use_parallel_residual', True),
      activation=given.choose('hidden_act', 'gelu', config_fields.PLAIN_ACTIVATIONS),
      tie_embeddings=given.take('tie_word_embeddings', False),
      attention_bias=bias,
      output_bias=bias,
      mlp_bias=True,
      **rope,
  )
  given.finish(inert=_INERT)
  config.validate()

  return config


def _read_rope(given: config_fields.Fields, max_length: int) -> dict[str, Any]:
  rope = rope_fields.read(
      {part: given.take(part, None, kind=dict) for part in ('rope_scaling', 'rope_parameters')},
      theta={'rotary_emb_base': given.take('rotary_emb_base', None, kind=float)},
      fraction={'rotary_pct': given.take('rotary_pct', None, kind=float)},
      default_theta=10_000.0, default_fraction=0.25, max_positions=max_length, name=given.name,
  )
  # Some versions of transformers 4 write copies of the base and the fraction, but ignore them.
  base, share = rope['rope_theta'], rope['rope_fraction']
  given.only('rope_theta', base, f'rotary_emb_base is {base}')
  given.only('partial_rotary_factor', share, f'rotary_pct is {share}')
  return rope


def write_config(config: configs.TransformerConfig, model_type: str) -> dict[str, Any]:
  """Converts a model config to a config.json; raises ValueError if the family cannot express it."""
  activation = config_fields.WRITTEN_ACTIVATIONS.get(config.activation, 'gelu')
  fields = {
      'model_type': model_type,
      'vocab_size': config.vocab_size,
      'num_hidden_layers': config.num_layers,
      'hidden_size': config.width,
      'num_attention_heads': config.num_heads,
      'intermediate_size': config.mlp_width,
      'max_position_embeddings': config.max_length,
      'layer_norm_eps': config.norm_epsilon,
      'use_parallel_residual': config.parallel_residual,
      'hidden_act': activation,
      'tie_word_embeddings': config.tie_embeddings,
      'attention_bias': config.attention_bias,
      'rotary_pct': config.rope_fraction,
      'rotary_emb_base': config.rope_theta,
      'rope_scaling': rope_fields.write_scaling(config),
  }
  config_fields.check_expressed(config, read_config(fields), model_type)

  return fields


def entries(config: configs.TransformerConfig) -> list[Entry]:
  """Returns the name map of the trunk and the head."""
  shape = (config.num_heads, 3, config.head_dim)
  rows = config.num_heads * config.head_dim

  def split(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """[H * 3 * h, ...] -> three arrays [..., H * h]."""
    parts = x.reshape(*shape, *x.shape[1:])
    return tuple(parts[:, j].reshape(rows, *x.shape[1:]).T for j in range(3))

  def join(*parts: np.ndarray) -> np.ndarray:
    rest = parts[0].shape[:-1]
    heads = [part.T.reshape(config.num_heads, config.head_dim, *rest) for part in parts]
    return np.stack(heads, axis=1).reshape(3 * rows, *rest)

  layer = 'layers.{i}'
  out = [same('embed_in.weight', 'embedder/embedding')]
  fused = [('weight', 'kernel')] + ([('bias', 'bias')] if config.attention_bias else [])
  for theirs, ours in fused:
    out.append(Entry(
        f'{layer}.attention.query_key_value.{theirs}',
        tuple(f'layers/attention/{head}/{ours}' for head in ('query', 'key', 'value')),
        split=split, join=join,
    ))

  for theirs, ours, bias in (
      ('attention.dense', 'attention/output', config.output_bias),
      ('mlp.dense_h_to_4h', 'mlp/up', True),
      ('mlp.dense_4h_to_h', 'mlp/down', True),
  ):
    out.append(transposed(f'{layer}.{theirs}.weight', f'layers/{ours}/kernel'))
    if bias:
      out.append(same(f'{layer}.{theirs}.bias', f'layers/{ours}/bias'))

  for theirs, ours in (('weight', 'scale'), ('bias', 'bias')):
    out += [
        same(f'{layer}.input_layernorm.{theirs}', f'layers/attention_norm/{ours}'),
        same(f'{layer}.post_attention_layernorm.{theirs}', f'layers/mlp_norm/{ours}'),
        same(f'final_layer_norm.{theirs}', f'final_norm/{ours}'),
    ]

  if not config.tie_embeddings:
    out.append(same('embed_out.weight', 'head/kernel'))
  return out
