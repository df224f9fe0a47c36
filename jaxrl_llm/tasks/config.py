"""Base classes of the task configs, and the choices that follow from the policy's tokenizer.

  task = arithmetic.Config(digits=2).make(seed=0)
  task = gsm8k.Config(num_train=500).make(seed=0, data_dir='data/gsm8k')
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from jaxrl_llm import checks
from jaxrl_llm.types import Task

VOCABULARIES = ('full', 'compact', 'auto')


@dataclasses.dataclass(frozen=True)
class PolicyTokenizer:
  """The tokenizer of the policy that a task is made for.

  Attributes:
    directory: where it is; '' if the policy has none or it is unknown.
    pretrained: whether the policy comes from a Hugging Face checkpoint, whose ids are those of the
      full vocabulary.
    stop_tokens: tokens that ended responses when the policy was trained; () for those that the
      tokenizer's files name.
  """

  directory: str = ''
  pretrained: bool = False
  stop_tokens: tuple[str, ...] = ()


FROM_SCRATCH = PolicyTokenizer()  # Of a randomly initialised policy.


@dataclasses.dataclass
class TaskConfig:
  """Base of all task configs; its answers are those of a task with its own tokenizer."""

  def make(
      self, seed: int, data_dir: str | pathlib.Path = '', policy: PolicyTokenizer = FROM_SCRATCH
  ) -> Task:
    """Makes the task; a pure function of config, files and arguments.

    Args:
      seed: determines generated problems, and which problems are used or held out.
      data_dir: directory of the task's files; '' for a generated task.
      policy: the policy's tokenizer, which tasks of text use unless the config names another.

    Returns:
      The task.

    Raises:
      ValueError: one line, if a field is out of range, or a file is missing or damaged.
    """
    raise NotImplementedError

  def named_tokenizer_dir(self) -> str:
    """Returns the directory of the tokenizer that the config names; '' for none."""
    return ''

  def named_stop_tokens(self) -> tuple[str, ...]:
    """Returns the stop tokens that the config names; () for none."""
    return ()

  def needs_policy_tokenizer(self) -> bool:
    """Returns whether only the policy's tokenizer can encode the task."""
    return False

  def has_own_template(self) -> bool:
    """Returns whether the task itself puts its prompts into a chat template."""
    return False


@dataclasses.dataclass
class TextConfig(TaskConfig):
  """Base of the configs of tasks in words.

  Attributes:
    tokenizer_dir: see `tokenizers.load_tokenizer`; '' for the policy's tokenizer.
  """

  tokenizer_dir: str = ''

  def named_tokenizer_dir(self) -> str:
    """See `TaskConfig.named_tokenizer_dir`."""
    return self.tokenizer_dir

  def needs_policy_tokenizer(self) -> bool:
    """See `TaskConfig.needs_policy_tokenizer`."""
    return not self.tokenizer_dir

  def resolve_tokenizer_dir(self, policy: PolicyTokenizer) -> str:
    """Returns the tokenizer's directory; '' if neither config nor policy has one."""
    return self.tokenizer_dir or policy.directory

  def resolve_stop_tokens(self, policy: PolicyTokenizer) -> tuple[str, ...] | None:
    """Returns the stop tokens; None for those that the tokenizer's files name."""
    return self.named_stop_tokens() or policy.stop_tokens or None


@dataclasses.dataclass
class VocabularyConfig(TextConfig):
  """Base of the configs of tasks in words whose vocabulary can be reduced to what they need.

  Without a tokenizer of config or policy they use that in DATA_DIR/../tokenizers/qwen2.

  Attributes:
    vocabulary: 'full'; 'compact', for what the task's texts need (`tokenizers.compact`); or 'auto':
      full for a policy from a Hugging Face checkpoint, else compact.
    max_vocabulary: size limit of a compact vocabulary; 0 for none.
  """

  vocabulary: str = 'full'
  max_vocabulary: int = 0

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(self, prefix, max_vocabulary=0)
    checks.one_of(self, prefix, vocabulary=VOCABULARIES)
    if self.vocabulary == 'full':
      checks.fixed(self, prefix, "with vocabulary 'full'", max_vocabulary=0)

  def resolve_tokenizer_dir(
      self, policy: PolicyTokenizer, data_dir: str | pathlib.Path = ''
  ) -> str:
    """Returns the tokenizer's directory; raises ValueError if there is none."""
    if directory := super().resolve_tokenizer_dir(policy):
      return directory
    if not data_dir:
      raise ValueError(
          'no tokenizer: give the directory of a policy (--config.policy_init_from=DIR), or '
          '--config.task.tokenizer_dir=DIR')
    return str(pathlib.Path(data_dir).parent / 'tokenizers' / 'qwen2')

  def is_compact(self, policy: PolicyTokenizer) -> bool:
    """Returns whether to reduce the vocabulary; raises ValueError if the policy forbids it."""
    if self.vocabulary == 'compact' and policy.pretrained:
      raise ValueError(
          "config.task.vocabulary must be 'full' or 'auto' for a policy from a Hugging Face "
          "checkpoint, whose ids are those of its tokenizer, got 'compact'"
      )
    return self.vocabulary != 'full' and not policy.pretrained


def split(text: str) -> tuple[str, ...]:
  """Splits a comma-separated field; blanks around entries, and empty entries, are dropped."""
  return tuple(entry for part in text.split(',') if (entry := part.strip(' ')))


def distinct_names(files: Sequence[pathlib.Path]) -> list[str]:
  """Returns the names of files; raises ValueError unless each name occurs once."""
  names = [file.name for file in files]
  if len(set(names)) < len(names):
    raise ValueError(f'config.task.files must have distinct names, got {", ".join(names)}')
  return names


def require_data_dir(data_dir: str | pathlib.Path, task: str, files: str) -> pathlib.Path:
  """Returns the directory of a task's files; raises ValueError if it is not given."""
  if not data_dir:
    raise ValueError(f'the {task} task needs the directory of {files}: --config.data_dir=DIR')
  return pathlib.Path(data_dir)


def files_dir(data_dir: str | pathlib.Path, task: str, files: str) -> pathlib.Path:
  """Returns what the names of a task's files are relative to.

  Args:
    data_dir: the config's directory; '' if the files are in the working directory.
    task: the task's name, for errors.
    files: comma-separated names.

  Raises:
    ValueError: if the directory does not exist, or none is given and a file is not in the working
      directory.
  """
  if not data_dir and all(pathlib.Path(name).is_file() for name in split(files)):
    return pathlib.Path()
  return existing_dir(require_data_dir(data_dir, task, files))


def existing_dir(data_dir: str | pathlib.Path) -> pathlib.Path:
  """Returns the directory, '' being the working directory; raises ValueError if there is none."""
  folder = pathlib.Path(data_dir)
  if not folder.is_dir():
    raise ValueError(f'config.data_dir: not a directory: {str(data_dir)!r}')
  return folder


def reject_data_dir(data_dir: str | pathlib.Path, task: str) -> None:
  """Raises ValueError if a directory is given for a task that is generated."""
  if data_dir:
    raise ValueError(f'the {task} task is generated, got config.data_dir={str(data_dir)!r}')
