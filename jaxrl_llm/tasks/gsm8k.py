"""GSM8K as a task: published problems, worked solutions as demonstrations, a strict reward.

The prompt is the question, a space and one instruction, as raw text without a chat
template. Training and evaluation use the strict reward; the released code of A*-PO
scores its first stage with the lenient one.

References:
  Cobbe et al. (2021), arXiv 2110.14168. Brantley et al. (2025), Accelerating RL for LLM
  Reasoning with Optimal Advantage Regression, arXiv 2505.20686 (prompt and rewards).
"""

import dataclasses
import pathlib
import re

import numpy as np

from jaxrl_llm.data import gsm8k, tokenizers
from jaxrl_llm.rewards.math import reasoning
from jaxrl_llm.types import Example, Task, Tokenizer

INSTRUCTION = 'Reason step by step, and write the final number after "####".'
# Ids of test problems start here, those of training problems at 0: the ids of one set do not
# depend on how many problems of the other are used.
FIRST_TEST_ID = 100_000

_NUMBER = re.compile(r'(?<![\w.])-?\$?[0-9][0-9,]*(?:\.[0-9]+)?|[0-9][0-9,]*(?:\.[0-9]+)?')
_TAIL = 4_000  # Number of characters at a response's end searched for a number.


@dataclasses.dataclass(frozen=True)
class Gsm8kTask(Task):
  """The GSM8K task, with counts of filtered problems.

  Attributes:
    num_filtered: number of problems in 'demonstrations', 'train' and 'evaluation' that
      were left out because their prompt or solution has too many tokens.
  """

  num_filtered: dict[str, int]


def make_task(
    *,
    data_dir: str | pathlib.Path,
    seed: int,
    tokenizer_dir: str | pathlib.Path | None = None,
    num_demonstrations: int | None = None,
    num_train: int | None = None,
    num_evaluation: int | None = None,
    max_prompt_tokens: int = 256,
    max_response_tokens: int = 512,
    vocabulary: str = 'full',
    max_vocabulary: int | None = None,
    annotations: str = 'strip',
) -> Gsm8kTask:
  """Makes the task from the published files.

  Demonstrations and training prompts come from the training file, evaluation problems from
  the test file. Problems that are too long are left out and counted, never cut.

  Args:
    data_dir: the directory of train.jsonl and test.jsonl.
    seed: determines which problems are used if not all are.
    tokenizer_dir: by default data_dir/../tokenizers/qwen2; see `load_tokenizer`.
    num_demonstrations: number of demonstrations; None for all.
    num_train: number of training problems; None for all.
    num_evaluation: number of evaluation problems; None for all.
    max_prompt_tokens: longer prompts are left out.
    max_response_tokens: the sampler's limit; longer demonstrations are left out, even if none
      remain.
    vocabulary: 'full', or 'compact' for what the demonstrations need (`tokenizers.compact`).
    max_vocabulary: size limit of a compact vocabulary; None for no limit.
    annotations: 'strip' or 'keep' the calculator annotations of demonstrations.

  Returns:
    The task, with the number of filtered problems.

  Raises:
    ValueError: if a file is missing or damaged, or an argument is out of range.
  """
  _check(vocabulary, max_vocabulary, annotations)
  train = _examples(data_dir, 'train', annotations)
  test = _examples(data_dir, 'test', annotations)
  folder = tokenizer_dir or pathlib.Path(data_dir).parent / 'tokenizers' / 'qwen2'
  tokenizer = _tokenizer(folder, train, vocabulary, max_vocabulary)

  short = _within(train, 'prompt', tokenizer, max_prompt_tokens)
  complete = _within(short, 'response', tokenizer, max_response_tokens - 1)
  evaluation = _within(test, 'prompt', tokenizer, max_prompt_tokens)
  left_out = len(train) - len(complete), len(train) - len(short), len(test) - len(evaluation)

  return Gsm8kTask(
      name='gsm8k',
      tokenizer=tokenizer,
      demonstrations=_choose(complete, 'num_demonstrations', num_demonstrations, [seed, 0]),
      train=_prompts(_choose(short, 'num_train', num_train, [seed, 1])),
      evaluation=_prompts(_choose(evaluation, 'num_evaluation', num_evaluation, [seed, 2])),
      reward_fn=strict_reward,
      lenient_reward_fn=lenient_reward,
      max_prompt_tokens=max_prompt_tokens,
      max_response_tokens=max_response_tokens,
      num_filtered=dict(zip(('demonstrations', 'train', 'evaluation'), left_out)),
  )


