"""Batches of REFUEL: prompts, pairs of dialogues, their rewards, log-probs under π_ref."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.refuel import config as refuel_config
from experiments.refuel import dialogues as refuel_dialogues
from jaxrl_llm.data import batching, dialogue_rows
from jaxrl_llm.data import dialogues as dialogues_lib
from jaxrl_llm.data.dialogues import Dialogues
from jaxrl_llm.runs import policy_evaluation, reward_models
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.sampling import decode, dialogue
from jaxrl_llm.training import loop
from jaxrl_llm.types import TRUNCATED, Array, Batch, Example, Params, Rollouts


class Pair(NamedTuple):
  """Two dialogues for each of P prompts, equal up to the user's message before turn h.

  Attributes:
    first: the first roll-out.
    second: the roll-out that restarts at turn h.
    turn: int32 [P]; h, from 0.
    num_turns: int32 [P]; number of replies in each of the two.
  """

  first: Dialogues
  second: Dialogues
  turn: np.ndarray
  num_turns: np.ndarray

  @property
  def tokens(self) -> int:
    """Number of tokens that the policy sampled."""
    resampled = np.arange(self.second.reply_lengths.shape[-1]) >= self.turn[:, None]
    return int(self.first.reply_lengths.sum() + (self.second.reply_lengths * resampled).sum())


def sampler(setup: setup_lib.Setup, *, temperature: float):
  """Jitted sampler of one reply."""
  tokenizer = setup.task.tokenizer
  return jax.jit(decode.make_sampler(
      setup.policy, num_samples=1, max_tokens=setup.task.max_reply_tokens,
      stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id, temperature=temperature))


class DialogueSampler:
  """A policy in dialogue with a user, at one temperature."""

  def __init__(self, setup: setup_lib.Setup, *, temperature: float, widths: str):
    """Creates the sampler; compiles nothing yet.

    Args:
      setup: components of the run; the task is a `refuel_dialogues.DialogueTask`.
      temperature: sampling temperature of the policy.
      widths: see `dialogue.roll_out`.
    """
    self._setup, self._widths = setup, widths
    self._sample = sampler(setup, temperature=temperature)

  def start(self, prompts: batching.PromptBatch) -> Dialogues:
    """Dialogues that contain only the user's first turn."""
    task = self._setup.task
    return dialogues_lib.empty(
        *map(np.asarray, prompts[:3]), num_turns=task.num_turns, reply_slots=task.max_reply_tokens,
        message_slots=task.max_message_tokens, pad_id=task.tokenizer.pad_id)

  def __call__(
      self, params: Params, user: dialogue.User, dialogues: Dialogues, key: Array, *,
      rollout: int = 0, start: int | np.ndarray = 0, num_turns: np.ndarray,
  ) -> Dialogues:
    """Continues dialogues from turn `start`; see `dialogue.roll_out`."""
    return dialogue.roll_out(
        self._reply, params, user, dialogues, key, rollout=rollout, start=start,
        num_turns=num_turns, close_ids=self._setup.task.frame.close_ids, widths=self._widths)

  def num_turns(self, example_ids: np.ndarray) -> np.ndarray:
    """int32 [P]; maximum number of replies in each dialogue: its number of questions, or H."""
    task, config = self._setup.task, self._setup.config
    if config.user.kind == 'fixed':
      return task.questions.num_turns(example_ids)
    return np.full(np.shape(example_ids), task.num_turns, np.int32)

  def _reply(self, params, transcripts, lengths, example_ids, key) -> Rollouts:
    """Samples one reply to each transcript, cut at the limit for its number of turns."""
    task = self._setup.task
    # With limits by number of turns, no dialogue reaches the leftmost columns.
    transcripts = transcripts[:, -task.max_transcript_tokens:]
    rollouts = self._sample(params, *self._setup.put((transcripts, lengths, example_ids)), key)
    if not task.reply_limits:
      return rollouts

    turns = self.num_turns(example_ids).tolist()
    most = np.array([task.reply_limits[count] for count in turns], np.int32)[:, None]
    lengths, reasons = np.asarray(rollouts.lengths), np.asarray(rollouts.stop_reason)
    # Tokens after the length are ignored.
    return dataclasses.replace(
        rollouts, lengths=np.minimum(lengths, most),
        stop_reason=np.where(lengths > most, TRUNCATED, reasons).astype(np.int8))


