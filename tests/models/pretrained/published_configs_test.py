"""config.json files as they were published, field by field, and contradictory ones."""

import json

import pytest

from jaxrl_llm.models.pretrained import config_fields, gemma, huggingface


def _read(directory, fields):
  (directory / 'config.json').write_text(json.dumps(fields))
  return huggingface.read_config(directory)


def _of(model_type, architecture, **fields):
  return {'model_type': model_type, 'architectures': [architecture], **fields}


# --- GPT-2: openai-community/gpt2 and its sizes, distilbert/distilgpt2.

_GPT2 = _of(
    'gpt2', 'GPT2LMHeadModel', activation_function='gelu_new', attn_pdrop=0.1, bos_token_id=50256,
    embd_pdrop=0.1, eos_token_id=50256, initializer_range=0.02, layer_norm_epsilon=1e-05,
    n_ctx=1024, n_embd=768, n_head=12, n_layer=12, n_positions=1024, resid_pdrop=0.1,
    summary_activation=None, summary_first_dropout=0.1, summary_proj_to_labels=True,
    summary_type='cls_index', summary_use_proj=True, vocab_size=50257,
    task_specific_params={'text-generation': {'do_sample': True, 'max_length': 50}})
_LARGER = dict(n_special=0, predict_special_tokens=True)
# Fields that transformers 3 and 4 write for any model.
_OF_VERSION_3 = dict(
    finetuning_task=None, num_labels=2, output_attentions=False, output_hidden_states=False,
    output_past=True, pruned_heads={}, torchscript=False, use_bfloat16=False, is_decoder=False,
    xla_device=None, do_sample=False, num_beams=1, temperature=1.0, top_k=50, top_p=1.0,
    repetition_penalty=1.0, length_penalty=1.0, num_return_sequences=1, bad_words_ids=None,
    max_length=20, min_length=0, eos_token_ids=None, is_encoder_decoder=False,
    chunk_size_feed_forward=0, tie_encoder_decoder=False, cross_attention_hidden_size=None)

# --- GPT-NeoX: EleutherAI/pythia-*, gpt-neox-20b, databricks/dolly-v2-3b.

_PYTHIA = _of(
    'gpt_neox', 'GPTNeoXForCausalLM', bos_token_id=0, eos_token_id=0, hidden_act='gelu',
    hidden_size=768, initializer_range=0.02, intermediate_size=3072, layer_norm_eps=1e-05,
    max_position_embeddings=2048, num_attention_heads=12, num_hidden_layers=12,
    rotary_emb_base=10000, rotary_pct=0.25, tie_word_embeddings=False, torch_dtype='float16',
    transformers_version='4.24.0', use_cache=True, use_parallel_residual=True, vocab_size=50304)
_PYTHIA_5 = {name: value for name, value in _PYTHIA.items()
             if name not in ('rotary_emb_base', 'rotary_pct', 'torch_dtype')}
_PYTHIA_5 |= dict(
    attention_bias=True, attention_dropout=0.0, classifier_dropout=0.1, hidden_dropout=0.0,
    dtype='float16', is_decoder=False, pad_token_id=None, transformers_version='5.2.0',
    rope_parameters={'partial_rotary_factor': 0.25, 'rope_theta': 10000, 'rope_type': 'default'})

# --- Llama: meta-llama/*, huggyllama/llama-7b, TinyLlama, HuggingFaceTB/SmolLM*.

_LLAMA1 = _of(
    'llama', 'LlamaForCausalLM', bos_token_id=1, eos_token_id=2, hidden_act='silu',
    hidden_size=4096, initializer_range=0.02, intermediate_size=11008, max_sequence_length=2048,
    num_attention_heads=32, num_hidden_layers=32, pad_token_id=0, rms_norm_eps=1e-06,
    torch_dtype='float16', transformers_version='4.28.0.dev0', use_cache=True, vocab_size=32000)
_LLAMA2 = {
    **{name: value for name, value in _LLAMA1.items() if name != 'max_sequence_length'},
    '_name_or_path': 'meta-llama/Llama-2-13b-hf', 'max_position_embeddings': 4096,
    'num_key_value_heads': 32, 'pretraining_tp': 2, 'rms_norm_eps': 1e-05, 'rope_scaling': None,
    'tie_word_embeddings': False}
_LLAMA3_ROPE = {'factor': 32.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
                'original_max_position_embeddings': 8192, 'rope_type': 'llama3'}
