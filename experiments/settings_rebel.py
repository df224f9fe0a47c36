"""What the configs of experiments/rebel.py and experiments/reward_model.py can set."""

import dataclasses
import pathlib
from typing import Any, ClassVar

from experiments import settings
from jaxrl_llm.algorithms import rebel, reward_model
from jaxrl_llm.data import preference_rows
from jaxrl_llm.models import configs
from jaxrl_llm.models import lora as lora_lib
from jaxrl_llm.rewards import model_reward
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.training import optim

_MAKES_ONE = (
    '--config.reward_init_from=DIR (a *ForSequenceClassification checkpoint with one label, or '
    'WORKDIR/params of experiments.reward_model)'
)


@dataclasses.dataclass
class PreferencesTask:
  """Prompts and preferences; fields as in `tasks.preferences.make_task`, where 0 is no limit.

  `files` and `evaluation_files` name files in the data folder, with commas between them;
  `stop_tokens` likewise. A `file_pad_id` of -1 is none. A `tokenizer_dir` of '' is that of the
  policy's folder, or DATA_DIR/../tokenizers/qwen2 where the policy is drawn; `vocabulary` as in
  `settings.Gsm8kTask`. With `tfds_dir` the files are read through TFDS, prepared in that folder.
  """

  files: str = 'dpo_en_demo.json'
  evaluation_files: str = ''
  schema: str = 'conversations'
  fields: str = ''
  file_pad_id: int = -1
  tokenizer_dir: str = ''
  template: str = 'auto'
  stop_tokens: str = ''
  num_train: int = 0
  num_evaluation: int = 100
  max_prompt_tokens: int = 512
  max_response_tokens: int = 512
  vocabulary: str = 'full'
  max_vocabulary: int = 0
  tfds_dir: str = ''

  def make(
      self, seed: int, data_dir: str, tokenizer_dir: str = '', pretrained: bool = False
  ):
    """Builds the task; `data_dir` holds the files."""
    from jaxrl_llm.tasks import preferences

    if not data_dir:
      raise ValueError(
          f'the preferences task needs the folder of {self.files}: --config.data_dir=DIR')
    settings.at_least(
        self, 'config.task', num_train=0, num_evaluation=0, max_prompt_tokens=1,
        max_response_tokens=1, max_vocabulary=0, file_pad_id=-1,
    )
    folder = pathlib.Path(data_dir)
    split = lambda text: [name.strip() for name in text.split(',') if name.strip()]
    own = {field.name: getattr(self, field.name) for field in dataclasses.fields(PreferencesTask)}
    options = own | {
        'files': [folder / name for name in split(self.files)],
        'evaluation_files': [folder / name for name in split(self.evaluation_files)],
        'file_pad_id': None if self.file_pad_id < 0 else self.file_pad_id,
        'tokenizer_dir': (
            self.tokenizer_dir or tokenizer_dir or folder.parent / 'tokenizers' / 'qwen2'
        ),
        'stop_tokens': split(self.stop_tokens) or None,
        'num_train': self.num_train or None,
        **self._vocabulary(pretrained),
        'read': self._reader(),
    }
    del options['tfds_dir']
    return preferences.make_task(seed=seed, **options)

  def _vocabulary(self, pretrained: bool) -> dict[str, Any]:
    """`vocabulary` and `max_vocabulary` of the task."""
    kind = self.vocabulary
    if kind == 'auto':
      kind = 'full' if pretrained else 'compact'
    elif kind == 'compact' and pretrained:
      raise ValueError(
          "config.task.vocabulary must be 'full' or 'auto' for a policy from a Hugging Face "
          "checkpoint, whose ids are those of its tokenizer, got 'compact'"
      )
    limit = None if kind == 'full' and self.vocabulary == 'auto' else self.max_vocabulary or None
    return {'vocabulary': kind, 'max_vocabulary': limit}

  def _reader(self):
    """How a file is read."""
    if not self.tfds_dir:
      return preference_rows.read

    def read(file, **options):
      from jaxrl_llm.data.tfds_builders.preferences import preferences_dataset_builder

      return preferences_dataset_builder.read(file, cache_dir=self.tfds_dir, **options)

    return read


