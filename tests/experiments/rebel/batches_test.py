"""Batches of REBEL: pairs, comparators, responses of the data, and references that share arrays."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rebel import batches as rebel_batches
from jaxrl_llm.algorithms import rebel
from jaxrl_llm.data import response_batches, tokenizers
from jaxrl_llm.models import lora
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.rl import scoring
from jaxrl_llm.runs import policy_evaluation, references, reward_config, reward_models
from jaxrl_llm.training import fingerprint, optim
from jaxrl_llm.types import Batch
from tests.experiments import tiny_rebel

OFF = reward_config.RewardConfig(eos_check='off', missing_stop_penalty=0.0)


@pytest.fixture(scope='module')
def folder(data_dir, tmp_path_factory):
  folder = tiny_rebel.write(tmp_path_factory.mktemp('batches'), data_dir)
  rows = [{'prompt': f'Say {i}.', 'chosen': 'yes' * (1 + i % 2), 'rejected': f'{i}'}
          for i in range(30)]
  (folder / 'pairs.json').write_text(json.dumps(rows))
  return folder


def _config(folder, **changes):
  config = tiny_rebel.online(folder, reward=OFF, **changes)
  config.task.max_prompt_tokens, config.task.max_response_tokens = 32, 6
  config.model.scan_unroll = 1
  config.validate()
  return config


def _reward(values):
  """A reward model with fixed scores."""
  return reward_models.RewardModel(OFF, None, lambda *arguments: values, 'name', '')


def test_comparators_make_preferences_and_are_excluded_from_the_pair(folder):
  config = _config(
      folder, algorithm={'signal': 'preferences'}, num_comparators=3)
  scores = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
  with tiny_rebel.build(config) as setup:
    data = rebel_batches.Prompts(setup)
    builder = rebel_batches.BatchBuilder(setup, _reward(scores))
    prompts, responses = data.batch(8, seed=0, step=0)
    assert responses is None
    params = setup.finetuning.frozen(setup.initial_params())
    rollouts = builder.sample(params, *setup.put(tuple(prompts[:3])), jax.random.key(0))
    assert rollouts.tokens.shape == (8, 5, 6)
    assert builder.mix_offline(rollouts, None, 0) is rollouts
    scored = builder.score(rollouts, prompts.examples)
    batch = builder.build(rollouts, scored, params)
    log_probs = jax.jit(lambda params, rollouts: scoring.score(
        setup.policy, params, rollouts)[0])(params, batch.rollouts)
    # Some pairs have a response of the data as their second.
    config.algorithm = dataclasses.replace(config.algorithm, offline_fraction=0.5)
    data = rebel_batches.Prompts(setup)
    builder = rebel_batches.BatchBuilder(setup, _reward(scores))
    prompts, responses = data.batch(8, seed=0, step=1)
    both = builder.mix_offline(rollouts, responses, step=1)
    again = builder.mix_offline(rollouts, responses, step=1)
    other = builder.mix_offline(rollouts, responses, step=2)

  np.testing.assert_array_equal(batch.rollouts.tokens, rollouts.tokens[:, :2])
  expected = np.tanh((scores[:, :2, None] - scores[:, None, 2:]) / 2)
  np.testing.assert_allclose(batch.rewards, expected, rtol=1e-6)
  np.testing.assert_allclose(batch.reference_log_probs, log_probs, atol=1e-5)
  np.testing.assert_array_equal(batch.weight, np.ones(8))

  targets = np.abs(np.diff(expected.mean(axis=2), axis=1))
  assert builder.summary(scored)['rollout/median_target'] == pytest.approx(np.median(targets))
  # Responses of the data: whole, finished, of unknown log-probs; everything else as it was.
  taken = np.isnan(both.log_probs[:, 1]).any(axis=-1)
  assert 0 < taken.sum() < 8
  np.testing.assert_array_equal(both.tokens[taken, 1], responses.tokens[taken, 0])
  np.testing.assert_array_equal(both.stop_reason[taken, 1], 1)
  np.testing.assert_array_equal(both.tokens[~taken], rollouts.tokens[~taken])

  for column in (0, 2, 3, 4):
    np.testing.assert_array_equal(both.tokens[:, column], rollouts.tokens[:, column])
  np.testing.assert_array_equal(both.tokens, again.tokens)
  assert np.any(np.isnan(other.log_probs[:, 1]).any(axis=-1) != taken)

  # 'yesyes' and its stop token are too long for six slots.
  assert {example['chosen'] for example in prompts.examples} == {'yes'}


def test_the_reference_is_not_scored_without_a_penalty(folder):
  config = _config(folder)
  config.algorithm = dataclasses.replace(config.algorithm, kl_coefficient=0.0)
  scores = np.array([[1.0, 2.0], [np.nan, 0.0], [5.0, 5.0], [0.0, 4.0]] * 2, np.float32)
  with tiny_rebel.build(config) as setup:
    builder = rebel_batches.BatchBuilder(setup, _reward(scores))
    scored = reward_models.Scored(scores, scores, np.full((8, 2), 3), np.zeros((8, 2), bool))
    batch = builder.build(_rollouts(), scored, None)
  assert batch.reference_log_probs is None
  np.testing.assert_array_equal(batch.rewards, scores)
  summary = builder.summary(scored)
  # The prompt with a failed score is excluded.
  assert summary['rollout/median_target'] == 1.0 and summary['rollout/length'] == 3
  assert summary['rollout/score'] == pytest.approx(17 / 7)


def _rollouts():
  return response_batches.rollouts(
      [[2]] * 8, [[[2], [3]]] * 8, tokenizers.CharacterTokenizer('abc'), max_prompt_tokens=2,
      max_response_tokens=3)


@pytest.mark.parametrize('changes', [
    {'train_last_layers': 1}, {'lora': lora.LoraConfig(rank=2)}, {}])
def test_a_reference_shares_untrained_parameters(folder, changes):
  config = _config(folder, **changes)
  with tiny_rebel.build(config) as setup:
    algorithm = rebel.make(
        rebel.Config(kl_coefficient=0.0, head_chunk=0, num_epochs=1), setup.policy,
        setup.make_optimizer(optim.OptimizerConfig(learning_rate=0.1)))
    plain = setup.initial_params()
    reference = references.make_reference(setup, finetune=None)
    loaded = jax.tree.leaves(reference.params)
    state, train_step = references.start(setup, algorithm, reference)
    # The base of adapters is moved into the state: it is in memory once, also at the start.
    assert all(leaf.is_deleted() for leaf in loaded) == bool(changes.get('lora'))
    shared = _shared(state.params['policy'], reference.of(state.params['policy']))
    score = setup.scorer(temperature=1.0, chunk_size=0)
    rollouts = setup.put(dataclasses.replace(
        _rollouts(), log_probs=np.zeros((8, 2, 3), np.float32)))
    before = np.asarray(score(setup.finetuning.frozen(plain), rollouts))
    rewards = np.tile(np.array([[1.0, 0.0]], np.float32), (8, 1))
    batch = setup.put(Batch(rollouts, rewards, None, {}, np.ones(8, np.float32)))
    state, _ = train_step(state, batch)
    policy = state.params['policy']
    # Only the policy has changed; the reference is that of the plain network, bit for bit.
    np.testing.assert_array_equal(score(reference.of(policy), rollouts), before)
    network = policy_lib.make(setup.model)
    plain_score = jax.jit(lambda params: scoring.score(network, params, rollouts)[0])
    np.testing.assert_array_equal(plain_score(plain), before)
    assert jnp.abs(score(policy, rollouts) - before).max() > 1e-3

  total = sum(leaf.size for leaf in jax.tree.leaves(plain))
  assert (shared > 0.4 * total) == bool(changes)  # Arrays that are stored once.


def test_a_reference_of_another_directory_is_a_copy(folder):
  config = _config(folder, lora=lora.LoraConfig(rank=2))
  config.reference_init_from = config.policy_init_from
  with tiny_rebel.build(config) as setup:
    algorithm = rebel.make(
        rebel.Config(), setup.policy, setup.make_optimizer(optim.OptimizerConfig()))
    state, _, reference = references.begin(setup, algorithm, finetune=None)
    policy = state.params['policy']
    assert not _shared(policy, reference.of(policy)) and reference.start is None
    assert fingerprint.of_params(reference.params['base']) == reference.fingerprint


def _shared(policy, reference):
  """Number of the reference's parameters in arrays of the policy."""
  pointers = {id(leaf) for leaf in jax.tree.leaves(policy)}
  return sum(leaf.size for leaf in jax.tree.leaves(reference) if id(leaf) in pointers)


def test_each_problem_with_the_targets_is_reported_once(capsys):
  monitor = policy_evaluation.TargetScaleMonitor()
  check = lambda target, gap: monitor(
      {'rollout/median_target': target, 'train/sampler_gap': gap})
  check(1.0, 1e-3)
  assert not capsys.readouterr().err
  check(100.0, 1e-3)
  check(100.0, 0.1)
  lines = capsys.readouterr().err.splitlines()
  assert [line.split(':')[0] for line in lines] == ['warning', 'warning']
  assert 'is 100' in lines[0] and 'config.algorithm.eta' in lines[0] and '0.1 nats' in lines[1]
  check(1e-4, 1e-3)
  assert 'hardly anything is learned' in capsys.readouterr().err
