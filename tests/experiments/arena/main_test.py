"""The arena: arms end to end, equal budgets, resumed runs and criteria."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest

from experiments.arena import __main__ as arena_main
from experiments.arena import arms as arena_arms
from experiments.arena import dialogue as arena_dialogue
from experiments.arena import report as arena_report
from experiments.arena import tasks as arena_tasks
from experiments.configs import arena as config_file
from jaxrl_llm.runs import launch
from jaxrl_llm.tasks import dialogue as dialogue_task
from jaxrl_llm.training import fingerprint, loop

COMPLETIONS, BATCH = 64, 16


def _config(task='arithmetic', **changes):
  config = config_file.get_config()
  shared = getattr(config, task)
  shared.model.width, shared.model.num_heads, shared.model.head_dim = 16, 2, 8
  shared.model.num_kv_heads, shared.model.mlp_width, shared.model.num_layers = 2, 16, 1
  shared.sft = dataclasses.replace(shared.sft, steps=2, batch_size=8)
  shared.sft.optimizer.warmup_steps = 0

  shared.completions, shared.batch_completions, shared.num_evaluations = COMPLETIONS, BATCH, 3
  shared.eval_samples, shared.best_of = 1, 4
  shared.task = dataclasses.replace(
      shared.task, num_demonstrations=32, num_train=6, num_evaluation=10)

  if task == 'dialogue':
    shared.arms.lt_offline_rebel.optimizer = shared.arms.refuel.optimizer
    shared.sft = dataclasses.replace(shared.sft, steps=150, batch_size=16)
    shared.sft.optimizer.learning_rate = 1e-2

  if task == 'summarisation':
    shared.reward_model = dataclasses.replace(
        shared.reward_model, num_pairs=20, steps=2, batch_size=8)
    shared.reward_model.optimizer.warmup_steps = 0
  return dataclasses.replace(config, task=task, num_seeds=1, **changes)


def _run(config, workdir, overrides=()):
  workdir.mkdir(parents=True, exist_ok=True)
  return launch.Run(config, workdir, 'arena', '', 'arena.py', overrides, '0' * 40)


@functools.cache
def _arena(task, folder, **changes):
  settings = _config(task).chosen_task
  settings.task = dataclasses.replace(settings.task, **changes)
  kind = arena_dialogue.DialogueArenaTask if task == 'dialogue' else arena_tasks.ArenaTask
  return arena_tasks.prepare(kind(settings, 3), 3, folder)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('arenas')


@functools.cache
def _outcome_of(name, folder):
  arena = _arena('arithmetic', folder / 'arithmetic')
  return arena_arms.run(arena_arms.Arm(arena.shared, name), arena, lambda: None)


# One for each way through the loop; the algorithms have tests of their own.
@pytest.mark.parametrize('name', ['a_star_po', 'ppo', 'dpo', 'iterative_dpo'])
def test_every_arm_uses_the_same_budget(folder, name):
  outcome = _outcome_of(name, folder)
  final = outcome['final']
  assert final['completions'] == final['reward_calls'] == COMPLETIONS
  assert COMPLETIONS <= final['sampled_tokens'] <= COMPLETIONS * 5
  first_stage = 6 * 8 if name == 'a_star_po' else 0
  assert final['iterations'] == (COMPLETIONS - first_stage) // BATCH
  assert final['kl_to_reference'] >= 0 and np.isfinite(final['score'])
  assert final['state_bytes'] > 0 and final['peak_bytes'] > final['state_bytes']
  assert outcome['curve'][0]['kl_to_reference'] == pytest.approx(0, abs=1e-6)
  completions = [point['completions'] for point in outcome['curve']]
  assert completions == sorted(completions)


def test_the_critic_doubles_the_state(folder):
  sizes = [_outcome_of(name, folder)['final']['state_bytes'] for name in ('ppo', 'dpo')]
  assert 1.8 < sizes[0] / sizes[1] < 2.2


def test_a_reference_that_cannot_do_any_prompt_leaves_none(folder):
  arena = _arena('arithmetic', folder / 'arithmetic')
  with pytest.raises(ValueError, match='a_star_po_filtered leaves out every prompt'):
    arena_arms.run(arena_arms.Arm(arena.shared, 'a_star_po_filtered'), arena, lambda: None)


def test_summaries_have_a_reward_model_that_is_centred_on_references(folder):
  arena = _arena('summarisation', folder / 'summarisation')
  written = arena_tasks._written(arena, arena.task.demonstrations)
  scores = np.asarray(arena.shared.reward_scores(arena.reward_params, written))
  assert abs(scores.mean()) < 1e-4 and scores.std() > 1e-4
  assert arena.task.tokenizer.decode(
      written.tokens[0, 0].tolist()) == arena.task.demonstrations[0]['response']
  numbers = arena.evaluate(arena.reference)
  assert {'win_rate', 'reward', 'score', 'greedy_score'} <= set(numbers)
  best = arena_arms.untrained('best_of_n', arena)
  assert len(best['curve']) == 4 and best['final']['reward'] >= best['curve'][0]['reward']
  critic = arena_tasks.critic_from(arena)
  assert critic is arena.reward_params


def test_pairs_of_the_reward_model_are_of_two_responses(folder):
  arena = _arena('summarisation', folder / 'summarisation')
  pairs = arena_tasks._labelled_pairs(arena, arena.shared.config.reward_model)
  assert pairs.rewards.shape == (20, 2)
  np.testing.assert_array_equal(np.sort(pairs.rewards, axis=1), [[0, 1]] * 20)
  assert (pairs.rollouts.tokens[:, 0] != pairs.rollouts.tokens[:, 1]).any(axis=1).all()
  # The posts are those of the demonstrations, none of RL.
  posts = {arena.task.tokenizer.decode(row) for row in pairs.rollouts.prompts.tolist()}
  assert posts <= {example['prompt'] for example in arena.task.demonstrations}


def test_best_of_n_is_plotted_at_the_bound_on_its_kl(tmp_path):
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
  assert config.chosen_task.one_reference
  with loop.Stopper() as stopper:
    outcomes = arena_main.outcomes(_run(config, tmp_path), stopper)['sft']
  assert (tmp_path / 'seed0' / 'reference').is_dir()
  assert not (tmp_path / 'seed1' / 'reference').exists()
  assert outcomes[0]['final']['reward'] != outcomes[1]['final']['reward']  # Other noise.
  assert outcomes[0]['final']['greedy_score'] == outcomes[1]['final']['greedy_score']


# --- Dialogue: positions of the pairs.


def _draw(arena, name, *, count=BATCH // 2):
  """One iteration's batch of an arm before any training, and its usage."""
  usage = arena_arms.Usage()
  arm = arena_arms.Arm(arena.shared, name)
  batch = arena_dialogue.batch(
      arm, arena, arena.reference, 0, count, usage, arena_arms.Clock())
  return batch, usage


