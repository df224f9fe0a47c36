"""REBEL: its identities through the real train step, and that it learns."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm.algorithms import rebel
from jaxrl_llm.models import configs, policy
from jaxrl_llm.rl import advantages, masking, scoring
from jaxrl_llm.sampling import decode
from jaxrl_llm.training import optim
from jaxrl_llm.types import (
    Batch,
    Head,
    ModelFns,
    ModelOutput,
    Rollouts,
    TrainState,
)
from tests.algorithms import groups, tiny

# The example of R5 and R7: three responses of one token, and all of their pairs.
OLD = np.array([.5, .3, .2])
REWARDS = np.array([1.0, 0.0, -1.0])
ETA = .7
PAIRS = np.array(list(itertools.product(range(3), repeat=2)))
# The example of R2: log-probs of two pairs of one-token responses, now and before.
TOKENS = [[[1], [2]], [[3], [4]]]
NEW, LAST = np.array([[[-3.0, -4.0], [-2.5, -2.0]], [[-3.2, -3.7], [-2.5, -2.2]]])


def _make(config, optimizer):
  return rebel.make(config, tiny.MODEL, optimizer)


run = groups.runner(_make, rebel.Config, num_epochs=1, temperature=1.0, kl_coefficient=0.3)


# --- A policy whose parameters are its logits, and the loss away from where it sampled.


def _logits_apply(params, tokens, **_):
  """Logits that depend on the slot alone: [B, L + T, V], or [V] for all of them."""
  size = params.shape[-1]
  return ModelOutput(jnp.broadcast_to(params, (*tokens.shape, size)), Head(jnp.eye(size), None),
                     None)


LOGITS = ModelFns(lambda key: None, _logits_apply, lambda *_: None)
# Goes to the parameters that stand in its state, and keeps the gradient that it was given.
JUMP = optax.GradientTransformation(
    lambda params: (params, params),
    lambda gradient, state, params: (
        jax.tree.map(jnp.subtract, state[0], params), (state[0], gradient)))


@functools.lru_cache
def _jump_step(model, changes):
  settings = {'temperature': 1.0, 'kl_coefficient': 0.0, 'num_epochs': 2, **dict(changes)}
  return jax.jit(rebel.make(rebel.Config(**settings), model, JUMP).train_step)


def _at(new, old, batch, model=LOGITS, **changes):
  """(loss, gradient, metrics) at the parameters `new` on what `old` sampled.

  The second of two optimizer steps, the first of which has led from the one to the other.
  """
  as_tree = lambda tree: {'policy': tree if isinstance(tree, dict) else np.float32(tree)}
  new, old = as_tree(new), as_tree(old)
  train_step = _jump_step(model, tuple(sorted(changes.items())))
  start = lambda new: TrainState(np.int32(0), old, (new, new), jax.random.key(0), {})
  _, stayed = train_step(start(old), batch)
  state, moved = train_step(start(new), batch)
  # Sums over both steps, of which the first is the same in both runs.
  metrics = {name: float(2 * (moved[name].total - stayed[name].total / 2) / moved[name].weight)
             for name in moved}
  return metrics['train/loss'], state.opt_state[1]['policy'], metrics


def _batch(tokens, rewards, *, prompt_slots=1, reference=None, weight=None, stop=0):
  """Pairs [P, 2, T] after prompts of which this policy reads nothing."""
  tokens = np.asarray(tokens, np.int32)
  mask, lengths, reasons = map(np.asarray, masking.response_mask(tokens, (stop,)))
  rows = len(tokens)
  rollouts = Rollouts(
      np.zeros((rows, prompt_slots), np.int32), np.full(rows, prompt_slots, np.int32), tokens,
      lengths, mask, np.zeros_like(mask), reasons)
  as_float = lambda x: None if x is None else np.asarray(x, np.float32)
  weight = np.ones(rows) if weight is None else weight
  return Batch(rollouts, as_float(rewards), as_float(reference), {}, as_float(weight))


def _rows_with(log_probs, tokens, vocabulary=5):
  """Logits [P * K, 2, V] under which one-token responses have these log-probs."""
  log_probs, tokens = np.ravel(log_probs), np.ravel(tokens)
  rows = np.log((1 - np.exp(log_probs)) / (vocabulary - 1))[:, None].repeat(vocabulary, 1)
  rows[np.arange(len(rows)), tokens] = log_probs
  return np.stack([rows, rows], axis=1)


def _bandit(rewards=REWARDS, *, reference=None, weight=None):
  """All nine pairs of three one-token responses; rewards by response, or of the pairs."""
  rewards = np.asarray(rewards)
  rewards = rewards[PAIRS] if rewards.ndim == 1 else rewards
  reference = None if reference is None else np.log(reference)[PAIRS][..., None]
  return _batch(PAIRS[..., None], rewards, reference=reference, weight=weight)


@functools.lru_cache
def _solver(changes):
  # The loss is quadratic in logits: with equal weights its curvature is 4/3 along every
  # direction that a softmax can tell, and one step of 3/4 is the minimum.
  settings = {'temperature': 1.0, 'kl_coefficient': 0.0, 'num_epochs': 2, **dict(changes)}
  algorithm = rebel.make(rebel.Config(**settings), LOGITS, optax.sgd(0.75))
  return algorithm.init, jax.jit(algorithm.train_step)


def _solve(old, batch, **changes):
  """The policy after one iteration from `old`, its regression solved."""
  init, train_step = _solver(tuple(sorted(changes.items())))
  state = init(jax.random.key(0), {'policy': jnp.asarray(np.log(old), jnp.float32)})
  state, _ = train_step(state, batch)
  return np.asarray(jax.nn.softmax(state.params['policy']), np.float64)


def _tilt(old, exponent):
  weights = np.asarray(old) * np.exp(exponent)
  return weights / weights.sum()


# --- The loss and its gradient.


@jax.jit
def _spelt_out(new, old, data):
  """Loss, gradient, D [P] and target [P] at temperature 0.6, with a penalty of 0.3, eta 0.8."""
  total = lambda parameters: jnp.sum(groups.log_probs(parameters, data.rollouts, 0.6), axis=-1)
  reference = jnp.sum(jnp.where(data.rollouts.mask > 0, data.reference_log_probs, 0), axis=-1)
  rewards = data.rewards - 0.3 * (total(old) - reference)
  target = 0.8 * (rewards[:, 0] - rewards[:, 1])

  def loss_of(new):
    log_ratio = total(new) - total(old)
    difference = log_ratio[:, 0] - log_ratio[:, 1]
    losses = (difference - target)**2
    return jnp.sum(losses * data.weight) / jnp.sum(data.weight), difference

  (loss, difference), gradient = jax.value_and_grad(loss_of, has_aux=True)(new)
  return loss, gradient['policy'], difference, target


def test_loss_and_gradient_are_the_equation_spelt_out():
  weight = np.array([1.0, 1, 0, 1], np.float32)
  data = dataclasses.replace(groups.batch(), weight=weight)
  new, old = tiny.params(1), tiny.params(0)
  loss, gradient, metrics = _at(
      new['policy'], old['policy'], data, tiny.MODEL, eta=0.8, temperature=0.6,
      kl_coefficient=0.3)
  expected_loss, expected, difference, target = jax.device_get(_spelt_out(new, old, data))
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  assert loss > 1
  tiny.assert_trees_close(gradient, expected, tolerance=1e-5)
  close = lambda name, values: np.testing.assert_allclose(
      metrics[f'train/{name}'], np.sum(values * weight) / 3, rtol=1e-5)
  close('difference', np.abs(difference))
  close('target', np.abs(target))
  close('sign_agreement', difference * target > 0)
  norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))
  np.testing.assert_allclose(metrics['train/grad_norm'], norm, rtol=1e-5)


def test_R2_hand_example():
  # D = [.5, -.2], eta dR = [.4, -.25], residuals [.1, .05]: the mean square is .00625.
  new, old = _rows_with(NEW, TOKENS), _rows_with(LAST, TOKENS)
  batch = _batch(TOKENS, [[1.0, .2], [0.0, .5]])
  loss, _, metrics = _at(new, old, batch, eta=.5)
  np.testing.assert_allclose(loss, .00625, atol=5e-7)
  np.testing.assert_allclose(metrics['train/difference'], .35, atol=1e-6)
  np.testing.assert_allclose(metrics['train/target'], .325, atol=1e-6)
  # 'paper' is the same divided by eta squared.
  np.testing.assert_allclose(_at(new, old, batch, eta=.5, loss_form='paper')[0], .025, atol=2e-6)


def _random_rows(seed=0):
  """Pairs of up to three tokens with free logits: (new, old, batch)."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, 5, (4, 2, 3))
  tokens[0, 0, 1:], tokens[1, 1, 2:], tokens[2, 0, :] = 0, 0, 0
  new, old = rng.normal(size=(2, 8, 5, 5))
  return new, old, _batch(tokens, rng.normal(size=(4, 2)), prompt_slots=2)


