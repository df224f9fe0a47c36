"""The verifier: labels of real solutions, the committed pairs, extraction, hostile strings."""

import csv
import fractions
import json
import pathlib
import random
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from jaxrl_llm.rewards import math_answer
from jaxrl_llm.rewards.math import (
  answer_extraction,
  answer_text,
  arithmetic,
  equivalence,
  number_words,
  units,
  worker_pool,
)

PAIRS = pathlib.Path(__file__).with_name('answer_pairs.csv')
SECONDS = 2.0  # What an answer may cost.
KIBIBYTES = 512 * 1024


@pytest.fixture(scope='module', autouse=True)
def warm():
  """Starts the workers before answers are timed."""
  math_answer.warm_up()


# --- Real solutions and the committed table.


def test_agrees_with_every_label_of_the_real_solutions(data_dir):
  responses, truths, labels = [], [], []
  with (data_dir / 'gsm8k' / 'example_model_solutions.jsonl').open(encoding='utf-8') as lines:
    for line in lines:
      row = json.loads(line)
      for name in ('6b_finetuning', '6b_verification', '175b_finetuning', '175b_verification'):
        responses.append(row[name]['solution'])
        truths.append(row['ground_truth'].rpartition('A: ')[2])
        labels.append(row[name]['is_correct'])
  assert len(labels) == 5276
  # Both a verifier that always agrees and one that never does would be seen.
  assert 0.2 < sum(labels) / len(labels) < 0.8
  assert math_answer.grade_batch(responses, truths) == labels
  assert math_answer.grade_batch(responses, truths, mode='strict') == labels


def test_gsm8k_answers_grade_themselves(data_dir):
  with (data_dir / 'gsm8k' / 'test.jsonl').open(encoding='utf-8') as lines:
    answers = [json.loads(line)['answer'] for line in lines]
  truths = [answer.rpartition('#### ')[2] for answer in answers]
  assert all(math_answer.grade_batch(answers, truths, mode='gsm8k'))
  others = [str(int(truth.replace(',', '')) + 1) for truth in truths]
  assert not any(math_answer.grade_batch(answers, others, mode='gsm8k'))


def _pairs():
  with PAIRS.open(encoding='utf-8', newline='') as file:
    return list(csv.DictReader(file))


def test_the_committed_pairs_are_many_and_half_of_them_unequal():
  pairs = _pairs()
  assert len(pairs) >= 300
  assert len({(pair['response'], pair['answer']) for pair in pairs}) == len(pairs)
  assert {pair['equal'] for pair in pairs} == {'0', '1'}
  assert 0.45 <= sum(pair['equal'] == '0' for pair in pairs) / len(pairs) <= 0.55


def test_at_least_98_percent_of_the_committed_pairs():
  pairs = _pairs()
  verdicts = math_answer.grade_batch(
      [pair['response'] for pair in pairs], [pair['answer'] for pair in pairs])
  wrong = [pair for pair, verdict in zip(pairs, verdicts) if verdict != (pair['equal'] == '1')]
  for pair in wrong:
    print(f'disagrees: {pair}')
  print(f'{len(pairs) - len(wrong)} of {len(pairs)} pairs')
  assert len(wrong) <= 0.02 * len(pairs)


# --- Extraction.


@pytest.mark.parametrize(('response', 'expected'), [
    ('2 + 2 = 4\n#### 4', '4'),
    ('#### 3\n#### 4', '4'),
    (r'\boxed{1} and so \boxed{\frac{1}{2}}', r'\frac{1}{2}'),
    (r'\boxed{\text{a}\{1,\{2\}\}}', r'\text{a}\{1,\{2\}\}'),
    (r'\boxed{2} and \boxed{3}', '2, 3'),
    (r'\boxed{2} was wrong, it is \boxed{3}', '3'),
    (r'The answer is \fbox{7}.', '7'),
    (r'\boxed 7', '7'),
    (r'\boxed{} then \boxed{5', None),
    ('work\nA: 18', '18'),
    ('**Answer:** 18', '18'),
    ('The final answer is 18. I hope it is correct.', '18'),
    ('The answer to the question is: 3.5', '3.5'),
    ('The answer is 18 because 9 times 2 is 18.', '18'),
    ('The answer is\n\n\\[ x = 9 \\]', 'x = 9'),
    ('Thus the total comes to **18** dollars.', '18'),
    ('**Step 1:** add 2 and 2\nthen stop', None),
    ('<answer>42</answer>', '42'),
    ('The total is 42.', None),
    ('', None),
])  # fmt: skip
def test_marked_answers(response, expected):
  answer = answer_extraction.extract_marked(response)
  assert (answer and answer.strip()) == expected


