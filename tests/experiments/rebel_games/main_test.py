"""The study of rock, paper, scissors: arms, files, resumed runs and invalid configs."""

import csv
import dataclasses
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import rebel_games as config_file
from experiments.rebel_games import __main__ as rebel_games_main
from experiments.rebel_games import arms as games_arms
from experiments.rebel_games import config as games_config
from experiments.rebel_games import games, players
from experiments.rebel_games import report as games_report
from jaxrl_llm.algorithms import rebel
from jaxrl_llm.training import metrics
from tests.experiments import studies, tiny

CONFIG = 'experiments/configs/rebel_games.py'
SMALL = ('--config.steps=20', '--config.num_seeds=2', '--config.batch_size=8')


def _run(workdir, *arguments):
  return tiny.run(rebel_games_main.main, f'--workdir={workdir}', *arguments,
                  experiment='rebel_games', default_config=CONFIG)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('games') / 'run'
  assert _run(workdir, *SMALL) == 0
  return workdir


def test_a_run_writes_results_a_table_and_a_figure_with_its_data(workdir):
  results = studies.results(workdir)
  for arm in (*games_arms.ARMS, *games_arms.EXACT):
    for name in ('average_exploitability', 'last_exploitability'):
      assert 0 <= results[f'eval/{arm}/{name}'] <= 1
      assert (f'eval/{arm}/{name}_se' in results) == (arm in games_arms.ARMS)
  assert results['eval/preferences/average_exploitability'] < .5  # The policy has moved.
  assert results['comparisons'] == 2 * 20 * 8  # Of y and of y' with one comparator each.
  assert results['sampled_tokens'] == 2 * 20 * 8 * (3 + 2 + 2)
  assert (workdir / 'figures' / 'exploitability.png').read_bytes().startswith(b'\x89PNG')

  with open(workdir / 'figures' / 'exploitability.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert {row['arm'] for row in rows} == {'bound', *games_arms.ARMS, *games_arms.EXACT}
  assert 'bound of the average' in (workdir / 'table.md').read_text()

  records = metrics.read_jsonl(workdir / 'metrics.jsonl')
  assert [record['step'] for record in records] == list(range(20))
  # Iteration 0: the average is the policy at the start, of which paper gains .5.
  for arm in (*games_arms.ARMS, *games_arms.EXACT):
    assert records[0][f'eval/{arm}/average_exploitability'] == pytest.approx(.5, abs=1e-5)


def test_only_damaged_and_foreign_arms_are_played_again(workdir, monkeypatch, capsys):
  before = studies.timeless(workdir)
  (workdir / 'results.json').unlink()
  arms = workdir / 'arms'
  shutil.copy(arms / 'preferences.npz', arms / 'exact.npz')
  (arms / 'reward_same.npz').write_bytes((arms / 'reward_same.npz').read_bytes()[:-30])
  played, play = [], rebel_games_main.play
  monkeypatch.setattr(rebel_games_main, 'play', lambda *arguments, title: (
      played.append(title), play(*arguments, title=title))[1])

  assert _run(workdir, *SMALL) == 0
  assert played == [games_arms.ARMS['reward_same']]
  out = capsys.readouterr().out
  assert config_file.get_config().note in out
  assert "exact.npz: it was made for something else: arm is 'preferences' there" in out
  assert 'reward_same.npz: it is damaged' in out and out.count('computed again') == 2
  assert studies.timeless(workdir) == before


def test_an_iteration_is_a_step_of_mirror_descent_up_to_sampling():
  # With 4,096 pairs the regression sees every pair of moves; three steps with eta = .5.
  config = games_config.RebelGames(num_seeds=1, steps=3, batch_size=4_096, num_comparators=2)
  config.algorithm.eta, config.algorithm.num_epochs = .5, 30
  player = players.Player(config, 'preferences')
  played = rebel_games_main.play(config, player, games_arms.PREFERENCE[None], title='test')
  policy = np.array(config.initial_policy)
  np.testing.assert_allclose(played['policies'][0, 0], policy, atol=1e-5)
  for step in range(1, 4):
    policy = games.mirror_descent_step(games_arms.PREFERENCE, policy, eta=.5)
    np.testing.assert_allclose(played['policies'][0, step], policy, atol=.02)
  # Comparisons of y ~ π and of uniform y' with y'' ~ π: half of the moves are of the data set.
  won = played['won'][0]
  assert won.sum() == 3 * 4_096 * 2 * 2
  assert won[1, 0] > 0 and won[0, 1] == 0  # Paper beats rock, always.


def test_R15_exact_arms_at_the_size_of_the_study():
  config = games_config.RebelGames()
  exact = games_arms.play_exactly(config)
  average, last = games_report.exploitabilities(exact['exact_preferences'])
  assert (average[-1], last[-1]) == pytest.approx((.0130, .650), abs=5e-4)
  bound = float(games.average_iterate_bound(np.array([.6, .3, .1]), eta=.05, steps=2_000))
  assert average[-1] < bound
  # One reward for each move ends in one move, which another one beats.
  average, last = games_report.exploitabilities(exact['exact_reward'])
  assert average[-1] > .95 and last[-1] > .999
  average, _ = games_report.exploitabilities(exact['exact_refit'])
  assert average[-1] < bound


def test_exploitabilities_are_of_averages_and_of_the_policy_after_each_step():
  policies = np.random.default_rng(0).dirichlet(np.ones(3), (2, 5))  # Four steps.
  average, last = games_report.exploitabilities(policies)
  for seed in range(2):
    for t in range(4):
      mean = policies[seed, : t + 1].mean(axis=0)
      assert average[seed, t] == pytest.approx((games_arms.PREFERENCE @ mean).max(), abs=1e-6)
      assert last[seed, t] == pytest.approx(
          (games_arms.PREFERENCE @ policies[seed, t + 1]).max(), abs=1e-6)


# Another value for every field.
CHANGES = {
    'seed': 7, 'num_seeds': 3, 'initial_policy': (.2, .3, .5), 'learning_rate': .01, 'steps': 30,
    'batch_size': 16, 'num_comparators': 2, 'algorithm': rebel.Config(
        eta=.1, kl_coefficient=0.0, signal='preferences', offline_fraction=1.0),
    'model': dataclasses.replace(games_config.RebelGames().model, width=8), 'note': 'note',
}


class _Recorder:
  """A player that records what it is asked to play, and plays nothing."""

  def starts(self, seeds):
    self.asked = [*seeds.tolist()]
    return types.SimpleNamespace(step=np.zeros(len(seeds)))

  def advances(self, states, scores, indices):
    self.asked += indices.tolist()
    policies = jnp.ones((len(states.step), len(indices), 3)) / 3
    return states, policies, jnp.zeros((len(states.step), 3, 3))

  def policies(self, states):
    return jnp.ones((len(states.step), 3)) / 3


def _program(config, monkeypatch):
  """Everything that a run computes, traced but not compiled, and the data drawn for it."""
  player = players.Player(config, 'preferences')
  traced = jax.make_jaxpr(lambda seed, scores: player.advance(
      player.start(seed), scores, jnp.arange(2)))(0, jnp.zeros((3, 3)))

  recorder = _Recorder()
  monkeypatch.setattr(rebel_games_main.loop, 'check_updates', lambda *_, **__: None)
  rebel_games_main.play(config, recorder, games_arms.PREFERENCE[None], title='test')
  constants = [np.asarray(constant).tolist() for constant in traced.consts]
  return (str(traced), constants, recorder.asked,
          games_arms.draw_comparisons(config, 10).tolist())


def test_every_field_has_another_value_here():
  assert set(CHANGES) == {field.name for field in dataclasses.fields(games_config.RebelGames)}


@pytest.mark.parametrize('name', CHANGES)
def test_every_field_but_the_note_changes_what_is_computed(name, monkeypatch):
  config = games_config.RebelGames(steps=20, batch_size=8, num_seeds=2)
  changed = dataclasses.replace(config, **{name: CHANGES[name]})
  changed.validate()
  is_same = _program(changed, monkeypatch) == _program(config, monkeypatch)
  assert is_same == (name == 'note')


@pytest.mark.parametrize('argument, words', [
    ('--config.num_seeds=0', 'config.num_seeds must be at least 1, got 0'),
    (f'--config.seed={2**31}', f'config.seed must be at most .*, got {2**31}'),
    ('--config.steps=0', 'config.steps must be at least 1, got 0'),
    ('--config.learning_rate=-1', 'config.learning_rate must be positive and finite, got -1'),
    ('--config.algorithm.signal=rewards', 'config.algorithm.signal must be .*the arms set it'),
    ('--config.algorithm.kl_coefficient=.1', 'config.algorithm.kl_coefficient must be 0'),
    ('--config.algorithm.num_minibatches=5',
     'config.batch_size must be divisible by num_minibatches .* .5., got 64'),
    ('--config.model.vocab_size=4', 'config.model.vocab_size must be 3'),
    ('--config.model.tie_embeddings=true', 'config.model.tie_embeddings must be False'),
])
def test_invalid_configs_are_one_line_and_status_2(tmp_path, capsys, argument, words):
  assert _run(tmp_path / 'run', argument) == 2
  studies.expect_error(capsys, 'rebel_games', words)
