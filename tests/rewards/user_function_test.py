"""Rewards of a function of the user's own: its arguments, and one line for each mistake."""

import sys

import numpy as np
import pytest

from jaxrl_llm.rewards import user_function

_MODULE = """
import numpy as np
number = 3
def length(prompt, response, example): return len(response) / example['longest']
def negative(prompt, response, example): return -1
def by_prompt(prompt, response, example): return np.float32(prompt == response)
def changes(prompt, response, example): return example.pop('answer') == response
def two(prompt, response): return 1
def raises(prompt, response, example): return 1 // 0
def leaves(prompt, response, example): raise SystemExit(3)
def nothing(prompt, response, example): return None
def text(prompt, response, example): return '1'
def array(prompt, response, example): return np.ones(1)
def nan(prompt, response, example): return float('nan')
def huge(prompt, response, example): return 1e39
def enormous(prompt, response, example): return 10**400
class Length:
  def __call__(self, prompt, response, example): return len(response)
instance = Length()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
  """The module is in the working directory, which is not on the Python path."""
  (tmp_path / 'own_reward.py').write_text(_MODULE)
  (tmp_path / 'broken_reward.py').write_text('import nothing_of_this_name')
  (tmp_path / 'leaving_reward.py').write_text('raise SystemExit(0)')
  monkeypatch.chdir(tmp_path)
  yield
  for name in ('own_reward', 'broken_reward', 'leaving_reward'):
    sys.modules.pop(name, None)


def _scores(name, responses, *, prompts=None, truncated=False, example=None, **options):
  reward = user_function.make_reward(name, user_function.load(name), **options)
  count = len(responses)
  scores = reward(
      prompts or [''] * count, responses, np.full(count, truncated), [example or {'id': 7}] * count)
  assert scores.dtype == np.float32 and scores.shape == (count,)
  return scores.tolist()


def test_a_function_scores_each_response(own):
  path = list(sys.path)
  assert _scores('own_reward:length', ['', 'ab'], example={'longest': 4}) == [0, 0.5]
  assert sys.path == path
  assert _scores('own_reward:by_prompt', ['a', 'b'], prompts=['a', 'a']) == [1, 0]
  assert _scores('own_reward:instance', ['abc']) == [3]
  example = {'id': 0, 'answer': 'a'}
  assert _scores('own_reward:changes', ['a', 'b'], example=example) == [1, 0]
  assert example == {'id': 0, 'answer': 'a'}


def test_a_truncated_response_scores_at_most_0(own):
  longest = {'longest': 4}
  assert _scores('own_reward:length', ['ab'], truncated=True, example=longest) == [0]
  assert _scores('own_reward:negative', ['ab'], truncated=True) == [-1]
  assert _scores(
      'own_reward:length', ['ab'], truncated=True, example=longest, count_truncated=True) == [0.5]


def test_names():
  assert user_function.is_name('a:b') and user_function.is_name('a.b_1:_c')
  for name in ('a', 'a:', ':b', 'a:b:c', 'a:b()', 'a b:c', '../a:b', 'a.:b', '1a:b', 'a:b.c'):
    assert not user_function.is_name(name)


@pytest.mark.parametrize(('name', 'words'), [
    ('no_such_module:f', "'no_such_module' cannot be imported .*: ModuleNotFoundError: No module"),
    ('broken_reward:f', "cannot be imported .*No module named 'nothing_of_this_name'"),
    ('leaving_reward:f', 'cannot be imported .*: SystemExit: 0'),
    ('own_reward:f', "'own_reward' has no function 'f'"),
    ('own_reward:number', 'own_reward:number must be a function, got int'),
    ('own_reward:two', r'must take \(prompt, response, example\): TypeError: too many positional'),
])
def test_a_function_that_cannot_be_used_is_one_line(own, name, words):
  with pytest.raises(ValueError, match=words) as error:
    user_function.load(name)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(('name', 'words'), [
    ('raises', r'own_reward:raises \(example 7\) failed: ZeroDivisionError: '),
    ('leaves', 'failed: SystemExit: 3'), ('nothing', 'must return a number, got NoneType'),
    ('text', 'must return a number, got str'), ('array', 'must return a number, got ndarray'),
    ('nan', r'must return a finite number \(float32\), got nan'), ('huge', 'got 1e\\+39'),
    ('enormous', 'got inf'),
])
def test_a_score_that_is_not_a_finite_number_is_one_line(own, name, words):
  with pytest.raises(ValueError, match=words) as error:
    _scores(f'own_reward:{name}', ['x'])
  assert '\n' not in str(error.value)
