"""Whole checkpoint directories: loading, saving, heads by role, and one-line errors."""

import dataclasses
import json
import os

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxrl_llm.models import configs, policy, q_function, value
from jaxrl_llm.models.pretrained import huggingface, mapping, weights
from jaxrl_llm.sharding import mesh, rules
from tests.models import witness

# Every sharded dimension is a multiple of 8.
_LLAMA = configs.TransformerConfig(
    vocab_size=40, num_layers=3, width=16, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=24,
    max_length=32, tie_embeddings=False)
_TIED = dataclasses.replace(_LLAMA, tie_embeddings=True)
_GPT2 = dataclasses.replace(
    _TIED, norm='layer', norm_epsilon=1e-5, positions='learned', activation='gelu', num_heads=2,
    attention_bias=True, output_bias=True, mlp_bias=True)
_NEOX = dataclasses.replace(
    _LLAMA, norm='layer', num_heads=2, activation='gelu_exact', parallel_residual=True,
    rope_fraction=0.5, attention_bias=True, output_bias=True, mlp_bias=True)
MODELS = {
    'llama': _LLAMA, 'qwen2': dataclasses.replace(_TIED, attention_bias=True), 'gpt2': _GPT2,
    'gpt_neox': _NEOX,
}


def _abstract(model, sizes=None, dtype=None):
  tree = jax.eval_shape(model.init, jax.random.key(0))
  if dtype:
    tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)
  if sizes is None:
    return tree
  return rules.abstract(tree, rules.shardings(mesh.make_mesh(*sizes), tree))


def _save(directory, config=_LLAMA, *, model_type='llama', params=None, **arguments):
  """Saves random parameters; returns them."""
  params = witness.draw_params(policy.make(config)) if params is None else params
  huggingface.save(directory, config, params, model_type=model_type, **arguments)
  return params


def _load(directory, make=policy.make, *, changes=None, **arguments):
  checkpoint = huggingface.read_config(directory)
  model = make(dataclasses.replace(checkpoint.config, **(changes or {})))
  return huggingface.load_params(checkpoint, _abstract(model), **arguments)


def _assert_same(tree, expected):
  assert jax.tree.structure(tree) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, tree, expected)


def _error(function, *arguments, **keywords):
  with pytest.raises(ValueError) as caught:
    function(*arguments, **keywords)
  message = str(caught.value)
  assert '\n' not in message
  return message


def _rewrite(directory, change):
  """Applies change(arrays) to the tensors of a directory with one file."""
  path = directory / weights.SINGLE_FILE
  arrays = safetensors.numpy.load_file(path)
  change(arrays)
  safetensors.numpy.save_file(arrays, path)


def _edit_config(directory, **fields):
  path = directory / 'config.json'
  fields = {**json.loads(path.read_text()), **fields}
  path.write_text(json.dumps({name: v for name, v in fields.items() if v is not ...}))


# --- Whole models.


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('model_type', MODELS)
def test_load_save_load_is_bit_exact(tmp_path, model_type, dtype):
  config = MODELS[model_type]
  _save(tmp_path / 'a', config, model_type=model_type, dtype=dtype, max_shard_bytes=4000)
  checkpoint = huggingface.read_config(tmp_path / 'a')
  assert (checkpoint.config, checkpoint.role) == (config, 'policy')

  abstract = _abstract(policy.make(config), (2, 2, 2), dtype)
  loaded = huggingface.load_params(checkpoint, abstract)
  huggingface.save(
      tmp_path / 'b', checkpoint.config, loaded, model_type=checkpoint.model_type, dtype=dtype,
      fields=checkpoint.fields, max_shard_bytes=4000)

  names = sorted(path.name for path in (tmp_path / 'a').iterdir())
  assert len(names) > 4
  assert names == sorted(path.name for path in (tmp_path / 'b').iterdir())
  for name in names:
    assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()

  again = huggingface.load_params(huggingface.read_config(tmp_path / 'b'), abstract)
  assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {np.dtype(dtype)}
  _assert_same(again, loaded)


