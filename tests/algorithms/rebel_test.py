"""REBEL: its identities through the real train step, and that it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.algorithms import rebel
from jaxrl_llm.rl import advantages
from jaxrl_llm.types import Rollouts
from tests.algorithms import groups, tabular, tiny

# The example of R5 and R7.
OLD = np.array([.5, .3, .2])
ETA = .7
# The example of R2: log-probs of two pairs of one-token responses, now and before.
TOKENS = [[[1], [2]], [[3], [4]]]
NEW, LAST = np.array([[[-3.0, -4.0], [-2.5, -2.0]], [[-3.2, -3.7], [-2.5, -2.2]]])

PLAIN = dict(num_epochs=1, temperature=1.0, kl_coefficient=0.3)
run = groups.runner(rebel, **PLAIN)


def _exactly(data, **changes):
  """(loss, gradients, metrics) of the bigram in float64."""
  return groups.exactly(rebel, data, **{**PLAIN, **changes})


def _rows_with(log_probs, tokens, vocabulary=5):
  """Logits [P * K, 2, V] under which one-token responses have these log-probs."""
  log_probs, tokens = np.ravel(log_probs), np.ravel(tokens)
  rows = np.log((1 - np.exp(log_probs)) / (vocabulary - 1))[:, None].repeat(vocabulary, 1)
  rows[np.arange(len(rows)), tokens] = log_probs
  return np.stack([rows, rows], axis=1)


# --- The loss and its gradient.


@jax.jit
def _written_out(new, old, data):
  """Loss, gradient, log-ratios [P, 2], target [P] at temperature 0.6, penalty 0.3, eta 0.8."""
  total = lambda parameters: jnp.sum(groups.log_probs(parameters, data.rollouts, 0.6), axis=-1)
  reference = jnp.sum(jnp.where(data.rollouts.mask > 0, data.reference_log_probs, 0), axis=-1)
  rewards = data.rewards - 0.3 * (total(old) - reference)
  target = 0.8 * (rewards[:, 0] - rewards[:, 1])

  def loss_of(new):
    log_ratio = total(new) - total(old)
    difference = log_ratio[:, 0] - log_ratio[:, 1]
    losses = (difference - target)**2
    return jnp.sum(losses * data.weight) / jnp.sum(data.weight), log_ratio

  (loss, log_ratio), gradient = jax.value_and_grad(loss_of, has_aux=True)(new)
  return loss, gradient['policy'], log_ratio, target


def test_loss_and_gradient_are_the_equation_written_out():
  weight = np.array([1.0, 1, 0, 1], np.float32)
  data = dataclasses.replace(groups.batch(), weight=weight)
  new, old = tiny.params(1), tiny.params(0)
  loss, gradient, metrics = tabular.at(
      new['policy'], old['policy'], data, tiny.MODEL, eta=0.8, temperature=0.6,
      kl_coefficient=0.3)
  expected_loss, expected, log_ratio, target = jax.device_get(_written_out(new, old, data))

  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  assert loss > 1
  tiny.assert_trees_close(gradient, expected, tolerance=1e-5)
  close = lambda name, values: np.testing.assert_allclose(
      metrics[f'train/{name}'], np.sum(values * weight) / 3, rtol=1e-5)
  difference = log_ratio[:, 0] - log_ratio[:, 1]
  close('log_ratio', np.abs(log_ratio).mean(axis=1))
  close('difference', np.abs(difference))

  close('target', np.abs(target))
  close('sign_agreement', difference * target > 0)
  norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))
  np.testing.assert_allclose(metrics['train/grad_norm'], norm, rtol=1e-5)


def test_R2_hand_example():
  # D = [.5, -.2], eta dR = [.4, -.25], residuals [.1, .05]: the mean square is .00625.
  new, old = _rows_with(NEW, TOKENS), _rows_with(LAST, TOKENS)
  batch = tabular.batch_of(TOKENS, [[1.0, .2], [0.0, .5]])
  loss, _, metrics = tabular.at(new, old, batch, eta=.5)
  np.testing.assert_allclose(loss, .00625, atol=5e-7)
  np.testing.assert_allclose(metrics['train/difference'], .35, atol=1e-6)
  np.testing.assert_allclose(metrics['train/target'], .325, atol=1e-6)
  # 'paper' is the same divided by eta squared.
  in_paper = tabular.at(new, old, batch, eta=.5, loss_form='paper')[0]
  np.testing.assert_allclose(in_paper, .025, atol=2e-6)


def _random_rows(seed=0):
  """Pairs of up to three tokens with free logits: (new, old, batch)."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, 5, (4, 2, 3))
  tokens[0, 0, 1:], tokens[1, 1, 2:], tokens[2, 0, :] = 0, 0, 0
  new, old = rng.normal(size=(2, 8, 5, 5))
  return new, old, tabular.batch_of(tokens, rng.normal(size=(4, 2)), prompt_slots=2)


