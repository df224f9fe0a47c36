"""Tiny checkpoints for the comparison with transformers, option by option.

A case's `fields` are its config.json, in the spelling of released checkpoints (`rope_theta`,
`rope_scaling`, inert fields) or in that of transformers 5 (`rope_parameters`). Each control is the
case with one option switched off; its logits must differ, or the case would not test the option.
Widths are all different, so that no two axes can be confused.
"""

import dataclasses
from typing import Any

# Tokens per row, longer than every window and every original context below.
LENGTHS = (24, 15, 9)
WIDTH = 24
DECODED = 5  # Number of last columns that are decoded one by one with a cache.
# Indices of the stored logits: (row, token of the row).
STORED_INDICES = (
    (0, 0), (0, 5), (0, 6), (0, 7), (0, 12), (0, 18), (0, 22), (0, 23), (1, 3), (1, 14), (2, 4),
    (2, 8))
CONTROL_INDICES = ((0, 23), (1, 14))


@dataclasses.dataclass(frozen=True)
class Control:
  """One option switched off.

  Attributes:
    name: name of the option.
    fields: changes of config.json. A tensor whose shape changes is the case's tensor, repeated; a
      new tensor is drawn.
    edit: (kind, regex) of changes without a field in config.json: 'identity' for modules that
      return their input, 'unscaled' for modules whose output is divided by sqrt(D), 'zero' for
      tensors set to 0, 'minus_one' for tensors reduced by 1.
    ours: fields of our config that differ, with their values; {} if only tensors do.
    least: minimum difference of some logit.
  """

  name: str
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  edit: tuple[str, str] | None = None
  ours: dict[str, Any] = dataclasses.field(default_factory=dict)
  least: float = 1e-2


@dataclasses.dataclass(frozen=True)
class Case:
  """A checkpoint: its config.json and its controls."""

  name: str
  family: str
  fields: dict[str, Any]
  controls: tuple[Control, ...] = ()

  @property
  def norm_centre(self) -> float:
    """Mean of norm weights; Gemma adds 1 to them."""
    return 0.0 if self.family.startswith('gemma') else 1.0

  @property
  def is_classifier(self) -> bool:
    """True if the output is one number per row, read at the row's last token."""
    return self.fields['architectures'][0].endswith('ForSequenceClassification')


# The fields of config.json that define the size of a model.
SIZES = frozenset({
    'vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size',
    'max_position_embeddings', 'num_key_value_heads', 'head_dim', 'n_embd', 'n_layer', 'n_head',
    'n_positions',
})
_SHAPE = {
    'vocab_size': 67, 'hidden_size': 48, 'num_hidden_layers': 2, 'num_attention_heads': 4,
    'intermediate_size': 80, 'max_position_embeddings': 128,
}
_GROUPED = {'num_key_value_heads': 2}
_ONE_LABEL = {'id2label': {'0': 'LABEL_0'}, 'label2id': {'LABEL_0': 0}, 'pad_token_id': 0}
_INERT = {
    'attention_dropout': 0.0, 'bos_token_id': 1, 'eos_token_id': 2, 'initializer_range': 0.02,
    'transformers_version': '4.40.1', 'use_cache': True,
}

_UNTIED = Control('untied', {'tie_word_embeddings': False}, ours={'tie_embeddings': False})
_TIED = Control('tied', {'tie_word_embeddings': True}, ours={'tie_embeddings': True})
_NO_GROUPS = Control('grouped queries', {'num_key_value_heads': 4}, ours={'num_kv_heads': 4})
_HEAD_DIM = Control('head_dim', {'head_dim': 12}, ours={'head_dim': 12})
_QK_NORM = Control('q/k norms', edit=('identity', r'.*[qk]_norm'), ours={'qk_norm': False})
_EPSILON = Control('epsilon', {'rms_norm_eps': 1e-6}, ours={'norm_epsilon': 1e-6})
_NO_BIASES = Control('attention biases', {'attention_bias': False},
                     ours={'attention_bias': False, 'output_bias': False})
