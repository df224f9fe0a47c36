"""The arena: every arm end to end, budgets that are equal, and what is resumed."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest

from experiments.arena import __main__ as arena_main
from experiments.arena import arms as arena_arms
from experiments.arena import criteria as arena_criteria
from experiments.arena import dialogue as arena_dialogue
from experiments.arena import report as arena_report
from experiments.arena import tasks as arena_tasks
from experiments.configs import arena as config_file
from jaxrl_llm.runs import criteria, launch
from jaxrl_llm.tasks import dialogue as dialogue_task
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
  if task == 'dialogue':
    world.arms.lt_offline_rebel.optimizer = world.arms.refuel.optimizer
    world.sft = dataclasses.replace(world.sft, steps=150, batch_size=16)
    world.sft.optimizer.learning_rate = 1e-2
  if task == 'summarisation':
    world.reward_model = dataclasses.replace(
        world.reward_model, num_pairs=20, steps=2, batch_size=8)
    world.reward_model.optimizer.warmup_steps = 0
  return dataclasses.replace(config, task=task, num_seeds=1, **changes)


def _run(config, workdir, overrides=()):
  workdir.mkdir(parents=True, exist_ok=True)
  return launch.Run(config, workdir, 'arena', '', 'arena.py', overrides, '0' * 40)


@functools.cache
def _ground(task, folder, **changes):
  settings = _config(task).world
  settings.task = dataclasses.replace(settings.task, **changes)
  kind = arena_dialogue.World if task == 'dialogue' else arena_tasks.World
  return arena_tasks.prepare(kind(settings, 3), 3, folder)


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
  written = arena_tasks._written(ground, ground.task.demonstrations)
  scores = np.asarray(ground.world.reward_scores(ground.reward_params, written))
  assert abs(scores.mean()) < 1e-4 and scores.std() > 1e-4
  assert ground.task.tokenizer.decode(
      written.tokens[0, 0].tolist()) == ground.task.demonstrations[0]['response']
  numbers = ground.evaluate(ground.reference)
  assert {'win_rate', 'reward', 'score', 'greedy_score'} <= set(numbers)
  best = arena_arms.untrained('best_of_n', ground)
  assert len(best['curve']) == 4 and best['final']['reward'] >= best['curve'][0]['reward']
  critic = arena_tasks.critic_from(ground)
  assert critic is ground.reward_params


def test_pairs_of_the_reward_model_are_of_two_responses(folder):
  ground = _ground('summarisation', folder / 'summarisation')
  pairs = arena_tasks._labelled_pairs(ground, ground.world.settings.reward_model)
  assert pairs.rewards.shape == (20, 2)
  np.testing.assert_array_equal(np.sort(pairs.rewards, axis=1), [[0, 1]] * 20)
  assert (pairs.rollouts.tokens[:, 0] != pairs.rollouts.tokens[:, 1]).any(axis=1).all()
  # The posts are those of the demonstrations, none of RL.
  posts = {ground.task.tokenizer.decode(row) for row in pairs.rollouts.prompts.tolist()}
  assert posts <= {example['prompt'] for example in ground.task.demonstrations}


def test_figures_of_a_learnt_reward_show_best_of_n_by_the_bound_on_its_divergence(tmp_path):
  point = lambda x, kl: {
      'score': x, 'reward': 2 * x, kl: x, 'sampled_tokens': 100 * x, 'greedy_score': x}
  outcomes = {
      name: {seed: {'curve': [point(x + seed, kl) for x in (1, 2)]} for seed in (0, 1)}
      for name, kl in (('best_of_n', 'kl_bound'), ('rebel', 'kl_to_reference'))}
  arena_report._figures(_run(_config('summarisation'), tmp_path), outcomes)
  rows = (tmp_path / 'figures' / 'reward_by_kl.csv').read_text()
  assert 'rebel, gold' in rows and 'best_of_n, reward model (bound on KL)' in rows


def test_one_reference_serves_all_seeds(tmp_path):
  config = _config('summarisation', algorithms='sft')
  config.num_seeds = 2
  assert config.world.one_reference
  with loop.Stopper() as stopper:
    found = arena_main.outcomes(_run(config, tmp_path), stopper)['sft']
  assert (tmp_path / 'seed0' / 'reference').is_dir()
  assert not (tmp_path / 'seed1' / 'reference').exists()
  assert found[0]['final']['reward'] != found[1]['final']['reward']  # Other noise.
  assert found[0]['final']['greedy_score'] == found[1]['final']['greedy_score']


# --- Dialogue: where the pairs stand.


def _draw(ground, name, *, count=BATCH // 2):
  """One iteration's batch of an arm, before any training, and what it spent."""
  spent = arena_arms.Spent()
  arm = arena_arms.Arm(ground.world, name)
  batch = arena_dialogue.batch(
      arm, ground, ground.reference, (0, count), spent, arena_arms.Clock())
  return batch, spent


