r"""Checks ground truths: a value that is not finite cannot be the right answer."""

from jaxrl_llm.rewards.math import answer_extraction, answer_text, equivalence, worker_pool

_MARKS = ('\\boxed', '\\fbox', '####')


def check(answer: str) -> None:
  r"""Raises ValueError if a ground truth has no finite value.

  Plain numbers, words and most expressions are decided here in microseconds; a worker is asked
  only if symbolic mathematics is needed, such as for a sum or `\tan\frac{\pi}{2}`. The names
  `\infty` and `-\infty` are answers, alone and as ends of an interval.

  Args:
    answer: the ground truth, bare, in a box or after `####`.

  Raises:
    ValueError: the answer is empty, is `nan`, or contains `1/0`, `\log 0`, a divergent sum ...
  """
  if any(mark in answer for mark in _MARKS):
    answer = answer_extraction.extract_marked(answer) or answer
  if not answer_text.clean(answer):
    raise ValueError(f'the true answer must not be empty, got {answer!r}')

  try:
    finite = equivalence.compare(answer, answer)
  except equivalence.Undecided:
    # A timeout or an error of SymPy proves nothing about the answer.
    finite = worker_pool.shared().ask(answer, answer).outcome != 'different'
  if not finite:
    raise ValueError(f'the true answer must be finite, got {answer!r}')
