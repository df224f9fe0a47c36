"""Supervised fine-tuning on addition with forgotten carries: the main job's reference.

Cost: about a minute on two CPU cores. Command: python -m experiments.sft [--config.seed=N]
"""

from experiments.configs import a_star_po_arithmetic
from jaxrl_llm.runs import config as config_lib


def get_config() -> config_lib.PolicyConfig:
  full = a_star_po_arithmetic.get_config()
  return config_lib.PolicyConfig(task=full.task, model=full.model, sft=full.sft)
