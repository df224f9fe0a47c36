"""Value-guided search on problems of mathematics in one's own file, for local checkpoints.

  python -m experiments.vgs --config=experiments/configs/vgs_math.py --config.task=FILE.jsonl \\
      --config.policy_init_from=DIR --config.value.init_from=DIR

FILE.jsonl has 'problem', and 'answer' or a boxed 'solution'. The settings are those of Wang et al.
(2025), arXiv 2505.17373, as far as they could be read in the released code (reference and value
model: DeepSeek-R1-Distill-Qwen-1.5B); further roll-in policies are --config.collection.init_from=
DIR,DIR. The paper's numbers are known here only at second hand, and are not quoted.

Not run here with checkpoints of these sizes. Departures: the value head is linear (released: an MLP
with one hidden layer, and dropout); a part of the problems is held out for the evaluation.
"""

from experiments.vgs import config as vgs_config
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import value_models
from jaxrl_llm.tasks import jsonl
from jaxrl_llm.training import optim


def get_config() -> vgs_config.Vgs:
  compute = configs.TransformerConfig(compute_dtype='bfloat16', scan_unroll=1, remat='full')
  return vgs_config.Vgs(
      task=jsonl.math_config(max_response_tokens=16_384, evaluation_fraction=0.1),
      model=compute,
      sft=config_lib.SftConfig(steps=0),
      value=value_models.ValueConfig(
          model=compute, epochs=5, batch_size=1_024, save_every=486,
          optimizer=optim.OptimizerConfig(
              learning_rate=1e-4, schedule='cosine', final_fraction=0.1, warmup_steps=600,
              b2=0.95, eps=1e-6, weight_decay=0.1, max_grad_norm=5.0)),
      collection=vgs_config.Collection(temperatures=(0.6,), responses=14, cuts=4, batch_size=2),
      temperature=0.6, top_p=0.95, budgets=(8, 32, 128), width=2, block_tokens=4_096, trees=16,
      evaluation=config_lib.EvaluationConfig(batch_size=1),
  )
