"""PEFT's format: saved adapters add to their weights what merging adds to ours."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.flax
import safetensors.numpy

from jaxrl_llm.models import configs, lora, partial, policy
from jaxrl_llm.models.pretrained import gpt2, gpt_neox, llama, mapping, peft, qwen
from tests.models import witness

LLAMA = configs.TransformerConfig(
    vocab_size=29, num_layers=2, width=16, num_heads=4, num_kv_heads=2, head_dim=6, mlp_width=24,
    max_length=32, tie_embeddings=False)
QWEN = dataclasses.replace(LLAMA, attention_bias=True, tie_embeddings=True)
NEOX = dataclasses.replace(
    LLAMA, num_kv_heads=4, head_dim=8, norm='layer', activation='gelu_exact', attention_bias=True,
    output_bias=True, mlp_bias=True, parallel_residual=True, rope_fraction=0.5)
GPT2 = dataclasses.replace(
    NEOX, head_dim=6, positions='learned', rope_fraction=1.0, activation='gelu',
    parallel_residual=False, tie_embeddings=True)
FAMILIES = {
    'llama': (llama, LLAMA), 'qwen2': (qwen, QWEN), 'gpt2': (gpt2, GPT2),
    'gpt_neox': (gpt_neox, NEOX),
}
EVERYWHERE = lora.LoraConfig(rank=3, alpha=6.0, targets='(attention|mlp)/.*|head')
SOME = lora.LoraConfig(rank=2, alpha=5.0, targets='attention/(query|value)|mlp/down')


def _params(config, lora_config):
  """A base and random adapters, float32 on the host."""
  base = witness.draw_params(policy.make(config))
  adapters = lora.init_adapters(lora_config, base, jax.random.key(0))
  rng = np.random.default_rng(1)
  draw = lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32)
  return {'base': base, 'adapters': jax.tree.map(draw, adapters)}


def _saved(tmp_path, name='llama', lora_config=EVERYWHERE):
  _, config = FAMILIES[name]
  params = _params(config, lora_config)
  peft.save(
      tmp_path / 'a', params['adapters'], lora_config, config, model_type=name, base='there')
  return tmp_path / 'a', params


def _tensors(directory):
  return safetensors.numpy.load_file(directory / 'adapter_model.safetensors')


def _fields(directory, **changes):
  path = directory / 'adapter_config.json'
  fields = json.loads(path.read_text()) | changes
  path.write_text(json.dumps(fields))
  return fields


def _assert_identical(tree, expected):
  assert jax.tree.structure(tree) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected)):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def _their_weights(family, config, params):
  """{module: weight as [out, in]} of their model."""
  out = {}
  leaves = mapping.flatten(params)
  for entry in mapping.with_prefix(family.entries(config), family.PREFIX):
    if entry.theirs.endswith('.weight') and all(path.endswith('kernel') for path in entry.ours):
      for i in range(2 if '{i}' in entry.theirs else 1):
        parts = [np.asarray(leaves[path][i] if '{i}' in entry.theirs else leaves[path])
                 for path in entry.ours]
        weight = entry.join(*parts)
        conv = family is gpt2 and '{i}' in entry.theirs
        out[entry.theirs.replace('{i}', str(i)).removesuffix('.weight')] = (
            weight.T if conv else weight)
  # The tensor has an older name than the module.
  return {name.replace('embed_out', 'lm_head'): weight for name, weight in out.items()}


@pytest.mark.parametrize('lora_config', [EVERYWHERE, SOME], ids=['everywhere', 'some'])
@pytest.mark.parametrize('name', FAMILIES)
def test_saved_adapters_add_the_same_as_merging(tmp_path, name, lora_config):
  family, config = FAMILIES[name]
  directory, params = _saved(tmp_path, name, lora_config)
  untied = dataclasses.replace(config, tie_embeddings=False)
  if config.tie_embeddings:
    params['base'] = partial.untie(params['base'])
  before = _their_weights(family, untied, params['base'])
  after = _their_weights(family, untied, lora.merge(params, lora_config))

  tensors, fields = _tensors(directory), _fields(directory)
  adapted = {key.removeprefix('base_model.model.').rpartition('.lora_')[0] for key in tensors}
  assert adapted == {key for key in before if not np.array_equal(before[key], after[key])}

  for module in adapted:
    a, b = (tensors[f'base_model.model.{module}.lora_{side}.weight'] for side in 'AB')
    suffix = next((key for key in fields['rank_pattern'] if module.endswith(f'.{key}')), None)
    assert a.shape[0] == fields['rank_pattern'].get(suffix, lora_config.rank)
    scale = fields['alpha_pattern'].get(suffix, fields['lora_alpha']) / a.shape[0]
    np.testing.assert_allclose(scale * b @ a, after[module] - before[module], atol=2e-5)
    matches = [t for t in fields['target_modules'] if module == t or module.endswith(f'.{t}')]
    assert len(matches) == 1

  with safetensors.safe_open(directory / 'adapter_model.safetensors', 'np') as file:
    assert file.metadata() == {'format': 'pt'}


def test_names_and_shapes(tmp_path):
  directory, _ = _saved(tmp_path)
  shapes = {name: tensor.shape for name, tensor in _tensors(directory).items()}
  layer = 'base_model.model.model.layers.1'
  expected = {
      f'{layer}.self_attn.q_proj.lora_A.weight': (3, 16),
      f'{layer}.self_attn.q_proj.lora_B.weight': (24, 3),
      f'{layer}.self_attn.k_proj.lora_B.weight': (12, 3),
      f'{layer}.self_attn.o_proj.lora_A.weight': (3, 24),
      f'{layer}.mlp.down_proj.lora_A.weight': (3, 24),
      'base_model.model.lm_head.lora_A.weight': (3, 16),
      'base_model.model.lm_head.lora_B.weight': (29, 3),
  }

  assert {name: shapes[name] for name in expected} == expected
  assert len(shapes) == 2 * (2 * 7 + 1)

  fields = _fields(directory)
  assert fields['target_modules'][:2] == ['self_attn.q_proj', 'self_attn.k_proj']
  assert (fields['r'], fields['lora_alpha'], fields['fan_in_fan_out']) == (3, 6, False)
  assert fields['base_model_name_or_path'] == 'there' and fields['rank_pattern'] == {}


def test_fused_modules_get_the_sum_of_ranks(tmp_path):
  directory, _ = _saved(tmp_path, 'gpt2', SOME)
  fields, tensors = _fields(directory), _tensors(directory)
  assert fields['fan_in_fan_out'] and fields['r'] == 2
  assert fields['rank_pattern'] == {'attn.c_attn': 6}
  assert fields['alpha_pattern'] == {'attn.c_attn': 15}
  assert fields['target_modules'] == ['attn.c_attn', 'mlp.c_proj']
  name = 'base_model.model.transformer.h.0.attn.c_attn.lora_{}.weight'
  a, b = tensors[name.format('A')], tensors[name.format('B')]
  assert a.shape == (6, 16) and b.shape == (72, 6)
  assert not a[2:4].any() and not b[24:48].any() and not b[:24, 2:].any()  # No adapter of keys.


@pytest.mark.parametrize('lora_config', [EVERYWHERE, SOME], ids=['everywhere', 'some'])
@pytest.mark.parametrize('name', FAMILIES)
def test_loading_gives_back_what_was_saved_bit_for_bit(tmp_path, name, lora_config):
  _, config = FAMILIES[name]
  directory, params = _saved(tmp_path, name, lora_config)
  loaded, adapters = peft.load(directory, config, model_type=name)
  _assert_identical(adapters, params['adapters'])
  assert (loaded.rank, loaded.alpha) == (lora_config.rank, lora_config.alpha)
  drawn = lora.init_adapters(loaded, params['base'], jax.random.key(0))
  assert jax.tree.structure(drawn) == jax.tree.structure(adapters)


@pytest.mark.parametrize('name', ['gpt_neox', 'gpt2'])
def test_a_head_with_its_old_name_or_next_to_its_base_is_read(tmp_path, name):
  _, config = FAMILIES[name]
  directory, params = _saved(tmp_path, name)
  head = 'base_model.model.lm_head.'

  def rename(tensors):
    if name == 'gpt_neox':
      for side in 'AB':
        tensors[f'base_model.model.embed_out.lora_{side}.weight'] = tensors.pop(
            f'{head}lora_{side}.weight')
    else:
      tensors[f'{head}base_layer.weight'] = np.zeros((29, 16), np.float32)

  _edited(directory, rename)
  _assert_identical(peft.load(directory, config, model_type=name)[1], params['adapters'])
  # An enlarged head is not the base's.
  _edited(directory, lambda t: t.update({f'{head}base_layer.weight': np.zeros((30, 16), 'f4')}))
  with pytest.raises(ValueError, match='lm_head.base_layer.weight in .* is not used'):
    peft.load(directory, config, model_type=name)


def test_fresh_adapters_are_restored(tmp_path):
  base = witness.draw_params(policy.make(GPT2))
  fresh = jax.device_get(lora.init_adapters(SOME, base, jax.random.key(0)))
  peft.save(tmp_path / 'a', fresh, SOME, GPT2, model_type='gpt2')
  _assert_identical(peft.load(tmp_path / 'a', GPT2, model_type='gpt2')[1], fresh)


@pytest.mark.parametrize('fields, scale', [
    ({}, 2.0), ({'alpha_pattern': {'attn.c_attn': 3}}, 0.75), ({'use_rslora': True}, 4.0)])
def test_an_adapter_of_a_fused_module_becomes_one_per_kernel(tmp_path, fields, scale):
  # r = 4 and alpha = 8: the scale is 8 / 4, or that of the pattern, or 8 / √4.
  rng = np.random.default_rng(0)
  name = 'base_model.model.transformer.h.{}.attn.c_attn.lora_{}.weight'
  tensors = {}
  for i in range(2):
    tensors[name.format(i, 'A')] = rng.normal(size=(4, 16)).astype(ml_dtypes.bfloat16)
    tensors[name.format(i, 'B')] = rng.normal(size=(72, 4)).astype(ml_dtypes.bfloat16)
  safetensors.flax.save_file(
      jax.tree.map(jnp.asarray, tensors), tmp_path / 'adapter_model.safetensors')
  (tmp_path / 'adapter_config.json').write_text(json.dumps(
      {'peft_type': 'LORA', 'r': 4, 'lora_alpha': 8, 'use_dora': False, 'lora_dropout': 0.1,
       'modules_to_save': None, 'target_modules': ['c_attn'], **fields}))

  config, adapters = peft.load(tmp_path, GPT2, model_type='gpt2')
  assert config.targets == 'attention/key|attention/query|attention/value' and config.rank == 4
  base = witness.draw_params(policy.make(GPT2))
  added = jax.tree.map(
      lambda x, y: x - y, lora.merge({'base': base, 'adapters': adapters}, config), base)
  for i in range(2):
    a, b = (np.asarray(tensors[name.format(i, side)], np.float32) for side in 'AB')
    expected = np.split(scale * (b @ a).T, 3, axis=1)
    for layer, difference in zip(('query', 'key', 'value'), expected, strict=True):
      kernel = added['layers']['attention'][layer]['kernel'][i]
      np.testing.assert_allclose(kernel, difference, atol=1e-5)


def test_adapters_without_a_matching_module_are_named(tmp_path):
  adapters = _params(LLAMA, dataclasses.replace(SOME, targets='mlp/.*'))['adapters']
  with pytest.raises(ValueError, match='has no module for the adapter of layers/mlp/gate'):
    peft.save(tmp_path / 'a', adapters, SOME, GPT2, model_type='gpt2')
  deeper = dataclasses.replace(LLAMA, num_layers=3)
  message = r'layers/mlp/gate is \[2, 16, 2\], \[2, 2, 24\], for a kernel of \[3, 16, 24\]'
  with pytest.raises(ValueError, match=message):
    peft.save(tmp_path / 'a', adapters, SOME, deeper, model_type='llama')
  head = _params(LLAMA, dataclasses.replace(SOME, targets='head'))['adapters']
  smaller = dataclasses.replace(LLAMA, vocab_size=28)
  with pytest.raises(ValueError, match=r'adapter of head is .* for a kernel of \[28, 16\]'):
    peft.save(tmp_path / 'a', head, SOME, smaller, model_type='llama')
  assert not (tmp_path / 'a').exists()


def test_split_layers_must_be_joined(tmp_path):
  adapters = _params(LLAMA, EVERYWHERE)['adapters']
  split = partial.split(adapters, 1)
  with pytest.raises(ValueError, match='are split off: join them'):
    peft.save(tmp_path / 'a', split, EVERYWHERE, LLAMA, model_type='llama')
  peft.save(tmp_path / 'a', partial.join(split), EVERYWHERE, LLAMA, model_type='llama')
  _assert_identical(peft.load(tmp_path / 'a', LLAMA, model_type='llama')[1], adapters)


@pytest.mark.parametrize('changes, message', [
    ({'peft_type': 'IA3'}, "peft_type must be 'LORA', got 'IA3'"),
    ({'r': 0}, 'r must be a positive integer, got 0'),
    ({'r': True}, 'r must be a positive integer, got True'),
    ({'lora_alpha': None}, 'lora_alpha must be a positive number, got None'),
    ({'alpha_pattern': {'(': 1}}, r"must have regular expressions as names, got '\(': missing \)"),
    ({'alpha_pattern': {'q{99999999999}': 1}}, 'must have regular expressions as names'),
    ({'alpha_pattern': {'q_proj': 'x'}}, "must contain positive numbers, got 'x' for 'q_proj'"),
    ({'alpha_pattern': {'q_proj': None}}, "must contain positive numbers, got None for 'q_proj'"),
    ({'bias': 'all'}, "bias must be 'none', got 'all'"),
    ({'use_dora': True}, 'use_dora must be off, as it is not supported, got True'),
    ({'modules_to_save': ['score']}, r"modules_to_save must be off.*got \['score'\]"),
    ({'a_field_of_tomorrow': 1}, 'a_field_of_tomorrow must be off'),
    ({'init_lora_weights': 'pissa'}, "init_lora_weights must be one of .*got 'pissa'"),
    ({'alpha_pattern': [1]}, r'alpha_pattern must be an object, got \[1\]'),
])
def test_fields_that_change_the_result_are_rejected_by_name(tmp_path, changes, message):
  directory, _ = _saved(tmp_path)
  _fields(directory, **changes)
  with pytest.raises(ValueError, match=message) as error:
    peft.load(directory, LLAMA, model_type='llama')
  assert '\n' not in str(error.value) and 'adapter_config.json' in str(error.value)


def _edited(directory, edit):
  tensors = _tensors(directory)
  edit(tensors)
  safetensors.numpy.save_file(tensors, directory / 'adapter_model.safetensors')


QUERY = 'base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight'


@pytest.mark.parametrize('edit, message', [
    (lambda t: t.pop(QUERY.format('B')), r'1\.self_attn\.q_proj\.lora_B\.weight is missing'),
    (lambda t: t.update({'score.weight': np.zeros(2, np.float32)}), 'score.weight in .* not used'),
    (lambda t: t.update({QUERY.format('A'): np.zeros((3, 15), np.float32)}),
     r'q_proj\.lora_A\.weight in .* has shape \[3, 15\], the model needs \[3, 16\]'),
    (lambda t: t.update({QUERY.format('B'): np.zeros(24, np.float32)}),
     r'q_proj\.lora_B\.weight in .* has shape \[24\], the model needs \[24, 3\]'),
    (lambda t: t.update({QUERY.format('A'): np.zeros((2, 16), np.float32),
                         QUERY.format('B'): np.zeros((24, 2), np.float32)}),
     r'1\.self_attn\.q_proj\.lora_A\.weight in .* has shape \[2, 16\], .* \[3, 16\] with r = 3'),
    (lambda t: t.clear(), 'contains no adapter'),
])
def test_tensors_that_do_not_fit_are_named(tmp_path, edit, message):
  directory, _ = _saved(tmp_path)
  _edited(directory, edit)
  with pytest.raises(ValueError, match=message) as error:
    peft.load(directory, LLAMA, model_type='llama')
  assert '\n' not in str(error.value) and 'adapter_model.safetensors' in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
  directory, _ = _saved(tmp_path)
  whole = (directory / 'adapter_model.safetensors').read_bytes()
  (directory / 'adapter_model.safetensors').write_bytes(whole[:-10])
  with pytest.raises(ValueError, match='adapter_model.safetensors cannot be read'):
    peft.load(directory, LLAMA, model_type='llama')
  (directory / 'adapter_model.safetensors').unlink()
  with pytest.raises(ValueError, match='adapter_model.safetensors cannot be read'):
    peft.load(directory, LLAMA, model_type='llama')
  (directory / 'adapter_config.json').write_text('{')
  with pytest.raises(ValueError, match='adapter_config.json cannot be read'):
    peft.load(directory, LLAMA, model_type='llama')
  with pytest.raises(ValueError, match='adapter_config.json cannot be read'):
    peft.load(tmp_path / 'nowhere', LLAMA, model_type='llama')


def test_a_directory_in_use_is_not_overwritten(tmp_path):
  directory, params = _saved(tmp_path)
  with pytest.raises(ValueError, match='new or empty directory'):
    peft.save(directory, params['adapters'], EVERYWHERE, LLAMA, model_type='llama')
