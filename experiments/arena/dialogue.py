"""Dialogue in the arena: pairs of replies for training, and scores of whole dialogues.

REFUEL and its baselines differ in the dialogue before the two replies (their own, or one by another
policy) and in the turn that is optimised (sampled, or the last one). All else is the arena's:
prompts, reference, budget and evaluation.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.arena import config as arena_config
from experiments.arena import tasks as arena_tasks
from jaxrl_llm.algorithms import refuel
from jaxrl_llm.data import batching
from jaxrl_llm.data.dialogues import Dialogues
from jaxrl_llm.evaluation import statistics
from jaxrl_llm.sampling import dialogue as dialogue_sampling
from jaxrl_llm.tasks import dialogue as dialogue_task
from jaxrl_llm.tasks import users
from jaxrl_llm.training import rng
from jaxrl_llm.types import STOPPED, Batch, Params, Task


class DialogueArenaTask(arena_tasks.ArenaTask):
  """Jitted functions of the dialogue task; a response is one reply."""

  def __init__(self, config: arena_config.ArenaTaskConfig, seed: int):
    super().__init__(config, seed)
    self.max_tokens = dialogue_task.REPLY_SLOTS

  def make_seed(self, seed: int, task: Task) -> 'DialogueArenaSeed':
    """Makes one seed, without its networks yet."""
    return DialogueArenaSeed(
        self, seed, task, arena_tasks.encode(task, task.train), reference=None)


class DialogueArenaSeed(arena_tasks.ArenaSeed):
  """One seed of the dialogue task."""

  @functools.cached_property
  def user(self) -> dialogue_sampling.User:
    """The task's user, or with fixed questions a replay of its questions to the initial style.

    The fixed questions come from one dialogue per prompt, for training and evaluation prompts, and
    ignore the replies.
    """
    rules = self.task.rules
    if not self.shared.config.task.fixed_questions:
      return rules.user
    ids = np.array([e['id'] for e in (*self.task.train, *self.task.evaluation)], np.int32)
    return users.questions_of(
        rules.simulate(ids, dialogue_task.INITIAL, seed=self.seed + 2))  # + 1: `task.offline`.

  def evaluate(self, params: Params) -> dict[str, float]:
    """Scores whole dialogues of a policy with the user on the held-out prompts.

    Returns:
      'score' of the dialogue up to the last turn (sampled at temperature 1) with its standard
      error over prompts, 'greedy_score', 'turn_1', ... (score up to that turn), 'ask_rate'
      (questions in the first turn), 'kl_to_reference' (nats per dialogue, over the policy's tokens)
      with its standard error, 'length' (the policy's tokens per dialogue) and 'truncated' (fraction
      of replies).
    """
    sampled = [self._hold(params, temperature=1.0, rollout=index)
               for index in range(self.shared.config.eval_samples)]
    greedy = self._hold(params, temperature=0.0)
    means = {
        name: np.mean([numbers[name] for numbers in sampled], axis=0) for name in sampled[0]}

    metrics = {'greedy_score': float(greedy['rewards'][:, -1].mean())}
    for name, values in (('score', means['rewards'][:, -1]), ('kl_to_reference', means['kl'])):
      metrics[name], metrics[f'{name}_se'] = statistics.mean_and_standard_error(values)
    for turn in range(means['rewards'].shape[1]):
      metrics[f'turn_{turn + 1}'] = float(means['rewards'][:, turn].mean())
    metrics['ask_rate'] = float(means['asks'].mean())
    return metrics | {name: float(means[name].mean()) for name in ('length', 'truncated')}

  def _hold(
      self, params: Params, *, temperature: float, rollout: int = 0
  ) -> dict[str, np.ndarray]:
    """Holds one dialogue per held-out prompt; returns 'rewards' [N, H] and other numbers [N]."""
    key = rng.stream_key(self.key, rng.Stream.SAMPLE_EVAL)
    sample = self.shared.sampler(num_samples=1, temperature=temperature)
    parts: list[dict[str, np.ndarray]] = []

    for batch in self.held_out:
      dialogues = dialogue_sampling.roll_out(
          sample, params, self.user, self.task.rules.start(batch.example_ids), key,
          rollout=rollout)
      rollouts, _ = dialogue_sampling.as_rollouts([dialogues], np.zeros(len(dialogues), int))

      numbers = {
          'rewards': self.task.rules.rewards(dialogues),
          'asks': self.task.rules.asks(dialogues)[:, 0],
          'kl': np.asarray(self.shared.kl(params, self.reference, rollouts))[:, 0],
          'length': dialogues.reply_lengths.sum(axis=1),
          'truncated': (dialogues.stop_reason != STOPPED).mean(axis=1),
      }
      parts.append({name: x[: len(batch.examples)] for name, x in numbers.items()})

    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def batch(
    arm, arena: DialogueArenaSeed, behaviour: Params, index: int, count: int, usage, clock
) -> Batch:
  """Draws one iteration's pairs: two dialogues per prompt from one shared state, with rewards.

  Args:
    arm: the algorithm; its config gives the position of the pair
      (`arena_config.DialogueArmConfig`).
    arena: one seed of the task.
    behaviour: parameters of the policy that samples the replies.
    index: index of the iteration.
    count: prompts per iteration.
    usage: counter of samples.
    clock: timer of the phases.

  Returns:
    The batch. For algorithms other than REFUEL, its mask already covers only the turn.
  """
  size = arm.shared.config.batch_completions // arm.num_samples  # Prompts per sampler call.
  parts = [_pairs(arm, arena, behaviour, (index * count + first) // size, size, usage, clock)
           for first in range(0, count, size)]
  whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
  if arm.config.file == 'refuel':
    return whole
  return dataclasses.replace(jax.device_get(refuel.only_turn(whole)), aux={})


def _pairs(arm, arena, behaviour, step, size, usage, clock) -> Batch:
  """Draws the pairs of `size` prompts; `step` counts these parts over the whole run."""
  rows = batching.batch_indices(len(arena.encoded), size, seed=arena.seed, step=step)
  rules, temperature = arena.task.rules, arm.config.algorithm.temperature
  ids = arena.encoded.ids[rows]
  key = rng.stream_key(arena.key, rng.Stream.SAMPLE_TRAIN, step)
  turns = _turns(arm.config.turn, key, ids, rules.num_turns)

  # With a prefix that is not the policy's own, the dialogue before the turn is not sampled.
  is_offline = {
      'own': False, 'offline': True, 'mixed': np.arange(size) % 2 == 1}[arm.config.prefix]
  start = np.where(is_offline, turns.turn, 0)
  roll_out = functools.partial(
      dialogue_sampling.roll_out, arena.shared.sampler(num_samples=1, temperature=temperature),
      behaviour, arena.user, key=key, num_turns=turns.num_turns)

  with clock('sample'):
    first = roll_out(arena.task.offline[rows], start=start)
    second = roll_out(first, rollout=1, start=turns.turn)

  pair = [first, second]
  with clock('reward'):
    rewards = np.stack([_final_score(rules, each, turns.num_turns) for each in pair], axis=1)
  usage.count(
      completions=2 * size, tokens=first.reply_tokens(start).sum()
      + second.reply_tokens(turns.turn).sum())

  rollouts, aux = dialogue_sampling.as_rollouts(pair, turns.turn)
  with clock('reference'):
    reference = np.asarray(
        arena.shared.scorer(temperature=temperature)(arena.reference, rollouts))
  return Batch(rollouts, rewards, reference, aux, np.ones(size, np.float32))


def _turns(
    distribution: str, key: jax.Array, ids: np.ndarray, num_turns: int
) -> dialogue_sampling.Turns:
  """Picks the turn to optimise: sampled by setting 'one' or 'two', or a dialogue's last turn."""
  if distribution != 'last':
    return dialogue_sampling.draw_turns(key, jnp.asarray(ids), num_turns, setting=distribution)
  return dialogue_sampling.Turns(
      np.full(len(ids), num_turns - 1, np.int32), np.full(len(ids), num_turns, np.int32))


def _final_score(
    rules: dialogue_task.Rules, dialogues: Dialogues, num_turns: np.ndarray
) -> np.ndarray:
  """Score of the dialogue up to its last turn, float32 [P]."""
  return np.take_along_axis(rules.rewards(dialogues), num_turns[:, None] - 1, axis=1)[:, 0]
