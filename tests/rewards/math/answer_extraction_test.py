r"""Extraction of the answer from a response: (response, truth, verdict), by kind."""

import json
import time

import pytest

from jaxrl_llm.rewards import math_answer
from jaxrl_llm.rewards.math import answer_extraction, answer_phrases, reasoning


def _check(cases):
  """Grades all cases at once and names those that are wrong."""
  wrong = [
      f'{response!r} against {truth!r}: extracted {math_answer.extract(response)!r}'
      for response, truth, verdict in cases
      if math_answer.grade(response, truth) != verdict
  ]
  assert not wrong, '\n'.join(wrong)
  assert {verdict for *_, verdict in cases} == {True, False}


# --- Reasoning blocks.


def test_only_the_part_after_the_last_reasoning_block_is_graded():
  thinking = '<think>Maybe \\boxed{5}? No, it is 7.</think>\n\nThe answer is 7.'
  harmony = '<|channel|>analysis<|message|>\\boxed{5}<|end|>'
  final = '<|start|>assistant<|channel|>final<|message|>The answer is 7.<|return|>'
  _check([
      (thinking, '7', True),
      (thinking, '5', False),
      ('<think>\nThe answer is 5? No.\n</think>\n\n**7**', '7', True),
      ('The answer is 5? No.\n</think>\n\n7', '7', True),  # The opening tag is in the prompt.
      ('The answer is 5.\n</think>\n\n7', '5', False),
      ('<think>\n\n</think>\n\n7', '7', True),
      ('#### 5\n</think>\n#### 7', '7', True),
      ('<think>a</think>The answer is 5.<think>b</think>The answer is 7.', '7', True),
      ('<think>a</think>The answer is 5.<think>b</think>The answer is 7.', '5', False),

      ('<THINK>5</THINK>7', '7', True),
      ('<think duration="3">5</think >7', '7', True),
      ('<thinking>5</thinking>7', '7', True),
      ('<reasoning>\\boxed{5}</reasoning><answer>7</answer>', '7', True),
      ('<thought>\\boxed{5}</thought>\n7', '7', True),
      ('<seed:think>\\boxed{5}</seed:think>7', '7', True),
      ('[THINK]\\boxed{5}[/THINK]7', '7', True),
      ('◁think▷5◁/think▷7', '7', True),
      ('<|begin_of_thought|>\\boxed{5}<|end_of_thought|>\n<|begin_of_solution|>7', '7', True),
      ('<|START_THINKING|>5<|END_THINKING|><|START_RESPONSE|>7<|END_RESPONSE|>', '7', True),
      ('<|channel>thought\n\\boxed{5}<channel|>7', '7', True),
      ('<|open|>think<|sep|>5<|close|>think<|sep|><|open|>response<|sep|>7', '7', True),
      (harmony + final, '7', True),
      (harmony + final, '5', False),
      ('<|channel|>final<|message|>7<|return|>', '7', True),
      ('analysisWe get \\boxed{5}.assistantfinalIt is 7.', '7', True),
  ])


@pytest.mark.parametrize('mode', list(math_answer.MODES))
@pytest.mark.parametrize('response', [
    '<think>#### 5 \\boxed{5}',  # Not closed.
    '#### 5 \\boxed{5}</think>',  # Nothing follows.
    '<think>#### 5 \\boxed{5}</think>\n\n ',
    '#### 1 #### 2 #### 5\n</think>\nno',  # Guesses that a tag turns into reasoning.
    '\\boxed{5} #### 5\n<think></think>',
    '<think>a</think>#### 6 \\boxed{6}<think>#### 5 \\boxed{5}',
    '[THINK]#### 5 \\boxed{5}',
    '<reasoning>#### 5 \\boxed{5}',
    '<|channel|>analysis<|message|>#### 5 \\boxed{5}<|end|>',
    '<|channel|>final<|message|>5<|end|><|channel|>analysis<|message|>#### 5 \\boxed{5}',
    'analysisWe get #### 5 \\boxed{5}.',
    '◁think▷#### 5 \\boxed{5}',
])
def test_reasoning_without_an_answer_after_it_earns_nothing(response, mode):
  assert not math_answer.grade(response, '5', mode=mode)