_THETA = Control('rope_theta', {'rope_theta': 10_000.0}, ours={'rope_theta': 10_000.0})
_UNSCALED_LINEAR = {'rope_scaling': 'none', 'rope_factor': 1.0}
_UNSCALED_LLAMA3 = {**_UNSCALED_LINEAR, 'rope_low_freq_factor': 0.0, 'rope_high_freq_factor': 0.0,
                    'rope_original_length': 0}
_ALL_FULL = {'sliding_window': 0, 'layer_pattern': ''}

_GPT2_SHAPE = {'vocab_size': 67, 'n_embd': 48, 'n_layer': 2, 'n_head': 4, 'n_positions': 32}
_GPT2_INERT = {
    'attn_pdrop': 0.1, 'bos_token_id': 66, 'embd_pdrop': 0.1, 'eos_token_id': 66,
    'initializer_range': 0.02, 'n_ctx': 32, 'resid_pdrop': 0.1, 'summary_activation': None,
    'summary_first_dropout': 0.1, 'summary_proj_to_labels': True, 'summary_type': 'cls_index',
    'summary_use_proj': True,
    'task_specific_params': {'text-generation': {'do_sample': True, 'max_length': 50}},
}
_GPT2 = [
    Case('gpt2', 'gpt2', {
        'activation_function': 'gelu_new', 'architectures': ['GPT2LMHeadModel'],
        'layer_norm_epsilon': 1e-5, 'model_type': 'gpt2', **_GPT2_SHAPE, **_GPT2_INERT,
    }, (
        Control('activation', {'activation_function': 'relu'}, ours={'activation': 'relu'}),
        # The two forms of GELU differ by at most 5e-4.
        Control('tanh form', {'activation_function': 'gelu'}, ours={'activation': 'gelu_exact'},
                least=1e-3),
        Control('attention biases', edit=('zero', r'.*c_attn\.bias')),
        Control('output biases', edit=('zero', r'.*attn\.c_proj\.bias')),
        Control('mlp biases', edit=('zero', r'.*mlp\..*\.bias')),
        _UNTIED,
    )),
    Case('gpt2_exact_gelu', 'gpt2', {
        'activation_function': 'gelu', 'architectures': ['GPT2LMHeadModel'],
        'layer_norm_epsilon': 0.05, 'model_type': 'gpt2', 'n_inner': 80,
        'tie_word_embeddings': False, **_GPT2_SHAPE,
    }, (
        Control('epsilon', {'layer_norm_epsilon': 1e-6}, ours={'norm_epsilon': 1e-6}),
        _TIED,
    )),
    Case('gpt2_unscaled', 'gpt2', {
        'activation_function': 'gelu_new', 'architectures': ['GPT2LMHeadModel'],
        'layer_norm_epsilon': 1e-5, 'model_type': 'gpt2', 'scale_attn_weights': False,
        **_GPT2_SHAPE,
    }, (Control('query scale', {'scale_attn_weights': True}, ours={'query_scale': 0.0}),)),
    Case('gpt2_value', 'gpt2', {
        'activation_function': 'relu', 'architectures': ['GPT2ForSequenceClassification'],
        'layer_norm_epsilon': 1e-5, 'model_type': 'gpt2', **_ONE_LABEL, **_GPT2_SHAPE,
    }, (Control('activation', {'activation_function': 'gelu_new'}, ours={'activation': 'gelu'}),)),
]

