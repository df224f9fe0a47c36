"""Preference tasks: ids of prompts and responses, what is held out and what is left out."""

import functools
import json

import numpy as np
import pytest

from jaxrl_llm.data import chat_templates, sft_batches, tokenizers
from jaxrl_llm.tasks import preferences
from tests.experiments import tiny

WORDS = ('one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight')


@pytest.fixture(scope='module')
def tokenizer_dir(tmp_path_factory):
  """Bytes, with a start and a stop token and a template."""
  folder = tmp_path_factory.mktemp('tokenizer')
  tiny.write_tokenizer(folder, template=tiny.TEMPLATE)
  return folder


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp('rows') / 'pairs.json'
  path.write_text(json.dumps([
      {'prompt': f'Say {word}.', 'chosen': word, 'rejected': f'{word} or not'} for word in WORDS]))
  return path


def _make(file, tokenizer_dir, *, seed=0, kind=preferences.Config, **options):
  fields = {'files': str(file), 'num_evaluation': 3, **options}
  return kind(tokenizer_dir=str(tokenizer_dir), **fields).make(seed, '.')


def test_ids_are_those_of_the_template_and_the_stop_token(file, tokenizer_dir):
  task = _make(file, tokenizer_dir)
  assert (len(task.train), len(task.evaluation), task.reward_fn) == (5, 3, None)
  template = chat_templates.ChatTemplate(
      tiny.TEMPLATE, {'bos_token': tiny.START, 'eos_token': tiny.STOP})
  stop = list(task.tokenizer.stop_ids)
  assert sorted(e['id'] for e in task.train + task.evaluation) == list(range(8))

  for example in task.train + task.evaluation:
    word = WORDS[example['row']]
    asked = [{'role': 'user', 'content': f'Say {word}.'}]
    assert example['messages'] == asked and example['source'] == 'pairs.json'
    assert example['prompt'] == template.render(asked, add_generation_prompt=True)
    assert example['prompt_ids'] == task.tokenizer.encode(example['prompt'])
    assert example['chosen_ids'] == task.tokenizer.encode(word) + stop
    assert example['rejected_ids'] == task.tokenizer.encode(f'{word} or not') + stop
    assert list(example['ids']) == example['prompt_ids'] + example['chosen_ids']
    assert list(example['ids'][example['loss_mask']]) == example['chosen_ids']
  assert task.pairs(task.train) == task.train
  # What fine-tuning learns are the chosen responses.
  sequences = sft_batches.encode_demonstrations(task)
  assert sequences.response_lengths.sum() == sum(len(e['chosen_ids']) for e in task.train)


def test_several_turns_end_with_the_last_reply(tmp_path, tokenizer_dir):
  path = tmp_path / 'turns.jsonl'
  path.write_text('\n'.join(json.dumps({'conversations': [
      {'from': 'human', 'value': 'Say one.'}, {'from': 'gpt', 'value': 'one'},
      {'from': 'human', 'value': f'Now {word}.'}],
      'chosen': {'from': 'gpt', 'value': word}, 'rejected': {'from': 'gpt', 'value': 'no'},
  }) for word in WORDS))
  task = _make(path, tokenizer_dir)
  for example in task.train:
    assert task.tokenizer.decode(example['chosen_ids']) == WORDS[example['row']]
    assert example['prompt'].endswith(f'Now {WORDS[example["row"]]}.{tiny.STOP}[assistant]')


def test_plain_texts_and_their_boundaries(file, data_dir):
  # Real tokens: the response is encoded as the continuation of its prompt.
  task = _make(file, data_dir / 'tokenizers' / 'gpt2', template='none')
  assert task.template is None and 'messages' not in task.train[0]
  for example in task.train:
    assert example['prompt_ids'] == task.tokenizer.encode(example['prompt'])
    whole = task.tokenizer.encode(example['prompt'] + example['chosen'])
    assert example['prompt_ids'] + example['chosen_ids'] == [*whole, *task.tokenizer.stop_ids]


