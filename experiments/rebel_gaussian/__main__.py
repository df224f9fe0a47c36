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

import contextlib
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.rebel_gaussian import gaussian_chain
from experiments.rebel_gaussian.config import RebelGaussian
from jaxrl_llm.evaluation import statistics
from jaxrl_llm.rl import policy_losses, regression_losses
from jaxrl_llm.runs import arms as arms_lib
from jaxrl_llm.runs import figures, launch
from jaxrl_llm.training import loop, metrics, rng
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import TrainState, WeightedMean


class Arm(NamedTuple):
  """A training method.

  Attributes:
    label: name in the table and the figure.
    loss: 'rebel' or 'ppo'.
    shared_start: whether both chains of a pair start from the same noise.
    clip: the config field that holds ε; '' for REBEL.
    style: colour, marker, line.
  """

  label: str
  loss: str
  shared_start: bool
  clip: str
  style: tuple[str, str, str]


ARMS = {
    'rebel': Arm('REBEL', 'rebel', False, '', ('#1b6ca8', 'o', '-')),
    'rebel_shared_start': Arm(
        'REBEL, pairs from one start', 'rebel', True, '', ('#2e8b57', '^', '--')),
    'ppo': Arm('PPO', 'ppo', False, 'clip', ('#d1495b', 's', '-')),
    'ppo_published_clip': Arm(
        'PPO, released clip', 'ppo', False, 'published_clip', ('#8d6a9f', 'D', '-')),
}
GOAL = 0.9  # Fraction of the way from the first policy to the best one.


class PointSampler:
  """The sampler and its rewards.

  f_θ(x, t, prompt) = (prediction of the untrained sampler) + a network whose output starts at 0.
  Untrained, it is the consistency function of N(0, s² I): x rescaled to standard deviation s.

  Attributes:
    std: [S], √(1 − ᾱ_{t−1}).
    targets: [N, 2].
    initial_score: expected reward before training.
    best_score: the largest expected reward: the last step's mean is always on the target.
  """

  def __init__(self, config: RebelGaussian):
    after = jnp.asarray(config.alpha_bar)
    before = jnp.concatenate([jnp.zeros(1), after[:-1]])
    self._config, self._alpha_bar = config, after
    self._scale = config.data_std / jnp.sqrt(before * config.data_std**2 + 1 - before)
    self.std = jnp.sqrt(1 - after)

    angle = 2 * jnp.pi * jnp.arange(config.num_prompts) / config.num_prompts
    self.targets = config.radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)

    # Distances from a point are Rice distributed; from the mean itself, Rayleigh distributed.
    variance = after[-1] * config.data_std**2 + 1 - after[-1]
    z = config.radius**2 / (2 * variance)
    bessel = (1 + z) * jax.scipy.special.i0e(z / 2) + z * jax.scipy.special.i1e(z / 2)
    self.initial_score = -float(jnp.sqrt(jnp.pi / 2 * variance) * bessel)
    self.best_score = -float(self.std[-1] * jnp.sqrt(jnp.pi / 2))

  def init(self, key: jax.Array):
    """Parameters of the network, with the last layer 0."""
    inputs = 2 + len(self._alpha_bar) + self._config.num_prompts
    sizes = [(inputs, self._config.width), (self._config.width, self._config.width)]
    layers = [{
        'kernel': jax.random.normal(jax.random.fold_in(key, i), size) / jnp.sqrt(size[0]),
        'bias': jnp.zeros(size[1]),
    } for i, size in enumerate(sizes)]
    return [*layers, {'kernel': jnp.zeros((self._config.width, 2)), 'bias': jnp.zeros(2)}]

  def mean(self, params, states: jax.Array, steps: jax.Array, prompts: jax.Array) -> jax.Array:
    """mean_t(x_t) [..., 2] of states [..., 2] at steps [...] for prompts [...]."""
    one_hot = (jax.nn.one_hot(steps, len(self._alpha_bar)),
               jax.nn.one_hot(prompts, self._config.num_prompts))
    x = jnp.concatenate([states, *one_hot], axis=-1)
    for layer in params[:-1]:
      x = jnp.tanh(x @ layer['kernel'] + layer['bias'])
    prediction = self._scale[steps][..., None] * states + (
        x @ params[-1]['kernel'] + params[-1]['bias'])
    return jnp.sqrt(self._alpha_bar)[steps][..., None] * prediction

  def log_probs(self, params, chain: gaussian_chain.Chain, prompts: jax.Array) -> jax.Array:
    """Log-probs [B, S] of the steps of chains [B, S, 2]."""
    steps = jnp.broadcast_to(jnp.arange(len(self.std)), chain.states.shape[:2])
    mean = self.mean(params, chain.states, steps, prompts[:, None].repeat(len(self.std), 1))
    return gaussian_chain.step_log_probs(
        mean, self.std, chain.actions, reduction=self._config.reduction)

  def sample(self, params, start: jax.Array, prompts: jax.Array, key: jax.Array):
    """Samples chains from starts [B, 2]; returns them with their rewards [B]."""
    def mean_fn(x, step):
      return self.mean(params, x, jnp.broadcast_to(step, prompts.shape), prompts)

    chain = gaussian_chain.sample_chain(mean_fn, start, self.std, key)
    return chain, -jnp.linalg.norm(chain.actions[:, -1] - self.targets[prompts], axis=-1)


