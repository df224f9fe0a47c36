"""Parts shared by all arms of the arena: prompts, reference, reward and evaluation.

An `ArenaTask` is made once and holds the compiled functions; an `ArenaSeed` is one seed of it.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.arena import config as arena_config
from jaxrl_llm.algorithms import reward_model, sft
from jaxrl_llm.data import batching, sft_batches
from jaxrl_llm.evaluation import evaluator, statistics, win_rate
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.models import reward as reward_lib
from jaxrl_llm.models import value
from jaxrl_llm.rewards import rollout_rewards
from jaxrl_llm.rl import masking, scoring, sequence_scores
from jaxrl_llm.runs import arms as arms_lib
from jaxrl_llm.sampling import decode
from jaxrl_llm.tasks import summarisation
from jaxrl_llm.training import checkpoints, fingerprint, loop, optim, rng
from jaxrl_llm.types import Batch, Example, ModelFns, Params, Rollouts, SampleFn, Task, TrainState

EVALUATION_BATCH = 256


class ArenaTask:
  """Functions of a task, jitted once for all seeds and arms.

  Attributes:
    config: config of the task and its arms.
    policy: network of every policy.
    scalar: network of the reward model and of the critic.
  """

  def __init__(self, config: arena_config.ArenaTaskConfig, seed: int):
    self.config = config
    task = config.task.make(seed)
    self._tokenizer, self.max_tokens = task.tokenizer, task.max_response_tokens

    model = dataclasses.replace(config.model, vocab_size=task.tokenizer.vocab_size)
    longest = task.max_prompt_tokens + task.max_response_tokens
    if model.max_length < longest:
      raise ValueError(
          f'model.max_length must be at least {longest} for {task.name}, got {model.max_length}')

    self.policy: ModelFns = policy_lib.make(model)
    self.scalar: ModelFns = reward_lib.make(model)
    self.reward_scores = jax.jit(functools.partial(sequence_scores.sequence_scores, self.scalar))
    self.kl = jax.jit(functools.partial(evaluator.response_kl, self.policy))

    self._samplers: dict[Any, SampleFn] = {}
    self._scorers: dict[float, Callable[..., jax.Array]] = {}

  def sampler(self, *, num_samples: int, temperature: float = 1.0) -> SampleFn:
    """Returns a jitted sampler, cached by its arguments."""
    key = num_samples, temperature
    if key not in self._samplers:
      self._samplers[key] = jax.jit(decode.make_sampler(
          self.policy, num_samples=num_samples, max_tokens=self.max_tokens,
          stop_ids=self._tokenizer.stop_ids, pad_id=self._tokenizer.pad_id,
          temperature=temperature,
      ))
    return self._samplers[key]

  def scorer(self, *, temperature: float) -> Callable[..., jax.Array]:
    """Returns a jitted (params, rollouts) -> log-probs [P, K, T] of the sampled tokens."""
    if temperature not in self._scorers:
      self._scorers[temperature] = jax.jit(lambda params, rollouts: scoring.score(
          self.policy, params, rollouts, temperature=temperature)[0])
    return self._scorers[temperature]

  def make_seed(self, seed: int, task: Task) -> 'ArenaSeed':
    """Makes one seed, without its networks yet."""
    return ArenaSeed(self, seed, task, encode(task, task.train), reference=None)

  @functools.cached_property
  def sft_step(self) -> tuple[Any, Any]:
    """(algorithm, its jitted step) of supervised fine-tuning."""
    config = self.config.sft
    optimizer = optim.make_optimizer(optim.for_run(config.optimizer, config.steps))
    algorithm = sft.make(config.algorithm, self.policy, optimizer)
    return algorithm, jax.jit(algorithm.train_step, donate_argnums=0)

  @functools.cached_property
  def reward_step(self) -> tuple[Any, Any]:
    """(algorithm, its jitted step) of the reward model."""
    config = self.config.reward_model
    algorithm = reward_model.make(
        config.algorithm, self.scalar,
        optim.make_optimizer(optim.for_run(config.optimizer, config.steps)))
    return algorithm, jax.jit(algorithm.train_step, donate_argnums=0)


@dataclasses.dataclass
class ArenaSeed:
  """One seed of a task.

  Attributes:
    shared: the compiled functions.
    seed: seed of all randomness.
    task: the problems.
    encoded: training prompts for RL.
    reference: fine-tuned policy that every arm starts from.
    reward_params: the reward model's parameters, or None if the task's own score is the reward.
    fingerprints: fingerprints of `reference` and `reward_params` by name, filled by `prepare`.
  """

  shared: ArenaTask
  seed: int
  task: Task
  encoded: batching.EncodedExamples
  reference: Params
  reward_params: Params | None = None
  fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def key(self) -> jax.Array:
    """Base PRNG key."""
    return rng.base_key(self.seed)

  def prompts(self, step: int, count: int) -> batching.PromptBatch:
    """Returns the prompts of an iteration: the same for every arm with the same count."""
    indices = batching.batch_indices(len(self.encoded), count, seed=self.seed, step=step)
    return batching.prompt_batch(self.encoded, indices)

  def gold(self, rollouts: Rollouts, examples: Sequence[Example]) -> rollout_rewards.Scored:
    """Returns the task's own scores."""
    return rollout_rewards.score_rollouts(
        jax.device_get(rollouts), examples, tokenizer=self.task.tokenizer,
        reward_fn=self.task.reward_fn)

  def rewards(self, rollouts: Rollouts, examples: Sequence[Example]) -> np.ndarray:
    """Returns training rewards, float32 [P, K]: the reward model's, or the task's own score."""
    if self.reward_params is None:
      return self.gold(rollouts, examples).rewards
    scores = self.shared.reward_scores(self.reward_params, rollouts)
    return np.asarray(masking.replace_scores_without_stop(
        scores, rollouts.lengths, rollouts.stop_reason, slots=self.shared.max_tokens,
        penalty=self.shared.config.reward_model.missing_stop_penalty))

  def preferences(
      self, rollouts: Rollouts, examples: Sequence[Example], step: int, *, use: int
  ) -> np.ndarray:
    """Returns preference labels, float32 [P, 2]: a noisy judge's, or the task's own score.

    The step and the use of the labels seed the judge's noise. Two identical responses are a tie.
    """
    scores = self.gold(rollouts, examples).rewards
    if not self.shared.config.reward_model.num_pairs:
      return scores
    noise = np.random.default_rng([self.seed, rng.Stream.DATA, step, use])
    labels = summarisation.prefer(
        scores, noise=self.shared.config.reward_model.label_noise, rng=noise)
    tokens = np.asarray(rollouts.tokens)
    same = np.all(tokens[:, 0] == tokens[:, 1], axis=-1)
    return np.where(same[:, None], np.float32(0), labels)

  def sample(
      self, params: Params, prompts: batching.PromptBatch, *, num_samples: int, stream: int,
      step: int, temperature: float = 1.0,
  ) -> Rollouts:
    """Samples responses; the stream and the step determine the noise."""
    sample = self.shared.sampler(num_samples=num_samples, temperature=temperature)
    key = rng.stream_key(self.key, stream, step)
    return jax.block_until_ready(sample(
        params, prompts.prompts, prompts.prompt_lengths, prompts.example_ids, key))

  def sample_all(self, params: Params, *, num_samples: int) -> tuple[Rollouts, list]:
    """Samples for every training prompt in order (stage 1); returns host rollouts and examples."""
    parts = []
    for chunk in batching.sequential_chunks(len(self.encoded), EVALUATION_BATCH):
      prompts = batching.prompt_batch(self.encoded, chunk.indices)
      rollouts = self.sample(
          params, prompts, num_samples=num_samples, stream=rng.Stream.SAMPLE_STAGE1, step=0)
      keep = int(chunk.weight.sum())
      parts.append(jax.tree.map(lambda x, n=keep: np.asarray(x)[:n], rollouts))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts), self.encoded.examples

  @functools.cached_property
  def held_out(self) -> list[batching.PromptBatch]:
    """Held-out prompts in batches of one size; the last lists only its real examples."""
    encoded = encode(self.task, self.task.evaluation)
    batches = []
    for chunk in batching.sequential_chunks(len(encoded), EVALUATION_BATCH):
      batch = batching.prompt_batch(encoded, chunk.indices)
      batches.append(batch._replace(examples=batch.examples[: int(chunk.weight.sum())]))
    return batches

  def evaluate(self, params: Params) -> dict[str, float]:
    """Measures a policy's score on the held-out prompts and its divergence from the reference.

    Returns:
      'score' (the task's own, sampled at temperature 1) with its standard error over prompts,
      'greedy_score', 'win_rate' of greedy responses over the task's references if it has any (ties
      count half), 'reward' of the reward model if there is one, 'kl_to_reference' (nats per
      response) with its standard error, 'length' and 'truncated'.
    """
    seen: dict[str, list] = {'kl': [], 'reward': []}

    def measure(rollouts):
      if self.reward_params is not None:
        seen['reward'].append(np.asarray(self.shared.reward_scores(self.reward_params, rollouts)))
      return self.shared.kl(params, self.reference, rollouts)

    key = rng.stream_key(self.key, rng.Stream.SAMPLE_EVAL)
    sample = self.shared.sampler(num_samples=self.shared.config.eval_samples)
    scored, kl = evaluator.sample_and_score(sample, params, self.held_out, key, self.gold, measure)
    greedy, _ = evaluator.sample_and_score(
        self.shared.sampler(num_samples=1, temperature=0.0), params, self.held_out, key, self.gold)

    numbers = {'greedy_score': float(greedy.rewards.mean())}
    for name, values in (('score', scored.rewards), ('kl_to_reference', kl)):
      mean, error = statistics.mean_and_standard_error(values.mean(axis=1))
      numbers |= {name: mean, f'{name}_se': error}

    if (rate := self.win_rate(greedy.rewards[:, 0])) is not None:
      numbers['win_rate'] = rate
    if seen['reward']:
      count = len(scored.rewards)
      numbers['reward'] = float(np.concatenate(seen['reward'])[:count].mean())
    return numbers | {
        'length': float(scored.lengths.mean()), 'truncated': float(scored.truncated.mean())}

  def win_rate(self, scores: np.ndarray) -> float | None:
    """Fraction of scores above that of the example's reference response; ties count half."""
    examples = self.task.evaluation
    if 'reference' not in examples[0]:
      return None
    theirs = self.task.reward_fn(
        [e['prompt'] for e in examples], [e['reference'] for e in examples],
        np.zeros(len(examples), bool), examples)
    return win_rate.win_rate(scores, theirs)[0]


