"""The policy that plays rock, paper, scissors: how it starts, samples pairs and learns."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from experiments.rebel_games.config import RebelGames
from jaxrl_llm.algorithms import rebel
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.sampling import decode
from jaxrl_llm.training import optim, rng
from jaxrl_llm.types import Batch, Rollouts


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