@pytest.mark.parametrize(('response', 'expected'), [
    ('The total is 42.', '42'),
    ('There are 3 red and 4 blue ones, 7 in all, I think', '7'),
    ('1/2', '1/2'),
    ('(3, 4)', '(3, 4)'),
    ('So 9 * 2 = $18 every day.', '$18 every day'),
    ('nothing to see', 'nothing to see'),
    ('I have no idea what this question wants from me', None),
])
def test_fallbacks_without_a_marker(response, expected):
  assert answer_extraction.extract_marked(response) is None
  assert answer_extraction.extract(response) == expected


def test_strict_modes_do_not_fall_back():
  assert math_answer.grade('The total is 42.', '42')
  assert not math_answer.grade('The total is 42.', '42', mode='strict')
  assert math_answer.grade(r'It is \boxed{42}', '42', mode='strict')
  assert not math_answer.grade_gsm8k_strict(r'It is \boxed{42}', '42')
  assert math_answer.grade_gsm8k_strict('It is\n#### 4,200', '4200')
  assert math_answer.grade_gsm8k_strict('#### $42.00 and more', '42')
  assert not math_answer.grade_gsm8k_strict('#### about 42', '42')


def test_unknown_mode_is_one_clear_line():
  with pytest.raises(ValueError, match="mode must be one of lenient, strict, gsm8k, got 'loose'"):
    math_answer.grade('1', '1', mode='loose')
  with pytest.raises(ValueError, match='got 2 and 1'):
    math_answer.grade_batch(['1', '2'], ['1'])


def test_a_truth_in_its_own_box_is_unwrapped():
  assert math_answer.grade('7', r'$\boxed{7}$')
  assert math_answer.grade('7', 'work\n#### 7')


# --- The parts, by hand.


@pytest.mark.parametrize(('text', 'value'), [
    ('1,234', fractions.Fraction(1234)),
    ('-2^2', fractions.Fraction(-4)),
    ('2^3^2', fractions.Fraction(512)),
    (r'1\frac{1}{2}', fractions.Fraction(3, 2)),
    ('1 1/2', fractions.Fraction(3, 2)),
    (r'-2\frac14', fractions.Fraction(-9, 4)),
    (r'\frac{\frac{1}{2}}{3}', fractions.Fraction(1, 6)),
    ('1/2/3', fractions.Fraction(1, 6)),
    ('2(3+4)', fractions.Fraction(14)),
    ('5!', fractions.Fraction(120)),
    (r'0.1\overline{6}', fractions.Fraction(1, 6)),  # x = 0.1666..., 90 x = 16 - 1.
    ('1.5*10^{-3}', fractions.Fraction(3, 2000)),
    ('(-1)^{10^{9}}', fractions.Fraction(1)),
])
def test_arithmetic_is_exact(text, value):
  assert arithmetic.evaluate(text) == value


@pytest.mark.parametrize('text', [
    '9^9^9', '9^{9^{9^9}}', '(10^{10})^{10^{10}}', '1e999999999', '5000!', '((9!)!)!', '9' * 3000,
    '2^' * 500 + '2', '(' * 500 + '1' + ')' * 500, '1/' + '+'.join(['7^7000'] * 300),
])
def test_too_large_arithmetic_is_an_error(text):
  started = time.monotonic()
  with pytest.raises(ValueError):
    arithmetic.evaluate(text)
  assert time.monotonic() - started < 0.5


def test_units():
  assert units.ratio(units.parse('hours'), units.parse('minutes')) == 60
  assert units.ratio(units.parse('square cm'), units.parse('m^2')) == fractions.Fraction(1, 10_000)
  assert units.ratio(units.parse('miles per hour'), units.parse('mph')) == 1
  assert units.ratio(units.parse('cm'), units.parse('kg')) is None
  assert units.ratio(units.parse('apples'), units.parse('apple')) == 1
  assert units.ratio(units.parse('apples'), units.parse('pears')) is None
  assert units.ratio(None, units.parse('kg')) == 1
  # 'pound' is a mass and a currency.
  assert units.ratio(units.parse('pounds'), units.parse('£')) == 1
  assert units.ratio(units.parse('pounds'), units.parse('ounces')) == 16