def prepare(shared: ArenaTask, seed: int, folder: pathlib.Path) -> ArenaSeed:
  """Makes one seed of a task; trains its networks, or loads them if they are saved.

  Args:
    shared: the compiled functions.
    seed: the seed.
    folder: directory of this seed; parameters are saved to `reference` and `reward` in it.

  Returns:
    The seed with its networks.
  """
  config = shared.config
  arena = shared.make_seed(seed, config.task.make(seed))
  made_from = {name: dataclasses.asdict(getattr(config, name)) for name in ('model', 'sft')}
  made_from |= {'seed': seed, 'task': dataclasses.asdict(config.task)}

  arena.reference = _saved(
      folder / 'reference', 'policy', shared.policy, made_from,
      lambda: {'policy': _fine_tune(arena)})
  arena.fingerprints['reference'] = fingerprint.of_params(arena.reference)

  if config.reward_model.num_pairs:  # It starts from the reference and judges its samples.
    made_from['reward_model'] = dataclasses.asdict(config.reward_model)
    made_from |= arena.fingerprints
    arena.reward_params = _saved(
        folder / 'reward', 'reward', shared.scalar, made_from, lambda: _train_reward_model(arena))
    arena.fingerprints['reward_params'] = fingerprint.of_params(arena.reward_params)
  return arena


