"""Config of experiments/refuel/."""

import dataclasses
import os
from typing import Any

from experiments.refuel import dialogues
from jaxrl_llm import checks
from jaxrl_llm.algorithms import refuel
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import reward_config

KINDS = ('fixed', 'model', 'endpoint')

# Fields of `UserConfig` that each kind of user reads.
_READ = {
    'fixed': (),
    'model': ('init_from', 'temperature', 'max_tokens', 'mark', 'instruction'),
    'endpoint': (
        'url', 'model', 'key_variable', 'temperature', 'max_tokens', 'mark', 'instruction',
        'timeout', 'retries', 'workers',
    ),
}


@dataclasses.dataclass
class UserConfig:
  """The policy's dialogue partner. Fields that a kind does not read must keep their defaults.

  Attributes:
    kind: 'fixed': the questions of the data, regardless of the replies (setting two). 'model':
      another model on the same devices. 'endpoint': a model on an OpenAI-compatible server.
    init_from: the model's directory, with the policy's tokenizer; '' is the reference.
    url: base URL of the server's API, such as http://localhost:8000/v1.
    model: the model's name on the server.
    key_variable: environment variable that holds the server's key; '' for none.
    temperature: sampling temperature of the user; 0 is greedy for a model.
    max_tokens: maximum tokens per message, reasons included.
    mark: the message is the text after the last mark: the user is asked to give its reasons first.
      '' for a model: it continues after the header of the user's turn, and all its text is used.
    instruction: replaces our instruction to the user; it must name the mark.
    timeout: seconds to wait for an answer of the server.
    retries: further requests after a transient failure.
    workers: concurrent requests.
  """

  kind: str = 'fixed'
  init_from: str = ''
  url: str = ''
  model: str = ''
  key_variable: str = ''
  temperature: float = 0.8
  max_tokens: int = 1_024
  mark: str = ''
  instruction: str = ''
  timeout: float = 60.0
  retries: int = 3
  workers: int = 8

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.one_of(self, prefix, kind=KINDS)

    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name not in ('kind', *_READ[self.kind]) and value != field.default:
        raise ValueError(
            f'{prefix}.{field.name} has no effect with kind {self.kind!r}, got {value!r}')

    checks.at_least(self, prefix, max_tokens=1, retries=0, workers=1)
    checks.non_negative(self, prefix, 'temperature')
    checks.finite(self, prefix, 'timeout')
    checks.at_least(self, prefix, timeout=1e-3)

    if self.instruction and self.mark not in self.instruction:
      raise ValueError(
          f'{prefix}.instruction must name the mark {self.mark!r}, got {self.instruction!r}')
    if self.instruction and not self.mark:
      raise ValueError(f'{prefix}.instruction needs a mark, got {self.instruction!r}')
    if self.kind == 'endpoint':
      self._validate_endpoint(prefix)

  def _validate_endpoint(self, prefix: str) -> None:
    """Raises ValueError if a field that a server needs is missing."""
    for name in ('url', 'model', 'mark'):
      if not getattr(self, name):
        raise ValueError(
            f"{prefix}.{name} must be given with kind 'endpoint' (or play the user with a model: "
            f'--{prefix}.kind=model --{prefix}.init_from=DIR), got none'
        )
    if self.key_variable and self.key_variable not in os.environ:
      raise ValueError(
          f'{prefix}.key_variable must name an environment variable that is set, got '
          f'{self.key_variable!r}'
      )


@dataclasses.dataclass
class Refuel(reward_config.LearnedReward):
  """One run of experiments/refuel/.

  Attributes:
    task: the dialogues.
    user: the user in dialogues with the policy.
    algorithm: config of REFUEL.
    law: distribution of turn h and of the last turn: 'one' or 'two'
      (`sampling.dialogue.draw_turns`).
    max_tokens: if positive, pairs are filtered as in the released setting one: a pair is left out
      if its two replies at turn h are equal, or if the first dialogue, or the second one up to turn
      h, has more tokens. 0 keeps all pairs.
    rollout_batch_size: dialogues that are rolled out at once; 0 is the whole batch.
    widths: widths of the transcripts that the sampler reads: 'growing' compiles once per turn,
      'fixed' once (`sampling.dialogue.roll_out`).
    steps: batches of pairs, each an iteration of REFUEL.
    eval_every: batches between evaluations; there is always one before the first batch and one
      after the last.
  """

  task: dialogues.Config = dataclasses.field(default_factory=dialogues.Config)
  user: UserConfig = dataclasses.field(default_factory=UserConfig)
  algorithm: refuel.Config = dataclasses.field(default_factory=refuel.Config)
  law: str = 'two'
  max_tokens: int = 0
  rollout_batch_size: int = 0
  widths: str = 'growing'
  steps: int = 100
  eval_every: int = 20

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate()
    checks.at_least(
        self, 'config', steps=0, eval_every=1, max_tokens=0, rollout_batch_size=0)
    self.task.validate('config.task')
    self.user.validate('config.user')

    checks.one_of(self, 'config', law=('one', 'two'), widths=('growing', 'fixed'))

    if self.task.first_only != (self.user.kind != 'fixed'):
      raise ValueError(
          "config.task.first_only must be true for a user that is simulated, and false for 'fixed' "
          f'(config.user.kind), got {self.task.first_only} with {self.user.kind!r}'
      )
    if self.reward.eos_check == 'pad' or self.reward.template == 'none':
      raise ValueError(
          "config.reward.eos_check must be 'eos' or 'off', and config.reward.template not 'none', "
          f'for dialogues, got {self.reward.eos_check!r} and {self.reward.template!r}'
      )

    if self.batch_size % self.rollouts_at_once:
      raise ValueError(
          f'config.rollout_batch_size must divide config.batch_size ({self.batch_size}), got '
          f'{self.rollout_batch_size}'
      )

    config_lib.check_schedule(
        self.optimizer, self.steps * self.algorithm.num_epochs * self.algorithm.num_minibatches,
        'config.optimizer')

  @property
  def rollouts_at_once(self) -> int:
    """Dialogues that are rolled out at once."""
    return self.rollout_batch_size or self.batch_size

  def batch_sizes(self) -> dict[str, Any]:
    """See `config_lib.RunConfig.batch_sizes`."""
    return {**super().batch_sizes(), 'rollout_batch_size': (self.rollouts_at_once, 1)}
