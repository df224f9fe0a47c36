"""Roll-outs with a user: token ids, resets at a turn, and the distribution of the turn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl_llm import types
from jaxrl_llm.data import dialogues
from jaxrl_llm.models import configs, policy
from jaxrl_llm.rl import scoring
from jaxrl_llm.sampling import decode, dialogue
from tests.models import witness
from tests.sampling import models

STOP = PAD = 0  # The padding shares its id with the stop token.
TURNS, REPLY, MESSAGE = 3, 2, 3
KEY = jax.random.key(5)
SIGNIFICANCE = 1e-4

# All tokens are equally likely: replies have one or two tokens, and stop or are truncated.
BIGRAM, TABLE = models.bigram(np.zeros((7, 7)))


@functools.cache
def _sample(slots=REPLY):
  return jax.jit(decode.make_sampler(
      BIGRAM, num_samples=1, max_tokens=slots, stop_ids=(STOP,), pad_id=PAD))


def _empty(prompts=6, num_turns=TURNS, **changes):
  rng = np.random.default_rng(0)
  slots = dict(reply_slots=REPLY, message_slots=MESSAGE) | changes
  return dialogues.empty(
      rng.integers(1, 7, (prompts, 4)), 1 + np.arange(prompts) % 4, 10 + np.arange(prompts),
      num_turns=num_turns, **slots)


def _user(waiting):
  """Zero to two tokens, depending on the noise and the last reply."""
  return [[1 + int(seed) % 5] * (int(seed) // 16 % 3) + [6] * int(reply)
          for seed, reply in zip(waiting.seeds, waiting.replies[:, 0, 0] == 6)]


def _roll(talk, /, *, user=_user, sample=None, key=KEY, **arguments):
  return dialogue.roll_out(sample or _sample(), TABLE, user, talk, key, **arguments)


@functools.cache
def _pair(turn=(0, 1, 2, 1, 0, 2), ends=(3, 3, 3, 2, 1, 3)):
  """Two roll-outs of six dialogues that start again at `turn` and end after `ends` replies."""
  turn, ends = np.array(turn), np.array(ends)
  first = _roll(_empty(), num_turns=ends)
  return first, _roll(first, rollout=1, start=turn, num_turns=ends), turn, ends


def _row(talk, row):
  """The ids of a dialogue, and for each the turn of its reply (−1 for the user's)."""
  ids, turns = [], []
  for index, turn_ids in enumerate(talk.turns(row)):
    ids += turn_ids.tolist()
    turns += [index // 2 if index % 2 else -1] * len(turn_ids)
  return ids, turns


# --- Token ids.


def test_sampled_ids_are_the_ids_in_the_loss_at_every_turn():
  inputs, replies, messages = [], [], []

  def sample(params, prompts, lengths, ids, key):
    rollouts = _sample()(params, prompts, lengths, ids, key)
    inputs.append((prompts, lengths))
    replies.append(np.asarray(rollouts.tokens[:, 0]))
    return rollouts

  def user(talk):
    messages.append(_user(talk))
    return messages[-1]

  first = _roll(_empty(), sample=sample, user=user)
  rollouts, aux = dialogue.as_rollouts([first, first], np.zeros(6, int))
  is_some_truncated = False

  for row in range(6):
    prompt = first.prompts[row, 4 - first.prompt_lengths[row] :].tolist()
    ids, turns = list(prompt), [-1] * len(prompt)
    for turn in range(TURNS):
      prompts, lengths = inputs[turn]
      assert prompts.shape == (6, 4 + turn * (REPLY + MESSAGE))
      assert prompts[row, prompts.shape[1] - lengths[row] :].tolist() == ids
      reply = replies[turn][row].tolist()
      if STOP in reply:
        reply = reply[: reply.index(STOP) + 1]
      is_some_truncated |= STOP not in reply
      ids += reply
      turns += [turn] * len(reply)
      if turn < TURNS - 1:
        ids += messages[turn][row]
        turns += [-1] * len(messages[turn][row])

    assert (ids, turns) == _row(first, row)
    ids, turns = ids[len(prompt) :], turns[len(prompt) :]
    for k in range(2):
      assert rollouts.lengths[row, k] == len(ids)
      assert rollouts.tokens[row, k, : len(ids)].tolist() == ids
      assert aux['turns'][row, k, : len(ids)].tolist() == turns
      assert rollouts.mask[row, k, : len(ids)].tolist() == [float(t >= 0) for t in turns]
      assert not rollouts.mask[row, k, len(ids) :].any()
      assert (aux['turns'][row, k, len(ids) :] == -1).all()
  assert is_some_truncated


def test_F9_masks_of_turns_are_disjoint_and_cover_all_replies():
  first, second, turn, _ = _pair()
  rollouts, aux = dialogue.as_rollouts([first, second], turn)
  union = np.zeros_like(rollouts.mask)
  for t in range(TURNS):
    mask = rollouts.mask * (aux['turns'] == t)
    assert not (union * mask).any()
    union += mask
    for k, talk in enumerate((first, second)):
      np.testing.assert_array_equal(mask[:, k].sum(axis=-1), talk.reply_lengths[:, t])
      # The stop token of a reply is its last one; nothing else in the mask is one.
      stops = (mask[:, k] * (rollouts.tokens[:, k] == STOP)).sum(axis=-1)
      np.testing.assert_array_equal(stops, talk.stop_reason[:, t] == types.STOPPED)
  np.testing.assert_array_equal(union, rollouts.mask)


@functools.cache
def _network():
  model = policy.make(configs.TransformerConfig(
      vocab_size=7, num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=24,
      max_length=32))
  params = jax.tree.map(lambda leaf: 0.7 * leaf, witness.draw_params(model, 1))
  sample = jax.jit(decode.make_sampler(
      model, num_samples=1, max_tokens=REPLY, stop_ids=(STOP,), pad_id=PAD))
  return model, params, sample


@functools.cache
def _networks_dialogue(widths):
  _, params, sample = _network()
  return dialogue.roll_out(sample, params, _user, _empty(), KEY, widths=widths)


def test_log_probs_are_the_trainers_in_every_turn():
  model, params, _ = _network()
  talk = _networks_dialogue('growing')
  rollouts, _ = dialogue.as_rollouts([talk], np.zeros(6, int))
  log_probs, _ = jax.jit(functools.partial(scoring.score, model))(params, rollouts)
  np.testing.assert_allclose(log_probs, rollouts.log_probs, atol=1e-5)
  assert (rollouts.log_probs[rollouts.mask > 0] < -0.01).all()


def test_the_width_of_a_transcript_has_no_effect():
  growing, fixed = _networks_dialogue('growing'), _networks_dialogue('fixed')
  for name in ('replies', 'reply_lengths', 'messages', 'message_lengths'):
    np.testing.assert_array_equal(getattr(growing, name), getattr(fixed, name))
  np.testing.assert_allclose(growing.log_probs, fixed.log_probs, atol=1e-5)


def test_fixed_widths_compile_once():
  model, params = models.bigram(np.zeros((7, 7)), seen=(seen := []))
  sample = jax.jit(decode.make_sampler(
      model, num_samples=1, max_tokens=1, stop_ids=(STOP,), pad_id=PAD))
  for widths, expected in (('fixed', {14}), ('growing', {4, 9, 14})):
    seen.clear()
    sample.clear_cache()
    dialogue.roll_out(
        sample, jnp.asarray(params), lambda waiting: [[1] * 4] * len(waiting),
        _empty(reply_slots=1, message_slots=4), KEY, widths=widths)
    widths = [shape[1] for shape in seen if shape[1] > 1]  # Of the traced transcripts.
    assert set(widths) == expected and len(widths) == len(expected)


# --- Replies that do not stop.


def test_a_truncated_reply_gets_no_stop_token_in_the_loss():
  model, params = models.chain([1, 2, 3, 1, 1, 1, 1])  # 1 2 3 1 2 ...: never stops.
  sample = jax.jit(decode.make_sampler(
      model, num_samples=1, max_tokens=REPLY, stop_ids=(STOP,), pad_id=PAD))
  start = dialogues.empty(
      np.array([[4]]), [1], [0], num_turns=2, reply_slots=REPLY, message_slots=MESSAGE)
  talk = dialogue.roll_out(
      sample, params, lambda waiting: [[4]] * len(waiting), start, KEY, close_ids=(STOP, 5))
  # The turn is ended by the user's message, which is not in the loss.
  assert _row(talk, 0) == ([4, 1, 2, STOP, 5, 4, 1, 2], [-1, 0, 0, -1, -1, -1, 1, 1])
  assert (talk.stop_reason == types.TRUNCATED).all()
  rollouts, _ = dialogue.as_rollouts([talk, talk], np.zeros(1, int))
  assert rollouts.mask[0, 0].tolist() == [1, 1, 0, 0, 0, 1, 1]
  assert rollouts.stop_reason.tolist() == [[types.TRUNCATED] * 2]


def test_a_reply_that_stopped_is_not_ended_again():
  first = _roll(_empty(), close_ids=(5,), user=lambda waiting: [[4]] * len(waiting))
  for row in range(6):
    for turn in range(TURNS - 1):
      message = first.messages[row, turn, : first.message_lengths[row, turn]].tolist()
      is_truncated = first.stop_reason[row, turn] == types.TRUNCATED
      assert message == ([5, 4] if is_truncated else [4])
  assert {0, 1} == set(first.stop_reason.reshape(-1).tolist())


def test_the_stop_reason_of_a_pair_is_that_of_turn_h():
  first, second, turn, _ = _pair()
  rollouts, aux = dialogue.as_rollouts([first, second], turn)
  np.testing.assert_array_equal(aux['turn'], turn)
  for row, h in enumerate(turn):
    expected = [first.stop_reason[row, h], second.stop_reason[row, h]]
    assert rollouts.stop_reason[row].tolist() == expected


# --- Restarts at turn h.


def test_F3_both_share_everything_up_to_the_users_turn_h():
  first, second, turn, ends = _pair()
  for row, (h, end) in enumerate(zip(turn, ends)):
    for talk in (first, second):
      assert talk.num_replies[row] == end
    until = 1 + 2 * h
    one, two = first.turns(row), second.turns(row)
    assert [x.tolist() for x in one[:until]] == [x.tolist() for x in two[:until]]
  np.testing.assert_array_equal(second.prompts, first.prompts)
  # Ids and log-probs of the prefix are copied; the rest differs somewhere.
  assert (first.replies != second.replies).any() and (first.messages != second.messages).any()


def test_F3_later_turns_are_independent():
  # Replies of one token with known probabilities, and a user whose message is its noise.
  logits = np.zeros((7, 7))
  logits[:, 1:4] = [2.0, 1.0, 1.5]
  logits[:, [0, 4, 5, 6]] = -50
  model, params = models.bigram(logits)
  sample = jax.jit(jax.vmap(decode.make_sampler(
      model, num_samples=1, max_tokens=1, stop_ids=(1, 2, 3), pad_id=0), (None, 0, 0, 0, 0)))
  seeds, prompts = 40, 50
  ids = np.broadcast_to(np.arange(prompts), (seeds, prompts))
  start = dialogues.empty(
      np.full((seeds, prompts, 1), 4), np.ones(ids.shape, int), ids, num_turns=3, reply_slots=1,
      message_slots=1)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(seeds))

  user = lambda waiting: (4 + waiting.seeds % 2).astype(int)[:, None]
  first = dialogue.roll_out(sample, params, user, start, keys)
  second = dialogue.roll_out(sample, params, user, first, keys, rollout=1, start=1)
  np.testing.assert_array_equal(first.replies[..., 0, :], second.replies[..., 0, :])
  np.testing.assert_array_equal(first.messages[..., 0, :], second.messages[..., 0, :])

  probs = np.exp([2.0, 1.0, 1.5])
  probs /= probs.sum()
  half = np.array([0.5, 0.5])
  both = lambda name, turn: [getattr(d, name)[..., turn, 0].reshape(-1) for d in (first, second)]
  for (x, y), p, q, offset in (
      (both('replies', 1), probs, probs, 1), (both('replies', 2), probs, probs, 1),
      (both('messages', 1), half, half, 4),
      ((both('replies', 1)[0], both('replies', 2)[1]), probs, probs, 1),
      ((both('replies', 0)[0], both('replies', 1)[0]), probs, probs, 1),
      ((both('messages', 1)[0], both('replies', 1)[1]), half, probs, (4, 1))):
    offset = np.broadcast_to(offset, 2)
    counts = np.zeros((len(p), len(q)))
    np.add.at(counts, (x - offset[0], y - offset[1]), 1)
    expected = np.outer(p, q) * len(x)
    assert stats.chisquare(counts.ravel(), expected.ravel()).pvalue > SIGNIFICANCE


def test_the_same_roll_out_from_any_turn_is_the_same():
  first = _roll(_empty())
  again = _roll(first, start=np.array([0, 1, 2, 1, 0, 2]))
  for field in dataclasses.fields(first):
    if field.name not in ('seeds', 'pad_id'):  # `seeds` are those of the user's last message.
      np.testing.assert_array_equal(getattr(again, field.name), getattr(first, field.name))


def test_noise_depends_on_the_example_and_not_on_the_batch():
  start, order = _empty(), np.array([4, 1, 5, 0])
  first, some = _roll(start), _roll(start[order])
  np.testing.assert_array_equal(some.replies, first.replies[order])
  np.testing.assert_array_equal(some.messages, first.messages[order])
  # A repeated prompt is sampled twice.
  twice = _roll(start[np.array([3, 0, 3])])
  np.testing.assert_array_equal(twice.replies[0], first.replies[3])
  assert (twice.replies[2] != first.replies[3]).any()
  assert (twice.seeds[0], twice.seeds[1]) == (first.seeds[3], first.seeds[0])
  assert twice.seeds[2] != twice.seeds[0]
  other = _roll(start, key=jax.random.key(6))
  assert (other.replies != first.replies).any() and (other.messages != first.messages).any()


def test_every_turn_and_roll_out_has_different_noise():
  seeds = []

  def user(waiting):
    seeds.append(waiting.seeds.copy())
    return [[6]] * len(waiting)

  first = _roll(_empty(), user=user)
  _roll(first, user=user, rollout=1)
  values = np.concatenate(seeds)
  assert len(values) == 6 * 2 * 2 and len(np.unique(values)) == len(values)
  assert values.min() < 2**31 < values.max()


def test_only_dialogues_that_continue_call_the_user():
  calls = []

  def user(waiting):
    calls.append((waiting.example_ids.tolist(), waiting.num_replies.tolist()))
    return [[6]] * len(waiting)

  ends = np.array([1, 2, 3, 3, 1, 2])
  talk = _roll(_empty(), user=user, num_turns=ends)
  assert calls == [([11, 12, 13, 15], [1] * 4), ([12, 13], [2] * 2)]
  np.testing.assert_array_equal(talk.num_replies, ends)
  np.testing.assert_array_equal((talk.message_lengths > 0).sum(axis=1), ends - 1)
  _roll(talk, user=user, start=np.array([1, 1, 2, 0, 0, 0]), num_turns=ends)
  # Dialogue 12 restarts with reply 2, and the user's message before it is copied.
  assert calls[2:] == [([13, 15], [1] * 2), ([13], [2])]


def test_the_first_dialogue_is_unchanged():
  first = _roll(_empty())
  before = {f.name: np.array(getattr(first, f.name)) for f in dataclasses.fields(first)}
  _roll(first, rollout=1, start=1, num_turns=2)
  for name, value in before.items():
    np.testing.assert_array_equal(getattr(first, name), value)


def test_several_seeds_equal_separate_runs():
  starts = [_empty(), dataclasses.replace(_empty(), example_ids=20 + np.arange(6))]
  keys = jnp.stack([KEY, jax.random.key(6)])
  stacked = dataclasses.replace(starts[0], **{
      field.name: np.stack([getattr(start, field.name) for start in starts])
      for field in dataclasses.fields(starts[0]) if field.name != 'pad_id'})
  sampler = decode.make_sampler(
      BIGRAM, num_samples=1, max_tokens=REPLY, stop_ids=(STOP,), pad_id=PAD)
  sample = jax.jit(jax.vmap(sampler, (None, 0, 0, 0, 0)))
  turn, ends = np.array([[0, 1, 2, 1, 0, 2]] * 2), np.array([3, 3, 3, 2, 1, 3])

  both = _roll(stacked, sample=sample, key=keys, num_turns=ends)
  again = _roll(both, sample=sample, key=keys, rollout=1, start=turn, num_turns=ends)
  rollouts, aux = dialogue.as_rollouts([both, again], turn)
  assert rollouts.tokens.shape == (2, 6, 2, TURNS * REPLY + (TURNS - 1) * MESSAGE)

  for index, start in enumerate(starts):
    first = _roll(start, key=keys[index], num_turns=ends)
    second = _roll(first, key=keys[index], rollout=1, start=turn[index], num_turns=ends)
    expected, numbers = dialogue.as_rollouts([first, second], turn[index])
    # Ids and masks are equal; log-probs come from two programs.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), jax.tree.map(
        lambda leaf, i=index: leaf[i], (rollouts, aux)), (expected, numbers))