def _tokens_of_turns(batch, turns):
  """The tokens of each response's replies `turns`, as lists [P][K]."""
  rollouts = batch.rollouts
  here = np.isin(batch.aux['turns'], turns)
  return [[rollouts.tokens[p, k][here[p, k]].tolist() for k in range(2)]
          for p in range(len(here))]


@pytest.mark.parametrize('name', ['refuel', 'mt_mixed'])
def test_a_pair_shares_what_stands_before_its_turn(folder, name):
  ground = _ground('dialogue', folder / 'dialogue')
  batch, spent = _draw(ground, name)
  assert spent.completions == spent.reward_calls == BATCH
  rows = arena_dialogue.batching.batch_indices(6, BATCH // 2, seed=3, step=0)
  offline = ground.task.offline[rows]
  for row, turn in enumerate(batch.aux['turn']):
    one, other = _tokens_of_turns(batch, range(turn))[row]
    assert one == other
    led = np.concatenate([
        offline.replies[row, j, : offline.reply_lengths[row, j]] for j in range(turn)]
        or [np.zeros(0, int)]).tolist()
    if name == 'mt_mixed' and row % 2:
      assert one == led
  drawn = batch.rollouts.mask.sum()
  shared = sum(len(x[0]) for x in (
      _tokens_of_turns(batch, range(t))[r] for r, t in enumerate(batch.aux['turn'])))
  theirs = 0 if name == 'refuel' else sum(
      len(_tokens_of_turns(batch, range(batch.aux['turn'][r]))[r][0]) for r in range(1, 8, 2))
  assert spent.tokens == drawn - shared - theirs  # What stands before is drawn once, or not.


@pytest.mark.parametrize('name', ['lt_offline_dpo', 'lt_mixed_rloo', 'lt_online_rebel'])
def test_arms_of_the_last_turn_train_on_nothing_else(folder, name):
  ground = _ground('dialogue', folder / 'dialogue')
  batch, _ = _draw(ground, name)
  marked = batch.rollouts.mask.argmax(axis=-1)
  said = batch.rollouts.mask.sum(axis=-1)
  assert batch.aux == {} and ((said >= 1) & (said <= 4)).all()
  # The last reply ends the dialogue.
  np.testing.assert_array_equal(marked + said, batch.rollouts.lengths)
  assert np.isfinite(batch.rewards).all() and np.isfinite(batch.rollouts.log_probs).all()


@pytest.mark.parametrize('name, iterations', [('refuel_2', 2), ('refuel_one', 4)])
def test_arms_of_dialogue_spend_the_same(folder, name, iterations):
  ground = _ground('dialogue', folder / 'dialogue')
  outcome = arena_arms.run(arena_arms.Arm(ground.world, name), ground, lambda: None)
  final = outcome['final']
  assert final['completions'] == final['reward_calls'] == COMPLETIONS
  assert final['iterations'] == iterations and len(outcome['curve']) == 3
  assert {f'turn_{turn}' for turn in range(1, 6)} | {'ask_rate', 'greedy_score'} <= set(final)
  assert final['score'] == final['turn_5'] and final['kl_to_reference'] >= 0
  assert outcome['curve'][0]['kl_to_reference'] == pytest.approx(0, abs=1e-6)


def test_F1_with_one_turn_the_last_turn_is_all_of_it(folder):
  ground = _ground('dialogue', folder / 'one_turn', num_turns=1)
  ours, theirs = (
      arena_arms.run(arena_arms.Arm(ground.world, name), ground, lambda: None)['final']
      for name in ('refuel', 'lt_offline_rebel'))
  for key in ('score', 'kl_to_reference', 'sampled_tokens'):
    assert ours[key] == pytest.approx(theirs[key], abs=1e-5)
  assert ours['kl_to_reference'] > 1e-3  # There was something to learn.


def test_fixed_questions_do_not_depend_on_the_replies(folder):
  ground = _ground('dialogue', folder / 'fixed_questions', fixed_questions=True)
  ids = ground.encoded.ids[:3]
  rules = ground.task.world
  said = rules.simulate(ids, dialogue_task.PERFECT, seed=0).cut(1)
  others = rules.simulate(ids, dialogue_task.BEHAVIOUR, seed=5).cut(1)
  assert [list(q) for q in ground.user(said)] == [list(q) for q in ground.user(others)]
  assert len(ground.evaluate(ground.reference)) > 8


def test_a_missing_value_is_an_error_and_not_zero():
  table = arena_arms._Table({3: 0.5})
  np.testing.assert_array_equal(table[np.array([3, 3])], [0.5, 0.5])
  with pytest.raises(KeyError):
    table[np.array([4])]


def test_a_run_is_resumed_by_arm_and_seed_and_writes_each_seed(tmp_path, monkeypatch, capsys):
  config = _config(algorithms='sft,reinforce')
  config.num_seeds = 2
  ran = []
  real = arena_arms.run
  monkeypatch.setattr(
      arena_arms, 'run', lambda arm, ground, check: ran.append(
          (arm.name, ground.seed)) or real(arm, ground, check))
  arena_main.main(_run(config, tmp_path))
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
  before = json.loads(lost.read_text())['content']
  lost.unlink()
  here = launch.processor.fields()
  other = here | {'processor/model': 'another processor'}
  monkeypatch.setattr(launch.processor, 'fields', lambda: other)
  arena_main.main(_run(config, tmp_path))
  assert ran[2:] == [('reinforce', 1)]
  for folder in ('.', 'seed0', 'seed1'):
    result = json.loads((tmp_path / folder / 'results.json').read_text())
    assert result['processor/model'] == f'{here["processor/model"]} + another processor'
  again = json.loads(lost.read_text())['content']
  timeless = lambda o: {k: v for k, v in o['final'].items() if not k.startswith('time/')}
  assert timeless(again) == timeless(before)

  # A damaged file and one of another seed are set aside; a damaged reference too.
  text = lost.read_text()
  lost.write_text(text.replace('"score"', '"scores"'))
  shutil.copy(tmp_path / 'seed1' / 'arms' / 'sft.json', tmp_path / 'seed0' / 'arms' / 'sft.json')
  for path in (tmp_path / 'seed1' / 'reference' / 'state').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:-1])
  capsys.readouterr()
  arena_main.main(_run(config, tmp_path))

  assert ran[3:] == [('reinforce', 1)]
  lines = [line for line in capsys.readouterr().out.splitlines() if 'computed again' in line]
  for line, words in zip(lines, ('seed is 1 there, 0 here', 'damaged', 'cannot be read')):
    assert words in line
  assert len(lines) == 3 and (tmp_path / 'seed1' / 'reference.damaged').is_dir()
  assert timeless(json.loads(lost.read_text())['content']) == timeless(before)