def _saved(
    folder: pathlib.Path, role: str, model: ModelFns, made_from: dict[str, Any],
    make: Callable[[], Params],
) -> Params:
  """Loads the parameters of a role, or makes and saves them.

  A directory that is damaged or was made from something else is renamed and replaced.
  """
  abstract = {role: jax.eval_shape(model.init, jax.random.key(0))}
  load = functools.partial(
      checkpoints.load_params, folder, abstract, expected={'made_from': made_from})

  if folder.exists():
    try:
      return load()[0][role]
    except checkpoints.CheckpointError as error:
      arms_lib.set_aside(folder, str(error))
  checkpoints.save_params(folder, make(), {'made_from': made_from})
  return load()[0][role]


def _fine_tune(arena: ArenaSeed) -> Params:
  """Fine-tunes a new policy on the demonstrations."""
  config, (algorithm, step) = arena.shared.config.sft, arena.shared.sft_step
  batches = sft_batches.Batches(
      sft_batches.encode_demonstrations(arena.task, loss_on=config.loss_on),
      batch_size=config.batch_size, seed=arena.seed)
  params = jax.jit(arena.shared.policy.init)(rng.stream_key(arena.key, rng.Stream.INIT))
  state = algorithm.init(arena.key, {'policy': params})

  pending = loop.PendingCheck(learning_rate='config.sft.optimizer.learning_rate')
  with loop.progress(config.steps, f'seed {arena.seed}: supervised fine-tuning') as bar:
    for index in range(config.steps):
      state, metrics = step(state, batches.batch(index))
      pending.add(index, metrics)

      shown = {}
      if loop.should(config.log_every, index) or index == config.steps - 1:
        shown = {'loss': float(metrics['train/loss'].value())}
        pending.check()
      bar.update(1, **shown)
  return state.params['policy']


