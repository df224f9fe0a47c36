"""A*-PO against its own ablations on addition, at equal sampled tokens.

The arms (variants) estimate V* differently. `softmax` is the published method (N = 8,
beta1 = 0.5); `mean` and `max` are its limits; `zero` uses no value at all; `n1`, `n4` and
`n32` change N. Every arm stops once both stages together have sampled `token_budget` tokens,
so a larger N leaves fewer for stage 2. All arms of a seed start from the same reference.
Hyperparameters were fixed before the study was run; the evaluation problems are held out.

  python -m experiments.study --config=experiments/configs/a_star_po_ablation.py

runs all arms and seeds (resumable per arm and seed) and copies their results.json to
results/a_star_po/. Cost: 32 minutes in total on two busy CPU cores.
"""

from experiments.a_star_po import config as a_star_po_config
from experiments.configs import a_star_po_arithmetic

ARMS = ('softmax', 'mean', 'max', 'zero', 'n1', 'n4', 'n32')
_SAMPLES = {'n1': 1, 'n4': 4, 'n32': 32}


def get_config(variant: str = 'softmax') -> a_star_po_config.AStarPo:
  if variant not in ARMS:
    raise ValueError(f'variant must be one of {", ".join(ARMS)}, got {variant!r}')
  config = a_star_po_arithmetic.get_config()
  config.algorithm.samples_per_prompt = _SAMPLES.get(variant, 8)
  config.algorithm.value_mode = variant if variant in ('mean', 'max', 'zero') else 'softmax'

  # N = 32 leaves stage 2 80,000 tokens (125 batches); N = 1 leaves it all but 5,000.
  config.task.num_train = 1_000
  config.token_budget = 240_000
  config.steps = 1_000  # Upper bound; the budget ends each arm.
  # A fifth of the main job's rate, which would soon take every arm to its ceiling.
  config.optimizer.learning_rate = 2e-5
  config.eval_every = 20

  # Values of the committed results; the main job's defaults have changed since.
  config.sft.steps = 1_600
  config.stage1_batch_size = config.evaluation.batch_size = 250
  config.evaluation.diagnosed_prompts = 0
  config.save_every = 100
  return config
