"""Known responses (not sampled here) as `types.Rollouts` of NumPy arrays."""

from collections.abc import Sequence

import numpy as np

from jaxrl_llm.data import batching
from jaxrl_llm.types import STOPPED, TRUNCATED, Rollouts, Tokenizer


def rollouts(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[Sequence[int]]],
    tokenizer: Tokenizer,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> Rollouts:
  """Builds rollouts from prompts with K known responses each.

  Their log-probs are unknown: NaN where the mask is 1.

  Args:
    prompts: P lists of ids.
    responses: P lists of K lists of ids, each with its stop token if it stopped.
    tokenizer: source of the stop ids and the padding id.
    max_prompt_tokens: L.
    max_response_tokens: T.

  Returns:
    `Rollouts` [P, K, T] on the host.

  Raises:
    ValueError: a prompt or response is too long, or a response has no tokens.
  """
  padded, prompt_lengths = batching.left_pad(prompts, max_prompt_tokens, tokenizer.pad_id)
  num_samples = len(responses[0]) if len(responses) else 0
  shape = (len(prompts), num_samples)
  tokens = np.full((*shape, max_response_tokens), tokenizer.pad_id, np.int32)
  lengths, stop_reason = np.zeros(shape, np.int32), np.full(shape, TRUNCATED, np.int8)

  for p, group in enumerate(responses):
    for k, ids in enumerate(group):
      if not 0 < len(ids) <= max_response_tokens:
        raise ValueError(
            f'response {k} of prompt {p} must have 1 to {max_response_tokens} tokens, got '
            f'{len(ids)}'
        )
      tokens[p, k, : len(ids)], lengths[p, k] = ids, len(ids)
      if ids[-1] in tokenizer.stop_ids:
        stop_reason[p, k] = STOPPED

  mask = np.arange(max_response_tokens) < lengths[..., None]
  return Rollouts(
      prompts=padded, prompt_lengths=prompt_lengths, tokens=tokens, lengths=lengths,
      mask=mask.astype(np.float32), log_probs=np.where(mask, np.float32(np.nan), np.float32(0)),
      stop_reason=stop_reason,
  )


def take(known: Rollouts, indices: np.ndarray) -> Rollouts:
  """Selects the prompts at `indices` (int [P]) with their responses."""
  return Rollouts(**{name: leaf[indices] for name, leaf in vars(known).items()})
