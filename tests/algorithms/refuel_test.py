"""REFUEL: its identities through the real train step and the real roll-outs, and that it learns.

A small dialogue of two turns is known by heart: replies a or b, a user who says the same whatever
it hears, and a reward for each pair of replies (specification F5).
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm.algorithms import rebel, refuel
from jaxrl_llm.data import dialogues
from jaxrl_llm.rl import masking, scoring
from jaxrl_llm.sampling import decode, dialogue
from jaxrl_llm.training import optim, step
from jaxrl_llm.types import Batch, Head, ModelFns, ModelOutput, TrainState
from tests.algorithms import groups, tiny
from tests.sampling import models

PLAIN = dict(num_epochs=1, temperature=1.0, kl_coefficient=0.3, eta=2.0)


def _make(config, optimizer):
  return refuel.make(config, tiny.MODEL, optimizer)


run = groups.runner(_make, refuel.Config, **PLAIN)
run_rebel = groups.runner(
    lambda config, optimizer: rebel.make(config, tiny.MODEL, optimizer), rebel.Config, **PLAIN)


@functools.cache
def _batch():
  """The groups' batch as dialogues: a first turn of one token, a second one of two."""
  data = groups.batch()
  turns = jnp.broadcast_to(jnp.asarray([0, 1, 1], jnp.int32), data.rollouts.tokens.shape)
  return dataclasses.replace(
      data, aux={'turns': turns, 'turn': jnp.asarray([1, 0, 1, 0], jnp.int32)})


@functools.cache
def _sampler(slots=2):
  return jax.jit(decode.make_sampler(
      tiny.MODEL, num_samples=1, max_tokens=slots, stop_ids=(groups.STOP,), pad_id=groups.PAD))


# A model whose parameters are the logits themselves, for four prompts.
TABLE = ModelFns(
    lambda key: None,
    lambda params, tokens, **inputs: ModelOutput(params, Head(jnp.eye(7), None), None), None)


