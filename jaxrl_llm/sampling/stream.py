"""Streaming from a sampler: the host reads each token before the next one is decoded."""

from collections.abc import Callable, Sequence

import numpy as np

from jaxrl_llm.sampling import decode
from jaxrl_llm.types import SampleFn


def streamed(parts: decode.SamplerParts, emit: Callable[[np.ndarray], None]) -> SampleFn:
  """Makes a sampler that passes on each token as soon as it is chosen.

  It draws the same samples as `decode.make_sampler`, with one dispatch per token. Its programs have
  no callbacks to the host, so that JAX can keep them in its compilation cache.

  Args:
    parts: jitted parts of a sampler; `advance` may donate its first argument.
    emit: called with int32 [B], the next token of every row, in order. After its end a row is
      padded while the others continue.

  Returns:
    The sampler, not to be jitted.
  """
  def sample(params, *inputs):
    decoding = parts.begin(params, *inputs)
    step, most = 1, decoding.tokens.shape[1]
    emit(np.asarray(decoding.tokens)[:, 0])

    while step < most and not np.all(decoding.done):
      decoding = parts.advance(decoding, np.int32(step + 1), params, *inputs)
      emit(np.asarray(decoding.tokens)[:, step])
      step += 1
    return parts.finish(decoding, *inputs)

  return sample


class TextStream:
  """Converts ids that arrive one by one into pieces of text that never end inside a character.

  The pieces, joined, are the text of all ids.
  """

  def __init__(self, decode: Callable[[Sequence[int]], str]):
    """Starts with no text; `decode` returns the text of ids."""
    self._decode = decode
    # ids[shown:] are not in any piece yet. Their text may depend on what precedes them, such as a
    # space, so they are decoded together with the previous piece.
    self._ids: list[int] = []
    self._context = self._shown = 0

  def push(self, token: int) -> str:
    """Adds a token and returns the text that is now final; '' while a character is incomplete."""
    self._ids.append(int(token))
    text = self._rest()
    if not text or text.endswith('\N{REPLACEMENT CHARACTER}'):
      return ''
    self._advance()
    return text

  def flush(self) -> str:
    """Returns the text that was held back."""
    text = self._rest()
    self._advance()
    return text

  def _advance(self) -> None:
    # Ids that decode to nothing on their own, such as a space that a decoder drops at the start of
    # a text, are not a context: the next ids would still be at the start.
    if self._decode(self._ids[self._shown :]):
      self._context = self._shown
    self._shown = len(self._ids)

  def _rest(self) -> str:
    before = self._decode(self._ids[self._context : self._shown])
    return self._decode(self._ids[self._context :])[len(before) :]
