"""REBEL on bandits of three responses: what an iteration solved to the end leads to."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm.algorithms import rebel
from tests.algorithms import bandit, tabular

# The example of R5 and R7: three responses of one token, and all of their pairs.
OLD = np.array([.5, .3, .2])
REWARDS = np.array([1.0, 0.0, -1.0])
ETA = .7
PAIRS = np.array(list(itertools.product(range(3), repeat=2)))


def _bandit(rewards=REWARDS, *, reference=None, weight=None):
  """All nine pairs of three one-token responses; rewards by response, or of the pairs."""
  rewards = np.asarray(rewards)
  rewards = rewards[PAIRS] if rewards.ndim == 1 else rewards
  reference = None if reference is None else np.log(reference)[PAIRS][..., None]
  return tabular.batch_of(PAIRS[..., None], rewards, reference=reference, weight=weight)


@functools.lru_cache
def _solver(changes):
  # The loss is quadratic in logits: with equal weights its curvature is 4/3 along every
  # direction that a softmax can tell, and one step of 3/4 is the minimum.
  config = {'temperature': 1.0, 'kl_coefficient': 0.0, 'num_epochs': 2, **dict(changes)}
  algorithm = rebel.make(rebel.Config(**config), tabular.LOGITS, optax.sgd(0.75))
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
  loss = lambda logits: tabular.at(logits, np.log(OLD), batch, eta=ETA)[0]
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


def test_R15_preferences_that_are_rewards_give_their_target_for_any_comparator():
  comparators = np.array([[0], [1], [2], [2], [0], [1], [1], [0], [2]])  # One a pair.
  preferences = REWARDS[PAIRS][..., None] - REWARDS[comparators][:, None]
  got = _solve(OLD, _bandit(preferences), eta=ETA, signal='preferences')
  np.testing.assert_allclose(got, _solve(OLD, _bandit(), eta=ETA), atol=1e-6)


def test_R11_learns_a_bandit_to_its_closed_form():
  penalty = 0.2
  config = rebel.Config(eta=1.0, kl_coefficient=penalty, temperature=1.0, num_epochs=2)
  learned = bandit.play(
      lambda optimizer: rebel.make(config, bandit.MODEL, optimizer), num_samples=2, rows=96,
      learning_rate=5e-3)
  assert int(learned.state.step) == 300
  assert learned.metrics['train/initial_log_ratio'].max() < 1e-5

  bandit.check_optimum(learned, penalty, success=0.05, kl=0.25)
  assert learned.success.mean() > 0.9
  assert learned.kl.mean() < bandit.optimum(learned.before, penalty)[1].mean() + 0.1