def _user(said):
  """One or two tokens, by the noise."""
  return [[1 + seed % 6] * (1 + seed // 8 % 2) for seed in said.seeds.astype(int)]


def _empty(prompts=4, num_turns=3):
  rng = np.random.default_rng(0)
  return dialogues.empty(
      rng.integers(1, 7, (prompts, 3)), 1 + np.arange(prompts) % 3, 5 + np.arange(prompts),
      num_turns=num_turns, reply_slots=2, message_slots=2)


def _roll(parameters, start, key, turns):
  """The two roll-outs."""
  options = dict(num_turns=turns.num_turns, widths='fixed')
  first = dialogue.roll_out(_sampler(), parameters['policy'], _user, start, key, **options)
  second = dialogue.roll_out(
      _sampler(), parameters['policy'], _user, first, key, rollout=1, start=turns.turn, **options)
  return first, second


@functools.cache
def _dialogues():
  """(the two roll-outs, their batch): four dialogues of three turns, h = 0, 1, 2, 1."""
  turn = np.array([0, 1, 2, 1])
  pair = _roll(tiny.params(), _empty(), jax.random.key(3), dialogue.Turns(turn, np.full(4, 3)))
  rollouts, aux = dialogue.as_rollouts(pair, turn)
  rng = np.random.default_rng(1)
  batch = Batch(
      rollouts, rng.normal(size=(4, 2)).astype(np.float32),
      rng.normal(-2, 0.5, rollouts.mask.shape).astype(np.float32) * rollouts.mask, aux,
      np.ones(4, np.float32))
  return pair, jax.tree.map(jnp.asarray, batch)


# --- What every algorithm is held to. Padding: only what stands behind a dialogue's end.


@pytest.mark.parametrize('check', [
    groups.check_padding, groups.check_rows_that_do_not_count,
    groups.check_micro_batches, groups.check_one_prompt, groups.check_orders])
def test_groups(check):
  check(run, _batch())


def test_R20_the_ratio_is_one_before_the_first_step():
  groups.check_initial_ratio(run, _batch())


def test_seeds_side_by_side():
  groups.check_seeds(_make, refuel.Config(**PLAIN), _batch())


def test_R20_the_sampler_agrees_in_every_turn_of_a_dialogue():
  pair, batch = _dialogues()
  assert {0, 1} == set(np.unique(pair[0].stop_reason))  # Some replies were cut.
  for turn in range(3):
    here = dataclasses.replace(batch, aux={**batch.aux, 'turn': jnp.full(4, turn)})
    metrics = run(here)[2]
    assert abs(metrics['train/initial_log_ratio']) < 1e-5
    assert metrics['train/sampler_gap'] < 1e-5
  wrong = groups.replace_rollouts(batch, log_probs=batch.rollouts.log_probs - 0.1)
  assert run(wrong)[2]['train/sampler_gap'] == pytest.approx(0.1, rel=1e-3)


# --- REBEL, with "response" read as "reply of turn h".


@pytest.mark.parametrize('changes', [
    {}, {'loss_form': 'paper', 'eta': 3.0, 'whiten_rewards': True, 'temperature': 0.7}])
def test_every_identity_of_REBEL_holds_for_the_replies_of_turn_h(changes):
  # What is left of the mask is all that differs, and so each of R1 to R21 is inherited.
  _, batch = _dialogues()
  only = refuel.only_turn(batch)
  assert 0 < only.rollouts.mask.sum() < batch.rollouts.mask.sum()
  expected = run_rebel(dataclasses.replace(only, aux={}), **changes)
  got = run(batch, **changes)
  groups._same(got, expected, tolerance=1e-6)
  assert got[2] == pytest.approx(expected[2], rel=1e-5, abs=1e-7)
  assert tiny.differ(run_rebel(dataclasses.replace(batch, aux={}), **changes)[1], expected[1])


def test_F1_with_one_turn_it_is_REBEL():
  start = _empty(num_turns=1)
  turns = dialogue.draw_turns(jax.random.key(0), start.example_ids, 1, setting='one')
  assert (turns.turn == 0).all() and (turns.num_turns == 1).all()
  model, params = models.bigram(np.zeros((7, 7)))
  sample = jax.jit(decode.make_sampler(
      model, num_samples=1, max_tokens=2, stop_ids=(groups.STOP,), pad_id=groups.PAD))
  pair = [dialogue.roll_out(sample, params, None, start, jax.random.key(3), rollout=number)
          for number in (0, 1)]  # Nobody asks the user.
  rollouts, aux = dialogue.as_rollouts(pair, turns.turn)
  # The data: masks, lengths and reasons are those of responses.
  mask, lengths, reasons = masking.response_mask(jnp.asarray(rollouts.tokens), (groups.STOP,))
  for name, value in (('mask', mask), ('lengths', lengths), ('stop_reason', reasons)):
    np.testing.assert_array_equal(getattr(rollouts, name), value)
  assert rollouts.tokens.shape == (4, 2, 2) and (lengths != 2).any()
  rewards = np.random.default_rng(3).normal(size=(4, 2)).astype(np.float32)
  batch = Batch(rollouts, rewards, rollouts.log_probs - 0.3 * rollouts.mask, aux, np.ones(4))
  logits = {'policy': jax.random.normal(jax.random.key(0), (8, 5, 7))}
  steps = [jax.jit(module.make(module.Config(**PLAIN), TABLE, tiny.recorder()).train_step)
           for module in (refuel, rebel)]
  got, expected = (tiny.run_once(step, logits, batch) for step in steps)
  assert got[0] == expected[0] > 0 and got[2] == expected[2]
  np.testing.assert_array_equal(got[1]['policy'], expected[1]['policy'])
  assert np.abs(got[1]['policy']).max() > 0


@functools.cache
def _visit(model, eta):
  """A step that goes to the parameters in its optimizer's state, then computes the gradient."""
  go = optax.GradientTransformation(
      None, lambda g, state, params: (jax.tree.map(jnp.subtract, state[0], params), (state[0], g)))
  config = refuel.Config(**{**PLAIN, 'kl_coefficient': 0.0, 'eta': eta, 'num_epochs': 2})
  return jax.jit(refuel.make(config, model, go).train_step)


def _at(target, batch, model=tiny.MODEL, parameters=None, *, eta=2.0):
  """(loss, gradient) at `target` where `parameters` sampled, without a penalty."""
  start = tiny.params() if parameters is None else parameters
  state = TrainState(jnp.int32(0), start, (target, target), jax.random.key(0), {})
  state, metrics = _visit(model, eta)(state, batch)
  # The metrics are of both steps, and the first one's loss is known (R5).
  first = np.average(np.square(eta * np.subtract(*np.asarray(batch.rewards).T)),
                     weights=np.asarray(batch.weight))
  return 2 * float(metrics['train/loss'].value()) - first, state.opt_state[1]


def _relabelled(batch, change):
  return dataclasses.replace(batch, aux={**batch.aux, 'turns': change(
      batch.aux['turns'], batch.aux['turn'][:, None, None])})


def test_F2_the_prefix_cancels_and_what_follows_has_no_part():
  _, batch = _dialogues()
  other, batch = tiny.params(1), dataclasses.replace(batch, rewards=jnp.zeros((4, 2)))
  expected = _at(other, batch)  # The mean of D².
  with_prefix = _relabelled(batch, lambda turns, h: jnp.where(
      (turns >= 0) & (turns < h), h, turns))
  with_rest = _relabelled(batch, lambda turns, h: jnp.where(turns > h, h, turns))
  got = _at(other, with_prefix)
  assert got[0] == pytest.approx(expected[0], rel=1e-4)
  tiny.assert_trees_close(got[1], expected[1], tolerance=1e-4)
  assert abs(_at(other, with_rest)[0] / expected[0] - 1) > 0.05


@pytest.mark.parametrize('turn', [0, 1, 2])
def test_F2_R18_the_loss_depends_on_logits_of_turn_h_alone(turn):
  _, batch = _dialogues()
  batch = dataclasses.replace(batch, aux={**batch.aux, 'turn': jnp.full(4, turn)})
  width, slots = batch.rollouts.prompts.shape[1], batch.rollouts.tokens.shape[2]
  logits = {'policy': jax.random.normal(jax.random.key(0), (8, width + slots, 7))}
  _, gradient = _at(logits, batch, TABLE, logits)
  reached = np.any(np.asarray(gradient['policy']) != 0, axis=-1)
  expected = np.zeros_like(reached)  # Slot t of the rows predicts slot t + 1.
  expected[:, width - 1 : -1] = (batch.aux['turns'] == turn).reshape(8, slots)
  np.testing.assert_array_equal(reached, expected)


def test_F11_the_order_of_a_pair_has_no_part():
  _, batch = _dialogues()
  order = np.argsort(-np.asarray(batch.rewards), axis=1)  # Chosen, rejected.
  assert (order[:, 0] == 1).any() and (order[:, 0] == 0).any()
  take = lambda leaf: jnp.take_along_axis(
      leaf, order.reshape(order.shape + (1,) * (leaf.ndim - 2)), axis=1)
  names = ('tokens', 'lengths', 'mask', 'log_probs', 'stop_reason')
  relabelled = dataclasses.replace(
      batch, rewards=take(batch.rewards), reference_log_probs=take(batch.reference_log_probs),
      rollouts=dataclasses.replace(batch.rollouts, **{
          name: take(getattr(batch.rollouts, name)) for name in names}),
      aux={**batch.aux, 'turns': take(batch.aux['turns'])})
  assert (relabelled.rewards[:, 0] >= relabelled.rewards[:, 1]).all()
  groups._same(run(relabelled), run(batch))


def test_R5_R9_loss_and_gradient_before_the_first_step():
  # (D − ηΔR)² at D = 0: the loss is the mean of (ηΔR)², the gradient −2ηΔR (∇ ln π − ∇ ln π').
  _, batch = _dialogues()
  loss, gradient, _ = run(batch, kl_coefficient=0.0)
  target = 2.0 * (batch.rewards[:, 0] - batch.rewards[:, 1])
  assert loss == pytest.approx(float(jnp.mean(target**2)), rel=1e-5)
  here = batch.aux['turns'] == batch.aux['turn'][:, None, None]

  def direction(parameters):
    replies = jnp.sum(jnp.where(here, groups_log_probs(parameters, batch), 0.0), axis=-1)
    return jnp.mean(-2 * target * (replies[:, 0] - replies[:, 1]))

  tiny.assert_trees_close(gradient, groups.gradient_of(direction), tolerance=1e-5)


def groups_log_probs(parameters, batch):
  """Log-probs spelt out; like `groups.log_probs`, for any number of slots."""
  return groups.log_probs(parameters, batch.rollouts)


def test_R17_the_penalty_is_of_turn_h_alone():
  _, batch = _dialogues()
  here = batch.aux['turns'] == batch.aux['turn'][:, None, None]
  nowhere = dataclasses.replace(batch, reference_log_probs=jnp.where(
      here, batch.reference_log_probs, jnp.nan))
  groups._same(run(nowhere), run(batch))
  gap = jnp.sum(jnp.where(here, batch.rollouts.log_probs - batch.reference_log_probs, 0), axis=-1)
  shaped = dataclasses.replace(batch, rewards=batch.rewards - 0.3 * gap)
  groups._same(run(batch), run(shaped, kl_coefficient=0.0), tolerance=1e-4)
  assert tiny.differ(run(batch)[1], run(batch, kl_coefficient=0.0)[1])


def test_R3_R21_constants_and_equal_replies():
  _, batch = _dialogues()
  expected = run(batch, kl_coefficient=0.0)
  shifted = dataclasses.replace(batch, rewards=batch.rewards + jnp.asarray([[1], [-2], [0], [5.0]]))
  groups._same(run(shifted, kl_coefficient=0.0), expected)
  # Equal replies whose dialogues end differently: (ηΔR)², and no gradient wherever θ is.
  twice = lambda leaf: jnp.repeat(leaf[:, :1], 2, axis=1)
  names = ('tokens', 'lengths', 'mask', 'log_probs', 'stop_reason')
  equal = groups.replace_rollouts(
      batch, **{name: twice(getattr(batch.rollouts, name)) for name in names})
  equal = dataclasses.replace(equal, aux={**batch.aux, 'turns': twice(batch.aux['turns'])})
  loss, gradient = _at(tiny.params(1), equal)
  target = 2 * (batch.rewards[:, 0] - batch.rewards[:, 1])
  assert loss == pytest.approx(float(jnp.mean(target**2)), rel=1e-5)
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) < 1e-5


# --- The dialogue of two turns that is known by heart.

A, B, SAYS, ASKS = 1, 2, 3, 4  # Replies, the user's message, the prompt. A reply is one token.
FIRST = np.array([0.6, 0.4])
SECOND = np.array([[0.5, 0.5], [0.2, 0.8]])  # After a, after b.
REWARD = np.array([[0.0, 1.0], [2.0, 0.5]])
Q_FIRST = (SECOND * REWARD).sum(axis=1)


def _tabular(params, tokens, *, positions, valid, cache=None, cache_index=None):
  """Logits of a row of params['logits'] [3, 2], by what was said: nothing, a, b."""
  del positions, valid, cache_index
  before = jnp.pad(tokens, [(0, 0), (1, 0)])[:, :-1]
  logits = params['logits'][jnp.where(tokens == SAYS, jnp.clip(before, 0, 2), 0)]
  hidden = jnp.pad(logits, [(0, 0), (0, 0), (1, 2)], constant_values=-1e9)
  return ModelOutput(hidden, Head(jnp.eye(5), None), cache)


TABULAR = ModelFns(
    None, _tabular, lambda batch, slots: {'unused': jnp.zeros((batch, slots, 1, 1))})


def _logits(first=FIRST, second=SECOND):
  return {'policy': {'logits': jnp.log(jnp.asarray(np.vstack([first, second]), jnp.float32))}}


def _probabilities(params):
  return np.asarray(jax.nn.softmax(params['policy']['logits']))


def _pairs(rows):
  """A batch of (h, replies of the first dialogue, of the second, weight)."""
  turn = np.array([row[0] for row in rows])
  said = [np.array([row[side] for row in rows]) for side in (1, 2)]
  start = dialogues.empty(
      np.full((len(rows), 1), ASKS), np.ones(len(rows), int), np.arange(len(rows)), num_turns=2,
      reply_slots=1, message_slots=1)
  everyone = np.ones(len(rows), bool)
  pair = []
  for replies in said:
    talk = start
    for t in range(2):
      talk = talk.with_replies(
          t, everyone, tokens=replies[:, t : t + 1], lengths=everyone.astype(int),
          log_probs=np.full((len(rows), 1), np.nan), stop_reason=everyone.astype(np.int8))
      if t == 0:
        talk = talk.with_messages(t, everyone, [[SAYS]] * len(rows))
    pair.append(talk)
  rollouts, aux = dialogue.as_rollouts(pair, turn)
  rewards = np.stack([REWARD[r[:, 0] - 1, r[:, 1] - 1] for r in said], axis=1)
  weight = np.array([row[3] for row in rows], np.float32)
  return Batch(rollouts, rewards.astype(np.float32), None, aux, weight)


@functools.cache
def _every_pair(last_turn_only=False):
  """All pairs of dialogues with their probabilities, h uniform over the two turns."""
  rows = []
  probability = lambda y: FIRST[y[0] - 1] * SECOND[y[0] - 1, y[1] - 1]
  both = list(itertools.product((A, B), repeat=2))
  if not last_turn_only:
    rows += [(0, y, z, 0.5 * probability(y) * probability(z)) for y in both for z in both]
  rows += [(1, y, (y[0], z), 0.5 * probability(y) * SECOND[y[0] - 1, z - 1])
           for y in both for z in (A, B)]
  return _pairs(rows)


def _fit(batch, eta=1.0):
  """The policy after one iteration whose regression is solved."""
  config = refuel.Config(eta=eta, kl_coefficient=0.0, num_epochs=600)
  algorithm = refuel.make(config, TABULAR, optax.sgd(1.0))
  state, _ = jax.jit(algorithm.train_step)(
      algorithm.init(jax.random.key(0), _logits()), batch)
  return state.params


@functools.cache
def _fitted():
  return _fit(_every_pair())


def test_F5_one_solved_iteration_is_the_mirror_step_on_Q():
  np.testing.assert_allclose(Q_FIRST, [0.5, 0.8])
  expected = np.vstack([FIRST * np.exp(Q_FIRST), SECOND * np.exp(REWARD)])
  expected /= expected.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(  # The numbers of the specification.
      expected, [[0.526342, 0.473658], [0.268941, 0.731059], [0.528396, 0.471604]], atol=1e-6)
  np.testing.assert_allclose(_probabilities(_fitted()), expected, atol=1e-5)


def _floor():
  """E[Var(R|s, y) + Var(R'|s, y')] over turns and pairs: only turn 0 leaves anything open."""
  variance = (SECOND * REWARD**2).sum(axis=1) - Q_FIRST**2
  return 0.5 * 2 * (FIRST * variance).sum()


def test_F6_what_is_left_of_the_loss_is_the_noise_of_the_future():
  eta, solved = 2.0, _fit(_every_pair(), eta=2.0)
  at = lambda target, batch: _at(target, batch, TABULAR, _logits(), eta=eta)
  assert _floor() == pytest.approx(0.294)
  loss, gradient = at(solved, _every_pair())
  assert loss == pytest.approx(eta**2 * _floor(), rel=1e-4)
  assert np.abs(gradient['policy']['logits']).max() < 1e-5
  for move in np.eye(3):  # Any other difference of logits, in any state, is worse.
    moved = jax.tree.map(lambda x, m=move: x + 0.1 * np.outer(m, [1, -1]), solved)
    assert at(moved, _every_pair())[0] > eta**2 * _floor() + 1e-3
  # Where nothing after the turn is left to chance, nothing is left of the loss.
  assert abs(at(solved, _every_pair(last_turn_only=True))[0]) < 1e-5


@functools.cache
def _sampled(params_of=_logits, seeds=1000, prompts=100):
  """A hundred thousand pairs, by the sampler and the roll-outs: (h, replies, replies', R, R')."""
  ids = np.broadcast_to(np.arange(prompts, dtype=np.int32), (seeds, prompts))
  start = dialogues.empty(
      np.full((*ids.shape, 1), ASKS), np.ones(ids.shape, int), ids, num_turns=2, reply_slots=1,
      message_slots=1)
  sampler = decode.make_sampler(
      TABULAR, num_samples=1, max_tokens=1, stop_ids=(A, B), pad_id=0)
  sample = jax.jit(jax.vmap(sampler, (None, 0, 0, 0, 0)))
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(11), jnp.arange(seeds))
  turns = dialogue.draw_turns(keys, ids, 2, setting='two')
  user = lambda said: np.full((len(said), 1), SAYS)
  params = params_of()['policy']
  first = dialogue.roll_out(sample, params, user, start, keys, widths='fixed')
  second = dialogue.roll_out(
      sample, params, user, first, keys, rollout=1, start=turns.turn, widths='fixed')
  replies = [d.replies[..., 0].reshape(-1, 2) for d in (first, second)]
  rewards = [REWARD[r[:, 0] - 1, r[:, 1] - 1] for r in replies]
  return turns.turn.reshape(-1), *replies, *rewards


