"""adapter_config.json: adapted modules, their ranks, and rejected fields.

The expected change of a module is B A in NumPy, scaled as in PEFT.
"""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from jaxrl_llm.models import configs
from jaxrl_llm.models.pretrained import mapping, peft

LLAMA = configs.TransformerConfig(
    vocab_size=29, num_layers=3, width=16, num_heads=4, num_kv_heads=2, head_dim=6, mlp_width=24,
    max_length=32, tie_embeddings=False)
NEOX = dataclasses.replace(
    LLAMA, num_kv_heads=4, head_dim=4, norm='layer', activation='gelu_exact', attention_bias=True,
    output_bias=True, mlp_bias=True, parallel_residual=True, rope_fraction=0.5)
GPT2 = dataclasses.replace(
    NEOX, positions='learned', rope_fraction=1.0, activation='gelu', parallel_residual=False,
    tie_embeddings=True)
CONFIGS = {'llama': LLAMA, 'gpt2': GPT2, 'gpt_neox': NEOX}
Q, DOWN = 'model.layers.{}.self_attn.q_proj', 'model.layers.{}.mlp.down_proj'
SIZES = {  # (inputs, outputs)
    Q: (16, 24), DOWN: (24, 16), 'model.layers.{}.self_attn.k_proj': (16, 12),
    'model.layers.{}.self_attn.v_proj': (16, 12), 'model.layers.{}.self_attn.o_proj': (24, 16),
    'model.layers.{}.mlp.gate_proj': (16, 24), 'model.layers.{}.mlp.up_proj': (16, 24),
    'transformer.h.{}.attn.c_attn': (16, 48), 'lm_head': (16, 29), 'embed_out': (16, 29),
}
# Every field of PEFT 0.20, as it writes them.
FIELDS = {
    'alora_invocation_tokens': None, 'alpha_pattern': {}, 'arrow_config': None,
    'auto_mapping': None, 'base_model_name_or_path': 'a/base', 'bias': 'none', 'corda_config': None,
    'ensure_weight_tying': False, 'eva_config': None, 'exclude_modules': None,
    'fan_in_fan_out': False, 'inference_mode': True, 'init_lora_weights': True,
    'layer_replication': None, 'layers_pattern': None, 'layers_to_transform': None,
    'loftq_config': {}, 'lora_alpha': 8, 'lora_bias': False, 'lora_dropout': 0.05,
    'lora_ga_config': None, 'megatron_config': None, 'megatron_core': 'megatron.core',
    'modules_to_save': None, 'monteclora_config': None, 'peft_type': 'LORA',
    'peft_version': '0.20.0', 'qalora_group_size': 16, 'r': 4, 'rank_pattern': {}, 'revision': None,
    'target_modules': ['q_proj'], 'target_parameters': None, 'task_type': 'CAUSAL_LM',
    'trainable_token_indices': None, 'use_bdlora': None, 'use_dora': False, 'use_qalora': False,
    'use_rslora': False, 'velora_config': None,
}


def _name(module, side):
  return f'base_model.model.{module}.lora_{side}.weight'


def _write(directory, ranks, **fields):
  """Writes an adapter {module: rank} and returns the product B A of each module."""
  rng = np.random.default_rng(0)
  tensors, products = {}, {}
  for module, rank in ranks.items():
    inputs, outputs = next(
        sizes for name, sizes in SIZES.items() if module in [name.format(i) for i in range(9)])
    a, b = (rng.standard_normal(shape).astype(np.float32)
            for shape in ((rank, inputs), (outputs, rank)))
    tensors |= {_name(module, 'A'): a, _name(module, 'B'): b}
    products[module] = b @ a
  safetensors.numpy.save_file(tensors, directory / 'adapter_model.safetensors')
  (directory / 'adapter_config.json').write_text(json.dumps({**FIELDS, **fields}))
  return products


def _load(directory, model_type='llama'):
  return peft.load(directory, CONFIGS[model_type], model_type=model_type)


def _added(loaded):
  """{path: [layers, in, out]}: the adapters' products, which are added to the kernels."""
  config, adapters = loaded
  leaves = mapping.flatten(adapters)
  scale = config.alpha / config.rank
  return {path.removesuffix('/lora_a'): scale * a @ leaves[path[:-1] + 'b']
          for path, a in leaves.items() if path.endswith('lora_a')}


def _layers(module, *numbers):
  return [module.format(i) for i in numbers]


