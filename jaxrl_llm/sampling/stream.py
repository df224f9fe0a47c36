"""Streaming from a sampler: tokens are sent to the host while decoding continues."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxrl_llm.types import ModelFns


def tapped(model: ModelFns, emit: Callable[[np.ndarray, np.ndarray], None]) -> ModelFns:
  """Wraps a network so that it passes each token that decoding feeds it to `emit`.

  A sampler of the wrapped network draws the same samples as one of `model`, at the cost of a call
  to the host per token. The last token of a response is never fed back; read it from the rollouts.

  Args:
    model: the network; prompts must have at least two slots.
    emit: called with (tokens int32 [B], their positions int32 [B]), from another thread and not
      necessarily in order.

  Returns:
    The wrapped network.
  """

  def apply(params, tokens, *, positions, **inputs):
    if inputs.get('cache') is not None and tokens.shape[1] == 1:
      jax.debug.callback(emit, tokens[:, 0], positions[:, 0])
    return model.apply(params, tokens, positions=positions, **inputs)

  return model._replace(apply=apply)


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
