"""Config of experiments/reward_model/."""

import dataclasses
import pathlib
from typing import ClassVar

from jaxrl_llm import checks
from jaxrl_llm.algorithms import reward_model
from jaxrl_llm.data import preference_rows
from jaxrl_llm.models import configs
from jaxrl_llm.models import lora as lora_lib
from jaxrl_llm.runs import reward_config
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.tasks import preferences
from jaxrl_llm.training import optim


@dataclasses.dataclass
class RewardModel:
  """One run of experiments/reward_model/.

  Attributes:
    seed: seed of all random draws.
    data_dir: directory of the task's data.
    task: a task whose files contain pairs.
    model: the shape, as in `config_lib.Experiment`.
    policy_init_from: a policy (or a reward model, whose head is then kept), as in
      `config_lib.Experiment`; '' initialises all parameters randomly.
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
    mesh: sizes of the device mesh.
    wandb_project: a Weights & Biases project; '' is off.
    note: note for the reader about the config, printed with its results.
    scale_note: the same about what is scaled down, for a randomly initialised model.
  """

  seed: int = 0
  data_dir: str = ''
  task: preferences.Config = dataclasses.field(default_factory=preferences.Config)
  model: configs.TransformerConfig = dataclasses.field(default_factory=configs.TransformerConfig)
  policy_init_from: str = ''
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
  mesh: mesh_lib.MeshConfig = dataclasses.field(default_factory=mesh_lib.MeshConfig)
  wandb_project: str = ''
  note: str = ''
  scale_note: str = ''

  # All parameters are trained (`setup.build`).
  lora: ClassVar[lora_lib.LoraConfig] = lora_lib.LoraConfig()
  train_last_layers: ClassVar[int] = 0

  def validate(self) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    checks.at_least(
        self, 'config', seed=0, steps=0, batch_size=1, evaluation_batch_size=1, eval_every=1,
        save_every=1, log_every=1,
    )
    if self.policy_init_from and not pathlib.Path(self.policy_init_from).is_dir():
      raise ValueError(f'config.policy_init_from: not a directory: {self.policy_init_from!r}')
    if self.head_init not in ('normal', 'zero'):
      raise ValueError(f"config.head_init must be 'normal' or 'zero', got {self.head_init!r}")

    for name in ('centring_file', 'centring_schema'):
      needed = 'centre' if name == 'centring_file' else 'centring_file'
      if getattr(self, name) and not getattr(self, needed):
        raise ValueError(
            f'config.{name} has no effect without config.{needed}, got {getattr(self, name)!r}')

    if self.centring_schema and self.centring_schema not in preference_rows.SCHEMAS:
      raise ValueError(
          f'config.centring_schema must be one of {", ".join(preference_rows.SCHEMAS)}, got '
          f'{self.centring_schema!r}'
      )

    with checks.within('config.model'):
      dataclasses.replace(self.model, vocab_size=self.model.vocab_size or 1).validate()
    with checks.within('config.algorithm'):
      self.algorithm.validate()
    self.optimizer.validate('config.optimizer')
    self.mesh.validate()
    reward_config.check_divides('config', self.batch_size, self.algorithm.num_micro_batches)

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """As in `config_lib.Experiment`."""
    return {
        'batch_size': (self.batch_size, self.algorithm.num_micro_batches),
        'evaluation_batch_size': (self.evaluation_batch_size, 1),
    }
