"""Next-symbol prediction with any causal model.

A sequence over L symbols is the whole prompt: one token per symbol, no instruction, no separators
(Dai et al., 2025, Pre-trained large language models learn hidden Markov models in-context,
arXiv 2506.07298). The model's next-token distribution is restricted to the tokens of the symbols
and renormalised.
"""

import itertools
import string
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.rl import log_probs
from jaxrl_llm.types import Array, ModelFns, Params, Tokenizer

KINDS = ('abc', '123', 'random')


class Tokenisation(NamedTuple):
  """Tokens of the symbols.

  Attributes:
    symbol_ids: the token of each of the L symbols.
    prefix_ids: tokens before the first symbol; () for none.
  """

  symbol_ids: tuple[int, ...]
  prefix_ids: tuple[int, ...] = ()


def symbol_log_probs(model: ModelFns, params: Params, tokens: Array, symbol_ids: Array) -> Array:
  """Log-probs of the next symbol under a causal model, at every position of a sequence.

    ln p̂(o | y_≤t) = z_{t, tok(o)} − ln Σ_o' exp(z_{t, tok(o')})

  The sum over the whole vocabulary cancels, so that only the L rows of the head that belong to
  symbols are multiplied: no logits of [B, T, V] for any V, and no chunks. Index t predicts token
  t + 1. Differentiable.

  Args:
    model: a causal model.
    params: parameters of the model.
    tokens: int32 [B, T]; no padding mask. Tokens after the end of a sequence do not affect the
      positions before them.
    symbol_ids: int32 [L]; distinct ids.

  Returns:
    At least float32 [B, T, L], nats; its exp sums to 1 over L.

  References:
    Dai et al. (2025), arXiv 2506.07298; released code, restricted softmax.
  """
  chex.assert_rank([tokens, symbol_ids], [2, 1])
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
  output = model.apply(
      params, tokens, positions=positions, valid=jnp.ones(tokens.shape, bool))
  head = output.head
  rows = types.Head(
      head.kernel[symbol_ids], None if head.bias is None else head.bias[symbol_ids], head.softcap)
  return jax.nn.log_softmax(log_probs.head_logits(output.hidden, rows), axis=-1)


class Predictor:
  """Predicts every symbol of a sequence from those before it, in batches of one shape."""

  def __init__(
      self,
      log_probs_fn: Callable[[Params, Array, Array], Array],
      tokenisation: Tokenisation,
      *,
      targets: Sequence[int] | None = None,
      batch_size: int = 16,
  ):
    """Stores the model and the tokens.

    Args:
      log_probs_fn: `symbol_log_probs` of a model, usually compiled: (params, tokens, symbol_ids)
        to log-probs [B, T, targets].
      tokenisation: the tokens of the L symbols.
      targets: the symbols that can be predicted; by default all of them.
      batch_size: sequences per batch.

    Raises:
      ValueError: if `batch_size` is below 1, or two symbols share a token.
    """
    if batch_size < 1:
      raise ValueError(f'batch_size must be at least 1, got {batch_size}')
    ids = tokenisation.symbol_ids
    if not ids or len(set(ids)) != len(ids):
      raise ValueError(f'symbol_ids must be distinct tokens, at least one, got {ids}')
    self._ids = np.asarray(ids, np.int32)
    self._prefix = np.asarray(tokenisation.prefix_ids, np.int32)
    targets = range(len(ids)) if targets is None else targets
    self._targets, self._batch_size = self._ids[np.asarray(targets)], batch_size
    self._log_probs_fn = log_probs_fn

  def __call__(self, params: Params, symbols: np.ndarray) -> np.ndarray:
    """Predicts every symbol.

    Args:
      params: parameters of the model.
      symbols: integer [N, T], in [0, L).

    Returns:
      float32 [N, T, targets]; at t the log-probs of symbol t given the t symbols before it. With
      nothing before it (t = 0 and no prefix) all targets are equally likely.

    Raises:
      ValueError: if a symbol is not in [0, L).
    """
    symbols = np.asarray(symbols)
    count, length = symbols.shape
    if symbols.size and not 0 <= symbols.min() <= symbols.max() < len(self._ids):
      raise ValueError(f'symbols must be in [0, {len(self._ids)}), got '
                       f'{symbols.min()} to {symbols.max()}')

    size = len(self._targets)
    log_probs = np.full((count, length, size), -np.log(size), np.float32)
    unseen = 0 if len(self._prefix) else 1  # Nothing predicts the first symbol.
    if length == unseen:
      return log_probs

    before = np.broadcast_to(self._prefix, (count, len(self._prefix)))
    tokens = np.concatenate([before, self._ids[symbols[:, :-1]]], axis=1)
    for start in range(0, count, self._batch_size):
      rows = tokens[start : start + self._batch_size]
      # The last batch is padded: one shape, one compilation.
      filled = np.resize(rows, (self._batch_size, tokens.shape[1]))
      values = np.asarray(self._log_probs_fn(params, filled, self._targets))[: len(rows)]
      log_probs[start : start + len(rows), unseen:] = values[:, unseen - length :]
    return log_probs