def test_R3_invariances():
  new, old, batch = _random_rows()
  loss, gradient, _ = _at(new, old, batch, eta=.5)
  same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  with_rewards = lambda rewards: dataclasses.replace(batch, rewards=rewards)
  shift = jnp.asarray([[3.0], [-1.0], [.5], [2.0]])
  same(_at(new, old, with_rewards(batch.rewards + shift), eta=.5)[0], loss)
  same(_at(new, old, with_rewards(3 * batch.rewards), eta=.5 / 3)[0], loss)
  # What stands in slots of the mask's zeros, and before the prompt's last token.
  counts = _slots_that_count(batch)
  assert 0 < counts.sum() < counts.size
  noise = lambda rows, value: np.where(counts[..., None], rows, value)
  other = _at(noise(new, 7.0), noise(old, np.arange(5.0)), batch, eta=.5)
  same(other[0], loss)
  same(np.where(counts[..., None], other[1], 0), gradient)
  # Logits of a slot that move together, and log-probs of both responses by the same.
  same(_at(new + 2.0, old - 1.0, batch, eta=.5)[0], loss)
  loss_of = lambda shift: _at(_rows_with(NEW + shift, TOKENS), _rows_with(LAST, TOKENS),
                              _batch(TOKENS, [[1.0, .2], [0.0, .5]]), eta=.5)[0]
  same(loss_of(np.array([[.7], [-1.0]])), loss_of(0.0))


