"""Configs shared by the binaries: plain, typed, mutable dataclasses.

A config file fills them in (`get_config`), flags override them
(`--config.optimizer.learning_rate=1e-3`), and `validate` checks them once.
"""

import dataclasses
import pathlib
from typing import ClassVar

from jaxrl_llm import checks
from jaxrl_llm.algorithms import a_star_po, sft
from jaxrl_llm.data import mixtures, sft_batches
from jaxrl_llm.models import configs
from jaxrl_llm.models import lora as lora_lib
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.tasks import arithmetic, chat
from jaxrl_llm.tasks import config as task_config
from jaxrl_llm.training import optim


@dataclasses.dataclass
class SftConfig:
  """Supervised fine-tuning before RL (or alone, in experiments/sft.py).

  Attributes:
    steps: optimizer steps; 0 leaves the model as loaded.
    batch_size: rows per step; a row holds one demonstration, or several packed ones.
    loss_on: 'assistant' for a loss on the tokens of replies; 'all' includes those of prompts.
    packed_length: slots per packed row; 0 gives each demonstration its own row.
    mixture: weights of the task's sources, such as 'a.json=3,b.jsonl=1': their shares of the rows;
      each source has its own epochs. '' makes one epoch over all sources.
    save_every: steps between checkpoints.
    log_every: steps between lines in metrics.jsonl.
    algorithm: config of the loss.
    optimizer: config of the optimizer.
  """

  steps: int = 1_000
  batch_size: int = 128
  loss_on: str = 'assistant'
  packed_length: int = 0
  mixture: str = ''
  save_every: int = 250
  log_every: int = 10
  algorithm: sft.Config = dataclasses.field(default_factory=sft.Config)
  optimizer: optim.OptimizerConfig = dataclasses.field(default_factory=optim.OptimizerConfig)

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(self, prefix, steps=0, batch_size=1, packed_length=0, save_every=1, log_every=1)
    if self.loss_on not in sft_batches.LOSS_ON:
      raise ValueError(
          f'{prefix}.loss_on must be one of {", ".join(sft_batches.LOSS_ON)}, got {self.loss_on!r}'
      )

    with checks.within(f'{prefix}.mixture'):
      mixtures.parse_weights(self.mixture)
    with checks.within(f'{prefix}.algorithm'):
      self.algorithm.validate()

    self.optimizer.validate(f'{prefix}.optimizer')
    if self.steps:
      check_schedule(self.optimizer, self.steps, f'{prefix}.optimizer')


@dataclasses.dataclass
class EvaluationConfig:
  """Evaluation of policies on the held-out problems.

  Attributes:
    num_samples: K samples per problem at temperature 1.
    batch_size: problems per batch.
    control_temperature: the reference is also scored at this temperature, to show
      the effect of sharpening alone.
    num_shown: number of fixed problems whose responses go to samples.jsonl each time.
    diagnosed_prompts: number of training prompts on which the true success rate of
      the reference is measured, for the V* figure (0: no such figure).
    diagnosed_samples: fresh samples per diagnosed prompt.
  """

  num_samples: int = 4
  batch_size: int = 256
  control_temperature: float = 0.5
  num_shown: int = 8
  diagnosed_prompts: int = 256
  diagnosed_samples: int = 64

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(
        self, prefix, num_samples=1, batch_size=1, num_shown=0, diagnosed_prompts=0,
        diagnosed_samples=1,
    )
    if not 0 < self.control_temperature < float('inf'):
      raise ValueError(
          f'{prefix}.control_temperature must be positive, got {self.control_temperature}'
      )


