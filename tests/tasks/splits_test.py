"""Random subsets and held-out examples."""

import pytest

from jaxrl_llm.tasks import splits

EXAMPLES = [{'id': index, 'question': index // 2} for index in range(12)]


def _hold_out(count, seed=0, **options):
  return splits.hold_out(
      EXAMPLES, count, seed, question=lambda example: example['question'], name='things',
      **options)


def test_choose_keeps_the_order():
  ids = lambda *seed: [e['id'] for e in splits.choose(EXAMPLES, 5, seed, name='num_train')]
  assert len(ids(0)) == 5 and ids(0) == sorted(ids(0)) == ids(0) != ids(1)
  assert splits.choose(EXAMPLES, 0, [0], name='num_train') == EXAMPLES
  with pytest.raises(ValueError, match='config.task.num_train must be at most 12, got 13'):
    splits.choose(EXAMPLES, 13, [0], name='num_train')


def test_held_out_questions_are_excluded_from_the_rest():
  rest, held_out = _hold_out(3)
  assert len(held_out) == 3 and held_out != _hold_out(3, seed=1)[1]
  questions = {example['question'] for example in held_out}
  assert rest == [example for example in EXAMPLES if example['question'] not in questions]


def test_given_examples_are_all_excluded_from_the_rest():
  rest, held_out = _hold_out(1, given=EXAMPLES[:4])
  assert rest == EXAMPLES[4:] and held_out[0] in EXAMPLES[:4]
  assert _hold_out(0, given=EXAMPLES[:4]) == (EXAMPLES[4:], EXAMPLES[:4])


@pytest.mark.parametrize('count, options, message', [
    (0, {}, r'must be in \[1, 11\] \(of 12 things\), got 0'), (12, {}, 'got 12'),
    (5, {'given': EXAMPLES[:4]}, r'must be in \[0, 4\] \(of 4 things\), got 5'),
    (11, {}, 'all 12 things ask the same as the held-out ones')])
def test_bad_counts(count, options, message):
  with pytest.raises(ValueError, match=message):
    _hold_out(count, **options)
