"""Adapters: initially the base's outputs, then those of the merged model, and its gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.models import configs, lora, partial, policy, value
from jaxrl_llm.rl import log_probs, scoring
from tests.models import rollouts as rollouts_lib
from tests.models import witness

SHAPE = configs.TransformerConfig(
    vocab_size=13, num_layers=2, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=24,
    max_length=16, tie_embeddings=False, attention_bias=True,
)
EVERYWHERE = '(attention|mlp)/.*|head'
CONFIG = lora.LoraConfig(rank=3, alpha=6.0, targets=EVERYWHERE)
TOKENS = np.random.default_rng(0).integers(0, 13, (3, 7)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(7, dtype=np.int32), TOKENS.shape)


@functools.cache
def _base(**changes):
  shape = dataclasses.replace(SHAPE, **changes)
  model = policy.make(shape)
  return model, witness.draw_params(model)


def _trained(config, base, seed=1):
  """Parameters with random adapters, including B."""
  adapters = lora.init_adapters(config, base, jax.random.key(0))
  rng = np.random.default_rng(seed)
  draw = lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32)
  return {'base': base, 'adapters': jax.tree.map(draw, adapters)}


def _outputs(model, params):
  output = model.apply(params, TOKENS, positions=POSITIONS, valid=TOKENS >= 0)
  return log_probs.head_logits(output.hidden, output.head)


def _logits(model, params):
  return np.asarray(jax.jit(functools.partial(_outputs, model))(params))


def _paths(tree):
  return {'/'.join(entry.key for entry in path)
          for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize('tied', [False, True])
def test_L7_adapters_that_are_fresh_or_off_leave_the_base_bit_for_bit(tied):
  model, base = _base(tie_embeddings=tied)
  adapted = lora.make(model, CONFIG)
  expected = _logits(model, base)
  fresh = {'base': base, 'adapters': lora.init_adapters(CONFIG, base, jax.random.key(0))}
  np.testing.assert_array_equal(_logits(adapted, fresh), expected)
  trained = _trained(CONFIG, base)
  assert np.abs(_logits(adapted, trained) - expected).max() > 0.1
  off = lora.without_adapters(trained)
  np.testing.assert_array_equal(_logits(adapted, off), expected)
  assert off['base'] is base


def test_L10_merged_weights_W_plus_2_AB_give_the_same_logits():
  model, base = _base()
  assert CONFIG.alpha / CONFIG.rank == 2
  params = _trained(CONFIG, base)
  merged = lora.merge(params, CONFIG)
  kernel, adapter = base['layers']['mlp']['up'], params['adapters']['layers']['mlp']['up']
  for layer in range(2):
    np.testing.assert_allclose(
        merged['layers']['mlp']['up']['kernel'][layer],
        kernel['kernel'][layer] + 2 * adapter['lora_a'][layer] @ adapter['lora_b'][layer],
        atol=1e-6)
  np.testing.assert_allclose(
      merged['head']['kernel'], base['head']['kernel']
      + 2 * params['adapters']['head']['lora_b'] @ params['adapters']['head']['lora_a'], atol=1e-6)

  expected = _logits(lora.make(model, CONFIG), params)
  largest = np.abs(expected).max()
  np.testing.assert_allclose(_logits(model, merged), expected, rtol=0, atol=1e-5 * largest)
  other = dataclasses.replace(CONFIG, alpha=3.0)
  assert np.abs(_logits(model, lora.merge(params, other)) - expected).max() > 1e-2

  again = lora.unmerge(merged, params['adapters'], CONFIG)
  assert again['adapters'] is params['adapters']
  for got, before in zip(jax.tree.leaves(again['base']), jax.tree.leaves(base), strict=True):
    np.testing.assert_allclose(got, before, rtol=0, atol=1e-5)


def test_core_7_7_reference_log_probs_with_adapters_off_are_those_of_a_copy():
  model, base = _base(max_length=32)
  adapted = lora.make(model, CONFIG)
  rollouts = rollouts_lib.draw(13)
  params, copy = _trained(CONFIG, base), jax.tree.map(jnp.copy, base)
  score = lambda model: jax.jit(lambda p: scoring.score(model, p, rollouts, temperature=0.7)[0])
  expected = score(model)(copy)
  off = score(adapted)(lora.without_adapters(params))
  np.testing.assert_allclose(off, expected, rtol=0, atol=1e-5)
  assert np.abs(score(adapted)(params) - expected).max() > 1e-2


@pytest.mark.parametrize('tied', [False, True])
def test_gradients_are_those_of_the_merged_weights_by_the_chain_rule(tied):
  # L(W + s A B):  dL/dA = s G Bᵀ,  dL/dB = s Aᵀ G,  with G = dL/dW at the merged weight.
  model, base = _base(tie_embeddings=tied)
  params, scale = _trained(CONFIG, base), CONFIG.alpha / CONFIG.rank
  weigh = jnp.asarray(np.random.default_rng(2).normal(size=(3, 7, 13)), jnp.float32)
  loss = lambda model: lambda p: jnp.sum(weigh * jax.nn.log_softmax(_outputs(model, p)))
  adapted = lora.make(model, CONFIG)
  gradients = jax.jit(jax.grad(
      lambda adapters: loss(adapted)({**params, 'adapters': adapters})))(params['adapters'])

  untied, _ = _base()
  whole = partial.untie(base) if tied else base
  merged = lora.merge({**params, 'base': whole}, CONFIG)
  if tied:  # The embedding is unchanged, next to a separate head.
    np.testing.assert_array_equal(merged['embedder']['embedding'], base['embedder']['embedding'])
  dense = jax.jit(jax.grad(loss(untied)))(merged)

  for path in _paths(params['adapters']):
    if not path.endswith('lora_a'):
      continue
    names = path.split('/')[:-1]
    at = lambda tree: functools.reduce(lambda node, name: node[name], names, tree)  # noqa: B023
    kernel, adapter, gradient = at(dense)['kernel'], at(params['adapters']), at(gradients)
    left, right = ('lora_b', 'lora_a') if names == ['head'] else ('lora_a', 'lora_b')
    turned = lambda x: jnp.swapaxes(x, -1, -2)
    for side, expected in ((left, scale * kernel @ turned(adapter[right])),
                           (right, scale * turned(adapter[left]) @ kernel)):
      largest = np.abs(expected).max()
      assert largest > 1e-3
      np.testing.assert_allclose(gradient[side], expected, rtol=0, atol=1e-5 * largest)


def test_a_tied_head_has_an_adapter_that_the_embedding_does_not_see():
  model, base = _base(tie_embeddings=True)
  config = dataclasses.replace(CONFIG, targets='head')
  params = _trained(config, base)
  assert _paths(params['adapters']) == {'head/lora_a', 'head/lora_b'}
  assert params['adapters']['head']['lora_b'].shape == (13, 3)
  hidden = lambda model, p: model.apply(p, TOKENS, positions=POSITIONS, valid=TOKENS >= 0).hidden
  np.testing.assert_array_equal(hidden(lora.make(model, config), params), hidden(model, base))
  with pytest.raises(ValueError, match='tied to the embedding cannot be merged.*tie_embeddings'):
    lora.merge(params, config)


@pytest.mark.parametrize('scan_unroll', [0, 1])
def test_cached_decoding_agrees_with_the_whole_sequence(scan_unroll):
  model, base = _base(scan_unroll=scan_unroll)
  adapted, params = lora.make(model, CONFIG), _trained(CONFIG, base)
  expected = _logits(adapted, params)
  valid, cache = np.ones((3, 7), bool), adapted.init_cache(3, 7)
  step = jax.jit(lambda token, t, cache: adapted.apply(
      params, token, positions=jnp.full((3, 1), t), valid=valid, cache=cache, cache_index=t))
  for t in range(7):
    output = step(TOKENS[:, t : t + 1], t, cache)
    cache = output.cache
    np.testing.assert_allclose(
        log_probs.head_logits(output.hidden[:, 0], output.head), expected[:, t], atol=1e-4)


def test_last_layers_have_their_own_adapters():
  model, base = _base()
  whole = _trained(dataclasses.replace(CONFIG, targets='attention/.*|head'), base)
  halves = lambda tree, **rest: {**partial.split({'head': {}, **tree}, 1), **rest}
  split = {'base': partial.split(base, 1), 'adapters': halves(whole['adapters'])}
  assert 'last_layers/attention/query/lora_a' in _paths(split['adapters'])
  adapted = lora.make(model, CONFIG)
  np.testing.assert_allclose(_logits(adapted, split), _logits(adapted, whole), atol=1e-5)
  drawn = lora.init_adapters(
      dataclasses.replace(CONFIG, targets='last_layers/mlp/up'), split['base'], jax.random.key(0))
  assert _paths(drawn) == {'last_layers/mlp/up/lora_a', 'last_layers/mlp/up/lora_b'}
  assert drawn['last_layers']['mlp']['up']['lora_a'].shape == (1, 16, 3)


def test_A_is_uniform_in_one_over_the_root_of_its_inputs_and_B_is_zero():
  abstract = jax.eval_shape(
      policy.make(dataclasses.replace(SHAPE, param_dtype='bfloat16', mlp_width=500)).init,
      jax.random.key(0))
  config = dataclasses.replace(CONFIG, rank=40)
  drawn = lora.init_adapters(config, abstract, jax.random.key(3))
  for path, inputs in ((('layers', 'mlp', 'down'), 500), (('layers', 'attention', 'key'), 16),
                       (('head',), 16)):
    adapter = functools.reduce(lambda node, name: node[name], path, drawn)
    a = np.asarray(adapter['lora_a'])
    assert a.dtype == adapter['lora_b'].dtype == np.float32 and not adapter['lora_b'].any()
    assert np.abs(a).max() <= inputs**-0.5
    # The standard deviation of a uniform draw in ±c is c / √3; over 640 numbers or more.
    assert a.std() == pytest.approx((3 * inputs) ** -0.5, rel=0.1)
    assert abs(a.mean()) < 0.15 * inputs**-0.5


def test_the_draw_of_a_layer_does_not_depend_on_the_others():
  _, base = _base()
  draw = lambda **changes: lora.init_adapters(
      dataclasses.replace(CONFIG, **changes), base, jax.random.key(0))
  attention = draw()['layers']['attention']
  alone = draw(targets='attention/key')['layers']['attention']
  assert alone.keys() == {'key'}
  np.testing.assert_array_equal(alone['key']['lora_a'], attention['key']['lora_a'])
  assert (attention['key']['lora_a'] != attention['value']['lora_a']).all()  # Of one shape.


@pytest.mark.parametrize('targets, expected', [
    ('attention/(query|value)', {'attention/query', 'attention/value'}),
    ('query', {'attention/query'}),
    ('mlp/.*', {'mlp/gate', 'mlp/up', 'mlp/down'}),
    ('layers/attention/output', {'attention/output'}),
])
def test_targets_are_whole_names_at_a_paths_end(targets, expected):
  _, base = _base()
  drawn = lora.init_adapters(dataclasses.replace(CONFIG, targets=targets), base, jax.random.key(0))
  layers = {path.rpartition('/')[0] for path in _paths(drawn)}
  assert layers == {f'layers/{name}' for name in expected}


@pytest.mark.parametrize('targets', ['quer', 'uery', 'attention', 'norm', 'value_head', 'embedder'])
def test_targets_that_match_nothing_are_an_error_that_lists_the_layers(targets):
  model = lora.make(value.make(SHAPE), dataclasses.replace(CONFIG, targets=targets))
  message = rf"must match a layer, got '{targets}'; there are layers/"
  with pytest.raises(ValueError, match=message) as error:
    jax.eval_shape(model.init, jax.random.key(0))
  assert '\n' not in str(error.value) and 'head' not in str(error.value).split('there are')[1]


def test_every_field_has_an_effect_or_an_error():
  model, base = _base()
  assert {f.name for f in dataclasses.fields(lora.LoraConfig)} == {'rank', 'alpha', 'targets'}
  shapes = lambda config: jax.tree.map(
      lambda leaf: leaf.shape, jax.eval_shape(lora.make(model, config).init, jax.random.key(0)))
  for name, other in (('rank', 4), ('targets', 'head')):
    assert shapes(dataclasses.replace(CONFIG, **{name: other})) != shapes(CONFIG)

  params = _trained(CONFIG, base)
  louder = lora.make(model, dataclasses.replace(CONFIG, alpha=7.0))
  assert np.abs(_logits(louder, params) - _logits(lora.make(model, CONFIG), params)).max() > 1e-2

  # With rank 0 the model is the base, and the other fields must keep their defaults.
  assert lora.make(model, lora.LoraConfig()) is model
  for changes in ({'alpha': 2.0}, {'targets': 'head'}):
    with pytest.raises(ValueError, match=r'^config\.lora\..* must be .* with rank=0'):
      lora.make(model, lora.LoraConfig(**changes))


@pytest.mark.parametrize('changes, message', [
    ({'rank': -1}, r'config\.lora\.rank must be at least 0, got -1'),
    ({'alpha': 0.0}, 'alpha must be positive and finite, got 0.0'),
    ({'alpha': float('nan')}, 'alpha must be positive and finite, got nan'),
    ({'targets': '(query'}, r"targets must be a regular expression, got '\(query'"),
])
def test_bad_values_give_one_line(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    lora.make(_base()[0], dataclasses.replace(CONFIG, **changes))
  assert '\n' not in str(error.value)


def test_an_adapter_without_a_layer_is_named():
  model, base = _base()
  params = _trained(CONFIG, base)
  params['adapters'] = {'layers': {'attention': {'quary': params['adapters']['head']}}}
  with pytest.raises(ValueError, match='an adapter for layers/attention/quary, which the model'):
    _logits(lora.make(model, CONFIG), params)


def test_merging_keeps_the_dtype_of_a_kernel():
  _, base = _base()
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base)
  merged = lora.merge(_trained(CONFIG, half), CONFIG)
  assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}


def test_the_config_may_change_after_the_model_was_made():
  model, base = _base()
  config = dataclasses.replace(CONFIG)
  adapted, params = lora.make(model, config), _trained(CONFIG, base)
  before = _logits(adapted, params)
  config.alpha = 60.0
  np.testing.assert_array_equal(_logits(adapted, params), before)
