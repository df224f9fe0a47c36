"""Training loop of an arm of the arena, shared by all algorithms that train."""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.arena import config as arena_config
from experiments.arena import dialogue as arena_dialogue
from experiments.arena import tasks as arena_tasks
from jaxrl_llm.algorithms import a_star_po
from jaxrl_llm.data import batching
from jaxrl_llm.evaluation import best_of_n, evaluator, statistics
from jaxrl_llm.rl import scoring, soft_values
from jaxrl_llm.training import loop, metrics, monitors, optim, rng
from jaxrl_llm.types import TRUNCATED, Batch, Params, Rollouts


class Arm:
  """An algorithm with its compiled step, shared by the seeds.

  Attributes:
    name: name of the arm in the config.
    config: an `arena_config.ArmConfig`.
    num_samples: K in training.
    batch_completions: completions per iteration.
    has_critic: True if params['value'] is trained too.
    algorithm: pure functions `init` and `train_step`.
  """

  def __init__(self, shared: arena_tasks.ArenaTask, name: str):
    self.name, self.shared = name, shared
    self.config: arena_config.ArmConfig = getattr(shared.config.arms, name)
    self.num_samples = self.config.num_samples

    budget, algorithm_config = shared.config, self.config.algorithm
    self.batch_completions = budget.batch_completions
    if iterations := self.config.num_iterations:
      # Keeps the total numbers of steps and completions equal to the others'.
      self.batch_completions = budget.completions // iterations
      algorithm_config = dataclasses.replace(
          algorithm_config, num_minibatches=self.batch_completions // budget.batch_completions)

    module = importlib.import_module(f'jaxrl_llm.algorithms.{self.config.file}')
    self.has_critic = 'value' in inspect.signature(module.make).parameters
    networks = (shared.policy, shared.scalar)[: 1 + self.has_critic]
    self.algorithm = module.make(
        algorithm_config, *networks, optim.make_optimizer(self.config.optimizer))
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
class Usage:
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

  def metrics(self) -> dict[str, int]:
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

  def medians(self) -> dict[str, float]:
    """Returns medians by phase and their sum, in seconds per iteration."""
    medians = {f'time/{phase}': float(np.median(x)) for phase, x in self._seconds.items()}
    return medians | {'time/iteration': sum(medians.values())}


def run(
    arm: Arm, arena: arena_tasks.ArenaSeed, check: Callable[[], None]
) -> dict[str, Any]:
  """Trains one seed of an arm.

  Args:
    arm: the algorithm.
    arena: one seed of the task.
    check: called after each iteration (Ctrl-C).

  Returns:
    {'curve': evaluations with the budget used by then, 'final': the last one, with seconds, bytes
    and the algorithm's last metrics}.
  """
  budget, usage, start = arm.shared.config, Usage(), time.perf_counter()
  stage1 = _first_stage(arm, arena, usage)
  state = arena_tasks.start(arena, arm.algorithm, with_critic=arm.has_critic)
  size = arm.batch_completions
  total = max((budget.completions - usage.completions) // size, 0)
  due = set(np.linspace(0, total, budget.num_evaluations).round().astype(int).tolist())

  clock, curve, last = Clock(), [], {}
  draw = functools.partial(_batch, stage1)
  if isinstance(arena, arena_dialogue.DialogueArenaSeed):
    draw = arena_dialogue.batch

  def evaluate():
    return arena.evaluate(state.params['policy']) | usage.metrics()

  behaviour, check_rewards = arena.reference, monitors.RewardMonitor()
  with loop.progress(total, f'seed {arena.seed}: {arm.name}') as bar:
    for index in range(total):
      if index in due:
        curve.append(evaluate())

      # The sampling policy: the current one, or a copy because the state is donated.
      refresh = arm.config.refresh_every
      if refresh == 1:
        behaviour = state.params['policy']
      elif refresh and index % refresh == 0:
        behaviour = jax.tree.map(jnp.copy, state.params['policy'])

      batch = draw(
          arm, arena, behaviour, index, size // arm.num_samples, usage, clock)
      check_rewards(batch.rewards, batch.rollouts.stop_reason == TRUNCATED)
      with clock('train'):
        state, update = jax.block_until_ready(arm.step(state, batch))

      last = metrics.to_floats(update)
      loop.check_finite(index, last)
      if arm.config.starts_from_sampler:
        _check_ratio(arm.name, last)
      bar.update(1, reward=float(np.mean(batch.rewards)))
      check()
  curve.append(evaluate())

  final = {**curve[-1], 'iterations': total, 'batch_completions': size, **last}
  if total:
    final |= {**arm.cost(state), **clock.medians()}
  if stage1:
    final |= {
        'filtered_fraction': 1 - len(stage1.prompts) / len(arena.encoded),
        'gradient_variance_ratio': _gradient_variance_ratio(arm, arena, stage1.values),
    }
  return {'curve': curve, 'final': {**final, 'time/seconds': time.perf_counter() - start}}


class _Values(dict):
  """V* by example id; a missing id is an error, never 0."""

  def __getitem__(self, ids: np.ndarray) -> np.ndarray:
    return np.array([dict.__getitem__(self, int(i)) for i in ids], np.float32)


class _Stage1(NamedTuple):
  """Result of A*-PO's stage 1.

  Attributes:
    values: V* by example id.
    prompts: the prompts that are trained on.
  """

  values: _Values
  prompts: batching.EncodedExamples


def _first_stage(
    arm: Arm, arena: arena_tasks.ArenaSeed, usage: Usage
) -> _Stage1 | None:
  """Runs A*-PO's stage 1; None for other arms."""
  if arm.config.file != 'a_star_po':
    return None

  config = arm.config.algorithm
  rollouts, examples = arena.sample_all(
      arena.reference, num_samples=config.samples_per_prompt)
  usage.add(rollouts)
  rewards = arena.rewards(rollouts, examples)
  values = np.asarray(a_star_po.estimate_values(config, rewards))

  prompts = arena.encoded
  if config.filter_all_wrong:
    keep = np.asarray(soft_values.any_success(rewards))
    if not keep.any():
      raise ValueError(f'{arm.name} leaves out every prompt: all samples of the reference failed')
    prompts = dataclasses.replace(
        prompts, examples=[e for e, k in zip(examples, keep) if k], ids=prompts.ids[keep],
        prompts=prompts.prompts[keep], prompt_lengths=prompts.prompt_lengths[keep])

  by_id = {int(index): value for index, value in zip(arena.encoded.ids, values)}
  return _Stage1(_Values(by_id), prompts)


def _batch(
    stage1: _Stage1 | None, arm: Arm, arena: arena_tasks.ArenaSeed, behaviour: Params,
    index: int, count: int, usage: Usage, clock: Clock,
) -> Batch:
  """Draws one iteration's data: samples of `behaviour` and their rewards or labels.

  Args:
    stage1: A*-PO's stage 1, or None.
    arm: the algorithm.
    arena: one seed of the task.
    behaviour: parameters of the sampling policy.
    index: index of the iteration.
    count: number of prompts.
    usage: counter of samples.
    clock: timer of the phases.

  Returns:
    The batch.
  """
  source = dataclasses.replace(arena, encoded=stage1.prompts) if stage1 else arena
  prompts = source.prompts(index, count)
  temperature = arm.config.algorithm.temperature

  with clock('sample'):
    rollouts = arena.sample(
        behaviour, prompts, num_samples=arm.num_samples, temperature=temperature,
        stream=rng.Stream.SAMPLE_TRAIN, step=index)
  with clock('reward'):
    if arm.config.refresh_every:
      rewards = arena.rewards(rollouts, prompts.examples)
    else:  # Offline: every pair of the reference is labelled once, as in a fixed data set.
      rewards = arena.preferences(rollouts, prompts.examples, index, use=1)
  usage.add(rollouts)

  with clock('reference'):
    reference = jax.block_until_ready(
        arm.shared.scorer(temperature=temperature)(arena.reference, rollouts))
  aux = {'values': stage1.values[prompts.example_ids]} if stage1 else {}
  return Batch(rollouts, rewards, reference, aux, np.ones(count, np.float32))


def _gradient_variance_ratio(
    arm: Arm, arena: arena_tasks.ArenaSeed, values: _Values
) -> float | None:
  """Ratio of one response's gradient variance with V* to that with V = 0, or None.

  The variance is the trace of the covariance at the reference, over 256 responses to as many
  prompts. Both gradients have the same expectation.
  """
  temperature = arm.config.algorithm.temperature
  prompts = arena.prompts(0, min(256, len(arena.encoded)))
  rollouts = arena.sample(
      arena.reference, prompts, num_samples=1, temperature=temperature,
      stream=rng.Stream.SAMPLE_DIAGNOSTIC, step=0)
  rewards = arena.rewards(rollouts, prompts.examples)[:, 0]

  def log_prob(params, one):
    rows = jax.tree.map(lambda leaf: leaf[None], one)
    return scoring.score(arm.shared.policy, params, rows, temperature=temperature)[0].sum()

  gradients = jax.jit(jax.vmap(jax.grad(log_prob), (None, 0)))(arena.reference, rollouts)
  flat = np.concatenate(
      [np.asarray(g).reshape(len(rewards), -1) for g in jax.tree.leaves(gradients)], axis=1)

  # At the reference the residual is V - r, and the gradient is V - r times that of the log-prob.
  def variance(v):
    return np.var((v - rewards)[:, None] * flat, axis=0, ddof=1).sum()

  without = variance(np.zeros_like(rewards))  # 0 if the reference never succeeds.
  return float(variance(values[prompts.example_ids]) / without) if without else None


def _check_ratio(name: str, values: dict[str, float]) -> None:
  """Stops a run if the policy before its first step is not the one that sampled."""
  ratio = abs(values.get('train/initial_log_ratio', 0.0))
  if ratio > loop.LARGEST_INITIAL_LOG_RATIO:
    raise ValueError(
        f'{name}: the log-ratio before the first step must be 0, got {ratio:.2g} nats a response')


def untrained(name: str, arena: arena_tasks.ArenaSeed) -> dict[str, Any]:
  """Evaluates the reference ('sft') or the best of n of its samples by reward ('best_of_n')."""
  start, usage = time.perf_counter(), Usage().metrics()
  if name == 'best_of_n':
    points = _best_of(arena, arena.shared.config.best_of)
    curve = [usage | point for point in points]
  else:
    curve = [arena.evaluate(arena.reference) | usage]
  return {'curve': curve, 'final': {**curve[-1], 'time/seconds': time.perf_counter() - start}}


def _best_of(arena: arena_tasks.ArenaSeed, count: int) -> list[dict[str, float]]:
  """Scores the best by reward of 1, 2, ..., `count` samples, with a bound on its divergence.

  Training costs nothing; the samples belong to the evaluation.
  """
  gold, rewards = [], []
  for batch in arena.held_out:
    rollouts = arena.sample(
        arena.reference, batch, num_samples=count, stream=rng.Stream.SAMPLE_CONTROL, step=0)
    rollouts = evaluator.real_rows(rollouts, batch)
    gold.append(arena.gold(rollouts, batch.examples).rewards)
    rewards.append(arena.rewards(rollouts, batch.examples))

  gold, rewards = np.concatenate(gold), np.concatenate(rewards)
  scores = best_of_n.expected_best(rewards, gold)
  proxies = best_of_n.expected_best(rewards, rewards)

  points = []
  for n, (score, proxy) in enumerate(zip(scores.mean(axis=0), proxies.mean(axis=0)), 1):
    points.append({
        'score': float(score), 'score_se': statistics.mean_and_standard_error(scores[:, n - 1])[1],
        'kl_bound': float(best_of_n.kl_bound(n)),
        **({'reward': float(proxy)} if arena.reward_params is not None else {}),
    })

  chosen = np.take_along_axis(gold, best_of_n.choose(rewards)[:, None], 1)[:, 0]
  if (rate := arena.win_rate(chosen)) is not None:
    points[-1]['win_rate'] = rate
  return points
