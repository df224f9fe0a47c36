"""Rows of preferences: every published schema, one-line errors, and the same rows from TFDS."""

import json
import subprocess
import sys

import pytest

from jaxrl_llm.data import conversations, preference_rows


def _write(tmp_path, *rows, name='rows.jsonl'):
  path = tmp_path / name
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def test_the_public_preferences(data_dir):
  path = data_dir / 'preferences' / 'dpo_en_demo.json'
  rows = preference_rows.read(path)
  assert [tuple(row[:4]) for row in rows] == [
      tuple(preference) for preference in conversations.read_preferences(path)]
  assert len(rows) == 300 and all(row.prompt_ids is None for row in rows)


def test_conversations_prefer_their_last_reply(data_dir):
  rows = preference_rows.read(data_dir / 'preferences' / 'alpaca_en_demo.json')
  assert len(rows) == 999 and all(row.rejected is None for row in rows)
  assert rows[0].prompt[-1]['role'] == 'user' and rows[0].chosen


@pytest.mark.parametrize('schema, row, expected', [
    ('tldr', {'query_token': [9, 1], 'reference_response_token': [2, 0], 'x': 1},
     {'prompt_ids': [9, 1], 'chosen_ids': [2, 0]}),
    ('tldr_pairs', {'query_token': [1], 'chosen_token': [2], 'rejected_token': [3]},
     {'prompt_ids': [1], 'chosen_ids': [2], 'rejected_ids': [3]}),
    ('nectar', {'prompt': 'Hi', 'oc_prompt_tokens': [1], 'rm_tokens': [5]},
     {'prompt': 'Hi', 'prompt_ids': [1], 'reward_prompt_ids': [5]}),
    ('ultrafeedback',
     {'instruction': 'Hi', 'llama_prompt_tokens': [1], 'eurus_prompt_tokens': [5]},
     {'prompt': 'Hi', 'prompt_ids': [1], 'reward_prompt_ids': [5]}),
    ('ultrafeedback_prompts', {'prompt': 'Hi', 'prompt_id': 'x'}, {'prompt': 'Hi'}),
])
def test_published_schemas(tmp_path, schema, row, expected):
  path = _write(tmp_path, row, row)
  assert preference_rows.read(path, schema=schema) == [
      preference_rows.Row(index, **expected) for index in (0, 1)]


def test_named_fields_in_lists_and_messages(tmp_path):
  messages = [{'role': 'user', 'content': 'Hi'}, {'from': 'gpt', 'value': 'Yes'}]
  path = tmp_path / 'rows.json'
  path.write_text(json.dumps([{'q': messages[:1], 'best': messages, 'worst': 'No'}]))
  assert preference_rows.read(path, fields='prompt=q, chosen=best, rejected=worst') == [
      preference_rows.Row(0, [{'role': 'user', 'content': 'Hi'}], 'Yes', 'No')]
  # A field overrides the schema's.
  path = _write(tmp_path, {'prompt': 'p', 'instruction': 'i'})
  rows = preference_rows.read(path, schema='ultrafeedback_prompts', fields='prompt=instruction')
  assert rows[0].prompt == 'i'


@pytest.mark.parametrize('row, message', [
    ({'p': 'a'}, "line 2: the key 'c' is missing"),
    ({'p': ' ', 'c': [1]}, "line 2: 'p' must be a text or a list of messages, got ' '"),
    ({'p': 3, 'c': [1]}, "'p' must be a text or a list of messages, got 3"),
    ({'p': [], 'c': [1]}, r"'p' must be a text or a list of messages, got \[\]"),
    ({'p': [{'role': 'robot', 'content': 'x'}]}, r"p\[0\].role' must be one of .*'robot'"),
    ({'p': [{'role': ['x'] * 99, 'content': 'x'}]}, r"role' must be one of .*\['x', .*\.\.\.$"),
    ({'p': [{'role': 'user'}], 'c': [1]}, r"'p\[0\]' must be a message with a text"),
    ({'p': [{'role': 'assistant', 'content': 'x'}]}, 'must end with a message of the user'),
    ({'p': 'a', 'c': 'text'}, "'c' must be a list of token ids, got 'text'"),
    ({'p': 'a', 'c': [True]}, r"'c' must be a list of token ids, got \[True\]"),
    ({'p': 'a', 'c': []}, r"'c' must be a list of token ids, got \[\]"),
    ({'p': [{'role': 'user', 'content': 'x', 'reasoning': 'why'}], 'c': [1]},
     r"'p\[0\].reasoning' must be empty for the user"),
    ({'p': [{'role': 'user', 'content': 'x', 'images': ['a']}], 'c': [1]}, 'images. is not supp'),
    ({'p': [{'role': 'user', 'content': 'x', 'name': 'Bob'}], 'c': [1]}, r"column 'p\[0\].name'"),
    ({'p': 'a', 'c': [1], 'system_prompt': 'S'}, "column 'system_prompt' would be lost, got 'S'"),
    ({'p': 'a', 'c': [1], 'input': 'i'}, "column 'input' would be lost"),
    ({'p': 'a', 'c': [1], 'history': [['a', 'b']]}, "column 'history' would be lost"),
    ({'p': 'a', 'c': [1], 'label': False}, "'label' must be true or 1, got False"),
    ({'p': 'a', 'c': [1], 'weight': 0.5}, "'weight' must be 1 or true"),
    ({'p': 'a', 'c': [1], 'margin': 2}, "'margin' must be 0"),
    ({'p': 'a', 'c': [1], 'images': ['a.png']}, "'images' are not supported"),
])
def test_bad_rows_are_one_line_with_file_and_line(tmp_path, row, message):
  path = _write(tmp_path, {'p': 'a', 'c': [1]}, row)
  with pytest.raises(ValueError, match=message) as error:
    preference_rows.read(path, fields='prompt=p,chosen_ids=c')
  assert str(error.value).startswith(f'{path}, line 2: ') and '\n' not in str(error.value)


