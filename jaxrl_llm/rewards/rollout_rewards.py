"""From token ids to rewards: decodes sampled responses and scores them on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxrl_llm.rewards import response_text
from jaxrl_llm.types import TRUNCATED, Example, RewardFn, Rollouts, Tokenizer


class Scored(NamedTuple):
  """Host-side results of P prompts with K responses each.

  Attributes:
    rewards: float32 [P, K].
    lengths: int32 [P, K], tokens, stop token included.
    truncated: bool [P, K].
    responses: P lists of K texts.
  """

  rewards: np.ndarray
  lengths: np.ndarray
  truncated: np.ndarray
  responses: list[list[str]]


def score_rollouts(
    rollouts: Rollouts,
    examples: Sequence[Example],
    *,
    tokenizer: Tokenizer,
    reward_fn: RewardFn,
    stop_strings: Sequence[str] = (),
) -> Scored:
  """Decodes responses up to their end and scores each.

  The verifier gets prompt and response separately, so that it never reads the prompt's own answer
  template as an answer. The text is only for the verifier; training uses the ids.

  Args:
    rollouts: P prompts, K samples each, on the device or the host.
    examples: the P examples.
    tokenizer: the one that encoded the prompts.
    reward_fn: scores n responses.
    stop_strings: texts that end a response, which is scored without them.

  Returns:
    A `Scored`.

  Raises:
    ValueError: the numbers of rollouts and examples differ, or the reward function
      returned another shape or a value that is not finite.
  """
  tokens, lengths = np.asarray(rollouts.tokens), np.asarray(rollouts.lengths)
  truncated = np.asarray(rollouts.stop_reason) == TRUNCATED
  num_prompts, num_samples = lengths.shape
  if num_prompts != len(examples):
    raise ValueError(f'{num_prompts} prompts need equally many examples, got {len(examples)}')

  rows = [row[:length].tolist() for row, length in zip(
      tokens.reshape(-1, tokens.shape[-1]), lengths.reshape(-1))]
  responses = [_text(tokenizer, row) for row in rows]
  if stop_strings:
    lengths, truncated = lengths.copy(), truncated.copy()
    for index, row in enumerate(rows):
      if ending := response_text.find(tokenizer.decode, row, stop_strings):
        responses[index] = ending.text
        lengths.flat[index], truncated.flat[index] = ending.num_tokens, False
  repeated = [example for example in examples for _ in range(num_samples)]
  rewards = reward_fn(
      [example['prompt'] for example in repeated], responses, truncated.reshape(-1), repeated
  )

  rewards = np.asarray(rewards)
  if rewards.dtype.kind in 'OSUc':  # A text such as '1' would become a number.
    rewards = np.full(rewards.shape, np.nan)
  rewards = rewards.astype(np.float32)
  if rewards.shape != (len(responses),) or not np.all(np.isfinite(rewards)):
    raise ValueError(
        f'the reward function must return {len(responses)} finite numbers, got shape '
        f'{rewards.shape} with {np.sum(~np.isfinite(rewards))} not finite'
    )

  grouped = [responses[i : i + num_samples] for i in range(0, len(responses), num_samples)]
  return Scored(rewards.reshape(lengths.shape), lengths, truncated, grouped)


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
  """Decodes a response; a padding id that the policy sampled leaves a mark in the text."""
  text, pad = tokenizer.decode(ids), tokenizer.pad_id
  # A padding id that is an ordinary token is part of the text already.
  vanishes = pad in ids and pad not in tokenizer.stop_ids and not tokenizer.decode([pad])
  return text + '\N{REPLACEMENT CHARACTER}' if vanishes else text


def join(parts: Sequence[Scored]) -> Scored:
  """Concatenates several `Scored`, in order."""
  return Scored(
      *(np.concatenate([getattr(part, name) for part in parts]) for name in Scored._fields[:3]),
      [texts for part in parts for texts in part.responses],
  )
