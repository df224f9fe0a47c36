"""REFUEL on a dialogue of two turns that is known by heart: its identities on average.

Replies a or b, a user who always says the same, and a reward for each pair of replies
(specification F5).
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm.algorithms import refuel
from jaxrl_llm.data import dialogues
from jaxrl_llm.sampling import decode, dialogue
from jaxrl_llm.types import Batch, Head, ModelFns, ModelOutput
from tests.algorithms import visits

A, B, SAYS, ASKS = 1, 2, 3, 4  # Replies, the user's message, the prompt. A reply is one token.
FIRST = np.array([0.6, 0.4])
SECOND = np.array([[0.5, 0.5], [0.2, 0.8]])  # After a, after b.
REWARD = np.array([[0.0, 1.0], [2.0, 0.5]])
Q_FIRST = (SECOND * REWARD).sum(axis=1)


def _tabular(params, tokens, *, positions, valid, cache=None, cache_index=None):
  """Logits of a row of params['logits'] [3, 2], by the reply so far: none, a, b."""
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
  both = [np.array([row[side] for row in rows]) for side in (1, 2)]
  start = dialogues.empty(
      np.full((len(rows), 1), ASKS), np.ones(len(rows), int), np.arange(len(rows)), num_turns=2,
      reply_slots=1, message_slots=1)
  everyone = np.ones(len(rows), bool)
  pair = []

  for replies in both:
    talk = start
    for t in range(2):
      talk = talk.with_replies(
          t, everyone, tokens=replies[:, t : t + 1], lengths=everyone.astype(int),
          log_probs=np.full((len(rows), 1), np.nan), stop_reason=everyone.astype(np.int8))
      if t == 0:
        talk = talk.with_messages(t, everyone, [[SAYS]] * len(rows))
    pair.append(talk)

  rollouts, aux = dialogue.as_rollouts(pair, turn)
  rewards = np.stack([REWARD[r[:, 0] - 1, r[:, 1] - 1] for r in both], axis=1)
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
  at = lambda target, batch: visits.at(target, batch, TABULAR, _logits(), eta=eta)
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
  user = lambda heard: np.full((len(heard), 1), SAYS)
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
