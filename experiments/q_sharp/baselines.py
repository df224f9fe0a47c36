"""Baselines of Q#: policies trained from the same reference by REINFORCE, DPO and RPO."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrl_llm import checks
from jaxrl_llm.algorithms import dpo, reinforce
from jaxrl_llm.data import batching, response_batches
from jaxrl_llm.runs import launch, references, training_loop, value_data
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import checkpoints, fingerprint, loop, metrics, optim, rng
from jaxrl_llm.types import Batch, Params, Rollouts

NAMES = ('reinforce', 'dpo', 'rpo')


@dataclasses.dataclass
class Baseline:
  """A baseline and its training.

  Attributes:
    algorithm: config of the algorithm.
    optimizer: config of the optimizer.
  """

  algorithm: Any
  optimizer: optim.OptimizerConfig


def _optimizer(learning_rate: float) -> optim.OptimizerConfig:
  return optim.OptimizerConfig(learning_rate=learning_rate, schedule='constant', weight_decay=0.1)


@dataclasses.dataclass
class Baselines:
  """Config of the baselines; the defaults are those of the paper's star graphs.

  Attributes:
    names: baselines to train, separated by commas; '' for none.
    steps: batches of each.
    batch_size: problems per batch.
    pair_samples: samples of the reference per problem among which a wrong one is sought.
    save_every: batches between checkpoints.
    log_every: batches between lines in metrics.jsonl.
    reinforce: rewards of 0 or 1 with the batch mean as baseline; samples of the current policy.
    dpo: pairs of the right response and a wrong sample of the reference.
    rpo: the same with the likelihood of the right response added.
  """

  names: str = ''
  steps: int = 1_000
  batch_size: int = 64
  pair_samples: int = 16
  save_every: int = 500
  log_every: int = 20
  reinforce: Baseline = dataclasses.field(default_factory=lambda: Baseline(
      reinforce.Config(kl_coefficient=0.0), _optimizer(1e-5)))
  dpo: Baseline = dataclasses.field(
      default_factory=lambda: Baseline(dpo.Config(), _optimizer(1e-4)))
  rpo: Baseline = dataclasses.field(
      default_factory=lambda: Baseline(dpo.Config(rpo_weight=1.0), _optimizer(1e-4)))

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(
        self, prefix, steps=1, batch_size=1, pair_samples=1, save_every=1, log_every=1)
    if self.names:
      checks.names_of(self, prefix, names=NAMES)
    for name in NAMES:
      baseline = getattr(self, name)
      with checks.within(f'{prefix}.{name}.algorithm'):
        baseline.algorithm.validate()
      baseline.optimizer.validate(f'{prefix}.{name}.optimizer')


def train(
    setup: setup_lib.Setup, name: str, reference: references.Reference,
    pairs: value_data.ValueData | None, writer: metrics.MetricsWriter, *,
    previous: dict[str, Any],
) -> tuple[Params, dict[str, Any]]:
  """Trains a baseline from the reference, or resumes training; saves it in WORKDIR/NAME.

  Args:
    setup: the run's setup.
    name: one of `NAMES`.
    reference: π_ref.
    pairs: wrong samples, one per problem (`wrong_samples`); None for REINFORCE.
    writer: writes metrics; the steps continue those of `previous`.
    previous: metadata of the stage before: 'steps', 'metrics_position'.

  Returns:
    Trained parameters, and the metadata saved with them.
  """
  config = setup.config.baselines
  baseline, path = getattr(config, name), setup.run.workdir / name
  made_from = {
      'seed': setup.run.seed, 'reference': reference.fingerprint,
      'pairs': pairs.fingerprint if pairs else '', 'steps': config.steps,
      'batch_size': config.batch_size, 'baseline': launch.computing_config(baseline)}
  if path.exists():
    return checkpoints.load_params(
        path, setup.abstract_params, expected={**setup.identity(), 'made_from': made_from})

  optimizer = optim.for_run(baseline.optimizer, config.steps)
  module = reinforce if name == 'reinforce' else dpo
  algorithm = module.make(baseline.algorithm, setup.policy, setup.make_optimizer(optimizer))
  state, train_step = setup.start(algorithm, setup.plain(reference.params))
  batch_at = _batches(setup, name, reference, pairs)

  with training_loop.start(
      setup, name, state, files={'metrics': writer}, total=config.steps,
      save_every=config.save_every, description=name, offset=previous['steps'],
      frozen={'reference': reference},
      base_positions={'metrics': previous['metrics_position']},
      monitor=lambda values: None, costs=('baselines.steps', 'baselines.batch_size'),
  ) as training:
    shown = {}
    for step in training.steps():
      batch = batch_at(training.state.params['policy'], step)
      training.state, update = train_step(training.state, setup.put(batch))
      if loop.should(config.log_every, step) or step == config.steps - 1:
        shown = {'loss': training.log(step, update)['train/loss']}
      else:
        training.check(step, update)
      training.end_step(step, **shown)

  params = setup.plain(training.state.params['policy'])
  metadata = {
      'steps': previous['steps'] + config.steps, 'metrics_position': writer.position(),
      'fingerprint': fingerprint.of_params(params), 'made_from': made_from, **setup.identity()}
  checkpoints.save_params(path, params, metadata)
  return params, metadata


def _batches(
    setup: setup_lib.Setup, name: str, reference: references.Reference,
    pairs: value_data.ValueData | None,
) -> Callable[[Params, int], Batch]:
  """Returns (parameters of the policy, step) -> batch."""
  config, algorithm = setup.config.baselines, getattr(setup.config.baselines, name).algorithm
  score = setup.scorer(temperature=algorithm.temperature, chunk_size=algorithm.head_chunk)
  weight = np.ones(config.batch_size, np.float32)

  def indices(count: int, step: int) -> np.ndarray:
    return batching.batch_indices(
        count, config.batch_size, seed=setup.run.seed, step=step)

  if pairs is None:
    examples = setup.encode(setup.task.train).trimmed()
    sample = setup.sampler(
        num_samples=algorithm.samples_per_prompt, temperature=algorithm.temperature)
    timers = loop.Timers()

    def sampled(policy, step):
      prompts = batching.prompt_batch(examples, indices(len(examples), step))
      key = rng.stream_key(setup.key, rng.Stream.SAMPLE_TRAIN, step)
      rollouts, scored = setup.roll_out(sample, policy, prompts, key, timers)
      reference_scores = score(reference.params, rollouts) if algorithm.kl_coefficient else None
      return Batch(rollouts, scored.rewards, reference_scores, {}, weight)

    return sampled

  known = right_and_wrong(setup, pairs)

  def paired(policy, step):
    del policy
    rollouts = response_batches.take(known, indices(len(known.lengths), step))
    rewards = np.tile(np.float32([1, 0]), (config.batch_size, 1))
    return Batch(
        rollouts, rewards, score(reference.params, setup.put(rollouts)), {}, weight)

  return paired


def wrong_samples(
    setup: setup_lib.Setup, reference: references.Reference
) -> value_data.ValueData:
  """Samples the reference, and takes the first wrong response to each problem that has one."""
  config, guidance = setup.config.baselines, setup.config.guidance
  collect = value_data.Collector(
      setup, reference, num_samples=config.pair_samples, batch_size=setup.config.batch_size,
      temperature=guidance.temperature, top_p=1.0)
  data = collect(
      'pairs', collect.roll_in_by(reference.params), _whole,
      rng.stream_key(setup.key, rng.Stream.SAMPLE_STAGE1), made_from={'for': 'pairs'})
  wrong = data.select(data.targets <= 0)
  _, first = np.unique(wrong.rows, return_index=True)
  if not len(first):
    raise ValueError('the reference has no wrong sample: nothing to prefer the right response to')
  return wrong.select(first)


def _whole(lengths: np.ndarray, random: np.random.Generator) -> value_data.Cuts:
  del random
  return value_data.Cuts(given=lengths, first=np.zeros_like(lengths))


def right_and_wrong(setup: setup_lib.Setup, wrong: value_data.ValueData) -> Rollouts:
  """Returns the right response of each problem and its wrong sample, [P, 2, T]."""
  tokenizer = setup.task.tokenizer
  examples = [wrong.prompts.examples[row] for row in wrong.rows]
  responses = [
      [[*tokenizer.encode_continuation(example['answer']), tokenizer.stop_ids[0]],
       tokens[:length].tolist()]
      for example, tokens, length in zip(examples, wrong.tokens, wrong.lengths)]
  prompts = [
      row[len(row) - length :] for row, length in zip(
          wrong.prompts.prompts[wrong.rows], wrong.prompts.prompt_lengths[wrong.rows])]
  return response_batches.rollouts(
      prompts, responses, tokenizer, max_prompt_tokens=wrong.prompts.prompts.shape[1],
      max_response_tokens=wrong.tokens.shape[1])


def as_value_data(
    setup: setup_lib.Setup, wrong: value_data.ValueData
) -> value_data.ValueData:
  """Returns both responses of each pair with rewards 1 and 0; all their tokens are in the loss."""
  pairs = right_and_wrong(setup, wrong)
  tokens = np.asarray(pairs.tokens).reshape(-1, pairs.tokens.shape[-1])
  count = len(tokens)
  return dataclasses.replace(
      wrong, rows=np.repeat(wrong.rows, 2), tokens=tokens,
      lengths=np.asarray(pairs.lengths).reshape(-1), first=np.zeros(count, np.int32),
      truncated=np.zeros(count, bool), targets=np.tile(np.float32([1, 0]), count // 2))
