"""Preference data as a task: prompts to sample from, with chosen and rejected responses.

Prompts are put into a chat template, or used as plain text, or as the token ids of a published
data set. A response is everything after the ids of its prompt, including the stop token, so that a
reward model reads the pairs in the same form as samples. There is no verifier: rewards come from a
reward model.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxrl_llm import checks
from jaxrl_llm.data import chat_templates, preference_rows, sft_batches, tokenizers
from jaxrl_llm.tasks import chat, splits
from jaxrl_llm.tasks import config as config_lib
from jaxrl_llm.types import Example, Task, Tokenizer

_RESPONSES = ('chosen', 'rejected')
_NO_LIMIT = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceTask(Task):
  """A task of prompts with responses; its `reward_fn` is None.

  Every example has 'prompt', 'prompt_ids' and 'source' (the name of its file); if the data has
  them, also 'messages' (the conversation), 'chosen' and 'rejected' with their 'chosen_ids' and
  'rejected_ids', and 'reward_prompt_ids' (as in the file). `demonstrations` are the training
  examples whose prompt and chosen response together fit the limit ('ids', 'loss_mask').

  Attributes:
    template: the chat template of the ids; None for plain text and for data of ids.
  """

  template: chat_templates.ChatTemplate | None

  def pairs(self, examples: Sequence[Example]) -> list[Example]:
    """Returns the examples that have both responses, neither of them too long."""

    def fits(example: Example, name: str) -> bool:
      return 0 < len(example.get(name, ())) <= self.max_response_tokens

    return [e for e in examples if fits(e, 'chosen_ids') and fits(e, 'rejected_ids')]


@dataclasses.dataclass
class Config(config_lib.VocabularyConfig):
  """Config of the task.

  The held-out prompts depend only on the files and the seed. Prompts that are too long are left out
  and counted, never cut. A compact vocabulary covers all texts of the files, and depends only on
  them.

  Attributes:
    files: comma-separated names of files in `data_dir`.
    evaluation_files: files of held-out prompts, instead of a part of `files`.
    schema: see `preference_rows.SCHEMAS`.
    fields: see `preference_rows.read`.
    file_pad_id: an id used as padding in the files, in addition to ids unknown to the tokenizer; -1
      for none.
    template: see `chat.load_template`; 'none' for plain text prompts.
    stop_tokens: comma-separated tokens that end a response; '' for those the policy was trained
      with, or else those of the tokenizer's directory.
    num_train: number of training examples, from the first; 0 for all.
    num_evaluation: number of held-out prompts; 0 means all of `evaluation_files`.
    max_prompt_tokens: L.
    max_response_tokens: T.
    tfds_dir: with a directory, files are read through TFDS, prepared there; '' reads them directly.
  """

  files: str = ''
  evaluation_files: str = ''
  schema: str = 'conversations'
  fields: str = ''
  file_pad_id: int = -1
  template: str = 'auto'
  stop_tokens: str = ''
  num_train: int = 0
  num_evaluation: int = 100
  max_prompt_tokens: int = 512
  max_response_tokens: int = 512
  tfds_dir: str = ''

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate(prefix)
    checks.at_least(
        self, prefix, num_train=0, num_evaluation=0, max_prompt_tokens=1, max_response_tokens=1,
        file_pad_id=-1,
    )

  def named_stop_tokens(self) -> tuple[str, ...]:
    """See `TaskConfig.named_stop_tokens`."""
    return config_lib.split(self.stop_tokens)

  def has_own_template(self) -> bool:
    """See `TaskConfig.has_own_template`."""
    return True

  def read_rows(self, file: pathlib.Path) -> list[preference_rows.Row]:
    """Reads the rows of one file; a subclass may read other formats."""
    if not self.tfds_dir:
      return preference_rows.read(file, schema=self.schema, fields=self.fields)

    # TensorFlow Datasets are heavy, and rarely used.
    from jaxrl_llm.data.tfds_builders.preferences import preferences_dataset_builder

    return preferences_dataset_builder.read(
        file, cache_dir=self.tfds_dir, schema=self.schema, fields=self.fields)

  def make(
      self,
      seed: int,
      data_dir: str | pathlib.Path = '',
      policy: config_lib.PolicyTokenizer = config_lib.FROM_SCRATCH,
  ) -> PreferenceTask:
    """See `TaskConfig.make`; errors name file and row.

    The template must end replies with a stop token.
    """
    if not config_lib.split(self.files):
      raise ValueError(
          'the preferences task needs the names of its files: --config.task.files=NAME,...')
    folder = config_lib.files_dir(data_dir, 'preferences', self.files)
    self.validate('config.task')
    compact = self.is_compact(policy)

    files, evaluation_files = (
        [folder / name for name in config_lib.split(names)]
        for names in (self.files, self.evaluation_files))
    names = config_lib.distinct_names(files + evaluation_files)
    sources = [
        (name, row) for name, file in zip(names, files + evaluation_files)
        for row in self.read_rows(file)]

    tokenizer_dir = self.resolve_tokenizer_dir(policy, data_dir)
    tokenizer = tokenizers.load_tokenizer(
        tokenizer_dir, stop_tokens=self.resolve_stop_tokens(policy))
    template = None
    if self.template != 'none':
      template = chat.load_template(self.template, tokenizer_dir)
    if compact:
      tokenizer = _compact(sources, template, tokenizer, self.max_vocabulary or None)

    file_pad_id = None if self.file_pad_id < 0 else self.file_pad_id
    examples = _encode(sources, template, tokenizer, file_pad_id)
    return self._split(examples, seed, names[len(files):], template, tokenizer)

  def _split(
      self,
      examples: list[Example],
      seed: int,
      evaluation_names: list[str],
      template: chat_templates.ChatTemplate | None,
      tokenizer: Tokenizer,
  ) -> PreferenceTask:
    """Holds out prompts, and leaves out those that are too long."""
    given = [example for example in examples if example['source'] in evaluation_names]
    rest, evaluation = splits.hold_out(
        examples, self.num_evaluation, seed, question=_question, name='prompts', given=given)
    train = rest[: self.num_train or None]

    fitting = {
        name: [e for e in group if len(e['prompt_ids']) <= self.max_prompt_tokens]
        for name, group in (('train', train), ('evaluation', evaluation))
    }
    for name, group in fitting.items():
      if not group:
        raise ValueError(f'no {name} prompt has at most {self.max_prompt_tokens} tokens')

    limit = self.max_prompt_tokens + self.max_response_tokens
    return PreferenceTask(
        name='preferences',
        tokenizer=tokenizer,
        demonstrations=[e for e in fitting['train'] if 0 < len(e.get('ids', ())) <= limit],
        reward_fn=None,
        lenient_reward_fn=None,
        max_prompt_tokens=self.max_prompt_tokens,
        max_response_tokens=self.max_response_tokens,
        template=template,
        num_filtered={
            'train': len(train) - len(fitting['train']),
            'evaluation': len(evaluation) - len(fitting['evaluation']),
        },
        num_repeated=len(examples) - len(given or evaluation) - len(rest),
        **fitting,
    )


def _question(example: Example) -> tuple[int, ...]:
  return tuple(example['prompt_ids'])


def _messages(row: preference_rows.Row) -> list[preference_rows.Message]:
  """Returns the conversation of a row given as text."""
  if isinstance(row.prompt, str):
    return [{'role': 'user', 'content': row.prompt}]
  return row.prompt


def _text(row: preference_rows.Row) -> str:
  """Returns a row's prompt without a template: a text, or the user's only message."""
  return row.prompt if isinstance(row.prompt, str) else row.prompt[-1]['content']


def _compact(
    sources: list[tuple[str, preference_rows.Row]],
    template: chat_templates.ChatTemplate | None,
    tokenizer: Tokenizer,
    max_size: int | None,
) -> Tokenizer:
  """Reduces the tokenizer to the texts of all rows."""
  texts = [text for _, row in sources for text in (row.chosen, row.rejected) if text]
  rows = [row for _, row in sources]
  if any(row.prompt is None or row.prompt_ids for row in rows):
    raise ValueError("vocabulary must be 'full' for data of token ids, got 'compact'")
  if template:
    texts += template.render_many(list(map(_messages, rows)), add_generation_prompt=True)
  else:
    texts += list(map(_text, rows))
  return tokenizers.compact(tokenizer, texts, max_size=max_size)


def _encode(
    sources: list[tuple[str, preference_rows.Row]],
    template: chat_templates.ChatTemplate | None,
    tokenizer: Tokenizer,
    file_pad_id: int | None,
) -> list[Example]:
  """Makes the examples of all rows; errors name file and row."""
  examples: list[Example] = []
  for index, (source, row) in enumerate(sources):
    example: Example = {'id': index, 'source': source, 'row': row.index, 'answer': ''}
    if template and row.prompt is not None:
      example['messages'] = _messages(row)
    elif isinstance(row.prompt, list) and len(row.prompt) > 1:
      raise ValueError(
          f'{source}, row {row.index}: a conversation of {len(row.prompt)} messages needs a '
          "template, got 'none'"
      )
    examples.append(example)

  texts = [(e, row) for e, (_, row) in zip(examples, sources) if row.prompt_ids is None]
  _encode_prompts(texts, template, tokenizer)
  for example, (source, row) in zip(examples, sources):
    try:
      _take_ids(example, row, tokenizer, file_pad_id)
    except ValueError as error:
      raise ValueError(f'{source}, row {row.index}: {error}') from None

  for name in _RESPONSES:
    _encode_responses(
        [(e, getattr(row, name)) for e, row in texts if getattr(row, name)], name, template,
        tokenizer,
    )

  for example in examples:
    prompt, chosen = example['prompt_ids'], example.get('chosen_ids', [])
    if chosen:
      example['ids'] = np.array(prompt + chosen, np.int32)
      example['loss_mask'] = np.arange(len(example['ids'])) >= len(prompt)
  return examples


def _encode_prompts(
    texts: list[tuple[Example, preference_rows.Row]],
    template: chat_templates.ChatTemplate | None,
    tokenizer: Tokenizer,
) -> None:
  """Adds 'prompt' and 'prompt_ids' to examples whose prompt is given as text."""
  if template:
    rendered = template.render_many(
        [example['messages'] for example, _ in texts], add_generation_prompt=True
    )
  for index, (example, row) in enumerate(texts):
    example['prompt'] = rendered[index] if template else _text(row)
    start = [] if template else tokenizer.start_ids  # A template writes them itself.
    example['prompt_ids'] = [*start, *tokenizer.encode(example['prompt'])]


def _take_ids(
    example: Example, row: preference_rows.Row, tokenizer: Tokenizer, file_pad_id: int | None
) -> None:
  """Adds the ids of a row that has a prompt of ids, and encodes its responses given as text."""
  if row.prompt_ids is None:
    return

  def strip(ids: Sequence[int]) -> list[int]:
    return preference_rows.strip_padding(ids, tokenizer.vocab_size, file_pad_id)

  example['prompt_ids'] = strip(row.prompt_ids)
  example['prompt'] = tokenizer.decode(example['prompt_ids'])
  if row.reward_prompt_ids is not None:
    example['reward_prompt_ids'] = row.reward_prompt_ids

  for name in _RESPONSES:
    ids, text = getattr(row, f'{name}_ids'), getattr(row, name)
    if ids is not None:
      end = next((i + 1 for i, token in enumerate(ids) if token in tokenizer.stop_ids), None)
      # Cut after the stop token, which may be the pad id; without one, padding is stripped.
      stripped = strip(ids[:end])
      example[f'{name}_ids'] = stripped if end is None else ids[:end]
      example[name] = tokenizer.decode(example[f'{name}_ids'])
    elif text is not None:
      example[name] = text
      example[f'{name}_ids'] = [*tokenizer.encode_continuation(text), tokenizer.stop_ids[0]]


def _encode_responses(
    texts: list[tuple[Example, str]],
    name: str,
    template: chat_templates.ChatTemplate | None,
    tokenizer: Tokenizer,
) -> None:
  """Adds the responses `name` and their ids to examples whose prompt is given as text."""
  if template:
    conversations = [
        [*example['messages'], {'role': 'assistant', 'content': text}] for example, text in texts
    ]
    encoded = chat_templates.encode_conversations(template, tokenizer, conversations)
  else:
    sequences = sft_batches.encode_sequences(
        [{'id': e['id'], 'prompt': e['prompt'], 'response': text} for e, text in texts], tokenizer,
        max_prompt_tokens=_NO_LIMIT, max_response_tokens=_NO_LIMIT,
    )
    cuts = sequences.starts[1:-1]
    encoded = list(zip(
        np.split(sequences.tokens, cuts), np.split(sequences.assistant, cuts)))

  for (example, text), (ids, is_reply) in zip(texts, encoded):
    reply = _last_reply(np.asarray(ids), np.asarray(is_reply, bool))
    if reply[-1] not in tokenizer.stop_ids:
      raise ValueError(
          f'{example["source"]}, row {example["row"]}: the chat template ends a reply with the '
          f'token {reply[-1]}, which is not a stop token of the tokenizer: a sampled reply would '
          'never stop; name the token in stop_tokens (config.task.stop_tokens)'
      )
    example[name], example[f'{name}_ids'] = text, reply


def _last_reply(ids: np.ndarray, is_reply: np.ndarray) -> list[int]:
  """Returns the last run of ids of the assistant."""
  end = len(is_reply) - int(np.argmax(is_reply[::-1]))
  gaps = np.flatnonzero(~is_reply[:end])
  return ids[gaps[-1] + 1 if len(gaps) else 0 : end].tolist()