def _tokenizer(
    folder: str | pathlib.Path, train: list[Example], vocabulary: str, max_vocabulary: int | None
) -> Tokenizer:
  """Loads the tokenizer in `folder`; if compact, reduces it to what the demonstrations need."""
  tokenizer = tokenizers.load_tokenizer(folder)
  if vocabulary == 'full':
    return tokenizer
  texts = [text for example in train for text in (example['prompt'], example['response'])]
  return tokenizers.compact(tokenizer, texts, max_size=max_vocabulary)


def _check(vocabulary: str, max_vocabulary: int | None, annotations: str) -> None:
  """Raises a one-line ValueError for the first argument that is out of range."""
  if vocabulary not in ('full', 'compact'):
    raise ValueError(f"vocabulary must be 'full' or 'compact', got {vocabulary!r}")
  if annotations not in ('strip', 'keep'):
    raise ValueError(f"annotations must be 'strip' or 'keep', got {annotations!r}")
  if vocabulary == 'full' and max_vocabulary is not None:
    raise ValueError(f"max_vocabulary needs vocabulary 'compact', got {max_vocabulary}")


def _examples(data_dir: str | pathlib.Path, split: str, annotations: str) -> list[Example]:
  """Reads the examples of a file; a demonstration begins on a new line."""
  first_id = FIRST_TEST_ID if split == 'test' else 0
  examples = []
  for index, question, answer in gsm8k.load_split(data_dir, split):
    solution = gsm8k.strip_annotations(answer) if annotations == 'strip' else answer
    examples.append({
        'id': first_id + index,
        'prompt': f'{question} {INSTRUCTION}',
        'answer': gsm8k.final_answer(answer),
        'response': '\n' + solution,
    })
  return examples


def _within(examples: list[Example], key: str, tokenizer: Tokenizer, limit: int) -> list[Example]:
  """Keeps the examples whose text at `key` has at most `limit` tokens."""
  kept = [example for example in examples if len(tokenizer.encode(example[key])) <= limit]
  if key == 'prompt' and not kept:  # Having no demonstrations is allowed.
    raise ValueError(f'no prompt of {len(examples)} problems has at most {limit} tokens')
  return kept


def _prompts(examples: list[Example]) -> list[Example]:
  """Returns the examples without their responses."""
  return [{key: example[key] for key in ('id', 'prompt', 'answer')} for example in examples]


def _choose(
    examples: list[Example], name: str, count: int | None, seed: list[int]
) -> list[Example]:
  """Selects `count` random examples, in their original order; all for None."""
  if count is None or not examples:
    return list(examples)
  if not 1 <= count <= len(examples):
    raise ValueError(f'{name} must lie in 1 to {len(examples)}, got {count}')
  chosen = np.random.default_rng(seed).choice(len(examples), count, replace=False)
  return [examples[index] for index in sorted(chosen)]


def last_number(response: str) -> str | None:
  """Returns the last number in a response outside its reasoning block, or None."""
  found = _NUMBER.findall(reasoning.final_part(response)[-_TAIL:])
  return found[-1] if found else None


def strict_reward(
    prompts: list[str], responses: list[str], truncated: np.ndarray, examples: list[Example]
) -> np.ndarray:
  """Returns 1 where the number after the last `####` is the answer and the response stopped.

  Args:
    prompts: n prompts; unused, because the instruction itself contains hash marks.
    responses: n decoded responses.
    truncated: bool [n]; a truncated response scores 0.
    examples: n examples with the bare number as 'answer'.

  Returns:
    float32 [n] of zeros and ones.
  """
  del prompts
  from jaxrl_llm.rewards import math_answer

  answers = [example['answer'] for example in examples]
  right = math_answer.grade_batch(responses, answers, mode='gsm8k')
  return (np.array(right, bool) & ~np.asarray(truncated, bool)).astype(np.float32)


def lenient_reward(
    prompts: list[str], responses: list[str], truncated: np.ndarray, examples: list[Example]
) -> np.ndarray:
  """Returns 1 where the last number of the response is the answer, even if truncated.

  Arguments and result are as in `strict_reward`.
  """
  del prompts, truncated
  from jaxrl_llm.rewards import math_answer

  if len(responses) != len(examples):
    raise ValueError(f'{len(responses)} responses cannot be graded by {len(examples)} examples')
  numbers = [last_number(response) for response in responses]
  right = [
      number is not None and math_answer.equal(number, example['answer'])
      for number, example in zip(numbers, examples)
  ]
  return np.array(right, np.float32)
