"""Voting rules of tasks: the answer that a response votes for."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxrl_llm.evaluation import majority
from jaxrl_llm.rewards import countdown as countdown_reward
from jaxrl_llm.rewards import math_answer, rollout_rewards
from jaxrl_llm.tasks import config as task_config
from jaxrl_llm.tasks import countdown, gsm8k, jsonl, noisy_sum


class VotingRule(NamedTuple):
  """Voting rule for the samples of a problem.

  Attributes:
    answer: maps a response to the answer it votes for, or None.
    same: function that is True for two texts with the same answer; None means string equality.
  """

  answer: Callable[[str], str | None]
  same: Callable[[str, str], bool] | None

  def groups(self, scored: rollout_rewards.Scored) -> np.ndarray:
    """Returns the answer of each sample as a number, int [P, K]; see `majority.group_answers`."""
    return np.array([
        self.group(texts, cut) for texts, cut in zip(scored.responses, scored.truncated)])

  def group(self, responses: Sequence[str], truncated: Sequence[bool]) -> list[int]:
    """Returns the answers to one problem as numbers; a truncated response abstains."""
    return majority.group_answers(
        [None if cut else self.answer(text) for text, cut in zip(responses, truncated)], self.same)


def of_task(task: task_config.TaskConfig) -> VotingRule:
  """Returns the voting rule for a task's config.

  Answers are compared as mathematics if the task grades mathematics. A Countdown response votes for
  its expression, running sums for the last one; for other tasks the whole response is the answer.
  """
  is_own = isinstance(task, jsonl.Config)
  mode = 'gsm8k' if isinstance(task, gsm8k.Config) else task.mode if is_own else ''

  if mode:
    return VotingRule(
        lambda response: math_answer.extract(response, mode=mode), math_answer.equal)
  if isinstance(task, countdown.Config) or (is_own and task.reward == 'countdown'):
    return VotingRule(countdown_reward.extract_expression, None)
  if isinstance(task, noisy_sum.Config):
    return VotingRule(lambda response: noisy_sum.answer_of(response, task.num_sums), None)
  return VotingRule(str.strip if is_own else lambda response: response, None)
