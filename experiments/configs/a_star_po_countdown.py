"""A*-PO on three-number Countdown: generated training problems, published test file.

  python -m experiments.a_star_po --config=experiments/configs/a_star_po_countdown.py \\
      --config.data_dir=DIR_OF_countdown_cd3_test.jsonl

The reference is fine-tuned on generated solutions, 30 % of which have a wrong value.
This reproduces no table of the paper. Cost: under ten minutes on two CPU cores.
"""

from experiments.a_star_po import config as a_star_po_config
from jaxrl_llm.algorithms import a_star_po
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.tasks import countdown
from jaxrl_llm.training import optim


def get_config() -> a_star_po_config.AStarPo:
  model = configs.TransformerConfig(
      num_layers=3, width=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_width=384,
      max_length=48, positions='learned',
  )
  sft = config_lib.SftConfig(
      steps=1_500, batch_size=128, save_every=250,
      optimizer=optim.OptimizerConfig(
          learning_rate=1e-3, schedule='cosine', warmup_steps=50, weight_decay=0.01
      ),
  )

  return a_star_po_config.AStarPo(
      task=countdown.Config(),
      model=model,
      sft=sft,
      algorithm=a_star_po.Config(samples_per_prompt=8, beta1=0.5, beta2=1e-3),
      optimizer=optim.OptimizerConfig(name='adam', learning_rate=1e-4),
      steps=200,
      batch_size=128,
      eval_every=20,
      evaluation=a_star_po_config.Evaluation(batch_size=256),
      scale_note='A decoder of 0.6M parameters from scratch, on characters',
  )