@dataclasses.dataclass
class Experiment:
  """Config common to all training runs.

  A subclass lists in `NETWORKS` the networks it has in addition to the policy ('reference',
  'value', 'reward'): the others cannot be loaded.

  Attributes:
    seed: seed of all random numbers.
    data_dir: directory of the task's real data; '' if it needs none.
    task: config of the task.
    model: the policy's shape; a `vocab_size` of 0 is filled in from the tokenizer.
    policy_init_from: directory of initial parameters: a Hugging Face checkpoint, or output
      of a run (WORKDIR/params, WORKDIR/trained); '' initialises them randomly. It decides
      the model's shape. A*-PO then skips `sft`.
    reference_init_from: the same for the frozen reference; '' means the policy's.
    value_init_from: the same for a value function.
    reward_init_from: the same for a reward model.
    lora: low-rank adapters; if the rank is positive, only they are trained.
    train_last_layers: if positive, only this many last blocks, the last norm and the head
      are trained.
    sft: supervised fine-tuning.
    evaluation: evaluation of the policy.
    mesh: sizes of the device mesh.
    wandb_project: a Weights & Biases project; '' turns W&B off.
    note: a note on the config for readers; printed with its results.
    scale_note: a note on what was scaled down, for a randomly initialised policy.
  """

  seed: int = 0
  data_dir: str = ''
  task: task_config.TaskConfig = dataclasses.field(default_factory=arithmetic.Config)
  model: configs.TransformerConfig = dataclasses.field(default_factory=configs.TransformerConfig)
  policy_init_from: str = ''
  reference_init_from: str = ''
  value_init_from: str = ''
  reward_init_from: str = ''
  lora: lora_lib.LoraConfig = dataclasses.field(default_factory=lora_lib.LoraConfig)
  train_last_layers: int = 0
  sft: SftConfig = dataclasses.field(default_factory=SftConfig)
  evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
  mesh: mesh_lib.MeshConfig = dataclasses.field(default_factory=mesh_lib.MeshConfig)
  wandb_project: str = ''
  note: str = ''
  scale_note: str = ''

  NETWORKS: ClassVar[tuple[str, ...]] = ()

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(self, 'config', seed=0, train_last_layers=0)
    with checks.within('config.model'):
      dataclasses.replace(self.model, vocab_size=self.model.vocab_size or 1).validate()

    self.sft.validate('config.sft')
    if self.sft.packed_length > self.model.max_length and not self.policy_init_from:
      raise ValueError(
          f'config.sft.packed_length must be at most config.model.max_length '
          f'({self.model.max_length}), got {self.sft.packed_length}'
      )

    self.evaluation.validate('config.evaluation')
    self.mesh.validate()

    if self.sft.steps == 0 and not self.policy_init_from:
      raise ValueError(
          'a policy that is neither loaded nor fine-tuned can only sample noise: give '
          '--config.policy_init_from=DIR or config.sft.steps of at least 1, got 0'
      )
    self._validate_networks()

  def _validate_networks(self) -> None:
    """Raises ValueError for directories that are missing or would not be used."""
    for name in ('policy', 'reference', 'value', 'reward'):
      folder = getattr(self, f'{name}_init_from')
      if folder and name not in ('policy', *self.NETWORKS):
        raise ValueError(
            f'config.{name}_init_from has no effect: {type(self).__name__} has no {name} network, '
            f'got {folder!r}'
        )
      if folder and not pathlib.Path(folder).is_dir():
        raise ValueError(f'config.{name}_init_from: not a directory: {folder!r}')

    if self.reference_init_from and not self.policy_init_from:
      raise ValueError(
          'config.reference_init_from needs config.policy_init_from (otherwise the fine-tuned '
          f'policy is the reference), got {self.reference_init_from!r}'
      )

    self.lora.validate('config.lora')
    if self.lora.rank and self.train_last_layers:
      raise ValueError(
          'config.train_last_layers must be 0 where adapters are trained (config.lora.rank = '
          f'{self.lora.rank}), got {self.train_last_layers}'
      )

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """Returns (rows, micro-batches) of each batch by field, to check against the mesh."""
    return {
        'sft.batch_size': (self.sft.batch_size, self.sft.algorithm.num_micro_batches),
        'evaluation.batch_size': (self.evaluation.batch_size, 1),
    }


@dataclasses.dataclass
class AStarPo(Experiment):
  """Config of experiments/a_star_po/.

  Attributes:
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

  algorithm: a_star_po.Config = dataclasses.field(default_factory=a_star_po.Config)
  optimizer: optim.OptimizerConfig = dataclasses.field(default_factory=optim.OptimizerConfig)
  steps: int = 100
  batch_size: int = 128
  stage1_batch_size: int = 256
  token_budget: int = 0
  eval_every: int = 20
  save_every: int = 20

  NETWORKS: ClassVar[tuple[str, ...]] = ('reference',)

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate()
    if isinstance(self.task, chat.Config):
      raise ValueError(
          'a chat task has no reward: experiments.sft can learn it, AStarPo cannot (config.task)'
      )

    checks.at_least(
        self, 'config', steps=0, batch_size=1, stage1_batch_size=1, token_budget=0,
        eval_every=1, save_every=1,
    )

    with checks.within('config.algorithm'):
      self.algorithm.validate()
    self.optimizer.validate('config.optimizer')
    check_schedule(
        self.optimizer, self.steps * self.algorithm.num_minibatches, 'config.optimizer'
    )

    if self.token_budget and self.optimizer.schedule != 'constant':
      raise ValueError(
          "config.token_budget needs optimizer.schedule 'constant' (the run's length is not known "
          f'before), got {self.optimizer.schedule!r}'
      )

    parts = self.algorithm.num_minibatches * self.algorithm.num_micro_batches
    if self.batch_size % parts:
      raise ValueError(
          f'config.batch_size must be divisible by num_minibatches x num_micro_batches ({parts}), '
          f'got {self.batch_size}'
      )

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """See `Experiment.batch_sizes`."""
    parts = self.algorithm.num_minibatches * self.algorithm.num_micro_batches
    return {
        **super().batch_sizes(),
        'batch_size': (self.batch_size, parts),
        'stage1_batch_size': (self.stage1_batch_size, 1),
    }


def check_schedule(optimizer: optim.OptimizerConfig, updates: int, prefix: str) -> None:
  """Raises ValueError if a decay that ends with the run would end before it begins."""
  ends_with_run = optimizer.schedule != 'constant' and not optimizer.total_steps
  if ends_with_run and optimizer.warmup_steps >= updates:
    raise ValueError(
        f'{prefix}.warmup_steps must be less than the {updates} optimizer steps of the run, got '
        f'{optimizer.warmup_steps}'
    )
