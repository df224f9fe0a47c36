"""Sizes of the workloads, the same in both libraries, and the form of a workload."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of the workloads.

  Attributes:
    prompt_tokens: tokens per prompt.
    new_tokens: tokens sampled per prompt; no response stops early.
    rows: sequences per training step.
    sequence_tokens: tokens per sequence.
    micro_batches: parts of a step whose gradients are summed.
    rank: rank of the adapters on all projections.
    dtype: dtype of parameters and activations, 'float32' or 'bfloat16'.
    seed: seed of tokens, noise and adapters.
  """

  prompt_tokens: int
  new_tokens: int
  rows: int
  sequence_tokens: int
  micro_batches: int
  rank: int
  dtype: str
  seed: int

  def prompts(self, batch: int, vocab_size: int) -> np.ndarray:
    """Random ids int32 [batch, prompt_tokens]."""
    draw = np.random.default_rng([self.seed, batch])
    return draw.integers(0, vocab_size, (batch, self.prompt_tokens), np.int32)

  def sequences(self, vocab_size: int) -> np.ndarray:
    """Random ids int32 [rows, sequence_tokens + 1]: inputs and, one later, targets."""
    draw = np.random.default_rng([self.seed, 0])
    return draw.integers(0, vocab_size, (self.rows, self.sequence_tokens + 1), np.int32)


class Workload(NamedTuple):
  """A workload of one library.

  Attributes:
    run: runs once and waits for the result: log-probs of samples, or the loss before the step.
    tokens: tokens sampled or trained on per run.
    peak_bytes: arguments, temporaries and outputs of the executable; 0 if unknown.
  """

  run: Callable[[], float]
  tokens: int
  peak_bytes: int = 0