def _tokens_of_turns(batch, turns):
  """The tokens of each response's replies `turns`, as lists [P][K]."""
  rollouts = batch.rollouts
  here = np.isin(batch.aux['turns'], turns)
  return [[rollouts.tokens[p, k][here[p, k]].tolist() for k in range(2)]
          for p in range(len(here))]


@pytest.mark.parametrize('name', ['refuel', 'mt_mixed'])
def test_a_pair_shares_the_dialogue_before_its_turn(folder, name):
  arena = _arena('dialogue', folder / 'dialogue')
  batch, usage = _draw(arena, name)
  assert usage.completions == usage.reward_calls == BATCH
  rows = arena_dialogue.batching.batch_indices(6, BATCH // 2, seed=3, step=0)
  offline = arena.task.offline[rows]

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
  offline_tokens = 0 if name == 'refuel' else sum(
      len(_tokens_of_turns(batch, range(batch.aux['turn'][r]))[r][0]) for r in range(1, 8, 2))
  assert usage.tokens == drawn - shared - offline_tokens  # The prefix is sampled once, or not.


@pytest.mark.parametrize('name', ['lt_offline_dpo', 'lt_mixed_rloo', 'lt_online_rebel'])
def test_arms_of_the_last_turn_train_on_nothing_else(folder, name):
  arena = _arena('dialogue', folder / 'dialogue')
  batch, _ = _draw(arena, name)
  marked = batch.rollouts.mask.argmax(axis=-1)
  count = batch.rollouts.mask.sum(axis=-1)
  assert batch.aux == {} and ((count >= 1) & (count <= 4)).all()
  # The last reply ends the dialogue.
  np.testing.assert_array_equal(marked + count, batch.rollouts.lengths)
  assert np.isfinite(batch.rewards).all() and np.isfinite(batch.rollouts.log_probs).all()


@pytest.mark.parametrize('name, iterations', [('refuel_2', 2), ('refuel_one', 4)])
def test_dialogue_arms_use_the_same_budget(folder, name, iterations):
  arena = _arena('dialogue', folder / 'dialogue')
  outcome = arena_arms.run(arena_arms.Arm(arena.shared, name), arena, lambda: None)
  final = outcome['final']
  assert final['completions'] == final['reward_calls'] == COMPLETIONS
  assert final['iterations'] == iterations and len(outcome['curve']) == 3
  assert {f'turn_{turn}' for turn in range(1, 6)} | {'ask_rate', 'greedy_score'} <= set(final)
  assert final['score'] == final['turn_5'] and final['kl_to_reference'] >= 0
  assert outcome['curve'][0]['kl_to_reference'] == pytest.approx(0, abs=1e-6)


def test_F1_with_one_turn_the_last_turn_is_all_of_it(folder):
  arena = _arena('dialogue', folder / 'one_turn', num_turns=1)
  ours, theirs = (
      arena_arms.run(arena_arms.Arm(arena.shared, name), arena, lambda: None)['final']
      for name in ('refuel', 'lt_offline_rebel'))
  for key in ('score', 'kl_to_reference', 'sampled_tokens'):
    assert ours[key] == pytest.approx(theirs[key], abs=1e-5)
  assert ours['kl_to_reference'] > 1e-3  # There was something to learn.


def test_fixed_questions_do_not_depend_on_the_replies(folder):
  arena = _arena('dialogue', folder / 'fixed_questions', fixed_questions=True)
  ids = arena.encoded.ids[:3]
  rules = arena.task.rules
  dialogues = rules.simulate(ids, dialogue_task.PERFECT, seed=0).cut(1)
  others = rules.simulate(ids, dialogue_task.BEHAVIOUR, seed=5).cut(1)
  assert [list(q) for q in arena.user(dialogues)] == [list(q) for q in arena.user(others)]
  assert len(arena.evaluate(arena.reference)) > 8


def test_a_missing_value_is_an_error_and_not_zero():
  table = arena_arms._Values({3: 0.5})
  np.testing.assert_array_equal(table[np.array([3, 3])], [0.5, 0.5])
  with pytest.raises(KeyError):
    table[np.array([4])]


def test_a_run_is_resumed_by_arm_and_seed_and_writes_each_seed(tmp_path, monkeypatch, capsys):
  config = _config(algorithms='sft,reinforce')
  config.num_seeds = 2
  ran = []
  real = arena_arms.run
  monkeypatch.setattr(
      arena_arms, 'run', lambda arm, arena, check: ran.append(
          (arm.name, arena.seed)) or real(arm, arena, check))
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
  for line, words in zip(lines, ('seed is 1 there, 0 here', 'cannot be read', 'is damaged')):
    assert words in line
  assert len(lines) == 3 and (tmp_path / 'seed1' / 'reference.damaged').is_dir()
  assert timeless(json.loads(lost.read_text())['content']) == timeless(before)


def test_an_arm_of_another_reference_is_played_again(tmp_path, monkeypatch, capsys):
  # As if a process on another processor had trained seed 1's networks again.
  played, fingerprints = [], {0: 'a', 1: 'b'}
  monkeypatch.setattr(arena_tasks, 'prepare', lambda shared, seed, folder: arena_tasks.ArenaSeed(
      shared, seed, None, None, None, fingerprints={'reference': fingerprints[seed]}))
  monkeypatch.setattr(arena_arms, 'untrained', lambda name, arena: played.append(
      arena.seed) or {'curve': [], 'final': {}})
  config = _config(algorithms='sft')
  config.num_seeds = 2

  for fingerprints[1], expected in (('b', [0, 1]), ('b', []), ('c', [1])):
    with loop.Stopper() as stopper:
      arena_main.outcomes(_run(config, tmp_path), stopper)
    assert played == expected
    played.clear()
  assert "reference is 'b' there, 'c' here" in capsys.readouterr().out


def test_fingerprints_of_a_seed_are_those_of_its_networks(folder):
  arena = _arena('summarisation', folder / 'summarisation')
  assert arena.fingerprints == {
      'reference': fingerprint.of_params(arena.reference),
      'reward_params': fingerprint.of_params(arena.reward_params)}


def test_a_reward_model_belongs_to_one_reference(tmp_path, monkeypatch):
  params, made_from = {'policy': {'w': np.zeros(2)}, 'reward': {'w': np.ones(2)}}, {}
  monkeypatch.setattr(arena_tasks, '_saved', lambda folder, role, model, source, make: (
      made_from.update({role: dict(source)}), params[role])[1])
  settings = _config('summarisation').chosen_task
  arena = arena_tasks.prepare(arena_tasks.ArenaTask(settings, 3), 3, tmp_path)
  assert 'reference' not in made_from['policy']
  assert made_from['reward']['reference'] == fingerprint.of_params(params['policy'])
  assert arena.fingerprints['reward_params'] == fingerprint.of_params(params['reward'])


def test_an_arm_of_an_earlier_version_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setattr(arena_tasks, 'prepare', lambda shared, seed, folder: arena_tasks.ArenaSeed(
      shared, seed, None, None, None))
  path = tmp_path / 'seed0' / 'arms' / 'sft.json'
  path.parent.mkdir(parents=True)
  path.write_text('{"curve": [], "final": {}, "commit": ""}')
  with pytest.raises(ValueError, match='sft.json cannot be used: .*no digest.*give another --wor'):
    arena_main.main(_run(_config(algorithms='sft'), tmp_path))


def test_a_stop_is_answered_between_iterations(folder):
  arena = _arena('arithmetic', folder / 'arithmetic')

  def check():
    raise loop.Interrupted

  with pytest.raises(loop.Interrupted):
    arena_arms.run(arena_arms.Arm(arena.shared, 'reinforce'), arena, check)


def test_preference_pairs_that_cannot_fit_are_the_largest_contributor():
  config = _config('summarisation')
  config.summarisation.reward_model.num_pairs = 10**12
  contributors = config.memory()
  largest = max(contributors, key=contributors.get)
  assert largest == 'the preference pairs (config.summarisation.reward_model.num_pairs)'
  assert contributors[largest] == 16 * 10**12  # Two responses with a token and a log-prob each.


@pytest.mark.parametrize('changes, message', [
    (dict(task='chess'), "config.task must be one of .*got 'chess'"),
    (dict(algorithms='ppo,sarsa'), "config.algorithms must be some of .*got 'ppo,sarsa'"),
    (dict(num_seeds=0), 'config.num_seeds must be at least 1, got 0'),
])
def test_invalid_configs_are_rejected(changes, message):
  config = _config()
  for name, value in changes.items():
    setattr(config, name, value)
  with pytest.raises(ValueError, match=message):
    config.validate()


@pytest.mark.parametrize('changes, message', [
    (dict(prefix='their own'), "refuel.prefix must be one of .*got 'their own'"),
    (dict(turn='first'), "refuel.turn must be one of .*got 'first'"),
    (dict(refresh_every=0), 'refuel.refresh_every must be 1 in dialogue, got 0'),
    (dict(iterations=3), 'times the iterations of refuel .48., got 64'),
])
def test_invalid_dialogue_configs_are_rejected(changes, message):
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
def test_fields_that_no_arm_reads_are_rejected(arm, field, value, message):
  config = _config(algorithms=arm)
  setattr(getattr(config.arithmetic.arms, arm).algorithm, field, value)
  with pytest.raises(ValueError, match=message):
    config.validate()


def test_schedules_and_packed_rows_are_rejected():
  config = _config()
  config.arithmetic.arms.ppo.optimizer.schedule = 'linear'
  with pytest.raises(ValueError, match="ppo.optimizer.schedule must be 'constant' in the arena"):
    config.validate()
  config = _config()
  config.arithmetic.sft.packed_length = 64
  with pytest.raises(ValueError, match='sft.packed_length must be 0 in the arena, got 64'):
    config.validate()


def test_arms_that_do_not_run_are_not_validated():
  config = _config('dialogue', algorithms='sft,refuel')
  config.dialogue.completions = 3 * BATCH  # No whole batches for refuel_2.
  config.validate()
  config.algorithms = 'refuel_2'
  with pytest.raises(ValueError, match='times the iterations of refuel_2 .32., got 48'):
    config.validate()


def test_a_batch_that_does_not_hold_whole_groups_is_rejected():
  config = _config()
  config.arithmetic.batch_completions = 12
  with pytest.raises(
      ValueError, match=r'must be divisible by the samples per prompt of grpo .8., got 12'):
    config.validate()


def test_overrides_of_a_task_that_does_not_run_are_rejected(tmp_path):
  run = _run(_config(), tmp_path, overrides=('summarisation.completions',))
  with pytest.raises(ValueError, match='config.summarisation.completions has no effect'):
    arena_main.main(run)


# --- Report.


def test_results_of_two_commits_are_marked():
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
