r"""Properties of the verifier: junk earns nothing, order of the two sides does not matter, x is x.

7919 is prime, and no draw of the grammar has it as a factor of a numerator or a denominator: all
digits are at most 6 and at most four of them are drawn, so that with one square no numerator and
no denominator exceeds 1296 times 2. No draw can therefore equal a truth that 7919 divides.
"""

import csv
import fractions
import itertools
import json
import random
import unicodedata

import pytest

from jaxrl_llm.rewards import countdown, math_answer
from jaxrl_llm.tasks import countdown as countdown_task

TRUTHS = [
    '7919/3', r'\sqrt{7919}', '(7919, 3)', r'[7919,\infty)', 'Thursday', '7919', '-7919', '79.19',
    r'\{7919, 3\}', 'x = 7919', r'\frac{7919\pi}{2}', '7919x + 1', '7919 cm', '7919:3', '7919%',
    r'\begin{pmatrix} 7919 & 1 \\ 0 & 1 \end{pmatrix}', r'7919^{2}', 'x > 7919', '7919, 7927',
    r'(-\infty,7919]\cup[7927,\infty)', r'1+\sqrt{7919}', '7919_{10}',
]  # fmt: skip
WRAPPERS = ['{}', r'\boxed{{{}}}', '#### {}', 'The answer is {}', 'The answer is ${}$.',
            '<answer>{}</answer>', '**{}**', '<think>7</think>{}', 'So we get {}']


def _rewarded(pairs):
  """The pairs that are graded as right."""
  verdicts = math_answer.grade_batch(*zip(*pairs))
  return [pair for pair, verdict in zip(pairs, verdicts) if verdict]


# --- Junk.


class _Grammar:
  """Random LaTeX of at most four digits from 0 to 6, complete or not."""

  BINARY = ['{}+{}', '{}-{}', r'{}\cdot {}', r'\frac{{{}}}{{{}}}', '{}/{}', '({}, {})', '{}, {}',
            '{}:{}', r'[{}, {})', r'\{{{}, {}\}}', '{} = {}', r'{} \text{{ or }} {}', '{}{}',
            r'{} \pm {}', r'\frac{}{}', r'({}; {}]', r'{} \le {}', r'{} \cup {}', r'{} & {} \\']
  UNARY = ['-{}', '({})', r'\sqrt{{{}}}', r'\sqrt{}', r'\text{{{}}}', r'\left({}\right)', '{}%',
           r'{}\%', '{} cm', r'{}^\circ', '${}', r'|{}|', r'\lfloor {} \rfloor', r'\overline{{{}}}',
           r'\boxed{{{}}}', r'\mathbf{{{}}}', 'x = {}', r'{}\pi', 'x_{}', r'\{{{}\}}', '[{}]',
           r'\{{{}', r'({}', r'{})', r'\frac{{{}}}', r'\sqrt[3]{{{}}}', r'{}!', '0.{}', '{}.',
           r'\begin{{pmatrix}} {} \end{{pmatrix}}', '{} apples', 'about {}', 'not {}']
  WORDS = ['x', 'y', r'\pi', 'e', r'\theta', 'apples', 'Monday', 'yes', '', ' ', r'\frac', r'\sqrt',
           r'\text', r'\left(', r'\begin{', '{', '}', r'\{', '^', '_', '&', r'\\', '$', ',', '=',
           r'\infty', 'nan', 'inf', 'NaN', '-inf', 'None', r'\emptyset', 'undefined', '...', '?']
  # These go to a worker, and are drawn more seldom.
  SYMBOLIC = [r'\sin({})', r'\log {}', r'\ln({})', r'\tan({}\pi/2)', 'x^{{{}}}', r'\sqrt{{x+{}}}',
              r'\frac{{{}}}{{x}}', r'\frac{{{}}}{{x-x}}', r'\binom{{5}}{{{}}}']

  def __init__(self, seed):
    self._random = random.Random(seed)

  def draw(self):
    """One text."""
    self._digits, self._squares = 4, 1
    text = self._node(self._random.randint(0, 4))
    if self._random.random() < 0.1:  # An unfinished copy.
      text = text[: self._random.randint(0, len(text))]
    return text

  def _node(self, depth):
    choose = self._random.random()
    if depth == 0 or choose < 0.1:
      if self._digits and self._random.random() < 0.7:
        self._digits -= 1
        return str(self._random.randint(0, 6))
      return self._random.choice(self.WORDS)
    if choose < 0.55:
      template = self._random.choice(self.BINARY)
      return template.format(self._node(depth - 1), self._node(depth - 1))
    if choose < 0.62 and self._squares:
      self._squares -= 1
      return f'({self._node(depth - 1)})^2'
    if choose < 0.66:
      return self._random.choice(self.SYMBOLIC).format(self._node(depth - 1))
    return self._random.choice(self.UNARY).format(self._node(depth - 1))


