"""A*-PO on addition, from scratch: the main job (`make run`).

This reproduces no table of the paper; it runs the paper's method at small scale. A 0.33M-parameter
decoder is fine-tuned on demonstrations, 55 % of which forget all carries, so the reference is wrong
on more than half of the problems, sampled or greedy. A*-PO then finds the right answers from the
verifier alone.

Cost: about two minutes on two CPU cores, compilation included (results/a_star_po/arithmetic).
Command: python -m experiments.a_star_po [--config.seed=N]
"""

from experiments.a_star_po import config as a_star_po_config
from jaxrl_llm.algorithms import a_star_po
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.tasks import arithmetic
from jaxrl_llm.training import optim


def get_config() -> a_star_po_config.AStarPo:
  model = configs.TransformerConfig(
      num_layers=2, width=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_width=256,
      max_length=16, positions='learned',
  )
  sft = config_lib.SftConfig(
      steps=2_400,
      batch_size=128,
      save_every=400,
      optimizer=optim.OptimizerConfig(
          learning_rate=1e-3, schedule='cosine', warmup_steps=50, weight_decay=0.01
      ),
  )

  return a_star_po_config.AStarPo(
      task=arithmetic.Config(digits=3),
      model=model,
      sft=sft,
      # N, beta1 and beta2 are the released defaults (A*-PO repository, scripts/apo_gsm8k.sh).
      algorithm=a_star_po.Config(samples_per_prompt=8, beta1=0.5, beta2=1e-3),
      optimizer=optim.OptimizerConfig(name='adam', learning_rate=1e-4, schedule='constant'),
      steps=120,
      batch_size=128,
      eval_every=10,
  )
