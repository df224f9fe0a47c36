"""Large-batch REBEL: its stages, the regression from cached log-probs, and resumption."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rebel import __main__ as rebel_main
from experiments.rebel import largebatch as rebel_largebatch
from experiments.rebel import stages as rebel_stages
from jaxrl_llm.algorithms import rebel as algorithm
from jaxrl_llm.data import tokenizers
from jaxrl_llm.models import configs, policy
from jaxrl_llm.models.pretrained import huggingface
from jaxrl_llm.rl import masking
from jaxrl_llm.tasks import config as task_config
from jaxrl_llm.training import checkpoints, fingerprint, loop, metrics
from tests.algorithms import groups
from tests.algorithms import tiny as tiny_algorithm
from tests.experiments import tiny_rebel


@pytest.fixture(scope='module', autouse=True)
def compiled_once():
  with pytest.MonkeyPatch.context() as patch:
    tiny_rebel.share_programs(patch)
    yield


@pytest.fixture(scope='module')
def folder(data_dir, tmp_path_factory):
  return tiny_rebel.write(tmp_path_factory.mktemp('large'), data_dir)


@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory):
  """An uninterrupted run. Copy the workdir before you change it."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  tiny_rebel.run(rebel_main.main, tiny_rebel.large_batch(folder), workdir)
  return workdir


def _stage(workdir, number, name):
  first, *records = metrics.read_jsonl(workdir / f'round{number}' / f'{name}.jsonl')
  return first, records


def test_each_stage_reads_the_previous_one(folder, whole):
  tokenizer = tokenizers.load_tokenizer(folder / 'policy')
  for number in (1, 2):
    about, generated = _stage(whole, number, 'generated')
    assert (about['round'], about['responses']) == (number, 3) and len(generated) == 55
    assert all(len(record['responses']) == 3 for record in generated)
    _, ranked = _stage(whole, number, 'ranked')
    counts, pairs = _stage(whole, number, 'pairs')
    assert counts['kept'] == len(pairs) == 55 - counts['identical']
    scores = {record['id']: record['scores'] for record in ranked}
    responses = {record['id']: record['responses'] for record in generated}
    for pair in pairs:
      of = scores[pair['id']]
      assert pair['rewards'] == [max(of), min(of)]
      assert pair['responses'][0] == responses[pair['id']][int(np.argmax(of))]
      assert tokenizer.decode(pair['responses'][0]) != tokenizer.decode(pair['responses'][1])
    _, log_probs = _stage(whole, number, 'log_probs')
    assert [row['id'] for row in log_probs] == [pair['id'] for pair in pairs]

  # The second round begins with what the first one has trained.
  policies = [_stage(whole, number, 'generated')[0]['policy'] for number in (1, 2)]
  results = json.loads((whole / 'results.json').read_text())
  assert policies[0] == results['fingerprint/reference'] != policies[1]
  assert policies[1] == checkpoints.read_metadata(whole / 'round1' / 'params')['fingerprint']

  sampled = sum(len(ids) for number in (1, 2) for record in _stage(whole, number, 'generated')[1]
                for ids in record['responses'])
  assert results['sampled_tokens'] == sampled


def test_cached_log_probs_are_those_of_the_policy_at_the_start_of_the_round(folder, whole):
  checkpoint = huggingface.read_config(folder / 'policy')
  model = policy.make(checkpoint.config)
  params = huggingface.load_params(
      checkpoint, jax.eval_shape(model.init, jax.random.key(0)))
  tokenizer = tokenizers.load_tokenizer(folder / 'policy')
  examples = {e['id']: e for e in _examples(folder)}
  _, pairs = _stage(whole, 1, 'pairs')
  _, rows = _stage(whole, 1, 'log_probs')
  apply = jax.jit(model.apply)
  for pair, row in list(zip(pairs, rows))[:4]:
    for ids, expected in zip(pair['responses'], row['log_probs']):
      prompt = examples[pair['id']]['prompt_ids']
      sequence = np.zeros((1, tiny_rebel.PROMPT + tiny_rebel.RESPONSE), np.int32)
      sequence[0, : len(prompt) + len(ids)] = prompt + ids
      output = apply(
          params, sequence, positions=np.arange(sequence.size)[None],
          valid=np.arange(sequence.size)[None] < len(prompt) + len(ids))
      logits = output.hidden[0] @ output.head.kernel.T
      every = jax.nn.log_softmax(logits[len(prompt) - 1 : len(prompt) - 1 + len(ids)])
      assert expected == pytest.approx(
          float(every[np.arange(len(ids)), np.array(ids)].sum()), abs=1e-3)

  assert tokenizer.vocab_size == checkpoint.config.vocab_size


