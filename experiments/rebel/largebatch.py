"""Large-batch REBEL: whole rounds of generate, rank, filter, and one pass of the regression.

The log-probs of a round's pairs are computed once, under the policy at its start, before any step.
`algorithms.rebel` measures from the parameters before each step instead. With x = ln π_t/π_0 of a
response, where π_0 is the policy at the start of the round and π_t the one before the step,

  D_θ over π_0 − η (r − r') = D_θ over π_t − η ((r − x/η) − (r' − x'/η)),

which is its penalty with the coefficient 1/η and π_0 as the reference.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.rebel import config as rebel_config
from experiments.rebel import stages as rebel_stages
from jaxrl_llm.algorithms import rebel
from jaxrl_llm.data import batching, response_batches
from jaxrl_llm.rl import regression_losses
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import (
  manifest,
  policy_evaluation,
  references,
  reward_models,
  supervised,
  training_loop,
)
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import checkpoints, fingerprint, loop, metrics, optim
from jaxrl_llm.types import Batch, Params

# Each batch has a single step, before which the policy has not moved: these would always be 0.
_SILENT = ('train/sampler_gap', 'train/log_ratio', 'train/difference', 'train/sign_agreement')


@dataclasses.dataclass
class Progress:
  """Totals over all rounds so far.

  Attributes:
    round: number of complete rounds.
    steps: batches in all of them.
    tokens: tokens sampled in all of them.
    positions: positions in the metrics and samples files.
  """

  round: int
  steps: int
  tokens: int
  positions: dict[str, metrics.Position]


def train(setup: setup_lib.Setup, files: dict) -> dict:
  """Runs all rounds; arguments and return value as for `train` of experiments/rebel/__main__.py."""
  config = setup.config
  reward = reward_models.load(setup)
  reference = references.make_reference(
      setup, functools.partial(supervised.finetune, setup, files['metrics']))
  evaluate = policy_evaluation.Evaluation(setup, reward, files['samples'])
  large_batch = rebel_stages.LargeBatchRound(setup, reward)
  fixed = _Fixed(setup, large_batch, reference, evaluate, files)

  plain, name = reference.start, fingerprint.of_params(reference.start)
  progress = Progress(0, 0, 0, {'metrics': reference.metrics_position, 'samples': []})
  counts: dict[str, int] = {}
  fingerprints = {'reference': reference.fingerprint, 'reward': reward.fingerprint}

  for number in range(1, config.rounds + 1):
    path = setup.run.workdir / f'round{number}' / 'params'
    if not path.exists():
      pairs = large_batch(number, setup.finetuning.frozen(plain), name)
      plain, steps = _fit(fixed, progress, pairs, plain)

      progress = Progress(
          number, progress.steps + steps, progress.tokens + pairs.tokens,
          {name: file.position() for name, file in files.items()})
      checkpoints.save_params(path, plain, {
          **setup.metadata(), 'fingerprint': fingerprint.of_params(plain),
          'progress': dataclasses.asdict(progress), 'counts': pairs.counts, 'kept': fingerprints,
          'run': setup.run.identity, 'files': manifest.digests(path.parent),
      })

    plain, metadata = checkpoints.load_params(
        path, setup.abstract_params, expected={**setup.identity(), 'run': setup.run.identity})
    if metadata['kept'] != fingerprints:
      raise ValueError(
          f'{path} came from the reference and reward model {metadata["kept"]}, this run has '
          f'{fingerprints}; give another --workdir'
      )
    if 'files' not in metadata:
      raise ValueError(f'{path} is of an earlier version; give another --workdir')
    manifest.compare(path.parent, metadata['files'], path)
    progress, name = Progress(**metadata['progress']), metadata['fingerprint']
    counts |= {f'round{number}/{reason}': count for reason, count in metadata['counts'].items()}

  for file_name, file in files.items():
    file.truncate(progress.positions[file_name])
  checkpoints.save_params(setup.run.workdir / 'trained', plain, setup.metadata())
  policy = setup.finetuning.frozen(plain)
  files['metrics'].write(reference.steps + progress.steps, evaluate.metrics(
      policy, reference.params, progress.steps, progress.tokens))
  return {'tokens': progress.tokens, 'numbers': {
      **evaluate.against_reference(policy, reference.params), **counts,
      **{f'fingerprint/{name}': value for name, value in fingerprints.items()}}}


class _Fixed(NamedTuple):
  """Objects shared by all rounds; `files` are those whose positions a checkpoint stores."""

  setup: setup_lib.Setup
  large_batch: rebel_stages.LargeBatchRound
  reference: references.Reference
  evaluate: policy_evaluation.Evaluation
  files: dict[str, Any]


def _fit(
    fixed: _Fixed, progress: Progress, pairs: rebel_stages.Pairs, plain: Params
) -> tuple[Params, int]:
  """Runs one pass of the regression over a round's pairs; returns (plain parameters, steps)."""
  setup, _, reference, evaluate, files = fixed
  config, number = setup.config, progress.round + 1
  data = pairs.select(~pairs.held_out)
  measure = _HeldOut(fixed, pairs.select(pairs.held_out))
  steps = _num_steps(config, len(data.rewards))

  optimizer = optim.for_run(
      config.optimizer, steps * config.algorithm.num_epochs * config.algorithm.num_minibatches)
  algorithm = rebel.make(
      dataclasses.replace(
          config.algorithm, samples_per_prompt=2, pairs='all',
          kl_coefficient=1 / config.algorithm.eta),
      setup.policy, setup.make_optimizer(optimizer))
  state, train_step = setup.start(algorithm, plain)

  first = reference.steps + progress.steps
  gaps = data.rewards[:, 0] - data.rewards[:, 1]
  round_metrics = {
      'round': number, 'rollout/reward_gap': float(gaps.mean()),
      'rollout/median_target': config.algorithm.eta * float(np.median(gaps)),
  }

  with training_loop.start(
      setup, f'round{number}', state, files=files, total=steps, save_every=config.save_every,
      description=f'round {number}: fit', base_positions=progress.positions,
  ) as training:
    for step in training.steps():
      policy, values = training.state.params['policy'], {}
      with training.timers('evaluate'):
        if step == 0:
          values = evaluate.metrics(
              policy, reference.params, progress.steps, progress.tokens + pairs.tokens)
        if loop.should(config.eval_every, step) or step == steps - 1:
          values |= measure(policy)

      indices = batching.batch_indices(
          len(data.rewards), config.batch_size, seed=config.seed, step=step)
      with training.timers('train'):
        batch = setup.put(cached_batch(data.select(indices)))
        training.state, update = train_step(training.state, batch)
        update = {k: v for k, v in jax.device_get(update).items() if k not in _SILENT}

      values = training.log(first + step, {
          **values, **update, **round_metrics,
          'train/learning_rate': optim.learning_rate_at(optimizer, int(training.state.step) - 1),
      })
      training.end_step(step, loss=values['train/loss'])

  policy = training.state.params['policy']
  setup.export_adapters(setup.run.workdir / f'round{number}' / 'adapters', policy)
  return setup.plain(policy), steps