def _slots_that_count(batch):
  """[B, L + T]: whose logits choose a token of the response."""
  mask = np.asarray(batch.rollouts.mask).reshape(-1, batch.rollouts.mask.shape[-1]) > 0
  before = np.zeros((len(mask), batch.rollouts.prompts.shape[1] - 1), bool)
  return np.concatenate([before, mask, np.zeros((len(mask), 1), bool)], axis=1)


def test_R18_gradient_is_zero_exactly_where_nothing_was_chosen():
  new, old, batch = _random_rows()
  gradient = np.asarray(_at(new, old, batch, eta=.5)[1])
  reached = np.abs(gradient).max(axis=-1) > 0
  np.testing.assert_array_equal(reached, _slots_that_count(batch))


def test_R4_whitening_rescales_eta():
  new, old, batch = _random_rows()
  batch = dataclasses.replace(batch, weight=jnp.asarray([1.0, 1, 0, 1]))
  std = float(np.std(np.asarray(batch.rewards)[[0, 1, 3]]))
  expected = _at(new, old, batch, eta=.5 / std)
  whitened = _at(new, old, batch, eta=.5, whiten_rewards=True)
  np.testing.assert_allclose(whitened[0], expected[0], rtol=1e-5)
  np.testing.assert_allclose(whitened[1], expected[1], rtol=1e-4, atol=1e-6)
  # Whether the mean is taken out as well is nothing to a difference.
  moved = dataclasses.replace(batch, rewards=batch.rewards + 5)
  np.testing.assert_allclose(
      _at(new, old, moved, eta=.5, whiten_rewards=True)[0], expected[0], rtol=1e-4)
  assert abs(_at(new, old, batch, eta=.5)[0] - expected[0]) > .01


def test_R5_initial_loss_of_a_fixed_minibatch():
  data = groups.batch()
  loss = run(data, eta=ETA, kl_coefficient=0.0)[0]
  difference = data.rewards[:, 0] - data.rewards[:, 1]
  np.testing.assert_allclose(loss, np.mean(np.square(ETA * difference)), rtol=1e-5)