@pytest.mark.parametrize('response', [
    'I think <b>5</b>', '[Reasoning] 2 + 3 [Answer] 5', 'analysis: 5', '1 < 5', 'x <thinker> 5',
    'the analysis is 5', 'think> 5',
])
def test_other_brackets_are_not_reasoning_tags(response):
  assert reasoning.final_part(response) == response


# --- Sentences.


def test_a_remark_about_the_answer_is_not_the_answer():
  _check([
      ('The answer is 15.\n\nThis answer is correct because we added all values.', '15', True),
      ('The final answer is 15. The answer is positive.', '15', True),
      ('The final answer is 15. The answer is positive.', 'positive', False),
      ('Positive or negative?\nThe answer is positive.', 'positive', True),
      ('The answer is 15. This is the final answer.', '15', True),
      ('The answer is 15. The answer makes sense.', '15', True),
      ('The answer is 15. The answer is reasonable since 15 < 20.', '15', True),
      ('The answer is 15. This answer is consistent with the 3 conditions.', '15', True),
      ('The answer is 15. Our answer is an integer between 0 and 999.', '15', True),
      ('The answer is 15. The answer is in dollars.', '15', True),
      ('The answer is 15. The answer is rounded to 2 decimal places.', '15', True),
      ('The answer is 15. The answer is greater than 10, as expected.', '15', True),
      ('The answer is 15. The answer is an even number.', '15', True),
      ('The answer is twelve. This answer is right.', '12', True),
      ('The answer is Tuesday. This answer is correct.', 'Tuesday', True),
      ('Answer: 15\nThe answer is therefore correct.', '15', True),
      ('**Answer: 15**\n\nThe answer is verified by adding 12 and 3.', '15', True),
      ('The answer is 15. This result is obtained by adding 12 and 3.', '15', True),
      ('The solution is x = 3. This answer is correct.', '3', True),
      ('We add and get 15. This answer is correct.', '15', True),
      ('The answer is 15. I hope this answer is helpful.', '15', True),
      ('The total is 15 and the answer is verified.', '15', True),
      ('The answer is 15 and this answer is what a child would say.', '15', True),
      ('The answer, 15, is correct.', '15', True),
      ('So our answer of 15 is correct.', '15', True),
      ('The answer is right.', 'right', True),
      ('The answer is found to be 15.', '15', True),
      ('The result is 15, so the answer is odd.', 'odd', True),
      ('The answer is 12. Wait, the answer is the number 15.', '15', True),
      ('The answer is 15. This answer is the sum of 12 and 3.', '15', True),
      ('The final answer is: 15. The answer is given in dollars.', '15', True),
      ('Our answer is 15. The answer is divisible by 5.', '15', True),
      ('The answer is 15. The units of the answer are apples.', '15', True),
      ('The correct answer is 15. All other answers are wrong.', '15', True),
      ('The answer is 15. Note that the answer is less than 20.', '15', True),
      ('The answer is (B). This answer is correct because A is wrong.', 'B', True),
      ('The answer is -15. The answer is negative because it cooled.', '-15', True),
      ('The answer is 15. The answer is within the range of 10 to 20.', '15', True),
      ('The answer is 15. The answer is at least 10.', '15', True),
      ('The answer is 15. The answer is not zero.', '15', True),
      ('The answer is 15. No, the answer is zero.', '0', True),
      ('The answer is 15. No, the answer is zero.', '15', False),
      ('The answer is 15. The answer is easy to check.', '15', True),
      ('The answer is e. I hope it is correct.', 'e', True),
      ('The answer is 15. So the answer is yes.', 'yes', True),
      ('The answer is 15. So the answer is yes.', '15', False),

      # The last of two answers is used; a retracted answer is ignored.
      ('The answer is 5. The answer is 7.', '5', False),
      ('The answer is 5. The answer is 7.', '7', True),
      ('The answer is 15. The answer is Tuesday.', '15', False),
      ('The answer is 15. The answer is Tuesday.', 'Tuesday', True),
      ('The answer is 5. No: the answer is no solution.', 'no solution', True),
      ('The answer is 5. No: the answer is no solution.', '5', False),
      ('The answer is 15. This answer is wrong.', '15', False),
      ('The answer is 15. The answer is not 15.', '15', False),
      ('The answer is between 3 and 4.', '3', False),
      ('The answer is 5 and it could be 7.', '5', False),
  ])


