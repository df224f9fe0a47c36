"""What the configs of the two small studies of REBEL can set."""

import dataclasses
import math

from experiments import settings
from jaxrl_llm.algorithms import rebel
from jaxrl_llm.models import configs


@dataclasses.dataclass
class RebelGames:
  """One run of experiments/rebel_games.py; all seeds side by side.

  Attributes:
    seed: the first seed.
    num_seeds: seed, seed + 1, ...
    initial_policy: π_0 of rock, paper, scissors.
    algorithm: settings of REBEL. An arm sets `signal` itself.
    model: the policy; its vocabulary is the three moves.
    learning_rate: of gradient descent on the head. The regression is linear there, with a
      curvature of at most 2 |hidden|² = 2 · width: 1 / width is where descent diverges.
    steps: iterations, T.
    batch_size: pairs an iteration.
    num_comparators: M, responses that each pair is compared with.
    note: what a reader must know; printed with the results.
  """

  seed: int = 0
  num_seeds: int = 5
  initial_policy: tuple[float, ...] = (0.6, 0.3, 0.1)
  algorithm: rebel.Config = dataclasses.field(
      default_factory=lambda: rebel.Config(
          eta=0.05, kl_coefficient=0.0, signal='preferences', offline_fraction=1.0,
          temperature=1.0, num_epochs=8, head_chunk=0))
  model: configs.TransformerConfig = dataclasses.field(
      default_factory=lambda: configs.TransformerConfig(
          vocab_size=3, num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8,
          mlp_width=32, max_length=4, tie_embeddings=False))
  learning_rate: float = 0.03
  steps: int = 2_000
  batch_size: int = 64
  num_comparators: int = 1
  note: str = ''

  def validate(self) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    settings.at_least(
        self, 'config', seed=0, num_seeds=1, steps=1, batch_size=1, num_comparators=1)
    _positive(self, 'learning_rate')
    policy = self.initial_policy
    if len(policy) != 3 or not min(policy) > 0 or abs(sum(policy) - 1) > 1e-6:
      raise ValueError(
          f'config.initial_policy must be three positive numbers that sum to 1, got {policy}')
    self.algorithm.validate()
    for name, needed, why in (
        ('signal', 'preferences', 'the arms set it'),
        ('pairs', 'all', 'a preference has no best of several'),
        ('kl_coefficient', 0, 'the bound knows no penalty'),
        ('whiten_rewards', False, 'the bound is for preferences as they are'),
    ):
      if getattr(self.algorithm, name) != needed:
        raise ValueError(f'config.algorithm.{name} must be {needed!r} here ({why}), got '
                         f'{getattr(self.algorithm, name)!r}')
    self.model.validate()
    if self.model.vocab_size != 3:
      raise ValueError(f'config.model.vocab_size must be 3, the moves, got {self.model.vocab_size}')
    if self.model.tie_embeddings:
      raise ValueError('config.model.tie_embeddings must be False (the head alone is trained), got '
                       'True')
    _divides(self.algorithm.num_minibatches * self.algorithm.num_micro_batches, 'batch_size', self)


@dataclasses.dataclass
class RebelGaussian:
  """One run of experiments/rebel_gaussian.py; all seeds and learning rates side by side.

  Attributes:
    seed: the first seed.
    num_seeds: seed, seed + 1, ...
    num_tuning_seeds: further seeds, on which alone each arm's learning rate is chosen.
    num_prompts: prompts; each has a target of its own on a circle.
    radius: of that circle.
    data_std: of the normal distribution that the sampler draws from before training.
    alpha_bar: ᾱ_{t−1}, the share of signal after each step of the chain, increasing.
    width: of the two hidden layers.
    batch_size: pairs of samples an iteration, 2 reward queries each.
    steps: iterations.
    num_epochs: passes over the samples of an iteration (the released code: 1).
    num_minibatches: optimizer steps of a pass.
    learning_rates: of Adam, from which each arm has its own chosen.
    eta: η of REBEL on standardised rewards (the released code: 1).
    clip: ε of PPO.
    published_clip: ε of the released code's PPO, which is an arm of its own.
    advantage_clip: of PPO's advantages.
    max_grad_norm: of both.
    reduction: of a step's log-density over dimensions: 'sum', or 'mean' as released.
    buffer_size: rewards kept a prompt to standardise by.
    min_count: from how many on.
    evaluation_samples: fresh samples a prompt after each iteration; no queries of the method.
    note: what a reader must know; printed with the results.
  """

  seed: int = 0
  num_seeds: int = 5
  num_tuning_seeds: int = 5
  num_prompts: int = 8
  radius: float = 1.5
  data_std: float = 0.5
  alpha_bar: tuple[float, ...] = (0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 0.98)
  width: int = 32
  batch_size: int = 32
  steps: int = 100
  num_epochs: int = 1
  num_minibatches: int = 8
  learning_rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
  eta: float = 1.0
  clip: float = 0.2
  published_clip: float = 1e-4
  advantage_clip: float = 10.0
  max_grad_norm: float = 5.0
  reduction: str = 'sum'
  buffer_size: int = 32
  min_count: int = 16
  evaluation_samples: int = 32
  note: str = ''

  def validate(self) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    settings.at_least(
        self, 'config', seed=0, num_seeds=1, num_tuning_seeds=1, num_prompts=1, width=1,
        batch_size=1, steps=1, num_epochs=1, num_minibatches=1, buffer_size=1, min_count=1,
        evaluation_samples=1)
    _positive(self, 'radius', 'data_std', 'eta', 'clip', 'published_clip', 'advantage_clip',
              'max_grad_norm')
    shares = (0.0, *self.alpha_bar, 1.0)
    if len(shares) < 3 or any(a >= b for a, b in zip(shares, shares[1:])):
      raise ValueError(
          f'config.alpha_bar must increase between 0 and 1, both excluded, got {self.alpha_bar}')
    rates = self.learning_rates
    if not rates or not all(0 < rate < math.inf for rate in rates):
      raise ValueError(f'config.learning_rates must be positive and finite, got {rates}')
    if max(self.clip, self.published_clip) > 1:
      raise ValueError(f'config.clip and config.published_clip must be at most 1, got {self.clip} '
                       f'and {self.published_clip}')
    if self.reduction not in ('sum', 'mean'):
      raise ValueError(f"config.reduction must be 'sum' or 'mean', got {self.reduction!r}")
    _divides(self.num_minibatches, 'batch_size', self)


def _positive(holder, *names: str) -> None:
  for name in names:
    if not 0 < getattr(holder, name) < math.inf:
      raise ValueError(f'config.{name} must be positive and finite, got {getattr(holder, name)}')


def _divides(parts: int, name: str, holder) -> None:
  if getattr(holder, name) % parts:
    raise ValueError(f'config.{name} must be divided by the number of its parts ({parts}), got '
                     f'{getattr(holder, name)}')
