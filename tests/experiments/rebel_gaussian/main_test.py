"""The study of the Gaussian sampler: scores, losses, files, resumed runs, invalid configs."""

import csv
import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import rebel_gaussian as config_file
from experiments.rebel_gaussian import __main__ as rebel_gaussian_main
from experiments.rebel_gaussian import arms as gaussian_arms
from experiments.rebel_gaussian import config as gaussian_config
from experiments.rebel_gaussian import point_sampler
from experiments.rebel_gaussian import report as gaussian_report
from jaxrl_llm.training import metrics
from tests.experiments import studies, tiny

CONFIG = 'experiments/configs/rebel_gaussian.py'
STEPS = 8
SMALL = (f'--config.steps={STEPS}', '--config.num_seeds=2', '--config.num_tuning_seeds=1',
         '--config.evaluation_samples=16')
TWO = {name: gaussian_arms.ARMS[name] for name in ('rebel', 'ppo')}


def _run(workdir, *arguments):
  return tiny.run(rebel_gaussian_main.main, f'--workdir={workdir}', *arguments,
                  experiment='rebel_gaussian', default_config=CONFIG)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('gaussian') / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(gaussian_arms, 'ARMS', TWO)
    assert _run(workdir, *SMALL) == 0
  return workdir


def test_a_run_writes_results_a_table_and_a_figure_with_its_data(workdir):
  results = studies.results(workdir)
  for arm in TWO:
    assert results[f'setting/{arm}/learning_rate'] in gaussian_config.RebelGaussian().learning_rates
    assert 0 <= results[f'eval/{arm}/reached'] <= 1
    assert results[f'eval/{arm}/queries_to_goal'] <= STEPS * 64 == results['reward_queries']
    assert .2 < results[f'eval/{arm}/final_fraction'] < 1  # It learns.
    assert f'eval/{arm}/final_fraction_se' in results
  assert results['criterion/rebel_within_ppo'] in (0, 1)
  assert (workdir / 'figures' / 'learning_curve.png').read_bytes().startswith(b'\x89PNG')

  with open(workdir / 'figures' / 'learning_curve.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert [float(row['reward_queries']) for row in rows] == [64.0 * i for i in range(STEPS + 1)] * 2

  records = metrics.read_jsonl(workdir / 'metrics.jsonl')
  assert [record['step'] for record in records] == list(range(STEPS + 1))
  for arm in TWO:  # Fractions are measured from the first policy.
    assert records[0][f'eval/{arm}/fraction'] == pytest.approx(0, abs=.15)
  assert '| REBEL ' in (workdir / 'table.md').read_text()


def test_finished_arms_are_not_trained_again(workdir, monkeypatch, capsys):
  before = studies.timeless(workdir)
  (workdir / 'results.json').unlink()
  monkeypatch.setattr(gaussian_arms, 'ARMS', TWO)
  monkeypatch.setattr(rebel_gaussian_main, 'train', lambda *_: pytest.fail('trained again'))
  assert _run(workdir, *SMALL) == 0
  assert studies.timeless(workdir) == before
  note = config_file.get_config().note
  assert note and note in capsys.readouterr().out


def test_a_foreign_arm_is_trained_again(workdir, monkeypatch, capsys):
  before = studies.timeless(workdir)
  (workdir / 'results.json').unlink()
  fractions = dict(np.load(workdir / 'arms' / 'ppo.npz'))
  shutil.copy(workdir / 'arms' / 'rebel.npz', workdir / 'arms' / 'ppo.npz')
  monkeypatch.setattr(gaussian_arms, 'ARMS', TWO)
  monkeypatch.setattr(rebel_gaussian_main, 'train', lambda *_: {  # Not compiled again here.
      'fractions': fractions['fractions']})
  assert _run(workdir, *SMALL) == 0
  out = capsys.readouterr().out
  assert "ppo.npz: it was made for something else: arm is 'rebel' there, 'ppo' here" in out
  assert studies.timeless(workdir) == before


# --- The sampler.


@functools.cache
def _sampler(**changes):
  config = gaussian_config.RebelGaussian(**changes)
  return config, point_sampler.PointSampler(config)


def test_scores_at_the_start_and_at_best_are_what_sampling_says():
  config, sampler = _sampler()
  count = 20_000
  prompts = jnp.arange(count) % config.num_prompts
  start = jax.random.normal(jax.random.key(0), (count, 2))
  chain, rewards = jax.jit(sampler.sample)(
      sampler.init(jax.random.key(1)), start, prompts, jax.random.key(2))
  rewards = np.asarray(rewards)
  error = rewards.std() / np.sqrt(count)
  assert sampler.initial_score == pytest.approx(rewards.mean(), abs=5 * error)

  # Untrained, points are normal around 0, with noise of the last step in them.
  expected = np.sqrt(.98 * .5**2 + .02)
  np.testing.assert_allclose(chain.actions[:, -1].std(axis=0), expected, rtol=.03)
  noise = np.random.default_rng(0).normal(size=(count, 2)) * np.asarray(sampler.std[-1])
  distance = np.linalg.norm(noise, axis=1)
  assert sampler.best_score == pytest.approx(
      -distance.mean(), abs=5 * distance.std() / np.sqrt(count))

  assert sampler.initial_score < -1.4 < -.2 < sampler.best_score
  np.testing.assert_allclose(
      rewards, -np.linalg.norm(chain.actions[:, -1] - sampler.targets[prompts], axis=1), rtol=1e-5)


def _batch(sampler, config, pairs=3):
  """Pairs of chains of a policy that has moved since, and its parameters."""
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: leaf + .3 * rng.normal(size=leaf.shape).astype(np.float32),
                        sampler.init(jax.random.key(1)))
  prompts = jnp.asarray(np.repeat(rng.integers(0, config.num_prompts, pairs), 2))
  start = jax.random.normal(jax.random.key(3), (2 * pairs, 2))
  chain, _ = sampler.sample(sampler.init(jax.random.key(1)), start, prompts, jax.random.key(2))
  batch = {'chain': chain, 'prompts': prompts,
           'advantages': jnp.asarray([.5, -1, 2, 12, -15, .1], jnp.float32),
           'old': sampler.log_probs(sampler.init(jax.random.key(1)), chain, prompts)}
  return params, jax.tree.map(lambda leaf: leaf.reshape(pairs, 2, *leaf.shape[1:]), batch)


