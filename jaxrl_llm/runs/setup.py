"""Builds the components of a run from a config: task, policy, mesh, samplers, evaluator."""

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from jaxrl_llm.data import batching
from jaxrl_llm.evaluation import evaluator
from jaxrl_llm.models import configs
from jaxrl_llm.models import lora as lora_lib
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.models.pretrained import peft
from jaxrl_llm.rewards import rollout_rewards
from jaxrl_llm.rl import scoring
from jaxrl_llm.runs import artefacts, checkpoint_sources, launch, prompt_formats
from jaxrl_llm.runs import finetuning as finetuning_lib
from jaxrl_llm.sampling import decode
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.sharding import rules
from jaxrl_llm.tasks import config as task_config
from jaxrl_llm.training import checkpoints, fingerprint, loop, optim, rng
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import (
  Algorithm,
  ModelFns,
  Params,
  Rollouts,
  SampleFn,
  Task,
  TrainState,
)


@dataclasses.dataclass
class Setup:
  """The components of a run.

  Attributes:
    run: the run that they were built for.
    task: the problems.
    model: the policy's shape, with the vocabulary filled in.
    finetuning: the network, and which of its parameters are trained.
    source: the checkpoint source of `policy_init_from`, or None.
    mesh: the device mesh, set for the duration of the run.
    key: the base key of the run.
    stopper: records whether Ctrl-C was pressed.
    abstract_params: the policy's plain parameters as shapes with shardings.
    samplers: the samplers made so far; each is compiled once per run.
  """

  run: launch.Run
  task: Task
  model: configs.TransformerConfig
  finetuning: finetuning_lib.Finetuning
  source: checkpoint_sources.CheckpointSource | None
  mesh: jax.sharding.Mesh
  key: jax.Array
  stopper: loop.Stopper
  abstract_params: Params
  samplers: dict[tuple[int, float], SampleFn] = dataclasses.field(default_factory=dict)

  @property
  def config(self) -> Any:
    """The run's config."""
    return self.run.config

  def describe(self) -> str:
    """Describes task, model and devices in one line for the terminal."""
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.abstract_params))
    left_out = ''
    if filtered := sum(self.task.num_filtered.values()):
      counts = ', '.join(f'{n} of {name}' for name, n in self.task.num_filtered.items())
      left_out = f' ({filtered} left out as too long: {counts})'
    if repeated := self.task.num_repeated:
      left_out += f' ({repeated} left out because they repeat a held-out problem)'

    source = self.source.describe() if self.source else 'from scratch'
    notes = [self.config.note] + ([] if self.source else [self.config.scale_note])

    return (
        f'{self.task.name}, {len(self.task.train)} training and {len(self.task.evaluation)} '
        f'held-out problems{left_out}; policy of {count:,} parameters, {source}; '
        f'{self.mesh.size} device(s)' + ''.join(f'. {note}' for note in notes if note)
    )

  @property
  def batch_sharding(self) -> jax.sharding.NamedSharding:
    """Sharding of arrays whose leading axis counts prompts."""
    return mesh_lib.batch_sharding(self.mesh)

  def put(self, batch: Any) -> Any:
    """Puts a batch on the devices, sharded over its prompts."""
    return jax.device_put(batch, self.batch_sharding)

  @property
  def policy(self) -> ModelFns:
    """The network; it takes trained and frozen parameters."""
    return self.finetuning.policy

  def identity(self) -> dict[str, Any]:
    """Returns the identity of tokenizer and model, saved with parameters and compared on load."""
    return checkpoint_sources.identity(self.task.tokenizer.fingerprint, self.model)

  def metadata(self) -> dict[str, Any]:
    """Returns `identity`, the stop ids, and what an export back to Hugging Face needs."""
    hugging_face = self.source.hugging_face if self.source else {}
    return {
        **self.identity(), **checkpoint_sources.tokenizer_metadata(self.task.tokenizer),
        **({'hugging_face': hugging_face} if hugging_face else {}),
    }

  def initial_params(self) -> Params:
    """Returns the plain parameters of `policy_init_from`, or newly drawn ones, on the mesh."""
    if self.source:
      return self.source.load(self.abstract_params)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_params)
    draw = jax.jit(policy_lib.make(self.model).init, out_shardings=shardings)
    return draw(rng.stream_key(self.key, rng.Stream.INIT))

  def load_same_model(self, directory: str, field: str) -> Params:
    """Loads plain parameters of the same model and tokenizer from another directory."""
    source = _read_source(self.config, directory, field)
    source.check_tokenizer(self.task.tokenizer, of=self.task.name)
    checkpoint_sources.resolve_model(
        self.model, source)  # `self.model` has a vocab_size: shapes must match.
    return source.load(self.abstract_params)

  def make_optimizer(
      self, config: optim.OptimizerConfig, critic: finetuning_lib.Finetuning | None = None
  ) -> optax.GradientTransformation:
    """Makes an optimizer of the trained parameters, those of a critic included."""
    return optim.make_optimizer(config, trainable=(critic or self.finetuning).trainable)

  def start(
      self, algorithm: Algorithm, params: Params, *, donate: bool = False,
      others: Callable[[Params], Params] | None = None,
  ) -> tuple[TrainState, step_lib.CountedJit]:
    """Makes a train state and the jitted step, which donates the state.

    Args:
      algorithm: the algorithm that trains the policy.
      params: plain parameters.
      others: makes the parameters of the other networks, such as a critic, from them.
      donate: whether the state takes over the arrays of `params`, which are then deleted; by
        default it copies them. Blocks that are split off for `last_layers` cannot be taken over.

    Returns:
      (state, jitted train step).
    """
    donated = (0,) if donate and not self.finetuning.last_layers else ()
    key = rng.stream_key(self.key, rng.Stream.ADAPTERS)

    def init(params):
      networks = {'policy': self.finetuning.start(params, key)}
      return algorithm.init(
          rng.base_key(self.config.seed), networks | (others(params) if others else {}))

    shardings = rules.shardings(self.mesh, jax.eval_shape(init, params))
    train_step = step_lib.jit_train_step(
        algorithm.train_step, state_shardings=shardings, batch_shardings=self.batch_sharding
    )
    make = jax.jit(init, out_shardings=shardings, donate_argnums=donated)
    return make(params), train_step

  def plain(self, params: Params) -> Params:
    """Converts trained parameters to plain ones, with their shardings."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_params)
    return jax.jit(self.finetuning.plain, out_shardings=shardings)(params)

  def export_adapters(self, folder: pathlib.Path, params: Params) -> None:
    """Writes trained adapters in `peft` format, if the base came from Hugging Face."""
    hugging_face = self.source.hugging_face if self.source else {}
    if not (self.finetuning.lora.rank and hugging_face) or folder.exists():
      return  # A resumed run would write the same ones.
    peft.save(
        folder, params['adapters'], self.finetuning.lora, self.model,
        model_type=hugging_face['model_type'],
        # Other parameters than those in the directory: trained or merged since they were loaded.
        base=(hugging_face['directory']
              if self.source.checkpoint and not self.source.adapters else None),
    )

  def save_trained(self, params: Params) -> None:
    """Saves the trained policy to WORKDIR/trained and its adapters, if any, to WORKDIR/adapters."""
    self.export_adapters(self.run.workdir / 'adapters', params)
    checkpoints.save_params(self.run.workdir / 'trained', self.plain(params), self.metadata())

  def sampler(self, *, num_samples: int, temperature: float = 1.0) -> SampleFn:
    """Returns a jitted sampler for this task, cached by its arguments."""
    if (num_samples, temperature) not in self.samplers:
      self.samplers[num_samples, temperature] = jax.jit(decode.make_sampler(
          self.policy, num_samples=num_samples, max_tokens=self.task.max_response_tokens,
          stop_ids=self.task.tokenizer.stop_ids, pad_id=self.task.tokenizer.pad_id,
          temperature=temperature,
      ))
    return self.samplers[num_samples, temperature]

  def scorer(
      self, *, temperature: float, chunk_size: int, num_micro_batches: int = 1
  ) -> Callable[..., jax.Array]:
    """Makes a jitted (params, rollouts) -> log-probs [P, K, T] of the sampled tokens."""
    def score(params, rollouts):
      def score_part(rollouts):
        return scoring.score(
            self.policy, params, rollouts, temperature=temperature, chunk_size=chunk_size)[0]

      return step_lib.map_micro_batches(
          score_part, rollouts, num_micro_batches=num_micro_batches)

    return jax.jit(score)

  def roll_out(
      self, sample: SampleFn, params: Params, prompts: batching.PromptBatch, key: jax.Array,
      timers: loop.Timers,
  ) -> tuple[Rollouts, rollout_rewards.Scored]:
    """Samples responses to a batch of prompts and scores them with the task's verifier."""
    with timers('sample'):
      arrays = self.put((prompts.prompts, prompts.prompt_lengths, prompts.example_ids))
      rollouts = jax.block_until_ready(sample(params, *arrays, key))
    with timers('reward'):
      scored = rollout_rewards.score_rollouts(
          rollouts, prompts.examples, tokenizer=self.task.tokenizer, reward_fn=self.task.reward_fn
      )
    return rollouts, scored

  def encode(self, examples: list) -> batching.EncodedExamples:
    """Encodes prompts as arrays; leaves out and counts those that are too long."""
    return batching.encode_examples(
        examples, self.task.tokenizer, max_prompt_tokens=self.task.max_prompt_tokens,
        overlong='filter',
    )

  def prompt_batches(
      self, encoded: batching.EncodedExamples, size: int
  ) -> list[batching.PromptBatch]:
    """Splits all prompts into batches.

    The last one is padded to one of a few sizes, and all to the longest prompt, rounded up; a batch
    lists only real examples.
    """
    batches, encoded = [], encoded.trimmed()
    shards = mesh_lib.num_batch_shards(self.mesh)
    for chunk in batching.sequential_chunks(len(encoded), size, multiple=shards):
      batch = batching.prompt_batch(encoded, chunk.indices)
      arrays = self.put((batch.prompts, batch.prompt_lengths, batch.example_ids))
      batches.append(batching.PromptBatch(*arrays, batch.examples[: int(chunk.weight.sum())]))
    return batches

  @functools.cached_property
  def evaluator(self) -> evaluator.Evaluator:
    """Evaluator on the held-out problems."""
    config, encoded = self.config.evaluation, self.encode(self.task.evaluation)
    if encoded.num_filtered:
      print(f'{encoded.num_filtered} held-out prompts are too long and were left out', flush=True)
    return evaluator.Evaluator(
        self.policy, self.task,
        loop.Tracked(self.prompt_batches(encoded, config.batch_size), 'evaluation'),
        rng.stream_key(self.key, rng.Stream.SAMPLE_EVAL),
        sample=self.sampler(num_samples=config.num_samples),
        greedy=self.sampler(num_samples=1, temperature=0.0),
        chunk_size=config.head_chunk,
    )


