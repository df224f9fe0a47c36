"""Supervised fine-tuning as the first stage of a run; resumable at any step."""

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxrl_llm.algorithms import sft
from jaxrl_llm.data import mixtures, sft_batches, tokenizers
from jaxrl_llm.runs import launch
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import checkpoints, fingerprint, loop, metrics, optim
from jaxrl_llm.types import Params


def finetune(
    run: launch.Run, setup: setup_lib.Setup, writer: metrics.MetricsWriter
) -> tuple[Params, dict[str, Any]]:
  """Trains by maximum likelihood, or resumes training; saves the result in WORKDIR/params.

  Args:
    run: the run.
    setup: the run's setup, from `setup_lib.build`.
    writer: writes the metrics of an update as step s after s updates.

  Returns:
    The policy's parameters on the mesh, and the metadata saved with them: 'fingerprint',
    'metrics_offset', 'seconds'.
  """
  config = run.config.sft
  path = run.workdir / 'params'
  if path.exists():
    return _load(setup, path)

  if config.steps:
    params, initial = _train(run, setup, writer)
  else:
    params = setup.initial_params()
    initial = _initial(setup, params)

  about = {
      'metrics_offset': writer.offset(), 'seconds': run.wall_seconds(),
      'fingerprint': fingerprint.of_params(params), **initial,
  }
  checkpoints.save_params(path, params, {**setup.metadata(), **about})
  return params, about


def _load(setup: setup_lib.Setup, path: pathlib.Path) -> tuple[Params, dict[str, Any]]:
  """Loads WORKDIR/params of an earlier process; raises ValueError if it is from another run."""
  about, expected = checkpoints.read_metadata(path), setup.identity()
  if 'initial' in about:
    _check_initial(setup, about, _initial(setup, setup.initial_params()))
  if tokenizers.is_same(setup.task.tokenizer, about.get('tokenizer', '')):
    expected['tokenizer'] = about['tokenizer']
  return checkpoints.load_params(path, setup.abstract_params, expected=expected)


def _initial(setup: setup_lib.Setup, params: Params) -> dict[str, str]:
  """Returns the fingerprint of a run's initial parameters; nothing if they are drawn."""
  return {'initial': fingerprint.of_params(params)} if setup.source else {}


def _check_initial(
    setup: setup_lib.Setup, then: Mapping[str, Any], now: Mapping[str, str]
) -> None:
  """Raises ValueError if policy_init_from has changed since the run started."""
  if then.get('initial') not in (None, now.get('initial')):
    raise ValueError(
        f'{setup.source.directory} (config.policy_init_from) holds other parameters '
        f'({now["initial"]}) than those that this run started from ({then["initial"]}): give '
        'another --workdir'
    )


def _train(
    run: launch.Run, setup: setup_lib.Setup, writer: metrics.MetricsWriter
) -> tuple[Params, dict[str, str]]:
  """Runs the optimizer steps of `finetune`; also returns `_initial` of the initial parameters."""
  config = run.config.sft
  batches = _batches(run, setup)
  optimizer_config = optim.for_run(config.optimizer, config.steps)
  algorithm = sft.make(config.algorithm, setup.policy, setup.make_optimizer(optimizer_config))

  params = setup.initial_params()
  initial = _initial(setup, params)
  state, train_step = setup.start(algorithm, params)
  del params  # The state has a copy.

  saved = checkpoints.Checkpoints(run.workdir / 'checkpoints' / 'sft')
  keeper = loop.Keeper(
      saved, files={'metrics': writer}, total=config.steps, save_every=config.save_every,
      stopper=setup.stopper, on_save=run.save_clock,
  )
  restored = keeper.restore(state)
  if restored:
    _check_initial(setup, restored.metadata, initial)

  shown = {}
  start, state = (restored.step, restored.state) if restored else (0, state)

  # Closing waits for the pending save, even if the loop raises.
  with contextlib.closing(saved), loop.progress(
      config.steps, 'supervised fine-tuning', start
  ) as bar:
    for step in range(start, config.steps):
      state, update = train_step(state, setup.put(batches.batch(step)))
      logs = loop.should(config.log_every, step) or step == config.steps - 1
      if logs:
        learning_rate = optim.learning_rate_at(optimizer_config, step)
        values = writer.write(step, {**update, 'train/learning_rate': learning_rate})
        shown = {'loss': values['train/loss']}
      if logs or loop.should(config.save_every, step + 1) or setup.stopper.requested:
        # Checking waits for the device; a state is always checked before it is saved.
        loop.check_finite(step, metrics.to_floats(update), last_saved=keeper.last_saved)
      bar.update(1, **shown)
      keeper.after_step(step + 1, state, initial)

  setup.export_adapters(run.workdir / 'adapters', state.params['policy'])
  return setup.plain(state.params['policy']), initial


def _batches(run: launch.Run, setup: setup_lib.Setup) -> sft_batches.Batches:
  """Makes the batches of demonstrations, a function of the step."""
  config = run.config.sft
  sequences = sft_batches.encode_demonstrations(
      setup.task, overlong='filter', loss_on=config.loss_on
  )
  if not len(sequences):
    too_long = getattr(setup.task, 'num_filtered', {}).get('demonstrations', 0)
    raise ValueError(
        f'{setup.task.name} has no demonstrations: {too_long} are too long '
        '(config.task.max_response_tokens)' if too_long else
        f'{setup.task.name} has no demonstrations (config.task.num_demonstrations)'
    )

  if sequences.num_filtered:
    print(f'{sequences.num_filtered} demonstrations are too long and were left out', flush=True)

  batches = sft_batches.Batches(
      sequences, batch_size=config.batch_size, seed=run.seed, packed_length=config.packed_length,
      weights=mixtures.parse_weights(config.mixture) or None,
  )

  if config.packed_length:
    print(
        f'{len(sequences)} demonstrations packed into {batches.num_rows} rows of '
        f'{config.packed_length} slots, {100 * batches.utilisation:.0f} % of them used', flush=True
    )
  return batches