@pytest.mark.parametrize(('text', 'value', 'rest'), [
    ('twenty-one apples', 21, 'apples'),
    ('two hundred and five', 205, ''),
    ('one million two hundred thousand', 1_200_000, ''),
    ('1.8 billion', 1_800_000_000, ''),
    ('three quarters', fractions.Fraction(3, 4), ''),
    ('minus seven', -7, ''),
])
def test_numbers_in_words(text, value, rest):
  assert number_words.leading(text) == (value, rest)


@pytest.mark.parametrize('text', ['apples', 'twenty thirty', 'and', 'hundredfold', ''])
def test_no_number_in_words(text):
  number = number_words.leading(text)
  assert number is None or number[1]


def test_cleaning_reads_unicode():
  assert answer_text.clean('１２') == '12'
  assert answer_text.clean('x²') == 'x^{2}'
  assert answer_text.clean('2½') == '2 1/2'
  assert answer_text.clean('\u202e\u20665\x00') == '5'
  assert answer_text.clean('١٢') == '12'
  assert answer_text.clean('\ud800 5') == '5'


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.fractions(max_denominator=10**6), st.fractions(max_denominator=10**6))
def test_fractions_are_equal_exactly_when_they_are(left, right):
  def latex(value):
    return rf'\frac{{{value.numerator}}}{{{value.denominator}}}'
  assert equivalence.compare(str(left), latex(left))
  assert equivalence.compare(latex(left), latex(right)) == (left == right)
  assert equivalence.compare(f'{left.numerator:,}', str(left.numerator))


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.lists(st.integers(-99, 99), min_size=2, max_size=6, unique=True),
                  st.randoms(use_true_random=False))
def test_sets_forget_their_order_and_points_keep_it(numbers, shuffler):
  shuffled = list(numbers)
  shuffler.shuffle(shuffled)
  first, second = (', '.join(map(str, values)) for values in (numbers, shuffled))
  assert equivalence.compare(rf'\{{{first}\}}', rf'\{{{second}\}}')
  assert equivalence.compare(first, second)
  assert equivalence.compare(f'({first})', f'({second})') == (numbers == shuffled)
  assert not equivalence.compare(first, ', '.join(map(str, [*numbers, 100])))


def test_a_rounded_decimal_needs_six_digits():
  assert not equivalence.compare('0.33333', r'\frac{1}{3}')
  assert equivalence.compare('0.333333', r'\frac{1}{3}')
  assert not equivalence.compare('0.333334', r'\frac{1}{3}')
  assert not equivalence.compare('0.9999999', '1')  # 1 can be written down: no rounding.
  assert math_answer.equal('3.141593', r'\pi')
  assert not math_answer.equal('3.14159', r'\pi')


def test_symbolic_questions_go_to_a_worker_and_others_do_not(monkeypatch):
  asked = []
  ask = worker_pool.WorkerPool.ask
  monkeypatch.setattr(worker_pool.WorkerPool, 'ask',
                      lambda pool, *pair: asked.append(pair) or ask(pool, *pair))
  for response, answer in (('18', '18'), (r'\boxed{\frac{2}{4}}', '0.5'), ('(1,2)', '[1,2]'),
                           (r'\{1, 2\}', '2,1'), ('50%', '0.5'), ('yes', 'no')):
    math_answer.grade(response, answer)
  assert not asked
  assert math_answer.grade(r'\boxed{\sqrt{18}+1}', r'1+3\sqrt{2}')
  assert math_answer.grade(r'\boxed{\sqrt{18}+1}', r'1+3\sqrt{2}')
  assert asked == [(r'\sqrt{18}+1', r'1+3\sqrt{2}')]  # The second verdict is remembered.


def test_batch_and_single_agree():
  responses = [r'\boxed{\sqrt{8}}', '5', '', r'\boxed{x+1}', r'\boxed{\sqrt{8}}', 'no']
  answers = [r'2\sqrt{2}', '5', '1', '1+x', r'\sqrt{2}', 'yes']
  expected = [True, True, False, True, False, False]
  assert math_answer.grade_batch(responses, answers) == expected
  assert [math_answer.grade(*pair) for pair in zip(responses, answers)] == expected


