"""Countdown's verifier: values by hand, Python's own arithmetic as a reference, hostile text."""

import ast
import random
import time
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from jaxrl_llm.rewards import countdown

_NUMBERS = [30, 100, 93]  # 93 - (100 - 30) = 23.


@pytest.mark.parametrize(
    'response',
    [
        '93-(100-30)',
        '93 - (100 - 30)',
        '(93-100)+30',
        '-(100-93)+30',
        '((((30))+93))-100',
        '93-(100-30)=23',
        ' 93-(100-30) = 23 \n',
        '<answer>93-(100-30)</answer>',
        'I think so. <answer> 93-(100-30)=23 </answer> Done = 5',
        '<answer>1</answer> no: <answer>30+93-100</answer>',
        '<answer>30+93-100</answer>\nAnswer: 1',
        'Answer: 93-(100-30)',
        '\nAnswer: 93-(100-30) = 23\n\n',
        'First 30+93 = 123.\nAnswer:\n 93-(100-30)\t\r\n',
        'Answer: 1\nno, the Answer: 93-(100-30)\nThat is it.',
        '93-(100-30)\n93-(100-30)',
        '100-30 = 70, and 93 less that is 23, so that\r\n93-(100-30)=23\r\n',
    ],
)
def test_right_solutions(response):
  assert countdown.is_solution(response, _NUMBERS, 23)


@pytest.mark.parametrize(
    'response',
    [
        '',
        '23',
        '93-(100-30)=24',  # Claims another value.
        '93-100-30',  # Another value.
        '93-(100-30)+0',  # A number that was not given.
        '93-70',
        '93-(100-30)*93/93',  # A number used more than once.
        '30+93-100 30',
        '3 0+93-100',
        '93-(100-30',
        '93-(100-30))',
        '93-(100-30)=23=23',
        '93-(100-30)=',
        '=23',
        'so 93-(100-30)',
        '93-(100-30) is right',
        '<answer>93-(100-30)',
        '93-(100-30)</answer>',
        '</answer>93-(100-30)<answer>',
        '93-(100-30.0)',
        '93-(1e2-30)',
        '٩٣-(100-30)',  # Digits, but not ASCII.
        '30**1+93-100',
        '30//1+93-100',
        '93-(100-30)\nthat is it',
        '93-(100-\n30)',
        'Answer: 93-(100-30) Answer: 23',
        'Answer:',
        'Answer: \n',
        'answer: 93-(100-30)',
        'The Answer is 93-(100-30)',
        '93-(100-30)\nAnswer: 23',
        'Answer: 93-(100-30)</answer>',
        '93-(100-30)+1/0',
    ],
)
def test_wrong_or_ill_formed_solutions(response):
  assert not countdown.is_solution(response, _NUMBERS, 23)


@pytest.mark.parametrize('response', [
    '**Answer:** 93-(100-30)', '**Answer**: 93-(100-30)', '**Answer: 93-(100-30)**',
    '*Answer:* 93-(100-30)', '__Answer:__ 93-(100-30)', '### Answer: 93-(100-30)',
    'Final **Answer:** **93-(100-30)**', 'Answer : 93-(100-30)', 'Answer：93-(100-30)',
    'Answer: "93-(100-30)"', 'Answer: “93−(100−30)”.', r'\textbf{Answer:} 93-(100-30)',
    r'$\text{Answer: } 93-(100-30)$', 'Answer: `93-(100-30)`', 'Answer:\n```\n93-(100-30)\n```',
    'Answer:\n```latex\n93-(100-30)\n```',
    '```\n93-(100-30)\n```', 'Answer:\n\\[\n93-(100-30)\n\\]', 'Answer:\n$$\n93-(100-30)\n$$\n',
    '93 − (100 − 30)', '93–(100–30)', '93\u202f−\u202f(100\u00a0−\u00a030)', '93-(100-30).',
    '**93-(100-30)**.', '**93-(100-30).**', '`93-(100-30) = 23.`', '93-(100-30) = **23**',
    '$93-(100-30)$', '$93-(100-30) = 23$.', '$93-(100-30)$ = $23$', '\\(93-(100-30)\\)',
    '$$93-\\left(100-30\\right)$$', r'\[93 - \bigl(100 - 30\bigr) = 23\]', r'\boxed{93-(100-30)}',
    r'$\boxed{93-(100-30)=23}$.', r'$\boxed{93-(100-30)} = 23$', r'93-(100-30) = \boxed{23}',
    r'The expression is \boxed{93-(100-30)}.', '\\boxed{93-(100-30)}\nThat is it.',
    r'\boxed{\boxed{93-(100-30)}}', r'Answer: \boxed{93 - (100 - 30)}',
    r'Answer: so $\boxed{93-(100-30)}$ it is.', r'<answer>\boxed{93−(100−30)}</answer>',
    '<answer>\n$93-(100-30)$\n</answer>', r'<answer>\(93-(100-30) = 23\).</answer>',
    '<think>Answer: 30</think>\nAnswer: 93-(100-30)', '93-(100-30)\n</think>\n93-(100-30)',
])  # fmt: skip
def test_typography_is_free(response):
  assert countdown.is_solution(response, _NUMBERS, 23)
  assert not countdown.is_solution(response, _NUMBERS, 24)
  assert not countdown.is_solution(response, [*_NUMBERS, 1], 23)
  assert not countdown.is_solution(response.replace('100', '101'), _NUMBERS, 23)