_LLAMA3 = _of(
    'llama', 'LlamaForCausalLM', attention_bias=False, attention_dropout=0.0, bos_token_id=128000,
    eos_token_id=[128001, 128008, 128009], head_dim=64, hidden_act='silu', hidden_size=2048,
    initializer_range=0.02, intermediate_size=8192, max_position_embeddings=131072, mlp_bias=False,
    num_attention_heads=32, num_hidden_layers=16, num_key_value_heads=8, pretraining_tp=1,
    rms_norm_eps=1e-05, rope_scaling=_LLAMA3_ROPE, rope_theta=500000.0, tie_word_embeddings=True,
    torch_dtype='bfloat16', transformers_version='4.45.0.dev0', use_cache=True, vocab_size=128256)
_LLAMA3_5 = {name: value for name, value in _LLAMA3.items()
             if name not in ('rope_scaling', 'rope_theta', 'torch_dtype')}
_LLAMA3_5 |= dict(dtype='bfloat16', pad_token_id=None, transformers_version='5.2.0',
                  rope_parameters={**_LLAMA3_ROPE, 'rope_theta': 500000.0})
_SMOLLM2 = _of(
    'llama', 'LlamaForCausalLM', attention_bias=False, attention_dropout=0.0, bos_token_id=1,
    eos_token_id=2, hidden_act='silu', hidden_size=576, initializer_range=0.041666666666666664,
    intermediate_size=1536, is_llama_config=True, max_position_embeddings=8192, mlp_bias=False,
    num_attention_heads=9, num_hidden_layers=30, num_key_value_heads=3, pad_token_id=2,
    pretraining_tp=1, rms_norm_eps=1e-05, rope_interleaved=False, rope_scaling=None,
    rope_theta=100000, tie_word_embeddings=True, torch_dtype='bfloat16', use_cache=True,
    transformers_version='4.42.3', vocab_size=49152,
    **{'transformers.js_config': {'kv_cache_dtype': {'q4f16': 'float16', 'fp16': 'float16'}}})

# --- Mistral: mistralai/Mistral-7B-*.

_MISTRAL = _of(
    'mistral', 'MistralForCausalLM', bos_token_id=1, eos_token_id=2, hidden_act='silu',
    hidden_size=4096, initializer_range=0.02, intermediate_size=14336,
    max_position_embeddings=32768, num_attention_heads=32, num_hidden_layers=32,
    num_key_value_heads=8, rms_norm_eps=1e-05, rope_theta=10000.0, sliding_window=4096,
    tie_word_embeddings=False, torch_dtype='bfloat16', transformers_version='4.34.0.dev0',
    use_cache=True, vocab_size=32000)

# --- Qwen: Qwen/Qwen2*, Qwen2.5*, Qwen3*.

_QWEN2 = _of(
    'qwen2', 'Qwen2ForCausalLM', attention_dropout=0.0, bos_token_id=151643, eos_token_id=151645,
    hidden_act='silu', hidden_size=3584, initializer_range=0.02, intermediate_size=18944,
    max_position_embeddings=32768, max_window_layers=28, num_attention_heads=28,
    num_hidden_layers=28, num_key_value_heads=4, rms_norm_eps=1e-06, rope_theta=1000000.0,
    sliding_window=131072, tie_word_embeddings=False, torch_dtype='bfloat16', use_cache=True,
    transformers_version='4.43.1', use_sliding_window=False, vocab_size=152064)
_QWEN3 = _of(
    'qwen3', 'Qwen3ForCausalLM', attention_bias=False, attention_dropout=0.0, bos_token_id=151643,
    eos_token_id=151645, head_dim=128, hidden_act='silu', hidden_size=1024, initializer_range=0.02,
    intermediate_size=3072, max_position_embeddings=40960, max_window_layers=28,
    num_attention_heads=16, num_hidden_layers=28, num_key_value_heads=8, rms_norm_eps=1e-06,
    rope_scaling=None, rope_theta=1000000, sliding_window=None, tie_word_embeddings=True,
    torch_dtype='bfloat16', transformers_version='4.51.0', use_cache=True,
    use_sliding_window=False, vocab_size=151936)

# --- Gemma: google/gemma-*.

