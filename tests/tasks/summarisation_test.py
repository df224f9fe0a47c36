"""The toy summarisation: its gold score by hand, its posts, its mistakes and its judge."""

import itertools

import numpy as np
import pytest

from jaxrl_llm.tasks import summarisation


def _task(seed=3, **changes):
  sizes = dict(num_demonstrations=400, num_train=50, num_evaluation=60)
  return summarisation.Config(**{**sizes, **changes}).make(seed)


@pytest.mark.parametrize('response, expected', [
    ('abc', 1 - 0.15),  # The ideal summary.
    ('', 0.0),
    ('ab', 2 / 3 - 0.1),  # A key is missing.
    ('acb', 2 / 3 - 0.5 / 3 - 0.15),  # Two of them can be lined up in order.
    ('axbc', 1 - 0.5 / 4 - 0.2),
    ('xyz', -0.5 - 0.15),
    ('aaa', 1 / 3 - 0.5 * 2 / 3 - 0.15),  # A key counts once.
])
def test_gold_scores_by_hand(response, expected):
  assert summarisation.gold_score(response, 'abc') == pytest.approx(expected)


def test_no_summary_beats_the_ideal_one():
  scores = {
      ''.join(r): summarisation.gold_score(''.join(r), 'ab')
      for length in range(5) for r in itertools.product('abc', repeat=length)}
  assert max(scores, key=scores.get) == 'ab'
  assert sorted(scores.values())[-2] < scores['ab'] - 0.1


def test_common_subsequences_are_those_of_an_exhaustive_search():
  def longest(a, b):
    subsequences = lambda s: {
        ''.join(c) for n in range(len(s) + 1) for c in itertools.combinations(s, n)}
    return max(map(len, subsequences(a) & subsequences(b)))

  rng = np.random.default_rng(0)
  for _ in range(200):
    a, b = (''.join(rng.choice(list('abc'), rng.integers(0, 7))) for _ in range(2))
    assert summarisation._common_subsequence(a, b) == longest(a, b)


def test_a_truncated_summary_has_the_score_of_a_missing_stop():
  example = {'answer': 'ab'}
  got = summarisation.reward(['', ''], ['ab', 'ab'], np.array([False, True]), [example] * 2)
  np.testing.assert_allclose(got, [0.9, summarisation.MISSING_STOP])
  assert got.dtype == np.float32


def test_keys_are_right_after_their_markers_and_nowhere_else():
  task = _task()
  for example in task.train + task.evaluation + task.demonstrations:
    post, keys = example['prompt'], example['answer']
    assert len(post) == summarisation.POST_LENGTH and post.endswith('=')
    marked = ''.join(b for a, b in zip(post, post[1:]) if a == '*')
    assert marked == keys and 2 <= len(keys) <= 4
    assert all(post.count(key) == 1 for key in keys)
    assert len(task.tokenizer.encode(post)) == task.max_prompt_tokens
  lengths = [len(example['answer']) for example in task.demonstrations]
  assert all(lengths.count(n) > 80 for n in (2, 3, 4))


def test_the_sets_are_disjoint_and_a_function_of_the_seed():
  task = _task()
  prompts = [e['prompt'] for e in task.train + task.evaluation + task.demonstrations]
  assert len(set(prompts)) == len(prompts) == 510
  assert [e['prompt'] for e in _task().train] == [e['prompt'] for e in task.train]
  assert not set(prompts) & {e['prompt'] for e in _task(seed=4).train}


def test_mistakes_come_at_their_rate_and_are_of_every_kind():
  demonstrations = _task().demonstrations
  wrong = [e for e in demonstrations if e['response'] != e['answer']]
  # 400 draws of 0.3: three standard deviations are 0.069.
  assert abs(len(wrong) / 400 - 0.3) < 0.069
  kinds = {(len(e['response']) - len(e['answer']),
            sorted(e['response']) == sorted(e['answer'])) for e in wrong}
  assert kinds == {(-1, False), (0, False), (0, True), (1, False)}
  assert all(e['response'] == e['answer'] for e in _task(corruption_rate=0.0).demonstrations)


def test_the_judge_follows_the_bradley_terry_model():
  rng = np.random.default_rng(0)
  scores = np.tile([[0.6, 0.2]], (20_000, 1))
  labels = summarisation.prefer(scores, noise=0.4, rng=rng)
  assert labels.shape == (20_000, 2) and (labels.sum(axis=1) == 1).all()
  expected = 1 / (1 + np.exp(-1))
  assert abs(labels[:, 0].mean() - expected) < 3 * np.sqrt(expected * (1 - expected) / 20_000)


@pytest.mark.parametrize('changes, message', [
    (dict(num_train=-1), 'num_train must be at least 0, got -1'),
    (dict(corruption_rate=1.5), r'corruption_rate must be in \[0, 1\], got 1.5'),
])
def test_bad_values_are_named(changes, message):
  with pytest.raises(ValueError, match=message):
    _task(**changes)


def test_a_judge_without_noise_is_an_error():
  with pytest.raises(ValueError, match='noise must be positive and finite, got 0'):
    summarisation.prefer(np.zeros((1, 2)), noise=0, rng=np.random.default_rng(0))
