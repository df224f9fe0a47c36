"""Supervised fine-tuning of a checkpoint on a file of one's own.

  python -m experiments.sft --config=experiments/configs/sft_own.py \\
      --config.policy_init_from=DIR --config.task=FILE.jsonl

The file's first row decides what it is: prompts and answers (jaxrl_llm/tasks/jsonl.py),
conversations (chat.py there) or preferences, of which the chosen responses are learned
(preferences.py there). All are in the checkpoint's chat template. Only adapters of rank 8 are
trained. The sizes are for a model of 0.1B to 0.5B parameters on a CPU; they are our own choice and
not tuned.
"""

from jaxrl_llm.models import lora
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.tasks import jsonl, own_data
from jaxrl_llm.training import optim


def get_config() -> config_lib.PolicyConfig:
  task = jsonl.Config(
      evaluation_fraction=own_data.FRACTION, max_prompt_tokens=128, max_response_tokens=128)
  sft = config_lib.SftConfig(
      steps=60, batch_size=8, save_every=20,
      optimizer=optim.OptimizerConfig(
          learning_rate=2e-4, schedule='cosine', warmup_steps=5, weight_decay=0.0),
  )

  return config_lib.PolicyConfig(
      task=task,
      lora=lora.LoraConfig(rank=8),
      sft=sft,
      evaluation=config_lib.EvaluationConfig(num_samples=2, batch_size=16),
  )
