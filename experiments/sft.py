"""Supervised fine-tuning of a policy on a task's demonstrations.

Alone it writes WORKDIR/params, from which other runs may start (policy_init_from);
experiments/a_star_po.py uses `finetune` to make its reference.
"""

import contextlib
import dataclasses
from typing import Any

from experiments import components, launch, report
from jaxrl_llm.algorithms import sft
from jaxrl_llm.data import batching
from jaxrl_llm.training import checkpoints, fingerprint, loop, metrics, optim
from jaxrl_llm.types import Params


def finetune(
    run: launch.Run, parts: components.Components, writer: metrics.MetricsWriter
) -> tuple[Params, dict[str, Any]]:
  """Trains by maximum likelihood, or goes on with it; keeps the outcome in WORKDIR/params.

  Args:
    run: the run.
    parts: what `components.build` made of its config.
    writer: the metrics of the update that follows s updates are written as step s.

  Returns:
    The policy's parameters on the mesh, and what was kept with them: 'fingerprint',
    'metrics_offset', 'seconds'.
  """
  config = run.config.sft
  path = run.workdir / 'params'
  if path.exists():
    return checkpoints.load_params(path, parts.abstract_params, expected=parts.identity())
  params = _train(run, parts, writer) if config.steps else parts.initial_params()
  about = {
      'metrics_offset': writer.offset(), 'seconds': run.wall_seconds(),
      'fingerprint': fingerprint.of_params(params),
  }
  checkpoints.save_params(path, params, {**parts.identity(), **about})
  return params, about


def _train(
    run: launch.Run, parts: components.Components, writer: metrics.MetricsWriter
) -> Params:
  """The optimizer steps of `finetune`."""
  config = run.config.sft
  encoded = batching.encode_demonstrations(parts.task, overlong='filter')
  if not len(encoded):
    raise ValueError(f'{parts.task.name} has no demonstrations (config.task.num_demonstrations)')
  if encoded.num_filtered:
    print(f'{encoded.num_filtered} demonstrations are too long and were left out', flush=True)
  optimizer_config = optim.for_run(config.optimizer, config.steps)
  optimizer = optim.make_optimizer(optimizer_config, trainable=parts.form.trainable)
  algorithm = sft.make(config.algorithm, parts.policy, optimizer)
  state, train_step = parts.start(algorithm, parts.initial_params())

  saved = checkpoints.Checkpoints(run.workdir / 'checkpoints' / 'sft')
  keeper = loop.Keeper(
      saved, files={'metrics': writer}, total=config.steps, save_every=config.save_every,
      stopper=parts.stopper, on_save=run.save_clock,
  )
  restored = keeper.restore(state)
  shown = {}
  start, state = (restored.step, restored.state) if restored else (0, state)
  # Closing waits for the save under way, also where the loop ends in an error.
  with contextlib.closing(saved), loop.progress(
      config.steps, 'supervised fine-tuning', start
  ) as bar:
    for step in range(start, config.steps):
      indices = batching.batch_indices(len(encoded), config.batch_size, seed=run.seed, step=step)
      state, update = train_step(state, parts.put(batching.sft_batch(encoded, indices)))
      logs = loop.should(config.log_every, step) or step == config.steps - 1
      if logs:
        learning_rate = optim.learning_rate_at(optimizer_config, step)
        values = writer.write(step, {**update, 'train/learning_rate': learning_rate})
        shown = {'loss': values['train/loss']}
      if logs or loop.should(config.save_every, step + 1) or parts.stopper.requested:
        # Looking costs a wait for the device; a state that is saved is looked at in any case.
        loop.check_finite(step, metrics.to_floats(update), last_saved=keeper.last_saved)
      bar.update(1, **shown)
      keeper.after_step(step + 1, state)
  return parts.plain(state.params['policy'])


def main(run: launch.Run) -> None:
  """Fine-tunes, evaluates on the held-out problems, and writes results.json."""
  with components.build(run) as parts, contextlib.closing(metrics.MetricsWriter(
      run.workdir, wandb_project=run.config.wandb_project, config=dataclasses.asdict(run.config)
  )) as writer:
    params, about = finetune(run, parts, writer)
    frozen = parts.form.frozen(params)
    evaluation = parts.evaluator(frozen, frozen)
  rows = [[
      'fine-tuned', report.percent(evaluation.numbers, 'pass@1'),
      report.percent(evaluation.numbers, 'greedy_accuracy'), f'{about["seconds"]:.0f}',
  ]]
  table = report.markdown_table(['policy', 'pass@1 (%)', 'greedy (%)', 'seconds'], rows)
  metrics.write_text_atomic(run.table_path, table + '\n')
  numbers: dict[str, Any] = {
      f'eval/trained/{name}': value for name, value in evaluation.numbers.items()
      if not name.startswith('kl_to_reference')  # There is no reference here.
  }
  launch.write_results(run, {
      **numbers, 'fingerprint': about['fingerprint'],
      'sampled_tokens': 0,  # Fine-tuning samples nothing; evaluation is not counted anywhere.
  })
  print(f'\n{table}\n\nparameters: {run.workdir / "params"}')


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/sft_arithmetic.py')
