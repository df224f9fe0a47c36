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
      files=str(path), tokenizer_dir=gpt2, prompt_field='question', answer_field='truth',
      instruction='Go.').make(0)
  assert task.name == 'problems' and not task.train and not task.demonstrations
  assert task.evaluation[0] == {'id': 0, 'prompt': 'One?\nGo.', 'answer': '1', 'level': 'easy'}
  assert not task.num_repeated and task.num_filtered == {'train': 0, 'evaluation': 0}
  assert [example['answer'] for example in task.evaluation] == ['1', '0.5', 'x']
  encoded = batching.encode_examples(task.evaluation, task.tokenizer, max_prompt_tokens=9)
  assert task.tokenizer.decode(encoded.prompts[0][-encoded.prompt_lengths[0]:]) == 'One?\nGo.'


def test_columns_that_do_not_change_a_problem(tmp_path, gpt2):
  path = _rows(tmp_path, {
      'problem': 'P?', 'answer': '2', 'solution': 'so', 'unique_id': 'a/1.json', 'url': 'u',
      'year': 2024, 'level': 3, 'difficulty': 'hard', 'rationale': 'why', 'context': '',
      'question': 'P?', 'metadata': {'split': 'test'}, 'pass_rate': 0.25})
  (example,) = jsonl.math_config(
      files=path.name, tokenizer_dir=gpt2, instruction='').make(0, tmp_path).evaluation
  assert example == {'id': 0, 'prompt': 'P?', 'answer': '2', 'level': 3}


def test_rewards(tmp_path, gpt2):
  path = _rows(tmp_path, {'prompt': 'p', 'answer': '1/2'})
  responses = [r'so \boxed{0.5}', 'it is 1/2', '1/2', r'\boxed{2}', '#### 1/2', '']
  expected = {
      'exact': [0, 0, 1, 0, 0, 0], 'math': [1, 1, 1, 0, 1, 0], 'math_strict': [1, 0, 0, 0, 1, 0],
  }
  for name, scores in expected.items():
    task = jsonl.Config(files=str(path), tokenizer_dir=gpt2, reward=name).make(0)
    assert _scores(task.reward_fn, responses, '1/2') == scores
    assert not any(_scores(task.reward_fn, responses, '1/2', truncated=True))
    lenient = _scores(task.lenient_reward_fn, responses, '1/2', truncated=True)
    assert lenient == ([0] * 6 if name == 'exact' else expected['math'])
    exact = _scores(task.reward_fn, [' 1/2\n', '', ' '], '1/2')
    assert exact == ([0, 0, 0] if name == 'math_strict' else [1, 0, 0])
  task = jsonl.Config(files=str(path), tokenizer_dir=gpt2, reward='gsm8k').make(0)
  assert _scores(task.reward_fn, ['#### 5', r'\boxed{5}', '5'], '5') == [1, 0, 0]


def test_math(tmp_path, gpt2):
  path = _rows(
      tmp_path,
      {'problem': 'P?', 'solution': r'Well, $\boxed{\frac{1}{2}}$.', 'level': 'Level 5',
       'subject': 'Algebra'},
      {'problem': 'Q?', 'solution': 'No box here.', 'answer': '(3, 4)', 'type': 'Geometry'})

  task = jsonl.math_config(files=str(path), tokenizer_dir=gpt2).make(0)
  first, second = task.evaluation
  assert first == {'id': 0, 'prompt': 'P?\n' + jsonl.MATH_INSTRUCTION, 'answer': r'\frac{1}{2}',
                   'level': 'Level 5', 'subject': 'Algebra'}
  assert second['answer'] == '(3, 4)' and second['type'] == 'Geometry'
  assert _scores(task.reward_fn, [r'\boxed{1/2}', '1/2'], first['answer']) == [1, 0]
  assert _scores(task.reward_fn, [r'\boxed{(3,4)}'], second['answer']) == [1]
  override = jsonl.math_config(
      files=str(path), tokenizer_dir=gpt2, instruction='', reward='math').make(0)
  assert override.evaluation[0]['prompt'] == 'P?'
  assert _scores(override.reward_fn, ['it is 1/2'], first['answer']) == [1]