def test_R3_invariances():
  new, old, batch = _random_rows()
  loss, gradient, _ = tabular.at(new, old, batch, eta=.5)
  same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  with_rewards = lambda rewards: dataclasses.replace(batch, rewards=rewards)
  shift = jnp.asarray([[3.0], [-1.0], [.5], [2.0]])
  same(tabular.at(new, old, with_rewards(batch.rewards + shift), eta=.5)[0], loss)
  same(tabular.at(new, old, with_rewards(3 * batch.rewards), eta=.5 / 3)[0], loss)

  # Values where the mask is 0, and before the prompt's last token.
  counts = _slots_that_count(batch)
  assert 0 < counts.sum() < counts.size
  noise = lambda rows, value: np.where(counts[..., None], rows, value)
  other = tabular.at(noise(new, 7.0), noise(old, np.arange(5.0)), batch, eta=.5)
  same(other[0], loss)
  same(np.where(counts[..., None], other[1], 0), gradient)

  # Logits of a slot that move together, and log-probs of both responses by the same.
  same(tabular.at(new + 2.0, old - 1.0, batch, eta=.5)[0], loss)
  loss_of = lambda shift: tabular.at(_rows_with(NEW + shift, TOKENS), _rows_with(LAST, TOKENS),
                                     tabular.batch_of(TOKENS, [[1.0, .2], [0.0, .5]]), eta=.5)[0]
  same(loss_of(np.array([[.7], [-1.0]])), loss_of(0.0))


def _slots_that_count(batch):
  """[B, L + T]: whose logits choose a token of the response."""
  mask = np.asarray(batch.rollouts.mask).reshape(-1, batch.rollouts.mask.shape[-1]) > 0
  before = np.zeros((len(mask), batch.rollouts.prompts.shape[1] - 1), bool)
  return np.concatenate([before, mask, np.zeros((len(mask), 1), bool)], axis=1)


def test_R18_gradient_is_zero_exactly_where_nothing_was_chosen():
  new, old, batch = _random_rows()
  gradient = np.asarray(tabular.at(new, old, batch, eta=.5)[1])
  reached = np.abs(gradient).max(axis=-1) > 0
  np.testing.assert_array_equal(reached, _slots_that_count(batch))


def test_R4_whitening_rescales_eta():
  new, old, batch = _random_rows()
  batch = dataclasses.replace(batch, weight=jnp.asarray([1.0, 1, 0, 1]))
  std = float(np.std(np.asarray(batch.rewards)[[0, 1, 3]]))
  expected = tabular.at(new, old, batch, eta=.5 / std)
  whitened = tabular.at(new, old, batch, eta=.5, whiten_rewards=True)
  np.testing.assert_allclose(whitened[0], expected[0], rtol=1e-5)
  np.testing.assert_allclose(whitened[1], expected[1], rtol=1e-4, atol=1e-6)
  # Whether the mean is taken out as well is nothing to a difference.
  moved = dataclasses.replace(batch, rewards=batch.rewards + 5)
  np.testing.assert_allclose(
      tabular.at(new, old, moved, eta=.5, whiten_rewards=True)[0], expected[0], rtol=1e-4)
  assert abs(tabular.at(new, old, batch, eta=.5)[0] - expected[0]) > .01


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
  loss = tabular.at(_rows_with(NEW, TOKENS), _rows_with(LAST, TOKENS),
             tabular.batch_of(TOKENS, [[1.0, 0.0]] * 2), eta=1 / (2 * tau))[0]
  np.testing.assert_allclose(loss, np.mean((difference - 1 / (2 * tau))**2), rtol=1e-5)


