"""A*-PO: its identities through the real train step, and that it learns."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm.algorithms import a_star_po
from jaxrl_llm.rl import masking, scoring
from jaxrl_llm.sampling import decode
from jaxrl_llm.training import optim
from jaxrl_llm.types import Batch, Rollouts
from tests.algorithms import bandit, groups, tiny

# The padding shares its id with the stop token throughout.
STOP = PAD = 0
BETA2 = 0.1


def _rollouts(tokens, prompts, prompt_lengths):
  tokens = jnp.asarray(tokens, jnp.int32)[:, None]
  mask, lengths, reasons = masking.response_mask(tokens, (STOP,))
  return Rollouts(jnp.asarray(prompts, jnp.int32), jnp.asarray(prompt_lengths, jnp.int32), tokens,
                  lengths, mask, jnp.zeros(mask.shape), reasons)


@functools.lru_cache
def _batch():
  """Eight prompts of 1 to 4 tokens; responses that stop first, last, in between, never."""
  rng = np.random.default_rng(0)
  tokens = [[3, 0, 0], [0, 0, 0], [5, 6, 0], [1, 2, 3], [4, 4, 0], [6, 0, 0], [2, 5, 1], [0, 0, 0]]
  rollouts = _rollouts(tokens, rng.integers(1, 7, (8, 4)), [4, 1, 2, 3, 4, 4, 1, 2])
  return Batch(
      rollouts=rollouts,
      rewards=jnp.asarray([[1], [0], [1], [0], [1], [1], [0], [0]], jnp.float32),
      # A reference that the policy has drifted from.
      reference_log_probs=jnp.asarray(rng.normal(-2, 0.5, (8, 1, 3)), jnp.float32),
      aux={'values': jnp.asarray(rng.uniform(0, 1, 8), jnp.float32)},
      weight=jnp.ones(8),
  )


def _run(batch=None, **changes):
  run = groups.runner(a_star_po, beta2=BETA2)
  return run(_batch() if batch is None else batch, **changes)


def _exactly(batch, **changes):
  """The same in float64, of a policy that reads one token back."""
  options = {'beta2': BETA2, 'entropy_coefficient': 0.1, **changes}
  return groups.exactly(a_star_po, batch, **options)


@jax.jit
def _naive_parts(parameters, temperature):
  rollouts = _batch().rollouts
  log_probs = lambda p: tiny.sequence_log_probs(p, rollouts, temperature=temperature)

  def entropy(parameters):
    every = tiny.log_softmax(parameters, rollouts, temperature=temperature)
    mask = rollouts.mask[:, 0]
    return jnp.sum(mask * -jnp.sum(jnp.exp(every) * every, axis=-1)) / jnp.sum(mask)

  return (log_probs(parameters), jax.jacrev(log_probs)(parameters),
          *jax.value_and_grad(entropy)(parameters))


@functools.lru_cache
def _naive(temperature):
  """(sequence log-probs [P], their Jacobian, mean entropy of a token, its gradient)."""
  _batch()  # Made before anything is traced.
  return _naive_parts(tiny.params(), temperature)


def _weighted_sum(coefficients, jacobian):
  return jax.tree.map(lambda leaf: jnp.tensordot(coefficients, leaf, axes=1), jacobian)


# --- The loss and its gradient.


@pytest.mark.parametrize('temperature', [1.0, 0.6])
def test_loss_and_gradient_are_the_equation_written_out(temperature):
  batch = _batch()
  log_probs, jacobian, entropy, _ = _naive(temperature)
  reference = jnp.sum(batch.reference_log_probs * batch.rollouts.mask, axis=-1)[:, 0]
  residual = BETA2 * (log_probs - reference) - (batch.rewards[:, 0] - batch.aux['values'])
  loss, gradients, metrics = _run(temperature=temperature)
  np.testing.assert_allclose(loss, np.mean(np.square(residual)), rtol=1e-5)
  tiny.assert_trees_close(
      gradients, _weighted_sum(2 * BETA2 * residual / 8, jacobian), tolerance=1e-5)
  np.testing.assert_allclose(metrics['train/squared_error'], loss, rtol=1e-6)
  np.testing.assert_allclose(
      metrics['train/log_ratio'], np.mean(log_probs - reference), rtol=1e-5)
  np.testing.assert_allclose(metrics['train/entropy'], entropy, rtol=1e-5)
  norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradients)))
  np.testing.assert_allclose(metrics['train/grad_norm'], norm, rtol=1e-5)


def test_A9_at_the_reference_the_gradient_is_that_of_reinforce_with_a_static_baseline():
  score = jax.jit(functools.partial(scoring.score, tiny.MODEL))
  reference, _ = score(tiny.params()['policy'], _batch().rollouts)
  batch = dataclasses.replace(_batch(), reference_log_probs=reference)
  loss, gradients, metrics = _run(batch)
  difference = batch.aux['values'] - batch.rewards[:, 0]
  np.testing.assert_allclose(loss, np.mean(np.square(difference)), rtol=1e-5)
  reinforce = _weighted_sum(2 * BETA2 * difference / 8, _naive(1.0)[1])
  tiny.assert_trees_close(gradients, reinforce, tolerance=1e-5)
  np.testing.assert_allclose(metrics['train/log_ratio'], 0, atol=1e-5)


def test_A7_the_expected_gradient_does_not_depend_on_the_values():
  # All 1 + 6 + 36 responses of up to 2 tokens to one prompt, each weighted by its
  # probability under the policy: the weighted mean is the expectation.
  tokens = [t for t in itertools.product(range(7), repeat=2) if t[0] or not t[1]]
  rows = len(tokens)
  rollouts = _rollouts(tokens, np.full((rows, 2), 3), np.full(rows, 2))
  parameters = tiny.params()
  by_token = jax.jit(lambda p: scoring.score(tiny.MODEL, p['policy'], rollouts)[0])
  score = lambda p: jnp.sum(by_token(p), axis=-1)[:, 0]
  reference_log_probs = by_token(tiny.params(1))
  probabilities = jnp.exp(score(parameters))
  np.testing.assert_allclose(probabilities.sum(), 1, atol=1e-5)
  rewards = jnp.asarray([float(sum(t) % 3 == 1) for t in tokens])

  def objective(parameters):
    log_probs = score(parameters)
    penalty = log_probs - jnp.sum(reference_log_probs, axis=-1)[:, 0]
    return jnp.sum(jnp.exp(log_probs) * (rewards - BETA2 * penalty))

  expected = jax.tree.map(lambda g: -2 * BETA2 * g, jax.jit(jax.grad(objective))(parameters))
  losses = []
  for value in (0.4, 0.7, -0.6):
    batch = Batch(rollouts, rewards[:, None], reference_log_probs,
                  {'values': jnp.full(rows, value)}, probabilities)
    loss, gradients, _ = _run(batch)
    tiny.assert_trees_close(gradients, expected, tolerance=1e-4)
    losses.append(loss)
  assert np.ptp(losses) > 0.1  # The loss itself does depend on them.


def test_A11_what_follows_the_stop_token_is_ignored():
  batch = _batch()
  after = batch.rollouts.mask[:, 0] == 0
  tokens = jnp.where(after, jnp.asarray([6, 5, 4]), batch.rollouts.tokens[:, 0])[:, None]
  assert (tokens != batch.rollouts.tokens).sum() > 5
  changed = groups.replace_rollouts(
      batch, tokens=tokens, log_probs=jnp.where(batch.rollouts.mask > 0, 0.0, jnp.nan))
  changed = dataclasses.replace(changed, reference_log_probs=jnp.where(
      batch.rollouts.mask > 0, batch.reference_log_probs, jnp.nan))
  expected_loss, expected, expected_metrics = _run(entropy_coefficient=0.1)
  loss, gradients, metrics = _run(changed, entropy_coefficient=0.1)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
  tiny.assert_trees_close(gradients, expected, tolerance=1e-6)
  assert metrics == pytest.approx(expected_metrics, rel=1e-5)


def test_the_stop_token_itself_is_part_of_the_action():
  # The second response is the stop token alone: its row has a gradient all the same.
  batch = dataclasses.replace(_batch(), weight=jnp.asarray([0.0, 1] + 6 * [0]))
  _, gradients, _ = _run(batch)
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) > 1e-3


def test_A12_the_order_of_prompts_does_not_matter_if_values_move_along():
  order = np.array([5, 2, 7, 0, 1, 3, 6, 4])
  expected = _exactly(_batch())
  moved = jax.tree.map(lambda leaf: leaf[order], _batch())
  groups.assert_exactly_same(_exactly(moved), expected)
  stray = dataclasses.replace(moved, aux=_batch().aux)
  assert abs(_exactly(stray)[0] - expected[0]) > 1e-3


def _with_filler(batch, filler):
  """The first six rows, and two of weight 0 with `filler` in every float field."""
  dead = np.arange(8) >= 6
  fill = lambda leaf: jnp.where(dead.reshape((8,) + (1,) * (leaf.ndim - 1)), filler, leaf)
  batch = dataclasses.replace(
      batch, rewards=fill(batch.rewards), reference_log_probs=fill(batch.reference_log_probs),
      aux={'values': fill(batch.aux['values'])}, weight=jnp.asarray(~dead, jnp.float32))
  return groups.replace_rollouts(batch, log_probs=fill(batch.rollouts.log_probs))


@pytest.mark.parametrize('filler', [0.0, 1e6, np.nan, np.inf])
def test_rows_of_weight_zero_are_ignored_for_any_values_in_them(filler):
  # The mean of the six rows alone: its loss is the weighted mean of the rows' own losses.
  batch = _batch()
  log_probs, jacobian, _, _ = _naive(1.0)
  reference = jnp.sum(batch.reference_log_probs * batch.rollouts.mask, axis=-1)[:, 0]
  residual = BETA2 * (log_probs - reference) - (batch.rewards[:, 0] - batch.aux['values'])
  alive = jnp.arange(8) < 6
  loss, gradients, metrics = _run(_with_filler(batch, filler))
  np.testing.assert_allclose(loss, np.mean(np.square(residual[:6])), rtol=1e-5)
  tiny.assert_trees_close(
      gradients, _weighted_sum(jnp.where(alive, 2 * BETA2 * residual / 6, 0.0), jacobian),
      tolerance=1e-5)
  assert all(np.isfinite(value) for value in metrics.values())


def test_the_entropy_bonus_is_a_mean_over_the_rows_that_count():
  # Rows 0 to 5, the first of them twice.
  batch = dataclasses.replace(_batch(), weight=jnp.asarray([2.0] + [1] * 5 + [0] * 2))
  alone = jax.tree.map(lambda leaf: leaf[np.array([0, 0, 1, 2, 3, 4, 5])], _batch())
  groups.assert_exactly_same(_exactly(batch), _exactly(alone))


@pytest.mark.parametrize('where', ['reward', 'sentinel', 'value'])
def test_prompts_whose_reward_failed_are_dropped_and_counted(where):
  # In stage 2 (NaN, or the number that released code writes), or in stage 1: V* is NaN.
  batch, failed = _batch(), np.arange(8) >= 6
  expected_loss, expected, _ = _run(dataclasses.replace(
      batch, weight=jnp.asarray(~failed, jnp.float32)))
  bad = {'reward': jnp.nan, 'sentinel': -99_999.0, 'value': jnp.nan}[where]
  if where == 'value':
    poisoned = dataclasses.replace(
        batch, aux={'values': jnp.where(failed, bad, batch.aux['values'])})
  else:
    poisoned = dataclasses.replace(
        batch, rewards=jnp.where(failed[:, None], bad, batch.rewards))
  loss, gradients, metrics = _run(poisoned)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
  tiny.assert_trees_close(gradients, expected, tolerance=1e-6)
  assert metrics['train/dropped'] == pytest.approx(1 / 4)
  assert _run()[2]['train/dropped'] == 0


def test_the_entropy_bonus_is_the_mean_entropy_of_a_token():
  _, _, entropy, entropy_gradient = _naive(1.0)
  loss, gradients, _ = _run()
  with_bonus, with_bonus_gradients, metrics = _run(entropy_coefficient=0.1)
  np.testing.assert_allclose(with_bonus, loss - 0.1 * entropy, rtol=1e-5)
  expected = jax.tree.map(lambda g, e: g - 0.1 * e, gradients, entropy_gradient)
  tiny.assert_trees_close(with_bonus_gradients, expected, tolerance=1e-5)
  assert tiny.differ(with_bonus_gradients, gradients)
  np.testing.assert_allclose(metrics['train/squared_error'], loss, rtol=1e-5)


# --- Adam and small gradients.


def _first_update(*, eps, scale):
  """First update of Adam with the gradients of beta2 = 1e-3, times `scale`."""
  _, gradients, _ = _run(beta2=1e-3)
  config = optim.OptimizerConfig(name='adam', learning_rate=1.0, eps=eps, max_grad_norm=0.0)
  optimizer = optax.chain(optax.scale(scale), optim.make_optimizer(config))
  parameters = tiny.params()
  updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(parameters), parameters)
  # Where the gradient is rounding noise (a twentieth of a percent of the largest) Adam
  # has nothing to say either way.
  largest = max(np.abs(g).max() for g in jax.tree.leaves(gradients))
  matters = jax.tree.map(lambda g: np.abs(g) > 5e-4 * largest, gradients)
  return np.concatenate(
      [np.asarray(u)[m] for u, m in zip(jax.tree.leaves(updates), jax.tree.leaves(matters))])


def test_A14_dividing_the_loss_by_the_square_of_beta2_leaves_adam_alone():
  plain = _first_update(eps=optim.OptimizerConfig.eps, scale=1.0)
  scaled = _first_update(eps=optim.OptimizerConfig.eps, scale=1e6)
  assert len(plain) > 500
  np.testing.assert_allclose(plain, scaled, atol=0.1)
  assert np.abs(plain - scaled).mean() < 2e-3
  # An eps that is large relative to 2 beta2 |grad ln pi| freezes a part of the network.
  large = [_first_update(eps=1e-5, scale=scale) for scale in (1.0, 1e6)]
  assert np.abs(large[0] - large[1]).mean() > 0.1


# --- The config.


@pytest.mark.parametrize('field, value', [('beta1', 2.0), ('value_mode', 'max')])
def test_fields_of_stage_1_change_the_values(field, value):
  rewards = jnp.asarray([[1.0, 0, 0, 1], [0, 0, 0, 1]])
  values = lambda **changes: a_star_po.estimate_values(a_star_po.Config(**changes), rewards)
  assert np.abs(values(**{field: value}) - values()).max() > 0.05


def test_more_than_one_sample_a_prompt_is_an_error():
  batch = dataclasses.replace(_batch(), rewards=jnp.zeros((8, 2)))
  with pytest.raises(AssertionError):
    _run(batch)


# --- On-policy, and learning.


def test_R20_the_ratio_is_one_before_the_first_step():
  # At temperature 1 it is part of A9 above; the sampler's tests have more of them.
  temperature = 0.6
  parameters = tiny.params()
  sampler = jax.jit(decode.make_sampler(
      tiny.MODEL, num_samples=1, max_tokens=4, stop_ids=(STOP,), pad_id=PAD,
      temperature=temperature))
  rollouts = sampler(parameters['policy'], _batch().rollouts.prompts,
                     _batch().rollouts.prompt_lengths, jnp.arange(8), jax.random.key(0))

  score = jax.jit(functools.partial(scoring.score, tiny.MODEL, temperature=temperature))
  reference, _ = score(parameters['policy'], rollouts)

  # Each prompt alone, so that nothing averages out.
  for row in range(0, 8, 3):
    batch = Batch(rollouts, jnp.ones((8, 1)), reference, {'values': jnp.zeros(8)},
                  jax.nn.one_hot(row, 8))
    _, _, metrics = _run(batch, temperature=temperature)
    np.testing.assert_allclose(np.exp(metrics['train/log_ratio']), 1.0, atol=1e-5)
    assert metrics['train/sampler_gap'] < 1e-4


def test_learns_a_bandit_to_its_closed_form():
  # At beta1 = beta2 = beta. Stage 1 has as many samples as it takes to hold the right answer at
  # its exact rate.
  beta = 0.2
  config = a_star_po.Config(beta1=beta, beta2=beta)
  before = bandit.success_rates(bandit.reference())
  stage1 = np.arange(1000) < np.round(1000 * before)[:, None]
  values = a_star_po.estimate_values(config, jnp.asarray(stage1, jnp.float32))
  learned = bandit.play(
      lambda optimizer: a_star_po.make(config, bandit.MODEL, optimizer), num_samples=1,
      num_iterations=250, aux={'values': values})

  bandit.check_optimum(learned, beta, success=0.05, kl=0.25)
  assert learned.success.mean() > 0.9
  assert learned.kl.mean() < bandit.optimum(before, beta)[1].mean() + 0.1
  # The equation is fitted, for every answer, not only for the right ones (A6).
  assert learned.metrics['train/loss'][-1] < 0.01
