"""Config of experiments/a_star_po/."""

import dataclasses

from jaxrl_llm import checks
from jaxrl_llm.algorithms import a_star_po
from jaxrl_llm.runs import config as config_lib


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
class AStarPo(config_lib.VerifiedConfig):
  """Config of experiments/a_star_po/; `steps` and `batch_size` are those of stage 2.

  Attributes:
    evaluation: config of the evaluation.
    algorithm: config of A*-PO.
    stage1_batch_size: prompts per batch in stage 1.
    token_budget: as in `VerifiedConfig`; the tokens of stage 1 count.
  """

  evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
  algorithm: a_star_po.Config = dataclasses.field(default_factory=a_star_po.Config)
  stage1_batch_size: int = 256

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate()
    checks.at_least(self, 'config', stage1_batch_size=1)

  @property
  def updates_per_batch(self) -> int:
    """See `config_lib.VerifiedConfig.updates_per_batch`."""
    return self.algorithm.num_minibatches

  @property
  def num_parts(self) -> int:
    """See `config_lib.VerifiedConfig.num_parts`."""
    return self.algorithm.num_minibatches * self.algorithm.num_micro_batches

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """See `config_lib.RunConfig.batch_sizes`."""
    return {**super().batch_sizes(), 'stage1_batch_size': (self.stage1_batch_size, 1)}

  def num_rows(self) -> dict[str, int]:
    """See `config_lib.RunConfig.num_rows`."""
    return {
        **super().num_rows(),
        'algorithm.samples_per_prompt': self.stage1_batch_size * self.algorithm.samples_per_prompt,
        'evaluation.diagnosed_samples':
            self.stage1_batch_size * self.evaluation.diagnosed_samples,
    }
