r"""Grades a response against the bare ground truth of a mathematical problem.

`grade` extracts the final answer (answer_extraction) and compares it with the truth
(equivalence): texts, numbers and structure are compared here in microseconds, and only symbolic
mathematics is sent to a worker process (worker_pool) that runs SymPy under a memory limit and a
deadline. Nothing in a response is ever evaluated.

Score only the response, never prompt and response together: the instruction itself contains the
markers ('in \boxed{}', 'after ####'), and released scorers that decode both can match it.

References:
  Cobbe et al., Training Verifiers to Solve Math Word Problems (2021), arXiv:2110.14168.
  Hendrycks et al., Measuring Mathematical Problem Solving With the MATH Dataset (2021),
    arXiv:2103.03874.
"""

import concurrent.futures
import functools
from collections.abc import Callable, Sequence

from jaxrl_llm.rewards.math import answer_extraction, answer_phrases, equivalence, worker_pool

# How the answer is extracted, by mode:
#   'lenient': a marked answer, else the fallbacks down to the last number;
#   'strict':  a marked answer only;
#   'gsm8k':   only the number right after the last `####`.
MODES: dict[str, Callable[[str], str | None]] = {
    'lenient': answer_extraction.extract,
    'strict': answer_extraction.extract_marked,
    'gsm8k': answer_extraction.extract_gsm8k,
}


def extract(response: str, *, mode: str = 'lenient') -> str | None:
  """The final answer of a response as text, or None if it has none.

  Args:
    response: the model's response, without the prompt.
    mode: one of `MODES`.

  Raises:
    ValueError: the mode is unknown.
  """
  if mode not in MODES:
    raise ValueError(f'mode must be one of {", ".join(MODES)}, got {mode!r}')
  return MODES[mode](response)


def _fast(candidate: str, answer: str) -> bool | None:
  """Compares without symbolic mathematics; None if that cannot decide."""
  try:
    return equivalence.compare(candidate, answer)
  except equivalence.Undecided:
    return None
  except RecursionError:  # Nesting is bounded, but the caller's own stack is not.
    return False


@functools.lru_cache(maxsize=4096)
def _slow(candidate: str, answer: str) -> bool:
  """Asks a worker; cached, because samples of one prompt repeat answers."""
  return worker_pool.shared().ask(candidate, answer).verdict


def _bare(answer: str) -> str:
  r"""The ground truth, without its box or its `####`, if it has one."""
  if '\\boxed' in answer or '\\fbox' in answer or '####' in answer:
    return answer_extraction.extract_marked(answer) or answer
  return answer_phrases.without_aside(answer_phrases.without_fences(answer))


def _candidate(response: str, answer: str, mode: str) -> str | None:
  """The extracted answer, to be compared with the ground truth.

  If the truth is a sentence, the fallbacks could extract a number from it; a response with the
  same sentence is right.
  """
  if mode == 'lenient' and response.strip() == answer.strip():
    return _bare(answer)
  return extract(response, mode=mode)


def equal(candidate: str, answer: str) -> bool:
  """Returns whether two bare answers are the same; see `equivalence` for the conventions."""
  verdict = _fast(candidate, answer)
  return _slow(candidate, answer) if verdict is None else verdict


def grade(response: str, answer: str, *, mode: str = 'lenient') -> bool:
  r"""Returns whether a response ends in the right answer.

  Never raises because of a response, never evaluates it, and takes at most about a second and
  512 MB even for an adversarial answer; an answer that takes longer is False.

  Args:
    response: the model's response, without the prompt. Of more than a million characters
      only the last million is read.
    answer: the bare ground truth: '18', '\\frac{1}{2}', '[0,1)', '(B)'.
    mode: 'lenient' (a marked answer, else down to the last number), 'strict' (a marked
      answer only) or 'gsm8k' (the number after `####` only).

  Returns:
    The verdict.

  Raises:
    ValueError: the mode is unknown.
    worker_pool.WorkerError: an expression had to be compared and no worker could start.
  """
  candidate = _candidate(response, answer, mode)
  return candidate is not None and equal(candidate, _bare(answer))


def grade_gsm8k_strict(response: str, answer: str) -> bool:
  """Grades by GSM8K's own rule: only the number right after the last `####`."""
  return grade(response, answer, mode='gsm8k')


def grade_batch(
    responses: Sequence[str], answers: Sequence[str], *, mode: str = 'lenient'
) -> list[bool]:
  """Grades many responses, the expensive ones in several workers concurrently.

  Args:
    responses: n responses.
    answers: n ground truths.
    mode: as in `grade`.

  Returns:
    n verdicts, each what `grade` returns.
  """
  if len(responses) != len(answers):
    raise ValueError(
        f'grade_batch needs an answer for each response, got {len(responses)} and {len(answers)}')

  verdicts: list[bool] = [False] * len(responses)
  undecided: dict[tuple[str, str], list[int]] = {}
  for index, (response, answer) in enumerate(zip(responses, answers)):
    candidate = _candidate(response, answer, mode)
    if candidate is None:
      continue

    truth = _bare(answer)
    verdict = _fast(candidate, truth)
    if verdict is None:
      undecided.setdefault((candidate, truth), []).append(index)
    else:
      verdicts[index] = verdict

  if undecided:
    with concurrent.futures.ThreadPoolExecutor(worker_pool.shared().size) as threads:
      for indices, verdict in zip(
          undecided.values(), threads.map(lambda pair: _slow(*pair), undecided)):
        for index in indices:
          verdicts[index] = verdict
  return verdicts


def warm_up() -> None:
  """Starts a worker and waits until it is ready (about a second), before timings matter."""
  worker_pool.shared().start()
