"""A language model as a predictor of hidden Markov models in context, without training.

Trajectories are drawn from every model of a CSV file of the published schema (arXiv 2506.07298;
`hmm.published_results`). A trajectory is the whole prompt, one token per symbol, in one of several
tokenisations. It takes one forward pass: the predictions are the next-token distributions after 4,
8, ..., 2048 symbols, restricted to the tokens of the symbols. Baselines on the same trajectories
are Viterbi and the filter, which know the model, bigrams of the context, and chance.

As in `experiments.icl_hmm.published`, scores average exactly over the label given the true state
before it, and position T comes after T symbols. Distances are to the emissions of the true state at
the position, as published, and to the filter's prediction, which is the best possible. Finished
models are saved: the same command resumes with the next one.
"""

import functools
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from experiments.icl_hmm import checkpoint_report as report
from experiments.icl_hmm import published as icl_hmm_published
from experiments.icl_hmm.checkpoint_config import IclHmmCheckpoint
from jaxrl_llm import checks
from jaxrl_llm.evaluation import statistics
from jaxrl_llm.hmm import filtering, in_context, learners, oracles, published_results
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.runs import arms, checkpoint_sources, launch
from jaxrl_llm.training import fingerprint, loop, rng
from jaxrl_llm.types import ModelFns, Params

MAX_ROWS = 256  # Trajectories at a time: bounds memory.


class Drawn(NamedTuple):
  """Trajectories of a model.

  Attributes:
    symbols: int32 [N, T].
    state_distributions: float32 [N, K, M]; distribution of the state at each position given the
      one before it.
    predictions: float32 [N, K, L] by `report.BASELINES`; distribution of the symbol at each
      position.
  """

  symbols: jax.Array
  state_distributions: jax.Array
  predictions: dict[str, jax.Array]


class InContextPredictor(NamedTuple):
  """A language model with its tokenisations.

  Attributes:
    params: parameters of the language model.
    predictors: by tokenisation; for as many symbols as the largest HMM has.
    identity: fingerprint of the parameters, model and tokens, which may change while the path of
      the checkpoint stays the same.
  """

  params: Params
  predictors: Mapping[str, in_context.Predictor]
  identity: Mapping[str, Any] = types.MappingProxyType({})


@functools.partial(jax.jit, static_argnames='lengths')
def draw(
    keys: jax.Array, initial: jax.Array, transition: jax.Array, emission: jax.Array, *,
    lengths: tuple[int, ...],
) -> Drawn:
  """Trajectories of one model, with the predictions of the baselines.

  Args:
    keys: [N]; PRNG keys, one per trajectory.
    initial: float32 [M]; π.
    transition: float32 [M, M]; A.
    emission: float32 [M, L]; B.
    lengths: the K positions, ascending; the last one is the number of symbols drawn.

  Returns:
    `Drawn`.
  """
  model, positions = (initial, transition, emission), jnp.asarray(lengths)
  num_symbols = emission.shape[1]

  def one(key):
    states, symbols = filtering.sample(key, *model, lengths[-1])
    predictions = {
        'viterbi': oracles.predict_next_by_path(*model, symbols, positions),
        'filter': oracles.predict_next(*model, symbols, positions),
        'ngram2': learners.predict_ngrams(
            symbols, positions, max_order=2, num_symbols=num_symbols)[:, 1],
        'chance': jnp.full((len(lengths), num_symbols), 1 / num_symbols),
    }
    return Drawn(symbols, transition[states[positions - 1]], predictions)

  return jax.vmap(one)(keys)


@jax.jit
def score(
    predictions: jax.Array,
    state_distributions: jax.Array,
    best: jax.Array,
    emission: jax.Array,
) -> jax.Array:
  """The first four of `report.SCORES`, expected given the true state before the position.

  Args:
    predictions: float32 [N, K, L].
    state_distributions: float32 [N, K, M]; A[x_{t−1}, :].
    best: float32 [N, K, L]; the filter's predictions.
    emission: float32 [M, L]; B.

  Returns:
    float32 [4, N, K].
  """
  accuracy, distance = icl_hmm_published.score(predictions, state_distributions, emission)
  probability = jnp.sum(predictions * (state_distributions @ emission), axis=-1)
  return jnp.stack([accuracy, probability, distance, filtering.hellinger(predictions, best)])


