"""Batches of REFUEL: pairs with a common beginning, limits, scores, and pairs that are left out."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from experiments.refuel import batches as refuel_batches
from jaxrl_llm.data import batching
from jaxrl_llm.data import dialogues as dialogues_lib
from jaxrl_llm.runs import reward_config, reward_models
from jaxrl_llm.tasks import config as task_config
from jaxrl_llm.types import STOPPED, TRUNCATED, Rollouts
from tests.experiments import tiny_rebel, tiny_refuel

KEY = jax.random.key(0)


@pytest.fixture(scope='module', autouse=True)
def compiled_once():
  with pytest.MonkeyPatch.context() as patch:
    tiny_refuel.share_programs(patch)
    yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny_refuel.write(tmp_path_factory.mktemp('batches'))


@pytest.fixture(scope='module')
def world(folder):
  """The setup, parameters, and a pair of dialogues for each of eight prompts."""
  config = tiny_refuel.config(folder)
  config.validate()
  with tiny_rebel.build(config) as setup:
    builder = refuel_batches.BatchBuilder(setup, reward_models.load(setup))
    prompts = builder.prompts(0)
    params = setup.finetuning.frozen(setup.initial_params())
    pair = builder.roll_out(params, setup.task.questions, prompts, KEY)
    yield types.SimpleNamespace(**locals())


def test_F3_a_pair_is_the_same_up_to_turn_h(world):
  pair, task = world.pair, world.setup.task
  assert (pair.num_turns == task.questions.num_turns(world.prompts.example_ids)).all()
  assert (pair.turn >= 0).all() and (pair.turn < pair.num_turns).all() and pair.turn.any()
  for dialogues in (pair.first, pair.second):
    assert (dialogues.num_replies == pair.num_turns).all()
  before = [each.cut(pair.turn).transcript(2)[0] for each in (pair.first, pair.second)]
  np.testing.assert_array_equal(*before)
  replies = [each.replies[np.arange(8), pair.turn] for each in (pair.first, pair.second)]
  assert (replies[0] != replies[1]).any(axis=1).sum() > 4
  lengths = pair.second.reply_lengths
  again = sum(lengths[row, turn:].sum() for row, turn in enumerate(pair.turn))
  assert pair.tokens == pair.first.reply_lengths.sum() + again


def test_chunks_of_a_batch_are_whole_dialogues_with_different_noise(world):
  config = dataclasses.replace(world.config, batch_size=16, rollout_batch_size=8)
  builder = refuel_batches.BatchBuilder(
      tiny_rebel.with_config(world.setup, config), None)
  twice = batching.PromptBatch(*(
      [*part, *part] if isinstance(part, list) else np.concatenate([part, part])
      for part in world.prompts))
  both = builder.roll_out(world.params, world.setup.task.questions, twice, KEY)
  assert len(both.first) == len(both.turn) == 16
  assert (both.num_turns[:8] == both.num_turns[8:]).all()
  assert (both.first.replies[:8] != both.first.replies[8:]).any()
  whole = [each.num_replies for each in (both.first, both.second)]
  np.testing.assert_array_equal(whole, [both.num_turns] * 2)


def test_the_batch_ends_with_turn_h_and_scores_are_of_the_whole(world):
  pair, builder = world.pair, world.builder
  scored = builder.score(pair)
  assert scored.scores.shape == (8, 2) and np.isfinite(scored.scores).all()

  at_h = np.stack([each.stop_reason[np.arange(8), pair.turn]
                   for each in (pair.first, pair.second)], axis=1)
  np.testing.assert_array_equal(scored.truncated, at_h == TRUNCATED)
  assert 0 < scored.truncated.sum() < 16
  np.testing.assert_array_equal(scored.rewards, np.where(at_h == STOPPED, scored.scores, -1))
  np.testing.assert_array_equal(
      scored.lengths[:, 0], pair.first.reply_lengths.sum(axis=1))

  batch = jax.device_get(builder.build(pair, scored, world.params))
  turns = batch.aux['turns']
  assert (turns.max(axis=2) == pair.turn[:, None]).all()
  assert batch.rollouts.tokens.shape == (8, 2, world.setup.task.max_response_tokens)
  assert (batch.weight == 1).all() and batch.reference_log_probs.shape == turns.shape

  # The reference is the policy here, so its log-probs are those of the sampler.
  mask = batch.rollouts.mask > 0
  np.testing.assert_allclose(
      batch.reference_log_probs[mask], batch.rollouts.log_probs[mask], atol=1e-5)

  summary = builder.summary(pair, scored)
  assert summary['rollout/turn'] == pair.turn.mean()
  assert not any('left_out' in name for name in summary)


def test_scores_are_those_of_the_whole_row_of_ids(world):
  """The last reply after the transcript, and the dialogue after the prompt, are the same row."""
  pair, setup = world.pair, world.setup
  rollouts, _ = refuel_batches.as_rollouts(
      [pair.first, pair.second], pair.turn, setup.task.max_response_tokens)
  reward = reward_models.load(setup)
  expected = reward(setup.put(rollouts), world.prompts.examples)
  np.testing.assert_allclose(world.builder.score(pair).scores, expected.scores, atol=1e-5)


def test_a_reward_model_of_text_reads_the_conversation(world):
  seen = []

  def score(rollouts, examples, setup):
    seen.append((rollouts, examples))
    return np.zeros(rollouts.lengths.shape, np.float32)

  config = reward_config.RewardConfig(template='auto', max_tokens=9)
  scorer = refuel_batches.DialogueScorer(
      world.setup, reward_models.RewardModel(config, None, score, 'name', ''))
  dialogues, last = world.pair.first, world.pair.num_turns - 1
  scorer(dialogues, last)
  (rollouts, examples), task = seen[0], world.setup.task
  for row, example in enumerate(examples):
    whole = task.messages(dialogues, row)
    ids = np.asarray(rollouts.tokens)[row, 0, : int(rollouts.lengths[row, 0])]
    assert whole == [*example['messages'], {'role': 'assistant', 'content': task.text(ids)}]


@pytest.mark.parametrize('max_tokens, left', [(45, 'too_long'), (200, 'equal_reply')])
def test_F10_pairs_are_left_out_as_in_the_released_setting_one(world, max_tokens, left):
  config = dataclasses.replace(world.config, max_tokens=max_tokens)
  builder = refuel_batches.BatchBuilder(
      tiny_rebel.with_config(world.setup, config), None)
  pair = world.pair
  if left == 'equal_reply':  # The first two dialogues are repeated.
    first = pair.first
    same = dataclasses.replace(first, **{
        name: np.where(np.arange(8).reshape(-1, *[1] * (array.ndim - 1)) < 2, array,
                       getattr(pair.second, name))
        for name, array in vars(first).items() if name != 'pad_id'})
    pair = pair._replace(second=same)
    equal = [a == b for a, b in zip(*(
        each.replies[np.arange(8), pair.turn].tolist() for each in (pair.first, pair.second)))]
    expected = ~np.array(equal)
  else:
    first = pair.first
    total = first.prompt_lengths + first.reply_lengths.sum(1) + first.message_lengths.sum(1)
    expected = total <= max_tokens
    assert 0 < expected.sum() < 8

  scores = np.zeros((8, 2), np.float32)
  scores[0] = np.nan  # A failed score is left to the train step, which counts it.
  scored = reward_models.Scored(scores, scores, np.ones((8, 2), int), np.zeros((8, 2), bool))
  batch = builder.build(pair, scored, world.params)
  np.testing.assert_array_equal(batch.weight, expected)
  assert batch.rollouts.tokens.shape[-1] == min(max_tokens, world.setup.task.max_response_tokens)

  summary = builder.summary(pair, scored)
  assert summary[f'rollout/left_out/{left}'] == (~expected).sum() > 0


@pytest.mark.parametrize('widths, seen', [('growing', [28, 63, 98]), ('fixed', [98, 98, 98])])
def test_widths_of_transcripts(world, monkeypatch, widths, seen):
  read = []

  def sample(params, tokens, lengths, example_ids, key):
    read.append(tokens.shape[1])
    ones = np.ones((len(tokens), 1), np.int32)
    slots = np.ones((len(tokens), 1, tiny_refuel.REPLY), np.int32)
    return Rollouts(tokens, lengths, slots, ones, slots, slots * 0.0, ones)

  monkeypatch.setattr(refuel_batches, 'sampler', lambda setup, temperature: sample)
  sample_dialogues = refuel_batches.DialogueSampler(
      world.setup, temperature=1.0, widths=widths)
  num_turns = sample_dialogues.num_turns(world.prompts.example_ids)
  sample_dialogues(
      {}, world.setup.task.questions, sample_dialogues.start(world.prompts), KEY,
      num_turns=num_turns)
  assert read == seen


def test_replies_are_cut_at_the_limit_for_their_number_of_turns(world, folder):
  config = dataclasses.replace(
      world.config, task=tiny_refuel.task(limits='1=28:4, 2=28:3, 3=28:2'))
  task = config.task.make(
      0, folder, task_config.PolicyTokenizer(str(folder / 'policy'), pretrained=True))
  setup = dataclasses.replace(tiny_rebel.with_config(world.setup, config), task=task)
  sample = refuel_batches.DialogueSampler(setup, temperature=1.0, widths='fixed')
  params, questions = world.params, task.questions
  num_turns = sample.num_turns(world.prompts.example_ids)
  limited = sample(params, questions, sample.start(world.prompts), KEY, num_turns=num_turns)
  most = np.array([0, 4, 3, 2])[num_turns]
  assert (limited.reply_lengths <= most[:, None]).all()

  cut = (limited.stop_reason == TRUNCATED) & (limited.reply_lengths > 0)
  assert (limited.reply_lengths == most[:, None])[cut].all() and cut.any()
  # Up to the first cut it is the same dialogue as without the limit.
  free = world.builder.sampler(
      params, questions, sample.start(world.prompts), KEY, num_turns=num_turns)
  for row in range(8):
    np.testing.assert_array_equal(
        limited.replies[row, 0, : most[row]], free.replies[row, 0, : most[row]])
  assert isinstance(limited, dialogues_lib.Dialogues)
