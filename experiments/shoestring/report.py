"""Report of the Shoestring study: numbers, tables and a figure, each with its data."""

import contextlib
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.shoestring import heads
from jaxrl_llm.evaluation import intervals, statistics
from jaxrl_llm.graphs.prototypes import METRICS
from jaxrl_llm.runs import figures, launch
from jaxrl_llm.tables import render
from jaxrl_llm.training import metrics

# Suffixes of prototype readings at λ = 0, where all metrics are read.
_SUFFIXES = {metric: '' if metric == 'cos' else f'_{metric}' for metric in METRICS}

# (backbone, head, 'n1' and so on) -> reading -> array [S].
Outcomes = Mapping[tuple[str, ...], Mapping[str, np.ndarray]]


def reading_of(head: str) -> str:
  """Reading of a head's own accuracy: softmax, or honest prototypes."""
  return 'softmax' if head == 'softmax' else 'prototypes'


def random_arms(outcomes: Outcomes) -> list[tuple[str, str, str]]:
  """The arms on random splits."""
  return [name for name in outcomes if not name[2].startswith('public')]


def labels_of(outcomes: Outcomes) -> list[str]:
  """'n1', 'n2' and so on, in order."""
  return list(dict.fromkeys(name[2] for name in random_arms(outcomes)))


def heads_of(outcomes: Outcomes) -> list[tuple[str, str]]:
  """(backbone, head) of the arms on random splits, in order."""
  return list(dict.fromkeys(name[:2] for name in random_arms(outcomes)))


def compared_arms(outcomes: Outcomes) -> list[tuple[str, str, str]]:
  """Arms with a metric head that λ can affect: those with a trained backbone."""
  return [name for name in random_arms(outcomes)
          if name[1] != 'softmax' and 'unreached' not in outcomes[name]]


def _at_zero(outcomes: Outcomes, name: tuple[str, ...], reading: str) -> np.ndarray:
  """The same reading of the plain backbone, with the same metric for prototypes."""
  backbone, head, labels = name
  suffix = '' if reading == 'softmax' else _SUFFIXES[head]
  return outcomes[backbone, 'softmax', labels][reading + suffix]


def difference(
    outcomes: Outcomes, name: tuple[str, ...], reading: str
) -> intervals.Interval:
  """Paired difference over splits of a metric head and its plain backbone, by the same reading.

  Args:
    outcomes: outcomes of all arms.
    name: (backbone, metric head, labels).
    reading: 'softmax' or 'prototypes' (honest ones).

  Returns:
    The mean of reading(λ) − reading(0) with its 95 % interval, as fractions.
  """
  return intervals.paired_interval(outcomes[name][reading], _at_zero(outcomes, name, reading))


def summarise(outcomes: Outcomes) -> dict[str, float]:
  """The headline numbers by flat name, as fractions.

  `accuracy` is read by the arm's head: softmax, or prototypes of the training labels.
  """
  numbers = {}
  for name, arm in outcomes.items():
    backbone, head, labels = name
    if labels.startswith('public'):
      # Decay of all layers, as in the released code, is the headline; the other one has a suffix.
      decay = labels.partition('/')[2]
      prefix = f'eval/{backbone}/{head}/public' + ('/first_layer_decay' if decay == 'first' else '')
      mean, error = statistics.mean_and_standard_error(arm['softmax'])
      numbers |= {f'{prefix}/accuracy': float(mean), f'{prefix}/accuracy_se': float(error)}
      continue

    prefix = f'eval/{backbone}/{head}/{labels}'
    others = {f'{short}_{metric}_': arm[f'{way}_{metric}']
              for short, way in (('prototype', 'prototypes'), ('leaky', 'leaky'))
              for metric in METRICS if f'{way}_{metric}' in arm}
    readings = {'': arm[reading_of(head)], 'leaky_': arm['leaky'], 'softmax_': arm['softmax'],
                'prototype_': arm['prototypes'], 'mixed_': arm['mixed'],
                'leaky_mixed_': arm['leaky_mixed'], **others}

    for reading, values in readings.items():
      mean, error = statistics.mean_and_standard_error(values)
      numbers[f'{prefix}/{reading}accuracy'] = float(mean)
      numbers[f'{prefix}/{reading}accuracy_se'] = float(error)

    numbers[f'{prefix}/standard_deviation'] = _deviation(arm[reading_of(head)])
    for reading in arm:
      if reading.startswith('refined_'):
        numbers[f'{prefix}/{reading}_accuracy'] = float(arm[reading].mean())
    if 'unreached' in arm and head == 'softmax':
      numbers[f'{prefix}/unreached'] = float(arm['unreached'].mean())
  return numbers | _differences(outcomes)


