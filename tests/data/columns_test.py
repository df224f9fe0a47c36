"""Unused columns: harmless ones are ignored, all others are one-line errors."""

import json
import math

import pytest

from jaxrl_llm.data import columns


@pytest.mark.parametrize('value, empty', [
    (None, True), ('', True), (' \n', True), ([], True), ({}, True), (math.nan, True),
    ({'name': None, 'arguments': ''}, True),
    (0, False), (False, False), ('x', False), ([None], False), ([''], False), ({'a': 0}, False),
])
def test_is_empty(value, empty):
  assert columns.is_empty(value) == empty
  if empty:
    columns.check({'unknown': value, 'system': value, 'label': value, 'tools': value}, ())


@pytest.mark.parametrize('row', [
    {'id': 'x', 'source': 'web', 'created_at': '2024', 'language': 'en', 'split': 'train'},
    {'prompt_id': 'a', 'avatarUrl': 'u', 'Created-At': 1, '__index_level_0__': 3},
    {'score_chosen': 1.5, 'rejected-rating': '4', 'chosen_model': 'm', 'scores': {'a': [1, 2.5]}},
    {'num_tokens': 12, 'rating': 'N/A', 'category': 'closed_qa', 'model': 'gpt-4'},
    {'label': 'Good', 'correct': 'TRUE', 'is_toxic': 'no', 'usage': {'total_tokens': 3}},
    {'label': True, 'is_correct': 1, 'toxic': False, 'rejected': 0, 'finish_reason': 'stop'},
    {'weight': 1.0, 'train': True, 'margin': 0}, {'tools': '[]', 'functions': 'null'},
    {'metadata': {'anything': 1, 'label': True, 'x': {'y': 2}}},
    # Magpie, smol-magpie-ultra and OpenAI's files for fine-tuning.
    {'gen_input_configs': {'temperature': 1, 'pre_query_template': '<|user|>'}, 'raw_index': 1,
     'instruct_reward': -3.2, 'min_neighbor_distance': 0.2, 'min_similar_uuid': 'x',
     'repeat_count': 0, 'difficulty_generator': 'm', 'reward_model_score': '0.5',
     'conversation_tokens': 9, 'posted_at': '2024', 'parallel_tool_calls': False},
])
def test_harmless_columns_are_ignored(row):
  columns.check(row, ())
  columns.check_named(row, ())


@pytest.mark.parametrize('row, words', [
    ({'label': False}, "'label' must be true or 1, got False: responses marked as bad"),
    ({'label': 'bad'}, "'label' must be true or 1, got 'bad'"),
    ({'label': 'false'}, "'label' must be true or 1, got 'false'"),
    ({'toxic': 'true'}, "'toxic' must be false or 0, got 'true'"),
    ({'isCorrect': 0}, "'isCorrect' must be true or 1, got 0"),
    ({'chosen': False}, "'chosen' must be true or 1, got False"),
    ({'rejected': True}, "'rejected' must be false or 0, got True"),
    ({'flagged': 1}, "'flagged' must be false or 0, got 1"),
    ({'finish_reason': 'length'}, "'finish_reason' must be one of stop, .*, got 'length'"),
    ({'weight': 0}, "'weight' must be 1 or true .*, got 0"),
    ({'sample_weight': 0.5}, "'sample_weight' must be 1 or true .*, got 0.5"),
    ({'train': False}, "'train' must be 1 or true .*, got False"),
    ({'margin': 1.5}, r"'margin' must be 0 \(margins are not supported\), got 1.5"),
    ({'user_rating': 'bad'}, "'user_rating' must be numbers, .*, got 'bad'"),
    ({'gen_input_configs': {'system': 'S'}}, "column 'gen_input_configs.system' would be lost"),
    ({'rating': 'bad'}, "'rating' must be numbers, .*, got 'bad'"),
    ({'custom_instruction': 'Be a pirate.'}, "'custom_instruction' must be true or false, got 'Be"),
    ({'score': True}, "'score' must be numbers, .*, got True"),
    ({'tools': [{'name': 'f'}]}, "'tools' are not supported, got"),
    ({'image': 'a.png'}, "'image' is not supported, got 'a.png'"),
    ({'scores': json.loads('[' * 60 + '1' + ']' * 60)}, "'scores' must be numbers"),
    ({'metadata': json.loads('{"info": ' * 60 + '1' + '}' * 60)}, 'info.* is nested too deeply'),
    ({'documents': ['d']}, "'documents' are not supported"),
    ({'system': 'S'}, "column 'system' would be lost, got 'S': make it part of the messages"),
    ({'history': [['a', 'b']]}, "column 'history' would be lost"),
    ({'metadata': {'system_prompt': 'S'}}, "column 'metadata.system_prompt' would be lost"),
    ({'metadata': {'is_correct': False}}, "'metadata.is_correct' must be true or 1"),
])
def test_columns_that_change_the_meaning_are_one_line_errors(row, words):
  for check in (columns.check, columns.check_named):
    with pytest.raises(ValueError, match=words) as error:
      check({'id': 1, **row}, ('id',))
    assert '\n' not in str(error.value) and len(str(error.value)) < 300
    check({'id': 1, **row}, ('id', *row))


