"""Report of a run of learning HMMs in context: table, figures, criteria and results.json.

Two numbers measure how far a predictor is from one that knows the HMM: ε, the accuracy gap at the
greatest length, and T(ε), the length from which on the gap is at most a given ε. Both are split by
what makes an HMM hard: its second eigenvalue, and the entropies of A and of B as shares of their
maxima for M states and L symbols.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxrl_llm.evaluation import statistics
from jaxrl_llm.hmm import published_results, random_models
from jaxrl_llm.runs import criteria, figures, launch
from jaxrl_llm.runs.criteria import Finding
from jaxrl_llm.tables import render
from jaxrl_llm.training import metrics

METHODS = {'icl': 'in context', 'filter': 'filter', 'bigram': 'bigram', 'baum_welch': 'Baum-Welch'}
# Ranges of the second eigenvalue: how slowly the chain forgets.
GROUPS = ((0.0, 0.5), (0.5, 0.75), (0.75, 0.9), (0.9, 1.0))
TOLERANCE = 0.02  # ε of T(ε), in accuracy.
TOLERANCES = (0.01, 0.02, 0.05)
_THIRDS = (0.0, 1 / 3, 2 / 3, 1.0)


class Group(NamedTuple):
  """HMMs of similar difficulty.

  Attributes:
    name: name in results.json; '' for all HMMs.
    label: name in tables and figures.
    rows: bool [N]; which HMMs are in the group.
  """

  name: str
  label: str
  rows: np.ndarray


class HeldOut(NamedTuple):
  """Measurements on each held-out HMM.

  Attributes:
    lengths: int [K]; symbols seen.
    scores: by method, {'accuracy', 'nll', 'hellinger'}: float [N, K] each.
    models: the N HMMs.
    baum_welch: like a method of `scores`, for the first HMMs and lengths up to 64; may be None.
    recorded: like `scores`, for published HMMs, each a mean over trajectories; may be None.
    recorded_models: [R]; their rows of the published file.
  """

  lengths: np.ndarray
  scores: dict[str, dict[str, np.ndarray]]
  models: random_models.HmmBatch
  baum_welch: dict[str, np.ndarray] | None
  recorded: dict[str, dict[str, np.ndarray]] | None = None
  recorded_models: Sequence[published_results.RecordedHmm] = ()


def _mean(values: np.ndarray) -> np.ndarray:
  return values.mean(axis=0)


def _error(values: np.ndarray) -> np.ndarray:
  return statistics.mean_and_standard_error(values)[1]


def _gap(held_out: HeldOut) -> np.ndarray:
  """Accuracy of the filter minus accuracy in context, [N, K]."""
  return held_out.scores['filter']['accuracy'] - held_out.scores['icl']['accuracy']


def difficulty_groups(
    lambda2: np.ndarray, transition_share: np.ndarray, emission_share: np.ndarray
) -> list[Group]:
  """Groups all HMMs, then by ranges of λ2, of H_A / log2 M and of H_B / log2 L.

  A range includes its lower end. The shares are in [0, 1] because entropies are in bits: the
  paper's figures divide bits by natural logarithms, so that theirs end at 1.44.

  Args:
    lambda2: float [N]; the second eigenvalue.
    transition_share: float [N]; the entropy rate of A over log2 M.
    emission_share: float [N]; the entropy of B's rows over log2 L.

  Returns:
    The non-empty groups.
  """
  edges = (GROUPS[0][0], *(high for _, high in GROUPS))
  groups = [Group('', 'all', np.ones(len(lambda2), bool))]
  for name, label, values, ends in (
      ('lambda2', 'λ2', lambda2, edges), ('H_A', 'H_A/log2 M', transition_share, _THIRDS),
      ('H_B', 'H_B/log2 L', emission_share, _THIRDS)):
    part = np.searchsorted(ends[1:-1], values, side='right')
    groups += [
        Group(f'{name}_{low:.2g}-{high:.2g}', f'{label} {low:.2g}-{high:.2g}', part == index)
        for index, (low, high) in enumerate(zip(ends, ends[1:])) if (part == index).any()]
  return groups


def _all_groups(held_out: HeldOut) -> list[Group]:
  models = held_out.models
  num_states, num_symbols = models.emission.shape[1:]
  return difficulty_groups(
      models.lambda2, _entropy_rates(models.transition) / np.log2(num_states),
      models.emission_entropy / np.log2(num_symbols))


def _groups(held_out: HeldOut) -> dict[str, np.ndarray]:
  """The HMMs in each non-empty range of λ2."""
  return {group.label: group.rows for group in _all_groups(held_out)
          if group.name.startswith('lambda2')}


def reached(lengths: Sequence[int], gaps: Sequence[float], tolerance: float = TOLERANCE) -> float:
  """T(ε): the first length from which on the gap stays at ε or below; infinity if there is none.

  Args:
    lengths: numbers of symbols seen, ascending.
    gaps: gap at each length.
    tolerance: ε.

  Returns:
    A length or infinity.
  """
  first = float('inf')
  for length, gap in zip(reversed(lengths), reversed(gaps)):
    if gap > tolerance:
      break
    first = float(length)
  return first


def convergence(
    lengths: Sequence[int],
    gaps: np.ndarray,
    groups: Sequence[Group],
    *,
    errors: np.ndarray | None = None,
) -> dict[str, dict[str, float]]:
  """ε and T(ε) of each group, from the gap averaged over its HMMs.

  Args:
    lengths: ascending, [K].
    gaps: float [N, K]; accuracy gaps.
    groups: groups of the N HMMs.
    errors: float [N]; standard errors of the last gaps, if the HMMs are given; by default the
      HMMs are sampled, and a mean has the standard error over HMMs.

  Returns:
    By group name: 'final_gap', 'final_gap_se', 'reached_<tolerance>' (infinite if not reached)
    and 'count'.
  """
  by_group = {}
  for name, _, rows in groups:
    selected, count = gaps[rows], int(rows.sum())
    error = (
        _error(selected[:, -1]) if errors is None else statistics.error_of_mean(errors[rows]))
    by_group[name] = {
        'final_gap': float(selected[:, -1].mean()), 'final_gap_se': float(error),
        **{f'reached_{tolerance:g}': reached(lengths, _mean(selected), tolerance)
           for tolerance in TOLERANCES},
        'count': count}
  return by_group


def flat_convergence(
    prefix: str, by_group: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
  """`convergence` for results.json: `<prefix>/<group>/<number>`, without infinite numbers."""
  return {'/'.join(filter(None, (prefix, group, name))): value
          for group, values in by_group.items() for name, value in values.items()
          if np.isfinite(value)}


def convergence_table(
    groups: Sequence[Group], series: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> str:
  """Table with one row per group and predictor.

  Args:
    groups: in order, all HMMs first; any other group that contains all HMMs is left out.
    series: `convergence` by predictor.

  Returns:
    Markdown.
  """
  header = ['HMMs', 'number', 'predictor', 'ε', *(f'T({tolerance:g})' for tolerance in TOLERANCES)]
  rows = []
  for group in (group for group in groups if not group.name or not group.rows.all()):
    for label, values in ((label, by_group[group.name]) for label, by_group in series.items()):
      lengths = (values[f'reached_{tolerance:g}'] for tolerance in TOLERANCES)
      rows.append([
          group.label, values['count'], label,
          figures.decimal(values, 'final_gap', 4),
          *(f'{length:g}' if np.isfinite(length) else 'not reached' for length in lengths)])
  return figures.markdown_table(header, rows)


def convergence_figure(
    path: pathlib.Path,
    groups: Sequence[Group],
    series: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    lengths: Sequence[int],
    title: str,
) -> None:
  """Plots ε, and T(ε) for each tolerance, by group; writes a CSV too.

  Args:
    path: where to write the PNG.
    groups: in order.
    series: `convergence` by predictor.
    lengths: ascending; T(ε) that is not reached is drawn one doubling after the last.
    title: title of the figure.
  """
  names = ['final_gap', *(f'reached_{tolerance:g}' for tolerance in TOLERANCES)]
  never, ticks = 2 * lengths[-1], np.arange(len(groups))
  with figures.figure(path, len(names), title=title) as panels:
    for axes, name in zip(panels, names):
      for index, (label, by_group) in enumerate(series.items()):
        x = ticks + (index - (len(series) - 1) / 2) * 0.7 / len(series)
        y = [min(by_group[group.name][name], never) for group in groups]
        error = [by_group[group.name]['final_gap_se'] for group in groups]
        axes.errorbar(x, y, error if name == 'final_gap' else None, fmt='os^Dv<>PX*'[index % 10],
                      ms=5, label=label)
      axes.set_xticks(ticks, [group.label for group in groups], rotation=60, ha='right',
                      fontsize=8)

      axes.set_title(f'ε after {lengths[-1]} symbols' if name == 'final_gap' else
                     f'T({name.removeprefix("reached_")})')
      if name != 'final_gap':
        axes.set_yscale('log', base=2)
        axes.set_ylim(lengths[0] / 1.3, never * 1.3)
        axes.set_yticks([*lengths, never], [*map(str, lengths), 'not reached'], fontsize=8)
    panels[-1].legend(frameon=False, fontsize=8, loc='center left', bbox_to_anchor=(1.0, 0.5))

  metrics.write_csv_atomic(path.with_suffix('.csv'), ['predictor', 'hmms', 'count', *names], [
      (label, group.label, by_group[group.name]['count'],
       *(by_group[group.name][x] for x in names))
      for label, by_group in series.items() for group in groups])


def numbers(held_out: HeldOut) -> dict[str, float]:
  """The flat numbers of results.json: `eval/<method>/<score>/T<length>`, and `convergence`.

  Args:
    held_out: the measurements.

  Returns:
    Numbers by name.
  """
  flat: dict[str, float] = {}
  methods = dict(held_out.scores)
  if held_out.baum_welch is not None:
    methods['baum_welch'] = held_out.baum_welch

  for method, scores in methods.items():
    for name, values in scores.items():
      for length, mean, error in zip(held_out.lengths, _mean(values), _error(values)):
        flat[f'eval/{method}/{name}/T{length}'] = float(mean)
        flat[f'eval/{method}/{name}_se/T{length}'] = float(error)

  flat |= flat_convergence(
      'eval', convergence(held_out.lengths, _gap(held_out), _all_groups(held_out)))
  for method, scores in (held_out.recorded or {}).items():
    for name, values in scores.items():
      flat |= {f'eval/recorded/{method}/{name}/T{length}': float(mean)
               for length, mean in zip(held_out.lengths, _mean(values))}
  if held_out.recorded:
    flat |= {f'eval/recorded/M{states}/final_gap': float(gap.mean())
             for states, (_, gap) in _recorded_by_states(held_out).items()}

  # Lengths that are never reached stay infinite: a mean over seeds must not leave them out.
  return {name: value for name, value in flat.items() if not np.isnan(value)}


def findings(held_out: HeldOut) -> list[Finding]:
  """The criteria that the run can decide (specification of the reproduction, (a) to (e)).

  Args:
    held_out: the measurements.

  Returns:
    One `Finding` per criterion; criteria (a) to (d) need both fast and slow HMMs.
  """
  lambda2 = held_out.models.lambda2
  result = []
  if (lambda2 <= 0.5).any() and (lambda2 >= 0.95).any():
    result = [
        _close(held_out), _nearer(held_out), _better_than_bigrams(held_out), _harder(held_out)]

  if held_out.baum_welch is not None:
    fitted, icl = held_out.baum_welch['accuracy'], held_out.scores['icl']['accuracy']
    icl = icl[: len(fitted), : fitted.shape[1]]
    result.append(Finding(
        'e', 'up to 64 symbols it is more accurate than the best of several fits of Baum-Welch',
        bool((_mean(icl) > _mean(fitted)).all()),
        f'{_text(_mean(icl))} against {_text(_mean(fitted))} on the same {len(fitted)} HMMs'))
  return result


def _text(values: np.ndarray) -> str:
  return ', '.join(f'{value:.3f}' for value in values)


def _close(held_out: HeldOut) -> Finding:
  gap, lambda2 = _gap(held_out)[:, -1], held_out.models.lambda2
  fast, slow = gap[lambda2 <= 0.75].mean(), gap[lambda2 >= 0.9].mean()
  return Finding(
      'a', f'after {held_out.lengths[-1]} symbols the accuracy is within 0.02 of that of the '
      'filter where λ2 ≤ 0.75, and within 0.04 where λ2 ≥ 0.9', bool(fast <= 0.02 and slow <= 0.04),
      f'{fast:.4f} and {slow:.4f}; of all HMMs {gap.mean():.4f}')


def _nearer(held_out: HeldOut) -> Finding:
  distance = _mean(held_out.scores['icl']['hellinger'])[held_out.lengths >= 8]
  return Finding(
      'b', 'from 8 symbols on, the distance to the filter falls with every doubling',
      bool((np.diff(distance) < 0).all()), _text(distance))


def _better_than_bigrams(held_out: HeldOut) -> Finding:
  lambda2, scores = held_out.models.lambda2, held_out.scores
  ahead = (scores['bigram']['nll'] - scores['icl']['nll'])[:, held_out.lengths >= 8]
  slow, fast = _mean(ahead[lambda2 >= 0.95]), _mean(ahead[lambda2 <= 0.5])
  return Finding(
      'c', 'from 8 symbols on, the loss is below that of bigrams, and by more at λ2 ≥ 0.95 than at '
      'λ2 ≤ 0.5', bool((_mean(ahead) > 0).all() and (slow > fast).all()),
      f'{_text(_mean(ahead))} nats; slow {_text(slow)}; fast {_text(fast)}')


def _harder(held_out: HeldOut) -> Finding:
  gap = _gap(held_out)
  entropies = {
      'H_A': _entropy_rates(held_out.models.transition),
      'H_B': held_out.models.emission_entropy}
  ranks = {name: float(stats.spearmanr(gap[:, -1], x).statistic) for name, x in entropies.items()}

  reach = [reached(held_out.lengths, _mean(gap[rows])) for rows in _groups(held_out).values()]
  return Finding(
      'd', 'the gap grows with the entropies of A and of B (Spearman), and T(ε) with λ2',
      bool(min(ranks.values()) > 0 and reach == sorted(reach) and reach[0] < reach[-1]),
      f'H_A {ranks["H_A"]:.2f}, H_B {ranks["H_B"]:.2f}; T({TOLERANCE}) '
      + ', '.join(f'{x:g}' for x in reach))


def _entropy_rates(transition: np.ndarray) -> np.ndarray:
  """Entropy rates [N] of chains [N, M, M], in bits per step."""
  stationary = random_models.stationary_distribution(transition)
  return np.sum(stationary * random_models.entropy_bits(transition), axis=-1)


def _table(held_out: HeldOut) -> str:
  """Table of accuracy, loss and distance by length."""
  header = ['T', *(f'accuracy, {name}' for name in METHODS.values()),
            *(f'loss, {METHODS[name]}' for name in ('icl', 'filter', 'bigram')),
            *(f'H to filter, {METHODS[name]}' for name in ('icl', 'bigram'))]
  rows = []
  fitted = held_out.baum_welch

  def cells(index, score, *methods):
    return [f'{held_out.scores[method][score][:, index].mean():.3f}' for method in methods]

  for index, length in enumerate(held_out.lengths):
    known = fitted is not None and index < fitted['accuracy'].shape[1]
    rows.append([
        length, *cells(index, 'accuracy', 'icl', 'filter', 'bigram'),
        f'{fitted["accuracy"][:, index].mean():.3f}' if known else '-',
        *cells(index, 'nll', 'icl', 'filter', 'bigram'),
        *cells(index, 'hellinger', 'icl', 'bigram')])
  return figures.markdown_table(header, rows)


def _recorded_by_states(held_out: HeldOut) -> dict[int, tuple[np.ndarray, np.ndarray]]:
  """Published HMMs by number of states: (which ones, their final gaps)."""
  gap = held_out.recorded['filter']['accuracy'][:, -1] - held_out.recorded['icl']['accuracy'][:, -1]
  states = np.array([len(model.initial) for model in held_out.recorded_models])
  return {int(m): (states == m, gap[states == m]) for m in np.unique(states)}


def _recorded_table(held_out: HeldOut) -> str:
  """Table of accuracy on published HMMs after the last symbol."""
  methods = ('icl', 'filter', 'bigram')
  header = ['states', 'published HMMs', *(f'accuracy, {METHODS[m]}' for m in methods), 'ε']
  return figures.markdown_table(header, [
      [states, int(rows.sum()),
       *(f'{held_out.recorded[m]["accuracy"][rows, -1].mean():.3f}' for m in methods),
       render.with_error(gap.mean(), _error(gap), '.4f')]
      for states, (rows, gap) in _recorded_by_states(held_out).items()])


def _figures(run: launch.Run, held_out: HeldOut) -> None:
  folder, size = run.workdir / 'figures', f'{run.config.num_states} states'
  methods = dict(held_out.scores)
  if held_out.baum_welch is not None:
    methods['baum_welch'] = held_out.baum_welch

  def curve(values):
    return held_out.lengths[: values.shape[1]], _mean(values), _error(values)

  for name, label in (('accuracy', 'accuracy'), ('nll', 'loss (nats)')):
    figures.many_curves(
        folder / f'{name}.png',
        {METHODS[method]: curve(values[name]) for method, values in methods.items()},
        title=f'Next-symbol prediction on held-out HMMs, {size}', x='symbols seen', y=label)

  gap, groups = _gap(held_out), _all_groups(held_out)
  for name in ('lambda2', 'H_A', 'H_B'):
    figures.many_curves(
        folder / f'gap_by_{name}.png',
        {group.label: curve(gap[group.rows]) for group in groups if group.name.startswith(name)},
        title=f'Accuracy gap to the filter, {size}', x='symbols seen',
        y='accuracy of the filter minus in context')

  convergence_figure(
      folder / 'convergence.png', groups,
      {'in context': convergence(held_out.lengths, gap, groups)}, lengths=held_out.lengths,
      title=f'Accuracy gap to the filter, {size}')


def write(run: launch.Run, held_out: HeldOut) -> None:
  """Writes table.md, the figures and results.json, and prints the table.

  Args:
    run: the run.
    held_out: the measurements.
  """
  _figures(run, held_out)

  config = run.config
  caption = (
      f'{len(held_out.models.lambda2):,} held-out HMMs of {config.num_states} states and '
      f'{config.num_symbols} symbols, λ2 from {config.lambda2_low} to {config.lambda2_high}, after '
      f'{config.steps:,} steps on {config.batch_size} fresh ones each; seed {config.seed}. '
      'Expectations over the label are exact given the HMM and the symbols seen. Bigrams add 0.1 '
      'to each count.' + (f' {config.note}' if config.note else ''))

  groups = _all_groups(held_out)
  definitions = (
      'ε is the accuracy gap to the filter after the last symbol, T(ε) the first '
      'length from which on the mean gap stays at ε or below. H_A is the entropy rate of the '
      'hidden chain, H_B the entropy of an emission, in bits.')

  published = []
  if held_out.recorded:
    published = [_recorded_table(held_out), (
        f'Published HMMs of {config.num_symbols} symbols (λ2 = 0.75 in the file on disk), after '
        f'{held_out.lengths[-1]} of them; ε ± standard error over HMMs. The network was trained on '
        f'none of them, and only on HMMs of {config.num_states} states.')]

  by_group = convergence(held_out.lengths, _gap(held_out), groups)
  text = '\n\n'.join([
      _table(held_out), caption, convergence_table(groups, {'in context': by_group}), definitions,
      *published, criteria.markdown(findings(held_out))])

  metrics.write_text_atomic(run.table_path, text + '\n')
  sampled_tokens = config.steps * config.batch_size * (config.length + 1)
  launch.write_results(run, {**numbers(held_out), 'sampled_tokens': sampled_tokens})
  print(f'\n{text}\n\nwritten to {run.workdir}: results.json, table.md, figures/, params/')