def test_words_that_open_a_sentence_are_not_in_the_answer():
  _check([
      ('Therefore, the value is 15.', '15', True),
      ('Thus, 15.', '15', True),
      ('So, 15 apples.', '15', True),
      ('So, 15 apples.', '16', False),
      ('Hence, x = 5.', '5', True),
      ('Hence, x = 5.', 'y = 5', False),
      ('Thus, (3, 4).', '(3,4)', True),
      ('Thus, (3, 4).', '(4,3)', False),
      ('Therefore, $\\frac{1}{2}$.', '1/2', True),

      ('In total, 15.', '15', True),
      ('Finally, 1/2.', '0.5', True),
      ('Therefore, Tuesday.', 'Tuesday', True),
      ('Thus, the values are 3 and 5.', '3, 5', True),
      ('Thus, the values are 3 and 5.', '5', False),
      ('Hence, she has 15 apples.', '15', True),
      ('So the total, in dollars, is 15.', '15', True),
      ('As a result, $15.', '15', True),
      ('Therefore, -7.', '-7', True),
      ('Therefore, -7.', '7', False),
      ('Therefore, the interval is [0, 1).', '[0,1)', True),
      ('In conclusion, 42 marbles.', '42', True),
      ('Thus, 1,234.', '1234', True),
      ('So, 3, 5.', '3,5', True),
      ('After 2 hours, 15 miles.', '15', True),
      ('Therefore, by symmetry, 15.', '15', True),
      ('The answer is, therefore, 15.', '15', True),
      ('Therefore, the sum is fifteen.', '15', True),
      ('Thus, fifteen.', '15', True),
      ('He has twenty-five dollars.', '25', True),
      ('Adding, we get 15.', '15', True),
      ('Hence, the solution set is {1, 2}.', r'\{1,2\}', True),
      ('So, B.', 'B', True),
      ('So, no solution.', 'no solution', True),
      ('Therefore, Alice has 15 and Bob has 3.', '15', False),
  ])


def test_a_code_fence_is_not_in_the_answer():
  _check([
      ('Final answer:\n```\n15\n```', '15', True),
      ('Final answer:\n```\n15\n```', '16', False),
      ('```\n15\n```', '15', True),
      ('```15```', '15', True),
      ('~~~\n15\n~~~', '15', True),
      ('```latex\n\\frac{1}{2}\n```', '1/2', True),
      ('```python\n15\n```', '15', True),
      ('Answer:\n```text\n15\n```\nDone.', '15', True),
      ('**Answer:**\n```plaintext\n15 apples\n```', '15', True),

      ('The answer is `15`.', '15', True),
      ('The answer is `Thursday`', 'Thursday', True),
      ('**Final answer:** `x = 15`', '15', True),
      ('The answer is:\n\n```latex\n\\boxed{15}\n```', '15', True),
      ('```\n#### 15\n```', '15', True),
      ('```\nThe answer is 15\n```', '15', True),
      ('Result:\n```\n(3, 4)\n```', '(3,4)', True),
      ('```json\n{"answer": 15}\n```', '15', True),
      ('```json\n{\n  "final_answer": "\\\\frac{1}{2}",\n  "sure": 0.9\n}\n```', '1/2', True),
      ('````\n15\n````', '15', True),
      ('Final answer: ```15```.', '15', True),
      ('```\n12\n```\nbut the answer is\n```\n15\n```', '15', True),
      ('```\n12\n```\nbut the answer is\n```\n15\n```', '12', False),
  ])


