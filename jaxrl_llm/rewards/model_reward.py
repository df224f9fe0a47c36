"""Rewards of a learned reward model, which is given as a function of token ids.

A reward model with its own tokenizer reads texts: prompt and response are encoded again, only for
the score. Training still uses the sampled ids. (A reward model that shares the policy's tokenizer
reads those ids directly: `rl.sequence_scores`.)
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxrl_llm.types import Example, RewardFn

OVERLONG = ('left', 'right', 'error')

# (tokens int32 [B, T], lengths int32 [B]) -> the score at the last token, float [B].
ScoreFn = Callable[[np.ndarray, np.ndarray], np.ndarray]
# Arguments of a `types.RewardFn` -> the ids of each prompt with its response.
EncodeFn = Callable[
    [list[str], list[str], np.ndarray, list[Example]], Sequence[Sequence[int]]
]


def _cut(ids: Sequence[int], max_tokens: int, overlong: str) -> Sequence[int]:
  """The ids of one row, at most `max_tokens` of them."""
  if not ids:
    raise ValueError('the reward model needs at least one id per response, got none')
  if len(ids) <= max_tokens:
    return ids
  if overlong == 'error':
    raise ValueError(
        f'a prompt with its response must have at most {max_tokens} tokens for the reward model, '
        f'got {len(ids)}'
    )
  return ids[-max_tokens:] if overlong == 'left' else ids[:max_tokens]


def make(
    score: ScoreFn,
    encode: EncodeFn,
    *,
    batch_size: int,
    max_tokens: int,
    overlong: str = 'left',
    pad_id: int = 0,
) -> RewardFn:
  """Makes a `types.RewardFn` from a reward model.

  Rows are padded on the right to `max_tokens`, and the last batch is padded with rows, so that
  `score` is called with one shape only.

  Args:
    score: the reward model.
    encode: makes the ids that the reward model reads.
    batch_size: B, rows scored at once.
    max_tokens: T.
    overlong: treatment of longer rows: 'left' cuts their beginning (Starling), 'right' their
      end (ArmoRM), 'error' raises.
    pad_id: the padding id.

  Returns:
    The reward function. A NaN score is passed on: algorithms drop such prompts.

  Raises:
    ValueError: an argument is out of range; later, a row is too long and `overlong` is 'error', a
      row has no ids, or `score` returned another shape.
  """
  for name, value in (('batch_size', batch_size), ('max_tokens', max_tokens)):
    if value < 1:
      raise ValueError(f'{name} must be at least 1, got {value}')
  if overlong not in OVERLONG:
    raise ValueError(f'overlong must be one of {", ".join(OVERLONG)}, got {overlong!r}')

  def reward(
      prompts: list[str], responses: list[str], truncated: np.ndarray, examples: list[Example]
  ) -> np.ndarray:
    encoded = encode(prompts, responses, truncated, examples)
    rows = [_cut(ids, max_tokens, overlong) for ids in encoded]

    scores = []
    for start in range(0, len(rows), batch_size):
      chunk = rows[start : start + batch_size]
      tokens = np.full((batch_size, max_tokens), pad_id, np.int32)
      lengths = np.ones(batch_size, np.int32)
      for i, ids in enumerate(chunk):
        tokens[i, : len(ids)], lengths[i] = ids, len(ids)

      values = np.asarray(score(tokens, lengths), np.float32)
      if values.shape != (batch_size,):
        raise ValueError(
            f'a reward model must return {batch_size} scores, got shape {values.shape}')
      scores.append(values[: len(chunk)])
    return np.concatenate(scores) if scores else np.zeros(0, np.float32)

  return reward


def preferences(scores: np.ndarray, comparators: np.ndarray) -> np.ndarray:
  """Converts scores to general preferences by the Bradley-Terry model.

    ℓ(x, y, y'') = 2 P(y ≻ y'') − 1 = 2 σ(r(y) − r(y'')) − 1 = tanh((r(y) − r(y'')) / 2)

  It is antisymmetric, in [−1, 1] and transitive; `algorithms.rebel` takes any preference. A score
  that is not finite is a failure of the reward model: it becomes NaN, which drops the prompt, and
  never a certain preference.

  Args:
    scores: float [P, K].
    comparators: float [P, M], of further responses to the same prompts.

  Returns:
    float32 [P, K, M].

  Raises:
    ValueError: the numbers of prompts differ.

  References:
    Gao et al. (2024), REBEL, section on general preferences, arXiv 2404.16767.
  """
  if np.ndim(scores) != 2 or np.ndim(comparators) != 2 or len(scores) != len(comparators):
    raise ValueError(
        f'scores and comparators must be [P, K] and [P, M], got {np.shape(scores)} and '
        f'{np.shape(comparators)}'
    )

  scores, comparators = (
      np.where(np.isfinite(side), side, np.nan)[:, :, None] for side in (scores, comparators)
  )
  difference = scores - np.swapaxes(comparators, 1, 2)
  return np.tanh(difference / 2).astype(np.float32)
