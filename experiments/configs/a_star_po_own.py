"""A*-PO on a file of one's own prompts and answers, from an instruction-tuned checkpoint.

  python -m experiments.a_star_po --config=experiments/configs/a_star_po_own.py \\
      --config.policy_init_from=DIR --config.task=FILE.jsonl --config.task.reward=math

Each line of the file is an object with a prompt and an answer; docs/adding_a_task.md has an
example, and jaxrl_llm/tasks/jsonl.py every field. Prompts are in the checkpoint's chat template; a
tenth of the problems is held out. Only adapters of rank 8 are trained. The sizes are for a model of
0.1B to 0.5B parameters on a CPU; N, beta1 and beta2 are the released defaults of A*-PO, all else is
our own choice and not tuned.
"""

from experiments.a_star_po import config as a_star_po_config
from jaxrl_llm.algorithms import a_star_po
from jaxrl_llm.models import lora
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.tasks import jsonl, own_data
from jaxrl_llm.training import optim


def get_config() -> a_star_po_config.AStarPo:
  task = jsonl.Config(
      evaluation_fraction=own_data.FRACTION, max_prompt_tokens=128, max_response_tokens=96)

  return a_star_po_config.AStarPo(
      task=task,
      lora=lora.LoraConfig(rank=8),
      sft=config_lib.SftConfig(steps=0),  # Starts from the instruction-tuned model.
      algorithm=a_star_po.Config(
          samples_per_prompt=8, beta1=0.5, beta2=1e-3, num_micro_batches=4),
      optimizer=optim.OptimizerConfig(name='adam', learning_rate=1e-4, schedule='constant'),
      steps=20,
      batch_size=16,
      stage1_batch_size=16,
      evaluation=a_star_po_config.Evaluation(
          num_samples=2, batch_size=16, diagnosed_prompts=0),
      eval_every=10,
      save_every=5,
  )
