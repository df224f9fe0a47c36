"""Hidden Markov models learnt in context (Dai et al., 2025, arXiv 2506.07298).

The type of the config that --config returns decides which study runs:

  icl_hmm.py             a small network trained to learn fresh models in context (the default)
  icl_hmm_published.py   the published baselines on new samples, compared with the authors' file
  icl_hmm_checkpoint.py  a language model as the predictor of published models
  icl_hmm_mice.py        choices of mice, real and simulated
"""

from experiments.icl_hmm import checkpoint as icl_hmm_checkpoint
from experiments.icl_hmm import checkpoint_config, mice_config
from experiments.icl_hmm import config as icl_hmm_config
from experiments.icl_hmm import mice as icl_hmm_mice
from experiments.icl_hmm import published as icl_hmm_published
from experiments.icl_hmm import scratch as icl_hmm_scratch
from jaxrl_llm.runs import launch

STUDIES = {
    icl_hmm_config.IclHmm: icl_hmm_scratch.main,
    icl_hmm_config.IclHmmPublished: icl_hmm_published.main,
    checkpoint_config.IclHmmCheckpoint: icl_hmm_checkpoint.main,
    mice_config.IclHmmMice: icl_hmm_mice.main,
}


def main(run: launch.Run) -> None:
  """Runs the study that the config belongs to."""
  study = next(STUDIES[kind] for kind in type(run.config).mro() if kind in STUDIES)
  study(run)


if __name__ == '__main__':
  launch.run(
      main, default_config='experiments/configs/icl_hmm.py', config_types=tuple(STUDIES))
