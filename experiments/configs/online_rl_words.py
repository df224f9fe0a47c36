"""REBEL, GRPO, RLOO, REINFORCE, PPO and online DPO on a pretrained model: word problems.

  make models
  python -m experiments.study --config=experiments/configs/online_rl_words.py \\
      --experiment=online_rl --seeds=0,1

Model, reference, batches and the number of sampled tokens are those of a_star_po_words.py, and so
is the learning rate of every arm. Groups and KL coefficients are the arena's.
"""

from experiments.configs import a_star_po_words, online_rl_arithmetic
from experiments.online_rl import config as online_config
from jaxrl_llm.runs import config as config_lib

ARMS = online_rl_arithmetic.VARIANTS


def get_config(variant: str = 'grpo') -> online_config.OnlineRl:
  algorithm = online_rl_arithmetic.algorithm(variant, num_micro_batches=4)
  return online_config.OnlineRl(
      **a_star_po_words.shared(), algorithm=algorithm,
      batch_size=a_star_po_words.COMPLETIONS // algorithm.samples_per_prompt,
      evaluation=config_lib.EvaluationConfig(num_samples=2, batch_size=64))
