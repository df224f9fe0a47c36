"""REBEL on preferences that no reward explains: rock, paper, scissors.

The policy is a small decoder, a response is its first token, and paper is preferred to rock,
scissors to paper, rock to scissors. REBEL with these preferences plays against itself; the average
of its policies must become hard to exploit (Gao et al., 2024, section on general preferences, arXiv
2404.16767), within the regret bound of Hedge, while the last policy need not. Further arms: the
same steps computed exactly, and REBEL on the rewards that a Bradley-Terry model fits to as many
comparisons, either from the policy before training (`reward_before`) or the same ones that the
first arm made (`reward_same`). Finished arms are saved: the same command resumes with the next one.

Only the decoder's head is trained, by plain gradient descent: the regression is then linear, and a
few steps solve it, as the guarantee requires. In trials with all parameters the noise made the
curvature grow until descent broke down, in two to four of five seeds within 2,000 iterations. Adam,
whose step size does not depend on η, left the average above the bound in more than a quarter of the
iterations.
"""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.rebel_games import games
from experiments.rebel_games.config import RebelGames
from jaxrl_llm.algorithms import rebel
from jaxrl_llm.evaluation import statistics
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.runs import arms as arms_lib
from jaxrl_llm.runs import figures, launch
from jaxrl_llm.sampling import decode
from jaxrl_llm.training import loop, metrics, optim, rng
from jaxrl_llm.types import Batch, Rollouts

MOVES = ('rock', 'paper', 'scissors')
PREFERENCE = np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
ARMS = {
    'preferences': 'REBEL, preferences',
    'reward_before': 'REBEL, reward model of the policy before training',
    'reward_same': 'REBEL, reward model of the same comparisons',
}
EXACT = {
    'exact_preferences': 'exact steps, preferences',
    'exact_reward': 'exact steps, reward model of the policy before training',
    'exact_refit': 'exact steps, reward model fitted again at every step',
}


class Player:
  """The policy and its iterations: written for one seed, vmapped over all seeds."""

  def __init__(self, config: RebelGames, signal: str):
    self._config = config
    self._algorithm_config = dataclasses.replace(config.algorithm, signal=signal)
    self._model = policy_lib.make(config.model)
    self._algorithm = rebel.make(
        self._algorithm_config, self._model,
        optim.PartialOptimizer(optax.sgd(config.learning_rate), 'head/kernel'))

    # Every response is one token: each token is a stop token.
    self._compares = signal == 'preferences'
    comparators = config.num_comparators if self._compares else 0
    self._sample = decode.make_sampler(
        self._model, num_samples=2 + comparators, max_tokens=1, stop_ids=(0, 1, 2), pad_id=0,
        temperature=self._algorithm_config.temperature)

    self.starts = jax.jit(jax.vmap(self.start))
    self.advances = jax.jit(jax.vmap(self.advance, (0, 0, None)), donate_argnums=0)
    self.policies = jax.jit(jax.vmap(self.policy))

  def _read(self, params) -> tuple[jax.Array, jax.Array]:
    """Input of the head after the prompt [D], and its logits [3]."""
    first = jnp.zeros((1, 1), jnp.int32)
    output = self._model.apply(params, first, positions=first, valid=first == 0)
    hidden = output.hidden[0, 0]
    return hidden, output.head.kernel @ hidden / self._algorithm_config.temperature

  def policy(self, state) -> jax.Array:
    """π of the three moves, [3]."""
    return jax.nn.softmax(self._read(state.params['policy'])[1])

  def start(self, seed: jax.Array):
    """Initial state: random parameters, with the head set to give π_0."""
    key = jax.random.key(seed, impl='threefry2x32')
    params = self._model.init(rng.stream_key(key, rng.INIT))
    hidden, logits = self._read(params)
    missing = jnp.log(jnp.asarray(self._config.initial_policy)) - logits
    kernel = params['head']['kernel']
    kernel += self._algorithm_config.temperature * jnp.outer(missing, hidden) / jnp.sum(hidden**2)
    return self._algorithm.init(key, {'policy': {**params, 'head': {'kernel': kernel}}})

  def _draw(self, params, key: jax.Array, index: jax.Array) -> tuple[Rollouts, jax.Array]:
    """Pairs (y, y') and the moves of their comparators [P, M]; y' may come from a data set.

    The data set contains the three moves equally often: the coverage that the theory requires.
    """
    rows = self._config.batch_size
    drawn = self._sample(
        params, jnp.zeros((rows, 1), jnp.int32), jnp.ones(rows, jnp.int32), jnp.arange(rows),
        rng.stream_key(key, rng.SAMPLE_TRAIN, index))

    offline = dataclasses.replace(
        drawn.samples(slice(1, 2)), tokens=((jnp.arange(rows) + index) % 3)[:, None, None])
    pairs = rebel.mix_offline(
        self._algorithm_config, drawn.samples(slice(0, 2)), offline,
        rng.stream_key(key, rng.DATA, index))
    return pairs, drawn.tokens[:, 2:, 0]

  def advance(self, state, scores: jax.Array, indices: jax.Array):
    """Runs some iterations.

    Args:
      state: the train state.
      scores: ℓ [3, 3], or the reward of each move [3].
      indices: int32 [N]; indices of the iterations.

    Returns:
      (state, π before each iteration [N, 3], comparisons won in all of them [3, 3]).
    """
    def iterate(state, index):
      pairs, comparators = self._draw(state.params['policy'], state.key, index)
      moves, won = pairs.tokens[..., 0], jnp.zeros((3, 3))

      if self._compares:
        rewards = scores[moves[:, :, None], comparators[:, None, :]]
        met = jnp.einsum(
            'pka,pmb->ab', jax.nn.one_hot(moves, 3), jax.nn.one_hot(comparators, 3))
        won = met * (1 + scores) / 2 + (met * (1 - scores) / 2).T
      else:
        rewards = scores[moves]

      batch = Batch(pairs, rewards, None, {}, jnp.ones(len(moves)))
      return self._algorithm.train_step(state, batch)[0], (self.policy(state), won)

    state, (policies, won) = jax.lax.scan(iterate, state, indices)
    return state, policies, won.sum(axis=0)