def predict(
    predictor: in_context.Predictor, params: Params, symbols: np.ndarray,
    lengths: Sequence[int], num_symbols: int,
) -> np.ndarray:
  """Predictions of a language model at the positions: one forward pass per trajectory.

  Args:
    predictor: predictor for at least `num_symbols` symbols.
    params: parameters of the language model.
    symbols: int [N, T].
    lengths: the K positions, up to T.
    num_symbols: L; predictions are restricted to the first L symbols of the tokenisation.

  Returns:
    float32 [N, K, L]; sums to 1 over L.
  """
  # The predictor predicts each symbol that it is given, and the last position is after them.
  padded = np.pad(symbols, ((0, 0), (0, 1)))
  log_probs = predictor(params, padded)[:, list(lengths), :num_symbols]
  return scipy.special.softmax(log_probs.astype(np.float64), axis=-1).astype(np.float32)


def measure_model(
    config: IclHmmCheckpoint,
    index: int,
    recorded: published_results.RecordedHmm,
    language_model: InContextPredictor,
) -> dict[str, np.ndarray]:
  """Runs every method on one model.

  Args:
    config: the config of the study.
    index: index of the model in its file.
    recorded: the model.
    language_model: the predictor in context.

  Returns:
    By method, baselines and tokenisations: float64 [2, scores, K], the mean of `report.SCORES`
    over the trajectories and its standard error.
  """
  model = [np.asarray(table, np.float32)
           for table in (recorded.initial, recorded.transition, recorded.emission)]
  key, parts = rng.stream_key(rng.base_key(config.seed), rng.DATA, index), []

  for begin in range(0, config.num_sequences, MAX_ROWS):
    rows = jnp.arange(begin, min(begin + MAX_ROWS, config.num_sequences))
    with jax.default_matmul_precision('highest'):
      drawn = draw(jax.vmap(jax.random.fold_in, (None, 0))(key, rows), *model,
                   lengths=config.lengths)
    symbols = np.asarray(drawn.symbols)

    # The language model has its own precision.
    predictions = drawn.predictions | {
        kind: predict(predictor, language_model.params, symbols, config.lengths, model[2].shape[1])
        for kind, predictor in language_model.predictors.items()}
    with jax.default_matmul_precision('highest'):
      parts.append({
          method: np.asarray(score(
              values, drawn.state_distributions, drawn.predictions['filter'], model[2]))
          for method, values in predictions.items()})

  scores = {method: np.concatenate([part[method] for part in parts], axis=1).astype(np.float64)
            for method in parts[0]}
  # Ties go to the first symbol, so the measured accuracy of chance would not be 1/L.
  scores['chance'][report.SCORES.index('accuracy')] = 1 / model[2].shape[1]
  return {method: _summary(values, scores) for method, values in scores.items()}


def _summary(values: np.ndarray, scores: Mapping[str, np.ndarray]) -> np.ndarray:
  """Mean and standard error [2, scores, K] of a method's scores [4, N, K] and gaps."""
  gaps = [scores[oracle][0] - values[0] for oracle in ('viterbi', 'filter')]
  both = statistics.mean_and_standard_error(np.moveaxis(np.stack([*values, *gaps]), 1, 0))
  return np.stack(both)


