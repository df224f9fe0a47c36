"""GRPO: the equation in its three published forms, its identities, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.algorithms import grpo
from jaxrl_llm.types import TrainState
from tests.algorithms import groups, policy_gradients, tiny

KL = 0.3
SAMPLES = 3
FORMS = {
    'GRPO': dict(advantage_scale='std', normalisation='response'),
    'DAPO': dict(advantage_scale='population_std', normalisation='token', clip_high=0.28),
    'Dr. GRPO': dict(advantage_scale='none', normalisation='constant'),
}


@pytest.fixture(autouse=True, scope='module')
def _fast_compilation():
  with policy_gradients.fast_compilation():
    yield


def _make(config, optimizer):
  return grpo.make(config, tiny.MODEL, optimizer)


run = policy_gradients.runner(_make, grpo.Config, kl_coefficient=KL, samples_per_prompt=SAMPLES)


def _data(num_samples=SAMPLES):
  return groups.batch(num_samples)


def _without_reference(data):
  return dataclasses.replace(data, reference_log_probs=None)


def _advantage(rewards, scale):
  rewards = np.asarray(rewards)
  centred = rewards - rewards.mean(axis=1, keepdims=True)
  if scale == 'none':
    return centred
  ddof = {'std': 1, 'population_std': 0}[scale]
  return centred / (rewards.std(axis=1, keepdims=True, ddof=ddof) + 1e-6)


def _mean(losses, mask, normalisation):
  totals, lengths = jnp.sum(losses * mask, axis=-1), jnp.sum(mask, axis=-1)
  if normalisation == 'response':
    return jnp.mean(totals / lengths)
  return jnp.sum(totals) / (jnp.sum(lengths) if normalisation == 'token' else mask.size)


def _loss(data, *, advantage_scale='std', normalisation='response', clip_low=0.2, clip_high=0.2):
  """(log-probs [P, K, T], rows) -> the loss of these prompts, spelt out."""
  advantage = jnp.asarray(_advantage(data.rewards, advantage_scale))[..., None]
  old = groups.log_probs(tiny.params(), data.rollouts)

  def loss(log_probs, rows=slice(None)):
    ratio, a = jnp.exp(log_probs - old)[rows], advantage[rows]
    surrogate = jnp.minimum(ratio * a, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * a)
    difference = (data.reference_log_probs - log_probs)[rows]
    penalty = KL * (jnp.exp(difference) - difference - 1)
    return _mean(penalty - surrogate, data.rollouts.mask[rows], normalisation)

  return loss


# --- The loss and its gradient.


@pytest.mark.parametrize('form', FORMS)
def test_loss_and_gradient_are_the_equation_spelt_out(form):
  got = run(_data(), **FORMS[form])
  expected = policy_gradients.spelt_out(_loss(_data(), **FORMS[form]), num_samples=SAMPLES)
  policy_gradients.check_equal(got, expected)
  assert got[2]['train/clip_fraction'] == 0 and got[2]['train/ties'] == 0
  mask = np.asarray(_data().rollouts.mask)
  difference = np.asarray(_data().reference_log_probs - _data().rollouts.log_probs)
  divergence = np.sum(mask * (np.exp(difference) - difference - 1)) / mask.sum()
  assert got[2]['train/token_kl'] == pytest.approx(divergence, rel=1e-4)


def test_B4_without_a_penalty_the_gradient_is_the_policy_gradient_of_the_advantages():
  data = _without_reference(_data())
  advantage = _advantage(data.rewards, 'std')[..., None]
  got = run(data, kl_coefficient=0.0)
  _, expected = policy_gradients.spelt_out(
      lambda log_probs: _mean(-advantage * log_probs, data.rollouts.mask, 'response'),
      num_samples=SAMPLES)
  tiny.assert_trees_close(got[1], expected, tolerance=1e-5)
  with pytest.raises(ValueError, match='needs reference_log_probs, got None'):
    run(data)


def test_B2_groups_of_equal_rewards_have_no_advantage():
  data = dataclasses.replace(_data(), rewards=jnp.full((4, SAMPLES), 0.1))
  loss, gradients, metrics = run(_without_reference(data), kl_coefficient=0.0)
  assert loss == 0 and not any(leaf.any() for leaf in jax.tree.leaves(gradients))
  assert metrics['train/ties'] == 1
  # With a penalty they count: nothing is dropped.
  one = dataclasses.replace(_data(), rewards=_data().rewards.at[1].set(0.7))
  _, gradients, metrics = run(one)
  assert metrics['train/ties'] == 0.25 and metrics['train/dropped'] == 0
  without = dataclasses.replace(one, weight=jnp.asarray([1.0, 0, 1, 1]))
  assert tiny.differ(run(without)[1], gradients)


def test_B2_a_group_of_one_keeps_its_reward():
  data = _without_reference(_data(1))
  for row, reward in enumerate(data.rewards[:, 0]):  # At ratio 1 the loss is −A.
    alone = dataclasses.replace(data, weight=jax.nn.one_hot(row, 4))
    loss, _, _ = run(alone, samples_per_prompt=1, kl_coefficient=0.0)
    np.testing.assert_allclose(loss, -reward, rtol=1e-5)


def test_rewards_count_in_units_of_their_spread():
  data = _data()
  other = dataclasses.replace(data, rewards=5.0 * data.rewards + 2.0)
  tiny.assert_trees_close(run(other)[1], run(data)[1], tolerance=1e-5)
  plain = FORMS['Dr. GRPO']
  assert tiny.differ(run(other, **plain)[1], run(data, **plain)[1], by=0.1)


def test_the_penalty_has_a_gradient_of_its_own_and_none_at_the_reference():
  data = dataclasses.replace(_data(), rewards=jnp.zeros((4, SAMPLES)))
  own = dataclasses.replace(data, reference_log_probs=data.rollouts.log_probs)
  loss, gradients, metrics = run(own)
  assert abs(loss) < 1e-6 and abs(metrics['train/token_kl']) < 1e-6
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) < 1e-5
  assert run(data)[0] > 0.01
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(run(data)[1])) > 0.01


# --- Steps after the first.


def test_later_steps_are_weighed_by_the_ratio_of_tokens_and_clipped_on_either_side():
  data = _data()
  options = dict(FORMS['DAPO'], clip_low=0.05, clip_high=0.15)
  # Each minibatch is divided by its own tokens.
  assert data.rollouts.mask[:2].sum() != data.rollouts.mask[2:].sum()
  config = grpo.Config(kl_coefficient=KL, samples_per_prompt=SAMPLES, num_epochs=2,
                       num_minibatches=2, **options)
  loss = _loss(data, **options)
  metrics = policy_gradients.check_steps(
      lambda optimizer: _make(config, optimizer),
      lambda parameters, rows: loss(groups.log_probs(parameters, data.rollouts), rows),
      data, tiny.params(), [[0, 1], [2, 3], [0, 1], [2, 3]], learning_rate=0.1)
  assert 0 < metrics['train/clip_fraction'] < 1
  assert metrics['train/initial_log_ratio'] < 1e-5 < metrics['train/log_ratio']


# --- What has no part.


def test_R20_the_ratio_is_one_before_the_first_step():
  groups.check_initial_ratio(run, _data())


def test_R18_padding_has_no_part():
  groups.check_padding(run, _data())


def test_orders_have_no_part():
  groups.check_orders(run, _data())


def test_rows_that_do_not_count_have_no_part():
  groups.check_rows_that_do_not_count(run, _data())


@pytest.mark.parametrize('form', FORMS)
def test_micro_batches_agree(form):
  options = dict(kl_coefficient=KL, samples_per_prompt=SAMPLES, **FORMS[form])
  groups.check_micro_batches(lambda **changes: grpo.make(
      grpo.Config(**options, **changes), groups.BIGRAM, tiny.recorder()), _data())


def test_one_prompt():
  groups.check_one_prompt(run, _data())


def test_seeds_side_by_side():
  groups.check_seeds(_make, grpo.Config(samples_per_prompt=SAMPLES), _data())


# --- The config.


def test_every_field_of_the_config_has_an_effect_or_an_error():
  fields = {field.name for field in dataclasses.fields(grpo.Config)}
  expected = run(_data())[1]
  for changes in (dict(FORMS['Dr. GRPO']), dict(temperature=0.6)):
    assert tiny.differ(run(_data(), **changes)[1], expected)
    fields -= set(changes)
  assert tiny.differ(run(_without_reference(_data()), kl_coefficient=0.0)[1], expected)
  for name in ('num_minibatches', 'num_micro_batches'):
    with pytest.raises(ValueError, match='must divide the batch of 4, got 3'):
      run(_data(), **{name: 3})
  with pytest.raises(ValueError, match='samples_per_prompt = 8 samples a prompt, got 3'):
    run(_data(), samples_per_prompt=8)
  program = lambda **changes: str(jax.make_jaxpr(_make(
      grpo.Config(samples_per_prompt=SAMPLES, **changes), tiny.recorder()).train_step)(
          TrainState(jnp.int32(0), tiny.params(), tiny.params(), jax.random.key(0), {}), _data()))
  assert program(head_chunk=2) != program()
  # The bounds, num_epochs and num_minibatches: by the test of later steps.
  assert fields == {'clip_low', 'clip_high', 'kl_coefficient', 'samples_per_prompt', 'num_epochs',
                    'num_minibatches', 'num_micro_batches', 'head_chunk'}


@pytest.mark.parametrize('changes, message', [
    (dict(temperature=-1.0), 'temperature must be positive and finite, got -1.0'),
    (dict(samples_per_prompt=0), 'samples_per_prompt must be at least 1, got 0'),
    (dict(num_epochs=0), 'num_epochs must be at least 1, got 0'),
    (dict(num_minibatches=0), 'num_minibatches must be at least 1, got 0'),
    (dict(num_micro_batches=0), 'num_micro_batches must be at least 1, got 0'),
    (dict(advantage_scale='batch'), "advantage_scale must be one of .*got 'batch'"),
    (dict(normalisation='prompt'), "normalisation must be one of .*got 'prompt'"),
    (dict(clip_low=1.5), r'clip_low must be in \[0, 1\], got 1.5'),
    (dict(clip_high=-0.1), r'clip_high must be in \[0, inf\], got -0.1'),
    (dict(kl_coefficient=float('nan')), 'kl_coefficient must be non-negative and finite, got nan'),
    (dict(head_chunk=-1), 'head_chunk must be at least 0, got -1'),
])
def test_bad_settings_are_named_in_one_line(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    _make(grpo.Config(**changes), tiny.recorder())
  assert '\n' not in str(error.value)


# --- Learning.


def test_learns_a_bandit():
  config = grpo.Config(samples_per_prompt=8, num_epochs=2)
  learned = policy_gradients.play(
      lambda optimizer: grpo.make(config, policy_gradients.BANDIT_MODEL, optimizer), 8)
  assert learned.before.mean() < 0.3 and learned.success.mean() > 0.9
  # No further away than the answer that is always right.
  assert (learned.kl < -np.log(learned.before) + 0.01).all()
  assert learned.metrics['train/initial_log_ratio'].max() < 1e-5