def test_published_ids_lose_their_padding_and_keep_their_stop(tmp_path, tokenizer_dir):
  task_of = lambda rows, **options: _make(
      _jsonl(tmp_path, rows), tokenizer_dir, num_evaluation=1, template='none', **options)
  outside, stop = 300, 0  # The tokenizer has 258 ids, and its stop token is id 0.
  rows = [
      {'query_token': [outside, outside, 40 + i, 41], 'chosen_token': [50, stop, outside, outside],
       'rejected_token': [51, 52, 53, 54]} for i in range(3)]
  task = task_of(rows, schema='tldr_pairs')
  assert task.tokenizer.stop_ids == (stop,)
  for example in task.train + task.evaluation:
    assert example['prompt_ids'] == [40 + example['row'], 41]
    assert example['prompt'] == task.tokenizer.decode(example['prompt_ids'])
    assert example['chosen_ids'] == [50, stop]
    assert example['rejected_ids'] == [51, 52, 53, 54]  # Cut: no stop token was invented.

  # Padding that is the stop token itself: the first one stays.
  rows = [{'query_token': [stop, 40 + i], 'chosen_token': [50, stop, stop],
           'rejected_token': [51, 9, 9]} for i in range(3)]
  task = task_of(rows, schema='tldr_pairs', file_pad_id=stop)
  assert task.train[0]['chosen_ids'] == [50, stop] and len(task.train[0]['prompt_ids']) == 1
  assert task.train[0]['rejected_ids'] == [51, 9, 9]
  assert task_of(rows, schema='tldr_pairs', file_pad_id=9).train[0]['rejected_ids'] == [51]
  # Prompts alone, with ids for the reward model and the text for its template.
  rows = [{'prompt': f'Hi {i}', 'oc_prompt_tokens': [outside, 40 + i], 'rm_tokens': [999, 5]}
          for i in range(3)]
  example = task_of(rows, schema='nectar').train[0]
  assert example['reward_prompt_ids'] == [999, 5] and 'chosen_ids' not in example
  assert not task_of(rows, schema='nectar').demonstrations
  # A response as text next to ids.
  rows = [{'prompt_ids': [40 + i], 'chosen': 'yes'} for i in range(3)]
  task = task_of(rows, fields='prompt_ids=prompt_ids,chosen=chosen')
  assert task.train[0]['chosen_ids'] == [*task.tokenizer.encode('yes'), stop]


def _jsonl(tmp_path, rows):
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def test_held_out_prompts_depend_on_files_and_seed_only(file, tokenizer_dir):
  held_out = lambda **options: [e['id'] for e in _make(file, tokenizer_dir, **options).evaluation]
  assert held_out() == held_out(max_response_tokens=4, num_train=2) == sorted(held_out())
  assert len({tuple(held_out(seed=seed)) for seed in range(4)}) > 1
  task = _make(file, tokenizer_dir, num_train=2)
  assert [e['id'] for e in task.train] == [
      e['id'] for e in _make(file, tokenizer_dir).train][:2]


def test_held_out_prompts_are_excluded_from_training(tmp_path, tokenizer_dir):
  rows = [{'prompt': f'Say {word}.', 'chosen': str(i), 'rejected': 'no'}
          for i in range(3) for word in WORDS]
  task = _make(_jsonl(tmp_path, rows), tokenizer_dir, num_evaluation=4)
  asked = lambda examples: {example['prompt'] for example in examples}
  assert not asked(task.train) & asked(task.evaluation)
  assert task.num_repeated == 24 - 4 - len(task.train) >= 4


def test_held_out_files(file, tmp_path, tokenizer_dir):
  rows = [{'prompt': f'Say {word}.', 'chosen': 'x', 'rejected': 'y'} for word in WORDS[:2]]
  other = _jsonl(tmp_path, rows)
  task = _make(file, tokenizer_dir, evaluation_files=str(other), num_evaluation=0)
  assert {e['source'] for e in task.evaluation} == {'rows.jsonl'} and len(task.evaluation) == 2
  assert len(task.train) == 6 and task.num_repeated == 2
  # All prompts of these files are excluded from training, also if fewer are evaluated.
  task = _make(file, tokenizer_dir, evaluation_files=str(other), num_evaluation=1)
  assert (len(task.train), len(task.evaluation)) == (6, 1)


def test_long_prompts_are_left_out_and_counted(file, tokenizer_dir):
  whole = _make(file, tokenizer_dir)
  lengths = {WORDS[e['row']]: len(e['prompt_ids']) for e in whole.train + whole.evaluation}
  limit = lengths['four']
  task = _make(file, tokenizer_dir, max_prompt_tokens=limit, max_response_tokens=5)
  short = [word for word in WORDS if lengths[word] <= limit]
  assert {WORDS[e['row']] for e in task.train + task.evaluation} == set(short)
  assert sum(task.num_filtered.values()) == len(WORDS) - len(short) > 0
  assert task.pairs(task.train) == []  # '... or not' and its stop token are too long.
  # Fine-tuning has the room of both.
  assert all(len(e['ids']) <= limit + 5 for e in task.demonstrations)
  with pytest.raises(ValueError, match='no train prompt has at most 3 tokens'):
    _make(file, tokenizer_dir, max_prompt_tokens=3)