def _differences(outcomes: Outcomes) -> dict[str, float]:
  numbers = {}
  for name in compared_arms(outcomes):
    for short, reading in (('softmax', 'softmax'), ('prototype', 'prototypes')):
      prefix = f'eval/{"/".join(name)}/{short}_difference'
      interval = difference(outcomes, name, reading)
      numbers |= {prefix: interval.mean, f'{prefix}_low': interval.low,
                  f'{prefix}_high': interval.high}
  return numbers


def _deviation(values: np.ndarray) -> float:
  return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def percent(values: np.ndarray) -> str:
  """Mean ± standard error over splits, in percent."""
  mean, error = statistics.mean_and_standard_error(100 * np.asarray(values))
  return render.with_error(mean, error, '.1f')


def points(interval: intervals.Interval) -> str:
  """A mean with its interval, in points."""
  return '{:+.1f} [{:+.1f}, {:+.1f}]'.format(*(100 * end for end in interval))


def table(outcomes: Outcomes) -> str:
  """Table of every head, honest and leaky, the public split, and the nodes LP cannot reach."""
  labels = labels_of(outcomes)
  header = ['accuracy (%)', 'read by', *(f'{n[1:]} per class' for n in labels)]
  rows = []
  for backbone, head in heads_of(outcomes):
    ways = {'softmax': 'softmax', 'prototypes': 'prototypes of training labels',
            'leaky': 'prototypes of test labels (leaky)'}

    if head == 'softmax':
      ways = {'softmax': 'softmax'} | {
          way + suffix: f'{text}, {metric}' for metric, suffix in _SUFFIXES.items()
          for way, text in list(ways.items())[1:]
          if way + suffix in outcomes[backbone, head, labels[0]]}

    name = backbone if head == 'softmax' else f'{backbone} + {head}'
    rows += [[name, text, *(percent(outcomes[backbone, head, n][way]) for n in labels)]
             for way, text in ways.items()]

  text = figures.markdown_table(header, rows)
  public = [f'{name[0]}, public split, decay of {name[2].partition("/")[2]} '
            f'layer{"s" if name[2].endswith("all") else ""}: {percent(arm["softmax"])} %'
            for name, arm in outcomes.items() if name[2].startswith('public')]
  return '\n\n'.join([text, *public, *_unreached(outcomes), 'Mean ± standard error over splits.'])


def _unreached(outcomes: Outcomes) -> list[str]:
  """Lines about test nodes that label propagation does not reach, if it ran."""
  lines = []
  for backbone, head in heads_of(outcomes):
    arms = {n: outcomes[backbone, head, n] for n in labels_of(outcomes)}
    if head == 'softmax' and 'unreached' in next(iter(arms.values())):
      shares = ', '.join(f'{100 * arm["unreached"].mean():.1f} % with {n[1:]} per class'
                         for n, arm in arms.items())
      lines.append(f'{backbone}: test nodes that no label reaches, which its softmax calls class '
                   f'0: {shares}.')
  return lines


def differences(outcomes: Outcomes) -> str:
  """Table of metric heads minus their plain backbones, same reading; '' if there is none."""
  labels = labels_of(outcomes)
  rows = []
  for backbone, head in dict.fromkeys(name[:2] for name in compared_arms(outcomes)):
    for reading, text in (('softmax', 'softmax'), ('prototypes', 'honest prototypes')):
      rows.append([f'{backbone} + {head}', text, *(
          points(difference(outcomes, (backbone, head, n), reading)) for n in labels)])
  if not rows:
    return ''
  header = ['λ > 0 minus λ = 0, points', 'both read by', *(f'{n[1:]} per class' for n in labels)]
  return figures.markdown_table(header, rows) + '\n\nMean difference with its 95 % t-interval, ' \
      'split by split.'