@pytest.mark.parametrize(('response', 'numbers', 'target'), [
    ('(2 × 3) + 4', [2, 3, 4], 10),
    ('(2 x 3) + 4 = 10.', [2, 3, 4], 10),
    (r'$(2 \times 3) + 4$', [2, 3, 4], 10),
    (r'2 \cdot 3 + 4', [2, 3, 4], 10),
    ('2 · 3 + 4', [2, 3, 4], 10),
    ('(19 + 2) × 3 = 63', [2, 3, 19], 63),
    ('8 ÷ (3 − 8 ÷ 3)', [3, 3, 8, 8], 24),
    (r'8 \div (3 - 8 \div 3)', [3, 3, 8, 8], 24),
    (r'\frac{8}{3-\frac{8}{3}}', [3, 3, 8, 8], 24),
    (r'\boxed{\dfrac{8}{3 - \frac{8}{3}} = 24}', [3, 3, 8, 8], 24),
    (r'3 \times \boxed{1 + 2}', [1, 2, 3], 9),
])
def test_signs_of_all_kinds(response, numbers, target):
  assert countdown.is_solution(response, numbers, target)
  assert not countdown.is_solution(response, numbers, target + 1)
  assert not countdown.is_solution(response, numbers[:-1], target)


@pytest.mark.parametrize('response', [
    '93-(100-30)*', '*93-(100-30)', '93-(100-30)**', '**93-(100-30)', '93-(100-30)_',
    '93-(100-30)..',
    '.93-(100-30)', '93-(100-30),', '93.-(100-30)', '9\u200b3-(100-30)', '9$3-(100-30)',
    '9~3-(100-30)',
    r'9\,3-(100-30)', '9**3**-(100-30)', '93-(100-30)²', '93-(100-30)^1', '93-(100-30)!',
    '93%-(100-30)',
    r'\boxed{23}', r'93-(100-30) so \boxed{23}', r'93-(100-30) \boxed{}', r'\boxed{93-(100-30)',
    r'\boxed{93-(100-30)} or \boxed{93}', r'93-(100-30) \approx 23', '93-(100-30) ≈ 23',
    r'\frac{93}{}-(100-30)', r'\frac{93-(100-30)}{0}', r'\frac{93-(100-30)', r'\times 93-(100-30)',
    '"93-(100-30)', "93'-(100-30)", '93-(100-30)}', '93-(100-30) × ', '93 × 1 - (100-30)',
    '93-[100-30]', '９３-(100-30)', '93-(100-30) = 2 3',
    '93-(100-30) = = 23', '93-(100-30)\n```\nno', '<think>93-(100-30)', '93-(100-30)</think>',
    '<think>Answer: 93-(100-30)', 'Answer: 93-(100-30)\n</think>\nno', 'Answer: ```\nAnswer: 23',
])  # fmt: skip
def test_typography_makes_no_wrong_answer_right(response):
  assert not countdown.is_solution(response, _NUMBERS, 23)


def test_any_typeset_expression_has_its_value():
  # Random expressions, typeset at random: right if and only if value and numbers are.
  source = random.Random(0)
  typeset = {
      '-': '-−–', '*': ['*', '×', r'\times ', '·', r'\cdot '], '/': ['/', '÷', r'\div '], '+': '+',
      '(': ['(', r'\left(', '（'], ')': [')', r'\right)', '）'],
  }  # fmt: skip
  around = ['{}', '${}$', '**{}**', r'\boxed{{{}}}', '{}.', 'Answer: {}', '**Answer:** `{}`']
  for _ in range(300):
    numbers = [source.randint(1, 99) for _ in range(4)]
    text = source.choice(['({}{}{}){}{}', '{}{}{}{}{}', '{}{}({}{}{})']).format(
        numbers[0], source.choice('+-*/'), numbers[1], source.choice('+-*/'), numbers[2])
    value, used = countdown.evaluate(text)

    shown = ''.join(source.choice(typeset[c]) if c in typeset else c for c in text)
    response = source.choice(around).format(shown)
    whole = value.denominator == 1
    assert not whole or countdown.is_solution(response, used, int(value)), response
    assert not countdown.is_solution(response, used, int(value) + 1)
    assert not countdown.is_solution(response, used[:2], int(value))
    assert not countdown.is_solution(response, numbers, int(value))


def test_repeated_numbers_are_each_used():
  assert countdown.is_solution('92/(1+1)', [92, 1, 1], 46)
  assert not countdown.is_solution('(92/(1+1))', [92, 1], 46)
  assert not countdown.is_solution('92-1', [92, 1, 1], 91)