def _train_reward_model(arena: ArenaSeed) -> Params:
  """Trains a Bradley-Terry model on noisily labelled pairs and centres it on the references."""
  config, (algorithm, step) = arena.shared.config.reward_model, arena.shared.reward_step
  trunk = {name: leaf for name, leaf in arena.reference.items() if name != 'head'}
  params = jax.jit(arena.shared.scalar.init)(rng.stream_key(arena.key, rng.Stream.INIT, 1))

  # Copies, because the state is donated and the reference is used again.
  state = algorithm.init(arena.key, {'reward': jax.tree.map(jnp.copy, {**params, **trunk})})

  pairs = _labelled_pairs(arena, config)
  pending = loop.PendingCheck(learning_rate='config.reward_model.optimizer.learning_rate')

  with loop.progress(config.steps, f'seed {arena.seed}: reward model') as bar:
    for index in range(config.steps):
      rows = batching.batch_indices(
          config.num_pairs, config.batch_size, seed=arena.seed, step=index)
      state, metrics = step(state, jax.tree.map(lambda leaf, r=rows: leaf[r], pairs))
      pending.add(index, metrics)
      pending.check()
      bar.update(1, accuracy=float(metrics['train/accuracy'].value()))

  examples = arena.task.demonstrations[:1024]
  mean = np.mean([
      np.asarray(arena.shared.reward_scores(state.params['reward'], _written(arena, chunk)))
      for chunk in (examples[i : i + 256] for i in range(0, len(examples), 256))
  ])
  return reward_model.centred(state.params, jnp.float32(mean))


def _labelled_pairs(arena: ArenaSeed, config: arena_config.RewardModelConfig) -> Batch:
  """Draws the preference data: pairs sampled from the reference, labelled by a noisy judge.

  The pairs answer the demonstrations' posts, so the RL posts are new to the reward model. Pairs of
  identical responses teach nothing and are left out.
  """
  parts, count, encoded = [], 0, encode(arena.task, arena.task.demonstrations)
  for index in itertools.count():
    prompts = batching.prompt_batch(encoded, batching.batch_indices(
        len(encoded), EVALUATION_BATCH, seed=arena.seed, step=index))
    rollouts = jax.device_get(arena.sample(
        arena.reference, prompts, num_samples=2, stream=rng.Stream.DATA, step=index))

    labels = arena.preferences(rollouts, prompts.examples, index, use=0)
    differ = labels.any(axis=1)
    if not differ.any():
      raise ValueError(
          'no pair to label: the reference samples two identical responses to every prompt')

    batch = Batch(rollouts, labels, None, {}, np.ones(EVALUATION_BATCH, np.float32))
    parts.append(jax.tree.map(lambda leaf, rows=differ: leaf[rows], batch))
    if (count := count + int(differ.sum())) >= config.num_pairs:
      return jax.tree.map(lambda *x: np.concatenate(x)[: config.num_pairs], *parts)


def _written(arena: ArenaSeed, examples: Sequence[Example]) -> Rollouts:
  """Turns the references of demonstrations into rollouts of one sample each."""
  encoded, tokenizer = encode(arena.task, list(examples)), arena.task.tokenizer
  tokens = np.full((len(examples), 1, arena.shared.max_tokens), tokenizer.pad_id, np.int32)
  for row, example in enumerate(examples):
    ids = [*tokenizer.encode(example['response']), tokenizer.stop_ids[0]]
    tokens[row, 0, : len(ids)] = ids
  mask, lengths, reasons = masking.response_mask(jnp.asarray(tokens), tokenizer.stop_ids)
  return Rollouts(
      encoded.prompts, encoded.prompt_lengths, tokens, lengths, mask, jnp.zeros(mask.shape),
      reasons)


def encode(task: Task, examples: list[Example]) -> batching.EncodedExamples:
  """Encodes prompts as ids; a prompt that is too long is an error."""
  return batching.encode_examples(
      examples, task.tokenizer, max_prompt_tokens=task.max_prompt_tokens, overlong='error')


def critic_from(arena: ArenaSeed) -> Params:
  """Initial critic parameters: the reward model's, or the reference's trunk with a zero head."""
  if arena.reward_params is not None:
    return arena.reward_params
  params = jax.jit(arena.shared.scalar.init)(rng.stream_key(arena.key, rng.Stream.INIT, 2))
  return value.with_trunk(params, arena.reference)


def start(arena: ArenaSeed, algorithm: Any, *, with_critic: bool) -> TrainState:
  """Makes a train state from copies of the reference and, for PPO, of the critic."""
  params = {'policy': arena.reference}
  if with_critic:
    params['value'] = critic_from(arena)
  return algorithm.init(arena.key, jax.tree.map(jnp.copy, params))
