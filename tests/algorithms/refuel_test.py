"""REFUEL: its identities through the real train step and the real roll-outs, and that it learns."""

import ast
import dataclasses
import functools
import inspect
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
from tests.algorithms import groups, tiny, visits
from tests.sampling import models


def _make(config, optimizer):
  return refuel.make(config, tiny.MODEL, optimizer)


run = groups.runner(_make, refuel.Config, **visits.PLAIN)


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
    groups.check_one_prompt, groups.check_orders])
def test_groups(check):
  check(run, _batch())


def test_micro_batches_agree():
  groups.check_micro_batches(lambda **changes: refuel.make(
      refuel.Config(**visits.PLAIN, **changes), groups.BIGRAM, tiny.recorder()), _batch())


def test_R20_the_ratio_is_one_before_the_first_step():
  groups.check_initial_ratio(run, _batch())


def test_seeds_side_by_side():
  groups.check_seeds(_make, refuel.Config(**visits.PLAIN), _batch())


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
  # After a step the ratio is no longer 1: the metrics of it are REBEL's too.
  options = {**visits.PLAIN, 'num_epochs': 2, **changes}
  mine, theirs = (
      module.make(module.Config(**options), groups.BIGRAM, tiny.recorder(learning_rate=0.1))
      for module in (refuel, rebel))
  expected = groups.in_float64(theirs, dataclasses.replace(only, aux={}))
  groups.check_same_in_float64(groups.in_float64(mine, batch), expected)
  assert expected[2]['train/log_ratio'] > 1e-3
  other = groups.in_float64(theirs, dataclasses.replace(batch, aux={}))
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
      groups.in_float64(
          module.make(module.Config(**visits.PLAIN), TABLE, tiny.recorder()), batch, logits)
      for module in (refuel, rebel))
  groups.check_same_in_float64(got, expected)
  assert got[0] > 0


def _relabelled(batch, change):
  return dataclasses.replace(batch, aux={**batch.aux, 'turns': change(
      batch.aux['turns'], batch.aux['turn'][:, None, None])})


def test_F2_the_prefix_cancels_and_what_follows_has_no_part():
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


def test_F11_the_order_of_a_pair_has_no_part():
  _, batch = _dialogues()
  order = np.argsort(-np.asarray(batch.rewards), axis=1)  # Chosen, rejected.
  assert (order[:, 0] == 1).any() and (order[:, 0] == 0).any()
  turns = np.take_along_axis(np.asarray(batch.aux['turns']), order[..., None], axis=1)
  relabelled = dataclasses.replace(batch.samples(order), aux={**batch.aux, 'turns': turns})
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
  twice = batch.samples([0, 0])
  equal = dataclasses.replace(
      batch, rollouts=twice.rollouts,
      aux={**batch.aux, 'turns': jnp.repeat(batch.aux['turns'][:, :1], 2, axis=1)})
  loss, gradient = visits.at(tiny.params(1), equal)
  target = 2 * (batch.rewards[:, 0] - batch.rewards[:, 1])
  assert loss == pytest.approx(float(jnp.mean(target**2)), rel=1e-5)
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) < 1e-5


# --- Settings, and that it learns.


@pytest.mark.parametrize('field, value, line', [
    ('eta', 0.0, 'eta must be positive and finite, got 0.0'),
    ('eta', float('nan'), 'eta must be positive and finite, got nan'),
    ('temperature', -1.0, 'temperature must be positive and finite, got -1.0'),
    ('loss_form', 'both', "loss_form must be one of code, paper, got 'both'"),
    ('samples_per_prompt', 4, 'samples_per_prompt must be 2 for REFUEL, got 4'),
    ('kl_coefficient', -0.1, 'kl_coefficient must be non-negative and finite, got -0.1'),
    ('num_epochs', 0, 'num_epochs must be at least 1, got 0'),
    ('num_minibatches', 0, 'num_minibatches must be at least 1, got 0'),
    ('num_micro_batches', 0, 'num_micro_batches must be at least 1, got 0'),
    ('head_chunk', -1, 'head_chunk must be at least 0, got -1'),
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
      refuel.Config(**{**visits.PLAIN, **changes}), tiny.recorder()).train_step)(state, batch))
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
