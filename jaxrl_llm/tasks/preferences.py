"""Preference data as a task: prompts to sample from, with chosen and rejected responses.

Prompts are put into a chat template, or used as plain text, or as the token ids of a published
data set. A response is everything after the ids of its prompt, including the stop token, so that a
reward model reads the pairs in the same form as samples. There is no verifier: rewards come from a
reward model.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from jaxrl_llm.data import chat_templates, preference_rows, sft_batches, tokenizers
from jaxrl_llm.tasks import chat
from jaxrl_llm.types import Example, Task, Tokenizer

ReadFn = Callable[..., list[preference_rows.Row]]
_RESPONSES = ('chosen', 'rejected')
_NO_LIMIT = 2**30


@dataclasses.dataclass(frozen=True)
class PreferenceTask(Task):
  """A task of prompts with responses; its `reward_fn` is None.

  Every example has 'prompt', 'prompt_ids' and 'source' (the name of its file); if the data has
  them, also 'messages' (the conversation), 'chosen' and 'rejected' with their 'chosen_ids' and
  'rejected_ids', and 'reward_prompt_ids' (as in the file). `demonstrations` are the training
  examples whose prompt and chosen response together fit the limit ('ids', 'loss_mask').

  Attributes:
    template: the chat template of the ids; None for plain text and for data of ids.
    num_filtered: number of prompts in 'train' and 'evaluation' that were too long.
    num_repeated: number of examples left out of `train` because they have the prompt of a
      held-out one.
  """

  template: chat_templates.ChatTemplate | None
  num_filtered: dict[str, int]
  num_repeated: int

  def pairs(self, examples: Sequence[Example]) -> list[Example]:
    """Returns the examples that have both responses, neither of them too long."""
    fits = lambda example, name: 0 < len(example.get(name, ())) <= self.max_response_tokens
    return [e for e in examples if fits(e, 'chosen_ids') and fits(e, 'rejected_ids')]


def make_task(
    *,
    files: Sequence[str | pathlib.Path],
    tokenizer_dir: str | pathlib.Path,
    seed: int,
    evaluation_files: Sequence[str | pathlib.Path] = (),
    schema: str = 'conversations',
    fields: str = '',
    file_pad_id: int | None = None,
    template: str = 'auto',
    stop_tokens: Sequence[str] | None = None,
    num_train: int | None = None,
    num_evaluation: int = 100,
    max_prompt_tokens: int = 512,
    max_response_tokens: int = 512,
    vocabulary: str = 'full',
    max_vocabulary: int | None = None,
    read: ReadFn = preference_rows.read,
) -> PreferenceTask:
  """Makes the task. Prompts that are too long are left out and counted, never cut.

  The held-out prompts depend only on the files and the seed.

  Args:
    files: at least one.
    tokenizer_dir: see `tokenizers.load_tokenizer`.
    seed: determines which prompts are held out.
    evaluation_files: files of held-out prompts, instead of a part of `files`.
    schema: see `preference_rows.SCHEMAS`.
    fields: see `preference_rows.read`.
    file_pad_id: an id used as padding in the files, in addition to ids unknown to the tokenizer.
    template: see `chat.load_template`; 'none' for plain text prompts.
    stop_tokens: tokens that end a response; None for those of the tokenizer's directory.
    num_train: number of training examples, from the first; None for all.
    num_evaluation: number of held-out prompts; 0 means all of `evaluation_files`.
    max_prompt_tokens: L.
    max_response_tokens: T.
    vocabulary: 'full', or 'compact' for what all texts need (`tokenizers.compact`), so that it
      depends only on the files.
    max_vocabulary: size limit of a compact vocabulary; None for no limit.
    read: function that reads a file, like `preference_rows.read`.

  Returns:
    The task.

  Raises:
    ValueError: if a file is missing or malformed (one line with file and row), an argument is out
      of range, nothing is left, or the template does not end replies with a stop token.
  """
  _check(vocabulary, max_vocabulary)
  read = functools.partial(read, schema=schema, fields=fields)
  sources = _read_all([*files], [*evaluation_files], read)
  tokenizer = tokenizers.load_tokenizer(tokenizer_dir, stop_tokens=stop_tokens)
  chat_template = None if template == 'none' else chat.load_template(template, tokenizer_dir)
  if vocabulary == 'compact':
    tokenizer = _compact(sources, chat_template, tokenizer, max_vocabulary)

  examples = _encode(sources, chat_template, tokenizer, file_pad_id)
  given = [example for example in examples if example['source'] in map(_name, evaluation_files)]
  train, evaluation = hold_out(
      examples, given, num_evaluation, seed,
      asks=lambda example: tuple(example['prompt_ids']), name='prompts')
  num_repeated = len(examples) - len(given or evaluation) - len(train)

  fitting = {
      name: [example for example in group if len(example['prompt_ids']) <= max_prompt_tokens]
      for name, group in (('train', train[:num_train]), ('evaluation', evaluation))
  }
  for name, kept in fitting.items():
    if not kept:
      raise ValueError(f'no {name} prompt has at most {max_prompt_tokens} tokens')

  limit = max_prompt_tokens + max_response_tokens
  return PreferenceTask(
      name='preferences',
      tokenizer=tokenizer,
      demonstrations=[e for e in fitting['train'] if 0 < len(e.get('ids', ())) <= limit],
      reward_fn=None,
      lenient_reward_fn=None,
      max_prompt_tokens=max_prompt_tokens,
      max_response_tokens=max_response_tokens,
      template=chat_template,
      num_filtered={
          'train': len(train[:num_train]) - len(fitting['train']),
          'evaluation': len(evaluation) - len(fitting['evaluation']),
      },
      num_repeated=num_repeated,
      **fitting,
  )


def _check(vocabulary: str, max_vocabulary: int | None) -> None:
  """Raises a one-line ValueError for the first argument that is out of range."""
  if vocabulary not in ('full', 'compact'):
    raise ValueError(f"vocabulary must be 'full' or 'compact', got {vocabulary!r}")
  if vocabulary == 'full' and max_vocabulary is not None:
    raise ValueError(f"max_vocabulary needs vocabulary 'compact', got {max_vocabulary}")


def _name(file: str | pathlib.Path) -> str:
  return pathlib.Path(file).name


def _read_all(
    files: list[str | pathlib.Path], evaluation_files: list[str | pathlib.Path], read: ReadFn
) -> list[tuple[str, preference_rows.Row]]:
  """Reads (name of the file, row) of all files."""
  every = files + evaluation_files
  names = list(map(_name, every))
  if not files or len(set(names)) < len(names):
    raise ValueError(f'files must be at least one, with distinct names, got {", ".join(names)}')
  return [(name, row) for name, file in zip(names, every) for row in read(file)]


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

  strip = lambda ids: preference_rows.strip_padding(ids, tokenizer.vocab_size, file_pad_id)
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

  for (example, text), (ids, said) in zip(texts, encoded):
    reply = _last_reply(np.asarray(ids), np.asarray(said, bool))
    if reply[-1] not in tokenizer.stop_ids:
      raise ValueError(
          f'{example["source"]}, row {example["row"]}: the chat template ends a reply with the '
          f"token {reply[-1]}, which is none of the tokenizer's stop tokens: a reply would never "
          'stop when it is sampled; name the token in stop_tokens (config.task.stop_tokens)'
      )
    example[name], example[f'{name}_ids'] = text, reply


def _last_reply(ids: np.ndarray, said: np.ndarray) -> list[int]:
  """Returns the last run of ids of the assistant."""
  end = len(said) - int(np.argmax(said[::-1]))
  gaps = np.flatnonzero(~said[:end])
  return ids[gaps[-1] + 1 if len(gaps) else 0 : end].tolist()


def hold_out(
    examples: list[Example], given: list[Example], count: int, seed: int, *,
    asks: Callable[[Example], Hashable], name: str,
) -> tuple[list[Example], list[Example]]:
  """Returns (the rest, the held-out examples), which share no question.

  Args:
    examples: all examples.
    given: the examples to hold out from; if empty, all examples.
    count: number of held-out examples; 0 for all of `given`.
    seed: determines which examples are held out.
    asks: returns the question of an example.
    name: name of the examples, for errors.

  Raises:
    ValueError: if `count` is out of range, or nothing is left.
  """
  pool = given or examples
  least, most = (0, len(pool)) if given else (1, len(pool) - 1)
  if not least <= count <= most:
    raise ValueError(
        f'num_evaluation must lie in {least} to {most} (of {len(pool)} {name}), got {count}'
    )

  chosen = np.random.default_rng([seed, 2]).permutation(len(pool))[: count or len(pool)]
  held_out = [pool[index] for index in sorted(chosen)]
  asked = set(map(asks, given or held_out))
  left = [example for example in examples if asks(example) not in asked]

  if not left:
    raise ValueError(f'all {len(examples)} {name} ask what the held-out ones ask')
  return left, held_out
