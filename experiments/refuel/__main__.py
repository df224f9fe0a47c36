"""REFUEL with a learned reward model: dialogues with a user, and a regression on one turn of each.

  python -m experiments.refuel --config=experiments/configs/refuel_two.py \\
      --config.reward_init_from=DIR --config.policy_init_from=DIR --config.data_dir=DIR

An iteration: a dialogue with each prompt's user; a second one from a random turn h on; the reward
model's scores of both whole dialogues; a few optimizer steps of the regression on the two replies
of turn h. refuel_two: the user asks the questions of the data. refuel_one: a model plays the user
(--config.user.kind=model), or a server does (endpoint). Without a policy the reference is first
fine-tuned on the data. Running the same command again resumes where it stopped; a server's answers
are not reproducible and may differ then. experiments/reward_model/ trains a reward model.
"""

import functools

import jax

from experiments.refuel import batches as refuel_batches
from experiments.refuel import evaluation as refuel_evaluation
from experiments.refuel import report as refuel_report
from experiments.refuel import users as refuel_users
from jaxrl_llm.algorithms import refuel
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import (
  launch,
  policy_evaluation,
  references,
  reward_models,
  supervised,
  training_loop,
)
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import loop, optim, rng


def train(setup: setup_lib.Setup, files: dict) -> dict:
  """Runs all iterations.

  Args:
    setup: the run's setup.
    files: the metrics and samples files; iteration i is logged at step (fine-tuning steps) + i.

  Returns:
    {'tokens': number sampled, 'numbers': metrics of the trained policy and of the reference}.
  """
  config = setup.config
  reward = reward_models.load(setup)
  users = refuel_users.Users(setup)
  updates = config.steps * config.algorithm.num_epochs * config.algorithm.num_minibatches
  optimizer = optim.for_run(config.optimizer, updates)
  algorithm = refuel.make(config.algorithm, setup.policy, setup.make_optimizer(optimizer))

  state, train_step, reference = references.begin(
      setup, algorithm, functools.partial(supervised.finetune, setup, files['metrics']))
  builder = refuel_batches.BatchBuilder(setup, reward)
  evaluate = refuel_evaluation.Evaluation(setup, reward, files['samples'], users, builder)

  with training_loop.start(
      setup, 'refuel', state, files=files, total=config.steps, save_every=config.save_every,
      description='REFUEL', offset=reference.steps, metadata={'tokens': 0},
      frozen={'reference': reference, 'reward': reward, 'user': users},
      base_positions={'metrics': reference.metrics_position},
      monitor=policy_evaluation.TargetScaleMonitor(),
  ) as training:
    for step in training.steps():
      policy, values = training.state.params['policy'], {}
      if loop.should(config.eval_every, step):
        with training.timers('evaluate'):
          values = evaluate.metrics(
              policy, reference.of(policy), step, training.metadata['tokens'])

      prompts = builder.prompts(step)
      with training.timers('sample'):
        key = rng.stream_key(setup.key, rng.Stream.SAMPLE_TRAIN, step)
        pair = builder.roll_out(policy, users(reference.of(policy)), prompts, key)
        training.metadata['tokens'] += pair.tokens

      with training.timers('reward'):
        scored = builder.score(pair)
      training.check_rewards(scored.rewards, scored.truncated)
      with training.timers('train'):
        batch = builder.build(pair, scored, reference.of(policy))
        training.state, update = train_step(training.state, batch)
        update = jax.device_get(update)

      values = training.log(step, {
          **values, **update, **builder.summary(pair, scored),
          'train/learning_rate': optim.learning_rate_at(optimizer, int(training.state.step) - 1),
          'rollout/sampled_tokens': training.metadata['tokens'],
          **{f'rollout/{name}': share for name, share in users.unmarked().items()},
      })
      training.end_step(step, score=values['rollout/score'])

  return policy_evaluation.finish(setup, training, evaluate, reference)


def main(run: launch.Run) -> None:
  """Trains and writes the tables, the figures and results.json."""
  config = run.config
  with (
      setup_lib.build(run, lora=config.lora, last_layers=config.train_last_layers) as setup,
      run.open_metrics() as writer, run.open_samples() as samples,
  ):
    config_lib.check_overrides(run)
    if not (config.policy_init_from or setup.task.demonstrations):
      raise ValueError(
          f'{config.task.files} (config.task.files) has no replies to fine-tune a policy on: give '
          '--config.policy_init_from=DIR')

    print(f'{run.experiment}: {setup.describe()}; {setup.task.left_out()}; writing to '
          f'{run.workdir}', flush=True)
    trained = train(setup, {'metrics': writer, 'samples': samples})
    refuel_report.write(setup, trained)


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/refuel_two.py')
