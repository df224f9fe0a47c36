"""Simulated mice: GLM-HMMs with known parameters, in the same container as real mice.

A mouse is in one of M states, each a GLM of the contrast, a bias, the previous choice and that
choice times its reward; states last for tens of trials. Mice are drawn from a broad prior, which
represents what a predictor can know before it sees an animal. With known parameters the optimal
prediction filters the state (`predict`). All functions are batched over B mice.
"""

from typing import NamedTuple

import numpy as np

from jaxrl_llm.hmm import animals

# The prior. Weights are per unit of each input; contrasts have unit mean square.
ENGAGED_SHARE = 0.5  # States that follow the contrast; the others are biased.
ENGAGED_STIMULUS = (1.0, 5.0)
BIASED_STIMULUS = (0.0, 1.5)
ENGAGED_BIAS, BIASED_BIAS = 0.4, 1.2  # Standard deviations.
HISTORY_MEAN, HISTORY_STD = (0.2, 0.1), (0.5, 0.4)  # Previous choice; times its reward.
STAY = (0.9, 0.995)
POWER = (0.25, 1.0)  # Power of the contrast: the psychometric curves of mice saturate.


class Mice(NamedTuple):
  """Parameters of B mice.

  Attributes:
    initial: [B, M]; the distribution of the state at the start of a session.
    transition: [B, M, M].
    weights: [B, M, 4]; in the order of `animals.COVARIATES`.
    power: [B]; the contrast c enters as sign(c) |c|^power, of unit mean square.
  """

  initial: np.ndarray
  transition: np.ndarray
  weights: np.ndarray
  power: np.ndarray


class Trials(NamedTuple):
  """Trials of B mice.

  Attributes:
    levels: int8 [B, N]; the contrast, an index into `animals.CONTRASTS`.
    choices: int8 [B, N]; 0 or 1.
    rewards: int8 [B, N]; 1 or -1.
    starts: bool [B, N]; where a session begins.
    states: int8 [B, N].
  """

  levels: np.ndarray
  choices: np.ndarray
  rewards: np.ndarray
  starts: np.ndarray
  states: np.ndarray


def draw(generator: np.random.Generator, count: int, *, max_states: int = 3) -> Mice:
  """Draws mice from the prior, with 1 to `max_states` states each.

  Args:
    generator: random generator for the draws.
    count: B.
    max_states: M; states that a mouse does not have are never entered.

  Returns:
    The parameters.

  Raises:
    ValueError: if a number is below 1.
  """
  for name, value in (('count', count), ('max_states', max_states)):
    if value < 1:
      raise ValueError(f'{name} must be at least 1, got {value}')

  shape = (count, max_states)
  has = np.arange(max_states) < generator.integers(1, max_states + 1, (count, 1))
  engaged = generator.random(shape) < ENGAGED_SHARE
  weights = np.stack([
      np.where(engaged, generator.uniform(*ENGAGED_STIMULUS, shape),
               generator.uniform(*BIASED_STIMULUS, shape)),
      generator.normal(size=shape) * np.where(engaged, ENGAGED_BIAS, BIASED_BIAS),
      generator.normal(HISTORY_MEAN[0], HISTORY_STD[0], shape),
      generator.normal(HISTORY_MEAN[1], HISTORY_STD[1], shape),
  ], axis=-1)

  initial = has * generator.exponential(size=shape)
  initial = initial / initial.sum(axis=-1, keepdims=True)

  stay = generator.uniform(*STAY, shape)[..., None]
  identity = np.eye(max_states)
  others = has[:, None] * (1 - identity) * generator.exponential(size=(*shape, max_states))
  alone = others.sum(axis=-1, keepdims=True) == 0
  others = others / np.where(alone, 1, others.sum(axis=-1, keepdims=True))
  transition = np.where(alone, identity, stay * identity + (1 - stay) * others)
  return Mice(initial, transition, weights, generator.uniform(*POWER, count))