def _examples(folder):
  task = tiny_rebel.task().make(0, folder, task_config.PolicyTokenizer(str(folder / 'policy')))
  return task.train + task.evaluation


def test_rounds_train_on_pairs_that_are_not_held_out(folder, whole):
  tokenizer = task_config.PolicyTokenizer(str(folder / 'policy'))
  held_out = {e['id'] for e in tiny_rebel.task().make(0, folder, tokenizer).evaluation}
  records = metrics.read_jsonl(whole / 'metrics.jsonl')
  steps = 0
  for number in (1, 2):
    _, pairs = _stage(whole, number, 'pairs')
    trained = [pair for pair in pairs if pair['id'] not in held_out]
    mine = [r for r in records if r.get('round') == number]
    assert [r['step'] for r in mine] == list(range(steps, steps + len(trained) // 8))
    gaps = [pair['rewards'][0] - pair['rewards'][1] for pair in trained]
    assert mine[0]['rollout/reward_gap'] == pytest.approx(np.mean(gaps), rel=1e-5)
    assert mine[0]['rollout/median_target'] == pytest.approx(np.median(gaps), rel=1e-5)
    # Before the first step nothing has moved; the last has the other pairs' numbers too.
    assert mine[0]['eval/score'] is not None
    assert mine[0]['heldout/chosen_log_ratio'] == pytest.approx(0, abs=1e-4)
    assert abs(mine[-1]['heldout/chosen_log_ratio']) > 1e-4
    assert mine[0]['train/initial_log_ratio'] < 1e-5
    steps += len(mine)

  final = records[-1]
  assert final['step'] == steps and 'train/loss' not in final
  assert final['eval/kl_to_reference'] > records[0]['eval/kl_to_reference'] == 0

  results = json.loads((whole / 'results.json').read_text())
  assert results['eval/trained/score'] == final['eval/score']
  assert results['round2/kept'] == len(_stage(whole, 2, 'pairs')[1])

  params = checkpoints.load_params(whole / 'trained', jax.eval_shape(
      policy.make(configs.TransformerConfig(**checkpoints.read_metadata(
          whole / 'trained')['model'])).init, jax.random.key(0)))[0]
  about = checkpoints.read_metadata(whole / 'round2' / 'params')
  assert fingerprint.of_params(params) == about['fingerprint']


def test_the_penalty_with_one_over_eta_regresses_from_cached_log_probs():
  batch, eta = groups.batch(2), 0.7
  theta, begin = tiny_algorithm.params(), tiny_algorithm.params(seed=1)
  total = lambda params: masking.masked_sum(
      groups.log_probs(params, batch.rollouts), batch.rollouts.mask, axis=-1)
  cached = total(begin)
  assert jnp.abs(cached - total(theta)).max() > 0.1  # π_t differs from π_0.
  pairs = rebel_stages.Pairs(
      batch.rollouts, np.asarray(batch.rewards), np.asarray(cached), np.zeros(4, bool), {}, 0)
  run = groups.runner(
      algorithm, num_epochs=1, temperature=1.0, eta=eta, kl_coefficient=1 / eta)
  loss, gradients, _ = run(rebel_largebatch.cached_batch(pairs))

  def explicit_loss(params):
    log_ratio = total(params) - cached
    difference = log_ratio[:, 0] - log_ratio[:, 1]
    return jnp.mean((difference - eta * (batch.rewards[:, 0] - batch.rewards[:, 1]))**2)

  assert loss == pytest.approx(float(explicit_loss(theta)), rel=1e-5)
  tiny_algorithm.assert_trees_close(
      gradients, groups.gradient_of(explicit_loss), tolerance=1e-5)


def test_the_filter():
  tokenizer = tokenizers.CharacterTokenizer('abc')  # 1 stops.
  rows = [
      ([[2, 1], [3, 1], [4, 1]], [0.5, 2.0, -1.0]),  # Kept: the second and the third.
      ([[2, 1], [3, 1], [4, 1]], [1.0, 1.0, 1.0]),  # The first and the last of equal rewards.
      ([[2, 1], [3, 3], [4, 1]], [0.0, 1.0, 2.0]),  # One did not stop.
      ([[2, 1], [3, 1], [2, 1]], [2.0, 1.0, 0.0]),  # Best and worst are the same text.
      ([[2, 1], [3, 1], [4, 1]], ['nan', 1.0, 0.0]),  # NaN is a string in JSON.
  ]
  generated = [{'id': i, 'responses': responses} for i, (responses, _) in enumerate(rows)]
  ranked = [{'id': i, 'rewards': rewards} for i, (_, rewards) in enumerate(rows)]
  pairs, counts = rebel_stages.best_and_worst(
      generated, ranked, tokenizer, keep_truncated=False)
  assert counts == {'failed': 1, 'truncated': 1, 'identical': 1, 'kept': 2}
  assert pairs == [
      {'id': 0, 'responses': [[3, 1], [4, 1]], 'rewards': [2.0, -1.0]},
      {'id': 1, 'responses': [[2, 1], [4, 1]], 'rewards': [1.0, 1.0]}]

  pairs, counts = rebel_stages.best_and_worst(generated, ranked, tokenizer, keep_truncated=True)
  assert counts == {'failed': 1, 'truncated': 0, 'identical': 1, 'kept': 3}


def test_a_run_killed_in_every_stage_has_the_same_numbers(folder, whole, tmp_path):
  config, workdir = tiny_rebel.large_batch(folder), tmp_path / 'run'

  def die(holder, name, count):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(holder, name, tiny_rebel.dying(getattr(holder, name), count))
      with pytest.raises(tiny_rebel.Killed):
        tiny_rebel.run(rebel_main.main, config, workdir)

  lines = lambda number, name: len(_stage(workdir, number, name)[1])
  die(metrics.JsonlFile, 'write', 20)  # In the second batch of generated responses.
  assert lines(1, 'generated') == 19 and not (workdir / 'round1' / 'ranked.jsonl').exists()
  die(loop.Keeper, 'after_step', 4)
  assert lines(1, 'log_probs') == lines(1, 'pairs')
  die(checkpoints, 'save_params', 1)  # The first round is complete.
  assert (workdir / 'round1' / 'params').exists() and not (workdir / 'round2').exists()
  tiny_rebel.run(rebel_main.main, config, workdir)
  actual, expected = tiny_rebel.outcome(workdir), tiny_rebel.outcome(whole)
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    assert actual[name] == value, name


def test_stages_of_another_config_are_refused(folder, whole, tmp_path):
  workdir = tmp_path / 'run'
  (workdir / 'round1').mkdir(parents=True)
  text = (whole / 'round1' / 'generated.jsonl').read_text()
  (workdir / 'round1' / 'generated.jsonl').write_text(text)
  config = dataclasses.replace(tiny_rebel.large_batch(folder), top_p=0.5)
  with pytest.raises(ValueError, match='top_p is 0.9 there, 0.5 here'):
    tiny_rebel.run(rebel_main.main, config, workdir)


def test_a_file_of_a_complete_round_that_was_changed_is_named(folder, whole, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir)
  (workdir / 'results.json').unlink()
  path = workdir / 'round2' / 'log_probs.jsonl'
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join([*lines[:-1], '{}\n']))
  with pytest.raises(ValueError, match=f'{re.escape(str(path))} does not have the digest in'):
    tiny_rebel.run(rebel_main.main, tiny_rebel.large_batch(folder), workdir)


def test_a_round_of_an_earlier_version_is_one_line(folder, whole, tmp_path, monkeypatch):
  workdir, load = tmp_path / 'run', checkpoints.load_params
  shutil.copytree(whole, workdir)
  (workdir / 'results.json').unlink()

  def load_earlier(*arguments, **options):
    params, metadata = load(*arguments, **options)
    return params, {name: x for name, x in metadata.items() if name != 'files'}

  monkeypatch.setattr(checkpoints, 'load_params', load_earlier)
  with pytest.raises(ValueError, match='round1/params is of an earlier version; give another'):
    tiny_rebel.run(rebel_main.main, tiny_rebel.large_batch(folder), workdir)


def test_a_round_without_pairs_is_an_error(folder, tmp_path):
  config = tiny_rebel.large_batch(folder, keep_truncated=False)
  config.task.num_train = 8
  with pytest.raises(ValueError, match=r"left no pair of 16 prompts: .*'truncated': 16.*keep_tru"):
    tiny_rebel.run(rebel_main.main, config, tmp_path / 'run')
