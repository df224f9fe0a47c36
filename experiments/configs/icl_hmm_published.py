"""Published results on hidden Markov models, compared with ours on new samples at every length.

The baselines of the paper (arXiv 2506.07298) and of its file of results for the group "entropy":
81 models, 4, 8, ..., 2048 symbols seen (DaiYijia02/hmm-visualization, entropy_results.csv).
Criteria: mean absolute differences of at most 0.02 in accuracy and 0.008 in Hellinger distance for
the best path, the true state and the n-grams, and, after 2048 symbols, the baselines ranked as in
the paper. Baum-Welch, on few sequences, is only reported: from one start as published, and the
best of five.

The default file is in $JAXRL_LLM_DATA/icl_hmm (by default ../shared/data/icl_hmm); any file of the
schema works.

Cost: 18 minutes of processor time; models are simulated in parallel on all cores (14 minutes on two
cores that were doing other work too).
Command: python -m experiments.icl_hmm --config=experiments/configs/icl_hmm_published.py \\
      [--config.results_file=FILE.csv]
"""

import os

from experiments.icl_hmm import config as icl_hmm_config


def get_config() -> icl_hmm_config.IclHmmPublished:
  data = os.environ.get('JAXRL_LLM_DATA', '../shared/data')
  return icl_hmm_config.IclHmmPublished(
      results_file=os.path.join(data, 'icl_hmm', 'entropy_results.csv'),
      note='Expectations over the label are exact given the true state before it; the recorded '
           'numbers count 4,096 labels and have their noise.',
  )
