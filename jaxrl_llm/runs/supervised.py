"""Supervised fine-tuning as the first stage of a run; resumable at any step."""

import pathlib
from typing import Any

from jaxrl_llm.algorithms import sft
from jaxrl_llm.data import mixtures, sft_batches, tokenizers
from jaxrl_llm.runs import checkpoint_sources, launch, training_loop
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import checkpoints, fingerprint, loop, metrics, optim
from jaxrl_llm.types import Params


def finetune(
    setup: setup_lib.Setup, writer: metrics.MetricsWriter
) -> tuple[Params, dict[str, Any]]:
  """Trains by maximum likelihood, or resumes training; saves the result in WORKDIR/params.

  Args:
    setup: the run's setup, from `setup_lib.build`.
    writer: writes the metrics of an update as step s after s updates.

  Returns:
    The policy's parameters on the mesh, and the metadata saved with them: 'fingerprint',
    'metrics_position', 'seconds', 'made_from'.
  """
  path = setup.run.workdir / 'params'
  if path.exists():
    return _load(setup, path)

  # Making them again would cut off the metrics that the later checkpoints continue.
  later = [folder for folder in (setup.run.workdir / 'checkpoints').glob('*')
           if folder.name != 'sft' and any(folder.iterdir())]
  if later:
    raise ValueError(
        f'{path} is missing, and {later[0]} was trained from it: restore it, or give another '
        '--workdir')

  if setup.config.sft.steps:
    params, initial = _train(setup, writer)
  else:
    params = setup.initial_params()
    initial = _initial(setup, params)

  metadata = {
      'metrics_position': writer.position(), 'seconds': setup.run.wall_seconds(),
      'fingerprint': fingerprint.of_params(params), 'made_from': _made_from(setup),
      **{name: part.fingerprint for name, part in initial.items()},
  }
  checkpoints.save_params(path, params, {**setup.metadata(), **metadata})
  return params, metadata


def _load(setup: setup_lib.Setup, path: pathlib.Path) -> tuple[Params, dict[str, Any]]:
  """Loads WORKDIR/params of an earlier process; raises ValueError if it is from another run."""
  metadata = checkpoints.read_metadata(path)
  expected = {**setup.identity(), 'made_from': _made_from(setup)}
  if 'initial' in metadata:
    for part in _initial(setup, setup.initial_params()).values():
      part.check(metadata['initial'])
  if tokenizers.is_same(setup.task.tokenizer, metadata.get('tokenizer', '')):
    expected['tokenizer'] = metadata['tokenizer']
  return checkpoints.load_params(path, setup.abstract_params, expected=expected)


def _made_from(setup: setup_lib.Setup) -> dict[str, Any]:
  """Returns what fine-tuning depends on, other than the initial parameters."""
  return {
      'seed': setup.run.seed, 'sft': launch.computing_config(setup.config.sft),
      'task': launch.computing_config(setup.config.task),
      'lora': launch.computing_config(setup.config.lora),
      'train_last_layers': setup.config.train_last_layers,
  }


def _initial(
    setup: setup_lib.Setup, params: Params
) -> dict[str, checkpoint_sources.InitialParams]:
  """Returns {'initial': a run's initial parameters}; {} if they are drawn."""
  return {'initial': setup.source.initial(params)} if setup.source else {}


def _train(
    setup: setup_lib.Setup, writer: metrics.MetricsWriter
) -> tuple[Params, dict[str, checkpoint_sources.InitialParams]]:
  """Runs the optimizer steps of `finetune`; also returns `_initial` of the initial parameters."""
  config = setup.config.sft
  batches = _batches(setup)
  optimizer_config = optim.for_run(config.optimizer, config.steps)
  algorithm = sft.make(config.algorithm, setup.policy, setup.make_optimizer(optimizer_config))

  params = setup.initial_params()
  initial = _initial(setup, params)
  state, train_step = setup.start(algorithm, params, donate=True)
  del params  # Their arrays are the state's.

  with training_loop.start(
      setup, 'sft', state, files={'metrics': writer}, total=config.steps,
      save_every=config.save_every, description='supervised fine-tuning', frozen=initial,
      costs=('sft.steps', 'sft.batch_size', 'sft.packed_length'),
  ) as training:
    shown = {}
    for step in training.steps():
      training.state, update = train_step(training.state, setup.put(batches.batch(step)))

      if loop.should(config.log_every, step) or step == config.steps - 1:
        learning_rate = optim.learning_rate_at(optimizer_config, step)
        values = training.log(step, {**update, 'train/learning_rate': learning_rate})
        shown = {'loss': values['train/loss']}
      elif loop.should(config.save_every, step + 1) or setup.stopper.requested:
        training.check(step, update)  # A state is always checked before it is saved.
      training.end_step(step, **shown)

  policy = training.state.params['policy']
  setup.export_adapters(setup.run.workdir / 'adapters', policy)
  return setup.plain(policy), initial


def _batches(setup: setup_lib.Setup) -> sft_batches.Batches:
  """Makes the batches of demonstrations, a function of the step."""
  config = setup.config.sft
  sequences = sft_batches.encode_demonstrations(
      setup.task, overlong='filter', loss_on=config.loss_on
  )
  if not len(sequences):
    too_long = setup.task.num_filtered.get('demonstrations', 0)
    raise ValueError(
        f'{setup.task.name} has no demonstrations: {too_long} are too long '
        '(config.task.max_response_tokens)' if too_long else
        f'{setup.task.name} has no demonstrations (config.task)'
    )

  if sequences.num_filtered:
    print(f'{sequences.num_filtered} demonstrations are too long and were left out', flush=True)

  batches = sft_batches.Batches(
      sequences, batch_size=config.batch_size, seed=setup.run.seed,
      packed_length=config.packed_length, weights=mixtures.parse_weights(config.mixture) or None,
  )

  if config.packed_length:
    print(
        f'{len(sequences)} demonstrations packed into {batches.num_rows} rows of '
        f'{config.packed_length} slots, {100 * batches.utilisation:.0f} % of them used', flush=True
    )
  return batches
