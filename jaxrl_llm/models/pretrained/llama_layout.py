"""Sizes and tensor names shared by Llama, Mistral, Qwen and Gemma checkpoints."""

from typing import Any

from jaxrl_llm.models import configs
from jaxrl_llm.models.pretrained import config_fields, rope_fields
from jaxrl_llm.models.pretrained.mapping import Entry, same, transposed

PREFIX = 'model.'
# Buffers stored by old versions.
IGNORED = (r'.*\.rotary_emb\.inv_freq', r'.*\.rotary_emb\.(cos|sin)_cached', r'.*\.masked_bias')


def architectures(name: str) -> dict[str, str]:
  """Returns the class names of a family in config.json, and their roles."""
  return {
      f'{name}ForCausalLM': 'policy', f'{name}ForSequenceClassification': 'value',
      f'{name}Model': 'trunk',
  }


def read_sizes(
    fields: config_fields.Fields, *, tied: bool, head_dim: int | None = None,
    num_kv_heads: int | None = None,
) -> dict[str, Any]:
  """Reads the fields of `TransformerConfig` that all these families spell the same way.

  Args:
    fields: fields of the file.
    tied: default of `tie_word_embeddings`.
    head_dim: default head width; None is D / H.
    num_kv_heads: default number of key and value heads; None is H. A null in the file is always H.

  Returns:
    Keyword arguments of `TransformerConfig`.
  """
  width = fields.take('hidden_size', kind=int)
  num_heads = fields.take('num_attention_heads', kind=int)
  if head_dim is None and num_heads and width % num_heads == 0:
    head_dim = width // num_heads

  head_dim = fields.take('head_dim', head_dim, kind=int)
  if head_dim is None:
    raise ValueError(
        f'{fields.name}: hidden_size must be divisible by num_attention_heads ({num_heads}) if '
        f'head_dim is absent, got {width}'
    )

  if num_kv_heads is None or 'num_key_value_heads' in fields:
    num_kv_heads = num_heads

  return {
      'vocab_size': fields.take('vocab_size', kind=int),
      'num_layers': fields.take('num_hidden_layers', kind=int),
      'width': width,
      'num_heads': num_heads,
      'num_kv_heads': fields.take('num_key_value_heads', num_kv_heads),
      'head_dim': head_dim,
      'mlp_width': fields.take('intermediate_size', kind=int),
      'max_length': fields.take('max_position_embeddings', kind=int),
      'norm_epsilon': fields.take('rms_norm_eps', 1e-6),
      'tie_embeddings': fields.take('tie_word_embeddings', tied),
  }


def read_rope(
    fields: config_fields.Fields, *, max_positions: int, default_theta: float = 10_000.0
) -> dict[str, Any]:
  """Reads the rotary positions of a model in which all layers have the same."""
  fields.only('partial_rotary_factor', 1.0)
  return rope_fields.read(
      {part: fields.take(part, None, kind=dict) for part in ('rope_scaling', 'rope_parameters')},
      theta={'rope_theta': fields.take('rope_theta', None, kind=float)},
      default_theta=default_theta,
      max_positions=max_positions,
      name=fields.name,
  )


def write_sizes(config: configs.TransformerConfig) -> dict[str, Any]:
  """Writes the fields that `read_sizes` and `read_rope` read."""
  return {
      'vocab_size': config.vocab_size,
      'num_hidden_layers': config.num_layers,
      'hidden_size': config.width,
      'num_attention_heads': config.num_heads,
      'num_key_value_heads': config.num_kv_heads,
      'head_dim': config.head_dim,
      'intermediate_size': config.mlp_width,
      'max_position_embeddings': config.max_length,
      'rms_norm_eps': config.norm_epsilon,
      'tie_word_embeddings': config.tie_embeddings,
      'rope_theta': config.rope_theta,
      'rope_scaling': rope_fields.write_scaling(config),
  }


def _linear(theirs: str, ours: str, *, bias: bool) -> list[Entry]:
  entries = [transposed(f'{theirs}.weight', f'{ours}/kernel')]
  return entries + ([same(f'{theirs}.bias', f'{ours}/bias')] if bias else [])


def entries(config: configs.TransformerConfig) -> list[Entry]:
  """Returns the name map of the trunk and the head."""
  attention, mlp = 'layers.{i}.self_attn', 'layers.{i}.mlp'
  norms = {'input_layernorm': 'attention_norm', 'post_attention_layernorm': 'mlp_norm'}
  if config.post_norms:  # Here post_attention_layernorm does follow attention.
    norms = {
        'input_layernorm': 'attention_norm', 'post_attention_layernorm': 'attention_post_norm',
        'pre_feedforward_layernorm': 'mlp_norm', 'post_feedforward_layernorm': 'mlp_post_norm',
    }

  out = [same('embed_tokens.weight', 'embedder/embedding')]
  for theirs, ours in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    out += _linear(f'{attention}.{theirs}_proj', f'layers/attention/{ours}',
                   bias=config.attention_bias)

  out += _linear(f'{attention}.o_proj', 'layers/attention/output', bias=config.output_bias)
  if config.qk_norm:
    out += [
        same(f'{attention}.q_norm.weight', 'layers/attention/query_norm/scale'),
        same(f'{attention}.k_norm.weight', 'layers/attention/key_norm/scale'),
    ]

  for name in ('gate', 'up', 'down'):
    out += _linear(f'{mlp}.{name}_proj', f'layers/mlp/{name}', bias=config.mlp_bias)
  for theirs, ours in norms.items():
    out.append(same(f'layers.{{i}}.{theirs}.weight', f'layers/{ours}/scale'))

  out.append(same('norm.weight', 'final_norm/scale'))
  if not config.tie_embeddings:
    out.append(same('lm_head.weight', 'head/kernel'))

  return out
