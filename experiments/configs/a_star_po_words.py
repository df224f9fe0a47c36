"""A*-PO on a pretrained model: word problems with SmolLM2-135M-Instruct, and an ablation of N.

  make models
  python -m experiments.study --config=experiments/configs/a_star_po_words.py --seeds=0,1

The arms differ in N, the samples of stage 1 per prompt, at the same number of sampled tokens; `n8`
is the published default. All arms of a seed start from the same reference: the released model,
fine-tuned on 64 demonstrations of the form of an answer (adapters of rank 8, merged). The other
algorithms, at as many tokens, are in online_rl_words.py. No hyperparameter was tuned; that the
reference solves about half of the problems was measured on seed 100.
"""

from experiments.a_star_po import config as a_star_po_config
from jaxrl_llm.algorithms import a_star_po, sft
from jaxrl_llm.models import lora
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.tasks import word_problems
from jaxrl_llm.training import optim

ARMS = ('n8', 'n2', 'n4')
MODEL = 'models/smollm2-135m-instruct'
TEMPLATE = 'chatml'  # As the model's own, without its system message.
TOKEN_BUDGET = 12_000  # Sampled tokens of an arm, those of stage 1 included.
COMPLETIONS = 32  # Of a batch.
LEARNING_RATE = 2e-4


def shared() -> dict:
  """Returns what all arms of this study and of online_rl_words.py share."""
  return dict(
      policy_init_from=MODEL,
      chat_template=TEMPLATE,
      task=word_problems.Config(num_demonstrations=64, num_train=48, max_prompt_tokens=64),
      lora=lora.LoraConfig(rank=8),
      sft=config_lib.SftConfig(
          steps=16, batch_size=8, log_every=4, algorithm=sft.Config(num_micro_batches=2),
          optimizer=optim.OptimizerConfig(
              name='adam', learning_rate=1e-3, schedule='linear', warmup_steps=2)),
      optimizer=optim.OptimizerConfig(
          name='adam', learning_rate=LEARNING_RATE, schedule='constant'),
      token_budget=TOKEN_BUDGET,
      steps=1_000,  # Upper bound; the budget ends each arm.
      eval_every=30,
      save_every=5,
  )


def get_config(variant: str = 'n8') -> a_star_po_config.AStarPo:
  if variant not in ARMS:
    raise ValueError(f'variant must be one of {", ".join(ARMS)}, got {variant!r}')
  return a_star_po_config.AStarPo(
      **shared(),
      algorithm=a_star_po.Config(
          samples_per_prompt=int(variant[1:]), beta1=0.5, beta2=1e-3, num_micro_batches=4),
      batch_size=COMPLETIONS,
      stage1_batch_size=16,
      evaluation=a_star_po_config.Evaluation(
          num_samples=2, batch_size=64, diagnosed_prompts=0),
  )
