"""What a run of learning HMMs in context shows: table, figures, criteria and results.json."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments import criteria, launch, report
from experiments.criteria import Finding
from jaxrl_llm.tasks import hmm as hmm_task
from jaxrl_llm.training import metrics

METHODS = {'icl': 'in context', 'filter': 'filter', 'bigram': 'bigram', 'baum_welch': 'Baum-Welch'}
# Of the second eigenvalue: how slowly the chain forgets.
GROUPS = ((0.0, 0.5), (0.5, 0.75), (0.75, 0.9), (0.9, 1.0))
TOLERANCE = 0.02  # ε of T(ε), accuracy.


def _mean(values: np.ndarray) -> np.ndarray:
  return values.mean(axis=0)


def _error(values: np.ndarray) -> np.ndarray:
  return values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0 * values[0]


def _gap(found: Any) -> np.ndarray:
  """Accuracy of the filter minus that in context, [N, K]."""
  return found.scores['filter']['accuracy'] - found.scores['icl']['accuracy']


def _groups(found: Any) -> dict[str, np.ndarray]:
  """The HMMs of each range of λ2 that some are in."""
  lambda2 = found.models.lambda2
  rows = {f'λ2 {low:g}-{high:g}': (low <= lambda2) & (lambda2 < high) for low, high in GROUPS}
  return {name: chosen for name, chosen in rows.items() if chosen.any()}


def reached(lengths: Sequence[int], gaps: Sequence[float], tolerance: float = TOLERANCE) -> float:
  """T(ε): the first length from which on the gap stays at ε or below; infinity if there is none.

  Args:
    lengths: ascending.
    gaps: at each of them.
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


def numbers(found: Any) -> dict[str, float]:
  """The flat numbers of results.json: `eval/<method>/<score>/T<length>`, and by λ2.

  Args:
    found: an `icl_hmm_scratch.HeldOut`.

  Returns:
    Numbers by name.
  """
  flat: dict[str, float] = {}
  methods = dict(found.scores)
  if found.baum_welch is not None:
    methods['baum_welch'] = found.baum_welch
  for method, scores in methods.items():
    for name, values in scores.items():
      for length, mean, error in zip(found.lengths, _mean(values), _error(values)):
        flat[f'eval/{method}/{name}/T{length}'] = float(mean)
        flat[f'eval/{method}/{name}_se/T{length}'] = float(error)
  gap = _gap(found)
  for name, rows in _groups(found).items():
    place = f'eval/{name.replace("λ2 ", "lambda2_")}'
    flat[f'{place}/final_gap'] = float(gap[rows, -1].mean())
    flat[f'{place}/reached'] = reached(found.lengths, _mean(gap[rows]))
    flat[f'{place}/count'] = int(rows.sum())
  return {name: value for name, value in flat.items() if np.isfinite(value)}


def findings(found: Any) -> list[Finding]:
  """The criteria that the run can decide (specification of the reproduction, (a) to (e)).

  Args:
    found: an `icl_hmm_scratch.HeldOut`.

  Returns:
    One `Finding` a criterion; those that compare speeds only where there are HMMs of each.
  """
  lambda2 = found.models.lambda2
  result = []
  if (lambda2 <= 0.5).any() and (lambda2 >= 0.95).any():
    result = [_close(found), _nearer(found), _better_than_bigrams(found), _harder(found)]
  if found.baum_welch is not None:
    fitted, mine = found.baum_welch['accuracy'], found.scores['icl']['accuracy']
    mine = mine[: len(fitted), : fitted.shape[1]]
    result.append(Finding(
        'e', 'up to 64 symbols it is more accurate than the best of several fits of Baum-Welch',
        bool((_mean(mine) > _mean(fitted)).all()),
        f'{_text(_mean(mine))} against {_text(_mean(fitted))} on the same {len(fitted)} HMMs'))
  return result


def _text(values: np.ndarray) -> str:
  return ', '.join(f'{value:.3f}' for value in values)


def _close(found: Any) -> Finding:
  gap, lambda2 = _gap(found)[:, -1], found.models.lambda2
  fast, slow = gap[lambda2 <= 0.75].mean(), gap[lambda2 >= 0.9].mean()
  return Finding(
      'a', f'after {found.lengths[-1]} symbols the accuracy is within 0.02 of that of the filter '
      'where λ2 ≤ 0.75, and within 0.04 where λ2 ≥ 0.9', bool(fast <= 0.02 and slow <= 0.04),
      f'{fast:.4f} and {slow:.4f}; of all HMMs {gap.mean():.4f}')


def _nearer(found: Any) -> Finding:
  distance = _mean(found.scores['icl']['hellinger'])[found.lengths >= 8]
  return Finding(
      'b', 'from 8 symbols on, the distance to the filter falls with every doubling',
      bool((np.diff(distance) < 0).all()), _text(distance))


