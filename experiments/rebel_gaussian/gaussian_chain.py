"""Policies that act by a chain of Gaussian steps: REBEL for image samplers.

A denoising chain x_S → x_{S−1} → ... → x_0 is an episode whose action is the next state,
  x_{t−1} = mean_t(x_t) + std_t ε,    ε ∼ N(0, I),
so that the log-prob of a sample is a sum over steps, like that of a text over tokens. With
`chain_log_prob` as the log-prob of a response, `regression_losses.rebel_loss` is REBEL for such a
policy.

The mirror-descent step is π_{t+1}(chain | x_S) = π_t(chain | x_S) exp(η r) / Z(x_S): its
normaliser cancels in the difference of two chains that start from the same noise. For two
independent chains, which the released code uses, ln Z(x_S) − ln Z(x_S') remains as noise in the
target.

Departures from the released code (Owen-Oertell/rlcm): the log-prob is one number per sample. The
released code concatenates the steps' vectors and sums everything, over the batch as well, which is
correct only for a batch of one. It also averages the log-density over the dimensions of a latent
(`reduction='mean'`), which divides D by their number.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.rl import overflow
from jaxrl_llm.types import Array


class Chain(NamedTuple):
  """Sampled chains.

  Attributes:
    states: float [B, S, ...]; x_t, the input of step t.
    actions: float [B, S, ...]; x_{t−1}, its draw. The last one is the sample.
  """

  states: Array
  actions: Array


class PromptStatistics(NamedTuple):
  """The last rewards of each prompt.

  Attributes:
    rewards: float32 [N, size]; a ring buffer for each of N prompts.
    counts: int32 [N]; rewards seen so far.
  """

  rewards: Array
  counts: Array


def consistency_step(prediction: Array, alpha_bar: Array) -> tuple[Array, Array]:
  """Mean and standard deviation of a step of a consistency sampler.

    x_{t−1} = √ᾱ_{t−1} f_θ(x_t) + √(1 − ᾱ_{t−1}) ε

  Args:
    prediction: float [..., S, D]; f_θ(x_t), the sample that each state leads to.
    alpha_bar: float [S]; ᾱ_{t−1} in [0, 1], the share of signal after each step.

  Returns:
    (mean [..., S, D], standard deviation [S]).

  References:
    Luo et al. (2023), Latent consistency models, arXiv 2310.04378.
  """
  chex.assert_rank(alpha_bar, 1)
  chex.assert_equal(prediction.shape[-2], len(alpha_bar))
  return jnp.sqrt(alpha_bar)[:, None] * prediction, jnp.sqrt(1.0 - alpha_bar)


def sample_chain(
    mean_fn: Callable[[Array, Array], Array], start: Array, std: Array, key: Array
) -> Chain:
  """Draws a chain from each start.

  The noise of a step depends only on (key, row, step).

  Args:
    mean_fn: (x_t [B, ...], index of the step int32 []) -> mean_t [B, ...].
    start: float [B, ...]; x_S.
    std: float [S]; std_t.
    key: PRNG key; folded for each row and step.

  Returns:
    A `Chain`.
  """
  chex.assert_rank(std, 1)
  row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(start)))
  draw = jax.vmap(lambda key: jax.random.normal(key, start.shape[1:], start.dtype))

  def step(state, index):
    noise = draw(jax.vmap(jax.random.fold_in, (0, None))(row_keys, index))
    action = mean_fn(state, index) + std[index].astype(state.dtype) * noise
    return action, (state, action)

  _, chain = jax.lax.scan(step, start, jnp.arange(len(std)))
  return Chain(*(jnp.moveaxis(leaf, 0, 1) for leaf in chain))


def step_log_probs(
    mean: Array, std: Array, actions: Array, *, reduction: Literal['sum', 'mean'] = 'sum'
) -> Array:
  """Log-density of each step of each chain.

    ln N(x_{t−1}; mean_t, std_t² I) = Σ_d [ −½ ((x − mean)_d / std_t)² − ln std_t − ½ ln 2π ]

  A step without noise makes no choice: its log-prob is 0.

  Args:
    mean: float [B, S, ...]; mean_t(x_t) of the policy to evaluate.
    std: float [S] or [B, S], non-negative.
    actions: float [B, S, ...]; the sampled actions.
    reduction: reduction over the dimensions of a state. 'sum' is the log-density; 'mean' divides
      it by their number (released code).

  Returns:
    At least float32 [B, S], nats.

  Raises:
    ValueError: if `reduction` is neither.

  References:
    Gao et al. (2024), REBEL, arXiv 2404.16767; released code Owen-Oertell/rlcm.
  """
  chex.assert_equal_shape([mean, actions])
  chex.assert_type([mean, std, actions], float)
  if reduction not in ('sum', 'mean'):
    raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")

  dtype = jnp.promote_types(mean.dtype, jnp.float32)
  std = jnp.broadcast_to(std, mean.shape[:2]).astype(dtype)
  chooses = std > 0
  std = jnp.where(chooses, std, 1.0)

  difference = (actions.astype(dtype) - mean.astype(dtype)).reshape(*std.shape, -1)
  difference = jnp.where(chooses[..., None], difference, 0.0)
  density = -0.5 * jnp.square(difference / std[..., None]) - 0.5 * jnp.log(2 * jnp.pi)
  density = density - jnp.log(std)[..., None]
  reduced = jnp.sum(density, axis=-1) if reduction == 'sum' else jnp.mean(density, axis=-1)
  return jnp.where(chooses, reduced, 0.0)


def chain_log_prob(
    mean: Array, std: Array, actions: Array, *, reduction: Literal['sum', 'mean'] = 'sum'
) -> Array:
  """Log-prob of each chain, given its start: a sum over steps, never over the batch.

    ln π(chain | x_S) = Σ_t ln N(x_{t−1}; mean_t(x_t), std_t² I)

  Args:
    mean: as for `step_log_probs`.
    std: as for `step_log_probs`.
    actions: as for `step_log_probs`.
    reduction: as for `step_log_probs`.

  Returns:
    At least float32 [B], nats.

  Raises:
    ValueError: if `reduction` is neither 'sum' nor 'mean'.
  """
  return jnp.sum(step_log_probs(mean, std, actions, reduction=reduction), axis=-1)


def init_statistics(num_prompts: int, *, size: int = 32) -> PromptStatistics:
  """Empty statistics, before any reward.

  Args:
    num_prompts: N.
    size: rewards kept per prompt (32 in the released code).

  Returns:
    `PromptStatistics`.

  Raises:
    ValueError: if either is below 1.
  """
  for name, value in (('num_prompts', num_prompts), ('size', size)):
    if value < 1:
      raise ValueError(f'{name} must be at least 1, got {value}')
  return PromptStatistics(
      jnp.zeros((num_prompts, size), jnp.float32), jnp.zeros(num_prompts, jnp.int32))


def standardise_by_prompt(
    statistics: PromptStatistics,
    prompt_ids: Array,
    rewards: Array,
    *,
    min_count: int = 16,
    epsilon: float = 1e-6,
) -> tuple[PromptStatistics, Array]:
  """Standardises rewards by the last rewards of each prompt.

    A_i = (r_i − μ) / (σ + ε)

  μ and σ (population) are those of the rewards in the prompt's ring buffer, including the new ones,
  or of this batch while the prompt has fewer than `min_count` rewards. A non-finite reward is not
  stored, is excluded from both, and has advantage NaN (`batches.drop_invalid` removes it).

  Args:
    statistics: statistics before this batch.
    prompt_ids: int [B], in [0, N).
    rewards: float [B].
    min_count: number of rewards from which a prompt uses its own statistics.
    epsilon: ε, in units of reward.

  Returns:
    (updated statistics, advantages float32 [B]).

  References:
    Released code Owen-Oertell/rlcm; Black et al. (2023), Training diffusion models with
    reinforcement learning, arXiv 2305.13301.
  """
  chex.assert_rank([prompt_ids, rewards], 1)
  chex.assert_equal_shape([prompt_ids, rewards])
  chex.assert_type([prompt_ids, rewards], [int, float])

  rewards = jax.lax.stop_gradient(rewards.astype(jnp.float32))
  statistics, known = _remember(statistics, prompt_ids, rewards)

  size = statistics.rewards.shape[1]
  filled = jnp.arange(size) < statistics.counts[:, None]
  own_mean, own_std = _moments(statistics.rewards, filled)
  mean, std = _moments(rewards, known)

  has_own = statistics.counts[prompt_ids] >= min_count
  mean = jnp.where(has_own, own_mean[prompt_ids], mean)
  std = jnp.where(has_own, own_std[prompt_ids], std)
  return statistics, jnp.where(known, (rewards - mean) / (std + epsilon), jnp.nan)


def _remember(
    statistics: PromptStatistics, prompt_ids: Array, rewards: Array
) -> tuple[PromptStatistics, Array]:
  """Appends rewards to the ring buffers in order; also returns which of them are finite."""
  known = jnp.isfinite(rewards)
  rows, slots = _ring_places(statistics, prompt_ids, known)
  return PromptStatistics(
      statistics.rewards.at[rows, slots].set(rewards, mode='drop'),
      statistics.counts.at[prompt_ids].add(known.astype(jnp.int32)),
  ), known


def _ring_places(
    statistics: PromptStatistics, prompt_ids: Array, known: Array
) -> tuple[Array, Array]:
  """(row, slot) [B] of each reward in the ring buffers; row N, out of range, if it is dropped.

  No two rewards share a slot: which of them would win is undefined.
  """
  num_prompts, size = statistics.rewards.shape
  same = (prompt_ids[:, None] == prompt_ids) & known
  rank = jnp.sum(jnp.tril(same, -1), axis=1)
  # If there are more rewards than slots, keep the last ones.
  keep = known & (rank >= jnp.sum(same, axis=1) - size)
  slots = (statistics.counts[prompt_ids] + rank) % size
  return jnp.where(keep, prompt_ids, num_prompts), slots


def _moments(values: Array, mask: Array) -> tuple[Array, Array]:
  """Mean and population standard deviation of the unmasked values along the last axis."""
  count = jnp.maximum(jnp.sum(mask, axis=-1), 1)
  values = jnp.where(mask, values, 0.0)
  factor = overflow.scale_for_squares(jnp.max(jnp.abs(values), axis=-1, initial=0.0))
  values = values * factor[..., None]
  mean = jnp.sum(values, axis=-1) / count
  centred = jnp.where(mask, values - mean[..., None], 0.0)
  return mean / factor, jnp.sqrt(jnp.sum(jnp.square(centred), axis=-1) / count) / factor