@pytest.mark.parametrize('arm', ['rebel', 'ppo', 'ppo_published_clip'])
def test_losses_are_the_equations_spelt_out(arm):
  config, sampler = _sampler(eta=.7)
  params, batch = _batch(sampler, config)
  loss_fn = gaussian_arms.make_loss(config, sampler, gaussian_arms.ARMS[arm])
  loss, _ = jax.jit(loss_fn)({'policy': params}, batch)

  flat = lambda leaf: leaf.reshape(6, *leaf.shape[2:])
  new = np.asarray(sampler.log_probs(
      params, jax.tree.map(flat, batch['chain']), flat(batch['prompts'])))
  ratio = new - np.asarray(flat(batch['old']))  # [6, S].
  assert np.abs(ratio).max() > .3

  advantages = np.asarray(batch['advantages']).ravel()
  if arm == 'rebel':
    chains, targets = ratio.sum(axis=1).reshape(3, 2), advantages.reshape(3, 2)
    expected = [((c[0] - c[1]) - .7 * (a[0] - a[1]))**2 for c, a in zip(chains, targets)]
  else:
    clip, expected = (.2 if arm == 'ppo' else 1e-4), []
    for row, advantage in zip(np.exp(ratio), np.clip(advantages, -10, 10)):
      expected += [-min(r * advantage, np.clip(r, 1 - clip, 1 + clip) * advantage) for r in row]
  np.testing.assert_allclose(loss.value(), np.mean(expected), rtol=1e-4)


def test_log_probs_of_a_step_at_the_first_policy():
  config, sampler = _sampler()
  _, batch = _batch(sampler, config)
  chain = jax.tree.map(lambda leaf: np.asarray(leaf[0]), batch['chain'])  # One pair, [2, S, 2].
  shares = (0.0, *config.alpha_bar)
  for t in range(8):
    deviation = np.sqrt(shares[t] * .25 + 1 - shares[t])  # Of x_t before training.
    mean = np.sqrt(shares[t + 1]) * .5 / deviation * chain.states[:, t]
    std = np.sqrt(1 - shares[t + 1])
    error = (chain.actions[:, t] - mean) / std
    expected = -.5 * (error**2).sum(axis=1) - 2 * np.log(std) - np.log(2 * np.pi)
    np.testing.assert_allclose(batch['old'][0, :, t], expected, rtol=1e-4, atol=1e-4)


# --- What is counted.


def test_queries_are_counted_up_to_the_first_evaluation_at_the_goal():
  config, _ = _sampler()
  fractions = np.array([[0, .5, .91, .8, .95], [0, .1, .2, .3, .4]])
  np.testing.assert_array_equal(
      gaussian_report.queries_to_goal(config, fractions), [2 * 64, np.nan])


