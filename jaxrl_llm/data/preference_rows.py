"""Rows of preference data sets: prompts, optionally with a better and a worse response.

A schema maps the keys of a row to their meanings. Texts and messages are encoded later, with any
tokenizer and template. Some published sets have token ids, which belong to one tokenizer and are
used unchanged.
"""

import pathlib
from typing import Any, NamedTuple

from jaxrl_llm.data import chat_messages, columns, conversations, jsonl

Message = conversations.Message
_SUPPORTED = chat_messages.Supported(marks=True)  # Only the last replies are learned.

# Names that a schema may map: texts or messages, and token ids.
TEXTS = ('prompt', 'chosen', 'rejected')
IDS = ('prompt_ids', 'chosen_ids', 'rejected_ids', 'reward_prompt_ids')

# The keys of the sets that REBEL was trained on (Gao et al., 2024, arXiv 2404.16767, released code
# ZhaolinGao/REBEL), and 'conversations': anything that `data.conversations` reads.
SCHEMAS: dict[str, dict[str, str]] = {
    'conversations': {},
    # cleanrl/summarize_from_feedback_tldr_3_filtered_oai_preprocessing_1704563162: src/tldr/sft.py.
    'tldr': {'prompt_ids': 'query_token', 'chosen_ids': 'reference_response_token'},
    # vwxyzjn/summarize_from_feedback_oai_preprocessing_1706381144: src/tldr/rm.py.
    'tldr_pairs': {
        'prompt_ids': 'query_token', 'chosen_ids': 'chosen_token', 'rejected_ids': 'rejected_token',
    },
    # jdchang/nectar_openchat_preprocess: src/nectar/rebel.py.
    'nectar': {
        'prompt': 'prompt', 'prompt_ids': 'oc_prompt_tokens', 'reward_prompt_ids': 'rm_tokens',
    },
    # GitBag/ultrafeedback_llama3_eurus: src/ultrafeedback/rebel.py.
    'ultrafeedback': {
        'prompt': 'instruction', 'prompt_ids': 'llama_prompt_tokens',
        'reward_prompt_ids': 'eurus_prompt_tokens',
    },
    # allenai/ultrafeedback_binarized_cleaned_train: src/ultrafeedback_largebatch/.
    'ultrafeedback_prompts': {'prompt': 'prompt'},
}


class Row(NamedTuple):
  """One row of a file; absent fields are None.

  Attributes:
    index: row number in the file, from 0.
    prompt: a text, or a conversation up to the last message of the user.
    chosen: the better response.
    rejected: the worse response.
    prompt_ids: ids of the prompt for the policy, including padding.
    chosen_ids: ids of the better response after the prompt, including padding.
    rejected_ids: ids of the worse response after the prompt, including padding.
    reward_prompt_ids: ids of the prompt for the reward model's tokenizer, including padding.
  """

  index: int
  prompt: str | list[Message] | None = None
  chosen: str | None = None
  rejected: str | None = None
  prompt_ids: list[int] | None = None
  chosen_ids: list[int] | None = None
  rejected_ids: list[int] | None = None
  reward_prompt_ids: list[int] | None = None


def read(path: str | pathlib.Path, *, schema: str = 'conversations', fields: str = '') -> list[Row]:
  """Reads a file.

  Args:
    path: file of JSON lines, or of a JSON array of objects.
    schema: one of `SCHEMAS`.
    fields: additional keys, such as 'prompt=question,chosen=best'; they override the schema's.

  Returns:
    The rows, in order.

  Raises:
    ValueError: the file is missing or damaged, a row lacks a key of the schema or has a value of
      the wrong kind, or another column would change the meaning; one line with file, line and
      field.
  """
  keys = resolve(schema, fields)
  if not keys:
    return _read_conversations(path)
  rows = []
  for index, row in enumerate(jsonl.read_rows(path)):
    try:
      rows.append(_row(index, row.value, keys))
    except ValueError as error:
      raise ValueError(f'{path}, line {row.line}: {error}') from None
  return rows


def resolve(schema: str, fields: str) -> dict[str, str]:
  """Returns the key of each available name in `TEXTS` and `IDS`; {} for 'conversations'.

  Args:
    schema: one of `SCHEMAS`.
    fields: see `read`.

  Returns:
    Keys by name.

  Raises:
    ValueError: the schema is unknown, or the fields are malformed.
  """
  if schema not in SCHEMAS:
    raise ValueError(f'schema must be one of {", ".join(SCHEMAS)}, got {schema!r}')
  keys = dict(SCHEMAS[schema])
  for entry in filter(None, map(str.strip, fields.split(','))):
    name, _, key = map(str.strip, entry.partition('='))
    if name not in TEXTS + IDS or not key:
      raise ValueError(
          f"fields must be of the form 'NAME=KEY, ...' with names of {', '.join(TEXTS + IDS)}, got "
          f'{entry!r}'
      )
    keys[name] = key
  if keys and not keys.keys() & {'prompt', 'prompt_ids'}:
    raise ValueError(f'fields must include prompt or prompt_ids, got {fields!r}')
  return keys