def _within(values, expected, errors=3):
  error = np.std(values) / len(values) ** 0.5
  assert abs(np.mean(values) - expected) <= errors * error + 1e-9, (expected, error)


def test_F5_F6_with_a_hundred_thousand_sampled_pairs():
  turn, first, second, ours, theirs = _sampled()
  assert len(turn) == 100_000
  _within(turn, 0.5)
  _within(first[:, 0] == A, FIRST[0])
  _within(second[turn == 0, 0] == A, FIRST[0])
  assert (second[turn == 1, 0] == first[turn == 1, 0]).all()
  # The fit, of all pairs at once: equal pairs as one row with their number.
  keys, counts = np.unique(
      np.column_stack([turn, first, second]), axis=0, return_counts=True)
  batch = _pairs([(k[0], k[1:3], k[3:], n / len(turn)) for k, n in zip(keys, counts)])
  moved = np.asarray(_fit(batch)['policy']['logits'] - _logits()['policy']['logits'])
  residuals = np.zeros(len(turn))
  for state, (chosen, expected) in enumerate((
      (turn == 0, Q_FIRST), ((turn == 1) & (first[:, 0] == A), REWARD[0]),
      ((turn == 1) & (first[:, 0] == B), REWARD[1]))):
    column = 0 if state == 0 else 1
    y, z = first[chosen, column], second[chosen, column]
    sign = (y == A).astype(int) - (z == A)
    gained = (ours - theirs)[chosen] * sign
    _within(gained[sign != 0], expected[0] - expected[1])
    # The regression's answer is the mean over the pairs that differ.
    assert moved[state, 0] - moved[state, 1] == pytest.approx(gained[sign != 0].mean(), abs=1e-4)
    residuals[chosen] = (sign * (expected[0] - expected[1]) - (ours - theirs)[chosen]) ** 2
  _within(residuals, _floor())