@contextlib.contextmanager
def build(
    run: launch.Run, *, lora: lora_lib.LoraConfig | None = None, last_layers: int = 0,
    fine_tunes: bool = False,
) -> Iterator[Setup]:
  """Builds the components of a run; inside the block the mesh is set and Ctrl-C is graceful.

  Args:
    run: a run whose config is a `runs.config.RunConfig`.
    lora: config of the adapters; None for a run without any.
    last_layers: number of last blocks to train; 0 trains all parameters.
    fine_tunes: whether a loaded policy is fine-tuned too, on the task's demonstrations.

  Yields:
    The components.

  Raises:
    ValueError: if the model cannot hold the task's sequences or vocabulary, a batch does
      not fit the mesh, or the task's data is missing or malformed.
  """
  config = run.config
  source = None
  if config.policy_init_from:
    source = _read_source(config, config.policy_init_from, 'config.policy_init_from')
  task = make_task(config, source, fine_tunes=fine_tunes)
  model = model_for(
      task, checkpoint_sources.resolve_model(config.model, source, overrides=run.overrides))

  mesh = mesh_lib.from_config(config.mesh)
  for name, (size, micro_batches) in config.batch_sizes().items():
    try:
      mesh_lib.check_batch(mesh, size, num_micro_batches=micro_batches)
    except ValueError as error:
      raise ValueError(f'{error} (config.{name})') from error

  key = rng.base_key(config.seed)
  policy = policy_lib.make(model)
  abstract = abstract_params(policy, mesh)
  finetuning = finetuning_lib.make(
      policy, abstract, lora=lora or lora_lib.LoraConfig(), last_layers=last_layers
  )

  artefacts.pin(
      run.workdir / 'task.json', fingerprint.of_task(task), run.identity, commit=run.commit,
      description='the problems of config.task, or its own reward function,')
  with jax.set_mesh(mesh), loop.Stopper() as stopper:
    yield Setup(run, task, model, finetuning, source, mesh, key, stopper, abstract)


