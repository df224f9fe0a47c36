"""A sampler of points by denoising, and the reward of a point: minus its distance to a target."""

import jax
import jax.numpy as jnp

from experiments.rebel_gaussian import gaussian_chain
from experiments.rebel_gaussian.config import RebelGaussian


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
