"""Further columns and keys in rows of public data sets: used, or rejected in one line."""

import json

import pytest

from jaxrl_llm.data import conversations


def _u(text, **more):
  return {'role': 'user', 'content': text, **more}


def _a(text, **more):
  return {'role': 'assistant', 'content': text, **more}


def _s(text):
  return {'role': 'system', 'content': text}


_PAIR = [_u('q'), _a('r')]
_TWO = [_u('q'), _a('r'), _u('q2'), _a('r2')]
_SHAREGPT = [{'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'r'}]
_PREFERENCE = {'prompt': 'q', 'chosen': 'r', 'rejected': 'x'}


def _read(tmp_path, row, read=conversations.read_demonstrations):
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' + json.dumps(row) + '\n')
  return read(path)[1]


def _assert_error(tmp_path, row, words, read=conversations.read_demonstrations):
  with pytest.raises(ValueError, match=words) as error:
    _read(tmp_path, row, read)
  assert str(error.value).startswith(f'{tmp_path / "rows.jsonl"}, line 2: ')
  assert '\n' not in str(error.value)


# --- Reasoning.


@pytest.mark.parametrize('key', ['reasoning_content', 'reasoning', 'thinking'])
def test_reasoning_is_read(tmp_path, key):
  messages = [_u('q'), _a('r', reasoning_content='why')]
  rows = [
      {'messages': [_u('q', **{key: None}), _a('r', **{key: 'why'})]},
      {'conversations': [_SHAREGPT[0], {**_SHAREGPT[1], key: 'why'}]},
      {'prompt': 'q', 'completion': [_a('r', **{key: 'why'})]},
      {'question': 'q', key: 'why', 'answer': 'r'},
      {'messages': messages, key: 'why'},
      {'prompt': 'q', 'chosen': [_a('r', **{key: 'why'})], 'rejected': 'x'},
      {'messages': [_u('q'), _a('r', reasoning='why', thinking='why')]},
  ]
  for row in rows:
    for read in (conversations.read_demonstrations, conversations.read_conversations):
      assert _read(tmp_path, row, read)['messages'] == messages
  assert _read(tmp_path, {'messages': [_u('q'), _a('r', **{key: ' \n'})]})['messages'] == _PAIR


@pytest.mark.parametrize('row, words', [
    ({'messages': [_u('q', reasoning='why'), _a('r')]},
     r"'messages\[0\].reasoning' must be empty for the user: only the assistant has reasoning"),
    ({'messages': [_u('q'), _a('r', thinking='a', reasoning='b')]},
     r"'messages\[1\].reasoning' and 'messages\[1\].thinking' must be equal"),
    ({'messages': [_u('q'), _a('r', reasoning={'effort': 'high'})]},
     r"'messages\[1\].reasoning' must be a text, got dict"),
    ({'messages': [_u('q'), _a('r', reasoning_details=[{'text': 'why'}])]},
     r"unknown column 'messages\[1\].reasoning_details'"),
    ({'messages': [_u('q'), _a('r', reasoningContent='why')]}, 'would be lost'),
    ({'messages': _PAIR, 'reasoning': 'why'}, "'reasoning' must equal the reasoning of the last m"),
    ({'prompt': 'q', 'thinking': ['why'], 'response': 'r'}, "'thinking' must be a text, got list"),
    ({**_PREFERENCE, 'reasoning': 'why'}, "column 'reasoning' would be lost"),
])
def test_reasoning_that_is_rejected(tmp_path, row, words):
  _assert_error(tmp_path, row, words)


def test_reasoning_in_preferences_is_rejected(tmp_path):
  for row in (
      {**_PREFERENCE, 'chosen': [_a('r', reasoning='why')]},
      {**_PREFERENCE, 'rejected': [_a('x', thinking='why')]},
      {**_PREFERENCE, 'prompt': [_u('a'), _a('b', reasoning_content='why'), _u('q')]},
  ):
    _assert_error(tmp_path, row, 'only supported in conversations for fine-tuning',
                  conversations.read_preferences)


# --- Texts in separate columns.


@pytest.mark.parametrize('row, expected', [
    ({'instruction': 'q', 'context': 'c', 'response': 'r', 'category': 'closed_qa'},
     [_u('q\nc'), _a('r')]),  # Dolly.
    ({'instruction': 'q', 'context': '', 'response': 'r', 'category': 'open_qa'}, _PAIR),
    ({'instruction': 'q', 'input': 'i', 'output': 'r',
      'text': 'Below is\n\n### Instruction:\nq\n\n### Input:\ni\n\n### Response:\nr'},
     [_u('q\ni'), _a('r')]),  # Alpaca.
    ({'id': 'flan.1', 'system_prompt': 'You are', 'question': 'q', 'response': 'r'},
     [_s('You are'), *_PAIR]),  # OpenOrca.
    ({'id': 'flan.2', 'system_prompt': '', 'question': 'q', 'response': 'r'}, _PAIR),
    ({'prompt': 'q', 'input': 'i', 'completion': 'r'}, [_u('q\ni'), _a('r')]),
    ({'question': 'q', 'context': 'c', 'answer': 'r'}, [_u('q\nc'), _a('r')]),
    ({'prompt': 'q', 'input': 'q', 'response': 'r'}, _PAIR),
    ({'messages': _PAIR, 'system_prompt': 'S'}, [_s('S'), *_PAIR]),
    ({'messages': _PAIR, 'system_message': 'S', 'system': 'S'}, [_s('S'), *_PAIR]),
    ({'messages': [_s('S'), *_PAIR], 'system': 'S'}, [_s('S'), *_PAIR]),
    ({'prompt': 'q', 'history': [['a', 'b'], ['c', 'd']], 'response': 'r'},
     [_u('a'), _a('b'), _u('c'), _a('d'), *_PAIR]),
    ({'question': 'q', 'history': [['a', 'b']], 'system': 'S', 'answer': 'r'},
     [_s('S'), _u('a'), _a('b'), *_PAIR]),
    ({'instruction': 'q', 'history': [], 'output': 'r'}, _PAIR),
    # Columns of two forms with the same contents.
    ({'messages': _PAIR, 'prompt': 'q', 'prompt_id': 'x', 'response': ' r'}, _PAIR),
    ({'messages': _PAIR, 'prompt': [_u('q')], 'completion': [_a('r')]}, _PAIR),
    ({'messages': [_u('Read c.'), _a('r')], 'context': 'c'}, [_u('Read c.'), _a('r')]),
    ({'prompt': 'q', 'question': 'q', 'response': 'r'}, _PAIR),
    ({'problem': 'q', 'solution': 'r', 'messages': _PAIR}, _PAIR),  # NuminaMath-CoT.
    ({'messages': [_u('q'), _a('It is 4.')], 'answer': '4'}, [_u('q'), _a('It is 4.')]),
    # Columns that a union of data sets leaves empty.
    ({'messages': None, 'prompt': 'q', 'response': 'r', 'output': None, 'chosen': None,
      'rejected': None, 'tools': [], 'images': None}, _PAIR),
    ({'conversations': _SHAREGPT, 'title': 'T', 'avatarUrl': 'u', 'views': 3, 'idx': 1,
      'custom_instruction': False, 'skip_prompt_formatting': None, 'hash': None}, _PAIR),
    ({'prompt': 'q', 'response': 'r', 'helpfulness': 3, 'correctness': 0, 'verbosity': 1}, _PAIR),
])
def test_columns_that_are_used_or_harmless(tmp_path, row, expected):
  assert _read(tmp_path, row)['messages'] == expected


@pytest.mark.parametrize('row, words', [
    ({'instruction': 'q', 'context': ['c'], 'response': 'r'}, "'context' must be a text, got l"),
    ({'messages': _PAIR, 'context': 'c'}, "'context' must repeat the messages, as .*, got 'c'"),
    ({'messages': _PAIR, 'input': 'i'}, "'input' must repeat the messages"),
    ({'prompt': [_u('q')], 'context': 'c', 'completion': 'r'}, "'context' must repeat the mess"),
    ({'messages': _PAIR, 'prompt': 'another'}, "'prompt' must repeat .* next to 'messages'"),
    ({'messages': _PAIR, 'response': 'another'}, "'response' must repeat .*, got 'another'"),
    ({'instruction': 'q', 'prompt': 'p', 'output': 'r'}, "'prompt' must repeat .* to 'instruct"),
    ({'instruction': 'q', 'output': 'r', 'text': 'another'}, "'text' must repeat the messages"),
    ({'system': 'S', 'system_prompt': 'T', 'prompt': 'q', 'response': 'r'},
     "'system' and 'system_prompt' must be equal"),
    ({'messages': [_s('S'), *_PAIR], 'system_prompt': 'T'},
     "'system_prompt' must equal the first message"),
    ({'system_prompt': ['S'], 'prompt': 'q', 'response': 'r'}, "'system_prompt' must be a text"),
    ({'messages': _PAIR, 'history': [['a', 'b']]}, "column 'history' would be lost"),
    ({'prompt': 'q', 'history': [_u('a'), _a('b')], 'response': 'r'}, r"'history\[0\]' must be a"),
    ({'messages': _PAIR, 'functions': [{'name': 'f'}]}, "'functions' are not supported"),
    ({'conversations': _SHAREGPT, 'id': 1, 'image': 'a.jpg'}, "'image' is not supported"),
    ({'messages': _PAIR, 'images': ['a.jpg']}, "'images' are not supported"),
    ({'prompt': 'q', 'documents': [{'text': 'd'}], 'response': 'r'}, "'documents' are not supp"),
    ({'messages': [_u('q', images=['a']), _a('r')]}, r"'messages\[0\].images' is not supported"),
    ({'messages': [_u('q'), _a('r', function_call={'name': 'f'})]}, 'function_call. is not supp'),
    ({'messages': [_u('q', name='Bob'), _a('r')]}, r"unknown column 'messages\[0\].name'"),
    ({'prompt': 'q', 'response': 'r', 'persona': 'pirate'}, "unknown column 'persona'"),
    ({'prompt': 'q', 'title': 'T', 'response': 'r'}, "unknown column 'title'"),
    ({'prompt': 'q', 'choices': ['a', 'b'], 'answer': 'a'}, "unknown column 'choices'"),
])
def test_columns_that_would_be_lost(tmp_path, row, words):
  _assert_error(tmp_path, row, words)


# --- Verdicts.


@pytest.mark.parametrize('verdict, words', [
    ({'label': False}, "'label' must be true or 1, got False: .* remove such rows, or convert"),
    ({'label': 0}, "'label' must be true or 1, got 0"),
    ({'kto_tag': False}, "'kto_tag' must be true or 1"),
    ({'is_correct': False}, "'is_correct' must be true or 1"),
    ({'chosen': False}, "'chosen' must be true or 1"),
    ({'rejected': True}, "'rejected' must be false or 0"),
    ({'toxic': True}, "'toxic' must be false or 0"),
    ({'rating': 'bad'}, "'rating' must be numbers"),
    ({'finish_reason': 'length'}, "'finish_reason' must be one of stop"),
    ({'train': False}, "'train' must be 1 or true"),
    ({'weight': 0}, "'weight' must be 1 or true .*, got 0"),
    ({'weight': 2}, "'weight' must be 1 or true .*, got 2"),
])
def test_rows_that_are_marked_as_bad(tmp_path, verdict, words):
  for row in ({'prompt': 'q', 'completion': 'r'}, {'messages': _PAIR}):
    _assert_error(tmp_path, {**row, **verdict}, words)
    _assert_error(tmp_path, {**row, **verdict}, words, conversations.read_conversations)
    key, value = next(iter(verdict.items()))
    if isinstance(value, (bool, int)):  # The other verdict, and no verdict.
      good = key not in ('rejected', 'toxic')
      for fine in (good, int(good), None):
        assert _read(tmp_path, {**row, key: fine})['messages'] == _PAIR
  if 'label' in verdict:  # Also of a message.
    row = {'messages': [_u('q'), _a('r', **verdict)]}
    _assert_error(tmp_path, row, r"'messages\[1\].label' must")


@pytest.mark.parametrize('columns, words', [
    ({'label': False}, "'label' must be true or 1"),
    ({'margin': 0.5}, "'margin' must be 0"),
    ({'weight': 0.5}, "'weight' must be 1 or true"),
    ({'images': ['a.png']}, "'images' are not supported"),
    ({'tools': [{'name': 'f'}]}, "'tools' are not supported"),
    ({'persona': 'pirate'}, "unknown column 'persona'"),
    ({'response': 'another'}, "'response' must repeat .* next to 'chosen', 'prompt', 'rejected'"),
    ({'messages': [_u('q'), _a('x')]}, "'messages' must repeat the messages"),
    ({'chosen': [_u('q'), _a('r', train=False)]}, "'chosen' must be a learned reply"),
    ({'rejected': [_a('x', weight=0)]}, "'rejected' must be a learned reply"),
])
def test_columns_of_preferences_that_are_rejected(tmp_path, columns, words):
  _assert_error(tmp_path, {**_PREFERENCE, **columns}, words, conversations.read_preferences)


@pytest.mark.parametrize('row, context', [
    ({**_PREFERENCE, 'system': 'S'}, [_s('S'), _u('q')]),
    ({**_PREFERENCE, 'system_prompt': 'S', 'history': [['a', 'b']]},
     [_s('S'), _u('a'), _a('b'), _u('q')]),
    ({**_PREFERENCE, 'input': 'i'}, [_u('q\ni')]),
    ({**_PREFERENCE, 'label': True, 'margin': 0, 'score_chosen': 3, 'messages': _PAIR,
      'chosen-rating': 5.0, 'rejected_model': 'm', 'prompt_id': 'x', 'question': 'q'}, [_u('q')]),
    ({'chosen': _PAIR, 'rejected': [_u('q'), _a('x')], 'system': 'S'}, [_s('S'), _u('q')]),
    ({'system': 'S', 'prompt': 'q', 'chosen': _PAIR, 'rejected': [_u('q'), _a('x')]},
     [_s('S'), _u('q')]),
    # Only the two replies are learned: other marks have no effect.
    ({**_PREFERENCE, 'prompt': [_u('a', weight=0), _a('b', weight=0), _u('q')]},
     [_u('a'), _a('b'), _u('q')]),
])
def test_columns_of_preferences_that_are_used(tmp_path, row, context):
  read = _read(tmp_path, row, conversations.read_preferences)
  assert read == (1, context, 'r', 'x')


# --- Marks of learned messages.


@pytest.mark.parametrize('mark', [
    {'train': False}, {'train': 0}, {'trainable': False}, {'training': False}, {'loss': False},
    {'weight': 0}, {'weight': 0.0}, {'train': False, 'weight': 0},
])
def test_marks_of_messages(tmp_path, mark):
  opposite = {key: 1 if key == 'weight' else True for key in mark}
  rows = [
      {'messages': [_u('q'), _a('r', **mark), _u('q2'), _a('r2', **opposite)]},
      {'messages': [_u('q', **mark), _a('r', **mark), _u('q2', **mark), _a('r2')]},
      {'prompt': [_u('q'), _a('r', **mark), _u('q2')], 'completion': 'r2'},
  ]
  for row in rows:
    expected = [_u('q'), _a('r', train=False), _u('q2'), _a('r2')]
    assert _read(tmp_path, row)['messages'] == expected
    # A reader that learns every reply rejects the row.
    _assert_error(tmp_path, row, rf"\[1\].{next(iter(mark))}' must be true or 1, got",
                  conversations.read_conversations)
  _assert_error(tmp_path, {'messages': [_u('q'), _a('r', **mark)]},
                'no message of the assistant is learned')


@pytest.mark.parametrize('messages, words', [
    ([_u('q', train=True), _a('r')], r"'messages\[0\].train' must be false or absent: .* the user"),
    ([_u('q'), _a('r', weight=0.5)], r"'messages\[1\].weight' must be 0 or 1"),
    ([_u('q', weight=2), _a('r')], r"'messages\[0\].weight' must be 0 or 1 .*, got 2"),
    ([_u('q'), _a('r', weight='0')], r"'messages\[1\].weight' must be 0 or 1 .*, got '0'"),
    ([_u('q'), _a('r', train='no')], r"'messages\[1\].train' must be true or false, got 'no'"),
    ([*_TWO[:3], _a('r2', train=True, weight=0)], r"'messages\[3\]' has marks that disagree: tr"),
    ([_u('q'), _a('r', mask=True)], r"unknown column 'messages\[1\].mask'"),
    ([_u('q'), _a('r', train_detail=[{'train': False}])], r"column 'messages\[1\].train_detail'"),
])
def test_marks_that_are_rejected(tmp_path, messages, words):
  _assert_error(tmp_path, {'messages': messages}, words)


def test_weights_of_messages_that_are_not_learned(tmp_path):
  # SlimOrca.
  row = {'conversations': [
      {'from': 'system', 'value': 'S', 'weight': None}, {**_SHAREGPT[0], 'weight': 0},
      {**_SHAREGPT[1], 'weight': 1}]}
  for read in (conversations.read_demonstrations, conversations.read_conversations):
    assert _read(tmp_path, row, read)['messages'] == [_s('S'), *_PAIR]
    row['conversations'][1]['weight'] = 1
