"""A toy dialogue in which a question at the start pays off at the end.

The user has a goal of two symbols, such as `ce`. The first message, `!c`, reveals the first
symbol. The second is revealed only to an assistant that asks, `?`, early enough:

  !c                                   the user's first turn
  ?      =ce   ce   +ce   ce   ...     the assistant asks; `=` reveals the goal, `+` confirms it
  cb     -     cb   -     cd   ...     it answers at once; after a wrong answer the user is terse

The user's message after a reply:
  =xy  the goal, if the reply was `?` in one of the first two turns;
  +xy  the goal again, if the reply was the whole goal;
  -    if the reply was anything else; all later messages are the same;
  .    for any reply, with probability 0.1: the user did not listen.

The reward of the dialogue up to turn h (from 0) is
  1 if reply h is the whole goal, max(0, 0.4 − h / 10) if it is half of it (the first symbol is
  right), 0 for anything else, minus 0.02 for each filler `~` in all replies so far; at least 0.
A guess is half right, and half a goal loses value over time: answering at once is the best choice
in the first turn, and nearly worthless in the last.

Scores of scripted styles if the dialogue ends with turn 0, ..., 4 (10 symbols):
  perfect     asks until it knows, then answers     0.000  0.900  0.993  0.993  0.992
  initial     asks in 15 % of the first turns       0.387  0.463  0.403  0.325  0.264
  at once     never asks, listens                   0.461  0.425  0.352  0.271  0.190
  behaviour   never asks, never listens, fillers    0.440  0.329  0.220  0.109  0.090

The initial style generates the demonstrations, so asking is in the support of a policy that
imitates them. Asking first improves it by 0.56 if every dialogue ends with turn 4, and by 0.06
under the distribution of REFUEL's setting one, where the first turn is often the last. The
behaviour style generates the offline dialogues: prefixes where the user is almost always terse.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxrl_llm import checks
from jaxrl_llm.data import dialogues as dialogues_lib
from jaxrl_llm.data import tokenizers
from jaxrl_llm.data.dialogues import Dialogues
from jaxrl_llm.tasks import config as config_lib
from jaxrl_llm.types import STOPPED, Example, Task

SYMBOLS = 'abcdefghijkl'
SIGNS = '?~!=+.-'  # Ask, filler; first message, reveal, confirm, not heard, terse.
REPLY_SLOTS = 4  # A filler, two symbols, the stop token.
MESSAGE_SLOTS = 3
PROMPT_SLOTS = 2
_MAX_TURNS = 16
_MAX_EXAMPLES = 1_000_000  # Per split.


class Style(NamedTuple):
  """Style of a scripted assistant.

  Attributes:
    ask: probability of asking where allowed: early, goal unknown, the user not terse.
    listen: probability of answering with the revealed goal; it guesses otherwise.
    filler: probability of a filler before a reply.
  """

  ask: float
  listen: float
  filler: float


PERFECT = Style(ask=1.0, listen=1.0, filler=0.0)
INITIAL = Style(ask=0.15, listen=0.8, filler=0.2)
AT_ONCE = Style(ask=0.0, listen=1.0, filler=0.0)
BEHAVIOUR = Style(ask=0.0, listen=0.0, filler=1.0)


@dataclasses.dataclass(frozen=True)
class Rules:
  """The rules of the user and of the rewards. The example id determines the goal.

  Attributes:
    num_turns: H.
    num_symbols: A; goal number id mod A² is (id // A mod A, id mod A).
    early_turns: number of first turns in which a question is answered.
    attention: probability that the user listens to a reply.
    half: reward of half the goal in the first turn; it falls to 0 by the fifth.
    filler_cost: cost of each filler.
  """

  num_turns: int = 5
  num_symbols: int = 10
  early_turns: int = 2
  attention: float = 0.9
  half: float = 0.4
  filler_cost: float = 0.02

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(self, '', num_turns=1, num_symbols=2, early_turns=0)
    checks.at_most(
        self, '', num_turns=_MAX_TURNS, num_symbols=len(SYMBOLS), early_turns=_MAX_TURNS)
    checks.fraction(self, '', 'attention', 'half', 'filler_cost')

  @property
  def tokenizer(self) -> tokenizers.CharacterTokenizer:
    """The tokenizer: id 0 is pad, 1 is stop, then the symbols and the signs."""
    return tokenizers.CharacterTokenizer(SYMBOLS[: self.num_symbols] + SIGNS)

  def sign(self, character: str) -> int:
    """Returns the id of one of `SIGNS`."""
    return 2 + self.num_symbols + SIGNS.index(character)

  def goals(self, example_ids: np.ndarray) -> np.ndarray:
    """Returns the ids of the two goal symbols, int32 [..., 2]."""
    ids = np.asarray(example_ids)
    return np.stack([2 + ids // self.num_symbols % self.num_symbols, 2 + ids % self.num_symbols],
                    axis=-1).astype(np.int32)

  def start(self, example_ids: np.ndarray) -> Dialogues:
    """Makes the dialogues of examples before the first reply."""
    goals = self.goals(example_ids)
    prompts = np.stack([np.full(goals.shape[:-1], self.sign('!')), goals[..., 0]], axis=-1)
    return dialogues_lib.empty(
        prompts, np.full(goals.shape[:-1], PROMPT_SLOTS), example_ids, num_turns=self.num_turns,
        reply_slots=REPLY_SLOTS, message_slots=MESSAGE_SLOTS)

  def asks(self, dialogues: Dialogues) -> np.ndarray:
    """Returns whether each reply is the question, bool [..., H]."""
    first, _, count = self._contents(dialogues)
    return (first == self.sign('?')) & (count == 1)

  def rewards(self, dialogues: Dialogues) -> np.ndarray:
    """Computes the reward up to each turn, float32 [..., H]; NaN for turns without a reply."""
    first, second, count = self._contents(dialogues)
    goals = self.goals(dialogues.example_ids)[..., None, :]
    is_symbol = (second >= 2) & (second < 2 + self.num_symbols)
    half = (count == 2) & is_symbol & (first == goals[..., 0])

    worth = np.maximum(0.0, self.half * (1 - np.arange(self.num_turns) / 4))
    correct = np.where(half & (second == goals[..., 1]), 1.0, np.where(half, worth, 0.0))

    valid = np.arange(REPLY_SLOTS) < dialogues.reply_lengths[..., None]
    fillers = np.sum((dialogues.replies == self.sign('~')) & valid, axis=-1)
    rewards = np.clip(correct - self.filler_cost * np.cumsum(fillers, axis=-1), 0, 1)
    return np.where(dialogues.reply_lengths > 0, rewards, np.nan).astype(np.float32)

  def user(self, dialogues: Dialogues) -> Sequence[Sequence[int]]:
    """Returns the user's messages after the last replies of n dialogues."""
    turn = dialogues.num_replies - 1

    def last(array: np.ndarray) -> np.ndarray:
      return np.take_along_axis(array, turn[:, None], axis=1)[:, 0]

    goals = self.goals(dialogues.example_ids)
    first, second, count = map(last, self._contents(dialogues))

    asked = last(self.asks(dialogues)) & (turn < self.early_turns)
    right = (count == 2) & (first == goals[:, 0]) & (second == goals[:, 1])

    open_ = ~self._terse(dialogues)
    heard = dialogues.seeds / 2**32 < self.attention
    sign = np.select(
        [~heard, open_ & asked, open_ & right], [self.sign(c) for c in '.=+'], self.sign('-'))
    reveals = heard & open_ & (asked | right)

    messages = np.concatenate([sign[:, None], goals], axis=1)
    return [row[: 3 if revealed else 1] for row, revealed in zip(messages, reveals)]

  def simulate(self, example_ids: np.ndarray, style: Style, *, seed: int) -> Dialogues:
    """Simulates whole dialogues of a scripted assistant; log-probs are unknown (NaN).

    Args:
      example_ids: int32 [n].
      style: style of the assistant.
      seed: seed for both speakers.
    """
    rng = np.random.default_rng([seed, 3])
    dialogues, everyone = self.start(example_ids), np.ones(len(example_ids), bool)
    for turn in range(self.num_turns):
      tokens, lengths = self._speak(dialogues, turn, style, rng)
      dialogues = dialogues.with_replies(
          turn, everyone, tokens=tokens, lengths=lengths,
          log_probs=np.full(tokens.shape, np.nan), stop_reason=np.full(len(tokens), STOPPED))
      if turn + 1 < self.num_turns:
        seeds = rng.integers(2**32, size=len(tokens), dtype=np.uint32)
        dialogues = dataclasses.replace(dialogues, seeds=seeds)
        dialogues = dialogues.with_messages(turn, everyone, self.user(dialogues))
    return dialogues

  def _speak(self, dialogues, turn, style, rng) -> tuple[np.ndarray, np.ndarray]:
    """Returns reply `turn` of a scripted assistant: (tokens [n, R], lengths [n])."""
    chance = rng.random((3, len(dialogues)))
    guess = rng.integers(2, 2 + self.num_symbols, len(dialogues))
    goals = self.goals(dialogues.example_ids)

    knows = self._user_sent(dialogues, '=+')
    may_ask = ~knows & ~self._terse(dialogues) & (turn < self.early_turns)
    ask = may_ask & (chance[0] < style.ask)
    second = np.where(knows & (chance[1] < style.listen), goals[:, 1], guess)

    stop, zero = np.ones_like(guess), np.zeros_like(guess)
    plain = np.where(
        ask, [np.full_like(guess, self.sign('?')), stop, zero, zero],
        [goals[:, 0], second, stop, zero]).T

    filler = chance[2] < style.filler
    filled = np.concatenate([np.full((len(plain), 1), self.sign('~')), plain[:, :-1]], axis=1)
    return np.where(filler[:, None], filled, plain), np.where(ask, 2, 3) + filler

  def _contents(self, dialogues: Dialogues) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (first, second, number) of each reply's tokens without fillers, [..., H].

    The stop token is not counted; a reply without one has no content.
    """
    tokens, stopped = dialogues.replies, dialogues.stop_reason == STOPPED
    content = np.arange(REPLY_SLOTS) < (dialogues.reply_lengths - stopped)[..., None]
    content &= (tokens != self.sign('~')) & stopped[..., None]
    order = np.argsort(~content, axis=-1, kind='stable')
    tokens = np.take_along_axis(tokens, order, axis=-1)
    return tokens[..., 0], tokens[..., 1], np.sum(content, axis=-1)

  def _terse(self, dialogues: Dialogues) -> np.ndarray:
    return self._user_sent(dialogues, '-')

  def _user_sent(self, dialogues: Dialogues, signs: str) -> np.ndarray:
    """Returns whether a message of the user begins with one of the signs, bool [...]."""
    begins = np.isin(dialogues.messages[..., 0], [self.sign(sign) for sign in signs])
    return np.any(begins & (dialogues.message_lengths > 0), axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DialogueTask(Task):
  """The dialogue task. A single response has no reward: `rules.rewards` scores dialogues.

  `train` and `evaluation` have 'id', 'prompt' and 'answer' (the goal); `demonstrations` are whole
  dialogues of the initial style, with 'ids' and 'loss_mask'.

  Attributes:
    rules: the rules; its methods implement the user and the rewards.
    offline: whole dialogues of the behaviour policy, one per example of `train`, in order.
  """

  rules: Rules
  offline: Dialogues


@dataclasses.dataclass
class Config(config_lib.TaskConfig):
  """Config of the task.

  Ids of the three sets are disjoint. In each set the counts of any two goals differ by at most one.

  Attributes:
    num_demonstrations: number of whole dialogues of the initial policy, for supervised fine-tuning.
    num_train: number of prompts, and of offline dialogues.
    num_evaluation: number of held-out prompts.
    num_turns: H.
  """

  num_demonstrations: int = 4_000
  num_train: int = 2_000
  num_evaluation: int = 500
  num_turns: int = 5

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(self, prefix, num_demonstrations=0, num_train=0, num_evaluation=0, num_turns=1)
    checks.at_most(
        self, prefix, num_demonstrations=_MAX_EXAMPLES, num_train=_MAX_EXAMPLES,
        num_evaluation=_MAX_EXAMPLES, num_turns=_MAX_TURNS)

  @property
  def rules(self) -> Rules:
    """The rules."""
    return Rules(num_turns=self.num_turns)

  def make(
      self,
      seed: int,
      data_dir: str | pathlib.Path = '',
      policy: config_lib.PolicyTokenizer = config_lib.FROM_SCRATCH,
  ) -> DialogueTask:
    """See `TaskConfig.make`."""
    del policy  # Messages are encoded by character.
    self.validate('config.task')
    config_lib.reject_data_dir(data_dir, 'dialogue')

    rules = self.rules
    rules.validate()
    rng = np.random.default_rng([seed, 0])
    demonstrated, train, evaluation = (
        _draw_ids(rng, size, part, rules.num_symbols**2)
        for part, size in enumerate(
            (self.num_demonstrations, self.num_train, self.num_evaluation)))
    slots = rules.num_turns * REPLY_SLOTS + (rules.num_turns - 1) * MESSAGE_SLOTS

    return DialogueTask(
        name=f'dialogue_{rules.num_turns}_turns',
        tokenizer=rules.tokenizer,
        demonstrations=_demonstrate(rules, demonstrated, seed),
        train=_examples(rules, train),
        evaluation=_examples(rules, evaluation),
        reward_fn=None,
        lenient_reward_fn=None,
        max_prompt_tokens=PROMPT_SLOTS,
        max_response_tokens=slots,
        rules=rules,
        offline=rules.simulate(train, BEHAVIOUR, seed=seed + 1),
    )


def _draw_ids(rng: np.random.Generator, size: int, part: int, num_goals: int) -> np.ndarray:
  """Draws `size` ids of part 0, 1 or 2: rounds over all goals, the last one a random subset."""
  rounds = -(-size // num_goals)
  goals = [rng.permutation(num_goals) for _ in range(rounds)]
  ids = [goal + (3 * index + part) * num_goals for index, goal in enumerate(goals)]
  return rng.permutation(np.concatenate([np.zeros(0, np.int64), *ids])[:size]).astype(np.int32)


def _examples(rules: Rules, ids: np.ndarray) -> list[Example]:
  symbols = rules.goals(ids) - 2
  return [
      {'id': int(index), 'prompt': f'!{SYMBOLS[first]}', 'answer': SYMBOLS[first] + SYMBOLS[second]}
      for index, (first, second) in zip(ids, symbols)
  ]


def _demonstrate(rules: Rules, ids: np.ndarray, seed: int) -> list[Example]:
  """Makes whole dialogues as ids, with a loss mask on the assistant's tokens."""
  dialogues = rules.simulate(ids, INITIAL, seed=seed)
  continuation = dialogues.continuation()
  marks = np.pad(continuation.mask > 0, [(0, 0), (PROMPT_SLOTS, 0)])
  tokens = np.concatenate([dialogues.prompts, continuation.tokens], axis=1)
  return [
      {**example, 'ids': tokens[row, :length], 'loss_mask': marks[row, :length]}
      for row, (example, length) in enumerate(zip(
          _examples(rules, ids), PROMPT_SLOTS + continuation.lengths))
  ]
