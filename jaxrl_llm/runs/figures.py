"""Tables and figures at the end of a run; each figure is saved with its data as CSV."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrl_llm.training import files, metrics

# Dark on white; series also differ by marker.
_COLOURS = ('#1b6ca8', '#d1495b', '#2e8b57', '#8d6a9f')


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """Returns a Markdown table with padded columns, readable in a terminal."""
  cells = [[str(cell) for cell in row] for row in (header, *rows)]
  widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
  line = lambda row: '| ' + ' | '.join(c.ljust(w) for c, w in zip(row, widths)) + ' |'
  rule = '|' + '|'.join('-' * (width + 2) for width in widths) + '|'
  return '\n'.join([line(cells[0]), rule, *map(line, cells[1:])])


def percent(numbers: Mapping[str, float], name: str) -> str:
  """Formats a fraction in percent, with its standard error if there is one."""
  error = numbers.get(f'{name}_se')
  text = f'{100 * numbers[name]:.1f}'
  return f'{text} ± {100 * error:.1f}' if error is not None else text


def _axes(title: str, x: str, y: str):
  import matplotlib

  matplotlib.use('Agg')
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(figsize=(6.4, 4.2), layout='constrained')
  axes.set(title=title, xlabel=x, ylabel=y)
  axes.grid(alpha=0.25)
  axes.spines[['top', 'right']].set_visible(False)
  return figure, axes


def _save(figure, path: pathlib.Path) -> None:
  import matplotlib.pyplot as plt

  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as temporary:
    figure.savefig(temporary, dpi=150, format='png')
  plt.close(figure)


def learning_curve(
    path: pathlib.Path,
    tokens: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    stage1_tokens: float,
) -> None:
  """Plots scores against sampled tokens, including stage 1; writes a PNG and a CSV.

  Args:
    path: where to write the PNG; the CSV has the same name.
    tokens: sampled tokens at each evaluation, including those of stage 1.
    series: scores in [0, 1] by name, each as long as `tokens`.
    title: title of the figure.
    stage1_tokens: end of stage 1; the region to its left is shaded.
  """
  figure, axes = _axes(title, 'sampled tokens (thousands, stage 1 included)', 'score')
  axes.axvspan(0, stage1_tokens / 1e3, color='0.92', label='stage 1 (reference samples)')
  for (name, values), colour, marker in zip(series.items(), _COLOURS, 'os^D'):
    axes.plot(np.asarray(tokens) / 1e3, values, color=colour, marker=marker, ms=4, label=name)

  axes.set_ylim(0, 1.02)
  axes.set_xlim(left=0)
  axes.legend(frameon=False, loc='lower right')

  _save(figure, path)
  rows = zip(tokens, *series.values())
  metrics.write_csv_atomic(path.with_suffix('.csv'), ['sampled_tokens', *series], rows)


def value_figure(
    path: pathlib.Path,
    success_rates: np.ndarray,
    values: np.ndarray,
    curve: tuple[np.ndarray, np.ndarray],
    *,
    title: str,
    samples: tuple[int, int],
    label: str = 'β₁ ln(1 − p + p exp(1/β₁))',
) -> None:
  """Plots estimated V* against the success rate in fresh samples; writes a PNG and a CSV.

  Args:
    path: where to write the PNG; the CSV has the same name.
    success_rates: [M], measured success rates.
    values: [M], stage 1's estimates for the same prompts.
    curve: (success rates, exact V*) of the closed form.
    title: title of the figure.
    samples: (N of stage 1, fresh samples per prompt).
    label: label of the curve.
  """
  figure, axes = _axes(
      title, f'success rate of the reference ({samples[1]} fresh samples)',
      f'V* estimated from {samples[0]} samples',
  )

  # Horizontal jitter: many prompts share a rate, and their dots would overlap.
  jitter = np.random.default_rng(0).uniform(-0.006, 0.006, len(values))
  axes.plot(success_rates + jitter, values, 'o', ms=4, alpha=0.35, color=_COLOURS[0],
            markeredgewidth=0, label='training prompts')
  axes.plot(*curve, color=_COLOURS[1], label=label)
  axes.plot([0, 1], [0, 1], color='0.6', ls=':', label='mean reward (β₁ → ∞)')
  axes.legend(frameon=False, loc='lower right')

  _save(figure, path)
  metrics.write_csv_atomic(
      path.with_suffix('.csv'), ['success_rate', 'estimated_value'], zip(success_rates, values)
  )


def many_curves(
    path: pathlib.Path,
    series: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    title: str,
    x: str,
    y: str,
) -> None:
  """Plots curves with error bands, which differ by colour, line and marker; writes PNG and CSV.

  Args:
    path: where to write the PNG; the CSV has the same name.
    series: name -> (x, y, standard error of y), each [N]; N = 1 is drawn as a point.
    title: title of the figure.
    x: label of the horizontal axis.
    y: label of the vertical axis.
  """
  import matplotlib

  figure, axes = _axes(title, x, y)
  figure.set_size_inches(8.2, 4.8)

  colours = matplotlib.colormaps['tab10'].colors
  for i, (name, (places, means, errors)) in enumerate(series.items()):
    style = dict(color=colours[i % 10], marker='os^Dv<>PX*'[i % 10], ms=4, lw=1.4, label=name)
    if len(places) == 1:
      axes.errorbar(places, means, errors, **{**style, 'ms': 9, 'ls': 'none', 'mec': 'black'})
      continue
    axes.plot(places, means, ls='-' if i < 10 else '--', **style)
    axes.fill_between(
        places, means - errors, means + errors, color=style['color'], alpha=0.15, lw=0)
  axes.legend(frameon=False, loc='center left', bbox_to_anchor=(1.0, 0.5))

  _save(figure, path)
  rows = [(name, *row) for name, columns in series.items() for row in zip(*columns)]
  metrics.write_csv_atomic(path.with_suffix('.csv'), ['series', x, y, 'standard_error'], rows)
