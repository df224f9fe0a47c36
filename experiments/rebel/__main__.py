"""REBEL with a learned reward model: the online pipelines, and the large-batch one.

  python -m experiments.rebel --config=experiments/configs/rebel_chat.py \\
      --config.reward_init_from=DIR --config.policy_init_from=DIR --config.data_dir=DIR

Online (rebel_tldr, rebel_chat): two samples per prompt, scored by the reward model, and a few
optimizer steps of the regression. Large batch (rebel_largebatch): see
experiments/rebel/largebatch.py. Without a policy the reference is first fine-tuned on the data's
responses. Running the same command again resumes where it stopped. experiments/reward_model/ trains
a reward model.
"""

import functools

import jax
import numpy as np

from experiments.rebel import batches as rebel_batches
from experiments.rebel import config as rebel_config
from experiments.rebel import largebatch as rebel_largebatch
from jaxrl_llm.algorithms import rebel
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import (
  launch,
  policy_evaluation,
  policy_report,
  references,
  reward_models,
  supervised,
  training_loop,
)
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import loop, optim, rng


def train(setup: setup_lib.Setup, files: dict) -> dict:
  """Runs the online pipeline.

  Args:
    setup: the run's setup.
    files: the metrics and samples files; batch i is logged at step (fine-tuning steps) + i.

  Returns:
    {'tokens': number sampled, 'numbers': metrics of the trained policy and of the reference}.
  """
  config = setup.config
  reward = reward_models.load(setup)
  updates = config.steps * config.algorithm.num_epochs * config.algorithm.num_minibatches
  optimizer = optim.for_run(config.optimizer, updates)
  algorithm = rebel.make(config.algorithm, setup.policy, setup.make_optimizer(optimizer))

  state, train_step, reference = references.begin(
      setup, algorithm, functools.partial(supervised.finetune, setup, files['metrics']))
  data = rebel_batches.Prompts(setup)
  builder = rebel_batches.BatchBuilder(setup, reward)
  evaluate = policy_evaluation.Evaluation(setup, reward, files['samples'])

  with training_loop.start(
      setup, 'rebel', state, files=files, total=config.steps, save_every=config.save_every,
      description='REBEL', offset=reference.steps, metadata={'tokens': 0},
      frozen={'reference': reference, 'reward': reward},
      base_positions={'metrics': reference.metrics_position},
      monitor=policy_evaluation.TargetScaleMonitor(),
  ) as training:
    for step in training.steps():
      policy, values = training.state.params['policy'], {}
      if loop.should(config.eval_every, step):
        with training.timers('evaluate'):
          values = evaluate.metrics(
              policy, reference.of(policy), step, training.metadata['tokens'])

      prompts, responses = data.batch(config.batch_size, seed=config.seed, step=step)
      with training.timers('sample'):
        key = rng.stream_key(setup.key, rng.Stream.SAMPLE_TRAIN, step)
        rollouts = builder.sample(policy, *setup.put(tuple(prompts[:3])), key)
        training.metadata['tokens'] += int(np.asarray(rollouts.lengths).sum())
        rollouts = builder.mix_offline(rollouts, responses, step)

      with training.timers('reward'):
        scored = builder.score(rollouts, prompts.examples)
      training.check_rewards(scored.rewards, scored.truncated)
      with training.timers('train'):
        batch = builder.build(rollouts, scored, reference.of(policy))
        training.state, update = train_step(training.state, batch)
        update = jax.device_get(update)

      values = training.log(step, {
          **values, **update, **builder.summary(scored),
          'train/learning_rate': optim.learning_rate_at(optimizer, int(training.state.step) - 1),
          'rollout/sampled_tokens': training.metadata['tokens'],
      })
      training.end_step(step, score=values['rollout/score'])

  return policy_evaluation.finish(setup, training, evaluate, reference)


def main(run: launch.Run) -> None:
  """Runs the config's pipeline and writes the table, the figure and results.json."""
  config, pipeline = run.config, train
  if isinstance(config, rebel_config.LargeBatch):
    pipeline = rebel_largebatch.train

  with (
      setup_lib.build(run, lora=config.lora, last_layers=config.train_last_layers) as setup,
      run.open_metrics() as writer, run.open_samples() as samples,
  ):
    config_lib.check_overrides(run)
    print(f'{run.experiment}: {setup.describe()}; writing to {run.workdir}', flush=True)
    trained = pipeline(setup, {'metrics': writer, 'samples': samples})
    policy_report.write(setup, trained)


if __name__ == '__main__':
  launch.run(
      main, default_config='experiments/configs/rebel_chat.py',
      config_types=(rebel_config.LargeBatch,))
