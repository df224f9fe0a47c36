"""Criteria of the Shoestring study, evaluated on its results.

A criterion is left out if an arm that it compares did not run, or if it applies to another data
set. Two of them assert nothing and are only reported.
"""

from collections.abc import Callable, Sequence

import numpy as np

from experiments.shoestring import report as shoestring_report
from experiments.shoestring.report import Outcomes, percent
from jaxrl_llm.evaluation import intervals
from jaxrl_llm.runs.criteria import Finding

_RATIO = 'refined_0.1'  # Used by the refinement criterion.


def findings(dataset: str, outcomes: Outcomes) -> list[Finding]:
  """Evaluates the criteria that the outcomes of a data set can decide."""
  candidates = [criterion(outcomes) for needed, datasets, criterion in _CRITERIA
                if dataset in datasets and set(needed) <= set(outcomes)]
  return [finding for finding in candidates if finding is not None]


def _plain(outcomes: Outcomes, backbone: str, labels: str) -> np.ndarray:
  return outcomes[backbone, 'softmax', labels]['softmax']


def _leak(outcomes: Outcomes, backbone: str, head: str, labels: str) -> np.ndarray:
  """Accuracy of leaky minus honest prototypes of the same networks, in points, [S]."""
  arm = outcomes[backbone, head, labels]
  return 100 * (arm['leaky'] - arm['prototypes'])


def _known_accuracy(outcomes: Outcomes) -> Finding:
  accuracy = _plain(outcomes, 'gcn', 'n20')
  return Finding('a', "GCN's accuracy on random splits with 20 labels per class is 79.5 ± 2 %",
                 bool(abs(100 * accuracy.mean() - 79.5) <= 2), f'{percent(accuracy)} %')


def _public_accuracy(outcomes: Outcomes) -> Finding:
  accuracies = {decay: outcomes['gcn', 'softmax', f'public/{decay}']['softmax']
                for decay in ('all', 'first')}
  return Finding(
      'a_public', "GCN's accuracy on the public split is 81.5 ± 1 %",
      bool(abs(100 * accuracies['all'].mean() - 81.5) <= 1),
      f'{percent(accuracies["all"])} %, with decay of the first layer alone '
      f'{percent(accuracies["first"])} %')


def _deeper_is_better(outcomes: Outcomes) -> Finding:
  gains = {n: 100 * (_plain(outcomes, 'igcn', n) - _plain(outcomes, 'gcn', n))
           for n in ('n1', 'n2')}
  return Finding(
      'b', "IGCN's accuracy exceeds GCN's by at least 4 points with 1 and with 2 labels per class",
      all(bool(gain.mean() >= 4) for gain in gains.values()),
      ', '.join(f'{n[1:]}: {percent(gain / 100)} points' for n, gain in gains.items()))


def _propagation_competes(outcomes: Outcomes) -> Finding:
  accuracies = {b: _plain(outcomes, b, 'n1') for b in ('lp', 'gcn', 'igcn')}
  return Finding(
      'b_lp', 'with 1 label per class label propagation is at least as good as GCN',
      bool(accuracies['lp'].mean() >= accuracies['gcn'].mean()),
      ', '.join(f'{b} {percent(values)} %' for b, values in accuracies.items()))


def _leak_is_large(outcomes: Outcomes) -> Finding:
  """Asserted for GCN with the cosine head; the other arms are reported too."""
  labels = ('n1', 'n2', 'n20')
  leaks = {n: _leak(outcomes, 'gcn', 'cos', n).mean() for n in labels}
  bounds = leaks['n1'] >= 12, leaks['n2'] >= 8, leaks['n20'] <= 2
  arms = [arm for arm in shoestring_report.heads_of(outcomes) if arm[1] in ('softmax', 'cos')]
  measured = '; '.join(
      f'{backbone}{" + cos" if head == "cos" else ""} ' + ', '.join(
          f'{_leak(outcomes, backbone, head, n).mean():.1f}' for n in labels)
      for backbone, head in arms)
  return Finding(
      'c', 'prototypes of the test labels gain at least 12 points with 1 label per class, 8 with '
      '2, and at most 2 with 20 (GCN + cos)', all(map(bool, bounds)),
      f'points with {", ".join(n[1:] for n in labels)} labels per class, heads without cos at '
      f'λ = 0: {measured}')


