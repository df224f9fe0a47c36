"""A*-PO in the smallest: every phase of the main job, in a few seconds.

Used by the system tests, which start it again and again; what it learns is nothing.
"""

from experiments import settings
from jaxrl_llm.algorithms import a_star_po
from jaxrl_llm.models import configs
from jaxrl_llm.training import optim


def get_config() -> settings.AStarPo:
  return settings.AStarPo(
      task=settings.ArithmeticTask(
          digits=2, num_demonstrations=256, num_train=200, num_evaluation=20
      ),
      model=configs.TransformerConfig(
          num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=32,
          max_length=16,
      ),
      sft=settings.SftSettings(
          steps=20,
          batch_size=16,
          save_every=5,
          log_every=2,
          optimizer=optim.OptimizerConfig(learning_rate=1e-2),
      ),
      algorithm=a_star_po.Config(samples_per_prompt=4),
      optimizer=optim.OptimizerConfig(name='adam', learning_rate=1e-3),
      steps=10,
      batch_size=16,
      stage1_batch_size=16,
      save_every=3,
      evaluation=settings.EvaluationSettings(
          num_samples=2, batch_size=16, every=4, num_shown=2, diagnosed_prompts=16,
          diagnosed_samples=4,
      ),
  )
