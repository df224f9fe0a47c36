"""A*-PO: its identities through the real train step, and that it learns."""

import ast
import dataclasses
import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm.algorithms import a_star_po
from jaxrl_llm.models import configs, policy
from jaxrl_llm.rl import masking, scoring
from jaxrl_llm.sampling import decode
from jaxrl_llm.training import optim, step
from jaxrl_llm.types import Batch, Rollouts, TrainState
from tests.algorithms import groups, tiny

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


def _step(**changes):
  return _compiled(dataclasses.astuple(a_star_po.Config(**{'beta2': BETA2, **changes})))


@functools.lru_cache
def _compiled(fields):
  algorithm = a_star_po.make(a_star_po.Config(*fields), tiny.MODEL, tiny.recorder())
  return jax.jit(algorithm.train_step)


def _run(batch=None, **changes):
  return tiny.run_once(_step(**changes), tiny.params(), _batch() if batch is None else batch)


def _exactly(batch, **changes):
  """The same in float64, of a policy that reads one token back."""
  config = a_star_po.Config(**{'beta2': BETA2, 'entropy_coefficient': 0.1, **changes})
  return groups.in_float64(a_star_po.make(config, groups.BIGRAM, tiny.recorder()), batch)


def _replace_rollouts(batch, **changes):
  return dataclasses.replace(batch, rollouts=dataclasses.replace(batch.rollouts, **changes))


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
def test_loss_and_gradient_are_the_equation_spelt_out(temperature):
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
    loss, gradients, _ = tiny.run_once(_step(), tiny.params(), batch)
    tiny.assert_trees_close(gradients, expected, tolerance=1e-4)
    losses.append(loss)
  assert np.ptp(losses) > 0.1  # The loss itself does depend on them.


def test_A11_what_follows_the_stop_token_has_no_part():
  batch = _batch()
  after = batch.rollouts.mask[:, 0] == 0
  tokens = jnp.where(after, jnp.asarray([6, 5, 4]), batch.rollouts.tokens[:, 0])[:, None]
  assert (tokens != batch.rollouts.tokens).sum() > 5
  changed = _replace_rollouts(
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


def test_padding_of_prompts_has_no_part():
  batch = _batch()
  slots = np.arange(4)
  padding = slots < 4 - np.asarray(batch.rollouts.prompt_lengths)[:, None]
  other = jnp.where(padding, 6 - batch.rollouts.prompts, batch.rollouts.prompts)
  expected_loss, expected, _ = _run()
  loss, gradients, _ = _run(_replace_rollouts(batch, prompts=other))
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  tiny.assert_trees_close(gradients, expected, tolerance=1e-5)


def test_A12_the_order_of_prompts_has_no_part_as_long_as_values_move_along():
  order = np.array([5, 2, 7, 0, 1, 3, 6, 4])
  expected = _exactly(_batch())
  moved = jax.tree.map(lambda leaf: leaf[order], _batch())
  groups.check_same_in_float64(_exactly(moved), expected)
  stray = dataclasses.replace(moved, aux=_batch().aux)
  assert abs(_exactly(stray)[0] - expected[0]) > 1e-3


def _with_filler(batch, filler):
  """The first six rows, and two of weight 0 with `filler` wherever a number can stand."""
  dead = np.arange(8) >= 6
  fill = lambda leaf: jnp.where(dead.reshape((8,) + (1,) * (leaf.ndim - 1)), filler, leaf)
  batch = dataclasses.replace(
      batch, rewards=fill(batch.rewards), reference_log_probs=fill(batch.reference_log_probs),
      aux={'values': fill(batch.aux['values'])}, weight=jnp.asarray(~dead, jnp.float32))
  return _replace_rollouts(batch, log_probs=fill(batch.rollouts.log_probs))


@pytest.mark.parametrize('filler', [0.0, 1e6, np.nan, np.inf])
def test_rows_of_weight_zero_have_no_part_whatever_stands_in_them(filler):
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
  groups.check_same_in_float64(_exactly(batch), _exactly(alone))


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


def test_a_batch_without_any_weight_gives_zeros():
  batch = dataclasses.replace(_batch(), weight=jnp.zeros(8))
  loss, gradients, metrics = _run(batch, entropy_coefficient=0.1)
  assert loss == 0
  assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradients))
  assert all(np.isfinite(value) for value in metrics.values())