@dataclasses.dataclass
class RewardSettings:
  """How the reward model reads, and how its scores become rewards.

  Attributes:
    template: 'same': it reads the ids that were sampled, and shares the policy's tokenizer.
      Otherwise it reads text with its own: within its chat template ('auto', 'chatml' or a path),
      or 'none': behind the prompt's own text, or the data's reward_prompt_ids.
    max_tokens: of what it reads with a template of its own; 0 for 'same'.
    overlong: 'left' or 'right': where longer rows are cut; 'error'.
    scale: scores are divided by it, before the penalty.
    missing_stop_penalty: the reward of a response without a stop token.
    eos_check: which those are: see `masking.replace_scores_without_stop`; 'off' keeps all scores.
  """

  template: str = 'same'
  max_tokens: int = 0
  overlong: str = 'left'
  scale: float = 1.0
  missing_stop_penalty: float = -1.0
  eos_check: str = 'eos'

  def validate(self, prefix: str) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    if (self.template == 'same') != (self.max_tokens == 0) or self.max_tokens < 0:
      raise ValueError(
          f"{prefix}.max_tokens must be 0 with template 'same' (the task's limits hold), and "
          f'positive with another, got {self.max_tokens} with {self.template!r}'
      )
    if self.overlong not in model_reward.OVERLONG:
      raise ValueError(
          f'{prefix}.overlong must be one of {", ".join(model_reward.OVERLONG)}, got '
          f'{self.overlong!r}'
      )
    if self.template == 'same' and self.overlong != 'left':
      raise ValueError(
          f"{prefix}.overlong has no effect with template 'same': leave it at 'left', got "
          f'{self.overlong!r}'
      )
    if not 0 < self.scale < float('inf'):
      raise ValueError(f'{prefix}.scale must be positive and finite, got {self.scale}')
    if self.eos_check not in ('eos', 'pad', 'off'):
      raise ValueError(f"{prefix}.eos_check must be 'eos', 'pad' or 'off', got {self.eos_check!r}")
    if not abs(self.missing_stop_penalty) < float('inf'):
      raise ValueError(
          f'{prefix}.missing_stop_penalty must be finite, got {self.missing_stop_penalty}')
    if self.eos_check == 'off' and self.missing_stop_penalty:
      raise ValueError(
          f"{prefix}.missing_stop_penalty must be 0 with eos_check 'off', got "
          f'{self.missing_stop_penalty}'
      )


@dataclasses.dataclass
class RebelEvaluation:
  """How policies are evaluated on the held-out prompts.

  Attributes:
    num_samples: samples a prompt at the temperature of training; scores, lengths and the
      divergence are theirs.
    temperature: of one more response a prompt, as the policy would be used; 0 is greedy.
    batch_size: prompts a batch.
    num_shown: prompts whose responses go to samples.jsonl each time.
  """

  num_samples: int = 1
  temperature: float = 0.01
  batch_size: int = 64
  num_shown: int = 4

  def validate(self, prefix: str) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    settings.at_least(self, prefix, num_samples=1, batch_size=1, num_shown=0)
    if not 0 <= self.temperature < float('inf'):
      raise ValueError(
          f'{prefix}.temperature must be 0 (greedy) or positive, got {self.temperature}')


@dataclasses.dataclass
class RewardModel:
  """One run of experiments/reward_model.py.

  Attributes:
    seed: of everything that is drawn.
    data_dir: folder of the task's data.
    task: its files hold pairs.
    model: the shape, as in `settings.Experiment`.
    policy_init_from: a policy (or a reward model, whose head is then kept), as there; '' draws
      everything.
    head_init: of a head that is drawn: 'normal' (standard deviation (D + 1)^-1/2) or 'zero'.
    algorithm: settings of the loss.
    optimizer: its settings.
    steps: optimizer steps; 0 for one pass over the pairs.
    batch_size: pairs a step.
    evaluation_batch_size: pairs a batch where nothing is trained.
    centre: whether the mean score of reference responses is taken off every score.
    centring_file: a file of them in the data folder; '' for the chosen responses of the pairs.
    centring_schema: its schema; '' for that of the task.
    eval_every: steps between evaluations; the last step is followed by one in any case.
    save_every: steps between checkpoints.
    log_every: steps between lines in metrics.jsonl.
    mesh: sizes of the device mesh.
    wandb_project: a Weights & Biases project; '' is off.
    note: what a reader must know about the setting; printed with its results.
    scale_note: the same of what was scaled down for a model that is drawn.
  """

  seed: int = 0
  data_dir: str = ''
  task: PreferencesTask = dataclasses.field(default_factory=PreferencesTask)
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

  # All parameters are trained (`components.build`).
  lora: ClassVar[lora_lib.LoraConfig] = lora_lib.LoraConfig()
  train_last_layers: ClassVar[int] = 0

  def validate(self) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    settings.at_least(
        self, 'config', seed=0, steps=0, batch_size=1, evaluation_batch_size=1, eval_every=1,
        save_every=1, log_every=1,
    )
    if self.policy_init_from and not pathlib.Path(self.policy_init_from).is_dir():
      raise ValueError(f'config.policy_init_from is no folder: {self.policy_init_from!r}')
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
    with settings.named('config.model'):
      dataclasses.replace(self.model, vocab_size=self.model.vocab_size or 1).validate()
    with settings.named('config.algorithm'):
      self.algorithm.validate()
    self.optimizer.validate('config.optimizer')
    self.mesh.validate()
    _check_divides('config', self.batch_size, self.algorithm.num_micro_batches)

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """As in `settings.Experiment`."""
    return {
        'batch_size': (self.batch_size, self.algorithm.num_micro_batches),
        'evaluation_batch_size': (self.evaluation_batch_size, 1),
    }


