"""Supervised fine-tuning on addition with forgotten carries: the reference of the main job.

Cost: about a minute on two CPU cores. Command: python -m experiments.sft [--config.seed=N]
"""

from experiments import settings
from experiments.configs import a_star_po_arithmetic


def get_config() -> settings.Experiment:
  full = a_star_po_arithmetic.get_config()
  return settings.Experiment(
      task=full.task, model=full.model, sft=full.sft, evaluation=full.evaluation
  )
