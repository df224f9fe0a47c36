"""Tasks of files of one's own, as `--config.task=FILE` names them."""

import dataclasses

from jaxrl_llm.data import jsonl as jsonl_rows
from jaxrl_llm.tasks import chat, jsonl, preferences
from jaxrl_llm.tasks import config as config_lib

FRACTION = 0.1  # Held out from files to train on.

_CONVERSATIONS = ('messages', 'conversations', 'instruction')
_REPLIES = ('response', 'completion', 'output')
# Fields that describe the files or the template of another config.
_OF_FILES = (
    'evaluation_files', 'schema', 'fields', 'file_pad_id', 'template', 'tfds_dir', 'key')


def with_files(task: config_lib.TaskConfig, files: str) -> config_lib.TaskConfig:
  """Returns a copy of a task's config with other files.

  Args:
    task: a config with a field `files`.
    files: comma-separated paths.

  Returns:
    The config; fields that describe the earlier files have their defaults, and limits stay.
  """
  defaults = {
      field.name: field.default for field in dataclasses.fields(task) if field.name in _OF_FILES}
  return dataclasses.replace(task, **{**defaults, 'files': files})


def problems(
    task: config_lib.TaskConfig, files: str, *, evaluation_fraction: float = 0.0
) -> jsonl.Config:
  """Returns the config of a task of prompts and answers.

  Args:
    task: a config whose fields are kept if it is of that kind.
    files: comma-separated paths.
    evaluation_fraction: see `jsonl.Config`; for a config of another kind.
  """
  if isinstance(task, jsonl.Config):
    return with_files(task, files)
  return jsonl.Config(files=files, evaluation_fraction=evaluation_fraction)


def demonstrations(task: config_lib.TaskConfig, files: str) -> config_lib.TaskConfig:
  """Returns the config of a task to fine-tune on; the first row decides its kind.

  Args:
    task: a config whose fields are kept if it is of that kind.
    files: comma-separated paths of preferences ('chosen' and 'rejected'), conversations
      ('messages', 'conversations', 'instruction', or a prompt with a 'response', 'completion' or
      'output'), or prompts and answers (all others).

  Raises:
    ValueError: one line, if the first file is missing or damaged.
  """
  first, *_ = config_lib.split(files) or ('',)
  row = jsonl_rows.read_rows(first)[0].value
  kind = jsonl.Config
  if 'chosen' in row:
    kind = preferences.Config
  elif 'answer' not in row and any(key in row for key in (*_CONVERSATIONS, *_REPLIES)):
    kind = chat.Config

  if kind is jsonl.Config:
    return problems(task, files, evaluation_fraction=FRACTION)
  return with_files(task if type(task) is kind else kind(), files)
