"""Dialogues as ids: appended turns, transcripts, continuations and prefixes."""

import numpy as np
import pytest

from jaxrl_llm import types
from jaxrl_llm.data import dialogues

ROWS, TURNS, REPLY, MESSAGE, PAD = 5, 3, 3, 2, 9


def _draw_dialogues(seed=0):
  """Draws dialogues of 0 to 3 replies and messages of 0 to 2 tokens.

  Returns:
    (dialogues, their turns as lists).
  """
  rng = np.random.default_rng(seed)
  draw = lambda low, high: rng.integers(1, 9, rng.integers(low, high + 1)).tolist()
  prompts = [draw(1, 4) for _ in range(ROWS)]
  padded = np.full((ROWS, 4), PAD)
  for row, prompt in enumerate(prompts):
    padded[row, 4 - len(prompt):] = prompt
  talk = dialogues.empty(
      padded, [len(prompt) for prompt in prompts], 10 + np.arange(ROWS), num_turns=TURNS,
      reply_slots=REPLY, message_slots=MESSAGE, pad_id=PAD)

  history = [[prompt] for prompt in prompts]
  for turn in range(TURNS):
    rows = np.arange(ROWS) >= turn * 2
    replies = [draw(1, REPLY) for _ in range(ROWS)]
    tokens = np.full((ROWS, REPLY), 7)  # Tokens after the end of a reply are not read.
    for row, reply in enumerate(replies):
      tokens[row, : len(reply)] = reply
    talk = talk.with_replies(
        turn, rows, tokens=tokens, lengths=[len(reply) for reply in replies],
        log_probs=-0.1 * tokens, stop_reason=np.arange(ROWS) % 2)

    answered = rows & (np.arange(ROWS) > turn * 2) if turn < TURNS - 1 else np.zeros(ROWS, bool)
    messages = [draw(0, MESSAGE) for _ in range(answered.sum())]
    if turn < TURNS - 1:
      talk = talk.with_messages(turn, answered, messages)

    for row in np.flatnonzero(rows):
      history[row].append(replies[row])
    for row, message in zip(np.flatnonzero(answered), messages):
      history[row].append(message)
  return talk, history


@pytest.mark.parametrize('seed', range(4))
def test_turns_are_the_appended_ids(seed):
  talk, history = _draw_dialogues(seed)
  for row in range(ROWS):
    # An empty last message is equivalent to no message.
    expected = history[row][:-1] if len(history[row]) % 2 and not history[row][-1] else history[row]
    assert [ids.tolist() for ids in talk.turns(row)] == expected
  np.testing.assert_array_equal(talk.num_replies, [len(turns) // 2 for turns in history])


@pytest.mark.parametrize('seed', range(4))
def test_a_transcript_is_everything_before_a_reply(seed):
  talk, history = _draw_dialogues(seed)
  for turn in range(TURNS + 1):
    tokens, lengths = talk.transcript(turn)
    assert tokens.shape == (ROWS, 4 + turn * (REPLY + MESSAGE)) and tokens.dtype == np.int32
    for row in range(ROWS):
      ids = [token for part in history[row][: 1 + 2 * turn] for token in part]
      assert tokens[row].tolist() == [PAD] * (tokens.shape[1] - len(ids)) + ids
      assert lengths[row] == len(ids)


@pytest.mark.parametrize('seed', range(4))
def test_a_continuation_is_everything_after_the_prompt(seed):
  talk, history = _draw_dialogues(seed)
  got = talk.continuation()
  assert got.tokens.shape == (ROWS, TURNS * REPLY + (TURNS - 1) * MESSAGE)
  for row in range(ROWS):
    ids, turns = [], []
    for index, part in enumerate(history[row][1:]):
      ids += part
      turns += [-1 if index % 2 else index // 2] * len(part)
    n = len(ids)
    assert got.lengths[row] == n and got.tokens[row, :n].tolist() == ids
    assert (got.tokens[row, n:] == PAD).all()
    assert got.turns[row].tolist() == turns + [-1] * (got.turns.shape[1] - n)
    np.testing.assert_array_equal(got.mask[row], got.turns[row] >= 0)
    np.testing.assert_allclose(
        got.log_probs[row, :n], [-0.1 * i if t >= 0 else 0 for i, t in zip(ids, turns)], atol=1e-6)


def test_cut_returns_the_dialogue_before_a_reply():
  talk, history = _draw_dialogues()
  at = np.array([0, 1, 1, 2, 3])
  cut = talk.cut(at)
  for row, turn in enumerate(at):
    expected = history[row][: 1 + 2 * turn]
    expected = expected[:-1] if len(expected) % 2 and not expected[-1] else expected
    assert [ids.tolist() for ids in cut.turns(row)] == expected
    gone = slice(turn, None)
    assert not cut.reply_lengths[row, gone].any() and not cut.message_lengths[row, gone].any()
    assert (cut.replies[row, gone] == PAD).all() and not cut.log_probs[row, gone].any()
    assert (cut.stop_reason[row, gone] == types.TRUNCATED).all()
  assert talk.reply_lengths.sum() > cut.reply_lengths.sum()  # The original is unchanged.
  np.testing.assert_array_equal(
      talk.reply_tokens(at), talk.reply_tokens() - cut.reply_tokens())


def test_several_leading_axes():
  talk, _ = _draw_dialogues()
  rows = np.array([[0, 4, 2], [3, 3, 1]])
  stacked = talk[rows]
  assert stacked.prompt_lengths.shape == (2, 3)
  for method in (lambda d: d.transcript(2)[0], lambda d: d.continuation().tokens,
                 lambda d: d.continuation().turns, lambda d: d.num_replies,
                 lambda d: d.cut(1).replies):
    np.testing.assert_array_equal(method(stacked), method(talk)[rows])
  some = rows > 1
  np.testing.assert_array_equal(stacked[some].replies, talk[rows[some]].replies)
  answered = stacked.with_messages(1, some, [[5], [], [6, 5], [4]])
  np.testing.assert_array_equal(answered.message_lengths[some][:, 1], [1, 0, 2, 1])
  np.testing.assert_array_equal(
      answered.message_lengths[~some], stacked.message_lengths[~some])


def test_ids_that_do_not_fit_are_named():
  talk, _ = _draw_dialogues()
  everyone = np.ones(ROWS, bool)
  for messages, line in (
      ([[1]] * 4, 'a user must answer 5 dialogues, got 4 messages'),
      ([[1]] * 4 + [[1] * 3],
       "a user's message must have at most 2 tokens (message_slots), got 3")):
    with pytest.raises(ValueError) as error:
      talk.with_messages(0, everyone, messages)
    assert str(error.value) == line

  with pytest.raises(ValueError, match='at least one token, reply 1 has none'):
    talk.with_replies(1, everyone, tokens=np.zeros((ROWS, REPLY)), lengths=[1, 1, 0, 1, 1],
                      log_probs=np.zeros((ROWS, REPLY)), stop_reason=np.zeros(ROWS))
  for field in ('num_turns', 'reply_slots'):
    slots = {'num_turns': 1, 'reply_slots': 1, 'message_slots': 0, field: 0}
    with pytest.raises(ValueError, match=f'{field} must be at least 1, got 0'):
      dialogues.empty(np.ones((1, 1)), [1], [0], **slots)