def test_R17_penalty_in_the_reward():
  # 2.0 - .05 (-12 + 10) = 2.1 against 0 without a ratio; then with the policy as reference.
  tokens = [[[1], [2]]]
  old = _rows_with([[-12.0, -3.0]], tokens)
  for reference, reward in ((-10.0, 2.1), (-12.0, 2.0)):
    batch = tabular.batch_of(tokens, [[2.0, 0.0]], reference=[[[reference], [-3.0]]])
    target = tabular.at(old, old, batch, eta=1.0, kl_coefficient=.05)[2]['train/target']
    np.testing.assert_allclose(target, reward, rtol=1e-6)


def test_R19_twice_the_tokens_is_twice_the_difference():
  rng = np.random.default_rng(3)
  tokens, rows = rng.integers(1, 5, (2, 2, 2)), rng.normal(size=(2, 4, 3, 5))
  twice = lambda x, axis: np.concatenate([x, x], axis=axis)
  short = tabular.batch_of(tokens, np.zeros((2, 2)))
  long = tabular.batch_of(twice(tokens, 2), np.zeros((2, 2)))
  rows_twice = np.concatenate([rows[:, :, :2], rows], axis=2)
  expected = tabular.at(*rows, short)
  got = tabular.at(*rows_twice, long)
  np.testing.assert_allclose(
      got[2]['train/difference'], 2 * expected[2]['train/difference'], rtol=1e-5)
  np.testing.assert_allclose(got[0], 4 * expected[0], rtol=1e-5)


def test_R21_identical_pair():
  # For any parameters: nothing where scores agree, a constant where they do not.
  for rewards, expected in (((1.0, 1.0), 0.0), ((1.0, .4), (ETA * .6)**2)):
    batch = tabular.batch_of([[[2], [2]]], [rewards])
    for new in ([.2, -1.0, .4], [3.0, 0.0, -2.0]):
      loss, gradient, _ = tabular.at(new, np.log(OLD), batch, eta=ETA)
      np.testing.assert_allclose(loss, expected, rtol=1e-5)
      np.testing.assert_array_equal(gradient, np.zeros(3))


# --- Pairs: which two responses they hold.


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


def test_offline_responses_train_and_are_excluded_from_the_sampler_gap():
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
  pairs = data.samples(np.array([[2, 1], [1, 0], [0, 2], [1, 2]]))
  best_worst = dict(pairs='best_worst', samples_per_prompt=3)
  groups.assert_exactly_same(_exactly(data, **best_worst), _exactly(pairs))
  # A group is whole, or it is dropped: also where the bad sample is not one of the two.
  poisoned = dataclasses.replace(data, rewards=rewards.at[0, 0].set(jnp.nan))
  dropped = _exactly(poisoned, **best_worst)
  assert dropped[2]['train/dropped'] == pytest.approx(.25)
  without = dataclasses.replace(pairs, weight=jnp.asarray([0.0, 1, 1, 1]))
  np.testing.assert_allclose(dropped[0], _exactly(without)[0], rtol=groups.EXACT)


def test_equal_rewards_are_a_target_of_zero():
  data = groups.batch()
  tied = dataclasses.replace(data, rewards=jnp.ones((4, 2)).at[0, 0].set(2.0))
  loss, gradients, metrics = run(tied, kl_coefficient=0.0, eta=ETA)
  np.testing.assert_allclose(loss, ETA**2 / 4, rtol=1e-5)  # They count: the mean is of four.
  assert metrics['train/ties'] == .75
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) > 1e-3
