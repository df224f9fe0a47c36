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

from jaxrl_llm import checks
from jaxrl_llm.data import gsm8k, tokenizers
from jaxrl_llm.rewards import math_answer
from jaxrl_llm.rewards.math import reasoning
from jaxrl_llm.tasks import config as config_lib
from jaxrl_llm.tasks import splits
from jaxrl_llm.types import Example, Task, Tokenizer

INSTRUCTION = 'Reason step by step, and write the final number after "####".'
# Ids of test problems start here, those of training problems at 0: the ids of one set do not
# depend on how many problems of the other are used.
FIRST_TEST_ID = 100_000

_NUMBER = re.compile(r'(?<![\w.])-?\$?[0-9][0-9,]*(?:\.[0-9]+)?|[0-9][0-9,]*(?:\.[0-9]+)?')
_TAIL = 4_000  # Number of characters at a response's end searched for a number.


@dataclasses.dataclass
class Config(config_lib.VocabularyConfig):
  """Config of the task.

  Demonstrations and training prompts come from the training file, evaluation problems from the test
  file. Problems that are too long are left out and counted, never cut.

  Attributes:
    num_demonstrations: number of demonstrations; 0 for all.
    num_train: number of training problems; 0 for all.
    num_evaluation: number of evaluation problems; 0 for all.
    max_prompt_tokens: longer prompts are left out.
    max_response_tokens: the sampler's limit; longer demonstrations are left out, even if none
      remain.
    instruction: appended to each question, after a space; '' for none.
    annotations: 'strip' or 'keep' the calculator annotations of demonstrations.
  """

  num_demonstrations: int = 0
  num_train: int = 0
  num_evaluation: int = 0
  max_prompt_tokens: int = 256
  max_response_tokens: int = 512
  instruction: str = INSTRUCTION
  annotations: str = 'strip'

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate(prefix)
    checks.at_least(
        self, prefix, num_demonstrations=0, num_train=0, num_evaluation=0, max_prompt_tokens=1,
        max_response_tokens=1,
    )
    checks.one_of(self, prefix, annotations=('strip', 'keep'))

  def make(
      self,
      seed: int,
      data_dir: str | pathlib.Path = '',
      policy: config_lib.PolicyTokenizer = config_lib.FROM_SCRATCH,
  ) -> Task:
    """See `TaskConfig.make`; `data_dir` is the directory of train.jsonl and test.jsonl."""
    folder = config_lib.require_data_dir(data_dir, 'gsm8k', 'train.jsonl and test.jsonl')
    self.validate('config.task')
    compact = self.is_compact(policy)

    train, test = (_examples(folder, split, self) for split in gsm8k.SPLITS)
    tokenizer = tokenizers.load_tokenizer(self.resolve_tokenizer_dir(policy, folder))
    if compact:
      texts = [text for example in train for text in (example['prompt'], example['response'])]
      tokenizer = tokenizers.compact(tokenizer, texts, max_size=self.max_vocabulary or None)

    short = _within(train, 'prompt', tokenizer, self.max_prompt_tokens)
    complete = _within(short, 'response', tokenizer, self.max_response_tokens - 1)
    evaluation = _within(test, 'prompt', tokenizer, self.max_prompt_tokens)

    return Task(
        name='gsm8k',
        tokenizer=tokenizer,
        demonstrations=splits.choose(
            complete, self.num_demonstrations, [seed, 0], name='num_demonstrations'),
        train=_prompts(splits.choose(short, self.num_train, [seed, 1], name='num_train')),
        evaluation=_prompts(
            splits.choose(evaluation, self.num_evaluation, [seed, 2], name='num_evaluation')),
        reward_fn=strict_reward,
        lenient_reward_fn=lenient_reward,
        max_prompt_tokens=self.max_prompt_tokens,
        max_response_tokens=self.max_response_tokens,
        num_filtered={
            'demonstrations': len(train) - len(complete),
            'train': len(train) - len(short),
            'evaluation': len(test) - len(evaluation),
        },
    )


def _examples(data_dir: pathlib.Path, split: str, config: Config) -> list[Example]:
  """Reads the examples of a file; a demonstration begins on a new line."""
  first_id = FIRST_TEST_ID if split == 'test' else 0
  examples = []
  for index, question, answer in gsm8k.load_split(data_dir, split):
    solution = gsm8k.strip_annotations(answer) if config.annotations == 'strip' else answer
    examples.append({
        'id': first_id + index,
        'prompt': f'{question} {config.instruction}' if config.instruction else question,
        'answer': gsm8k.final_answer(answer),
        'response': '\n' + solution,
    })
  return examples


def _within(examples: list[Example], key: str, tokenizer: Tokenizer, limit: int) -> list[Example]:
  """Keeps the examples whose text at `key` has at most `limit` tokens."""
  short = [example for example in examples if len(tokenizer.encode(example[key])) <= limit]
  if key == 'prompt' and not short:  # Having no demonstrations is allowed.
    raise ValueError(f'no prompt of {len(examples)} problems has at most {limit} tokens')
  return short


def _prompts(examples: list[Example]) -> list[Example]:
  """Returns the examples without their responses."""
  return [{key: example[key] for key in ('id', 'prompt', 'answer')} for example in examples]


def last_number(response: str) -> str | None:
  """Returns the last number in a response outside its reasoning block, or None."""
  numbers = _NUMBER.findall(reasoning.final_part(response)[-_TAIL:])
  return numbers[-1] if numbers else None


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
  if len(responses) != len(examples):
    raise ValueError(f'{len(responses)} responses cannot be graded by {len(examples)} examples')
  numbers = [last_number(response) for response in responses]
  right = [
      number is not None and math_answer.equal(number, example['answer'])
      for number, example in zip(numbers, examples)
  ]
  return np.array(right, np.float32)
