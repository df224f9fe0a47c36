"""Text of a template between turns, and the released filters."""

import functools

import numpy as np
import pytest

from jaxrl_llm.data import chat_templates, conversations, dialogue_rows, dialogues, tokenizers


@functools.cache
def _qwen(data_dir):
  return tokenizers.load_tokenizer(data_dir / 'tokenizers' / 'qwen2')


@functools.cache
def _conversations(data_dir):
  """Real conversations, some of them with several turns."""
  rows = conversations.read_conversations(data_dir / 'preferences' / 'dpo_en_demo.json')
  chosen = [row for row in rows if sum(map(len, map(str, row['messages']))) < 4000]
  several = [row for row in chosen if len(row['messages']) >= 4]
  return several[:6] + [row for row in chosen if len(row['messages']) == 2][:2]


def test_a_frame_equals_the_template_between_turns(data_dir):
  tokenizer, rows = _qwen(data_dir), _conversations(data_dir)
  frame = dialogue_rows.make_frame(chat_templates.QWEN2, tokenizer)
  assert (frame.before, frame.after) == (
      '\n<|im_start|>user\n', '<|im_end|>\n<|im_start|>assistant\n')
  assert frame.close_ids == tuple(tokenizer.encode('<|im_end|>'))

  encoded = chat_templates.encode_conversations(
      chat_templates.QWEN2, tokenizer, [row['messages'] for row in rows])
  count = 0
  for row, (ids, marks) in zip(rows, encoded):
    # Ids between two replies of the assistant, which include their stop tokens.
    edges = np.flatnonzero(np.diff(marks)) + 1
    runs = np.split(np.asarray(ids), edges)
    between = [run.tolist() for run in runs[2::2]]
    texts = [m['content'] for m in row['messages'] if m['role'] == 'user']
    for text, expected in zip(texts[1:], between):
      if text == text.strip():
        assert frame.write(text) == expected
        count += 1
  assert count > 5


def test_a_long_message_is_truncated_inside_its_frame(data_dir):
  tokenizer = _qwen(data_dir)
  frame = dialogue_rows.make_frame(chat_templates.QWEN2, tokenizer)
  text = 'Tell me more about the second of these two, please. ' * 20
  least = len(frame.write(''))
  for most in (least + 1, 20, 60, 1000):
    ids = frame.write(text, max_tokens=most)
    written = tokenizer.backend.decode(ids, skip_special_tokens=False)
    assert len(ids) <= most and written.startswith(frame.before) and written.endswith(frame.after)
    truncated = written[len(frame.before) : -len(frame.after)]
    assert text.startswith(truncated) and (most < 60 or len(ids) > min(most, 200) / 2)
  assert frame.write(text, max_tokens=1000) == frame.write(text)


def test_a_template_without_a_stop_token_has_no_frame(data_dir):
  tokenizer = _qwen(data_dir)
  plain = chat_templates.ChatTemplate(
      "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}"
      "{{ 'assistant: ' if add_generation_prompt }}")
  with pytest.raises(ValueError, match='must end replies with a stop token'):
    dialogue_rows.make_frame(plain, tokenizer)
  loud = chat_templates.ChatTemplate(
      chat_templates.QWEN2.source.replace('message.content', 'message.content | upper'))
  with pytest.raises(ValueError, match="write the user's text unchanged"):
    dialogue_rows.make_frame(loud, tokenizer)


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


def test_F10_equal_replies_at_turn_h_are_dropped():
  first, second, turn = _pair()
  copy = second.with_replies(
      1, np.array([True, True, False, False, False]), tokens=first.replies[:, 1],
      lengths=first.reply_lengths[:, 1], log_probs=np.zeros((5, 4)), stop_reason=np.ones(5))
  pairs = dialogue_rows.keep_pairs(first, copy, turn, max_tokens=2048)
  assert pairs.keep.tolist() == [True, False, True, True, True]  # Dialogue 0 has h = 0.
  assert pairs.dropped == {'equal_reply': 1, 'too_long': 0}
  # A reply with one more id is different.
  longer = copy.with_replies(
      1, np.ones(5, bool), tokens=first.replies[:, 1], lengths=np.full(5, 4),
      log_probs=np.zeros((5, 4)), stop_reason=np.ones(5))
  assert dialogue_rows.keep_pairs(first, longer, turn, max_tokens=2048).keep.all()


def test_F10_lengths_are_of_the_whole_first_dialogue_and_the_second_up_to_turn_h():
  first, second, turn = _pair()
  # 2 + 3·3 + 2·1 = 13 tokens each; up to turn h 5, 9, 13.
  keep = lambda one, two, most: dialogue_rows.keep_pairs(
      one, two, turn, max_tokens=most).keep.tolist()
  assert keep(first, second, 13) == [True] * 5 and keep(first, second, 12) == [False] * 5
  longer = lambda talk, t: talk.with_replies(
      t, np.ones(5, bool), tokens=np.full((5, 4), 7), lengths=np.full(5, 4),
      log_probs=np.zeros((5, 4)), stop_reason=np.ones(5))
  assert keep(longer(first, 2), second, 13) == [False] * 5
  assert keep(first, longer(second, 2), 13) == [True, True, False, True, True]
  short = first.cut(1)  # 5 tokens.
  assert keep(short, second, 9) == [True, True, False, True, True]
  pairs = dialogue_rows.keep_pairs(short, second, turn, max_tokens=9)
  assert pairs.dropped == {'equal_reply': 0, 'too_long': 1}