def refinement(outcomes: Outcomes, ratios: Sequence[float]) -> str:
  """Table of refined minus unrefined prototypes, means over splits; '' without ratios."""
  ratios = [ratio for ratio in ratios if ratio]
  labels = labels_of(outcomes)
  if not ratios:
    return ''

  header = ['refinement, points', 'of the unlabelled', *(f'{n[1:]} per class' for n in labels)]
  rows = []

  for backbone, head in heads_of(outcomes):
    for ratio in ratios:
      gains = []
      for n in labels:
        arm = outcomes[backbone, head, n]
        gains.append(points(intervals.paired_interval(
            arm[f'refined_{ratio:g}'], arm['prototypes'])))

      name = f'{backbone} + {"cos, λ = 0" if head == "softmax" else head}'
      rows.append([name, f'{ratio:g}', *gains])
  return figures.markdown_table(header, rows) + '\n\nHonest prototypes are refined at evaluation ' \
      'only: the loss compares with the labelled nodes alone.'


def write_figure(path: pathlib.Path, outcomes: Outcomes) -> None:
  """Plots accuracy against labels per class, one panel per backbone; writes the data as CSV."""
  labels = labels_of(outcomes)
  backbones = list(dict.fromkeys(backbone for backbone, _ in heads_of(outcomes)))
  counts = [int(n[1:]) for n in labels]

  rows = []
  for backbone, head in heads_of(outcomes):
    for n, count in zip(labels, counts):
      for way in ('softmax', 'prototypes', 'mixed', 'leaky', 'leaky_mixed'):
        mean, error = statistics.mean_and_standard_error(outcomes[backbone, head, n][way])
        rows.append((backbone, head, count, way, float(mean), float(error)))

  limits = 100 * min(row[4] - row[5] for row in rows) - 3, 100 * max(row[4] for row in rows) + 3
  with figures.figure(
      path, len(backbones), title='Few labels: honest and leaky prototypes') as axes:
    for panel, backbone in zip(axes, backbones):
      heads = [head for name, head in heads_of(outcomes) if name == backbone]
      shown = [('softmax', 'softmax', 'softmax', '#1b6ca8', 'o-')]
      metric = next((head for head in heads if head != 'softmax'), None)
      if metric:
        shown += [(metric, 'prototypes', f'{metric}, training labels', '#2e8b57', 's-'),
                  (metric, 'leaky', f'{metric}, test labels (leaky)', '#d1495b', '^--')]
      shown.append(('softmax', 'leaky', 'λ = 0, test labels (leaky)', '0.55', 'v:'))

      for head, way, label, colour, style in shown:
        points = [statistics.mean_and_standard_error(
            100 * outcomes[backbone, head, n][way]) for n in labels]
        panel.errorbar(counts, *zip(*points), fmt=style, color=colour, label=label, ms=5,
                       capsize=3)

      panel.set(xscale='log', xlabel='labels per class', ylabel='accuracy (%)', title=backbone,
                ylim=limits)
      panel.set_xticks(counts, [str(count) for count in counts], minor=False)
      panel.minorticks_off()
      panel.legend(frameon=False, fontsize=8)

  metrics.write_csv_atomic(path.with_suffix('.csv'), [
      'backbone', 'head', 'labels_per_class', 'read_by', 'accuracy', 'standard_error'], rows)


def write_splits(path: pathlib.Path, outcomes: Outcomes, seed: int) -> None:
  """Writes every accuracy of every split as CSV."""
  rows = [(*name, seed + split, reading, float(value))
          for name, arm in outcomes.items() for reading, values in arm.items()
          if reading not in ('loss', 'unreached') for split, value in enumerate(values)]
  metrics.write_csv_atomic(
      path, ['backbone', 'head', 'split', 'seed', 'read_by', 'accuracy'], rows)


def write_metrics(run: launch.Run, outcomes: Outcomes) -> None:
  """Writes the loss of every arm by epoch, means over splits, to metrics.jsonl."""
  with contextlib.closing(metrics.MetricsWriter(run.workdir)) as writer:
    writer.truncate([])
    for step in sorted({*range(0, run.config.steps, heads.CHUNK), run.config.steps - 1}):
      writer.write(step, {f'train/{"/".join(name)}/loss': arm['loss'][:, step].mean()
                          for name, arm in outcomes.items() if arm['loss'].size})