def test_an_arm_of_an_earlier_version_is_one_line(tmp_path):
  path = tmp_path / 'seed0' / 'arms' / 'sft.json'
  path.parent.mkdir(parents=True)
  path.write_text('{"curve": [], "final": {}, "commit": ""}')
  with pytest.raises(ValueError, match='sft.json cannot be used: .*no digest.*give another --wor'):
    arena_main.main(_run(_config(algorithms='sft'), tmp_path))


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


@pytest.mark.parametrize('changes, message', [
    (dict(prefix='their own'), "refuel.prefix must be one of .*got 'their own'"),
    (dict(turn='first'), "refuel.turn must be one of .*got 'first'"),
    (dict(refresh_every=0), 'refuel.refresh_every must be one of .*got 0'),
    (dict(iterations=3), 'whole batches for the 3 iterations of refuel, got 64'),
])
def test_bad_settings_of_a_dialogue_are_named(changes, message):
  config = _config('dialogue')
  for name in ('refuel_1', 'refuel_2', 'refuel_3', 'refuel_4'):
    getattr(config.dialogue.arms, name).iterations = 0
  for name, value in changes.items():
    setattr(config.dialogue.arms.refuel, name, value)
  with pytest.raises(ValueError, match=message):
    config.validate()


@pytest.mark.parametrize('arm, field, value, message', [
    ('rebel', 'signal', 'preferences', "rebel.algorithm.signal must be 'rewards' in the arena"),
    ('rebel', 'offline_fraction', 0.5, 'rebel.algorithm.offline_fraction must be 0.0 in the arena'),
    ('a_star_po', 'stage1_reward', 'lenient', "stage1_reward must be 'identical' in the arena"),
    ('a_star_po', 'num_minibatches', 2, 'num_minibatches must be 1 in the arena, got 2'),
])
def test_settings_that_no_arm_reads_are_refused(arm, field, value, message):
  config = _config(algorithms=arm)
  setattr(getattr(config.arithmetic.arms, arm).algorithm, field, value)
  with pytest.raises(ValueError, match=message):
    config.validate()


