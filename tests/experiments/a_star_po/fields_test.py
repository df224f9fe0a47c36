"""Fields of A*-PO's config that the program reads instead of the train step.

The filter is in stage1_test.py; tests/system/run_test.py covers `num_minibatches`.
"""

import types

import pytest

from experiments.a_star_po import stage1
from jaxrl_llm.algorithms import a_star_po


def _run(tmp_path=None, **changes):
  config = types.SimpleNamespace(algorithm=a_star_po.Config(**changes), stage1_batch_size=4)
  return types.SimpleNamespace(config=config, workdir=tmp_path)


@pytest.mark.parametrize('stage1_reward, expected', [
    ('identical', 'the reward'), ('lenient', 'the lenient reward')])
def test_stage1_reward_selects_the_reward_of_stage_1(stage1_reward, expected):
  task = types.SimpleNamespace(reward_fn='the reward', lenient_reward_fn='the lenient reward')
  setup = types.SimpleNamespace(task=task)
  assert stage1._stage1_reward(_run(stage1_reward=stage1_reward), setup) == expected


def test_stage_1_samples_with_the_number_and_temperature_of_the_config(tmp_path):
  drawn = []
  setup = types.SimpleNamespace(
      task=types.SimpleNamespace(reward_fn=None), key=None,
      prompt_batches=lambda encoded, size: [], sampler=lambda **options: drawn.append(options))
  for samples, temperature in ((3, 1.0), (5, 0.7)):
    run = _run(tmp_path, samples_per_prompt=samples, temperature=temperature)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(stage1.rng, 'stream_key', lambda *_: None)
      assert stage1._sample_missing(run, setup, None, None, {'a': 1}) == []
    assert drawn[-1] == {'num_samples': samples, 'temperature': temperature}
