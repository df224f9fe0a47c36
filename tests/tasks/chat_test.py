"""Chat: ids and masks of a template, conversations held out, and tasks within a template."""

import functools
import json

import numpy as np
import pytest

from jaxrl_llm.data import batching, chat_templates, sft_batches, tokenizers
from jaxrl_llm.tasks import arithmetic, chat, gsm8k
from tests.golden import chat_cases

# GPT-2 has no tokens for turns; its end of text may end them.
PLAIN = (
    "{% for message in messages %}{{ message.role ~ ':\\n' ~ message.content }}"
    "{{ eos_token if message.role == 'assistant' else '\\n' }}{% endfor %}"
    "{{ 'assistant:\\n' if add_generation_prompt }}"
)
QUESTIONS = ('one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight')


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
  """Tokenizers take a second to load; each is loaded once for all tests."""
  monkeypatch.setattr(tokenizers, 'load_tokenizer', _LOAD)


_LOAD = functools.cache(tokenizers.load_tokenizer)


@pytest.fixture(scope='module')
def folders(data_dir):
  return {name: data_dir / 'tokenizers' / name for name in ('qwen2', 'gpt2')}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Two files of small conversations in different forms."""
  folder = tmp_path_factory.mktemp('chat')
  (folder / 'a.json').write_text(json.dumps(
      [{'instruction': f'What is {name}?', 'output': f'It is {name}.'} for name in QUESTIONS]))
  (folder / 'b.jsonl').write_text('\n'.join(json.dumps({'conversations': [
      {'from': 'human', 'value': f'Say {name}.'}, {'from': 'gpt', 'value': name},
      {'from': 'human', 'value': 'Again.'}, {'from': 'gpt', 'value': f'{name} {name}'},
  ]}) for name in QUESTIONS[:4]))
  return [folder / 'a.json', folder / 'b.jsonl']


def _make(files, folder, seed=0, **options):
  fields = {'template': 'chatml', 'num_evaluation': 3} | options
  config = chat.Config(files=','.join(map(str, files)), tokenizer_dir=str(folder), **fields)
  return config.make(seed, '.')


def test_conversations_become_ids_with_the_assistants_marked(files, folders):
  task = _make(files, folders['qwen2'])
  assert (len(task.demonstrations), len(task.evaluation), task.train) == (9, 3, [])
  assert task.reward_fn is None and task.num_repeated == 0
  assert task.num_filtered == {'demonstrations': 0, 'evaluation': 0}
  assert sorted(e['id'] for e in task.demonstrations + task.evaluation) == list(range(12))
  stop = task.tokenizer.encode('<|im_end|>')
  for example in task.demonstrations + task.evaluation:
    name = example['messages'][0]['content'].split()[-1][:-1]
    text = chat_templates.QWEN2.render(example['messages'])
    assert list(example['ids']) == task.tokenizer.encode(text)
    learned = [f'It is {name}.'] if example['source'] == 'a.json' else [name, f'{name} {name}']
    expected = [i for part in learned for i in [*task.tokenizer.encode(part), *stop]]
    assert list(example['ids'][example['loss_mask']]) == expected


def test_the_batches_hold_the_tokens_of_the_task(files, folders):
  task = _make(files, folders['qwen2'])
  encoded = sft_batches.encode_demonstrations(task)
  total = sum(example['loss_mask'].sum() for example in task.demonstrations)
  batches = sft_batches.Batches(encoded, batch_size=2, seed=0, packed_length=80,
                                weights={'a.json': 1, 'b.jsonl': 1})
  counted = sum((b.loss_mask * b.weight[:, None]).sum() for b in batches.in_order())
  assert counted == total == encoded.response_lengths.sum()
  held_out = sft_batches.encode_sequences(
      task.evaluation, task.tokenizer, max_prompt_tokens=512, max_response_tokens=512)
  assert held_out.response_lengths.sum() == sum(e['loss_mask'].sum() for e in task.evaluation)


def test_what_is_held_out_depends_on_the_seed_only(files, folders):
  ids = lambda **options: [e['id'] for e in _make(files, folders['qwen2'], **options).evaluation]
  assert ids() == ids(max_response_tokens=300, vocabulary='compact') != ids(seed=1)
  assert set(ids()) < set(ids(num_evaluation=6)) and ids(num_evaluation=0) == []


def test_questions_of_held_out_conversations_are_not_trained_on(tmp_path, folders):
  rows = [{'prompt': f'What is {n % 4}?', 'response': f'{n}'} for n in range(12)]
  path = tmp_path / 'rows.json'
  path.write_text(json.dumps(rows))
  task = _make([path], folders['qwen2'], num_evaluation=2)
  held_out = {example['messages'][0]['content'] for example in task.evaluation}
  assert not held_out & {example['messages'][0]['content'] for example in task.demonstrations}
  assert task.num_repeated == 12 - 2 - len(task.demonstrations) > 0
  with pytest.raises(ValueError, match='all 12 conversations ask the same as the held-out ones'):
    _make([path], folders['qwen2'], num_evaluation=11)


def test_too_long_conversations_are_counted(files, folders):
  task = _make(files, folders['qwen2'], max_prompt_tokens=20, max_response_tokens=12)
  lengths = [len(e['ids']) for e in task.demonstrations + task.evaluation]
  assert max(lengths) <= 32
  full = _make(files, folders['qwen2'])
  for name in ('demonstrations', 'evaluation'):
    missing = len(getattr(full, name)) - len(getattr(task, name))
    assert task.num_filtered[name] == missing
  assert sum(task.num_filtered.values()) > 0
  with pytest.raises(ValueError, match='no demonstrations of 9 conversations have at most 4 tok'):
    _make(files, folders['qwen2'], max_prompt_tokens=2, max_response_tokens=2)


def test_a_template_from_a_file_and_the_one_next_to_the_tokenizer(files, folders, tmp_path):
  for file in folders['gpt2'].iterdir():
    (tmp_path / file.name).symlink_to(file)
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(
      {'eos_token': '<|endoftext|>', 'bos_token': '<|endoftext|>', 'chat_template': PLAIN}))

  own = tmp_path / 'own.jinja'
  own.write_text(PLAIN.replace(':', '='))
  tasks = {name: _make(files, tmp_path, template=name) for name in ('auto', str(own))}
  tasks['folder'] = _make(files, folders['gpt2'], template=str(tmp_path))
  for name, task in tasks.items():
    example = next(e for e in task.demonstrations if e['source'] == 'b.jsonl')
    asked, reply, _, again = (message['content'] for message in example['messages'])
    sign = '=' if name == str(own) else ':'
    (stop,) = task.tokenizer.stop_ids
    expected = [*task.tokenizer.encode(reply), stop, *task.tokenizer.encode(again), stop]
    assert list(example['ids'][example['loss_mask']]) == expected
    text = task.tokenizer.decode(example['ids'])
    assert text.startswith(f'user{sign}\n{asked}\nassistant{sign}\n{reply}user{sign}\nAgain.')


def test_a_reply_must_end_in_a_stop_token(files, folders):
  # To GPT-2 <|im_end|> is six tokens of text; to Qwen2 it is one, but need not be a stop.
  with pytest.raises(ValueError, match=r'ends a reply with .*<\|im_end\|>.*is not a stop token'):
    _make(files, folders['gpt2'])
  with pytest.raises(ValueError, match='name the token in stop_tokens'):
    _make(files, folders['qwen2'], stop_tokens='<|endoftext|>')
  task = _make(files, folders['qwen2'], stop_tokens='<|im_end|>')
  assert len(task.tokenizer.stop_ids) == 1


def test_a_compact_vocabulary(files, folders):
  task = _make(files, folders['qwen2'], vocabulary='compact', max_vocabulary=270)
  assert task.tokenizer.vocab_size == 270
  for example in task.demonstrations + task.evaluation:
    learned = ''.join(m['content'] for m in example['messages'] if m['role'] == 'assistant')
    assert task.tokenizer.decode(example['ids'][example['loss_mask']]) == learned


@pytest.mark.parametrize('options, message', [
    ({'num_evaluation': 12}, r'num_evaluation must be in \[1, 11\] \(of 12 convers.*, got 12'),
    ({'num_evaluation': -1}, 'config.task.num_evaluation must be at least 0, got -1'),
    ({'vocabulary': 'x'}, "vocabulary must be one of full, compact, auto, got 'x'"),
    ({'max_vocabulary': 500}, "max_vocabulary must be 0 with vocabulary 'full', got 500"),
    ({'template': 'nowhere.jinja'}, "'auto', 'chatml' or the path of one, got 'nowhere.jinja'"),
    ({'template': 'auto'}, 'no chat template in .*qwen2'),
    ({'files': []}, 'needs the names of its files: --config.task.files=NAME,...'),
    ({'files': ['x/a.json', 'a.json']}, 'must have distinct names, got a.json, a.json'),
    ({'files': ['missing.json']}, 'cannot read missing.json'),
])
def test_bad_fields_are_one_line_errors(files, folders, options, message):
  with pytest.raises(ValueError, match=message) as error:
    _make(**({'files': files, 'folder': folders['qwen2']} | options))
  assert '\n' not in str(error.value)


def test_a_template_that_fails_names_the_conversation(files, folders, tmp_path):
  own = tmp_path / 'own.jinja'
  own.write_text("{% if 'Say' in messages[0].content %}{{ raise_exception('not so') }}{% endif %}x")
  with pytest.raises(ValueError, match='b.jsonl, row 0: .*conversation 8: .*not so'):
    _make(files, folders['qwen2'], template=str(own))


def test_the_public_instructions(data_dir, folders):
  task = _make(
      [data_dir / 'preferences' / 'alpaca_en_demo.json'], folders['qwen2'], num_evaluation=99)
  assert (len(task.demonstrations), len(task.evaluation)) == (900, 99)
  batches = sft_batches.Batches(
      sft_batches.encode_demonstrations(task), batch_size=8, seed=0, packed_length=1023)
  assert batches.utilisation > 0.97
  for example in task.demonstrations[:50]:
    learned = ''.join(m['content'] for m in example['messages'] if m['role'] == 'assistant')
    assert task.tokenizer.decode(example['ids'][example['loss_mask']]) == learned


# --- Reasoning, and messages that are context.


@pytest.fixture(scope='module')
def qwen3(data_dir, tmp_path_factory):
  """A folder with Qwen3's tokens and template."""
  folder = chat_cases.write(
      'qwen3', tmp_path_factory.mktemp('qwen3'), data_dir / 'tokenizers')
  (folder / 'chat_template.jinja').write_text(chat_cases.template('qwen3'))
  return folder


