"""Conversations: every supported form, the public files, and one-line errors for malformed rows.

conversations_columns_test.py tests further columns and keys.
"""

import collections
import json

import pytest

from jaxrl_llm.data import conversations

U, A, S = 'user', 'assistant', 'system'


def _messages(*pairs):
  return [{'role': role, 'content': content} for role, content in pairs]


def _file(tmp_path, *rows):
  path = tmp_path / 'rows.json'
  path.write_text(json.dumps(rows))
  return path


_PAIR = _messages((U, 'q'), (A, 'r'))


@pytest.mark.parametrize('row, expected', [
    ({'messages': _PAIR}, _PAIR),
    ({'messages': _messages((S, 's'), (U, 'q'), (A, 'r'), (U, 'q2'), (A, 'r2')), 'prompt': 'q'},
     _messages((S, 's'), (U, 'q'), (A, 'r'), (U, 'q2'), (A, 'r2'))),
    ({'conversations': [{'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'r'}]}, _PAIR),
    ({'conversations': [{'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'r'}],
      'system': 's'}, _messages((S, 's'), (U, 'q'), (A, 'r'))),
    ({'conversations': [{'from': 'system', 'value': 's'}, {'from': 'user', 'value': 'q'},
                        {'from': 'assistant', 'value': 'r'}], 'system': ' ', 'tools': ''},
     _messages((S, 's'), (U, 'q'), (A, 'r'))),
    ({'instruction': 'q', 'input': '', 'output': 'r'}, _PAIR),
    ({'instruction': 'q', 'output': 'r'}, _PAIR),
    ({'instruction': 'q', 'input': 'i', 'output': 'r', 'system': 's', 'history': [['a', 'b']]},
     _messages((S, 's'), (U, 'a'), (A, 'b'), (U, 'q\ni'), (A, 'r'))),
    ({'prompt': 'q', 'response': 'r'}, _PAIR),
    ({'prompt': 'q', 'completion': 'r', 'score': 3}, _PAIR),
    ({'question': 'q', 'answer': 'r'}, _PAIR),
    ({'prompt': _messages((S, 's'), (U, 'q')), 'completion': _messages((A, 'r'))},
     _messages((S, 's'), (U, 'q'), (A, 'r'))),
    ({'messages': _messages((U, 'q')), 'response': 'r'}, _PAIR),
    # The chosen reply of a preference; spaces and line ends are unchanged.
    ({'prompt': 'q', 'chosen': ' r\n', 'rejected': 'x'}, _messages((U, 'q'), (A, ' r\n'))),
])
def test_forms_of_conversations(tmp_path, row, expected):
  path = _file(tmp_path, {'prompt': 'a', 'response': 'b'}, row)
  first, second = conversations.read_conversations(path)
  assert first == {'id': 0, 'messages': _messages((U, 'a'), (A, 'b'))}
  assert second == {'id': 1, 'messages': expected}


@pytest.mark.parametrize('row', [
    {'prompt': 'q', 'chosen': 'r', 'rejected': 'x'},
    {'instruction': 'q', 'chosen': 'r', 'rejected': 'x'},
    {'conversations': [{'from': 'human', 'value': 'q'}], 'chosen': {'from': 'gpt', 'value': 'r'},
     'rejected': {'from': 'gpt', 'value': 'x'}},
    {'prompt': 'q', 'chosen': _messages((A, 'r')), 'rejected': _messages((A, 'x'))},
    # Each reply with the conversation before it, and the chosen one repeated in 'messages'.
    {'prompt': 'q', 'chosen': _PAIR, 'rejected': _messages((U, 'q'), (A, 'x')), 'messages': _PAIR},
    {'chosen': _PAIR, 'rejected': _messages((U, 'q'), (A, 'x'))},
])
def test_forms_of_preferences(tmp_path, row):
  path = _file(tmp_path, row)
  assert conversations.read_preferences(path) == [(0, _messages((U, 'q')), 'r', 'x')]
  assert conversations.read_conversations(path) == [{'id': 0, 'messages': _PAIR}]


def test_json_lines_are_read_like_an_array(tmp_path):
  path = tmp_path / 'rows.jsonl'
  rows = [{'prompt': 'q', 'response': 'r'}, {'messages': _PAIR}]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  assert [row['messages'] for row in conversations.read_conversations(path)] == [_PAIR, _PAIR]


_LONG = _messages(*[(U, 'q')] * 12)


@pytest.mark.parametrize('row, message', [
    ({}, r'got the keys \(none\)'),
    ({'text': 'x'}, "a row must have 'messages', 'conversations', .* got the keys text"),
    ({'prompt': 'q'}, "'prompt' does not end with a message of the assistant, .* got none of them"),
    ({'prompt': 'q', 'response': 'r', 'answer': 'r'}, "in one of .*, got 'response', 'answer'"),
    ({'prompt': 3, 'response': 'r'}, "'prompt' must be a text or a list of messages, got int"),
    ({'prompt': 'q', 'response': None}, "'response' must be a text or a list .* got NoneType"),
    ({'prompt': ' ', 'response': 'r'}, "'prompt' must not be empty"),
    ({'instruction': 'q', 'input': 3, 'output': 'r'}, "'input' must be a text, got int"),
    ({'instruction': ['q'], 'output': 'r'}, "'instruction' must be a text, got list"),
    ({'instruction': 'q', 'output': ''}, "'output' must not be empty"),
    ({'instruction': 'q', 'output': 'r', 'history': [['a']]}, r"'history\[0\]' must be a pair"),
    ({'instruction': 'q', 'output': 'r', 'history': 'a'}, "'history' must be a list of pairs"),
    ({'instruction': 'q', 'output': 'r', 'system': 3}, "'system' must be a text, got int"),
    ({'messages': []}, "'messages' must be a text or a list of messages, got an empty list"),
    ({'messages': ['q']}, r"'messages\[0\]' must be a message, got str"),
    ({'messages': [{'role': 'user'}]}, r"'messages\[0\]' must have 'role' and 'content'"),
    ({'messages': [{'role': 'user', 'content': ['q']}]},
     r"'messages\[0\]\.content' must be a text, got list"),
    ({'messages': [*_PAIR, {'role': 'tool', 'content': 'x'}]},
     r"'messages\[2\]\.role' must be one of system, user, human, assistant, gpt, got 'tool'"),
    ({'messages': [{'role': 'x' * 999, 'content': 'q'}]}, r'gpt, got .x{59}\.\.\.$'),
    ({'prompt': 'q', 'response': 'r\ud83d'},
     r"'response' must be Unicode, got half a surrogate pair, '\\ud83d'"),
    ({'messages': [_PAIR[0], {**_PAIR[1], 'thinking': '\udc00'}]},
     r"'messages\[1\].thinking' must be Unicode"),
    ({'conversations': [{'from': 'bot', 'value': 'x'}]}, r"'conversations\[0\]\.from' must be one"),
    ({'messages': [*_PAIR, {'role': 'assistant', 'content': 'r', 'tool_calls': [1]}]},
     r"'messages\[2\]\.tool_calls' is not supported"),
    ({'messages': [_PAIR[0], {**_PAIR[1], 'weight': 0.5}]},
     r"'messages\[1\]\.weight' must be 0 or 1 \(others are not supported\), got 0.5"),
    ({'messages': _PAIR, 'tools': [{'name': 'f'}]}, "'tools' are not supported"),
    ({'messages': _messages((U, 'q'), (U, 'q'), (A, 'r'))}, 'alternate .* user, user, assistant'),
    ({'messages': _messages((A, 'r'))}, 'between user and assistant, .* got assistant'),
    ({'messages': _messages((U, 'q'), (S, 's'), (A, 'r'))}, 'at most one of the system'),
    ({'messages': _LONG + _PAIR}, 'got user, user, user, user, user, user, user, user, ...$'),
    ({'messages': _messages((S, 's'))}, "'messages' does not end with a message of the assistant"),
    ({'prompt': 'q', 'chosen': 'r'}, "a preference needs 'chosen' and 'rejected', 'rejected' is"),
    ({'chosen': 'r', 'rejected': 'x'}, "without a 'prompt', 'chosen' and 'rejected' must be"),
    ({'chosen': _PAIR, 'rejected': _messages((U, 'other'), (A, 'x'))}, "without a 'prompt'"),
    ({'prompt': 'q', 'chosen': _PAIR * 2, 'rejected': 'x'},
     "'chosen' must be one message of the assistant to the conversation, got assistant, user"),
    ({'prompt': 'q', 'chosen': 'r', 'rejected': _messages((U, 'q'))},
     "'rejected' must be one message of the assistant to the conversation, got none"),
    ({'messages': _PAIR, 'chosen': 'r', 'rejected': 'x'}, 'end with the user, got user, assis'),
])
def test_a_malformed_row_is_one_line_with_file_line_and_field(tmp_path, row, message):
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"prompt": "q", "response": "r"}\n' + json.dumps(row))
  with pytest.raises(ValueError, match=message) as error:
    conversations.read_conversations(path)
  assert str(error.value).startswith(f'{path}, line 2: ') and '\n' not in str(error.value)


def test_a_row_without_a_preference_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="line 1: a preference needs 'chosen' and 'rejected'"):
    conversations.read_preferences(_file(tmp_path, {'prompt': 'q', 'response': 'r'}))


def test_the_public_instructions(data_dir):
  path = data_dir / 'preferences' / 'alpaca_en_demo.json'
  rows = conversations.read_conversations(path)
  published = json.loads(path.read_text())
  assert len(rows) == 999 and [row['id'] for row in rows] == list(range(999))
  for row, source in zip(rows, published):
    user, assistant = row['messages']
    assert (user['role'], assistant['role']) == (U, A)
    assert user['content'] == (
        source['instruction'] + ('\n' + source['input'] if source['input'] else ''))
    assert assistant['content'] == source['output']


def test_the_public_preferences(data_dir):
  path = data_dir / 'preferences' / 'dpo_en_demo.json'
  rows, published = conversations.read_preferences(path), json.loads(path.read_text())
  assert len(rows) == 300
  shapes = collections.Counter(len(row.messages) for row in rows)
  assert shapes == {1: 114, 2: 80, 3: 1, 5: 57, 7: 46, 9: 1, 13: 1}
  for row, source in zip(rows, published):
    assert [m['content'] for m in row.messages] == [m['value'] for m in source['conversations']]
    assert row.chosen == source['chosen']['value'] and row.rejected == source['rejected']['value']
    assert row.messages[-1]['role'] == U
  chosen = conversations.read_conversations(path)
  assert [row['messages'][-1]['content'] for row in chosen] == [row.chosen for row in rows]