def test_schedules_and_packed_rows_are_refused():
  config = _config()
  config.arithmetic.arms.ppo.optimizer.schedule = 'linear'
  with pytest.raises(ValueError, match="ppo.optimizer.schedule must be 'constant' in the arena"):
    config.validate()
  config = _config()
  config.arithmetic.sft.packed_length = 64
  with pytest.raises(ValueError, match='sft.packed_length must be 0 in the arena, got 64'):
    config.validate()


def test_arms_that_do_not_run_are_not_looked_at():
  config = _config('dialogue', algorithms='sft,refuel')
  config.dialogue.completions = 3 * BATCH  # No whole batches for refuel_2.
  config.validate()
  config.algorithms = 'refuel_2'
  with pytest.raises(ValueError, match='whole batches for the 2 iterations of refuel_2'):
    config.validate()


def test_a_batch_that_does_not_hold_whole_groups_is_named():
  config = _config()
  config.arithmetic.batch_completions = 12
  with pytest.raises(
      ValueError, match='must be divisible by the 8 samples a prompt of grpo, got 12'):
    config.validate()


def test_settings_of_a_task_that_is_not_played_are_refused(tmp_path):
  run = _run(_config(), tmp_path, overrides=('summarisation.completions',))
  with pytest.raises(ValueError, match='config.summarisation.completions has no effect'):
    arena_main.main(run)


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
                            state_bytes=1.0, batch_completions=128, gradient_variance_ratio=0.4)
             for seed in (0, 1, 2)} for name, score in arms.items()}
  found = {f.name: f for f in arena_criteria.findings('arithmetic', outcomes)}
  assert found['a'].holds == holds and 'grpo 96.1' in found['a'].measured
  assert found['g'].holds and not found['c'].holds
  text = criteria.markdown(list(found.values()))
  assert ('**holds**' in text) and ('**does not hold**' in text)


