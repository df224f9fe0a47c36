"""Value-guided search for responses of a reference that makes mistakes, from scratch.

This reproduces no table of the paper: it measures the method where everything has a closed form.
A mistake of the reference shifts all later steps; it is right with probability 0.85^8 = 0.272, and
the majority of many samples is wrong. Search over blocks of two steps finds right responses.

Departures from the paper: the value model is drawn at random, and the roll-ins are those of one
reference at three temperatures, at which it makes about 5, 15 and 30 % mistakes a step, in place of
those of models of several sizes.

Cost: measured in results/vgs/noisy_sum.
Command: python -m experiments.vgs [--config.seed=N]
"""

from experiments.configs import q_sharp_noisy_sum
from experiments.vgs import config as vgs_config
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import value_models


def get_config() -> vgs_config.Vgs:
  base = q_sharp_noisy_sum.get_config()
  return vgs_config.Vgs(
      task=base.task, model=base.model, sft=base.sft,
      value=value_models.ValueConfig(
          model=base.model, epochs=3, batch_size=128, save_every=500,
          optimizer=base.value.optimizer),
      collection=vgs_config.Collection(
          temperatures=(0.6, 1.0, 2.0), responses=5, cuts=3, batch_size=50),
      temperature=1.0, top_p=1.0, block_tokens=4, trees=4, scorers='value,exact,random',
      evaluation=config_lib.EvaluationConfig(batch_size=100),
  )
