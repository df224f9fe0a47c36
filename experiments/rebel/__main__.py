"""REBEL with a learned reward model: the online pipelines, and the large-batch one.

  python -m experiments.rebel --config=experiments/configs/rebel_chat.py \\
      --config.reward_init_from=DIR --config.policy_init_from=DIR --config.data_dir=DIR

Online (rebel_tldr, rebel_chat): two samples per prompt, scored by the reward model, and a few
optimizer steps of the regression. Large batch (rebel_largebatch): see
experiments/rebel/largebatch.py. Without a policy the reference is first fine-tuned on the data's
responses. Running the same command again resumes where it stopped. experiments/reward_model/ trains
a reward model.
"""

import contextlib
import dataclasses

import jax
import numpy as np

from experiments.rebel import batches as rebel_batches
from experiments.rebel import config as rebel_config
from experiments.rebel import largebatch as rebel_largebatch
from jaxrl_llm.algorithms import rebel
from jaxrl_llm.runs import (
  launch,
  policy_evaluation,
  policy_report,
  references,
  reward_models,
  supervised,
)
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import checkpoints, loop, metrics, optim, rng


def train(run: launch.Run, setup: setup_lib.Setup, writer, samples) -> dict:
  """Runs the online pipeline.

  Args:
    run: the run.
    setup: components from `setup_lib.build`.
    writer: metrics writer; batch i is written as step (steps of fine-tuning) + i.
    samples: JSONL file of example responses.

  Returns:
    {'tokens': number sampled, 'numbers': metrics of the trained policy and of the reference}.
  """
  config, options = run.config, run.config.algorithm
  reward = reward_models.load(config, setup)
  updates = config.steps * options.num_epochs * options.num_minibatches
  optimizer = optim.for_run(config.optimizer, updates)
  algorithm = rebel.make(options, setup.policy, setup.make_optimizer(optimizer))
  state, train_step, reference = references.begin(
      run, setup, algorithm, lambda: supervised.finetune(run, setup, writer))
  data = rebel_batches.Prompts(setup, options)
  make_batch = rebel_batches.Maker(config, setup, reward)
  evaluate = policy_evaluation.Evaluation(setup, reward, samples)
  watch = policy_evaluation.Watch()

  saved = checkpoints.Checkpoints(run.workdir / 'checkpoints' / 'rebel')
  keeper = loop.Keeper(
      saved, files={'metrics': writer, 'samples': samples}, total=config.steps,
      save_every=config.save_every, stopper=setup.stopper, on_save=run.save_clock,
      base_offsets={'metrics': reference.metrics_offset},
  )
  done, tokens, kept = 0, 0, {'reference': reference.fingerprint, 'reward': reward.fingerprint}
  if restored := keeper.restore(state):
    done, state, tokens = restored.step, restored.state, restored.metadata['tokens']
    reference.check(restored.metadata['reference'])
    reward.check(restored.metadata['reward'])
  timers = loop.Timers()
  with contextlib.closing(saved), loop.progress(config.steps, 'REBEL', done) as bar:
    for step in range(done, config.steps):
      policy, values = state.params['policy'], {}
      if loop.should(config.eval_every, step):
        with timers('evaluate'):
          values = evaluate.metrics(policy, reference.of(policy), step, tokens)
      prompts, responses = data.batch(config.batch_size, seed=run.seed, step=step)
      with timers('sample'):
        key = rng.stream_key(setup.key, rng.Stream.SAMPLE_TRAIN, step)
        rollouts = make_batch.sample(policy, *setup.put(tuple(prompts[:3])), key)
        tokens += int(np.asarray(rollouts.lengths).sum())
        rollouts = make_batch.mix_offline(rollouts, responses, step)
      with timers('reward'):
        scored = make_batch.score(rollouts, prompts.examples)
      with timers('train'):
        state, update = train_step(state, make_batch(rollouts, scored, reference.of(policy)))
        update = jax.device_get(update)
      values = writer.write(reference.steps + step, {
          **values, **update, **timers.pop(), **make_batch.summary(scored),
          'train/learning_rate': optim.learning_rate_at(optimizer, int(state.step) - 1),
          'rollout/sampled_tokens': tokens,
      })
      loop.check_finite(step, values, last_saved=keeper.last_saved)
      watch(values)
      bar.update(1, score=values['rollout/score'])
      keeper.after_step(step + 1, state, {**kept, 'tokens': tokens})

  policy = state.params['policy']
  setup.save_trained(run.workdir, policy)
  writer.write(reference.steps + config.steps, evaluate.metrics(
      policy, reference.of(policy), config.steps, tokens))
  numbers = evaluate.against_reference(policy, reference.of(policy))
  numbers |= {f'fingerprint/{name}': value for name, value in kept.items()}
  return {'tokens': tokens, 'numbers': numbers}


def main(run: launch.Run) -> None:
  """Runs the config's pipeline and writes the table, the figure and results.json."""
  pipeline = train
  if isinstance(run.config, rebel_config.LargeBatch):
    pipeline = rebel_largebatch.train

  with setup_lib.build(run) as setup, contextlib.closing(metrics.MetricsWriter(
      run.workdir, wandb_project=run.config.wandb_project, config=dataclasses.asdict(run.config)
  )) as writer, contextlib.closing(
      metrics.JsonlFile(run.workdir / 'samples.jsonl')
  ) as samples:
    policy_report.check_overrides(run)
    print(f'{run.experiment}: {setup.describe()}; writing to {run.workdir}', flush=True)
    trained = pipeline(run, setup, writer, samples)
    policy_report.write(run, setup, trained)


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/rebel_chat.py')