@pytest.mark.parametrize('fields', [
    dict(layers_to_transform=[0, 2]),
    dict(layers_to_transform=[2, 0], layers_pattern='layers'),
    dict(layers_to_transform=[0, 2], layers_pattern=['h', '(lay)ers']),
    dict(target_modules=_layers(Q, 0, 2)),  # Whole names.
    dict(target_modules=r'.*\.(0|2)\.self_attn\.q_proj'),
    dict(exclude_modules=_layers(Q, 1)),
    dict(exclude_modules=r'model\.layers\.1\..*'),
    dict(target_modules=_layers(Q, 2) + ['0.self_attn.q_proj'], layers_to_transform=[0]),
], ids=str)
def test_excluded_layers_have_zero_adapters(fields, tmp_path):
  products = _write(tmp_path, dict.fromkeys(_layers(Q, 0, 2), 4), **fields)
  loaded = _load(tmp_path)
  added = _added(loaded)
  assert list(added) == ['layers/attention/query']
  expected = [2.0 * products[Q.format(i)].T if i != 1 else np.zeros((16, 24)) for i in range(3)]
  np.testing.assert_allclose(added['layers/attention/query'], expected, atol=1e-5)
  # Both factors are 0, and so are their gradients.
  leaves = mapping.flatten(loaded[1])
  assert not any(leaf[1].any() for leaf in leaves.values())
  peft.save(tmp_path / 'again', loaded[1], loaded[0], LLAMA, model_type='llama')
  again = _added(_load(tmp_path / 'again'))
  np.testing.assert_array_equal(again['layers/attention/query'], added['layers/attention/query'])


@pytest.mark.parametrize('pattern', [None, 'h'])
def test_one_layer_of_a_fused_module(pattern, tmp_path):
  module = 'transformer.h.1.attn.c_attn'
  products = _write(
      tmp_path, {module: 4}, target_modules=['c_attn'], layers_to_transform=1,
      layers_pattern=pattern)
  added = _added(_load(tmp_path, 'gpt2'))
  parts = np.split(2.0 * products[module].T, 3, axis=1)
  for head, part in zip(('query', 'key', 'value'), parts):
    kernels = added[f'layers/attention/{head}']
    np.testing.assert_allclose(kernels[1], part, atol=1e-5)
    assert not kernels[0].any() and not kernels[2].any()


