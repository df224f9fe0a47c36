"""Reward models: their inputs, and the conversion of scores to rewards."""

import dataclasses

import numpy as np
import pytest

from jaxrl_llm.data import chat_templates, response_batches, tokenizers
from jaxrl_llm.models import configs
from jaxrl_llm.runs import checkpoint_sources, reward_config, reward_models
from tests.experiments import tiny, tiny_rebel

pytestmark = pytest.mark.usefixtures('few_devices')

TOKENIZER = tokenizers.CharacterTokenizer('abc')  # 0 pads, 1 stops.
# One that stops early, one that stops at the last slot, one that does not.
ROLLOUTS = response_batches.rollouts(
    [[2]] * 2, [[[2, 1], [3, 3, 1]], [[4, 4, 4], [2, 1]]], TOKENIZER, max_prompt_tokens=2,
    max_response_tokens=3)
SCORES = np.array([[2.0, -1.0], [3.0, np.nan]], np.float32)


def _rewards(scores=SCORES, **options):
  settings = reward_config.RewardConfig(**options)
  settings.validate('config.reward')
  model = reward_models.RewardModel(settings, None, lambda *arguments: scores, 'name', '')
  return model(ROLLOUTS, [{}, {}])


def test_a_response_without_a_stop_token_gets_the_penalty():
  scored = _rewards(missing_stop_penalty=-4.0)
  np.testing.assert_array_equal(scored.rewards, [[2, -1], [-4, np.nan]])
  np.testing.assert_array_equal(scored.scores, SCORES)
  np.testing.assert_array_equal(scored.truncated, [[False, False], [True, False]])
  np.testing.assert_array_equal(scored.lengths, ROLLOUTS.lengths)
  # The released rule requires padding after the stop token.
  np.testing.assert_array_equal(
      _rewards(eos_check='pad').rewards, [[2, -1], [-1, np.nan]])
  at_the_end = _rewards(np.ones((2, 2), np.float32), eos_check='pad', missing_stop_penalty=-9.0)
  np.testing.assert_array_equal(at_the_end.rewards, [[1, -9], [-9, 1]])
  np.testing.assert_array_equal(
      _rewards(eos_check='off', missing_stop_penalty=0.0).rewards, SCORES)


def test_scores_are_scaled_before_the_penalty():
  scored = _rewards(scale=1_000.0, missing_stop_penalty=-4.0)
  np.testing.assert_allclose(scored.rewards, [[2e-3, -1e-3], [-4, np.nan]], rtol=1e-6)


def test_failed_scores_are_recognised_before_scaling():
  failed = np.array([[-99_999.0, 1.0], [1.0, 1.0]], np.float32)
  scored = _rewards(failed, scale=1_000.0)
  assert np.isnan(scored.rewards[0, 0]) and np.isfinite(scored.rewards.ravel()[1:]).all()


@pytest.fixture(scope='module')
def folder(data_dir, tmp_path_factory):
  return tiny_rebel.write(tmp_path_factory.mktemp('loading'), data_dir)


def test_ids_and_text_of_the_same_tokens_have_the_same_scores(folder):
  """A reward model with the policy's template and tokenizer reads the same ids either way."""
  config = tiny_rebel.online(folder)
  own = dataclasses.replace(config, reward=reward_config.RewardConfig(
      template='auto', max_tokens=tiny_rebel.PROMPT + tiny_rebel.RESPONSE))
  with tiny_rebel.build(config) as setup:
    examples = [e for e in setup.task.train if len(e['chosen_ids']) <= tiny_rebel.RESPONSE][:4]
    examples *= 2
    known = response_batches.rollouts(
        [e['prompt_ids'] for e in examples], [[e['chosen_ids']] for e in examples],
        setup.task.tokenizer, max_prompt_tokens=tiny_rebel.PROMPT,
        max_response_tokens=tiny_rebel.RESPONSE)
    by_ids = reward_models.load(setup)(known, examples)
    by_text = reward_models.load(tiny_rebel.with_config(setup, own))(known, examples)
  assert np.std(by_ids.scores) > 0.1
  np.testing.assert_allclose(by_ids.scores, by_text.scores, atol=1e-4)


def test_texts_without_a_template(tmp_path):
  tiny.write_tokenizer(tmp_path / 'tokens', start=True)
  tokenizer = tokenizers.load_tokenizer(tmp_path / 'tokens')
  encode = lambda examples, template=None: reward_models.encode_texts(
      tokenizer, template, ['Q: '] * 2, ['yes', 'no'], np.array([False, True]), examples)
  start, stop = list(tokenizer.start_ids), tokenizer.stop_ids[0]
  assert start and encode([{}, {}]) == [
      [*start, *tokenizer.encode('Q: yes'), stop], [*start, *tokenizer.encode('Q: no')]]
  # Ids of the data are used without their padding.
  ids = {'reward_prompt_ids': [999, 7, 8]}
  assert encode([ids, ids]) == [
      [7, 8, *tokenizer.encode('yes'), stop], [7, 8, *tokenizer.encode('no')]]
  with pytest.raises(ValueError, match='needs conversations, and the data holds ids or plain'):
    encode([{}, {}], chat_templates.QWEN2)


def test_a_template_needs_the_tokenizer_of_the_reward_model(folder, tmp_path):
  model = checkpoint_sources.read(str(folder / 'policy'), field='x').model
  tiny_rebel.write_reward(tmp_path / 'bare', model)
  config = tiny_rebel.online(
      folder, reward_init_from=str(tmp_path / 'bare'),
      reward=reward_config.RewardConfig(template='auto', max_tokens=64))
  with tiny_rebel.build(config) as setup:
    with pytest.raises(ValueError, match='bare .* has no tokenizer'):
      reward_models.load(setup)
    # Without a template it reads the policy's ids.
    config.reward = reward_config.RewardConfig()
    assert reward_models.load(setup).fingerprint


def _source(model):
  return checkpoint_sources.CheckpointSource(
      'there', model, '', '', {}, None, 'config.reward_init_from')


def test_compute_fields_and_length_of_the_network():
  theirs = configs.TransformerConfig(vocab_size=9, num_layers=3, max_length=16)
  ours = configs.TransformerConfig(num_layers=4, scan_unroll=2, compute_dtype='bfloat16')
  model = reward_models.shape(_source(theirs), ours, 40)
  assert (model.compute_dtype, model.num_layers, model.max_length) == ('bfloat16', 3, 40)
  assert model.scan_unroll == 1  # 2 does not divide 3.
  model.validate()
  learned = dataclasses.replace(theirs, positions='learned')
  assert reward_models.shape(_source(learned), ours, 16).max_length == 16
  with pytest.raises(ValueError, match='reads at most 16 tokens, and 40 are needed'):
    reward_models.shape(_source(learned), ours, 40)


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path):
  with pytest.raises(ValueError, match='the tokenizer has 5 ids and the embedding in there only 4'):
    reward_models._check_tokens(
        _source(None), configs.TransformerConfig(vocab_size=4), TOKENIZER)
