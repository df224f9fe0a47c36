"""Hidden Markov models learnt in context, from scratch: 4 states, 4 symbols, 64-symbol sequences.

The paper (arXiv 2506.07298) evaluates pre-trained language models; here a small network is trained
on fresh HMMs instead, and evaluated by the same quantities. Variants: the default, and `full` (8
states, 8 symbols, sequences of 256). The default's number of steps was chosen on held-out seed
100: 2,400 steps of 32 HMMs end 0.025 below the filter after 64 symbols, 5,000 of 64 end 0.021
below. Nothing was tuned for `full`.

HMMs of the published file of results are predicted too, if it is in $JAXRL_LLM_DATA/icl_hmm (by
default ../shared/data/icl_hmm) or given by --config.results_file.

Cost: about six minutes of processor time for the default, about 47 for `full`.
Command: python -m experiments.icl_hmm [--config=experiments/configs/icl_hmm.py:full]
"""

import os
import pathlib

from experiments.icl_hmm import config as icl_hmm_config
from jaxrl_llm.algorithms import icl_hmm
from jaxrl_llm.models import configs
from jaxrl_llm.training import optim

VARIANTS = ('full',)


def get_config(variant: str = '') -> icl_hmm_config.IclHmm:
  if variant not in ('', *VARIANTS):
    raise ValueError(f'variant must be {" or ".join(VARIANTS)} or none, got {variant!r}')

  full = variant == 'full'
  size = 8 if full else 4
  length = 256 if full else 64
  data = pathlib.Path(os.environ.get('JAXRL_LLM_DATA', '../shared/data'))
  file = data / 'icl_hmm' / 'entropy_results.csv'

  return icl_hmm_config.IclHmm(
      model=configs.TransformerConfig(
          num_layers=3 if full else 2, width=96 if full else 64, num_heads=4, num_kv_heads=4,
          head_dim=24 if full else 16, mlp_width=192 if full else 128, max_length=length,
          positions='learned'),
      optimizer=optim.OptimizerConfig(
          learning_rate=2e-3 if full else 3e-3, schedule='cosine', warmup_steps=100,
          weight_decay=0.01, b2=0.98),
      steps=4_000, num_states=size, num_symbols=size, length=length,
      batch_size=32 if full else 64, results_file=str(file) if file.is_file() else '',
      algorithm=icl_hmm.Config(labels='filter'))