def make_loss(config: RebelGaussian, sampler: PointSampler, arm: Arm):
  """Returns a loss for `training.step` on a batch of pairs with leaves [P, 2, ...]."""
  def loss_fn(params, batch):
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch)
    log_probs = sampler.log_probs(params['policy'], flat['chain'], flat['prompts'])
    log_ratio = log_probs.reshape(batch['old'].shape) - batch['old']  # [P, 2, S].
    if arm.loss == 'rebel':
      losses = regression_losses.rebel_loss(
          jnp.sum(log_ratio, axis=-1), batch['advantages'], eta=config.eta)
    else:
      bound, clip = config.advantage_clip, getattr(config, arm.clip)
      advantages = jnp.clip(batch['advantages'], -bound, bound)[..., None]
      losses = policy_losses.clipped_surrogate(
          log_ratio, jnp.broadcast_to(advantages, log_ratio.shape), clip_low=clip, clip_high=clip)
    return WeightedMean(jnp.sum(losses), jnp.float32(losses.size)), {}

  return loss_fn


def make_run(config: RebelGaussian, sampler: PointSampler, arm: Arm):
  """Returns (learning rate, seed) -> mean reward of fresh samples around each iteration [T + 1].

  The first entry is before training, the others after each iteration. To be vmapped over both
  arguments.
  """
  rows = 2 * config.batch_size
  prompts = jnp.repeat(jnp.arange(config.batch_size) % config.num_prompts, 2)
  evaluated = jnp.repeat(jnp.arange(config.num_prompts), config.evaluation_samples)
  loss_fn = make_loss(config, sampler, arm)

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


def train(config: RebelGaussian, sampler: PointSampler, arm: Arm) -> dict[str, np.ndarray]:
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


def queries_to_goal(config: RebelGaussian, fractions: np.ndarray) -> np.ndarray:
  """Reward queries before the first evaluation at the goal; NaN if it is never reached.

  Args:
    config: the config of the study.
    fractions: [..., T + 1].

  Returns:
    [...].
  """
  reached = fractions >= GOAL
  first = np.argmax(reached, axis=-1) * 2.0 * config.batch_size
  return np.where(reached.any(axis=-1), first, np.nan)


def tune(config: RebelGaussian, fractions: np.ndarray) -> tuple[int, np.ndarray]:
  """Picks the learning rate with the fewest queries on the tuning seeds; ties go to the best end.

  Args:
    config: the config of the study.
    fractions: [R, S, T + 1], as `train` returns them.

  Returns:
    (its index, mean queries of each rate [R]; a run that never reaches the goal counts as twice
    the budget).
  """
  tuning = fractions[:, config.num_seeds:]
  budget = 2 * config.batch_size * config.steps
  means = np.nan_to_num(queries_to_goal(config, tuning), nan=2 * budget).mean(axis=1)
  endings = tuning[..., -1].mean(axis=1)
  return min(range(len(means)), key=lambda rate: (means[rate], -endings[rate])), means


def summarise(config: RebelGaussian, arms: dict[str, np.ndarray]) -> dict[str, float]:
  """The headline numbers of fractions [R, S, T + 1] by arm.

  A run that never reaches the goal counts as the whole budget, and lowers `reached`.
  """
  numbers, queries = {}, {}
  budget = 2 * config.batch_size * config.steps
  for name, fractions in arms.items():
    best, tuning = tune(config, fractions)
    chosen = fractions[best, : config.num_seeds]
    queries[name] = queries_to_goal(config, chosen)

    numbers |= arms_lib.summary(
        f'eval/{name}/queries_to_goal', np.nan_to_num(queries[name], nan=budget))
    numbers[f'eval/{name}/reached'] = float(np.isfinite(queries[name]).mean())
    numbers |= arms_lib.summary(f'eval/{name}/final_fraction', chosen[:, -1])

    numbers[f'setting/{name}/learning_rate'] = config.learning_rates[best]
    for rate, value in zip(config.learning_rates, tuning):
      numbers[f'tuning/{name}/queries_at_{rate:g}'] = float(value)

  for name, arm in ARMS.items():
    if arm.loss == 'ppo':
      mine, theirs = (f'eval/{x}/queries_to_goal' for x in ('rebel', name))
      numbers[f'criterion/rebel_within_{name}'] = int(
          numbers['eval/rebel/reached'] == 1 and numbers[mine] <= numbers[theirs])
  return numbers