_NEOX_SHAPE = {**_SHAPE, 'hidden_size': 64, 'max_position_embeddings': 32}
_NEOX = [
    Case('pythia', 'gpt_neox', {
        'architectures': ['GPTNeoXForCausalLM'], 'bos_token_id': 0, 'eos_token_id': 0,
        'hidden_act': 'gelu', 'initializer_range': 0.02, 'layer_norm_eps': 1e-5,
        'model_type': 'gpt_neox', 'rotary_emb_base': 10000, 'rotary_pct': 0.25,
        'tie_word_embeddings': False, 'torch_dtype': 'float16', 'transformers_version': '4.24.0',
        'use_cache': True, 'use_parallel_residual': True, **_NEOX_SHAPE,
    }, (
        Control('parallel residual', {'use_parallel_residual': False},
                ours={'parallel_residual': False}),
        Control('rotary fraction', {'rotary_pct': 1.0}, ours={'rope_fraction': 1.0}),
        Control('biases', {'attention_bias': False},
                ours={'attention_bias': False, 'output_bias': False}),
        Control('activation', {'hidden_act': 'relu'}, ours={'activation': 'relu'}),
        _TIED,
    )),
    Case('neox_sequential_linear', 'gpt_neox', {
        'architectures': ['GPTNeoXForCausalLM'], 'attention_bias': False, 'hidden_act': 'gelu_new',
        'layer_norm_eps': 0.05, 'model_type': 'gpt_neox', 'rotary_emb_base': 500,
        'rotary_pct': 1.0, 'rope_scaling': {'type': 'linear', 'factor': 4.0},
        'tie_word_embeddings': True, 'use_parallel_residual': False, **_NEOX_SHAPE,
    }, (
        Control('parallel residual', {'use_parallel_residual': True},
                ours={'parallel_residual': True}),
        Control('linear scaling', {'rope_scaling': None}, ours=_UNSCALED_LINEAR),
        Control('rope_theta', {'rotary_emb_base': 10000}, ours={'rope_theta': 10_000.0}),
        Control('epsilon', {'layer_norm_eps': 1e-6}, ours={'norm_epsilon': 1e-6}),
        Control('biases', {'attention_bias': True},
                ours={'attention_bias': True, 'output_bias': True}),
        _UNTIED,
    )),
    Case('neox_value', 'gpt_neox', {
        'architectures': ['GPTNeoXForSequenceClassification'], 'hidden_act': 'relu',
        'layer_norm_eps': 1e-5, 'model_type': 'gpt_neox', 'attention_bias': True,
        'rope_parameters': {
            'rope_type': 'default', 'rope_theta': 10_000.0, 'partial_rotary_factor': 0.5},
        'use_parallel_residual': True, **_ONE_LABEL, **_NEOX_SHAPE,
    }, (
        Control('rotary fraction', {'rope_parameters': {
            'rope_type': 'default', 'rope_theta': 10_000.0, 'partial_rotary_factor': 1.0}},
                ours={'rope_fraction': 1.0}),
    )),
]

# With heads of 16 and a base of 100 the wavelengths are 6, 11, 20, 35 ... tokens. For an original
# context of 16 the first is unchanged, the second is interpolated and the others are stretched.
_LLAMA3 = {'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 2.0,
           'original_max_position_embeddings': 16, 'rope_type': 'llama3'}