@pytest.mark.parametrize('model_type', MODELS)
def test_meshes_load_the_same_numbers_as_one_device(tmp_path, model_type):
  config = MODELS[model_type]
  params = _save(tmp_path / 'a', config, model_type=model_type)
  checkpoint = huggingface.read_config(tmp_path / 'a')
  progress = []
  alone = huggingface.load_params(
      checkpoint, _abstract(policy.make(config)),
      progress=lambda path, size: progress.append((path, size)))
  _assert_same(alone, params)
  assert progress == [(path, leaf.nbytes) for path, leaf in mapping.flatten(params).items()]

  for sizes in ((8, 1, 1), (2, 2, 2), (1, 8, 1)):
    abstract = _abstract(policy.make(config), sizes)
    loaded = huggingface.load_params(checkpoint, abstract)
    _assert_same(loaded, params)
    jax.tree.map(lambda x, leaf: x.sharding == leaf.sharding or pytest.fail(str(leaf)),
                 loaded, abstract)


@pytest.mark.parametrize('model_type', ['llama', 'gpt2'])
def test_names_without_their_prefix_are_a_bare_trunk(tmp_path, model_type):
  config = dataclasses.replace(MODELS[model_type], tie_embeddings=True)
  params = _save(tmp_path / 'a', config, model_type=model_type, role='trunk')
  prefix = huggingface.find_family(model_type).PREFIX
  assert not any(
      name.startswith(prefix) for name in weights.Reader(tmp_path / 'a').tensors)
  assert huggingface.read_config(tmp_path / 'a').role == 'trunk'
  _assert_same(_load(tmp_path / 'a'), params)


def test_buffers_of_old_checkpoints_are_ignored(tmp_path):
  params = _save(tmp_path / 'a', _GPT2, model_type='gpt2')
  _rewrite(tmp_path / 'a', lambda arrays: arrays.update(
      {'transformer.h.0.attn.bias': np.ones((1, 1, 32, 32), bool)}))
  _assert_same(_load(tmp_path / 'a'), params)


def test_partial_trees_load(tmp_path):
  from jaxrl_llm.models import partial

  params = _save(tmp_path / 'a')
  loaded = _load(tmp_path / 'a', lambda config: partial.make(policy.make(config), 2))
  _assert_same(loaded, partial.split(params, 2))


# --- Heads by role.


def _value_params(config=_LLAMA, num_outputs=1):
  params = witness.draw_params(value.make(config, num_outputs=num_outputs))
  bias = params['value_head']['bias']
  return {**params, 'value_head': {**params['value_head'], 'bias': np.zeros_like(bias)}}


@pytest.mark.parametrize('num_outputs', [1, 3])
@pytest.mark.parametrize('model_type', ['llama', 'gpt2'])
def test_a_value_function_is_a_sequence_classifier(tmp_path, model_type, num_outputs):
  config = MODELS[model_type]
  params = _value_params(config, num_outputs)
  _save(tmp_path / 'a', config, model_type=model_type, params=params, role='value')
  checkpoint = huggingface.read_config(tmp_path / 'a')
  assert checkpoint.role == 'value'
  assert checkpoint.architecture.endswith('ForSequenceClassification')
  assert len(checkpoint.fields['id2label']) == len(checkpoint.fields['label2id']) == num_outputs

  reader = weights.Reader(tmp_path / 'a')
  assert reader.tensors['score.weight'].shape == (num_outputs, 16)
  assert 'lm_head.weight' not in reader
  make = lambda config: value.make(config, num_outputs=num_outputs)
  _assert_same(_load(tmp_path / 'a', make), params)

  message = _error(_load, tmp_path / 'a', lambda config: value.make(config, num_outputs=2))
  assert f'score.weight in {tmp_path}' in message
  assert f'has shape [{num_outputs}, 16], the model needs [2, 16]' in message


