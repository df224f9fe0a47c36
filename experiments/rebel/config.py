"""Configs of experiments/rebel/."""

import dataclasses

from jaxrl_llm import checks
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import reward_config


@dataclasses.dataclass
class Online(reward_config.LearnedReward):
  """The online pipelines of experiments/rebel/: sample, score, fit, repeat.

  Attributes:
    num_comparators: M further samples per prompt that a pair is compared with, if
      algorithm.signal is 'preferences'; 0 otherwise.
    steps: batches of rollouts.
    eval_every: batches between evaluations; there is always one before the first batch and one
      after the last.
  """

  num_comparators: int = 0
  steps: int = 100
  eval_every: int = 20

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate()
    checks.at_least(self, 'config', steps=0, eval_every=1, num_comparators=0)
    if (self.algorithm.signal == 'preferences') != (self.num_comparators > 0):
      raise ValueError(
          "config.num_comparators must be positive with algorithm.signal 'preferences', and 0 "
          f'with {"rewards"!r}, got {self.num_comparators} with {self.algorithm.signal!r}'
      )
    config_lib.check_schedule(
        self.optimizer, self.steps * self.algorithm.num_epochs * self.algorithm.num_minibatches,
        'config.optimizer')


@dataclasses.dataclass
class LargeBatch(reward_config.LearnedReward):
  """The large-batch pipeline of experiments/rebel/: generate, rank, filter, fit once; iterated.

  Attributes:
    rounds: iterations of all stages, each from the policy of the one before.
    top_p: nucleus of the generated responses; log-probs are under the whole distribution, as in
      the released code.
    keep_truncated: whether to keep a prompt if one of its responses did not stop.
    generation_batch_size: prompts per batch when responses are generated, ranked and scored.
    steps: batches of pairs per round; 0 for one pass.
    eval_every: batches between evaluations on held-out pairs.
  """

  rounds: int = 3
  top_p: float = 0.9
  keep_truncated: bool = False
  generation_batch_size: int = 64
  steps: int = 0
  eval_every: int = 50

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate()
    checks.at_least(
        self, 'config', rounds=1, generation_batch_size=1, steps=0, eval_every=1)
    checks.positive(self, 'config', 'top_p')
    checks.at_most(self, 'config', top_p=1)
    checks.fixed(
        self.algorithm, 'config.algorithm', 'in the large-batch pipeline', pairs='best_worst',
        signal='rewards', kl_coefficient=0.0, offline_fraction=0.0, whiten_rewards=False)

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """See `config_lib.RunConfig.batch_sizes`."""
    return {**super().batch_sizes(), 'generation_batch_size': (self.generation_batch_size, 1)}