# --- Hostile strings: never hang, never crash, never evaluate, at most 2 s and 512 MiB.

ATOMS = [
    '\\boxed{', '\\fbox', '}', '{', '(', ')', '[', ']', '####', '#### ', 'answer is ', 'Answer: ',
    'A: ', '**', '$', '$$', '\\[', '\\]', '\\(', '\\frac', '\\frac{', '\\sqrt', '\\sqrt{',
    '\\text{', '\\left', '\\,', '~', ' ', '\n', '\t', 'a', 'aa ', ' and ', ' or ', ',', ', ', ';',
    ':', '=', '<', '>', '\\le ', '\\in ', '\\cup', '1', '12 ', '1,234', '.', '.5', '-', '+', '*',
    '/', '^', '^{', '_', '!', '%', 'e', '1e9', '9^', '9**', '\\pm', '\\pi', '\\begin{pmatrix}',
    '\\end{pmatrix}', '&', '\\\\', '|', '½', '²', '₂', '１', '\u200f', '\u202e', '\ud800', '\x00',
    'é', 'ﷺ', '°', 'not ', 'the ', ' to ', '3:4', ' per ', 'sq ', 'two ', 'twenty-', 'million ',
    ' because ', 'solution is ', '<answer>', '</answer>', '"', "'", '`', '\\overline{', '\\begin{',
    '\\hspace{', 'x', 'x=', 'f(x)', '\\', '__import__', 'eval(', 'lambda: ', '\\sum_{', '\\int',
]  # fmt: skip

BOMBS = [
    '9**9**9', '9^{9^{9^9}}', '10^(10^10)', '99999999!', '((9!)!)!', '1e999999999', '9' * 100_000,
    r'\boxed{' * 100_000, r'\frac{' * 5000 + '1' + '}{2}' * 5000, '(' * 100_000, '{' * 1_000_000,
    r'\sqrt{9^{9^9}}', r'9^{9^{9^9}}x', r'x^{9^{9^{9}}}', r'2^{2^{33}}\sqrt{2}',
    '(x+y+z+1)^{300}', '(x+1)^{99999}', r'\prod_{n=1}^{10^8} n', r'((9!)!)!\pi',
    r'\int \frac{1}{x^{50}+x+1} dx', r'\binom{10^9}{10^8}\sqrt{2}', r'\log_{2}(9^{9^{9}})',
    r'\frac{1}{' * 30 + 'x' + '}' * 30, r'\sin(' * 30 + 'x' + ')' * 30, '1+' * 290 + 'x',
    r'\cos(10^{10^{6}})', r'\sqrt{' + '9' * 500 + '}', r'\sqrt{' * 35 + '2' + '}' * 35,
    r'\lfloor \pi^{1000000} \rfloor', '(a+b)(c+d)' * 50, r'x!' * 200, 'x^{1000}+' * 60 + '1',
]  # fmt: skip


def _cost(response, answer, mode='lenient'):
  started = time.monotonic()
  verdict = math_answer.grade(response, answer, mode=mode)
  seconds = time.monotonic() - started
  assert isinstance(verdict, bool)
  assert seconds <= SECONDS, (ascii(response[:80]), ascii(answer[:80]), seconds)
  return seconds


@hypothesis.settings(max_examples=600, deadline=None)
@hypothesis.given(st.text(st.characters(), max_size=300), st.text(st.characters(), max_size=60))
def test_any_text_is_graded(response, answer):
  _cost(response, answer)
  _cost(r'\boxed{' + response + '}', answer)


@hypothesis.settings(max_examples=600, deadline=None)
@hypothesis.given(
    st.lists(st.sampled_from(ATOMS), max_size=40), st.lists(st.sampled_from(ATOMS), max_size=8))
def test_any_soup_of_markup_is_graded(response, answer):
  _cost(''.join(response), ''.join(answer))


