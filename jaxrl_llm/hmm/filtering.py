"""Hidden Markov models with M states and L symbols: filtering, smoothing, paths, samples.

  x_0 ~ π,   x_{t+1} ~ A[x_t, :],   o_t ~ B[x_t, :]        A [M, M], B [M, L] row-stochastic

The recursions take the likelihoods of each observation under each state, p(o_t | x_t = i)
[T, M], instead of B: an HMM whose emissions depend on inputs (a GLM-HMM) passes its own. A row of
ones means no observation; sequences are padded with such rows at their end. All functions take
one sequence; use `jax.vmap` for batches.
"""

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.rl import masking
from jaxrl_llm.types import Array


def symbol_likelihoods(emission: Array, observations: Array) -> Array:
  """Likelihoods p(o_t | x_t) of each observation under each state.

  Args:
    emission: float [M, L]; B.
    observations: int [T]; symbols below L, or a negative number for none (a row of ones).

  Returns:
    float [T, M]. Under tracing, where a symbol outside the alphabet cannot be rejected, its row is
    0: no state emits it.

  Raises:
    ValueError: if a symbol is L or more.
  """
  chex.assert_rank([emission, observations], [2, 1])
  chex.assert_type([emission, observations], [float, int])
  num_symbols = emission.shape[1]
  check_symbols(observations, num_symbols, padded=True)
  rows = emission.T[jnp.clip(observations, 0, num_symbols - 1)]
  rows = jnp.where(observations[:, None] < num_symbols, rows, 0.0)
  return jnp.where(observations[:, None] < 0, 1.0, rows)


def check_symbols(observations: Array, num_symbols: int, *, padded: bool = False) -> None:
  """Raises unless every observation is a symbol; traced values pass unchecked.

  Args:
    observations: int [...].
    num_symbols: L.
    padded: whether negative numbers mean no observation.

  Raises:
    ValueError: if an observation is outside [0, L).
  """
  rule = f'below {num_symbols}, the number of symbols, or negative for none' if padded else (
      f'in [0, {num_symbols}), the symbols')
  low = int(jnp.iinfo(observations.dtype).min) if padded else 0
  masking.check_range('observations', observations, low, num_symbols - 1, rule)


def check_positions(positions: Array | None, num_steps: int) -> None:
  """Raises unless every position is a number of known symbols; traced values pass unchecked.

  Args:
    positions: int [K], or None.
    num_steps: T.

  Raises:
    ValueError: if a position is outside [0, T].
  """
  if positions is not None:
    masking.check_range(
        'positions', positions, 0, num_steps, f'in [0, {num_steps}], the number of known symbols')


def filter_states(initial: Array, transition: Array, likelihoods: Array) -> tuple[Array, Array]:
  """Distribution of the state given the observations so far: the scaled forward recursion.

    α_t(j) ∝ p(o_t | j) Σ_i α_{t−1}(i) A_ij,    ln P(o) = Σ_t ln of the normalising factors

  An observation that is impossible under all reachable states makes ln P(o) = −inf, and is
  otherwise skipped: nothing becomes NaN.

  A state whose probability underflows (1e-38 in float32) is excluded until A leads to it again. So
  in a reducible chain, after hundreds of symbols in favour of other states, later observations can
  be mistaken for impossible ones: `log_filter_states` has no such limit.

  Args:
    initial: float [M]; π.
    transition: float [M, M]; A, rows sum to 1.
    likelihoods: float [T, M]; p(o_t | x_t).

  Returns:
    (filtered [T, M], each row a distribution; the log-likelihood [], nats).

  References:
    Rabiner (1989), A tutorial on hidden Markov models, section III.
  """
  _check(initial, transition, likelihoods)
  filtered, scales = _forward(initial, transition, likelihoods)
  return filtered, jnp.sum(_safe_log(scales))


def log_filter_states(
    log_initial: Array, log_transition: Array, log_likelihoods: Array
) -> tuple[Array, Array]:
  """`filter_states` in log space, for likelihoods that underflow.

  Args:
    log_initial: float [M]; ln π, −inf allowed.
    log_transition: float [M, M]; ln A, −inf allowed.
    log_likelihoods: float [T, M]; ln p(o_t | x_t), −inf allowed.

  Returns:
    (ln of the filtered distributions [T, M]; the log-likelihood [], nats).
  """
  _check(log_initial, log_transition, log_likelihoods)

  def step(predicted, log_likelihood):
    joint = predicted + log_likelihood
    scale = jax.nn.logsumexp(joint)
    filtered = jnp.where(scale > -jnp.inf, joint - scale, predicted)
    predicted = jax.nn.logsumexp(filtered[:, None] + log_transition, axis=0)
    return predicted, (filtered, scale)

  _, (filtered, scales) = jax.lax.scan(step, log_initial, log_likelihoods)
  return filtered, jnp.sum(scales)


