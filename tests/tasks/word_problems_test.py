"""Word problems: every kind by hand, disjoint splits, and rewards of right, wrong and junk."""

import re

import numpy as np
import pytest

from jaxrl_llm.tasks import config as task_config
from jaxrl_llm.tasks import word_problems
from tests.experiments import tiny

COUNT = 19 * 19  # Pairs of numbers from 2 to 20.


@pytest.fixture(scope='module')
def policy(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  tiny.write_tokenizer(folder)
  return task_config.PolicyTokenizer(str(folder))


@pytest.fixture(scope='module')
def task(policy):
  return word_problems.Config().make(seed=3, policy=policy)


@pytest.mark.parametrize('index, prompt, answer, response', [
    # a = 3, b = 4: offset 1 * 19 + 2 of a kind; the first name and thing.
    (21, 'Ann has 3 apples and gets 4 more. How many apples does Ann have now?', '7',
     '3 + 4 = 7.'),
    (64 * COUNT + 21, 'Ann has 7 apples and gives 4 away. How many apples does Ann have left?', '3',
     '7 - 4 = 3.'),
    (128 * COUNT + 21,
     'Ann has 3 apples and Ben has 4. How many apples do they have together?', '7', '3 + 4 = 7.'),
    # The last name, whose neighbour is the first, the last thing, and the largest numbers.
    (192 * COUNT - 1,
     'Zoe has 20 stamps and Ann has 20. How many stamps do they have together?', '40',
     '20 + 20 = 40.'),
])
def test_problems_by_hand(index, prompt, answer, response):
  assert word_problems.problem(index, 20) == {
      'id': index, 'prompt': prompt, 'answer': answer, 'response': response,
      'kind': index // (64 * COUNT)}


def test_all_problems_differ():
  number = 3 * 64 * 9
  prompts = {word_problems.problem(i, 4)['prompt'] for i in range(number)}
  assert len(prompts) == number


def test_no_pair_of_numbers_is_in_training_and_held_out(policy):
  config = word_problems.Config(
      max_number=6, num_demonstrations=1_000, num_train=1_000, num_evaluation=500)
  task = config.make(seed=1, policy=policy)
  pairs = lambda examples: {
      frozenset(map(int, re.findall(r'\d+', e['prompt']))) if e['kind'] != 1 else
      frozenset([int(e['answer']), int(re.findall(r'\d+', e['prompt'])[1])])
      for e in examples}
  assert len(pairs(task.evaluation)) > 1
  assert not pairs(task.evaluation) & pairs(task.train + task.demonstrations)


def test_answers_are_those_of_the_calculation(task):
  for example in task.demonstrations:
    left, right = example['response'].removesuffix('.').split(' = ')
    a, sign, b = left.split()
    assert int(right) == int(example['answer']) == int(a) + int(sign + b)
    numbers = re.findall(r'\d+', example['prompt'])
    assert sorted(numbers) == sorted([a, b])


def test_splits_are_disjoint_and_of_the_seed(task, policy):
  splits = [task.demonstrations, task.train, task.evaluation]
  ids = [{example['id'] for example in split} for split in splits]
  assert [len(i) for i in ids] == [256, 512, 128]
  assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])
  assert not any('response' in example for example in task.train + task.evaluation)

  again = word_problems.Config(num_train=5).make(seed=3, policy=policy)
  assert again.evaluation == task.evaluation and again.demonstrations == task.demonstrations
  other = word_problems.Config().make(seed=4, policy=policy)
  assert {e['id'] for e in other.evaluation} != ids[2]


def _score(task, text, *, cut=False, answer='7'):
  example = {'answer': answer, 'prompt': 'Tom has 3 apples and gets 4 more.'}
  return task.reward_fn([example['prompt']], [text], np.array([cut]), [example])[0]


@pytest.mark.parametrize('right', [
    '3 + 4 = 7.', '7', ' 7\n', 'He has 7 apples now.', '3+4=7', '$7', '7, I think', '4 + 3 is 7'])
def test_the_last_number_is_the_answer(task, right):
  assert _score(task, right) == 1
  assert _score(task, right, cut=True) == 0
  lenient = task.lenient_reward_fn(['x'], [right], np.array([True]), [{'answer': '7'}])
  assert lenient[0] == 1 and lenient.dtype == np.float32


@pytest.mark.parametrize('junk', [
    '', '3 + 4 = 8.', '7 or 8', '77', '7 6 5 4 3 2 1 0', 'Tom has 3 apples and gets 4 more.', '=',
    '-7', '+7', '3 + 4 =', '3 + 4', '3 + 4.', '= 3 + 4', '14/2', '49/7', '700%', '7%', '0.7', '7.0',
    '7^1', 'seven', '\\frac{14}{2}', '\u0667', '7' * 500, '7 ' * 5_000 + '8', '1,7', '\u22127',
    '7 = 3 + 4', '7/1'])
def test_junk_and_calculations_that_are_not_carried_out_score_0(task, junk):
  assert _score(task, junk) == 0


def test_copies_of_the_prompt_score_at_most_for_equal_numbers(task):
  examples = task.train + task.evaluation
  prompts = [example['prompt'] for example in examples]
  texts = [' '.join(re.findall(r'\d+', prompt)[-1:]) for prompt in prompts]
  scores = task.reward_fn(prompts, texts, np.zeros(len(texts), bool), examples)
  for example, score in zip(examples, scores):  # "has 8 and gives 4 away" leaves 4.
    a, b = map(int, re.findall(r'\d+', example['prompt']))
    assert score == (example['kind'] == 1 and a == 2 * b)
  assert scores.mean() < 0.05


@pytest.mark.parametrize('changes, words', [
    ({'max_number': 1}, 'config.task.max_number must be at least 2, got 1'),
    ({'max_number': 101}, 'config.task.max_number must be at most 100'),
    ({'num_train': -1}, 'config.task.num_train'),
    ({'max_number': 4, 'num_evaluation': 1_500}, 'num_evaluation must be at most .* got 1500'),
    ({'max_number': 4, 'num_train': 1_700}, r'num_demonstrations \+ num_train must be .* got 1956'),
])
def test_bad_configs_are_one_line(policy, changes, words):
  with pytest.raises(ValueError, match=words) as error:
    word_problems.Config(**changes).make(seed=0, policy=policy)
  assert '\n' not in str(error.value)


def test_a_tokenizer_is_needed():
  with pytest.raises(ValueError, match='need a tokenizer'):
    word_problems.Config().make(seed=0)


def test_a_data_directory_is_refused(tmp_path):
  with pytest.raises(ValueError, match='is generated'):
    word_problems.Config().make(seed=0, data_dir=tmp_path)
