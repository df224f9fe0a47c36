"""Published baselines on hidden Markov models, computed on new samples and compared with the file.

Trajectories are drawn from every model of a CSV file of the published schema (arXiv 2506.07298;
`hmm.published_results`), and each method predicts the symbol after 4, 8, ..., 2048 symbols.
Conventions that reproduce the recorded numbers: position T comes after T symbols; trajectories
start in `pi_0`; Hellinger distances are to the emissions of the true state at the position, not to
the best prediction; ties between symbols go to the first; n-grams fall back to uniform, never to
the unigram.

Given the true state before it, the label's distribution is known: accuracy and distance are
averaged over it exactly instead of over one draw. The expectation matches the file's, with less
noise. Finished models are saved: the same command resumes with the next one.

Baum-Welch starts once, as recorded, and on fewer sequences also five times, with the likeliest fit
selected: this shows how much of its weakness is due to a single start. A separate criterion tests
whether the baselines rank as in the paper.
"""

import concurrent.futures
import contextlib
import functools
import itertools
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.icl_hmm.config import IclHmmPublished
from jaxrl_llm.hmm import filtering, learners, oracles, published_results
from jaxrl_llm.runs import arms, criteria, figures, launch
from jaxrl_llm.training import loop, metrics, rng

LENGTHS = published_results.LENGTHS  # The positions: numbers of symbols seen.
RECORDED_SEQUENCES = 4_096  # Per model, in the published file.
MAX_ROWS = 256  # Trajectories at a time: bounds memory, and fits the caches.
# Upper bounds on mean absolute differences, and the methods that they apply to.
BARS = {'accuracy': 0.02, 'hellinger': 0.008}
BARRED = ('viterbi', 'true_state', 'ngram1', 'ngram2', 'ngram3', 'ngram4')
BEST_OF = 5  # Starts of 'baum_welch_best5'.
# Viterbi and the filter tie if their accuracies differ by at most this.
TIE = 0.005
ORDER = ('ngram2', 'ngram3', 'baum_welch', 'ngram4', 'ngram1')  # After these two, descending.
WINDOWS = {f'window{k}_released': f'p_o_t_given_prev_{k}_o' for k in range(1, 5)}
LABELS = {
    'viterbi': 'Viterbi', 'true_state': 'P(O|H)', 'ngram1': '1-gram', 'ngram2': '2-gram',
    'ngram3': '3-gram', 'ngram4': '4-gram', 'baum_welch': 'Baum-Welch',
    'baum_welch_best5': f'Baum-Welch, best of {BEST_OF}',
    'filter': 'filter', 'filter_released': 'filter, A α as released',
    **{name: f'filter of the last {k + 1}, A α as released' for k, name in enumerate(WINDOWS)},
}
# Optional column of the file. It was computed with A α instead of Aᵀ α: 'filter_released' agrees
# with it, and 'filter' only where A is nearly symmetric.
FILTERS = dict.fromkeys(('filter', 'filter_released'), 'p_o_t_given_prev_all_o')
FITTED = ('baum_welch', 'baum_welch_best5')
SIMULATED = tuple(name for name in LABELS if name not in FITTED)
OPTIONAL = FILTERS | WINDOWS | {'baum_welch_best5': published_results.METHODS['baum_welch']}


def score(
    predictions: jax.Array, state_distribution: jax.Array, emission: jax.Array
) -> jax.Array:
  """Accuracy and Hellinger distance, expected under the distribution of the state at a position.

  Args:
    predictions: float [..., L].
    state_distribution: float [..., M]; A[x_{t−1}, :].
    emission: float [M, L]; B.

  Returns:
    float [2, ...].
  """
  symbols = filtering.dot(state_distribution, emission)
  choice = jnp.argmax(predictions, axis=-1, keepdims=True)
  hits = jnp.take_along_axis(jnp.broadcast_to(symbols, predictions.shape), choice, axis=-1)
  distances = filtering.hellinger(predictions[..., None, :], emission)
  return jnp.stack([hits[..., 0], jnp.sum(state_distribution * distances, axis=-1)])


