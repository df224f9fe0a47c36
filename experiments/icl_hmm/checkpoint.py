"""A language model as a predictor of hidden Markov models in context, without training.

Every model of a CSV file of the published schema (arXiv 2506.07298; `hmm.published_results`) is
sampled. A trajectory is the whole prompt, one token per symbol, in one of several tokenisations. It
is read once: the predictions are the next-token distributions after 4, 8, ..., 2048 symbols,
restricted to the tokens of the symbols. Baselines on the same trajectories are Viterbi and the
filter, which know the model, bigrams of the context, and chance.

As in `experiments.icl_hmm.published`, scores average exactly over the label given the true state
before it, and position T comes after T symbols. Distances are to the emissions of the true state at
the position, as published, and to the filter's prediction, which is the best possible. Finished
models are saved: the same command resumes with the next one.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from experiments.icl_hmm import checkpoint_report as closing
from experiments.icl_hmm import published as icl_hmm_published
from experiments.icl_hmm.checkpoint_config import IclHmmCheckpoint
from jaxrl_llm import checks
from jaxrl_llm.evaluation import statistics
from jaxrl_llm.hmm import filtering, in_context, learners, oracles, published_results
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.runs import arms, checkpoint_sources, launch
from jaxrl_llm.training import loop, rng
from jaxrl_llm.types import ModelFns, Params

MOST_ROWS = 256  # Trajectories at a time: bounds memory.


class Drawn(NamedTuple):
  """Trajectories of a model.

  Attributes:
    symbols: int32 [N, T].
    laws: float32 [N, K, M]; distribution of the state at each position given the one before it.
    predictions: float32 [N, K, L] by `closing.BASELINES`; distribution of the symbol at each
      position.
  """

  symbols: jax.Array
  laws: jax.Array
  predictions: dict[str, jax.Array]


class Reader(NamedTuple):
  """A language model and its tokens.

  Attributes:
    params: its parameters.
    predictors: by tokenisation; for as many symbols as the largest model has.
  """

  params: Params
  predictors: Mapping[str, in_context.Predictor]


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
  model, places = (initial, transition, emission), jnp.asarray(lengths)
  num_symbols = emission.shape[1]

  def one(key):
    states, symbols = filtering.sample(key, *model, lengths[-1])
    predictions = {
        'viterbi': oracles.predict_next_by_path(*model, symbols, places),
        'filter': oracles.predict_next(*model, symbols, places),
        'ngram2': learners.predict_ngrams(
            symbols, places, max_order=2, num_symbols=num_symbols)[:, 1],
        'chance': jnp.full((len(lengths), num_symbols), 1 / num_symbols),
    }
    return Drawn(symbols, transition[states[places - 1]], predictions)

  return jax.vmap(one)(keys)


@jax.jit
def score(
    predictions: jax.Array, laws: jax.Array, best: jax.Array, emission: jax.Array
) -> jax.Array:
  """The first four of `closing.SCORES`, expected given the true state before the position.

  Args:
    predictions: float32 [N, K, L].
    laws: float32 [N, K, M]; A[x_{t−1}, :].
    best: float32 [N, K, L]; the filter's predictions.
    emission: float32 [M, L]; B.

  Returns:
    float32 [4, N, K].
  """
  accuracy, distance = icl_hmm_published.score(predictions, laws, emission)
  probability = jnp.sum(predictions * (laws @ emission), axis=-1)
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
  asked = np.pad(symbols, ((0, 0), (0, 1)))
  found = predictor(params, asked)[:, list(lengths), :num_symbols]
  return scipy.special.softmax(found.astype(np.float64), axis=-1).astype(np.float32)


def measure_model(
    config: IclHmmCheckpoint, index: int, recorded: published_results.RecordedHmm, reader: Reader
) -> dict[str, np.ndarray]:
  """Runs every method on one model.

  Args:
    config: the config of the study.
    index: index of the model in its file.
    recorded: the model.
    reader: the language model.

  Returns:
    By method, baselines and tokenisations: float64 [2, scores, K], the mean of `closing.SCORES`
    over the trajectories and its standard error.
  """
  model = [np.asarray(table, np.float32)
           for table in (recorded.initial, recorded.transition, recorded.emission)]
  key, parts = rng.stream_key(rng.base_key(config.seed), rng.DATA, index), []

  for begin in range(0, config.num_sequences, MOST_ROWS):
    rows = jnp.arange(begin, min(begin + MOST_ROWS, config.num_sequences))
    with jax.default_matmul_precision('highest'):
      drawn = draw(jax.vmap(jax.random.fold_in, (None, 0))(key, rows), *model,
                   lengths=config.lengths)
    symbols = np.asarray(drawn.symbols)
    predictions = drawn.predictions | {
        kind: predict(predictor, reader.params, symbols, config.lengths, model[2].shape[1])
        for kind, predictor in reader.predictors.items()}
    with jax.default_matmul_precision('highest'):
      parts.append({
          method: np.asarray(score(values, drawn.laws, drawn.predictions['filter'], model[2]))
          for method, values in predictions.items()})

  scores = {method: np.concatenate([part[method] for part in parts], axis=1).astype(np.float64)
            for method in parts[0]}
  # Ties go to the first symbol, so the measured accuracy of chance would not be 1/L.
  scores['chance'][closing.SCORES.index('accuracy')] = 1 / model[2].shape[1]
  return {method: _summary(values, scores) for method, values in scores.items()}


def _summary(values: np.ndarray, scores: Mapping[str, np.ndarray]) -> np.ndarray:
  """Mean and standard error [2, scores, K] of a method's scores [4, N, K] and gaps."""
  gaps = [scores[oracle][0] - values[0] for oracle in ('viterbi', 'filter')]
  both = statistics.mean_and_standard_error(np.moveaxis(np.stack([*values, *gaps]), 1, 0))
  return np.stack(both)


