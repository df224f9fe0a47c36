"""Preference games: rock, paper, scissors, and games that rewards could explain."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rebel_games import games

# Paper (1) beats rock (0), scissors (2) beat paper, rock beats scissors.
GAME = np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
START = np.array([.6, .3, .1])


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _random_game(seed, size=4):
  table = np.random.default_rng(seed).uniform(-1, 1, (size, size))
  return (table - table.T) / 2


def test_R15_one_step_of_rock_paper_scissors():
  # Rock against (.6, .3, .1): 0 * .6 - 1 * .3 + 1 * .1 = -.2; paper .6 - .1, scissors -.6 + .3.
  np.testing.assert_allclose(games.expected_preference(GAME, START), [-.2, .5, -.3], atol=1e-12)
  assert games.exploitability(GAME, START) == pytest.approx(.5, abs=1e-12)
  np.testing.assert_allclose(
      games.mirror_descent_step(GAME, START, eta=.1), [.587799, .315210, .096992], atol=5e-7)


def test_R15_only_the_uniform_policy_is_stationary():
  uniform = np.full(3, 1 / 3)
  np.testing.assert_allclose(games.expected_preference(GAME, uniform), 0, atol=1e-15)
  np.testing.assert_allclose(games.mirror_descent_step(GAME, uniform, eta=.7), uniform, atol=1e-15)
  assert games.exploitability(GAME, uniform) == pytest.approx(0, abs=1e-15)
  for policy in ([.4, .3, .3], [.3, .4, .3], [1.0, 0, 0]):
    assert games.exploitability(GAME, np.array(policy)) > .05


def _play(table, start, eta, steps):
  step = lambda policy, _: (games.mirror_descent_step(table, policy, eta=eta), policy)
  return np.asarray(jax.jit(lambda p: jax.lax.scan(step, p, length=steps)[1])(jnp.asarray(start)))


def test_R15_the_average_stays_below_the_bound_and_the_last_iterate_does_not_converge():
  policies = _play(GAME, START, .05, 2_001)
  bound = games.average_iterate_bound(START, eta=.05, steps=2_000)
  assert bound == pytest.approx(.0480, abs=5e-5)  # ln 10 / (.05 * 2000) + .05 / 2.
  average = games.exploitability(GAME, policies[:2_000].mean(axis=0))
  assert average == pytest.approx(.0130, abs=5e-5)
  assert games.exploitability(GAME, policies[-1]) == pytest.approx(.650, abs=5e-4)
  # At every T, not only at the last one.
  steps = np.arange(1, 2_001)
  averages = np.cumsum(policies[:2_000], axis=0) / steps[:, None]
  bounds = games.average_iterate_bound(START, eta=.05, steps=steps)
  assert (np.asarray(games.exploitability(GAME, averages)) <= np.asarray(bounds)).all()


def test_the_bound_holds_in_random_games():
  for seed in range(5):
    table, rng = _random_game(seed), np.random.default_rng(seed)
    start = rng.dirichlet(np.ones(4)) * .9 + .025
    average = _play(table, start, .2, 300).mean(axis=0)
    assert games.exploitability(table, average) <= games.average_iterate_bound(
        start, eta=.2, steps=300)


def test_expected_preference_is_a_sum_over_all_opponents():
  table, policies = _random_game(0), np.random.default_rng(1).dirichlet(np.ones(4), (2, 5))
  expected = np.zeros((2, 5, 4))
  for index in itertools.product(range(2), range(5), range(4), range(4)):
    expected[index[:3]] += table[index[2:]] * policies[index[0], index[1], index[3]]
  np.testing.assert_allclose(games.expected_preference(table, policies), expected, atol=1e-15)
  np.testing.assert_allclose(
      games.exploitability(table, policies), expected.max(axis=-1), atol=1e-15)
  # A policy is worth 0 against itself, so that somebody does at least as well.
  np.testing.assert_allclose(np.sum(expected * policies, axis=-1), 0, atol=1e-15)


def test_a_step_on_rewards_is_mirror_descent_on_them():
  rewards = np.array([.3, -.2, .1])
  weights = START * np.exp(.7 * rewards)
  np.testing.assert_allclose(
      games.mirror_descent_step(rewards[:, None] - rewards, START, eta=.7),
      weights / weights.sum(), atol=1e-12)


def test_bradley_terry_finds_the_rewards_that_made_the_comparisons():
  rewards = np.array([1.2, -.4, .3, -1.1])
  chance = 1 / (1 + np.exp(rewards - rewards[:, None]))
  played = np.random.default_rng(2).uniform(1, 9, (4, 4))
  np.testing.assert_allclose(
      games.bradley_terry((played + played.T) * chance), rewards, atol=1e-9)


def _assert_stationary(wins, rewards):
  chance = 1 / (1 + np.exp(rewards - rewards[:, None]))
  played = wins + wins.T
  np.testing.assert_allclose(
      (wins - played * chance).sum(axis=1) - np.diag(wins - played * chance), 0,
      atol=1e-9 * np.max(wins))


def test_bradley_terry_converges_quadratically_and_from_far_away():
  rewards = np.array([1.2, -.4, .3, -1.1])
  chance = 1 / (1 + np.exp(rewards - rewards[:, None]))
  np.testing.assert_allclose(games.bradley_terry(chance, steps=6), rewards, atol=1e-9)
  # Counts so uneven that whole steps of Newton's method would run away.
  wins = np.array([[0, 1, 1, 0], [0, 0, 2, 1], [5, 0, 0, 1], [5, 5, 0, 0]])
  wins = np.where(np.eye(4), 0, 10.0**wins)
  _assert_stationary(wins, np.asarray(games.bradley_terry(wins)))


def test_bradley_terry_is_stationary_and_turns_with_the_names():
  wins = np.random.default_rng(3).uniform(0, 5, (5, 5))
  got = np.asarray(games.bradley_terry(wins))
  _assert_stationary(wins, got)
  assert got.mean() == pytest.approx(0, abs=1e-12)
  order = np.array([3, 1, 4, 0, 2])
  np.testing.assert_allclose(games.bradley_terry(wins[order][:, order]), got[order], atol=1e-9)


def test_bradley_terry_makes_an_order_of_a_cycle():
  # Every response was compared as often as the policy (.6, .3, .1) draws both.
  wins = START[:, None] * START * (1 + GAME) / 2
  got = np.asarray(games.bradley_terry(wins))
  assert got.max() - got.min() > .5
  # Where all are met equally often there is nothing to tell them apart.
  np.testing.assert_allclose(games.bradley_terry((1 + GAME) / 18), 0, atol=1e-12)


def test_bradley_terry_with_a_prior_is_finite_where_one_response_always_won():
  wins = np.array([[0.0, 50], [0, 0]])
  got = np.asarray(games.bradley_terry(wins, prior=1.0))
  np.testing.assert_allclose(got[0] - got[1], np.log(51), atol=1e-9)  # 51 wins of 52.


@pytest.mark.parametrize('call, message', [
    (lambda: games.mirror_descent_step(GAME, START, eta=0.0), 'eta must be positive .* got 0.0'),
    (lambda: games.average_iterate_bound(START, eta=-1.0, steps=3), 'eta must be .* got -1.0'),
    (lambda: games.average_iterate_bound(START, eta=.1, steps=0), 'steps must be .* got 0'),
])
def test_bad_options_are_one_line_errors(call, message):
  with pytest.raises(ValueError, match=message) as error:
    call()
  assert '\n' not in str(error.value)


def test_shapes_that_do_not_fit_are_errors():
  with pytest.raises(AssertionError):
    games.expected_preference(GAME, np.ones(4) / 4)
  with pytest.raises(AssertionError):
    games.bradley_terry(np.ones((2, 3)))