def test_F7_training_on_the_last_turn_leaves_the_first_as_it_is():
  assert Q_FIRST[0] != Q_FIRST[1]  # Though it would pay to change it.
  last = _fit(_every_pair(last_turn_only=True))
  before, after = _probabilities(_logits()), _probabilities(last)
  np.testing.assert_array_equal(last['policy']['logits'][0], _logits()['policy']['logits'][0])
  assert np.abs(after - before)[1:].min() > 0.1
  assert abs(_probabilities(_fitted())[0] - before[0]).min() > 0.05


def _value(first, second):
  return float((first[:, None] * second * REWARD).sum())


def test_F8_the_performance_difference():
  new = _probabilities(_fitted()).astype(np.float64)
  gain = _value(new[0], new[1:]) - _value(FIRST, SECOND)
  # Σ_h E_{s ~ π}[Q_h^{π_t}(s, π) − Q_h^{π_t}(s, π_t)], prefixes by the new policy.
  by_turn = ((new[0] - FIRST) * Q_FIRST).sum(), (
      new[0] * ((new[1:] - SECOND) * REWARD).sum(axis=1)).sum()
  assert gain == pytest.approx(sum(by_turn), abs=1e-12)
  assert min(by_turn) > 0.01
  _, first, _, ours, _ = _sampled(_fitted)
  _within(ours, _value(FIRST, SECOND) + sum(by_turn))
  _within(first[:, 0] == A, new[0, 0])