@pytest.mark.parametrize(
    'expression, value',
    [
        ('8/3/2', Fraction(4, 3)),  # From left to right.
        ('8-3-2', 3),
        ('2+3*4', 14),
        ('(2+3)*4', 20),
        ('1/3*3', 1),  # Exact, where floats need luck.
        ('--2', 2),
        ('2*-3', -6),
        ('-2*3+1', -5),
    ],
)
def test_values_by_hand(expression, value):
  assert countdown.evaluate(expression)[0] == value


def test_numbers_are_returned_in_order():
  assert countdown.evaluate('3*(10-7)/3')[1] == [3, 10, 7, 3]


@strategies.composite
def _expressions(draw, depth=3):
  if depth == 0 or draw(strategies.booleans()):
    return str(draw(strategies.integers(0, 20)))
  left, right = draw(_expressions(depth=depth - 1)), draw(_expressions(depth=depth - 1))
  sign = draw(strategies.sampled_from('+-*/'))
  return draw(strategies.sampled_from(['{}{}{}', '({}{}{})', '-({} {} {})'])).format(
      left, sign, right
  )


def _reference(node):
  """Python's own parser, then exact fractions."""
  match node:
    case ast.Constant(value):
      return Fraction(value)
    case ast.UnaryOp(ast.USub(), operand):
      return -_reference(operand)
    case ast.BinOp(left, sign, right):
      a, b = _reference(left), _reference(right)

      match sign:
        case ast.Add():
          return a + b
        case ast.Sub():
          return a - b
        case ast.Mult():
          return a * b
        case ast.Div():
          return a / b
  raise AssertionError(node)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(_expressions())
def test_against_pythons_own_grammar(expression):
  try:
    expected = _reference(ast.parse(expression, mode='eval').body)
  except ZeroDivisionError:
    with pytest.raises(ValueError, match='division by zero'):
      countdown.evaluate(expression)
    return
  assert countdown.evaluate(expression)[0] == expected


def _hostile():
  return [
      '9**9**9', '(' * 10**6, '-' * 10**6, '1' * 10**6, '<answer>' * 10**5, '</answer>' * 10**5,
      '<answer>' + '(' * 200 + ')' * 200 + '</answer>', '=' * 10**6, ' ' * 10**6 + '1',
      '999999999*' * 25 + '1', '1/' * 127 + '1', '(' * 100 + '1' + ')' * 100, '\x00\ud800\u202e',
      "__import__('os').system('true')", '1' + '-' * 254 + '1', '9' * 255, '1+' * 127,
      '\t' * 255, '((1)' * 60, 'Answer:' * 10**5, 'Answer: ' + '(' * 10**6, '\n' * 10**6 + '1',
      '1\n' * 10**6, 'Answer:' + '\n' * 10**6 + '-' * 10**6, 'Answer: ' + '1+' * 10**5,
      '\\boxed{' * 10**5, '\\boxed{1}' * 10**5, '\\frac{1}{' * 100,
      '*' * 10**6, '$\n' * 10**5, '```\n' * 10**5,
      'Answer: ' + '**' * 500 + '1', 'Answer: ' + '\\frac{' * 140, '**Answer' * 10**5, '= ' * 500,
  ]  # fmt: skip


@pytest.mark.parametrize('index', range(len(_hostile())))
def test_hostile_responses_score_zero_at_once(index):
  start = time.monotonic()
  assert not countdown.is_solution(_hostile()[index], _NUMBERS, 23)
  assert time.monotonic() - start < 2.0  # Milliseconds; the machine may be busy.


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(strategies.text('0123456789+-*/()= <answer>/', max_size=300))
def test_any_text_is_scored_or_rejected(text):
  assert countdown.is_solution(text, _NUMBERS, 23) in (False, True)


def test_errors_name_the_limit():
  for expression, message in (
      ('1' * 300, 'at most 256 characters, got 300'),
      ('(' * 30 + '1' + ')' * 30, 'nested deeper than 16'),
      ('1234567890', 'at most 9 digits, got 10'),
      ('1+', 'ends early'),
      ('1 2', "unexpected '2' after"),
      ('1+a', "unexpected character 'a'"),
      ('*1', r"unexpected '\*'"),
      ('(1+2', 'ends early'),
      ('(1 2)', 'not closed'),
  ):
    with pytest.raises(ValueError, match=message):
      countdown.evaluate(expression)


def test_reward_function():
  example = {'numbers': _NUMBERS, 'target': 23}
  scores = countdown.countdown(
      [''] * 3, ['93-(100-30)'] * 2 + ['1'], np.array([False, True, False]), [example] * 3
  )
  np.testing.assert_array_equal(scores, [1, 0, 0])
  assert scores.dtype == np.float32
  with pytest.raises(ValueError, match='got 1, 1 and 0'):
    countdown.countdown([''], [''], np.array([False]), [])