_LLAMA = [
    Case('llama2', 'llama', {
        '_name_or_path': 'a/path', 'architectures': ['LlamaForCausalLM'], 'hidden_act': 'silu',
        'model_type': 'llama', 'num_key_value_heads': 4, 'pretraining_tp': 1, 'rms_norm_eps': 1e-5,
        'rope_scaling': None, 'tie_word_embeddings': False, 'torch_dtype': 'float16', **_SHAPE,
        **_INERT,
    }, (_TIED,)),
    Case('llama3_2', 'llama', {
        'architectures': ['LlamaForCausalLM'], 'attention_bias': False, 'head_dim': 12,
        'hidden_act': 'silu', 'mlp_bias': False, 'model_type': 'llama', 'pretraining_tp': 1,
        'rms_norm_eps': 1e-5, 'rope_scaling': _LLAMA3, 'rope_theta': 100.0,
        'tie_word_embeddings': True, 'torch_dtype': 'bfloat16', **_GROUPED, **_SHAPE, **_INERT,
        'eos_token_id': [2, 3, 4],
    }, (
        Control('llama3 scaling', {'rope_scaling': None}, ours=_UNSCALED_LLAMA3),
        _NO_GROUPS, _UNTIED, _THETA,
    )),
    Case('llama_biases', 'llama', {
        'architectures': ['LlamaForCausalLM'], 'attention_bias': True, 'head_dim': 16,
        'hidden_act': 'silu', 'mlp_bias': True, 'model_type': 'llama', 'rms_norm_eps': 0.05,
        'rope_parameters': {**_LLAMA3, 'rope_theta': 100.0}, 'tie_word_embeddings': False,
        'dtype': 'float32', **_GROUPED, **_SHAPE,
    }, (
        Control('llama3 scaling', {
            'rope_parameters': {'rope_type': 'default', 'rope_theta': 100.0}},
                ours=_UNSCALED_LLAMA3),
        Control('mlp biases', {'mlp_bias': False}, ours={'mlp_bias': False}),
        _NO_BIASES, _HEAD_DIM, _EPSILON,
    )),
    Case('llama_linear', 'llama', {
        'architectures': ['LlamaForCausalLM'], 'hidden_act': 'silu', 'model_type': 'llama',
        'num_key_value_heads': 1, 'rms_norm_eps': 1e-6, 'rope_theta': 500.0,
        'rope_scaling': {'type': 'linear', 'factor': 4.0}, 'tie_word_embeddings': False, **_SHAPE,
    }, (
        Control('linear scaling', {'rope_scaling': None}, ours=_UNSCALED_LINEAR),
    )),
    Case('llama_gelu', 'llama', {
        'architectures': ['LlamaForCausalLM'], 'hidden_act': 'gelu_pytorch_tanh',
        'model_type': 'llama', 'rms_norm_eps': 1e-6, 'rope_theta': 500.0,
        'tie_word_embeddings': False, **_GROUPED, **_SHAPE,
    }, (Control('activation', {'hidden_act': 'silu'}, ours={'activation': 'swiglu'}),)),
    Case('llama_value', 'llama', {
        'architectures': ['LlamaForSequenceClassification'], 'hidden_act': 'silu',
        'model_type': 'llama', 'rms_norm_eps': 1e-6, 'rope_theta': 500.0, **_ONE_LABEL, **_GROUPED,
        **_SHAPE,
    }, (_THETA,)),
]

_MISTRAL_FIELDS = {
    'architectures': ['MistralForCausalLM'], 'hidden_act': 'silu', 'model_type': 'mistral',
    'rms_norm_eps': 1e-5, **_GROUPED, **_SHAPE,
}
_MISTRAL = [
    Case('mistral_window', 'mistral', {
        **_MISTRAL_FIELDS, 'rope_theta': 10_000.0, 'sliding_window': 6,
        'tie_word_embeddings': False, 'torch_dtype': 'bfloat16', **_INERT,
    }, (
        Control('sliding window', {'sliding_window': None}, ours=_ALL_FULL),
        Control('one key less', {'sliding_window': 5}, ours={'sliding_window': 5}),
        _NO_GROUPS, _TIED,
    )),
    Case('mistral_no_window', 'mistral', {
        **_MISTRAL_FIELDS, 'head_dim': 16, 'rope_theta': 1e6, 'sliding_window': None,
        'tie_word_embeddings': True,
    }, (
        Control('no window', {'sliding_window': 6},
                ours={'sliding_window': 6, 'layer_pattern': 's'}),
        _HEAD_DIM, _THETA, _UNTIED,
    )),
]