def test_the_published_problems_in_their_own_layout(data_dir, gpt2):
  # GSM8K's answers are worked solutions: read as such, each gives its final number.
  task = jsonl.Config(
      files='test.jsonl', tokenizer_dir=gpt2, prompt_field='question', answer_field='none',
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
    ({'prompt': 'p', 'answer': 1}, {'reward': 'maths'},
     "reward must be one of exact, math, math_strict, gsm8k, countdown, or module:function, got '"),
    ({'prompt': 'p', 'answer': ' p '}, {}, "line 2: the answer must not repeat 'prompt', got ' p"),
    ({'prompt': 'p', 'answer': 1}, {'keep_fields': 'tests'},
     "keep_fields must be '' with reward 'math', got 'tests'"),
    ({'prompt': 'p', 'answer': 1}, {'answer_field': ''}, "answer_field must be set, got ''"),
    ({'prompt': 'p', 'answer': 1}, {'evaluation_fraction': 1.0}, r'must be in \[0, 1\), got 1.0'),
    ({'prompt': 'p', 'answer': 1}, {'evaluation_files': 'none.jsonl'}, 'cannot read .*none.jsonl'),
    ({'prompt': 'p', 'answer': 1, 'solution': 3}, {'solution_field': 'solution'},
     "line 2: 'solution' must be a text, got int"),
    ({'prompt': 'p', 'answer': 1}, {'num_evaluation': 3},
     'problems.jsonl has 2 problems: .*num_evaluation must be at most 2, got 3'),
])
def test_bad_input_is_one_line(tmp_path, gpt2, row, options, message):
  path = _rows(tmp_path, {'prompt': 'p', 'answer': 'a'}, row)
  with pytest.raises(ValueError, match=message) as error:
    jsonl.Config(files=str(path), tokenizer_dir=gpt2, **options).make(0)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('answer', ['1/0', r'\log 0', float('nan'), float('inf')])
def test_an_answer_that_is_not_finite_names_its_row(tmp_path, gpt2, answer):
  path = _rows(tmp_path, {'id': 'a', 'prompt': 'p', 'answer': 1},
               {'id': 'algebra/7', 'prompt': 'p', 'answer': answer})
  with pytest.raises(ValueError, match=r"line 2 \(id 'algebra/7'\): .* must be finite"):
    jsonl.Config(files=str(path), tokenizer_dir=gpt2).make(0)


# --- Training on one's own problems.


def _sums(tmp_path, count=10, name='sums.jsonl'):
  rows = [{'prompt': f'What is {i} + 4?', 'answer': str(i + 4)} for i in range(count)]
  (tmp_path / name).write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return rows


def _prompts(examples):
  return [example['prompt'] for example in examples]


def test_the_held_out_problems(tmp_path, gpt2):
  rows = _sums(tmp_path)
  make = lambda seed=0, **fields: jsonl.Config(
      files='sums.jsonl', tokenizer_dir=gpt2, **fields).make(seed, tmp_path)
  for fields, count in (({'num_evaluation': 3}, 3), ({'evaluation_fraction': 0.25}, 2),
                        ({'evaluation_fraction': 0.01}, 1), ({}, 10)):
    task = make(**fields)
    assert len(task.evaluation) == count
    # Every problem is in one of the sets, in order.
    assert sorted(_prompts(task.train + task.evaluation)) == sorted(_prompts(rows))
    assert _prompts(task.demonstrations) == _prompts(task.train)
    assert make(**fields).evaluation == task.evaluation

  splits = {tuple(_prompts(make(seed, num_evaluation=3).evaluation)) for seed in range(5)}
  assert len(splits) > 1
  first, *_ = make(num_evaluation=3).demonstrations
  assert first == {'id': first['id'], 'prompt': first['prompt'], 'answer': first['answer'],
                   'response': f'\n{first["answer"]}'}
  assert 'response' not in make(num_evaluation=3).train[0]


def test_repeated_prompts_are_never_on_both_sides(tmp_path, gpt2):
  rows = _sums(tmp_path, 6) * 2
  _rows(tmp_path, *rows)
  for seed in range(5):
    task = jsonl.Config(
        files='problems.jsonl', tokenizer_dir=gpt2, num_evaluation=3).make(seed, tmp_path)
    held_out = set(_prompts(task.evaluation))
    assert not held_out & set(_prompts(task.train))
    assert len(task.train) == 12 - 2 * len(held_out)
    assert task.num_repeated == 12 - 3 - len(task.train)


def test_files_of_held_out_problems(tmp_path, gpt2):
  rows = _sums(tmp_path, 6)
  _sums(tmp_path, 2, 'more.jsonl')
  _rows(tmp_path, rows[1], {'prompt': 'Other?', 'answer': '1'})
  task = jsonl.Config(
      files='sums.jsonl, more.jsonl', evaluation_files='problems.jsonl', tokenizer_dir=gpt2,
      evaluation_fraction=0.5).make(0, tmp_path)
  assert _prompts(task.evaluation) == [rows[1]['prompt'], 'Other?']
  assert _prompts(task.train) == _prompts([rows[0], *rows[2:], rows[0]])
  assert task.num_repeated == 2
  ids = [example['id'] for example in task.train + task.evaluation]
  assert len(set(ids)) == len(ids)


def test_prompts_that_are_too_long_are_counted(tmp_path, gpt2):
  rows = [{'prompt': 'word ' * length, 'answer': 'x'} for length in (1, 2, 30, 3)]
  path = _rows(tmp_path, *rows)
  task = jsonl.Config(
      files=str(path), tokenizer_dir=gpt2, reward='exact', max_prompt_tokens=9).make(0)
  assert len(task.evaluation) == 3 and task.num_filtered == {'train': 0, 'evaluation': 1}
  with pytest.raises(ValueError, match='no prompt of 4 has at most 1 tokens'):
    jsonl.Config(files=str(path), tokenizer_dir=gpt2, reward='exact', max_prompt_tokens=1).make(0)