def smooth(
    initial: Array, transition: Array, likelihoods: Array, *, valid: Array | None = None
) -> tuple[Array, Array, Array]:
  """Distribution of each state given all observations: forward-backward.

    γ_t(i) = P(x_t = i | o) = α_t(i) Σ_j A_ij γ_{t+1}(j) / Σ_k α_t(k) A_kj,    γ_{T−1} = α_{T−1}
    ξ(i, j) = Σ_t P(x_t = i, x_{t+1} = j | o)

  These are the expectations of an EM step. α is that of `filter_states`, with the same limit.

  Args:
    initial: float [M]; π.
    transition: float [M, M]; A.
    likelihoods: float [T, M]; p(o_t | x_t). Rows of padding, at the end, hold ones.
    valid: [T]; zero for padding. Transitions into padding are not counted, and γ is 0 there. By
      default every row counts: a row of ones is then an unobserved step.

  Returns:
    (γ [T, M]; ξ summed over t [M, M]; the log-likelihood [], nats).

  References:
    Rabiner (1989), A tutorial on hidden Markov models, section III.
  """
  _check(initial, transition, likelihoods)
  filtered, scales = _forward(initial, transition, likelihoods)
  counts = jnp.ones(len(likelihoods), bool)
  if valid is not None:
    chex.assert_shape(valid, likelihoods.shape[:1])
    counts = valid != 0

  # Work with distributions: β_t itself would include unreachable states, and next to their values
  # those of the others may underflow.
  tiny = jnp.finfo(filtered.dtype).tiny

  def step(after, before):
    predicted = dot(before, transition)
    reached = predicted >= tiny  # The inverse is finite.
    ratio = jnp.where(reached, after / jnp.where(reached, predicted, 1.0), 0.0)
    gamma = _normalise(before * dot(transition, ratio))
    return gamma, (gamma, ratio)

  _, (gamma, ratios) = jax.lax.scan(step, filtered[-1], filtered[:-1], reverse=True)

  # P(x_t = i, x_{t+1} = j | o) = A_ij α_t(i) ratio_t(j). A ratio can be as large as 1 / tiny
  # where A_ij is as small as tiny: the root keeps the sum over t finite.
  root = jnp.sqrt(tiny)
  ratios = jnp.where(counts[1:, None], ratios, 0.0) * root
  xi = transition / root * dot(filtered[:-1].T, ratios)
  gamma = jnp.concatenate([gamma, filtered[-1:]])
  return jnp.where(counts[:, None], gamma, 0.0), xi, jnp.sum(_safe_log(scales))


def max_product(initial: Array, transition: Array, likelihoods: Array) -> tuple[Array, Array]:
  """Likelihood of the best path into each state: Viterbi's forward messages.

    ln m_t(j) = ln p(o_t | j) + max_i (ln m_{t−1}(i) + ln A_ij),    up to a constant of each t

  The best path of o_0..o_t ends in argmax_j m_t(j), for every t at once. Computed in log space, so
  that nothing underflows; impossible observations are skipped as in `filter_states`.

  Args:
    initial: float [M]; π.
    transition: float [M, M]; A.
    likelihoods: float [T, M]; p(o_t | x_t).

  Returns:
    (ln of the messages [T, M], with maximum 0 in each row; the constants subtracted [T], nats).

  References:
    Rabiner (1989), A tutorial on hidden Markov models, section III.
  """
  _check(initial, transition, likelihoods)
  log_transition = _safe_log(transition)

  def from_largest(values, largest):
    return values - jnp.where(largest > -jnp.inf, largest, 0.0)

  def step(reach, log_likelihood):
    joint = reach + log_likelihood
    scale = jnp.max(joint)
    message = jnp.where(
        scale > -jnp.inf, from_largest(joint, scale), from_largest(reach, jnp.max(reach)))
    return jnp.max(message[:, None] + log_transition, axis=0), (message, scale)

  _, (messages, scales) = jax.lax.scan(step, _safe_log(initial), _safe_log(likelihoods))
  return messages, scales


