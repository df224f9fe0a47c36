r"""Problems from files: fields, rewards, MATH's boxes, and one line for what is malformed."""

import json

import numpy as np
import pytest

from jaxrl_llm.data import batching
from jaxrl_llm.tasks import jsonl


def _rows(tmp_path, *rows):
  path = tmp_path / 'problems.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


@pytest.fixture(scope='module')
def gpt2(data_dir):
  return str(data_dir / 'tokenizers' / 'gpt2')


def _scores(reward, responses, answer, truncated=False):
  count = len(responses)
  examples = [{'answer': answer}] * count
  return list(reward([''] * count, responses, np.full(count, truncated), examples))


def test_fields_and_numbers(tmp_path, gpt2):
  path = _rows(tmp_path, {'question': 'One?', 'truth': 1, 'prompt_ids': [3], 'level': 'easy'},
               {'question': 'Half?', 'truth': 0.5}, {'question': 'X?', 'truth': 'x'})
  task = jsonl.Config(
      file=str(path), tokenizer_dir=gpt2, prompt_field='question', answer_field='truth',
      instruction='Go.').make(0)
  assert task.name == 'problems' and not task.train and not task.demonstrations
  assert task.evaluation[0] == {'id': 0, 'prompt': 'One?\nGo.', 'answer': '1', 'level': 'easy'}
  assert [example['answer'] for example in task.evaluation] == ['1', '0.5', 'x']
  encoded = batching.encode_examples(task.evaluation, task.tokenizer, max_prompt_tokens=9)
  assert task.tokenizer.decode(encoded.prompts[0][-encoded.prompt_lengths[0]:]) == 'One?\nGo.'


def test_columns_that_do_not_change_a_problem(tmp_path, gpt2):
  path = _rows(tmp_path, {
      'problem': 'P?', 'answer': '2', 'solution': 'so', 'unique_id': 'a/1.json', 'url': 'u',
      'year': 2024, 'level': 3, 'difficulty': 'hard', 'rationale': 'why', 'context': '',
      'question': 'P?', 'metadata': {'split': 'test'}, 'pass_rate': 0.25})
  (example,) = jsonl.math_config(
      file=path.name, tokenizer_dir=gpt2, instruction='').make(0, tmp_path).evaluation
  assert example == {'id': 0, 'prompt': 'P?', 'answer': '2', 'level': 3}


def test_rewards(tmp_path, gpt2):
  path = _rows(tmp_path, {'prompt': 'p', 'answer': '1/2'})
  responses = [r'so \boxed{0.5}', 'it is 1/2', '1/2', r'\boxed{2}', '#### 1/2', '']
  expected = {
      'exact': [0, 0, 1, 0, 0, 0], 'math': [1, 1, 1, 0, 1, 0], 'math_strict': [1, 0, 0, 0, 1, 0],
  }
  for name, scores in expected.items():
    task = jsonl.Config(file=str(path), tokenizer_dir=gpt2, reward=name).make(0)
    assert _scores(task.reward_fn, responses, '1/2') == scores
    assert not any(_scores(task.reward_fn, responses, '1/2', truncated=True))
    lenient = _scores(task.lenient_reward_fn, responses, '1/2', truncated=True)
    assert lenient == ([0] * 6 if name == 'exact' else expected['math'])
  task = jsonl.Config(file=str(path), tokenizer_dir=gpt2, reward='gsm8k').make(0)
  assert _scores(task.reward_fn, ['#### 5', r'\boxed{5}', '5'], '5') == [1, 0, 0]


def test_math(tmp_path, gpt2):
  path = _rows(
      tmp_path,
      {'problem': 'P?', 'solution': r'Well, $\boxed{\frac{1}{2}}$.', 'level': 'Level 5',
       'subject': 'Algebra'},
      {'problem': 'Q?', 'solution': 'No box here.', 'answer': '(3, 4)', 'type': 'Geometry'})

  task = jsonl.math_config(file=str(path), tokenizer_dir=gpt2).make(0)
  first, second = task.evaluation
  assert first == {'id': 0, 'prompt': 'P?\n' + jsonl.MATH_INSTRUCTION, 'answer': r'\frac{1}{2}',
                   'level': 'Level 5', 'subject': 'Algebra'}
  assert second['answer'] == '(3, 4)' and second['type'] == 'Geometry'
  assert _scores(task.reward_fn, [r'\boxed{1/2}', '1/2'], first['answer']) == [1, 0]
  assert _scores(task.reward_fn, [r'\boxed{(3,4)}'], second['answer']) == [1]
  override = jsonl.math_config(
      file=str(path), tokenizer_dir=gpt2, instruction='', reward='math').make(0)
  assert override.evaluation[0]['prompt'] == 'P?'
  assert _scores(override.reward_fn, ['it is 1/2'], first['answer']) == [1]