def test_an_aside_in_parentheses_is_not_in_the_answer():
  fruit = 'So the total is 15 pieces of fruit (12 apples and 3 pears).'
  _check([
      (fruit, '15', True),
      (fruit, '3', False),
      ('The answer is 15 (12 + 3).', '15', True),
      ('The answer is 15 (12 + 3).', '225', False),
      ('The answer is 15 (12 + 3 = 15).', '15', True),
      ('The answer is 15 (12 + 3) apples.', '15', True),
      ('The answer is 15 (i.e., 12 + 3).', '15', True),
      ('The answer is 15 (not 16).', '15', True),
      ('The answer is 15 (not counting Bob).', '15', True),

      ('The answer is $\\frac{1}{2}$ (i.e. 0.5).', '1/2', True),
      ('The answer is 15 (not 16).', '16', False),
      ('The answer is $15$ ($12 + 3$).', '15', True),
      ('The answer is **15** (12 + 3).', '15', True),
      ('The answer is $15 ($12 + $3).', '15', True),
      ('The answer is 15 dollars ($12 + $3).', '15', True),
      ('The answer is \\(15\\) (\\(12+3\\)).', '15', True),
      ('The answer is 15 (12+3) (rounded).', '15', True),
      ('(3, 4) (as computed above)', '(3,4)', True),
      ('The answer is (3, 4) (as computed above).', '(3,4)', True),
      ('So f(2) = 15 (since 12 + 3 = 15).', '15', True),
      ('Total: $15 (12 + 3)', '15', True),
      ('#### 15 (12 apples and 3 pears)', '15', True),
      ('<answer>15 (12 + 3)</answer>', '15', True),
      (r'\boxed{15 (12 apples)}', '15', True),
      ('She has 15 (fifteen) apples.', '15', True),
      ('So she needs 15 apples (3 more than Bob has).', '15', True),
      ('She has 15 left (20 - 5).', '15', True),
      ('She has 15 left (20 - 5).', '5', False),
      ('He needs 15 more apples (20 - 5 = 15).', '15', True),
      ('The answer is 75% (3/4).', '75%', True),
      ('The answer is \\frac{1}{2} (one half).', '1/2', True),
      ('The answer is x = 5 (since x > 0).', '5', True),
      ('The answer is B (the second).', 'B', True),
      ('The answer is 15 (cm).', '15 cm', True),
      ('The answer is 15 (cm).', '15 kg', False),
      ('Answer: 15 (thousand)', '15000', True),
      ('Answer: 15 (thousand)', '15', False),
      # What changes the meaning stays.
      ('The answer is (3, 4).', '(3,4)', True),
      ('The answer is 5 (mod 7).', '5 (mod 7)', True),
      ('The answer is f(2).', 'f(2)', True),
      ('The answer is f(2).', 'f', False),
      ('The answer is 15 (or 16).', '15', False),
      ('The answer is 15 (or 16).', '16', False),
      ('The answer is 15 (alternatively 16).', '15', False),
      ('The answer is 15 (16 is also possible).', '15', False),
      ('The answer is 15 (16 if we count Bob).', '15', False),
      ('The answer is 3 (x+1).', '3x+3', True),
      ('The answer is 2 (3).', '6', True),
      ('The answer is 1011 (base 2).', '1011', False),
      ('The answer is 3:30 (pm).', '3:30 pm', True),
  ])


@pytest.mark.parametrize('text', [
    '5 (mod 7)', '5 (\\text{mod } 7)', '5 (modulo 7)', '1011 (base 2)', '1011 (in base 2)',
    '15 (or 16)', '5 (2 + 1)', '3 (x + 1)', 'f (x)', 'sin (alpha)', '2 cos (theta)', '(3, 4)',
    '(2)(3)', '15 (in thousands)', '15 (not sure)', '(A) 5', 'x (x+1)', '15 (16)',
])
def test_other_parentheses_stay(text):
  assert answer_phrases.without_aside(text) == text


# --- Boxes.


def test_a_box_in_a_box_is_one_answer():
  _check([
      (r'\boxed{\boxed{15}}', '15', True),
      (r'\boxed{x = \boxed{15}}', '15', True),
      (r'\boxed{x = \boxed{15}}', '16', False),
      (r'\boxed{\text{x} = \boxed{15}}', '15', True),
      (r'\boxed{\mathbf{\boxed{15}}}', '15', True),
      (r'\boxed{\boxed{\boxed{\frac{1}{2}}}}', '0.5', True),

      (r'\fbox{\boxed{15}}', '15', True),
      (r'\boxed{\fbox{$15$}}', '15', True),
      (r'\boxed{\text{The answer is } \boxed{15}}', '15', True),
      (r'\boxed{12 + 3 = \boxed{15}}', '15', True),
      (r'\boxed{\left(\boxed{3}, 4\right)}', '(3,4)', True),
      (r'\boxed{-\boxed{15}}', '-15', True),
      (r'\boxed{-\boxed{15}}', '15', False),
      (r'\boxed{2\boxed{3}}', '6', True),
      (r'\boxed{2\boxed{3}}', '3', False),
      (r'\boxed{\boxed{5}, \boxed{7}}', '5, 7', True),
      (r'\boxed{\boxed{5}, \boxed{7}}', '7', False),
      (r'\boxed{5 \text{ or } \boxed{7}}', '7', False),
      (r'\boxed{\boxed{5', '5', False),
  ])


