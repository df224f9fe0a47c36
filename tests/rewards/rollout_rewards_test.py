"""From ids to rewards on the host."""

import numpy as np
import pytest

from jaxrl_llm.data import tokenizers
from jaxrl_llm.rewards import exact_match, rollout_rewards
from jaxrl_llm.types import Rollouts

TOKENIZER = tokenizers.CharacterTokenizer('0123456789+=')
EXAMPLES = [{'id': 0, 'prompt': '1+2=', 'answer': '3'}, {'id': 1, 'prompt': '4+4=', 'answer': '8'}]


def _rollouts(texts, stops):
  """Responses of 2 x K; tokens after each end must not be read."""
  tokens = np.full((2, len(texts[0]), 4), TOKENIZER.encode('9')[0], np.int32)
  lengths = np.zeros((2, len(texts[0])), np.int32)
  for p, row in enumerate(texts):
    for k, text in enumerate(row):
      ids = TOKENIZER.encode(text) + ([TOKENIZER.stop_ids[0]] if stops[p][k] else [])
      tokens[p, k, : len(ids)], lengths[p, k] = ids, len(ids)
  mask = (np.arange(4) < lengths[..., None]).astype(np.float32)
  return Rollouts(
      np.zeros((2, 4), np.int32), np.full(2, 4), tokens, lengths, mask, 0 * mask,
      np.array(stops, np.int8))


def _score(rollouts, examples=EXAMPLES, reward_fn=exact_match.exact_match, **options):
  return rollout_rewards.score_rollouts(
      rollouts, examples, tokenizer=TOKENIZER, reward_fn=reward_fn, **options)


def test_each_response_is_scored_against_its_own_example():
  scored = _score(_rollouts([['3', '8'], ['3', '8']], [[1, 1], [1, 1]]))
  np.testing.assert_array_equal(scored.rewards, [[1, 0], [0, 1]])
  assert scored.responses == [['3', '8'], ['3', '8']]
  np.testing.assert_array_equal(scored.lengths, 2)


def test_a_truncated_response_scores_zero_even_if_its_text_is_right():
  scored = _score(_rollouts([['3', '3'], ['8', '8']], [[1, 0], [0, 1]]))
  np.testing.assert_array_equal(scored.rewards, [[1, 0], [0, 1]])
  np.testing.assert_array_equal(scored.truncated, [[False, True], [True, False]])


def test_a_stop_string_ends_a_response_and_is_not_scored():
  rollouts = _rollouts([['3+=9', '3'], ['8=99', '8+9']], [[0, 0], [0, 1]])
  scored = _score(rollouts, stop_strings=('+=', '=9'))
  assert scored.responses == [['3', '3'], ['8', '8+9']]
  np.testing.assert_array_equal(scored.truncated, [[False, True], [False, False]])
  np.testing.assert_array_equal(scored.lengths, [[3, 1], [3, 4]])
  np.testing.assert_array_equal(scored.rewards, [[1, 0], [1, 0]])
  np.testing.assert_array_equal(rollouts.lengths, [[4, 1], [4, 4]])  # Not changed.


def test_the_verifier_gets_only_the_response():
  seen = []

  def reward(prompts, responses, truncated, examples):
    seen.append((prompts, responses))
    return np.zeros(len(responses), np.float32)

  _score(_rollouts([['3'], ['8']], [[1], [1]]), reward_fn=reward)
  assert seen == [(['1+2=', '4+4='], ['3', '8'])]


@pytest.mark.parametrize('value', [
    [1.0], [np.nan, 0.0], [np.inf, 0.0], [[0.0, 1.0]], [1e39, 0.0], [-np.inf, 1.0], ['1', '0'],
    [None, 1.0], [1j, 0.0],
])
@pytest.mark.filterwarnings('ignore:overflow')
def test_a_reward_function_that_returns_something_else_is_an_error(value):
  with pytest.raises(ValueError, match='must return 2 finite numbers'):
    _score(_rollouts([['3'], ['8']], [[1], [1]]), reward_fn=lambda *_: np.array(value))


class _Padded(tokenizers.CharacterTokenizer):
  """Its padding is the character 9, which also occurs in texts."""

  pad_id = TOKENIZER.encode('9')[0]
  decode = TOKENIZER.decode


def test_sampled_padding_leaves_a_mark():
  def texts(tokenizer, pad):
    rollouts = _rollouts([['3'], ['8']], [[1], [1]])
    rollouts.tokens[0, 0, :3] = [TOKENIZER.encode('3')[0], pad, TOKENIZER.stop_ids[0]]
    rollouts.lengths[0, 0] = 3
    return rollout_rewards.score_rollouts(
        rollouts, EXAMPLES, tokenizer=tokenizer, reward_fn=exact_match.exact_match).responses[0]

  assert texts(TOKENIZER, TOKENIZER.pad_id) == ['3\ufffd']
  # A padding id that is an ordinary token is in the text itself.
  assert texts(_Padded('0123456789+='), _Padded.pad_id) == ['39']


def test_the_number_of_examples_must_fit():
  with pytest.raises(ValueError, match='2 prompts need equally many examples, got 1'):
    _score(_rollouts([['3'], ['8']], [[1], [1]]), EXAMPLES[:1])


def test_join_keeps_the_order():
  first = _score(_rollouts([['3'], ['8']], [[1], [1]]))
  second = _score(_rollouts([['8'], ['3']], [[1], [1]]))
  joined = rollout_rewards.join([first, second])
  np.testing.assert_array_equal(joined.rewards[:, 0], [1, 1, 0, 0])
  assert joined.responses == [['3'], ['8'], ['8'], ['3']]
