"""GSM8K as a task: splits, limits, and rewards that read only the response."""

import json

import numpy as np
import pytest

from jaxrl_llm.data import batching, sft_batches
from jaxrl_llm.data import gsm8k as files
from jaxrl_llm.tasks import gsm8k


@pytest.fixture(scope='module')
def folder(data_dir, tmp_path_factory):
  """The first 120 training and 60 test problems, next to the real tokenizers."""
  folder = tmp_path_factory.mktemp('data') / 'gsm8k'
  folder.mkdir()
  for split, count in (('train', 120), ('test', 60)):
    lines = (data_dir / 'gsm8k' / f'{split}.jsonl').read_text().split('\n')
    (folder / f'{split}.jsonl').write_text('\n'.join(lines[:count]))
  (folder.parent / 'tokenizers').symlink_to(data_dir / 'tokenizers')
  return folder


@pytest.fixture(scope='module')
def task(folder):
  return gsm8k.Config().make(0, folder)


def test_the_published_files(data_dir):
  # The prompt limit of the paper admits every problem of both files with the whole vocabulary.
  task = gsm8k.Config().make(0, data_dir / 'gsm8k')
  assert (len(task.demonstrations), len(task.train), len(task.evaluation)) == (7473, 7473, 1319)
  assert task.num_filtered == {'demonstrations': 0, 'train': 0, 'evaluation': 0}
  ids = [example['id'] for example in task.train + task.evaluation]
  assert len(set(ids)) == 7473 + 1319
  train = {example['prompt'] for example in task.train}
  assert not train & {example['prompt'] for example in task.evaluation}


def test_examples_by_hand(task, folder):
  question = files.load_split(folder, 'train')[0].question
  first = task.demonstrations[0]
  assert first['prompt'] == question + ' ' + gsm8k.INSTRUCTION
  assert first['answer'] == '72' and first['id'] == 0
  assert first['response'] == (
      '\nNatalia sold 48/2 = 24 clips in May.\n'
      'Natalia sold 48+24 = 72 clips altogether in April and May.\n#### 72'
  )
  assert task.train[0] == {key: first[key] for key in ('id', 'prompt', 'answer')}
  assert task.evaluation[0]['id'] == gsm8k.FIRST_TEST_ID
  assert task.tokenizer.vocab_size == 151_646
  annotated = gsm8k.Config(annotations='keep').make(0, folder)
  assert '<<48/2=24>>24 clips' in annotated.demonstrations[0]['response']


def test_too_long_problems_are_counted_and_the_rest_fits(folder):
  task = gsm8k.Config(max_prompt_tokens=80, max_response_tokens=100).make(0, folder)
  assert task.num_filtered['train'] == 120 - len(task.train) > 0
  assert task.num_filtered['evaluation'] == 60 - len(task.evaluation) > 0
  assert task.num_filtered['demonstrations'] == 120 - len(task.demonstrations)
  assert len(task.demonstrations) < len(task.train)
  # Nothing of what is left is too long, and the longest reach the limits.
  encoded = sft_batches.encode_demonstrations(task)
  assert encoded.num_filtered == 0 and encoded.response_lengths.max() <= 100
  batching.encode_examples(task.evaluation, task.tokenizer, max_prompt_tokens=80)
  with pytest.raises(ValueError, match='no prompt of 120 problems has at most 3 tokens'):
    gsm8k.Config(max_prompt_tokens=3).make(0, folder)


def test_responses_may_be_shorter_than_any_demonstration(folder):
  task = gsm8k.Config(max_response_tokens=8, num_demonstrations=5).make(0, folder)
  assert task.demonstrations == [] and task.num_filtered['demonstrations'] == 120
  assert len(task.train) == 120 and len(task.evaluation) == 60


def test_random_subsets(folder):
  sizes = {'num_demonstrations': 50, 'num_train': 30, 'num_evaluation': 20}
  one, again, other = (gsm8k.Config(**sizes).make(s, folder) for s in (0, 0, 1))
  assert [len(x) for x in (one.demonstrations, one.train, one.evaluation)] == [50, 30, 20]
  assert one.train == again.train != other.train
  assert len({example['id'] for example in one.train}) == 30