@jax.jit
def simulate(keys: jax.Array, initial: jax.Array, transition: jax.Array, emission: jax.Array):
  """Trajectories of one model, and the scores of all methods except Baum-Welch.

  Args:
    keys: [N]; PRNG keys, one per trajectory.
    initial: float32 [M]; π.
    transition: float32 [M, M]; A.
    emission: float32 [M, L]; B.

  Returns:
    (observations int32 [N, 2048]; the distribution of the state at each position given the one
    before [N, 10, M]; means over the trajectories by `SIMULATED` [2, methods, 10], accuracy first).
  """
  model, positions = (initial, transition, emission), jnp.asarray(LENGTHS)

  def one(key):
    states, observations = filtering.sample(key, *model, LENGTHS[-1])
    ngrams = learners.predict_ngrams(
        observations, positions, max_order=4, num_symbols=emission.shape[1])
    # In the order of `SIMULATED`.
    predictions = jnp.stack([
        oracles.predict_next_by_path(*model, observations, positions),
        oracles.predict_next_by_state(*model, states, positions),
        *jnp.moveaxis(ngrams, 1, 0),
        oracles.predict_next(*model, observations, positions),
        oracles.predict_next(*model, observations, positions, compat='released'),
        *(oracles.predict_next_by_window(
            *model, observations, positions, window=k + 1, compat='released')
          for k in range(len(WINDOWS))),
    ])

    state_distribution = transition[states[positions - 1]]
    return observations, state_distribution, score(predictions, state_distribution, emission)

  observations, state_distributions, scores = jax.vmap(one)(keys)
  return observations, state_distributions, jnp.mean(scores, axis=0)


@functools.partial(jax.jit, static_argnames=('num_lengths', 'restarts', 'num_states', 'width'))
def draw_starts(
    keys: jax.Array, num_symbols: jax.Array, *, num_lengths: int, restarts: int, num_states: int,
    width: int,
) -> learners.Parameters:
  """Starts of Baum-Welch [num_lengths, restarts, N, ...] for trajectories with `keys` [N].

  Emissions are `width` wide, and 0 beyond `num_symbols`. They stay 0 there, so that models with
  different numbers of symbols share compiled code.
  """
  def one(position, restart, key):
    key = jax.random.fold_in(jax.random.fold_in(key, position), restart)
    start = learners.random_parameters(key, num_states=num_states, num_symbols=width)
    emission = jnp.where(jnp.arange(width) < num_symbols, start.emission, 0.0)
    return start._replace(emission=emission / jnp.sum(emission, axis=1, keepdims=True))

  each = jax.vmap(jax.vmap(jax.vmap(one, (None, None, 0)), (None, 0, None)), (0, None, None))
  return each(jnp.arange(num_lengths), jnp.arange(restarts), keys)


@functools.partial(jax.jit, static_argnames='steps')
def fit(
    starts: learners.Parameters, observations: jax.Array, *, steps: int
) -> learners.Parameters:
  """Fits Baum-Welch to each of N trajectories [N, T] from starts [restarts, N, ...]: [N, ...]."""
  fit_best = functools.partial(learners.fit_best, max_steps=steps)
  return jax.vmap(fit_best, (1, 0))(starts, observations).parameters


@jax.jit
def score_fits(
    fits: learners.Parameters,
    observations: jax.Array,
    state_distributions: jax.Array,
    emission: jax.Array,
) -> jax.Array:
  """Scores [2, 10, N] of fits [10, N, ...] to the beginnings of N trajectories."""
  def one(position, k, fitted, observations, state_distributions):
    prediction = oracles.predict_next(*fitted, observations, position[None])[0]
    return score(prediction, state_distributions[k], emission)

  each = jax.vmap(jax.vmap(one, (None, None, 0, 0, 0)), (0, 0, 0, None, None))
  scores = each(
      jnp.asarray(LENGTHS), jnp.arange(len(LENGTHS)), fits, observations, state_distributions)
  return jnp.moveaxis(scores, -1, 0)


