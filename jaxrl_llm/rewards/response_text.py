"""Stop strings: where a sampled response ends if a text, and not a token, ends it.

A text can be tokenised in many ways. The text of the response decides; `stop_sequences` are its
usual tokens, at which a sampler can stop early.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxrl_llm.types import Tokenizer


class Ending(NamedTuple):
  """A response that a stop string ends.

  Attributes:
    text: the text before the stop string.
    num_tokens: number of tokens up to the one that completes the stop string, inclusive.
  """

  text: str
  num_tokens: int


def find(
    decode: Callable[[Sequence[int]], str], ids: Sequence[int], stops: Sequence[str]
) -> Ending | None:
  """Finds the first stop string in the text of a response.

  Args:
    decode: returns the text of ids.
    ids: the response.
    stops: the stop strings, not empty; can be none.

  Returns:
    The ending, or None if no stop string occurs.
  """
  text = decode(ids) if stops else ''
  first = min((text.find(stop) for stop in stops if stop in text), default=-1)
  if first < 0:
    return None

  # The shortest beginning of the ids whose text has a stop string.
  low, high = 0, len(ids)
  while high - low > 1:
    middle = (low + high) // 2
    beginning = decode(ids[:middle])
    low, high = (low, middle) if any(stop in beginning for stop in stops) else (middle, high)
  return Ending(text[:first], high)


def stop_sequences(tokenizer: Tokenizer, stops: Sequence[str]) -> tuple[tuple[int, ...], ...]:
  """Returns sequences of ids, each of which has one of the stop strings in its text.

  They are the tokens of the string at the start of a text, within a line and after a line break.

  Raises:
    ValueError: a stop string is empty, or has characters that the tokenizer lacks.
  """
  sequences = []
  for stop in stops:
    if not stop:
      raise ValueError('a stop string must not be empty')
    for before in ('', ' ', '\n', '\n\n', '.'):
      try:
        ids = tokenizer.encode(before + stop)
      except ValueError:
        if before:
          continue  # A tokenizer of characters that lacks `before`.
        raise

      while ids and stop in tokenizer.decode(ids[1:]):
        ids = ids[1:]
      if stop in tokenizer.decode(ids):
        sequences.append(tuple(ids))
  return tuple(dict.fromkeys(sequences))


class Cutter:
  """Removes stop strings, and what follows them, from a text that arrives in pieces."""

  def __init__(self, stops: Sequence[str]):
    """Starts with no text."""
    self._stops, self._rest = tuple(stops), ''
    self.stopped = False

  def push(self, piece: str) -> str:
    """Adds a piece and returns the text that cannot be part of a stop string."""
    if self.stopped:
      return ''
    text = self._rest + piece
    first = min((text.find(stop) for stop in self._stops if stop in text), default=-1)
    if first >= 0:
      self.stopped, self._rest = True, ''
      return text[:first]

    held = max((size for stop in self._stops for size in range(1, len(stop))
                if text.endswith(stop[:size])), default=0)
    self._rest = text[len(text) - held :]
    return text[: len(text) - held]

  def flush(self) -> str:
    """Returns the text that was held back."""
    rest, self._rest = self._rest, ''
    return rest
