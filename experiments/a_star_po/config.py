"""Config of experiments/a_star_po/."""

import dataclasses

from jaxrl_llm import checks
from jaxrl_llm.algorithms import a_star_po
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.tasks import chat
from jaxrl_llm.training import optim


@dataclasses.dataclass
class Evaluation(config_lib.EvaluationConfig):
  """Evaluation of policies on the held-out problems, and of V* on training prompts.

  Attributes:
    diagnosed_prompts: number of training prompts on which the true success rate of
      the reference is measured, for the V* figure (0: no such figure).
    diagnosed_samples: fresh samples per diagnosed prompt.
  """

  diagnosed_prompts: int = 256
  diagnosed_samples: int = 64

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate(prefix)
    checks.at_least(self, prefix, diagnosed_prompts=0, diagnosed_samples=1)


@dataclasses.dataclass
class AStarPo(config_lib.ReinforcementConfig):
  """Config of experiments/a_star_po/.

  Attributes:
    evaluation: config of the evaluation.
    algorithm: config of A*-PO.
    optimizer: optimizer of stage 2.
    steps: batches of rollouts in stage 2.
    batch_size: prompts per batch in stage 2.
    stage1_batch_size: prompts per batch in stage 1.
    token_budget: if positive, stage 2 ends with the batch after which both stages
      together have sampled this many tokens (`steps` is then an upper bound).
    eval_every: batches between evaluations; there is always one before the first batch
      and one after the last.
    save_every: batches between checkpoints.
  """

  evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
  algorithm: a_star_po.Config = dataclasses.field(default_factory=a_star_po.Config)
  optimizer: optim.OptimizerConfig = dataclasses.field(default_factory=optim.OptimizerConfig)
  steps: int = 100
  batch_size: int = 128
  stage1_batch_size: int = 256
  token_budget: int = 0
  eval_every: int = 20
  save_every: int = 20

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate()
    if isinstance(self.task, chat.Config):
      raise ValueError(
          'config.task must have a reward, which chat does not: fine-tune on it with '
          'experiments.sft'
      )

    checks.at_least(
        self, 'config', steps=0, batch_size=1, stage1_batch_size=1, token_budget=0,
        eval_every=1, save_every=1,
    )
    with checks.within('config.algorithm'):
      self.algorithm.validate()
    self.optimizer.validate('config.optimizer')
    checks.divisible(
        self, 'config', 'batch_size', self.num_parts, 'num_minibatches * num_micro_batches')

    if self.token_budget:
      checks.fixed(
          self.optimizer, 'config.optimizer',
          'with config.token_budget (the length of the run is not known in advance)',
          schedule='constant')
    config_lib.check_schedule(
        self.optimizer, self.steps * self.algorithm.num_minibatches, 'config.optimizer')

  @property
  def num_parts(self) -> int:
    """Number of parts that a batch is split into."""
    return self.algorithm.num_minibatches * self.algorithm.num_micro_batches

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """See `config_lib.RunConfig.batch_sizes`."""
    return {
        **super().batch_sizes(),
        'batch_size': (self.batch_size, self.num_parts),
        'stage1_batch_size': (self.stage1_batch_size, 1),
    }

  def num_rows(self) -> dict[str, int]:
    """See `config_lib.RunConfig.num_rows`."""
    return {
        **super().num_rows(),
        'algorithm.samples_per_prompt': self.stage1_batch_size * self.algorithm.samples_per_prompt,
        'evaluation.diagnosed_samples':
            self.stage1_batch_size * self.evaluation.diagnosed_samples,
    }