def test_a_compact_vocabulary_does_not_depend_on_the_seed(data_dir, file, monkeypatch):
  folder = data_dir / 'tokenizers' / 'gpt2'
  monkeypatch.setattr(tokenizers, 'load_tokenizer', functools.cache(tokenizers.load_tokenizer))
  make = lambda **options: _make(
      file, folder, template='none', vocabulary='compact', **options)
  task = make()
  assert task.tokenizer.vocab_size < 300
  assert make(seed=1).tokenizer.fingerprint == task.tokenizer.fingerprint
  assert make(max_vocabulary=258).tokenizer.vocab_size == 258
  for example in task.train + task.evaluation:
    for name in ('chosen', 'rejected'):
      assert task.tokenizer.decode(example[f'{name}_ids']) == example[name]


def test_a_subclass_may_read_files_differently(file, tokenizer_dir):
  seen = []

  class Config(preferences.Config):

    def read_rows(self, file):
      seen.append(file)
      return super().read_rows(file)

  task = _make(file, tokenizer_dir, kind=Config, fields='prompt=prompt,chosen=rejected')
  assert seen == [file]
  assert task.train[0]['chosen'].endswith('or not') and 'rejected_ids' not in task.train[0]


def test_the_public_preferences(data_dir, tokenizer_dir):
  task = _make(data_dir / 'preferences' / 'dpo_en_demo.json', tokenizer_dir, num_evaluation=60,
               max_prompt_tokens=4_000, max_response_tokens=4_000)
  assert len(task.evaluation) + task.num_filtered['evaluation'] == 60
  for example in (task.train + task.evaluation)[:50]:
    for name in ('chosen', 'rejected'):
      assert task.tokenizer.decode(example[f'{name}_ids']) == example[name]
      assert example[f'{name}_ids'].count(task.tokenizer.stop_ids[0]) == 1
    assert np.all(example['ids'][: len(example['prompt_ids'])] == example['prompt_ids'])


@pytest.mark.parametrize('options, message', [
    ({'num_evaluation': 8}, r'num_evaluation must be in \[1, 7\] \(of 8 prompts\), got 8'),
    ({'num_evaluation': 0}, r'num_evaluation must be in \[1, 7\]'),
    ({'vocabulary': 'x'}, "vocabulary must be one of full, compact, auto, got 'x'"),
    ({'max_vocabulary': 500}, "max_vocabulary must be 0 with vocabulary 'full', got 500"),
    ({'template': 'nowhere.jinja'}, "'auto', 'chatml' or the path of one, got 'nowhere.jinja'"),
    ({'template': 'chatml'}, 'pairs.json, row 0: the chat template ends a reply with the token'),
    ({'files': ''}, 'needs the names of its files: --config.task.files=NAME,...'),
    ({'files': 'x/a.json, a.json'}, 'must have distinct names, got a.json, a.json'),
    ({'files': 'missing.json'}, 'cannot read missing.json'),
    ({'schema': 'x'}, "schema must be one of .*, got 'x'"),
])
def test_bad_fields_are_one_line_errors(file, tokenizer_dir, options, message):
  with pytest.raises(ValueError, match=message) as error:
    _make(file, tokenizer_dir, **options)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('rows, options, message', [
    ([{'p': [300]}], {'fields': 'prompt_ids=p'}, 'rows.jsonl, row 0: the ids are all padding'),
    ([{'p': [1]}, {'p': [1, 300, 2]}], {'fields': 'prompt_ids=p'},
     r'rows.jsonl, row 1: ids must be in \[0, 258\), those of the tokenizer, got 300'),
    ([{'p': [{'role': role, 'content': 'x'} for role in ('system', 'user')]}],
     {'fields': 'prompt=p', 'template': 'none'},
     "rows.jsonl, row 0: a conversation of 2 messages needs a template, got 'none'"),
    ([{'p': [1]}], {'fields': 'prompt_ids=p', 'vocabulary': 'compact'},
     "vocabulary must be 'full' for data of token ids"),
    ([{'prompt': 'x', 'chosen': 'a', 'rejected': 'b'}] * 2, {'num_evaluation': 1},
     'all 2 prompts ask the same as the held-out ones'),
])
def test_bad_rows_are_one_line_errors(tmp_path, tokenizer_dir, rows, options, message):
  with pytest.raises(ValueError, match=message) as error:
    _make(_jsonl(tmp_path, rows), tokenizer_dir, **{'num_evaluation': 1, **options})
  assert '\n' not in str(error.value)
