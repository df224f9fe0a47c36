"""Config of experiments/online_rl/."""

import dataclasses
from typing import Any

from jaxrl_llm import checks
from jaxrl_llm.algorithms import dpo, grpo, ppo, rebel, reinforce, rloo
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import memory

# Modules of the algorithms, by the type of their config.
ALGORITHMS = {module.Config: module for module in (rebel, grpo, rloo, reinforce, ppo, dpo)}


@dataclasses.dataclass
class OnlineRl(config_lib.VerifiedConfig):
  """Config of experiments/online_rl/.

  Attributes:
    algorithm: config of the algorithm, which its type selects: one of `ALGORITHMS`.
  """

  algorithm: Any = dataclasses.field(default_factory=grpo.Config)

  @property
  def name(self) -> str:
    """Name of the algorithm's module."""
    return ALGORITHMS[type(self.algorithm)].__name__.rpartition('.')[2]

  @property
  def has_critic(self) -> bool:
    """True if the algorithm trains a critic too."""
    return isinstance(self.algorithm, ppo.Config)

  @property
  def compares_with_reference(self) -> bool:
    """True if the loss compares with the reference and not with the policy that sampled."""
    return isinstance(self.algorithm, dpo.Config) and self.algorithm.reference == 'fixed'

  @property
  def updates_per_batch(self) -> int:
    """See `config_lib.VerifiedConfig.updates_per_batch`."""
    if isinstance(self.algorithm, reinforce.Config):
      return 1
    return self.algorithm.num_epochs * self.algorithm.num_minibatches

  @property
  def num_parts(self) -> int:
    """See `config_lib.VerifiedConfig.num_parts`."""
    if isinstance(self.algorithm, reinforce.Config):
      return self.algorithm.num_micro_batches
    return self.algorithm.num_minibatches * self.algorithm.num_micro_batches

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    if type(self.algorithm) not in ALGORITHMS:
      names = ', '.join(module.__name__.rpartition('.')[2] for module in ALGORITHMS.values())
      raise ValueError(
          f'config.algorithm must be the Config of one of {names}, got '
          f'{type(self.algorithm).__name__}')
    super().validate()
    if isinstance(self.algorithm, rebel.Config):
      checks.fixed(
          self.algorithm, 'config.algorithm', "with a task's own reward", signal='rewards',
          offline_fraction=0.0)

  def memory(self) -> dict[str, int]:
    """See `config_lib.RunConfig.memory`."""
    contributors = super().memory()
    if not self.has_critic:
      return contributors
    weights = 4 * memory.num_weights(self.model)
    is_whole = not (self.policy_init_from or self.lora.rank or self.train_last_layers)
    moments = 2 * weights if is_whole else 0
    return contributors | {"the critic and its optimizer's moments (config.model)":
                           weights + moments}

  def num_rows(self) -> dict[str, int]:
    """See `config_lib.RunConfig.num_rows`."""
    samples = self.batch_size * self.algorithm.samples_per_prompt
    return {**super().num_rows(), 'algorithm.samples_per_prompt': samples}