def _better_than_bigrams(found: Any) -> Finding:
  lambda2, scores = found.models.lambda2, found.scores
  ahead = (scores['bigram']['nll'] - scores['icl']['nll'])[:, found.lengths >= 8]
  slow, fast = _mean(ahead[lambda2 >= 0.95]), _mean(ahead[lambda2 <= 0.5])
  return Finding(
      'c', 'from 8 symbols on, the loss is below that of bigrams, and by more at λ2 ≥ 0.95 than at '
      'λ2 ≤ 0.5', bool((_mean(ahead) > 0).all() and (slow > fast).all()),
      f'{_text(_mean(ahead))} nats; slow {_text(slow)}; fast {_text(fast)}')


def _harder(found: Any) -> Finding:
  gap = _gap(found)
  entropies = {
      'H_A': np.array([_entropy_rate(a) for a in found.models.transition]),
      'H_B': found.models.emission_entropy}
  ranks = {name: float(stats.spearmanr(gap[:, -1], x).statistic) for name, x in entropies.items()}
  reach = [reached(found.lengths, _mean(gap[rows])) for rows in _groups(found).values()]
  return Finding(
      'd', 'the gap grows with the entropies of A and of B (Spearman), and T(ε) with λ2',
      bool(min(ranks.values()) > 0 and reach == sorted(reach) and reach[0] < reach[-1]),
      f'H_A {ranks["H_A"]:.2f}, H_B {ranks["H_B"]:.2f}; T({TOLERANCE}) '
      + ', '.join(f'{x:g}' for x in reach))


def _entropy_rate(transition: np.ndarray) -> float:
  values, vectors = np.linalg.eig(transition.T)
  law = np.real(vectors[:, np.argmax(np.real(values))])
  return hmm_task.entropy_rate_bits(transition, law / law.sum())


def _table(found: Any) -> str:
  """Accuracy, loss and distance by length."""
  header = ['T', *(f'accuracy, {name}' for name in METHODS.values()),
            *(f'loss, {METHODS[name]}' for name in ('icl', 'filter', 'bigram')),
            *(f'H to filter, {METHODS[name]}' for name in ('icl', 'bigram'))]
  rows = []
  for index, length in enumerate(found.lengths):
    cell = lambda method, score, i=index: f'{found.scores[method][score][:, i].mean():.3f}'
    fitted = found.baum_welch
    known = fitted is not None and index < fitted['accuracy'].shape[1]
    rows.append([
        length, *(cell(m, 'accuracy') for m in ('icl', 'filter', 'bigram')),
        f'{fitted["accuracy"][:, index].mean():.3f}' if known else '-',
        *(cell(m, 'nll') for m in ('icl', 'filter', 'bigram')),
        *(cell(m, 'hellinger') for m in ('icl', 'bigram'))])
  return report.markdown_table(header, rows)


def _figures(run: launch.Run, found: Any) -> None:
  folder, size = run.workdir / 'figures', f'{run.config.num_states} states'
  methods = dict(found.scores)
  if found.baum_welch is not None:
    methods['baum_welch'] = found.baum_welch
  series = lambda values, name: (
      found.lengths[: values[name].shape[1]], _mean(values[name]), _error(values[name]))
  for name, label in (('accuracy', 'accuracy'), ('nll', 'loss (nats)')):
    report.many_curves(
        folder / f'{name}.png',
        {METHODS[method]: series(values, name) for method, values in methods.items()},
        title=f'Next symbol of HMMs never seen before, {size}', x='symbols seen', y=label)
  gap = _gap(found)
  report.many_curves(
      folder / 'gap_by_lambda2.png',
      {name: (found.lengths, _mean(gap[rows]), _error(gap[rows]))
       for name, rows in _groups(found).items()},
      title=f'What the filter knows more, {size}', x='symbols seen',
      y='accuracy of the filter minus in context')


def write(run: launch.Run, found: Any) -> None:
  """Writes table.md, the figures and results.json, and prints the table.

  Args:
    run: the run.
    found: an `icl_hmm_scratch.HeldOut`.
  """
  _figures(run, found)
  config = run.config
  caption = (
      f'{len(found.models.lambda2):,} held-out HMMs of {config.num_states} states and '
      f'{config.num_symbols} symbols, λ2 from {config.lambda2_low} to {config.lambda2_high}, after '
      f'{config.steps:,} steps on {config.batch_size} fresh ones each; seed {config.seed}. '
      'Expectations over the label are exact given the HMM and what was seen. Bigrams add 0.1 to '
      'each count.' + (f' {config.note}' if config.note else ''))
  text = '\n\n'.join([_table(found), caption, criteria.markdown(findings(found))])
  metrics.write_text_atomic(run.table_path, text + '\n')
  launch.write_results(run, {
      **numbers(found), 'sampled_tokens': config.steps * config.batch_size * (config.length + 1)})
  print(f'\n{text}\n\nwritten to {run.workdir}: results.json, table.md, figures/, params/')
