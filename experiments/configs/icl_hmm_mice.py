"""Choices of mice in context: five animals of the International Brain Laboratory, four layouts.

This is not a table of the paper (arXiv 2506.07298), whose predictors are language models and whose
animals are shown in a figure. It tests the same claim for a predictor trained only on simulated
mice. See `experiments.icl_hmm.mice` for the methods compared.

The animals are read from $JAXRL_LLM_DATA/ibl_mice (by default ../shared/data/ibl_mice); any
directory of such files works. Without one, all animals are simulated.

Variant `smollm2`: the SmolLM2-135M-Instruct of `make models` predicts as well, in letters, from as
many trials.

Cost: about ten minutes on two CPU cores, eight of them for meta-training.
Command: python -m experiments.icl_hmm --config=experiments/configs/icl_hmm_mice.py[:smollm2] \\
      [--config.data_dir=DIR]
"""

import os
import pathlib

from experiments.icl_hmm import mice_config


def get_config(variant: str = '') -> mice_config.IclHmmMice:
  if variant not in ('', 'smollm2'):
    raise ValueError(f'variant must be smollm2 or none, got {variant!r}')
  directory = pathlib.Path(os.environ.get('JAXRL_LLM_DATA', '../shared/data')) / 'ibl_mice'
  return mice_config.IclHmmMice(
      checkpoint='models/smollm2-135m-instruct' if variant else '',
      data_dir=str(directory) if directory.is_dir() else '',
      note='In context, at most the last 191 trials are read; fitted models use all training '
           'sessions. No predictor in context was trained on an animal.',
  )