def test_random_latex_earns_nothing():
  grammar, source = _Grammar(0), random.Random(1)
  pairs = {
      (source.choice(WRAPPERS).format(grammar.draw()), source.choice(TRUTHS)): None
      for _ in range(3000)
  }
  assert len(pairs) > 2500
  assert not _rewarded(pairs)


def test_the_grammar_reaches_right_answers():
  # With a truth in their range the same draws are rewarded: they are not only noise.
  grammar = _Grammar(0)
  texts = [grammar.draw() for _ in range(600)]
  assert len(_rewarded([(rf'\boxed{{{text}}}', '3') for text in texts])) >= 10


POLES = [
    r'\frac{N}{0}', 'N/0', r'\frac{N}{M-M}', r'\frac{N}{\sqrt{M}-\sqrt{M}}', r'N\tan(\pi/2)',
    r'N\log 0', r'\ln(M-M)', '0^{-N}', r'\frac{N}{\sin \pi}', r'N\cot 0', r'N\sec\frac{\pi}{2}',
    r'\sqrt{N/0}', r'N + \frac{1}{0}', r'N \cdot \frac{0}{0}', r'\sum_{n=1}^{\infty} N',
    r'\frac{N}{0}\%', r'\frac{N}{0} cm', r'-\frac{N}{0}', r'\frac{\frac{N}{0}}{M}',
    r'x + \frac{N}{0}', r'\frac{x}{0}', r'\frac{N}{x-x}', r'N\infty', r'N - \infty',
]  # fmt: skip
STRUCTURES = [('{}', '{}'), ('({}, 2)', '({}, 2)'), ('[{}, 9)', '[{}, 9)'), ('x = {}', 'x = {}'),
              (r'\{{{}, 1\}}', r'\{{{}, 1\}}'), ('{}, 1', '{}, 1'), ('{}', 'x = {}')]
FINITE = ['4', '0', '1', '-1', r'\frac{1}{2}', '0.5', r'\sqrt{2}', r'\pi', r'3\sqrt{2}+1', 'x+1',
          '50%', '4 cm', 'e^{2}', '10^{20}']


def test_infinite_values_equal_no_number():
  source = random.Random(2)
  pairs = {}
  for pole, (candidate, truth) in itertools.product(POLES, STRUCTURES):
    value = pole.replace('N', str(source.randint(1, 6))).replace('M', str(source.randint(2, 6)))
    wrapper = source.choice(WRAPPERS[1:4])
    pairs[wrapper.format(candidate.format(value)), truth.format(source.choice(FINITE))] = None
  assert len(pairs) >= 150
  assert not _rewarded(pairs)


EMPTY = [
    '', ' ', '\n', '{}', '()', '[]', r'\{\}', r'\frac{}{}', r'\sqrt{}', r'\boxed{}', r'\text{}',
    '$$',
    '$ $', r'\(\)', r'\left(\right)', r'\begin{pmatrix}\end{pmatrix}', ',', ';', '(,)', '[,)',
    '=', 'x=',
    '=x', '%', r'\%', '$', r'^\circ', r'\frac', r'\frac{1}', r'\sqrt', '^', '_', '\\', r'\text{',
    '{',
    '}', '^{}', '_{}', r'\left(', r'\right)', r'\begin{', r'\end{pmatrix}', '&', r'\\', '...',
    '.', '-',
    '+', '±', '"', "''", '``', '```', '**', '****', '####', '####\n', '<answer></answer>',
    '<think>',
    '</think>', '<think></think>', 'Answer:', 'The answer is', 'The answer is .', 'The answer is:',
    r'\boxed', r'\boxed{', r'\boxed{ }', r'\boxed{\boxed{}}', r'\boxed{\text{}}', r'-\boxed{}',
    '/', ':',
    '|', '||', '!', '?', '()()', '{}{}', r'\cup', r'\in', r'\infty', 'null', 'None', 'N/A',
    '#DIV/0!',
    'nan', 'NaN', '-nan', 'inf', '-inf', '+inf', 'Infinity', '1e999', '1e-999', '-1e999',
    'undefined',
    r'\text{undefined}', r'\text{NaN}', '∞', '−∞', '1#INF', 'True', 'false', 'error', '\x00',
    '\ufffd',
    '\u200b', '\u202e', '\ud800',
]  # fmt: skip