def _of_rows(tmp_path, folder, rows, **options):
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return _make([path], folder, **{'num_evaluation': 0, 'template': 'auto', **options})


def _learned(task):
  return [task.tokenizer.decode(e['ids'][e['loss_mask']]) for e in task.demonstrations]


@pytest.mark.parametrize('key', ['reasoning_content', 'reasoning', 'thinking'])
def test_reasoning_is_learned_with_the_reply(tmp_path, qwen3, key):
  task = _of_rows(tmp_path, qwen3, [
      {'messages': [{'role': 'user', 'content': 'What is 1+1?'},
                    {'role': 'assistant', 'content': '2', key: 'One and one make two.'}]},
      {'prompt': 'Hi', 'response': 'Hello'},
      {'question': 'Bye?', key: 'So soon.', 'answer': 'Bye', 'history': [['Hi', 'Hello']]},
  ])
  assert _learned(task) == [
      '<think>\nOne and one make two.\n</think>\n\n2', '<think>\n\n</think>\n\nHello',
      '<think>\nSo soon.\n</think>\n\nBye']
  first, stop = task.demonstrations[0], task.tokenizer.encode('<|im_end|>')
  expected = task.tokenizer.encode('<think>\nOne and one make two.\n</think>\n\n2') + stop
  assert first['ids'][first['loss_mask']].tolist() == expected
  # What is learned is what batches count.
  encoded = sft_batches.encode_demonstrations(task)
  assert encoded.response_lengths[0] == len(expected)


