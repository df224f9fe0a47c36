"""REBEL and PPO on a sampler of points by denoising: what stands here for image generation.

The image part of the paper in the small, not a table of it: a consistency sampler of points in
eight steps, standardised rewards and η = 1 (Owen-Oertell/rlcm), one pass over each batch in
several optimizer steps. The criterion stood before anything was run: REBEL gets to 90 % of the
way to the best score in at most PPO's reward queries. Sizes were tried out on other seeds; the
grid of learning rates is the same for all arms.

Cost: about a minute and a half on two CPU cores.
Command: python -m experiments.rebel_gaussian
"""

from experiments.rebel_gaussian import config as gaussian_config


def get_config() -> gaussian_config.RebelGaussian:
  return gaussian_config.RebelGaussian(
      note='A sampler of points of a plane: no diffusion model, no images.',
  )
