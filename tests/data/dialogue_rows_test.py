"""Conversations as dialogues, what a template writes between turns, and the released filters."""

import functools

import numpy as np
import pytest

from jaxrl_llm import types
from jaxrl_llm.data import chat_templates, conversations, dialogue_rows, dialogues, tokenizers

LIMITS = {turns: (2000, 2000) for turns in range(1, 6)}


@functools.cache
def _qwen(data_dir):
  return tokenizers.load_tokenizer(data_dir / 'tokenizers' / 'qwen2')


@functools.cache
def _conversations(data_dir):
  """Real conversations, some of several turns."""
  rows = conversations.read_conversations(data_dir / 'preferences' / 'dpo_en_demo.json')
  chosen = [row for row in rows if sum(map(len, map(str, row['messages']))) < 4000]
  several = [row for row in chosen if len(row['messages']) >= 4]
  return several[:6] + [row for row in chosen if len(row['messages']) == 2][:2]


@functools.cache
def _encoded(data_dir):
  return dialogue_rows.from_conversations(
      _conversations(data_dir), chat_templates.QWEN2, _qwen(data_dir), limits=LIMITS)


def test_F9_conversations_become_dialogues_with_their_stop_tokens(data_dir):
  tokenizer, rows, encoded = _qwen(data_dir), _conversations(data_dir), _encoded(data_dir)
  stop = tokenizer.encode('<|im_end|>')[0]
  assert len(set(encoded.num_turns.tolist())) > 1
  assert encoded.dropped == {'too_many_turns': 0, 'too_long': 0}
  texts = chat_templates.QWEN2.render_many([row['messages'] for row in rows])
  for index, (row, text) in enumerate(zip(rows, texts)):
    said = [m['content'] for m in row['messages'] if m['role'] == 'assistant']
    turns = encoded.dialogues.turns(index)
    ids = np.concatenate(turns).tolist()
    whole = tokenizer.encode(text)
    assert whole[: len(ids)] == ids and tokenizer.decode(whole[len(ids):]).strip() == ''
    # A reply ends in the stop token; the header that opens it is the user's.
    for turn, reply in enumerate(said):
      assert turns[1 + 2 * turn].tolist() == [*tokenizer.encode(reply), stop]
      assert tokenizer.backend.decode(turns[2 * turn], skip_special_tokens=False).endswith(
          '<|im_start|>assistant\n')
    reached = encoded.dialogues.reply_lengths[index] > 0
    assert reached.sum() == encoded.num_turns[index] == len(said)
    assert (encoded.dialogues.stop_reason[index, reached] == types.STOPPED).all()
  got = encoded.dialogues.continuation()
  union = sum((got.turns == turn).astype(int) for turn in range(5))
  np.testing.assert_array_equal(union, got.mask)
  np.testing.assert_array_equal(got.mask.sum(axis=1), encoded.dialogues.reply_tokens())
  assert np.isnan(got.log_probs[got.mask > 0]).all() and not got.log_probs[got.mask == 0].any()


def test_a_frame_writes_what_the_template_writes_between_turns(data_dir):
  tokenizer, rows, encoded = _qwen(data_dir), _conversations(data_dir), _encoded(data_dir)
  frame = dialogue_rows.make_frame(chat_templates.QWEN2, tokenizer)
  assert (frame.before, frame.after) == (
      '\n<|im_start|>user\n', '<|im_end|>\n<|im_start|>assistant\n')
  assert frame.close_ids == tuple(tokenizer.encode('<|im_end|>'))
  count = 0
  for index, row in enumerate(rows):
    asked = [m['content'] for m in row['messages'] if m['role'] == 'user']
    for turn, text in enumerate(asked[1:]):
      if text == text.strip():
        assert frame.write(text) == encoded.dialogues.turns(index)[2 + 2 * turn].tolist()
        count += 1
  assert count > 5


def test_a_message_that_is_too_long_is_cut_inside_its_frame(data_dir):
  tokenizer = _qwen(data_dir)
  frame = dialogue_rows.make_frame(chat_templates.QWEN2, tokenizer)
  text = 'Tell me more about the second of these two, please. ' * 20
  least = len(frame.write(''))
  for most in (least + 1, 20, 60, 1000):
    ids = frame.write(text, max_tokens=most)
    written = tokenizer.backend.decode(ids, skip_special_tokens=False)
    assert len(ids) <= most and written.startswith(frame.before) and written.endswith(frame.after)
    kept = written[len(frame.before) : -len(frame.after)]
    assert text.startswith(kept) and (most < 60 or len(ids) > min(most, 200) / 2)
  assert frame.write(text, max_tokens=1000) == frame.write(text)


def test_a_template_without_a_stop_token_has_no_frame(data_dir):
  tokenizer = _qwen(data_dir)
  plain = chat_templates.ChatTemplate(
      "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}"
      "{{ 'assistant: ' if add_generation_prompt }}")
  with pytest.raises(ValueError, match='must end replies in a stop token'):
    dialogue_rows.make_frame(plain, tokenizer)
  loud = chat_templates.ChatTemplate(
      chat_templates.QWEN2.source.replace('message.content', 'message.content | upper'))
  with pytest.raises(ValueError, match='write what the user says as it is'):
    dialogue_rows.make_frame(loud, tokenizer)


