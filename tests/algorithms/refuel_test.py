"""REFUEL: its identities through the real train step and the real roll-outs, and that it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.algorithms import rebel, refuel
from jaxrl_llm.data import dialogues
from jaxrl_llm.rl import masking, scoring
from jaxrl_llm.sampling import decode, dialogue
from jaxrl_llm.training import optim, step
from jaxrl_llm.types import Batch, Head, ModelFns, ModelOutput
from tests.algorithms import groups, tiny, visits
from tests.sampling import models


def _make(config, optimizer):
  return refuel.make(config, tiny.MODEL, optimizer)


run = groups.runner(refuel, **visits.PLAIN)


@functools.cache
def _sampler(slots=2):
  return jax.jit(decode.make_sampler(
      tiny.MODEL, num_samples=1, max_tokens=slots, stop_ids=(groups.STOP,), pad_id=groups.PAD))


# A model whose parameters are the logits themselves, for four prompts.
TABLE = ModelFns(
    lambda key: None,
    lambda params, tokens, **inputs: ModelOutput(params, Head(jnp.eye(7), None), None), None)


def _user(dialogues_):
  """One or two tokens, by the noise."""
  return [[1 + seed % 6] * (1 + seed // 8 % 2) for seed in dialogues_.seeds.astype(int)]


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
    {}, {'loss_form': 'paper', 'eta': 3.0, 'whiten_rewards': True, 'temperature': 0.7},
    {'kl_coefficient': 0.0, 'num_minibatches': 2, 'num_micro_batches': 2}])
def test_every_identity_of_REBEL_holds_for_the_replies_of_turn_h(changes):
  # What is left of the mask is all that differs, and so each of R1 to R21 is inherited.
  _, batch = _dialogues()
  only = refuel.only_turn(batch)
  assert 0 < only.rollouts.mask.sum() < batch.rollouts.mask.sum()
  # After a step the ratio is no longer 1: the metrics of it are REBEL's too.
  options = {**visits.PLAIN, 'num_epochs': 2, **changes}
  exactly = functools.partial(groups.exactly, learning_rate=0.1, **options)
  expected = exactly(rebel, dataclasses.replace(only, aux={}))
  groups.assert_exactly_same(exactly(refuel, batch), expected)
  assert expected[2]['train/log_ratio'] > 1e-3
  other = exactly(rebel, dataclasses.replace(batch, aux={}))
  assert tiny.differ(other[1], expected[1])


def test_only_turn_reads_nothing_of_other_turns():
  _, batch = _dialogues()
  here = np.asarray(batch.aux['turns'] == batch.aux['turn'][:, None, None])
  log_probs = jnp.where(here, batch.rollouts.log_probs, jnp.nan)
  only = refuel.only_turn(groups.replace_rollouts(batch, log_probs=log_probs)).rollouts
  np.testing.assert_array_equal(only.mask, np.where(here, batch.rollouts.mask, 0))
  np.testing.assert_array_equal(
      only.log_probs, np.where(only.mask > 0, batch.rollouts.log_probs, 0))


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
  got, expected = (
      groups.exactly(module, batch, (TABLE,), logits, **visits.PLAIN) for module in (refuel, rebel))

  groups.assert_exactly_same(got, expected)
  assert got[0] > 0


def _relabelled(batch, change):
  return dataclasses.replace(batch, aux={**batch.aux, 'turns': change(
      batch.aux['turns'], batch.aux['turn'][:, None, None])})


def test_F2_the_prefix_cancels_and_what_follows_is_ignored():
  _, batch = _dialogues()
  other, batch = tiny.params(1), dataclasses.replace(batch, rewards=jnp.zeros((4, 2)))
  expected = visits.at(other, batch)  # The mean of D².
  with_prefix = _relabelled(batch, lambda turns, h: jnp.where(
      (turns >= 0) & (turns < h), h, turns))
  with_rest = _relabelled(batch, lambda turns, h: jnp.where(turns > h, h, turns))
  got = visits.at(other, with_prefix)
  assert got[0] == pytest.approx(expected[0], rel=1e-4)
  tiny.assert_trees_close(got[1], expected[1], tolerance=1e-4)
  assert abs(visits.at(other, with_rest)[0] / expected[0] - 1) > 0.05


@pytest.mark.parametrize('turn', [0, 1, 2])
def test_F2_R18_the_loss_depends_on_logits_of_turn_h_alone(turn):
  _, batch = _dialogues()
  batch = dataclasses.replace(batch, aux={**batch.aux, 'turn': jnp.full(4, turn)})
  width, slots = batch.rollouts.prompts.shape[1], batch.rollouts.tokens.shape[2]
  logits = {'policy': jax.random.normal(jax.random.key(0), (8, width + slots, 7))}
  _, gradient = visits.at(logits, batch, TABLE, logits)
  reached = np.any(np.asarray(gradient['policy']) != 0, axis=-1)
  expected = np.zeros_like(reached)  # Slot t of the rows predicts slot t + 1.
  expected[:, width - 1 : -1] = (batch.aux['turns'] == turn).reshape(8, slots)
  np.testing.assert_array_equal(reached, expected)


def test_F11_the_order_of_a_pair_does_not_matter():
  _, batch = _dialogues()
  order = np.argsort(-np.asarray(batch.rewards), axis=1)  # Chosen, rejected.
  assert (order[:, 0] == 1).any() and (order[:, 0] == 0).any()
  turns = np.take_along_axis(np.asarray(batch.aux['turns']), order[..., None], axis=1)
  relabelled = dataclasses.replace(batch.samples(order), aux={**batch.aux, 'turns': turns})
  assert (relabelled.rewards[:, 0] >= relabelled.rewards[:, 1]).all()
  groups.assert_same(run(relabelled), run(batch))


def test_R5_R9_loss_and_gradient_before_the_first_step():
  # (D − ηΔR)² at D = 0: the loss is the mean of (ηΔR)², the gradient −2ηΔR (∇ ln π − ∇ ln π').
  _, batch = _dialogues()
  loss, gradient, _ = run(batch, kl_coefficient=0.0)
  target = 2.0 * (batch.rewards[:, 0] - batch.rewards[:, 1])
  assert loss == pytest.approx(float(jnp.mean(target**2)), rel=1e-5)
  here = batch.aux['turns'] == batch.aux['turn'][:, None, None]

  def direction(parameters):
    replies = jnp.sum(jnp.where(here, groups.log_probs(parameters, batch.rollouts), 0.0), axis=-1)
    return jnp.mean(-2 * target * (replies[:, 0] - replies[:, 1]))

  tiny.assert_trees_close(gradient, groups.gradient_of(direction), tolerance=1e-5)


def test_R17_the_penalty_is_of_turn_h_alone():
  _, batch = _dialogues()
  here = batch.aux['turns'] == batch.aux['turn'][:, None, None]
  nowhere = dataclasses.replace(batch, reference_log_probs=jnp.where(
      here, batch.reference_log_probs, jnp.nan))
  groups.assert_same(run(nowhere), run(batch))
  gap = jnp.sum(jnp.where(here, batch.rollouts.log_probs - batch.reference_log_probs, 0), axis=-1)
  shaped = dataclasses.replace(batch, rewards=batch.rewards - 0.3 * gap)
  groups.assert_same(run(batch), run(shaped, kl_coefficient=0.0), tolerance=1e-4)
  assert tiny.differ(run(batch)[1], run(batch, kl_coefficient=0.0)[1])


def test_R3_R21_constants_and_equal_replies():
  _, batch = _dialogues()
  expected = run(batch, kl_coefficient=0.0)
  shifted = dataclasses.replace(batch, rewards=batch.rewards + jnp.asarray([[1], [-2], [0], [5.0]]))
  groups.assert_same(run(shifted, kl_coefficient=0.0), expected)
  # Equal replies whose dialogues end differently: (ηΔR)², and no gradient wherever θ is.
  twice = batch.samples([0, 0])
  equal = dataclasses.replace(
      batch, rollouts=twice.rollouts,
      aux={**batch.aux, 'turns': jnp.repeat(batch.aux['turns'][:, :1], 2, axis=1)})
  loss, gradient = visits.at(tiny.params(1), equal)
  target = 2 * (batch.rewards[:, 0] - batch.rewards[:, 1])
  assert loss == pytest.approx(float(jnp.mean(target**2)), rel=1e-5)
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) < 1e-5


# --- Other batches, and that it learns.


def test_batches_that_do_not_fit_are_named():
  _, batch = _dialogues()
  with pytest.raises(ValueError, match="aux must hold 'turns' .*, got \\['turn'\\]"):
    run(dataclasses.replace(batch, aux={'turn': batch.aux['turn']}))


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
