"""Config of experiments/evaluate/."""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from jaxrl_llm import checks
from jaxrl_llm.evaluation import majority
from jaxrl_llm.models import configs
from jaxrl_llm.models import lora as lora_lib
from jaxrl_llm.rewards import countdown as countdown_reward
from jaxrl_llm.rewards import math_answer
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.tasks import config as task_config
from jaxrl_llm.tasks import countdown, gsm8k, jsonl


class Voting(NamedTuple):
  """Voting rule for the samples of a problem.

  Attributes:
    answer: maps a response to the answer it votes for, or None.
    same: function that is True for two texts with the same answer; None means string equality.
  """

  answer: Callable[[str], str | None]
  same: Callable[[str, str], bool] | None


def voting(task: task_config.TaskConfig) -> Voting:
  """Returns the voting rule for a task's config.

  Answers are compared as mathematics if the task grades mathematics. A Countdown response votes for
  its expression; for other tasks the whole response is the answer.
  """
  mode = ''
  if isinstance(task, gsm8k.Config):
    mode = 'gsm8k'
  elif isinstance(task, jsonl.Config):
    mode = jsonl.REWARDS[task.reward]

  if mode:
    return Voting(lambda response: math_answer.extract(response, mode=mode), math_answer.equal)
  if isinstance(task, countdown.Config):
    return Voting(countdown_reward.extract_expression, None)
  return Voting(lambda response: response, None)


@dataclasses.dataclass
class EvaluatePolicy:
  """One run of experiments/evaluate/.

  Attributes:
    seed: seed of sampling, and of the choice of problems if not all are used.
    data_dir: directory of the task's data.
    task: config of the task, as in `config_lib.Experiment`.
    model: computation of the policy (param_dtype, compute_dtype, scan_unroll ...); its shape comes
      from the policy's directory.
    policy_init_from: a Hugging Face checkpoint, or a run's output (WORKDIR/params,
      WORKDIR/trained).
    chat_template: 'none'; 'auto' for the tokenizer's own; 'chatml'; or the path of a template. With
      a template, the prompt is the user's message.
    system: system message for the template.
    num_samples: n samples per problem.
    temperature: sampling temperature; 0 always takes the most probable token.
    top_k: sample from the k most probable tokens; 0 is off.
    top_p: sample from the smallest nucleus of this probability; 1 is off.
    greedy: also decode one greedy response per problem.
    batch_size: problems per batch.
    mesh: sizes of the device mesh.
    note: caveat about the config; printed with its results.
  """

  seed: int = 0
  data_dir: str = ''
  task: task_config.TaskConfig = dataclasses.field(default_factory=jsonl.Config)
  model: configs.TransformerConfig = dataclasses.field(default_factory=configs.TransformerConfig)
  policy_init_from: str = ''
  chat_template: str = 'none'
  system: str = ''
  num_samples: int = 4
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  greedy: bool = True
  batch_size: int = 64
  mesh: mesh_lib.MeshConfig = dataclasses.field(default_factory=mesh_lib.MeshConfig)
  note: str = ''

  # Nothing is trained here; `setup.build` reads these.
  lora: ClassVar[lora_lib.LoraConfig] = lora_lib.LoraConfig()
  train_last_layers: ClassVar[int] = 0

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """Batch sizes by field, as in `config_lib.Experiment`."""
    return {'batch_size': (self.batch_size, 1)}

  def validate(self) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    if not self.policy_init_from:
      raise ValueError(
          'a policy is needed: --config.policy_init_from=DIR (a Hugging Face checkpoint, or '
          "a run's WORKDIR/params or WORKDIR/trained)"
      )
    if not pathlib.Path(self.policy_init_from).is_dir():
      raise ValueError(f'config.policy_init_from: not a directory: {self.policy_init_from!r}')

    checks.at_least(self, 'config', seed=0, num_samples=1, top_k=0, batch_size=1)
    if self.num_samples > majority.MAX_SAMPLES:
      raise ValueError(
          f'config.num_samples must be at most {majority.MAX_SAMPLES}, got {self.num_samples}'
      )

    if not 0 <= self.temperature < math.inf:
      raise ValueError(
          f'config.temperature must be 0 (greedy) or positive, got {self.temperature}'
      )
    if not 0 < self.top_p <= 1:
      raise ValueError(f'config.top_p must lie in (0, 1], got {self.top_p}')

    if self.temperature == 0 and (self.num_samples > 1 or self.top_k or self.top_p < 1):
      raise ValueError(
          'config.temperature 0 always chooses the same: it needs num_samples 1, top_k 0 and '
          f'top_p 1, got {self.num_samples}, {self.top_k} and {self.top_p}'
      )
    if self.system and self.chat_template == 'none':
      raise ValueError(f'config.system needs config.chat_template, got {self.system!r}')

    model = dataclasses.replace(self.model, vocab_size=self.model.vocab_size or 1)
    try:
      model.validate()
    except ValueError as error:
      raise ValueError(f'{error} (config.model)') from error
    self.mesh.validate()