def strip_padding(ids: list[int], vocab_size: int, pad_id: int | None = None) -> list[int]:
  """Removes the padding at both ends.

  Padding is `pad_id` and any id outside the vocabulary: released scripts add a [PAD] to the
  tokenizer that has no row in the embedding.

  Args:
    ids: ids of one prompt or response.
    vocab_size: number of ids of the tokenizer.
    pad_id: a padding id inside the vocabulary, or None.

  Returns:
    The remaining ids, at least one.

  Raises:
    ValueError: no id remains, or an id in between is outside the vocabulary.
  """
  is_token = [0 <= token < vocab_size and token != pad_id for token in ids]
  if not any(is_token):
    raise ValueError('the ids are all padding')
  stripped = ids[is_token.index(True) : len(ids) - is_token[::-1].index(True)]
  for token in stripped:
    if not 0 <= token < vocab_size:
      raise ValueError(f'ids must be in [0, {vocab_size}), those of the tokenizer, got {token}')
  return stripped


def _read_conversations(path: str | pathlib.Path) -> list[Row]:
  """Reads preferences, or conversations whose last reply is the chosen response."""
  file_rows = jsonl.read_rows(path)
  if any(conversations.is_preference(row.value) for row in file_rows):
    return [Row(*preference) for preference in conversations.read_preferences(path)]

  rows = []
  for row in conversations.read_demonstrations(path):
    messages, where = row['messages'], f'{path}, line {file_rows[row["id"]].line}'
    if any('reasoning_content' in message for message in messages):
      raise ValueError(
          f'{where}: reasoning (reasoning_content, reasoning, thinking) is not supported in '
          'preferences: remove it, or make it part of the content'
      )
    if messages[-1].get('train') is False:
      raise ValueError(f'{where}: the last reply must be learned, got one marked as context')
    rows.append(Row(row['id'], chat_messages.plain(messages[:-1]), messages[-1]['content']))

  return rows


def _row(index: int, row: dict[str, Any], keys: dict[str, str]) -> Row:
  """Builds a row from the keys of a schema."""
  values = {name: _value(row, name, key) for name, key in keys.items()}
  prompt = values.get('prompt')
  if isinstance(prompt, str):
    prompt = [{'role': 'user', 'content': prompt}]

  for name in ('chosen', 'rejected'):
    if not isinstance(values.get(name), list):
      continue
    *before, reply = values[name]
    if prompt and before not in ([], prompt):
      raise ValueError(
          f'{keys[name]!r} must be a reply, or the whole prompt ({keys["prompt"]!r}) and a reply, '
          f'got {columns.shown(before)} before it'
      )
    values[name] = reply['content']

  _check_rest(row, keys)
  return Row(index, **values)


def _check_rest(row: dict[str, Any], keys: dict[str, str]) -> None:
  """Rejects columns that would change the meaning and are not in `keys`.

  Prompt ids already include all of the prompt's text.
  """
  used = set(keys.values())
  if 'prompt_ids' in keys:
    used.update(key for key in row if columns.is_conversation(key))
  columns.check_named(row, used)


def _value(row: dict[str, Any], name: str, key: str) -> Any:
  """Returns `row[key]`, checked: ids, a text or messages; its ValueError does not name the file."""
  if key not in row:
    raise ValueError(f'the key {key!r} is missing')

  value = row[key]
  if name in IDS:
    if not isinstance(value, list) or not value or not all(type(token) is int for token in value):
      raise ValueError(f'{key!r} must be a list of token ids, got {columns.shown(value)}')
    return value

  if isinstance(value, list) and value:
    messages = [_message(message, f'{key}[{index}]') for index, message in enumerate(value)]
    last = 'user' if name == 'prompt' else 'assistant'
    if messages[-1]['role'] != last:
      shown = columns.shown(value[-1])
      raise ValueError(f'{key!r} must end with a message of the {last}, got {shown}')
    if messages[-1].get('train') is False:
      raise ValueError(f'{key!r} must be a learned reply, got one that is marked as context')
    return chat_messages.plain(messages)

  if not isinstance(value, str) or not value.strip():
    shown = columns.shown(value)
    raise ValueError(f'{key!r} must be a text or a list of messages, got {shown}')

  return value


def _message(value: Any, field: str) -> Message:
  """Reads a message in either spelling."""
  role, content = chat_messages.spelling_of(value)
  if not isinstance(value, dict) or not isinstance(value.get(content), str):
    raise ValueError(f'{field!r} must be a message with a text, got {columns.shown(value)}')
  if value.get(role) not in tuple(conversations.ROLES):
    raise ValueError(
        f"'{field}.{role}' must be one of {', '.join(conversations.ROLES)}, got "
        f'{columns.shown(value.get(role))}'
    )
  name = conversations.ROLES[value[role]]
  extra = chat_messages.read_extra(value, field, role=name, supported=_SUPPORTED)
  return {'role': name, 'content': value[content], **extra}
