"""Online RL on a task's own reward: REBEL, GRPO, RLOO, REINFORCE, PPO or online DPO.

  python -m experiments.online_rl --config=experiments/configs/online_rl_own.py:grpo \\
      --config.policy_init_from=DIR --config.task=FILE.jsonl --config.task.reward=math

Each batch is sampled by the current policy, scored by the task's verifier, and trained on; the type
of `config.algorithm` selects the loss. A*-PO, which also samples the reference, is
experiments/a_star_po/; the learned rewards of REBEL's paper are in experiments/rebel/. The
reference is loaded from --config.policy_init_from=DIR, or fine-tuned on the task's demonstrations.
Running the same command again resumes where it stopped.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np

from experiments.online_rl import config as online_config
from experiments.online_rl import critics, report
from jaxrl_llm.data import batching
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import launch, references, supervised, training_loop, verifier_evaluation
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import loop, optim, rng
from jaxrl_llm.types import Algorithm, Batch, Params


def train(setup: setup_lib.Setup, files: dict) -> dict:
  """Samples, scores and trains, batch after batch.

  Args:
    setup: the run's setup.
    files: the metrics and samples files; batch i is logged at step (fine-tuning steps) + i.

  Returns:
    {'reference': π_ref, 'evaluation': the trained policy's, 'tokens': number sampled, 'params':
    the policy's}.
  """
  config, method = setup.config, setup.config.algorithm
  optimizer = optim.for_run(config.optimizer, config.steps * config.updates_per_batch)
  algorithm, others = _make_algorithm(setup, optimizer)
  state, train_step, reference = references.begin(
      setup, algorithm, functools.partial(supervised.finetune, setup, files['metrics']),
      others=others)
  examples = setup.encode(setup.task.train).trimmed()
  if examples.num_filtered:
    print(f'{examples.num_filtered} training prompts are too long and were left out', flush=True)
  sample = setup.sampler(num_samples=method.samples_per_prompt, temperature=method.temperature)
  score = setup.scorer(
      temperature=method.temperature, chunk_size=method.head_chunk,
      num_micro_batches=method.num_micro_batches)
  evaluate = verifier_evaluation.Evaluation(setup, reference, files['samples'])

  with training_loop.start(
      setup, 'online_rl', state, files=files, total=config.steps, save_every=config.save_every,
      description=config.name, offset=reference.steps, metadata={'tokens': 0},
      frozen={'reference': reference}, base_positions={'metrics': reference.metrics_position},
      monitor=_no_monitor if config.compares_with_reference else None,
      token_budget=config.tokens_left(),
  ) as training:
    for step in training.steps():
      policy, values = training.state.params['policy'], {}
      if loop.should(config.eval_every, step):
        with training.timers('evaluate'):
          values = evaluate(policy, step, training.metadata['tokens'])

      prompts = batching.prompt_batch(examples, batching.batch_indices(
          len(examples), config.batch_size, seed=config.seed, step=step))
      key = rng.stream_key(setup.key, rng.Stream.SAMPLE_TRAIN, step)
      rollouts, scored = setup.roll_out(sample, policy, prompts, key, training.timers)
      training.metadata['tokens'] += int(scored.lengths.sum())
      training.check_rewards(scored.rewards, scored.truncated)

      with training.timers('train'):
        batch = Batch(
            rollouts, scored.rewards, score(reference.of(policy), rollouts), {},
            np.ones(config.batch_size, np.float32))
        training.state, update = train_step(training.state, setup.put(batch))
        update = jax.device_get(update)

      values = training.log(step, {
          **values, **update,
          **verifier_evaluation.rollout_metrics(scored, training.metadata['tokens']),
          'train/learning_rate': optim.learning_rate_at(optimizer, int(training.state.step) - 1),
      })
      training.end_step(step, reward=values['rollout/reward'])

  policy, tokens = training.state.params['policy'], training.metadata['tokens']
  setup.save_trained(policy)
  training.write(training.done, evaluate(policy, training.done, tokens))
  return {
      'reference': reference, 'evaluation': evaluate.last, 'tokens': tokens, 'params': policy}


def _make_algorithm(
    setup: setup_lib.Setup, optimizer: optim.OptimizerConfig
) -> tuple[Algorithm, Callable[[Params], Params] | None]:
  """Returns the algorithm, and what makes its critic's parameters if it has one."""
  config = setup.config
  make = online_config.ALGORITHMS[type(config.algorithm)].make
  if not config.has_critic:
    return make(config.algorithm, setup.policy, setup.make_optimizer(optimizer)), None
  critic = critics.make(setup)
  algorithm = make(
      config.algorithm, setup.policy, critic.policy, setup.make_optimizer(optimizer, critic))
  return algorithm, critics.initial(setup, critic)


def _no_monitor(values: dict[str, float]) -> None:
  """Checks nothing: DPO's log-ratio is the distance from the reference, only 0 at first."""


def main(run: launch.Run) -> None:
  """Trains and evaluates the policy, and writes the table, the figure and results.json."""
  config = run.config
  config_lib.check_overrides(run)

  with (
      setup_lib.build(run, lora=config.lora, last_layers=config.train_last_layers) as setup,
      run.open_metrics() as writer, run.open_samples() as samples,
  ):
    print(f'{run.experiment}: {config.name}: {setup.describe()}; writing to {run.workdir}',
          flush=True)
    report.write(setup, train(setup, {'metrics': writer, 'samples': samples}))


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/online_rl_arithmetic.py')