# --- Settings, and that it learns.


@pytest.mark.parametrize('field, value, line', [
    ('eta', 0.0, 'eta must be positive and finite, got 0.0'),
    ('eta', float('nan'), 'eta must be positive and finite, got nan'),
    ('temperature', -1.0, 'temperature must be positive and finite, got -1.0'),
    ('loss_form', 'both', "loss_form must be one of ('code', 'paper'), got 'both'"),
    ('samples_per_prompt', 4, 'samples_per_prompt must be 2 for REFUEL, got 4'),
    ('kl_coefficient', -0.1, 'kl_coefficient must not be negative, and finite, got -0.1'),
    ('num_epochs', 0, 'num_epochs must be at least 1, got 0'),
    ('num_minibatches', 0, 'num_minibatches must be at least 1, got 0'),
    ('num_micro_batches', 0, 'num_micro_batches must be at least 1, got 0'),
    ('head_chunk', -1, 'head_chunk must not be negative, got -1'),
])
def test_settings_out_of_range_are_named(field, value, line):
  with pytest.raises(ValueError) as error:
    _make(dataclasses.replace(refuel.Config(), **{field: value}), optax.sgd(1.0))
  assert str(error.value) == line


def test_batches_that_do_not_fit_are_named():
  _, batch = _dialogues()
  with pytest.raises(ValueError, match="aux must hold 'turns' .*, got \\['turn'\\]"):
    run(dataclasses.replace(batch, aux={'turn': batch.aux['turn']}))
  with pytest.raises(ValueError, match='needs reference_log_probs, got None'):
    run(dataclasses.replace(batch, reference_log_probs=None))
  three = groups.batch(3)
  with pytest.raises(ValueError, match='samples_per_prompt = 2 samples a prompt, got 3'):
    run(dataclasses.replace(three, aux=_batch().aux))
  with pytest.raises(ValueError, match='must divide the batch of 4, got 3'):
    run(batch, num_minibatches=3)


