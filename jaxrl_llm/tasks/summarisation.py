"""Toy summarisation: list the marked letters of a text, in order, and stop.

A post of 24 characters has 2 to 4 key letters, each preceded by the marker `*`, among unmarked
letters; it ends with the cue `=`. The ideal summary is the keys in order. For k keys and a summary
of n letters, m of which match the keys in order (the longest common subsequence), the gold score is

  g = m / k − 0.5 (n − m) / n − 0.05 n,

0 for the empty summary, and `MISSING_STOP` for one that does not stop. The ideal summary scores
1 − 0.05 k: 0.9, 0.85 or 0.8.

Demonstrations are noisy: in a fraction `corruption_rate` a key is dropped, a key is replaced by
another letter of the post, two keys are swapped, or a letter is added. Preferences between two
summaries come from a Bradley-Terry judge of the gold score, P(a ≻ b) = σ((g_a − g_b) / noise).
"""

import dataclasses
import pathlib

import numpy as np

from jaxrl_llm import checks
from jaxrl_llm.data import tokenizers
from jaxrl_llm.tasks import config as config_lib
from jaxrl_llm.types import Example, Task

LETTERS = 'abcdefghijklmnopqrst'
MARKER, CUE = '*', '='
POST_LENGTH = 24  # Including markers and cue.
MAX_RESPONSE_TOKENS = 10
MISSING_STOP = -1.0


def gold_score(response: str, keys: str) -> float:
  """Computes the gold score of a summary that stopped; see the module docstring.

  Args:
    response: letters of the summary.
    keys: the ideal summary, not empty.

  Returns:
    g, at most 1 − 0.05 len(keys).
  """
  if not response:
    return 0.0
  matched = _common_subsequence(response, keys)
  length = len(response)
  return matched / len(keys) - 0.5 * (length - matched) / length - 0.05 * length


def reward(
    prompts: list[str], responses: list[str], truncated: np.ndarray, examples: list[Example]
) -> np.ndarray:
  """Computes gold scores as a `types.RewardFn`; `MISSING_STOP` for truncated responses."""
  del prompts
  scores = [gold_score(r, example['answer']) for r, example in zip(responses, examples)]
  return np.where(truncated, MISSING_STOP, scores).astype(np.float32)


def prefer(
    scores: np.ndarray, *, noise: float, rng: np.random.Generator
) -> np.ndarray:
  """Samples which of two responses a noisy judge prefers.

  P(first ≻ second) = σ((g_1 − g_2) / noise), the distribution of comparing g + noise · Gumbel.

  Args:
    scores: float [P, 2]; gold scores.
    noise: positive; smaller values make the judge more certain.
    rng: random generator of the labels.

  Returns:
    float32 [P, 2]; 1 for the preferred response, 0 for the other one.

  Raises:
    ValueError: if `noise` is not positive and finite.
  """
  if not 0 < noise < np.inf:
    raise ValueError(f'noise must be positive and finite, got {noise}')

  first = np.argmax(scores + noise * rng.gumbel(size=np.shape(scores)), axis=1) == 0
  return np.stack([first, ~first], axis=1).astype(np.float32)


@dataclasses.dataclass
class Config(config_lib.TaskConfig):
  """Config of the task.

  The three sets of posts are disjoint. Examples have 'answer' (the keys) and 'reference' (a summary
  as noisy as the demonstrations, for win rates).

  Attributes:
    num_demonstrations: number of posts with a response.
    num_train: number of posts for RL.
    num_evaluation: number of held-out posts.
    corruption_rate: fraction of references with a mistake.
  """

  num_demonstrations: int = 8_000
  num_train: int = 2_000
  num_evaluation: int = 512
  corruption_rate: float = 0.3

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(self, prefix, num_demonstrations=0, num_train=0, num_evaluation=0)
    checks.fraction(self, prefix, 'corruption_rate')

  def make(
      self,
      seed: int,
      data_dir: str | pathlib.Path = '',
      policy: config_lib.PolicyTokenizer = config_lib.FROM_SCRATCH,
  ) -> Task:
    """See `TaskConfig.make`."""
    del policy  # Posts are encoded by character.
    self.validate('config.task')
    config_lib.reject_data_dir(data_dir, 'summarisation')

    rng = np.random.default_rng([seed, 24])
    posts: dict[str, str] = {}
    while len(posts) < self.num_demonstrations + self.num_train + self.num_evaluation:
      post, keys = _draw_post(rng)
      posts.setdefault(post, keys)

    examples = []
    for index, (post, keys) in enumerate(posts.items()):
      corrupted = rng.random() < self.corruption_rate
      reference = _corrupt(keys, post, rng) if corrupted else keys
      examples.append({'id': index, 'prompt': post, 'answer': keys, 'reference': reference})

    held_out, rest = examples[: self.num_evaluation], examples[self.num_evaluation :]
    return Task(
        name='summarisation',
        tokenizer=tokenizers.CharacterTokenizer(LETTERS + MARKER + CUE),
        demonstrations=[
            example | {'response': example['reference']}
            for example in rest[: self.num_demonstrations]
        ],
        train=rest[self.num_demonstrations :],
        evaluation=held_out,
        reward_fn=reward,
        lenient_reward_fn=reward,
        max_prompt_tokens=POST_LENGTH,
        max_response_tokens=MAX_RESPONSE_TOKENS,
    )


def _draw_post(rng: np.random.Generator) -> tuple[str, str]:
  """Draws a post and its keys; no letter is both a key and a filler."""
  num_keys = int(rng.integers(2, 5))
  letters = rng.permutation(list(LETTERS))
  keys = [str(letter) for letter in letters[:num_keys]]
  fillers = POST_LENGTH - 1 - 2 * num_keys
  words = [str(letter) for letter in rng.choice(letters[num_keys:], fillers)]
  positions = np.sort(rng.choice(fillers + num_keys, num_keys, replace=False))
  for position, key in zip(positions, keys):  # Ascending, so that the keys keep their order.
    words.insert(int(position), MARKER + key)
  return ''.join(words) + CUE, ''.join(keys)


def _corrupt(keys: str, post: str, rng: np.random.Generator) -> str:
  """Returns the keys with one mistake."""
  fillers = [letter for letter in post if letter not in keys + MARKER + CUE]
  position, filler = int(rng.integers(len(keys))), str(rng.choice(fillers))
  kind = rng.integers(4)
  if kind == 0:
    return keys[:position] + keys[position + 1 :]
  if kind == 1:
    return keys[:position] + filler + keys[position + 1 :]
  if kind == 2:
    left = position % (len(keys) - 1)  # Swap it with its right neighbour.
    return keys[:left] + keys[left + 1] + keys[left] + keys[left + 2 :]
  return keys[:position] + filler + keys[position:]


def _common_subsequence(a: str, b: str) -> int:
  """Returns the length of the longest common subsequence."""
  row = [0] * (len(b) + 1)
  for x in a:
    diagonal = 0
    for j, y in enumerate(b, 1):
      diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
  return row[-1]
