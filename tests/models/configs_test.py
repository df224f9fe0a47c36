"""Every field of TransformerConfig has an effect or an error; published sizes are right."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.models import configs, policy
from jaxrl_llm.rl import log_probs
from tests.models import witness

# Untied, so that a head bias is possible.
BASE = configs.TransformerConfig(
    vocab_size=13, num_layers=2, width=16, num_heads=4, num_kv_heads=2, head_dim=4,
    mlp_width=24, max_length=8, tie_embeddings=False, scan_unroll=1, attention_block=8,
)
LENGTH = 6

# field -> (another value, what it must change):
#   params   the shapes of the parameters, and so the function;
#   logits   the logits for the same parameters;
#   program  the order of computation or the stored arrays, for the same logits.
PERTURBATIONS = {
    'vocab_size': (14, 'params'),
    'num_layers': (3, 'params'),
    'width': (20, 'params'),
    'num_heads': (2, 'params'),
    'num_kv_heads': (4, 'params'),
    'head_dim': (6, 'params'),
    'mlp_width': (28, 'params'),
    'norm': ('layer', 'params'),
    'norm_epsilon': (0.1, 'logits'),
    'post_norms': (True, 'params'),
    'qk_norm': (True, 'params'),
    'parallel_residual': (True, 'logits'),
    'positions': ('learned', 'params'),
    'rope_theta': (30.0, 'logits'),
    'rope_local_theta': (30.0, 'logits'),
    'rope_fraction': (0.5, 'logits'),
    'rope_scaling': ('linear', 'logits'),
    'rope_factor': (3.0, 'logits'),
    'rope_low_freq_factor': (1.5, 'logits'),
    'rope_high_freq_factor': (2.5, 'logits'),
    'rope_original_length': (9, 'logits'),
    'sliding_window': (3, 'logits'),
    'layer_pattern': ('s', 'logits'),
    'query_scale': (0.2, 'logits'),
    'attention_softcap': (0.5, 'logits'),
    'logit_softcap': (1.0, 'logits'),
    'embedding_scale': (True, 'logits'),
    'activation': ('gelu', 'params'),
    'tie_embeddings': (True, 'params'),
    'attention_bias': (True, 'params'),
    'output_bias': (True, 'params'),
    'mlp_bias': (True, 'params'),
    'head_bias': (True, 'params'),
    'param_dtype': ('bfloat16', 'dtype'),
    'compute_dtype': ('bfloat16', 'logits'),
    'remat': ('full', 'program'),
    'scan_unroll': (0, 'program'),
    'attention_block': (3, 'program'),
    'max_length': (LENGTH - 1, 'error'),
}
# Fields that have an effect only together with others, which the base gets in their test.
_LLAMA3 = dict(rope_scaling='llama3', rope_factor=8.0, rope_low_freq_factor=1.0,
               rope_high_freq_factor=4.0, rope_original_length=12)
_SLIDING = dict(sliding_window=2, layer_pattern='sf')
TOGETHER_WITH = {
    'rope_scaling': dict(rope_factor=8.0),
    'rope_factor': _LLAMA3, 'rope_low_freq_factor': _LLAMA3, 'rope_high_freq_factor': _LLAMA3,
    'rope_original_length': _LLAMA3,
    'sliding_window': _SLIDING, 'layer_pattern': _SLIDING, 'rope_local_theta': _SLIDING,
}


@functools.lru_cache
def _inputs():
  tokens = np.random.default_rng(0).integers(0, 13, (2, LENGTH)).astype(np.int32)
  positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
  return tokens, positions, np.ones(tokens.shape, bool)


def _logits_fn(config):
  model = policy.make(config)
  tokens, positions, valid = _inputs()

  def logits(params):
    output = model.apply(params, tokens, positions=positions, valid=valid)
    return log_probs.head_logits(output.hidden.astype(jnp.float32), output.head)

  return model, logits


def _shapes(config):
  params = jax.eval_shape(policy.make(config).init, jax.random.key(0))
  return {jax.tree_util.keystr(path): leaf.shape
          for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _program(config):
  model, logits = _logits_fn(config)
  params = jax.eval_shape(model.init, jax.random.key(0))
  return str(jax.make_jaxpr(jax.grad(lambda p: logits(p).sum()))(params))


@functools.lru_cache
def _base(changes=()):
  config = dataclasses.replace(BASE, **dict(changes))
  model, logits = _logits_fn(config)
  params = witness.draw_params(model)
  return config, params, np.asarray(jax.jit(logits)(params)), _shapes(config), _program(config)


def test_every_field_is_perturbed():
  assert set(PERTURBATIONS) == {field.name for field in dataclasses.fields(BASE)}


@pytest.mark.parametrize('name', PERTURBATIONS)
def test_every_field_has_an_effect_or_an_error(name):
  other, effect = PERTURBATIONS[name]
  others = TOGETHER_WITH.get(name, {})
  if name == 'rope_scaling':  # The base cannot have the factor without a scaling.
    base, params, expected, shapes, program = _base()
    config = dataclasses.replace(base, **{name: other}, **others)
  else:
    base, params, expected, shapes, program = _base(tuple(others.items()))
    config = dataclasses.replace(base, **{name: other})
  assert getattr(base, name) != other

  if effect == 'error':
    with pytest.raises(ValueError, match=name):
      jax.eval_shape(_logits_fn(config)[1], params)
    return
  if effect == 'dtype':
    drawn = jax.eval_shape(policy.make(config).init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {jnp.dtype(other)}
    return

  assert (_shapes(config) == shapes) == (effect != 'params')
  if effect == 'params':  # The parameters are used as intended: the witness has the same logits.
    model, logits = _logits_fn(config)
    drawn = witness.draw_params(model)
    _assert_equals_witness(config, drawn, jax.jit(logits)(drawn))
    return

  logits = np.asarray(jax.jit(_logits_fn(config)[1])(params))
  change = np.abs(logits - expected).max()
  if effect == 'logits':
    assert change > 1e-3
    if config.compute_dtype == 'float32':
      _assert_equals_witness(config, params, logits)
  else:
    assert change < 1e-4
    assert _program(config) != program


def _assert_equals_witness(config, params, logits):
  expected = np.stack([witness.forward(config, params, row)[1] for row in _inputs()[0]])
  np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())


def test_max_length_is_the_number_of_learned_positions_and_bounds_the_cache():
  config = dataclasses.replace(BASE, positions='learned')
  assert _shapes(config)["['embedder']['position_embedding']"] == (8, 16)
  model = policy.make(BASE)
  params = jax.eval_shape(model.init, jax.random.key(0))

  def decode(params, slots):
    return model.apply(
        params, jnp.zeros((1, 1), jnp.int32), positions=jnp.zeros((1, 1), jnp.int32),
        valid=jnp.ones((1, slots), bool), cache=model.init_cache(1, slots),
        cache_index=jnp.int32(0))

  jax.eval_shape(functools.partial(decode, slots=8), params)
  with pytest.raises(ValueError, match=r'max_length must be at least .*\(9\), got 8'):
    jax.eval_shape(functools.partial(decode, slots=9), params)


@pytest.mark.parametrize('changes, message', [
    ({'vocab_size': 0}, 'vocab_size must be at least 1, got 0'),
    ({'num_layers': 0}, 'num_layers must be at least 1'),
    ({'max_length': 2**31}, 'max_length must be at most 2147483647, got 2147483648'),
    ({'attention_block': -1}, 'attention_block must be at least 1, got -1'),
    ({'norm': 'batch'}, "norm must be one of .*got 'batch'"),
    ({'positions': 'alibi'}, "positions must be one of .*got 'alibi'"),
    ({'activation': 'tanh'}, "activation must be one of .*got 'tanh'"),
    ({'param_dtype': 'int8'}, "param_dtype must be one of .*got 'int8'"),
    ({'rope_fraction': 0.0}, r'rope_fraction must be in \(0, 1\], got 0.0'),
    ({'rope_fraction': 0.25}, 'head_dim must be even for rotary positions, got 1 rotated'),
    ({'rope_scaling': 'yarn'}, "rope_scaling must be one of .*got 'yarn'"),
    ({'rope_factor': 2.0}, "rope_factor must be 1.0 with rope_scaling='none', got 2.0"),
    ({'rope_scaling': 'linear', 'rope_factor': 0.5}, 'rope_factor must be at least 1, got 0.5'),
    ({'rope_scaling': 'linear', 'rope_original_length': 8},
     "rope_original_length must be 0 with rope_scaling='linear', got 8"),
    (_LLAMA3 | {'rope_low_freq_factor': 4.0}, 'rope_low_freq_factor must be .*got 4.0'),
    (_LLAMA3 | {'rope_original_length': 0}, 'rope_original_length must be at least 1, got 0'),
    ({'positions': 'learned', 'rope_fraction': 0.5},
     "rope_fraction must be 1.0 with positions='learned', got 0.5"),
    ({'layer_pattern': 'fx'}, "layer_pattern must consist of letters .*got 'fx'"),
    ({'layer_pattern': 'fff'}, "layer_pattern .*at most num_layers.*got 'fff'"),
    ({'layer_pattern': 's'}, "sliding_window must be positive where .*got 0 with 's'"),
    ({'sliding_window': 4}, "sliding_window must be positive where .*got 4 with ''"),
    ({'rope_local_theta': 10.0}, 'rope_local_theta needs sliding layers'),
    ({'query_scale': -1.0}, 'query_scale must be non-negative and finite, got -1.0'),
    ({'logit_softcap': float('inf')}, 'logit_softcap must be non-negative and finite, got inf'),
    ({'compute_dtype': 'float16'}, "compute_dtype must be one of .*got 'float16'"),
    ({'remat': 'some'}, "remat must be one of .*got 'some'"),
    ({'num_kv_heads': 3}, r'num_heads must be divisible by num_kv_heads \(3\), got 4'),
    ({'head_dim': 5}, 'head_dim must be even'),
    ({'rope_theta': 0.0}, 'rope_theta must be positive and finite, got 0.0'),
    ({'rope_theta': float('nan')}, 'rope_theta must be positive and finite, got nan'),
    ({'positions': 'learned', 'rope_theta': 5e5}, 'rope_theta must be 10000.0 with .*got 500000.0'),
    ({'norm_epsilon': float('inf')}, 'norm_epsilon must be positive and finite, got inf'),
    ({'tie_embeddings': True, 'head_bias': True}, 'head_bias needs an untied head'),
    ({'scan_unroll': -1}, 'scan_unroll must be at least 0, got -1'),
    ({'num_layers': 4, 'scan_unroll': 3},
     r'num_layers must be divisible by scan_unroll \(3\), got 4'),
])
def test_bad_fields_are_named_in_one_line(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    policy.make(dataclasses.replace(BASE, **changes))
  assert '\n' not in str(error.value)


def test_a_model_keeps_its_own_copy_of_the_config():
  config = dataclasses.replace(BASE)
  model = policy.make(config)
  before = jax.eval_shape(model.init, jax.random.key(0))
  config.width, config.num_layers, config.head_bias = 48, 5, True
  after = jax.eval_shape(model.init, jax.random.key(0))
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, before)


def _count(config):
  params = jax.eval_shape(policy.make(config).init, jax.random.key(0))
  return sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(params))


def _by_arithmetic(*, vocab, layers, width, heads, kv_heads, head_dim, mlp, tied, bias):
  """Number of parameters of a Llama or Qwen2 decoder, from the sizes alone."""
  queries, keys = heads * head_dim, kv_heads * head_dim
  block = width * (queries + 2 * keys) + bias * (queries + 2 * keys) + queries * width
  block += 3 * width * mlp + 2 * width
  return vocab * width * (1 if tied else 2) + layers * block + width


@pytest.mark.parametrize('config, sizes, published', [
    # Qwen2.5 technical report, arXiv 2412.15115, table 1; the totals are those of the
    # released checkpoints (1.54B, 3.09B, 7.61B on their model cards).
    (configs.qwen2_5_1_5b(),
     dict(vocab=151_936, layers=28, width=1536, heads=12, kv_heads=2, mlp=8960, tied=True,
          head_dim=128, bias=True), 1_543_714_304),
    (configs.qwen2_5_3b(),
     dict(vocab=151_936, layers=36, width=2048, heads=16, kv_heads=2, mlp=11_008, tied=True,
          head_dim=128, bias=True), 3_085_938_688),
    (configs.qwen2_5_7b(),
     dict(vocab=152_064, layers=28, width=3584, heads=28, kv_heads=4, mlp=18_944, tied=False,
          head_dim=128, bias=True), 7_615_616_512),
    # 2048·256 + 8·(256·(256 + 2·128) + 256·256 + 3·256·768 + 2·256) + 256.
    (configs.reference_workload(),
     dict(vocab=2048, layers=8, width=256, heads=8, kv_heads=4, mlp=768, tied=True,
          head_dim=32, bias=False), 6_820_096),
])
def test_published_sizes(config, sizes, published):
  assert _by_arithmetic(**sizes) == published
  assert _count(config) == published


def test_published_fields_other_than_sizes():
  for config in (configs.qwen2_5_1_5b(), configs.qwen2_5_3b(), configs.qwen2_5_7b()):
    assert config.rope_theta == 1e6 and config.norm == 'rms' and config.norm_epsilon == 1e-6
    assert config.activation == 'swiglu' and not config.output_bias
    # For accelerators: one block is compiled, and nothing inside it is stored.
    assert (config.compute_dtype, config.remat, config.scan_unroll) == ('bfloat16', 'full', 1)


def test_a_billion_layers_are_rejected_before_they_are_listed():
  config = configs.TransformerConfig(vocab_size=3, num_layers=10**9)
  with pytest.raises(ValueError, match='num_layers must be at most 10000, got 1000000000'):
    config.validate()


@pytest.mark.parametrize('fields, expected', [
    ({'num_layers': 8, 'width': 256, 'num_heads': 8, 'num_kv_heads': 4, 'mlp_width': 768}, 8),
    # SmolLM2-135M: its blocks have 3.5M weights each.
    ({'num_layers': 30, 'width': 576, 'num_heads': 9, 'num_kv_heads': 3, 'head_dim': 64,
      'mlp_width': 1536}, 1),
    ({'num_layers': 6, 'width': 576, 'mlp_width': 1536, 'scan_unroll': 6}, 6),
    ({'num_layers': 6, 'scan_unroll': 2}, 2)])
def test_small_blocks_are_unrolled_unless_a_number_is_given(fields, expected):
  assert configs.TransformerConfig(vocab_size=9, **fields).blocks_per_iteration == expected