# --- The distribution of h.


def test_F4_setting_one():
  seeds, prompts = 200, 200
  ids = np.broadcast_to(np.arange(prompts), (seeds, prompts))
  keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(seeds))
  turns = dialogue.draw_turns(keys, ids, 5, setting='one')
  last = turns.num_turns - 1
  assert (turns.turn <= last).all() and turns.turn.min() == 0 and last.max() == 4

  probs = [sum(1 / 5 / (end + 1) for end in range(h, 5)) for h in range(5)]
  np.testing.assert_allclose(probs, [0.4566667, 0.2566667, 0.1566667, 0.09, 0.04], atol=1e-7)
  joint = np.zeros((5, 5))
  np.add.at(joint, (last.reshape(-1), turns.turn.reshape(-1)), 1)
  exact = np.tril(np.ones((5, 5))) / 5 / np.arange(1, 6)[:, None]
  np.testing.assert_allclose(exact.sum(axis=0), probs)

  possible = exact > 0
  assert joint[~possible].sum() == 0
  assert stats.chisquare(joint[possible], exact[possible] * ids.size).pvalue > SIGNIFICANCE
  uniform = np.bincount(turns.turn.reshape(-1))
  assert stats.chisquare(uniform).pvalue < SIGNIFICANCE


def test_F4_setting_two_is_uniform_over_the_turns_of_each_row():
  seeds, prompts = 100, 100
  ids = np.broadcast_to(np.arange(prompts), (seeds, prompts))
  keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(seeds))
  ends = 1 + ids % 5
  turns = dialogue.draw_turns(keys, ids, ends, setting='two')
  np.testing.assert_array_equal(turns.num_turns, ends)
  for end in range(1, 6):
    counts = np.bincount(turns.turn[ends == end])
    assert len(counts) == end
    assert end == 1 or stats.chisquare(counts).pvalue > SIGNIFICANCE