def test_every_field_has_an_effect():
  # What it is stands in the tests above; here, that no field is ignored.
  _, batch = _dialogues()
  state = TrainState(jnp.int32(0), tiny.params(), tiny.params(), jax.random.key(0), {})
  program = lambda **changes: str(jax.make_jaxpr(_make(
      refuel.Config(**{**PLAIN, **changes}), tiny.recorder()).train_step)(state, batch))
  changes = dict(
      eta=3.0, loss_form='paper', kl_coefficient=1.0, whiten_rewards=True, temperature=0.5,
      num_epochs=2, num_minibatches=2, num_micro_batches=2, head_chunk=2)
  names = {field.name for field in dataclasses.fields(refuel.Config)} - {'samples_per_prompt'}
  assert set(changes) == names  # The one that is left has a single value.
  programs = {program(), *(program(**{name: value}) for name, value in changes.items())}
  assert len(programs) == 1 + len(changes)


def test_its_code_is_that_of_REBEL():
  """A diff of the two files shows the difference between the papers, and nothing else."""
  def parts(module):
    tree = ast.parse(pathlib.Path(inspect.getfile(module)).read_text(encoding='utf-8'))
    make = next(node for node in tree.body if getattr(node, 'name', '') == 'make')
    return {node.name: ast.unparse(node) for node in make.body
            if isinstance(node, ast.FunctionDef)}

  ours, theirs = parts(refuel), parts(rebel)
  assert set(ours) == set(theirs)
  for name in ('init', 'loss_fn'):
    assert ours[name] == theirs[name], name
  best = '    if config.pairs == \'best_worst\':\n        batch = batches.best_and_worst(batch)\n'
  assert best in theirs['train_step']
  assert ours['train_step'] == theirs['train_step'].replace(best, '').replace(
      'drop_invalid(batch)', 'drop_invalid(only_turn(batch))')