def _differences(outcomes: Outcomes) -> Finding | None:
  """Counts the paired intervals above, around and below 0, by each honest reading."""
  names = shoestring_report.compared_arms(outcomes)
  if not names:
    return None

  def listed(names):
    return ', '.join(' '.join(name) for name in names) or 'none'

  counts = []
  for reading in ('softmax', 'prototypes'):
    by_name = {name: shoestring_report.difference(outcomes, name, reading) for name in names}
    above = [name for name, d in by_name.items() if d.low > 0]
    below = [name for name, d in by_name.items() if d.high < 0]
    counts.append(f'{reading}: {len(above)} above 0 ({listed(above)}), {len(below)} below '
                f'({listed(below)}), {len(names) - len(above) - len(below)} around it')

  return Finding(
      'd', 'the metric head (λ > 0) against the plain backbone (λ = 0), same reading, paired '
      '95 % intervals', None,
      f'of {len(names)} arms, read by {"; by ".join(counts)}; expected by chance alone: '
      f'{0.05 * len(names):.1f} away from 0')


def _refinement(outcomes: Outcomes) -> Finding | None:
  """Gain at the fewest labels and one ratio fixed in advance; the table shows all ratios."""
  label = shoestring_report.labels_of(outcomes)[0]
  gains = []
  for backbone, head in shoestring_report.heads_of(outcomes):
    arm = outcomes[backbone, head, label]
    if head in ('softmax', 'cos') and _RATIO in arm:
      gain = intervals.paired_interval(arm[_RATIO], arm['prototypes'])
      name = f'{backbone}{" + cos" if head == "cos" else ", λ = 0"}'
      gains.append(f'{name} {shoestring_report.points(gain)}')
  if not gains:
    return None
  return Finding(
      'e', f'refinement of honest prototypes at evaluation (cos, {label[1:]} label(s) per class) '
      'with a tenth of the unlabelled nodes, in points', None, '; '.join(gains))


def _more_labels(outcomes: Outcomes) -> Finding | None:
  """Tests each arm's accuracy, and its standard deviation over splits, against more labels."""
  labels = shoestring_report.labels_of(outcomes)
  if len(labels) < 2:
    return None

  falling, spreading = [], []
  for backbone, head in shoestring_report.heads_of(outcomes):
    values = [outcomes[backbone, head, n][shoestring_report.reading_of(head)] for n in labels]
    if (np.diff([v.mean() for v in values]) <= 0).any():
      falling.append(f'{backbone} {head}')
    if len(values[0]) > 1 and values[-1].std() >= values[0].std():
      spreading.append(f'{backbone} {head}')

  return Finding(
      'f', 'the accuracy rises with every step of the number of labels, and its standard '
      'deviation over splits is smaller at the end', not falling and not spreading,
      f'not rising: {", ".join(falling) or "none"}; not narrower: {", ".join(spreading) or "none"}')


_REAL, _ANY = ('cora', 'citeseer'), ('cora', 'citeseer', 'blocks')
_CRITERIA: Sequence[tuple[tuple, tuple[str, ...], Callable[[Outcomes], Finding | None]]] = (
    ((('gcn', 'softmax', 'n20'),), ('cora',), _known_accuracy),
    ((('gcn', 'softmax', 'public/all'),), ('cora',), _public_accuracy),
    (tuple((b, 'softmax', n) for b in ('gcn', 'igcn') for n in ('n1', 'n2')), ('cora',),
     _deeper_is_better),
    (tuple((b, 'softmax', 'n1') for b in ('lp', 'gcn', 'igcn')), ('cora',), _propagation_competes),
    (tuple(('gcn', 'cos', n) for n in ('n1', 'n2', 'n20')), _REAL, _leak_is_large),
    ((), _ANY, _differences),
    ((), _ANY, _refinement),
    ((), _ANY, _more_labels),
)