def play(
    config: RebelGames, player: Player, scores: np.ndarray, *, title: str
) -> dict[str, np.ndarray]:
  """Runs all iterations of an arm.

  Args:
    config: the config of the study.
    player: a player with the arm's signal.
    scores: ℓ [S, 3, 3], or the reward of each move [S, 3], by seed.
    title: title of the progress bar.

  Returns:
    policies [S, T + 1, 3], starting with π_0; won [S, 3, 3], the comparisons made.
  """
  scores = jnp.asarray(scores, jnp.float32)
  states = player.starts(jnp.arange(config.num_seeds) + config.seed)
  chunk = max(size for size in range(1, 101) if config.steps % size == 0)
  updates = config.algorithm.num_epochs * config.algorithm.num_minibatches

  policies, won = [], 0
  with loop.progress(config.steps, title) as bar:
    for begin in range(0, config.steps, chunk):
      states, part, comparisons = player.advances(states, scores, begin + jnp.arange(chunk))
      loop.check_updates(
          states.step, (begin + chunk) * updates, learning_rate='config.learning_rate')

      policies.append(np.asarray(part, np.float64))
      won = won + np.asarray(comparisons, np.float64)
      average = jnp.asarray(np.concatenate(policies, axis=1).mean(axis=1))
      bar.update(chunk, exploitability=float(
          games.exploitability(jnp.asarray(PREFERENCE), average).mean()))

  policies.append(np.asarray(player.policies(states), np.float64)[:, None])
  return {'policies': np.concatenate(policies, axis=1), 'won': won}


def play_exactly(config: RebelGames) -> dict[str, np.ndarray]:
  """The exact steps that the regression approximates: policies [T + 1, 3] by arm of `EXACT`."""
  start, table = jnp.asarray(config.initial_policy), jnp.asarray(PREFERENCE)

  def fitted_table(policy, **options):
    """Preferences of a reward model fitted to comparisons of pairs from a policy."""
    won = policy[:, None] * policy * (1 + table) / 2
    rewards = games.bradley_terry(won, **options)
    return rewards[:, None] - rewards

  def policies(table_of):
    def step(policy, _):
      return games.mirror_descent_step(
          table_of(policy), policy, eta=config.algorithm.eta), policy

    return jax.jit(lambda: jax.lax.scan(step, start, length=config.steps + 1)[1])()

  # A prior keeps the model finite when a move has almost vanished.
  fixed = fitted_table(start)
  refitted = functools.partial(fitted_table, prior=1e-3, steps=20)
  return dict(zip(EXACT, (
      policies(lambda policy: table), policies(lambda policy: fixed), policies(refitted))))


