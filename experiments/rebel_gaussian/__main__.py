"""REBEL on a denoising sampler of points, a small stand-in for the paper's image generator.

The paper trains a latent consistency model of images by REBEL and by PPO, on aesthetic scores (Gao
et al., 2024, arXiv 2404.16767; code Owen-Oertell/rlcm). Here the sampler draws points of a plane in
a few steps, x_{t−1} = √ᾱ_{t−1} f_θ(x_t, t, prompt) + √(1 − ᾱ_{t−1}) ε; each prompt has a target on
a circle, and the reward is minus the distance to it. As in the paper, rewards are standardised by
prompt over the last samples, and REBEL regresses log-prob differences of whole chains on them.

Arms: REBEL; REBEL with both chains of a pair from one start, so that the normaliser cancels in the
difference; PPO, which clips the ratio of each step; PPO with the released code's ε. Each arm uses
the learning rate that was best on separate tuning seeds. Cost is measured in reward queries. The
real diffusion model is out of scope. Finished arms are saved: the same command resumes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.rebel_gaussian import arms as gaussian_arms
from experiments.rebel_gaussian import gaussian_chain
from experiments.rebel_gaussian import report as gaussian_report
from experiments.rebel_gaussian.config import RebelGaussian
from experiments.rebel_gaussian.point_sampler import PointSampler
from jaxrl_llm.runs import arms as arms_lib
from jaxrl_llm.runs import launch
from jaxrl_llm.training import loop, metrics, rng
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import TrainState


def make_run(config: RebelGaussian, sampler: PointSampler, arm: gaussian_arms.Arm):
  """Returns (learning rate, seed) -> mean reward of fresh samples around each iteration [T + 1].

  The first entry is before training, the others after each iteration. To be vmapped over both
  arguments.
  """
  rows = 2 * config.batch_size
  prompts = jnp.repeat(jnp.arange(config.batch_size) % config.num_prompts, 2)
  evaluated = jnp.repeat(jnp.arange(config.num_prompts), config.evaluation_samples)
  loss_fn = gaussian_arms.make_loss(config, sampler, arm)

  def evaluate(state, index):
    key = rng.stream_key(state.key, rng.SAMPLE_EVAL, index)
    start = jax.random.normal(jax.random.fold_in(key, 0), (len(evaluated), 2))
    return sampler.sample(
        state.params['policy'], start, evaluated, jax.random.fold_in(key, 1))[1].mean()

  def batch_of(state, index):
    """Samples of the policy in pairs, and the updated reward statistics."""
    key = rng.stream_key(state.key, rng.SAMPLE_TRAIN, index)
    start = jax.random.normal(jax.random.fold_in(key, 0), (rows, 2))
    if arm.shared_start:
      start = start[::2].repeat(2, axis=0)

    params = state.params['policy']
    chain, rewards = sampler.sample(params, start, prompts, jax.random.fold_in(key, 1))
    statistics, advantages = gaussian_chain.standardise_by_prompt(
        state.aux, prompts, rewards, min_count=config.min_count)
    batch = {'chain': chain, 'prompts': prompts, 'advantages': advantages,
             'old': sampler.log_probs(params, chain, prompts)}
    return jax.tree.map(lambda leaf: leaf.reshape(-1, 2, *leaf.shape[1:]), batch), statistics

  def run(learning_rate, seed):
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm), optax.adam(learning_rate))
    key = jax.random.key(seed, impl='threefry2x32')
    params = {'policy': sampler.init(rng.stream_key(key, rng.INIT))}
    statistics = gaussian_chain.init_statistics(config.num_prompts, size=config.buffer_size)
    state = TrainState.create(params, optimizer, key, statistics)

    updates = config.num_epochs * config.num_minibatches

    def score_of(state, index):
      # NaN after a skipped update: the run has diverged.
      return jnp.where(state.step == index * updates, evaluate(state, index), jnp.nan)

    def iterate(state, index):
      score = score_of(state, index)
      batch, statistics = batch_of(state, index)
      state, _, _ = step_lib.take_steps(
          loss_fn, optimizer, state, batch, num_epochs=config.num_epochs,
          num_minibatches=config.num_minibatches)
      return dataclasses.replace(state, aux=statistics), score

    state, scores = jax.lax.scan(iterate, state, jnp.arange(config.steps))
    return jnp.append(scores, score_of(state, config.steps))

  return run


def train(
    config: RebelGaussian, sampler: PointSampler, arm: gaussian_arms.Arm
) -> dict[str, np.ndarray]:
  """Trains all learning rates and seeds of an arm in parallel.

  Returns:
    fractions [R, S, T + 1] of the way to the best score, by learning rate and seed, with the
    tuning seeds last.
  """
  count = config.num_seeds + config.num_tuning_seeds
  run = make_run(config, sampler, arm)
  over_seeds = jax.vmap(run, (None, 0))
  scores = jax.jit(jax.vmap(over_seeds, (0, None)))(
      jnp.asarray(config.learning_rates), config.seed + jnp.arange(count))
  way = sampler.best_score - sampler.initial_score
  return {'fractions': (np.asarray(scores, np.float64) - sampler.initial_score) / way}


def main(run: launch.Run) -> None:
  """Trains all arms and writes the table, the figure and results.json."""
  config, arms = run.config, {}
  sampler = PointSampler(config)

  with loop.progress(len(gaussian_arms.ARMS), 'arms') as bar:
    for name, arm in gaussian_arms.ARMS.items():
      arms[name] = arms_lib.finished(
          run.workdir / 'arms' / f'{name}.npz',
          arms_lib.identity_of('rebel_gaussian', config, arm=name),
          functools.partial(train, config, sampler, arm), commit=run.commit)['fractions']
      best, tuning = gaussian_report.tune(config, arms[name])
      bar.update(1, **{name: float(tuning[best])})

  numbers = gaussian_report.summarise(config, arms)
  gaussian_report.write_metrics(run, arms)
  gaussian_report.write_figure(run, arms)
  report = gaussian_report.table(config, numbers)
  metrics.write_text_atomic(run.table_path, report + '\n')
  launch.write_results(run, {
      **numbers, 'num_seeds': config.num_seeds, 'score/initial': sampler.initial_score,
      'score/best': sampler.best_score, 'sampled_tokens': 0,
      'reward_queries': 2 * config.batch_size * config.steps})

  verdict = 'holds' if numbers['criterion/rebel_within_ppo'] else 'does not hold'
  print(f'\n{report}\n\nREBEL within the reward queries of PPO: {verdict} here\n{config.note}\n'
        f'figure: {run.workdir / "figures" / "learning_curve.png"}\nresults: {run.results_path}')


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/rebel_gaussian.py')
