"""Configs shared by the programs: plain, typed, mutable dataclasses.

A config file fills them in (`get_config`), flags override them
(`--config.optimizer.learning_rate=1e-3`), and `validate` checks them once.
"""

import dataclasses

from jaxrl_llm import checks
from jaxrl_llm.algorithms import sft
from jaxrl_llm.data import mixtures, sft_batches
from jaxrl_llm.models import configs
from jaxrl_llm.models import lora as lora_lib
from jaxrl_llm.runs import launch, memory
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.tasks import arithmetic, chat, own_data
from jaxrl_llm.tasks import config as task_config
from jaxrl_llm.training import optim
from jaxrl_llm.types import Task


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
    checks.one_of(self, prefix, loss_on=sft_batches.LOSS_ON)
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
    head_chunk: positions per chunk of the head; 0 takes all at once.
  """

  num_samples: int = 4
  batch_size: int = 256
  control_temperature: float = 0.5
  num_shown: int = 8
  head_chunk: int = 128

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(self, prefix, num_samples=1, batch_size=1, num_shown=0, head_chunk=0)
    checks.positive(self, prefix, 'control_temperature')


@dataclasses.dataclass
class RunConfig:
  """Fields of every program that builds a task and a policy (`runs.setup.build`).

  Attributes:
    seed: seed of all random numbers.
    data_dir: directory of the task's real data; '' if it needs none.
    task: config of the task.
    model: the policy's shape; a `vocab_size` of 0 is filled in from the tokenizer.
    policy_init_from: directory of initial parameters: a Hugging Face checkpoint, or output
      of a run (WORKDIR/params, WORKDIR/trained); '' initialises them randomly. It decides
      the model's shape.
    mesh: sizes of the device mesh.
    note: a note on the config for readers; printed with its results.
  """

  seed: int = 0
  data_dir: str = ''
  task: task_config.TaskConfig = dataclasses.field(default_factory=arithmetic.Config)
  model: configs.TransformerConfig = dataclasses.field(default_factory=configs.TransformerConfig)
  policy_init_from: str = ''
  mesh: mesh_lib.MeshConfig = dataclasses.field(default_factory=mesh_lib.MeshConfig)
  note: str = ''

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(self, 'config', seed=0)
    checks.model_directory(self, 'config', 'policy_init_from')
    with checks.within('config.model'):
      dataclasses.replace(self.model, vocab_size=self.model.vocab_size or 1).validate()
    self.mesh.validate()

  def set_task(self, files: str) -> None:
    """Makes `task` one of the given files: `--config.task=FILE` on the command line.

    Args:
      files: comma-separated paths.
    """
    self.task = own_data.problems(self.task, files)

  def used(self, task: Task, *, fine_tunes: bool = False) -> Task:
    """Returns the task without examples that the program never reads.

    Args:
      task: the task.
      fine_tunes: whether the program fine-tunes a loaded policy too, as experiments/sft.py does.
    """
    del fine_tunes
    return task

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """Returns (rows, micro-batches) of each batch by field, to check against the mesh."""
    return {}

  def num_rows(self) -> dict[str, int]:
    """Returns the number of sequences that are sampled or scored at once, by field."""
    return {name: size // parts for name, (size, parts) in self.batch_sizes().items()}

  def memory(self) -> dict[str, int]:
    """Returns the bytes that a run needs at least, by what needs them; see `runs.memory`."""
    is_drawn = not self.policy_init_from  # Otherwise the directory decides the shape.
    contributors = {
        f'the {rows} sequences of config.{name}':
            memory.cache_bytes(self.model, rows, 1) if is_drawn else 4 * rows
        for name, rows in self.num_rows().items()}
    if is_drawn:
      size = memory.item_bytes(self.model.param_dtype)
      contributors['the parameters (config.model)'] = size * memory.num_weights(self.model)
    return contributors


@dataclasses.dataclass
class TrainingConfig(RunConfig):
  """Fields of every program that trains a network from the policy.

  Attributes:
    wandb_project: a Weights & Biases project; '' turns W&B off.
    scale_note: a note on what was scaled down, for a randomly initialised policy.
  """

  wandb_project: str = ''
  scale_note: str = ''


@dataclasses.dataclass
class PromptConfig(RunConfig):
  """Fields of every program that samples responses to a task's prompts.

  Attributes:
    chat_template: 'auto' for the template of the checkpoint in `policy_init_from`, if it has one;
      'none'; 'chatml'; or the path of a template. With a template the prompt is the user's message.
      It must be 'auto' for a task that has a template of its own (`task.template`).
    system: system message for the template; '' for none.
  """

  chat_template: str = 'auto'
  system: str = ''

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate()
    if self.task.has_own_template():
      checks.fixed(
          self, 'config', 'for a task with config.task.template', chat_template='auto', system='')
    if self.chat_template == 'none':
      checks.fixed(self, 'config', "with chat_template 'none'", system='')


@dataclasses.dataclass
class PolicyConfig(PromptConfig, TrainingConfig):
  """Config of experiments/sft.py, and the part common to all programs that train a policy.

  Attributes:
    lora: low-rank adapters; if the rank is positive, only they are trained.
    train_last_layers: if positive, only this many last blocks, the last norm and the head
      are trained.
    sft: supervised fine-tuning; RL programs skip it if the policy is loaded.
    evaluation: evaluation of the policy.
  """

  lora: lora_lib.LoraConfig = dataclasses.field(default_factory=lora_lib.LoraConfig)
  train_last_layers: int = 0
  sft: SftConfig = dataclasses.field(default_factory=SftConfig)
  evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate()
    checks.at_least(self, 'config', train_last_layers=0)
    self.lora.validate('config.lora')
    self.sft.validate('config.sft')
    self.evaluation.validate('config.evaluation')

    if self.lora.rank:
      checks.fixed(self, 'config', 'if config.lora.rank is positive', train_last_layers=0)
    if self.policy_init_from:
      return

    if self.sft.packed_length > self.model.max_length:
      raise ValueError(
          'config.sft.packed_length must be at most config.model.max_length '
          f'({self.model.max_length}), got {self.sft.packed_length}'
      )
    if self.sft.steps == 0:
      raise ValueError(
          'config.sft.steps must be at least 1 without --config.policy_init_from=DIR (a policy '
          'that is neither loaded nor fine-tuned samples noise), got 0'
      )

  def set_task(self, files: str) -> None:
    """See `RunConfig.set_task`; the first row of the files decides which kind of task it is."""
    self.task = own_data.demonstrations(self.task, files)

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """See `RunConfig.batch_sizes`."""
    return {
        'sft.batch_size': (self.sft.batch_size, self.sft.algorithm.num_micro_batches),
        'evaluation.batch_size': (self.evaluation.batch_size, 1),
    }

  def num_rows(self) -> dict[str, int]:
    """See `RunConfig.num_rows`."""
    samples = self.evaluation.batch_size * self.evaluation.num_samples
    return {**super().num_rows(), 'evaluation.num_samples': samples}

  def memory(self) -> dict[str, int]:
    """See `RunConfig.memory`."""
    contributors = super().memory() | memory.adapters(self.model, self.lora.rank)
    if not (self.policy_init_from or self.lora.rank or self.train_last_layers):
      contributors["the optimizer's moments (config.model)"] = 2 * 4 * memory.num_weights(
          self.model)
    return contributors


@dataclasses.dataclass
class ReinforcementConfig(PolicyConfig):
  """The part common to all programs that train a policy against a frozen reference.

  Attributes:
    reference_init_from: as `policy_init_from`, for the reference; '' means the policy's.
  """

  reference_init_from: str = ''

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate()
    checks.model_directory(self, 'config', 'reference_init_from')
    if self.reference_init_from and not self.policy_init_from:
      raise ValueError(
          'config.reference_init_from needs config.policy_init_from (otherwise the fine-tuned '
          f'policy is the reference), got {self.reference_init_from!r}'
      )

  def set_task(self, files: str) -> None:
    """See `RunConfig.set_task`; a tenth of the problems is held out unless the config says else."""
    self.task = own_data.problems(self.task, files, evaluation_fraction=own_data.FRACTION)

  def used(self, task: Task, *, fine_tunes: bool = False) -> Task:
    """See `RunConfig.used`; only a program that fine-tunes anyway fine-tunes a loaded policy.

    Raises:
      ValueError: if there is nothing to train on.
    """
    if not task.train:
      raise ValueError(f'{task.name} has no training problems (config.task)')
    is_read = fine_tunes or not self.policy_init_from
    return task if is_read else dataclasses.replace(task, demonstrations=[])


@dataclasses.dataclass
class VerifiedConfig(ReinforcementConfig):
  """The part common to all programs whose reward is the task's own; they add `algorithm`.

  Attributes:
    optimizer: optimizer of the policy.
    steps: batches of rollouts.
    batch_size: prompts per batch.
    token_budget: if positive, training ends with the batch after which this many tokens have been
      sampled for it (`steps` is then an upper bound).
    eval_every: batches between evaluations; there is always one before the first batch and one
      after the last.
    save_every: batches between checkpoints.
  """

  optimizer: optim.OptimizerConfig = dataclasses.field(default_factory=optim.OptimizerConfig)
  steps: int = 100
  batch_size: int = 128
  token_budget: int = 0
  eval_every: int = 20
  save_every: int = 20

  @property
  def updates_per_batch(self) -> int:
    """Number of optimizer steps on a batch."""
    raise NotImplementedError

  @property
  def num_parts(self) -> int:
    """Number of parts that a batch is split into."""
    raise NotImplementedError

  def tokens_left(self, sampled: int = 0) -> int | None:
    """Returns what remains of the budget after `sampled` tokens, or None without a budget."""
    return max(self.token_budget - sampled, 0) if self.token_budget else None

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate()
    if isinstance(self.task, chat.Config):
      raise ValueError(
          'config.task must have a reward, which chat does not: fine-tune on it with '
          'experiments.sft'
      )
    checks.at_least(
        self, 'config', steps=0, batch_size=1, token_budget=0, eval_every=1, save_every=1)
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
    check_schedule(self.optimizer, self.steps * self.updates_per_batch, 'config.optimizer')

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """See `RunConfig.batch_sizes`."""
    return {**super().batch_sizes(), 'batch_size': (self.batch_size, self.num_parts)}


def check_overrides(run: launch.Run) -> None:
  """Raises ValueError for overrides of `sft` in a run that does not fine-tune."""
  unused = [name for name in run.overrides if name.startswith('sft.')]
  if run.config.policy_init_from and unused:
    raise ValueError(
        f'config.{unused[0]} has no effect with config.policy_init_from: nothing is fine-tuned')


def check_schedule(optimizer: optim.OptimizerConfig, updates: int, prefix: str) -> None:
  """Raises ValueError if steps cannot be counted, or a decay would end before it begins."""
  if updates >= 2**31:
    raise ValueError(f'a run must take fewer than 2**31 optimizer steps, got {updates} ({prefix})')
  ends_with_run = optimizer.schedule != 'constant' and not optimizer.total_steps
  if ends_with_run and optimizer.warmup_steps >= updates:
    raise ValueError(
        f'{prefix}.warmup_steps must be less than the {updates} optimizer steps of the run, got '
        f'{optimizer.warmup_steps}'
    )