def test_the_learning_rate_is_chosen_on_the_tuning_seeds_alone():
  config, _ = _sampler(num_seeds=1, num_tuning_seeds=2, steps=3)
  fast, slow, never = [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]
  fractions = np.array([[fast, slow, never], [never, fast, slow], [fast, slow, slow]], float)
  best, queries = gaussian_report.tune(config, fractions)
  # (128 + 2 * 192) / 2; (64 + 128) / 2; 128.
  assert best == 1 and queries.tolist() == [256, 96, 128]
  best, _ = gaussian_report.tune(config, fractions * np.array([.2, .1, .5])[:, None, None])
  assert best == 2  # If none reaches the goal: the one that ends best.


# Another value for every field.
CHANGES = {
    'seed': 7, 'num_seeds': 3, 'num_tuning_seeds': 3, 'num_prompts': 4, 'radius': 1.0,
    'data_std': .3, 'alpha_bar': (.2, .9), 'width': 8, 'batch_size': 16, 'steps': 6,
    'num_epochs': 2, 'num_minibatches': 4, 'learning_rates': (1e-3, 1e-1), 'eta': .5, 'clip': .1,
    'published_clip': 1e-3, 'advantage_clip': 5.0, 'max_grad_norm': 1.0, 'reduction': 'mean',
    'buffer_size': 16, 'min_count': 8, 'evaluation_samples': 8, 'note': 'note',
}


def _program(config):
  """Everything that a run computes, traced but not compiled."""
  sampler = point_sampler.PointSampler(config)
  programs = []
  for arm in gaussian_arms.ARMS.values():
    traced = jax.make_jaxpr(rebel_gaussian_main.make_run(config, sampler, arm))(.1, 0)
    programs.append((str(traced), [np.asarray(x).tolist() for x in traced.consts]))
  return programs, sampler.initial_score, sampler.best_score


_SHORT = gaussian_config.RebelGaussian(steps=3, num_seeds=2, num_tuning_seeds=2)
_short_program = functools.cache(lambda: _program(_SHORT))


def _grid(config, monkeypatch):
  """The learning rates and seeds of a run, and those that the learning rate is chosen on."""
  monkeypatch.setattr(rebel_gaussian_main, 'make_run', lambda *_: (
      lambda rate, seed: jnp.stack([rate, seed * 1.0])))
  sampler = point_sampler.PointSampler(config)
  fractions = rebel_gaussian_main.train(config, sampler, None)['fractions']
  return fractions.tolist(), fractions[:, config.num_seeds:].tolist()


def test_every_field_has_another_value_here():
  assert set(CHANGES) == {field.name for field in dataclasses.fields(gaussian_config.RebelGaussian)}


@pytest.mark.parametrize('name', CHANGES)
def test_every_field_but_the_note_changes_what_is_computed(name, monkeypatch):
  changed = dataclasses.replace(_SHORT, **{name: CHANGES[name]})
  changed.validate()
  if name in ('seed', 'num_seeds', 'num_tuning_seeds', 'learning_rates'):
    assert _grid(changed, monkeypatch) != _grid(_SHORT, monkeypatch)
  else:
    assert (_program(changed) == _short_program()) == (name == 'note')


@pytest.mark.parametrize('argument, words', [
    ('--config.steps=0', 'config.steps must be at least 1, got 0'),
    (f'--config.seed={2**31}', f'config.seed must be at most .*, got {2**31}'),
    (f'--config.num_epochs={2**31}', f'config.num_epochs must be at most {2**31 - 1}, got {2**31}'),
    (f'--config.min_count={2**31}', f'config.min_count must be at most {2**31 - 1}, got {2**31}'),
    ('--config.eta=0', 'config.eta must be positive and finite, got 0'),
    ('--config.clip=2', 'config.clip must be at most 1, got 2'),
    ('--config.reduction=max', "config.reduction must be one of sum, mean, got 'max'"),
    ('--config.num_minibatches=5',
     'config.batch_size must be divisible by config.num_minibatches .5., got 32'),
    ('--config.alpha_bar=(0.5,0.3)', 'config.alpha_bar must increase between 0 and 1'),
    ('--config.learning_rates=(0.0,)', 'config.learning_rates must be positive and finite'),
])
def test_invalid_configs_are_one_line_and_status_2(tmp_path, capsys, argument, words):
  assert _run(tmp_path / 'run', argument) == 2
  studies.expect_error(capsys, 'rebel_gaussian', words)
