r"""The strict parser of expressions, and the values that SymPy gives its trees."""

import fractions
import time

import pytest

from jaxrl_llm.rewards.math import expressions, finiteness, symbolic


@pytest.mark.parametrize(('text', 'same'), [
    (r'\frac\pi2', r'\frac{\pi}{2}'), (r'\frac12x', r'\frac{1}{2}x'), ('x^-2', 'x^{-2}'),
    (r'\sqrt\frac12', r'\sqrt{\frac{1}{2}}'), (r'\binom52', r'\binom{5}{2}'), ('x_1', 'x_{1}'),
    (r'\log_28', r'\log_{2}(8)'), (r'\sin\pi/6', r'\sin(\pi/6)'), (r'\bar z', r'\overline{z}'),
    (r'A^\top', 'A^{T}'), ('dy/dx', r'\frac{dy}{dx}'), ('2|x|y', '2(|x|)(y)'),
    ('1/2 bh', r'\frac{1}{2}bh'), (r'\sqrt12', r'\sqrt{1}(2)'), ('2^3^2', '2^{3^2}'),
])  # fmt: skip
def test_two_spellings_have_one_tree(text, same):
  assert expressions.parse(text) == expressions.parse(same)


@pytest.mark.parametrize(('text', 'other'), [
    ('R', 'r'), (r'\Omega', r'\omega'), ("f'(x)", 'f(x)'), ("x'", 'x'), (r'\bar{x}', 'x'),
    (r'\hat{x}', r'\bar{x}'), ('A^T', 'A'), (r'A^\dagger', 'A'), ('x_1', 'x'), ('f(x)', 'g(x)'),
    ('1/2b', '1/2 b'), (r'\frac{dy}{dx}', r'\frac{y}{x}'), (r'\Delta y', 'y'), ('5!', '5!!'),
])  # fmt: skip
def test_different_expressions_have_two_trees(text, other):
  assert expressions.parse(text) != expressions.parse(other)


@pytest.mark.parametrize('text', [
    '', '3 4', 'x2', '18+', '>18', '18-', 'é', r'\foo{x}', r'\frac{1}', '(1', '1)', '{', '|x',
    r'\sqrt', 'x^', '_2', "5'", '5 % 3', r'\int x dx', r'x \in y', '1,2', r'\lim_{x}y', '^2',
    r'a \pm b', r'\{1\}', '5?', '5;6', 'x=5', '7_0',
])  # fmt: skip
def test_other_texts_are_unreadable(text):
  with pytest.raises(expressions.Unreadable):
    expressions.parse(text)


@pytest.mark.parametrize('command', [
    r'\sqrt', r'\frac', r'\frac1', r'\binom', r'\bar', r'\log_', r'\sin', '(', '-', '|', 'x^',
    r'\sum_{n=1}^2', 'dy/dx ', '!', r'\sqrt[3]',
])  # fmt: skip
def test_nesting_costs_linear_time(command):
  # Reading an argument twice at each level would double the time at each.
  started = time.monotonic()
  expressions.read(command * 150 + '2')
  assert time.monotonic() - started < 1.0


@pytest.mark.parametrize('text', [
    r'\frac{1}{x+1}', r'\log_2 3', r'\frac{\sqrt3}{3}', 'x^{-1}', r'\tan 1', 'f(0)', '5!',
])
def test_surely_finite(text):
  assert finiteness.is_sure(expressions.parse(text))


@pytest.mark.parametrize('text', [
    '1/0', r'\frac{1}{x-x}', r'\frac{0}{\sin^2x+\cos^2x-1}', r'\tan\frac{\pi}{2}', r'\ln 0',
    r'\infty', '0^{-1}', '0^0', '(-1)!', r'\log_1 2', r'\sum_{n=1}^\infty 1', r'\cot 0',
])
def test_not_surely_finite_and_equal_to_nothing(text):
  assert not finiteness.is_sure(expressions.parse(text))
  assert not symbolic.equal(text, text)


def test_values_by_hand():
  assert symbolic.equal(r'\sum_{n=1}^\infty \frac{1}{n^2}', r'\frac{\pi^2}{6}')  # Euler, 1735.
  assert symbolic.equal(r'\int_0^1 x^2 dx', r'\frac13')
  assert symbolic.equal(r'\lim_{x \to 0} \frac{\sin x}{x}', '1')
  assert symbolic.equal('(-8)^{1/3}', '-2')
  assert symbolic.equal(r'\overline{3+4i}', '3-4i')
  assert not symbolic.equal(r'\sqrt{x^2}', 'x')  # Differs at x = -1.
  assert not symbolic.equal(r'\frac{d}{dx} y', '0')
  assert not symbolic.equal('x+1', r'x+1+\frac{1}{10^{20}}')


def test_roundings_are_those_of_the_last_digit():
  half = fractions.Fraction(1, 200)
  assert symbolic.rounds(r'\sqrt{2}', fractions.Fraction(141, 100), half)  # 1.41421...
  assert not symbolic.rounds(r'\sqrt{2}', fractions.Fraction(142, 100), half)
  assert not symbolic.rounds(r'\tan\frac{\pi}{2}', fractions.Fraction(142, 100), half)