def test_reasoning_that_the_template_loses_names_the_conversation(tmp_path, qwen3, folders):
  row = {'messages': [
      {'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'r', 'thinking': 'why'}]}
  words = 'rows.jsonl, row 1: .*conversation 1: the reasoning of message 1 .*does not write reas'
  with pytest.raises(ValueError, match=words):
    _of_rows(tmp_path, folders['qwen2'], [{'prompt': 'q', 'response': 'r'}, row], template='chatml')
  row['messages'] *= 2
  with pytest.raises(ValueError, match='conversation 0: .* removes it if the conversation'):
    _of_rows(tmp_path, qwen3, [row])


def test_messages_that_are_context_are_not_learned(tmp_path, folders, qwen3):
  messages = [
      {'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'bad', 'train': False},
      {'role': 'user', 'content': 'q2'}, {'role': 'assistant', 'content': 'good', 'weight': 1}]
  shared = [{'from': 'human', 'value': 'q', 'weight': 0}, {'from': 'gpt', 'value': 'one'},
            {'from': 'human', 'value': 'q2'}, {'from': 'gpt', 'value': 'two', 'weight': 0}]
  task = _of_rows(
      tmp_path, folders['qwen2'], [{'messages': messages}, {'conversations': shared}],
      template='chatml')
  assert _learned(task) == ['good', 'one']
  for example, words in zip(task.demonstrations, ('bad', 'two')):  # They are context.
    assert words in task.tokenizer.decode(example['ids'])

  batches = sft_batches.Batches(
      sft_batches.encode_demonstrations(task), batch_size=2, seed=0, packed_length=100)
  counted = [(b.loss_mask * b.weight[:, None]).sum() for b in batches.in_order()]
  assert sum(counted) == 4  # Two words, two stop tokens.
  with pytest.raises(ValueError, match=r"loss_on must be 'assistant' for data .*, got 'all' \(ex"):
    sft_batches.encode_demonstrations(task, loss_on='all')
  # With Qwen3 past turns are context in any case, and may have thoughts that are not learned.
  messages[1]['reasoning'] = 'hm'
  assert _learned(_of_rows(tmp_path, qwen3, [{'messages': messages}])) == [
      '<think>\n\n</think>\n\ngood']


def test_a_mark_does_not_make_another_question(tmp_path, folders):
  rows = [
      {'messages': [{'role': 'user', 'content': 'q'},
                    {'role': 'assistant', 'content': 'r', 'train': trained},
                    {'role': 'user', 'content': 'q2'}, {'role': 'assistant', 'content': 's'}]}
      for trained in (True, False)]
  with pytest.raises(ValueError, match='all 2 conversations ask the same as the held-out ones'):
    _of_rows(tmp_path, folders['qwen2'], rows, template='chatml', num_evaluation=1)


# --- Any task within a template.


def test_prompts_and_demonstrations_within_a_template(data_dir, folders, tmp_path):
  for split in ('train', 'test'):
    lines = (data_dir / 'gsm8k' / f'{split}.jsonl').read_text().split('\n')
    (tmp_path / f'{split}.jsonl').write_text('\n'.join(lines[:9]))
  plain = gsm8k.Config(
      tokenizer_dir=str(folders['qwen2']), num_demonstrations=5, num_train=4,
      num_evaluation=3).make(0, tmp_path)

  task = chat.with_template(plain, chat_templates.QWEN2, system='Be exact.')
  for before, after in zip(plain.evaluation + plain.train, task.evaluation + task.train):
    assert after['prompt'] == chat_templates.QWEN2.render(
        [{'role': 'system', 'content': 'Be exact.'}, {'role': 'user', 'content': before['prompt']}],
        add_generation_prompt=True)
    assert after['prompt_ids'] == task.tokenizer.encode(after['prompt'])
    assert (after['id'], after['answer']) == (before['id'], before['answer'])
  encoded = batching.encode_examples(task.evaluation, task.tokenizer, max_prompt_tokens=300)
  for row, length, example in zip(encoded.prompts, encoded.prompt_lengths, task.evaluation):
    assert list(row[-length:]) == example['prompt_ids']
  for before, after in zip(plain.demonstrations, task.demonstrations):
    learned = after['ids'][after['loss_mask']]
    assert task.tokenizer.decode(learned) == before['response'].strip()
    prompt = after['ids'][: int(np.argmax(after['loss_mask']))]
    assert task.tokenizer.decode(prompt).endswith('assistant\n')
  assert sft_batches.encode_demonstrations(task).num_filtered == 0
  assert task.reward_fn is plain.reward_fn and 'messages' not in plain.demonstrations[0]


def test_a_template_that_the_tokenizer_cannot_encode(files):
  task = arithmetic.Config(num_demonstrations=2, num_train=1, num_evaluation=1).make(0)
  with pytest.raises(ValueError, match='is not in the alphabet'):
    chat.with_template(task, chat_templates.QWEN2)
