"""REBEL and PPO on a denoising sampler of points, a small stand-in for image generation.

This is a small version of the paper's image experiments, not one of its tables: a consistency
sampler of points in eight steps, standardised rewards and η = 1 (Owen-Oertell/rlcm), one pass over
each batch in several optimizer steps. The criterion was fixed before any run: REBEL gets 90 % of
the way to the best score in at most as many reward queries as PPO. Sizes were tuned on other seeds;
all arms share one grid of learning rates.

Cost: about a minute and a half on two CPU cores.
Command: python -m experiments.rebel_gaussian
"""

from experiments.rebel_gaussian import config as gaussian_config


def get_config() -> gaussian_config.RebelGaussian:
  return gaussian_config.RebelGaussian(
      note='A sampler of points of a plane: no diffusion model, no images.',
  )