_QWEN2_FIELDS = {
    'architectures': ['Qwen2ForCausalLM'], 'hidden_act': 'silu', 'model_type': 'qwen2',
    'rms_norm_eps': 1e-6, **_GROUPED, **_SHAPE,
}
_QWEN2_BIASES = Control('attention biases', edit=('zero', r'.*[qkv]_proj\.bias'))
_QWEN2 = [
    Case('qwen2_5', 'qwen2', {
        **_QWEN2_FIELDS, 'max_window_layers': 28, 'rope_theta': 1e6, 'sliding_window': 32768,
        'tie_word_embeddings': True, 'torch_dtype': 'bfloat16', 'use_mrope': False,
        'use_sliding_window': False, **_INERT,
    }, (_QWEN2_BIASES, _NO_GROUPS, _THETA, _UNTIED)),
    Case('qwen2_windows', 'qwen2', {
        **_QWEN2_FIELDS, 'num_hidden_layers': 3, 'max_window_layers': 1, 'rope_theta': 10_000.0,
        'sliding_window': 6, 'tie_word_embeddings': False, 'use_sliding_window': True, **_INERT,
    }, (
        Control('sliding windows', {'use_sliding_window': False}, ours=_ALL_FULL),
        Control('which layers', {'max_window_layers': 2}, ours={'layer_pattern': 'ffs'}),
        _TIED,
    )),
    Case('qwen2_layer_types', 'qwen2', {
        **_QWEN2_FIELDS, 'num_hidden_layers': 3, 'max_window_layers': 3, 'sliding_window': 6,
        'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention'],
        'rope_parameters': {'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 500.0},
        'tie_word_embeddings': False, 'use_sliding_window': True,
    }, (
        Control('which layers', {'layer_types': ['full_attention'] * 2 + ['sliding_attention']},
                ours={'layer_pattern': 'ffs'}),
        Control('linear scaling',
                {'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0}},
                ours=_UNSCALED_LINEAR),
    )),
    Case('qwen2_value', 'qwen2', {
        **_QWEN2_FIELDS, 'architectures': ['Qwen2ForSequenceClassification'],
        'rope_theta': 10_000.0, **_ONE_LABEL,
    }, (_QWEN2_BIASES,)),
]

_QWEN3_FIELDS = {
    'architectures': ['Qwen3ForCausalLM'], 'hidden_act': 'silu', 'model_type': 'qwen3',
    'rms_norm_eps': 1e-6, 'head_dim': 16, **_GROUPED, **_SHAPE,
}
_QWEN3 = [
    Case('qwen3', 'qwen3', {
        **_QWEN3_FIELDS, 'attention_bias': False, 'max_window_layers': 2, 'rope_scaling': None,
        'rope_theta': 1000000, 'sliding_window': None, 'tie_word_embeddings': True,
        'torch_dtype': 'bfloat16', 'use_sliding_window': False, **_INERT,
    }, (_QK_NORM, _NO_GROUPS, _HEAD_DIM, _THETA, _UNTIED)),
    Case('qwen3_windows', 'qwen3', {
        **_QWEN3_FIELDS, 'attention_bias': True, 'max_window_layers': 1, 'sliding_window': 6,
        'rms_norm_eps': 0.05, 'use_sliding_window': True, 'tie_word_embeddings': False,
        'rope_parameters': {'rope_type': 'default', 'rope_theta': 10_000.0},
    }, (
        Control('sliding windows', {'use_sliding_window': False}, ours=_ALL_FULL),
        _QK_NORM, _NO_BIASES, _EPSILON, _TIED,
    )),
]

_GEMMA_FIELDS = {
    'architectures': ['GemmaForCausalLM'], 'head_dim': 16, 'model_type': 'gemma',
    'rms_norm_eps': 1e-6, 'pad_token_id': 0, 'num_key_value_heads': 1, **_SHAPE,
}
_PLUS_ONE = Control('norms of 1 + w', edit=('minus_one', r'.*norm\.weight'), ours={'norm': 'rms'})
_EMBEDDING_SCALE = Control('embedding scale', edit=('unscaled', r'.*embed_tokens'),
                           ours={'embedding_scale': False})
_GEMMA = [
    Case('gemma', 'gemma', {
        **_GEMMA_FIELDS, 'hidden_act': 'gelu', 'rope_theta': 10_000.0, 'torch_dtype': 'bfloat16',
        **_INERT,
    }, (_PLUS_ONE, _EMBEDDING_SCALE, _HEAD_DIM, _UNTIED)),
    Case('gemma_value', 'gemma', {
        **_GEMMA_FIELDS, 'architectures': ['GemmaForSequenceClassification'],
        'hidden_act': 'gelu_pytorch_tanh', 'rms_norm_eps': 0.05, 'attention_bias': True,
        'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0}, **_ONE_LABEL,
    }, (
        _NO_BIASES, _EPSILON,
        Control('rope_theta', {
            'rope_parameters': {'rope_type': 'default', 'rope_theta': 10_000.0}},
                ours={'rope_theta': 10_000.0}),
    )),
]

_POST_NORMS = Control(
    'post-norms', edit=('identity', r'.*layers\.\d+\.post_(attention|feedforward)_layernorm'),
    ours={'post_norms': False})
_LOGIT_CAP = Control('logit soft-cap', {'final_logit_softcapping': None},
                     ours={'logit_softcap': 0.0})
# 1 / sqrt(16) is the default for heads of 16.
_QUERY_SCALE = Control('query scale', {'query_pre_attn_scalar': 16}, ours={'query_scale': 0.0})
_GEMMA2_FIELDS = {
    **_GEMMA_FIELDS, 'architectures': ['Gemma2ForCausalLM'], 'model_type': 'gemma2',
    'num_key_value_heads': 2, 'num_hidden_layers': 3, 'hidden_activation': 'gelu_pytorch_tanh',
    'query_pre_attn_scalar': 9, 'sliding_window': 6,
}
_GEMMA2 = [
    Case('gemma2', 'gemma2', {
        **_GEMMA2_FIELDS, 'attention_bias': False, 'attn_logit_softcapping': 5.0,
        'cache_implementation': 'hybrid', 'final_logit_softcapping': 4.0,
        'hidden_act': 'gelu_pytorch_tanh', 'rope_theta': 10_000.0, 'torch_dtype': 'float32',
        **_INERT,
    }, (
        Control('attention soft-cap', {'attn_logit_softcapping': None},
                ours={'attention_softcap': 0.0}),
        _LOGIT_CAP, _QUERY_SCALE, _POST_NORMS, _PLUS_ONE, _EMBEDDING_SCALE, _UNTIED,
        Control('sliding windows', {'layer_types': ['full_attention'] * 3}, ours=_ALL_FULL),
    )),
    Case('gemma2_layer_types', 'gemma2', {
        **_GEMMA2_FIELDS, 'attention_bias': True, 'attn_logit_softcapping': None,
        'final_logit_softcapping': None, 'rms_norm_eps': 0.05, 'tie_word_embeddings': False,
        'layer_types': ['full_attention', 'sliding_attention', 'full_attention'],
        'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0},
    }, (
        Control('which layers', {'layer_types': [
            'sliding_attention', 'full_attention', 'sliding_attention']},
                ours={'layer_pattern': 'sf'}),
        _NO_BIASES, _EPSILON, _TIED,
    )),
]

_GEMMA3_FIELDS = {
    **_GEMMA2_FIELDS, 'architectures': ['Gemma3ForCausalLM'], 'model_type': 'gemma3_text',
    'attn_logit_softcapping': None, 'final_logit_softcapping': None,
}
_GEMMA3_ROPE = {
    'full_attention': {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 500.0},
    'sliding_attention': {'rope_type': 'default', 'rope_theta': 20.0},
}


def _gemma3_rope(layers: str, theta: float):
  unscaled = {'rope_type': 'default', 'rope_theta': theta}
  return {'rope_parameters': {**_GEMMA3_ROPE, layers: unscaled}}


_GEMMA3 = [
    Case('gemma3', 'gemma3', {
        **_GEMMA3_FIELDS, 'attention_bias': False, 'cache_implementation': 'hybrid',
        'num_hidden_layers': 6, 'rope_local_base_freq': 20, 'rope_theta': 1000,
        'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'}, 'sliding_window_pattern': 6,
        'torch_dtype': 'bfloat16', **_INERT,
    }, (
        Control('linear scaling', {'rope_scaling': None}, ours=_UNSCALED_LINEAR),
        Control('local theta', {'rope_local_base_freq': 1000}, ours={'rope_local_theta': 1000.0}),
        Control('global theta', {'rope_theta': 20}, ours={'rope_theta': 20.0}),
        Control('local layers', {'sliding_window_pattern': 3}, ours={'layer_pattern': 'ssf'}),
        Control('one key less', {'sliding_window': 5}, ours={'sliding_window': 5}),
        _QK_NORM, _QUERY_SCALE, _POST_NORMS, _PLUS_ONE, _EMBEDDING_SCALE, _UNTIED,
    )),
    Case('gemma3_rope_parameters', 'gemma3', {
        **_GEMMA3_FIELDS, 'attention_bias': True, 'final_logit_softcapping': 4.0,
        'rms_norm_eps': 0.05, 'tie_word_embeddings': False,
        'layer_types': ['sliding_attention', 'sliding_attention', 'full_attention'],
        'rope_parameters': _GEMMA3_ROPE,
    }, (
        _LOGIT_CAP, _NO_BIASES, _EPSILON, _TIED,
        Control('linear scaling', _gemma3_rope('full_attention', 500.0), ours=_UNSCALED_LINEAR),
        Control('local theta', _gemma3_rope('sliding_attention', 500.0),
                ours={'rope_local_theta': 500.0}),
    )),
    Case('gemma3_value', 'gemma3', {
        **_GEMMA3_FIELDS, 'architectures': ['Gemma3TextForSequenceClassification'],
        'rope_parameters': _GEMMA3_ROPE, **_ONE_LABEL,
    }, (_QK_NORM,)),
]

