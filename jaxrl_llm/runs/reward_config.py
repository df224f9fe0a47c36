"""Configs shared by all pipelines with a reward model: preferences, rewards, evaluation."""

import dataclasses

from jaxrl_llm import checks
from jaxrl_llm.algorithms import rebel
from jaxrl_llm.rewards import model_reward
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.tasks import own_data, preferences
from jaxrl_llm.training import optim

EOS_CHECKS = ('eos', 'pad', 'off')


@dataclasses.dataclass
class RewardConfig:
  """Input of the reward model, and the conversion of its scores to rewards.

  Attributes:
    template: 'same' if the model reads the sampled ids and shares the policy's tokenizer.
      Otherwise it reads text with its own tokenizer: in its chat template ('auto', 'chatml' or a
      path), or, with 'none', the prompt's text (or the data's reward_prompt_ids) and the response.
    max_tokens: maximum input length with another template; 0 for 'same'.
    overlong: 'left' or 'right', the side on which longer rows are cut; or 'error'.
    scale: divisor of the scores, applied before the penalty.
    missing_stop_penalty: the reward of a response without a stop token.
    eos_check: rule for a missing stop token, see `masking.replace_scores_without_stop`; 'off'
      keeps all scores.
  """

  template: str = 'same'
  max_tokens: int = 0
  overlong: str = 'left'
  scale: float = 1.0
  missing_stop_penalty: float = -1.0
  eos_check: str = 'eos'

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    if (self.template == 'same') != (self.max_tokens == 0) or self.max_tokens < 0:
      raise ValueError(
          f"{prefix}.max_tokens must be 0 with template 'same' (the task has the limits), and "
          f'positive with another, got {self.max_tokens} with {self.template!r}'
      )
    checks.one_of(self, prefix, overlong=model_reward.OVERLONG, eos_check=EOS_CHECKS)
    checks.positive(self, prefix, 'scale')
    checks.finite(self, prefix, 'missing_stop_penalty')

    if self.template == 'same':
      checks.fixed(self, prefix, "with template 'same'", overlong='left')
    if self.eos_check == 'off':
      checks.fixed(self, prefix, "with eos_check 'off'", missing_stop_penalty=0.0)


@dataclasses.dataclass
class RebelEvaluation:
  """Evaluation of policies on the held-out prompts.

  Attributes:
    num_samples: samples per prompt at the training temperature, for scores, lengths and the
      KL divergence.
    temperature: temperature of one more response per prompt, as the policy would be deployed; 0
      is greedy.
    batch_size: prompts per batch.
    num_shown: number of prompts whose responses go to samples.jsonl each time.
    head_chunk: positions per chunk of the head; 0 takes all at once.
  """

  num_samples: int = 1
  temperature: float = 0.01
  batch_size: int = 64
  num_shown: int = 4
  head_chunk: int = 128

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(self, prefix, num_samples=1, batch_size=1, num_shown=0, head_chunk=0)
    checks.non_negative(self, prefix, 'temperature')


@dataclasses.dataclass
class LearnedReward(config_lib.ReinforcementConfig):
  """Config common to all pipelines with a reward model.

  Attributes:
    task: config of the prompts.
    evaluation: config of the evaluation.
    reward_init_from: as `policy_init_from`, for the reward model.
    reward: config of the rewards.
    algorithm: config of the algorithm.
    optimizer: config of the optimizer.
    batch_size: prompts per batch.
    save_every: batches between checkpoints.
  """

  task: preferences.Config = dataclasses.field(default_factory=preferences.Config)
  evaluation: RebelEvaluation = dataclasses.field(default_factory=RebelEvaluation)
  reward_init_from: str = ''
  reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
  algorithm: rebel.Config = dataclasses.field(default_factory=rebel.Config)
  optimizer: optim.OptimizerConfig = dataclasses.field(default_factory=optim.OptimizerConfig)
  batch_size: int = 32
  save_every: int = 20

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate()
    checks.at_least(self, 'config', batch_size=1, save_every=1)
    if not self.reward_init_from:
      raise ValueError(
          'config.reward_init_from must be the directory of a reward model (a '
          '*ForSequenceClassification checkpoint with one label, or WORKDIR/params of '
          "experiments.reward_model), got ''"
      )
    checks.model_directory(self, 'config', 'reward_init_from')

    self.reward.validate('config.reward')
    with checks.within('config.algorithm'):
      self.algorithm.validate()
    self.optimizer.validate('config.optimizer')
    checks.divisible(
        self, 'config', 'batch_size', self.num_parts, 'num_minibatches * num_micro_batches')

  @property
  def num_parts(self) -> int:
    """Number of parts that a batch is split into, to fit in memory."""
    return self.algorithm.num_minibatches * self.algorithm.num_micro_batches

  def set_task(self, files: str) -> None:
    """See `config_lib.RunConfig.set_task`; the task keeps its kind."""
    self.task = own_data.with_files(self.task, files)

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """See `config_lib.RunConfig.batch_sizes`."""
    return {**super().batch_sizes(), 'batch_size': (self.batch_size, self.num_parts)}

  def num_rows(self) -> dict[str, int]:
    """See `config_lib.RunConfig.num_rows`."""
    samples = self.batch_size * self.algorithm.samples_per_prompt
    return {**super().num_rows(), 'algorithm.samples_per_prompt': samples}