_GEMMA = _of(
    'gemma', 'GemmaForCausalLM', attention_bias=False, attention_dropout=0.0, bos_token_id=2,
    eos_token_id=1, head_dim=256, hidden_act='gelu', hidden_size=2048, initializer_range=0.02,
    intermediate_size=16384, max_position_embeddings=8192, num_attention_heads=8,
    num_hidden_layers=18, num_key_value_heads=1, pad_token_id=0, rms_norm_eps=1e-06,
    rope_scaling=None, rope_theta=10000.0, torch_dtype='bfloat16', use_cache=True,
    transformers_version='4.38.0.dev0', vocab_size=256000)
_GEMMA2 = _of(
    'gemma2', 'Gemma2ForCausalLM', attention_bias=False, attention_dropout=0.0,
    attn_logit_softcapping=50.0, bos_token_id=2, cache_implementation='hybrid', eos_token_id=1,
    final_logit_softcapping=30.0, head_dim=128, hidden_act='gelu_pytorch_tanh',
    hidden_activation='gelu_pytorch_tanh', hidden_size=4608, initializer_range=0.02,
    intermediate_size=36864, max_position_embeddings=8192, num_attention_heads=32,
    num_hidden_layers=46, num_key_value_heads=16, pad_token_id=0, query_pre_attn_scalar=144,
    rms_norm_eps=1e-06, rope_theta=10000.0, sliding_window=4096, sliding_window_size=4096,
    torch_dtype='float32', transformers_version='4.42.0.dev0', use_cache=True, vocab_size=256000,
    _attn_implementation='eager')
_GEMMA3 = _of(
    'gemma3_text', 'Gemma3ForCausalLM', attention_bias=False, attention_dropout=0.0,
    attn_logit_softcapping=None, bos_token_id=2, cache_implementation='hybrid',
    eos_token_id=[1, 106], final_logit_softcapping=None, head_dim=256,
    hidden_activation='gelu_pytorch_tanh', hidden_size=1152, initializer_range=0.02,
    intermediate_size=6912, max_position_embeddings=32768, num_attention_heads=4,
    num_hidden_layers=26, num_key_value_heads=1, pad_token_id=0, query_pre_attn_scalar=256,
    rms_norm_eps=1e-06, rope_local_base_freq=10000, rope_scaling=None, rope_theta=1000000,
    sliding_window=512, sliding_window_pattern=6, torch_dtype='bfloat16', use_cache=True,
    transformers_version='4.50.0.dev0', vocab_size=262144)
_GEMMA3_5 = {name: value for name, value in _GEMMA3.items()
             if name not in ('rope_theta', 'rope_local_base_freq', 'rope_scaling', 'torch_dtype',
                             'sliding_window_pattern', 'cache_implementation')}
_GEMMA3_5 |= dict(
    dtype='bfloat16', use_bidirectional_attention=False, _sliding_window_pattern=6,
    tie_word_embeddings=True, transformers_version='5.2.0',
    layer_types=['full_attention' if i % 6 == 5 else 'sliding_attention' for i in range(26)],
    rope_parameters={
        'full_attention': {'rope_theta': 1000000, 'rope_type': 'default'},
        'sliding_attention': {'rope_theta': 10000, 'rope_type': 'default'}})

# --- BERT: google-bert/*, sentence-transformers/all-MiniLM-L6-v2, BAAI/bge-*, intfloat/e5-*,
# mixedbread-ai/mxbai-embed-large-v1, cross-encoder/ms-marco-MiniLM-L6-v2.

_BERT = _of(
    'bert', 'BertModel', attention_probs_dropout_prob=0.1, hidden_act='gelu',
    hidden_dropout_prob=0.1, hidden_size=384, initializer_range=0.02, intermediate_size=1536,
    layer_norm_eps=1e-12, max_position_embeddings=512, num_attention_heads=12,
    num_hidden_layers=6, pad_token_id=0, position_embedding_type='absolute', type_vocab_size=2,
    vocab_size=30522)
_BERT_SAVED = dict(
    _name_or_path='nreimers/MiniLM-L6-H384-uncased', gradient_checkpointing=False,
    transformers_version='4.8.2', use_cache=True)

_UNTIED_BIASES = dict(attention_bias=True, output_bias=True, mlp_bias=True, tie_embeddings=False)

