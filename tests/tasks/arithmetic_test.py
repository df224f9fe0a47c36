"""The addition task: its mistake, its splits and what an imitator of it scores."""

import numpy as np
import pytest

from jaxrl_llm.tasks import arithmetic


def _make(seed=3, **overrides):
  fields = {'num_demonstrations': 4000, 'num_train': 1000, 'num_evaluation': 1000}
  return arithmetic.Config(**(fields | overrides)).make(seed=seed)


@pytest.fixture(scope='module')
def task():
  return _make()


@pytest.mark.parametrize(
    'a, b, dropped',
    [
        # Digit by digit: 7+5 -> 2, 4+8 -> 2, 1+0 -> 1.
        (147, 85, 122),
        (999, 1, 990),  # 9+1 -> 0, 9, 9.
        (500, 600, 100),  # 5+6 -> 1; the thousands are lost.
        (123, 456, 579),  # No carry: the right sum.
        (0, 0, 0),
    ],
)
def test_drop_carries_by_hand(a, b, dropped):
  assert arithmetic.drop_carries(a, b) == dropped
  assert arithmetic.has_carry(a, b) == (dropped != a + b)


def test_has_carry_against_column_addition_of_all_two_digit_pairs():
  for a in range(100):
    for b in range(100):
      tens, ones = a // 10 + b // 10, a % 10 + b % 10
      assert arithmetic.has_carry(a, b) == (ones > 9 or tens > 9)


def test_examples_by_hand():
  def example(answer_format, padding):
    return arithmetic._example(
        12_045, arithmetic.Config(digits=3, answer_format=answer_format, padding=padding))

  assert example('reversed', 'zeros') == {
      'id': 12_045, 'prompt': '012+045=', 'answer': '7500', 'a': 12, 'b': 45
  }
  plain = example('plain', 'none')
  assert (plain['prompt'], plain['answer']) == ('12+45=', '57')
  assert example('reversed', 'none')['answer'] == '75'
  assert example('plain', 'zeros')['answer'] == '0057'


def test_splits_are_disjoint_and_without_swapped_operands(task):
  problems = [
      {(e['a'], e['b']) for e in split}
      for split in (task.demonstrations, task.train, task.evaluation)
  ]
  assert [len(split) for split in problems] == [4000, 1000, 1000]
  demonstrations, train, evaluation = problems
  assert not demonstrations & train
  twins = {(b, a) for a, b in evaluation}
  assert not (evaluation | twins) & (demonstrations | train)
  ids = [e['id'] for split in (task.demonstrations, task.train, task.evaluation) for e in split]
  assert len(set(ids)) == 6000 and min(ids) >= 0 and max(ids) < 2**31


@pytest.mark.parametrize('answer_format', ['plain', 'reversed'])
@pytest.mark.parametrize('padding', ['zeros', 'none'])
def test_limits_and_alphabet_hold_for_every_format(answer_format, padding):
  task = _make(digits=2, num_demonstrations=500, num_train=200, num_evaluation=200,
               answer_format=answer_format, padding=padding)
  for example in task.demonstrations + task.train + task.evaluation:
    assert len(task.tokenizer.encode(example['prompt'])) <= task.max_prompt_tokens
    response = task.tokenizer.encode(example.get('response', example['answer']))
    assert len(response) + 1 <= task.max_response_tokens
    text = example['answer'][::-1] if answer_format == 'reversed' else example['answer']
    assert int(text) == example['a'] + example['b']


def test_demonstrations_are_right_or_drop_every_carry(task):
  dropped = 0
  with_carry = 0
  for example in task.demonstrations:
    value = int(example['response'][::-1])
    wrong = int(arithmetic.drop_carries(example['a'], example['b']))
    assert value in (example['a'] + example['b'], wrong)
    if wrong != example['a'] + example['b']:
      with_carry += 1
      dropped += value == wrong
  assert with_carry == 3600  # 4,000 less the tenth without a carry.
  # Five standard deviations of a binomial fraction: 5 sqrt(.55 * .45 / 3600) = 0.041.
  assert abs(dropped / with_carry - 0.55) < 0.041


def test_imitator_scores_by_hand_and_by_simulation(task):
  scores = arithmetic.imitator_scores(task.evaluation, carry_drop_rate=0.55)
  # f = 0.1 exactly: 0.1 + 0.9 * 0.45 = 0.505; the likelier answer is right only without carry.
  np.testing.assert_allclose(scores, (0.505, 0.1, 0.1), atol=1e-12)
  assert 0.45 <= scores.pass_at_1 <= 0.55 and scores.greedy_accuracy <= 0.4

  rng = np.random.default_rng(0)
  total = np.zeros(2)
  for _ in range(20):
    for column, drops in enumerate((rng.random(1000) < 0.55, np.ones(1000, bool))):
      values = [
          arithmetic.drop_carries(e['a'], e['b']) if drop else e['a'] + e['b']
          for e, drop in zip(task.evaluation, drops)
      ]
      responses = [arithmetic._write_answer(int(v), arithmetic.Config()) for v in values]
      rewards = task.reward_fn([''] * 1000, responses, np.zeros(1000, bool), task.evaluation)
      total[column] += rewards.mean() / 20
  # 20,000 draws: five standard deviations are 5 * 0.5 / sqrt(20000) = 0.018.
  np.testing.assert_allclose(total, [scores.pass_at_1, scores.greedy_accuracy], atol=0.018)
  assert arithmetic.imitator_scores(task.evaluation, carry_drop_rate=0.4).greedy_accuracy == 1.0


def test_carry_free_problems_are_spread_over_the_split(task):
  free = [not arithmetic.has_carry(e['a'], e['b']) for e in task.evaluation]
  # 100 of 1,000 are free; of the first half about 50, standard deviation below 5.
  assert abs(sum(free[:500]) - 50) < 25


def test_pure_function_of_the_seed(task):
  again, other = _make(), _make(seed=4)
  assert again.demonstrations == task.demonstrations and again.train == task.train
  assert again.evaluation == task.evaluation != other.evaluation
  # The held-out problems stay when the size of a training set changes.
  assert _make(num_train=10, num_demonstrations=20).evaluation == task.evaluation


def test_truncated_is_wrong(task):
  example = task.evaluation[0]
  rewards = task.reward_fn(
      [''] * 2, [example['answer']] * 2, np.array([False, True]), [example] * 2
  )
  np.testing.assert_array_equal(rewards, [1, 0])


@pytest.mark.parametrize(
    'overrides, message',
    [
        ({'digits': 5}, 'config.task.digits must be at most 4, got 5'),
        ({'digits': 0}, 'digits must be at least 1, got 0'),
        ({'carry_drop_rate': 1.5}, r'carry_drop_rate must be in \[0, 1\], got 1.5'),
        ({'carry_free_fraction': -1}, r'carry_free_fraction must be in \[0, 1\], got -1'),
        ({'answer_format': 'x'}, "answer_format must be one of reversed, plain, got 'x'"),
        ({'padding': 'x'}, "padding must be one of zeros, none, got 'x'"),
        ({'num_train': -1}, 'num_train must be at least 0, got -1'),
        ({'digits': 1}, 'num_evaluation = 1000 needs'),
    ],
)
def test_bad_fields_are_one_clear_line(overrides, message):
  with pytest.raises(ValueError, match=message) as error:
    _make(**overrides)
  assert '\n' not in str(error.value)


def test_a_generated_task_takes_no_directory():
  with pytest.raises(ValueError, match="arithmetic task is generated, got config.data_dir='x'"):
    arithmetic.Config().make(0, 'x')
