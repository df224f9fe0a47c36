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
  config = word_problems.Config(max_number=4)
  assert config.num_problems == 3 * 64 * 9
  prompts = {word_problems.problem(i, 4)['prompt'] for i in range(config.num_problems)}
  assert len(prompts) == config.num_problems


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


def test_rewards(task):
  example = {'answer': '7', 'prompt': 'Tom has 3 apples and gets 4 more.'}
  score = lambda text, cut=False: task.reward_fn(
      [example['prompt']], [text], np.array([cut]), [example])[0]
  assert score('3 + 4 = 7.') == score('7') == score('He has 7 apples now.') == 1
  assert score('3 + 4 = 7.', cut=True) == 0
  for junk in ('', '3 + 4 = 8.', '7 or 8', '77', '7 6 5 4 3 2 1 0', example['prompt'], '=', '-7',
               '3 + 4 =', 'eight apples', '0.7', '7' * 500):
    assert score(junk) == 0, junk


@pytest.mark.parametrize('changes, words', [
    ({'max_number': 1}, 'config.task.max_number must be at least 2, got 1'),
    ({'max_number': 1_001}, 'config.task.max_number must be at most 1000'),
    ({'num_train': -1}, 'config.task.num_train'),
    ({'max_number': 2, 'num_train': 300}, 'must be at most 192, .* got 684'),
    ({}, 'need a tokenizer'),
])
def test_bad_configs_are_one_line(changes, words):
  with pytest.raises(ValueError, match=words) as error:
    word_problems.Config(**changes).make(seed=0)
  assert '\n' not in str(error.value)


def test_a_data_directory_is_refused(tmp_path):
  with pytest.raises(ValueError, match='is generated'):
    word_problems.Config().make(seed=0, data_dir=tmp_path)