def test_replies_in_messages_repeat_the_prompt(tmp_path):
  messages = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Yes'}]
  read = lambda row: preference_rows.read(_write(tmp_path, row), fields='prompt=p,chosen=c')
  for prompt in ('Hi', messages[:1]):
    assert read({'p': prompt, 'c': messages})[0].chosen == 'Yes'
    assert read({'p': prompt, 'c': messages[1:]})[0].chosen == 'Yes'
    with pytest.raises(ValueError, match="line 1: 'c' must be a reply, or the whole prompt .'p'"):
      read({'p': prompt, 'c': [{'role': 'user', 'content': 'Other'}, messages[1]]})
  marked = [{**messages[1], 'weight': 0}]
  with pytest.raises(ValueError, match="'c' must be a learned reply, got one that is marked"):
    read({'p': 'Hi', 'c': marked})
  # Marks of earlier messages have no effect.
  row = {'p': [messages[0], *marked, messages[0]], 'c': 'Yes'}
  assert read(row)[0].prompt == [*messages, messages[0]]


def test_ids_include_the_whole_prompt(tmp_path):
  row = {'query_token': [9, 1], 'reference_response_token': [2, 0], 'system': 'S', 'input': 'i'}
  assert preference_rows.read(_write(tmp_path, row), schema='tldr')[0].prompt_ids == [9, 1]
  with pytest.raises(ValueError, match="'label' must be true or 1"):
    preference_rows.read(_write(tmp_path, {**row, 'label': 0}), schema='tldr')


@pytest.mark.parametrize('messages, message', [
    ([{}, {'reasoning': 'why'}], r'line 2: reasoning .* is not supported in preferences'),
    ([{}, {'train': False}], 'line 2: no message of the assistant is learned'),
    ([{}, {}, {}, {'weight': 0}], 'line 2: the last reply must be learned'),
])
def test_conversations_whose_last_reply_cannot_be_preferred(tmp_path, messages, message):
  messages = [
      {'role': ('user', 'assistant')[index % 2], 'content': 'x', **more}
      for index, more in enumerate(messages)]
  path = _write(tmp_path, {'prompt': 'q', 'response': 'r'}, {'messages': messages})
  with pytest.raises(ValueError, match=message) as error:
    preference_rows.read(path)
  assert str(error.value).startswith(f'{path}, line 2: ') and '\n' not in str(error.value)


@pytest.mark.parametrize('arguments, message', [
    ({'schema': 'reddit'}, "schema must be one of conversations, .*, got 'reddit'"),
    ({'fields': 'prompt'}, "fields must be of the form 'NAME=KEY, ...' .*, got 'prompt'"),
    ({'fields': 'answer=x'}, "got 'answer=x'"),
    ({'fields': 'chosen=x'}, "fields must include prompt or prompt_ids, got 'chosen=x'"),
])
def test_invalid_arguments(tmp_path, arguments, message):
  with pytest.raises(ValueError, match=message):
    preference_rows.read(_write(tmp_path, {'prompt': 'p'}), **arguments)


def test_padding_is_the_pad_id_and_ids_outside_the_vocabulary():
  strip = preference_rows.strip_padding
  assert strip([99, 99, 3, 0, 4, 99], 10) == [3, 0, 4]
  assert strip([0, 0, 3, 0, 4, 0], 10, 0) == [3, 0, 4]
  assert strip([1, 2], 10) == [1, 2]
  with pytest.raises(ValueError, match=r'ids must be in \[0, 10\), those of the tokenizer, got 12'):
    strip([3, 12, 4], 10)
  with pytest.raises(ValueError, match='all padding'):
    strip([99, 99], 10)


_TFDS = '''
import sys
from jaxrl_llm.data import preference_rows
from jaxrl_llm.data.tfds_builders.preferences import preferences_dataset_builder as builder
path, other, cache = sys.argv[1:]
assert builder.read(path, cache_dir=cache) == preference_rows.read(path)
options = {'schema': 'tldr', 'fields': 'prompt_ids=p'}
for count in (2, 3):  # A changed file is prepared again.
  rows = builder.read(other, cache_dir=cache, **options)
  assert rows == preference_rows.read(other, **options) and len(rows) == count
  open(other, 'a').write('{"p": [1], "reference_response_token": [2]}\\n')
try:
  builder.read(other, cache_dir=cache, schema='nectar')
except ValueError as error:
  assert "line 1: the key 'prompt' is missing" in str(error)
else:
  raise AssertionError
assert not {'tensorflow', 'torch'} & set(sys.modules)
'''


def test_tfds_gives_the_same_rows_without_tensorflow(data_dir, tmp_path):
  rows = [{'p': [index, 2], 'reference_response_token': [2]} for index in range(2)]
  path = _write(tmp_path, *rows)
  done = subprocess.run(
      [sys.executable, '-c', _TFDS, data_dir / 'preferences' / 'dpo_en_demo.json', path,
       tmp_path / 'cache'], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
