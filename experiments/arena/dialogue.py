"""Dialogue in the arena: pairs of replies for training, and scores of whole dialogues.

REFUEL and its baselines differ in the dialogue before the two replies (their own, or one by another
policy) and in the turn that is optimised (sampled, or the last one). All else is the arena's:
prompts, reference, budget and evaluation.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.arena import tasks as arena_tasks
from jaxrl_llm.algorithms import refuel
from jaxrl_llm.data import batching
from jaxrl_llm.data.dialogues import Dialogues
from jaxrl_llm.evaluation import statistics
from jaxrl_llm.sampling import dialogue as talking
from jaxrl_llm.tasks import dialogue as dialogue_task
from jaxrl_llm.tasks import users
from jaxrl_llm.training import rng
from jaxrl_llm.types import STOPPED, Batch, Params, Task


class World(arena_tasks.World):
  """Jitted functions of the dialogue task; a response is one reply."""

  def __init__(self, settings: Any, seed: int):
    super().__init__(settings, seed)
    self.max_tokens = dialogue_task.REPLY_SLOTS

  def ground(self, seed: int, task: Task) -> 'Ground':
    """Makes one seed, without its networks yet."""
    return Ground(self, seed, task, arena_tasks.encode(task, task.train), reference=None)


class Ground(arena_tasks.Ground):
  """One seed of the dialogue task."""

  @functools.cached_property
  def user(self) -> talking.User:
    """The task's user, or with fixed questions a replay of its questions to the initial style.

    The fixed questions come from one dialogue per prompt, for training and evaluation prompts, and
    ignore the replies.
    """
    rules = self.task.world
    if not self.world.settings.task.fixed_questions:
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
               for index in range(self.world.settings.eval_samples)]
    mean = lambda name: np.mean([part[name] for part in sampled], axis=0)
    numbers = {'greedy_score': float(self._hold(params, temperature=0.0)['rewards'][:, -1].mean())}
    rewards = mean('rewards')
    for name, values in (('score', rewards[:, -1]), ('kl_to_reference', mean('kl'))):
      numbers[name], numbers[f'{name}_se'] = statistics.mean_and_standard_error(values)
    for turn in range(rewards.shape[1]):
      numbers[f'turn_{turn + 1}'] = float(rewards[:, turn].mean())
    numbers['ask_rate'] = float(mean('asks').mean())
    return numbers | {name: float(mean(name).mean()) for name in ('length', 'truncated')}

  def _hold(
      self, params: Params, *, temperature: float, rollout: int = 0
  ) -> dict[str, np.ndarray]:
    """Holds one dialogue per held-out prompt; returns 'rewards' [N, H] and other numbers [N]."""
    key = rng.stream_key(self.key, rng.Stream.SAMPLE_EVAL)
    sample = self.world.sampler(num_samples=1, temperature=temperature)
    parts: list[dict[str, np.ndarray]] = []

    for batch in self.held_out:
      said = talking.roll_out(
          sample, params, self.user, self.task.world.start(batch.example_ids), key,
          rollout=rollout)
      rollouts, _ = talking.as_rollouts([said], np.zeros(len(said), int))
      numbers = {
          'rewards': self.task.world.rewards(said), 'asks': self.task.world.asks(said)[:, 0],
          'kl': np.asarray(self.world.kl(params, self.reference, rollouts))[:, 0],
          'length': said.reply_lengths.sum(axis=1),
          'truncated': (said.stop_reason != STOPPED).mean(axis=1),
      }
      parts.append({name: x[: len(batch.examples)] for name, x in numbers.items()})

    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def batch(arm, ground: Ground, behaviour: Params, place, spent, clock) -> Batch:
  """Draws one iteration's pairs: two dialogues per prompt from one shared state, with rewards.

  Args:
    arm: the algorithm; its settings give the position of the pair (`arena_config.DialogueArm`).
    ground: the seed.
    behaviour: parameters of the policy that samples the replies.
    place: (iteration, prompts per iteration).
    spent: counter of samples.
    clock: timer of the phases.

  Returns:
    The batch. For algorithms other than REFUEL, its mask already covers only the turn.
  """
  index, count = place
  size = arm.world.settings.batch_completions // arm.num_samples  # Prompts per sampler call.
  parts = [_pairs(arm, ground, behaviour, (index * count + first) // size, size, spent, clock)
           for first in range(0, count, size)]
  whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
  if arm.settings.file == 'refuel':
    return whole
  return dataclasses.replace(jax.device_get(refuel.only_turn(whole)), aux={})


def _pairs(arm, ground, behaviour, step, size, spent, clock) -> Batch:
  """Draws the pairs of `size` prompts; `step` counts these parts over the whole run."""
  rows = batching.batch_indices(len(ground.encoded), size, seed=ground.seed, step=step)
  world, temperature = ground.task.world, arm.settings.algorithm.temperature
  ids = ground.encoded.ids[rows]
  key = rng.stream_key(ground.key, rng.Stream.SAMPLE_TRAIN, step)
  turns = _turns(arm.settings.turn, key, ids, world.num_turns)

  # With a prefix that is not the policy's own, the dialogue before the turn is not sampled.
  theirs = {'own': False, 'offline': True, 'mixed': np.arange(size) % 2 == 1}[arm.settings.prefix]
  start = np.where(theirs, turns.turn, 0)
  talk = functools.partial(
      talking.roll_out, ground.world.sampler(num_samples=1, temperature=temperature), behaviour,
      ground.user, key=key, num_turns=turns.num_turns)

  with clock('sample'):
    first = talk(ground.task.offline[rows], start=start)
    second = talk(first, rollout=1, start=turns.turn)

  pair = [first, second]
  with clock('reward'):
    rewards = np.stack([_final(world, said, turns.num_turns) for said in pair], axis=1)
  spent.count(
      completions=2 * size, tokens=first.reply_tokens(start).sum()
      + second.reply_tokens(turns.turn).sum())

  rollouts, aux = talking.as_rollouts(pair, turns.turn)
  with clock('reference'):
    reference = np.asarray(
        ground.world.scorer(temperature=temperature)(ground.reference, rollouts))
  return Batch(rollouts, rewards, reference, aux, np.ones(size, np.float32))


def _turns(law: str, key: jax.Array, ids: np.ndarray, num_turns: int) -> talking.Turns:
  """Picks the turn to optimise: sampled by setting 'one' or 'two', or a dialogue's last turn."""
  if law != 'last':
    return talking.draw_turns(key, jnp.asarray(ids), num_turns, setting=law)
  return talking.Turns(
      np.full(len(ids), num_turns - 1, np.int32), np.full(len(ids), num_turns, np.int32))


def _final(world: dialogue_task.World, said: Dialogues, num_turns: np.ndarray) -> np.ndarray:
  """Score of the dialogue up to its last turn, float32 [P]."""
  return np.take_along_axis(world.rewards(said), num_turns[:, None] - 1, axis=1)[:, 0]