# name: (config.json, role, what is read from it)
PUBLISHED = {
    'gpt2': (_GPT2, 'policy', dict(
        num_layers=12, width=768, num_heads=12, head_dim=64, mlp_width=3072, max_length=1024,
        activation='gelu', tie_embeddings=True, positions='learned', query_scale=0.0)),
    'gpt2-medium': ({**_GPT2, **_LARGER, 'n_embd': 1024, 'n_head': 16, 'n_layer': 24}, 'policy',
                    dict(num_layers=24, width=1024, num_heads=16, mlp_width=4096)),
    'gpt2-large': ({**_GPT2, **_LARGER, 'n_embd': 1280, 'n_head': 20, 'n_layer': 36}, 'policy',
                   dict(num_layers=36, width=1280, num_heads=20, head_dim=64)),
    'gpt2-xl': ({**_GPT2, **_LARGER, 'n_embd': 1600, 'n_head': 25, 'n_layer': 48,
                 'output_past': True}, 'policy', dict(num_layers=48, width=1600, head_dim=64)),
    'distilgpt2': ({**_GPT2, '_num_labels': 1, 'id2label': {'0': 'LABEL_0'}, 'n_layer': 6,
                    'label2id': {'LABEL_0': 0}}, 'policy', dict(num_layers=6, max_length=1024)),
    'gpt2, saved by transformers 2 to 4': ({
        **_GPT2, **_LARGER, **_OF_VERSION_3, 'gradient_checkpointing': False, 'n_inner': None,
        'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False,
        'reorder_and_upcast_attn': False, 'use_cache': True, 'return_dict': True,
        'problem_type': None, 'tie_word_embeddings': True, 'torch_dtype': 'float32'}, 'policy',
        dict(mlp_width=3072, tie_embeddings=True)),
    'gpt2 in the names of others': ({
        **_GPT2, 'hidden_size': 768, 'num_attention_heads': 12, 'num_hidden_layers': 12,
        'max_position_embeddings': 1024, 'intermediate_size': 3072, 'hidden_act': 'gelu_new'},
        'policy', dict(width=768, num_layers=12, num_heads=12, max_length=1024)),
    'pythia-160m': (_PYTHIA, 'policy', dict(
        **_UNTIED_BIASES, rope_theta=10000.0, rope_fraction=0.25, activation='gelu_exact',
        parallel_residual=True, head_dim=64, norm_epsilon=1e-5)),
    'pythia-160m, saved by transformers 4': (
        {**_PYTHIA, 'partial_rotary_factor': 0.25, 'rope_theta': 10000, 'rope_scaling': None,
         'attention_bias': True, 'attention_dropout': 0.0, 'hidden_dropout': 0.0,
         'classifier_dropout': 0.1}, 'policy', dict(rope_theta=10000.0, rope_fraction=0.25)),
    'pythia-160m, saved by transformers 5': (
        _PYTHIA_5, 'policy', dict(rope_theta=10000.0, rope_fraction=0.25, activation='gelu_exact')),
    'pythia-160m, in all spellings': (
        {**_PYTHIA, **_PYTHIA_5, 'torch_dtype': 'float16', 'partial_rotary_factor': 0.25},
        'policy', dict(rope_theta=10000.0, rope_fraction=0.25)),
    'gpt-neox-20b': ({
        **_PYTHIA, 'attention_probs_dropout_prob': 0, 'hidden_dropout_prob': 0, 'vocab_size': 50432,
        'hidden_act': 'gelu_fast', 'hidden_size': 6144, 'num_attention_heads': 64,
        'num_hidden_layers': 44, 'intermediate_size': 24576}, 'policy',
        dict(activation='gelu', head_dim=96, rope_fraction=0.25)),
    'dolly-v2-3b': (
        {**_PYTHIA, 'custom_pipelines': {'text-generation': {'impl': 'a.B'}}}, 'policy', {}),
    'llama-7b, first conversion': (_LLAMA1, 'policy', dict(
        max_length=2048, num_kv_heads=32, head_dim=128, rope_theta=10000.0, norm_epsilon=1e-6,
        tie_embeddings=False, activation='swiglu')),
    'vicuna-7b-v1.5-16k': (
        {**_LLAMA2, 'max_sequence_length': 16384, 'pretraining_tp': 1, 'unk_token_id': 0,
         'rope_scaling': {'factor': 4.0, 'type': 'linear'}}, 'policy',
        dict(max_length=4096, rope_scaling='linear', rope_factor=4.0, rope_theta=10000.0)),
    'llama-2-13b': (_LLAMA2, 'policy', dict(
        max_length=4096, norm_epsilon=1e-5, rope_theta=10000.0, rope_scaling='none')),
    'llama-3.2-1b': (_LLAMA3, 'policy', dict(
        head_dim=64, num_kv_heads=8, rope_theta=500000.0, rope_scaling='llama3', rope_factor=32.0,
        rope_original_length=8192, tie_embeddings=True, max_length=131072)),
    'llama-3.2-1b, saved by transformers 5': (_LLAMA3_5, 'policy', dict(
        rope_theta=500000.0, rope_scaling='llama3', rope_factor=32.0, rope_original_length=8192)),
    'llama-3.2-1b, in both spellings': (
        {**_LLAMA3, **_LLAMA3_5, 'torch_dtype': 'bfloat16'}, 'policy',
        dict(rope_theta=500000.0, rope_scaling='llama3', rope_factor=32.0)),
    'tinyllama': (
        {**_LLAMA2, 'hidden_size': 2048, 'intermediate_size': 5632, 'num_hidden_layers': 22,
         'num_key_value_heads': 4, 'rope_theta': 10000.0, 'pretraining_tp': 1}, 'policy',
        dict(head_dim=64, num_kv_heads=4, rope_theta=10000.0)),
    'smollm2-135m-instruct': (_SMOLLM2, 'policy', dict(
        width=576, num_heads=9, num_kv_heads=3, head_dim=64, rope_theta=100000.0,
        tie_embeddings=True, activation='swiglu', attention_bias=False, mlp_bias=False)),
    'mistral-7b-v0.1': (_MISTRAL, 'policy', dict(
        sliding_window=4096, rope_theta=10000.0, num_kv_heads=8, tie_embeddings=False)),
    'mistral-7b-v0.3': (
        {**_MISTRAL, 'attention_dropout': 0.0, 'head_dim': None, 'rope_theta': 1000000.0,
         'sliding_window': None, 'vocab_size': 32768}, 'policy',
        dict(sliding_window=0, rope_theta=1000000.0, head_dim=128)),
    'qwen2.5-7b-instruct': (_QWEN2, 'policy', dict(
        sliding_window=0, rope_theta=1000000.0, num_kv_heads=4, attention_bias=True,
        output_bias=False, tie_embeddings=False, head_dim=128)),
    'qwen2.5-math-7b': (
        {**_QWEN2, 'max_position_embeddings': 4096, 'rope_theta': 10000, 'sliding_window': 4096,
         'use_mrope': False}, 'policy', dict(rope_theta=10000.0, max_length=4096)),
    'qwen2.5-7b-instruct-1m': (
        {**_QWEN2, 'max_position_embeddings': 1010000, 'rope_theta': 10000000.0,
         'dual_chunk_attention_config': {
             'chunk_size': 262144, 'local_size': 8192,
             'original_max_position_embeddings': 262144}}, 'policy',
        dict(rope_theta=10000000.0, max_length=262144 - 8192)),
    'qwen3-0.6b': (_QWEN3, 'policy', dict(
        qk_norm=True, head_dim=128, num_kv_heads=8, rope_theta=1000000.0, tie_embeddings=True,
        attention_bias=False, sliding_window=0)),
    'gemma-2b': (_GEMMA, 'policy', dict(
        activation='geglu', norm='rms_plus_one', num_kv_heads=1, head_dim=256, rope_theta=10000.0,
        tie_embeddings=True, embedding_scale=True)),
    'gemma-1.1-2b-it': (
        {**_GEMMA, 'hidden_act': 'gelu_pytorch_tanh', 'hidden_activation': 'gelu_pytorch_tanh'},
        'policy', dict(activation='geglu')),
    'gemma-2-27b': (_GEMMA2, 'policy', dict(
        query_scale=144**-0.5, sliding_window=4096, layer_pattern='sf', attention_softcap=50.0,
        logit_softcap=30.0, activation='geglu', tie_embeddings=True, rope_theta=10000.0)),
    'gemma-2, activations that differ': (
        {**_GEMMA2, 'hidden_act': 'gelu'}, 'policy', dict(activation='geglu')),
    'gemma-3-1b-it': (_GEMMA3, 'policy', dict(
        rope_theta=1000000.0, rope_local_theta=10000.0, sliding_window=512, num_kv_heads=1,
        layer_pattern='sssssf', qk_norm=True, attention_softcap=0.0, tie_embeddings=True)),
    'gemma-3-1b-it, saved by transformers 5': (_GEMMA3_5, 'policy', dict(
        rope_theta=1000000.0, rope_local_theta=10000.0, sliding_window=512,
        layer_pattern='sssssf')),
    'all-MiniLM-L6-v2': ({**_BERT, **_BERT_SAVED}, 'trunk', dict(
        num_layers=6, width=384, num_heads=12, mlp_width=1536, max_length=512,
        activation='gelu_exact', norm_epsilon=1e-12, type_vocab_size=2)),
    'bge-small-en-v1.5': (
        {**_BERT, **_BERT_SAVED, 'classifier_dropout': None, 'id2label': {'0': 'LABEL_0'},
         'label2id': {'LABEL_0': 0}, 'torch_dtype': 'float32'}, 'trunk', dict(width=384)),
    'multilingual-e5-small': (
        {**_BERT, **_BERT_SAVED, 'tokenizer_class': 'XLMRobertaTokenizer', 'vocab_size': 250037},
        'trunk', dict(vocab_size=250037)),
    'mxbai-embed-large-v1': (
        {**_BERT, 'hidden_size': 1024, 'num_attention_heads': 16, 'num_hidden_layers': 24,
         'intermediate_size': 4096, 'use_cache': False, 'classifier_dropout': None}, 'trunk',
        dict(width=1024, num_heads=16)),
    'bert-base-multilingual-cased': (
        {**_BERT, 'directionality': 'bidi', 'pooler_fc_size': 768, 'pooler_num_fc_layers': 3,
         'pooler_num_attention_heads': 12, 'pooler_size_per_head': 128, **_OF_VERSION_3,
         'pooler_type': 'first_token_transform', 'architectures': ['BertForMaskedLM']},
        'trunk', {}),
    'MiniLM-L12-H384, without a class': (
        {name: value for name, value in _BERT.items() if name != 'architectures'}, 'trunk', {}),
    'bert-large-uncased-whole-word-masking-finetuned-squad': (
        {**_BERT, 'architectures': ['BertForQuestionAnswering']}, 'trunk', {}),
    'ms-marco-MiniLM-L6-v2': (
        {**_BERT, 'architectures': ['BertForSequenceClassification'],
         'sentence_transformers': {'activation_fn': 'torch.nn.modules.linear.Identity'}}, 'trunk',
        {}),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_published_config_is_read(name, tmp_path):
  fields, role, expected = PUBLISHED[name]
  checkpoint = _read(tmp_path, fields)
  assert checkpoint.role == role
  assert {field: getattr(checkpoint.config, field) for field in expected} == expected


@pytest.mark.parametrize('name', PUBLISHED)
def test_an_unknown_field_of_a_published_config_is_rejected(name, tmp_path):
  with pytest.raises(ValueError, match=r"config\.json: unknown field 'logit_scale' \(0\.5\)"):
    _read(tmp_path, {**PUBLISHED[name][0], 'logit_scale': 0.5})


def test_two_spellings_are_one_model(tmp_path):
  read = lambda name: _read(tmp_path, PUBLISHED[name][0]).config
  assert read('pythia-160m, saved by transformers 5') == read('pythia-160m')
  assert read('pythia-160m, in all spellings') == read('pythia-160m')
  assert read('llama-3.2-1b, saved by transformers 5') == read('llama-3.2-1b')
  assert read('gemma-3-1b-it, saved by transformers 5') == read('gemma-3-1b-it')
  assert read('gemma-2, activations that differ') == read('gemma-2-27b')


@pytest.mark.parametrize('name', [
    'pythia-160m, in all spellings', 'llama-3.2-1b, in both spellings', 'gpt2-xl',
    'smollm2-135m-instruct', 'qwen2.5-7b-instruct-1m', 'gemma-2-27b', 'llama-2-13b'])
def test_a_saved_config_keeps_its_meaning_and_its_fields(name, tmp_path):
  checkpoint = _read(tmp_path, PUBLISHED[name][0])
  document = huggingface.config_document(
      checkpoint.config, model_type=checkpoint.model_type, role='policy', dtype='bfloat16',
      fields=checkpoint.fields)
  again = _read(tmp_path, document)
  assert again.config == checkpoint.config
  lost = checkpoint.fields.keys() - document.keys()
  assert lost <= {'dtype', '_name_or_path', 'transformers_version', 'head_dim'}


_LINEAR = {'rope_type': 'linear', 'factor': 2.0}
_SHARE_1 = {'rope_type': 'default', 'partial_rotary_factor': 1.0}
_THETA_5E5 = {'rope_type': 'default', 'rope_theta': 5e5}

# (config.json, what changes in it, words of the error)
CONTRADICTIONS = [
    (_PYTHIA, dict(partial_rotary_factor=0.5),
     ('partial_rotary_factor', '0.5', 'rotary_pct', '0.25')),
    (_PYTHIA, dict(rope_parameters=_SHARE_1),
     ('rope_parameters.partial_rotary_factor', '1.0', 'rotary_pct', '0.25')),
    (_PYTHIA_5, dict(partial_rotary_factor=0.5), ('partial_rotary_factor', '0.5', '0.25')),
    (_PYTHIA_5, dict(rotary_pct=1.0), ('partial_rotary_factor', '0.25', 'rotary_pct', '1.0')),
    (_PYTHIA, dict(rope_theta=500000), ('rope_theta', '500000', 'rotary_emb_base', '10000')),
    (_PYTHIA, dict(rope_parameters=_THETA_5E5),
     ('rope_parameters.rope_theta', '500000.0', 'rotary_emb_base', '10000.0')),
    (_PYTHIA_5, dict(rotary_emb_base=500), ('rope_theta', '10000.0', 'rotary_emb_base', '500.0')),
    (_PYTHIA, dict(head_dim=32), ('head_dim', '32', '64')),
    (_LLAMA3_5, dict(rope_theta=1e4),
     ('rope_parameters.rope_theta', '500000.0', 'rope_theta', '10000.0')),
    (_LLAMA3, dict(rope_scaling={**_LLAMA3_ROPE, 'rope_theta': 1e4}),
     ('rope_scaling.rope_theta', '10000.0', '500000.0')),
    (_LLAMA3, dict(rope_parameters={**_LLAMA3_ROPE, 'factor': 8.0}),
     ('rope_scaling', 'rope_parameters', 'factor', '32.0', '8.0')),
    (_LLAMA3, dict(rope_parameters=_LINEAR), ('rope_scaling', 'rope_parameters', 'keep one')),
    (_LLAMA3, dict(rope_scaling={**_LINEAR, 'rope_theta': 5e5},
                   rope_parameters={**_LINEAR, 'rope_theta': 1e4}),
     ('rope_theta', '500000.0', '10000.0')),
    (_LLAMA3, dict(rope_scaling={'type': 'linear', **_LLAMA3_ROPE}),
     ('rope_scaling', 'type', 'linear', 'llama3')),
    (_LLAMA3, dict(rope_theta=0), ('rope_theta', 'positive', '0')),
    (_LLAMA3, dict(partial_rotary_factor=0.5), ('partial_rotary_factor', '1.0', '0.5')),
    (_LLAMA3, dict(dtype='float32'), ('dtype', 'float32', 'torch_dtype', 'bfloat16')),
    (_LLAMA3, dict(head_dim=0), ('head_dim', 'at least 1', '0')),
    (_LLAMA3, dict(num_key_value_heads=5), ('num_kv_heads', '32', '5')),
    (_SMOLLM2, dict(rope_interleaved=True), ('rope_interleaved', 'False', 'True')),
    (_SMOLLM2, dict(is_llama_config=False), ('is_llama_config', 'True', 'False')),
    (_LLAMA1, dict(max_sequence_length=None), ('max_position_embeddings',)),
    (_MISTRAL, dict(mlp_bias=True), ('mlp_bias', 'False', 'True')),
    (_MISTRAL, dict(attention_bias=True), ('attention_bias', 'False', 'True')),
    (_MISTRAL, dict(final_logit_softcapping=30.0), ('final_logit_softcapping', 'unknown field')),
    (_QWEN2, dict(attention_bias=False), ('attention_bias', 'True', 'False')),
    (_QWEN2, dict(use_mrope=True), ('use_mrope', 'False', 'True')),
    (_QWEN2, dict(dual_chunk_attention_config={'chunk_size': 64}), ('local_size',)),
    (_QWEN2, dict(rope_scaling={'type': 'yarn', 'factor': 4.0}), ('rope_scaling', 'yarn')),
    (_GPT2, dict(n_ctx=512), ('n_ctx', '512', 'n_positions', '1024')),
    (_GPT2, dict(hidden_size=512), ('hidden_size', '512', 'n_embd', '768')),
    (_GPT2, dict(num_hidden_layers=6), ('num_hidden_layers', '6', 'n_layer', '12')),
    (_GPT2, dict(max_position_embeddings=2048), ('max_position_embeddings', '2048', 'n_positions')),
    (_GPT2, dict(intermediate_size=1024), ('intermediate_size', '1024', 'n_inner', '3072')),
    (_GPT2, dict(hidden_act='relu'), ('hidden_act', 'relu', 'activation_function', 'gelu_new')),
    (_GPT2, dict(n_special=2), ('n_special', '0', '2')),
    (_GPT2, dict(predict_special_tokens=False), ('predict_special_tokens', 'True', 'False')),
    (_GPT2, dict(scale_attn_by_inverse_layer_idx=True), ('scale_attn_by_inverse_layer_idx',)),
    (_GEMMA, dict(hidden_act='silu'), ('hidden_act', 'silu')),
    (_GEMMA2, dict(hidden_act='silu'), ('hidden_act', 'silu')),
    (_GEMMA2, dict(hidden_activation='gelu'), ('hidden_activation', "'gelu'")),
    (_GEMMA2, dict(sliding_window_size=512), ('sliding_window_size', '512', '4096')),
    (_GEMMA3, dict(_sliding_window_pattern=4), ('sliding_window_pattern', '6', '4')),
    (_GEMMA3, dict(sliding_window_pattern=0), ('sliding_window_pattern', 'at least 1', '0')),
    (_GEMMA3, dict(use_bidirectional_attention=True), ('use_bidirectional_attention', 'True')),
    (_GEMMA3_5, dict(rope_theta=1e4),
     ('rope_parameters.full_attention.rope_theta', '1000000.0', 'rope_theta', '10000.0')),
    (_GEMMA3_5, dict(rope_local_base_freq=5e3),
     ('rope_parameters.sliding_attention.rope_theta', '10000.0', 'rope_local_base_freq', '5000.0')),
    (_GEMMA3_5, dict(rope_parameters={'full_attention': 'default'}), ('full_attention', 'dict')),
    # Nulls that transformers would read as false, or would fail on.
    (_GEMMA, dict(tie_word_embeddings=None), ('tie_word_embeddings', 'true or false', 'null')),
    (_PYTHIA, dict(use_parallel_residual=None), ('use_parallel_residual', 'true or false')),
    (_GPT2, dict(scale_attn_weights=None), ('scale_attn_weights', 'true or false', 'null')),
    (_GEMMA2, dict(sliding_window=None, sliding_window_size=None), ("no field 'sliding_window'",)),
    (_GEMMA2, dict(query_pre_attn_scalar=0), ('query_pre_attn_scalar', 'positive', '0')),
    (_BERT, dict(head_dim=64), ('head_dim', '32', '64')),
    (_BERT, dict(is_decoder=True), ('is_decoder', 'False', 'True')),
    (_QWEN3, dict(quantization_config={'quant_method': 'fp8'}), ('quantization_config',)),
]


@pytest.mark.parametrize(
    'fields, changes, words', CONTRADICTIONS,
    ids=[f'{fields["model_type"]}-{"-".join(changes)}' for fields, changes, _ in CONTRADICTIONS])
def test_a_contradiction_is_named(fields, changes, words, tmp_path):
  with pytest.raises(ValueError) as error:
    _read(tmp_path, {**fields, **changes})
  message = str(error.value)
  assert '\n' not in message and message.count('config.json') == 1
  assert [word for word in words if word not in message.replace(str(tmp_path), '')] == []


def test_grouped_queries_have_the_default_of_their_family():
  # transformers' classes: 16 in Gemma, 4 in Gemma 2 and 3; null is as many as queries.
  fields = {name: value for name, value in _GEMMA.items() if name != 'num_key_value_heads'}
  fields |= {'num_attention_heads': 16}
  assert gemma.read_config(fields).num_kv_heads == 16
  assert gemma.read_config({**fields, 'model_type': 'gemma2'}).num_kv_heads == 4
  null = {**fields, 'model_type': 'gemma2', 'num_key_value_heads': None}
  assert gemma.read_config(null).num_kv_heads == 16


def test_a_field_is_inert_or_bound_to_a_value():
  assert not config_fields.INERT & config_fields._ONLY.keys()
