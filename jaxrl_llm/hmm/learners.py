"""Learners that predict the next symbol of one trajectory of a hidden Markov model.

n-grams with back-off, Baum-Welch (EM), and the spectral method of Hsu et al.: baselines for
in-context predictors. All functions take one sequence; use `jax.vmap` for batches, and for the
restarts of Baum-Welch.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.hmm import filtering
from jaxrl_llm.types import Array


class Parameters(NamedTuple):
  """A hidden Markov model.

  Attributes:
    initial: float [M]; π.
    transition: float [M, M]; A.
    emission: float [M, L]; B.
  """

  initial: Array
  transition: Array
  emission: Array


class Fit(NamedTuple):
  """Result of Baum-Welch.

  Attributes:
    parameters: parameters after the last step.
    log_likelihood: float []; log-likelihood of the parameters before that step, nats.
    steps: int32 []; number of steps taken.
  """

  parameters: Parameters
  log_likelihood: Array
  steps: Array


class Moments(NamedTuple):
  """Moments of three successive symbols.

  Attributes:
    first: float [L]; P(o_1 = i).
    pairs: float [L, L]; P(o_2 = i, o_1 = j).
    triples: float [L, L, L]; P(o_3 = i, o_2 = x, o_1 = j) at [x, i, j].
  """

  first: Array
  pairs: Array
  triples: Array


class Operators(NamedTuple):
  """An observable representation: P(o_1, ..., o_t) = b_∞ᵀ B_{o_t} ⋯ B_{o_1} b_1.

  Attributes:
    start: float [M]; b_1.
    end: float [M]; b_∞.
    updates: float [L, M, M]; B_x.
  """

  start: Array
  end: Array
  updates: Array


def predict_ngrams(
    observations: Array, positions: Array, *, max_order: int, num_symbols: int
) -> Array:
  """Predictions of n-grams that are counted on the sequence itself.

  The n-gram looks up the last n − 1 symbols among the symbols so far, and predicts what followed
  them, unsmoothed. A context that nothing has followed yet backs off to one symbol less, down to
  the bigram, and then to the uniform distribution. It never backs off to the unigram, as in the
  released code (DaiYijia02/icl-hmm), whose recorded numbers confirm this.

  Args:
    observations: int [T]; symbols.
    positions: int [K], in [0, T]; numbers of known symbols.
    max_order: largest n, at least 1.
    num_symbols: L.

  Returns:
    float32 [K, max_order, L]; the distributions of n = 1, ..., max_order.

  Raises:
    ValueError: on a `max_order` below 1, a symbol outside [0, L), or a position outside [0, T].
  """
  chex.assert_rank([observations, positions], 1)
  chex.assert_type([observations, positions], int)
  if max_order < 1:
    raise ValueError(f'max_order must be at least 1, got {max_order}')
  filtering.check_symbols(observations, num_symbols)
  filtering.check_positions(positions, len(observations))

  steps = jnp.arange(len(observations))
  follows = steps < positions[:, None]
  counted = [follows]
  for back in range(1, max_order):
    # A step needs `back` symbols before it. If the position has fewer, so do all steps before it.
    context = observations[positions - back]
    same = jnp.roll(observations, back) == context[:, None]
    follows = follows & same & (steps >= back)
    counted.append(follows)

  symbols = jax.nn.one_hot(observations, num_symbols)
  counts = filtering.dot(jnp.stack(counted, axis=1).astype(symbols.dtype), symbols)
  totals = jnp.sum(counts, axis=-1, keepdims=True)
  uniform = jnp.full_like(counts[:, 0], 1 / num_symbols)


  def frequencies(n, fallback):
    return jnp.where(
        totals[:, n] > 0, counts[:, n] / jnp.maximum(totals[:, n], 1), fallback)

  predictions, fallback = [frequencies(0, uniform)], uniform
  for n in range(1, max_order):
    fallback = frequencies(n, fallback)
    predictions.append(fallback)
  return jnp.stack(predictions, axis=1)


def random_parameters(key: Array, *, num_states: int, num_symbols: int) -> Parameters:
  """Random start for Baum-Welch: uniform numbers, normalised.

  Args:
    key: PRNG key for the draw.
    num_states: M.
    num_symbols: L.

  Returns:
    `Parameters` in float32.
  """
  shapes = (num_states,), (num_states, num_states), (num_states, num_symbols)
  # Away from 0, which EM could never leave.
  draws = [jax.random.uniform(jax.random.fold_in(key, i), shape, minval=1e-3)
           for i, shape in enumerate(shapes)]
  return Parameters(*(draw / jnp.sum(draw, axis=-1, keepdims=True) for draw in draws))


def baum_welch_step(parameters: Parameters, observations: Array) -> tuple[Parameters, Array]:
  """One step of EM.

    π = γ_0,    A_ij = ξ(i, j) / Σ_j ξ(i, j),    B_is ∝ Σ_t γ_t(i) 1[o_t = s]

  The row of a state that is never visited is unchanged.

  Args:
    parameters: parameters before the step.
    observations: int [T]; symbols; negative where padded, at the end.

  Returns:
    (parameters after the step; the log-likelihood [] before it, nats).

  References:
    Baum et al. (1970); Rabiner (1989), A tutorial on hidden Markov models, section III.C.
  """
  likelihoods = filtering.symbol_likelihoods(parameters.emission, observations)
  gamma, xi, log_likelihood = filtering.smooth(
      parameters.initial, parameters.transition, likelihoods, valid=observations >= 0)
  # The row of a negative number is all zeros.
  symbols = jax.nn.one_hot(observations, parameters.emission.shape[1], dtype=gamma.dtype)
  counts = Parameters(gamma[0], xi, filtering.dot(gamma.T, symbols))
  return jax.tree.map(_normalise_visited, counts, parameters), log_likelihood


def baum_welch(
    parameters: Parameters,
    observations: Array,
    *,
    max_steps: int = 100,
    tolerance: float = 1e-6,
) -> Fit:
  """Runs EM until the log-likelihood converges.

  Args:
    parameters: initial parameters.
    observations: int [T]; symbols; negative where padded, at the end.
    max_steps: maximum number of steps (100 in the paper's evaluation).
    tolerance: stops once a step changes the log-likelihood by less, nats (1e-6 there).

  Returns:
    A `Fit`.

  Raises:
    ValueError: if a symbol is L or more.

  References:
    arXiv 2506.07298, the baseline Baum-Welch.
  """
  filtering.check_symbols(observations, parameters.emission.shape[-1], padded=True)

  def advance(carry):
    fit, _ = carry
    parameters, log_likelihood = baum_welch_step(fit.parameters, observations)
    moves = jnp.abs(log_likelihood - fit.log_likelihood) >= tolerance
    return Fit(parameters, log_likelihood, fit.steps + 1), moves

  start = Fit(parameters, jnp.asarray(-jnp.inf, parameters.initial.dtype), jnp.int32(0))
  return jax.lax.while_loop(
      lambda carry: carry[1] & (carry[0].steps < max_steps), advance,
      (start, jnp.asarray(True)))[0]


def fit_best(
    starts: Parameters,
    observations: Array,
    *,
    max_steps: int = 100,
    tolerance: float = 1e-6,
) -> Fit:
  """Runs Baum-Welch from several starts and returns the most likely result.

  Args:
    starts: parameters with a leading dimension R, the restarts (1 in the paper's evaluation).
    observations: int [T]; symbols; negative where padded, at the end.
    max_steps: as for `baum_welch`.
    tolerance: as for `baum_welch`.

  Returns:
    The best `Fit`.

  Raises:
    ValueError: if a symbol is L or more.
  """
  filtering.check_symbols(observations, starts.emission.shape[-1], padded=True)
  fits = jax.vmap(lambda start: baum_welch(
      start, observations, max_steps=max_steps, tolerance=tolerance))(starts)
  best = jnp.argmax(fits.log_likelihood)
  return jax.tree.map(lambda leaf: leaf[best], fits)


def empirical_moments(observations: Array, *, num_symbols: int) -> Moments:
  """Empirical moments: frequencies along one trajectory.

  Args:
    observations: int [T], T >= 3; symbols.
    num_symbols: L.

  Returns:
    `Moments` in float32.

  Raises:
    ValueError: if a symbol is outside [0, L).
  """
  chex.assert_rank(observations, 1)
  filtering.check_symbols(observations, num_symbols)
  symbols = jax.nn.one_hot(observations, num_symbols)
  first, second, third = symbols[:-2], symbols[1:-1], symbols[2:]
  triples = _einsum('tx,ti,tj->xij', second, third, first)
  pairs = filtering.dot(symbols[1:].T, symbols[:-1])
  length = len(symbols)
  return Moments(jnp.sum(symbols, axis=0) / length, pairs / (length - 1), triples / (length - 2))


def exact_moments(parameters: Parameters) -> Moments:
  """Exact moments of o_1, o_2, o_3 under a model.

  Args:
    parameters: the model; `initial` is the distribution of the first state.

  Returns:
    `Moments`.
  """
  initial, transition, emission = parameters
  joint = initial[:, None] * emission  # P(x_1, o_1).
  arrived = filtering.dot(transition.T, joint)  # P(x_2, o_1).
  seen = _einsum('mx,mj->xmj', emission, arrived)
  triples = _einsum('mi,nm,xnj->xij', emission, transition, seen)
  return Moments(filtering.dot(initial, emission), filtering.dot(emission.T, arrived), triples)


def spectral_operators(moments: Moments, *, num_states: int) -> Operators:
  """Observable representation computed from moments.

    b_1 = Uᵀ P_1,    b_∞ = (P_21ᵀ U)⁺ P_1,    B_x = (Uᵀ P_3x1) (Uᵀ P_21)⁺

  with U the first M left singular vectors of P_21. Exact if every state has positive initial
  probability, and A and B have rank M, so that M ≤ L.

  Args:
    moments: exact or empirical ones.
    num_states: M, at most L.

  Returns:
    `Operators`.

  Raises:
    ValueError: if `num_states` is not between 1 and L.

  References:
    Hsu, Kakade and Zhang (2012), A spectral algorithm for learning hidden Markov models,
    arXiv 0811.4413.
  """
  num_symbols = len(moments.first)
  if not 1 <= num_states <= num_symbols:
    raise ValueError(f'num_states must be at least 1 and at most the number of symbols '
                     f'({num_symbols}), got {num_states}')

  left = jnp.linalg.svd(moments.pairs)[0][:, :num_states]
  inverse = jnp.linalg.pinv(filtering.dot(left.T, moments.pairs))
  return Operators(
      filtering.dot(left.T, moments.first),
      filtering.dot(inverse.T, moments.first),
      filtering.dot(filtering.dot(left.T, moments.triples), inverse),
  )


def predict_spectral(
    operators: Operators, observations: Array, positions: Array | None = None
) -> Array:
  """Predictions of an observable representation.

    P(o_t = x | o_<t) = b_∞ᵀ B_x b_t,    b_{t+1} = B_{o_t} b_t / (b_∞ᵀ B_{o_t} b_t)

  Estimated operators can give negative numbers: these count as 0 in a prediction, and after a
  symbol that they all but exclude, the state restarts from b_1. Under tracing it also restarts
  after a symbol outside the alphabet.

  Args:
    operators: the representation.
    observations: int [T]; symbols.
    positions: int [K], in [0, T]; numbers of known symbols. By default 0, 1, ..., T.

  Returns:
    float [K, L]; distributions.

  Raises:
    ValueError: if a symbol is outside [0, L).
  """
  chex.assert_rank(observations, 1)
  filtering.check_symbols(observations, len(operators.updates))
  filtering.check_positions(positions, len(observations))

  readout = _einsum('i,xij->xj', operators.end, operators.updates)
  epsilon = jnp.finfo(readout.dtype).eps

  def step(state, symbol):
    known = (symbol >= 0) & (symbol < len(readout))
    total = jnp.where(known, filtering.dot(readout[symbol], state), 0.0)
    after = filtering.dot(operators.updates[symbol], state) / jnp.where(total > epsilon, total, 1.0)
    after = jnp.where(total > epsilon, after, operators.start)
    return after, after

  _, states = jax.lax.scan(step, operators.start, observations)
  states = jnp.concatenate([operators.start[None], states])
  if positions is not None:
    states = states[positions]

  values = jnp.maximum(filtering.dot(states, readout.T), 0.0)
  totals = jnp.sum(values, axis=-1, keepdims=True)
  return jnp.where(totals > 0, values / jnp.where(totals > 0, totals, 1.0), 1 / values.shape[-1])


# In full precision, like `filtering.dot`.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _normalise_visited(counts: Array, before: Array) -> Array:
  """Normalises rows of counts; rows without counts are unchanged."""
  totals = jnp.sum(counts, axis=-1, keepdims=True)
  return jnp.where(totals > 0, counts / jnp.where(totals > 0, totals, 1.0), before)