def test_limits_are_of_the_number_of_turns(data_dir):
  tokenizer, rows, encoded = _qwen(data_dir), _conversations(data_dir), _encoded(data_dir)
  lengths = encoded.dialogues.reply_lengths.max(axis=1)
  several = encoded.num_turns > 1
  bound = int(np.sort(lengths[several])[1])
  limits = {**{n: (2000, bound) for n in range(2, 6)}, 1: (2000, 2000)}
  got = dialogue_rows.from_conversations(rows, chat_templates.QWEN2, tokenizer, limits=limits)
  keep = ~several | (lengths <= bound)
  assert got.dialogues.example_ids.tolist() == encoded.dialogues.example_ids[keep].tolist()
  assert got.dropped == {'too_many_turns': 0, 'too_long': int((~keep).sum())}
  one = dialogue_rows.from_conversations(
      rows, chat_templates.QWEN2, tokenizer, limits={1: (2000, 2000)})
  assert one.dropped == {'too_many_turns': int(several.sum()), 'too_long': 0}
  assert one.dialogues.replies.shape[1] == 1 and one.dialogues.messages.shape[1] == 0
  with pytest.raises(ValueError, match='none of 8 conversations is left'):
    dialogue_rows.from_conversations(rows, chat_templates.QWEN2, tokenizer, limits={1: (1, 1)})
  assert dialogue_rows.ULTRAINTERACT_LIMITS[5] == dialogue_rows.HH_LIMITS[5] == (128, 512)


# --- Filters of the pipeline with a simulated user.


def _pair():
  """Five pairs of three turns with prompts of two tokens and messages of one; h = 0, 1, 2, 1, 1."""
  turn, rng = np.array([0, 1, 2, 1, 1]), np.random.default_rng(0)
  pair = []
  for _ in range(2):
    talk = dialogues.empty(
        np.ones((5, 2)), np.full(5, 2), np.arange(5), num_turns=3, reply_slots=4, message_slots=1)
    for t in range(3):
      talk = talk.with_replies(
          t, np.ones(5, bool), tokens=rng.integers(1, 9, (5, 4)), lengths=np.full(5, 3),
          log_probs=np.zeros((5, 4)), stop_reason=np.ones(5))
      if t < 2:
        talk = talk.with_messages(t, np.ones(5, bool), [[1]] * 5)
    pair.append(talk)
  return *pair, turn


def test_F10_failed_rewards_are_dropped():
  first, second, turn = _pair()
  good = np.zeros((5, 3))
  for bad in (-99_999.0, np.nan, np.inf):
    for which in (0, 1):
      rewards = [good.copy(), good.copy()]
      rewards[which][3, 2] = bad  # Of any prefix, behind turn h too.
      kept = dialogue_rows.keep_pairs(first, second, tuple(rewards), turn, max_tokens=2048)
      assert kept.keep.tolist() == [True, True, True, False, True]
      assert kept.dropped == {'sentinel': 1, 'equal_reply': 0, 'too_long': 0}


def test_F10_equal_replies_at_turn_h_are_dropped_and_ties_stay():
  first, second, turn = _pair()
  rewards = (np.ones((5, 3)), np.ones((5, 3)))
  copy = second.with_replies(
      1, np.array([True, True, False, False, False]), tokens=first.replies[:, 1],
      lengths=first.reply_lengths[:, 1], log_probs=np.zeros((5, 4)), stop_reason=np.ones(5))
  kept = dialogue_rows.keep_pairs(first, copy, rewards, turn, max_tokens=2048)
  assert kept.keep.tolist() == [True, False, True, True, True]  # Dialogue 0 has h = 0.
  assert kept.dropped == {'sentinel': 0, 'equal_reply': 1, 'too_long': 0}
  # The same ids and one more are another reply.
  longer = copy.with_replies(
      1, np.ones(5, bool), tokens=first.replies[:, 1], lengths=np.full(5, 4),
      log_probs=np.zeros((5, 4)), stop_reason=np.ones(5))
  assert dialogue_rows.keep_pairs(first, longer, rewards, turn, max_tokens=2048).keep.all()


def test_F10_length_counts_all_of_the_first_and_the_second_up_to_turn_h():
  first, second, turn = _pair()
  rewards = (np.ones((5, 3)), np.ones((5, 3)))
  # 2 + 3·3 + 2·1 = 13 tokens each; up to turn h 5, 9, 13.
  keep = lambda one, two, most: dialogue_rows.keep_pairs(
      one, two, rewards, turn, max_tokens=most).keep.tolist()
  assert keep(first, second, 13) == [True] * 5 and keep(first, second, 12) == [False] * 5
  longer = lambda talk, t: talk.with_replies(
      t, np.ones(5, bool), tokens=np.full((5, 4), 7), lengths=np.full(5, 4),
      log_probs=np.zeros((5, 4)), stop_reason=np.ones(5))
  assert keep(longer(first, 2), second, 13) == [False] * 5
  assert keep(first, longer(second, 2), 13) == [True, True, False, True, True]
  short = first.cut(1)  # 5 tokens.
  assert keep(short, second, 9) == [True, True, False, True, True]
  kept = dialogue_rows.keep_pairs(short, second, rewards, turn, max_tokens=9)
  assert kept.dropped == {'sentinel': 0, 'equal_reply': 0, 'too_long': 1}


def test_F11_the_larger_reward_comes_first_and_of_ties_the_second():
  order = dialogue_rows.chosen_first(np.array([[2.0, 1.0], [1.0, 2.0], [1.0, 1.0]]))
  assert order.tolist() == [[0, 1], [1, 0], [1, 0]]


def test_spans_of_turns():
  assert dialogue_rows.turn_spans([0, 1, 1, 0, 0, 1]) == [(1, 3), (5, 6)]
  assert dialogue_rows.turn_spans([1, 0]) == [(0, 1)] and dialogue_rows.turn_spans([0]) == []