def _num_steps(config: rebel_config.LargeBatch, num_pairs: int) -> int:
  """Number of batches in a round."""
  if num_pairs < config.batch_size and not config.steps:
    raise ValueError(
        f'config.batch_size must be at most the {num_pairs} pairs that were kept, for one pass '
        f'(config.steps=0), got {config.batch_size}'
    )
  steps = config.steps or num_pairs // config.batch_size
  updates = steps * config.algorithm.num_epochs * config.algorithm.num_minibatches
  config_lib.check_schedule(config.optimizer, updates, 'config.optimizer')
  return steps


def cached_batch(pairs: rebel_stages.Pairs) -> Batch:
  """A batch for `rebel.make` with kl_coefficient = 1/η, regressed from the cached log-probs.

  The penalty reads only sums over tokens: they are written to the first slot.
  """
  slots = np.zeros(pairs.rollouts.mask.shape, np.float32)
  slots[..., 0] = pairs.log_probs
  return Batch(pairs.rollouts, pairs.rewards, slots, {}, np.ones(len(slots), np.float32))


class _HeldOut:
  """The regression evaluated on held-out pairs."""

  def __init__(self, fixed: _Fixed, pairs: rebel_stages.Pairs):
    self._setup, self._pairs, self._total = fixed.setup, pairs, fixed.large_batch.total_log_probs

  def __call__(self, params: Params) -> dict[str, float]:
    """Loss, share of pairs whose better response gained, and mean log-ratios (nats)."""
    algorithm, pairs = self._setup.config.algorithm, self._pairs
    size, totals = self._setup.config.generation_batch_size, []
    if not len(pairs.rewards):
      return {}
    for chunk in batching.sequential_chunks(len(pairs.rewards), size):
      rollouts = self._setup.put(response_batches.take(pairs.rollouts, chunk.indices))
      totals.append(np.asarray(self._total(params, rollouts))[: int(chunk.weight.sum())])

    ratio = np.concatenate(totals) - pairs.log_probs
    losses = regression_losses.rebel_loss(
        jnp.asarray(ratio), jnp.asarray(pairs.rewards), eta=algorithm.eta,
        form=algorithm.loss_form)
    return {
        'heldout/loss': float(jnp.mean(losses)),
        'heldout/sign_agreement': float((ratio[:, 0] > ratio[:, 1]).mean()),
        'heldout/chosen_log_ratio': float(ratio[:, 0].mean()),
        'heldout/rejected_log_ratio': float(ratio[:, 1].mean()),
    }