def learn(
    config: IclHmmPublished,
    keys: jax.Array,
    observations: jax.Array,
    state_distributions: jax.Array,
    emission: np.ndarray,
    *,
    restarts: int,
    width: int,
) -> np.ndarray:
  """Scores the next-symbol predictions of Baum-Welch, fitted to the beginning of each trajectory.

  Args:
    config: the config of the study.
    keys: [N]; PRNG keys of the starts.
    observations: int32 [N, 2048].
    state_distributions: float32 [N, 10, M]; distribution of the state at each position given the
      one before.
    emission: float [M, L]; B, used only for the scores.
    restarts: starts per fit; the first does not depend on their number.
    width: number of symbols to compile for, at least L.

  Returns:
    Scores of the trajectories [2, 10, N], accuracy first.
  """
  num_states, num_symbols = emission.shape
  starts = draw_starts(
      keys, num_symbols, num_lengths=len(LENGTHS), restarts=restarts, num_states=num_states,
      width=width)

  fits = [
      fit(jax.tree.map(lambda leaf, k=k: leaf[k], starts), observations[:, :length],
          steps=config.baum_welch_steps)
      for k, length in enumerate(LENGTHS)]
  wide = np.pad(emission, ((0, 0), (0, width - num_symbols))).astype(np.float32)
  return np.asarray(score_fits(
      jax.tree.map(lambda *leaves: jnp.stack(leaves), *fits), observations, state_distributions,
      wide))


