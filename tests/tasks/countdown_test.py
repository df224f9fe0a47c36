"""Countdown: the published problems, and generated ones from the same distribution."""

import itertools

import numpy as np
import pytest

from jaxrl_llm.data import batching, sft_batches
from jaxrl_llm.tasks import countdown


@pytest.fixture(scope='module')
def task(data_dir):
  return countdown.Config(num_demonstrations=2000, num_train=1000).make(
      seed=1, data_dir=data_dir / 'countdown')


def _key(example):
  return tuple(sorted(example['numbers'])), example['target']


def _score(task, examples, field):
  count = len(examples)
  responses = [example[field] for example in examples]
  return task.reward_fn([''] * count, responses, np.zeros(count, bool), examples)


def test_the_published_problems_are_the_evaluation(task):
  assert len(task.evaluation) == 256
  first = task.evaluation[0]
  assert first['numbers'] == [30, 100, 93] and first['target'] == 23
  assert first['prompt'] == '30,100,93=23:'
  assert _score(task, task.evaluation, 'answer').all()


def test_splits_are_disjoint_in_numbers_and_target(task):
  examples = task.evaluation + task.demonstrations + task.train
  assert len({_key(example) for example in examples}) == len(examples) == 3256
  assert [example['id'] for example in examples] == list(range(3256))


def test_every_answer_is_right_and_demonstrations_are_wrong_at_the_rate(task):
  assert _score(task, task.train, 'answer').all()
  assert _score(task, task.demonstrations, 'answer').all()
  right = _score(task, task.demonstrations, 'response').mean()
  # Five standard deviations: 5 sqrt(.3 * .7 / 2000) = 0.051.
  assert abs(right - 0.7) < 0.051
  for example in task.demonstrations:
    assert task.tokenizer.decode(task.tokenizer.encode(example['response']))


@pytest.mark.parametrize('rate', [0.0, 1.0])
def test_wrong_rate_at_its_ends(data_dir, rate):
  task = countdown.Config(num_demonstrations=300, num_train=0, wrong_rate=rate).make(
      seed=0, data_dir=data_dir / 'countdown')
  assert np.all(_score(task, task.demonstrations, 'response') == 1.0 - rate)
  # A wrong demonstration still uses the right numbers.
  for example in task.demonstrations:
    used = countdown.countdown.evaluate(example['response'])[1]
    assert sorted(used) == sorted(example['numbers'])


def test_limits_hold(task):
  for example in task.evaluation + task.demonstrations + task.train:
    assert len(task.tokenizer.encode(example['prompt'])) <= task.max_prompt_tokens
    for field in ('answer', 'response'):
      if field in example:
        assert len(task.tokenizer.encode(example[field])) < task.max_response_tokens


def _whole(a, sign, b):
  """A sign b where that is a non-negative whole number, else None."""
  if sign == '+':
    return a + b
  if sign == '*':
    return a * b
  if sign == '-':
    return a - b if a >= b else None
  return a // b if b and a % b == 0 else None


@pytest.mark.parametrize('numbers', [(6, 3, 2), (92, 1, 1), (30, 100, 93), (5, 5, 5), (7, 50, 99)])
def test_solutions_against_brute_force(numbers):
  expected = set()
  for a, b, c in itertools.permutations(numbers):
    for first, second in itertools.product('+-*/', repeat=2):
      inner = _whole(a, first, b)
      if inner is not None:
        expected |= {_whole(inner, second, c), _whole(c, second, inner)}
  expressions = countdown.solutions(numbers)
  assert set(expressions) == {target for target in expected if target and target <= 100}
  for target, texts in expressions.items():
    for text in texts:
      value, used = countdown.countdown.evaluate(text)
      assert value == target and sorted(used) == sorted(numbers)


def test_generated_problems_are_distributed_like_the_published_ones(task):
  generated = task.demonstrations + task.train

  def chi_square(values_of, edges):
    observed = np.histogram([v for e in task.evaluation for v in values_of(e)], edges)[0]
    sample = np.histogram([v for e in generated for v in values_of(e)], edges)[0]
    pooled = (observed + sample) / (observed.sum() + sample.sum())
    return sum(
        ((counts - pooled * counts.sum()) ** 2 / (pooled * counts.sum())).sum()
        for counts in (observed, sample)
    )

  numbers = chi_square(lambda e: e['numbers'], [1, 4, 7, 11, 21, 31, 41, 51, 61, 71, 81, 91, 101])
  targets = chi_square(lambda e: [e['target']], [1, 5, 11, 21, 31, 41, 51, 61, 71, 81, 91, 101])
  assert numbers < 31.3 and targets < 29.6  # Quantiles 0.999 at 11 and 10 degrees of freedom.


