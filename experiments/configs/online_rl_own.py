"""Online RL on a file of one's own prompts and answers, from an instruction-tuned checkpoint.

  python -m experiments.online_rl --config=experiments/configs/online_rl_own.py:grpo \\
      --config.policy_init_from=DIR --config.task=FILE.jsonl --config.task.reward=math

The file and the chat template are as in a_star_po_own.py, and so is what is trained: adapters of
rank 8. A batch has 32 completions with every algorithm. The sizes are for a model of 0.1B to 0.5B
parameters on a CPU; they are our own choice and not tuned.

Variants: grpo (the default), rebel, rloo, reinforce, ppo, dpo (online).
"""

from experiments.configs import online_rl_arithmetic
from experiments.online_rl import config as online_config
from jaxrl_llm.models import lora
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.tasks import jsonl, own_data
from jaxrl_llm.training import optim

VARIANTS = online_rl_arithmetic.VARIANTS
_COMPLETIONS = 32  # Of a batch.
_MICRO_BATCHES = 4


def get_config(variant: str = 'grpo') -> online_config.OnlineRl:
  algorithm = online_rl_arithmetic.algorithm(variant, num_micro_batches=_MICRO_BATCHES)
  return online_config.OnlineRl(
      task=jsonl.Config(
          evaluation_fraction=own_data.FRACTION, max_prompt_tokens=128, max_response_tokens=96),
      lora=lora.LoraConfig(rank=8),
      sft=config_lib.SftConfig(steps=0),  # Starts from the instruction-tuned model.
      algorithm=algorithm,
      optimizer=optim.OptimizerConfig(name='adam', learning_rate=1e-4, schedule='constant'),
      steps=20,
      batch_size=_COMPLETIONS // algorithm.samples_per_prompt,
      evaluation=config_lib.EvaluationConfig(num_samples=2, batch_size=16),
      eval_every=10,
      save_every=5,
  )