def test_thousands_of_repeated_patterns_are_graded_in_linear_time():
  # Repetition is what makes a regular expression backtrack: short patterns, filled up to the
  # sizes just below and far above the cap on an answer's length.
  source = random.Random(0)
  slowest, started, count = 0.0, time.monotonic(), 0
  while count < 800 and time.monotonic() - started < 25.0:
    pattern = ''.join(source.choices(ATOMS, k=source.randint(1, 4)))
    size = source.choice((100, 1900, 5000, 30_000))
    opening = source.choice(('', r'\boxed{', 'the answer is ', '#### '))
    response = opening + pattern * (size // len(pattern)) + source.choice(('', '}', '5', ' is 5'))
    slowest = max(slowest, _cost(response, '5', source.choice(list(math_answer.MODES))))
    count += 1
  print(f'{count} strings, the slowest took {slowest:.2f} s')
  assert count >= 300


@pytest.mark.parametrize('opening', ['', r'\boxed{', '#### ', 'the answer is '])
def test_megabytes_are_graded(opening):
  step, size = (3, 500_000) if opening else (1, 250_000)
  for atom in ATOMS[::step]:
    text = opening + atom * (size // len(atom))
    _cost(text, '5')
    _cost('5', text)
  filler = 'word ' * 400_000
  assert math_answer.grade(filler + r'\boxed{5}', '5')
  assert math_answer.grade(filler + 'The answer is 5.', '5')


def test_long_integers_are_compared_as_digits():
  digits = '7' * 100_000
  assert math_answer.grade(rf'\boxed{{{digits}}}', digits)
  assert math_answer.grade(rf'\boxed{{{digits}}}', '000' + digits)
  assert not math_answer.grade(rf'\boxed{{{digits}}}', digits[:-1] + '8')


def test_bombs_cost_two_seconds_and_512_mebibytes_at_most(monkeypatch):
  replies = []
  ask = worker_pool.WorkerPool.ask

  def spy(pool, *pair):
    replies.append(ask(pool, *pair))
    return replies[-1]

  monkeypatch.setattr(worker_pool.WorkerPool, 'ask', spy)
  slowest = 0.0
  for bomb in BOMBS:
    slowest = max(slowest, _cost(rf'\boxed{{{bomb}}}', '5'))
    assert not math_answer.grade(rf'\boxed{{{bomb}}}', '5')
  for bomb in BOMBS[:3] + BOMBS[11:14]:
    slowest = max(slowest, _cost('5', bomb))

  peak = max(reply.peak_kib for reply in replies)
  outcomes = [reply.outcome for reply in replies]
  print(f'{len(replies)} went to workers, {outcomes.count("timeout")} to the deadline; '
        f'slowest answer {slowest:.2f} s, largest process {peak / 1024:.0f} MiB')
  assert len(replies) >= 15 and outcomes.count('timeout') >= 5  # Real bombs reached workers.
  assert peak <= KIBIBYTES
  assert math_answer.grade(r'\boxed{\sqrt{48}}', r'4\sqrt{3}')  # And the next answer is graded.


@pytest.mark.parametrize('template', [
    "__import__('pathlib').Path({path!r}).touch()",
    "open({path!r}, 'w')",
    "exec(\"open({path!r}, 'w')\")",
    "(lambda: __import__('os').system('touch ' + {path!r}))()",
    "Symbol('x').__class__.__init__.__globals__['__builtins__']['open']({path!r}, 'w')",
    "$(touch {path})",
    "`touch {path}`",
    "\\input{{|touch {path}}}",
    "\\write18{{touch {path}}}",
    "{{{{ cycler.__init__.__globals__.os.popen('touch {path}') }}}}",
])  # fmt: skip
def test_nothing_is_evaluated(template, tmp_path):
  target = tmp_path / 'evaluated'
  payload = template.format(path=str(target))
  for wrapped in (payload, rf'\boxed{{{payload}}}', f'#### {payload}', f'The answer is {payload}',
                  rf'\boxed{{\sqrt{{{payload}}}}}', f'1+{payload}', rf'\boxed{{${payload}$}}'):
    math_answer.grade(wrapped, '5')
    math_answer.grade('5', wrapped)
    math_answer.grade(wrapped, wrapped.replace('5', '6') + '+1')
    worker_pool.shared().ask(wrapped, r'\sqrt{2}')  # Past every filter, straight to SymPy.
  assert not target.exists()


def test_the_payload_would_have_been_seen(tmp_path):
  target = tmp_path / 'evaluated'
  eval(f"__import__('pathlib').Path({str(target)!r}).touch()")
  assert target.exists()