def test_text_that_touches_a_box_belongs_to_its_answer():
  _check([
      (r'$-\boxed{15}$', '-15', True),
      (r'$-\boxed{15}$', '15', False),
      (r'The answer is -\boxed{15}.', '-15', True),
      ('So −\\boxed{15}', '-15', True),
      (r'-\boxed{\frac{1}{2}}', '-1/2', True),
      (r'$x = -\boxed{15}$', '-15', True),
      (r'$- \boxed{15}$', '-15', True),
      (r'x = - \boxed{15}', '-15', True),
      (r'x = - \boxed{15}', '15', False),
      (r'$-\,\boxed{15}$', '-15', True),
      (r'$-(\boxed{15})$', '-15', True),
      (r'$-\mathbf{\boxed{15}}$', '-15', True),

      (r'-$\boxed{15}$', '-15', True),
      (r'**-\boxed{15}**', '-15', True),
      ('\\[\n- \\boxed{15}\n\\]', '-15', True),
      (r'\begin{align*} x &= -\boxed{15} \end{align*}', '-15', True),
      (r'The answer is negative \boxed{15}.', '-15', True),
      (r'$-\boxed{3+4}$', '-7', True),
      (r'$-\boxed{-3}$', '3', True),
      (r'$\pm\boxed{3}$', '3,-3', True),
      (r'-\boxed{3}, -\boxed{4}', '-3,-4', True),
      (r'-\boxed{3}, -\boxed{4}', '3,4', False),
      (r'$2\boxed{3}$', '6', True),
      (r'$2\boxed{3}$', '3', False),
      (r'$2\boxed{3}$', '23', False),
      (r'$x = 2\cdot\boxed{3}$', '6', True),
      (r'$\frac{1}{2}\boxed{3}$', '1.5', True),
      (r'$3\boxed{\sqrt{2}}$', r'3\sqrt{2}', True),
      (r'$\boxed{3}\sqrt{2}$', r'3\sqrt{2}', True),
      (r'$\boxed{3}\pi$', r'3\pi', True),
      (r'$\boxed{15}^2$', '225', True),
      (r'$\boxed{15}^2$', '15', False),
      (r'$\boxed{50}\%$', '1/2', True),
      (r'$\boxed{5}!$', '120', True),
      (r'\boxed{1}/2', '0.5', True),
      (r'$2(\boxed{3})$', '6', True),
      (r'$\frac{\boxed{3}}{4}$', '3/4', True),
      (r'$x = \frac{3}{\boxed{4}}$', '3/4', True),
      (r'$\sqrt{\boxed{16}}$', '4', True),
      (r'$2^{\boxed{3}}$', '8', True),
      (r'$\boxed{2}\times 10^{3}$', '2000', True),
      (r'$-\$\boxed{15}$', '-15', True),
  ])


def test_text_that_is_only_near_a_box_does_not():
  _check([
      (r'- \boxed{15}', '15', True),  # A bullet.
      (r'The answer – \boxed{15}', '15', True),
      (r'1. \boxed{15}', '15', True),
      (r'2) \boxed{15}', '15', True),
      (r'(a) \boxed{15}', '15', True),
      (r'\boxed{5}!', '5', True),
      (r'\boxed{5}!', '120', False),

      (r'$\boxed{15}^\circ$', '15', True),
      (r'$\boxed{15}\text{ cm}$', '15', True),
      (r'$\boxed{2} \pmod 5$', '2', True),
      (r'\$\boxed{15}', '15', True),
      (r'$10 - \boxed{3} = 7$', '3', True),  # It fills a gap.
      (r'$12 = 4 \times \boxed{3}$', '3', True),
      (r'$\frac{\boxed{3}}{4} = 0.75$', '3', True),
      (r'$0.75 = \frac{3}{\boxed{4}}$', '4', True),
      (r'$2 + \boxed{3}x = 8$', '3', True),
      (r'$-x = \boxed{3}$', '3', True),
      (r'- $\boxed{15}$', '15', True),
      ('It costs $8260/$0.10\n$\\boxed{15}$', '15', True),  # Money, and the next line.
      ('So $2 and\n$\\boxed{15}$', '15', True),
      (r'It costs $2 $\boxed{15}$', '15', True),
      ('We had 2\n\\boxed{15}', '15', True),
      (r'f(\boxed{3})', '3', True),
      (r'$x^2 - \boxed{3}x + 2$', '3', True),
      (r'First $-\boxed{5}$. No: $\boxed{7}$', '7', True),
  ])