def fit_rewards(won: np.ndarray) -> np.ndarray:
  """Rewards [S, 3] of a Bradley-Terry model fitted to the comparisons won [S, 3, 3]."""
  return np.asarray(jax.vmap(games.bradley_terry)(jnp.asarray(won, jnp.float32)))


def draw_comparisons(config: RebelGames, count: int) -> np.ndarray:
  """Comparisons [S, 3, 3] of pairs from the policy before training."""
  initial = np.asarray(config.initial_policy)
  won = []
  for seed in range(config.seed, config.seed + config.num_seeds):
    generator = np.random.default_rng([seed, count])
    met = generator.multinomial(count, np.outer(initial, initial).ravel()).reshape(3, 3)
    won.append(met * (1 + PREFERENCE) / 2 + (met * (1 - PREFERENCE) / 2).T)
  return np.stack(won)


def exploitabilities(policies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Exploitability of the averages of the first 1, ..., T policies, and after 1, ..., T steps.

  Args:
    policies: [..., T + 1, 3].

  Returns:
    Two arrays [..., T].
  """
  steps = np.arange(1, policies.shape[-2])
  averages = np.cumsum(policies[..., :-1, :], axis=-2) / steps[:, None]

  def exploitability(policies):
    return np.asarray(games.exploitability(
        jnp.asarray(PREFERENCE), jnp.asarray(policies)), np.float64)

  return exploitability(averages), exploitability(policies[..., 1:, :])


def summarise(config: RebelGames, arms: dict[str, dict[str, np.ndarray]]) -> dict[str, float]:
  """The headline numbers.

  Args:
    config: the config of the study.
    arms: 'policies' by arm; sampled arms have a leading seed dimension.

  Returns:
    Numbers by flat name.
  """
  start, eta = jnp.asarray(config.initial_policy), config.algorithm.eta
  bounds = np.asarray(games.average_iterate_bound(
      start, eta=eta, steps=np.arange(1, config.steps + 1)))
  numbers = {'eval/bound': float(bounds[-1])}

  for name, arm in arms.items():
    average, last = (
        np.reshape(x, (-1, config.steps)) for x in exploitabilities(arm['policies']))
    numbers |= arms_lib.summary(f'eval/{name}/average_exploitability', average[:, -1])
    numbers |= arms_lib.summary(f'eval/{name}/last_exploitability', last[:, -1])
    numbers[f'eval/{name}/iterations_above_bound'] = float(np.mean(average > bounds))
    if 'rewards' in arm:
      for move, reward in zip(MOVES, arm['rewards'].T):
        numbers |= arms_lib.summary(f'reward/{name}/{move}', reward)
  return numbers


def write_figure(run: launch.Run, arms: dict[str, dict[str, np.ndarray]]) -> None:
  """Plots exploitability against iterations; writes the data as CSV."""
  config = run.config
  steps = np.unique(np.round(np.geomspace(1, config.steps, 200)).astype(int))
  bounds = np.asarray(games.average_iterate_bound(
      jnp.asarray(config.initial_policy), eta=config.algorithm.eta, steps=steps))
  rows = [('bound', 'average', step, value, 0.0) for step, value in zip(steps, bounds)]
  path = run.workdir / 'figures' / 'exploitability.png'

  def draw(axes, name, label, which, **style):
    policies = np.reshape(arms[name]['policies'], (-1, config.steps + 1, 3))
    values = exploitabilities(policies)[which == 'last'][:, steps - 1]
    mean, error = statistics.mean_and_standard_error(values)
    axes.plot(steps, mean, label=label, **style)
    axes.fill_between(steps, np.maximum(mean - error, 1e-9), mean + error, alpha=0.2, lw=0,
                      color=style['color'])
    rows.extend((name, which, *row) for row in zip(steps, mean, error))

  with figures.figure(
      path, 2, title='Rock, paper, scissors: exploitability') as panels:
    for axes in panels:
      axes.plot(steps, bounds, color='0.35', ls=':', label='bound on the average')
      axes.set(xscale='log', yscale='log', xlabel='iteration',
               ylabel='gain of the best response',
               ylim=(3e-3, 1.6))

    left, right = panels
    left.set_title('preferences')
    draw(left, 'preferences', 'average policy', 'average', color='#1b6ca8')
    draw(left, 'exact_preferences', 'average, exact steps', 'average', color='#1b6ca8', ls='--')
    draw(left, 'preferences', 'last policy', 'last', color='#d1495b')
    draw(left, 'exact_preferences', 'last, exact steps', 'last', color='#d1495b', ls='--')

    right.set_title('a reward model instead (averages)')
    draw(right, 'reward_before', 'fitted before training', 'average', color='#2e8b57')
    draw(right, 'exact_reward', 'the same, exact steps', 'average', color='#2e8b57', ls='--')
    draw(right, 'reward_same', 'the same comparisons', 'average', color='#8d6a9f')
    draw(right, 'exact_refit', 'fitted at every step, exact', 'average', color='#c98a1b', ls='-.')

    for axes in panels:
      axes.legend(frameon=False, loc='lower left', fontsize=8)
  metrics.write_csv_atomic(path.with_suffix('.csv'), [
      'arm', 'iterate', 'iteration', 'exploitability', 'standard_error'], rows)


def write_metrics(run: launch.Run, arms: dict[str, dict[str, np.ndarray]]) -> None:
  """Writes means over seeds of about 50 iterations per arm to metrics.jsonl."""
  curves = {}
  for name, arm in arms.items():
    average, last = (np.reshape(values, (-1, run.config.steps)).mean(axis=0)
                     for values in exploitabilities(arm['policies']))
    curves[f'eval/{name}/average_exploitability'] = average
    curves[f'eval/{name}/last_exploitability'] = last
  with contextlib.closing(metrics.MetricsWriter(run.workdir)) as writer:
    writer.truncate([])
    for step in range(0, run.config.steps, max(1, run.config.steps // 50)):
      writer.write(step, {name: curve[step] for name, curve in curves.items()})


def table(numbers: dict[str, float]) -> str:
  """Table of the exploitability of every arm."""
  def cell(name):
    error = numbers.get(f'{name}_se')
    return f'{numbers[name]:.4f}' + (f' ± {error:.4f}' if error is not None else '')

  rows = [[label, cell(f'eval/{name}/average_exploitability'),
           cell(f'eval/{name}/last_exploitability')] for name, label in {**ARMS, **EXACT}.items()]
  rows.append(['bound of the average', f'{numbers["eval/bound"]:.4f}', '-'])
  return figures.markdown_table(
      ['exploitability (0 is best, 1 worst)', 'average policy', 'last policy'], rows)


def play_all(run: launch.Run) -> dict[str, dict[str, np.ndarray]]:
  """Plays every arm: 'policies', and 'won' or 'rewards'; finished arms are read from disk."""
  config = run.config

  def finished(name, make):
    return arms_lib.finished(
        run.workdir / 'arms' / f'{name}.npz',
        arms_lib.identity_of('rebel_games', config, arm=name), make, commit=run.commit)

  exact = finished('exact', lambda: play_exactly(config))
  arms = {name: {'policies': exact[name]} for name in EXACT}

  by_seed = np.broadcast_to(PREFERENCE, (config.num_seeds, 3, 3))
  arms['preferences'] = finished('preferences', lambda: play(
      config, Player(config, 'preferences'), by_seed, title=ARMS['preferences']))

  won = arms['preferences']['won']
  rewards = {'reward_before': fit_rewards(draw_comparisons(config, round(won[0].sum()))),
             'reward_same': fit_rewards(won)}

  player = Player(config, 'rewards')
  for name, values in rewards.items():
    played = finished(
        name, functools.partial(play, config, player, values, title=ARMS[name]))
    arms[name] = {'policies': played['policies'], 'rewards': values}
  return arms


def main(run: launch.Run) -> None:
  """Plays all arms and writes the table, the figure and results.json."""
  config = run.config
  arms = play_all(run)
  numbers = summarise(config, arms)

  write_metrics(run, arms)
  write_figure(run, arms)
  report = table(numbers)
  metrics.write_text_atomic(run.table_path, report + '\n')

  pairs = config.num_seeds * config.steps * config.batch_size
  tokens_per_pair = {
      'preferences': 2 + config.num_comparators, 'reward_before': 2, 'reward_same': 2}
  launch.write_results(run, {
      **numbers, 'num_seeds': config.num_seeds,
      'comparisons': round(arms['preferences']['won'][0].sum()),  # Per seed.
      **{f'sampled_tokens/{name}': pairs * tokens for name, tokens in tokens_per_pair.items()},
  })
  print(f'\n{report}\n\n{config.note}\nfigure: {run.workdir / "figures" / "exploitability.png"}\n'
        f'results: {run.results_path}')


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/rebel_games.py')