def viterbi(initial: Array, transition: Array, likelihoods: Array) -> tuple[Array, Array]:
  """Most likely path of states.

  Args:
    initial: float [M]; π.
    transition: float [M, M]; A.
    likelihoods: float [T, M]; p(o_t | x_t).

  Returns:
    (path int32 [T]; ln P(path, o) [], nats). Ties go to the first state, up to the rounding of
    the sums of logarithms.

  References:
    Rabiner (1989), A tutorial on hidden Markov models, section III.
  """
  messages, log_scales = max_product(initial, transition, likelihoods)
  log_transition = _safe_log(transition)
  last = jnp.argmax(messages[-1]).astype(jnp.int32)

  def step(state, message):
    before = jnp.argmax(message + log_transition[:, state]).astype(jnp.int32)
    return before, before

  _, path = jax.lax.scan(step, last, messages[:-1], reverse=True)
  return jnp.append(path, last), jnp.sum(log_scales)


def sample(
    key: Array, initial: Array, transition: Array, emission: Array, num_steps: int
) -> tuple[Array, Array]:
  """Draws a trajectory by inverting cumulative distributions.

  Args:
    key: PRNG key for the trajectory; its first steps do not depend on `num_steps`.
    initial: float [M]; π.
    transition: float [M, M]; A.
    emission: float [M, L]; B.
    num_steps: T.

  Returns:
    (states int32 [T], observations int32 [T]).
  """
  _check(initial, transition, emission.T)
  sums = [jnp.cumsum(table, axis=-1) for table in (initial, transition, emission)]

  def draw(sums, uniform):
    # Scaled by the last sum, which is 1 up to rounding, so that no draw exceeds it.
    return jnp.sum(sums <= uniform * sums[-1], dtype=jnp.int32)

  def step(of_state, index):
    uniforms = jax.random.uniform(jax.random.fold_in(key, index), (2,), initial.dtype)
    state = draw(of_state, uniforms[0])
    return sums[1][state], (state, draw(sums[2][state], uniforms[1]))

  return jax.lax.scan(step, sums[0], jnp.arange(num_steps))[1]


def dot(a: Array, b: Array) -> Array:
  """a @ b in full precision, which is not the default on accelerators.

  Args:
    a: float; as for `jnp.matmul`.
    b: float; as for `jnp.matmul`.

  Returns:
    float; as for `jnp.matmul`.
  """
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def hellinger(p: Array, q: Array) -> Array:
  """Hellinger distance of distributions along the last axis.

    H(p, q) = √max(0, 1 − Σ_o √(p_o q_o)),    in [0, 1]

  Args:
    p: float [..., L]; non-negative.
    q: float [..., L]; non-negative, broadcast against `p`.

  Returns:
    float [...].
  """
  chex.assert_type([p, q], float)
  # Roots before the product, which could underflow.
  return jnp.sqrt(jnp.maximum(0.0, 1.0 - jnp.sum(jnp.sqrt(p) * jnp.sqrt(q), axis=-1)))


def kl_divergence(p: Array, q: Array) -> Array:
  """KL(p ‖ q) = Σ_o p_o ln(p_o / q_o) along the last axis.

  Args:
    p: float [..., L]; a distribution.
    q: float [..., L]; a distribution, broadcast against `p`.

  Returns:
    float [...], nats; +inf where q excludes what p allows, and never NaN: 0 ln 0 is 0.
  """
  chex.assert_type([p, q], float)
  ratio = jnp.log(_positive(p)) - jnp.log(_positive(q))
  terms = jnp.where(p > 0, jnp.where(q > 0, p * ratio, jnp.inf), 0.0)
  return jnp.sum(terms, axis=-1)


def _forward(initial: Array, transition: Array, likelihoods: Array) -> tuple[Array, Array]:
  """(filtered distributions [T, M], the factors P(o_t | o_<t) [T])."""
  def step(predicted, likelihood):
    joint = predicted * likelihood
    scale = jnp.sum(joint)
    filtered = jnp.where(scale > 0, joint / _positive(scale), predicted)
    return dot(filtered, transition), (filtered, scale)

  return jax.lax.scan(step, initial, likelihoods)[1]


def _positive(values: Array) -> Array:
  """Replaces 0 by 1: safe to divide by, in gradients as well."""
  return jnp.where(values > 0, values, 1.0)


def _safe_log(values: Array) -> Array:
  return jnp.where(values > 0, jnp.log(_positive(values)), -jnp.inf)


def _normalise(values: Array) -> Array:
  return values / _positive(jnp.sum(values, axis=-1, keepdims=True))


def _check(initial: Array, transition: Array, likelihoods: Array) -> None:
  chex.assert_rank([initial, transition, likelihoods], [1, 2, 2])
  chex.assert_type([initial, transition, likelihoods], float)
  size = len(initial)
  chex.assert_shape([transition, likelihoods], [(size, size), (None, size)])
