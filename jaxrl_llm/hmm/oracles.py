"""Next-symbol predictions that use the true hidden Markov model: upper bounds.

Row t of a prediction is the distribution of symbol t, given the t symbols before it. All functions
take one sequence; use `jax.vmap` for batches.

Departure from the released code (DaiYijia02/icl-hmm): its oracles of all and of the last k
observations propagate with A α instead of Aᵀ α, and do not normalise the result
(`compat='released'`). That is correct only for a symmetric A, and costs accuracy otherwise.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.hmm import filtering
from jaxrl_llm.rl import masking
from jaxrl_llm.types import Array

Compat = Literal['correct', 'released']


def predict_next(
    initial: Array,
    transition: Array,
    emission: Array,
    observations: Array,
    positions: Array | None = None,
    *,
    compat: Compat = 'correct',
) -> Array:
  """Distribution of the next symbol given all before it: the Bayes-optimal prediction.

    P(o_t | o_<t) = Bᵀ Aᵀ α_{t−1},    P(o_0) = Bᵀ π

  Args:
    initial: float [M]; π.
    transition: float [M, M]; A.
    emission: float [M, L]; B.
    observations: int [T]; symbols.
    positions: int [K], in [0, T]; numbers of known symbols. By default 0, 1, ..., T.
    compat: 'released' propagates with A α throughout, and does not normalise the result.

  Returns:
    float [K, L]; the row of position t is the prediction of symbol t.

  Raises:
    ValueError: on an unknown `compat`.

  References:
    arXiv 2506.07298, the oracle of all observations; released code DaiYijia02/icl-hmm.
  """
  transition = _oriented(transition, compat)
  likelihoods = filtering.symbol_likelihoods(emission, observations)
  filtered, _ = filtering.filter_states(initial, transition, likelihoods)
  return _predict_after(initial, filtered, transition, emission, positions)


def predict_next_by_path(
    initial: Array,
    transition: Array,
    emission: Array,
    observations: Array,
    positions: Array | None = None,
) -> Array:
  """Distribution of the next symbol, as if the best path so far were the true one.

    A[x̂_{t−1}, :] B,    x̂ the most likely path of o_<t

  The paper plots this as the optimum; `predict_next` is at least as good.

  Args:
    initial: as for `predict_next`.
    transition: as for `predict_next`.
    emission: as for `predict_next`.
    observations: as for `predict_next`.
    positions: as for `predict_next`.

  Returns:
    float [K, L].

  References:
    arXiv 2506.07298, the baseline named Viterbi.
  """
  messages, _ = filtering.max_product(
      initial, transition, filtering.symbol_likelihoods(emission, observations))
  ends = jax.nn.one_hot(jnp.argmax(messages, axis=-1), len(initial), dtype=initial.dtype)
  return _predict_after(initial, ends, transition, emission, positions)


def predict_next_by_state(
    initial: Array,
    transition: Array,
    emission: Array,
    states: Array,
    positions: Array | None = None,
) -> Array:
  """Distribution of the next symbol given the true hidden state before it: A[x_{t−1}, :] B.

  Args:
    initial: as for `predict_next`.
    transition: as for `predict_next`.
    emission: as for `predict_next`.
    states: int [T]; the true states.
    positions: as for `predict_next`.

  Returns:
    float [K, L].

  References:
    arXiv 2506.07298, the baseline named P(O|H).
  """
  chex.assert_type(states, int)
  masking.check_range(
      'states', states, 0, len(initial) - 1, f'in [0, {len(initial)}), the number of states')
  known = jax.nn.one_hot(states, len(initial), dtype=initial.dtype)
  return _predict_after(initial, known, transition, emission, positions)


def predict_next_by_window(
    initial: Array,
    transition: Array,
    emission: Array,
    observations: Array,
    positions: Array | None = None,
    *,
    window: int,
    compat: Compat = 'correct',
) -> Array:
  """Distribution of the next symbol given only the last k.

    P(o_t | o_{t−k}, ..., o_{t−1}): a filter that starts from the distribution of x_{t−k}, π A^{t−k}

  Args:
    initial: as for `predict_next`.
    transition: as for `predict_next`.
    emission: as for `predict_next`.
    observations: as for `predict_next`.
    positions: as for `predict_next`. If fewer than `window` symbols are known, all are used.
    window: k, at least 1.
    compat: as for `predict_next`; 'released' starts from A^{t−k} π.

  Returns:
    float [K, L].

  Raises:
    ValueError: on a `window` below 1 or an unknown `compat`.

  References:
    arXiv 2506.07298, the oracles of the last k observations; released code DaiYijia02/icl-hmm.
  """
  if window < 1:
    raise ValueError(f'window must be at least 1, got {window}')
  filtering.check_symbols(observations, emission.shape[1])
  filtering.check_positions(positions, len(observations))

  transition = _oriented(transition, compat)
  if positions is None:
    positions = jnp.arange(len(observations) + 1)
  _, states = jax.lax.scan(
      lambda state, _: (filtering.dot(state, transition), state), initial,
      length=len(observations))

  starts = jnp.maximum(positions - window, 0)
  beliefs = states[starts]
  for offset in range(window):
    index = starts + offset
    known = index < positions
    moved = filtering.dot(beliefs, transition) if offset else beliefs
    symbols = jnp.where(known, observations[jnp.minimum(index, len(observations) - 1)], -1)

    joint = moved * filtering.symbol_likelihoods(emission, symbols)
    total = jnp.sum(joint, axis=-1, keepdims=True)
    # As in the filter, symbols that no state explains are skipped.
    seen = jnp.where(total > 0, joint / jnp.where(total > 0, total, 1.0), moved)
    beliefs = jnp.where(known[:, None], seen, beliefs)
  return _predict_from(initial, beliefs, transition, emission, positions)


def _predict_after(
    initial: Array, beliefs: Array, transition: Array, emission: Array, positions: Array | None
) -> Array:
  """Predictions [K, L] of the symbols at `positions`, from beliefs [T, M] after each symbol."""
  filtering.check_positions(positions, len(beliefs))
  if positions is None:
    positions = jnp.arange(len(beliefs) + 1)
  return _predict_from(
      initial, beliefs[jnp.maximum(positions - 1, 0)], transition, emission, positions)


def _predict_from(
    initial: Array, before: Array, transition: Array, emission: Array, positions: Array
) -> Array:
  """Predictions [K, L] of the symbols at `positions`, from beliefs [K, M] before them."""
  states = jnp.where((positions == 0)[:, None], initial, filtering.dot(before, transition))
  return filtering.dot(states, emission)


def _oriented(transition: Array, compat: Compat) -> Array:
  if compat not in ('correct', 'released'):
    raise ValueError(f"compat must be 'correct' or 'released', got {compat!r}")
  return transition if compat == 'correct' else transition.T
