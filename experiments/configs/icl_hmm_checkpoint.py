"""A language model as the predictor of published hidden Markov models: no training, no instruction.

The paper's own question (arXiv 2506.07298), for any checkpoint on disk: accuracy after 4, 8, ...,
2048 symbols, the gap to Viterbi at the end, and the length from which on the gap stays small, by
the second eigenvalue and the entropies. The report includes what the file of results records of
the paper's seven language models.

Variants: the default, the paper's comparison of three tokenisations on models of four states and
four symbols; `grid`, all models of the file in letters, as in the paper's figures; `smollm2`, 24
models of four or eight symbols in all tokenisations, up to 1,024 symbols, read by the
SmolLM2-135M-Instruct of `make models`; and `smollm2_16`, nine models of 16 symbols in two of them
(its tokenizer splits numbers into digits: there are only ten). The default file is in
$JAXRL_LLM_DATA/icl_hmm (by default ../shared/data/icl_hmm); any file of the schema works.

Cost: the language model reads models x tokenisations x 64 x 2048 tokens: 1.6 million (4 models),
`grid` 11 million (81). `smollm2` reads 2.4 million and `smollm2_16` 0.6 million. On accelerators:
--config.model.compute_dtype=bfloat16 --config.model.param_dtype=bfloat16
--config.model.scan_unroll=1, and a larger --config.batch_size.
Command: python -m experiments.icl_hmm \\
      --config=experiments/configs/icl_hmm_checkpoint.py[:grid] --config.checkpoint_dir=DIR
  or, after `make models`, --config=experiments/configs/icl_hmm_checkpoint.py:smollm2[_16]
"""

import os

from experiments.icl_hmm import checkpoint_config

VARIANTS = ('grid', 'smollm2', 'smollm2_16')


def get_config(variant: str = '') -> checkpoint_config.IclHmmCheckpoint:
  if variant not in ('', *VARIANTS):
    raise ValueError(f'variant must be {", ".join(VARIANTS)} or none, got {variant!r}')

  data = os.environ.get('JAXRL_LLM_DATA', '../shared/data')
  config = checkpoint_config.IclHmmCheckpoint(
      results_file=os.path.join(data, 'icl_hmm', 'entropy_results.csv'),
      note='Expectations over the label are exact given the true state before it; recorded numbers '
           'count 4,096 labels and have their noise.')
  if variant == 'grid':
    config.tokenisations = 'abc'
  elif variant:
    config.checkpoint_dir = 'models/smollm2-135m-instruct'
    config.num_sequences, config.max_length = 32, 1_024
    if variant == 'smollm2':
      config.max_symbols, config.max_rows = 8, 24
    else:
      config.tokenisations, config.num_symbols, config.max_rows = 'abc,random', 16, 9
  else:
    config.num_states, config.num_symbols = 4, 4
  return config