def test_empty_structures_and_names_of_no_number_earn_nothing():
  source = random.Random(3)
  texts = EMPTY + [''.join(source.choices(EMPTY, k=source.randint(2, 4))) for _ in range(250)]
  truths = [*TRUTHS, *FINITE[:9], '(4, 2)', '[0,1)', 'x = 5', 'yes', 'B', 'x > 2', r'\{1,2\}']
  pairs = {
      (wrapper.format(text), source.choice(truths)): None for text in texts for wrapper in WRAPPERS
  }
  # The last number of '\frac{1}' is 1, and that of '#DIV/0!' is 0.
  pairs = [(text, truth) for text, truth in pairs if not ({*'01'} & {*text} & {*truth})]
  assert len(pairs) > 2000
  assert not _rewarded(pairs)


@pytest.mark.parametrize('text', EMPTY[:43])
def test_nothing_does_not_equal_nothing(text):
  assert not math_answer.grade(text, '')
  assert not math_answer.grade('', text)
  assert not math_answer.grade(rf'\boxed{{{text}}}', ' ')
  assert not math_answer.grade('Thursday', text)


def test_characters_of_every_unicode_block_earn_nothing():
  source = random.Random(4)
  pairs = []
  for start in range(0, 0x110000, 0x80):
    assigned = [chr(code) for code in range(start, start + 0x80)
                if unicodedata.category(chr(code)) not in ('Cn', 'Co')]
    for character in source.sample(assigned, min(2, len(assigned))):
      text = source.choice([
          character, character * 3, f'7907{character}', f'{character} 7907', f'Monday{character}',
          rf'\frac{{7907}}{{{character}}}', f'({character}, 3)'])
      pairs.append((source.choice(WRAPPERS).format(text), source.choice(TRUTHS)))
  assert len(pairs) > 1500
  assert not _rewarded(pairs)


HEDGES = [
    '{}, 5', '5, {}', '{} or 5', '5 or {}', '{} and 5', r'{} \text{{ or }} 5', '{}; 5',
    'either {} or 5',
    r'\boxed{{{}}}, \boxed{{5}}', r'\boxed{{{}}} \boxed{{5}}', r'\boxed{{{}}} or \boxed{{5}}',
    r'\boxed{{{}}} then \boxed{{5}}', '#### {}\n#### 5', 'The answer is {}. The answer is 5.',
    'The answer is {} or 5.', '<answer>{}</answer><answer>5</answer>', r'\boxed{{{}}}</think>5',
    '<think>{}</think>5', '{}\n</think>', '<think>{}', r'\boxed{{{} \boxed{{5}}}}', 'not {}, but 5',
    '{} (5 is also possible)', 'The answer is {} (alternatively 5).', '{} (maybe 5)',
    'The answer is {} and it could be 5.', 'The answer is {} (5 otherwise).',
    '({}, 5)', '[{}, 5]', r'\{{{}, 5\}}', '{} / 5', r'-\boxed{{{}}}', r'2\boxed{{{}}}', '{} (or 5)',
    r'The answer is \boxed{{{}}}. No: \boxed{{5}}.', '{} {}0', r'{}\cdot 5', '{}, {}, 5',
]  # fmt: skip


def test_a_hedge_earns_nothing():
  truths = ['7919/3', '7919', r'\sqrt{7919}', 'Thursday', '18', '1/2']
  texts = [hedge.replace('{}', '\0').replace('{{', '{').replace('}}', '}') for hedge in HEDGES]
  pairs = [(rf'\boxed{{{text}}}' if 'boxed' not in text and '<' not in text and '#' not in text
            and '.' not in text and '\n' not in text else text, truth)
           for text in texts for truth in truths]
  assert not _rewarded([(text.replace('\0', truth), truth) for text, truth in pairs])


