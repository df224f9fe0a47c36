"""Random hidden Markov models of a chosen difficulty, and the published construction.

  x_0 ~ π,   x_{t+1} ~ A[x_t, :],   o_t ~ B[x_t, :]        A [M, M], B [M, L] row-stochastic

The second eigenvalue measures how slowly the chain forgets, the entropy rate how unpredictable its
steps are, and the entropy of B's rows how little a symbol reveals. Published models:
arXiv 2506.07298, code DaiYijia02/icl-hmm.

Departure from the released construction of A, which computes U and the eigenvalues by gradient
descent on penalties for every property and rejects poor results: here the row sums, the stationary
distribution and the second eigenvalue hold by construction, and descent only has to fix the signs
of A's entries. A target entropy is part of the descent; the released code does not control it.
"""

import math
from typing import NamedTuple

import numpy as np

_FREE_ATTEMPTS = 3  # Attempts of `make_transition` before it searches for a chain of a simple form.


class HmmBatch(NamedTuple):
  """Hidden Markov models of one size.

  Attributes:
    initial: float64 [N, M]; π.
    transition: float64 [N, M, M]; A.
    emission: float64 [N, M, L]; B.
    lambda2: float64 [N]; the second largest modulus of A's eigenvalues.
    emission_entropy: float64 [N]; entropy of every row of B, bits.
  """

  initial: np.ndarray
  transition: np.ndarray
  emission: np.ndarray
  lambda2: np.ndarray
  emission_entropy: np.ndarray


def entropy_bits(p: np.ndarray) -> np.ndarray:
  """−Σ_o p_o log2 p_o along the last axis, bits; 0 log2 0 is 0.

  Args:
    p: float [..., L]; distributions.

  Returns:
    float [...].
  """
  p = np.asarray(p, np.float64)
  return -np.sum(p * np.log2(np.where(p > 0, p, 1.0)), axis=-1)


def entropy_rate_bits(transition: np.ndarray, stationary: np.ndarray) -> float:
  """Σ_i μ_i H(A[i, :]), the entropy rate of the hidden chain, bits per step.

  Args:
    transition: float [M, M]; A.
    stationary: float [M]; μ.

  Returns:
    The rate.
  """
  return float(np.asarray(stationary) @ entropy_bits(transition))


def stationary_distribution(transition: np.ndarray) -> np.ndarray:
  """Stationary distributions μ = μ A of irreducible chains.

  Args:
    transition: float [..., M, M]; A, each with a unique stationary distribution.

  Returns:
    float [..., M].
  """
  size = transition.shape[-1]
  # (I − Aᵀ) μ = 0 and Σ μ = 1, summed into one regular system.
  system = np.eye(size) - np.swapaxes(transition, -1, -2) + 1.0
  return np.linalg.solve(system, np.ones((*transition.shape[:-2], size, 1)))[..., 0]


def second_eigenvalue(transition: np.ndarray) -> np.ndarray:
  """Second largest modulus of the eigenvalues, which measures how slowly the chain forgets.

  Args:
    transition: float [..., M, M]; A, M at least 2.

  Returns:
    float [...].
  """
  return np.sort(np.abs(np.linalg.eigvals(transition)), axis=-1)[..., -2]


def beta_distribution(num_states: int, exponent: float) -> np.ndarray:
  """Published stationary distributions: the density of Beta(1, a) at 0, 1/M, ..., (M − 1)/M.

    μ_i ∝ (1 − i / M)^{a − 1};    a = 1 is uniform, a = 16 nearly concentrated on one state

  Args:
    num_states: M.
    exponent: a, positive (1, 4 and 16 in the paper).

  Returns:
    float [M].

  Raises:
    ValueError: if `exponent` is not positive.

  References:
    arXiv 2506.07298; released code DaiYijia02/icl-hmm.
  """
  if not 0 < exponent < math.inf:
    raise ValueError(f'exponent must be positive and finite, got {exponent}')
  weights = (1.0 - np.arange(num_states) / num_states) ** (exponent - 1)
  return weights / weights.sum()