def write_figure(run: launch.Run, arms: dict[str, np.ndarray]) -> None:
  """Plots learning curves and the sweep of learning rates; writes the curves as CSV."""
  config, rows = run.config, []
  queries = 2 * config.batch_size * np.arange(config.steps + 1)
  path = run.workdir / 'figures' / 'learning_curve.png'
  title = f'Points by denoising in {len(config.alpha_bar)} steps: distance to a target'

  with figures.figure(path, 2, title=title) as (curves, rates):
    for name, fractions in arms.items():
      arm, (best, tuning) = ARMS[name], tune(config, fractions)
      colour, marker, line = arm.style
      mean, error = statistics.mean_and_standard_error(fractions[best, : config.num_seeds])

      label = f'{arm.label}, rate {config.learning_rates[best]:g}'
      curves.plot(queries, mean, color=colour, ls=line, label=label)
      curves.fill_between(queries, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
      rates.plot(config.learning_rates, tuning, color=colour, marker=marker, ls=line,
                 label=arm.label)
      rows += [(name, *row) for row in zip(queries, mean, error)]

    curves.axhline(GOAL, color='0.35', ls=':')
    curves.set(xlabel='reward queries', ylabel='fraction of the way to the best score',
               ylim=(-0.05, 1.05), title='at the best learning rate of each')
    curves.legend(frameon=False, loc='lower right', fontsize=8)

    rates.axhline(queries[-1], color='0.35', ls=':', label='budget (not reached: twice it)')
    rates.set(xscale='log', yscale='log', xlabel='learning rate',
              ylabel=f'reward queries to {GOAL:.0%} of the way', title='on the tuning seeds')
    rates.legend(frameon=False, fontsize=8)

  metrics.write_csv_atomic(path.with_suffix('.csv'), [
      'arm', 'reward_queries', 'fraction', 'standard_error'], rows)


def table(config: RebelGaussian, numbers: dict[str, float]) -> str:
  """Table of clip, learning rate, queries to the goal and final fraction of every arm."""
  def cell(name, digits):
    error = numbers.get(f'{name}_se')
    text = f'{numbers[name]:.{digits}f}'
    return text if error is None else f'{text} ± {error:.{digits}f}'

  rows = []
  for name, arm in ARMS.items():
    at_least = '' if numbers[f'eval/{name}/reached'] == 1 else '≥ '
    rows.append([
        arm.label, getattr(config, arm.clip) if arm.clip else '-',
        f'{numbers[f"setting/{name}/learning_rate"]:g}',
        at_least + cell(f'eval/{name}/queries_to_goal', 0),
        cell(f'eval/{name}/final_fraction', 3)])
  return figures.markdown_table(
      ['arm', 'clip', 'learning rate', f'queries to {GOAL:.0%}', 'at the end (best is 1)'], rows)


def main(run: launch.Run) -> None:
  """Trains all arms and writes the table, the figure and results.json."""
  config, arms = run.config, {}
  sampler = PointSampler(config)

  with loop.progress(len(ARMS), 'arms') as bar:
    for name, arm in ARMS.items():
      arms[name] = arms_lib.finished(
          run.workdir / 'arms' / f'{name}.npz',
          arms_lib.identity_of('rebel_gaussian', config, arm=name),
          functools.partial(train, config, sampler, arm), commit=run.commit)['fractions']
      best, tuning = tune(config, arms[name])
      bar.update(1, **{name: float(tuning[best])})

  numbers = summarise(config, arms)

  with contextlib.closing(metrics.MetricsWriter(run.workdir)) as writer:
    writer.truncate([])
    for step in range(config.steps + 1):
      writer.write(step, {
          f'eval/{name}/fraction': fractions[
              tune(config, fractions)[0], : config.num_seeds, step].mean()
          for name, fractions in arms.items()})

  write_figure(run, arms)
  report = table(config, numbers)
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
