"""Watching a sampler at work: tokens are told to the host while the others are still to come."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxrl_llm.types import ModelFns


def tapped(model: ModelFns, emit: Callable[[np.ndarray, np.ndarray], None]) -> ModelFns:
  """The same network, which tells `emit` of each token that decoding feeds it.

  A sampler made of it draws what one made of `model` draws, at the price of a call to the host
  for every token. The last token of a response is fed to nobody; it stands in the rollouts.

  Args:
    model: the network; prompts must have two slots at least.
    emit: (tokens int32 [B], their positions int32 [B]), called from another thread, and not
      necessarily in order.

  Returns:
    The network.
  """

  def apply(params, tokens, *, positions, **inputs):
    if inputs.get('cache') is not None and tokens.shape[1] == 1:
      jax.debug.callback(emit, tokens[:, 0], positions[:, 0])
    return model.apply(params, tokens, positions=positions, **inputs)

  return model._replace(apply=apply)


class TextStream:
  """Turns ids that come one by one into pieces of text that never end inside a character.

  The pieces, joined, are the text of all ids.
  """

  def __init__(self, decode: Callable[[Sequence[int]], str]):
    """Begins with no text; `decode` gives the text of ids."""
    self._decode = decode
    # What is told apart: ids[shown:] is what no piece holds yet. Its text may depend on what
    # stands before it, such as a space, so that it is decoded behind the piece before.
    self._ids: list[int] = []
    self._context = self._shown = 0

  def push(self, token: int) -> str:
    """The text that is certain now; '' while a character is incomplete."""
    self._ids.append(int(token))
    text = self._rest()
    if not text or text.endswith('\N{REPLACEMENT CHARACTER}'):
      return ''
    self._advance()
    return text

  def flush(self) -> str:
    """What was held back."""
    text = self._rest()
    self._advance()
    return text

  def _advance(self) -> None:
    # What alone is nothing, such as a space that a decoder drops at the beginning, would leave the
    # next ids at the beginning.
    if self._decode(self._ids[self._shown :]):
      self._context = self._shown
    self._shown = len(self._ids)

  def _rest(self) -> str:
    before = self._decode(self._ids[self._context : self._shown])
    return self._decode(self._ids[self._context :])[len(before) :]