@pytest.mark.parametrize('key, value', [
    ('foo', 'x' * 1000), ('choices', ['a']), ('input_ids', [1]), ('loss_mask', [0, 1]), ('mask', 1),
    ('better_response_id', 0), ('label_score', 0), ('image_tokens', [1]), ('car_model', 'T'),
    ('box_length', 3), ('persona', 'a pirate'), ('chosen', 'a reply'), ('title', 'T'),
    ('chat_template_kwargs', {'enable_thinking': False}), ('reasoning_details', [{}]),
])
def test_unknown_columns_are_one_line_errors(key, value):
  words = f"unknown column '{key}', got .*data/columns.py.*remove it from the file"
  with pytest.raises(ValueError, match=words) as error:
    columns.check({key: value}, ())
  assert '\n' not in str(error.value) and len(str(error.value)) < 320
  with pytest.raises(ValueError, match=rf"unknown column 'messages\[2\].{key}'"):
    columns.check({key: value}, (), where='messages[2]')
  columns.check_named({key: value}, ())  # The user named the columns to read.


def test_all_unknown_columns_are_named():
  row = {'id': 1, 'knowledge': 'k', 'source': 's', 'style': 't', 'a\nb': 1}
  with pytest.raises(ValueError, match=r"unknown column 'knowledge', .*; also unknown: style, 'a"):
    columns.check(row, ())
  with pytest.raises(ValueError, match="column 'system' would be lost"):
    columns.check({**row, 'system': 'S'}, ())
  with pytest.raises(ValueError, match=r'xxx\.\.\.$') as error:
    columns.check({f'{i}{"x" * 90}': 1 for i in range(90)}, ())
  assert '\n' not in str(error.value) and len(str(error.value)) < 800


def test_an_unknown_column_may_repeat_a_text():
  columns.check({'problem': ' q\n'}, (), texts=['q', 'r'])
  for row in ({'problem': 'p'}, {'problem': ['q']}, {'system': 'q'}, {'label': 'q'}):
    with pytest.raises(ValueError, match=next(iter(row))):
      columns.check(row, (), texts=['q', 'r'])


def test_a_prompt_is_not_learned_from():
  columns.check_prompt({'label': False, 'weight': 0, 'choices': 'x', 'system': None}, ())
  for key in ('system', 'input', 'history', 'images', 'tools'):
    with pytest.raises(ValueError, match=f"'{key}' "):
      columns.check_prompt({key: ['x']}, ())


def test_the_lists_do_not_contradict_each_other():
  harmless = [name for names in columns.HARMLESS.values() for name in names]
  others = [*columns.GOOD, *columns.BAD, *columns.UNSUPPORTED, *columns.TRAIN, *columns.SYSTEM,
            *columns.EXTRA, *columns.REASONING, *columns.METADATA]
  assert len(set(harmless + others)) == len(harmless + others)
  assert set(columns.NUMERIC) < set(columns.HARMLESS)