def test_labels_are_copied_if_their_number_fits(tmp_path):
  fields = {'id2label': {'0': 'helpful'}, 'label2id': {'helpful': 0}}
  for number in (1, 2):
    _save(tmp_path / str(number), params=_value_params(num_outputs=number), role='value',
          fields=fields)
  written = huggingface.read_config(tmp_path / '1').fields
  assert (written['id2label'], written['label2id']) == tuple(fields.values())
  assert huggingface.read_config(tmp_path / '2').fields['id2label'] == {
      '0': 'LABEL_0', '1': 'LABEL_1'}


def test_a_value_head_with_a_bias_cannot_be_saved(tmp_path):
  params = witness.draw_params(value.make(_LLAMA))
  message = _error(_save, tmp_path / 'a', params=params, role='value')
  assert message.startswith('value_head/bias must be 0 to be saved, got [')
  message = _error(_save, tmp_path / 'a', role='value')
  assert message == "role 'value' needs parameters with a value_head"
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('make', [value.make, q_function.make])
@pytest.mark.parametrize('role, config', [('policy', _LLAMA), ('policy', _TIED), ('trunk', _TIED)])
def test_a_language_model_loads_with_a_fresh_head(tmp_path, make, role, config):
  params = _save(tmp_path / 'a', config, role=role)
  fresh = witness.draw_params(make(config), seed=5)
  loaded = _load(tmp_path / 'a', make, fresh=fresh)
  head = 'value_head' if make is value.make else 'q_head'
  trunk = {name: part for name, part in params.items() if name != 'head'}
  _assert_same(loaded, {**trunk, head: fresh[head]})
  message = _error(_load, tmp_path / 'a', make)
  assert message.startswith(f'parameter {head}/bias of the model is not in {tmp_path / "a"}, ')
  wrong = {head: {**fresh[head], 'bias': np.zeros(7)}}
  message = _error(_load, tmp_path / 'a', make, fresh=wrong)
  assert message.startswith(f'the fresh parameter {head}/bias has shape [7], the model needs [')


def test_fresh_heads_get_their_dtype_and_sharding(tmp_path):
  _save(tmp_path / 'a')
  checkpoint = huggingface.read_config(tmp_path / 'a')
  model = q_function.make(checkpoint.config)
  fresh = witness.draw_params(model)
  abstract = _abstract(model, (2, 2, 2), 'bfloat16')
  loaded = huggingface.load_params(checkpoint, abstract, fresh=fresh)
  kernel, leaf = loaded['q_head']['kernel'], abstract['q_head']['kernel']
  assert (kernel.sharding, kernel.dtype) == (leaf.sharding, leaf.dtype)
  np.testing.assert_array_equal(kernel, fresh['q_head']['kernel'].astype(ml_dtypes.bfloat16))


def test_a_trunk_is_never_fresh(tmp_path):
  params = _save(tmp_path / 'a')
  name = 'model.layers.1.mlp.up_proj.weight'
  _rewrite(tmp_path / 'a', lambda arrays: arrays.pop(name))
  message = _error(_load, tmp_path / 'a', fresh=params)
  assert message == f'tensor {name} is missing from {tmp_path / "a" / weights.SINGLE_FILE}'
  _save(tmp_path / 'b', params=params)
  _rewrite(tmp_path / 'b', lambda arrays: arrays.pop('lm_head.weight'))
  message = _error(_load, tmp_path / 'b', fresh=params)
  assert message.startswith('tensor lm_head.weight is missing from ')


def test_an_untied_head_missing_from_a_bare_trunk_may_be_fresh(tmp_path):
  params = witness.draw_params(policy.make(_LLAMA))
  trunk = {name: part for name, part in params.items() if name != 'head'}
  _save(tmp_path / 'a', params=trunk, role='trunk')
  _assert_same(_load(tmp_path / 'a', fresh=params), params)
  message = _error(_load, tmp_path / 'a')
  assert message.startswith('parameter head/kernel of the model is not in ')
  assert message.endswith('which contains a LlamaModel')


