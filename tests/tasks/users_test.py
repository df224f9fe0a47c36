"""Users of several kinds: fixed questions, a program, another model."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrl_llm.data import chat_templates, dialogues, tokenizers
from jaxrl_llm.tasks import users
from jaxrl_llm.types import STOPPED, TRUNCATED, Rollouts


def _talk(rows=3, turns=1, num_turns=4):
  """Dialogues of `turns` replies, of which all but the last are answered by [8]."""
  talk = dialogues.empty(
      np.full((rows, 2), 5), np.full(rows, 2), 10 + np.arange(rows), num_turns=num_turns,
      reply_slots=2, message_slots=3)
  everyone = np.ones(rows, bool)
  for turn in range(turns):
    talk = talk.with_replies(
        turn, everyone, tokens=np.full((rows, 2), 1 + turn), lengths=np.full(rows, 2),
        log_probs=np.zeros((rows, 2)), stop_reason=np.full(rows, STOPPED))
    if turn + 1 < turns:
      talk = talk.with_messages(turn, everyone, [[8]] * rows)
  return talk


def test_fixed_questions_do_not_depend_on_the_replies():
  user = users.FixedQuestions({10: [[1], [2, 2]], 11: [[3], []], 12: [[4], [5]]})
  assert user(_talk(turns=1)) == [[1], [3], [4]]
  assert user(_talk(turns=2)) == [[2, 2], [], [5]]
  np.testing.assert_array_equal(user.num_turns(np.array([[10, 12]])), [[3, 3]])
  with pytest.raises(ValueError, match='example 10 has 2 questions after its first, and reply 2'):
    user(_talk(turns=3))
  with pytest.raises(ValueError, match='there are no questions for example 13'):
    user(_talk(rows=4))


def test_the_questions_of_dialogues_are_asked_again():
  talk = _talk(turns=3)
  user = users.questions_of(talk)
  for turn in (1, 2):
    assert [list(ids) for ids in user(_talk(turns=turn))] == [[8]] * 3
  np.testing.assert_array_equal(user.num_turns(talk.example_ids), [3, 3, 3])


def test_questions_within_a_template(data_dir):
  tokenizer = tokenizers.load_tokenizer(data_dir / 'tokenizers' / 'qwen2')
  asked = [['Who?', ' Why, then? ', 'So?'], ['What?', 'More'], ['One'], ['Hi', 'Go on']]
  chosen = [{'id': 3 + i, 'questions': texts, 'system': ''} for i, texts in enumerate(asked)]
  chosen[-1]['system'] = 'Be brief.'
  encoded, user = users.encode_questions(chosen, chat_templates.QWEN2, tokenizer)
  assert (user.num_turns([e['id'] for e in chosen]) == [len(e['questions']) for e in chosen]).all()
  for example in encoded:
    text = tokenizer.backend.decode(example['prompt_ids'], skip_special_tokens=False)
    assert text == example['prompt'] and example['questions'][0].strip() in text
    assert text.endswith('<|im_start|>assistant\n')
    assert text.startswith(f'<|im_start|>system\n{example["system"] or "You are"}')

  row = chosen[0]
  talk = _talk(rows=1, turns=2)
  asked = user(dialogues.empty(
      talk.prompts, [2], [row['id']], num_turns=4, reply_slots=2, message_slots=3
  ).with_replies(0, np.ones(1, bool), tokens=np.ones((1, 2)), lengths=[2],
                 log_probs=np.zeros((1, 2)), stop_reason=[STOPPED]))
  assert tokenizer.backend.decode(asked[0], skip_special_tokens=False) == (
      f'\n<|im_start|>user\n{row["questions"][1].strip()}<|im_end|>\n<|im_start|>assistant\n')


@pytest.mark.parametrize('text, expected', [
    ('I wonder. Question: why?', ('why?', True)),
    ('Question: a Question: b\n', ('b', True)),
    ('**Question:** *why*?', ('*why*?', True)),
    (' I forgot the mark. ', ('I forgot the mark.', False)),  # All of it is kept.
    ('**No** mark.', ('**No** mark.', False)),
    ('Question:', ('', True)), ('', ('', False)),
])
def test_the_question_is_after_the_last_mark(text, expected):
  assert users.after_last(text, 'Question:') == expected


def test_messages_without_a_mark_are_counted():
  marked = users.Marked('Ask:', str.split)
  assert np.isnan(marked.pop_unmarked())
  texts = ['I see. Ask: is it so?', 'It is.', 'Ask:', 'Well']
  assert [marked(text) for text in texts] == [['is', 'it', 'so?'], ['It', 'is.'], [], ['Well']]
  assert marked.pop_unmarked() == 0.5 and np.isnan(marked.pop_unmarked())


def test_a_model_reads_the_transcript_and_its_message_is_framed():
  seen = []

  def sample(params, prompts, lengths, ids, key):
    """Says its noise, 77 and the number of tokens that it read; stops or not by the row."""
    seen.append((prompts, lengths, ids))
    rows = len(prompts)
    tokens = np.stack([ids, np.full(rows, 77), lengths, np.full(rows, 0)], axis=1)[:, None]
    stop = np.where(ids % 2, STOPPED, TRUNCATED)[:, None]
    return Rollouts(prompts, lengths, tokens, np.full((rows, 1), 4), None, None, stop)

  talk = _talk(rows=5, turns=2)
  seeds = np.array([3, 2, 2**31 + 5, 2**32 - 1, 8], np.uint32)
  talk = dataclasses.replace(talk, seeds=seeds)
  user = users.ModelUser(
      sample, None, jax.random.key(0), slots=12, rows=3, opening=[90], request=[91, 92],
      write=lambda ids: [1, *ids[::2], 2])
  messages = user(talk)
  assert messages == [
      [1, int(seed) >> 1, 10, 2] for seed in seeds]
  assert [part[0].shape for part in seen] == [(3, 12)] * 2  # One shape for five dialogues.
  prompt = [0, 0, 90, 5, 5, 1, 1, 8, 2, 2, 91, 92]
  assert seen[0][0].tolist() == [prompt] * 3 and (seen[0][1] == 10).all()
  assert seen[1][2].tolist() == [2**31 - 1, 4, 2**31 - 1] and seen[0][2].dtype == np.int32
  whole = users.ModelUser(sample, None, None, slots=12, rows=5)(talk)
  # A stop token that was chosen is not part of the message; one that is none stays.
  assert whole == [
      [int(seed) >> 1, 77, 7, *([] if (int(seed) >> 1) % 2 else [0])] for seed in seeds]
  # A model that stops at once says nothing, and the next turn begins all the same.
  def silent(params, prompts, lengths, ids, key):
    tokens = np.full((len(prompts), 1, 1), 9)
    ones = np.ones((len(prompts), 1), int)
    return Rollouts(prompts, lengths, tokens, ones, None, None, ones * STOPPED)

  quiet = users.ModelUser(silent, None, None, slots=12, rows=2)
  assert quiet(talk) == [[]] * 5
  # A truncated reply is closed by the missing ids, as in the transcript of the next turn.
  cut = dataclasses.replace(talk, stop_reason=np.where(
      np.arange(5)[:, None] == 1, TRUNCATED, talk.stop_reason))
  seen.clear()
  users.ModelUser(sample, None, None, slots=9, rows=5, request=[91], close_ids=[70])(cut)
  assert seen[0][0][:2].tolist() == [[0, 5, 5, 1, 1, 8, 2, 2, 91], [5, 5, 1, 1, 8, 2, 2, 70, 91]]
  with pytest.raises(ValueError, match='must have at most 6 tokens \\(slots\\), got 7'):
    users.ModelUser(sample, None, None, slots=6, rows=5)(talk)
  with pytest.raises(ValueError, match='rows must be at least 1, got 0'):
    users.ModelUser(sample, None, None, slots=6, rows=0)
