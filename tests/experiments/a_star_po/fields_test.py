"""Fields of A*-PO's config that the program reads instead of the train step.

The filter is in stage1_test.py; tests/system/run_test.py covers `num_minibatches`.
"""

import types

import pytest

from experiments.a_star_po import stage1
from jaxrl_llm.algorithms import a_star_po
from jaxrl_llm.training import rng


def _setup(workdir=None, **changes):
  config = types.SimpleNamespace(algorithm=a_star_po.Config(**changes), stage1_batch_size=4)
  task = types.SimpleNamespace(reward_fn='the reward', lenient_reward_fn='the lenient reward')
  return types.SimpleNamespace(
      config=config, task=task, run=types.SimpleNamespace(workdir=workdir), key=rng.base_key(0),
      prompt_batches=lambda encoded, size: [])


@pytest.mark.parametrize('stage1_reward, expected', [
    ('identical', 'the reward'), ('lenient', 'the lenient reward')])
def test_stage1_reward_selects_the_reward_of_stage_1(stage1_reward, expected):
  assert stage1._stage1_reward(_setup(stage1_reward=stage1_reward)) == expected


@pytest.mark.parametrize('samples, temperature', [(3, 1.0), (5, 0.7)])
def test_stage_1_samples_by_the_number_and_temperature_of_the_config(
    samples, temperature, tmp_path):
  setup, drawn = _setup(tmp_path, samples_per_prompt=samples, temperature=temperature), {}
  setup.sampler = lambda **options: drawn.update(options)
  assert stage1._sample_missing(setup, None, None, {'a': 1}) == []
  assert drawn == {'num_samples': samples, 'temperature': temperature}