def test_no_head_is_dropped_silently(tmp_path):
  # A tied policy would compute a different function.
  _save(tmp_path / 'a')
  message = _error(_load, tmp_path / 'a', changes={'tie_embeddings': True})
  assert message.startswith('tensor lm_head.weight in ')
  assert message.endswith('is not used by the model')
  _save(tmp_path / 'b', _TIED, params=_value_params(_TIED), role='value')
  message = _error(_load, tmp_path / 'b')
  assert message.startswith('tensor score.weight in ')


def test_a_reward_model_starts_a_policy_with_a_fresh_head(tmp_path):
  params = _value_params()
  _save(tmp_path / 'a', params=params, role='value')
  fresh = witness.draw_params(policy.make(_LLAMA), seed=5)
  loaded = _load(tmp_path / 'a', fresh=fresh)
  _assert_same(loaded['layers'], params['layers'])
  _assert_same(loaded['head'], fresh['head'])


# --- Tied heads.


def test_a_tied_model_may_hold_its_head_twice(tmp_path):
  params = _save(tmp_path / 'a', _TIED)
  assert 'lm_head.weight' not in weights.Reader(tmp_path / 'a')
  embedding = np.asarray(params['embedder']['embedding'])
  _rewrite(tmp_path / 'a', lambda arrays: arrays.update({'lm_head.weight': embedding}))
  _assert_same(_load(tmp_path / 'a'), params)
  other = embedding.copy()
  other[-1, -1] += 1e-3
  _rewrite(tmp_path / 'a', lambda arrays: arrays.update({'lm_head.weight': other}))
  message = _error(_load, tmp_path / 'a')
  assert message.startswith(f'tensor lm_head.weight in {tmp_path}')
  assert 'differs from model.embed_tokens.weight, to which config.json ties it' in message
  _rewrite(tmp_path / 'a', lambda arrays: arrays.update({'lm_head.weight': other[:-1]}))
  assert 'differs from' in _error(_load, tmp_path / 'a')


def test_a_tied_model_loads_into_a_tree_with_a_head(tmp_path):
  params = _save(tmp_path / 'a', _TIED)
  loaded = _load(tmp_path / 'a', changes={'tie_embeddings': False})
  _assert_same(loaded['head']['kernel'], params['embedder']['embedding'])
  _save(tmp_path / 'b', _LLAMA, params=loaded)
  assert not huggingface.read_config(tmp_path / 'b').config.tie_embeddings
  _assert_same(_load(tmp_path / 'b'), loaded)


# --- config.json.


def test_the_wrong_family(tmp_path):
  _save(tmp_path / 'a', _GPT2, model_type='gpt2')
  _save(tmp_path / 'b')
  os.replace(tmp_path / 'b' / 'config.json', tmp_path / 'a' / 'config.json')
  message = _error(_load, tmp_path / 'a')
  assert message.startswith(f'tensor embed_tokens.weight is missing from {tmp_path / "a"}')


@pytest.mark.parametrize('fields, message', [
    ({'model_type': 'mamba'}, "model_type must be one of bert, gemma, .*qwen3, got 'mamba'"),
    ({'model_type': 'gemma3'}, "model_type 'gemma3' is the multimodal .* only gemma3_text"),
    ({'model_type': ...}, 'model_type must be one of .*, got None'),
    ({'model_type': ['llama']}, r'model_type must be one of .*, got \[.llama.\]'),
    ({'architectures': ['T5Model']}, r"architectures must be one of Llama.*, got \['T5Model'\]"),
    ({'architectures': ['MistralForCausalLM']},
     "one of LlamaFor.*, LlamaModel if model_type is 'llama', got .'MistralForCausalLM'"),
    ({'model_type': 'mistral'}, "one of MistralFor.* if model_type is 'mistral', got .'LlamaF"),
    ({'architectures': 'LlamaModel'}, "architectures must be one of .*, got 'LlamaModel'"),
    ({'quantization_config': {'quant_method': 'gptq'}}, 'has a quantization_config: quantised'),
    ({'hidden_size': ...}, "has no field 'hidden_size'"),
    ({'partial_moe': 3}, "unknown field 'partial_moe' .3."),
])
def test_config_files_that_are_rejected(tmp_path, fields, message):
  _save(tmp_path / 'a')
  _edit_config(tmp_path / 'a', **fields)
  error = _error(huggingface.read_config, tmp_path / 'a')
  assert error.startswith(f'{tmp_path / "a" / "config.json"}')
  assert error.count('config.json') == 1
  with pytest.raises(ValueError, match=message):
    huggingface.read_config(tmp_path / 'a')


