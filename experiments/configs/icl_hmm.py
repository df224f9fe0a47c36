"""Hidden Markov models learnt in context, from scratch: 4 states, 4 symbols, up to 64 of them seen.

The paper (arXiv 2506.07298) evaluates pre-trained language models; here a small network is trained
on fresh HMMs instead, and judged by the same quantities. Settings: none, and `full` (8 states, 8
symbols, 256 of them seen).

Cost: none about five minutes on two CPU cores.
Command: python -m experiments.icl_hmm [--config=experiments/configs/icl_hmm.py:full]
"""

from experiments import settings_hmm
from jaxrl_llm.algorithms import icl_hmm
from jaxrl_llm.models import configs
from jaxrl_llm.training import optim

SETTINGS = ('full',)


def get_config(setting: str = '') -> settings_hmm.IclHmm:
  if setting not in ('', *SETTINGS):
    raise ValueError(f'setting must be {" or ".join(SETTINGS)} or none, got {setting!r}')
  full = setting == 'full'
  size = 8 if full else 4
  length = 256 if full else 64
  return settings_hmm.IclHmm(
      model=configs.TransformerConfig(
          num_layers=4 if full else 2, width=128 if full else 64, num_heads=4, num_kv_heads=4,
          head_dim=32 if full else 16, mlp_width=256 if full else 128, max_length=length,
          positions='learned'),
      optimizer=optim.OptimizerConfig(
          learning_rate=1e-3 if full else 3e-3, schedule='cosine', warmup_steps=100,
          weight_decay=0.01, b2=0.98),
      steps=8_000 if full else 2_400, num_states=size, num_symbols=size, length=length,
      batch_size=32, algorithm=icl_hmm.Config(labels='filter'))