def test_R9_gradient_is_rloo_of_two_for_each_pair():
  data = groups.batch()
  total = lambda parameters: jnp.sum(groups.log_probs(parameters, data.rollouts), axis=-1)
  scores = jax.jit(jax.jacrev(total))(tiny.params())  # Leaves [4, 2, ...].
  ascent = advantages.rloo(data.rewards) / 2
  for row in range(groups.PROMPTS):
    alone = dataclasses.replace(data, weight=jax.nn.one_hot(row, groups.PROMPTS))
    gradient = run(alone, eta=ETA, kl_coefficient=0.0)[1]
    expected = jax.tree.map(
        lambda leaf, i=row: -4 * ETA * jnp.tensordot(ascent[i], leaf[i], axes=1), scores)
    tiny.assert_trees_close(gradient, expected, tolerance=1e-5)


def test_R13_constant_target_is_ipo():
  # Labels as rewards, the chosen response first: (D - 1 / (2 tau))^2.
  tau = 1.0
  difference = (NEW - LAST)[:, 0] - (NEW - LAST)[:, 1]
  loss = _at(_rows_with(NEW, TOKENS), _rows_with(LAST, TOKENS),
             _batch(TOKENS, [[1.0, 0.0]] * 2), eta=1 / (2 * tau))[0]
  np.testing.assert_allclose(loss, np.mean((difference - 1 / (2 * tau))**2), rtol=1e-5)


def test_R17_penalty_in_the_reward():
  # 2.0 - .05 (-12 + 10) = 2.1 against 0 without a ratio; then with the policy as reference.
  tokens = [[[1], [2]]]
  old = _rows_with([[-12.0, -3.0]], tokens)
  for reference, reward in ((-10.0, 2.1), (-12.0, 2.0)):
    batch = _batch(tokens, [[2.0, 0.0]], reference=[[[reference], [-3.0]]])
    target = _at(old, old, batch, eta=1.0, kl_coefficient=.05)[2]['train/target']
    np.testing.assert_allclose(target, reward, rtol=1e-6)


def test_R19_twice_the_tokens_is_twice_the_difference():
  rng = np.random.default_rng(3)
  tokens, rows = rng.integers(1, 5, (2, 2, 2)), rng.normal(size=(2, 4, 3, 5))
  twice = lambda x, axis: np.concatenate([x, x], axis=axis)
  short = _batch(tokens, np.zeros((2, 2)))
  long = _batch(twice(tokens, 2), np.zeros((2, 2)))
  rows_twice = np.concatenate([rows[:, :, :2], rows], axis=2)
  expected = _at(*rows, short)
  got = _at(*rows_twice, long)
  np.testing.assert_allclose(
      got[2]['train/difference'], 2 * expected[2]['train/difference'], rtol=1e-5)
  np.testing.assert_allclose(got[0], 4 * expected[0], rtol=1e-5)


def test_R21_identical_pair():
  # Whatever the parameters: nothing where scores agree, a constant where they do not.
  for rewards, expected in (((1.0, 1.0), 0.0), ((1.0, .4), (ETA * .6)**2)):
    batch = _batch([[[2], [2]]], [rewards])
    for new in ([.2, -1.0, .4], [3.0, 0.0, -2.0]):
      loss, gradient, _ = _at(new, np.log(OLD), batch, eta=ETA)
      np.testing.assert_allclose(loss, expected, rtol=1e-5)
      np.testing.assert_array_equal(gradient, np.zeros(3))


# --- What an iteration whose regression is solved does to a policy.


def test_R7_an_iteration_is_a_step_of_mirror_descent():
  minimiser = _solve(OLD, _bandit(), eta=ETA)
  np.testing.assert_allclose(minimiser, [.716030, .213342, .070628], atol=2e-6)
  # So it is for any weights of the pairs, as long as they connect all responses.
  weight = np.random.default_rng(0).uniform(.1, 1, 9)
  weighted = _solve(OLD, _bandit(weight=weight), eta=ETA, num_epochs=100)
  np.testing.assert_allclose(weighted, minimiser, atol=2e-6)


def test_R8_steps_compose():
  twice = _solve(_solve(OLD, _bandit(), eta=ETA), _bandit(), eta=ETA)
  np.testing.assert_allclose(twice, _solve(OLD, _bandit(), eta=2 * ETA), atol=2e-6)