def tokenise(
    tokenizer: Tokenizer, kind: str, num_symbols: int, *, seed: int = 0, bos: bool = True
) -> Tokenisation:
  """Picks a token for each symbol.

  - 'abc': ' A', ' B', ..., ' Z', ' AA', ..., each with its space;
  - '123': '1', ..., '9', '0', '10', ..., without a space, because the tokenizers of the paper's
    models split it off;
  - 'random': tokens drawn by seed.

  Candidates that are not exactly one token, or repeat an earlier symbol's token, are skipped. The
  kind matters: letters hurt small models in long contexts.

  Args:
    tokenizer: tokenizer of the model.
    kind: one of `KINDS`.
    num_symbols: L.
    seed: seed for 'random'.
    bos: whether to begin the sequence with the tokenizer's start ids (a BOS for Llama, nothing
      for Qwen).

  Returns:
    The tokens.

  Raises:
    ValueError: if the kind is unknown, or the tokenizer has fewer such tokens.

  References:
    Dai et al. (2025), arXiv 2506.07298, appendix on tokenisation.
  """
  if kind not in KINDS:
    raise ValueError(f'kind must be one of {", ".join(KINDS)}, got {kind!r}')
  if num_symbols < 1:
    raise ValueError(f'num_symbols must be at least 1, got {num_symbols}')

  special = {tokenizer.pad_id, *tokenizer.stop_ids, *tokenizer.start_ids}
  candidates = (
      _drawn(tokenizer, seed) if kind == 'random' else
      (_single(tokenizer, text) for text in (_letters() if kind == 'abc' else _numbers())))

  ids = []
  for token in candidates:
    if token not in (None, *special, *ids):
      ids.append(token)
    if len(ids) == num_symbols:
      break
  else:
    raise ValueError(f'the tokenizer must have {num_symbols} single tokens of kind {kind!r}, one '
                     f'per symbol, got {len(ids)}')

  prefix = tuple(tokenizer.start_ids) if bos else ()
  return Tokenisation(tuple(ids), prefix)


def _letters() -> Iterator[str]:
  """Yields ' A' to ' ZZ'."""
  for length in (1, 2):
    for letters in itertools.product(string.ascii_uppercase, repeat=length):
      yield ' ' + ''.join(letters)


def _numbers() -> Iterator[str]:
  """Yields digits first: some tokenizers have no longer numbers."""
  return map(str, itertools.chain(range(1, 10), [0], range(10, 1000)))


def _single(tokenizer: Tokenizer, text: str) -> int | None:
  """Token of a text that continues another one; None if it is not exactly one token."""
  try:
    ids = tokenizer.encode_continuation(text)
  except ValueError:  # A character-level tokenizer may lack some.
    return None
  return ids[0] if len(ids) == 1 else None


def _drawn(tokenizer: Tokenizer, seed: int) -> Iterator[int]:
  """Yields, in random order, the ids that are the single token of their text."""
  for token in map(int, np.random.default_rng(seed).permutation(tokenizer.vocab_size)):
    text = tokenizer.decode([token])
    if text and _single(tokenizer, text) == token:
      yield token
