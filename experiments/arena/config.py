"""What a config of the arena can set."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxrl_llm import checks
from jaxrl_llm.algorithms import reward_model
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.training import optim

TASKS = ('arithmetic', 'summarisation', 'dialogue')
# Arms that train nothing: what the others are measured against.
UNTRAINED = ('sft', 'best_of_n')


@dataclasses.dataclass
class SummarisationTask:
  """Toy summarisation; fields as in `tasks.summarisation.make_task`."""

  num_demonstrations: int = 8_000
  num_train: int = 2_000
  num_evaluation: int = 512
  corruption_rate: float = 0.3

  def make(self, seed: int):
    """Builds the task."""
    from jaxrl_llm.tasks import summarisation

    return summarisation.make_task(seed=seed, **dataclasses.asdict(self))


@dataclasses.dataclass
class ArithmeticTask(config_lib.ArithmeticTask):
  """Addition with forgotten carries."""

  def make(self, seed: int):
    """Builds the task."""
    return super().make(seed, data_dir='')


@dataclasses.dataclass
class DialogueTask:
  """Toy dialogue; fields as in `tasks.dialogue.make_task`, and the following.

  Attributes:
    num_turns: H.
    fixed_questions: the user's messages are those of a recorded dialogue, whatever is replied.
  """

  num_demonstrations: int = 4_000
  num_train: int = 2_000
  num_evaluation: int = 500
  num_turns: int = 5
  fixed_questions: bool = False

  def make(self, seed: int):
    """Builds the task."""
    from jaxrl_llm.tasks import dialogue

    return dialogue.make_task(
        seed=seed, num_demonstrations=self.num_demonstrations, num_train=self.num_train,
        num_evaluation=self.num_evaluation, world=dialogue.World(num_turns=self.num_turns))


@dataclasses.dataclass
class Arm:
  """How one algorithm is run.

  Attributes:
    file: of the algorithm, in jaxrl_llm/algorithms.
    algorithm: the algorithm's own settings.
    optimizer: of all of its networks.
    refresh_every: iterations that one policy samples for; 0: the reference samples for all of
      them, and the labels are those of the preference data (offline).
  """

  file: str
  algorithm: Any
  optimizer: optim.OptimizerConfig
  refresh_every: int = 1

  @property
  def num_samples(self) -> int:
    """Samples a prompt in training; A*-PO's `samples_per_prompt` are those of its stage 1."""
    return 1 if self.file == 'a_star_po' else self.algorithm.samples_per_prompt

  def validate(self, prefix: str) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    checks.at_least(self, prefix, refresh_every=0)
    _keep(self.optimizer, f'{prefix}.optimizer', schedule='constant')
    # What another binary reads, or what would need other data than an arm draws.
    if self.file == 'rebel':
      _keep(self.algorithm, f'{prefix}.algorithm', signal='rewards', offline_fraction=0.0)
    if self.file == 'a_star_po':
      _keep(self.algorithm, f'{prefix}.algorithm', stage1_reward='identical', num_minibatches=1)
    try:
      self.algorithm.validate()
    except ValueError as error:
      raise ValueError(f'{error} ({prefix}.algorithm)') from error
    self.optimizer.validate(f'{prefix}.optimizer')


def _keep(owner: Any, prefix: str, **values: Any) -> None:
  """Raises ValueError if a field that the arena does not read has another value."""
  for name, value in values.items():
    if getattr(owner, name) != value:
      raise ValueError(
          f'{prefix}.{name} must be {value!r} in the arena, got {getattr(owner, name)!r}')