def test_bad_fields(folder):
  for fields, message in (
      ({'num_train': 121}, 'config.task.num_train must be at most 120, got 121'),
      ({'num_evaluation': -1}, 'config.task.num_evaluation must be at least 0, got -1'),
      ({'vocabulary': 'x'}, "vocabulary must be one of full, compact, auto, got 'x'"),
      ({'annotations': 'x'}, "annotations must be one of strip, keep, got 'x'"),
      ({'max_vocabulary': 500}, "max_vocabulary must be 0 with vocabulary 'full', got 500"),
      ({'tokenizer_dir': str(folder)}, 'no tokenizer in '),
  ):
    with pytest.raises(ValueError, match=message):
      gsm8k.Config(**fields).make(0, folder)

  with pytest.raises(ValueError, match='cannot read '):
    gsm8k.Config().make(0, folder.parent)
  with pytest.raises(ValueError, match='needs the directory of train.jsonl and test.jsonl: --con'):
    gsm8k.Config().make(0)


def test_compact_vocabulary_encodes_the_test_file(folder):
  task = gsm8k.Config(vocabulary='compact', max_vocabulary=600).make(0, folder)
  assert task.tokenizer.vocab_size == 600
  for example in task.evaluation:
    ids = task.tokenizer.encode(example['prompt'])
    assert max(ids) < 600 and task.tokenizer.decode(ids) == example['prompt']


@pytest.mark.parametrize(
    'response, number',
    [
        ('The answer is 72.', '72'),
        ('3 and 4', '4'),
        ('5-3', '3'),
        ('it is -3', '-3'),
        ('costs $1,234.50 in all', '$1,234.50'),
        ('none', None),
    ],
)
def test_last_number_by_hand(response, number):
  assert gsm8k.last_number(response) == number


def test_strict_and_lenient_rewards():
  cases = [
      # Response, truncated, strict, lenient; the answer is 1234.
      ('\nSo 1234.\n#### 1234', False, 1, 1),
      ('\n#### 1,234', False, 1, 1),
      ('#### 1234.0', False, 1, 1),
      ('#### 1235', False, 0, 0),
      ('#### 1234', True, 0, 1),
      ('It is 1234', False, 0, 1),
      ('#### 1234\nbut 7', False, 1, 0),
      ('#### $1,234 dollars.', False, 1, 1),
      ('#### 1\n#### 1234\n', False, 1, 1),
      ('#### 1234\n#### 1', False, 0, 0),
      ('####\n1234', False, 0, 1),
      ('<think>#### 7</think>\n#### 1234', False, 1, 1),
      ('#### 1234</think>\nno', False, 0, 0),
      ('<think>#### 1234', True, 0, 0),
      ('#### -1234', False, 0, 0),
      ('', False, 0, 0),
      ('#### ' + '9' * 100_000, False, 0, 0),
  ]

  responses = [case[0] for case in cases]
  truncated = np.array([case[1] for case in cases])
  examples = [{'answer': '1234'}] * len(cases)
  # The instruction in the prompt holds the mark, and here even the answer.
  prompts = ['write it after "####" #### 1234'] * len(cases)
  strict = gsm8k.strict_reward(prompts, responses, truncated, examples)
  lenient = gsm8k.lenient_reward(prompts, responses, truncated, examples)
  np.testing.assert_array_equal(strict, [case[2] for case in cases])
  np.testing.assert_array_equal(lenient, [case[3] for case in cases])
  assert strict.dtype == lenient.dtype == np.float32


def test_every_published_solution_is_right_and_another_ones_is_not(data_dir):
  problems = files.load_split(data_dir / 'gsm8k', 'test')[:200]
  examples = [{'answer': files.final_answer(problem.answer)} for problem in problems]
  responses = [files.strip_annotations(problem.answer) for problem in problems]
  none = np.zeros(200, bool)
  for reward in (gsm8k.strict_reward, gsm8k.lenient_reward):
    assert reward([''] * 200, responses, none, examples).all()
    shifted = responses[1:] + responses[:1]
    rewards = reward([''] * 200, shifted, none, examples)
    equal = [a == b for a, b in zip(examples, examples[1:] + examples[:1])]
    np.testing.assert_array_equal(rewards, np.array(equal, np.float32))


def test_a_truncated_file_is_one_clear_line(folder, tmp_path):
  for split in files.SPLITS:
    (tmp_path / f'{split}.jsonl').write_text((folder / f'{split}.jsonl').read_text()[:-20])
  with pytest.raises(ValueError, match='train.jsonl, line 120: not a complete') as error:
    gsm8k.Config().make(0, tmp_path)
  assert '\n' not in str(error.value)
  (tmp_path / 'train.jsonl').write_text(json.dumps({'question': 'q', 'answer': 'five'}))
  with pytest.raises(ValueError, match="line 1: the answer's last line"):
    gsm8k.Config().make(0, tmp_path)