@dataclasses.dataclass
class LearnedReward(settings.Experiment):
  """What all pipelines with a reward model have.

  Attributes:
    task: prompts.
    evaluation: how policies are evaluated.
    reward: how the reward model (`reward_init_from`) reads.
    algorithm: settings of the algorithm.
    optimizer: its settings.
    batch_size: prompts a batch.
    save_every: batches between checkpoints.
  """

  task: PreferencesTask = dataclasses.field(default_factory=PreferencesTask)
  evaluation: RebelEvaluation = dataclasses.field(default_factory=RebelEvaluation)
  reward: RewardSettings = dataclasses.field(default_factory=RewardSettings)
  algorithm: rebel.Config = dataclasses.field(default_factory=rebel.Config)
  optimizer: optim.OptimizerConfig = dataclasses.field(default_factory=optim.OptimizerConfig)
  batch_size: int = 32
  save_every: int = 20

  NETWORKS: ClassVar[tuple[str, ...]] = ('reference', 'reward')
  METHOD: ClassVar[str] = 'REBEL'

  def validate(self) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    super().validate()
    settings.at_least(self, 'config', batch_size=1, save_every=1)
    if not self.reward_init_from:
      raise ValueError(f'{self.METHOD} needs a reward model: {_MAKES_ONE}, got none')
    self.reward.validate('config.reward')
    with settings.named('config.algorithm'):
      self.algorithm.validate()
    self.optimizer.validate('config.optimizer')
    _check_divides('config', self.batch_size, self.parts)

  @property
  def parts(self) -> int:
    """Into how many parts a batch is cut, to fit the memory."""
    return self.algorithm.num_minibatches * self.algorithm.num_micro_batches

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """As in `settings.Experiment`."""
    return {**super().batch_sizes(), 'batch_size': (self.batch_size, self.parts)}


@dataclasses.dataclass
class Online(LearnedReward):
  """The online pipelines of experiments/rebel.py: sample, score, fit, again and again.

  Attributes:
    num_comparators: M further samples a prompt that a pair is compared with, where
      algorithm.signal is 'preferences'; 0 otherwise.
    steps: batches of rollouts.
    eval_every: batches between evaluations; one stands before the first batch and one after the
      last, in any case.
  """

  num_comparators: int = 0
  steps: int = 100
  eval_every: int = 20

  def validate(self) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    super().validate()
    settings.at_least(self, 'config', steps=0, eval_every=1, num_comparators=0)
    if (self.algorithm.signal == 'preferences') != (self.num_comparators > 0):
      raise ValueError(
          "config.num_comparators must be positive with algorithm.signal 'preferences', and 0 "
          f'with {"rewards"!r}, got {self.num_comparators} with {self.algorithm.signal!r}'
      )
    settings.check_schedule(
        self.optimizer, self.steps * self.algorithm.num_epochs * self.algorithm.num_minibatches,
        'config.optimizer')


@dataclasses.dataclass
class LargeBatch(LearnedReward):
  """The large-batch pipeline of experiments/rebel.py: generate, rank, filter, fit once; iterated.

  Attributes:
    rounds: iterations of all stages, each from the policy of the one before.
    top_p: of the generated responses; log-probs are of the whole distribution, as in the
      released code.
    keep_truncated: whether a prompt stays of which a response did not stop.
    generation_batch_size: prompts a batch where responses are generated, ranked and scored.
    steps: batches of pairs a round; 0 for one pass.
    eval_every: batches between evaluations on held-out pairs.
  """

  rounds: int = 3
  top_p: float = 0.9
  keep_truncated: bool = False
  generation_batch_size: int = 64
  steps: int = 0
  eval_every: int = 50

  def validate(self) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    super().validate()
    settings.at_least(
        self, 'config', rounds=1, generation_batch_size=1, steps=0, eval_every=1)
    if not 0 < self.top_p <= 1:
      raise ValueError(f'config.top_p must lie in (0, 1], got {self.top_p}')
    for name, only, why in (
        ('pairs', 'best_worst', 'the best and the worst response are kept'),
        ('signal', 'rewards', 'responses are ranked'),
        ('kl_coefficient', 0.0, 'rewards are not shaped'),
        ('offline_fraction', 0.0, 'both responses are generated'),
        ('whiten_rewards', False, 'rewards are not shaped'),
    ):
      if getattr(self.algorithm, name) != only:
        raise ValueError(
            f'config.algorithm.{name} must be {only!r} in the large-batch pipeline ({why}), got '
            f'{getattr(self.algorithm, name)!r}'
        )

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """As in `settings.Experiment`."""
    return {**super().batch_sizes(), 'generation_batch_size': (self.generation_batch_size, 1)}


def _check_divides(prefix: str, batch_size: int, parts: int) -> None:
  if batch_size % parts:
    raise ValueError(
        f'{prefix}.batch_size must be divided by num_minibatches x num_micro_batches ({parts}), '
        f'got {batch_size}'
    )