def simulate_model(
    config: IclHmmPublished, index: int, recorded: published_results.RecordedHmm, *, width: int
) -> dict[str, np.ndarray]:
  """Runs every method on one model.

  Args:
    config: the config of the study.
    index: index of the model in its file.
    recorded: the model.
    width: number of symbols to compile Baum-Welch for, at least L; its starts depend on it.

  Returns:
    {method: float64 [2, 10]}: mean accuracy and Hellinger distance by position; 'baum_welch_same'
    is 'baum_welch' restricted to the sequences of 'baum_welch_best5'.
  """
  model = [np.asarray(table, np.float32)
           for table in (recorded.initial, recorded.transition, recorded.emission)]
  base, rows = rng.base_key(config.seed), np.arange(config.num_sequences)

  def keys(stream, rows):
    return jax.vmap(jax.random.fold_in, (None, 0))(
        rng.stream_key(base, stream, index), jnp.asarray(rows))

  parts, trajectories, total = -(-len(rows) // MAX_ROWS), [], 0
  for part in np.array_split(rows, parts):
    *drawn, scores = simulate(keys(rng.DATA, part), *model)
    total = total + np.asarray(scores, np.float64) * len(part) / len(rows)
    if part[0] < config.baum_welch_sequences:
      trajectories.append(drawn)

  observations, state_distributions = (
      jnp.concatenate(pieces)[:config.baum_welch_sequences] for pieces in zip(*trajectories))

  def fitted_scores(count, restarts):
    return np.asarray(learn(
        config, keys(rng.INIT, rows[:count]), observations[:count], state_distributions[:count],
        recorded.emission, restarts=restarts, width=width), np.float64)

  few = config.baum_welch_best5_sequences
  single = fitted_scores(config.baum_welch_sequences, 1)
  fitted = {'baum_welch': single, 'baum_welch_same': single[..., :few],
            'baum_welch_best5': fitted_scores(few, BEST_OF)}
  return dict(zip(SIMULATED, np.moveaxis(total, 1, 0))) | {
      name: scores.mean(axis=-1) for name, scores in fitted.items()}


def simulate_all(
    run: launch.Run, models: Sequence[published_results.RecordedHmm]
) -> list[dict[str, np.ndarray]]:
  """Runs `simulate_model` on all models in parallel; finished ones are read from disk."""
  config, width = run.config, max(model.emission.shape[1] for model in models)

  def one(index: int) -> dict[str, np.ndarray]:
    fingerprint = published_results.fingerprint(models[index])
    return arms.finished(
        run.workdir / 'models' / f'{index:04d}_{fingerprint}.npz',
        arms.identity_of(run.experiment, config, row=index, model=fingerprint, width=width),
        functools.partial(simulate_model, config, index, models[index], width=width),
        commit=run.commit)

  results = []
  # Threads: compiled code runs without the interpreter lock.
  with (loop.progress(len(models), 'models') as bar,
        concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool):
    futures = [pool.submit(one, index) for index in range(len(models))]
    try:
      for future in futures:
        results.append(future.result())
        cells = compare(models[:len(results)], results)
        bar.update(1, **{name: max(mean_differences(cells[method])[f'{name}_mae']
                                   for method in BARRED) for name in BARS})
        run.save_clock()
    finally:
      pool.shutdown(cancel_futures=True)
  return results


def compare(
    models: Sequence[published_results.RecordedHmm], results: Sequence[dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
  """Simulated and recorded numbers of each method in the file.

  Args:
    models: recorded models.
    results: simulated results, one per model.

  Returns:
    {method: float64 [2 (simulated, recorded), 2 (accuracy, Hellinger distance), models, 10]}.
  """
  return {
      method: np.stack([
          np.stack([result[method] for result in results], axis=1),
          np.stack([[model.accuracy[method] for model in models],
                    [model.hellinger[method] for model in models]])])
      for method in LABELS if method in models[0].accuracy}


def mean_differences(cells: np.ndarray) -> dict[str, float]:
  """Differences between simulated and recorded numbers.

  Args:
    cells: float64 [2, 2, models, 10], as from `compare`; recorded ones may be NaN.

  Returns:
    For 'accuracy' and 'hellinger': `<name>_mae`, `<name>_bias` (simulated minus recorded),
    `<name>_worst` (NaN if nothing is compared) and `<name>_cells`, the number of comparisons.
  """
  numbers = {}
  for name, (simulated, recorded) in zip(BARS, np.swapaxes(cells, 0, 1)):
    differences = (simulated - recorded)[np.isfinite(recorded)]
    some = differences.size > 0
    numbers[f'{name}_mae'] = float(np.abs(differences).mean()) if some else math.nan
    numbers[f'{name}_bias'] = float(differences.mean()) if some else math.nan
    numbers[f'{name}_worst'] = float(np.abs(differences).max()) if some else math.nan
    numbers[f'{name}_cells'] = int(differences.size)
  return numbers


def baseline_order(results: Sequence[Mapping[str, np.ndarray]]) -> criteria.Finding:
  """Tests whether the baselines rank as in the paper, by mean accuracy over the models.

    Viterbi ~ filter > 2-gram > 3-gram > Baum-Welch > 4-gram > 1-gram    after 2048 symbols

  Args:
    results: simulated results, one per model.

  Returns:
    The criterion, (f) of the reproduction.
  """
  names = ('viterbi', 'filter', *ORDER)
  means = {name: float(np.mean([result[name][0, -1] for result in results])) for name in names}
  best = means['viterbi'], means['filter']
  falling = [min(best), *(means[name] for name in ORDER)]
  holds = abs(best[0] - best[1]) <= TIE and all(a > b for a, b in itertools.pairwise(falling))
  claim = (f'after {LENGTHS[-1]:,} symbols the accuracies of Viterbi and the filter are within '
           f'{TIE}, and above {", ".join(LABELS[name] for name in ORDER)}, in this order')
  return criteria.Finding('f', claim, holds, ', '.join(
      f'{LABELS[name]} {mean:.4f}' for name, mean in means.items()))


def summarise(
    models: Sequence[published_results.RecordedHmm],
    cells: dict[str, np.ndarray],
    results: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, float]:
  """Headline numbers by flat name; a gain is five starts minus one on the same sequences."""
  numbers = {'num_models': len(models)}
  for method, values in cells.items():
    numbers |= {f'published/{method}/{name}': value
                for name, value in mean_differences(values).items()}
  numbers['published/within_bars'] = int(all(
      numbers[f'published/{method}/{name}_mae'] <= bar
      for method in BARRED for name, bar in BARS.items()))
  numbers['published/order_holds'] = int(baseline_order(results).holds)

  gains = np.mean([result['baum_welch_best5'] - result['baum_welch_same'] for result in results],
                  axis=(0, 2))
  numbers |= {f'published/baum_welch_best5/{name}_gain': float(gain)
              for name, gain in zip(BARS, gains)}

  errors = [published_results.metadata_errors(model) for model in models]
  return numbers | {f'metadata/{name}_error': max(error[name] for error in errors)
                    for name in errors[0]}


def _means(values: np.ndarray) -> np.ndarray:
  """Means over the models [2, 2, 10], of the cells with finite recorded numbers."""
  known = np.broadcast_to(np.isfinite(values[1]), values.shape)
  total = np.where(known, values, 0.0).sum(axis=2)
  return total / np.where(known.any(axis=2), known.sum(axis=2), np.nan)


def write_metrics(run: launch.Run, cells: dict[str, np.ndarray]) -> None:
  """Writes means over the models by length to metrics.jsonl; the step is the symbols seen."""
  means = {method: _means(values) for method, values in cells.items()}
  with contextlib.closing(metrics.MetricsWriter(run.workdir)) as writer:
    writer.truncate([])
    for k, length in enumerate(LENGTHS):
      writer.write(length, {
          f'{kind}/{method}/{name}': mean[i, j, k]
          for method, mean in means.items()
          for i, kind in enumerate(('simulated', 'recorded'))
          for j, name in enumerate(BARS) if np.isfinite(mean[i, j, k])})


def write_figure(run: launch.Run, cells: dict[str, np.ndarray]) -> pathlib.Path:
  """Plots simulated and recorded means by length, and a scatter of all cells; writes a CSV."""
  path = run.workdir / 'figures' / 'published.png'
  shown = [method for method in cells if method not in {*FILTERS, *WINDOWS}]
  with figures.figure(path, 3, title='Published baselines, simulated again') as panels:
    colours = dict(zip(shown, figures.palette()))
    for j, (axes, name) in enumerate(zip(panels, ('accuracy', 'Hellinger distance'))):
      for method in shown:
        simulated, recorded = _means(cells[method])[:, j]
        axes.plot(LENGTHS, simulated, color=colours[method], label=LABELS[method])
        axes.plot(LENGTHS, recorded, 'o', color=colours[method], ms=4, mfc='none')
      axes.set(xscale='log', xlabel='symbols seen', ylabel=f'{name}, mean over models',
               title=f'{name}: lines simulated, rings recorded')
    panels[0].legend(frameon=False, fontsize=8, ncols=2)

    scatter = panels[2]
    for method in shown:
      simulated, recorded = cells[method][:, 0]
      scatter.plot(recorded.ravel(), simulated.ravel(), '.', ms=3, alpha=0.4, mew=0,
                   color=colours[method])
    scatter.axline((0, 0), slope=1, color='0.4', lw=0.8)
    scatter.set(xlabel='recorded', ylabel='simulated', title='accuracy by model and length')

  rows = ((index, method, length, *values[:, 0, index, k], *values[:, 1, index, k])
          for method, values in cells.items()
          for index in range(values.shape[2]) for k, length in enumerate(LENGTHS))
  metrics.write_csv_atomic(path.with_suffix('.csv'), [
      'model', 'method', 'symbols_seen', 'accuracy_simulated', 'accuracy_recorded',
      'hellinger_simulated', 'hellinger_recorded'], rows)
  return path


def table(
    numbers: dict[str, float], cells: dict[str, np.ndarray], findings: Sequence[criteria.Finding]
) -> str:
  """Report: differences of each method and its means at three lengths, criteria and verdict."""
  some = (0, LENGTHS.index(64), len(LENGTHS) - 1)
  rows = []
  for method, values in cells.items():
    means = _means(values)[:, 0]
    rows.append([
        LABELS[method],
        *(f'{numbers[f"published/{method}/{name}_{kind}"]:.4f}'
          for name in BARS for kind in ('mae', 'bias')),
        *(f'{means[0, k]:.3f} / {means[1, k]:.3f}' for k in some)])

  header = ['method', *(f'{name} {what}' for name in ('accuracy', 'Hellinger')
                        for what in ('mean absolute difference', 'bias')),
            *(f'accuracy at {LENGTHS[k]}, ours / recorded' for k in some)]
  return (f'{figures.markdown_table(header, rows)}\n\n{criteria.markdown(findings)}\n\n'
          f'{verdict(numbers, cells)}')


def verdict(numbers: dict[str, float], cells: dict[str, np.ndarray]) -> str:
  """Summary of the numbers as a paragraph."""
  worst = {name: max(numbers[f'published/{method}/{name}_mae'] for method in BARRED)
           for name in BARS}
  bias = max(abs(numbers[f'published/{method}/accuracy_bias']) for method in BARRED)
  recorded = np.stack([cells[method][1, 0] for method in BARRED])
  # E|x| of a normal variable with the variance of a fraction over that many labels.
  noise = np.nanmean(np.sqrt(2 / math.pi * recorded * (1 - recorded) / RECORDED_SEQUENCES))

  met = 'met' if numbers['published/within_bars'] else 'NOT met'
  text = (
      f'Criterion for Viterbi, P(O|H) and the n-grams, mean absolute differences of at most '
      f'{BARS["accuracy"]} in accuracy and {BARS["hellinger"]} in Hellinger distance: {met} (at '
      f'most {worst["accuracy"]:.4f} and {worst["hellinger"]:.4f}; bias of accuracy at most '
      f'{bias:.4f}). Counting {RECORDED_SEQUENCES:,} labels, as in the published file, alone '
      f'gives a difference of {noise:.4f} in accuracy. The likeliest of {BEST_OF} starts changes '
      f'Baum-Welch by {numbers["published/baum_welch_best5/accuracy_gain"]:+.4f} in accuracy and '
      f'{numbers["published/baum_welch_best5/hellinger_gain"]:+.4f} in Hellinger distance against '
      'the first of them on the same sequences; the file has one start.')

  if all(name in cells for name in FILTERS):
    true, released = (numbers[f'published/{name}/accuracy_bias'] for name in FILTERS)
    text += (f' The recorded oracle of all observations differs by {abs(true):.4f} on average from '
             f'the filter, and by {abs(released):.4f} from one that propagates with A α instead '
             'of Aᵀ α, as in the released code.')
  return text


def main(run: launch.Run) -> None:
  """Simulates every model of the file and writes the comparison."""
  config = run.config
  models = published_results.read(config.results_file, optional=OPTIONAL)
  results = simulate_all(run, models)
  cells = compare(models, results)
  numbers = summarise(models, cells, results)

  write_metrics(run, cells)
  figure = write_figure(run, cells)
  text = table(numbers, cells, [baseline_order(results)])
  metrics.write_text_atomic(run.table_path, text + '\n')
  drawn = len(models) * config.num_sequences * LENGTHS[-1]
  launch.write_results(run, {
      **numbers, 'num_sequences': config.num_sequences, 'sampled_tokens/simulation': drawn})
  print(f'\n{text}\n\n{config.note}\nfigure: {figure}\nresults: {run.results_path}')
