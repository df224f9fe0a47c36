"""The arena: every arm end to end, budgets that are equal, and what is resumed."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from experiments import arena, arena_arms, arena_criteria, arena_worlds, launch
from experiments.configs import arena as config_file
from jaxrl_llm.training import loop

COMPLETIONS, BATCH = 64, 16


def _config(task='arithmetic', **changes):
  config = config_file.get_config()
  world = getattr(config, task)
  world.model.width, world.model.num_heads, world.model.head_dim = 16, 2, 8
  world.model.num_kv_heads, world.model.mlp_width, world.model.num_layers = 2, 16, 1
  world.sft = dataclasses.replace(world.sft, steps=2, batch_size=8)
  world.sft.optimizer.warmup_steps = 0
  world.completions, world.batch_completions, world.num_evaluations = COMPLETIONS, BATCH, 3
  world.eval_samples, world.best_of = 1, 4
  world.task = dataclasses.replace(
      world.task, num_demonstrations=32, num_train=6, num_evaluation=10)
  if task == 'summarisation':
    world.reward_model = dataclasses.replace(
        world.reward_model, num_pairs=20, steps=2, batch_size=8)
  return dataclasses.replace(config, task=task, num_seeds=1, **changes)


def _run(config, workdir, overrides=()):
  workdir.mkdir(parents=True, exist_ok=True)
  return launch.Run(config, workdir, 'arena', '', 'arena.py', overrides, '0' * 40)


@functools.cache
def _ground(task, folder):
  world = arena_worlds.World(_config(task).world, 3)
  return arena_worlds.prepare(world, 3, folder)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('grounds')


@functools.cache
def _outcome_of(name, folder):
  ground = _ground('arithmetic', folder / 'arithmetic')
  return arena_arms.run(arena_arms.Arm(ground.world, name), ground, lambda: None)


# One for each way through the loop; the algorithms have tests of their own.
@pytest.mark.parametrize('name', ['a_star_po', 'ppo', 'dpo', 'iterative_dpo'])
def test_every_arm_spends_the_same_and_no_more(folder, name):
  outcome = _outcome_of(name, folder)
  final = outcome['final']
  assert final['completions'] == final['reward_calls'] == COMPLETIONS
  assert COMPLETIONS <= final['sampled_tokens'] <= COMPLETIONS * 5
  first_stage = 6 * 8 if name == 'a_star_po' else 0
  assert final['iterations'] == (COMPLETIONS - first_stage) // BATCH
  assert final['kl_to_reference'] >= 0 and np.isfinite(final['score'])
  assert final['state_bytes'] > 0 and final['peak_bytes'] > final['state_bytes']
  assert outcome['curve'][0]['kl_to_reference'] == pytest.approx(0, abs=1e-6)
  spent = [point['completions'] for point in outcome['curve']]
  assert spent == sorted(spent)


def test_the_critic_doubles_the_state(folder):
  sizes = [_outcome_of(name, folder)['final']['state_bytes'] for name in ('ppo', 'dpo')]
  assert 1.8 < sizes[0] / sizes[1] < 2.2


def test_a_reference_that_cannot_do_any_prompt_leaves_none(folder):
  ground = _ground('arithmetic', folder / 'arithmetic')
  with pytest.raises(ValueError, match='a_star_po_filtered leaves out every prompt'):
    arena_arms.run(arena_arms.Arm(ground.world, 'a_star_po_filtered'), ground, lambda: None)


def test_summaries_have_a_reward_model_that_is_centred_on_references(folder):
  ground = _ground('summarisation', folder / 'summarisation')
  written = arena_worlds._written(ground, ground.task.demonstrations)
  scores = np.asarray(ground.world.reward_scores(ground.reward_params, written))
  assert abs(scores.mean()) < 1e-4 and scores.std() > 1e-4
  assert ground.task.tokenizer.decode(
      written.tokens[0, 0].tolist()) == ground.task.demonstrations[0]['response']
  numbers = ground.evaluate(ground.reference)
  assert {'win_rate', 'reward', 'score', 'greedy_score'} <= set(numbers)
  best = arena_arms.untrained('best_of_n', ground)
  assert len(best['curve']) == 4 and best['final']['reward'] >= best['curve'][0]['reward']
  critic = arena_worlds.critic_from(ground)
  assert critic is ground.reward_params


def test_a_missing_value_is_an_error_and_not_zero():
  table = arena_arms._Table({3: 0.5})
  np.testing.assert_array_equal(table[np.array([3, 3])], [0.5, 0.5])
  with pytest.raises(KeyError):
    table[np.array([4])]


def test_a_run_is_resumed_by_arm_and_seed_and_writes_each_seed(tmp_path, monkeypatch):
  config = _config(algorithms='sft,reinforce')
  config.num_seeds = 2
  ran = []
  real = arena_arms.run
  monkeypatch.setattr(
      arena_arms, 'run', lambda arm, ground, check: ran.append(
          (arm.name, ground.seed)) or real(arm, ground, check))
  arena.main(_run(config, tmp_path))
  assert ran == [('reinforce', 0), ('reinforce', 1)]
  whole = json.loads((tmp_path / 'results.json').read_text())
  by_seed = [json.loads((tmp_path / f'seed{s}' / 'results.json').read_text()) for s in (0, 1)]
  assert [result['seed'] for result in by_seed] == [0, 1]
  for key in ('score', 'kl_to_reference', 'sampled_tokens'):
    values = [result[f'eval/reinforce/{key}'] for result in by_seed]
    assert whole[f'eval/reinforce/{key}'] == pytest.approx(np.mean(values))
    assert whole[f'eval/reinforce/{key}_se'] == pytest.approx(abs(values[0] - values[1]) / 2)
  for name in ('score_by_tokens', 'score_by_kl'):
    assert (tmp_path / 'figures' / f'{name}.png').stat().st_size > 5_000
  assert '| reinforce' in (tmp_path / 'table.md').read_text()
  # One file is lost: that arm and seed alone run again, and end the same.
  lost = tmp_path / 'seed1' / 'arms' / 'reinforce.json'
  before = json.loads(lost.read_text())
  lost.unlink()
  arena.main(_run(config, tmp_path))
  assert ran[2:] == [('reinforce', 1)]
  again = json.loads(lost.read_text())
  timeless = lambda o: {k: v for k, v in o['final'].items() if not k.startswith('time/')}
  assert timeless(again) == timeless(before)


def test_a_stop_is_answered_between_iterations(folder):
  ground = _ground('arithmetic', folder / 'arithmetic')

  def check():
    raise loop.Interrupted

  with pytest.raises(loop.Interrupted):
    arena_arms.run(arena_arms.Arm(ground.world, 'reinforce'), ground, check)


@pytest.mark.parametrize('changes, message', [
    (dict(task='chess'), "config.task must be one of .*got 'chess'"),
    (dict(algorithms='ppo,sarsa'), "config.algorithms must be some of .*got 'sarsa'"),
    (dict(num_seeds=0), 'config.num_seeds must be at least 1, got 0'),
])
def test_bad_settings_are_named(changes, message):
  config = _config()
  for name, value in changes.items():
    setattr(config, name, value)
  with pytest.raises(ValueError, match=message):
    config.validate()


def test_a_batch_that_does_not_hold_whole_groups_is_named():
  config = _config()
  config.arithmetic.batch_completions = 12
  with pytest.raises(ValueError, match='must be divided by the 8 samples a prompt of grpo, got 12'):
    config.validate()


def test_settings_of_a_task_that_is_not_played_are_refused(tmp_path):
  run = _run(_config(), tmp_path, overrides=('summarisation.completions',))
  with pytest.raises(ValueError, match='config.summarisation.completions has no effect'):
    arena.main(run)


# --- What is concluded.


def _outcome(**final):
  return {'curve': [{'sampled_tokens': 0, 'greedy_score': 0.0},
                    {'sampled_tokens': 100, 'greedy_score': final.get('greedy_score', 0.0)}],
          'final': {'sampled_tokens': 100, **final}}


def test_tokens_are_counted_to_the_first_crossing():
  curve = [{'sampled_tokens': t, 'score': s} for t, s in ((0, 0.2), (10, 0.4), (20, 0.3), (30, 1))]
  assert arena_criteria.tokens_to(curve, 0.3, 'score') == pytest.approx(5)
  assert arena_criteria.tokens_to(curve, 0.1, 'score') == 0
  assert arena_criteria.tokens_to(curve, 2, 'score') == float('inf')


@pytest.mark.parametrize('ours, holds', [(0.95, True), (0.8, False)])
def test_a_criterion_can_hold_and_fail(ours, holds):
  arms = {'a_star_po': ours, 'ppo': 0.9, 'grpo': 0.96, 'rebel': 0.7}
  outcomes = {
      name: {seed: _outcome(greedy_score=score + 0.001 * seed, kl_to_reference=1.0,
                            state_bytes=1.0, samples_per_prompt=8, gradient_variance_ratio=0.4)
             for seed in (0, 1, 2)} for name, score in arms.items()}
  found = {f.name: f for f in arena_criteria.findings('arithmetic', outcomes)}
  assert found['a'].holds == holds and 'grpo 96.1' in found['a'].measured
  assert found['g'].holds and not found['c'].holds
  text = arena_criteria.markdown(list(found.values()))
  assert ('**holds**' in text) and ('**does not hold**' in text)