@dataclasses.dataclass
class DialogueArm(Arm):
  """Where the two replies of a pair stand; REFUEL's are its own dialogues at a drawn turn.

  Attributes:
    prefix: what stands before them: 'own' dialogues with the user, 'offline' ones that the
      behaviour policy led, or both in turn ('mixed').
    turn: the law of h: REFUEL's settings 'one' or 'two', or the 'last' of a whole dialogue.
    iterations: of the whole run; `num_minibatches` follows, so that all arms take as many steps;
      0: as many as the budget has batches.
  """

  prefix: str = 'own'
  turn: str = 'two'
  iterations: int = 0

  def validate(self, prefix: str) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    super().validate(prefix)
    checks.at_least(self, prefix, iterations=0)
    for name, allowed in (
        ('prefix', ('own', 'offline', 'mixed')), ('turn', ('one', 'two', 'last')),
        ('refresh_every', (1,)),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(
            f'{prefix}.{name} must be one of {allowed}, got {getattr(self, name)!r}')


def arms(**by_name: Arm) -> Any:
  """A dataclass with a field for each arm, so that flags reach their settings by name."""
  kinds = [(name, type(arm)) for name, arm in by_name.items()]
  return dataclasses.make_dataclass('Arms', kinds)(**by_name)


@dataclasses.dataclass
class RewardModelSettings:
  """A Bradley-Terry reward model from noisy labels of pairs that the reference sampled.

  Attributes:
    num_pairs: pairs, one for each prompt of the demonstrations in turn; 0: no reward model, the
      task's own score is the reward.
    label_noise: of the judge, in units of the gold score.
    steps: optimizer steps.
    batch_size: pairs a step.
    missing_stop_penalty: the reward of a response that did not stop.
    algorithm: settings of the loss.
    optimizer: of the reward model.
  """

  num_pairs: int = 0
  label_noise: float = 0.3
  steps: int = 300
  batch_size: int = 64
  missing_stop_penalty: float = -1.0
  algorithm: reward_model.Config = dataclasses.field(default_factory=reward_model.Config)
  optimizer: optim.OptimizerConfig = dataclasses.field(default_factory=lambda: (
      optim.OptimizerConfig(name='adam', learning_rate=3e-4, schedule='constant')))

  def validate(self, prefix: str) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    checks.at_least(self, prefix, num_pairs=0, steps=1, batch_size=1)
    if not 0 < self.label_noise < float('inf'):
      raise ValueError(f'{prefix}.label_noise must be positive, got {self.label_noise}')
    self.algorithm.validate()
    self.optimizer.validate(f'{prefix}.optimizer')


@dataclasses.dataclass
class World:
  """A task with everything that all arms share.

  Attributes:
    task: its settings, with `make(seed)`.
    model: the policy's shape, and that of the critic and the reward model.
    sft: supervised fine-tuning of the reference.
    reward_model: a learned reward, or the task's own.
    completions: what an arm may sample in training, stage 1 of A*-PO included.
    batch_completions: of one iteration.
    num_evaluations: points of a learning curve, the first one before any training.
    eval_samples: samples at temperature 1 for each held-out prompt.
    best_of: n of the arm best_of_n.
    one_reference: the first seed's posts, reference and reward model serve all seeds, as in the
      papers; the others vary training and evaluation alone.
    arms: the algorithms' settings.
    untrained: arms that train nothing.
  """

  task: Any
  model: configs.TransformerConfig
  sft: config_lib.SftSettings
  arms: Any
  reward_model: RewardModelSettings = dataclasses.field(default_factory=RewardModelSettings)
  completions: int = 25_600
  batch_completions: int = 128
  num_evaluations: int = 9
  eval_samples: int = 2
  best_of: int = 8
  one_reference: bool = False
  untrained: tuple[str, ...] = UNTRAINED

  def validate(self, prefix: str, names: Sequence[str] | None = None) -> None:
    """Raises ValueError with one line for the first field that is out of range.

    Args:
      prefix: of the fields.
      names: the arms that are looked at; None for all.
    """
    dataclasses.replace(self.model, vocab_size=self.model.vocab_size or 1).validate()
    self.sft.validate(f'{prefix}.sft')
    _keep(self.sft, f'{prefix}.sft', packed_length=0, mixture='')
    checks.at_least(
        self, prefix, completions=1, batch_completions=1, num_evaluations=2, eval_samples=1,
        best_of=2,
    )
    self.reward_model.validate(f'{prefix}.reward_model')
    for name in self.names() if names is None else names:
      if name in UNTRAINED:
        continue
      arm = getattr(self.arms, name)
      arm.validate(f'{prefix}.arms.{name}')
      if self.batch_completions % arm.num_samples:
        raise ValueError(
            f'{prefix}.batch_completions must be divisible by the {arm.num_samples} samples a '
            f'prompt of {name}, got {self.batch_completions}'
        )
      parts = getattr(arm, 'iterations', 0)
      if parts and self.completions % (parts * self.batch_completions):
        raise ValueError(
            f'{prefix}.completions must be whole batches for the {parts} iterations of {name}, '
            f'got {self.completions}'
        )

  def names(self) -> list[str]:
    """Every arm, in the order in which they are shown."""
    return [*self.untrained, *(field.name for field in dataclasses.fields(self.arms))]


@dataclasses.dataclass
class Arena:
  """One run of experiments/arena/.

  Attributes:
    seed: the first seed.
    num_seeds: so many seeds from `seed` on.
    task: which of the worlds below.
    algorithms: names of arms with commas between them; '' is all of them.
    arithmetic: the world of addition.
    summarisation: the world of summaries.
    dialogue: the world of dialogues.
    note: what a reader must know about the setting; printed with its results.
  """

  arithmetic: World
  summarisation: World
  dialogue: World
  seed: int = 0
  num_seeds: int = 5
  task: str = 'arithmetic'
  algorithms: str = ''
  note: str = ''

  def validate(self) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    checks.at_least(self, 'config', seed=0, num_seeds=1)
    if self.task not in TASKS:
      raise ValueError(f'config.task must be one of {", ".join(TASKS)}, got {self.task!r}')
    for name in self.algorithms.split(',') if self.algorithms else ():
      if name not in self.world.names():
        raise ValueError(
            f'config.algorithms must be some of {", ".join(self.world.names())}, got {name!r}')
    self.world.validate(f'config.{self.task}', self.chosen())

  @property
  def world(self) -> World:
    """The world of `task`."""
    return getattr(self, self.task)

  @property
  def study(self) -> str:
    """Whose criteria apply: the task's, or those of a variant of it."""
    if self.task == 'dialogue' and self.dialogue.task.num_turns == 1:
      return 'dialogue_of_one_turn'
    if self.task == 'dialogue' and self.dialogue.task.fixed_questions:
      return 'dialogue_with_fixed_questions'
    return self.task

  def chosen(self) -> list[str]:
    """The arms to run, in the order in which they are shown."""
    names = self.world.names()
    wanted = self.algorithms.split(',') if self.algorithms else names
    return [name for name in names if name in wanted]
