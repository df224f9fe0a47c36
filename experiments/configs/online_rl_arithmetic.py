"""Online RL on addition, from scratch, by the algorithm that the variant names.

The task, the model and the reference are those of A*-PO's main job; every algorithm takes as many
batches of 128 completions as A*-PO's stage 2. The learning rates are the arena's, which were chosen
there for a smaller network and smaller numbers; nothing was tuned here.

Variants: grpo (the default), rebel, rloo, reinforce, ppo, dpo (online).
Command: python -m experiments.online_rl --config=experiments/configs/online_rl_arithmetic.py:rloo
"""

import dataclasses
from typing import Any

from experiments.configs import a_star_po_arithmetic
from experiments.configs import arena as arena_configs
from experiments.online_rl import config as online_config
from jaxrl_llm.algorithms import dpo, grpo, ppo, rebel, reinforce, rloo
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.training import optim

VARIANTS = ('grpo', 'rebel', 'rloo', 'reinforce', 'ppo', 'dpo')
_COMPLETIONS = 128  # Of a batch.


def algorithm(variant: str, **common: Any) -> Any:
  """Returns the config of an algorithm, with the group sizes and KL coefficient of the arena.

  Args:
    variant: one of `VARIANTS`.
    **common: fields that all algorithms have, such as num_micro_batches.
  """
  kl = dict(kl_coefficient=0.05, temperature=1.0, **common)
  made = {
      'grpo': lambda: grpo.Config(samples_per_prompt=8, **kl),
      'rebel': lambda: rebel.Config(**kl),
      'rloo': lambda: rloo.Config(samples_per_prompt=4, **kl),
      'reinforce': lambda: reinforce.Config(**kl),
      'ppo': lambda: ppo.Config(**kl),
      'dpo': lambda: dpo.Config(temperature=1.0, **common),
  }
  if variant not in made:
    raise ValueError(f'variant must be one of {", ".join(VARIANTS)}, got {variant!r}')
  return made[variant]()


def get_config(variant: str = 'grpo') -> online_config.OnlineRl:
  chosen = algorithm(variant)
  rates = arena_configs.LEARNING_RATES['arithmetic']
  arm = {'rloo': 'rloo_4', 'dpo': 'online_dpo'}.get(variant, variant)
  base = a_star_po_arithmetic.get_config()

  return online_config.OnlineRl(
      task=base.task, model=base.model, sft=base.sft, algorithm=chosen,
      evaluation=config_lib.EvaluationConfig(
          **{field.name: getattr(base.evaluation, field.name)
             for field in dataclasses.fields(config_lib.EvaluationConfig)}),
      optimizer=optim.OptimizerConfig(
          name='adam', learning_rate=rates[arm], schedule='constant'),
      steps=base.steps, batch_size=_COMPLETIONS // chosen.samples_per_prompt,
      eval_every=base.eval_every)