class DialogueScorer:
  """Scores whole dialogues with the reward model.

  The last reply is the response, and everything before it the prompt. A reward model that reads ids
  gets those of the dialogue; any other one gets the conversation as messages.
  """

  def __init__(self, setup: setup_lib.Setup, reward: reward_models.RewardModel):
    self._task, self._put, self._reward = setup.task, setup.put, reward

  def __call__(
      self, dialogues: Dialogues, last: np.ndarray, *, stopped: np.ndarray | None = None,
      num_micro_batches: int = 1,
  ) -> reward_models.Scored:
    """Scores each dialogue up to its reply `last`.

    Args:
      dialogues: N dialogues.
      last: int [N]; index of an existing reply.
      stopped: int [N]; the reply that must end with a stop token, `last` by default.
      num_micro_batches: divides N.

    Returns:
      Scores and rewards [N, 1]; total lengths of the replies; whether reply `stopped` was
      truncated.
    """
    stopped = last if stopped is None else stopped

    def at(array, turn):
      return np.take_along_axis(array, turn.reshape(-1, *[1] * (array.ndim - 1)), axis=1)

    reply, lengths = at(dialogues.replies, last), at(dialogues.reply_lengths, last)
    before = dialogues.cut(last)
    transcripts, transcript_lengths = before.transcript(dialogues.replies.shape[1] - 1)
    mask = (np.arange(reply.shape[-1]) < lengths[..., None]).astype(np.float32)
    rollouts = Rollouts(
        prompts=transcripts[:, -self._task.max_transcript_tokens:],
        prompt_lengths=transcript_lengths, tokens=reply, lengths=lengths, mask=mask,
        log_probs=at(dialogues.log_probs, last), stop_reason=at(dialogues.stop_reason, stopped))

    scored = self._reward(
        self._put(rollouts), self._examples(before), num_micro_batches=num_micro_batches)
    scored_replies = np.arange(dialogues.reply_lengths.shape[1]) <= last[:, None]
    lengths = (dialogues.reply_lengths * scored_replies).sum(axis=1, keepdims=True)
    return scored._replace(lengths=lengths)

  def _examples(self, before: Dialogues) -> list[Example]:
    """Examples for the reward model; if it reads text, with the messages up to the last reply."""
    task: refuel_dialogues.DialogueTask = self._task
    known = [task.examples[int(index)] for index in before.example_ids]
    if self._reward.config.template == 'same':
      return known
    return [
        {**example, 'messages': task.messages(before, row)} for row, example in enumerate(known)]