def test_demonstrations_are_worked_solutions(tmp_path, gpt2):
  path = _rows(tmp_path, *({'prompt': f'p{i}', 'solution': f' so #### {i}\n'} for i in range(3)))
  task = jsonl.Config(
      files=str(path), tokenizer_dir=gpt2, solution_field='solution', num_evaluation=1).make(0)
  for example in task.demonstrations:
    assert example['response'] == f'\nso #### {example["answer"]}'


def test_countdown(tmp_path, gpt2):
  row = {'prompt': 'Reach 23 with 30, 100 and 93.', 'numbers': [30, 100, 93], 'target': 23}
  make = lambda *rows: jsonl.Config(
      files=str(_rows(tmp_path, *rows)), tokenizer_dir=gpt2, reward='countdown').make(0)
  task = make(row, {**row, 'answer': '93-(100-30)'})
  assert [example['answer'] for example in task.evaluation] == ['', '93-(100-30)']
  responses = ['Answer: 93-(100-30)', 'Answer: 93-100+30', 'Answer: 23', '93, 100, 30', '',
               row['prompt'], f'{row["prompt"]} 23']
  scores = task.reward_fn(
      [''] * 7, responses, np.zeros(7, bool), [task.evaluation[0]] * 7)
  assert list(scores) == [1, 1, 0, 0, 0, 0, 0]

  for change, message in (
      ({'numbers': [1, '2']}, "'numbers' must be a list of integers, got "),
      ({'numbers': []}, "'numbers' must be a list of integers"),
      ({'target': 2.5}, "'target' must be an integer, got 2.5"),
      ({'answer': '93+30'}, "'answer' must reach the target 23"),
  ):
    with pytest.raises(ValueError, match=f'problems.jsonl, line 2: {message}'):
      make(row, row | change)


@pytest.mark.parametrize('reward', ['exact', 'math', 'math_strict', 'gsm8k'])
def test_junk_earns_nothing(tmp_path, gpt2, reward):
  # The last number of the first prompt is its answer, as that of all numbers is of no problem.
  problems = [('Which is larger, 3 or 42?', '42'), ('What is 40 + 2?', '42'), ('7?', '77')]
  path = _rows(tmp_path, *({'prompt': prompt, 'answer': answer} for prompt, answer in problems))
  task = jsonl.Config(
      files=str(path), tokenizer_dir=gpt2, reward=reward, instruction='A number up to 42.').make(0)

  everything = ' '.join(map(str, range(100)))
  for example in task.evaluation:
    prompt, question = example['prompt'], example['prompt'].split('\n')[0]
    junk = ['', ' ', '\n', prompt, question, f'{prompt}\n{prompt}', f'user: {question}', everything,
            everything.replace(' ', ', '), f'\\boxed{{{everything}}}', f'#### {everything}',
            '\\boxed{}', '####', '?', 'The answer', prompt + everything]
    scores = task.reward_fn([prompt] * len(junk), junk, np.zeros(len(junk), bool),
                            [example] * len(junk))
    assert not any(scores), dict(zip(junk, scores))
    right = {'exact': '{}', 'math': 'It is {}.', 'math_strict': r'\boxed{{{}}}', 'gsm8k': '#### {}'}
    right = right[reward].format(example['answer'])
    assert task.reward_fn([prompt], [right], np.zeros(1, bool), [example]) == [1]
    if reward != 'exact':  # The question may be repeated first.
      assert task.reward_fn([prompt], [f'{prompt} {right}'], np.zeros(1, bool), [example]) == [1]


def test_a_function_of_ones_own(tmp_path, gpt2, monkeypatch):
  (tmp_path / 'scoring_of_jsonl_test.py').write_text(
      'def score(prompt, response, example): return response.count(example["letter"])')
  monkeypatch.chdir(tmp_path)
  path = _rows(tmp_path, {'prompt': 'Say a.', 'letter': 'a'}, {'prompt': 'Say b.', 'letter': 'b'})
  options = dict(files=str(path), tokenizer_dir=gpt2, answer_field='', keep_fields='letter')
  task = jsonl.Config(reward='scoring_of_jsonl_test:score', **options).make(0)
  assert task.evaluation[1] == {'id': 1, 'prompt': 'Say b.', 'answer': '', 'letter': 'b'}
  assert not task.demonstrations
  assert list(task.reward_fn(
      ['', ''], ['banana'] * 2, np.array([False, False]), task.evaluation)) == [3, 1]

  for fields, message in (
      ({'reward': 'scoring_of_jsonl_test:nothing'}, "has no function 'nothing'"),
      ({'keep_fields': 'letter,word'}, r"line 1: the key 'word' is missing \(config.task.keep_f"),
      ({'keep_fields': ''}, "line 1: unknown column 'letter'"),
      ({'keep_fields': 'prompt'}, r"keep_fields must not contain .*, got \['prompt'\]"),
  ):
    with pytest.raises(ValueError, match=message):
      jsonl.Config(**{'reward': 'scoring_of_jsonl_test:score', **options, **fields}).make(0)