def read_checkpoint(
    config: IclHmmCheckpoint, num_symbols: int, *, overrides: Sequence[str] = ()
) -> InContextPredictor:
  """Loads the language model of a directory on the first device.

  Args:
    config: the config of the study.
    num_symbols: number of tokens that each tokenisation needs.
    overrides: config fields given on the command line.

  Returns:
    `InContextPredictor`.

  Raises:
    ValueError: one line; if the directory has no such model, the model's context is too short, or
      its tokenizer lacks tokens.
  """
  source = checkpoint_sources.read(config.checkpoint_dir, field='config.checkpoint_dir')
  tokenizer = source.load_tokenizer()
  shape = checkpoint_sources.resolve_model(config.model, source, overrides=overrides)
  with checks.within('config.tokenisations; config.max_symbols excludes larger alphabets'):
    tokenisations = {kind: in_context.tokenise(tokenizer, kind, num_symbols, seed=config.seed)
                     for kind in config.kinds}

  needed = config.max_length + max(len(tokens.prefix_ids) for tokens in tokenisations.values())
  if shape.max_length < needed:
    raise ValueError(f'config.max_length of {config.max_length} needs {needed} tokens, and the '
                     f'context of {config.checkpoint_dir} has {shape.max_length}')
  largest = max(max(tokens.symbol_ids) for tokens in tokenisations.values())
  if largest >= shape.vocab_size:
    raise ValueError(f'config.checkpoint_dir: the vocabulary of the model must contain token '
                     f'{largest} of its tokenizer, got {shape.vocab_size} tokens')

  model = policy_lib.make(shape)
  params = source.load_on_one_device(model)
  identity = {
      **checkpoint_sources.identity(tokenizer.fingerprint, shape),
      'params': fingerprint.of_params(params),
      'tokens': {kind: tokens._asdict() for kind, tokens in tokenisations.items()}}
  return InContextPredictor(params, make_predictors(config, model, tokenisations), identity)


def make_predictors(
    config: IclHmmCheckpoint, model: ModelFns, tokenisations: Mapping[str, in_context.Tokenisation]
) -> dict[str, in_context.Predictor]:
  """Predictors by tokenisation, which share one compiled function for all alphabet sizes."""
  size = min(config.batch_size, config.num_sequences)
  log_probs_fn = jax.jit(functools.partial(in_context.symbol_log_probs, model))
  return {kind: in_context.Predictor(log_probs_fn, tokens, batch_size=size)
          for kind, tokens in tokenisations.items()}


def select(config: IclHmmCheckpoint, models: Sequence[published_results.RecordedHmm]) -> list[int]:
  """Rows of the file that match the config, ascending.

  Raises:
    ValueError: if none matches.
  """
  rows = [
      index for index, model in enumerate(models)
      if config.num_states in (0, model.emission.shape[0])
      and config.num_symbols in (0, model.emission.shape[1])
      and model.emission.shape[1] <= (config.max_symbols or math.inf)]

  if not rows:
    sizes = ', '.join(f'{states} and {symbols}' for states, symbols in sorted(
        {model.emission.shape for model in models}))
    raise ValueError(
        f'config.num_states, config.num_symbols and config.max_symbols (0 is any) must leave some '
        f'of the sizes in {config.results_file} ({sizes}), got {config.num_states}, '
        f'{config.num_symbols} and {config.max_symbols}')
  if 0 < config.max_rows < len(rows):
    rows = [rows[k] for k in np.linspace(0, len(rows) - 1, config.max_rows).round().astype(int)]
  return rows


def measure_all(
    run: launch.Run, stopper: loop.Stopper, models: Mapping[int, published_results.RecordedHmm],
    language_model: InContextPredictor,
) -> report.Study:
  """Runs `measure_model` on every model; finished ones are read from disk."""
  config, rows = run.config, []

  with loop.progress(len(models), 'models') as bar:
    for index, model in models.items():
      name = published_results.fingerprint(model)
      rows.append(arms.finished(
          run.workdir / 'models' / f'{index:04d}_{name}.npz',
          arms.identity_of(
              run.experiment, config, row=index, model=name,
              language_model=language_model.identity),
          functools.partial(measure_model, config, index, model, language_model),
          commit=run.commit))
      run.save_clock()

      last = {method: np.mean([row[method][0, 0, -1] for row in rows])
              for method in ('viterbi', *config.kinds)}
      bar.update(1, **last)
      stopper.check(f'stopped after {len(rows)} models, saved')

  scores = {method: np.stack([row[method] for row in rows])
            for method in (*report.BASELINES, *config.kinds)}
  return report.Study(config.lengths, list(models), list(models.values()), config.kinds, scores)


def main(run: launch.Run) -> None:
  """Predicts trajectories of every model; writes tables, figures and results.json."""
  config = run.config
  models = published_results.read(config.results_file, methods={}, optional=report.RECORDED)
  selected = {index: models[index] for index in select(config, models)}
  num_symbols = max(model.emission.shape[1] for model in selected.values())

  language_model = read_checkpoint(config, num_symbols, overrides=run.overrides)
  with loop.Stopper() as stopper:
    study = measure_all(run, stopper, selected, language_model)
  report.write(run, study)
