"""Config of experiments/reward_model/."""

import dataclasses

from jaxrl_llm import checks
from jaxrl_llm.algorithms import reward_model
from jaxrl_llm.data import preference_rows
from jaxrl_llm.models import lora as lora_lib
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import memory
from jaxrl_llm.tasks import own_data, preferences
from jaxrl_llm.training import optim


@dataclasses.dataclass
class RewardModel(config_lib.TrainingConfig):
  """Config of experiments/reward_model/.

  `policy_init_from` can also be a reward model, whose head is then trained further.

  Attributes:
    task: a task whose files contain pairs.
    lora: low-rank adapters; if the rank is positive, only they and the score head are trained.
    train_last_layers: if positive, only this many last blocks, the last norm and the score head
      are trained.
    head_init: initialisation of a new head: 'normal' (standard deviation (D + 1)^-1/2) or 'zero'.
    algorithm: config of the loss.
    optimizer: config of the optimizer.
    steps: optimizer steps; 0 for one pass over the pairs.
    batch_size: pairs per step.
    evaluation_batch_size: pairs per batch outside training.
    centre: whether to subtract the mean score of reference responses from every score.
    centring_file: a file of them in the data directory; '' for the chosen responses of the pairs.
    centring_schema: its schema; '' for that of the task.
    eval_every: steps between evaluations; there is always one after the last step.
    save_every: steps between checkpoints.
    log_every: steps between lines in metrics.jsonl.
  """

  task: preferences.Config = dataclasses.field(default_factory=preferences.Config)
  lora: lora_lib.LoraConfig = dataclasses.field(default_factory=lora_lib.LoraConfig)
  train_last_layers: int = 0
  head_init: str = 'normal'
  algorithm: reward_model.Config = dataclasses.field(default_factory=reward_model.Config)
  optimizer: optim.OptimizerConfig = dataclasses.field(default_factory=optim.OptimizerConfig)
  steps: int = 0
  batch_size: int = 64
  evaluation_batch_size: int = 64
  centre: bool = True
  centring_file: str = ''
  centring_schema: str = ''
  eval_every: int = 100
  save_every: int = 100
  log_every: int = 10

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate()
    checks.at_least(
        self, 'config', steps=0, batch_size=1, evaluation_batch_size=1, eval_every=1,
        save_every=1, log_every=1,
    )
    checks.at_least(self, 'config', train_last_layers=0)
    checks.at_most(self, 'config', steps=2**31 - 1)
    self.lora.validate('config.lora')
    if self.lora.rank:
      checks.fixed(self, 'config', 'if config.lora.rank is positive', train_last_layers=0)
    checks.one_of(self, 'config', head_init=('normal', 'zero'))
    if not self.centre:
      checks.fixed(self, 'config', 'without config.centre', centring_file='')
    if not self.centring_file:
      checks.fixed(self, 'config', 'without config.centring_file', centring_schema='')
    checks.one_of(self, 'config', centring_schema=('', *preference_rows.SCHEMAS))

    with checks.within('config.algorithm'):
      self.algorithm.validate()
    self.optimizer.validate('config.optimizer')
    checks.divisible(
        self, 'config', 'batch_size', self.algorithm.num_micro_batches, 'num_micro_batches')

  def set_task(self, files: str) -> None:
    """See `config_lib.RunConfig.set_task`; the files have pairs."""
    self.task = own_data.with_files(self.task, files)

  def memory(self) -> dict[str, int]:
    """See `config_lib.RunConfig.memory`."""
    return super().memory() | memory.adapters(self.model, self.lora.rank)

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """See `config_lib.RunConfig.batch_sizes`."""
    return {
        'batch_size': (self.batch_size, self.algorithm.num_micro_batches),
        'evaluation_batch_size': (self.evaluation_batch_size, 1),
    }
