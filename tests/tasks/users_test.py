"""Users of several kinds: fixed questions, a program, another model."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxrl_llm.data import chat_templates, dialogues, tokenizers
from jaxrl_llm.tasks import users
from jaxrl_llm.types import STOPPED, TRUNCATED, Rollouts


def _talk(rows=3, turns=1, num_turns=4):
  """Dialogues in which reply `turns` − 1 has been said, and every earlier one answered by [8]."""
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


def test_fixed_questions_are_asked_in_turn_whatever_is_replied():
  user = users.FixedQuestions({10: [[1], [2, 2]], 11: [[3], []], 12: [[4], [5]]})
  assert user(_talk(turns=1)) == [[1], [3], [4]]
  assert user(_talk(turns=2)) == [[2, 2], [], [5]]
  np.testing.assert_array_equal(user.num_turns(np.array([[10, 12]])), [[3, 3]])
  with pytest.raises(ValueError, match='example 10 has 2 questions behind its first, and reply 2'):
    user(_talk(turns=3))
  with pytest.raises(ValueError, match='there are no questions for example 13'):
    user(_talk(rows=4))


def test_the_questions_of_dialogues_are_asked_again():
  talk = _talk(turns=3)
  user = users.questions_of(talk)
  for turn in (1, 2):
    assert [list(ids) for ids in user(_talk(turns=turn))] == [[8]] * 3
  np.testing.assert_array_equal(user.num_turns(talk.example_ids), [3, 3, 3])


@functools.cache
def _questions(data_dir):
  return users.load_questions(data_dir)


def test_questions_of_the_real_data(data_dir):
  examples, dropped = _questions(data_dir)
  assert [example['id'] for example in examples] == list(range(len(examples)))
  bench = [e for e in examples if e['source'] == 'question.jsonl']
  others = [e for e in examples if e['source'] == 'dpo_en_demo.json']
  assert len(bench) == 80 and all(len(e['questions']) == 2 for e in bench)
  assert bench[0]['questions'][0].startswith('Compose an engaging travel blog post')
  counts = np.bincount([len(e['questions']) for e in others])
  assert len(others) > 90 and counts[:2].sum() == 0 and len(counts) <= 6 and counts[3:].sum() > 50
  assert dropped == 1  # One conversation of seven turns.
  assert len(users.load_questions(data_dir, max_turns=2)[0]) == 80 + counts[2]


def test_questions_within_a_template(data_dir):
  tokenizer = tokenizers.load_tokenizer(data_dir / 'tokenizers' / 'qwen2')
  examples = _questions(data_dir)[0]
  several = [e for e in examples if len(e['questions']) > 2][:2]
  chosen = several + examples[:2] + [{**examples[2], 'system': 'Be brief.'}]
  encoded, user = users.encode_questions(chosen, chat_templates.QWEN2, tokenizer)
  assert (user.num_turns([e['id'] for e in chosen]) == [len(e['questions']) for e in chosen]).all()
  for example in encoded:
    text = tokenizer.backend.decode(example['prompt_ids'], skip_special_tokens=False)
    assert text == example['prompt'] and example['questions'][0].strip() in text
    assert text.endswith('<|im_start|>assistant\n')
    assert text.startswith(f'<|im_start|>system\n{example["system"] or "You are"}')
  row = several[0]
  talk = _talk(rows=1, turns=2)
  asked = user(dialogues.empty(
      talk.prompts, [2], [row['id']], num_turns=4, reply_slots=2, message_slots=3
  ).with_replies(0, np.ones(1, bool), tokens=np.ones((1, 2)), lengths=[2],
                 log_probs=np.zeros((1, 2)), stop_reason=[STOPPED]))
  assert tokenizer.backend.decode(asked[0], skip_special_tokens=False) == (
      f'\n<|im_start|>user\n{row["questions"][1].strip()}<|im_end|>\n<|im_start|>assistant\n')


def test_files_that_are_damaged_are_named(data_dir, tmp_path):
  with pytest.raises(ValueError, match='max_turns must be at least 2, got 1'):
    users.load_questions(data_dir, max_turns=1)
  with pytest.raises(ValueError, match='cannot read .*question.jsonl'):
    users.load_questions(tmp_path)
  (tmp_path / 'mt_bench').mkdir()
  (tmp_path / 'mt_bench' / 'question.jsonl').write_text('{"turns": ["What?", 3]}\n')
  with pytest.raises(ValueError, match="question.jsonl: 'turns' must be texts"):
    users.load_questions(tmp_path)


def test_a_program_reads_turns_and_a_seed():
  talk = _talk(turns=2)
  talk = dataclasses.replace(talk, seeds=np.array([4, 5, 6], np.uint32))
  seen = []

  def answer(turns, seed):
    seen.append(([ids.tolist() for ids in turns], seed))
    return [seed]

  assert users.ProgramUser(answer)(talk) == [[4], [5], [6]]
  assert seen[1] == ([[5, 5], [1, 1], [8], [2, 2]], 5)


@pytest.mark.parametrize('sequence, mark, expected', [
    ('I wonder. Question: why?', 'Question:', ' why?'),
    ('Question: a Question: b', 'Question:', ' b'),
    ('I forgot the mark.', 'Question:', 'I forgot the mark.'),  # All of it is kept.
    ('Question:', 'Question:', ''),
    ([1, 2, 3, 2, 3, 4], [2, 3], [4]), ([1, 2], [2, 3], [1, 2]), ([], [2], []),
    ([1, 2], [], [1, 2]),
])
def test_the_question_stands_behind_the_last_mark(sequence, mark, expected):
  assert users.after_last(sequence, mark) == expected


def test_a_model_reads_the_transcript_and_its_words_are_framed():
  seen = []

  def sample(params, prompts, lengths, ids, key):
    """Says its noise, a mark and the number of tokens that it read; stops or not by the row."""
    seen.append((prompts, lengths, ids))
    rows = len(prompts)
    tokens = np.stack([ids, np.full(rows, 77), lengths, np.full(rows, 0)], axis=1)[:, None]
    stop = np.where(ids % 2, STOPPED, TRUNCATED)[:, None]
    return Rollouts(prompts, lengths, tokens, np.full((rows, 1), 4), None, None, stop)

  talk = _talk(rows=5, turns=2)
  seeds = np.array([3, 2, 2**31 + 5, 2**32 - 1, 8], np.uint32)
  talk = dataclasses.replace(talk, seeds=seeds)
  user = users.ModelUser(
      sample, None, jax.random.key(0), slots=12, rows=3, opening=[90], request=[91, 92], mark=[77],
      before=[1], after=[2])
  messages = user(talk)
  # A stop token that was chosen is not part of the message; one that is none stays.
  assert messages == [
      [1, 10, *([] if (int(seed) >> 1) % 2 else [0]), 2] for seed in seeds]
  assert [part[0].shape for part in seen] == [(3, 12)] * 2  # One shape for five dialogues.
  prompt = [0, 0, 90, 5, 5, 1, 1, 8, 2, 2, 91, 92]
  assert seen[0][0].tolist() == [prompt] * 3 and (seen[0][1] == 10).all()
  assert seen[1][2].tolist() == [2**31 - 1, 4, 2**31 - 1] and seen[0][2].dtype == np.int32
  whole = users.ModelUser(sample, None, None, slots=12, rows=5, mark=[78])(talk)
  assert whole[0] == [1, 77, 7]  # Without the mark everything that it said is kept.
  # A model that stops at once says nothing, and the next turn begins all the same.
  def silent(params, prompts, lengths, ids, key):
    said = np.full((len(prompts), 1, 1), 9)
    ones = np.ones((len(prompts), 1), int)
    return Rollouts(prompts, lengths, said, ones, None, None, ones * STOPPED)

  quiet = users.ModelUser(silent, None, None, slots=12, rows=2, mark=[77], before=[1], after=[2])
  assert quiet(talk) == [[1, 2]] * 5
  with pytest.raises(ValueError, match='reads at most 6 tokens \\(slots\\), got 7'):
    users.ModelUser(sample, None, None, slots=6, rows=5)(talk)
  with pytest.raises(ValueError, match='rows must be at least 1, got 0'):
    users.ModelUser(sample, None, None, slots=6, rows=0)
