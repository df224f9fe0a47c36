"""Config of experiments/rebel_gaussian/."""

import dataclasses
import math

from jaxrl_llm import checks


@dataclasses.dataclass
class RebelGaussian:
  """One run of experiments/rebel_gaussian/, with all seeds and learning rates in parallel.

  Attributes:
    seed: the first seed.
    num_seeds: number of seeds: seed, seed + 1, ...
    num_tuning_seeds: further seeds, used only to choose each arm's learning rate.
    num_prompts: number of prompts; each has its own target on a circle.
    radius: radius of that circle.
    data_std: standard deviation of the normal that the sampler draws from before training.
    alpha_bar: ᾱ_{t−1}, the share of signal after each step of the chain, increasing.
    width: width of the two hidden layers.
    batch_size: pairs of samples per iteration, 2 reward queries each.
    steps: iterations.
    num_epochs: passes over the samples of an iteration (the released code: 1).
    num_minibatches: optimizer steps per pass.
    learning_rates: learning rates of Adam to choose from; each arm has its own.
    eta: η of REBEL on standardised rewards (the released code: 1).
    clip: ε of PPO.
    published_clip: ε of the released code's PPO, which is a separate arm.
    advantage_clip: bound on PPO's advantages.
    max_grad_norm: gradient norm at which both methods clip.
    reduction: reduction of a step's log-density over dimensions: 'sum', or 'mean' as released.
    buffer_size: rewards per prompt kept for standardisation.
    min_count: number of rewards from which a prompt's own statistics are used.
    evaluation_samples: fresh samples per prompt after each iteration; not counted as queries.
    note: note for the reader, printed with the results.
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
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(
        self, 'config', seed=0, num_seeds=1, num_tuning_seeds=1, num_prompts=1, width=1,
        batch_size=1, steps=1, num_epochs=1, num_minibatches=1, buffer_size=1, min_count=1,
        evaluation_samples=1)
    checks.positive(
        self, 'config', 'radius', 'data_std', 'eta', 'clip', 'published_clip', 'advantage_clip',
        'max_grad_norm')

    shares = (0.0, *self.alpha_bar, 1.0)
    if len(shares) < 3 or any(a >= b for a, b in zip(shares, shares[1:])):
      raise ValueError(
          f'config.alpha_bar must increase between 0 and 1, both excluded, got {self.alpha_bar}')

    rates = self.learning_rates
    if not rates or not all(0 < rate < math.inf for rate in rates):
      raise ValueError(f'config.learning_rates must be positive and finite, got {rates}')

    checks.at_most(
        self, 'config', seed=2**31 - self.num_seeds - self.num_tuning_seeds, clip=1,
        published_clip=1, num_epochs=2**31 - 1, min_count=2**31 - 1)
    checks.one_of(self, 'config', reduction=('sum', 'mean'))
    checks.divisible(
        self, 'config', 'batch_size', self.num_minibatches, of='config.num_minibatches')

  def memory(self) -> dict[str, int]:
    """Returns the bytes that a run needs at least, by what needs them; see `runs.memory`."""
    runs = self.num_seeds + self.num_tuning_seeds * len(self.learning_rates)
    layers = 4 * self.width * self.width
    return {
        'the samplers with their optimizers (config.num_seeds, config.width)': runs * 3 * layers,
        'the chains of an iteration (config.batch_size)':
            self.num_seeds * 2 * self.batch_size * len(self.alpha_bar) * 4 * self.width,
        'the samples of an evaluation (config.evaluation_samples)':
            self.num_seeds * self.evaluation_samples * self.num_prompts * 4 * self.width,
        'the buffers of rewards (config.buffer_size)':
            self.num_seeds * self.num_prompts * 4 * self.buffer_size,
        'the metrics of all iterations (config.steps)': self.num_seeds * 4 * self.steps,
    }
