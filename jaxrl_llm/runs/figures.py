"""Tables and figures at the end of a run; each figure is saved with its data as CSV."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrl_llm.tables import render
from jaxrl_llm.training import files, metrics

# Dark on white; series also differ by marker.
_COLOURS = ('#1b6ca8', '#d1495b', '#2e8b57', '#8d6a9f')
_SIZE = 6.4, 4.2  # Inches, of a figure with one panel.


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """Returns a Markdown table with padded columns, readable in a terminal."""
  cells = [[str(cell) for cell in row] for row in (header, *rows)]
  widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

  def line(row):
    return '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths)) + ' |'

  rule = '|' + '|'.join('-' * (width + 2) for width in widths) + '|'
  return '\n'.join([line(cells[0]), rule, *map(line, cells[1:])])


def percent(numbers: Mapping[str, float], name: str) -> str:
  """Formats a fraction in percent, with its standard error if there is one."""
  error = numbers.get(f'{name}_se')
  return render.with_error(
      100 * numbers[name], None if error is None else 100 * error, '.1f')


def decimal(numbers: Mapping[str, float], name: str, digits: int) -> str:
  """Formats a number, with its standard error if there is one."""
  return render.with_error(numbers[name], numbers.get(f'{name}_se'), f'.{digits}f')


@contextlib.contextmanager
def figure(
    path: pathlib.Path,
    panels: int = 1,
    *,
    title: str = '',
    columns: int = 0,
    size: tuple[float, float] | None = None,
    share_x: bool = False,
    share_y: bool = False,
) -> Iterator[Any]:
  """Makes a figure of panels with a light grid; saved when the block ends.

  Args:
    path: where to write the PNG; written atomically.
    panels: number of panels.
    title: title above all panels.
    columns: panels per row; by default three, or two if there are four panels.
    size: width and height of the figure in inches; by default 5.2 x 4.4 per panel.
    share_x: whether the panels share their horizontal axis.
    share_y: whether the panels share their vertical axis.

  Yields:
    The axes, [panels], row by row.
  """
  from matplotlib import figure as matplotlib_figure  # Not pyplot, which holds global state.

  columns = columns or (2 if panels == 4 else min(panels, 3))
  rows = -(-panels // columns)
  drawing = matplotlib_figure.Figure(
      figsize=size or (5.2 * columns, 4.4 * rows), layout='constrained')
  grid = drawing.subplots(rows, columns, squeeze=False, sharex=share_x, sharey=share_y)
  axes, unused = grid.ravel()[:panels], grid.ravel()[panels:]

  if title:
    drawing.suptitle(title)
  for panel in axes:
    panel.grid(alpha=0.25)
    panel.spines[['top', 'right']].set_visible(False)
  for panel in unused:
    panel.remove()

  yield axes
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as temporary:
    drawing.savefig(temporary, dpi=150, format='png')


def palette() -> tuple[tuple[float, float, float], ...]:
  """Returns ten distinct colours (RGB) for curves."""
  import matplotlib

  return matplotlib.colormaps['tab10'].colors


def learning_curve(
    path: pathlib.Path,
    tokens: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    stage1_tokens: float = 0,
) -> None:
  """Plots scores against sampled tokens, those of a stage 1 included; writes a PNG and a CSV.

  Args:
    path: where to write the PNG; the CSV has the same name.
    tokens: sampled tokens at each evaluation, including those of stage 1.
    series: scores in [0, 1] by name, each as long as `tokens`.
    title: title of the figure.
    stage1_tokens: end of stage 1; the region to its left is shaded. 0 for none.
  """
  with figure(path, size=_SIZE) as (axes,):
    included = ', stage 1 included' if stage1_tokens else ''
    axes.set(title=title, xlabel=f'sampled tokens (thousands{included})', ylabel='score')
    if stage1_tokens:
      axes.axvspan(0, stage1_tokens / 1e3, color='0.92', label='stage 1 (reference samples)')
    for (name, values), colour, marker in zip(series.items(), _COLOURS, 'os^D'):
      axes.plot(np.asarray(tokens) / 1e3, values, color=colour, marker=marker, ms=4, label=name)

    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc='lower right')

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
  # Horizontal jitter: many prompts share a rate, and their dots would overlap.
  jitter = np.random.default_rng(0).uniform(-0.006, 0.006, len(values))
  with figure(path, size=_SIZE) as (axes,):
    axes.set(title=title, xlabel=f'success rate of the reference ({samples[1]} fresh samples)',
             ylabel=f'V* estimated from {samples[0]} samples')
    axes.plot(success_rates + jitter, values, 'o', ms=4, alpha=0.35, color=_COLOURS[0],
              markeredgewidth=0, label='training prompts')
    axes.plot(*curve, color=_COLOURS[1], label=label)
    axes.plot([0, 1], [0, 1], color='0.6', ls=':', label='mean reward (β₁ → ∞)')
    axes.legend(frameon=False, loc='lower right')

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
  with figure(path, size=(8.2, 4.8)) as (axes,):
    axes.set(title=title, xlabel=x, ylabel=y)
    for i, (name, (positions, means, errors)) in enumerate(series.items()):
      colour = palette()[i % 10]
      style = dict(color=colour, marker='os^Dv<>PX*'[i % 10], ms=4, lw=1.4, label=name)
      if len(positions) == 1:
        axes.errorbar(positions, means, errors, **{**style, 'ms': 9, 'ls': 'none', 'mec': 'black'})
        continue
      axes.plot(positions, means, ls='-' if i < 10 else '--', **style)
      axes.fill_between(positions, means - errors, means + errors, color=colour, alpha=0.15, lw=0)
    axes.legend(frameon=False, loc='center left', bbox_to_anchor=(1.0, 0.5))

  rows = [(name, *row) for name, columns in series.items() for row in zip(*columns)]
  metrics.write_csv_atomic(path.with_suffix('.csv'), ['series', x, y, 'standard_error'], rows)
