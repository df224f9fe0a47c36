r"""Values that are not finite equal nothing; the named infinities equal themselves."""

import pytest

from jaxrl_llm.rewards import math_answer
from jaxrl_llm.rewards.math import truths, worker_pool

NOT_FINITE = [
    '1/0', r'\frac{1}{0}', r'\frac{5}{2-2}', r'\tan(\pi/2)', r'\tan\frac{\pi}{2}', r'\log 0',
    r'\ln 0', r'\log_1 5', '0^{-1}', '0/0', '(1/0, 2)', r'\{1/0\}', '[1/0, 4]', 'x=1/0',
    r'\sum_{n=1}^\infty 1', r'\sum_{n=1}^{\infty} \frac1n', r'\int_0^\infty 1 dx',
    r'\int_0^1 \frac{1}{x} dx', r'\infty-\infty', r'\frac{\infty}{\infty}', r'0\cdot\infty',
    r'\infty+1', r'-\infty', r'\lim_{x\to 0} \frac1x', r'\lim_{x\to\infty}\sin x',
    r'\prod_{n=1}^\infty n', r'\sec(\pi/2)', r'\cot 0', '(-1)!', 'x/0', 'x^{1/0}', r'1/0\%',
    r'\frac{1}{0} cm', r'\begin{pmatrix}1/0&2\end{pmatrix}', r'\sqrt{2}+1/0', '|1/0|',
    r'\sin\infty', r'e^{\infty}', 'nan', 'zoo',
]  # fmt: skip
TRUTHS = ['4', r'\sqrt2', '(4,2)', 'x=5', 'x+1', r'\infty']


def test_a_value_that_is_not_finite_equals_nothing():
  pairs = [(f'\\boxed{{{value}}}', truth) for value in NOT_FINITE for truth in TRUTHS]
  verdicts = math_answer.grade_batch(*zip(*pairs))
  assert not [pair for pair, verdict in zip(pairs, verdicts) if verdict]


@pytest.mark.parametrize('text', [r'\infty', r'-\infty', r'[0,\infty)', r'(-\infty,\infty)'])
def test_a_named_infinity_equals_itself(text):
  assert math_answer.grade(rf'\boxed{{{text}}}', text)
  assert not math_answer.grade(rf'\boxed{{{text}}}', text.replace(r'\infty', '7'))


@pytest.mark.parametrize('truth', [
    '1/0', r'\log 0', r'\tan(\pi/2)', r'\frac{x}{0}', 'x=1/0', '(1/0,2)', r'1/0\%', '1/0 apples',
    r'\sum_{n=1}^\infty 1', r'\frac{0}{\sqrt2\sqrt3-\sqrt6}', 'nan', '', r'\boxed{1/0}',
    r'\infty+1',
])  # fmt: skip
def test_a_truth_that_is_not_finite_is_an_error(truth):
  with pytest.raises(ValueError, match='the true answer must'):
    truths.check(truth)


def test_plain_truths_need_no_worker(monkeypatch):
  monkeypatch.setattr(worker_pool, 'shared', lambda: pytest.fail('a worker was asked'))
  for truth in ('18', '1,234.5', '1/2', r'\frac{x}{x+1}', r'\log_2 3', r'\infty', r'[0,\infty)',
                'no solution', '3:30', r'\frac{\sqrt{3}}{3}', 'x=5', '(A) 5', r'\tan 20^\circ',
                r'\begin{pmatrix}1\\2\end{pmatrix}', 'y=2x+1', '50%', r'e^{-x}'):
    truths.check(truth)
