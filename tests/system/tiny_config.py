"""A*-PO at the smallest size: every phase of the main job in a few seconds.

The system tests start it many times. It learns little, but its rewards vary. All phases have the
same number of samples and full batches of one size, so that few programs are compiled.
"""

from experiments.a_star_po import config as a_star_po_config
from jaxrl_llm.algorithms import a_star_po
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.tasks import arithmetic
from jaxrl_llm.training import optim


def get_config() -> a_star_po_config.AStarPo:
  task = arithmetic.Config(
      digits=1, num_demonstrations=32, num_train=32, num_evaluation=8,
      carry_free_fraction=0.5, carry_drop_rate=0.3, padding='none',
  )
  model = configs.TransformerConfig(
      num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=32,
      max_length=8,
  )

  return a_star_po_config.AStarPo(
      task=task,
      model=model,
      sft=config_lib.SftConfig(
          steps=40, batch_size=8, save_every=10, log_every=3,
          optimizer=optim.OptimizerConfig(learning_rate=2e-2),
      ),
      algorithm=a_star_po.Config(samples_per_prompt=4),
      optimizer=optim.OptimizerConfig(name='adam', learning_rate=1e-2),
      steps=10,
      batch_size=8,
      stage1_batch_size=8,
      save_every=3,
      eval_every=4,
      evaluation=a_star_po_config.Evaluation(
          num_samples=4, batch_size=8, num_shown=2, diagnosed_prompts=8,
          diagnosed_samples=4,
      ),
  )