def test_hostile_nesting_earns_nothing():
  parts = [('{', '}'), ('(', ')'), ('[', ']'), (r'\{', r'\}'), (r'\frac{', '}{2}'), (r'\sqrt{',
  '}'),
           (r'\text{', '}'), (r'\boxed{', '}'), (r'\left(', r'\right)'), ('<think>', '</think>5'),
           ('(', ']'), (r'\frac{1}{', '}'), ('-', ''), ('|', '|'), ('$', '$'), ('**', '**')]
  pairs = []
  for (opening, closing), size, truth in itertools.product(
      parts, (3, 30, 300), ('7919',)):
    for inside in ('5', '', '0/0'):
      text = opening * size + inside + closing * size
      pairs += [(text, truth), (rf'\boxed{{{text}}}', truth), (f'#### {text[:-1]}', truth)]
  assert not _rewarded(pairs)


# --- Symmetry.


def _numbers(source):
  """(value, spelling): equal values are equal answers."""
  value = fractions.Fraction(source.randint(-6, 6), source.choice([1, 1, 2, 3, 4]))
  over, under = value.numerator, value.denominator
  spellings = [str(value), rf'\frac{{{over}}}{{{under}}}', f'{2 * over}/{2 * under}', f'${value}$',
               rf'\left({value}\right)', rf'\text{{{value}}}', f'{value} apples']
  if under != 3:
    spellings += [str(float(value)), f'{float(value):.4f}', f'{float(value):,.3f}']
  if over >= 0:
    spellings += [rf'\sqrt{{{over**2}}}/{under}', f'+{value}']
  return value, source.choice(spellings)


def _points(source):
  values = tuple(source.randint(0, 2) for _ in range(2))
  return ('point', values), source.choice(['({}, {})', r'\left({},{}\right)', '({}.0, {})',
                                           r'(\frac{{{}}}{{1}},{})']).format(*values)


def _intervals(source):
  sides, ends = source.choice(['[]', '[)', '(]']), (source.randint(0, 1), source.randint(2, 3))
  return ('interval', sides, ends), source.choice([r'{}{},{}{}', r'\left{}{}, {}\right{}']).format(
      sides[0], *ends, sides[1])


def _sets(source):
  values = source.sample(range(4), 2)
  return ('set', frozenset(values)), r'\{{{}, {}\}}'.format(*values)


def _words(source):
  word = source.choice(['Monday', 'Tuesday', 'red', 'even', 'odd', 'yes', 'no'])
  return word, source.choice([word, word.upper(), rf'\text{{{word}}}', f'{word}.', f'the {word}'])


def _measures(source):
  length = source.choice([100, 150, 200])
  shown = source.choice([f'{length} cm', f'{length / 100} m', rf'{length}\text{{ cm}}',
                         f'{length * 10} mm', f'{length / 100} meters'])
  return ('length', length), shown


def _expressions(source):
  value = source.choice(['sum', 'difference', 'root', 'line'])
  shown = {
      'sum': ['x+y', 'y+x', '(x+y)'], 'difference': ['x-y', '-y+x', '-(y-x)'],
      'root': [r'\sqrt{8}', r'2\sqrt{2}', r'\frac{4}{\sqrt{2}}'],
      'line': ['y=2x+1', 'y = 1+2x', 'y-2x=1'],
  }  # fmt: skip
  return value, source.choice(shown[value])


def _percents(source):
  value = source.choice([25, 50, 75])
  return ('percent', value), source.choice([f'{value}%', rf'{value}\%', f'{value}.0 percent'])


DRAWS = [_numbers, _points, _intervals, _sets, _words, _measures, _expressions, _percents]


@pytest.mark.parametrize('draw', DRAWS)
def test_values_of_one_kind_are_equal_exactly_when_they_are_and_in_both_orders(draw):
  source = random.Random(5)
  count = 60 if draw is _expressions else 250
  values = [draw(source) for _ in range(count)]
  pairs = [*zip(values, values[1:]), *zip(values, sorted(values, key=repr))]
  expected = [one[0] == other[0] for one, other in pairs]
  assert 10 < sum(expected) < len(pairs) - 10

  forwards = math_answer.grade_batch(
      [rf'\boxed{{{one}}}' for (_, one), _ in pairs], [other for _, (_, other) in pairs])
  backwards = math_answer.grade_batch(
      [rf'\boxed{{{other}}}' for _, (_, other) in pairs], [one for (_, one), _ in pairs])
  wrong = [(one[1], other[1], *verdicts) for (one, other), *verdicts in zip(
      pairs, expected, forwards, backwards) if len(set(verdicts)) > 1]
  assert not wrong, wrong[:10]