def test_R11_fixed_point_under_a_penalty():
  beta, reference = .5, OLD
  optimum = _tilt(reference, REWARDS / beta)
  np.testing.assert_allclose(optimum, [.918672, .074597, .006730], atol=1e-6)
  batch = _bandit(reference=reference)
  step = lambda old, eta: _solve(old, batch, eta=eta, kl_coefficient=beta)
  centred = lambda policy: (lambda x: x - x.mean())(np.log(policy / optimum))
  start = np.array([.2, .5, .3])
  np.testing.assert_allclose(step(start, 1 / beta), optimum, atol=2e-6)  # In one step.
  for eta in (.7, 4.4):  # Contracts by 1 - .35; grows by |1 - 2.2| above 2 / beta.
    after = step(start, eta)
    np.testing.assert_allclose(centred(after), (1 - eta * beta) * centred(start), atol=2e-5)
    np.testing.assert_allclose(
        centred(step(after, eta)), (1 - eta * beta)**2 * centred(start), atol=1e-4)


def test_R14_offline_responses_reach_what_their_pairs_connect():
  # y' from a data set that holds 0 alone, y was 0 or 1: 2 was neither sampled nor seen.
  batch = _bandit(weight=(PAIRS[:, 1] == 0) & (PAIRS[:, 0] != 2))
  got = _solve(OLD, batch, eta=ETA, num_epochs=100)
  expected = _tilt(OLD, ETA * REWARDS)
  np.testing.assert_allclose(got[0] / got[1], expected[0] / expected[1], rtol=1e-5)
  # Its logit is not moved, and moving it changes no loss: it is free.
  loss = lambda logits: _at(logits, np.log(OLD), batch, eta=ETA)[0]
  logits = np.array([.2, -.4, .1])
  np.testing.assert_allclose(loss(logits + [0, 0, 5.0]), loss(logits), rtol=1e-5)
  assert abs(loss(logits + [0, 1.0, 0]) - loss(logits)) > .1


# Rock, paper, scissors: paper (1) beats rock (0), scissors (2) beat paper, rock beats scissors.
GAME = np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])


def test_R15_preferences_against_the_policy_itself():
  old = np.array([.6, .3, .1])
  comparators = np.repeat(np.arange(3), [18, 9, 3])  # As often as the policy chooses them.
  preferences = GAME[PAIRS[..., None], comparators]  # [9, 2, 30].
  got = _solve(old, _bandit(preferences), eta=.1, signal='preferences')
  np.testing.assert_allclose(got, [.587799, .315210, .096992], atol=2e-6)
  # Against the uniform policy nothing is better than anything: it stays.
  uniform = np.full(3, 1 / 3)
  preferences = GAME[PAIRS[..., None], np.arange(30) % 3]
  got = _solve(uniform, _bandit(preferences), eta=.1, signal='preferences')
  np.testing.assert_allclose(got, uniform, atol=1e-6)


def test_R15_preferences_that_are_rewards_give_their_target_whatever_the_comparator():
  comparators = np.array([[0], [1], [2], [2], [0], [1], [1], [0], [2]])  # One a pair.
  preferences = REWARDS[PAIRS][..., None] - REWARDS[comparators][:, None]
  got = _solve(OLD, _bandit(preferences), eta=ETA, signal='preferences')
  np.testing.assert_allclose(got, _solve(OLD, _bandit(), eta=ETA), atol=1e-6)


# --- Pairs: which two responses stand in them.


def _rows(values, slots=2):
  """Rollouts [P, K] whose tokens, lengths and log-probs say which sample they are."""
  tokens = jnp.asarray(values, jnp.int32)[..., None] + jnp.arange(slots)
  shape = tokens.shape
  lengths = jnp.asarray(values, jnp.int32) % slots + 1
  mask = (jnp.arange(slots) < lengths[..., None]).astype(jnp.float32)
  return Rollouts(
      jnp.arange(shape[0])[:, None], jnp.ones(shape[0], jnp.int32), tokens, lengths, mask,
      -tokens.astype(jnp.float32), (lengths - 1).astype(jnp.int8))