# --- Real solutions, written otherwise: their labels stay.


def test_rewritten_solutions_keep_their_labels(data_dir):
  solutions = []
  with (data_dir / 'gsm8k' / 'example_model_solutions.jsonl').open(encoding='utf-8') as lines:
    for line in list(lines)[::12]:
      row = json.loads(line)
      truth = row['ground_truth'].rpartition('A: ')[2]
      pairs = [(row[name]['solution'], row[name]['is_correct'])
               for name in ('6b_finetuning', '175b_finetuning', '175b_verification')]
      for index, (solution, label) in enumerate(pairs):
        work, mark, answer = solution.rpartition('A: ')
        if mark:
          solutions.append((pairs[index - 1][0], work, answer, truth, label))
  assert len(solutions) > 300

  endings = [
      '<think>{other}</think>{work}A: {answer}',
      '{other}</think>{work}The answer is {answer}.',
      '{work}A: {answer}\n\nThis answer is correct because it adds up.',
      '{work}The answer is {answer}. The answer is a positive number.',
      '{work}A: {answer} (as computed above)',
      '{work}Therefore, the value is {answer}.',
      '{work}Thus, {answer}.',
      '{work}Final answer:\n```text\n{answer}\n```',
      r'{work}$\boxed{{\boxed{{{answer}}}}}$',
      r'{work}$x = -\boxed{{-{answer}}}$',
  ]
  for ending in endings:
    responses = [ending.format(other=other, work=work, answer=answer)
                 for other, work, answer, *_ in solutions]
    verdicts = math_answer.grade_batch(responses, [truth for *_, truth, _ in solutions])
    assert verdicts == [label for *_, label in solutions], ending


# --- Costs.


@pytest.mark.parametrize('pattern', [
    '<think>', '</think>', '<think ', '<|channel|>', '<|channel|>final<|message|>', '[THINK]', '◁',
    'assistantfinal', r'\boxed{5}', r'\boxed{\boxed{5}', r'-\boxed', r'\boxed 5', r'-2\pi\, ',
    '```', '```a\n', '`', '~~~\n', 'answer is correct. ', 'this answer is 5 (a ', '15 (12 + 3) ',
    '(', ' (a)', 'Thus, ', 'so, so ', 'answer, 5, is right. ', '$-', r'\text{',
])
def test_a_megabyte_of_marks_is_read_in_linear_time(pattern):
  started = time.process_time()
  for text in (pattern * (500_000 // len(pattern)), pattern * (500_000 // len(pattern)) + '5)'):
    answer_extraction.extract(text)
    answer_extraction.extract_gsm8k(text)
  assert time.process_time() - started < 2.0


@pytest.mark.parametrize('pattern', [
    'answer is verified by ' + '1 (2) ' * 600 + '\n',
    'answer is greater than ' + 'x (1) ' * 500 + '\n',
    'answer is ' + 'a b ' * 900 + '\n', 'this answer is ' + '1, ' * 60 + '\n',
    'answer of ' + '1,' * 40 + ' is right\n', r'answer: \frac{1}{' * 100 + '\n',
    r'$-\boxed{\boxed{1} + \boxed{2}}$, ', r'\frac{\boxed{3}}{4}, ',
    '(' * 10 + r'\boxed{1}' + ')' * 10,
])
def test_many_remarks_and_boxes_cost_little(pattern):
  started = time.process_time()
  math_answer.grade(pattern * (500_000 // len(pattern)), '7919')
  assert time.process_time() - started < 2.0


@pytest.mark.parametrize('spaces', [' ', r'\,', '2 ', '$', '('])
def test_a_box_between_many_spaces_is_read_in_linear_time(spaces):
  text = (spaces * 140 + r'\boxed{5}' + spaces * 140) * 500
  started = time.process_time()
  answer_extraction.extract(text)
  assert time.process_time() - started < 2.0


@pytest.mark.parametrize('response, answer', [
    ('The answer is 15? No.', None), ('The answer is 15? Wrong, I think.', None),
    ('The answer is 15.', '15'), ('The answer is 12? No. The answer is 15.', '15')])
def test_an_answer_that_is_asked_and_denied_is_not_announced(response, answer):
  assert answer_extraction.extract_marked(response) == answer