def test_turns_depend_on_the_example_and_not_on_the_batch():
  ids, order = np.arange(30), np.array([7, 3, 21])
  for setting in ('one', 'two'):
    turns = dialogue.draw_turns(KEY, ids, 5, setting=setting)
    some = dialogue.draw_turns(KEY, ids[order], 5, setting=setting)
    np.testing.assert_array_equal(some, [turns.turn[order], turns.num_turns[order]])


# --- Errors.


def test_arguments_out_of_range_are_named():
  start = _empty()
  for arguments, line in (
      ({'num_turns': 4}, 'start and num_turns must be in [0, 3], got 0 and 4'),
      ({'start': -1}, 'start and num_turns must be in [0, 3], got -1 and 3'),
      ({'widths': 'wide'}, "widths must be 'growing' or 'fixed', got 'wide'"),
      ({'start': 1}, 'start must be at most the number of replies so far, got 1 for dialogues of '
                     'which one has 0'),
      ({'sample': _sample(1)}, 'the sampler must draw one reply per dialogue, with tokens '
                               '(6, 1, 2), got (6, 1, 1)'),
      ({'user': lambda waiting: [[1]]}, 'a user must answer 6 dialogues, got 1 messages'),
      ({'user': lambda waiting: [[1] * 4] * 6},
       "a user's message must have at most 3 tokens (message_slots), got 4"),
  ):
    with pytest.raises(ValueError) as error:
      _roll(start, **arguments)
    assert str(error.value) == line

  for turns, setting, line in (
      (5, 'three', "setting must be 'one' or 'two', got 'three'"),
      (np.array([1, 0]), 'two', 'num_turns must be at least 1, got 0')):
    with pytest.raises(ValueError) as error:
      dialogue.draw_turns(KEY, np.arange(2), turns, setting=setting)
    assert str(error.value) == line