def make_transition(
    rng: np.random.Generator,
    stationary: np.ndarray,
    *,
    lambda2: float,
    entropy: float | None = None,
    tolerance: float = 0.02,
    attempts: int = 20,
    steps: int = 5_000,
    learning_rate: float = 0.01,
) -> np.ndarray:
  """Constructs a transition matrix with a given stationary distribution, λ2 and entropy.

    A = U diag(1, λ2, s_3, ..., s_M) U⁻¹,    U = [1, W − 1 μᵀ W],    s_j = λ2 tanh v_j

  so that A 1 = 1, μ A = μ and |s_j| < λ2 for any W and v, which Adam optimises until A has no
  negative entry and the target entropy. Row i of W is in units of 1/√μ_i, in which eigenvectors of
  a reversible chain are orthonormal. If states are too rare for this (M = 8, a = 16), see
  `_with_slow_state`.

  Args:
    rng: random generator for the starts.
    stationary: float [M]; μ, positive; M at least 2.
    lambda2: λ2, in (0, 1).
    entropy: Σ_i μ_i H(A[i, :]), bits; any if None.
    tolerance: allowed error of the entropy, bits.
    attempts: number of starts before giving up.
    steps: steps of Adam per start (5,000 in the released code; here it stops early once all
      conditions hold).
    learning_rate: learning rate of Adam (0.01 in the released code).

  Returns:
    float64 [M, M].

  Raises:
    ValueError: if an argument is out of range or no start led to such a matrix.

  References:
    arXiv 2506.07298; released code DaiYijia02/icl-hmm.
  """
  stationary = np.asarray(stationary, np.float64)
  size = len(stationary)
  if size < 2 or not stationary.min() > 0 or abs(stationary.sum() - 1) > 1e-6:
    raise ValueError(
        f'stationary must be at least two positive numbers that sum to 1, got {stationary}')
  if not 0 < lambda2 < 1:
    raise ValueError(f'lambda2 must be in (0, 1), got {lambda2}')
  if entropy is not None and not 0 < entropy < math.log2(size):
    raise ValueError(f'entropy must be in (0, log2 {size}) for {size} states, got {entropy}')

  stationary = stationary / stationary.sum()
  for attempt in range(attempts):
    matrix = _descend(
        rng, stationary, lambda2, entropy, tolerance=tolerance, steps=steps,
        learning_rate=learning_rate)
    if matrix is None and attempt + 1 == min(_FREE_ATTEMPTS, attempts):
      matrix = _with_slow_state(rng, stationary, lambda2, entropy, tolerance=tolerance)
    if matrix is not None:
      return matrix

  target = '' if entropy is None else f', entropy {entropy} ± {tolerance} bits'
  raise ValueError(f'no transition matrix after {attempts} attempts with {size} states, lambda2 '
                   f'{lambda2}{target} and stationary distribution '
                   f'{np.round(stationary, 6).tolist()}')


def _with_slow_state(rng, stationary, lambda2, entropy, *, tolerance):
  """Returns a chain in which all states but one, k, form a block; None if none has the entropy.

    block: (1 − q) (s I + (1 − s) 1 μ'ᵀ), and to k at rate q = (1 − λ2) μ_k
    k: to the block's distribution μ' at rate (1 − λ2) (1 − μ_k)

  Block versus k is a two-state chain with the eigenvalue λ2; all other eigenvalues are (1 − q) s.
  """
  size = len(stationary)
  for slow in rng.permutation(size):
    block = np.flatnonzero(np.arange(size) != slow)
    within = stationary[block] / stationary[block].sum()
    leaves = (1 - lambda2) * stationary[slow]
    returns = (1 - lambda2) * (1 - stationary[slow])

    best, closest = None, math.inf
    for stay in rng.permutation(np.linspace(0, min(1.0, lambda2 / (1 - leaves)), 514)[1:-1]):
      matrix = np.empty((size, size))
      matrix[np.ix_(block, block)] = (1 - leaves) * (stay * np.eye(size - 1) + (1 - stay) * within)
      matrix[block, slow], matrix[slow, block] = leaves, returns * within
      matrix[slow, slow] = 1 - returns

      off = 0.0 if entropy is None else abs(entropy_rate_bits(matrix, stationary) - entropy)
      if off < closest:
        best, closest = matrix, off

    if closest <= tolerance and best.min() > 0:
      return best
  return None