def test_config_files_that_are_missing_or_damaged(tmp_path):
  assert 'not a checkpoint directory, which has a config.json' in _error(
      huggingface.read_config, tmp_path / 'absent')
  for text in (b'{', b'', b'\xff'):
    (tmp_path / 'config.json').write_bytes(text)
    assert 'config.json is damaged: ' in _error(huggingface.read_config, tmp_path)
  (tmp_path / 'config.json').write_text('[1]')
  assert 'must contain a JSON object, got a list' in _error(huggingface.read_config, tmp_path)


def test_configs_without_architectures_are_language_models(tmp_path):
  params = _save(tmp_path / 'a')
  _edit_config(tmp_path / 'a', architectures=..., quantization_config=None)
  checkpoint = huggingface.read_config(tmp_path / 'a')
  assert (checkpoint.architecture, checkpoint.role) == ('', 'policy')
  _assert_same(_load(tmp_path / 'a'), params)


def test_pickles_are_rejected_by_name(tmp_path):
  _save(tmp_path / 'a')
  os.remove(tmp_path / 'a' / weights.SINGLE_FILE)
  assert not huggingface.is_checkpoint(tmp_path / 'a')
  (tmp_path / 'a' / 'pytorch_model.bin').write_bytes(b'')
  assert huggingface.is_checkpoint(tmp_path / 'a')
  assert 'pytorch_model.bin is a pickle' in _error(_load, tmp_path / 'a')


def test_is_checkpoint(tmp_path):
  _save(tmp_path / 'a', max_shard_bytes=4000)
  assert huggingface.is_checkpoint(tmp_path / 'a')
  os.remove(tmp_path / 'a' / 'config.json')
  assert not huggingface.is_checkpoint(tmp_path / 'a')
  assert not huggingface.is_checkpoint(tmp_path / 'absent')
  assert not huggingface.is_checkpoint(tmp_path)


# --- Saved files.


def test_only_inert_fields_are_copied(tmp_path):
  inert = {'bos_token_id': 3, 'eos_token_id': [4, 5], 'pad_token_id': None,
           'initializer_range': 0.5, 'use_cache': False}
  gone = {
      'dtype': 'float16', 'transformers_version': '9', 'auto_map': {'AutoModel': 'code.py'},
      '_name_or_path': '/home/me', 'quantization_config': {}, 'num_labels': 2,
      'unknown_to_us': 1,  # Would be rejected when it is read again.
      'rope_parameters': {'rope_type': 'default', 'rope_theta': 7.0},  # Of another model.
  }
  differing = {'hidden_size': 4, 'architectures': ['LlamaModel'], 'torch_dtype': 'float16'}

  _save(tmp_path / 'a', dtype='bfloat16', fields={**inert, **gone, **differing})
  checkpoint = huggingface.read_config(tmp_path / 'a')
  written = checkpoint.fields
  assert checkpoint.config == _LLAMA
  assert {name: written[name] for name in inert} == inert
  assert not gone.keys() & written.keys()
  assert written['hidden_size'] == 16
  assert written['architectures'] == ['LlamaForCausalLM']
  assert written['torch_dtype'] == 'bfloat16'


