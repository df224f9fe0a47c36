"""Trains a Bradley-Terry reward model on preferences, evaluates it on held-out pairs, centres it.

  python -m experiments.reward_model --config=experiments/configs/reward_model_demo.py \\
      --config.data_dir=DIR_OF_dpo_en_demo.json [--config.policy_init_from=DIR]

starts from a policy (a Hugging Face checkpoint, or the output of a run) or from scratch, and trains
all parameters, or adapters (--config.lora.rank) or the last blocks (--config.train_last_layers) and
the score head. It writes WORKDIR/params, which experiments.rebel loads with
--config.reward_init_from=WORKDIR/params. Running the same command again resumes where it stopped.
"""

from typing import Any

import jax
import numpy as np

from experiments.reward_model import pairs as reward_pairs
from jaxrl_llm.algorithms import reward_model
from jaxrl_llm.runs import figures, launch, reward_models, training_loop
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import checkpoints, fingerprint, loop, metrics, optim
from jaxrl_llm.types import Params


def train(
    setup: setup_lib.Setup, pairs: reward_pairs.Pairs, measure: reward_pairs.Measure,
    writer: metrics.MetricsWriter,
) -> Params:
  """Runs Bradley-Terry steps on the training pairs; returns the reward model's plain parameters."""
  config = setup.config
  steps = config.steps or len(pairs) // config.batch_size
  optimizer = optim.for_run(config.optimizer, steps)
  finetuning = measure.finetuning
  algorithm = reward_model.make(
      config.algorithm, finetuning.policy,
      optim.make_optimizer(optimizer, trainable=finetuning.trainable))
  params = reward_models.initial_params(
      setup, measure.network, measure.abstract, head_init=config.head_init)
  initial = {'initial': setup.source.initial(params)} if setup.source else {}
  state, train_step = reward_pairs.start(setup, finetuning, algorithm, params)
  del params  # The state has a copy.

  with training_loop.start(
      setup, 'reward_model', state, files={'metrics': writer}, total=steps,
      save_every=config.save_every, description='reward model', frozen=initial,
  ) as training:
    shown = {}
    for step in training.steps():
      values = {}
      if loop.should(config.eval_every, step):
        numbers = measure(training.state.params['reward'])
        values = {f'eval/{name}': value for name, value in numbers.items()}

      batch = setup.put(pairs.batch(config.batch_size, seed=config.seed, step=step))
      training.state, update = train_step(training.state, batch)
      if loop.should(config.log_every, step) or values or step == steps - 1:
        values = training.log(step, {
            **values, **update, 'train/learning_rate': optim.learning_rate_at(optimizer, step)})
        shown = {'loss': values['train/loss']}
      else:
        training.check(step, update)
      training.end_step(step, **shown)

  shardings = jax.tree.map(lambda leaf: leaf.sharding, measure.abstract)
  return jax.jit(finetuning.plain, out_shardings=shardings)(training.state.params['reward'])


def main(run: launch.Run) -> None:
  """Trains, measures accuracy on held-out pairs, centres scores, and writes params and results."""
  config = run.config
  with setup_lib.build(run) as setup, run.open_metrics() as writer:
    pairs = reward_pairs.make(setup.task, setup.task.train, 'training')
    held_out = reward_pairs.make(setup.task, setup.task.evaluation, 'held-out')
    if not config.steps and len(pairs) < config.batch_size:
      raise ValueError(
          f'config.batch_size must be at most the {len(pairs)} training pairs for one pass '
          f'(config.steps=0), got {config.batch_size}'
      )

    references = reward_pairs.references(setup)
    print(f'{run.experiment}: {len(pairs)} training and {len(held_out)} held-out pairs, '
          f'{setup.describe()}; writing to {run.workdir}', flush=True)

    measure = reward_pairs.Measure(setup, held_out)
    params = train(setup, pairs, measure, writer)
    # What is saved is measured: merging adapters rounds.
    measured = measure(measure.finetuning.frozen(params))
    numbers: dict[str, Any] = {f'eval/{name}': x for name, x in measured.items()}

    if config.centre:
      scores = measure.scores(measure.finetuning.frozen(params), references)
      numbers |= {'centre/mean_score': float(np.mean(scores, dtype=np.float64)),
                  'centre/responses': len(references)}
      params = reward_model.centred({'reward': params}, numbers['centre/mean_score'])['reward']

    numbers['fingerprint'] = fingerprint.of_params(params)
    checkpoints.save_params(run.workdir / 'params', params, _metadata(setup))

  table = figures.markdown_table(
      ['pairs', 'held out', 'accuracy (%)', 'loss (nats)', 'margin', 'mean reference score before'],
      [[len(pairs), len(held_out), figures.percent(numbers, 'eval/accuracy'),
        f'{numbers["eval/loss"]:.4f}', f'{numbers["eval/margin"]:.4g}',
        f'{numbers["centre/mean_score"]:.4g}' if config.centre else 'not centred']],
  )
  metrics.write_text_atomic(run.table_path, table + '\n')
  launch.write_results(run, {
      **numbers, 'pairs/train': len(pairs), 'pairs/evaluation': len(held_out),
      'sampled_tokens': 0,  # Nothing is sampled.
  })
  print(f'\n{table}\n\nreward model: {run.workdir / "params"}', flush=True)


def _metadata(setup: setup_lib.Setup) -> dict[str, Any]:
  """Metadata saved with the parameters: their tokenizer, and their role as a reward model."""
  metadata = {**setup.metadata(), 'role': reward_models.ROLE}
  if 'hugging_face' in metadata:
    metadata['hugging_face'] = {**metadata['hugging_face'], 'role': 'value', 'num_outputs': 1}
  return metadata


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/reward_model_demo.py')
