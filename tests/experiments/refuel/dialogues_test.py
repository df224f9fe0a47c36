"""Selection of conversations, their limits, and decoding of dialogues."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.refuel import dialogues as refuel_dialogues
from jaxrl_llm.data import chat_templates
from jaxrl_llm.data import dialogues as dialogues_lib
from jaxrl_llm.tasks import config as task_config
from jaxrl_llm.types import STOPPED, TRUNCATED
from tests.experiments import tiny, tiny_refuel


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('talks')
  tiny.write_tokenizer(folder / 'tokens', template=tiny.TEMPLATE)
  return folder


def _make(folder, rows, **options):
  (folder / 'rows.json').write_text(json.dumps(rows))
  settings = tiny_refuel.task(
      files='rows.json', tokenizer_dir=str(folder / 'tokens'), num_evaluation=1, **options)
  settings.validate('config.task')
  return settings.make(0, str(folder))


def _rows(*turns):
  return [{'messages': tiny_refuel.conversation(i, count)} for i, count in enumerate(turns)]


def _every(task):
  return sorted(task.train + task.evaluation, key=lambda example: example['id'])


def test_dialogues_begin_with_the_first_turn_and_ask_the_others(folder):
  task = _make(folder, _rows(1, 2, 3, 3))
  examples = _every(task)
  assert [len(example['questions']) for example in examples] == [1, 2, 3, 3]
  assert task.questions.num_turns([e['id'] for e in examples]).tolist() == [1, 2, 3, 3]

  for example in examples:
    first = example['questions'][0]
    assert example['messages'] == [{'role': 'user', 'content': first}]
    assert example['prompt'] == f'<start>[user]{first}<end>[assistant]'
    assert len(example['prompt_ids']) == 19 + len(first) <= task.max_prompt_tokens

  assert len(task.evaluation) == 1 and task.evaluation[0] not in task.train
  # All of it fits after the prompt, with the tokens that close a truncated reply.
  assert task.max_message_tokens == tiny_refuel.MESSAGE + 1 and task.num_turns == 3
  assert task.max_response_tokens == 3 * tiny_refuel.REPLY + 2 * 29
  assert task.max_transcript_tokens == tiny_refuel.PROMPT + 2 * (tiny_refuel.REPLY + 29)

  # Demonstrations are of the rows that are not held out.
  held_out = task.evaluation[0]['questions'][0]
  assert {e['messages'][0]['content'] for e in task.demonstrations} == {
      e['questions'][0] for e in examples} - {held_out}


def test_a_simulated_user_reads_only_the_first_question(folder):
  rows = _rows(5, 5, 2)
  task = _make(folder, rows, first_only=True)
  assert [len(example['questions']) for example in _every(task)] == [1, 1, 1]
  assert _make(folder, rows + _rows(1)).dropped == {
      'repeated': 0, 'turns': 2, 'too_long': 0, 'held_out': 0}


def test_rows_are_left_out_and_counted(folder):
  long = 'x' * 30
  rows = [
      *_rows(1, 2, 3), *_rows(1),  # The last one asks what the first one asks.
      {'messages': tiny_refuel.conversation(7, 4)},
      {'prompt': long, 'response': 'R'},
      {'messages': [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'R'},
                    {'role': 'user', 'content': long}, {'role': 'assistant', 'content': 'R'}]},
      {'prompt': 'Go on', 'response': long},
  ]
  task = _make(folder, rows)
  assert task.dropped == {'repeated': 1, 'turns': 1, 'too_long': 2, 'held_out': 0}
  assert task.left_out() == 'rows left out: 1 repeated, 1 turns, 2 too_long, 0 held_out'
  assert [e['id'] for e in _every(task)] == [0, 1, 2, 7]
  assert _make(folder, rows, filter_replies=True).dropped['too_long'] == 3
  assert _make(folder, rows, min_turns=2).dropped['turns'] == 4

  # Nothing that is trained on begins as a held-out one does.
  same = [*_rows(2), {'messages': tiny_refuel.conversation(0, 3)}, *_rows(1, 1)[1:]]
  task = _make(folder, same)
  assert task.dropped['held_out'] == (task.evaluation[0]['id'] != 2)
  assert len(task.train) + task.dropped['held_out'] == 2


def test_limits_by_the_number_of_turns(folder):
  rows = _rows(1, 2, 3, 1, 2)
  limits = '1=28:4, 2=27:3'
  task = _make(folder, rows, limits=limits)
  assert task.dropped['turns'] == 1 and task.reply_limits == {1: 4, 2: 3}
  assert task.max_response_tokens == max(4, 2 * 3 + 28)
  assert task.max_transcript_tokens == tiny_refuel.PROMPT + 3 + 28
  assert _make(folder, rows, limits='1=28:4, 2=24:3').dropped['too_long'] == 2
  with pytest.raises(ValueError, match=r'limits must be within .*got 2=29:3'):
    _make(folder, rows, limits='2=29:3')


def test_the_released_limits_of_HH_are_those_of_every_turn():
  from experiments.configs import refuel_two

  task = refuel_two.get_config('hh').task
  limits = {turns: (task.max_message_tokens, task.max_response_tokens) for turns in range(1, 6)}
  assert limits == {turns: (128, 512) for turns in range(1, 6)} and not task.limits
  assert task.max_prompt_tokens == task.max_message_tokens and task.filter_replies


def test_texts_are_decoded_without_the_template(folder):
  task = _make(folder, _rows(2, 2))
  example, encode = task.train[0], task.tokenizer.encode
  prompts = np.array([example['prompt_ids']])
  talk = dialogues_lib.empty(
      prompts, [prompts.shape[1]], [example['id']], num_turns=3, reply_slots=4, message_slots=29)
  rows = np.ones(1, bool)
  replies = [encode('ab') + [*task.tokenizer.stop_ids], encode('[us]')]
  for turn, (ids, reason) in enumerate(zip(replies, (STOPPED, TRUNCATED))):
    padded = np.zeros((1, 4), np.int32)
    padded[0, : len(ids)] = ids
    talk = talk.with_replies(turn, rows, tokens=padded, lengths=[len(ids)],
                             log_probs=np.zeros((1, 4)), stop_reason=[reason])
    close = [] if reason == STOPPED else task.frame.close_ids
    talk = talk.with_messages(turn, rows, [[*close, *task.frame.write(f'And {turn}?')]])

  assert task.messages(talk, 0) == [
      {'role': 'user', 'content': example['questions'][0]},
      {'role': 'assistant', 'content': 'ab'}, {'role': 'user', 'content': 'And 0?'},
      {'role': 'assistant', 'content': '[us]'}, {'role': 'user', 'content': 'And 1?'},
  ]
  assert task.messages(talk.cut(1), 0) == task.messages(talk, 0)[:3]


# --- Rows that hold their conversation somewhere else.


def test_rows_of_the_released_data(tmp_path, capsys):
  talk = tiny_refuel.conversation(1, 2)
  rows = [
      {'prompt': talk[0]['content'], 'chosen': talk, 'rejected': talk},  # trl's HH.
      {'chosen': [talk[0], talk[0], talk[1]]},
      {'chosen': [{'from': 'system', 'value': 'S'}, *talk]},
  ]
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  read = refuel_dialogues.read(path, key='chosen')
  assert [row.index for row in read] == [0, 2] and read[0].prompt == talk[:-1]
  assert read[0].chosen == 'R1' and read[1].prompt[0] == {'role': 'system', 'content': 'S'}
  assert '1 of 3 rows of' in capsys.readouterr().out

  # UltraInteract: conversations up to the user's last turn, or with the reply to it.
  spelt = [{'from': m['role'], 'value': m['content']} for m in talk]
  path.write_text(json.dumps([
      {'trajectory': spelt[:-1], 'chosen': 'Yes'}, {'trajectory': talk, 'chosen': 'Yes'}]))
  read = refuel_dialogues.read(path, key='trajectory')
  assert [row.chosen for row in read] == ['Yes', 'R1'] and read[0].prompt == talk[:-1]


@pytest.mark.parametrize('row, words', [
    ({}, "line 1: the key 'talk' is missing"),
    ({'talk': 'Hi'}, "'talk' must be list, got str"),
    ({'talk': []}, "line 1: 'talk' must be a list of messages, got an empty list"),
    ({'talk': ['Hi', ' ']}, r"line 1: 'talk' must hold texts that are not empty, got \['Hi'"),
    ({'talk': [3, 'Hi']}, r"line 1: 'talk\[0\]' must have a role .* and a text, got 3"),
    ({'talk': [{'role': ['x'], 'content': 'Hi'}]}, r"must have a role .* got \{'role': \['x'\]"),
    ({'talk': [{'role': 'user', 'content': 'Hi'}]}, 'take turns in none of 1 rows'),
    ({'talk': [{'role': 'assistant', 'content': 'Hi', 'reasoning': 'why'}]},
     r"line 1: 'talk\[0\].reasoning' is only supported in conversations for fine-tuning"),
    ({'talk': [{'role': 'assistant', 'content': 'Hi', 'weight': 0}]}, 'weight. must be true or 1'),
    ({'talk': [{'role': 'user', 'content': 'Hi', 'images': ['a']}]}, 'images. is not supported'),
    ({'talk': ['Hi'], 'system': 'S'}, "line 1: the column 'system' would be lost, got 'S'"),
    ({'talk': ['Hi'], 'tools': [{'name': 'f'}]}, "line 1: 'tools' are not supported"),
])
def test_damaged_rows_are_named(tmp_path, row, words):
  path = tmp_path / 'rows.jsonl'
  path.write_text(json.dumps(row) + '\n')
  with pytest.raises(ValueError, match=words) as error:
    refuel_dialogues.read(path, key='talk')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('options, words', [
    ({'max_prompt_tokens': 4}, 'none of 3 dialogues is left: 0 repeated, 0 turns, 3 too_long'),
    ({'num_turns': 1}, r'num_evaluation must be in \[1, 0\] \(of 1 dialogues\), got 1'),
    ({'max_message_tokens': 18}, 'max_message_tokens must be more than the 18 .*, got 18'),
])
def test_insufficient_data_are_an_error(folder, options, words):
  with pytest.raises(ValueError, match=words):
    _make(folder, _rows(1, 2, 3), **options)


def test_rows_of_ids_are_refused(folder):
  (folder / 'ids.json').write_text(json.dumps([{'query_token': [5, 9, i]} for i in (9, 10)]))
  settings = dataclasses.replace(
      tiny_refuel.task(files='ids.json', tokenizer_dir=str(folder / 'tokens')),
      schema='tldr', fields='chosen_ids=query_token')
  with pytest.raises(ValueError, match='row 0: dialogues need conversations'):
    settings.make(0, str(folder))


def test_parsing_of_limits():
  assert refuel_dialogues.parse_limits(' 1=3:4,2=5 : 6 ') == {1: (3, 4), 2: (5, 6)}
  for text in ('1', '1=2', '1=2:0', 'a=2:3', '1=2:3:4'):
    with pytest.raises(ValueError, match="limits must be written as 'TURNS=USER:REPLY"):
      refuel_dialogues.parse_limits(text)


def test_the_questions_of_MT_bench(data_dir):
  """They are asked in turn; there are no replies to learn."""
  settings = tiny_refuel.task(
      files='question.jsonl', key='turns', template='chatml', num_turns=2, num_evaluation=30,
      max_prompt_tokens=512, max_message_tokens=256, filter_replies=True,
      tokenizer_dir=str(data_dir / 'tokenizers' / 'qwen2'))
  settings.validate('config.task')
  make = lambda **options: dataclasses.replace(settings, **options).make(
      0, data_dir / 'mt_bench', task_config.PolicyTokenizer(pretrained=True))
  task = make()
  path = data_dir / 'mt_bench' / 'question.jsonl'
  asked = [json.loads(line)['turns'] for line in path.read_text().splitlines()]
  every = _every(task)
  fits = [e['id'] for e in every]
  assert [e['questions'] for e in every] == [asked[index] for index in fits]
  assert len(asked) == 80 == len(every) + task.dropped['too_long'] and len(every) > 70
  assert len(task.evaluation) == 30 and not task.demonstrations

  example = task.train[0]
  assert example['messages'] == [{'role': 'user', 'content': example['questions'][0]}]
  assert example['questions'][0].strip() in example['prompt']
  assert task.questions.num_turns(fits).tolist() == [2] * len(fits)

  first = make(first_only=True, filter_replies=False).train
  assert [e['questions'] for e in first] == [asked[e['id']][:1] for e in first]


def test_real_conversations_fit_the_demo(data_dir, tmp_path):
  """The vocabulary is that of the reward model's demo, regardless of which rows are left out."""
  from experiments.configs import refuel_two, reward_model_demo

  rows = json.loads((data_dir / 'preferences' / 'dpo_en_demo.json').read_text())
  several = [row for row in rows if len(row['conversations']) == 5][:14]
  (tmp_path / 'dpo_en_demo.json').write_text(json.dumps(several))
  make = lambda task, **options: dataclasses.replace(task, num_evaluation=2, **options).make(
      0, tmp_path, task_config.PolicyTokenizer(str(data_dir / 'tokenizers' / 'qwen2')))
  task = make(refuel_two.get_config().task)
  assert task.template is chat_templates.QWEN2 and len(task.evaluation) == 2
  assert 3 < len(task.train) < 12 and all(len(e['questions']) == 3 for e in task.train)
  reward = make(reward_model_demo.get_config().task, max_prompt_tokens=4_096)
  assert task.tokenizer.fingerprint == reward.tokenizer.fingerprint
