"""Binary choices from inputs: a Bernoulli GLM, and an HMM whose states are such GLMs.

  GLM:      P(y_t = 1 | x_t) = σ(w · x_t)
  GLM-HMM:  z_0 ~ π,   z_{t+1} ~ A[z_t, :],   P(y_t = 1 | x_t, z_t = k) = σ(w_k · x_t)

Sessions are separate sequences: each starts from π. They are padded to one length; a choice
below 0 was not observed (padding, or a trial without an answer). A choice above 1 is rejected,
except in traced arrays, whose values are unknown: under jit the caller must check. Models are
fitted by maximum a posteriori: weights are N(0, 1/ridge), rows of A and π are
Dirichlet(1 + pseudo_count).

References: Ashwood et al. (2022), Mice alternate between discrete strategies during perceptual
decision-making, Nature Neuroscience 25; Calhoun et al. (2019), Nature Neuroscience 22.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.hmm import filtering
from jaxrl_llm.rl import masking
from jaxrl_llm.types import Array

_MOST_HALVINGS = 40


class GlmHmm(NamedTuple):
  """A GLM-HMM with M states and D inputs.

  Attributes:
    initial: [M]; π.
    transition: [M, M]; A, rows sum to 1.
    weights: [M, D]; w.
  """

  initial: Array
  transition: Array
  weights: Array


def choice_likelihoods(weights: Array, inputs: Array, choices: Array) -> Array:
  """Likelihoods p(y_t | x_t, z_t = k), and 1 where no choice was observed.

  Args:
    weights: float [M, D].
    inputs: float [..., D].
    choices: int [...]; 0, 1, or negative.

  Returns:
    float [..., M].

  Raises:
    ValueError: if a choice is above 1.
  """
  chex.assert_type([weights, inputs, choices], [float, float, int])
  chex.assert_shape(inputs, (*choices.shape, weights.shape[1]))
  _check_choices(choices)
  drive = filtering.dot(inputs, weights.T)
  choices = choices[..., None]
  return jnp.where(choices < 0, 1.0, jax.nn.sigmoid(jnp.where(choices > 0, drive, -drive)))


def fit_glm(
    inputs: Array,
    choices: Array,
    *,
    ridge: float,
    counts: Array | None = None,
    start: Array | None = None,
    steps: int = 20,
) -> Array:
  """Fits a Bernoulli GLM by Newton's method (iteratively reweighted least squares).

    maximise  Σ_t c_t ln σ(±w · x_t) − ridge/2 |w|²

  Each step is halved until the objective does not fall, up to rounding; a step that is still too
  long after 40 halvings is skipped.

  Args:
    inputs: float [N, D]; a constant column is the bias.
    choices: int [N]; 0, 1, or negative for none.
    ridge: positive; keeps the maximum finite even for linearly separable choices.
    counts: float [N]; c, by default 1 for each.
    start: float [D]; initial weights, by default 0.
    steps: number of Newton steps.

  Returns:
    float [D]; w.

  Raises:
    ValueError: if `ridge` is a number that is not positive and finite, or a choice is above 1.

  References:
    McCullagh and Nelder (1989), Generalized Linear Models, section 4.4.
  """
  masking.check_positive('ridge', ridge)
  chex.assert_rank([inputs, choices], [2, 1])
  chex.assert_type([inputs, choices], [float, int])
  _check_choices(choices)

  counts = jnp.ones(choices.shape, inputs.dtype) if counts is None else counts
  # Not multiplied by 0: an input of padding may be NaN.
  counts = jnp.where(choices < 0, 0.0, counts)
  inputs = jnp.where((choices < 0)[:, None], 0.0, inputs)
  signs = jnp.where(choices > 0, 1.0, -1.0)

  def objective(weights):
    fit = jnp.sum(counts * jax.nn.log_sigmoid(signs * filtering.dot(inputs, weights)))
    return fit - ridge / 2 * jnp.sum(jnp.square(weights))

  def newton(carry, _):
    weights, before = carry
    chance = jax.nn.sigmoid(filtering.dot(inputs, weights))
    gradient = filtering.dot(inputs.T, counts * (choices - chance)) - ridge * weights
    curvature = filtering.dot(inputs.T * (counts * chance * (1 - chance)), inputs)
    curvature = curvature + ridge * jnp.eye(len(weights), dtype=inputs.dtype)
    step = jax.scipy.linalg.solve(curvature, gradient, assume_a='pos')
    return _backtrack(objective, weights, step, before), None

  start = jnp.zeros(inputs.shape[1], inputs.dtype) if start is None else start
  return jax.lax.scan(newton, (start, objective(start)), length=steps)[0][0]


def _backtrack(objective, weights: Array, step: Array, before: Array) -> tuple[Array, Array]:
  """(weights after the step, halved until the objective does not fall; its value there)."""
  least = before - 4 * jnp.finfo(before.dtype).eps * jnp.abs(before)

  def halve(carry):
    halvings, size, _ = carry
    return halvings + 1, size / 2, objective(weights + size / 2 * step)

  def falls(after):
    return ~(after >= least)  # Not `after < least`: a step to NaN is too long as well.

  _, size, after = jax.lax.while_loop(
      lambda carry: falls(carry[2]) & (carry[0] < _MOST_HALVINGS), halve,
      (0, jnp.ones((), weights.dtype), objective(weights + step)))
  skipped = falls(after)
  return (jnp.where(skipped, weights, weights + size * step),
          jnp.where(skipped, before, after))


def log_posterior(
    model: GlmHmm, log_likelihood: Array, *, ridge: float, pseudo_count: float
) -> Array:
  """Objective of EM: the log-likelihood plus the log-density of the prior, up to a constant.

    ln p(y) − ridge/2 Σ_k |w_k|² + pseudo_count (Σ_k ln π_k + Σ_{k,l} ln A_kl)

  Args:
    model: the parameters.
    log_likelihood: float []; log-likelihood of all choices.
    ridge: as in `fit`.
    pseudo_count: as in `fit`.

  Returns:
    [].
  """
  penalty = ridge / 2 * jnp.sum(jnp.square(model.weights))
  logs = jnp.sum(jnp.log(model.initial)) + jnp.sum(jnp.log(model.transition))
  return log_likelihood - penalty + pseudo_count * logs


def em_step(
    model: GlmHmm,
    inputs: Array,
    choices: Array,
    valid: Array,
    *,
    ridge: float,
    pseudo_count: float,
    newton_steps: int = 3,
) -> tuple[GlmHmm, Array]:
  """One step of EM; the log posterior does not fall.

  The M step of π and A is exact; that of the weights is a few Newton steps from their current
  values. Each step is an improvement, which is all that EM requires.

  Args:
    model: parameters before the step.
    inputs: float [S, T, D].
    choices: int [S, T].
    valid: bool [S, T]; False for padding, at the end.
    ridge: precision of the weights' prior.
    pseudo_count: added to every count of states.
    newton_steps: Newton steps in the M step.

  Returns:
    (the model after the step, the log posterior of the model before it).
  """
  likelihoods = choice_likelihoods(model.weights, inputs, choices)
  gamma, xi, log_likelihood = jax.vmap(
      lambda rows, valid: filtering.smooth(model.initial, model.transition, rows, valid=valid)
  )(likelihoods, valid)
  before = log_posterior(model, log_likelihood.sum(), ridge=ridge, pseudo_count=pseudo_count)

  flat_inputs, flat_choices = inputs.reshape(-1, inputs.shape[-1]), choices.reshape(-1)
  weights = jax.vmap(lambda counts, start: fit_glm(
      flat_inputs, flat_choices, ridge=ridge, counts=counts, start=start, steps=newton_steps)
  )(gamma.reshape(-1, gamma.shape[-1]).T, model.weights)

  initial = jnp.sum(gamma[:, 0], axis=0)  # γ is 0 in a session without trials.
  after = GlmHmm(
      _normalise(initial + pseudo_count), _normalise(xi.sum(axis=0) + pseudo_count), weights)
  return after, before


def _normalise(counts: Array) -> Array:
  return counts / jnp.sum(counts, axis=-1, keepdims=True)


def fit(
    key: Array,
    inputs: Array,
    choices: Array,
    *,
    num_states: int,
    ridge: float = 0.1,
    pseudo_count: float = 0.1,
    restarts: int = 4,
    steps: int = 100,
) -> tuple[GlmHmm, Array]:
  """Fits a GLM-HMM by EM and returns the best of several restarts by log posterior.

  Each restart begins with sticky states, whose weights are those of one GLM fitted to all choices
  plus noise.

  Args:
    key: PRNG key for the noise.
    inputs: float [S, T, D]; sessions, padded at their ends with rows of NaN.
    choices: int [S, T]; 0, 1, or negative for none.
    num_states: M.
    ridge: precision of the weights' prior, positive.
    pseudo_count: pseudo-count of the Dirichlet priors, positive: no transition becomes impossible.
    restarts: number of restarts.
    steps: EM steps per restart.

  Returns:
    (the model, its states in decreasing order of the first input's weight; the log posterior of
    each restart before each step [restarts, steps]).

  Raises:
    ValueError: if `ridge` or `pseudo_count` is not positive and finite, a number is below 1, or a
      choice is above 1.

  References:
    Ashwood et al. (2022), methods.
  """
  chex.assert_rank([inputs, choices], [3, 2])
  masking.check_positive('pseudo_count', pseudo_count)
  for name, value in (('num_states', num_states), ('restarts', restarts), ('steps', steps)):
    if value < 1:
      raise ValueError(f'{name} must be at least 1, got {value}')
  _check_choices(choices)

  inputs, choices, valid = _without_padding(inputs, choices)
  single = fit_glm(inputs.reshape(-1, inputs.shape[-1]), choices.reshape(-1), ridge=ridge)

  def step(model, _=None):
    return em_step(model, inputs, choices, valid, ridge=ridge, pseudo_count=pseudo_count)

  def run(key):
    model, trace = jax.lax.scan(step, _start(key, single, num_states), length=steps)
    return model, trace, step(model)[1]

  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(restarts))
  models, traces, last = jax.vmap(run)(keys)
  model = jax.tree.map(lambda leaf: leaf[jnp.argmax(last)], models)
  order = jnp.argsort(-model.weights[:, 0])
  return GlmHmm(
      model.initial[order], model.transition[order][:, order], model.weights[order]), traces


def predict(model: GlmHmm, inputs: Array, choices: Array) -> Array:
  """Probability of choice 1 at each trial, given its input and the past.

    P(y_t = 1 | x_≤t, y_<t) = Σ_k P(z_t = k | y_<t) σ(w_k · x_t),    P(z_t | y_<t) = Aᵀ α_{t−1}

  Args:
    model: the parameters.
    inputs: float [S, T, D]; as in `fit`.
    choices: int [S, T].

  Returns:
    float [S, T]; meaningless in padding.

  Raises:
    ValueError: if a choice is above 1.
  """
  chex.assert_rank([inputs, choices], [3, 2])
  _check_choices(choices)
  inputs, choices, _ = _without_padding(inputs, choices)
  likelihoods = choice_likelihoods(model.weights, inputs, choices)
  filtered, _ = jax.vmap(
      lambda rows: filtering.filter_states(model.initial, model.transition, rows))(likelihoods)
  first = jnp.broadcast_to(model.initial, filtered[:, :1].shape)
  states = jnp.concatenate([first, filtering.dot(filtered[:, :-1], model.transition)], axis=1)
  return jnp.sum(states * jax.nn.sigmoid(filtering.dot(inputs, model.weights.T)), axis=-1)


def _check_choices(choices: Array) -> None:
  masking.check_range(
      'choices', choices, jnp.iinfo(choices.dtype).min, 1, '0, 1, or negative for none')


def _without_padding(inputs: Array, choices: Array) -> tuple[Array, Array, Array]:
  """(inputs with 0 instead of NaN, choices with none in padding, mask that excludes padding)."""
  valid = ~jnp.any(jnp.isnan(inputs), axis=-1)
  return jnp.where(valid[..., None], inputs, 0.0), jnp.where(valid, choices, -1), valid


def _start(key: Array, single: Array, num_states: int) -> GlmHmm:
  """Start of a restart: sticky states around the weights of one GLM."""
  noise, stay = (jax.random.fold_in(key, stream) for stream in range(2))
  weights = single + 0.5 * jax.random.normal(noise, (num_states, len(single)), single.dtype)
  stays = jax.random.uniform(stay, (num_states, 1), single.dtype, 0.85, 0.98)
  identity = jnp.eye(num_states, dtype=single.dtype)
  others = (1 - stays) * (1 - identity) / max(num_states - 1, 1)
  transition = stays * identity + others if num_states > 1 else identity
  return GlmHmm(jnp.full(num_states, 1 / num_states, single.dtype), transition, weights)