def test_it_learns_in_the_first_turn_what_pays_at_the_end():
  """Reward in turn 1 for what the reply of turn 0 began with: only the future teaches that."""
  start, number = _empty(prompts=64, num_turns=2), 3
  config = refuel.Config(eta=2.0, kl_coefficient=0.05)
  optimizer = optim.make_optimizer(optim.OptimizerConfig(name='adam', learning_rate=3e-3))
  algorithm = _make(config, optimizer)
  train_step = step.jit_train_step(algorithm.train_step)
  score = jax.jit(lambda params, rollouts: scoring.score(tiny.MODEL, params, rollouts)[0])
  state = algorithm.init(jax.random.key(1), jax.tree.map(jnp.copy, tiny.params()))
  history = []
  for i in range(30):
    key = jax.random.fold_in(jax.random.key(2), i)
    turns = dialogue.draw_turns(key, start.example_ids, 2, setting='two')
    pair = _roll(state.params, start, key, turns)
    rewards = np.stack([d.replies[:, 0, 0] == number for d in pair], axis=1).astype(np.float32)
    rollouts, aux = dialogue.as_rollouts(pair, turns.turn)
    reference = score(tiny.params()['policy'], rollouts)
    history.append((rewards.mean(), np.sum(rollouts.log_probs - reference, axis=-1).mean()))
    state, metrics = train_step(
        state, Batch(rollouts, rewards, reference, aux, np.ones(64, np.float32)))
    assert abs(float(metrics['train/initial_log_ratio'].value())) < 1e-5
  assert train_step.num_traces == 1
  (before, nothing), (after, kl) = history[0], history[-1]
  assert before < 0.35 and abs(nothing) < 1e-4
  assert after > 0.8 and kl < 4.0, history