def _mixed(fraction, rows=400):
  ours = _rows(np.stack([np.arange(rows), 1_000 + np.arange(rows)], axis=1))
  theirs = _rows(5_001 + np.arange(rows)[:, None])
  config = rebel.Config(offline_fraction=fraction)
  return ours, theirs, rebel.mix_offline(config, ours, theirs, jax.random.key(0))


def test_mix_offline_replaces_a_share_of_the_second_samples():
  ours, theirs, mixed = _mixed(.3)
  replaced = np.asarray(mixed.tokens[:, 1, 0] != ours.tokens[:, 1, 0])
  assert .2 < replaced.mean() < .4  # Five standard deviations of 400 draws: .11.
  np.testing.assert_array_equal(mixed.prompts, ours.prompts)
  np.testing.assert_array_equal(mixed.prompt_lengths, ours.prompt_lengths)
  for name in ('tokens', 'lengths', 'mask', 'stop_reason', 'log_probs'):
    got, mine, other = (np.asarray(getattr(x, name)) for x in (mixed, ours, theirs))
    other = np.full_like(other, np.nan) if name == 'log_probs' else other
    np.testing.assert_array_equal(got[:, 0], mine[:, 0])  # y is always the policy's.
    np.testing.assert_array_equal(got[~replaced, 1], mine[~replaced, 1])
    np.testing.assert_array_equal(got[replaced, 1], other[replaced, 0])
    assert got.dtype == mine.dtype


def test_mix_offline_takes_none_or_all_at_its_ends():
  for fraction, replaced in ((0.0, False), (1.0, True)):
    ours, theirs, mixed = _mixed(fraction, rows=50)
    expected = theirs.tokens[:, 0] if replaced else ours.tokens[:, 1]
    np.testing.assert_array_equal(mixed.tokens[:, 1], expected)


def test_offline_responses_train_and_have_no_part_in_the_sampler_gap():
  data = groups.batch()
  expected = run(data)
  unknown = jnp.arange(2)[:, None] == 1  # Every second sample.
  off_by = jnp.where(unknown, jnp.nan, data.rollouts.log_probs + .25 * data.rollouts.mask)
  got = run(groups.replace_rollouts(data, log_probs=off_by))
  np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
  tiny.assert_trees_close(got[1], expected[1], tolerance=1e-6)
  np.testing.assert_allclose(got[2]['train/sampler_gap'], .25, rtol=1e-4)


def test_best_and_worst_of_more_samples():
  data = groups.batch(3)
  rewards = jnp.asarray([[.5, -1, 2], [0, 3, 1], [4, 4, 4], [-2, -1, -3]], jnp.float32)
  data = dataclasses.replace(data, rewards=rewards)
  # The largest, then the smallest; of a tie the first and the last.
  rows, chosen = np.arange(4)[:, None], np.array([[2, 1], [1, 0], [0, 2], [1, 2]])
  take = lambda leaf: leaf[rows, chosen]
  names = ('tokens', 'lengths', 'mask', 'log_probs', 'stop_reason')
  pairs = groups.replace_rollouts(
      data, **{name: take(getattr(data.rollouts, name)) for name in names})
  pairs = dataclasses.replace(
      pairs, rewards=take(rewards), reference_log_probs=take(data.reference_log_probs))
  expected = run(pairs)
  got = run(data, pairs='best_worst', samples_per_prompt=3)
  np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
  tiny.assert_trees_close(got[1], expected[1], tolerance=1e-6)
  # A group is whole, or it is dropped: also where the bad sample is not one of the two.
  poisoned = dataclasses.replace(data, rewards=rewards.at[0, 0].set(jnp.nan))
  dropped = run(poisoned, pairs='best_worst', samples_per_prompt=3)
  assert dropped[2]['train/dropped'] == pytest.approx(.25)
  np.testing.assert_allclose(
      dropped[0], run(dataclasses.replace(pairs, weight=jnp.asarray([0.0, 1, 1, 1])))[0],
      rtol=1e-6)


def test_equal_rewards_are_a_target_of_zero():
  data = groups.batch()
  tied = dataclasses.replace(data, rewards=jnp.ones((4, 2)).at[0, 0].set(2.0))
  loss, gradients, metrics = run(tied, kl_coefficient=0.0, eta=ETA)
  np.testing.assert_allclose(loss, ETA**2 / 4, rtol=1e-5)  # They count: the mean is of four.
  assert metrics['train/ties'] == .75
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) > 1e-3