_BERT_CONTROLS = (
    Control('attention biases', edit=('zero', r'.*attention\.self\..*\.bias')),
    Control('output biases', edit=('zero', r'.*attention\.output\.dense\.bias')),
    Control('mlp biases', edit=('zero', r'.*layer\.\d+\.(intermediate|output)\.dense\.bias')),
    Control('norm biases', edit=('zero', r'.*LayerNorm\.bias')),
    Control('token types', edit=('zero', r'.*token_type_embeddings\.weight')),
    Control('positions', edit=('zero', r'.*position_embeddings\.weight')),
)
_BERT = [
    Case('mxbai', 'bert', {
        '_name_or_path': 'a/path', 'architectures': ['BertModel'],
        'attention_probs_dropout_prob': 0.1, 'classifier_dropout': None,
        'gradient_checkpointing': False, 'hidden_act': 'gelu', 'hidden_dropout_prob': 0.1,
        'initializer_range': 0.02, 'layer_norm_eps': 1e-12, 'model_type': 'bert',
        'pad_token_id': 0, 'position_embedding_type': 'absolute', 'torch_dtype': 'float16',
        'transformers_version': '4.38.0', 'type_vocab_size': 2, 'use_cache': False, **_SHAPE,
        'max_position_embeddings': 32,
    }, (
        *_BERT_CONTROLS,
        Control('activation', {'hidden_act': 'relu'}, ours={'activation': 'relu'}),
        Control('exact form', {'hidden_act': 'gelu_new'}, ours={'activation': 'gelu'}, least=1e-3),
    )),
    Case('bert_language_model', 'bert', {
        'architectures': ['BertForMaskedLM'], 'hidden_act': 'gelu_new', 'layer_norm_eps': 0.05,
        'model_type': 'bert', 'type_vocab_size': 1, **_SHAPE, 'max_position_embeddings': 24,
    }, (
        Control('epsilon', {'layer_norm_eps': 1e-12}, ours={'norm_epsilon': 1e-12}),
    )),
]

ENCODERS: tuple[Case, ...] = tuple(_BERT)
CASES: tuple[Case, ...] = (
    *_GPT2, *_NEOX, *_LLAMA, *_MISTRAL, *_QWEN2, *_QWEN3, *_GEMMA, *_GEMMA2, *_GEMMA3)
