"""A*-PO and REBEL by enumeration: a policy over a few responses, every sample weighed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from jaxrl_llm.rl import log_probs, masking, regression_losses, soft_values

# The example of A6 and A8: four responses.
REFERENCE = np.array([.1, .2, .3, .4])
REWARDS = np.array([1.0, 0.0, 1.0, 0.0])
BETA = .5
# The example of R5, R7 and R9: three responses.
OLD = np.array([.5, .3, .2])
OLD_REWARDS = np.array([1.0, 0.0, -1.0])
ETA = .7
PAIRS = np.stack(np.meshgrid(np.arange(3), np.arange(3), indexing='ij'), -1).reshape(-1, 2)


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _v_star(beta):
  return float(beta * np.log(np.sum(REFERENCE * np.exp(REWARDS / beta))))


def _optimum(beta):
  return REFERENCE * np.exp((REWARDS - _v_star(beta)) / beta)


def _a_star_po(logits, *, value, beta=BETA):
  """The loss of each of the four responses."""
  log_ratio = jax.nn.log_softmax(logits) - jnp.log(REFERENCE)
  return regression_losses.a_star_po_loss(
      log_ratio, jnp.asarray(REWARDS), jnp.full(4, value), beta=beta)


def _expected_gradient(logits, **options):
  """The gradient of the mean loss over samples of the policy, which is held fixed."""
  weights = jax.nn.softmax(logits)
  return jax.jit(jax.grad(lambda x: jnp.sum(weights * _a_star_po(x, **options))))(logits)


def _objective(logits, *, beta):
  """J = E r - beta KL(pi || reference)."""
  policy = jax.nn.softmax(logits)
  return jnp.sum(policy * (REWARDS - beta * (jax.nn.log_softmax(logits) - jnp.log(REFERENCE))))


def _rebel(logits, *, eta=ETA, form='code', rewards=OLD_REWARDS, old=OLD):
  """The loss of each of the nine pairs."""
  log_ratio = jax.nn.log_softmax(logits) - jnp.log(old)
  return regression_losses.rebel_loss(
      log_ratio[PAIRS], jnp.asarray(rewards)[PAIRS], eta=eta, form=form)


def test_A6_identities_of_the_optimum():
  value = float(soft_values.log_mean_exp(  # Weights .1, .2, .3, .4 as counts of ten.
      jnp.repeat(jnp.asarray(REWARDS), np.array([1, 2, 3, 4])), beta=BETA))
  optimum = _optimum(BETA)
  assert value == pytest.approx(.634265, abs=5e-7) == _v_star(BETA)
  np.testing.assert_allclose(optimum, [.207813, .056249, .623440, .112498], atol=5e-7)
  assert optimum.sum() == pytest.approx(1, abs=1e-12)
  assert _objective(jnp.log(optimum), beta=BETA) == pytest.approx(value, abs=1e-12)
  assert np.sum(REFERENCE * np.exp((REWARDS - value) / BETA)) == pytest.approx(1, abs=1e-12)
  # Zero for every response, not only on average.
  np.testing.assert_allclose(_a_star_po(jnp.log(optimum), value=value), 0, atol=1e-24)
  assert np.all(_a_star_po(jnp.log(REFERENCE), value=value) > .1)


def test_A6_on_policy_gradient_flow_reaches_the_optimum():
  step = lambda _, logits: logits - _expected_gradient(logits, value=_v_star(BETA))
  logits = jax.lax.fori_loop(0, 1000, step, jnp.log(REFERENCE))
  np.testing.assert_allclose(jax.nn.softmax(logits), _optimum(BETA), atol=1e-9)


@pytest.mark.parametrize('shift', [0.0, .3, -1.0])
def test_A7_expected_on_policy_gradient_does_not_depend_on_the_value(shift):
  logits = jnp.array([.3, -.2, .9, .1])
  gradient = _expected_gradient(logits, value=_v_star(BETA) + shift)
  expected = -2 * BETA * jax.grad(functools.partial(_objective, beta=BETA))(logits)
  np.testing.assert_allclose(gradient, expected, atol=1e-14)
  # It is the sampling that makes it so: uniform samples tell the values apart.
  uniform = lambda value: jax.grad(lambda x: _a_star_po(x, value=value).mean())(logits)
  assert np.abs(uniform(_v_star(BETA) + .5) - uniform(_v_star(BETA))).max() > .01


def test_A8_floor_of_the_loss_with_two_betas():
  beta1, beta2 = .5, .1
  at_optimum = jnp.log(_optimum(beta2))
  options = dict(value=_v_star(beta1), beta=beta2)
  np.testing.assert_allclose(_expected_gradient(at_optimum, **options), 0, atol=1e-14)
  floor = (_v_star(beta1) - _v_star(beta2))**2
  np.testing.assert_allclose(_a_star_po(at_optimum, **options), floor, rtol=1e-12)
  assert floor == pytest.approx(.075138, abs=5e-7)


def test_A9_at_the_reference_it_is_reinforce_with_a_static_baseline():
  value, logits = .4, jnp.log(REFERENCE)
  losses = _a_star_po(logits, value=value)
  np.testing.assert_allclose(losses, (value - REWARDS)**2, rtol=1e-12)
  gradients = jax.jit(jax.jacobian(lambda x: _a_star_po(x, value=value)))(logits)
  scores = np.eye(4) - REFERENCE  # d ln pi_i / d logit_j.
  np.testing.assert_allclose(
      gradients, 2 * BETA * (value - REWARDS)[:, None] * scores, atol=1e-14)


def test_A10_hand_example():
  log_ratio = jnp.array([-12.0, -7.0]) - jnp.array([-10.0, -7.5])
  losses = regression_losses.a_star_po_loss(
      log_ratio, jnp.array([1.0, 0.0]), jnp.array([.477229, .293513]), beta=1e-3)
  # Residuals .001 * -2 + .477229 - 1 = -.524771 and .001 * .5 + .293513 - 0 = .294013.
  np.testing.assert_allclose(losses, [.524771**2, .294013**2], rtol=1e-9)
  assert losses.mean() == pytest.approx(.180914, abs=5e-7)


@pytest.mark.parametrize('pad_id', [0, 2])
def test_A11_what_follows_the_stop_token_does_not_matter(pad_id):
  # Stop id 2, and padding that may share it. The stop token itself counts.
  rng = np.random.default_rng(0)
  logits, reference = jnp.asarray(rng.normal(size=(2, 3, 6, 5)))
  tokens = jnp.array([[1, 2, 4, 2, 1, 3], [4, 1, 3, 1, 4, 1], [2, 2, 2, 2, 2, 2]])
  padded = masking.truncate_after_stop(tokens, stop_ids=(2,), pad_id=pad_id)

  def loss(logits, tokens):
    mask = masking.response_mask(tokens, (2,)).mask
    ratio = (log_probs.log_probs_from_logits(logits, tokens)
             - log_probs.log_probs_from_logits(reference, tokens))
    return regression_losses.a_star_po_loss(
        masking.masked_sum(ratio, mask, axis=-1), jnp.ones(3), jnp.full(3, .3), beta=.1).sum()

  before, after = (jax.jit(jax.value_and_grad(loss))(logits, x) for x in (tokens, padded))
  jax.tree.map(np.testing.assert_array_equal, before, after)
  # The gradient reaches exactly the tokens up to the stop token: 2, all 6, and 1.
  reached = np.abs(after[1]).max(-1) > 0
  np.testing.assert_array_equal(reached, np.arange(6) < np.array([[2], [6], [1]]))


def test_R1_zero_loss_and_gradient_where_the_target_is_met():
  rewards = jnp.array([[1.0, .2], [0.0, .5]])
  log_ratio = ETA * rewards + jnp.array([[3.0], [-1.0]])
  loss = lambda x: regression_losses.rebel_loss(x, rewards, eta=ETA).sum()
  value, gradient = jax.value_and_grad(loss)(log_ratio)
  assert value == pytest.approx(0, abs=1e-28)
  np.testing.assert_allclose(gradient, 0, atol=1e-14)


def test_R2_hand_example():
  # D = [(-3.0 + 3.2) - (-4.0 + 3.7), (-2.5 + 2.5) - (-2.0 + 2.2)] = [.5, -.2];
  # eta dR = [.4, -.25]; residuals [.1, .05]; squares [.01, .0025].
  new = jnp.array([[-3.0, -4.0], [-2.5, -2.0]])
  old = jnp.array([[-3.2, -3.7], [-2.5, -2.2]])
  rewards = jnp.array([[1.0, .2], [0.0, .5]])
  losses = {form: regression_losses.rebel_loss(new - old, rewards, eta=.5, form=form)
            for form in ('code', 'paper')}
  np.testing.assert_allclose(losses['code'], [.01, .0025], rtol=1e-9)
  assert losses['code'].mean() == pytest.approx(.00625, rel=1e-9)
  assert losses['paper'].mean() == pytest.approx(.025, rel=1e-9)


def test_R3_invariances():
  rng = np.random.default_rng(1)
  log_ratio, rewards = jnp.asarray(rng.normal(size=(2, 4, 2)))
  shift = jnp.asarray(rng.normal(size=(4, 1)))
  loss = functools.partial(regression_losses.rebel_loss, eta=ETA)
  expected = loss(log_ratio, rewards)
  order = np.array([2, 0, 3, 1])
  close = functools.partial(np.testing.assert_allclose, rtol=1e-12)
  close(loss(log_ratio, rewards + shift), expected)
  close(loss(log_ratio + shift, rewards), expected)
  close(loss(log_ratio[:, ::-1], rewards[:, ::-1]), expected)
  close(loss(log_ratio[order], rewards[order]), expected[order])
  close(regression_losses.rebel_loss(log_ratio, 3 * rewards, eta=ETA / 3), expected)


def test_R5_initial_loss_is_twice_the_variance():
  losses = _rebel(jnp.log(OLD))
  np.testing.assert_allclose(
      losses, (ETA * (OLD_REWARDS[PAIRS[:, 0]] - OLD_REWARDS[PAIRS[:, 1]]))**2, atol=1e-15)
  weights = np.prod(OLD[PAIRS], axis=-1)
  assert np.dot(weights, losses) == pytest.approx(.5978, abs=1e-9)


def test_R6_variance_form():
  logits = jnp.array([.2, -1.0, .4])
  weights = np.prod(OLD[PAIRS], axis=-1)
  residual = np.asarray(jax.nn.log_softmax(logits)) - np.log(OLD) - ETA * OLD_REWARDS
  variance = np.dot(OLD, residual**2) - np.dot(OLD, residual)**2
  assert np.dot(weights, _rebel(logits)) == pytest.approx(2 * variance, rel=1e-12)


def test_R7_mirror_descent_is_the_minimiser():
  weights = OLD * np.exp(ETA * OLD_REWARDS)
  assert weights.sum() == pytest.approx(1.406193, abs=5e-7)
  minimiser = weights / weights.sum()
  np.testing.assert_allclose(minimiser, [.716030, .213342, .070628], atol=5e-7)
  assert _rebel(jnp.log(minimiser)).max() < 1e-30
  for direction in np.eye(3):
    assert _rebel(jnp.log(minimiser) + .1 * direction).sum() > 1e-3


def test_R9_gradient_is_rloo_of_two():
  logits = jnp.log(OLD)
  gradients = jax.jit(jax.jacobian(_rebel))(logits)
  scores = np.eye(3) - OLD  # d ln pi_i / d logit_j.
  first, second = PAIRS.T
  difference = (OLD_REWARDS[first] - OLD_REWARDS[second])[:, None]
  ascent = difference * (scores[first] - scores[second]) / 2
  np.testing.assert_allclose(gradients, -4 * ETA * ascent, atol=1e-14)
  expected = np.dot(np.prod(OLD[PAIRS], axis=-1), gradients)
  policy_gradient = jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) * OLD_REWARDS))(logits)
  np.testing.assert_allclose(expected, -4 * ETA * policy_gradient, atol=1e-14)
  np.testing.assert_allclose(expected, [-.98, .252, .728], atol=1e-12)


def _gauss_newton(loss, theta):
  """One step on a mean of squares whose residuals are linear in the parameters."""
  gradient, hessian = jax.jit(lambda x: (jax.grad(loss)(x), jax.hessian(loss)(x)))(theta)
  curvature = np.asarray(hessian) / 2  # Without the 2 of the square.
  return -np.linalg.pinv(curvature, rcond=1e-10, hermitian=True) @ (gradient / 2), curvature


@pytest.mark.parametrize('features', [np.eye(3), 'rank deficient'])
def test_R10_gauss_newton_is_the_natural_policy_gradient(features):
  rng = np.random.default_rng(4)
  if isinstance(features, str):  # Six actions; the third feature is the first two added.
    features = rng.normal(size=(6, 2)) @ np.array([[1.0, 0, 1], [0, 1, 1]])
  actions = len(features)
  theta, rewards = rng.normal(size=features.shape[1]), rng.normal(size=actions)
  log_policy = lambda theta: jax.nn.log_softmax(features @ theta)
  policy = np.exp(log_policy(theta))
  pairs = np.stack(np.meshgrid(np.arange(actions), np.arange(actions)), -1).reshape(-1, 2)

  def loss(x):
    log_ratio = log_policy(x) - log_policy(theta)
    losses = regression_losses.rebel_loss(
        log_ratio[pairs], jnp.asarray(rewards)[pairs], eta=ETA)
    return jnp.sum(np.prod(policy[pairs], axis=-1) * losses)

  step, curvature = _gauss_newton(loss, jnp.asarray(theta))
  scores = features - policy @ features
  fisher = scores.T @ (policy[:, None] * scores)
  np.testing.assert_allclose(curvature, 2 * fisher, atol=1e-12)
  gradient = scores.T @ (policy * rewards)  # Of the expected reward.
  natural = ETA * np.linalg.pinv(fisher, rcond=1e-10, hermitian=True) @ gradient
  np.testing.assert_allclose(step, natural, atol=1e-8)
  if actions == 3:  # Softmax logits: the rewards themselves, up to a constant.
    np.testing.assert_allclose(step - step.mean(), ETA * (rewards - rewards.mean()), atol=1e-12)


def test_R12_implicit_reward():
  # r = beta ln pi*/reference and eta = 1 / beta: zero at pi*, for any pi*.
  optimum = jax.nn.softmax(jnp.array([.7, -.4, .1]))
  rewards = BETA * (jnp.log(optimum) - jnp.log(OLD))
  losses = _rebel(jnp.log(optimum), eta=1 / BETA, rewards=rewards)
  np.testing.assert_allclose(losses, 0, atol=1e-24)


def test_R13_constant_target_is_ipo():
  # IPO: (D - 1 / (2 tau))^2, the chosen response first.
  tau, log_ratio = .3, jnp.array([[.4, -1.0], [2.0, .5]])
  ipo = (log_ratio[:, 0] - log_ratio[:, 1] - 1 / (2 * tau))**2
  rewards = jnp.array([[1.0, 0.0], [1.0, 0.0]])
  losses = regression_losses.rebel_loss(log_ratio, rewards, eta=1 / (2 * tau))
  np.testing.assert_allclose(losses, ipo, rtol=1e-12)


def test_R21_identical_pair():
  same = jnp.array([[0, 0], [2, 2]])
  rewards = jnp.array([[1.0, 1.0], [1.0, .4]])

  def losses(logits):
    log_ratio = jax.nn.log_softmax(logits) - jnp.log(OLD)
    return regression_losses.rebel_loss(log_ratio[same], rewards, eta=ETA)

  logits = jnp.array([.2, -1.0, .4])
  # Nothing where the scores agree; where they do not, (eta dR)^2 that nothing can lower.
  np.testing.assert_allclose(losses(logits), [0, (ETA * .6)**2], rtol=1e-12, atol=0)
  np.testing.assert_array_equal(jax.jit(jax.jacobian(losses))(logits), np.zeros((2, 3)))


def test_preference_rewards_average_over_the_comparators():
  preferences = jnp.array([[[1.0, -1.0, .5, .5], [0.0, 0.0, 1.0, 1.0]]])
  np.testing.assert_allclose(
      regression_losses.preference_rewards(preferences), [[.25, .5]], rtol=1e-12)
  with pytest.raises(AssertionError):
    regression_losses.preference_rewards(preferences[0])
  with pytest.raises(AssertionError):
    regression_losses.preference_rewards(preferences[:, :1])


def test_R15_target_of_preferences():
  rng = np.random.default_rng(5)
  table = rng.uniform(-1, 1, size=(4, 4))
  table = (table - table.T) / 2  # Antisymmetric; in general intransitive.
  pairs = np.stack(np.meshgrid(np.arange(4), np.arange(4), indexing='ij'), -1).reshape(-1, 2)
  policy = np.array([.4, .3, .2, .1])
  comparators = np.repeat(np.arange(4), [4, 3, 2, 1])  # As often as the policy chooses them.

  def target(table, comparators):
    rewards = regression_losses.preference_rewards(
        jnp.asarray(table[pairs[..., None], comparators]))
    return np.asarray(rewards[:, 0] - rewards[:, 1]).reshape(4, 4)

  got = target(table, comparators)
  np.testing.assert_allclose(got, -got.T, atol=1e-15)  # In y and y'.
  win_rates = table @ policy  # Its mean over y'' is their difference.
  np.testing.assert_allclose(got, win_rates[:, None] - win_rates, atol=1e-12)
  # One comparator is noise around it, unless preferences are differences of rewards.
  assert np.abs(target(table, comparators[:1]) - got).max() > .1
  rewards = rng.normal(size=4)
  for comparator in range(4):
    np.testing.assert_allclose(
        target(rewards[:, None] - rewards, np.array([comparator])),
        rewards[:, None] - rewards, atol=1e-12)


def test_prompts_do_not_mix_and_order_does_not_matter():
  rng = np.random.default_rng(2)
  log_ratio, rewards, values = jnp.asarray(rng.normal(size=(3, 5)))
  loss = functools.partial(regression_losses.a_star_po_loss, beta=BETA)
  order = np.array([4, 2, 0, 1, 3])
  expected = loss(log_ratio, rewards, values)[order]
  np.testing.assert_array_equal(loss(log_ratio[order], rewards[order], values[order]), expected)
  jacobian = jax.jit(jax.jacobian(loss))(log_ratio, rewards, values)
  np.testing.assert_array_equal(jacobian, np.diag(np.diag(jacobian)))


def test_gradients_and_constants():
  rng = np.random.default_rng(3)
  a_star_po = functools.partial(regression_losses.a_star_po_loss, beta=BETA)
  log_ratio, rewards, values = jnp.asarray(rng.normal(size=(3, 4)))
  test_util.check_grads(lambda x: a_star_po(x, rewards, values), (log_ratio,), order=2)
  constant = jax.grad(lambda *x: a_star_po(*x).sum(), argnums=(1, 2))(log_ratio, rewards, values)
  assert not np.any(constant)
  log_ratio, rewards = jnp.asarray(rng.normal(size=(2, 4, 2)))
  for form in ('code', 'paper'):
    rebel = functools.partial(regression_losses.rebel_loss, eta=ETA, form=form)
    test_util.check_grads(lambda x, f=rebel: f(x, rewards), (log_ratio,), order=2)
    assert not np.any(jax.grad(lambda x, f=rebel: f(log_ratio, x).sum())(rewards))


def test_bad_options_are_one_line_errors():
  ones = jnp.ones((1, 2))
  with pytest.raises(ValueError, match='beta must be positive and finite, got 0'):
    regression_losses.a_star_po_loss(ones[0], ones[0], ones[0], beta=0)
  with pytest.raises(ValueError, match='eta must be positive and finite, got -1'):
    regression_losses.rebel_loss(ones, ones, eta=-1)
  with pytest.raises(ValueError, match="form must be 'code' or 'paper', got 'book'"):
    regression_losses.rebel_loss(ones, ones, eta=1.0, form='book')
