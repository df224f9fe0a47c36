"""A*-PO, end to end: reference, V* from its samples, regression on the advantage, evaluation.

The reference is fine-tuned on the task's demonstrations, or loaded from
--config.policy_init_from=DIR. Running the same command again resumes where it stopped.
"""

import contextlib
import dataclasses
import re

import jax
import numpy as np

from experiments.a_star_po import report
from experiments.a_star_po import stage1 as stage1_lib
from jaxrl_llm.algorithms import a_star_po
from jaxrl_llm.data import batching
from jaxrl_llm.runs import launch, references, supervised
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import checkpoints, loop, metrics, optim, rng
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Batch


def train(run, setup, writer, samples, reference, stage1) -> dict:
  """Runs stage 2: one sample per prompt, least squares on the advantage.

  Args:
    run: the run.
    setup: components that `setup_lib.build` made from its config.
    writer: metrics writer; batch i is written at step (fine-tuning steps) + i.
    samples: JSONL file for the shown responses.
    reference: a `references.Reference`.
    stage1: a `stage1_lib.ReferenceValues`.

  Returns:
    {'evaluation': the trained policy's, 'tokens': sampled in stage 2, 'params': the policy's}.
  """
  config, options = run.config, run.config.algorithm
  encoded = setup.encode(stage1.kept(setup.task.train, options))
  optimizer = optim.for_run(config.optimizer, config.steps * options.num_minibatches)
  algorithm = a_star_po.make(options, setup.policy, setup.make_optimizer(optimizer))
  state, train_step = setup.start(algorithm, reference.start)
  sample = setup.sampler(num_samples=1, temperature=options.temperature)
  score = setup.scorer(temperature=options.temperature, chunk_size=options.head_chunk)
  evaluate = report.Evaluation(setup, reference, samples)

  saved = checkpoints.Checkpoints(run.workdir / 'checkpoints' / 'a_star_po')
  keeper = loop.Keeper(
      saved, files={'metrics': writer, 'samples': samples}, total=config.steps,
      save_every=config.save_every, stopper=setup.stopper, on_save=run.save_clock,
      base_offsets={'metrics': reference.metrics_offset},
  )
  done, tokens = 0, 0
  if restored := keeper.restore(state):
    reference.check(restored.metadata['reference'])
    done, state, tokens = restored.step, restored.state, restored.metadata['tokens']
  timers, watch = loop.Timers(), loop.RatioWatch()
  with contextlib.closing(saved), loop.progress(config.steps, 'stage 2: A*-PO', done) as bar:
    for step in range(done, config.steps):
      if 0 < config.token_budget <= stage1.tokens + tokens:
        break
      values = {}
      if loop.should(config.eval_every, step):
        with timers('evaluate'):
          values = evaluate(state.params['policy'], step, stage1.tokens + tokens)
      indices = batching.batch_indices(len(encoded), config.batch_size, seed=run.seed, step=step)
      prompts = batching.prompt_batch(encoded, indices)
      key = rng.stream_key(setup.key, rng.Stream.SAMPLE_TRAIN, step)
      rollouts, scored = setup.roll_out(sample, state.params['policy'], prompts, key, timers)
      with timers('train'):
        batch = Batch(
            rollouts, scored.rewards, score(reference.params, rollouts),
            {'values': stage1.of(prompts.example_ids)}, np.ones(len(indices), np.float32),
        )
        updates = []
        for minibatch in step_lib.minibatches(batch, options.num_minibatches):
          state, update = train_step(state, setup.put(minibatch))
          updates.append(jax.device_get(update))
      tokens += int(scored.lengths.sum())
      values = writer.write(reference.steps + step, {
          **values, **jax.tree.map(lambda *x: sum(x), *updates), **timers.pop(),
          **_before_any_step(updates[0], step),
          'train/learning_rate': optim.learning_rate_at(optimizer, int(state.step) - 1),
          'rollout/reward': scored.rewards.mean(), 'rollout/length': scored.lengths.mean(),
          'rollout/truncated': scored.truncated.mean(), 'rollout/sampled_tokens': tokens,
      })
      loop.check_finite(step, values, last_saved=keeper.last_saved)
      watch(values)
      done = step + 1
      bar.update(1, reward=values['rollout/reward'])
      keeper.after_step(done, state, {'tokens': tokens, 'reference': reference.fingerprint})
  params = state.params['policy']
  setup.save_trained(run.workdir, params)
  writer.write(reference.steps + done, evaluate(params, done, stage1.tokens + tokens))
  return {'evaluation': evaluate.last, 'tokens': tokens, 'params': params}


def _before_any_step(update: dict, step: int) -> dict:
  """Returns the first minibatch's metrics; later ones are off-policy, so not comparable."""
  found = {'train/sampler_gap': update['train/sampler_gap']}
  if step == 0:  # The policy is still the reference.
    found['train/initial_log_ratio'] = abs(update['train/log_ratio'].value())
  return found


def main(run: launch.Run) -> None:
  """Runs both stages, evaluates, and writes the table, the figures and results.json."""
  config = run.config
  unused = [name for name in run.overrides if re.match('sft[.](?!algorithm[.]head_chunk)', name)]
  if config.policy_init_from and unused:
    raise ValueError(
        f'config.{unused[0]} has no effect with config.policy_init_from: nothing is fine-tuned'
    )

  with setup_lib.build(run) as setup, contextlib.closing(metrics.MetricsWriter(
      run.workdir, wandb_project=config.wandb_project, config=dataclasses.asdict(config)
  )) as writer, contextlib.closing(
      metrics.JsonlFile(run.workdir / 'samples.jsonl')
  ) as samples:
    print(f'{run.experiment}: {setup.describe()}; writing to {run.workdir}', flush=True)

    reference = references.make_reference(
        run, setup, lambda: supervised.finetune(run, setup, writer)
    )
    run.mark('reference')
    stage1 = stage1_lib.estimate(run, setup, reference)
    run.mark('stage1')
    trained = train(run, setup, writer, samples, reference, stage1)
    run.mark('stage2')
    report.write(run, setup, reference, stage1, trained)


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/a_star_po_arithmetic.py')