def read_checkpoint(
    config: IclHmmCheckpoint, num_symbols: int, *, overrides: Sequence[str] = ()
) -> Reader:
  """Loads the language model of a directory on the first device.

  Args:
    config: the config of the study.
    num_symbols: number of tokens that each tokenisation needs.
    overrides: config fields given on the command line.

  Returns:
    `Reader`.

  Raises:
    ValueError: one line: the directory has no such model, the model's context is too short, or
      its tokenizer lacks tokens.
  """
  source = checkpoint_sources.read(config.checkpoint_dir, field='config.checkpoint_dir')
  tokenizer = source.load_tokenizer()
  shape = checkpoint_sources.resolve_model(config.model, source, overrides=overrides)
  with checks.within('config.tokenisations; config.num_symbols leaves out larger alphabets'):
    tokenisations = {kind: in_context.tokenise(tokenizer, kind, num_symbols, seed=config.seed)
                     for kind in config.kinds}

  needed = config.max_length + max(len(tokens.prefix_ids) for tokens in tokenisations.values())
  if shape.max_length < needed:
    raise ValueError(f'{config.checkpoint_dir} reads {shape.max_length} tokens, and {needed} are '
                     f'needed for config.max_length of {config.max_length}')
  largest = max(max(tokens.symbol_ids) for tokens in tokenisations.values())
  if largest >= shape.vocab_size:
    raise ValueError(f'the tokenizer of {config.checkpoint_dir} has the token {largest}, the model '
                     f'{shape.vocab_size} of them (config.checkpoint_dir)')

  model = policy_lib.make(shape)
  return Reader(source.load_on_one_device(model), make_predictors(config, model, tokenisations))


def make_predictors(
    config: IclHmmCheckpoint, model: ModelFns, tokenisations: Mapping[str, in_context.Tokenisation]
) -> dict[str, in_context.Predictor]:
  """Predictors by tokenisation; each is compiled once for all alphabet sizes."""
  size = min(config.batch_size, config.num_sequences)
  return {kind: in_context.Predictor(model, tokens, batch_size=size)
          for kind, tokens in tokenisations.items()}


def select(config: IclHmmCheckpoint, models: Sequence[published_results.RecordedHmm]) -> list[int]:
  """Rows of the file that match the config, ascending.

  Raises:
    ValueError: if none matches.
  """
  fits = [
      index for index, model in enumerate(models)
      if config.num_states in (0, model.emission.shape[0])
      and config.num_symbols in (0, model.emission.shape[1])]
  if not fits:
    sizes = ', '.join(f'{states} and {symbols}' for states, symbols in sorted(
        {model.emission.shape for model in models}))
    raise ValueError(
        f'no model of {config.results_file} has config.num_states={config.num_states} and '
        f'config.num_symbols={config.num_symbols} (0 is any): it has {sizes}')
  if 0 < config.max_rows < len(fits):
    fits = [fits[k] for k in np.linspace(0, len(fits) - 1, config.max_rows).round().astype(int)]
  return fits


def measure_all(
    run: launch.Run, stopper: loop.Stopper, models: Mapping[int, published_results.RecordedHmm],
    reader: Reader,
) -> closing.Study:
  """Runs `measure_model` on every model; finished ones are read from disk."""
  config, rows = run.config, []
  with loop.progress(len(models), 'models') as bar:
    for index, model in models.items():
      name = f'{index:04d}_{published_results.fingerprint(model)}.npz'
      rows.append(arms.kept(run.workdir / 'models' / name, functools.partial(
          measure_model, config, index, model, reader)))
      run.save_clock()
      last = {method: np.mean([row[method][0, 0, -1] for row in rows])
              for method in ('viterbi', *config.kinds)}
      bar.update(1, **last)
      stopper.check(f'stopped after {len(rows)} models, saved')
  found = {method: np.stack([row[method] for row in rows])
           for method in (*closing.BASELINES, *config.kinds)}
  return closing.Study(config.lengths, list(models), list(models.values()), config.kinds, found)


def main(run: launch.Run) -> None:
  """Reads every model's trajectories and writes tables, figures and results.json."""
  config = run.config
  models = published_results.read(config.results_file, methods={}, optional=closing.RECORDED)
  chosen = {index: models[index] for index in select(config, models)}
  width = max(model.emission.shape[1] for model in chosen.values())

  reader = read_checkpoint(config, width, overrides=run.overrides)
  with loop.Stopper() as stopper:
    study = measure_all(run, stopper, chosen, reader)
  closing.write(run, study)
