"""Evaluation of REFUEL: dialogues with the user, scored turn by turn by the reward model."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from experiments.refuel import batches as refuel_batches
from experiments.refuel import users as refuel_users
from jaxrl_llm.data.dialogues import Dialogues
from jaxrl_llm.evaluation import statistics, win_rate
from jaxrl_llm.runs import policy_evaluation, reward_models
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.sampling import dialogue
from jaxrl_llm.training import metrics, rng
from jaxrl_llm.types import TRUNCATED, Example, Params


class Evaluation(policy_evaluation.Evaluation):
  """Rolls out dialogues for the held-out prompts with fixed noise, and scores them.

  Metrics are those of `policy_evaluation.Evaluation`, where a response is a whole dialogue:
  `score` is that of its last turn, `length` and `kl_to_reference` are sums over its replies,
  `truncated` is a share of them. In addition, for each turn, from 1, `turn_1/score` of dialogues up
  to it; for a user that is asked for a mark, `unmarked`, the share of messages without it.

  Attributes:
    turn_scores: float [N, K, H] of the last call; NaN where a dialogue has fewer turns.
  """

  def __init__(
      self, setup: setup_lib.Setup, reward: reward_models.RewardModel,
      samples: metrics.JsonlFile, users: refuel_users.Users, builder: refuel_batches.BatchBuilder,
  ):
    """Creates the evaluation; compiles nothing yet.

    Args:
      setup: components of the run.
      reward: the reward model.
      samples: JSONL file of example dialogues.
      users: makes the user from the reference's parameters.
      builder: has the dialogue sampler and scorer of training.
    """
    super().__init__(setup, reward, samples)
    config = setup.config
    self._users, self._scorer = users, builder.scorer
    self._sample = self._decode = builder.sampler
    if config.evaluation.temperature != config.algorithm.temperature:
      self._decode = refuel_batches.DialogueSampler(
          setup, temperature=config.evaluation.temperature, widths=config.widths)

    self._user: dialogue.User | None = None
    self._batch_turn_scores: list[np.ndarray] = []  # Of this call.
    self._last_turn_scores: list[np.ndarray] = []  # Of the last two calls.

  @property
  def turn_scores(self) -> np.ndarray:
    """See the class docstring."""
    return self._last_turn_scores[-1]

  def __call__(
      self, params: Params, reference: Params, *, step: int | None = None
  ) -> dict[str, float]:
    """Evaluates and returns numbers by flat name; arguments as in the parent class."""
    self._user, self._batch_turn_scores = self._users(reference), []
    numbers = super().__call__(params, reference, step=step) | self._users.unmarked()
    self._last_turn_scores = [
        *self._last_turn_scores[-1:], np.concatenate(self._batch_turn_scores)]

    for turn, scores in enumerate(np.moveaxis(self.turn_scores, -1, 0), 1):
      values = scores.mean(axis=1)
      if np.isfinite(values).any():
        mean, error = statistics.mean_and_standard_error(values[np.isfinite(values)])
        numbers |= {f'turn_{turn}/score': mean, f'turn_{turn}/score_se': error}
    return numbers

  def against_reference(self, params: Params, reference: Params) -> dict[str, float]:
    """The parent's comparison, and the win rate of dialogues up to each turn."""
    numbers = super().against_reference(params, reference)
    for turn in range(self.turn_scores.shape[-1]):
      mine, theirs = (scores[..., turn] for scores in self._last_turn_scores)
      both = np.isfinite(mine).all(axis=1) & np.isfinite(theirs).all(axis=1)
      numbers[f'eval/dialogues/turn_{turn + 1}'] = int(both.sum())
      if both.any():
        name = f'eval/trained/turn_{turn + 1}/win_rate'
        numbers[name], numbers[f'{name}_se'] = win_rate.win_rate(mine[both], theirs[both])
    return numbers

  def _score(
      self, sample: refuel_batches.DialogueSampler, params: Params, kind: str, step: int | None,
      reference: Params | None = None,
  ) -> Iterator[dict[str, Any]]:
    """Yields the results of each batch, without the padding of the last one."""
    key = rng.stream_key(self._setup.key, rng.Stream.SAMPLE_EVAL)
    shown = 0 if step is None else self._config.num_shown
    for batch in self._batches:
      num_turns = sample.num_turns(np.asarray(batch.example_ids))
      samples = [
          sample(params, self._user, sample.start(batch), key, rollout=index, num_turns=num_turns)
          for index in range(self._config.num_samples if reference is not None else 1)
      ]

      row = self._score_turns(samples, num_turns)
      real = len(batch.examples)
      if reference is not None:
        rollouts, _ = refuel_batches.as_rollouts(
            samples, num_turns - 1, self._setup.task.max_response_tokens)
        row['kl_to_reference'] = np.asarray(
            self._kl(params, reference, self._setup.put(rollouts)))
        self._batch_turn_scores.append(row['turn_scores'][:real])

      self._write(samples[0], row, batch.examples[:shown], kind, step)
      shown -= min(shown, real)
      yield {name: values[:real] for name, values in row.items()}

  def _score_turns(
      self, samples: list[Dialogues], num_turns: np.ndarray
  ) -> dict[str, np.ndarray]:
    """Scores, rewards, lengths and truncated replies [P, K], and scores by turn [P, K, H]."""
    rows = []
    for dialogues in samples:
      by_turn = []
      for turn in range(dialogues.reply_lengths.shape[1]):
        last = np.minimum(turn, num_turns - 1)
        scored = self._scorer(dialogues, last)
        by_turn.append(np.where(turn < num_turns[:, None], scored.scores, np.nan))

      reached = dialogues.reply_lengths > 0
      cut = (reached & (dialogues.stop_reason == TRUNCATED)).sum(axis=1) / num_turns
      # The last `scored` is of whole dialogues, for any number of turns.
      rows.append({
          **scored._asdict(), 'truncated': cut[:, None],
          'turn_scores': np.stack(by_turn, axis=-1),
      })
    return {name: np.concatenate([row[name] for row in rows], axis=1) for name in rows[0]}

  def _write(
      self, dialogues: Dialogues, row: Mapping[str, Any], examples: list[Example], kind: str,
      step: int | None,
  ) -> None:
    """Writes whole dialogues to the JSONL file of examples."""
    task = self._setup.task
    for i, example in enumerate(examples):
      count = int(dialogues.num_replies[i])
      reasons = dialogues.stop_reason[i, :count]
      self._samples.write({
          'step': step, 'kind': kind, 'id': example['id'],
          'messages': task.messages(dialogues, i), 'score': float(row['scores'][i, 0]),
          'turn_scores': row['turn_scores'][i, 0, :count].tolist(),
          'stop_reasons': [
              'truncated' if reason == TRUNCATED else 'stopped' for reason in reasons],
      })