def simulate(
    mice: Mice,
    generator: np.random.Generator,
    *,
    num_trials: int,
    session_length: int = 90,
    phase: np.ndarray | int = 0,
) -> Trials:
  """Simulates the choices of the mice.

  Args:
    mice: B mice.
    generator: random generator for contrasts, states, choices and chance rewards.
    num_trials: N.
    session_length: trials per session; its end resets the state and the history.
    phase: int [B] or one number; position of the first trial in its session (its state is drawn
      as if it started a session).

  Returns:
    The trials. Contrasts are equally likely.

  Raises:
    ValueError: if a number is below 1.
  """
  for name, value in (('num_trials', num_trials), ('session_length', session_length)):
    if value < 1:
      raise ValueError(f'{name} must be at least 1, got {value}')

  count = len(mice.power)
  shape = (num_trials, count)
  levels = generator.integers(len(animals.CONTRASTS), size=shape)
  starts = (np.arange(num_trials)[:, None] + np.broadcast_to(phase, count)) % session_length == 0
  starts[0] = True

  luck, state_draws, choice_draws = generator.random((3, *shape))
  rows, table = np.arange(count), animals.stimulus(mice.power)
  first, following = np.cumsum(mice.initial, axis=-1), np.cumsum(mice.transition, axis=-1)
  states, choices, rewards = np.zeros((3, *shape), np.int8)
  state, choice, reward = np.zeros((3, count), int)

  for t in range(num_trials):
    cumulative = np.where(starts[t][:, None], first, following[rows, state])
    # Rounding may leave the total of a distribution below the draw.
    state = np.minimum(
        (cumulative < state_draws[t][:, None]).sum(axis=-1), cumulative.shape[1] - 1)
    chance = _chance(mice.weights[rows, state], table[rows, levels[t]], starts[t], choice, reward)
    choice = (choice_draws[t] < chance).astype(int)

    right = np.where(levels[t] == animals.ZERO_LEVEL, luck[t] < .5,
                     choice == (levels[t] > animals.ZERO_LEVEL))
    reward = np.where(right, 1, -1)
    states[t], choices[t], rewards[t] = state, choice, reward
  return Trials(*(x.T.copy() for x in (levels.astype(np.int8), choices, rewards, starts, states)))


def predict(mice: Mice, trials: Trials) -> np.ndarray:
  """Optimal prediction with known parameters: the probability of choice 1, trial by trial.

    P(y_t = 1 | x_≤t, y_<t) = Σ_k P(z_t = k | y_<t) σ(w_k · x_t)

  Args:
    mice: parameters of the mice.
    trials: trials of the mice.

  Returns:
    float [B, N].

  Raises:
    ValueError: if a contrast, choice or reward is not valid.
  """
  animals.check_trials(trials.levels, trials.choices, trials.rewards, least_choice=0)
  rows, table = np.arange(len(mice.power)), animals.stimulus(mice.power)
  predictions = np.zeros(trials.choices.shape)
  state, choice, reward = mice.initial, np.zeros(len(rows), int), np.zeros(len(rows), int)

  for t in range(predictions.shape[1]):
    start = trials.starts[:, t]
    state = np.where(start[:, None], mice.initial, state)
    chance = _chance(mice.weights, table[rows, trials.levels[:, t]][:, None], start[:, None],
                     choice[:, None], reward[:, None])
    predictions[:, t] = np.sum(state * chance, axis=-1)

    choice, reward = trials.choices[:, t].astype(int), trials.rewards[:, t].astype(int)
    seen = state * np.where(choice[:, None] > 0, chance, 1 - chance)
    state = np.einsum('bi,bij->bj', seen / seen.sum(axis=-1, keepdims=True), mice.transition)
  return predictions


def as_animal(trials: Trials, mouse: int, name: str) -> animals.Animal:
  """Returns one of the mice in the form of a loaded animal."""
  return animals.Animal(
      name, trials.levels[mouse], trials.choices[mouse], trials.rewards[mouse],
      (np.cumsum(trials.starts[mouse]) - 1).astype(np.int32))


def _chance(weights, stimulus, start, choice, reward) -> np.ndarray:
  """σ(w · x), without history in the first trial of a session; [...] for weights [..., 4]."""
  before = np.where(start, 0, 2 * choice - 1)
  drive = (weights[..., 0] * stimulus + weights[..., 1] + weights[..., 2] * before
           + weights[..., 3] * before * reward)
  return 1 / (1 + np.exp(-drive))