def test_the_published_problems_in_their_own_layout(data_dir, gpt2):
  # GSM8K's answers are worked solutions: read as such, each gives its final number.
  task = jsonl.Config(
      file='test.jsonl', tokenizer_dir=gpt2, prompt_field='question', answer_field='none',
      solution_field='answer', num_evaluation=100).make(0, data_dir / 'gsm8k')
  ids = [example['id'] for example in task.evaluation]
  assert len(ids) == 100 and ids == sorted(set(ids))
  rows = [json.loads(line) for line in (data_dir / 'gsm8k' / 'test.jsonl').open()]
  for example in task.evaluation:
    last = rows[example['id']]['answer'].rsplit('#### ', 1)[1]
    assert float(example['answer'].replace(',', '')) == float(last.replace(',', ''))


@pytest.mark.parametrize('row, options, message', [
    ({'prompt': 'p'}, {}, "line 2: the key 'answer' is missing"),
    ({'answer': 'a'}, {}, "line 2: the key 'prompt' is missing"),
    ({'prompt': ['p'], 'answer': 'a'}, {}, "line 2: 'prompt' must be str, got list"),
    ({'prompt': ' ', 'answer': 'a'}, {}, "line 2: 'prompt' must not be empty"),
    ({'prompt': 'p', 'answer': ''}, {}, "line 2: 'answer' must not be empty"),
    ({'prompt': 'p', 'answer': True}, {}, "'answer' must be a text or a number, got bool"),
    ({'prompt': 'p', 'answer': [1]}, {}, "'answer' must be a text or a number, got list"),
    ({'prompt': 'p'}, {'solution_field': 'solution'},
     "'answer' or 'solution' must be a text, got NoneType"),
    ({'prompt': 'p', 'solution': 'The answer is 3.'}, {'solution_field': 'solution'},
     "line 2: 'solution' marks no answer"),
    ({'prompt': 'p', 'answer': 'A', 'choices': ['x', 'y']}, {},
     r"problems.jsonl, line 2: unknown column 'choices', got \['x', 'y'\]"),
    ({'prompt': 'p', 'answer': 'a', 'context': 'c'}, {}, "column 'context' would be lost, got 'c'"),
    ({'prompt': 'p', 'answer': 'a', 'system_prompt': 'S'}, {}, "'system_prompt' would be lost"),
    ({'prompt': 'p', 'answer': 'a', 'image': 'a.png'}, {}, "'image' is not supported"),
    ({'prompt': 'p', 'answer': 'a', 'tools': [{'name': 'f'}]}, {}, "'tools' are not supported"),
    ({'prompt': 'p', 'answer': 'a', 'answers': ['a', 'b']}, {}, "unknown column 'answers'"),
    ({'prompt': 'p', 'answer': 'a', 'is_correct': False}, {}, "'is_correct' must be true or 1"),
    ({'prompt': 'p', 'answer': 'a', 'question': 'Which?'}, {}, "unknown column 'question'"),
    ({'prompt': 'p', 'answer': 1}, {'reward': 'maths'}, 'reward must be one of exact, math, math_'),
    ({'prompt': 'p', 'answer': 1}, {'num_evaluation': 3}, 'num_evaluation must be at most 2'),
])
def test_bad_input_is_one_line(tmp_path, gpt2, row, options, message):
  path = _rows(tmp_path, {'prompt': 'p', 'answer': 'a'}, row)
  with pytest.raises(ValueError, match=message) as error:
    jsonl.Config(file=str(path), tokenizer_dir=gpt2, **options).make(0)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('answer', ['1/0', r'\log 0', float('nan'), float('inf')])
def test_an_answer_that_is_not_finite_names_its_row(tmp_path, gpt2, answer):
  path = _rows(tmp_path, {'id': 'a', 'prompt': 'p', 'answer': 1},
               {'id': 'algebra/7', 'prompt': 'p', 'answer': answer})
  with pytest.raises(ValueError, match=r"line 2 \(id 'algebra/7'\): .* must be finite"):
    jsonl.Config(file=str(path), tokenizer_dir=gpt2).make(0)
