"""Report of a language model on HMMs: tables, figures, every number, results.json."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.icl_hmm import report as icl_hmm_report
from experiments.icl_hmm.report import TOLERANCES, Group
from jaxrl_llm.evaluation import statistics
from jaxrl_llm.hmm import published_results
from jaxrl_llm.hmm.published_results import RecordedHmm
from jaxrl_llm.runs import figures, launch
from jaxrl_llm.tables import render
from jaxrl_llm.training import metrics

# Distances are to the emissions of the true state, and to the filter's prediction. Gaps are an
# oracle's accuracy minus the method's, on the same trajectories.
SCORES = ('accuracy', 'probability', 'hellinger', 'hellinger_filter', 'gap_viterbi', 'gap_filter')
BASELINES = ('viterbi', 'filter', 'ngram2', 'chance')
LABELS = {
    'viterbi': 'Viterbi', 'filter': 'filter', 'ngram2': '2-gram', 'chance': 'chance',
    'abc': 'letters', '123': 'numbers', 'random': 'random tokens'}
# Our names -> optional columns of the file: Baum-Welch fitted to the symbols seen, and language
# models, which read letters.
RECORDED_LEARNERS = {
    'baum_welch': 'bw',
    'qwen2.5_0.5b': 'llm_qwen_0_5b', 'qwen2.5_1.5b': 'llm_qwen_1_5b', 'qwen2.5_3b': 'llm_qwen_3b',
    'qwen2.5_7b': 'llm_qwen_7b', 'llama3.2_1b': 'llm_llama_1b', 'llama3.2_3b': 'llm_llama_3b',
    'llama3.1_8b': 'llm_llama_8b'}
RECORDED = {'viterbi': 'viterbi', 'ngram2': '2-gram', **RECORDED_LEARNERS}


class Study(NamedTuple):
  """Measurements of a study.

  Attributes:
    lengths: the K positions: numbers of symbols seen.
    rows: [R]; row numbers of the file, from 0.
    models: the models of these rows.
    kinds: the tokenisations.
    scores: by method, baselines first: float64 [R, 2, scores, K], means over trajectories and
      their standard errors.
  """

  lengths: tuple[int, ...]
  rows: Sequence[int]
  models: Sequence[RecordedHmm]
  kinds: Sequence[str]
  scores: Mapping[str, np.ndarray]

  @property
  def predictors(self) -> tuple[str, ...]:
    """The methods to compare with the oracles: the tokenisations and the bigram."""
    return (*self.kinds, 'ngram2')


def shares(models: Sequence[RecordedHmm]) -> tuple[np.ndarray, np.ndarray]:
  """(H_A / log2 M, H_B / log2 L), [R] each, from the recorded entropies in bits."""
  sizes = np.log2([model.emission.shape for model in models])
  return (np.array([model.transition_entropy for model in models]) / sizes[:, 0],
          np.array([model.emission_entropy for model in models]) / sizes[:, 1])


def groups_of(study: Study) -> list[Group]:
  """Groups of models by λ2 and by the entropies."""
  lambda2 = np.array([model.lambda2 for model in study.models])
  return icl_hmm_report.difficulty_groups(lambda2, *shares(study.models))


def recorded(study: Study, score: str = 'accuracy') -> dict[str, np.ndarray]:
  """Scores that the file records for all models, at the common lengths.

  Args:
    study: the measurements.
    score: 'accuracy' or 'hellinger'.

  Returns:
    [R, K'] by method.
  """
  count = min(len(study.lengths), len(published_results.LENGTHS))
  by_model = [{'accuracy': model.accuracy, 'hellinger': model.hellinger}[score]
              for model in study.models]
  scores = {name: np.stack([of_model[name][:count] for of_model in by_model])
            for name in RECORDED if name in by_model[0]}
  return {name: values for name, values in scores.items() if np.isfinite(values).all()}


def convergence(
    study: Study, groups: Sequence[Group], oracle: str
) -> dict[str, dict[str, dict[str, float]]]:
  """`icl_hmm_report.convergence` to an oracle by predictor, with the models given, not sampled."""
  score = SCORES.index(f'gap_{oracle}')
  return {
      name: icl_hmm_report.convergence(
          study.lengths, study.scores[name][:, 0, score], groups,
          errors=study.scores[name][:, 1, score, -1])
      for name in study.predictors}


def recorded_convergence(
    study: Study, groups: Sequence[Group]
) -> dict[str, dict[str, dict[str, float]]]:
  """The same for the recorded accuracies and the file's own Viterbi; errors are over models."""
  accuracy = recorded(study)
  if 'viterbi' not in accuracy:
    return {}
  lengths = study.lengths[: accuracy['viterbi'].shape[1]]
  return {
      name: icl_hmm_report.convergence(lengths, accuracy['viterbi'] - accuracy[name], groups)
      for name in RECORDED_LEARNERS if name in accuracy}


def numbers(study: Study) -> dict[str, float]:
  """The flat numbers of results.json.

  `eval/<method>/<score>/T<length>` are means over the models, `<score>_se` their standard errors
  over trajectories, with the models given.

  Args:
    study: the measurements.

  Returns:
    Numbers by name; without T(ε) where it is not reached.
  """
  flat: dict[str, float] = {'num_models': len(study.models)}
  for method, values in study.scores.items():
    means = values[:, 0].mean(axis=0)
    errors = statistics.error_of_mean(values[:, 1])
    for name, mean, error in list(zip(SCORES, means, errors))[:4]:
      for k, length in enumerate(study.lengths):
        flat[f'eval/{method}/{name}/T{length}'] = float(mean[k])
        flat[f'eval/{method}/{name}_se/T{length}'] = float(error[k])

  groups = groups_of(study)
  for oracle in ('viterbi', 'filter'):
    for method, by_group in convergence(study, groups, oracle).items():
      prefix = f'eval/{method}' if oracle == 'viterbi' else f'eval/{method}/to_filter'
      flat |= icl_hmm_report.flat_convergence(prefix, by_group)

  for method in study.predictors:
    last = study.scores[method][:, 0, SCORES.index('gap_viterbi'), -1]
    flat |= {f'eval/{method}/models_within_{tolerance:g}': float(np.mean(last <= tolerance))
             for tolerance in TOLERANCES}

  for score in ('accuracy', 'hellinger'):
    for method, values in recorded(study, score).items():
      for length, mean in zip(study.lengths, values.mean(axis=0)):
        flat[f'recorded/{method}/{score}/T{length}'] = float(mean)
  for method, by_group in recorded_convergence(study, groups).items():
    flat |= icl_hmm_report.flat_convergence(f'recorded/{method}', by_group)
  return flat


def tables(study: Study, flat: Mapping[str, float]) -> str:
  """Tables of accuracy by length, the other scores of the language model, ε and T(ε)."""
  learners = [name for name in recorded(study) if name in RECORDED_LEARNERS]
  parts = [
      figures.markdown_table(
          [f'{title} at T', *methods],
          [[length, *(_percent(flat, f'{prefix}/{method}', length) for method in keys)]
           for length in study.lengths])
      for title, prefix, keys, methods in (
          ('accuracy (%)', 'eval', study.scores, map(LABELS.get, study.scores)),
          ('recorded accuracy (%)', 'recorded', learners, learners)) if keys]

  names = {'probability': 'p(label)', 'hellinger': 'H to B[x]', 'hellinger_filter': 'H to filter'}
  shown = ('viterbi', 'filter', *study.predictors)
  parts += [figures.markdown_table(
      [f'{title} at T', *(LABELS[method] for method in shown)],
      [[length, *(f'{flat[f"eval/{method}/{name}/T{length}"]:.3f}' for method in shown)]
       for length in study.lengths]) for name, title in names.items()]

  groups = groups_of(study)
  to_filter = {LABELS[name]: x for name, x in convergence(study, groups, 'filter').items()}
  for oracle, series in (('Viterbi', _all_convergence(study, groups)), ('the filter', to_filter)):
    parts += [f'Accuracy gap to {oracle} after {study.lengths[-1]} symbols (ε), and the length '
              'from which on it stays small:', icl_hmm_report.convergence_table(groups, series)]
  return '\n\n'.join(parts)


def _all_convergence(study: Study, groups: Sequence[Group]):
  """`convergence` to Viterbi and `recorded_convergence` by label."""
  return {
      **{LABELS[name]: by_group
         for name, by_group in convergence(study, groups, 'viterbi').items()},
      **{f'{name}, recorded': by_group
         for name, by_group in recorded_convergence(study, groups).items()}}


def _percent(flat: Mapping[str, float], prefix: str, length: int) -> str:
  """Accuracy in percent, with its standard error if known; '-' if not recorded."""
  value, error = (flat.get(f'{prefix}/accuracy{end}/T{length}') for end in ('', '_se'))
  if value is None:
    return '-'
  return render.with_error(100 * value, None if error is None else 100 * error, '.1f')


# --- Every number, as CSV.


def write_rows(run: launch.Run, study: Study) -> None:
  """Writes rows.csv, ε and T(ε) per model and predictor, and scores.csv, all scores by length."""
  columns = ['row', 'M', 'L', 'lambda2', 'H_A', 'H_B', 'H_A_share', 'H_B_share']
  of_model = [
      (row, *model.emission.shape, model.lambda2, model.transition_entropy, model.emission_entropy,
       *both) for row, model, *both in zip(study.rows, study.models, *shares(study.models))]
  metrics.write_csv_atomic(run.workdir / 'rows.csv', [
      *columns, 'predictor', 'accuracy', 'final_gap', 'final_gap_se', 'final_gap_filter',
      'final_gap_filter_se', *(f'T_{tolerance:g}' for tolerance in TOLERANCES)],
      _of_rows(study, of_model))

  metrics.write_csv_atomic(
      run.workdir / 'scores.csv',
      ['row', 'method', 'T', *SCORES, *(f'{name}_se' for name in SCORES)],
      ((row, method, length, *values[index, 0, :, k], *values[index, 1, :, k])
       for method, values in study.scores.items() for index, row in enumerate(study.rows)
       for k, length in enumerate(study.lengths)))


def _of_rows(study: Study, of_model: Sequence[tuple]) -> Iterator[tuple]:
  accuracy, viterbi, best = (SCORES.index(x) for x in ('accuracy', 'gap_viterbi', 'gap_filter'))

  def lengths_reached(gaps):
    lengths = study.lengths[: len(gaps)]
    return (icl_hmm_report.reached(lengths, gaps, tolerance) for tolerance in TOLERANCES)

  for method in study.predictors:
    for described, (mean, error) in zip(of_model, study.scores[method]):
      yield (*described, method, mean[accuracy, -1], mean[viterbi, -1], error[viterbi, -1],
             mean[best, -1], error[best, -1], *lengths_reached(mean[viterbi]))

  of_file = recorded(study)
  for name in RECORDED_LEARNERS:
    if name in of_file and 'viterbi' in of_file:
      gaps_by_model = of_file['viterbi'] - of_file[name]
      for described, values, gaps in zip(of_model, of_file[name], gaps_by_model):
        yield (*described, f'recorded_{name}', values[-1], gaps[-1], '', '', '',
               *lengths_reached(gaps))


def write_metrics(run: launch.Run, study: Study, flat: Mapping[str, float]) -> None:
  """Writes means over the models by length to metrics.jsonl; the step is the symbols seen."""
  with contextlib.closing(metrics.MetricsWriter(run.workdir)) as writer:
    writer.truncate([])
    for length in study.lengths:
      writer.write(length, {name.removesuffix(f'/T{length}'): value for name, value in flat.items()
                            if name.endswith(f'/T{length}')})


# --- Figures.


def write_figures(run: launch.Run, study: Study, flat: Mapping[str, float]) -> None:
  """Plots accuracy by length, ε by each measure of difficulty, and ε and T(ε) by group."""
  name, groups = f'{len(study.models)} published HMMs', groups_of(study)
  _curves(run, study, flat, f'Next-symbol prediction, {name}')
  _scatter(run, study)
  icl_hmm_report.convergence_figure(
      run.workdir / 'figures' / 'convergence.png', groups, _all_convergence(study, groups),
      lengths=study.lengths, title=f'Accuracy gap to Viterbi, {name}')


def _curves(run: launch.Run, study: Study, flat: Mapping[str, float], title: str) -> None:
  """Plots accuracy and distances by length; the data are in scores.csv."""
  def values(method, score):
    return np.array([flat[f'eval/{method}/{score}/T{length}'] for length in study.lengths])

  labels = ('accuracy', 'Hellinger distance to B of the true state',
            'Hellinger distance to the filter')
  with figures.figure(run.workdir / 'figures' / 'by_length.png', 3, title=title) as panels:
    for axes, score, label in zip(panels, ('accuracy', 'hellinger', 'hellinger_filter'), labels):
      for index, method in enumerate(study.scores):
        mean, error = values(method, score), values(method, f'{score}_se')
        line, = axes.plot(study.lengths, mean, marker='os^Dv<>'[index], ms=4, lw=1.4,
                          ls='--' if method in BASELINES else '-', label=LABELS[method])
        axes.fill_between(study.lengths, mean - error, mean + error, alpha=0.15, lw=0,
                          color=line.get_color())
      axes.set_xscale('log', base=2)
      axes.set(xlabel='symbols seen', ylabel=label)

    for name, accuracy in recorded(study).items():
      if name in RECORDED_LEARNERS:
        panels[0].plot(study.lengths[: accuracy.shape[1]], accuracy.mean(axis=0), lw=0.8, ls=':',
                       label=f'{name}, recorded')
    panels[0].legend(frameon=False, fontsize=7, ncols=2)


def _scatter(run: launch.Run, study: Study) -> None:
  """Plots each model's ε against its entropies and second eigenvalue; the data are in rows.csv."""
  score = SCORES.index('gap_viterbi')
  lambda2 = np.array([model.lambda2 for model in study.models])
  measures = dict(zip(('H_A / log2 M', 'H_B / log2 L', 'λ2'), (*shares(study.models), lambda2)))
  path = run.workdir / 'figures' / 'gap_by_difficulty.png'
  title = f'Accuracy gap to Viterbi (ε) of each model after {study.lengths[-1]} symbols'
  with figures.figure(path, 3, title=title) as panels:
    for axes, (label, values) in zip(panels, measures.items()):
      for index, method in enumerate(study.predictors):
        mean, error = study.scores[method][:, :, score, -1].T
        axes.errorbar(values + 0.012 * index, mean, error, fmt='os^Dv'[index], ms=4, lw=0.8,
                      alpha=0.6, label=LABELS[method])
      axes.axhline(0, color='0.5', lw=0.8)
      axes.set(xlabel=label, ylabel='accuracy of Viterbi minus the method', xlim=(-0.05, 1.05))
    panels[0].legend(frameon=False, fontsize=8)


def write(run: launch.Run, study: Study) -> None:
  """Writes all files and results.json, and prints the tables.

  Args:
    run: the run.
    study: the measurements.
  """
  config, flat = run.config, numbers(study)
  write_metrics(run, study, flat)
  write_rows(run, study)
  write_figures(run, study, flat)

  caption = (
      f'{len(study.models)} models of {pathlib.Path(config.results_file).name}, '
      f'{config.num_sequences} trajectories '
      f'each, read by {config.checkpoint_dir}; seed {config.seed}. Errors are over trajectories, '
      'those of recorded ε over models. T(ε) is that of the mean gap of a group; rows.csv has each '
      'model. H_A is the entropy rate of the hidden chain, H_B the entropy of an emission, in '
      f'bits. {config.note}').strip()
  text = f'{tables(study, flat)}\n\n{caption}'
  metrics.write_text_atomic(run.table_path, text + '\n')

  launch.write_results(run, {
      **flat, 'num_sequences': config.num_sequences, 'note': config.note,
      'sampled_tokens/simulation':
          len(study.models) * config.num_sequences * config.max_length})
  print(f'\n{text}\n\nwritten to {run.workdir}: results.json, table.md, rows.csv, scores.csv, '
        'figures/')
