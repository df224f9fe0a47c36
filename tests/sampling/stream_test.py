"""Streaming: a streamed sampler draws the same samples, and pieces of text are whole characters."""

import jax
import numpy as np
import pytest

from jaxrl_llm.data import tokenizers
from jaxrl_llm.models import configs, policy
from jaxrl_llm.sampling import decode, stream


@pytest.mark.parametrize('name', ['gpt2', 'sentencepiece'])
def test_the_pieces_join_to_the_text(data_dir, name):
  tokenizer = tokenizers.load_tokenizer(data_dir / 'tokenizers' / name)
  text = '  Ünïcödé 字符 👩‍🚀 and\n\n  spaces , 3.14'
  generator = np.random.default_rng(0)
  random = generator.integers(0, tokenizer.vocab_size, 300).tolist()
  for ids in (tokenizer.encode(text), random):
    pieces, whole = stream.TextStream(tokenizer.decode), ''
    for token in ids:
      piece = pieces.push(token)
      assert not piece.endswith('\ufffd')
      whole += piece
    assert whole + pieces.flush() == tokenizer.decode(ids)


def test_a_space_at_the_start_of_the_window_is_not_lost(data_dir):
  # SentencePiece drops spaces at the start of a decoded text.
  tokenizer = tokenizers.load_tokenizer(data_dir / 'tokenizers' / 'sentencepiece')
  piece = tokenizer.processor.piece_to_id
  ids = [piece('\u2581the'), piece('\u2581'), piece('\u2581'), piece('\u2581I'), piece('\u2581the')]
  assert tokenizer.decode(ids) == 'the   I the'
  pieces = stream.TextStream(tokenizer.decode)
  assert ''.join(map(pieces.push, ids)) + pieces.flush() == 'the   I the'


def test_a_character_is_held_back_until_it_is_complete(data_dir):
  tokenizer = tokenizers.load_tokenizer(data_dir / 'tokenizers' / 'gpt2')
  ids = tokenizer.encode('a🙃b')
  assert len(ids) > 3  # The emoji takes several tokens.
  pieces = stream.TextStream(tokenizer.decode)
  assert [pieces.push(token) for token in ids] == ['a', *[''] * (len(ids) - 3), '🙃', 'b']
  pieces = stream.TextStream(tokenizer.decode)
  shown = [pieces.push(token) for token in ids[:2]]
  assert shown == ['a', ''] and pieces.flush() == '\ufffd' and pieces.flush() == ''


def test_a_streamed_sampler_draws_the_same_samples_and_emits_every_token():
  model = policy.make(configs.TransformerConfig(
      vocab_size=7, num_layers=1, width=8, num_heads=1, num_kv_heads=1, head_dim=8, mlp_width=8,
      max_length=32))
  generator = np.random.default_rng(0)
  params = jax.tree.map(
      lambda leaf: generator.normal(size=leaf.shape).astype(leaf.dtype),
      jax.eval_shape(model.init, jax.random.key(0)))
  inputs = (np.array([[0, 2, 3], [4, 5, 6]]), np.array([2, 3]), np.array([0, 1]))
  options = {'num_samples': 2, 'max_tokens': 6, 'stop_ids': (1,), 'pad_id': 0}

  parts = decode.make_parts(model, **options)
  parts = decode.SamplerParts(*map(jax.jit, parts))
  emitted = []
  sample = stream.streamed(parts, lambda tokens: emitted.append(tokens.copy()))
  plain = jax.jit(decode.make_sampler(model, **options))
  lengths = set()

  for seed in range(5):
    emitted.clear()
    whole = jax.device_get(plain(params, *inputs, jax.random.key(seed)))
    parts = jax.device_get(sample(params, *inputs, jax.random.key(seed)))
    np.testing.assert_array_equal(whole.tokens, parts.tokens)
    np.testing.assert_array_equal(whole.lengths, parts.lengths)
    np.testing.assert_allclose(whole.log_probs, parts.log_probs, atol=1e-5)  # Two programs.
    # Decoding ends when all rows have stopped.
    assert len(emitted) == whole.lengths.max()
    np.testing.assert_array_equal(
        np.stack(emitted, axis=1), whole.tokens.reshape(4, 6)[:, : len(emitted)])
    lengths.add(len(emitted))
  assert len(lengths) > 1 and min(lengths) < 6