def test_micro_batchings_and_chunkings_agree():
  # Weights and lengths are uneven, so that a mean of means would be seen.
  batch = dataclasses.replace(
      _batch(), weight=jnp.asarray([1, 1, 0, 1, 1, 1, 0, 1], jnp.float32))
  groups.check_same_in_float64(
      _exactly(batch, num_micro_batches=8, head_chunk=2), _exactly(batch))


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
  """What Adam does at first with the gradients of beta2 = 1e-3, times `scale`."""
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
  # An eps that is large beside 2 beta2 |grad ln pi| freezes a part of the network.
  large = [_first_update(eps=1e-5, scale=scale) for scale in (1.0, 1e6)]
  assert np.abs(large[0] - large[1]).mean() > 0.1


# --- The config.


def test_every_field_of_the_config_has_an_effect_or_an_error():
  fields = {field.name for field in dataclasses.fields(a_star_po.Config)}
  rewards = jnp.asarray([[1.0, 0, 0, 1], [0, 0, 0, 1]])
  values = lambda **changes: a_star_po.estimate_values(a_star_po.Config(**changes), rewards)
  for name, value in (('beta1', 2.0), ('value_mode', 'max')):
    assert np.abs(values(**{name: value}) - values()).max() > 0.05
    fields.remove(name)
  _, expected, _ = _run()
  for name, value in (('beta2', 1e-3), ('temperature', 0.6), ('entropy_coefficient', 0.1)):
    assert tiny.differ(_run(**{name: value})[1], expected)
    fields.remove(name)
  with pytest.raises(ValueError, match='num_micro_batches must divide the batch of 8, got 3'):
    _run(num_micro_batches=3)
  fields.remove('num_micro_batches')
  program = lambda chunk: str(jax.make_jaxpr(_step(head_chunk=chunk))(
      TrainState(jnp.int32(0), tiny.params(), tiny.params(), jax.random.key(0), {}), _batch()))
  assert program(2) != program(128)
  fields.remove('head_chunk')
  # The rest is the loop's, which stands in the binary.
  assert fields == {'samples_per_prompt', 'filter_all_wrong', 'stage1_reward', 'num_minibatches'}
  experiments = pathlib.Path(__file__).resolve().parents[2] / 'experiments'
  read = {
      node.attr for path in experiments.rglob('*.py')
      for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
      if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
  assert fields <= read, fields - read


@pytest.mark.parametrize('changes, message', [
    (dict(beta1=0.0), 'beta1 must be positive and finite, got 0.0'),
    (dict(beta2=-1e-3), 'beta2 must be positive and finite, got -0.001'),
    (dict(beta2=float('nan')), 'beta2 must be positive and finite, got nan'),
    (dict(temperature=float('inf')), 'temperature must be positive and finite, got inf'),
    (dict(samples_per_prompt=0), 'samples_per_prompt must be at least 1, got 0'),
    (dict(num_minibatches=0), 'num_minibatches must be at least 1, got 0'),
    (dict(num_micro_batches=-2), 'num_micro_batches must be at least 1, got -2'),
    (dict(value_mode='median'), "value_mode must be one of .*got 'median'"),
    (dict(stage1_reward='strict'), "stage1_reward must be one of .*got 'strict'"),
    (dict(entropy_coefficient=-0.1),
     'entropy_coefficient must be non-negative and finite, got -0.1'),
    (dict(head_chunk=-1), 'head_chunk must be at least 0, got -1'),
])
def test_bad_settings_are_named_in_one_line(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    a_star_po.make(a_star_po.Config(**changes), tiny.MODEL, tiny.recorder())
  assert '\n' not in str(error.value)


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
  # Six prompts, each with one right answer out of eight nearly equally probable ones, at
  # beta1 = beta2 = beta. With p the reference's probability of the right answer,
  #   π*(right) = p e^{1/β} / (1 − p + p e^{1/β}),    V* = β ln(1 − p + p e^{1/β}),
  #   KL(π* ‖ π_ref) = (π*(right) − V*) / β.
  beta, prompts, rows = 0.2, 6, 48
  model = policy.make(configs.TransformerConfig(
      vocab_size=8, num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8,
      mlp_width=32, max_length=8))
  parameters = {'policy': jax.jit(model.init)(jax.random.key(0))}
  reference = jax.tree.map(np.array, parameters['policy'])
  frozen = jax.tree.map(np.copy, reference)
  x = np.arange(1, prompts + 1, dtype=np.int32)
  right = np.array([3, 1, 7, 7, 2, 5])

  @jax.jit
  def distributions(params):
    output = model.apply(params, x[:, None], positions=np.zeros((prompts, 1), np.int32),
                         valid=np.ones((prompts, 1), bool))
    return jax.nn.softmax(output.hidden[:, 0] @ output.head.kernel.T)

  p = np.asarray(distributions(reference))[np.arange(prompts), right]
  config = a_star_po.Config(beta1=beta, beta2=beta)
  # Stage 1 with as many samples as it takes to hold the right answer at its exact rate.
  counts = np.round(1000 * p).astype(int)
  stage1 = (np.arange(1000) < counts[:, None]).astype(np.float32)
  values = np.asarray(a_star_po.estimate_values(config, jnp.asarray(stage1)))

  algorithm = a_star_po.make(
      config, model,
      optim.make_optimizer(optim.OptimizerConfig(name='adam', learning_rate=1e-2)))
  train_step = step.jit_train_step(algorithm.train_step)
  sampler = jax.jit(decode.make_sampler(
      model, num_samples=1, max_tokens=1, stop_ids=(0,), pad_id=0))
  score = jax.jit(functools.partial(scoring.score, model))
  state = algorithm.init(jax.random.key(1), parameters)
  for i in range(250):
    chosen = np.arange(rows) % prompts
    rollouts = sampler(
        state.params['policy'], x[chosen][:, None], np.ones(rows, np.int32), np.arange(rows),
        jax.random.fold_in(jax.random.key(2), i))
    rewards = (np.asarray(rollouts.tokens)[:, :, 0] == right[chosen][:, None])
    reference_log_probs, _ = score(reference, rollouts)
    state, metrics = train_step(state, Batch(
        rollouts, rewards.astype(np.float32), reference_log_probs, {'values': values[chosen]},
        np.ones(rows, np.float32)))
  assert train_step.num_traces == 1

  learned, before = (np.asarray(distributions(q)) for q in (state.params['policy'], reference))
  normaliser = 1 - p + p * np.exp(1 / beta)
  optimal = p * np.exp(1 / beta) / normaliser
  optimal_kl = (optimal - beta * np.log(normaliser)) / beta
  success = learned[np.arange(prompts), right]
  kl = np.sum(learned * np.log(learned / before), axis=-1)
  assert p.mean() < 0.3 and optimal.mean() > 0.92
  assert success.mean() > 0.9
  np.testing.assert_allclose(success, optimal, atol=0.05)
  np.testing.assert_allclose(kl, optimal_kl, atol=0.25)
  assert kl.mean() < optimal_kl.mean() + 0.1
  # The equation is fitted, for every answer, not only for the right ones (A6).
  assert float(metrics['train/loss'].value()) < 0.01
  jax.tree.map(np.testing.assert_array_equal, reference, frozen)
