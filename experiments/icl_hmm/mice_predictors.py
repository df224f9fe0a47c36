"""Predictors of an animal's choices, fold by fold: fitted models, counts, models in context.

Every predictor returns the probability of choice 1 for the trials of held-out sessions. Fitted
models see the training sessions of a fold, and the trials of the held-out session before the
predicted one. A model in context reads a window of one sequence: the training sessions recorded
after the held-out one, then those recorded before it, then the held-out one up to the trial. The
window is at most the last `num_trials` trials of this sequence.
"""

import functools
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.icl_hmm.mice_config import IclHmmMice
from experiments.icl_hmm.mice_training import ARMS
from jaxrl_llm.hmm import animals, filtering, glm_hmm, in_context
from jaxrl_llm.training import rng
from jaxrl_llm.types import ModelFns, Params

MAX_ORDER = 3


class InContextPredictor(NamedTuple):
  """A model that predicts choices in context.

  Attributes:
    name: prefix of the names of its arms.
    params: the model's parameters by arm.
    predict_symbols: predictor of symbols; arms with equally long sequences share one compilation.
    num_trials: W.
    identity: what the predictions depend on apart from `params` and the config: the model and the
      tokens of a checkpoint, which may change while its path stays the same.
  """

  name: str
  params: Mapping[str, Params]
  predict_symbols: in_context.Predictor
  num_trials: int
  identity: Mapping[str, Any] = types.MappingProxyType({})

  def predict(self, arm: str, animal: animals.Animal, trials: np.ndarray) -> np.ndarray:
    """P(choice 1) [R, W] in windows of trials [R, W] (-1 is padding); NaN where there is no label.

    A shifted sequence shows the choice of every trial except the last.
    """
    layout, shift = ARMS[arm]
    filled = np.where(trials < 0, trials[:, :1], trials)
    symbols = animals.encode(
        animal.levels[filled], animal.choices[filled], animal.rewards[filled], layout, shift=shift)

    positions = animals.label_positions(layout, trials.shape[1], shift=shift)
    # Pad to the length of the unshifted sequence; nothing after the last label is read.
    missing = trials.shape[1] * len(animals.LAYOUTS[layout]) - symbols.shape[1]
    log_probs = self.predict_symbols(
        self.params[arm], np.pad(symbols, ((0, 0), (0, missing))))

    chances = np.full(trials.shape, np.nan)
    chances[:, : len(positions)] = np.exp(log_probs[:, positions, 1])
    return np.where(trials < 0, np.nan, chances)


def make_predictor(
    name: str, model: ModelFns, params: Mapping[str, Params],
    tokenisation: in_context.Tokenisation, *, num_trials: int, batch_size: int,
) -> InContextPredictor:
  """Builds an `InContextPredictor`; for the arguments see there and `in_context.Predictor`."""
  log_probs_fn = jax.jit(functools.partial(in_context.symbol_log_probs, model))
  return InContextPredictor(name, params, in_context.Predictor(
      log_probs_fn, tokenisation, targets=animals.CHOICE_SYMBOLS, batch_size=batch_size),
      num_trials)


# --- Windows of an animal.


def held_out_windows(
    animal: animals.Animal, fold: np.ndarray, num_trials: int
) -> tuple[np.ndarray, np.ndarray]:
  """Windows in which every choice of the animal is predicted once: see the module's docstring.

  Args:
    animal: the animal.
    fold: int [S]; fold of each session.
    num_trials: W.

  Returns:
    (trials [R, W], predicted bool [R, W]), as from `animals.windows`.
  """
  rows = [animals.windows(before, predicted, num_trials)
          for before, predicted in _held_out_sessions(animal, fold)]
  return tuple(np.concatenate(parts) for parts in zip(*rows))


def _held_out_sessions(animal: animals.Animal, fold: np.ndarray):
  """Yields (earlier trials, trials to predict) of each session; only trials with a choice."""
  chosen = animal.choices >= 0
  for session, own in enumerate(fold):
    training = chosen & (fold[animal.sessions] != own)
    after = np.flatnonzero(training & (animal.sessions > session))
    before = np.flatnonzero(training & (animal.sessions < session))
    yield (np.concatenate([after, before]),
           np.flatnonzero(chosen & (animal.sessions == session)))


def online_windows(animal: animals.Animal, num_trials: int) -> np.ndarray:
  """All trials with a choice, cut into consecutive windows [R, W]; the remainder is dropped."""
  trials = np.flatnonzero(animal.choices >= 0)
  rows = len(trials) // num_trials
  return trials[: rows * num_trials].reshape(rows, num_trials)


# --- Counts.


def _earlier(codes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """For each entry: the number of earlier entries with its code, and the sum of their values."""
  order = np.argsort(codes, kind='stable')
  ordered, values = codes[order], values[order]
  index = np.arange(len(codes))
  begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])
  first = np.maximum.accumulate(np.where(begins, index, 0))
  sums = np.cumsum(values) - values
  count, total = np.empty(len(codes)), np.empty(len(codes))
  count[order], total[order] = index - first, sums - sums[first]
  return count, total


