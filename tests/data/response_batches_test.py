"""Known responses as rollouts: lengths, masks and unknown log-probs."""

import numpy as np
import pytest

from jaxrl_llm.data import response_batches, tokenizers
from jaxrl_llm.rl import masking
from jaxrl_llm.types import STOPPED, TRUNCATED

TOKENIZER = tokenizers.CharacterTokenizer('abc')  # 0 is padding, 1 is stop.


def _make(prompts, responses, **limits):
  limits = {'max_prompt_tokens': 3, 'max_response_tokens': 4, **limits}
  return response_batches.rollouts(prompts, responses, TOKENIZER, **limits)


def test_arrays():
  known = _make([[2, 3], [4]], [[[2, 1], [3, 3, 3, 3]], [[1], [4, 2]]])
  np.testing.assert_array_equal(known.prompts, [[0, 2, 3], [0, 0, 4]])
  np.testing.assert_array_equal(known.prompt_lengths, [2, 1])
  np.testing.assert_array_equal(
      known.tokens, [[[2, 1, 0, 0], [3, 3, 3, 3]], [[1, 0, 0, 0], [4, 2, 0, 0]]])
  np.testing.assert_array_equal(known.lengths, [[2, 4], [1, 2]])
  np.testing.assert_array_equal(
      known.stop_reason, [[STOPPED, TRUNCATED], [STOPPED, TRUNCATED]])
  np.testing.assert_array_equal(known.mask, np.isnan(known.log_probs))
  np.testing.assert_array_equal(known.mask.sum(axis=-1), known.lengths)
  # For responses that stop or fill their slots, this equals a sampler's mask.
  mask, lengths, reasons = masking.response_mask(known.tokens[:1], TOKENIZER.stop_ids)
  np.testing.assert_array_equal(known.mask[:1], mask)
  np.testing.assert_array_equal(known.lengths[:1], lengths)
  np.testing.assert_array_equal(known.stop_reason[:1], reasons)


def test_taking_rows():
  known = _make([[2], [3], [4]], [[[2]], [[3]], [[4]]])
  taken = response_batches.take(known, np.array([2, 0]))
  np.testing.assert_array_equal(taken.tokens[:, 0, 0], [4, 2])
  np.testing.assert_array_equal(taken.prompts[:, -1], [4, 2])


@pytest.mark.parametrize('prompts, responses, message', [
    ([[2, 2, 2, 2]], [[[2]]], 'sequence 0 has 4 tokens, the limit is 3'),
    ([[2], [2]], [[[2]], [[2] * 5]], 'response 0 of prompt 1 must have 1 to 4 tokens, got 5'),
    ([[2]], [[[2], []]], 'response 1 of prompt 0 must have 1 to 4 tokens, got 0'),
])
def test_ids_that_do_not_fit_are_named(prompts, responses, message):
  with pytest.raises(ValueError, match=message):
    _make(prompts, responses)
