"""Reward 1 for a response that equals the answer exactly and that ended by itself."""

from typing import Any

import numpy as np


def exact_match(
    prompts: list[str],
    responses: list[str],
    truncated: np.ndarray,
    examples: list[dict[str, Any]],
) -> np.ndarray:
  """Scores responses by equality with `example['answer']` (a `types.RewardFn`).

  r_i = 1[response_i = answer_i and response_i ended with a stop token], else 0.

  Nothing is stripped or normalised: '012' is not '12', and ' 12' is not '12'. A
  truncated response scores 0 even if its text is right: stopping is part of the task. Nothing
  matches an answer without a visible character, or one that is not a text: an empty response must
  not earn a reward.

  Args:
    prompts: n prompts; unused.
    responses: n decoded responses, without their stop token.
    truncated: bool [n]; True where the length limit ended the response.
    examples: n examples with the key 'answer'.

  Returns:
    float32 [n] of zeros and ones.
  """
  del prompts
  if not len(responses) == len(truncated) == len(examples):
    raise ValueError(
        'exact_match needs equally many responses, flags and examples, got '
        f'{len(responses)}, {len(truncated)} and {len(examples)}'
    )
  matches = [
      isinstance(example['answer'], str) and bool(example['answer'].strip())
      and response == example['answer']
      for response, example in zip(responses, examples)
  ]
  return (np.array(matches, bool) & ~np.asarray(truncated, bool)).astype(np.float32)