@pytest.mark.parametrize('stabilised', [False, True])
def test_patterns_of_rank_and_alpha_by_layer(stabilised, tmp_path):
  # The first matching pattern applies; ^ matches the start of the whole name.
  ranks = {'layers.1.self_attn.q_proj': 2, r'^model\.layers\.[12]\.self_attn\.q_proj': 6,
           'down_proj': 1}
  alphas = {r'layers\.2\..*': 3, 'down_proj': 5.0}
  modules = dict(zip(_layers(Q, 0, 1, 2) + _layers(DOWN, 0, 1, 2), (4, 2, 6, 1, 1, 1)))
  products = _write(tmp_path, modules, target_modules=['q_proj', 'down_proj'], rank_pattern=ranks,
                    alpha_pattern=alphas, use_rslora=stabilised)
  added = _added(_load(tmp_path))
  for path, module, scales in (
      ('layers/attention/query', Q, ((8, 4), (8, 2), (3, 6))),
      ('layers/mlp/down', DOWN, ((5, 1), (5, 1), (3, 1)))):
    expected = [alpha / (np.sqrt(rank) if stabilised else rank) * products[module.format(i)].T
                for i, (alpha, rank) in enumerate(scales)]
    np.testing.assert_allclose(added[path], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('targets', ['all-linear', 'All-Linear', None, ['q_proj', 'c_attn']])
def test_other_ways_to_name_all_layers(targets, tmp_path):
  all_linear = isinstance(targets, str)
  linear = [name for name in SIZES if name.startswith('model.')] if all_linear else [Q]
  modules = {name: 4 for module in linear for name in _layers(module, 0, 1, 2)}
  products = _write(tmp_path, modules, target_modules=targets)
  added = _added(_load(tmp_path))
  assert len(added) == len(linear)
  np.testing.assert_allclose(
      added['layers/attention/query'], [2.0 * products[Q.format(i)].T for i in range(3)], atol=1e-5)

  if all_linear:
    _write(tmp_path, {**modules, 'lm_head': 4}, target_modules=targets)
    with pytest.raises(ValueError, match=f"lm_head.lora_A.* target_modules is '{targets}', which"):
      _load(tmp_path)


@pytest.mark.parametrize('written, named', [('embed_out', 'embed_out'), ('lm_head', 'lm_head'),
                                            ('embed_out', 'lm_head'), ('lm_head', 'embed_out')])
def test_a_head_may_be_named_as_in_either_version(written, named, tmp_path):
  products = _write(tmp_path, {written: 4}, target_modules=[named])
  config, adapters = _load(tmp_path, 'gpt_neox')
  assert list(adapters) == ['head'] and config.alpha / config.rank == 2.0
  head = adapters['head']
  np.testing.assert_allclose(head['lora_b'] @ head['lora_a'], products[written], atol=1e-5)


ALL = dict.fromkeys(_layers(Q, 0, 1, 2), 4)
EVERY = {**ALL, **dict.fromkeys(_layers(DOWN, 0, 1, 2), 4)}


@pytest.mark.parametrize('ranks, fields, words', [
    # A rank that contradicts the tensors.
    (ALL, dict(r=8), (_name(Q.format(0), 'A'), '[4, 16]', '[8, 16]', 'r = 8')),
    (ALL, dict(r=2), (_name(Q.format(0), 'A'), '[4, 16]', '[2, 16]', 'r = 2')),
    (ALL, dict(rank_pattern={'q_proj': 8}), ('[4, 16]', '[8, 16]', "rank_pattern['q_proj'] = 8")),
    ({**ALL, Q.format(2): 3}, {}, (_name(Q.format(2), 'A'), '[3, 16]', '[4, 16]', 'r = 4')),
    (ALL, dict(rank_pattern={'layers.1.self_attn.q_proj': 2}),
     (_name(Q.format(1), 'A'), '[4, 16]', '[2, 16]')),
    # Tensors of excluded layers and modules.
    (ALL, dict(layers_to_transform=[0, 2]),
     (_name(Q.format(1), 'A'), 'no adapter', 'layers_to_transform is [0, 2]')),
    (ALL, dict(layers_to_transform=1), (_name(Q.format(0), 'A'), 'layers_to_transform is [1]')),
    (ALL, dict(layers_to_transform=[0, 1, 2], layers_pattern='h'), ('layers_to_transform',)),
    (EVERY, {}, (_name(DOWN.format(0), 'A'), "target_modules is ['q_proj']")),
    (ALL, dict(target_modules='.*k_proj'), ("target_modules is '.*k_proj'",)),
    (ALL, dict(target_modules=[]), ('target_modules is []',)),
    (ALL, dict(exclude_modules=['q_proj']), ("exclude_modules is ['q_proj']",)),
    (ALL, dict(target_modules=None, layers_to_transform=[1]), ('layers_to_transform is [1]',)),
    # Adapters without tensors.
    (dict.fromkeys(_layers(Q, 0, 1), 4), {}, (_name(Q.format(2), 'A'), 'missing')),
    (dict.fromkeys(_layers(Q, 0, 1), 4), dict(target_modules=None), ('missing',)),
    (ALL, dict(target_modules=['q_proj', 'down_proj']), (_name(DOWN.format(0), 'A'), 'missing')),
    (ALL, dict(target_modules=['q_proj', 'lm_head']), (_name('lm_head', 'A'), 'missing')),
    ({Q.format(1): 4}, dict(layers_to_transform=[1, 2]), (_name(Q.format(2), 'A'), 'missing')),
    (ALL, dict(target_modules=['q_proj', 'embed_tokens']),
     ('target_modules', 'embedding model.embed_tokens')),
    (ALL, dict(target_modules='.*'), ('target_modules', 'embedding model.embed_tokens')),
    # Layers that do not exist.
    ({**ALL, Q.format(3): 4}, {}, (_name(Q.format(3), 'A'), 'not used')),
    (ALL, dict(layers_to_transform=[0, 3]), ('layers_to_transform', '0 to 2', '[0, 3]')),
    (ALL, dict(layers_to_transform=-1), ('layers_to_transform', '0 to 2', '-1')),
    (ALL, dict(layers_to_transform=['0']), ('layers_to_transform', "['0']")),
    (ALL, dict(layers_to_transform=True), ('layers_to_transform', 'True')),
    (ALL, dict(layers_to_transform=0, target_modules='.*q_proj'),
     ('layers_to_transform', 'list of target_modules')),
    (ALL, dict(layers_pattern='layers'), ('layers_pattern needs layers_to_transform',)),
    (ALL, dict(layers_to_transform=0, layers_pattern=3), ('layers_pattern', '3')),
    (ALL, dict(layers_to_transform=0, layers_pattern='('), ('layers_pattern', "'('")),
    # Fields of the wrong type or value.
    (ALL, dict(target_modules={'q_proj': 1}), ('target_modules', "{'q_proj': 1}")),
    (ALL, dict(target_modules=['q_proj', 3]), ('target_modules', '3')),
    (ALL, dict(target_modules='('), ('target_modules', "'('")),
    (ALL, dict(exclude_modules=3), ('exclude_modules', '3')),
    (ALL, dict(rank_pattern={'q_proj': 2.5}), ('rank_pattern', 'positive integers', '2.5')),
    (ALL, dict(rank_pattern={'q_proj': 0}), ('rank_pattern', 'positive integers', '0')),
    (ALL, dict(rank_pattern={'(': 2}), ('rank_pattern', "'('")),
    (ALL, dict(rank_pattern=[2]), ('rank_pattern', '[2]')),
    (ALL, dict(use_rslora='yes'), ('use_rslora', "'yes'")),
], ids=str)
def test_contradictions_are_rejected(ranks, fields, words, tmp_path):
  _write(tmp_path, ranks, **fields)
  with pytest.raises(ValueError) as error:
    _load(tmp_path)
  message = str(error.value)
  assert '\n' not in message and ('adapter_config' in message or 'adapter_model' in message)
  assert [word for word in words if word not in message] == []


@pytest.mark.parametrize('fields', [
    dict(init_lora_weights=False), dict(init_lora_weights='gaussian'),
    dict(init_lora_weights='eva', eva_config={'rho': 2.0}), dict(loftq_config={'loftq_bits': 4}),
    dict(corda_config={'corda_method': 'ipm'}), dict(fan_in_fan_out=True), dict(lora_dropout=0.5),
    dict(runtime_config={'ephemeral_gpu_offload': True}), dict(revision='main'),
    dict(auto_mapping={'base_model_class': 'LlamaForCausalLM'}), dict(task_type=None),
    dict(qalora_group_size=32), dict(layers_to_transform=[]), dict(rank_pattern=None),
], ids=str)
def test_inert_fields_change_nothing(fields, tmp_path):
  products = _write(tmp_path, ALL, **fields)
  added = _added(_load(tmp_path))['layers/attention/query']
  np.testing.assert_allclose(
      added, [2.0 * products[Q.format(i)].T for i in range(3)], atol=1e-5)


@pytest.mark.parametrize('field, value', [
    ('use_dora', True), ('use_qalora', True), ('lora_bias', True), ('modules_to_save', ['score']),
    ('trainable_token_indices', [1]), ('target_parameters', ['w']), ('ensure_weight_tying', True),
    ('alora_invocation_tokens', [1]), ('arrow_config', {'top_k': 2}), ('use_bdlora', {'n': 2}),
    ('layer_replication', [[0, 2]]), ('megatron_config', {'x': 1}), ('monteclora_config', {'n': 2}),
    ('velora_config', {'num_groups': 64}), ('bias', 'lora_only'), ('init_lora_weights', 'olora'),
    ('init_lora_weights', 'pissa_niter_4'), ('init_lora_weights', 'loftq'),
    ('init_lora_weights', 'corda'), ('init_lora_weights', 'lora_ga'), ('peft_type', 'ADALORA'),
])
def test_variants_of_lora_are_rejected(field, value, tmp_path):
  _write(tmp_path, ALL, **{field: value})
  with pytest.raises(ValueError, match=f'^{field} must be ') as error:
    _load(tmp_path)
  assert repr(value) in str(error.value)


def test_tensors_of_integers_are_rejected(tmp_path):
  _write(tmp_path, ALL)
  path = tmp_path / 'adapter_model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  tensors[_name(Q.format(1), 'B')] = tensors[_name(Q.format(1), 'B')].astype(np.int8)
  safetensors.numpy.save_file(tensors, path)
  message = r'1\.self_attn\.q_proj\.lora_B.* must contain floats, got int8'
  with pytest.raises(ValueError, match=message):
    _load(tmp_path)