def _descend(rng, stationary, lambda2, entropy, *, tolerance, steps, learning_rate):
  """Runs one start of `make_transition`; None if it fails."""
  size, root = len(stationary), np.sqrt(stationary)[:, None]
  parameters = rng.normal(size=(size + 1, size - 1)) / math.sqrt(size)
  parameters[-1, 0] = 0  # λ2 itself is given.
  moments = np.zeros((2, *parameters.shape))

  for step in range(1, steps + 1):
    vectors = np.ones((size, size))
    vectors[:, 1:] = parameters[:-1] / root - root[:, 0] @ parameters[:-1]
    ratios = np.tanh(parameters[-1])
    values = np.concatenate([[1.0, lambda2], lambda2 * ratios[1:]])
    try:
      inverse = np.linalg.inv(root * vectors) * root[:, 0]
    except np.linalg.LinAlgError:
      return None

    matrix = (vectors * values) @ inverse
    pull, done = _pull(matrix, stationary, entropy, tolerance)
    if done:
      # With badly conditioned eigenvectors the eigenvalues are dominated by rounding.
      regular = np.abs(root * vectors @ inverse / root[:, 0] - np.eye(size)).max() < 1e-9
      return matrix / matrix.sum(axis=1, keepdims=True) if regular else None

    # dA = dU S U⁻¹ − A dU U⁻¹ + U dS U⁻¹.
    right = pull @ inverse.T
    by_vectors = (right * values - matrix.T @ right)[:, 1:]
    by_values = np.sum(vectors * right, axis=0)[1:]
    gradient = np.concatenate([
        by_vectors / root - root * by_vectors.sum(axis=0),
        (by_values * lambda2 * (1 - ratios**2))[None]])
    gradient[-1, 0] = 0

    moments[0] += 0.1 * (gradient - moments[0])
    moments[1] += 0.001 * (gradient**2 - moments[1])
    first, second = moments[0] / (1 - 0.9**step), moments[1] / (1 - 0.999**step)
    parameters -= learning_rate * first / (np.sqrt(second) + 1e-8)
  return None


def _pull(matrix, stationary, entropy, tolerance):
  """(gradient [M, M] of the violations of A, whether there are none)."""
  root = np.sqrt(stationary)
  units = root[:, None] / root
  # A margin, because descent to 0 ends below 0 as well; μ A = μ bounds A_ij by μ_j / μ_i.
  least = 1e-3 / len(root) * np.minimum(1.0, units**-2)
  gradient = -units * (matrix < least)
  done = matrix.min() > 0
  if entropy is not None:
    clipped = np.maximum(matrix, least)
    excess = entropy_rate_bits(clipped, stationary) - entropy
    slope = -stationary[:, None] * (np.log2(clipped) + 1 / math.log(2))
    gradient += 2 * excess * slope * (matrix >= least)
    done = done and abs(entropy_rate_bits(matrix, stationary) - entropy) <= tolerance
  return gradient, done


def dominant_probability(num_symbols: int, entropy: float | np.ndarray) -> np.ndarray:
  """Probability p of the dominant symbol at a given entropy, with all others equally likely.

    −p log2 p − (1 − p) log2((1 − p) / (L − 1)) = e,    the larger root: p in [1/L, 1]

  Args:
    num_symbols: L, at least 2.
    entropy: e, bits, in [0, log2 L]; any shape.

  Returns:
    float64 of that shape.

  Raises:
    ValueError: if an entropy is out of range.

  References:
    arXiv 2506.07298; released code DaiYijia02/icl-hmm.
  """
  entropy = np.asarray(entropy, np.float64)
  most = math.log2(num_symbols)
  bad = entropy[~((entropy >= 0) & (entropy <= most))]
  if bad.size:
    raise ValueError(f'entropy must be in [0, {most:.6g}], log2 of {num_symbols} symbols, got '
                     f'{bad.flat[0]}')
  low, high = np.full(entropy.shape, 1 / num_symbols), np.ones(entropy.shape)
  for _ in range(60):  # The entropy falls monotonically from log2 L to 0.
    middle = (low + high) / 2
    above = entropy_bits(_with_dominant(middle, num_symbols)) > entropy
    low, high = np.where(above, middle, low), np.where(above, high, middle)
  return np.where(entropy == 0, 1.0, (low + high) / 2)


def make_emission(
    num_states: int, num_symbols: int, entropy: float | np.ndarray
) -> np.ndarray:
  """Emission matrices whose rows all have the same entropy.

    B[i, s] = p at s = i mod L, and (1 − p) / (L − 1) elsewhere

  With more states than symbols, some states have the same emissions.

  Args:
    num_states: M.
    num_symbols: L, at least 2.
    entropy: entropy of each row, bits; any shape.

  Returns:
    float64 [..., M, L].

  Raises:
    ValueError: if an entropy is not in [0, log2 L].

  References:
    arXiv 2506.07298; released code DaiYijia02/icl-hmm.
  """
  first = _with_dominant(dominant_probability(num_symbols, entropy), num_symbols)
  # Symbol 0 is the dominant one of row 0: row i is row 0 shifted by i.
  index = (np.arange(num_symbols) - np.arange(num_states)[:, None]) % num_symbols
  return first[..., index]