class BatchBuilder:
  """Builds batches of pairs.

  Attributes:
    sampler: samples dialogues of the policy, at the training temperature.
    scorer: scores dialogues.
  """

  def __init__(self, setup: setup_lib.Setup, reward: reward_models.RewardModel):
    config: refuel_config.Refuel = setup.config
    algorithm = config.algorithm
    self._config, self._setup = config, setup
    self._prompts = setup.encode(setup.task.train)
    self.sampler = DialogueSampler(
        setup, temperature=algorithm.temperature, widths=config.widths)
    self.scorer = DialogueScorer(setup, reward)
    self._log_probs = setup.scorer(
        temperature=algorithm.temperature, chunk_size=algorithm.head_chunk,
        num_micro_batches=config.num_parts)

  def prompts(self, step: int) -> batching.PromptBatch:
    """The training prompts of a step."""
    config = self._config
    return batching.prompt_batch(self._prompts, batching.batch_indices(
        len(self._prompts), config.batch_size, seed=config.seed, step=step))

  def roll_out(
      self, params: Params, user: dialogue.User, prompts: batching.PromptBatch, key: Array
  ) -> Pair:
    """Rolls out two dialogues per prompt, `rollouts_at_once` prompts at a time."""
    size, pairs = self._config.rollouts_at_once, []
    starts = range(0, len(prompts.examples), size)
    if len(starts) == 1:
      return self._two(params, user, prompts, key)

    with loop.progress(len(starts), 'dialogues') as bar:
      for index, start in enumerate(starts):
        some = batching.PromptBatch(*(part[start : start + size] for part in prompts))
        # A prompt that occurs twice in a batch gets different noise in another chunk.
        pairs.append(self._two(params, user, some, jax.random.fold_in(key, index)))
        bar.update(1)
    return Pair(*map(_join, zip(*pairs)))

  def _two(self, params, user, prompts, key) -> Pair:
    sample = self.sampler
    turn, num_turns = dialogue.draw_turns(
        key, prompts.example_ids, sample.num_turns(prompts.example_ids), setting=self._config.law)
    first = sample(params, user, sample.start(prompts), key, num_turns=num_turns)
    second = sample(params, user, first, key, rollout=1, start=turn, num_turns=num_turns)
    return Pair(first, second, turn, num_turns)

  def score(self, pair: Pair) -> reward_models.Scored:
    """Scores both dialogues of each prompt, [P, 2]; reply h must have stopped."""
    both = [
        self.scorer(
            dialogues, pair.num_turns - 1, stopped=pair.turn,
            num_micro_batches=self._config.num_parts)
        for dialogues in (pair.first, pair.second)
    ]
    return reward_models.Scored(*(np.concatenate(two, axis=1) for two in zip(*both)))

  def build(self, pair: Pair, scored: reward_models.Scored, reference: Params) -> Batch:
    """Builds the batch on the devices: dialogues up to turn h. Later turns only affect the rewards.

    Args:
      pair: the dialogues.
      scored: their rewards.
      reference: parameters of π_ref.
    """
    until = [dialogues.cut(pair.turn + 1) for dialogues in (pair.first, pair.second)]
    rollouts, aux = as_rollouts(until, pair.turn, self._width)
    rollouts = self._setup.put(rollouts)
    log_probs = None
    if self._config.algorithm.kl_coefficient:
      log_probs = self._log_probs(reference, rollouts)
    weight = self._filter(pair).keep.astype(np.float32)
    return self._setup.put(Batch(rollouts, scored.rewards, log_probs, aux, weight))

  def summary(self, pair: Pair, scored: reward_models.Scored) -> dict[str, float]:
    """Metrics of a batch; non-finite scores are excluded."""
    return {
        **policy_evaluation.summarize(scored, scored.rewards, self._config.algorithm.eta),
        'rollout/turn': float(pair.turn.mean()), 'rollout/num_turns': float(pair.num_turns.mean()),
        **{f'rollout/left_out/{name}': float(count)
           for name, count in self._filter(pair).dropped.items()},
    }

  @property
  def _width(self) -> int:
    """Slots after the prompt that a kept pair can use."""
    most = self._setup.task.max_response_tokens
    return min(most, self._config.max_tokens) if self._config.max_tokens else most

  def _filter(self, pair: Pair) -> dialogue_rows.PairFilter:
    """Which pairs are kept; the train step handles those with a failed score."""
    if not self._config.max_tokens:
      return dialogue_rows.PairFilter(np.ones(len(pair.turn), bool), {})
    return dialogue_rows.keep_pairs(
        pair.first, pair.second, pair.turn, max_tokens=self._config.max_tokens)


def as_rollouts(
    samples: Sequence[Dialogues], turn: np.ndarray, width: int
) -> tuple[Rollouts, dict[str, np.ndarray]]:
  """`dialogue.as_rollouts` with `width` slots after the prompts.

  Slots beyond that hold padding, or belong to a pair that is left out.
  """
  rollouts, aux = dialogue.as_rollouts(samples, turn)
  cut = {name: getattr(rollouts, name)[..., :width] for name in ('tokens', 'mask', 'log_probs')}
  cut['lengths'] = np.minimum(rollouts.lengths, width)
  return dataclasses.replace(rollouts, **cut), {**aux, 'turns': aux['turns'][..., :width]}


def _join(parts: Sequence[Dialogues | np.ndarray]) -> Dialogues | np.ndarray:
  """Concatenates arrays or dialogues."""
  if isinstance(parts[0], np.ndarray):
    return np.concatenate(parts)
  names = [field.name for field in dataclasses.fields(Dialogues) if field.name != 'pad_id']
  return dataclasses.replace(parts[0], **{
      name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
