"""config.json of each family, in all published spellings: read, written, rejected by name."""

import dataclasses

import pytest

from jaxrl_llm.models import configs
from jaxrl_llm.models.pretrained import gemma, gpt2, gpt_neox, llama, qwen

_SIZES = {
    'vocab_size': 64, 'hidden_size': 16, 'num_hidden_layers': 6, 'num_attention_heads': 4,
    'num_key_value_heads': 2, 'intermediate_size': 24, 'max_position_embeddings': 128,
}
_LLAMA3 = {
    'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
    'original_max_position_embeddings': 32,
}
_NEOX = {name: value for name, value in _SIZES.items() if name != 'num_key_value_heads'}
_MIXED = ['sliding_attention', 'full_attention'] * 3
_GPT2 = {
    'model_type': 'gpt2', 'vocab_size': 64, 'n_embd': 16, 'n_layer': 6, 'n_head': 4,
    'n_positions': 128, 'n_ctx': 128,
}


def _of(model_type, **fields):
  return {'model_type': model_type, **_SIZES, **fields}


# (family, config.json, fields of our config other than the sizes)
CASES = {
    'llama 2': (llama, _of('llama', rms_norm_eps=1e-5, rope_scaling=None, pretraining_tp=1),
                dict(norm_epsilon=1e-5, tie_embeddings=False, activation='swiglu', head_dim=4)),
    'llama 3.1, old spelling': (
        llama, _of('llama', rope_theta=5e5, rope_scaling=_LLAMA3),
        dict(rope_theta=5e5, rope_scaling='llama3', rope_factor=8.0, rope_low_freq_factor=1.0,
             rope_high_freq_factor=4.0, rope_original_length=32)),
    'llama 3.1, new spelling': (
        llama, _of('llama', rope_parameters={'rope_theta': 5e5, **_LLAMA3}),
        dict(rope_theta=5e5, rope_scaling='llama3', rope_factor=8.0, rope_original_length=32)),
    'llama, linear, oldest spelling': (
        llama, _of('llama', rope_scaling={'type': 'linear', 'factor': 2}),
        dict(rope_theta=1e4, rope_scaling='linear', rope_factor=2.0)),
    'llama with everything': (
        llama, _of('llama', attention_bias=True, mlp_bias=True, head_dim=6,
                   tie_word_embeddings=True, hidden_act='gelu_pytorch_tanh'),
        dict(attention_bias=True, output_bias=True, mlp_bias=True, head_dim=6,
             tie_embeddings=True, activation='geglu')),
    'mistral': (llama, _of('mistral', sliding_window=32),
                dict(sliding_window=32, layer_pattern='s')),
    'mistral without a window': (llama, _of('mistral', sliding_window=None),
                                 dict(sliding_window=0, layer_pattern='')),
    'mistral, layers named': (
        llama, _of('mistral', sliding_window=32, layer_types=['sliding_attention'] * 6),
        dict(sliding_window=32, layer_pattern='s')),
    'mistral without a window, layers named': (
        llama, _of('mistral', sliding_window=None, layer_types=['full_attention'] * 6),
        dict(sliding_window=0, layer_pattern='')),
    'mistral by default': (llama, _of('mistral'), dict(sliding_window=4096, layer_pattern='s')),
    'qwen 2.5': (qwen, _of('qwen2', sliding_window=64, max_window_layers=3, rope_theta=1e6,
                           use_sliding_window=False, tie_word_embeddings=True),
                 dict(sliding_window=0, rope_theta=1e6, attention_bias=True, output_bias=False,
                      tie_embeddings=True, qk_norm=False)),
    'qwen2 with windows': (
        qwen, _of('qwen2', sliding_window=64, max_window_layers=4, use_sliding_window=True),
        dict(sliding_window=64, layer_pattern='ffffss')),
    'qwen 3': (qwen, _of('qwen3', head_dim=8, attention_bias=True),
               dict(qk_norm=True, head_dim=8, attention_bias=True, output_bias=True)),
    'qwen 3 by default': (qwen, _of('qwen3'), dict(head_dim=128, attention_bias=False)),
    'gemma, first release': (
        gemma, _of('gemma', head_dim=8, hidden_act='gelu', hidden_activation=None),
        dict(norm='rms_plus_one', embedding_scale=True, activation='geglu', head_dim=8,
             tie_embeddings=True, post_norms=False)),
    'gemma 2': (
        gemma, _of('gemma2', head_dim=8, query_pre_attn_scalar=16, sliding_window=32,
                   attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
                   cache_implementation='hybrid'),
        dict(post_norms=True, query_scale=0.25, sliding_window=32, layer_pattern='sf',
             attention_softcap=50.0, logit_softcap=30.0, qk_norm=False)),
    'gemma 2 by default': (
        gemma, _of('gemma2'),
        dict(head_dim=256, query_scale=0.0, sliding_window=4096, attention_softcap=50.0,
             logit_softcap=30.0)),
    'gemma 3, old spelling': (
        gemma, _of('gemma3_text', head_dim=8, query_pre_attn_scalar=8, sliding_window=32,
                   sliding_window_pattern=6, rope_theta=1e6, rope_local_base_freq=1e4,
                   rope_scaling={'rope_type': 'linear', 'factor': 8.0},
                   attn_logit_softcapping=None, final_logit_softcapping=None),
        dict(layer_pattern='sssssf', rope_theta=1e6, rope_local_theta=1e4, rope_scaling='linear',
             rope_factor=8.0, qk_norm=True, query_scale=0.0, attention_softcap=0.0)),
    'gemma 3, new spelling': (
        gemma, _of('gemma3_text', head_dim=8, query_pre_attn_scalar=8, _sliding_window_pattern=6,
                   layer_types=['sliding_attention', 'full_attention'] * 3,
                   rope_parameters={
                       'full_attention': {'rope_type': 'linear', 'factor': 8, 'rope_theta': 1e6},
                       'sliding_attention': {'rope_type': 'default', 'rope_theta': 5e3}}),
        dict(layer_pattern='sf', rope_theta=1e6, rope_local_theta=5e3, rope_factor=8.0)),
    'pythia': (
        gpt_neox, {'model_type': 'gpt_neox', **_NEOX, 'rotary_pct': 0.5, 'rotary_emb_base': 1e4},
        dict(norm='layer', rope_fraction=0.5, parallel_residual=True, activation='gelu_exact',
             tie_embeddings=False, attention_bias=True, output_bias=True, mlp_bias=True)),
    'gpt-neox, fraction outside rope_scaling': (
        gpt_neox, {'model_type': 'gpt_neox', **_NEOX, 'rotary_pct': 0.5, 'rope_theta': 1e4,
                   'rope_scaling': {'type': 'linear', 'factor': 2.0}},
        dict(rope_fraction=0.5, rope_theta=1e4, rope_scaling='linear', rope_factor=2.0)),
    'gpt-neox, new spelling': (
        gpt_neox, {'model_type': 'gpt_neox', **_NEOX, 'use_parallel_residual': False,
                   'attention_bias': False, 'hidden_act': 'gelu_new', 'rope_parameters': {
                       'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 5e3,
                       'partial_rotary_factor': 1.0}},
        dict(rope_fraction=1.0, rope_scaling='linear', rope_factor=4.0, rope_theta=5e3,
             parallel_residual=False, activation='gelu', attention_bias=False, output_bias=False)),
    'gpt-2': (gpt2, {**_GPT2, 'n_inner': None, 'task_specific_params': {}, 'resid_pdrop': 0.1},
              dict(norm='layer', positions='learned', activation='gelu', mlp_width=64,
                   tie_embeddings=True, query_scale=0.0)),
    'gpt-2 with everything': (
        gpt2, {**_GPT2, 'n_inner': 24, 'activation_function': 'relu', 'scale_attn_weights': False,
               'tie_word_embeddings': False},
        dict(mlp_width=24, activation='relu', query_scale=1.0, tie_embeddings=False)),
}


