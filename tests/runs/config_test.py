"""Fields and overrides that several programs read."""

import types

import pytest

from jaxrl_llm.evaluation import evaluator
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import policy_evaluation, reward_config
from jaxrl_llm.runs import setup as setup_lib


def _run(policy_init_from, *overrides):
  config = config_lib.PolicyConfig(policy_init_from=policy_init_from)
  return types.SimpleNamespace(config=config, overrides=overrides)


def test_overrides_of_fine_tuning_need_a_run_that_fine_tunes():
  config_lib.check_overrides(_run('', 'sft.steps'))
  config_lib.check_overrides(_run('policy', 'steps', 'evaluation.head_chunk'))
  for name in ('sft.steps', 'sft.algorithm.head_chunk'):
    with pytest.raises(ValueError, match=f'config.{name} has no effect with .*policy_init_from'):
      config_lib.check_overrides(_run('policy', 'steps', name))


def test_the_chunk_of_the_evaluator(monkeypatch):
  monkeypatch.setattr(evaluator, 'Evaluator', lambda *args, **options: options['chunk_size'])
  setup = types.SimpleNamespace(
      config=types.SimpleNamespace(evaluation=config_lib.EvaluationConfig(head_chunk=7)),
      encode=lambda examples: types.SimpleNamespace(num_filtered=0),
      prompt_batches=lambda encoded, size: [], sampler=lambda **options: None,
      task=types.SimpleNamespace(evaluation=[]), policy=None, key=setup_lib.rng.base_key(0))
  assert setup_lib.Setup.evaluator.func(setup) == 7


def test_the_chunk_of_the_divergence(monkeypatch):
  monkeypatch.setattr(evaluator, 'response_kl', lambda *args, **options: options['chunk_size'])
  config = types.SimpleNamespace(
      evaluation=reward_config.RebelEvaluation(head_chunk=7),
      algorithm=types.SimpleNamespace(temperature=1.0, head_chunk=3))
  setup = types.SimpleNamespace(config=config, policy=None)
  assert policy_evaluation.divergence(setup)(0.0, 0.0, 0.0) == 7
