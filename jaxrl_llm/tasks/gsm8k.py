"""GSM8K as a task: published problems, worked solutions as demonstrations, a strict reward.

The prompt is the question, a space and one instruction, as raw text without a chat
template. Training and evaluation use the strict reward; the lenient one is what the
released code of A*-PO scored its first stage with.

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
# Ids of test problems start here, those of training problems at 0: neither depends on
# how many of the others are used.
FIRST_TEST_ID = 100_000

_NUMBER = re.compile(r'(?<![\w.])-?\$?[0-9][0-9,]*(?:\.[0-9]+)?|[0-9][0-9,]*(?:\.[0-9]+)?')
_TAIL = 4_000  # Characters at a response's end in which a final number is looked for.


@dataclasses.dataclass(frozen=True)
class Gsm8kTask(Task):
  """A task that says what it left out.

  Attributes:
    num_filtered: for 'demonstrations', 'train' and 'evaluation', how many problems
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

  Demonstrations and training prompts are the training file's problems, evaluation the
  test file's. Problems that are too long are left out and counted, never cut.

  Args:
    data_dir: the folder of train.jsonl and test.jsonl.
    seed: decides which problems are used where fewer than all are.
    tokenizer_dir: by default data_dir/../tokenizers/qwen2; see `load_tokenizer`.
    num_demonstrations: how many; None for all.
    num_train: how many; None for all.
    num_evaluation: how many; None for all.
    max_prompt_tokens: longer prompts are left out.
    max_response_tokens: the sampler's limit; longer demonstrations are left out, be it all.
    vocabulary: 'full', or 'compact': what the demonstrations need (`tokenizers.compact`).
    max_vocabulary: the limit of a compact vocabulary; None for no limit.
    annotations: 'strip' or 'keep' the calculator annotations of demonstrations.

  Returns:
    The task, with what it left out.

  Raises:
    ValueError: a file is missing or damaged, or a setting is out of its range.
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
  """The tokenizer in `folder`, reduced to what the demonstrations need if so asked."""
  tokenizer = tokenizers.load_tokenizer(folder)
  if vocabulary == 'full':
    return tokenizer
  texts = [text for example in train for text in (example['prompt'], example['response'])]
  return tokenizers.compact(tokenizer, texts, max_size=max_vocabulary)


def _check(vocabulary: str, max_vocabulary: int | None, annotations: str) -> None:
  """Raises one line about the first setting that is out of its range."""
  if vocabulary not in ('full', 'compact'):
    raise ValueError(f"vocabulary must be 'full' or 'compact', got {vocabulary!r}")
  if annotations not in ('strip', 'keep'):
    raise ValueError(f"annotations must be 'strip' or 'keep', got {annotations!r}")
  if vocabulary == 'full' and max_vocabulary is not None:
    raise ValueError(f"max_vocabulary needs vocabulary 'compact', got {max_vocabulary}")


def _examples(data_dir: str | pathlib.Path, split: str, annotations: str) -> list[Example]:
  """The examples of a file; a demonstration begins on a new line."""
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
  """The examples whose text at `key` has at most `limit` tokens."""
  kept = [example for example in examples if len(tokenizer.encode(example[key])) <= limit]
  if key == 'prompt' and not kept:  # Without demonstrations there is much to do.
    raise ValueError(f'no prompt of {len(examples)} problems has at most {limit} tokens')
  return kept


def _prompts(examples: list[Example]) -> list[Example]:
  """The examples without their responses."""
  return [{key: example[key] for key in ('id', 'prompt', 'answer')} for example in examples]


def _choose(
    examples: list[Example], name: str, count: int | None, seed: list[int]
) -> list[Example]:
  """`count` of the examples at random, in their own order; all for None."""
  if count is None or not examples:
    return list(examples)
  if not 1 <= count <= len(examples):
    raise ValueError(f'{name} must lie in 1 to {len(examples)}, got {count}')
  chosen = np.random.default_rng(seed).choice(len(examples), count, replace=False)
  return [examples[index] for index in sorted(chosen)]


def last_number(response: str) -> str | None:
  """The last number in a response outside its reasoning block, or None."""
  found = _NUMBER.findall(reasoning.final_part(response)[-_TAIL:])
  return found[-1] if found else None


def strict_reward(
    prompts: list[str], responses: list[str], truncated: np.ndarray, examples: list[Example]
) -> np.ndarray:
  """1 where the number after the last `####` is the answer and the response ended.

  Args:
    prompts: n prompts; unused: the instruction holds hash marks itself.
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
  """1 where the last number of the response is the answer, truncated or not.

  Arguments and result as of `strict_reward`.
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
