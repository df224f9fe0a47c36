"""The trunk against NumPy: with padding, a cache, unrolling, rematerialisation and meshes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.models import configs, policy, transformer
from jaxrl_llm.rl import log_probs
from tests.models import witness

LLAMA = configs.TransformerConfig(
    vocab_size=13, num_layers=2, width=16, num_heads=4, num_kv_heads=2, head_dim=4,
    mlp_width=24, max_length=16,
)
GPT = dataclasses.replace(
    LLAMA, norm='layer', positions='learned', activation='gelu', num_kv_heads=4,
    attention_bias=True, output_bias=True, mlp_bias=True,
)
UNTIED = dataclasses.replace(
    LLAMA, tie_embeddings=False, head_bias=True, attention_bias=True, rope_theta=50.0,
    norm_epsilon=0.01, head_dim=6,
)
NEOX = dataclasses.replace(
    GPT, positions='rope', rope_fraction=0.5, parallel_residual=True, activation='gelu_exact',
    tie_embeddings=False,
)
# Sliding layers with a window of two tokens (shorter than the rows) and their own frequencies.
GEMMA = dataclasses.replace(
    LLAMA, num_layers=3, norm='rms_plus_one', post_norms=True, qk_norm=True, activation='geglu',
    embedding_scale=True, query_scale=0.3, attention_softcap=2.0, logit_softcap=5.0,
    sliding_window=2, layer_pattern='sf', rope_local_theta=30.0, rope_scaling='linear',
    rope_factor=4.0, scan_unroll=1,
)
FAMILIES = {'llama': LLAMA, 'gpt': GPT, 'untied': UNTIED, 'neox': NEOX, 'gemma': GEMMA}


@functools.lru_cache
def _model(name):
  """(config, model, params, jitted apply) of one of the families."""
  config = FAMILIES[name]
  model = policy.make(config)
  params = witness.draw_params(model)
  return config, model, params, jax.jit(model.apply)


def _rows(seed=0):
  """Three rows of 7, 4 and 1 tokens."""
  rng = np.random.default_rng(seed)
  return [rng.integers(0, 13, n) for n in (7, 4, 1)]


def _padded(rows, side, filler):
  """tokens, positions, valid [3, 9] with padding left, right, or left and in between."""
  columns = {
      'left': lambda n: np.arange(9 - n, 9),
      'right': lambda n: np.arange(n),
      'between': lambda n: np.sort(np.random.default_rng(n).choice(np.arange(1, 9), n, False)),
  }[side]
  tokens = np.array(filler, np.int32).repeat(27).reshape(3, 9) if np.isscalar(filler) else filler
  tokens = np.array(tokens, np.int32)
  valid = np.zeros((3, 9), bool)
  for i, row in enumerate(rows):
    where = columns(len(row))
    tokens[i, where], valid[i, where] = row, True
  positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
  return tokens, positions.astype(np.int32), valid


def _logits(output):
  return np.asarray(log_probs.head_logits(output.hidden, output.head))


@pytest.mark.parametrize('name', FAMILIES)
def test_forward_equals_the_witness_for_any_padding(name):
  config, _, params, apply = _model(name)
  rows = _rows()
  expected = [witness.forward(config, params, row)[1] for row in rows]
  random_filler = np.random.default_rng(5).integers(0, 13, (3, 9))
  # A sliding window counts slots, including padding between tokens.
  for side in ('left', 'right') + (('between',) if not config.sliding_window else ()):
    for filler in (0, 12, random_filler):
      tokens, positions, valid = _padded(rows, side, filler)
      logits = _logits(apply(params, tokens, positions=positions, valid=valid))
      assert np.isfinite(logits).all()
      for i in range(len(rows)):
        scale = np.abs(expected[i]).max()
        np.testing.assert_allclose(logits[i][valid[i]], expected[i], atol=1e-5 * scale)


def test_the_gradient_does_not_depend_on_padding():
  _, _, params, apply = _model('llama')
  rows = _rows()

  @jax.jit
  @jax.grad
  def gradient(params, tokens, positions, valid, weights):
    output = apply(params, tokens, positions=positions, valid=valid)
    return jnp.sum(jnp.where(valid[..., None], weights * jnp.square(output.hidden), 0.0))

  def of(side, filler):
    tokens, positions, valid = _padded(rows, side, filler)
    # The weight of a real token does not depend on its slot.
    weights = np.zeros((3, 9, 1), np.float32)
    for i, row in enumerate(rows):
      weights[i, valid[i], 0] = np.arange(1, len(row) + 1)
    return gradient(params, tokens, positions, valid, weights)

  expected = of('left', 0)
  largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
  for other in (of('left', 7), of('right', 3)):
    for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(expected)):
      np.testing.assert_allclose(a, b, atol=1e-5 * largest)


@pytest.mark.parametrize('name, scan_unroll, stacked', [
    ('llama', 0, False), ('llama', 1, True), ('gpt', 2, False), ('gpt', 1, True),
    ('neox', 0, False), ('gemma', 0, False), ('gemma', 1, True)])
def test_cached_decode_equals_the_full_forward(name, scan_unroll, stacked):
  config, _, params, apply = _model(name)
  model = policy.make(dataclasses.replace(config, scan_unroll=scan_unroll))
  tokens, positions, valid = _padded(_rows(), 'left', 5)
  more = np.random.default_rng(1).integers(0, 13, (3, 4)).astype(np.int32)
  tokens = np.concatenate([tokens, more], axis=1)
  positions = np.concatenate([positions, positions[:, -1:] + np.arange(1, 5)], axis=1)
  valid = np.concatenate([valid, np.ones((3, 4), bool)], axis=1)
  full = apply(params, tokens, positions=positions, valid=valid).hidden

  cache = model.init_cache(3, 13)
  assert isinstance(cache, dict) == stacked
  step = jax.jit(model.apply)
  # Slots that are written later may be valid already, since attention is causal.
  hidden = []
  for start, stop in ((0, 5), (5, 10), (10, 11), (11, 12), (12, 13)):
    output = step(
        params, tokens[:, start:stop], positions=positions[:, start:stop], valid=valid,
        cache=cache, cache_index=jnp.int32(start))
    cache = output.cache
    hidden.append(output.hidden)

  scale = np.abs(full).max()
  np.testing.assert_allclose(
      np.concatenate(hidden, axis=1)[valid], np.asarray(full)[valid], atol=1e-4 * scale)


@pytest.mark.parametrize('name, scan_unroll, attention_block', [
    ('llama', 0, 64), ('llama', 1, 2), ('gpt', 1, 64), ('gemma', 0, 3), ('gemma', 1, 64)])
def test_C24_siblings_equal_separate_forwards(name, scan_unroll, attention_block):
  config, _, params, apply = _model(name)
  model = policy.make(dataclasses.replace(
      config, scan_unroll=scan_unroll, attention_block=attention_block))
  tokens, positions, valid = _padded(_rows(), 'left', 7)
  width, count, more = tokens.shape[1], 4, 2
  random = np.random.default_rng(2)

  def alone(sequence, token):
    """Hidden states of the last token, by a forward pass without a cache."""
    rows = np.concatenate([tokens, *sequence, token[:, None]], axis=1)
    extra = rows.shape[1] - width
    return np.asarray(apply(
        params, rows, valid=np.concatenate([valid, np.ones((3, extra), bool)], axis=1),
        positions=np.concatenate(
            [positions, positions[:, -1:] + np.arange(1, extra + 1)], axis=1)).hidden)[:, -1]

  step = jax.jit(model.apply, static_argnames='siblings')
  prefill = np.concatenate([valid, np.ones((3, more + count), bool)], axis=1)
  cache = step(params, tokens, positions=positions, valid=prefill, cache_index=jnp.int32(0),
               cache=model.init_cache(3, width + more + count)).cache
  sequence = []
  for length in range(3):
    candidates = random.integers(0, 13, (3, count)).astype(np.int32)
    last = sequence[-1:]  # The token chosen before, and the candidates after it.
    new = np.concatenate([*last, candidates], axis=1)
    start = positions[:, -1:] + length
    output = step(
        params, new, valid=prefill, cache=cache, siblings=count,
        positions=np.concatenate([*([start] if last else []), np.tile(start + 1, count)], axis=1),
        cache_index=jnp.int32(width + length - len(last)))
    cache, hidden = output.cache, np.asarray(output.hidden)

    expected = np.stack([alone(sequence, row) for row in candidates.T], axis=1)
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(hidden[:, -count:], expected, atol=tolerance)
    if last:
      np.testing.assert_allclose(
          hidden[:, 0], alone(sequence[:-1], last[0][:, 0]), atol=tolerance)
    sequence.append(candidates[:, length : length + 1])

  with pytest.raises(ValueError, match='siblings must be 0 without a cache, got 2'):
    model.apply(params, tokens, positions=positions, valid=valid, siblings=2)


@pytest.mark.parametrize('attention_block', [64, 4])
@pytest.mark.parametrize('name', ['llama', 'gpt', 'gemma'])
def test_packed_segments_do_not_see_each_other(name, attention_block):
  config, _, params, apply = _model(name)
  apply = jax.jit(policy.make(dataclasses.replace(config, attention_block=attention_block)).apply)
  rows = _rows()
  expected = [witness.forward(config, params, row)[1] for row in rows]
  # One row of 14: 7 + 4 + 1 tokens and two of padding.
  tokens = np.concatenate([*rows, [3, 3]])[None].astype(np.int32)
  positions = np.concatenate([np.arange(n) for n in (7, 4, 1, 2)])[None]
  segments = np.repeat([1, 2, 3, 0], [7, 4, 1, 2])[None]

  logits = _logits(apply(
      params, tokens, positions=positions, valid=segments > 0, segments=segments))[0]
  for start, row in zip((0, 7, 11), expected):
    np.testing.assert_allclose(
        logits[start : start + len(row)], row, atol=1e-5 * np.abs(row).max())

  # Without segments the second sequence sees the first.
  blurred = _logits(apply(params, tokens, positions=positions, valid=segments > 0))[0]
  assert np.abs(blurred[7:11] - logits[7:11]).max() > 0.01


def test_segments_with_a_cache_are_rejected():
  _, model, params, _ = _model('llama')
  tokens = np.zeros((1, 2), np.int32)
  with pytest.raises(ValueError, match='segments must be None with a cache'):
    model.apply(
        params, tokens, positions=tokens, valid=np.ones((1, 4), bool), segments=tokens,
        cache=model.init_cache(1, 4), cache_index=jnp.int32(0))


@pytest.mark.parametrize('name', ['llama', 'gemma'])
@pytest.mark.parametrize('scan_unroll', [0, 1])
def test_the_last_layers_may_be_a_separate_stack(name, scan_unroll):
  config, _, params, _ = _model(name)
  model = policy.make(dataclasses.replace(config, scan_unroll=scan_unroll))
  cut = config.num_layers - 1
  part = lambda *where: jax.tree.map(lambda leaf: leaf[slice(*where)], params['layers'])
  apart = {**params, 'layers': part(None, cut), 'last_layers': part(cut, None)}

  tokens, positions, valid = _padded(_rows(), 'left', 0)
  apply = jax.jit(model.apply)
  whole = apply(params, tokens, positions=positions, valid=valid)
  split = apply(apart, tokens, positions=positions, valid=valid)
  np.testing.assert_allclose(split.hidden, whole.hidden, atol=1e-5)

  with_cache = lambda p: apply(
      p, tokens, positions=positions, valid=valid, cache=model.init_cache(3, 9),
      cache_index=jnp.int32(0))
  one, two = with_cache(params), with_cache(apart)
  np.testing.assert_allclose(two.hidden, one.hidden, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.cache, two.cache)


def test_adapters_equal_merged_weights():
  config, model, params, apply = _model('untied')
  rng = np.random.default_rng(3)
  adapted, merged = jax.tree.map(lambda x: x, (params, params))
  for path in (('attention', 'query'), ('mlp', 'down')):
    old = params['layers'][path[0]][path[1]]
    layers_, inputs, outputs = old['kernel'].shape
    a, b = rng.normal(size=(layers_, inputs, 2)), rng.normal(size=(layers_, 2, outputs))
    adapted['layers'][path[0]][path[1]] = {**old, 'lora_a': a, 'lora_b': b}
    merged['layers'][path[0]][path[1]] = {**old, 'kernel': old['kernel'] + a @ b}

  a, b = rng.normal(size=(2, config.width)), rng.normal(size=(config.vocab_size, 2))
  adapted['head'] = {**params['head'], 'lora_a': a, 'lora_b': b}
  merged['head'] = {**params['head'], 'kernel': params['head']['kernel'] + b @ a}

  tokens, positions, valid = _padded(_rows(), 'left', 0)
  of = lambda p: _logits(apply(p, tokens, positions=positions, valid=valid))[valid]
  np.testing.assert_allclose(of(adapted), of(merged), atol=1e-4 * np.abs(of(merged)).max())
  assert np.abs(of(adapted) - of(params)).max() > 0.1


DEEP = dataclasses.replace(LLAMA, num_layers=4)


def _loss_and_gradients(config, params):
  tokens, positions, valid = _padded(_rows(), 'left', 0)

  @jax.jit
  @jax.value_and_grad
  def loss(params):
    hidden, _ = transformer.apply(config, params, tokens, positions=positions, valid=valid)
    return jnp.sum(jnp.where(valid[..., None], jnp.square(hidden), 0.0)[:, :, 0])

  return loss(params)


@functools.lru_cache
def _deep_baseline():
  params = witness.draw_params(policy.make(DEEP))
  return params, _loss_and_gradients(DEEP, params)


@pytest.mark.parametrize('remat, scan_unroll', [
    ('none', 1), ('none', 2), ('dots', 0), ('full', 1)])
def test_unrolling_and_rematerialisation_change_neither_loss_nor_gradients(remat, scan_unroll):
  params, (expected_loss, expected) = _deep_baseline()
  config = dataclasses.replace(DEEP, remat=remat, scan_unroll=scan_unroll)
  loss, gradients = _loss_and_gradients(config, params)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
  for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, atol=1e-5 * largest)


def _num_residuals(remat):
  """Number of elements stored for the backward pass."""
  config = dataclasses.replace(LLAMA, remat=remat, scan_unroll=1)
  params = jax.eval_shape(functools.partial(transformer.init, config), jax.random.key(0))
  tokens, positions, valid = _padded(_rows(), 'left', 0)
  forward = lambda p: transformer.apply(config, p, tokens, positions=positions, valid=valid)[0]
  backward = jax.eval_shape(lambda p: jax.vjp(forward, p)[1], params)
  return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(backward))


def test_rematerialisation_stores_less():
  assert _num_residuals('full') < _num_residuals('dots') < _num_residuals('none')


@pytest.mark.parametrize('scan_unroll, grows', [(1, False), (0, True)])
def test_with_unroll_one_the_program_does_not_grow_with_the_depth(scan_unroll, grows):
  def sizes(num_layers):
    config = dataclasses.replace(LLAMA, num_layers=num_layers, scan_unroll=scan_unroll)
    model = policy.make(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens, positions, valid = _padded(_rows(), 'left', 0)

    def loss(params):
      return jnp.sum(model.apply(params, tokens, positions=positions, valid=valid).hidden)

    def step(params, cache):
      return model.apply(params, tokens[:, :1], positions=positions[:, :1], valid=valid,
                         cache=cache, cache_index=jnp.int32(0))

    cache = jax.eval_shape(lambda: model.init_cache(3, 9))
    return [len(jax.jit(jax.grad(loss)).lower(params).as_text()),
            len(jax.jit(step).lower(params, cache).as_text()),
            len(jax.jit(model.init).lower(jax.random.key(0)).as_text())]

  ratios = np.array(sizes(8)) / np.array(sizes(4))
  assert (ratios[2] < 1.03) and (ratios[:2] > 1.3 if grows else ratios[:2] < 1.03).all(), ratios


@pytest.mark.parametrize('changes', [{}, {'num_kv_heads': 1, 'scan_unroll': 1}])
def test_a_mesh_changes_nothing(changes):
  # Two kv heads are split over 2 'tensor' devices; a single kv head is replicated.
  config = dataclasses.replace(LLAMA, vocab_size=16, **changes)
  model = policy.make(config)
  params = witness.draw_params(model)
  tokens = np.random.default_rng(0).integers(0, 16, (8, 6)).astype(np.int32)
  positions = np.broadcast_to(np.arange(6, dtype=np.int32), (8, 6))
  valid = np.ones((8, 6), bool)

  def loss(params):
    output = model.apply(params, tokens, positions=positions, valid=valid)
    return jnp.sum(jnp.square(output.hidden[:, :, 0])), output.hidden

  step = lambda: jax.jit(jax.value_and_grad(loss, has_aux=True))
  (expected_loss, expected), expected_gradients = step()(params)

  mesh = jax.make_mesh(
      (2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 3)
  with jax.set_mesh(mesh):
    lowered = step().lower(params).as_text()
    (loss_value, hidden), gradients = step()(params)

  assert 'sharding_constraint' in lowered
  assert len(hidden.sharding.device_set) == 8
  np.testing.assert_allclose(loss_value, expected_loss, rtol=1e-5)
  np.testing.assert_allclose(hidden, expected, atol=1e-5 * np.abs(expected).max())
  largest = max(np.abs(x).max() for x in jax.tree.leaves(expected_gradients))
  for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients)):
    np.testing.assert_allclose(a, b, atol=1e-5 * largest)


def test_bfloat16_is_close_to_float32_and_the_parameters_stay_float32():
  config, _, params, apply = _model('llama')
  low = policy.make(dataclasses.replace(config, compute_dtype='bfloat16'))
  drawn = jax.eval_shape(low.init, jax.random.key(0))
  assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {jnp.dtype('float32')}
  assert jax.tree.leaves(low.init_cache(1, 2))[0].dtype == jnp.bfloat16

  tokens, positions, valid = _padded(_rows(), 'left', 0)
  exact = apply(params, tokens, positions=positions, valid=valid).hidden
  rounded = jax.jit(low.apply)(params, tokens, positions=positions, valid=valid).hidden
  assert rounded.dtype == jnp.bfloat16
  error = np.asarray(rounded.astype(np.float32) - exact)[valid]
  assert 0 < np.square(error).mean() ** 0.5 < 0.1 * np.square(exact).mean() ** 0.5


def test_initial_blocks_differ_and_logits_have_unit_scale():
  config = dataclasses.replace(LLAMA, width=64, head_dim=16, mlp_width=128, vocab_size=200)
  model = policy.make(config)
  init = jax.jit(model.init)
  params = init(jax.random.key(3))
  for path, leaf in jax.tree_util.tree_leaves_with_path(params['layers']):
    if path[-1].key == 'kernel':
      assert np.abs(leaf[0] - leaf[1]).max() > 0.01, path

  tokens = np.arange(200, dtype=np.int32).reshape(20, 10)
  positions = np.broadcast_to(np.arange(10, dtype=np.int32), (20, 10))
  output = jax.jit(model.apply)(
      params, tokens, positions=positions, valid=np.ones((20, 10), bool))
  assert 0.7 < _logits(output).std() < 1.4
  other = init(jax.random.key(4))
  assert np.abs(params['embedder']['embedding'] - other['embedder']['embedding']).max() > 0.01