@pytest.fixture(scope='module')
def in_words(data_dir):
  config = countdown.Config(
      num_demonstrations=2000, num_train=1000, tokenizer_dir=str(data_dir / 'tokenizers' / 'gpt2'),
      max_response_tokens=64)
  return config.make(seed=1, data_dir=data_dir / 'countdown')


def test_in_words_the_problems_are_the_same(task, in_words):
  for group in ('evaluation', 'demonstrations', 'train'):
    examples, others = getattr(task, group), getattr(in_words, group)
    for example, other in zip(examples, others, strict=True):
      texts = {'prompt': other['prompt']}
      if group == 'demonstrations':
        texts['response'] = f'\nAnswer: {example["response"]}'
      assert other == example | texts
  assert in_words.evaluation[0]['prompt'] == (
      'Reach 23 with the numbers 30, 100 and 93: use each of them exactly once, with the '
      'operations +, -, * and / and with parentheses where needed. End with a line that holds '
      '"Answer:" and the expression alone, such as "Answer: (5-2)*4".')
  scores = _score(task, task.demonstrations, 'response')
  np.testing.assert_array_equal(_score(in_words, in_words.demonstrations, 'response'), scores)
  assert 0 < scores.mean() < 1


def test_in_words_the_limits_are_fields_and_demonstrations_fit(in_words, data_dir):
  assert (in_words.max_prompt_tokens, in_words.max_response_tokens) == (
      countdown.MAX_PROMPT_TOKENS, 64)
  assert in_words.tokenizer.vocab_size == 50_257
  encoded = sft_batches.encode_demonstrations(in_words)
  assert len(encoded) == 2000 and encoded.response_lengths.max() < 32
  batching.encode_examples(in_words.evaluation, in_words.tokenizer, max_prompt_tokens=128)


def test_pure_function_of_the_seed(task, data_dir):
  folder = data_dir / 'countdown'
  config = countdown.Config(num_demonstrations=2000, num_train=1000)
  again, other = (config.make(seed=seed, data_dir=folder) for seed in (1, 2))
  assert again.train == task.train and again.demonstrations == task.demonstrations
  assert other.train != task.train


@pytest.mark.parametrize(
    'line, message',
    [
        ('{"input": "1,2", "output": "3"}', 'line 2: expected three numbers and a target'),
        ('{"input": "1,2,x", "output": "3"}', 'line 2: expected three numbers and a target'),
        ('{"input": "1,2,101", "output": "3"}', 'line 2: all values must be in .1, 100.'),
        ('{"input": "1,1,1", "output": "99"}', 'line 2: 99 cannot be reached from 1,1,1'),
        ('{"input": "1,1,1", "output": 3}', "line 2: 'output' must be str, got int"),
        ('{"input": "1,1', 'line 2: not a complete JSON object'),
    ],
)
def test_damaged_files_are_one_clear_line(tmp_path, line, message):
  (tmp_path / countdown.TEST_FILE).write_text('{"input": "1,1,1", "output": "3"}\n' + line)
  with pytest.raises(ValueError, match=message) as error:
    countdown.Config(num_demonstrations=1, num_train=1).make(seed=0, data_dir=tmp_path)
  assert '\n' not in str(error.value) and countdown.TEST_FILE in str(error.value)


def test_bad_fields(data_dir, tmp_path):
  folder = data_dir / 'countdown'
  for fields, message in (
      ({'wrong_rate': -0.1}, r'wrong_rate must be in \[0, 1\], got -0.1'),
      ({'num_train': -1}, 'num_train must be at least 0, got -1'),
      ({'max_prompt_tokens': 9}, 'max_prompt_tokens must be 0 without a tokenizer_dir .*, got 9'),
      ({'max_response_tokens': 9}, 'max_response_tokens must be 0 without a tokenizer_.*, got 9'),
      ({'max_response_tokens': -1}, 'config.task.max_response_tokens must be at least 0, got -1'),
      ({'tokenizer_dir': str(tmp_path)}, 'no tokenizer in'),
  ):
    with pytest.raises(ValueError, match=message):
      countdown.Config(**{'num_demonstrations': 1, 'num_train': 1, **fields}).make(0, folder)

  config = countdown.Config(num_demonstrations=1, num_train=1)
  with pytest.raises(ValueError, match='cannot read .*countdown_cd3_test.jsonl'):
    config.make(0, tmp_path)
  with pytest.raises(ValueError, match='needs the directory of countdown_cd3_test.jsonl: --config'):
    config.make(0)
