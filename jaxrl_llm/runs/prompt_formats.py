"""Puts the prompts of a run into the chat template of its policy, and says which one it is."""

import dataclasses
from typing import Any

from jaxrl_llm.data import chat_templates, tokenizers
from jaxrl_llm.runs import checkpoint_sources
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.tasks import chat
from jaxrl_llm.types import Example, Task


def format_prompts(
    config: Any, task: Task, source: checkpoint_sources.CheckpointSource | None, *,
    fine_tunes: bool = False,
) -> Task:
  """Puts a task's prompts into the template of `config.chat_template`.

  If the policy comes from a Hugging Face checkpoint, one line on the terminal says which format its
  prompts have. The token with which the template ends a reply also ends responses: tokenizers of
  base models do not name it.

  Args:
    config: the run's config; only a `PromptConfig` has a template.
    task: the task, with the policy's stop ids.
    source: the checkpoint source of `policy_init_from`, or None.
    fine_tunes: whether the program fine-tunes a loaded policy too.

  Returns:
    The task, without the examples that the program never reads. Prompts that the template makes too
    long are left out and counted.

  Raises:
    ValueError: if the template is missing, damaged or fails, or no prompt is short enough.
  """
  if not isinstance(config, config_lib.PromptConfig) or config.task.has_own_template():
    return task
  task = config.used(task, fine_tunes=fine_tunes)

  template, name = _find_template(config, source)
  if template is None:
    return task

  tokenizer = task.tokenizer
  last = chat.end_of_reply(template, tokenizer)
  if last is not None and last not in tokenizer.stop_ids:
    tokenizer = tokenizers.with_stop_ids(tokenizer, (*tokenizer.stop_ids, last))
    name += f', and {tokenizer.token(last)} ends a reply'
  print(f'prompts are in {name}', flush=True)

  task = dataclasses.replace(task, tokenizer=tokenizer)
  task = chat.with_template(task, template, system=config.system)
  fitting = {name: _within(getattr(task, name), task.max_prompt_tokens)
             for name in ('train', 'evaluation')}
  num_filtered = dict(task.num_filtered)
  for name, examples in fitting.items():
    left_out = len(getattr(task, name)) - len(examples)
    num_filtered[name] = num_filtered.get(name, 0) + left_out
  return dataclasses.replace(task, num_filtered=num_filtered, **fitting)


def _find_template(
    config: config_lib.PromptConfig, source: checkpoint_sources.CheckpointSource | None
) -> tuple[chat_templates.ChatTemplate | None, str]:
  """Returns the template and how to call it; (None, '') for plain prompts, which is said."""
  is_pretrained = source is not None and bool(source.hugging_face)
  folder = config.task.named_tokenizer_dir() or (source.tokenizer_dir if source else '')
  is_optional = config.chat_template == 'auto'
  if is_optional and not is_pretrained:
    folder = ''  # A policy from scratch knows no template.

  try:
    template = chat.find_template(config.chat_template, folder)
  except ValueError as error:
    raise ValueError(
        f'{error} (config.chat_template; the directory is that of config.policy_init_from or '
        'config.task.tokenizer_dir, where the task has one)') from error

  if template is not None:
    return template, (f'the chat template of {folder}' if is_optional else
                      f'chat template {config.chat_template}')
  if config.system:
    raise ValueError(
        f"config.system must be '' without a chat template (config.chat_template), got "
        f'{config.system!r}')
  if is_pretrained:
    why = f'no chat template in {folder}' if is_optional else "config.chat_template is 'none'"
    print(f'prompts are plain text: {why}', flush=True)
  return None, ''


def _within(examples: list[Example], limit: int) -> list[Example]:
  """Keeps the prompts of at most `limit` tokens; raises ValueError if all are longer."""
  short = [example for example in examples if len(example['prompt_ids']) <= limit]
  if examples and not short:
    raise ValueError(
        f'no prompt of {len(examples)} has at most {limit} tokens in the chat template '
        '(config.task.max_prompt_tokens)')
  return short
