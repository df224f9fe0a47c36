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

import contextlib
import dataclasses

import jax

from experiments.refuel import batches as refuel_batches
from experiments.refuel import evaluation as refuel_evaluation
from experiments.refuel import report as refuel_report
from experiments.refuel import users as refuel_users
from jaxrl_llm.algorithms import refuel
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
  """Runs all iterations.

  Args:
    run: the run.
    setup: components from `setup_lib.build`.
    writer: metrics writer; iteration i is written as step (steps of fine-tuning) + i.
    samples: JSONL file of example dialogues.

  Returns:
    {'tokens': number sampled, 'numbers': metrics of the trained policy and of the reference}.
  """
  config, options = run.config, run.config.algorithm
  reward = reward_models.load(config, setup)
  users = refuel_users.Users(config, setup)
  updates = config.steps * options.num_epochs * options.num_minibatches
  optimizer = optim.for_run(config.optimizer, updates)
  algorithm = refuel.make(options, setup.policy, setup.make_optimizer(optimizer))
  state, train_step, reference = references.begin(
      run, setup, algorithm, lambda: supervised.finetune(run, setup, writer))
  make_batch = refuel_batches.Maker(config, setup, reward)
  evaluate = refuel_evaluation.Evaluation(setup, reward, samples, users, make_batch)
  watch = policy_evaluation.Watch()

  saved = checkpoints.Checkpoints(run.workdir / 'checkpoints' / 'refuel')
  keeper = loop.Keeper(
      saved, files={'metrics': writer, 'samples': samples}, total=config.steps,
      save_every=config.save_every, stopper=setup.stopper, on_save=run.save_clock,
      base_offsets={'metrics': reference.metrics_offset},
  )
  frozen = {'reference': reference, 'reward': reward, 'user': users}
  done, tokens, kept = 0, 0, {name: part.fingerprint for name, part in frozen.items()}
  if restored := keeper.restore(state):
    done, state, tokens = restored.step, restored.state, restored.metadata['tokens']
    for name, part in frozen.items():
      part.check(restored.metadata[name])
  timers = loop.Timers()
  with contextlib.closing(saved), loop.progress(config.steps, 'REFUEL', done) as bar:
    for step in range(done, config.steps):
      policy, values = state.params['policy'], {}
      if loop.should(config.eval_every, step):
        with timers('evaluate'):
          values = evaluate.metrics(policy, reference.of(policy), step, tokens)
      prompts = make_batch.prompts(step)
      with timers('sample'):
        key = rng.stream_key(setup.key, rng.Stream.SAMPLE_TRAIN, step)
        pair = make_batch.roll_out(policy, users(reference.of(policy)), prompts, key)
        tokens, unmarked = tokens + pair.tokens, users.unmarked()
      with timers('reward'):
        scored = make_batch.score(pair)
      with timers('train'):
        state, update = train_step(state, make_batch(pair, scored, reference.of(policy)))
        update = jax.device_get(update)
      values = writer.write(reference.steps + step, {
          **values, **update, **timers.pop(), **make_batch.summary(pair, scored),
          'train/learning_rate': optim.learning_rate_at(optimizer, int(state.step) - 1),
          'rollout/sampled_tokens': tokens,
          **{f'rollout/{name}': share for name, share in unmarked.items()},
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
  """Trains and writes the tables, the figures and results.json."""
  with setup_lib.build(run) as setup, contextlib.closing(metrics.MetricsWriter(
      run.workdir, wandb_project=run.config.wandb_project, config=dataclasses.asdict(run.config)
  )) as writer, contextlib.closing(
      metrics.JsonlFile(run.workdir / 'samples.jsonl')
  ) as samples:
    policy_report.check_overrides(run)
    if not (run.config.policy_init_from or setup.task.demonstrations):
      raise ValueError(
          f'there are no replies in {run.config.task.files} (config.task.files) to fine-tune a '
          'policy on: --config.policy_init_from=DIR')

    print(f'{run.experiment}: {setup.describe()}; {setup.task.left_out()}; writing to '
          f'{run.workdir}', flush=True)
    trained = train(run, setup, writer, samples)
    refuel_report.write(run, setup, trained)


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/refuel_two.py')
