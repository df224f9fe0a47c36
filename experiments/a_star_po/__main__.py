"""A*-PO, end to end: reference, V* from its samples, regression on the advantage, evaluation.

The reference is fine-tuned on the task's demonstrations, or loaded from
--config.policy_init_from=DIR. Running the same command again resumes where it stopped.
"""

import functools

import jax
import numpy as np

from experiments.a_star_po import report
from experiments.a_star_po import stage1 as stage1_lib
from jaxrl_llm.algorithms import a_star_po
from jaxrl_llm.data import batching
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import launch, references, supervised, training_loop, verifier_evaluation
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import loop, optim, rng
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Batch


def train(
    setup: setup_lib.Setup, files: dict, reference: references.Reference,
    stage1: stage1_lib.ReferenceValues,
) -> dict:
  """Runs stage 2: one sample per prompt, least squares on the advantage.

  Args:
    setup: the run's setup.
    files: the metrics and samples files; batch i is logged at step (fine-tuning steps) + i.
    reference: π_ref; shares the untrained parameters of the policy afterwards.
    stage1: its V*.

  Returns:
    {'evaluation': the trained policy's, 'tokens': sampled in stage 2, 'params': the policy's}.
  """
  config = setup.config
  examples = setup.encode(stage1.trainable(setup.task.train, config.algorithm)).trimmed()
  optimizer = optim.for_run(config.optimizer, config.steps * config.algorithm.num_minibatches)
  algorithm = a_star_po.make(config.algorithm, setup.policy, setup.make_optimizer(optimizer))
  state, train_step = references.start(setup, algorithm, reference)

  sample = setup.sampler(num_samples=1, temperature=config.algorithm.temperature)
  score = setup.scorer(
      temperature=config.algorithm.temperature, chunk_size=config.algorithm.head_chunk)
  evaluate = verifier_evaluation.Evaluation(setup, reference, files['samples'])

  with training_loop.start(
      setup, 'a_star_po', state, files=files, total=config.steps, save_every=config.save_every,
      description='stage 2: A*-PO', offset=reference.steps, frozen={'reference': reference},
      base_positions={'metrics': reference.metrics_position}, metadata={'tokens': 0},
      token_budget=config.tokens_left(stage1.tokens),
  ) as training:
    for step in training.steps():
      policy, tokens, values = training.state.params['policy'], training.metadata['tokens'], {}
      if loop.should(config.eval_every, step):
        with training.timers('evaluate'):
          values = evaluate(policy, step, stage1.tokens + tokens)

      indices = batching.batch_indices(
          len(examples), config.batch_size, seed=config.seed, step=step)
      prompts = batching.prompt_batch(examples, indices)
      key = rng.stream_key(setup.key, rng.Stream.SAMPLE_TRAIN, step)
      rollouts, scored = setup.roll_out(sample, policy, prompts, key, training.timers)
      training.check_rewards(scored.rewards, scored.truncated)

      with training.timers('train'):
        batch = Batch(
            rollouts, scored.rewards, score(reference.of(policy), rollouts),
            {'values': stage1.of(prompts.example_ids)}, np.ones(len(indices), np.float32))
        updates = []
        for minibatch in step_lib.minibatches(batch, config.algorithm.num_minibatches):
          training.state, update = train_step(training.state, setup.put(minibatch))
          updates.append(jax.device_get(update))

      training.metadata['tokens'] += int(scored.lengths.sum())
      values = training.log(step, {
          **values, **_update_metrics(updates, step),
          **verifier_evaluation.rollout_metrics(scored, training.metadata['tokens']),
          'train/learning_rate': optim.learning_rate_at(optimizer, int(training.state.step) - 1),
      })
      training.end_step(step, reward=values['rollout/reward'])

  policy, tokens = training.state.params['policy'], training.metadata['tokens']
  setup.save_trained(policy)
  training.write(training.done, evaluate(policy, training.done, stage1.tokens + tokens))
  return {'evaluation': evaluate.last, 'tokens': tokens, 'params': policy}


def _update_metrics(updates: list[dict], step: int) -> dict:
  """Returns the metrics of a batch, summed over its minibatches.

  The sampler's gap is that of the first minibatch: later ones are off-policy.
  """
  values = jax.tree.map(lambda *x: sum(x), *updates)
  values['train/sampler_gap'] = updates[0]['train/sampler_gap']
  if step == 0:  # The policy is still the reference.
    values['train/initial_log_ratio'] = abs(updates[0]['train/log_ratio'].value())
  return values


def main(run: launch.Run) -> None:
  """Runs both stages, evaluates, and writes the table, the figures and results.json."""
  config = run.config
  config_lib.check_overrides(run)

  with (
      setup_lib.build(run, lora=config.lora, last_layers=config.train_last_layers) as setup,
      run.open_metrics() as writer, run.open_samples() as samples,
  ):
    print(f'{run.experiment}: {setup.describe()}; writing to {run.workdir}', flush=True)

    reference = references.make_reference(
        setup, functools.partial(supervised.finetune, setup, writer))
    run.mark('reference')
    stage1 = stage1_lib.estimate(setup, reference)
    run.mark('stage1')
    trained = train(setup, {'metrics': writer, 'samples': samples}, reference, stage1)
    run.mark('stage2')
    report.write(setup, reference, stage1, trained)


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/a_star_po_arithmetic.py')