def sample_hmms(
    rng: np.random.Generator,
    count: int,
    *,
    num_states: int,
    num_symbols: int,
    lambda2: tuple[float, float] = (0.3, 0.99),
    entropy: tuple[float, float] | None = None,
) -> HmmBatch:
  """Draws training models: all different, with symbols permuted at random.

    A = s I + (1 − s) D,    D's rows ~ Dirichlet(1),    s such that |λ2(A)| is the number drawn

  Where D itself forgets more slowly than the target, it is mixed with its stationary distribution
  instead (s I becomes s 1 μᵀ), which scales its eigenvalues. B is from `make_emission` with its
  columns permuted for each model, so that no symbol has a meaning beyond its sequence. π is
  state 0, as published.

  Args:
    rng: random generator for the draws.
    count: N.
    num_states: M, at least 2.
    num_symbols: L, at least 2.
    lambda2: range of the second eigenvalue, drawn uniformly, within [0, 1).
    entropy: range of the entropy of B's rows, drawn uniformly, bits; [0, log2 L] if None.

  Returns:
    An `HmmBatch`.

  Raises:
    ValueError: if a range exceeds its limits.
  """
  if num_states < 2 or num_symbols < 2:
    raise ValueError(f'num_states and num_symbols must be at least 2, got {num_states} and '
                     f'{num_symbols}')
  if not 0 <= lambda2[0] <= lambda2[1] < 1:
    raise ValueError(f'lambda2 must be a range in [0, 1), got {lambda2}')
  entropy = (0.0, math.log2(num_symbols)) if entropy is None else entropy
  if not 0 <= entropy[0] <= entropy[1] <= math.log2(num_symbols):
    raise ValueError(f'entropy must be a range in [0, log2 {num_symbols}] for {num_symbols} '
                     f'symbols, got {entropy}')

  target, bits = rng.uniform(*lambda2, count), rng.uniform(*entropy, count)
  transition = _with_lambda2(rng.dirichlet(np.ones(num_states), (count, num_states)), target)
  emission = make_emission(num_states, num_symbols, bits)

  order = rng.permuted(np.tile(np.arange(num_symbols), (count, 1)), axis=1)
  emission = np.take_along_axis(emission, order[:, None, :], axis=2)
  initial = np.zeros((count, num_states))
  initial[:, 0] = 1
  return HmmBatch(initial, transition, emission, target, bits)


def _with_dominant(probability: np.ndarray, num_symbols: int) -> np.ndarray:
  """Distributions [..., L] with `probability` on symbol 0 and the rest shared equally."""
  rest = (1 - probability) / (num_symbols - 1)
  return np.concatenate(
      [probability[..., None], np.repeat(rest[..., None], num_symbols - 1, axis=-1)], axis=-1)


def _with_lambda2(transition: np.ndarray, lambda2: np.ndarray) -> np.ndarray:
  """Mixes chains [N, M, M] with the identity, or their stationary distributions, to get λ2 [N]."""
  size = transition.shape[-1]
  values = np.linalg.eigvals(transition)
  order = np.argsort(np.abs(values), axis=-1)
  values = np.take_along_axis(values, order, axis=-1)[:, :-1]  # All but 1.
  before_mixing = np.abs(values[:, -1])

  # max_j |s + (1 − s) ν_j| is convex in s and ends at 1: it crosses λ2 once.
  low, high = np.zeros(len(transition)), np.ones(len(transition))
  for _ in range(60):
    middle = (low + high) / 2
    moduli = np.abs(middle[:, None] + (1 - middle[:, None]) * values).max(axis=-1)
    low, high = np.where(moduli < lambda2, middle, low), np.where(moduli < lambda2, high, middle)

  slower = before_mixing > lambda2
  share = np.where(slower, 1 - lambda2 / before_mixing, (low + high) / 2)[:, None, None]
  stationary = stationary_distribution(transition)
  other = np.where(slower[:, None, None], stationary[:, None, :], np.eye(size))
  return share * other + (1 - share) * transition
