"""bfloat16 is rounded where the model rounds it, and the compiler cannot remove the rounding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.models import configs, layers, lora, policy
from jaxrl_llm.rl import scoring
from jaxrl_llm.types import ModelFns
from tests.models import rollouts

SHAPE = configs.TransformerConfig(
    vocab_size=17, num_layers=2, width=16, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=24,
    max_length=32, compute_dtype='bfloat16',
)
FAMILIES = {
    'llama': {},
    'blocks': {'attention_block': 4, 'remat': 'dots', 'scan_unroll': 1},
    'bfloat16 parameters': {
        'param_dtype': 'bfloat16', 'positions': 'learned', 'norm': 'layer', 'activation': 'gelu',
        'attention_bias': True, 'output_bias': True, 'mlp_bias': True, 'remat': 'full',
    },
    'neox': {
        'norm': 'layer', 'parallel_residual': True, 'rope_fraction': 0.5, 'head_bias': True,
        'activation': 'gelu_exact', 'tie_embeddings': False,
    },
    'gemma': {
        'norm': 'rms_plus_one', 'post_norms': True, 'qk_norm': True, 'embedding_scale': True,
        'activation': 'geglu', 'attention_softcap': 50.0, 'logit_softcap': 30.0,
        'sliding_window': 5, 'layer_pattern': 'sf', 'scan_unroll': 1,
    },
}
# Primitives that compute nothing, or whose inner jaxprs are inspected.
MOVES = frozenset({
    'broadcast_in_dim', 'checkpoint', 'concatenate', 'custom_jvp_call', 'custom_vjp_call',
    'dynamic_slice', 'dynamic_update_slice', 'gather', 'jit', 'pad', 'pjit', 'remat2', 'reshape',
    'scan', 'select_n', 'slice', 'split', 'squeeze', 'stop_gradient', 'transpose',
})


def make(family: str, rank: int = 0, **changes) -> ModelFns:
  """A family's policy, with adapters of that rank."""
  config = lora.LoraConfig(rank=rank, targets='.*') if rank else lora.LoraConfig()
  shape = dataclasses.replace(SHAPE, **{**FAMILIES[family], **changes})
  return lora.make(policy.make(shape), config)


def is_rounding(equation) -> bool:
  """True for a call of `layers.rounded`."""
  inner = jax.core.jaxprs_in_params(equation.params)
  return equation.primitive.name == 'custom_jvp_call' and any(
      step.primitive.name == 'reduce_precision' for jaxpr in inner for step in jaxpr.eqns)


def unrounded(jaxpr) -> list[str]:
  """Returns results in bfloat16 that the compiler may keep in float32, as text."""
  results, previous = [], None
  for equation in jaxpr.eqns:
    before, previous = previous, equation.primitive.name
    if is_rounding(equation):
      continue
    for inner in jax.core.jaxprs_in_params(equation.params):
      results += unrounded(inner)

    name, result = equation.primitive.name, equation.outvars[0]
    if getattr(result.aval, 'dtype', None) != jnp.bfloat16 or not result.aval.ndim:
      continue  # A scalar is a constant here.
    readers = [other for other in jaxpr.eqns if result in other.invars]
    is_rounded_next = name == 'dot_general' and all(map(is_rounding, readers))
    is_reduced = name == 'convert_element_type' and before == 'reduce_precision'
    if name not in MOVES and not is_rounded_next and not is_reduced:
      results.append(str(equation))
  return results


@pytest.mark.parametrize('rank', [0, 2])
@pytest.mark.parametrize('family', FAMILIES)
def test_every_bfloat16_result_is_rounded(family, rank):
  """In scoring and in a decoding step with a cache; traced only, hence on any device."""
  model, data = make(family, rank), rollouts.draw(SHAPE.vocab_size)
  params = jax.eval_shape(model.init, jax.random.key(0))

  def decode(params):
    ones = jnp.ones((8, 1), jnp.int32)
    return model.apply(
        params, ones, positions=ones, valid=jnp.ones((8, 6), bool),
        cache=model.init_cache(8, 6), cache_index=jnp.int32(3)).hidden

  for function in (lambda params: scoring.score(model, params, data), decode):
    traced = jax.make_jaxpr(function)(params).jaxpr
    assert 'bf16' in str(traced)
    assert not unrounded(traced)


def test_float32_is_not_rounded():
  model = make('llama', rank=2, compute_dtype='float32')
  params = jax.eval_shape(model.init, jax.random.key(0))
  score = lambda params: scoring.score(model, params, rollouts.draw(SHAPE.vocab_size))[0].sum()
  assert 'reduce_precision' not in str(jax.make_jaxpr(jax.grad(score))(params))


def test_rounded_is_a_cast():
  """Ties go to even, large values overflow, and the gradient is the cast's."""
  x = jnp.asarray([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8 - 2**-20, 3.4e38, 1e-40, jnp.inf])
  got = layers.rounded(x, jnp.bfloat16)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(
      x.astype(jnp.bfloat16), np.float32))
  assert got[1] == 1 and got[2] == 1 + 2**-6 and got[3] == -1 - 2**-7
  gradient = jax.grad(lambda x: layers.rounded(x, jnp.bfloat16).astype(jnp.float32).sum())(x)
  np.testing.assert_array_equal(gradient, np.ones(x.shape))


def test_elementwise_rounds_once():
  """x sigmoid(x) y in float32; its gradient is of the same precision."""
  x, y = (jax.random.normal(jax.random.key(i), (64,), jnp.bfloat16) for i in range(2))
  function = lambda x, y: jax.nn.silu(x) * y
  wide = x.astype(jnp.float32), y.astype(jnp.float32)
  got = layers.elementwise(function, x, y)
  np.testing.assert_array_equal(
      np.asarray(got, np.float32), np.asarray(function(*wide).astype(jnp.bfloat16), np.float32))
  total = lambda function: lambda x, y: function(x, y).astype(jnp.float32).sum()
  got = jax.grad(total(functools.partial(layers.elementwise, function)))(x, y)
  expected = jax.grad(total(function))(*wide)
  np.testing.assert_allclose(np.asarray(got, np.float32), expected, rtol=2**-8)
