"""Training loop of an arm of the arena, shared by all algorithms that train."""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.arena import dialogue as arena_dialogue
from experiments.arena import tasks as arena_tasks
from jaxrl_llm.algorithms import a_star_po
from jaxrl_llm.evaluation import best_of_n, evaluator, statistics
from jaxrl_llm.rl import scoring, soft_values
from jaxrl_llm.training import loop, metrics, optim, rng
from jaxrl_llm.types import Batch, Rollouts


class Arm:
  """An algorithm with its compiled step, shared by the seeds.

  Attributes:
    name: name of the arm in the config.
    settings: an `arena_config.Arm`.
    num_samples: K in training.
    batch_completions: completions per iteration.
    has_critic: True if params['value'] is trained too.
    algorithm: pure functions `init` and `train_step`.
  """

  def __init__(self, world: arena_tasks.World, name: str):
    self.name, self.settings = name, getattr(world.settings.arms, name)
    self.world, options = world, self.settings.algorithm
    self.num_samples = self.settings.num_samples

    iterations = getattr(self.settings, 'iterations', 0)
    shared = world.settings
    self.batch_completions = (
        shared.completions // iterations if iterations else shared.batch_completions)
    if iterations:  # Keeps the total numbers of steps and completions equal to the others'.
      options = dataclasses.replace(
          options, num_minibatches=self.batch_completions // shared.batch_completions)

    module = importlib.import_module(f'jaxrl_llm.algorithms.{self.settings.file}')
    self.has_critic = 'value' in inspect.signature(module.make).parameters
    networks = (world.policy, world.scalar) if self.has_critic else (world.policy,)
    self.algorithm = module.make(
        options, *networks, optim.make_optimizer(self.settings.optimizer))
    self._step: Any = None

  def step(self, state: Any, batch: Batch) -> tuple[Any, Any]:
    """Runs one iteration; compiles at the first call. The state is donated."""
    if self._step is None:
      step = jax.jit(self.algorithm.train_step, donate_argnums=0)
      self._step = step.lower(state, batch).compile()
    return self._step(state, batch)

  def cost(self, state: Any) -> dict[str, float]:
    """Returns bytes of parameters and optimizer, and a compiled step's peak (CPU compiler)."""
    memory = self._step.memory_analysis()
    total = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    return {
        'state_bytes': total((state.params, state.opt_state)),
        'peak_bytes': memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    }


@dataclasses.dataclass
class Spent:
  """Training budget that an arm has used so far."""

  completions: int = 0
  tokens: int = 0
  reward_calls: int = 0

  def add(self, rollouts: Rollouts) -> None:
    """Counts samples; each is scored once."""
    lengths = np.asarray(rollouts.lengths)
    self.count(completions=lengths.size, tokens=lengths.sum())

  def count(self, *, completions: int, tokens: int) -> None:
    """Counts samples, each scored once, and their total number of tokens."""
    self.completions += completions
    self.reward_calls += completions
    self.tokens += int(tokens)

  def numbers(self) -> dict[str, int]:
    """Returns the counts under the names that a curve uses."""
    return {'completions': self.completions, 'sampled_tokens': self.tokens,
            'reward_calls': self.reward_calls}


class Clock:
  """Seconds of each phase of each iteration.

  The cost of an iteration is the median, because the first one waits for the compiler.
  """

  def __init__(self):
    self._seconds: dict[str, list[float]] = {}

  @contextlib.contextmanager
  def __call__(self, phase: str) -> Iterator[None]:
    """Times a block; the block must wait for its own results."""
    start = time.perf_counter()
    yield
    self._seconds.setdefault(phase, []).append(time.perf_counter() - start)

  def numbers(self) -> dict[str, float]:
    """Returns medians by phase and their sum, in seconds per iteration."""
    medians = {f'time/{phase}': float(np.median(x)) for phase, x in self._seconds.items()}
    return medians | {'time/iteration': sum(medians.values())}


def run(arm: Arm, ground: arena_tasks.Ground, check: Callable[[], None]) -> dict[str, Any]:
  """Trains one seed of an arm.

  Args:
    arm: the algorithm.
    ground: the seed.
    check: called after each iteration (Ctrl-C).

  Returns:
    {'curve': evaluations with the budget spent by then, 'final': the last one, with seconds, bytes
    and the algorithm's last metrics}.
  """
  options, spent, begun = arm.world.settings, Spent(), time.perf_counter()
  stage1 = _first_stage(arm, ground, spent)
  state = arena_tasks.start(ground, arm.algorithm, with_critic=arm.has_critic)
  size = arm.batch_completions
  total = max((options.completions - spent.completions) // size, 0)
  due = set(np.linspace(0, total, options.num_evaluations).round().astype(int).tolist())

  clock, curve, last = Clock(), [], {}
  draw = functools.partial(_batch, stage1)
  if isinstance(ground, arena_dialogue.Ground):
    draw = arena_dialogue.batch

  behaviour = ground.reference
  with loop.progress(total, f'seed {ground.seed}: {arm.name}') as bar:
    for index in range(total):
      if index in due:
        curve.append(ground.evaluate(state.params['policy']) | spent.numbers())
      refresh = arm.settings.refresh_every
      if refresh == 1:
        behaviour = state.params['policy']
      elif refresh and index % refresh == 0:
        behaviour = jax.tree.map(jnp.copy, state.params['policy'])  # The state is donated.
      batch = draw(arm, ground, behaviour, (index, size // arm.num_samples), spent, clock)
      with clock('train'):
        state, update = jax.block_until_ready(arm.step(state, batch))

      last = metrics.to_floats(update)
      loop.check_finite(index, last)
      if refresh == 1 and getattr(arm.settings.algorithm, 'reference', 'policy') == 'policy':
        _check_ratio(arm.name, last)
      bar.update(1, reward=float(np.mean(batch.rewards)))
      check()
  curve.append(ground.evaluate(state.params['policy']) | spent.numbers())

  final = {**curve[-1], 'iterations': total, 'batch_completions': size, **last}
  if total:
    final |= {**arm.cost(state), **clock.numbers()}
  if stage1:
    final |= {
        'filtered_fraction': 1 - len(stage1['kept']) / len(ground.encoded),
        'gradient_variance_ratio': _gradient_variance_ratio(arm, ground, stage1['values']),
    }
  return {'curve': curve, 'final': {**final, 'time/seconds': time.perf_counter() - begun}}


def _gradient_variance_ratio(arm: Arm, ground: arena_tasks.Ground, values: '_Table'):
  """Ratio of one response's gradient variance with V* to that with V = 0, or None.

  The variance is the trace of the covariance at the reference, over 256 responses to as many
  prompts. Both gradients have the same expectation.
  """
  temperature = arm.settings.algorithm.temperature
  prompts = ground.prompts(0, min(256, len(ground.encoded)))
  rollouts = ground.sample(
      ground.reference, prompts, num_samples=1, temperature=temperature,
      stream=rng.Stream.SAMPLE_DIAGNOSTIC, step=0)
  rewards = ground.rewards(rollouts, prompts.examples)[:, 0]

  def log_prob(params, one):
    rows = jax.tree.map(lambda leaf: leaf[None], one)
    return scoring.score(arm.world.policy, params, rows, temperature=temperature)[0].sum()

  by_response = jax.jit(jax.vmap(jax.grad(log_prob), (None, 0)))(ground.reference, rollouts)
  flat = np.concatenate(
      [np.asarray(g).reshape(len(rewards), -1) for g in jax.tree.leaves(by_response)], axis=1)

  # At the reference the residual is V - r, and the gradient is V - r times that of the log-prob.
  spread = lambda v: np.var((v - rewards)[:, None] * flat, axis=0, ddof=1).sum()
  without = spread(np.zeros_like(rewards))  # 0 if the reference never succeeds.
  return float(spread(values[prompts.example_ids]) / without) if without else None


def _batch(stage1, arm, ground, behaviour, place, spent, clock) -> Batch:
  """Draws one iteration's data: samples of `behaviour` and their rewards or labels."""
  index, count = place
  prompts = _prompts(ground, stage1, index, count)
  temperature = arm.settings.algorithm.temperature

  with clock('sample'):
    rollouts = ground.sample(
        behaviour, prompts, num_samples=arm.num_samples, temperature=temperature,
        stream=rng.Stream.SAMPLE_TRAIN, step=index)
  with clock('reward'):
    if arm.settings.refresh_every:
      rewards = ground.rewards(rollouts, prompts.examples)
    else:  # Offline: every pair of the reference is labelled once, as in a fixed data set.
      rewards = ground.preferences(rollouts, prompts.examples, index, use=1)
  spent.add(rollouts)

  with clock('reference'):
    reference = jax.block_until_ready(
        arm.world.scorer(temperature=temperature)(ground.reference, rollouts))
  aux = {'values': stage1['values'][prompts.example_ids]} if stage1 else {}
  return Batch(rollouts, rewards, reference, aux, np.ones(count, np.float32))


def _prompts(ground, stage1, index, count):
  """Prompts of an iteration; A*-PO can leave out those that the reference never solves."""
  kept = dataclasses.replace(ground, encoded=stage1['kept']) if stage1 else ground
  return kept.prompts(index, count)


def _first_stage(arm: Arm, ground: arena_tasks.Ground, spent: Spent) -> dict[str, Any] | None:
  """Runs A*-PO's stage 1: V* by example id, and the remaining prompts; None for other arms."""
  if arm.settings.file != 'a_star_po':
    return None
  options = arm.settings.algorithm
  rollouts, examples = ground.sample_all(
      ground.reference, num_samples=options.samples_per_prompt)
  spent.add(rollouts)
  rewards = ground.rewards(rollouts, examples)
  values = np.asarray(a_star_po.estimate_values(options, rewards))

  kept = ground.encoded
  if options.filter_all_wrong:
    keep = np.asarray(soft_values.any_success(rewards))
    if not keep.any():
      raise ValueError(f'{arm.name} leaves out every prompt: all samples of the reference failed')
    kept = dataclasses.replace(
        kept, examples=[e for e, k in zip(examples, keep) if k], ids=kept.ids[keep],
        prompts=kept.prompts[keep], prompt_lengths=kept.prompt_lengths[keep])

  by_id = {int(index): value for index, value in zip(ground.encoded.ids, values)}
  return {'values': _Table(by_id), 'kept': kept}


class _Table(dict):
  """Values by example id; a missing id is an error, never 0."""

  def __getitem__(self, ids: np.ndarray) -> np.ndarray:
    return np.array([dict.__getitem__(self, int(i)) for i in ids], np.float32)


def _check_ratio(name: str, values: dict[str, float]) -> None:
  """Stops a run if the policy before its first step is not the one that sampled."""
  ratio = abs(values.get('train/initial_log_ratio', 0.0))
  if ratio > loop.LARGEST_INITIAL_LOG_RATIO:
    raise ValueError(
        f'{name}: the log-ratio before the first step must be 0, got {ratio:.2g} nats a response')


def untrained(name: str, ground: arena_tasks.Ground) -> dict[str, Any]:
  """Evaluates the reference ('sft') or the best of n of its samples by reward ('best_of_n')."""
  begun = time.perf_counter()
  spent = Spent().numbers()
  if name == 'best_of_n':
    curve = [spent | point for point in _best_of(ground, ground.world.settings.best_of)]
  else:
    curve = [ground.evaluate(ground.reference) | spent]
  return {'curve': curve, 'final': {**curve[-1], 'time/seconds': time.perf_counter() - begun}}


def _best_of(ground: arena_tasks.Ground, count: int) -> list[dict[str, float]]:
  """Scores the reward's favourite of 1, 2, ..., `count` samples, with a bound on its divergence.

  Training costs nothing; the samples behind each answer belong to the evaluation.
  """
  gold, rewards = [], []
  for batch in ground.held_out:
    rollouts = ground.sample(
        ground.reference, batch, num_samples=count, stream=rng.Stream.SAMPLE_CONTROL, step=0)
    rollouts = evaluator.real_rows(rollouts, batch)
    gold.append(ground.gold(rollouts, batch.examples).rewards)
    rewards.append(ground.rewards(rollouts, batch.examples))

  gold, rewards = np.concatenate(gold), np.concatenate(rewards)
  scores = best_of_n.expected_best(rewards, gold)
  proxies = best_of_n.expected_best(rewards, rewards)

  points = []
  for n, (score, proxy) in enumerate(zip(scores.mean(axis=0), proxies.mean(axis=0)), 1):
    points.append({
        'score': float(score), 'score_se': statistics.mean_and_standard_error(scores[:, n - 1])[1],
        'kl_bound': float(best_of_n.kl_bound(n)),
        **({'reward': float(proxy)} if ground.reward_params is not None else {}),
    })

  chosen = np.take_along_axis(gold, best_of_n.choose(rewards)[:, None], 1)[:, 0]
  if (rate := ground.win_rate(chosen)) is not None:
    points[-1]['win_rate'] = rate
  return points
