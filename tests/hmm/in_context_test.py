"""Any causal model as a predictor of symbols: restricted softmax, positions, tokenisations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.data import tokenizers
from jaxrl_llm.hmm import in_context
from jaxrl_llm.models import configs, policy
from jaxrl_llm.rl import log_probs
from tests.experiments import tiny

SYMBOLS = (7, 3, 19, 11)


@functools.cache
def _model(**options):
  config = configs.TransformerConfig(
      vocab_size=23, num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=16,
      max_length=32, **options)
  model = policy.make(config)
  draw = lambda key: jax.tree.map(lambda leaf: 3 * leaf, model.init(key))
  return model, jax.jit(draw)(jax.random.key(0))


@functools.cache
def _log_probs_fn(model):
  return jax.jit(functools.partial(in_context.symbol_log_probs, model))


@functools.partial(jax.jit, static_argnums=0)
def _compiled_logits(model, params, tokens):
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  output = model.apply(params, tokens, positions=positions, valid=tokens >= 0)
  return log_probs.head_logits(output.hidden, output.head)


def _logits(model, params, tokens):
  return np.asarray(_compiled_logits(model, params, tokens), np.float64)


def _restricted(logits, ids):
  """The softmax over the whole vocabulary, then restricted and renormalised."""
  chances = np.exp(logits - logits.max(axis=-1, keepdims=True))
  chances /= chances.sum(axis=-1, keepdims=True)
  chosen = chances[..., list(ids)]
  return np.log(chosen / chosen.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize('options', [
    {}, {'tie_embeddings': False, 'head_bias': True, 'logit_softcap': 2.0}])
def test_symbol_log_probs_are_the_softmax_of_all_tokens_restricted_and_renormalised(options):
  model, params = _model(**options)
  if 'head_bias' in options:
    params = {**params, 'head': {**params['head'], 'bias': jnp.linspace(-2, 2, 23)}}
  tokens = jax.random.randint(jax.random.key(1), (3, 9), 0, 23)
  actual = _log_probs_fn(model)(params, tokens, jnp.array(SYMBOLS))
  assert actual.shape == (3, 9, 4)
  np.testing.assert_allclose(
      actual, _restricted(_logits(model, params, tokens), SYMBOLS), atol=1e-5)
  np.testing.assert_allclose(np.exp(actual).sum(axis=-1), 1, atol=1e-6)


def test_no_logits_of_the_whole_vocabulary_are_made():
  vocabulary, steps = 5_003, 64
  model = policy.make(configs.TransformerConfig(
      vocab_size=vocabulary, num_layers=1, width=8, num_heads=1, num_kv_heads=1, head_dim=8,
      mlp_width=8, max_length=steps))
  params = jax.eval_shape(model.init, jax.random.key(0))
  compiled = _log_probs_fn(model).lower(
      params, jax.ShapeDtypeStruct((4, steps), jnp.int32), jax.ShapeDtypeStruct((4,), jnp.int32))
  memory = compiled.compile().memory_analysis()
  assert memory.temp_size_in_bytes < 4 * steps * vocabulary * 4 / 2  # Half of such an array.


@pytest.mark.parametrize('prefix', [(), (5,), (5, 2)])
def test_8_2_the_prediction_at_t_depends_on_exactly_the_symbols_before_t(prefix):
  model, params = _model()
  predict = in_context.Predictor(
      _log_probs_fn(model), in_context.Tokenisation(SYMBOLS, prefix), batch_size=2)
  symbols = np.random.default_rng(0).integers(4, size=(3, 6))
  actual = predict(params, symbols)
  assert actual.shape == (3, 6, 4)

  for t in (0, 1, 5):
    tokens = np.concatenate([
        np.tile(np.array(prefix, int), (3, 1)), np.array(SYMBOLS)[symbols[:, :t]]], axis=1)
    expected = np.full((3, 4), -np.log(4))
    if tokens.shape[1]:
      expected = _restricted(_logits(model, params, jnp.asarray(tokens, jnp.int32))[:, -1], SYMBOLS)
    np.testing.assert_allclose(actual[:, t], expected, atol=1e-5, rtol=1e-5)

  # Later symbols have no effect; earlier ones have.
  changed = symbols.copy()
  changed[:, 3] = (changed[:, 3] + 1) % 4
  again = predict(params, changed)
  np.testing.assert_array_equal(again[:, :4], actual[:, :4])
  assert np.abs(again[:, 4:] - actual[:, 4:]).max() > 1e-3


def test_targets_are_renormalised_among_themselves():
  model, params = _model()
  tokenisation = in_context.Tokenisation(SYMBOLS, (5,))
  symbols = np.random.default_rng(1).integers(4, size=(5, 7))
  log_probs = in_context.Predictor(_log_probs_fn(model), tokenisation)(params, symbols)
  pair = in_context.Predictor(
      _log_probs_fn(model), tokenisation, targets=(2, 0))(params, symbols)
  chosen = log_probs[..., [2, 0]]
  np.testing.assert_allclose(
      pair, chosen - np.logaddexp(chosen[..., :1], chosen[..., 1:]), atol=1e-5)


def test_the_gradient_reaches_the_parameters():
  model, params = _model()

  def log_prob(params):
    return in_context.symbol_log_probs(
        model, params, jnp.array([[7, 3, 3]]), jnp.array(SYMBOLS))[0, 1, 1]

  gradient = jax.jit(jax.grad(log_prob))(params)
  assert float(jnp.abs(gradient['embedder']['embedding']).max()) > 0
  assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_bad_symbols_are_refused():
  model, params = _model()
  with pytest.raises(ValueError, match='distinct tokens, at least one, got'):
    in_context.Predictor(_log_probs_fn(model), in_context.Tokenisation((3, 3)))
  with pytest.raises(ValueError, match='batch_size must be at least 1, got 0'):
    in_context.Predictor(_log_probs_fn(model), in_context.Tokenisation((3, 4)), batch_size=0)
  predict = in_context.Predictor(_log_probs_fn(model), in_context.Tokenisation((3, 4)))
  with pytest.raises(ValueError, match=r'symbols must be in \[0, 2\), got 0 to 2'):
    predict(params, np.array([[0, 2]]))


# --- Tokens of the symbols.


@functools.cache
def _qwen(data_dir):
  return tokenizers.load_tokenizer(data_dir / 'tokenizers' / 'qwen2')


@functools.cache
def _bytes_tokenizer(directory):
  tiny.write_tokenizer(directory, start=True)
  return tokenizers.load_tokenizer(directory)


def test_letters_have_a_leading_space_and_are_single_tokens(data_dir):
  tokenizer = _qwen(data_dir)
  actual = in_context.tokenise(tokenizer, 'abc', 60)
  texts = [tokenizer.decode([token]) for token in actual.symbol_ids]
  assert texts[:4] == [' A', ' B', ' C', ' D'] and texts[25] == ' Z'
  assert all(text[0] == ' ' and len(text) == 3 for text in texts[26:])
  assert texts[26:] == sorted(texts[26:]) and len(set(texts)) == 60
  assert actual.prefix_ids == ()  # Qwen has no BOS.


def test_numbers_are_digits_without_a_space(data_dir):
  tokenizer = _qwen(data_dir)
  actual = in_context.tokenise(tokenizer, '123', 10)
  assert [tokenizer.decode([token]) for token in actual.symbol_ids] == [*'1234567890']
  # Qwen encodes larger numbers digit by digit.
  with pytest.raises(ValueError, match="must have 13 single tokens of kind '123', .*, got 10"):
    in_context.tokenise(tokenizer, '123', 13)


def test_random_tokens_are_distinct_drawn_by_seed_and_survive_decoding(data_dir):
  tokenizer = _qwen(data_dir)

  def draw(seed):
    return in_context.tokenise(tokenizer, 'random', 50, seed=seed).symbol_ids

  assert draw(0) == draw(0) != draw(1)
  assert len(set(draw(0))) == 50
  special = {tokenizer.pad_id, *tokenizer.stop_ids}
  for token in draw(0):
    assert token not in special
    assert tokenizer.encode(tokenizer.decode([token])) == [token]


def test_8_3_a_tokenizer_with_bos_begins_with_it_and_no_symbol_uses_it(tmp_path):
  tokenizer = _bytes_tokenizer(tmp_path / 'bytes')
  for kind in ('123', 'random'):
    actual = in_context.tokenise(tokenizer, kind, 8)
    assert actual.prefix_ids == tuple(tokenizer.start_ids) and len(actual.prefix_ids) == 1
    assert not set(actual.symbol_ids) & {*tokenizer.start_ids, *tokenizer.stop_ids}
  assert in_context.tokenise(tokenizer, '123', 8, bos=False).prefix_ids == ()
  with pytest.raises(ValueError, match="must have 2 single tokens of kind 'abc', .*, got 0"):
    in_context.tokenise(tokenizer, 'abc', 2)  # ' A' is two bytes.


def test_a_character_tokenizer_may_lack_characters():
  tokenizer = tokenizers.CharacterTokenizer('123xyz')
  actual = in_context.tokenise(tokenizer, '123', 3)
  assert [tokenizer.decode([token]) for token in actual.symbol_ids] == ['1', '2', '3']
  with pytest.raises(ValueError, match="kind must be one of abc, 123, random, got 'roman'"):
    in_context.tokenise(tokenizer, 'roman', 3)
  with pytest.raises(ValueError, match='num_symbols must be at least 1, got 0'):
    in_context.tokenise(tokenizer, '123', 0)
