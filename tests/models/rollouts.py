"""Samples of unequal lengths, to be scored."""

import numpy as np

from jaxrl_llm.types import STOPPED, Rollouts


def draw(vocab_size: int, *, prompts: int = 8, slots: int = 6) -> Rollouts:
  """Random prompts with one random response each."""
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, slots + 1, (prompts, 1)).astype(np.int32)
  mask = (np.arange(slots) < lengths[..., None]).astype(np.float32)
  return Rollouts(
      prompts=rng.integers(0, vocab_size, (prompts, 5)).astype(np.int32),
      prompt_lengths=rng.integers(1, 6, prompts).astype(np.int32),
      tokens=rng.integers(0, vocab_size, (prompts, 1, slots)).astype(np.int32),
      lengths=lengths,
      mask=mask,
      log_probs=-mask,
      stop_reason=np.full(lengths.shape, STOPPED, np.int8),
  )
