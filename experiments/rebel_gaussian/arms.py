"""Arms of the study of the Gaussian sampler, and the loss of each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.rebel_gaussian.config import RebelGaussian
from experiments.rebel_gaussian.point_sampler import PointSampler
from jaxrl_llm.rl import policy_losses, regression_losses
from jaxrl_llm.types import WeightedMean


class Arm(NamedTuple):
  """A training method.

  Attributes:
    label: name in the table and the figure.
    loss: 'rebel' or 'ppo'.
    shared_start: whether both chains of a pair start from the same noise.
    clip: the config field that holds ε; '' for REBEL.
    style: colour, marker, line.
  """

  label: str
  loss: str
  shared_start: bool
  clip: str
  style: tuple[str, str, str]


ARMS = {
    'rebel': Arm('REBEL', 'rebel', False, '', ('#1b6ca8', 'o', '-')),
    'rebel_shared_start': Arm(
        'REBEL, pairs from one start', 'rebel', True, '', ('#2e8b57', '^', '--')),
    'ppo': Arm('PPO', 'ppo', False, 'clip', ('#d1495b', 's', '-')),
    'ppo_published_clip': Arm(
        'PPO, released clip', 'ppo', False, 'published_clip', ('#8d6a9f', 'D', '-')),
}


def make_loss(config: RebelGaussian, sampler: PointSampler, arm: Arm):
  """Returns a loss for `training.step` on a batch of pairs with leaves [P, 2, ...]."""
  def loss_fn(params, batch):
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch)
    log_probs = sampler.log_probs(params['policy'], flat['chain'], flat['prompts'])
    log_ratio = log_probs.reshape(batch['old'].shape) - batch['old']  # [P, 2, S].
    if arm.loss == 'rebel':
      losses = regression_losses.rebel_loss(
          jnp.sum(log_ratio, axis=-1), batch['advantages'], eta=config.eta)
    else:
      bound, clip = config.advantage_clip, getattr(config, arm.clip)
      advantages = jnp.clip(batch['advantages'], -bound, bound)[..., None]
      losses = policy_losses.clipped_surrogate(
          log_ratio, jnp.broadcast_to(advantages, log_ratio.shape), clip_low=clip, clip_high=clip)
    return WeightedMean(jnp.sum(losses), jnp.float32(losses.size)), {}

  return loss_fn