_CLASSES = {
    'gpt2': ('GPT2LMHeadModel', 'GPT2ForSequenceClassification', 'GPT2Model'),
    'gpt_neox': ('GPTNeoXForCausalLM', 'GPTNeoXForSequenceClassification', 'GPTNeoXModel'),
    **{name.lower(): (f'{name}ForCausalLM', f'{name}ForSequenceClassification', f'{name}Model')
       for name in ('Llama', 'Mistral', 'Qwen2', 'Qwen3', 'Gemma', 'Gemma2')},
    'gemma3_text': (
        'Gemma3ForCausalLM', 'Gemma3TextForSequenceClassification', 'Gemma3TextModel'),
    'bert': (None, None, 'BertModel'),
}


@pytest.mark.parametrize('model_type', _CLASSES)
def test_the_class_of_each_role(model_type):
  family = huggingface.find_family(model_type)
  for role, name in zip(huggingface.ROLES, _CLASSES[model_type]):
    if name is None:
      message = _error(huggingface._architecture_for, family, model_type, role)
      assert message.startswith(f'a {model_type} cannot be saved with role {role!r}')
    else:
      assert huggingface._architecture_for(family, model_type, role) == name
      assert huggingface._architecture(family, model_type, [name]) == (name, role)


def test_all_model_types_are_covered_here():
  known = [name for family in huggingface.FAMILIES for name in family.MODEL_TYPES]
  assert sorted(known) == sorted(_CLASSES)


def test_tokenizer_files_are_copied(tmp_path):
  source = tmp_path / 'source'
  source.mkdir()
  copied = ['tokenizer.json', 'tokenizer_config.json', 'generation_config.json', 'merges.txt',
            'vocab.json', 'chat_template.jinja', 'spiece.model']
  for name in (*copied, 'README.md', 'model.safetensors', 'config.json'):
    (source / name).write_text(name)
  (source / 'blob').write_text('linked')
  (source / 'added_tokens.json').symlink_to('blob')  # As in the hub's cache.
  _save(tmp_path / 'a', tokenizer_from=source)

  paths = {path.name: path for path in (tmp_path / 'a').iterdir()}
  assert paths.keys() == {*copied, 'added_tokens.json', 'config.json', 'model.safetensors'}
  assert all(paths[name].read_text() == name for name in copied)
  assert not paths['added_tokens.json'].is_symlink()
  assert paths['added_tokens.json'].read_text() == 'linked'


@pytest.mark.parametrize('arguments, message', [
    ({'dtype': 'float16'}, "dtype must be float32 or bfloat16, got 'float16'"),
    ({'role': 'reward'}, "role must be one of policy, value, trunk, got 'reward'"),
    ({'model_type': 'mamba'}, 'model_type must be one of '),
    ({'model_type': 'gpt2'}, 'a gpt2 checkpoint cannot express '),
    ({'tokenizer_from': 'absent'}, 'tokenizer_from must be a directory with tokenizer files, got'),
    ({'max_shard_bytes': 0}, 'max_shard_bytes must be at least 1, got 0'),
    ({'role': 'trunk'}, 'parameter head/kernel is not part of the checkpoint'),
    ({'config': _TIED}, 'parameter head/kernel is not part of the checkpoint'),
    ({'config': dataclasses.replace(_LLAMA, mlp_bias=True)},
     'parameter layers/mlp/gate/bias is needed for the checkpoint .and 2 more'),
])
def test_a_save_that_fails_leaves_no_files(tmp_path, arguments, message):
  params = witness.draw_params(policy.make(_LLAMA))
  with pytest.raises(ValueError, match=message):
    _save(tmp_path / 'a', params=params, **arguments)
  assert not list(tmp_path.iterdir())


def test_a_directory_in_use_is_not_changed(tmp_path):
  params = _save(tmp_path / 'a')
  assert 'a new or empty directory' in _error(_save, tmp_path / 'a')
  _assert_same(_load(tmp_path / 'a'), params)