def count_predictions(levels: np.ndarray, choices: np.ndarray) -> np.ndarray:
  """Online n-gram counts of the sequence (contrast, choice, contrast, choice, ...).

    p_n = (ones + p_{n−1}) / (count + 1),    p_0 = 1/2

  over the earlier trials with the same context: none (n = 1), the contrast (2), the choice before
  it as well (3). An unseen context falls back to the shorter one.

  Args:
    levels: int [N]; contrast of each trial.
    choices: int [N]; 0 or 1.

  Returns:
    float [MAX_ORDER, N]; P(choice 1).
  """
  last = np.concatenate([[2], choices[:-1]]).astype(int)
  contexts = (np.zeros(len(levels), int), levels.astype(int), 3 * levels.astype(int) + last)
  chance, by_order = np.full(len(levels), .5), []
  for codes in contexts[:MAX_ORDER]:
    count, ones = _earlier(codes, choices.astype(float))
    chance = (ones + chance) / (count + 1)
    by_order.append(chance)
  return np.stack(by_order)


def window_counts(animal: animals.Animal, trials: np.ndarray, predicted: np.ndarray) -> np.ndarray:
  """`count_predictions` inside each window; [MAX_ORDER, N], NaN where nothing is predicted."""
  chances = np.full((MAX_ORDER, len(animal.choices)), np.nan)
  for row, mask in zip(trials, predicted):
    real = row >= 0
    values = count_predictions(animal.levels[row[real]], animal.choices[row[real]])
    chances[:, row[mask]] = values[:, mask[real]]
  return chances


def all_counts(animal: animals.Animal, fold: np.ndarray) -> np.ndarray:
  """`count_predictions` with all training sessions before the held-out one."""
  chances = np.full((MAX_ORDER, len(animal.choices)), np.nan)
  for before, predicted in _held_out_sessions(animal, fold):
    both = np.concatenate([before, predicted])
    values = count_predictions(animal.levels[both], animal.choices[both])
    chances[:, predicted] = values[:, len(before):]
  return chances


def bias_predictions(animal: animals.Animal, fold: np.ndarray) -> np.ndarray:
  """Share of choice 1 in the training sessions, [N]."""
  chances = np.empty(len(animal.choices))
  for own in np.unique(fold):
    held_out = fold[animal.sessions] == own
    training = animal.choices[~held_out & (animal.choices >= 0)]
    chances[held_out] = (training.sum() + .5) / (len(training) + 1)
  return chances


# --- Fitted models.


def level_inputs(animal: animals.Animal) -> np.ndarray:
  """Inputs [N, 11] of a GLM with a weight per contrast, and the two history inputs."""
  return np.concatenate(
      [np.eye(len(animals.CONTRASTS))[animal.levels], animals.covariates(animal)[:, 2:]], axis=1)


@functools.partial(jax.jit, static_argnames=('ridge',))
def _glm(inputs, choices, training, *, ridge):
  """σ(w · x) [F, S, T] of a GLM fitted to each set of training sessions [F, S]."""
  def one(training):
    shown = jnp.where(training[:, None], choices, -1).reshape(-1)
    weights = glm_hmm.fit_glm(inputs.reshape(-1, inputs.shape[-1]), shown, ridge=ridge)
    return jax.nn.sigmoid(filtering.dot(inputs, weights))

  return jax.vmap(one)(training)


@functools.partial(
    jax.jit, static_argnames=('num_states', 'ridge', 'pseudo_count', 'restarts', 'steps'))
def _glm_hmm(key, inputs, choices, training, **options):
  """The same for a GLM-HMM, and the log posterior of each restart [F, restarts, steps]."""
  def one(training):
    shown = jnp.where(training[:, None, None], inputs, jnp.nan)
    model, trace = glm_hmm.fit(key, shown, choices, **options)
    return glm_hmm.predict(model, inputs, choices), trace

  return jax.vmap(one)(training)


def fitted_predictions(
    config: IclHmmMice, animal: animals.Animal, fold: np.ndarray, shape: tuple[int, int]
) -> dict[str, np.ndarray]:
  """GLMs and GLM-HMMs: P(choice 1) [N] by name.

  Args:
    config: the config of the study.
    animal: the animal.
    fold: int [S]; fold of each session.
    shape: sessions and trials that arrays are padded to, so that all animals share one compilation.

  Returns:
    The predictions.
  """
  def padded(values, fill):
    values = animals.by_session(animal, values, fill)
    rest = [(0, whole - part) for whole, part in zip(shape, values.shape)]
    return np.pad(values, rest + [(0, 0)] * (values.ndim - 2), constant_values=fill)

  choices = padded(animal.choices.astype(np.int32), -1)
  real = padded(np.ones(len(animal.choices), bool), False)
  number = np.pad(fold, (0, shape[0] - len(fold)), constant_values=-1)
  training = np.arange(config.num_folds)[:, None] != number

  def held_out(by_fold):
    values = np.asarray(by_fold)[np.maximum(number, 0), np.arange(shape[0])]
    return values[real].astype(float)

  predictions = {}
  for name, inputs in (('glm', animals.covariates(animal)), ('glm_levels', level_inputs(animal))):
    inputs = padded(inputs.astype(np.float32), np.nan)
    predictions[name] = held_out(_glm(inputs, choices, training, ridge=config.ridge))

  inputs = padded(animals.covariates(animal).astype(np.float32), np.nan)
  for states in config.num_states:
    chances, _ = _glm_hmm(
        rng.stream_key(rng.base_key(config.seed), rng.INIT, states), inputs, choices, training,
        num_states=states, ridge=config.ridge, pseudo_count=config.pseudo_count,
        restarts=config.restarts, steps=config.em_steps)
    predictions[f'glm_hmm{states}'] = held_out(chances)
  return predictions