@pytest.mark.parametrize('ours, asks, holds', [(0.9, 0.95, True), (0.3, 0.2, False)])
def test_criteria_of_dialogue_can_hold_and_fail(ours, asks, holds):
  turns = lambda best: {f'turn_{i + 1}': 0.2 + (best - 0.2) * i / 4 for i in range(5)}
  arms = {'sft': (0.25, 0.15), 'refuel': (ours, asks), 'lt_online_rebel': (0.28, 0.16),
          'lt_offline_rebel': (0.25, 0.14 if holds else 0.3)}
  outcomes = {
      name: {seed: _outcome(score=score + 0.001 * seed, ask_rate=rate, **turns(score))
             for seed in range(5)} for name, (score, rate) in arms.items()}
  found = {f.name: f for f in arena_criteria.findings('dialogue', outcomes)}
  assert [found[name].holds for name in 'ab'] == [holds, holds]
  assert found['c'].holds  # 0.3 is more than 0.25 too.


@pytest.mark.parametrize('rebel, dpo, holds', [
    (0.9, 0.89, True), (0.9001, 0.89, False), (0.9, 0.8, False)])
def test_with_one_turn_rebel_is_refuel_and_the_others_are_alike(rebel, dpo, holds):
  noise = (0.0, 0.02, -0.02, 0.01, -0.01)
  arms = {'sft': (0.2, 0), 'refuel': (0.9, 0), 'lt_online_rebel': (rebel, 0),
          'lt_online_dpo': (dpo, 1), 'lt_online_rloo': (0.9, -1)}
  outcomes = {
      name: {seed: _outcome(score=score + sign * noise[seed]) for seed in range(5)}
      for name, (score, sign) in arms.items()}
  (found,) = arena_criteria.findings('dialogue_of_one_turn', outcomes)
  assert found.holds == holds and 'sft' not in found.measured


@pytest.mark.parametrize('gold, proxy, holds', [
    ((0.1, 0.5, 0.7, 0.7, 0.7), (0.1, 0.5, 0.7, 0.8, 0.9), True),
    ((0.1, 0.5, 0.6, 0.7, 0.8), (0.1, 0.5, 0.7, 0.8, 0.9), False),  # The gold score still rises.
    ((0.1, 0.5, 0.7, 0.6, 0.5), (0.1, 0.5, 0.7, 0.7, 0.7), False),  # Nothing is over-optimised.
])
def test_overoptimisation_is_a_rising_reward_model_on_a_flat_gold_score(gold, proxy, holds):
  curve = [{'score': g, 'reward': r} for g, r in zip(gold, proxy)]
  outcomes = {'kl_0': {seed: {'curve': [
      {key: value + 1e-3 * (seed - 2) * i for key, value in point.items()}
      for i, point in enumerate(curve)], 'final': {}} for seed in range(5)}}
  (found,) = [f for f in arena_criteria.findings('summarisation', outcomes) if f.name == 'e']
  assert found.holds == holds


def test_what_a_run_of_two_commits_wrote_says_so():
  outcomes = {'sft': {0: {'commit': 'a'}, 1: {'commit': 'b'}}}
  assert arena_report._commit(outcomes, [0]) == 'a'
  assert arena_report._commit(outcomes, [0, 1]) == 'a-mixed'


def test_figures_of_the_step_size_and_of_the_learned_reward(tmp_path):
  config = config_file.get_config('eta')
  point = lambda x: {'score': x, 'reward': 2 * x, 'kl_to_reference': x, 'sampled_tokens': 10 * x}
  curve = lambda slope: {'curve': [point(0), point(slope)], 'final': point(slope)}
  outcomes = {f'eta_{eta}': {seed: curve(i + 1 + seed) for seed in (0, 1)}
              for i, eta in enumerate(('0_1', '0_3', '1_0'))}
  arena_report._figures(_run(config, tmp_path), outcomes)
  for name in ('score_by_eta', 'reward_by_kl', 'score_by_kl', 'score_by_tokens'):
    assert (tmp_path / 'figures' / f'{name}.png').stat().st_size > 5_000
  rows = (tmp_path / 'figures' / 'score_by_eta.csv').read_text().splitlines()
  assert rows[1].startswith('REBEL,-1') and rows[1].split(',')[2] == '1.5'