# --- What every algorithm on groups is held to.


def test_R20_the_ratio_is_one_before_the_first_step():
  groups.check_initial_ratio(run, groups.batch())


def test_padding_has_no_part():
  groups.check_padding(run, groups.batch())


def test_orders_have_no_part():
  groups.check_orders(run, groups.batch())


def test_rows_that_do_not_count_have_no_part():
  groups.check_rows_that_do_not_count(run, groups.batch())


def test_micro_batches_agree():
  groups.check_micro_batches(run, groups.batch())


def test_one_prompt():
  groups.check_one_prompt(run, groups.batch())


def test_seeds_side_by_side():
  groups.check_seeds(_make, rebel.Config(num_epochs=2, num_minibatches=2), groups.batch())


# --- The config.


def test_every_field_of_the_config_has_an_effect_or_an_error():
  fields = {field.name for field in dataclasses.fields(rebel.Config)}
  new, old, batch = _random_rows()
  batch = dataclasses.replace(batch, reference_log_probs=-2 * batch.rollouts.mask)
  expected = _at(new, old, batch)[1]
  for name, value in (('eta', .5), ('kl_coefficient', .2), ('whiten_rewards', True),
                      ('temperature', .6)):
    assert tiny.differ(_at(new, old, batch, **{name: value})[1], expected), name
    fields.remove(name)
  assert int(_final_state(batch, old, num_epochs=3, num_minibatches=2).step) == 6
  for name in ('num_minibatches', 'num_micro_batches'):
    with pytest.raises(ValueError, match='must divide the batch of 4, got 3'):
      _final_state(batch, old, **{name: 3})
  program = lambda chunk: str(jax.make_jaxpr(
      rebel.make(rebel.Config(head_chunk=chunk, kl_coefficient=0.0), LOGITS, JUMP).train_step
  )(_start(old), batch))
  assert program(2) != program(128)
  # In tests of their own, above.
  assert fields - {'num_epochs', 'num_minibatches', 'num_micro_batches', 'head_chunk'} == {
      'loss_form', 'samples_per_prompt', 'pairs', 'signal', 'offline_fraction'}


def _start(old):
  params = {'policy': jnp.asarray(old, jnp.float32)}
  return TrainState(jnp.int32(0), params, (params, params), jax.random.key(0), {})


def _final_state(batch, old, **changes):
  algorithm = rebel.make(rebel.Config(kl_coefficient=0.0, **changes),
                         ModelFns(None, _any_rows, None), JUMP)
  return jax.jit(algorithm.train_step)(_start(old[0]), batch)[0]


def _any_rows(params, tokens, **options):
  return _logits_apply(params[: tokens.shape[1]], tokens, **options)