def _read_source(config: Any, directory: str, field: str) -> checkpoint_sources.CheckpointSource:
  """Reads a checkpoint source; a damaged tokenizer in it is ignored if the task names one."""
  return checkpoint_sources.read(
      directory, field=field, tokenizer_named=bool(config.task.named_tokenizer_dir()))


def make_task(
    config: Any, source: checkpoint_sources.CheckpointSource | None, *, fine_tunes: bool = False
) -> Task:
  """Makes the config's task with the policy's tokenizer.

  Responses end with the stop ids the policy was trained with, unless the task config sets others.

  Raises:
    ValueError: if the task's data is missing or malformed, there are no held-out problems, the
      tokenizer is unknown or differs from the policy's, or the chat template cannot be used.
  """
  policy = task_config.FROM_SCRATCH
  if source:
    policy = source.policy_tokenizer()
    if source.checkpoint and not policy.directory and config.task.needs_policy_tokenizer():
      raise ValueError(
          f'no tokenizer in {source.directory} ({source.field}): give '
          '--config.task.tokenizer_dir=DIR'
      )

  task = config.task.make(config.seed, config.data_dir, policy)

  if not task.evaluation:
    raise ValueError(f'{task.name} has no held-out problems (config.task.num_evaluation)')
  if source:
    source.check_tokenizer(task.tokenizer, of=task.name)
    if not config.task.named_stop_tokens():
      task = dataclasses.replace(task, tokenizer=source.stopping(task.tokenizer))
  return prompt_formats.format_prompts(config, task, source, fine_tunes=fine_tunes)


def model_for(task: Task, model: configs.TransformerConfig) -> configs.TransformerConfig:
  """Returns the model with `vocab_size` filled in; raises ValueError if the task does not fit."""
  model = dataclasses.replace(model, vocab_size=model.vocab_size or task.tokenizer.vocab_size)
  if model.vocab_size < task.tokenizer.vocab_size:
    raise ValueError(
        f'the tokenizer has {task.tokenizer.vocab_size} ids and the embedding only '
        f'{model.vocab_size} rows (config.model.vocab_size)'
    )

  longest = task.max_prompt_tokens + task.max_response_tokens
  if model.max_length < longest:
    raise ValueError(
        f'config.model.max_length must be at least {longest} (the longest prompt and response of '
        f'{task.name}), got {model.max_length}: lower max_prompt_tokens or max_response_tokens of '
        'config.task, where it has them, or raise it, where positions are rotary'
    )
  return model


def abstract_params(model: ModelFns, mesh: jax.sharding.Mesh) -> Params:
  """Returns the shapes of a network's parameters with their shardings on the mesh."""
  shapes = jax.eval_shape(model.init, rng.base_key(0))
  return rules.abstract(shapes, rules.shardings(mesh, shapes))