@pytest.mark.parametrize('name', CASES)
def test_config_is_read_and_written(name):
  family, fields, expected = CASES[name]
  config = family.read_config(fields)
  assert {field: getattr(config, field) for field in expected} == expected
  sizes = (config.vocab_size, config.width, config.num_layers, config.num_heads)
  assert sizes == (64, 16, 6, 4)
  again = family.read_config(family.write_config(config, fields['model_type']))
  assert again == config


@pytest.mark.parametrize('name', CASES)
def test_no_field_is_ignored(name):
  family, fields, _ = CASES[name]
  with pytest.raises(ValueError, match="unknown field 'attention_sinks' .4."):
    family.read_config({**fields, 'attention_sinks': 4})
  size = 'n_embd' if family is gpt2 else 'hidden_size'
  with pytest.raises(ValueError, match=f"no field '{size}'"):
    family.read_config({field: value for field, value in fields.items() if field != size})
  with pytest.raises(ValueError, match="vocab_size must be of type int, got '64'"):
    family.read_config({**fields, 'vocab_size': '64'})


@pytest.mark.parametrize('family, fields, message', [
    (llama, _of('llama', rope_scaling={'rope_type': 'yarn', 'factor': 2.0}),
     "rope_scaling must be of type default, linear, llama3, got 'yarn'"),
    (llama, _of('llama', rope_scaling={'rope_type': 'llama3', 'factor': 2.0}),
     "rope_scaling has no field 'low_freq_factor'"),
    (llama, _of('llama', rope_scaling={'rope_type': 'linear', 'factor': 2.0, 'beta_fast': 3}),
     "field 'beta_fast'"),
    (llama, _of('llama', rope_scaling=_LLAMA3, rope_parameters={'rope_theta': 3.0}), 'keep one'),
    (llama, _of('llama', pretraining_tp=0), 'pretraining_tp must be at least 1, got 0'),
    (qwen, _of('qwen2', pretraining_tp=2), 'pretraining_tp must be 1, got 2'),
    (llama, _of('llama', hidden_act='relu2'), "hidden_act must be one of .*got 'relu2'"),
    (llama, _of('llama', sliding_window=8), "field 'sliding_window'"),
    (llama, _of('mistral', sliding_window=8, layer_types=_MIXED), 'sliding_attention in every'),
    (llama, _of('mistral', sliding_window=8, layer_types=['full_attention'] * 6),
     r'layer_types must be sliding_attention in every layer if sliding_window is given \(8\)'),
    (llama, _of('mistral', sliding_window=None, layer_types=_MIXED), 'no window'),
    (llama, _of('mistral', layer_types=['sliding_attention']), 'must name 6 layers'),
    (llama, _of('llama', num_attention_heads=3), 'hidden_size must be divisible .*got 16'),
    (qwen, _of('qwen2', layer_types=['full_attention']), 'must name 6 layers'),
    (qwen, _of('qwen2', layer_types=['chunked_attention'] * 6), 'chunked_attention'),
    (qwen, _of('qwen2', layer_types=['sliding_attention'] * 6), 'no window'),
    (gemma, _of('gemma2', use_bidirectional_attention=True), 'use_bidirectional_attention must be'),
    (gemma, _of('gemma3_text', rope_parameters={
        'sliding_attention': {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 1e4}}),
     'sliding layers must be of type default'),
    (gemma, _of('gemma3_text', attn_logit_softcapping=50.0), 'attn_logit_softcapping must be None'),
    (gpt2, {**_GPT2, 'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx'),
    (gpt2, {**_GPT2, 'add_cross_attention': True}, 'add_cross_attention must be False, got True'),
    (gpt_neox, {'model_type': 'gpt_neox', **_NEOX, 'hidden_act': 'mish'}, "got 'mish'"),
    (gpt_neox, {'model_type': 'gpt_neox', **_NEOX, 'rope_theta': 500.0},
     'rope_theta must be 10000.0, got 500.0'),
    (gpt_neox, {'model_type': 'gpt_neox', **_NEOX, 'rope_theta': 1e4, 'rotary_emb_base': 500},
     'rope_theta must be 500.0, got 10000.0'),
])
def test_unsupported_fields_are_rejected_by_name(family, fields, message):
  with pytest.raises(ValueError, match=message) as error:
    family.read_config(fields)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('spelling', ['rope_parameters', 'rope_scaling'])
@pytest.mark.parametrize('model_type', [
    'llama', 'mistral', 'qwen2', 'qwen3', 'gemma', 'gemma2', 'gemma3_text'])
def test_only_gpt_neox_rotates_a_part_of_each_head(model_type, spelling):
  family = next(f for f in (llama, qwen, gemma) if model_type in f.MODEL_TYPES)
  nested = model_type == 'gemma3_text' and spelling == 'rope_parameters'

  def read(fraction):
    rope = {'rope_type': 'default', 'partial_rotary_factor': fraction}
    rope = {'full_attention': rope} if nested else rope
    return family.read_config(_of(model_type, **{spelling: rope}))

  assert read(1.0).rope_fraction == read(None).rope_fraction == 1.0
  neox = gpt_neox.read_config({'model_type': 'gpt_neox', **_NEOX, 'hidden_size': 32})
  assert neox.rope_fraction == 0.25
  part = f'{spelling}.full_attention' if nested else spelling
  with pytest.raises(ValueError, match=f'{part}: partial_rotary_factor must be 1.0, got 0.5'):
    read(0.5)


@pytest.mark.parametrize('family, model_type, changes, field', [
    (llama, 'llama', dict(qk_norm=True), 'qk_norm'),
    (llama, 'llama', dict(attention_bias=True), 'output_bias'),
    (llama, 'mistral', dict(mlp_bias=True), 'mlp_bias'),
    (qwen, 'qwen2', dict(), 'attention_bias'),
    (qwen, 'qwen3', dict(norm='layer'), 'norm'),
    (gemma, 'gemma', dict(), 'norm'),
    (gpt2, 'gpt2', dict(num_kv_heads=8), 'norm'),
    (gpt_neox, 'gpt_neox', dict(), 'num_kv_heads'),
])
def test_configs_that_a_family_cannot_express_are_not_written(family, model_type, changes, field):
  config = dataclasses.replace(configs.reference_workload(), **changes)
  with pytest.raises(ValueError, match=f'cannot express .*{field}|{field}'):
    family.write_config(config, model_type)


def test_a_published_config_equals_the_one_in_configs():
  # The sizes of Qwen2.5-1.5B's config.json (arXiv 2412.15115, table 1).
  fields = {
      'model_type': 'qwen2', 'architectures': ['Qwen2ForCausalLM'], 'attention_dropout': 0.0,
      'bos_token_id': 151643, 'eos_token_id': 151643, 'hidden_act': 'silu', 'hidden_size': 1536,
      'initializer_range': 0.02, 'intermediate_size': 8960, 'max_position_embeddings': 32768,
      'max_window_layers': 28, 'num_attention_heads': 12, 'num_hidden_layers': 28,
      'num_key_value_heads': 2, 'rms_norm_eps': 1e-06, 'rope_theta': 1000000.0,
      'sliding_window': None, 'tie_word_embeddings': True, 'torch_dtype': 'bfloat16',
      'use_cache': True, 'use_sliding_window': False, 'vocab_size': 151936,
  }
  ours = configs.qwen2_5_1_5b()
  compute = {name: getattr(ours, name) for name in configs.COMPUTE_FIELDS}
  assert dataclasses.replace(qwen.read_config(fields), **compute) == ours