def test_the_order_of_values_of_different_kinds_does_not_matter():
  source = random.Random(6)
  pairs = []
  for _ in range(800):
    one, other = source.sample(DRAWS, 2)
    pairs.append((one(source)[1], other(source)[1]))
  forwards = math_answer.grade_batch(
      [rf'\boxed{{{one}}}' for one, _ in pairs], [other for _, other in pairs])
  backwards = math_answer.grade_batch(
      [rf'\boxed{{{other}}}' for _, other in pairs], [one for one, _ in pairs])
  assert not [pair for pair, *verdicts in zip(pairs, forwards, backwards) if len(set(verdicts)) > 1]


# --- Every ground truth of the real data equals itself.


def _lines(path):
  with path.open(encoding='utf-8') as lines:
    return [json.loads(line) for line in lines]


def test_every_truth_of_gsm8k_equals_itself(data_dir):
  answers = [row['answer'] for name in ('train', 'test')
             for row in _lines(data_dir / 'gsm8k' / f'{name}.jsonl')]
  assert len(answers) == 7473 + 1319
  truths = [answer.rpartition('#### ')[2] for answer in answers]
  assert all(math_answer.grade_batch(answers[::10], truths[::10]))
  distinct = list(dict.fromkeys(truths))
  assert len(distinct) > 900
  for wrapper in WRAPPERS[:4]:
    assert all(math_answer.grade_batch([wrapper.format(truth) for truth in distinct], distinct))
    assert not _rewarded([(wrapper.format(truth), truth + '1') for truth in distinct])


def test_every_reference_answer_equals_itself(data_dir):
  truths = [text for row in _lines(data_dir / 'mt_bench' / 'question.jsonl')
            for text in row.get('reference') or []]
  outputs = json.loads((data_dir / 'preferences' / 'alpaca_en_demo.json').read_text('utf-8'))
  truths += [row['output'] for row in outputs if len(row['output']) < 60]
  truths = [truth for truth in truths if truth.strip()]
  assert len(truths) > 200
  for wrapper in ('{}', r'\boxed{{{}}}', '<answer>{}</answer>'):
    responses = [wrapper.format(truth) for truth in truths]
    verdicts = math_answer.grade_batch(responses, truths)
    assert not [truth for truth, verdict in zip(truths, verdicts) if not verdict]


def test_every_countdown_problem_is_solved_by_its_solution_and_no_other(data_dir):
  rows = _lines(data_dir / 'countdown' / countdown_task.TEST_FILE)
  assert len(rows) == 256
  for row in rows:
    numbers, target = tuple(map(int, row['input'].split(','))), int(row['output'])
    assert math_answer.grade(row['output'], row['output'])
    for expression in countdown_task.solutions(numbers)[target]:
      for text in (expression, f'**Answer:** {expression} = {target}.', rf'\boxed{{{expression}}}'):
        assert countdown.is_solution(text, list(numbers), target)
        assert not countdown.is_solution(text, list(numbers), target + 1)
        assert not countdown.is_solution(text, [*numbers[1:], numbers[0] + 1], target)


def _reaches(values, target):
  """An expression of all values that has the target as its value, or None: brute force."""
  if len(values) == 1:
    return values[0][1] if values[0][0] == target else None
  for i, j in itertools.permutations(range(len(values)), 2):
    rest = [value for k, value in enumerate(values) if k not in (i, j)]
    (a, left), (b, right) = values[i], values[j]
    results = [(a + b, '+'), (a * b, '*')] if i < j else [(a - b, '-')]
    if i > j and b:
      results.append((a / b, '/'))
    results += [(a - b, '-')] if i < j else []
    results += [(a / b, '/')] if i < j and b else []
    for value, sign in results:
      if expression := _reaches([*rest, (value, f'({left}{sign}{right})')], target):
        return expression
  return None


def test_solutions_of_the_game_of_24_are_right(data_dir):
  with (data_dir / 'game24' / '24.csv').open(encoding='utf-8', newline='') as file:
    puzzles = [tuple(map(int, row['Puzzles'].split())) for row in csv.DictReader(file)]
  assert len(puzzles) == 1362
  for numbers in puzzles[::40]:
    expression = _reaches([(fractions.Fraction(number), str(number)) for number in numbers], 24)
    typeset = expression.replace('*', ' × ').replace('/', ' ÷ ').replace('-', ' − ')
    assert countdown.is_solution(f'**Answer:** {typeset} = 24.', list(numbers), 24)
    assert not countdown.is_solution(typeset, [*numbers, 1], 24)
    assert math_answer.grade(rf'\boxed{{{expression}}}', '24')
    assert not math_answer.grade(rf'\boxed{{{expression}}}', '25')
