"""Large-batch REBEL: whole rounds of generate, rank, filter, and one pass of the regression.

The log-probs of a round's pairs are computed once, under the policy at its start, before any step.
`algorithms.rebel` measures from the parameters before each step instead. With x = ln π_t/π_0 of a
response, where π_0 is the policy at the start of the round and π_t the one before the step,

  D_θ over π_0 − η (r − r') = D_θ over π_t − η ((r − x/η) − (r' − x'/η)),

which is its penalty with the coefficient 1/η and π_0 as the reference.
"""

import contextlib
import dataclasses
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
from jaxrl_llm.runs import launch, policy_evaluation, references, reward_models, supervised
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import checkpoints, fingerprint, loop, optim
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
    offsets: byte offsets of the metrics and samples files.
  """

  round: int
  steps: int
  tokens: int
  offsets: dict[str, int]


def train(run: launch.Run, setup: setup_lib.Setup, writer, samples) -> dict:
  """Runs all rounds; arguments and return value as for `train` of experiments/rebel/__main__.py."""
  config = run.config
  reward = reward_models.load(config, setup)
  reference = references.make_reference(run, setup, lambda: supervised.finetune(run, setup, writer))
  evaluate = policy_evaluation.Evaluation(setup, reward, samples)
  stages = rebel_stages.Stages(run, setup, reward)
  files = {'metrics': writer, 'samples': samples}
  fixed = _Fixed(run, setup, stages, reference, evaluate, files)

  plain, name = reference.start, fingerprint.of_params(reference.start)
  progress = Progress(0, 0, 0, {'metrics': reference.metrics_offset, 'samples': 0})
  counts: dict[str, int] = {}
  kept = {'reference': reference.fingerprint, 'reward': reward.fingerprint}

  for number in range(1, config.rounds + 1):
    path = run.workdir / f'round{number}' / 'params'
    if not path.exists():
      pairs = stages(number, setup.finetuning.frozen(plain), name)
      plain, steps = _fit(fixed, progress, pairs, plain)
      progress = Progress(
          number, progress.steps + steps, progress.tokens + pairs.tokens,
          {name: file.offset() for name, file in files.items()})
      checkpoints.save_params(path, plain, {
          **setup.metadata(), 'fingerprint': fingerprint.of_params(plain),
          'progress': dataclasses.asdict(progress), 'counts': pairs.counts, 'kept': kept,
      })

    plain, about = checkpoints.load_params(path, setup.abstract_params, expected=setup.identity())
    if about['kept'] != kept:
      raise ValueError(
          f'{path} came from the reference and reward model {about["kept"]}, this run has {kept}; '
          'give another --workdir'
      )
    progress, name = Progress(**about['progress']), about['fingerprint']
    counts |= {f'round{number}/{reason}': count for reason, count in about['counts'].items()}

  for file_name, file in files.items():
    file.truncate(progress.offsets[file_name])
  checkpoints.save_params(run.workdir / 'trained', plain, setup.metadata())
  policy = setup.finetuning.frozen(plain)
  writer.write(reference.steps + progress.steps, evaluate.metrics(
      policy, reference.params, progress.steps, progress.tokens))
  return {'tokens': progress.tokens, 'numbers': {
      **evaluate.against_reference(policy, reference.params), **counts,
      **{f'fingerprint/{name}': value for name, value in kept.items()}}}


class _Fixed(NamedTuple):
  """Objects shared by all rounds; `files` are those whose offsets a checkpoint stores."""

  run: launch.Run
  setup: setup_lib.Setup
  stages: rebel_stages.Stages
  reference: references.Reference
  evaluate: policy_evaluation.Evaluation
  files: dict[str, Any]


def _fit(
    fixed: _Fixed, progress: Progress, pairs: rebel_stages.Pairs, plain: Params
) -> tuple[Params, int]:
  """Runs one pass of the regression over a round's pairs; returns (plain parameters, steps)."""
  run, setup, _, reference, evaluate, files = fixed
  config, number = run.config, progress.round + 1
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
  saved = checkpoints.Checkpoints(run.workdir / 'checkpoints' / f'round{number}')
  keeper = loop.Keeper(
      saved, files=files, total=steps, save_every=config.save_every, stopper=setup.stopper,
      on_save=run.save_clock, base_offsets=progress.offsets,
  )
  restored = keeper.restore(state)
  start, state = (restored.step, restored.state) if restored else (0, state)

  first, timers = reference.steps + progress.steps, loop.Timers()
  watch = loop.RatioWatch()
  gaps = data.rewards[:, 0] - data.rewards[:, 1]
  about = {'round': number, 'rollout/reward_gap': float(gaps.mean()),
           'rollout/median_target': config.algorithm.eta * float(np.median(gaps))}
  with contextlib.closing(saved), loop.progress(steps, f'round {number}: fit', start) as bar:
    for step in range(start, steps):
      policy, values = state.params['policy'], {}
      with timers('evaluate'):
        if step == 0:
          values = evaluate.metrics(
              policy, reference.params, progress.steps, progress.tokens + pairs.tokens)
        if loop.should(config.eval_every, step) or step == steps - 1:
          values |= measure(policy)

      indices = batching.batch_indices(
          len(data.rewards), config.batch_size, seed=run.seed, step=step)
      with timers('train'):
        state, update = train_step(state, setup.put(cached_batch(data.select(indices))))
        update = {k: v for k, v in jax.device_get(update).items() if k not in _SILENT}

      values = files['metrics'].write(first + step, {
          **values, **update, **timers.pop(), **about,
          'train/learning_rate': optim.learning_rate_at(optimizer, int(state.step) - 1),
      })
      loop.check_finite(first + step, values, last_saved=keeper.last_saved)
      watch(values)
      bar.update(1, loss=values['train/loss'])
      keeper.after_step(step + 1, state)

  setup.export_adapters(run.workdir / f'round{number}' / 'adapters', state.params['policy'])
  return setup.plain(state.params['policy']), steps


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
    self._setup, self._pairs, self._total = fixed.setup, pairs, fixed.stages.total_log_probs

  def __call__(self, params: Params) -> dict[str, float]:
    """Loss, share of pairs whose better response gained, and mean log-ratios (nats)."""
    options, pairs = self._setup.config.algorithm, self._pairs
    size, totals = self._setup.config.generation_batch_size, []
    if not len(pairs.rewards):
      return {}
    for chunk in batching.sequential_chunks(len(pairs.rewards), size):
      rollouts = self._setup.put(response_batches.take(pairs.rollouts, chunk.indices))
      totals.append(np.asarray(self._total(params, rollouts))[: int(chunk.weight.sum())])

    ratio = np.concatenate(totals) - pairs.log_probs
    losses = regression_losses.rebel_loss(
        jnp.asarray(ratio), jnp.asarray(pairs.rewards), eta=options.eta, form=options.loss_form)
    return {
        'heldout/loss': float(jnp.mean(losses)),
        'heldout/sign_agreement': float((ratio[:, 0] > ratio[:, 1]).mean()),
        'heldout/chosen_log_ratio': float(ratio[:, 0].mean()),
        'heldout/rejected_log_ratio': float(ratio[:, 1].mean()),
    }
