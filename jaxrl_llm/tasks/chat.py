"""Conversations as a task, and chat templates for other tasks.

A conversation is learned as the ids of its chat template. The loss is on the assistant's
messages, including reasoning, except for messages that the file marks as context.
There is no verifier: a chat task is evaluated by the loss on held-out conversations
(`evaluation.perplexity`), and has no prompts to sample from.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxrl_llm import checks
from jaxrl_llm.data import (
  chat_messages,
  chat_templates,
  conversations,
  model_files,
  tokenizers,
)
from jaxrl_llm.tasks import config as config_lib
from jaxrl_llm.tasks import splits
from jaxrl_llm.types import Example, Task, Tokenizer

Message = conversations.Message


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTask(Task):
  """A task of conversations; its `reward_fn` is None, `train` is empty.

  The examples of `demonstrations` and `evaluation` have 'messages', 'source' (the name of
  their file), 'row' (their index in it, from 0), 'ids' and 'loss_mask'.

  Attributes:
    template: the chat template of the ids.
  """

  template: chat_templates.ChatTemplate


def load_template(
    template: str, tokenizer_dir: str | pathlib.Path
) -> chat_templates.ChatTemplate:
  """Loads a chat template.

  Args:
    template: 'auto' for the one next to the tokenizer; 'chatml' for Qwen2's format; or the
      path of a template file, or of a directory that holds one.
    tokenizer_dir: the tokenizer's directory, or its file.

  Returns:
    The template; if read from a file, with the tokenizer's tokens as variables.

  Raises:
    ValueError: if there is no template, or a file is damaged.
  """
  folder = pathlib.Path(tokenizer_dir)
  folder = folder if folder.is_dir() else folder.parent
  if template == 'chatml':
    return chat_templates.QWEN2
  if template == 'auto':
    return chat_templates.load(folder)

  path = pathlib.Path(template)
  if not path.exists():
    raise ValueError(f"template must be 'auto', 'chatml' or the path of one, got {template!r}")
  return chat_templates.load(path) if path.is_dir() else chat_templates.load(folder, file=path)


def find_template(
    template: str, tokenizer_dir: str | pathlib.Path
) -> chat_templates.ChatTemplate | None:
  """Loads a chat template if there is one; the rule of every program for prompts.

  Args:
    template: as in `load_template`, or 'none'. With 'auto', a tokenizer without a template, which
      is that of a base model, gives None.
    tokenizer_dir: the tokenizer's directory, or its file; '' for none.

  Returns:
    The template; None for plain prompts.

  Raises:
    ValueError: if a template that is named, or is there, cannot be read.
  """
  if template == 'none' or (template == 'auto' and not tokenizer_dir):
    return None
  if not tokenizer_dir:
    raise ValueError(f'chat template {template!r} needs the directory of a tokenizer')

  folder = pathlib.Path(tokenizer_dir)
  folder = folder if folder.is_dir() else folder.parent
  has_file = (folder / 'chat_template.jinja').exists()
  if template == 'auto' and not has_file and 'chat_template' not in model_files.read(folder).config:
    return None
  return load_template(template, tokenizer_dir)


@dataclasses.dataclass
class Config(config_lib.VocabularyConfig):
  """Config of the task.

  The held-out conversations depend only on the files and the seed. Conversations that are too long
  are left out and counted, never cut. There is no reward: only fine-tuning can use the task.

  Attributes:
    files: comma-separated names of files in `data_dir`, in any format that `data.conversations`
      reads; each is a source of a mixture, under its name.
    template: see `load_template`.
    stop_tokens: comma-separated tokens that end a response; '' for those the policy was trained
      with, or else those of the tokenizer's directory.
    num_evaluation: number of held-out conversations, over all files.
    max_prompt_tokens: the length limit is max_prompt_tokens + max_response_tokens.
    max_response_tokens: see `max_prompt_tokens`.
  """

  files: str = ''
  template: str = 'auto'
  stop_tokens: str = ''
  num_evaluation: int = 100
  max_prompt_tokens: int = 512
  max_response_tokens: int = 512

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate(prefix)
    checks.at_least(self, prefix, num_evaluation=0, max_prompt_tokens=1, max_response_tokens=1)

  def named_stop_tokens(self) -> tuple[str, ...]:
    """See `TaskConfig.named_stop_tokens`."""
    return config_lib.split(self.stop_tokens)

  def has_own_template(self) -> bool:
    """See `TaskConfig.has_own_template`."""
    return True

  def make(
      self,
      seed: int,
      data_dir: str | pathlib.Path = '',
      policy: config_lib.PolicyTokenizer = config_lib.FROM_SCRATCH,
  ) -> ChatTask:
    """See `TaskConfig.make`; the template must end replies with a stop token."""
    names = config_lib.split(self.files)
    if not names:
      raise ValueError('the chat task needs the names of its files: --config.task.files=NAME,...')
    folder = config_lib.files_dir(data_dir, 'chat', self.files)
    self.validate('config.task')
    compact = self.is_compact(policy)

    examples = _read([folder / name for name in names])
    demonstrations, evaluation = examples, []
    if self.num_evaluation:
      demonstrations, evaluation = splits.hold_out(
          examples, self.num_evaluation, seed, question=_question, name='conversations')

    tokenizer_dir = self.resolve_tokenizer_dir(policy, data_dir)
    tokenizer = tokenizers.load_tokenizer(
        tokenizer_dir, stop_tokens=self.resolve_stop_tokens(policy))
    template = load_template(self.template, tokenizer_dir)
    if compact:
      texts = template.render_many([example['messages'] for example in demonstrations])
      tokenizer = tokenizers.compact(tokenizer, texts, max_size=self.max_vocabulary or None)

    # All conversations at once, so that an error gives the right id.
    encoded = _with_ids(examples, template, tokenizer)
    groups = {'demonstrations': demonstrations, 'evaluation': evaluation}
    limit = self.max_prompt_tokens + self.max_response_tokens
    fitting = {
        name: _within(name, [encoded[example['id']] for example in group], limit)
        for name, group in groups.items()
    }

    return ChatTask(
        name='chat',
        tokenizer=tokenizer,
        train=[],
        reward_fn=None,
        lenient_reward_fn=None,
        max_prompt_tokens=self.max_prompt_tokens,
        max_response_tokens=self.max_response_tokens,
        template=template,
        num_filtered={name: len(group) - len(fitting[name]) for name, group in groups.items()},
        num_repeated=len(examples) - len(demonstrations) - len(evaluation),
        **fitting,
    )


def _within(name: str, examples: list[Example], limit: int) -> list[Example]:
  """Keeps the examples of at most `limit` tokens; raises ValueError if all are longer."""
  short = [example for example in examples if len(example['ids']) <= limit]
  if examples and not short:
    raise ValueError(f'no {name} of {len(examples)} conversations have at most {limit} tokens')
  return short


def _read(files: Sequence[pathlib.Path]) -> list[Example]:
  """Reads the conversations of all files, with consecutive ids."""
  names = config_lib.distinct_names(files)
  examples: list[Example] = []
  for name, file in zip(names, files):
    for row in conversations.read_demonstrations(file):
      examples.append({
          'id': len(examples), 'source': name, 'row': row['id'], 'messages': row['messages']})
  return examples


def _question(example: Example) -> str:
  """Returns the conversation up to its last reply, without the marks of learned messages."""
  return json.dumps(chat_messages.plain(example['messages'][:-1]))


def _with_ids(
    examples: list[Example], template: chat_templates.ChatTemplate, tokenizer: Tokenizer
) -> list[Example]:
  """Adds 'ids' and 'loss_mask' of the 'messages' to the examples."""
  try:
    encoded = chat_templates.encode_conversations(
        template, tokenizer, [example['messages'] for example in examples]
    )
  except chat_templates.ConversationError as error:
    example = examples[error.index]
    if 'row' not in example:
      raise
    raise ValueError(f'{example["source"]}, row {example["row"]}: {error}') from None

  for example, (ids, mask) in zip(examples, encoded):
    last = ids[max(position for position, is_learned in enumerate(mask) if is_learned)]
    if last not in tokenizer.stop_ids:
      end = template.render(example['messages']).rstrip()[-20:]
      raise ValueError(
          f'the chat template ends a reply with {end!r}, whose last token (id {last}) is not a '
          'stop token of the tokenizer: a sampled reply would never stop; name the token in '
          'stop_tokens (config.task.stop_tokens, where the task has it)'
      )

  return [
      {**example, 'ids': np.array(ids, np.int32), 'loss_mask': np.array(mask, bool)}
      for example, (ids, mask) in zip(examples, encoded)
  ]


def with_template(
    task: Task, template: chat_templates.ChatTemplate, *, system: str = ''
) -> Task:
  """Puts the prompts of a task into user messages of a conversation.

  Args:
    task: any text task; 'shots' of an example are messages before its prompt.
    template: the chat template.
    system: a system message before each prompt; '' for none.

  Returns:
    The task, where 'prompt' is the rendered text up to the start of the reply, 'prompt_ids' its ids
    and 'question' the prompt before. Demonstrations get 'ids' and 'loss_mask', with their responses
    as assistant messages. Limits and the rest of the examples stay the same.

  Raises:
    ValueError: if the template fails, or does not end replies with a stop token.
  """
  opening = [{'role': 'system', 'content': system}] if system else []

  def question(example: Example) -> list[Message]:
    return [*opening, *example.get('shots', ()), {'role': 'user', 'content': example['prompt']}]

  def prompts(examples: list[Example]) -> list[Example]:
    texts = template.render_many(list(map(question, examples)), add_generation_prompt=True)
    return [
        {**example, 'question': example['prompt'], 'prompt': text,
         'prompt_ids': task.tokenizer.encode(text)}
        for example, text in zip(examples, texts)
    ]

  demonstrations = [
      {**example, 'messages': [
          *question(example), {'role': 'assistant', 'content': example['response'].strip()}
      ]}
      for example in task.demonstrations
  ]
  return dataclasses.replace(
      task,
      demonstrations=_with_ids(demonstrations, template, task.tokenizer),
      train=prompts(task.train),
      evaluation=prompts(task.evaluation),
  )


def end_of_reply(
    template: chat_templates.ChatTemplate, tokenizer: Tokenizer
) -> int | None:
  """Returns the token with which a template ends every reply, or None if there is none.

  Args:
    template: the chat template.
    tokenizer: encodes the text.
  """
  replies = [[{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': text}]
             for text in ('yes', 'It is 7.')]
  try:
    encoded = chat_templates.encode_conversations(template, tokenizer, replies)
  except chat_templates.ConversationError:
    return None  # It renders no reply as the model would write it.
  last = {ids[max(position for position, is_learned in enumerate(mask) if is_learned)]
          for ids, mask in encoded}
  return last.pop() if len(last) == 1 else None
