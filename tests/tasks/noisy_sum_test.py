"""Noisy sums: their mistakes, their reward against junk, and their closed forms."""

import itertools

import numpy as np
import pytest

from jaxrl_llm.tasks import noisy_sum

SMALL = dict(num_demonstrations=3_000, num_train=500, num_evaluation=200)


@pytest.fixture(scope='module', params=noisy_sum.OF)
def task(request):
  return noisy_sum.Config(of=request.param, **SMALL).make(seed=0)


def _score(text, example, cut=False):
  return noisy_sum.reward([example['prompt']], [text], np.array([cut]), [example])[0]


def test_a_problem_by_hand():
  example = noisy_sum.problem(31415, 4)
  assert example == {'id': 31415, 'prompt': '31415=', 'answer': '4', 'steps': [4, 8, 9, 4]}
  assert noisy_sum.response(example, [False] * 4) == '4,8,9,4,'
  assert noisy_sum.response(example, [False, True, False, True]) == '4,9,0,6,'
  assert noisy_sum.problem(7, 2)['prompt'] == '007='

  example = noisy_sum.problem(3141, 4, 'digits')
  assert example == {'id': 3141, 'prompt': '3141=', 'answer': '1', 'steps': [3, 1, 4, 1]}
  assert noisy_sum.response(example, [False] * 4) == '3,1,4,1,'
  assert noisy_sum.response(example, [False, False, True, False]) == '3,1,5,2,'


def test_the_sets_are_disjoint_and_do_not_depend_on_the_rate(task):
  ids = [{e['id'] for e in split} for split in (task.demonstrations, task.train, task.evaluation)]
  assert [len(part) for part in ids] == [3_000, 500, 200]
  assert not any(a & b for a, b in itertools.combinations(ids, 2))
  of = task.name.split('_')[1]
  other = noisy_sum.Config(of=of, error_rate=0.4, **SMALL).make(seed=0)
  assert [e['prompt'] for e in other.train] == [e['prompt'] for e in task.train]
  assert other.demonstrations != task.demonstrations
  more = noisy_sum.Config(of=of, **{**SMALL, 'num_train': 900}).make(seed=0)
  assert {e['id'] for e in more.evaluation} == ids[2]
  assert noisy_sum.Config(of=of, **SMALL).make(seed=1).train != task.train
  for example in task.demonstrations + task.train:
    assert 'response' in example or example in task.train
    assert len(task.tokenizer.encode(example['prompt'])) <= task.max_prompt_tokens


def test_the_demonstrations_make_the_mistakes_of_the_closed_form(task):
  offsets = [(int(e['response'][-2]) - int(e['answer'])) % 10 for e in task.demonstrations]
  shares = np.bincount(offsets, minlength=9) / len(offsets)
  expected = noisy_sum.answer_probabilities(8, 0.15)
  np.testing.assert_allclose(
      shares, expected, atol=4 * np.sqrt(expected.max() / len(offsets)))
  assert expected.sum() == pytest.approx(1)
  assert expected[:2] == pytest.approx([0.272, 0.385], abs=1e-3)
  assert expected[0] == noisy_sum.success_rate(8, 0.15)
  assert all(len(task.tokenizer.encode(e['response'])) + 1 == task.max_response_tokens
             for e in task.demonstrations)


def test_only_a_whole_response_with_the_right_end_is_rewarded(task):
  for example in task.evaluation[:50]:
    right = noisy_sum.response(example, [False] * 8)
    assert _score(right, example) == 1 and _score(right, example, cut=True) == 0
    answer = example['answer']
    junk = ['', answer, f'{answer},', right[:-1], right + ',', right + f'{answer},', right[2:],
            f' {right}', f'{right}\n', f'{answer},' * 7, f'{answer},' * 9, ','.join(right),
            right.replace(',', ''), right[:-2] + str((int(answer) + 1) % 10) + ',',
            right.replace(answer, chr(0x660 + int(answer))), '9' * 100_000]
    assert not any(_score(text, example) for text in junk)


def test_values_are_the_success_rates_of_all_continuations():
  example, rate = noisy_sum.problem(2718, 3), 0.3
  probability = {}
  for mistakes in itertools.product([False, True], repeat=3):
    text = noisy_sum.response(example, mistakes)
    probability[text] = np.prod([rate if wrong else 1 - rate for wrong in mistakes])
  for text in probability:
    values = noisy_sum.prefix_values(example, text, rate)
    for end in range(1, 7):
      total = {t: p for t, p in probability.items() if t[:end] == text[:end]}
      right = sum(p for t, p in total.items() if _score(t, example))
      # After a digit its comma is certain.
      assert values[end - 1] == pytest.approx(right / sum(total.values()))
  assert not noisy_sum.prefix_values(example, 'x', rate).any()
  assert noisy_sum.prefix_values(example, '9,0,8,8,', rate)[-2:].tolist() == [0, 0]


def test_closed_forms_of_the_specification():
  assert noisy_sum.search_accuracy(8, 0.15, block=2, width=1) == pytest.approx(0.272, abs=1e-3)
  assert noisy_sum.search_accuracy(8, 0.15, block=2, width=2) == pytest.approx(0.726, abs=1e-3)
  assert noisy_sum.search_accuracy(8, 0.15, block=2, width=4) == pytest.approx(0.976, abs=1e-3)
  best_of = 1 - (1 - noisy_sum.success_rate(8, 0.15)) ** np.array([2, 4, 16])
  assert best_of == pytest.approx([0.47, 0.72, 0.994], abs=2e-3)
  with pytest.raises(ValueError, match='block must divide the 8 sums, got 3'):
    noisy_sum.search_accuracy(8, 0.15, block=3, width=2)


@pytest.mark.parametrize('changes, message', [
    (dict(num_sums=0), 'config.task.num_sums must be at least 1, got 0'),
    (dict(num_sums=9), 'config.task.num_sums must be at most 8, got 9'),
    (dict(error_rate=1.5), r'config.task.error_rate must be in \[0, 1\], got 1.5'),
    (dict(num_sums=1, num_train=101, num_demonstrations=0, num_evaluation=0),
     'at most 100 problems with as many sums, got 101')])
def test_bad_fields_are_one_line(changes, message):
  with pytest.raises(ValueError, match=message):
    noisy_sum.Config(**changes).make(seed=0)


def test_all_problems_of_few_sums_can_be_used():
  task = noisy_sum.Config(
      num_sums=1, num_demonstrations=30, num_train=60, num_evaluation=10).make(seed=0)
  assert {e['id'] for e in task.demonstrations + task.train + task.evaluation} == set(range(100))