@pytest.mark.parametrize('changes, message', [
    (dict(eta=0.0), 'eta must be positive and finite, got 0.0'),
    (dict(eta=float('nan')), 'eta must be positive and finite, got nan'),
    (dict(temperature=float('inf')), 'temperature must be positive and finite, got inf'),
    (dict(samples_per_prompt=4), 'samples_per_prompt must be 2 for REBEL, got 4'),
    (dict(samples_per_prompt=1, pairs='best_worst'), 'needs samples_per_prompt of at least 2'),
    (dict(signal='preferences', pairs='best_worst'), "signal='rewards', got 2 and 'preferences'"),
    (dict(offline_fraction=.5, pairs='best_worst'), "offline_fraction .*pairs='all'.*got 0.5"),
    (dict(pairs='some'), "pairs must be one of .*got 'some'"),
    (dict(signal='labels'), "signal must be one of .*got 'labels'"),
    (dict(loss_form='book'), "loss_form must be one of .*got 'book'"),
    (dict(offline_fraction=1.5), r'offline_fraction must be in \[0, 1\], got 1.5'),
    (dict(num_epochs=0), 'num_epochs must be at least 1, got 0'),
    (dict(num_minibatches=0), 'num_minibatches must be at least 1, got 0'),
    (dict(num_micro_batches=-2), 'num_micro_batches must be at least 1, got -2'),
    (dict(kl_coefficient=-.1), 'kl_coefficient must not be negative.*got -0.1'),
    (dict(kl_coefficient=float('nan')), 'kl_coefficient must not be negative.*got nan'),
    (dict(head_chunk=-1), 'head_chunk must not be negative, got -1'),
])
def test_bad_settings_are_named_in_one_line(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    rebel.make(rebel.Config(**changes), tiny.MODEL, tiny.recorder())
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('samples, changes, message', [
    (3, {}, 'samples_per_prompt = 2 samples a prompt, got 3'),
    (3, dict(pairs='best_worst', samples_per_prompt=4), '= 4 samples a prompt, got 3'),
    (2, dict(kl_coefficient=.1), 'kl_coefficient above 0 needs reference_log_probs, got None'),
])
def test_a_batch_that_does_not_fit_is_named_in_one_line(samples, changes, message):
  batch = _batch(np.ones((2, samples, 1)), np.zeros((2, samples)))
  algorithm = rebel.make(rebel.Config(**{'kl_coefficient': 0.0, **changes}), LOGITS, JUMP)
  with pytest.raises(ValueError, match=message) as error:
    algorithm.train_step(_start(np.zeros(5)), batch)
  assert '\n' not in str(error.value)


# --- Learning.


def test_R11_learns_a_bandit_to_its_closed_form():
  # Six prompts, each with one right answer out of eight. With p the reference's probability of
  # it and c the penalty, the fixed point is π*(right) = p e^{1/c} / (1 − p + p e^{1/c}), and
  #   KL(π* ‖ π_ref) = (π*(right) − c ln(1 − p + p e^{1/c})) / c.
  penalty, prompts, rows, iterations = 0.2, 6, 48, 150
  model = policy.make(configs.TransformerConfig(
      vocab_size=8, num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8,
      mlp_width=32, max_length=8))
  reference = jax.jit(model.init)(jax.random.key(0))
  right = jnp.array([3, 1, 7, 7, 2, 5])
  x = jnp.arange(rows) % prompts
  algorithm = rebel.make(
      rebel.Config(eta=1.0, kl_coefficient=penalty, temperature=1.0, num_epochs=2), model,
      optim.make_optimizer(optim.OptimizerConfig(name='adam', learning_rate=5e-3)))
  sample = decode.make_sampler(model, num_samples=2, max_tokens=1, stop_ids=(0,), pad_id=0)

  def iteration(state, index):
    rollouts = sample(
        state.params['policy'], 1 + x[:, None], jnp.ones(rows, jnp.int32), jnp.arange(rows),
        jax.random.fold_in(state.key, index))
    rewards = (rollouts.tokens[..., 0] == right[x][:, None]).astype(jnp.float32)
    reference_log_probs = scoring.score(model, reference, rollouts)[0]
    return algorithm.train_step(
        state, Batch(rollouts, rewards, reference_log_probs, {}, jnp.ones(rows)))

  state = algorithm.init(jax.random.key(1), {'policy': reference})
  state, metrics = jax.jit(
      lambda state: jax.lax.scan(iteration, state, jnp.arange(iterations)))(state)
  assert int(state.step) == 2 * iterations
  assert metrics['train/initial_log_ratio'].value().max() < 1e-5

  @jax.jit
  def distributions(params):
    output = model.apply(params, 1 + jnp.arange(prompts)[:, None],
                         positions=jnp.zeros((prompts, 1), jnp.int32),
                         valid=jnp.ones((prompts, 1), bool))
    return jax.nn.softmax(output.hidden[:, 0] @ output.head.kernel.T)

  learned, before = (
      np.asarray(distributions(params)) for params in (state.params['policy'], reference))
  p = before[np.arange(prompts), right]
  normaliser = 1 - p + p * np.exp(1 / penalty)
  optimal = p * np.exp(1 / penalty) / normaliser
  optimal_kl = (optimal - penalty * np.log(normaliser)) / penalty
  success = learned[np.arange(prompts), right]
  kl = np.sum(learned * np.log(learned / before), axis=-1)
  assert p.mean() < 0.3 and optimal.mean() > 0.92
  assert success.mean() > 0.9
  np.testing.assert_allclose(success, optimal, atol=0.05)
  np.testing.assert_allclose(kl, optimal_kl, atol=0.25)
  assert kl.mean() < optimal_kl.mean() + 0.1
